"Shards give the table of one run: whatever is killed, whoever works, however the pictures are normalised."
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import programs
from hpa_fastai.basics.errors import HPAError
from hpa_fastai.batches.loaders import HPADataLoaders
from hpa_fastai.cli.main import main
from hpa_fastai.data.files import find_images
from hpa_fastai.deploy.predictor import Predictor
from hpa_fastai.formats.names import CHANNELS
from hpa_fastai.scale.gather import gather
from hpa_fastai.scale.planning import make_plan
from hpa_fastai.scale.shards import ShardWorker, predict_shards
from hpa_fastai.simulate.atlas import simulate_atlas
from hpa_fastai.train.learner import hpa_learner
from microscopes import write_yokogawa

pytest.importorskip('pyarrow')
pytestmark = pytest.mark.filterwarnings('ignore')


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "Simulated pictures, an untrained model, and one that normalises by source"
    folder = tmp_path_factory.mktemp('shards')
    simulate_atlas(folder/'data', n=90, size=48, seed=0, progress=False)
    for name, normalize in (('model', 'dataset'), ('by_source', 'source')):
        dls = HPADataLoaders.from_csv(folder/'data', size=48, bs=16, normalize=normalize, cache=folder/'cache',
                                      progress=False)
        hpa_learner(dls, 'smallresnet').save_bundle(folder/name)
    for n, row in find_images(folder/'data'/'train').iterrows():  # two plates, one of them brighter
        plate = folder/'plates'/f'plate{n%2}'
        plate.mkdir(parents=True, exist_ok=True)
        for c in CHANNELS:
            picture = np.asarray(Image.open(row[c]))
            Image.fromarray(np.minimum(picture*(1+n%2), 255).astype(np.uint8)).save(plate/Path(row[c]).name)
    return folder


def predictor(place, name='model', **settings): return Predictor(place/name, **dict(dict(bs=16), **settings))


@pytest.mark.parametrize('engine', ['onnxruntime', 'openvino'])
def test_all_workers_have_the_same_engine(place, tmp_path, monkeypatch, engine):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'cache'))
    quick = predictor(place, 'by_source', engine=engine)
    quick.to_file(place/'plates', tmp_path/'one.parquet', progress=False)
    plan = make_plan(place/'plates', tmp_path/'plan', shard_size=20, progress=False)
    for n in (3, 0): list(predict_shards(plan, quick, n, progress=False))
    with pytest.raises(HPAError, match=f"engine was '{engine}' and is now 'torch'"):
        list(predict_shards(plan, predictor(place, 'by_source'), 1, progress=False))
    list(predict_shards(plan, predictor(place, 'by_source', engine=engine), progress=False))
    gather(plan, tmp_path/'all.parquet', progress=False)
    assert (tmp_path/'all.parquet').read_bytes() == (tmp_path/'one.parquet').read_bytes()


def test_plates_are_normalised_as_in_one_run(place, tmp_path, monkeypatch):
    "Each shard holds a part of each plate, and each is measured on the pictures that one run takes"
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'cache'))
    predictor(place, 'by_source').to_file(place/'plates', tmp_path/'one.parquet', progress=False)
    plan = make_plan(place/'plates', tmp_path/'plan', shard_size=20, progress=False)
    for n in (3, 0, 4, 1, 2): list(predict_shards(plan, predictor(place, 'by_source'), n, progress=False))
    gather(plan, tmp_path/'all.parquet', progress=False)
    assert (tmp_path/'all.parquet').read_bytes() == (tmp_path/'one.parquet').read_bytes()


def test_the_bits_of_the_camera_are_those_of_all_shards(place, tmp_path):
    "A shard that holds dark pictures alone would take its camera for one of fewer bits"
    images = tmp_path/'images'
    images.mkdir()
    for n, row in find_images(place/'data'/'train').iterrows():
        for c in CHANNELS:
            picture = np.asarray(Image.open(row[c])).astype(np.uint16)*(16 if n >= 80 else 2)
            Image.fromarray(picture).save(images/Path(row[c]).name)
    predictor(place).to_file(images, tmp_path/'one.csv', progress=False)
    plan = make_plan(images, tmp_path/'plan', shard_size=30, progress=False)
    worker = ShardWorker(plan, predictor(place))
    for n in range(3): worker(n)
    assert worker.depth.bits == 12
    gather(plan, tmp_path/'all.csv', progress=False)
    assert (tmp_path/'all.csv').read_bytes() == (tmp_path/'one.csv').read_bytes()


