"Several nodes: a cache on each, the same images on all, one model, and nobody who waits for a node that is lost."
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from programs import COMMAND, Program

pytest.importorskip('accelerate')
pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='nodes are simulated by what Linux has')


@pytest.fixture
def atlas(small_atlas, tmp_path):
    "A copy of the small atlas that a test may change"
    return shutil.copytree(small_atlas, tmp_path/'atlas')


def free_port():
    with socket.create_server(('127.0.0.1', 0)) as free: return free.getsockname()[1]


def start(tmp_path, programs, nodes=(0, 1), homes=None, **env):
    "Start processes as a launcher does, on these nodes, each with a cache folder of its own"
    shared = os.environ | dict(OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='', WORLD_SIZE=str(len(nodes)),
                               MASTER_ADDR='127.0.0.1', MASTER_PORT=str(free_port()), HPA_FASTAI_PATIENCE='60') | env
    started = []
    for rank, (node, (code, *args)) in enumerate(zip(nodes, programs)):
        folder = tmp_path/f'node{node}'
        folder.mkdir(exist_ok=True)
        own = dict(RANK=str(rank), LOCAL_RANK=str(list(nodes[:rank]).count(node)),
                   XDG_CACHE_HOME=str(homes or folder/'cache'))
        started.append(Program(code, *args, cwd=folder, env=shared | own))
    return started


def ends(started):
    "What each process printed, its errors, and its exit code"
    try: said = [program.communicate(120) for program in started]
    finally:
        for program in started: program.kill()
    return [(*streams, program.returncode) for program, streams in zip(started, said)]


def launch(tmp_path, code, *args, nodes=(0, 1), **kwargs):
    "What processes print that all run one program and come to its end"
    found = ends(start(tmp_path, [(code, *args)]*len(nodes), nodes, **kwargs))
    assert {rc for *_, rc in found} == {0}, found
    return [out for out, *_ in found], [err for _, err, _ in found]


LOADERS = """
import sys, torch, warnings
from hpa_fastai.all import *
from hpa_fastai.basics.processes import start_processes
from hpa_fastai.batches import cache
def build(*args, before=cache._build):
    print('builds')
    before(*args)
cache._build = build
start_processes(torch.device('cpu'))
dls = HPADataLoaders.from_csv(sys.argv[1], size=32, bs=8, group='antibody', valid_pct=.3, device='cpu', progress=False,
                              **eval(sys.argv[2] if len(sys.argv)>2 else '{}'))
for dl in dls.loaders: print(*dl.dataset.items.Id)
"""


@pytest.mark.parametrize('shares_home', [False, True])
def test_a_cache_is_built_once_for_each_folder_of_caches(small_atlas, tmp_path, shares_home):
    nodes, homes = (0, 0, 1, 1), tmp_path/'home' if shares_home else None
    out, _ = launch(tmp_path, LOADERS, small_atlas, nodes=nodes, homes=homes)
    assert [text.count('builds') for text in out] == ([1, 0, 0, 0] if shares_home else [1, 0, 1, 0])
    caches = [p for p in tmp_path.rglob('hpa_fastai/*') if not p.is_dir() or p.name.startswith('building')]
    assert len(caches) == (1 if shares_home else 2), 'nothing but the caches is left'
    assert len({text.replace('builds\n', '') for text in out}) == 1, 'all have the same images'


def test_a_cache_that_one_node_has_already_is_not_built_there(small_atlas, tmp_path):
    for _ in range(2): out, _ = launch(tmp_path, LOADERS, small_atlas)
    shutil.rmtree(tmp_path/'node1'/'cache'/'hpa_fastai')
    again, _ = launch(tmp_path, LOADERS, small_atlas)
    assert ['builds' in text for text in (*out, *again)] == [False, False, False, True]


@pytest.mark.parametrize('cache', [True, False])
def test_a_picture_that_one_node_can_not_read_is_left_out_on_all(small_atlas, atlas, tmp_path, cache):
    there = pd.read_csv(atlas/'train.csv').Id
    broken = next(atlas.rglob(f'{there[3]}_green*'))
    broken.write_bytes(broken.read_bytes()[:100])
    said = ends(start(tmp_path, [(LOADERS, folder, f'dict(cache={cache})') for folder in (small_atlas, atlas)]))
    (first, err, _), (second, _, _) = said
    first, second = (re.sub('builds\n', '', text) for text in (first, second))
    assert first == second and sorted(first.split()) == sorted(set(there) - {there[3]})
    assert "1 of 90 fields of view can't be read" in err and 'in process 1 on ' in err


