"What a training survives: kills, Ctrl-C, full disks, numbers that are none, too little memory."
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from fastai.torch_core import set_seed
from torch import nn

from hpa_fastai.all import HPADataLoaders, HPAError, hpa_learner
from hpa_fastai.train.schedule import measure_steps
from hpa_fastai.train.callbacks import TrainingError
from hpa_fastai.train.checkpoints import SaveEpochs, read_checkpoint, write_checkpoint

TRAIN = """
import sys, time, warnings; warnings.filterwarnings('ignore')
from pathlib import Path
import torch
torch.set_num_threads(1)
torch.cpu._is_avx512_bf16_supported = lambda: False  # kernels of half precision may differ in the last bit from run to run
from fastai.torch_core import set_seed
from fastai.callback.core import Callback
from hpa_fastai.all import *
atlas, folder, slow, out, arch, pretrained = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4], sys.argv[5], sys.argv[6]=='True'
class Slow(Callback):
    def after_batch(self):
        if self.training: time.sleep(slow)
set_seed(3, reproducible=True)
dls = HPADataLoaders.from_csv(atlas, size=48, bs=16, group='antibody', cache=folder.parent/'cache', progress=False)
learn = hpa_learner(dls, arch, pretrained=pretrained, cbs=Slow())
with learn.no_bar(), learn.no_logging(): learn.fit_progressive(sizes=(32, 48), epochs=3, folder=folder, resume=True)
torch.save([p.detach() for p in learn.model.parameters()], out)
"""


def start(atlas, folder, slow, out, arch='lenet5', pretrained=False):
    return subprocess.Popen([sys.executable, '-c', TRAIN, atlas, folder, str(slow), out, arch, str(pretrained)])


def wait_for_epoch(folder, n, process):
    "Until `n` epochs are logged"
    for _ in range(1200):
        try:
            if len(pd.read_csv(folder/'log.csv')) >= n: return
        except (OSError, pd.errors.EmptyDataError): pass
        assert process.poll() is None, 'it ended too early to be stopped'
        time.sleep(.1)
    raise AssertionError('it never got there')


@pytest.fixture
def decided(small_atlas, tmp_path_factory):
    "A learner that is calibrated and has thresholds, though it was hardly trained"
    cache = tmp_path_factory.getbasetemp()/'decided-cache'
    dls = HPADataLoaders.from_csv(small_atlas, size=32, bs=16, cache=cache, progress=False)
    learn = hpa_learner(dls, 'lenet5', pretrained=False, path=tmp_path_factory.mktemp('learn'))
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)
        learn.calibrate('platt'), learn.fit_thresholds(), learn.evaluate()
    learn.no_bar().__enter__(), learn.no_logging().__enter__()
    return learn


def test_a_search_for_a_rate_keeps_what_was_fitted(decided):
    "The weights are put back, and with them what belongs to them"
    fitted, before = (decided.thresholds, decided.calibration, decided.evaluation), decided.get_preds()[0]
    decided.lr_find(num_it=8, show_plot=False)
    decided.find_lr()
    assert (decided.thresholds, decided.calibration, decided.evaluation) == fitted and None not in fitted
    assert torch.equal(decided.get_preds()[0], before)


@pytest.mark.parametrize('change', ['fit_one_cycle', 'fit_head', 'load', 'interrupted search'])
def test_other_weights_have_no_thresholds(decided, change):
    class Interrupt(Callback):
        def after_step(self): raise KeyboardInterrupt
    if change == 'fit_one_cycle': decided.fit_one_cycle(1, 1e-3)
    if change == 'fit_head': decided.fit_head()
    if change == 'load':
        decided.save('weights')
        decided.load('weights')
    if change == 'interrupted search':
        decided.add_cb(Interrupt())
        with pytest.raises(KeyboardInterrupt): decided.lr_find(num_it=8, show_plot=False)
    assert (decided.thresholds, decided.calibration, decided.evaluation) == (None, None, None)


@pytest.mark.parametrize('spoiled', ['loss', 'weights'])
def test_what_is_no_number_is_seen_before_weights_are_kept(decided, tmp_path, spoiled):
    "Where losses are looked at now and then only, as on a GPU"
    from hpa_fastai.train.callbacks import AverageWeights, KeepBest, LogEpochs, StopOnNaN
    class Spoil(Callback):
        order = -10
        def after_loss(self):
            if spoiled == 'loss' and self.training and self.epoch == 1 and self.iter == 2: self.learn.loss_grad = self.learn.loss_grad*float('nan')
        def after_batch(self):
            if spoiled == 'weights' and self.training and self.epoch == 1 and self.iter == self.n_iter - 1:
                with torch.no_grad(): next(self.learn.model.parameters()).fill_(float('nan'))
    file, n = tmp_path/'checkpoint.pt', len(decided.dls.train)
    assert n > 3
    cbs = [StopOnNaN(every=1000), Spoil(), AverageWeights(), KeepBest(), LogEpochs(), SaveEpochs(file)]
    with pytest.raises(TrainingError, match='of epoch 2.*last good epoch') as e: decided.fit(3, 1e-3, cbs=cbs)
    assert all(torch.isfinite(t).all() for t in decided.model.state_dict().values())
    state = read_checkpoint(file)
    assert state['epoch'] == 1 and all(torch.isfinite(t).all() for t in state['weights'])
    assert all(torch.isfinite(t).all() for t in state['parts']['best_weights'])
    if spoiled == 'weights': assert 'the last step left weights' in str(e.value)


