"Training in stages: it learns, is one cycle, keeps its time, and survives kills, Ctrl-C and other settings."
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from fastai.data.all import IndexSplitter
from fastai.torch_core import set_seed

from hpa_fastai.all import (HPADataBlock, HPADataLoaders, HPAError, ImageReader, TrainingError, attach_images,
                            hpa_learner, read_labels)
from training import FirstSteps, Rates, StopInEpoch, copy, same


def test_it_learns_what_it_sees(small_atlas, cache):
    "A few images are learned by heart"
    df = read_labels(small_atlas/'train.csv')
    set_seed(0)
    dls = HPADataLoaders.from_df(df, small_atlas/'train', size=32, bs=16, augment=False, oversample=0, cache=cache,
                                 progress=False)
    learn = hpa_learner(dls, 'smallresnet', pretrained=False, dropout=0.)
    with learn.no_bar(), learn.no_logging(): learn.fit_progressive(sizes=(32,), epochs=20, best=False, verbose=False)
    with learn.no_bar(): probs, targets = learn.get_preds(ds_idx=0)
    assert probs[targets == 1].mean() > probs[targets == 0].mean() + .3


@pytest.mark.parametrize('time', [dict(minutes=.1), dict(epochs=(3, 2))])
def test_all_stages_are_one_cycle(make_learner, time):
    rates = Rates()
    learn = make_learner(cbs=rates)
    learn.fit_progressive(verbose=False, **time)
    assert len(learn.history['stages']) == 2
    top = rates.seen.index(max(rates.seen))
    assert max(rates.seen) > 2.5e-3 and rates.seen[0] < 3e-4 and rates.seen[-1] < 3e-4
    rise, fall = rates.seen[:top+1], rates.seen[top:]
    assert rise == sorted(rise) and fall == sorted(fall, reverse=True), 'up once, and down once'
    assert learn.recorder.lrs[0] > 1.2e-3, 'the last stage goes on where the first left'


def test_a_pretrained_network_gets_its_head_first_and_keeps_it(make_learner):
    steps, rates = FirstSteps(), Rates()
    learn = make_learner('smallresnet', 32, True, cbs=[steps, rates])
    as_made = copy(learn)
    learn.fit_progressive(sizes=(32,), epochs=1, best=False, verbose=False)
    changed = [k for k in as_made if not torch.equal(as_made[k], steps.seen[0][k])]
    assert changed and all(k.startswith('1.') for k in changed), 'the head alone'
    after = copy(learn)
    assert not torch.equal(after['0.0.weight'], as_made['0.0.weight'])
    assert torch.equal(after['0.1.running_mean'], as_made['0.1.running_mean'])
    assert max(rates.seen) == pytest.approx(3e-4, rel=.1), 'gently'
    learn.fit_progressive(sizes=(32,), epochs=1, verbose=False)
    assert same(after, steps.seen[1]), 'a second training keeps the head'


def test_published_weights_get_a_head_and_gentle_rates_for_the_body(make_learner, tmp_path):
    import timm
    torch.save(timm.create_model('resnet10t').state_dict(), tmp_path/'w.pth')
    steps = FirstSteps()
    learn = make_learner('resnet10t', 32, tmp_path/'w.pth', cbs=steps)
    as_made = copy(learn)
    learn.fit_progressive(sizes=(32,), epochs=1, best=False, verbose=False)
    first, after = steps.seen[0], copy(learn)
    assert all(torch.equal(v, first[k]) for k, v in as_made.items() if k.startswith('0.'))
    assert not torch.equal(as_made['1.4.weight'], first['1.4.weight'])
    body, *_, head = (h['lr'] for h in learn.opt.hypers)
    assert body < head
    statistics = [k for k in as_made if k.startswith('0.') and k.endswith('running_mean')]
    assert statistics and not any(torch.equal(as_made[k], after[k]) for k in statistics), 'photographs are not cells'


