"Macro F1 while a network trains: of all validation images, watched by fastai's callbacks, at a stated threshold"
from functools import partial

import numpy as np
import pytest
import torch
from fastai.vision.all import (
    CSVLogger, EarlyStoppingCallback, F1Score, F1ScoreMulti, ReduceLROnPlateau, SaveModelCallback, accuracy,
    accuracy_multi, error_rate, vision_learner)

from hpa_fastai.all import HPAError, MacroF1, MeanAP, MicroF1, SampleF1, macro_f1, mean_ap, micro_f1, sample_f1
from hpa_fastai.evaluate.metrics import MetricError, average_precision, f1_scores, simulate_scores
from hpa_fastai.train.losses import get_loss


def train(learn, n=1, **kwargs):
    with learn.no_bar(): learn.fit(n, 3e-3, **kwargs)
    return learn


def test_macro_f1_stands_beside_mean_ap_and_is_that_of_the_whole_set(make_learner):
    learn = train(make_learner())
    assert learn.recorder.metric_names == ['epoch', 'train_loss', 'valid_loss', 'mean_ap', 'macro_f1', 'time']
    shown = learn.recorder.values[-1][3]
    with learn.no_bar(): probs, targets = (o.numpy() for o in learn.get_preds(act=torch.sigmoid))
    best = max(macro_f1(probs > t, targets) for t in np.arange(1, 100)/100)
    assert shown == pytest.approx(best, abs=1e-6)
    assert learn.metrics[1].threshold in np.arange(1, 100)/100


@pytest.mark.parametrize('kind,score', [(MacroF1, macro_f1), (MicroF1, micro_f1), (SampleF1, sample_f1)])
def test_threshold_is_the_best_one_or_the_one_that_is_given(kind, score):
    probs, targets = simulate_scores(300, seed=3)
    p, t = torch.tensor(probs), torch.tensor(targets).float()
    assert kind()(p, t) == pytest.approx(max(score(probs > k, targets) for k in np.arange(1, 100)/100), abs=1e-9)
    assert kind(.3)(p, t) == pytest.approx(score(probs > .3, targets), abs=1e-9)
    by_class = np.linspace(.1, .9, 28)
    assert kind(by_class)(p, t) == pytest.approx(score(probs > by_class, targets), abs=1e-9)


def test_class_that_stands_alone_is_decided_as_it_will_be(make_learner):
    "A picture of 'Negative' and another class counts as what the saved model will say of it"
    learn = make_learner()
    metric = MacroF1(.5)
    metric.exclusive = 0
    metric.reset()
    metric.accum_values(torch.tensor([[.9, .6], [.6, .9]]), torch.tensor([[1., 0], [0, 1]]))
    assert metric.value == 1
    assert learn.metrics[1].exclusive is None


def test_callbacks_of_fastai_understand_them(make_learner, tmp_path, capsys):
    learn = make_learner()
    train(learn, 2, cbs=[SaveModelCallback(monitor='macro_f1', fname='best'), ReduceLROnPlateau(monitor='macro_f1'),
                         EarlyStoppingCallback(monitor='mean_ap', patience=5), CSVLogger()])
    assert (tmp_path/'models'/'best.pth').exists()
    assert 'with macro_f1 value' in capsys.readouterr().out
    assert 'mean_ap,macro_f1' in (tmp_path/'history.csv').read_text()


def test_callback_that_watches_what_nobody_measures_is_refused_before_training(make_learner):
    learn = make_learner(metrics=[partial(accuracy_multi, thresh=.2)])
    message = r"SaveModelCallback: monitor='macro_f1' is not measured; what is measured is train_loss, valid_loss, accu"
    with pytest.raises(HPAError, match=message): learn.fit_one_cycle(1, cbs=SaveModelCallback(monitor='macro_f1'))
    learn.add_cb(EarlyStoppingCallback(monitor='f1'))
    with pytest.raises(HPAError, match="EarlyStoppingCallback: monitor='f1'"): learn.fine_tune(1)


def test_scores_are_understood_as_metrics(make_learner):
    learn = make_learner(metrics=[macro_f1, partial(macro_f1, thresh=.3), micro_f1, sample_f1, mean_ap, MacroF1,
                                  F1ScoreMulti(thresh=.2), partial(accuracy_multi, thresh=.2)])
    kinds = [type(m).__name__ for m in learn.metrics]
    assert kinds[:6] == ['MacroF1', 'MacroF1', 'MicroF1', 'SampleF1', 'MeanAP', 'MacroF1']
    assert learn.metrics[1].thresh == .3
    train(learn)
    assert all(np.isfinite(learn.recorder.values[-1][2:]))
    learn.metrics = micro_f1
    assert [m.name for m in learn.metrics] == ['micro_f1']


@pytest.mark.parametrize('metric,instead', [
    (accuracy, 'accuracy_multi'), (error_rate, 'accuracy_multi'), (partial(accuracy, axis=1), 'accuracy_multi'),
    (F1Score(), 'ends in Multi'), (average_precision, 'take mean_ap'), (f1_scores, 'take macro_f1')])
def test_metrics_that_mean_something_else_name_the_right_one(make_learner, metric, instead):
    with pytest.raises(HPAError, match=instead): make_learner(metrics=metric)


def test_stock_learner_is_told_which_metric_to_take(loaders):
    learn = vision_learner(loaders, 'resnet10t', n_in=4, n_out=28, pretrained=False, normalize=False,
                           loss_func=get_loss('focal'), metrics=[MeanAP(), MacroF1()])
    with learn.no_bar(), learn.no_logging():
        learn.validate()
        learn.metrics = macro_f1
        with pytest.raises(MetricError, match=r'MacroF1\(\)'): learn.validate()


def test_what_cannot_be_scored_is_nan_and_no_end_of_a_training():
    for metric in (MeanAP(), MacroF1(), SampleF1(.5)):
        p, t = torch.rand(6, 3), (torch.rand(6, 3) > .5).float()
        assert np.isfinite(metric(p, t))
        assert np.isnan(metric(torch.full((6, 3), float('nan')), t))
        assert np.isnan(metric(p, torch.zeros(6, 3)))


def test_a_figure_is_computed_once_an_epoch(make_learner):
    asked = []
    class Counting(MacroF1):
        def score_decisions(self, probs, targets): asked.append(1); return super().score_decisions(probs, targets)
    learn = make_learner(metrics=Counting())
    learn.logger = lambda *_: None
    train(learn, 2)
    assert len(asked) == 2