@pytest.mark.slow
@pytest.mark.parametrize('network', [('lenet5', False), ('smallresnet', True)])
def test_a_killed_training_ends_as_one_that_was_not(small_atlas, tmp_path, network):
    assert start(small_atlas, tmp_path/'whole', 0, tmp_path/'whole.pt', *network).wait() == 0
    for n in (1, 4):
        p = start(small_atlas, tmp_path/'cut', .05, tmp_path/'cut.pt', *network)
        wait_for_epoch(tmp_path/'cut', n, p)
        p.kill(), p.wait()
    assert start(small_atlas, tmp_path/'cut', 0, tmp_path/'cut.pt', *network).wait() == 0
    for a, b in zip(torch.load(tmp_path/'whole.pt'), torch.load(tmp_path/'cut.pt')): assert torch.allclose(a, b, atol=1e-5)
    logs = [pd.read_csv(tmp_path/o/'log.csv').drop(columns='seconds') for o in ('whole', 'cut')]
    pd.testing.assert_frame_equal(*logs)
    again = start(small_atlas, tmp_path/'cut', 60, tmp_path/'again.pt', *network)
    assert again.wait(60) == 0, 'a finished training is taken as it is'
    for a, b in zip(torch.load(tmp_path/'cut.pt'), torch.load(tmp_path/'again.pt')): assert torch.equal(a, b)


def test_ctrl_c_leaves_a_model_and_can_go_on(small_atlas, tmp_path):
    p = start(small_atlas, tmp_path/'run', .05, tmp_path/'stopped.pt')
    wait_for_epoch(tmp_path/'run', 2, p)
    p.send_signal(signal.SIGINT)
    assert p.wait(60) == 0 and all(torch.isfinite(t).all() for t in torch.load(tmp_path/'stopped.pt'))
    assert len(pd.read_csv(tmp_path/'run'/'log.csv')) < 6
    assert start(small_atlas, tmp_path/'run', 0, tmp_path/'whole.pt').wait() == 0
    assert pd.read_csv(tmp_path/'run'/'log.csv').epoch.tolist() == [1, 2, 3, 1, 2, 3]


@pytest.fixture
def make_learner(small_atlas, tmp_path):
    def make(arch='lenet5', **kwargs):
        set_seed(0)
        dls = HPADataLoaders.from_csv(small_atlas, size=48, bs=16, group='antibody', cache=tmp_path/'cache', progress=False)
        learn = hpa_learner(dls, arch, pretrained=False, **kwargs)
        learn.add_cbs([]), learn.remove_cbs([c for c in learn.cbs if type(c).__name__ == 'ProgressCallback'])
        learn.logger = lambda *_: None
        return learn
    return make


@pytest.mark.parametrize('change,said', [(dict(lr=.01), 'lr=0.003, now it is 0.01'), (dict(epochs=2), r'epochs=\[1\], now it is \[2\]'), (dict(sizes=(48,)), r'sizes=\[32\]')])
def test_resuming_with_other_settings_is_refused(make_learner, tmp_path, change, said):
    make_learner().fit_progressive(sizes=(32,), epochs=1, folder=tmp_path/'run', verbose=False)
    with pytest.raises(TrainingError, match=said): make_learner().fit_progressive(**{**dict(sizes=(32,), epochs=1), **change}, folder=tmp_path/'run', resume=True)


def test_a_stopped_training_is_not_overwritten(make_learner, tmp_path):
    class Stop(Callback):
        def before_epoch(self):
            if self.epoch == 1: raise RuntimeError('stopped')
    with pytest.raises(RuntimeError): make_learner(cbs=Stop()).fit_progressive(sizes=(32,), epochs=2, folder=tmp_path/'run', verbose=False)
    with pytest.raises(TrainingError, match=r'pass resume=True \(--resume\) to go on with it'): make_learner().fit_progressive(sizes=(32,), epochs=2, folder=tmp_path/'run')


def test_a_clocked_training_goes_on_with_the_time_that_is_left(make_learner, tmp_path):
    class Stop(Callback):
        def before_epoch(self):
            if self.epoch == 2: raise RuntimeError('stopped')
    with pytest.raises(RuntimeError): make_learner(cbs=Stop()).fit_progressive(sizes=(32,), minutes=.1, folder=tmp_path/'run', verbose=False)
    learn = make_learner()
    learn.fit_progressive(sizes=(32,), minutes=.1, folder=tmp_path/'run', resume=True, verbose=False)
    assert .09 < learn.history['minutes'] < .2
    assert learn.recorder.lrs[-1] < 3e-4, 'the cycle came to its end'