NO_ROOM = """
import shutil, os
if os.environ['RANK'] == '1': shutil.disk_usage = lambda *_: shutil._ntuple_diskusage(10**9, 10**9, 1000)
"""


def test_a_node_without_room_for_a_cache_reads_the_files_and_the_first_says_so(small_atlas, tmp_path):
    (first, second), (err, _) = launch(tmp_path, NO_ROOM + LOADERS, small_atlas)
    assert first.replace('builds\n', '') == second and 'builds' in first
    assert re.search(r'process 1 on \S+ has no room for an image cache and reads the files each time; the 1 others '
                     r'wait for it at each step; give a folder with room there with cache=… \(--cache\)', err)


TRAIN = ('--group antibody --arch lenet5 --pretrained no --size 32 --sizes 32 --epochs 1 --bs 8 --device cpu '
         '--no-progress').split()


def remove_row(atlas):
    table = pd.read_csv(atlas/'train.csv')
    table[:-1].to_csv(atlas/'train.csv', index=False)


def change_label(atlas):
    table = pd.read_csv(atlas/'train.csv')
    table['Target'] = ['0', *table.Target[1:]] if table.Target[0] != '0' else ['1', *table.Target[1:]]
    table.to_csv(atlas/'train.csv', index=False)


def remove_pictures(atlas):
    for file in atlas.rglob(f"{pd.read_csv(atlas/'train.csv').Id[0]}_*"): file.unlink()


def save_again(atlas):
    from PIL import Image
    for file in atlas.rglob('*.png'): Image.open(file).save(file, compress_level=0)


@pytest.mark.parametrize('change, why', [
    (remove_row, 'labelled images: 89 in process 1 on .*, and 90 in process 0 .*the same version of the data'),
    (change_label, 'digest of the labels: .* in process 1 .*the same version of the data'),
    (save_again, 'image files: most have another size in process 1 .*the same version of the data'),
    (remove_pictures, '1 of 90 Ids have no image in .*add the files'),
    (shutil.rmtree, 'no such f|did not find each other')])
def test_nodes_with_other_data_are_refused(small_atlas, atlas, tmp_path, change, why):
    change(atlas)
    for _, err, rc in ends(start(tmp_path, [(COMMAND, 'train', folder, *TRAIN) for folder in (small_atlas, atlas)],
                                 HPA_FASTAI_PATIENCE='5')):
        lines = [line for line in err.splitlines() if line.startswith('hpa_fastai: ')]
        assert rc == 2 and len(lines) == 1 and re.search(why, lines[0]), err
    assert not list(tmp_path.rglob('hpa_model*')), 'nothing was written'


OTHER_VERSION = """
import os, hpa_fastai
if os.environ['RANK'] == '1': hpa_fastai.__version__ = '0.0.9'
"""
NO_CACHE = """
import os, pathlib
if os.environ['RANK'] == '1':
    pathlib.Path('cache').mkdir(exist_ok=True)
    pathlib.Path('cache/hpa_fastai').write_text('a file')
"""


@pytest.mark.parametrize('first, why', [
    (OTHER_VERSION, r'version of hpa_fastai: 0\.0\.9 in process 1 on \S+, and .* in process 0 on .*; install the same'),
    (NO_CACHE, 'no image cache can be kept there')])
def test_a_node_with_another_version_or_without_a_cache_folder_is_refused(small_atlas, tmp_path, first, why):
    for _, err, rc in ends(start(tmp_path, [(first + COMMAND, 'train', small_atlas, *TRAIN)]*2)):
        lines = [line for line in err.splitlines() if line.startswith('hpa_fastai: ')]
        assert rc == 2 and len(lines) == 1 and re.search(why, lines[0]), err
    assert not list(tmp_path.rglob('hpa_model*')), 'nothing was written'


