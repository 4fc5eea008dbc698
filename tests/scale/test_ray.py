"Ray gives the parts that are made without it: whichever node is lost, whatever fails, whoever began."
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

import pandas as pd
import pytest

from hpa_fastai.basics.errors import HPAError
from hpa_fastai.batches.loaders import HPADataLoaders
from hpa_fastai.cli.main import main
from hpa_fastai.deploy.predictor import Predictor
from hpa_fastai.scale import ray_workers
from hpa_fastai.scale.gather import gather
from hpa_fastai.scale.parts import Parts
from hpa_fastai.scale.planning import make_plan
from hpa_fastai.scale.ray_workers import RayTask, RayWorker, check_ray, predict_with_ray
from hpa_fastai.scale.shards import predict_shards
from hpa_fastai.simulate.atlas import simulate_atlas
from hpa_fastai.train.learner import hpa_learner

pytest.importorskip('pyarrow')
pytest.importorskip('ray')
pytestmark = pytest.mark.filterwarnings('ignore')
SETTINGS = dict(device='cpu', bs=8)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "Simulated pictures, an untrained model, and the table of one run"
    folder = tmp_path_factory.mktemp('ray')
    simulate_atlas(folder/'data', n=96, size=48, seed=0, progress=False)
    dls = HPADataLoaders.from_csv(folder/'data', size=48, bs=16, cache=folder/'cache', progress=False)
    hpa_learner(dls, 'smallresnet').save_bundle(folder/'model')
    Predictor(folder/'model', **SETTINGS).to_file(folder/'data'/'train', folder/'one.parquet', progress=False)
    return folder


@pytest.fixture
def plan(place, tmp_path): return make_plan(place/'data'/'train', tmp_path/'plan', shard_size=8, progress=False)


def without_ray(place, plan, *shards):
    return list(predict_shards(plan, Predictor(place/'model', **SETTINGS), *shards, progress=False))


def assert_same(place, plan):
    "The gathered table is that of one run, byte for byte, and nothing else is left in the folder"
    out = plan.folder.parent/'all.parquet'
    gather(plan, out, progress=False)
    assert out.read_bytes() == (place/'one.parquet').read_bytes()
    assert sorted(o.name for o in plan.folder.iterdir()) == ['manifest', 'plan.json', 'predictions']


def ray_processes():
    "The processes of Ray that run; those that have ended and that nobody has asked how are none"
    lines = subprocess.run(['ps', '-eo', 'pid,stat,args'], capture_output=True, text=True).stdout.splitlines()
    return {line.split()[0] for line in lines if re.search(r'raylet/raylet|gcs/gcs_server|ray::', line)
            and not line.split()[1].startswith('Z')}


def assert_ended(before):
    "No process of Ray is left but those of `before`; its agents look for the others once in a while, and then end too"
    until = time.monotonic()+180
    while ray_processes() - before and time.monotonic() < until: time.sleep(1)
    assert not ray_processes() - before


@pytest.fixture(scope='module')
def cluster():
    "A cluster of three nodes with a CPU each, in a folder of its own"
    from ray.cluster_utils import Cluster
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix='r', dir='/tmp') as folder:
        ray_workers.import_ray()
        patch.setenv('RAY_TMPDIR', folder)
        os.mkdir(f'{folder}/ray')
        found = Cluster(initialize_head=True, head_node_args=dict(num_cpus=1, include_dashboard=False, temp_dir=folder))
        for _ in range(2): found.add_node(num_cpus=1)
        yield found
        found.shutdown()


def make_mishaps(mishap):
    "A task whose workers meet with mishaps: `mishap` is called with the number of each shard before it is predicted"
    class Unlucky(RayTask):
        def begin(self):
            worker = super().begin()
            class Worker:
                plan = worker.plan
                def __call__(self, shard):
                    mishap(shard)
                    return worker(shard)
            return Worker()
    return Unlucky


@pytest.mark.slow
def test_a_shard_that_fails_or_kills_its_worker_does_not_end_the_others(place, plan, cluster, monkeypatch):
    "What Ray left undone is finished without it"
    def mishap(shard):
        if shard == 3: raise OSError(28, 'No space left on device')
        if shard == 5: os._exit(1)
    monkeypatch.setattr(ray_workers, 'RayTask', make_mishaps(mishap))
    Parts(plan).file(7).mkdir(parents=True)
    found = {o['shard']: o for o in predict_with_ray(plan, place/'model', cluster.address, progress=False, **SETTINGS)}
    assert sorted(found) == list(range(12))
    assert {n: o['state'] for n, o in found.items() if o['state'] != 'done'} == dict.fromkeys((3, 5, 7), 'failed')
    assert found[3]['reason'] == 'OSError: [Errno 28] No space left on device'
    assert 'its worker died in each of 3 tries' in found[5]['reason']
    assert 'part-000007.parquet' in found[7]['reason']
    Parts(plan).file(7).rmdir()
    assert [o['shard'] for o in without_ray(place, plan) if o['state'] == 'done'] == [3, 5, 7]
    assert_same(place, plan)