def test_cells_and_their_embeddings_are_those_of_one_run(place, tmp_path, capsys, monkeypatch):
    images, model = str(place/'plates'/'plate0'), ['--model', str(place/'model'), '--no-progress']
    monkeypatch.chdir(tmp_path)
    assert main(['cells', images, *model, '--out', 'one.parquet', '--embeddings', 'one.npy']) == 0
    assert main(['plan', images, '--shard-size', '20', '--no-progress']) == 0
    assert main(['cells', '--plan', 'plan', *model, '--embeddings', '--shards', '1:']) == 0
    assert main(['gather', 'plan', '--parts', 'cells', '--out', 'all.parquet', '--no-progress']) == 1
    assert 'not done: 0' in capsys.readouterr().err
    assert main(['cells', '--plan', 'plan', *model, '--embeddings']) == 0
    assert main(['gather', 'plan', '--parts', 'cells', '--out', 'all.parquet', '--embeddings', 'all.npy',
                 '--no-progress']) == 0
    assert main(['cells', images, *model, '--out', 'one.csv']) == 0
    assert main(['gather', 'plan', '--parts', 'cells', '--out', 'all.csv', '--no-progress']) == 0
    for ending in ('parquet', 'npy', 'ids.json', 'csv'):
        assert Path(f'all.{ending}').read_bytes() == Path(f'one.{ending}').read_bytes()