@pytest.mark.parametrize('rank', [0, 1])
@pytest.mark.parametrize('address', ['127.0.0.1', 'no-such-node.invalid'])
def test_a_node_that_finds_no_others_ends(small_atlas, tmp_path, rank, address):
    "Nobody listens there, or nobody comes"
    env = os.environ | dict(WORLD_SIZE='2', RANK=str(rank), LOCAL_RANK='0', MASTER_ADDR=address,
                            MASTER_PORT=str(free_port()), HPA_FASTAI_PATIENCE='2', CUDA_VISIBLE_DEVICES='')
    (_, err, rc), = ends([Program(COMMAND, 'train', small_atlas, *TRAIN, cwd=tmp_path, env=env)])
    lines = [line for line in err.splitlines() if line.startswith('hpa_fastai: ')]
    assert rc == 2 and len(lines) == 1 and 'did not find each other at ' + address in lines[0], err
    assert 'check MASTER_ADDR' in lines[0]


EPOCHS = """
import json, sys, torch
from hpa_fastai.all import *
from hpa_fastai.basics.processes import n_processes, start_processes
from fastai.distributed import *
atlas, out, bs, n_valid = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
class Reading(HPADataLoader):
    "Keeps what this process reads of each epoch"
    def create_batches(self, samps):
        self.read = list(samps)
        return super().create_batches(iter(self.read))
start_processes(torch.device('cpu'))
def split(table): return list(range(n_valid, len(table))), list(range(n_valid))
dls = HPADataLoaders.from_csv(atlas, size=32, bs=bs, splitter=split, oversample=0, augment=False, device='cpu',
                              group=False, progress=False)
dls.loaders = [dl.new(cls=Reading, cache=dl.cache, weights=dl.weights) for dl in dls.loaders]
set_seed(0)
learn = hpa_learner(dls, 'smallresnet', dropout=0.)
learn.remove_cb(TrainingPrecision)  # half precision rounds batches of another size in another way
with shared_training(learn), learn.no_bar(), learn.no_logging():
    learn.fit_progressive(sizes=(32,), epochs=2, lr=3e-2, best=False, verbose=False)
    recorded = [float(o) for o in learn.recorder.values[-1]]
    predictions, _ = learn.get_preds()
    learn.calibrate()
    learn.fit_thresholds()
    learn.evaluate()
found = dict(weights=learn.model.state_dict(), recorded=recorded, predictions=predictions, f1=learn.evaluation.macro_f1,
             thresholds=learn.thresholds.values, read=[dl.read for dl in learn.dls.loaders],
             steps=len(learn.recorder.lrs))
torch.save(found, f'{out}/{n_processes()}-{rank_distrib()}.pt')
"""


def trained_by(atlas, tmp_path, nodes, bs, n_valid):
    "What each process of a training came to"
    launch(tmp_path, EPOCHS, atlas, tmp_path, bs, n_valid, nodes=nodes)
    files = [tmp_path/f'{len(nodes)}-{rank}.pt' for rank in range(len(nodes))]
    return [torch.load(file, weights_only=False) for file in files]


def largest_difference(a, b):
    "Of the weights of two networks"
    return max((a[k].double() - b[k].double()).abs().max().item() for k in a)