def test_the_head_alone_leaves_the_body_as_it_came(make_learner):
    from hpa_fastai.train.metrics import mean_ap
    learn = make_learner('smallresnet', 32, True)
    before = copy(learn)
    learn.fit_progressive(minutes=30, fine_tune=False)
    after = copy(learn)
    assert all(torch.equal(v, after[k]) for k, v in before.items() if k.startswith('0.'))
    assert not torch.equal(before['1.4.weight'], after['1.4.weight'])
    assert learn.history['minutes'] < 1 and learn.history['stages'] == ['32 px: the head alone']
    assert learn.dls.settings.size == 32
    scores = learn.out_of_fold
    unseen = mean_ap(scores.logits.sigmoid().numpy(), scores.targets.numpy())
    assert learn.training_log[0]['mean_ap'] == pytest.approx(unseen, abs=1e-4)
    found = learn.evaluate()
    assert len(found.table) == 28 and found.decided == 'unseen'
    assert found.n_images == learn.history['images'] == len(learn.dls.train_ds) + len(learn.dls.valid_ds)


def test_training_without_a_validation_set(small_atlas):
    df = attach_images(read_labels(small_atlas/'train.csv'), small_atlas/'train')
    dls = HPADataBlock(size=32, splitter=IndexSplitter([])).dataloaders(df.head(16), bs=8)
    learn = hpa_learner(dls, 'smallresnet', metrics=[])
    with learn.no_bar(), learn.no_logging(): learn.fit_progressive(sizes=(32,), epochs=1, verbose=False)
    assert 'kept_of_start' not in learn.history


def test_sizes_that_a_network_cannot_take_are_said(loaders):
    learn = hpa_learner(loaders, 'mixer_s16_224', pretrained=False)
    with pytest.raises(HPAError, match=r'mixer_s16_224 does not take pictures of 32 px; pass sizes=\(48,\)'):
        learn.fit_progressive()


def test_sizes_beyond_what_is_read_are_refused(trained):
    with pytest.raises(HPAError, match='larger than the 48 px'): trained[0].fit_progressive(sizes=(48, 64))


def test_a_batch_of_one_image(make_learner):
    learn = make_learner()
    learn.dls.train.bs = 1
    with pytest.raises(HPAError, match=r'bs=2 \(--bs 2\) or more'):
        learn.fit_progressive(sizes=(48,), epochs=1, verbose=False)


# Stopped and taken up again

TRAIN = """
import sys, time, warnings; warnings.filterwarnings('ignore')
from pathlib import Path
import torch
torch.set_num_threads(1)
torch.cpu._is_avx512_bf16_supported = lambda: False  # kernels of half precision may differ in the last bit
from fastai.torch_core import set_seed
from fastai.callback.core import Callback
from hpa_fastai.all import *
atlas, folder, slow, out, arch, pretrained = sys.argv[1:]
folder, slow, pretrained = Path(folder), float(slow), pretrained=='True'
class Slow(Callback):
    def after_batch(self):
        if self.training: time.sleep(slow)
set_seed(3, reproducible=True)
dls = HPADataLoaders.from_csv(atlas, size=48, bs=16, group='antibody', cache=folder.parent/'cache', progress=False)
learn = hpa_learner(dls, arch, pretrained=pretrained, cbs=Slow())
with learn.no_bar(), learn.no_logging(): learn.fit_progressive(sizes=(32, 48), epochs=3, folder=folder, resume=True)
torch.save([p.detach() for p in learn.model.parameters()], out)
"""


def wait_for_epoch(folder, n, process):
    "Until `n` epochs are logged"
    for _ in range(1200):
        try:
            if len(pd.read_csv(folder/'log.csv')) >= n: return
        except (OSError, pd.errors.EmptyDataError): pass
        assert process.poll() is None, 'it ended too early to be stopped'
        time.sleep(.1)
    raise AssertionError('it never got there')


@pytest.mark.slow
@pytest.mark.parametrize('network', [('lenet5', False), ('smallresnet', True)])
def test_a_killed_training_ends_as_one_that_was_not(small_atlas, tmp_path, network):
    def start(folder, slow, out):
        settings = [small_atlas, tmp_path/folder, slow, tmp_path/out, *network]
        return subprocess.Popen([sys.executable, '-c', TRAIN, *map(str, settings)])
    assert start('whole', 0, 'whole.pt').wait() == 0
    for n in (1, 4):
        p = start('cut', .05, 'cut.pt')
        wait_for_epoch(tmp_path/'cut', n, p)
        p.kill(), p.wait()
    assert start('cut', 0, 'cut.pt').wait() == 0
    whole, cut = (torch.load(tmp_path/o) for o in ('whole.pt', 'cut.pt'))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(whole, cut))
    logs = [pd.read_csv(tmp_path/o/'log.csv').drop(columns='seconds') for o in ('whole', 'cut')]
    pd.testing.assert_frame_equal(*logs)
    assert start('cut', 60, 'again.pt').wait(60) == 0, 'a finished training is taken as it is'
    assert all(torch.equal(a, b) for a, b in zip(cut, torch.load(tmp_path/'again.pt')))


