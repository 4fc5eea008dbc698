"Several processes: one model, each image counted once, one bundle. Two real processes on the CPU."
import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from hpa_fastai.all import HPADataLoaders, HPAError
from hpa_fastai.deploy.loading import load_bundle
from hpa_fastai.train.distributed import rank_share
from hpa_fastai.train.metrics import mean_ap
from programs import COMMAND, Program

pytest.importorskip('accelerate')


def launch(code, *args, cwd=None):
    "What two processes come to that run a program together; a launcher sets these variables"
    with socket.create_server(('127.0.0.1', 0)) as free: port = free.getsockname()[1]
    env = os.environ | dict(OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='', WORLD_SIZE='2', MASTER_ADDR='127.0.0.1',
                            MASTER_PORT=str(port))
    started = [Program(code, *args, cwd=cwd, env=env | dict(RANK=str(n), LOCAL_RANK=str(n))) for n in range(2)]
    while any(program.poll() is None for program in started):
        if any(program.poll() for program in started):  # it failed, and the other would wait for it
            for program in started: program.kill()
        time.sleep(.05)
    said = [program.communicate() for program in started]
    assert [program.returncode for program in started] == [0, 0], said
    return [''.join(streams) for streams in zip(*said)]


SCRIPT = """
import sys, torch
from hpa_fastai.all import *
from fastai.distributed import *
atlas, out = sys.argv[1:]
class Noise(Callback):
    "Keeps a random number of each epoch"
    seen = []
    def before_train(self): self.seen.append(torch.rand(1).item())
class Reading(HPADataLoader):
    "Keeps what was drawn for the last epoch, and what this process reads of it"
    def get_idxs(self):
        self.drawn = super().get_idxs()
        return self.drawn
    def create_batches(self, samps):
        self.read = list(samps)
        return super().create_batches(iter(self.read))
dls = HPADataLoaders.from_csv(atlas, size=32, bs=8, group='antibody', valid_pct=.3, cache=f'{out}/cache', device='cpu',
                              progress=False)
dls.loaders = [dl.new(cls=Reading, cache=dl.cache, weights=dl.weights) for dl in dls.loaders]
set_seed(0)
learn = hpa_learner(dls, 'smallresnet', pretrained=False, cbs=Noise)
with learn.distrib_ctx(), learn.no_bar(), learn.no_logging():
    learn.fit_progressive(sizes=(32,), epochs=2, verbose=False)
    recorded = [float(o) for o in learn.recorder.values[-1]]
    inside, targets = learn.get_preds()
    learn.fit_thresholds()
    learn.evaluate()
    learn.save_bundle(f'{out}/model')
logits, outside_targets = learn.get_preds(act=noop)
found = dict(weights=learn.model.state_dict(), noise=Noise.seen, drawn=learn.dls.train.drawn, read=learn.dls.train.read,
             recorded=recorded, n_valid=len(dls.valid_ds), inside=inside, targets=targets, outside=logits.sigmoid(),
             outside_targets=outside_targets, loss=learn.loss_func(logits, outside_targets).item(),
             f1=learn.evaluation.macro_f1, thresholds=learn.thresholds.values)
torch.save(found, f'{out}/rank{rank_distrib()}.pt')
"""


@pytest.fixture(scope='module')
def ranks(small_atlas, tmp_path_factory):
    "What two processes that trained one model each found"
    out = tmp_path_factory.mktemp('ranks')
    launch(SCRIPT, small_atlas, out)
    return [torch.load(out/f'rank{r}.pt', weights_only=False) for r in range(2)], out


def test_weights_are_equal(ranks):
    (a, b), _ = ranks
    assert all(torch.equal(a['weights'][k], b['weights'][k]) for k in a['weights'])


