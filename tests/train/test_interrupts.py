"What a training that breaks off leaves behind: nothing that later trainings of the same process notice."
import os
import signal
import warnings

import matplotlib
import pytest
import torch
from fastai.callback.core import (Callback, CancelBatchException, CancelEpochException, CancelFitException,
                                  CancelTrainException)
from fastai.callback.fp16 import MixedPrecision

from hpa_fastai.all import HPAError
from hpa_fastai.train.callbacks import autocast_depth, autocast_kept


@pytest.fixture(autouse=True)
def half(monkeypatch):
    "Trains in half precision on any processor; what a test leaves behind ends with it"
    for room in ('schedule', 'callbacks', 'learner'):
        monkeypatch.setattr(f'hpa_fastai.train.{room}.amp_dtype', lambda *_: torch.bfloat16)
    with autocast_kept(): yield


class Break(Callback):
    "Breaks a training off at one event of its third step, with any error"
    order = 60
    def __init__(self, event, error): self.event, self.error = event, error
    def __call__(self, event):
        if event == self.event and self.training and self.iter == 2: self.error()
        return super().__call__(event)


class First(Break):
    "Breaks a training off before other callbacks have heard that it begins"
    order = -100
    def __call__(self, event):
        if event == self.event: self.error()
        return Callback.__call__(self, event)


def fail(): raise ValueError('broken off')


def ctrl_c(): os.kill(os.getpid(), signal.SIGINT)


def process_state():
    "Everything that PyTorch, Python and matplotlib keep for the whole process"
    return dict(autocast=torch.is_autocast_enabled('cpu'), depth=autocast_depth(),
                half=torch.get_autocast_dtype('cpu'), cache=torch.is_autocast_cache_enabled(),
                threads=torch.get_num_threads(), grad=torch.is_grad_enabled(), dtype=torch.get_default_dtype(),
                deterministic=torch.are_deterministic_algorithms_enabled(), benchmark=torch.backends.cudnn.benchmark,
                filters=list(warnings.filters), sigint=signal.getsignal(signal.SIGINT),
                backend=matplotlib.get_backend(), folder=os.getcwd())


FIRST = []


def numbers(make_learner):
    learn = make_learner(size=32)
    learn.fit(1, 1e-3)
    return learn.recorder.values[-1]


@pytest.fixture
def expected(make_learner):
    "What a training comes to that was the first of this process to reach its end"
    if not FIRST: FIRST.append(numbers(make_learner))
    return FIRST[0]


@pytest.mark.parametrize('cbs', [(), MixedPrecision], ids=['ours', 'fastai'])
@pytest.mark.parametrize('error', [fail, ctrl_c])
@pytest.mark.parametrize('event', ['before_batch', 'after_pred', 'after_loss', 'before_step', 'after_batch'])
def test_an_error_in_a_callback(make_learner, expected, event, error, cbs):
    before = process_state()
    learn = make_learner(size=32, cbs=[Break(event, error), *([cbs()] if cbs else [])])
    with pytest.raises((ValueError, KeyboardInterrupt)): learn.fit(1, 1e-3)
    assert process_state() == before
    assert numbers(make_learner) == expected


@pytest.mark.parametrize('place', ['loss', 'network'])
@pytest.mark.parametrize('error', [fail, ctrl_c])
def test_an_error_in_a_loss_or_network(make_learner, expected, place, error):
    before = process_state()
    def loss(pred, target):
        error()
        return pred.mean()
    learn = make_learner(size=32, **(dict(loss_func=loss) if place == 'loss' else {}))
    if place == 'network': learn.model[0].register_forward_hook(lambda *_: error())
    with pytest.raises((ValueError, KeyboardInterrupt)): learn.fit(1, 1e-3)
    assert process_state() == before
    assert numbers(make_learner) == expected


@pytest.mark.parametrize('do', ['fit_one_cycle', 'fit_progressive', 'find_lr', 'lr_find', 'fit_head', 'validate',
                                'get_preds', 'calibrate', 'evaluate'])
def test_an_error_in_any_method(make_learner, expected, do):
    "In the second batch, be it of training or of prediction"
    before, seen = process_state(), []
    learn = make_learner(size=32)
    def broken(*_):
        seen.append(torch.is_autocast_enabled('cpu'))
        if len(seen) > 1: fail()
    learn.model[0].register_forward_hook(broken)
    settings = dict(fit_one_cycle=dict(n_epoch=1), lr_find=dict(num_it=8, show_plot=False),
                    fit_progressive=dict(sizes=(32,), epochs=1, verbose=False)).get(do, {})
    with learn.no_bar(), pytest.raises((ValueError, HPAError), match='broken off'): getattr(learn, do)(**settings)
    trains = do in ('fit_one_cycle', 'fit_progressive', 'find_lr', 'lr_find')
    assert any(seen) == trains and process_state() == before  # only training is in half precision
    assert numbers(make_learner) == expected


def test_half_precision_that_was_on_stays_on(make_learner):
    with torch.autocast('cpu', dtype=torch.bfloat16):
        learn = make_learner(size=32, cbs=Break('after_pred', fail))
        with pytest.raises(ValueError): learn.fit(1, 1e-3)
        assert torch.is_autocast_enabled('cpu') and autocast_depth() == 1
    assert not torch.is_autocast_enabled('cpu') and autocast_depth() == 0


@pytest.mark.parametrize('cancel', [CancelBatchException, CancelTrainException, CancelEpochException,
                                    CancelFitException])
@pytest.mark.parametrize('event', ['before_batch', 'after_pred', 'after_loss'])
def test_a_training_that_is_cancelled(make_learner, expected, event, cancel):
    "fastai's own way to end a step, whose callbacks are called after the step has put everything back"
    before = process_state()
    def stop(): raise cancel()
    make_learner(size=32, cbs=Break(event, stop)).fit(1, 1e-3)
    assert process_state() == before
    assert numbers(make_learner) == expected


@pytest.mark.parametrize('do', ['fit', 'fit_one_cycle', 'fit_progressive', 'lr_find'])
def test_a_training_that_is_cancelled_before_it_begins(make_learner, expected, do):
    "Callbacks hear of the end of what they did not see beginning"
    before = process_state()
    def stop(): raise CancelFitException()
    learn = make_learner(size=32, cbs=First('before_fit', stop))
    weights = [t.clone() for t in learn.model.state_dict().values()]
    if do == 'fit_progressive': learn.fit_progressive(sizes=(32,), epochs=1, verbose=False)
    elif do == 'lr_find':
        with pytest.raises(Exception): learn.lr_find(num_it=8, show_plot=False)
    else: getattr(learn, do)(1)
    assert all(map(torch.equal, weights, learn.model.state_dict().values()))
    assert process_state() == before
    assert numbers(make_learner) == expected