@pytest.mark.slow
def test_a_node_is_lost_in_the_middle_of_a_shard(place, plan, cluster, monkeypatch):
    "What was begun without Ray is ended by it, on the nodes that are left; the shards of the lost node go on"
    without_ray(place, plan, '0:2')
    class Slow(RayTask):
        def begin(self):
            from hpa_fastai.deploy.journal import Journal
            add = Journal.add
            def add_slowly(journal, *args, **kwargs):
                add(journal, *args, **kwargs)
                time.sleep(2)
            Journal.add = add_slowly
            return super().begin()
    monkeypatch.setattr(ray_workers, 'RayTask', Slow)
    found, lost = [], []
    for result in predict_with_ray(plan, place/'model', cluster.address, progress=False, **SETTINGS):
        found.append(result)
        if len(found) == 5:
            lost = [o.name for o in Parts(plan).folder.glob('*.part.json')]
            for node in list(cluster.worker_nodes)[:1]: cluster.remove_node(node, allow_graceful=False)
    cluster.add_node(num_cpus=1)
    assert lost
    assert {o['shard']: o['state'] for o in found} == {n: 'done' if n > 1 else 'done before' for n in range(12)}
    assert len(found) == 12
    assert_same(place, plan)


@pytest.mark.slow
def test_a_full_disk_ends_some_shards_and_loses_nothing(place, plan, cluster):
    folder = Parts(plan).folder
    folder.mkdir()
    if os.getuid() or subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=80k', 'tmpfs', folder]).returncode:
        pytest.skip('only root can mount a small disk')
    try:
        found = list(predict_with_ray(plan, place/'model', cluster.address, progress=False, **SETTINGS))
        states = pd.Series([o['state'] for o in found]).value_counts()
        assert states['done'] and states['failed'] and states.sum() == 12
        assert all('No space left' in o['reason'] for o in found if o['state'] == 'failed')
        subprocess.run(['mount', '-o', 'remount,size=10m', folder], check=True)
        again = list(predict_with_ray(plan, place/'model', cluster.address, progress=False, **SETTINGS))
        assert pd.Series([o['state'] for o in again]).value_counts().to_dict() == {
            'done': states['failed'], 'done before': states['done']}
        assert_same(place, plan)
    finally: subprocess.run(['umount', folder], check=True)


@pytest.mark.slow
def test_the_command_starts_a_cluster_and_ends_it(place, plan, monkeypatch, capfd):
    "It says what it did, does it once, and leaves nothing behind; a cluster that runs is not joined"
    monkeypatch.setenv('RAY_ADDRESS', '127.0.0.1:9')
    before = ray_processes(), set(os.listdir(tempfile.gettempdir()))
    command = ['predict', '--plan', str(plan.folder), '--model', str(place/'model'), '--bs', '8', '--device', 'cpu',
               '--ray', '--ray-workers', '1:2', '--no-progress']
    assert main(command) == 0
    out, err = capfd.readouterr()
    assert sorted(line.split(':')[0] for line in out.splitlines()) == sorted(f'shard {n}' for n in range(12))
    assert all('8 fields of view, 0 failed' in line for line in out.splitlines()) and 'Traceback' not in err
    assert_same(place, plan)
    Parts(plan).file(4).unlink()
    Parts(plan).file(4).mkdir()
    assert main(command) == 1
    out, err = capfd.readouterr()
    assert out.count('was done before') == 11 and 'shard 4: not done (' in err
    new = {o for o in set(os.listdir(tempfile.gettempdir())) - before[1] if o.startswith(('hpa', 'ray'))}
    assert not new
    assert_ended(before[0])


@pytest.mark.slow
def test_a_killed_command_takes_its_cluster_along_and_is_repeated(place, plan):
    before = ray_processes()
    code = 'import sys; from hpa_fastai.cli.main import main; sys.exit(main())'
    command = [sys.executable, '-c', code, 'predict', '--plan', plan.folder, '--model', place/'model', '--bs', '8',
               '--device', 'cpu', '--ray', '--ray-workers', '1', '--no-progress']
    with tempfile.TemporaryDirectory(prefix='r', dir='/tmp') as folder:
        env = dict(os.environ, TMPDIR=folder)
        run = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
        assert run.stdout.readline().startswith('shard 0: 8 fields of view')
        run.send_signal(signal.SIGKILL)
        run.wait()
        assert_ended(before)
        again = subprocess.run(command, env=env, capture_output=True, text=True)
        assert again.returncode == 0 and 'shard 0: was done before' in again.stdout
    for file in plan.folder.glob('.ray-*'): file.unlink()
    assert_same(place, plan)