@pytest.mark.parametrize('nodes, n_valid', [((0, 1), 18), ((0, 0, 1), 19)])
def test_nodes_train_as_one_process_does(small_atlas, tmp_path, nodes, n_valid):
    "Also with uneven counts: 71 images to train on and 19 to validate, on three processes"
    (one,), several = (trained_by(small_atlas, tmp_path, where, 12//len(where), n_valid) for where in ((0,), nodes))
    for found in several:
        assert found['steps'] == one['steps']
        assert largest_difference(found['weights'], one['weights']) < 1e-5
        assert np.allclose(found['recorded'], one['recorded'], atol=1e-5)
        assert len(found['predictions']) == n_valid
        assert torch.allclose(found['predictions'], one['predictions'], atol=1e-4)
        assert np.allclose(found['thresholds'], one['thresholds'], atol=1e-4)
        assert abs(found['f1'] - one['f1']) < 1e-6
        assert all(torch.equal(found['weights'][k], several[0]['weights'][k]) for k in one['weights'])
    read = [i for found in several for i in found['read'][0]]
    assert len(read) == len(set(read)) == (90 - n_valid)//12*12, 'each image of whole batches once over all processes'
    assert sorted({i for found in several for i in found['read'][1]}) == list(range(n_valid))


STOPS_BY_METRIC = """
import sys, torch
from hpa_fastai.all import *
from hpa_fastai.basics.processes import start_processes
from fastai.callback.tracker import EarlyStoppingCallback
from fastai.distributed import *
start_processes(torch.device('cpu'))
dls = HPADataLoaders.from_csv(sys.argv[1], size=32, bs=8, group='antibody', device='cpu', progress=False)
def last_digit(preds, targets): return .5 + (rank_distrib() or -1)*1e-9*len(learn.recorder.values)
learn = hpa_learner(dls, 'lenet5', pretrained=False, metrics=AccumMetric(last_digit, flatten=False))
with learn.distrib_ctx(), learn.no_bar(), learn.no_logging():
    learn.fit(4, 1e-3, cbs=EarlyStoppingCallback('last_digit', comp=np.greater, patience=1))
print(len(learn.recorder.values))
"""


def test_all_stop_when_the_metric_of_the_first_says_so(small_atlas, tmp_path):
    "Processors may round in another way, so one metric grows here and falls there in the last digit"
    out, _ = launch(tmp_path, STOPS_BY_METRIC, small_atlas)
    assert [text.split()[-1] for text in out] == ['2', '2']


ASKED = """
import os, signal, sys, torch
from hpa_fastai.all import *
from hpa_fastai.basics.processes import start_processes
start_processes(torch.device('cpu'))
class Ask(Callback):
    def after_batch(self):
        if os.environ['RANK'] == '1' and self.training and self.iter == 2: os.kill(os.getpid(), signal.SIGINT)
dls = HPADataLoaders.from_csv(sys.argv[1], size=32, bs=8, group='antibody', device='cpu', progress=False)
learn = hpa_learner(dls, 'lenet5', pretrained=False, cbs=Ask())
with shared_training(learn), learn.no_bar(), learn.no_logging():
    learn.fit_progressive(sizes=(32, 32), epochs=2, verbose=False)
print(learn.history['stopped'], learn.training_log)
"""


def test_ctrl_c_on_one_node_ends_all_in_order(small_atlas, tmp_path):
    out, _ = launch(tmp_path, ASKED, small_atlas)
    assert out == ['at 32 px []\n']*2


OTHER_CLOCK = """
import os, time
if os.environ['RANK'] == '1':
    def ahead(clock): return lambda: 1e6 + 3*clock()
    time.monotonic, time.time, time.perf_counter = map(ahead, (time.monotonic, time.time, time.perf_counter))
"""
MINUTES = """
import sys, torch
from hpa_fastai.all import *
from hpa_fastai.basics.processes import start_processes
start_processes(torch.device('cpu'))
dls = HPADataLoaders.from_csv(sys.argv[1], size=32, bs=8, group='antibody', device='cpu', progress=False)
set_seed(0)
learn = hpa_learner(dls, 'smallresnet', dropout=0.)
with shared_training(learn), learn.no_bar(), learn.no_logging():
    learn.fit_progressive(sizes=(24, 32), minutes=.05, verbose=False)
    learn.calibrate(), learn.fit_thresholds()
weights = sum(p.double().sum() for p in learn.model.state_dict().values()).item()
print(len(learn.training_log), learn.history['stages'], learn.history['kept_of_start'], f'{weights:.9f}',
      learn.thresholds.values.tolist())
"""


def test_a_plan_of_minutes_holds_on_nodes_whose_clocks_differ(small_atlas, tmp_path):
    (first, second), _ = launch(tmp_path, OTHER_CLOCK + MINUTES, small_atlas)
    assert first == second


def read_log(folder):
    "Number of epochs in the log of a training"
    file = folder/'log.csv'
    return len(file.read_text().splitlines()) - 1 if file.is_file() else 0


def wait_for(condition, seconds=120):
    "Wait until something holds"
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'it did not come to pass'
        time.sleep(.02)


LONG = [o if o != '1' else '12' for o in TRAIN]  # epochs


def test_a_lost_node_ends_the_others_and_the_training_goes_on_later(small_atlas, tmp_path):
    "Each node has a folder of its own for results; only the first one's counts"
    started = start(tmp_path, [(COMMAND, 'train', small_atlas, *LONG, '--resume')]*2)
    training = tmp_path/'node0'/'hpa_model.training'
    wait_for(lambda: read_log(training) >= 2)
    started[1].kill()
    killed = time.monotonic()
    (_, err, rc), _ = ends(started)
    lines = [line for line in err.splitlines() if line.startswith('hpa_fastai: ')]
    assert rc == 2 and len(lines) == 1 and 'Traceback' not in err and time.monotonic() - killed < 60
    assert re.search(r'another process at \S+ was lost .*the same command with --resume goes on', lines[0]), err
    done = read_log(training)
    assert 2 <= done < 12
    said = ends(start(tmp_path, [(COMMAND, 'train', small_atlas, *LONG, '--resume')]*2))
    assert [rc for *_, rc in said] == [0, 0] and 'continuing in' in said[0][0], said
    assert not training.exists() and not (tmp_path/'node1'/'hpa_model').exists()
    undisturbed = tmp_path/'undisturbed'
    undisturbed.mkdir()
    said = ends(start(undisturbed, [(COMMAND, 'train', small_atlas, *LONG)]*2))
    assert [rc for *_, rc in said] == [0, 0], said
    a, b = (load_file(folder/'node0'/'hpa_model'/'model.safetensors') for folder in (tmp_path, undisturbed))
    assert largest_difference(a, b) < 1e-6


class Agents:
    "Agents of torchrun, one a node, and all processes that they start"
    def __init__(self):
        self.mark, self.started = f'HPA_TEST_NODES={secrets.token_hex(8)}', []

    def start(self, folder, *args, agent=(), env=None, before=()):
        "Start an agent in a folder, which stands for a node"
        folder.mkdir(exist_ok=True)
        name, value = self.mark.split('=')
        env = os.environ | dict(OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='', XDG_CACHE_HOME=str(folder/'cache'),
                                HPA_FASTAI_PATIENCE='60', PYTHONWARNINGS='ignore') | (env or {}) | {name: value}
        torchrun = [sys.executable, '-m', 'torch.distributed.run', '--nnodes', '2', '--nproc-per-node', '1', *agent]
        err = open(folder/'err.txt', 'a+')
        self.started.append(subprocess.Popen(
            [*before, *torchrun, '-m', 'hpa_fastai', 'train', *map(str, args)], cwd=folder, env=env, stderr=err,
            stdout=subprocess.DEVNULL, start_new_session=True))
        err.close()
        return self.started[-1]

    def processes(self, folder=None):
        "Numbers of the processes that are alive, of all nodes or of one"
        found = []
        for place in Path('/proc').glob('[0-9]*'):
            try:
                is_ours = f'{self.mark}\0' in (place/'environ').read_text(errors='replace')
                if is_ours and (folder is None or (place/'cwd').resolve() == folder.resolve()):
                    found.append(int(place.name))
            except OSError: pass  # it has ended
        return found

    def kill(self, folder=None):
        "Kill all processes of a node at once, as a power cut does"
        for pid in self.processes(folder):
            try: os.kill(pid, signal.SIGKILL)
            except ProcessLookupError: pass
        for agent in self.started: agent.poll()


@pytest.fixture
def agents():
    "Agents of torchrun; nothing that they started is left behind"
    found = Agents()
    yield found
    found.kill()
    wait_for(lambda: not found.processes(), 30)


def errors_of(folder):
    "The lines that the command printed about errors on a node"
    return [line for line in (folder/'err.txt').read_text().splitlines() if line.startswith('hpa_fastai: ')]


def rendezvous(port, address='127.0.0.1'):
    "Options of two agents that find each other"
    return ['--rdzv-backend', 'c10d', '--rdzv-id', 'test', '--rdzv-endpoint', f'{address}:{port}',
            '--local-addr', address]


@pytest.mark.slow
@pytest.mark.parametrize('lost', [0, 1])
def test_torchrun_goes_on_after_an_agent_and_its_workers_were_killed(small_atlas, tmp_path, agents, lost):
    "Either node may be lost: that of the first process, which keeps the meeting place, or the other one"
    nodes, results = [tmp_path/f'node{n}' for n in range(2)], tmp_path/'results'
    args, training = [small_atlas, *LONG, '--resume', '--out', results/'model'], results/'model.training'
    results.mkdir()
    port = free_port()
    for node in nodes: agents.start(node, *args, agent=rendezvous(port))
    wait_for(lambda: read_log(training) >= 2)
    agents.kill(nodes[lost])
    killed = time.monotonic()
    wait_for(lambda: not agents.processes(), 90)
    assert time.monotonic() - killed < 90 and agents.started[1 - lost].wait() == 1  # of torchrun
    line, = errors_of(nodes[1 - lost])
    assert re.search(r'another process at \S+ was lost .*the same command with --resume goes on', line)
    assert 2 <= read_log(training) < 12
    port = free_port()
    again = [agents.start(node, *args, agent=rendezvous(port)) for node in nodes]
    assert [agent.wait(300) for agent in again] == [0, 0]
    undisturbed = ends(start(tmp_path, [(COMMAND, 'train', small_atlas, *LONG)]*2))
    assert [rc for *_, rc in undisturbed] == [0, 0], undisturbed
    a, b = (load_file(model/'model.safetensors') for model in (results/'model', tmp_path/'node0'/'hpa_model'))
    assert largest_difference(a, b) < 1e-6


@pytest.mark.slow
def test_torchrun_restarts_workers_and_they_go_on(small_atlas, tmp_path, agents):
    "One worker is killed; its agent and the other one start all again, and these find the checkpoint"
    nodes, port = [tmp_path/f'node{n}' for n in range(2)], free_port()
    args = [small_atlas, *LONG, '--resume', '--out', 'model']
    started = [agents.start(node, *args, agent=[*rendezvous(port), '--max-restarts', '2']) for node in nodes]
    wait_for(lambda: read_log(nodes[0]/'model.training') >= 2)
    workers = [pid for pid in agents.processes(nodes[1]) if pid != started[1].pid]
    for pid in workers: os.kill(pid, signal.SIGKILL)
    assert [agent.wait(300) for agent in started] == [0, 0]
    assert (nodes[0]/'model'/'config.json').is_file() and not (nodes[1]/'model').exists()
    undisturbed = ends(start(tmp_path, [(COMMAND, 'train', small_atlas, *LONG)]*2))
    assert [rc for *_, rc in undisturbed] == [0, 0], undisturbed
    a, b = (load_file(nodes[0]/model/'model.safetensors') for model in ('model', 'hpa_model'))
    assert largest_difference(a, b) < 1e-6


@contextmanager
def two_networks():
    "Two network namespaces that a cable joins; skips the test where they are not permitted"
    names = [f'hpa-{secrets.token_hex(3)}-{n}' for n in range(2)]
    def ip(*args, check=True): return subprocess.run(['ip', *args], check=check, capture_output=True, text=True)
    if not shutil.which('ip'): pytest.skip('no network namespaces: there is no program `ip` (iproute2)')
    try:
        for name in names:
            made = ip('netns', 'add', name, check=False)
            if made.returncode: pytest.skip(f'no network namespaces: {made.stderr.strip()}')
        ends_of_cable = [f'hpa{secrets.token_hex(3)}{n}' for n in range(2)]
        made = ip('link', 'add', ends_of_cable[0], 'type', 'veth', 'peer', 'name', ends_of_cable[1], check=False)
        if made.returncode: pytest.skip(f'no pairs of virtual network devices: {made.stderr.strip()}')
        for n, (name, end) in enumerate(zip(names, ends_of_cable)):
            ip('link', 'set', end, 'netns', name)
            for args in (('addr', 'add', f'10.99.0.{n + 1}/24', 'dev', end), ('link', 'set', end, 'up'),
                         ('link', 'set', 'lo', 'up')): ip('-n', name, *args)
        yield [(name, f'10.99.0.{n + 1}', end) for n, (name, end) in enumerate(zip(names, ends_of_cable))], ip
    finally:
        for name in names: ip('netns', 'del', name, check=False)


@pytest.mark.slow
def test_two_network_namespaces_and_a_cable_that_is_cut(small_atlas, tmp_path, agents):
    "A cut cable closes no connection: the nodes only hear nothing more, and end after their patience"
    nodes = [tmp_path/f'node{n}' for n in range(2)]
    with two_networks() as (networks, ip):
        def train(port):
            return [agents.start(node, small_atlas, *LONG, '--out', 'model', '--resume',
                                 agent=['--node-rank', str(n), '--master-addr', networks[0][1], '--master-port', port],
                                 env=dict(GLOO_SOCKET_IFNAME=end, HPA_FASTAI_PATIENCE='10'),
                                 before=['ip', 'netns', 'exec', name])
                    for n, (node, (name, _, end)) in enumerate(zip(nodes, networks))]
        train('29501')
        wait_for(lambda: read_log(nodes[0]/'model.training') >= 2)
        ip('-n', networks[1][0], 'link', 'set', networks[1][2], 'down')
        wait_for(lambda: all(errors_of(node) for node in nodes), 90)
        for node in nodes:
            line, = errors_of(node)
            assert re.search(r'was lost .*the same command with --resume goes on', line), line
        agents.kill()
        ip('-n', networks[1][0], 'link', 'set', networks[1][2], 'up')
        assert [agent.wait(300) for agent in train('29502')] == [0, 0]
    caches = [[p.name for p in node.glob('cache/hpa_fastai/*.npy')] for node in nodes]
    assert len(caches[0]) == 1 and caches[0] == caches[1], 'each node has built one of its own'
    assert (nodes[0]/'model'/'config.json').is_file() and not (nodes[1]/'model').exists()


def sbatch_script():
    "The script for Slurm in the notebook"
    import json
    notebook = Path(__file__).parents[2]/'nbs'/'train'/'60_distributed.ipynb'
    cells = [''.join(cell['source']) for cell in json.loads(notebook.read_text(encoding='utf-8'))['cells']]
    script, = re.findall(r'```sh\n(#!/bin/bash\n.*?)```', '\n'.join(cells), re.DOTALL)
    return script


STUBS = dict(
    scontrol='if [ $1 = show ]; then echo gpu1; echo gpu2; else echo "$@" >> $HERE/requeued; fi',
    srun='shift; for n in gpu1 gpu2; do TMPDIR=/scratch/$n "$@" || exit $?; done',
    torchrun='echo "$@" >> $HERE/started; [ ! -f $HERE/fails ]')


@pytest.mark.parametrize('fails, has_checkpoint, restarts, is_requeued', [
    (False, True, 0, False), (True, True, 0, True), (True, True, 3, False), (True, False, 0, False)])
def test_the_script_for_slurm(tmp_path, fails, has_checkpoint, restarts, is_requeued):
    "It is run with stand-ins for the programs of Slurm and for torchrun"
    for name, code in STUBS.items():
        (tmp_path/name).write_text(f'#!/bin/bash\n{code}\n')
        (tmp_path/name).chmod(0o755)
    script = sbatch_script().replace('/shared', str(tmp_path))
    (tmp_path/'train.sh').write_text(script)
    assert subprocess.run(['bash', '-n', tmp_path/'train.sh'], capture_output=True).returncode == 0
    if fails: (tmp_path/'fails').touch()
    if has_checkpoint:
        (tmp_path/'models'/'mine.training').mkdir(parents=True)
        (tmp_path/'models'/'mine.training'/'checkpoint.pt').touch()
    env = dict(HERE=str(tmp_path), PATH=f'{tmp_path}:{os.environ["PATH"]}', SLURM_JOB_NODELIST='gpu[1-2]', USER='me',
               SLURM_JOB_ID='4711', SLURM_NNODES='2', SLURM_RESTART_COUNT=str(restarts))
    done = subprocess.run(['bash', tmp_path/'train.sh'], env=env, capture_output=True, text=True)
    assert done.returncode == int(fails), done.stderr
    assert (tmp_path/'requeued').exists() == is_requeued
    if is_requeued: assert (tmp_path/'requeued').read_text() == 'requeue 4711\n'
    for node, line in zip(('gpu1', 'gpu2'), (tmp_path/'started').read_text().splitlines()):
        launcher, command = line.split(' -m hpa_fastai ')
        assert launcher == ('--nnodes 2 --nproc-per-node 4 --rdzv-id 4711 --rdzv-backend c10d '
                            '--rdzv-endpoint gpu1:24711')
        assert f'--cache /scratch/{node}/hpa_fastai-me' in command, 'the disk of the node'
        from hpa_fastai.cli.main import make_parser
        args = make_parser().parse_args(command.split())
        assert args.resume and args.out == tmp_path/'models'/'mine' and args.minutes == 300