def test_ctrl_c_leaves_a_model_and_can_go_on(make_learner, tmp_path):
    class CtrlC(Callback):
        def before_batch(self):
            if self.training and (self.epoch, self.iter) == (1, 1): os.kill(os.getpid(), signal.SIGINT)
    how = dict(sizes=(32, 48), epochs=2, folder=tmp_path/'run', resume=True, verbose=False)
    learn = make_learner(cbs=CtrlC())
    with pytest.warns(UserWarning, match='stopped at 32 px; the model is usable as it is, or continue it with'):
        learn.fit_progressive(**how)
    assert all(torch.isfinite(t).all() for t in copy(learn).values()) and learn.history['stopped'] == 'at 32 px'
    assert len(pd.read_csv(tmp_path/'run'/'log.csv')) == 1
    learn = make_learner().fit_progressive(**how)
    assert pd.read_csv(tmp_path/'run'/'log.csv').epoch.tolist() == [1, 2, 1, 2] and 'stopped' not in learn.history


def test_a_second_ctrl_c_interrupts(make_learner):
    class Impatient(Callback):
        def before_batch(self): os.kill(os.getpid(), signal.SIGINT), os.kill(os.getpid(), signal.SIGINT)
    handler = signal.getsignal(signal.SIGINT)
    learn = make_learner(size=32, cbs=Impatient())
    with pytest.raises(KeyboardInterrupt): learn.fit_progressive(epochs=1, verbose=False)
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize('change,said', [
    (dict(lr=.01), 'lr=0.003, now it is 0.01'),
    (dict(epochs=2), r'epochs=\[1\], now it is \[2\]'),
    (dict(sizes=(48,)), r'sizes=\[32\]')])
def test_resuming_with_other_settings_is_refused(make_learner, tmp_path, change, said):
    how = dict(sizes=(32,), epochs=1, folder=tmp_path/'run', verbose=False)
    make_learner().fit_progressive(**how)
    with pytest.raises(TrainingError, match=said): make_learner().fit_progressive(**how | change, resume=True)


def test_resuming_with_pictures_read_otherwise_is_refused(small_atlas, cache, tmp_path):
    def train(**settings):
        dls = HPADataLoaders.from_csv(small_atlas, size=32, bs=16, cache=cache, progress=False, **settings)
        learn = hpa_learner(dls, 'lenet5', pretrained=False)
        with learn.no_bar(), learn.no_logging():
            learn.fit_progressive(sizes=(32,), epochs=1, folder=tmp_path/'run', resume=True, verbose=False)
    train(normalize='dataset')
    train(normalize='dataset')
    with pytest.raises(TrainingError, match="scale=dtype, now it is percentile"):
        train(normalize='dataset', reader=ImageReader(32, scale='percentile'))
    with pytest.raises(TrainingError, match='with mean=.*, now it is None'): train()


def test_a_stopped_training_is_not_overwritten(make_learner, tmp_path):
    how = dict(sizes=(32,), epochs=2, folder=tmp_path/'run', verbose=False)
    with pytest.raises(RuntimeError): make_learner(size=32, cbs=StopInEpoch(1)).fit_progressive(**how)
    with pytest.raises(TrainingError, match=r'pass resume=True \(--resume\) to continue it'):
        make_learner(size=32).fit_progressive(**how)


def test_a_clocked_training_goes_on_with_the_time_that_is_left(make_learner, tmp_path):
    how = dict(sizes=(32,), minutes=.12, folder=tmp_path/'run', verbose=False)
    with pytest.raises(RuntimeError): make_learner(size=32, cbs=StopInEpoch(1)).fit_progressive(**how)
    learn = make_learner(size=32)
    learn.fit_progressive(**how, resume=True)
    assert .11 < learn.history['minutes'] < .24, 'twice the time would be a training from the start'
    assert learn.recorder.lrs[-1] < 3e-4, 'the cycle came to its end'