def test_what_a_table_knows_comes_along(place, tmp_path):
    "Columns of a csv of paths stand behind the results, as in one run"
    table = find_images(place/'data'/'train')
    table = table.assign(gene=[f'GENE{n}' if n%3 else '' for n in range(len(table))], pixel_size=.16, plate='P1',
                         row=[n//8 for n in range(len(table))])
    table.to_csv(tmp_path/'paths.csv', index=False)
    plan = make_plan(tmp_path/'paths.csv', tmp_path/'plan', shard_size=40, progress=False)
    list(predict_shards(plan, predictor(place), progress=False))
    for ending in ('parquet', 'csv'):
        predictor(place).to_file(tmp_path/'paths.csv', tmp_path/f'one.{ending}', progress=False)
        gather(plan, tmp_path/f'all.{ending}', progress=False)
        assert (tmp_path/f'all.{ending}').read_bytes() == (tmp_path/f'one.{ending}').read_bytes()


WORKER = '''
import os, signal, sys
from hpa_fastai.deploy.journal import Journal
from hpa_fastai.deploy.predictor import Predictor
from hpa_fastai.scale.shards import predict_shards
rows = int(sys.argv[3])
add = Journal.add
def add_and_die(self, new, embeddings=None):
    add(self, new, embeddings)
    if len(self) >= rows: os.kill(os.getpid(), signal.SIGKILL)
if rows: Journal.add = add_and_die
print('ready', flush=True)
for o in predict_shards(sys.argv[1], Predictor(sys.argv[2], bs=16), sys.argv[4], progress=False):
    print(o['shard'], o['state'], flush=True)
'''


def work(place, plan, shards, die_after=0):
    return programs.Program(WORKER, plan, place/'model', die_after, shards)


@pytest.mark.slow
def test_three_kills_change_nothing(place, tmp_path):
    "Workers die in the middle of a shard, and others go on behind the rows that they wrote"
    images = place/'data'/'train'
    predictor(place).to_file(images, tmp_path/'one.parquet', progress=False)
    plan = make_plan(images, tmp_path/'plan', shard_size=50, progress=False)
    for shards, rows in (('0:2', 20), ('0', 40), ('1', 16)):
        killed = work(place, plan.folder, shards, rows)
        assert killed.wait(120) == -signal.SIGKILL, killed.stderr.read()
    parts = plan.folder/'predictions'
    assert not list(parts.glob('part-*.parquet')) and len(list(parts.glob('part-*.parquet.part'))) == 2
    last = work(place, plan.folder, '0:')
    said, _ = last.communicate(timeout=120)
    assert last.returncode == 0 and said.splitlines() == ['ready', '0 done', '1 done']
    gather(plan, tmp_path/'all.parquet', progress=False)
    assert (tmp_path/'all.parquet').read_bytes() == (tmp_path/'one.parquet').read_bytes()


def test_a_shard_goes_on_from_another_folder_and_on_another_device(place, tmp_path, monkeypatch):
    "The rows of a worker that was killed are those of the run, wherever it stood"
    from hpa_fastai.deploy.journal import Journal
    plan = make_plan(place/'data'/'train', tmp_path/'plan', shard_size=90, progress=False)
    class Killed(Exception): pass
    add = Journal.add
    def add_and_stop(self, rows, embeddings=None):
        add(self, rows, embeddings)
        if len(self) >= 32: raise Killed
    monkeypatch.setattr(Journal, 'add', add_and_stop)
    with pytest.raises(Killed): list(predict_shards(plan, predictor(place), embeddings=True, progress=False))
    monkeypatch.setattr(Journal, 'add', add)
    record = plan.folder/'predictions'/'part-000000.parquet.part.json'
    assert 'device' not in json.loads(record.read_text())
    monkeypatch.chdir(plan.folder)
    assert [o['state'] for o in predict_shards('.', predictor(place), embeddings=True, progress=False)] == ['done']
    predictor(place).to_file(place/'data'/'train', tmp_path/'one.csv', embeddings=tmp_path/'one.npy', progress=False)
    gather('.', tmp_path/'all.csv', embeddings=tmp_path/'all.npy', progress=False)
    for ending in ('csv', 'npy'):
        assert (tmp_path/f'all.{ending}').read_bytes() == (tmp_path/f'one.{ending}').read_bytes()


def test_one_of_two_workers_gets_a_shard(place, tmp_path):
    "The other says so and goes on; nobody waits, and no clock is asked"
    plan = make_plan(place/'data'/'train', tmp_path/'plan', shard_size=50, progress=False)
    mine = ShardWorker(plan, predictor(place))
    held, go_on, states = threading.Event(), threading.Event(), []
    real = mine._predict
    def slowly(*arguments):
        held.set()
        go_on.wait(60)
        return real(*arguments)
    mine._predict = slowly
    thread = threading.Thread(target=lambda: states.append(mine(0)['state']))
    thread.start()
    assert held.wait(60)
    other = work(place, plan.folder, '0:')
    said, err = other.communicate(timeout=120)
    go_on.set()
    thread.join(60)
    assert said.splitlines() == ['ready', '1 done', '0 taken'], err
    assert states == ['done'] and [o['state'] for o in predict_shards(plan, predictor(place), progress=False)] == \
        ['done before']*2


def test_a_manifest_that_was_changed_is_refused_in_the_middle(place, tmp_path):
    plan = make_plan(place/'data'/'train', tmp_path/'plan', shard_size=50, progress=False)
    results = predict_shards(plan, predictor(place), progress=False)
    assert next(results)['state'] == 'done'
    file = plan.folder/'manifest'/'000000.parquet'
    table = pd.read_parquet(file)
    table.iloc[::-1].to_parquet(file)
    with pytest.raises(HPAError, match='was changed after the plan was made'): next(results)
    with pytest.raises(HPAError, match='not done: 1'): gather(plan, tmp_path/'all.csv', progress=False)


def test_images_that_vanish_are_rows_with_a_reason(place, tmp_path, capsys, monkeypatch):
    shutil.copytree(place/'data'/'train', tmp_path/'images')
    monkeypatch.chdir(tmp_path)
    assert main(['plan', 'images', '--shard-size', '50', '--no-progress']) == 0
    for file in sorted((tmp_path/'images').glob('*_green.png'))[60:63]: file.unlink()
    assert main(['predict', '--plan', 'plan', '--model', str(place/'model'), '--no-progress']) == 1
    said = capsys.readouterr()
    assert 'shard 1: 40 fields of view, 3 failed' in said.out and '3 of 40' in said.err
    assert main(['gather', 'plan', '--out', 'all.csv', '--no-progress']) == 0
    table = pd.read_csv('all.csv')
    assert table['error'].notna().sum() == 3 and table['error'].dropna().str.contains('no such file|no green').all()
    assert json.loads(Path('plan/predictions/part-000001.json').read_text())['errors'] == 3


def test_a_part_of_another_model_is_refused(place, tmp_path):
    plan = make_plan(place/'data'/'train', tmp_path/'plan', shard_size=50, progress=False)
    list(predict_shards(plan, predictor(place), 0, progress=False))
    with pytest.raises(HPAError, match='begun otherwise .models was'):
        list(predict_shards(plan, predictor(place, 'by_source'), 1, progress=False))
    list(predict_shards(plan, predictor(place, 'by_source'), parts='other', progress=False))
    for ending in ('parquet', 'json'):
        shutil.copy(plan.folder/'other'/f'part-000001.{ending}', plan.folder/'predictions')
    with pytest.raises(HPAError, match='is of another model'): gather(plan, tmp_path/'all.csv', progress=False)


@pytest.mark.skipif(os.name == 'nt' or os.getuid() != 0, reason='a small disk is mounted, which only root may')
def test_a_full_disk_on_one_node_loses_nothing(place, tmp_path):
    "What was written stays, the line says what to do, and with room the same call goes on"
    disk = tmp_path/'disk'
    disk.mkdir()
    mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=128k', 'none', str(disk)], capture_output=True)
    if mounted.returncode: pytest.skip('no disk can be mounted here')
    try:
        plan = make_plan(place/'data'/'train', disk/'plan', shard_size=90, progress=False)
        (disk/'fill').write_bytes(bytes(92*1024 - sum(o.stat().st_size for o in disk.rglob('*') if o.is_file())))
        with pytest.raises(HPAError, match="can't be written .No space left on device.*"):
            list(predict_shards(plan, predictor(place), progress=False))
        (disk/'fill').unlink()
        assert [o['state'] for o in predict_shards(plan, predictor(place), progress=False)] == ['done']
        predictor(place).to_file(place/'data'/'train', tmp_path/'one.csv', progress=False)
        gather(plan, tmp_path/'all.csv', progress=False)
        assert (tmp_path/'all.csv').read_bytes() == (tmp_path/'one.csv').read_bytes()
    finally: subprocess.run(['umount', str(disk)], check=True)


def test_a_clock_that_jumps_changes_nothing(place, tmp_path, monkeypatch):
    "Times of files and of the system are compared with nothing"
    plan = make_plan(place/'data'/'train', tmp_path/'plan', shard_size=50, progress=False)
    hours = iter(range(0, -10**9, -86400*365))
    monkeypatch.setattr(time, 'time', lambda: 2**31+next(hours))
    assert [o['state'] for o in predict_shards(plan, predictor(place), '0', progress=False)] == ['done']
    record = plan.folder/'predictions'/'part-000000.json'
    os.utime(record, (0, 0))
    os.utime(record.with_suffix('.parquet'), (2**32, 2**32))
    assert [o['state'] for o in predict_shards(plan, predictor(place), progress=False)] == ['done before', 'done']
    assert len(pd.read_parquet(gather(plan, tmp_path/'all.parquet', progress=False) and tmp_path/'all.parquet')) == 90


def test_a_disk_without_locks_gives_whole_parts(place, tmp_path, monkeypatch):
    "Two workers then do the same work under names of their own, and the result is one part"
    from filelock import FileLock
    def no_locks(self, **_): raise NotImplementedError
    monkeypatch.setattr(FileLock, 'acquire', no_locks)
    plan = make_plan(place/'data'/'train', tmp_path/'plan', shard_size=50, progress=False)
    list(predict_shards(plan, predictor(place), embeddings=True, progress=False))
    names = {o.name for o in (plan.folder/'predictions').iterdir() if not o.name.endswith('.lock')}
    endings = ('parquet', 'json', 'npy', 'ids.json')
    assert names == {'run.json', *(f'part-00000{n}.{ending}' for n in (0, 1) for ending in endings)}
    gather(plan, tmp_path/'all.parquet', embeddings=tmp_path/'all.npy', progress=False)


def test_reading_from_a_store_gives_the_same(place, tmp_path):
    "A plan lists object storage, and its shards read from there"
    fsspec = pytest.importorskip('fsspec')
    memory = fsspec.filesystem('memory')
    for file in (place/'data'/'train').iterdir(): memory.pipe(f'/bucket/plate/{file.name}', file.read_bytes())
    try:
        plan = make_plan('memory://bucket/plate', tmp_path/'plan', shard_size=50, progress=False)
        files = (place/'data'/'train').glob(f'{plan.shard(0).Id[0]}_*')
        assert plan.sizes(0)[0] == sum(file.stat().st_size for file in files)
        list(predict_shards(plan, predictor(place), progress=False))
        gather(plan, tmp_path/'all.csv', progress=False)
        predictor(place).to_file(place/'data'/'train', tmp_path/'one.csv', progress=False)
        assert (tmp_path/'all.csv').read_bytes() == (tmp_path/'one.csv').read_bytes()
    finally: memory.rm('/bucket', recursive=True)


@pytest.mark.parametrize('command', ['predict', 'cells'])
@pytest.mark.parametrize('option', [['--shards', '3'], ['--parts', 'x'], ['--require-device', 'cuda'], ['--ray']])
def test_options_of_plans_are_refused_without_one(place, tmp_path, capsys, command, option):
    "A safeguard that is not looked at would be none"
    model = ['--model', str(place/'model')]
    assert main([command, str(place/'data'/'train'), *model, '--out', str(tmp_path/'x.csv'), *option]) == 2
    assert f'{option[0]} is for a part of a plan' in capsys.readouterr().err and not os.listdir(tmp_path)


def test_a_time_point_is_the_same_in_plan_and_predict(tmp_path, place, monkeypatch, capsys):
    write_yokogawa(tmp_path/'images', times=2)
    monkeypatch.chdir(tmp_path)
    channels = ['--time', '2', '--no-progress']
    assert main(['plan', 'images', *channels]) == 0
    assert main(['predict', '--plan', 'plan', '--model', str(place/'model'), *channels]) in (0, 1)
    assert 'shard 0: 1 fields of view' in capsys.readouterr().out
    assert main(['predict', '--plan', 'plan', '--model', str(place/'model'), '--time', '1', '--parts', 'other']) == 2
    assert 'give the same to hpa_fastai plan' in capsys.readouterr().err