def test_numbers_that_are_none_stop_it_at_once(make_learner, tmp_path):
    class Spoil(Callback):
        def after_pred(self):
            if self.training and self.epoch == 1 and self.iter == 2: self.learn.pred = self.pred*float('nan')
    learn = make_learner(cbs=Spoil())
    with pytest.raises(TrainingError, match='step 3 of epoch 2.*learning rate'): learn.fit_progressive(sizes=(32,), epochs=3, verbose=False)
    assert all(torch.isfinite(p).all() for p in learn.model.parameters()) and len(learn.training_log) == 1


def test_a_full_disk_costs_the_checkpoints_only(make_learner, tmp_path):
    import resource
    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    learn = make_learner()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
        with pytest.warns(UserWarning, match='no checkpoint could be written'):
            learn.fit(1, cbs=SaveEpochs(tmp_path/'checkpoint.pt'))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.glob('checkpoint.pt*')) and len(learn.recorder.values) == 1


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path):
    write_checkpoint(tmp_path/'c.pt', dict(epoch=1))
    with pytest.raises(Exception): write_checkpoint(tmp_path/'c.pt', dict(epoch=lambda: 2))
    assert read_checkpoint(tmp_path/'c.pt') == dict(epoch=1) and len(list(tmp_path.glob('c.pt*'))) == 1


def test_checkpoints_run_no_code(tmp_path):
    import pickle
    class Evil:
        def __reduce__(self): return (open, (str(tmp_path/'was_here'), 'w'))
    (tmp_path/'c.pt').write_bytes(pickle.dumps(Evil()))
    with pytest.raises(TrainingError, match='delete it to start anew'): read_checkpoint(tmp_path/'c.pt')
    assert not (tmp_path/'was_here').exists()


class SmallMemory(nn.Module):
    "Has memory for so many pictures at a time"
    def __init__(self, n):
        super().__init__()
        self.n = n
    def forward(self, x):
        if len(x) > self.n: raise torch.OutOfMemoryError('CUDA out of memory')
        return x


def test_too_little_memory_halves_the_batch(make_learner):
    learn = make_learner()
    learn.model[0].layers.insert(0, SmallMemory(5))
    with pytest.warns(UserWarning, match='with 8 images in a batch; going on with 4'): learn.fit_progressive(sizes=(48,), epochs=1, verbose=False)
    assert len(learn.training_log) == 1 and learn.dls.train.bs == 16
    with pytest.warns(UserWarning, match='with 8 images in a batch; going on with 4'): learn.fit_progressive(sizes=(48,), minutes=.05, lr='find', verbose=False)
    assert learn.training_log and learn.dls.train.bs == 16
    learn.model[0].layers[0].n = 1
    with pytest.raises(TrainingError, match='with only 2 images'): learn.fit_progressive(sizes=(48,), epochs=1, verbose=False)


def test_too_little_memory_leaves_no_half_precision(make_learner, monkeypatch):
    monkeypatch.setattr('hpa_fastai.train.schedule.amp_dtype', lambda *_: torch.bfloat16)
    monkeypatch.setattr('hpa_fastai.train.callbacks.amp_dtype', lambda *_: torch.bfloat16, raising=False)
    learn = make_learner()
    learn.model[0].layers.insert(0, SmallMemory(5))
    with pytest.warns(UserWarning, match='going on with 4'): learn.find_lr()
    assert hasattr(learn, 'training_precision') and not torch.is_autocast_enabled('cpu')


def test_a_batch_larger_than_the_training_set(make_learner):
    learn = make_learner()
    learn.dls.train.bs = 10_000
    with pytest.raises(HPAError, match='fewer than a batch of 10000'): measure_steps(learn)


def test_too_little_memory_for_the_head(make_learner):
    learn, same = (make_learner() for _ in range(2))
    same.model.load_state_dict(learn.model.state_dict())
    learn.model[0].layers.insert(0, SmallMemory(1))
    with pytest.warns(UserWarning, match='with 2 images in a batch; going on with 1'): learn.fit_head()
    same.fit_head()
    assert torch.allclose(learn.model[1][-1].weight, same.model[1][-1].weight, atol=1e-3)


def test_a_batch_of_one_image(make_learner):
    learn = make_learner()
    learn.dls.train.bs = 1
    with pytest.raises(HPAError, match=r'bs=2 \(--bs 2\) or more'): learn.fit_progressive(sizes=(48,), epochs=1, verbose=False)


def test_finding_a_learning_rate_leaves_nothing_behind(make_learner, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learn = make_learner()
    before = [p.clone() for p in learn.model.parameters()]
    assert 1e-4 <= learn.find_lr() <= 1e-2
    assert all(torch.equal(a, b) for a, b in zip(before, learn.model.parameters())) and not (tmp_path/'models').exists()
    learn.fit_progressive(sizes=(32,), epochs=1, lr='find', verbose=False)
    assert 1e-4 <= learn.history['lr'] <= 1e-2