def task_of(place, plan, **changes):
    (plan.folder/'.ray-x').touch()
    settings = dict(folder=plan.folder, token='.ray-x', images=plan.shard(0), model=place/'model',
                    settings=SETTINGS, worker={}, threads=1)
    return RayTask(**settings | changes)


def test_a_worker_tells_instead_of_failing(place, plan):
    worker = RayWorker(task_of(place, plan), pause=0)
    assert worker.predict(0)['state'] == 'done'
    Parts(plan).file(1).mkdir()
    told = worker.predict(1)
    assert told['state'] == 'failed' and told['fields'] == 8 and 'part-000001.parquet' in told['reason']
    assert worker.predict(2)['state'] == 'done'


def test_the_longer_a_node_fails_the_longer_it_waits(place, plan, monkeypatch):
    "So the other nodes get the shards; what the plan is to blame for is not waited for"
    waited, worker = [], RayWorker(task_of(place, plan))
    monkeypatch.setattr(ray_workers.time, 'sleep', waited.append)
    for n in range(1, 4): Parts(plan).file(n).mkdir()
    assert [worker.predict(n)['state'] for n in (1, 2, 3, 4, 5)] == ['failed']*3+['done']*2
    assert waited == [1, 2, 4]
    waited.clear()
    (plan.folder/'manifest'/'000000.parquet').write_bytes(b'other')
    told = [worker.predict(n) for n in (6, 7)]
    assert all(o['state'] == 'failed' and 'was changed after the plan was made' in o['reason'] for o in told)
    assert waited == []


def test_a_node_that_cannot_begin_says_why(place, plan):
    elsewhere = plan.shard(0).replace({str(place): '/elsewhere'}, regex=True)
    for changes, words in ((dict(token='.ray-of-another'), 'is not the same folder here'),
                           (dict(images=elsewhere), "the images can't be seen here"),
                           (dict(model=place/'none'), 'none'),
                           (dict(worker=dict(require_device='cuda')), 'cuda was asked for')):
        told = RayWorker(task_of(place, plan, **changes)).predict(0)
        assert told['state'] == 'unable' and words in told['reason'] and '\n' not in told['reason']
    assert not Parts(plan).folder.exists() or not list(Parts(plan).folder.glob('part-*'))


def test_a_lost_worker_is_waited_for(place, plan, monkeypatch):
    "One that Ray starts in its place tries a shard that is taken again; any other goes on with the next"
    worker, states = RayWorker(task_of(place, plan)), ['taken', 'taken', 'done', 'taken']
    monkeypatch.setattr(ray_workers.time, 'sleep', lambda seconds: None)
    monkeypatch.setattr(worker, 'worker', lambda shard: dict(shard=shard, state=states.pop(0)))
    worker.patience = 60
    assert [worker.predict(n)['state'] for n in (0, 1)] == ['done', 'taken']


def test_an_address_where_no_ray_answers_is_refused(place, plan, capsys):
    command = ['predict', '--plan', str(plan.folder), '--model', str(place/'model'), '--ray']
    assert main([*command, '127.0.0.1:9']) == 2
    said = capsys.readouterr().err
    assert 'ray 127.0.0.1:9: nobody answers (Connection refused)' in said and said.count('\n') == 1
    for address in ('node1', 'ray://node1:10001', ':6379'):
        with pytest.raises(HPAError, match='no such address; give HOST:PORT'): check_ray(address)
    with socket.create_server(('127.0.0.1', 0)) as server:  # answers, and says nothing
        with pytest.raises(HPAError, match='what answers there is not Ray'):
            check_ray('127.0.0.1:%d' % server.getsockname()[1], patience=1)


def test_without_ray_its_extra_is_named(place, plan, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'ray', None)
    assert main(['predict', '--plan', str(plan.folder), '--model', str(place/'model'), '--ray']) == 2
    assert "pip install 'hpa_fastai[ray]'" in capsys.readouterr().err


def test_numbers_of_workers(place, plan, capsys):
    for bounds in ((0, 1), (3, 2)):
        with pytest.raises(HPAError, match='give two numbers from 1'):
            next(predict_with_ray(plan, place/'model', min_workers=bounds[0], max_workers=bounds[1]))
    for text in ('0', '3:2', 'x:2', ':'):
        assert main(['predict', '--plan', str(plan.folder), '--ray', '--ray-workers', text]) == 2
        assert 'argument --ray-workers: ' in capsys.readouterr().err
    assert main(['predict', '--plan', str(plan.folder), '--model', str(place/'model'), '--ray-workers', '2']) == 2
    assert 'of no use without --ray' in capsys.readouterr().err
