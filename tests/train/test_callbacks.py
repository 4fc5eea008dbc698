"What a training watches: numbers that are none, and decisions that belong to other weights."
import pytest
import torch
from fastai.callback.core import Callback

from hpa_fastai.all import (AverageWeights, KeepBest, LogEpochs, SaveEpochs, StopOnNaN, TrainingBar, TrainingError,
                            read_checkpoint)
from hpa_fastai.train.callbacks import get_weights


@pytest.fixture
def decided(make_learner):
    "A learner that is calibrated and has thresholds, though it was hardly trained"
    learn = make_learner(size=32)
    learn.fit(1, 1e-3)
    learn.calibrate('platt'), learn.fit_thresholds(), learn.evaluate()
    learn.no_bar().__enter__()
    return learn


def test_a_search_for_a_rate_keeps_what_was_fitted(decided, tmp_path, monkeypatch):
    "The weights are put back, and with them what belongs to them"
    monkeypatch.chdir(tmp_path)
    fitted, before = (decided.thresholds, decided.calibration, decided.evaluation), decided.get_preds()[0]
    assert 1e-4 <= decided.find_lr() <= 1e-2
    assert (decided.thresholds, decided.calibration, decided.evaluation) == fitted and None not in fitted
    assert torch.equal(decided.get_preds()[0], before) and not list(tmp_path.iterdir())


@pytest.mark.parametrize('change', ['fit_one_cycle', 'fit_progressive', 'fit_head', 'load', 'interrupted search'])
def test_other_weights_have_no_thresholds(decided, change):
    class Interrupt(Callback):
        def after_step(self): raise KeyboardInterrupt
    if change == 'fit_one_cycle': decided.fit_one_cycle(1, 1e-3)
    if change == 'fit_progressive': decided.fit_progressive(sizes=(32,), epochs=1, verbose=False)
    if change == 'fit_head': decided.fit_head()
    if change == 'load':
        decided.save('weights')
        decided.load('weights')
    if change == 'interrupted search':
        decided.add_cb(Interrupt())
        with pytest.raises(KeyboardInterrupt): decided.lr_find(num_it=8, show_plot=False)
    assert (decided.thresholds, decided.calibration, decided.evaluation) == (None, None, None)


@pytest.mark.parametrize('spoiled', ['loss', 'weights'])
def test_what_is_no_number_is_seen_before_weights_are_kept(make_learner, tmp_path, spoiled):
    "Where losses are looked at now and then only, as on a GPU"
    class Spoil(Callback):
        order = -10
        def after_loss(self):
            if spoiled == 'loss' and self.training and (self.epoch, self.iter) == (1, 2):
                self.learn.loss_grad = self.learn.loss_grad*float('nan')
        def after_batch(self):
            if spoiled == 'weights' and self.training and (self.epoch, self.iter) == (1, self.n_iter - 1):
                with torch.no_grad(): next(self.learn.model.parameters()).fill_(float('nan'))
    learn, file = make_learner(size=32), tmp_path/'checkpoint.pt'
    assert len(learn.dls.train) > 3
    cbs = [StopOnNaN(every=1000), Spoil(), AverageWeights(), KeepBest(), LogEpochs(), SaveEpochs(file)]
    with pytest.raises(TrainingError, match='of epoch 2.*last good epoch') as e: learn.fit(3, 1e-3, cbs=cbs)
    assert all(torch.isfinite(t).all() for t in get_weights(learn))
    state = read_checkpoint(file)
    assert state['epoch'] == 1
    assert all(torch.isfinite(t).all() for t in [*state['weights'], *state['parts']['best_weights']])
    if spoiled == 'weights': assert 'the last step left weights' in str(e.value)


def test_numbers_that_are_none_stop_it_at_once(make_learner):
    class Spoil(Callback):
        def after_pred(self):
            if self.training and (self.epoch, self.iter) == (1, 2): self.learn.pred = self.pred*float('nan')
    learn = make_learner(size=32, cbs=Spoil())
    with pytest.raises(TrainingError, match='step 3 of epoch 2.*learning rate'):
        learn.fit_progressive(sizes=(32,), epochs=3, verbose=False)
    assert all(torch.isfinite(t).all() for t in get_weights(learn)) and len(learn.training_log) == 1


@pytest.mark.parametrize('minutes', [None, .03])
def test_bars_for_terminals(make_learner, capsys, minutes):
    learn = make_learner(size=32, cbs=TrainingBar())
    learn.fit_progressive(sizes=(32,), epochs=2, minutes=minutes, verbose=False)
    learn.get_preds()
    err = capsys.readouterr().err
    assert err.count('training at 32 px: 100%') <= 1 and 'training at 32 px' in err and 'mean_ap=' in err