def test_each_process_reads_its_share_of_one_weighted_draw(ranks):
    (a, b), _ = ranks
    drawn = a['drawn'][:len(a['drawn'])//16*16]  # the last epoch's draw of the first process, in whole batches of both
    read = [i for at in range(0, len(a['read']), 8) for r in (a, b) for i in r['read'][at:at+8]]
    assert read == drawn and a['read'] != b['read'] and len(set(drawn)) < len(drawn), 'rare images come several times'


def test_processes_have_their_own_random_numbers(ranks):
    (a, b), _ = ranks
    assert not set(a['noise']) & set(b['noise'])


def test_metrics_are_those_of_one_process(ranks):
    for r in ranks[0]:
        assert r['n_valid'] % 2, 'an odd number, so that one image is read twice'
        assert len(r['inside']) == len(r['outside']) == r['n_valid']
        assert torch.allclose(r['inside'], r['outside'], atol=1e-6) and torch.equal(r['targets'], r['outside_targets'])
        _, valid_loss, ap = r['recorded'][:3]
        assert np.isclose(ap, mean_ap(r['outside'].numpy(), r['outside_targets'].numpy()), atol=1e-6)
        assert np.isclose(valid_loss, r['loss'], atol=1e-5)
    (a, b), _ = ranks
    assert a['recorded'][1:] == b['recorded'][1:] and a['f1'] == b['f1']
    assert np.array_equal(a['thresholds'], b['thresholds'])


def test_one_bundle_is_written(ranks):
    (a, _), out = ranks
    bundle = load_bundle(out/'model')
    assert all(torch.equal(v, bundle.model.state_dict()[k]) for k, v in a['weights'].items())
    assert np.allclose(bundle.thresholds.values, a['thresholds'])
    assert sorted(p.name for p in out.iterdir()) == ['cache', 'model', 'rank0.pt', 'rank1.pt']


def test_the_command_trains_in_all_processes_and_one_speaks(small_atlas, tmp_path):
    options = '--group antibody --arch lenet5 --pretrained no --size 32 --sizes 32 --minutes .03 --bs 8'.split()
    options += ['--cache', 'cache', '--out', 'model']
    out, err = launch(COMMAND, 'train', small_atlas, *options, cwd=tmp_path)
    assert [out.count(o) for o in ('images to train on', 'Saved to', 'mean AP')] == [1, 1, 1]
    assert err.count('training at 32 px: 100%') <= 1
    assert load_bundle(tmp_path/'model').config['training']['minutes'] < .2
    assert not [p for p in tmp_path.iterdir() if p.name not in ('cache', 'model')]


TOGETHER = """
import sys
from hpa_fastai.all import *
from fastai.distributed import *
atlas, cache = sys.argv[1:]
dls = HPADataLoaders.from_csv(atlas, size=32, bs=8, group='antibody', cache=cache, device='cpu', progress=False)
set_seed(0)
learn = hpa_learner(dls, 'smallresnet', dropout=0.)
with learn.distrib_ctx(), learn.no_bar(), learn.no_logging():
    learn.fit_progressive(sizes=(24, 32), epochs=1, lr=1e-2, verbose=False)
weights = sum(p.double().sum() for p in learn.model.state_dict().values()).item()
sys.stdout.write(f"{learn.history['kept_of_start']} {weights:.9f}\\n")
"""


@pytest.mark.slow
def test_processes_go_back_towards_the_start_together(small_atlas, tmp_path):
    out, _ = launch(TOGETHER, small_atlas, tmp_path/'cache')
    first, second = out.splitlines()
    assert first == second


@pytest.mark.parametrize('n, bs, world', [(11, 2, 2), (5, 4, 4), (1, 8, 3), (64, 8, 2), (100, 7, 3)])
def test_shares_are_equal_and_gather_in_order(n, bs, world):
    shares = [rank_share(list(range(n)), bs, r, world) for r in range(world)]
    assert len({len(s) for s in shares}) == 1
    steps = [[s[i:i+bs] for s in shares] for i in range(0, len(shares[0]), bs)]
    assert all(len({len(p) for p in step}) == 1 for step in steps)
    gathered = [i for step in steps for part in step for i in part]
    assert gathered[:n] == list(range(n)) and len(gathered) - n < world


WITHOUT_ACCELERATE = """
import os, sys; sys.modules['accelerate'] = None
from hpa_fastai.all import *
with shared_training('a learner') as same: print(same)
os.environ['WORLD_SIZE'] = '2'
try: shared_training('a learner')
except HPAError as e: print(e)
"""


def test_one_process_trains_without_accelerate():
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', WITHOUT_ACCELERATE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('a learner') and "pip install 'hpa_fastai[distributed]'" in done.stdout


def test_batches_are_no_larger_than_a_share(small_atlas, tmp_path, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '4')
    dls = HPADataLoaders.from_csv(small_atlas, size=32, bs=64, cache=tmp_path, progress=False)
    assert dls.train.bs == len(dls.train_ds)//4


def test_a_leftover_number_of_processes_is_said(monkeypatch):
    from hpa_fastai.basics.processes import start_processes
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.delenv('MASTER_ADDR', raising=False)
    with pytest.raises(HPAError, match='unset WORLD_SIZE'): start_processes(torch.device('cpu'))
