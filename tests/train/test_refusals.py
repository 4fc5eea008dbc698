"What a learner refuses when it is made, in words that say what to do, and what it takes in several forms."
from functools import partial

import pytest
import torch
from fastai import metrics
from fastai.callback.progress import ProgressCallback
from fastai.learner import load_learner
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat, FocalLossFlat, LabelSmoothingCrossEntropy
from fastai.vision.learner import vision_learner
from fastai.vision.models.xresnet import xresnet18
from torch import nn
from torchvision.models import resnet18

from hpa_fastai.all import HPAError, HPALearner, MacroF1, MeanAP, auto_learner, hpa_learner, predict, train_model


@pytest.mark.parametrize('name', ['APScoreMulti', 'BrierScoreMulti', 'F1ScoreMulti', 'HammingLossMulti',
                                  'JaccardMulti', 'PrecisionMulti', 'RecallMulti', 'RocAucMulti'])
@pytest.mark.filterwarnings('ignore')
def test_metrics_of_fastai_for_several_labels(make_learner, name):
    learn = make_learner(size=32, metrics=getattr(metrics, name)())
    learn.fit(1, 1e-3)
    assert len(learn.recorder.values[-1]) == 3


@pytest.mark.parametrize('made, said', [
    (lambda: metrics.F1Score(), 'ends in Multi'), (lambda: metrics.RocAuc(), 'ends in Multi'),
    (lambda: metrics.APScoreMulti(sigmoid=False), 'leave sigmoid=False away'),
    (lambda: metrics.MatthewsCorrCoefMulti(), 'one class an image only'),
    (lambda: metrics.DiceMulti(), 'is for masks'), (lambda: 'macro_f2', "did you mean 'macro_f1'")])
def test_metrics_that_have_no_meaning(make_learner, made, said):
    with pytest.raises(HPAError, match=said): make_learner(metrics=made())


def test_metrics_by_name(make_learner):
    assert [type(m) for m in make_learner(metrics=['macro_f1', 'mean_ap']).metrics] == [MacroF1, MeanAP]
    assert [type(m) for m in make_learner(metrics='macro_f1').metrics] == [MacroF1]


@pytest.mark.parametrize('loss', [CrossEntropyLossFlat(), FocalLossFlat(), LabelSmoothingCrossEntropy(),
                                  nn.CrossEntropyLoss(), nn.functional.cross_entropy, nn.CrossEntropyLoss,
                                  partial(nn.CrossEntropyLoss)])
def test_losses_for_one_class_an_image(make_learner, loaders, loss):
    with pytest.raises(HPAError, match='one class an image'): make_learner(loss_func=loss)
    with pytest.raises(HPAError, match='one class an image'): HPALearner(loaders, nn.Linear(4, 28), loss_func=loss)


def test_losses_that_suit(make_learner):
    with pytest.raises(HPAError, match=r'BCEWithLogitsLoss\(\)'): make_learner(loss_func=nn.BCEWithLogitsLoss)
    with pytest.raises(HPAError, match=r'BCEWithLogitsLoss\(\)'): make_learner(loss_func=partial(nn.BCEWithLogitsLoss))
    for loss in (BCEWithLogitsLossFlat(), nn.BCEWithLogitsLoss(), lambda p, t: (p - t).abs().mean()):
        make_learner(loss_func=loss)


def test_rates_that_are_none(make_learner):
    for lr in (0, -1, 'high', True):
        with pytest.raises(HPAError, match=f'lr: {lr!r} is not a number'): make_learner(lr=lr)
    assert [make_learner(lr=lr).lr for lr in (None, .01, slice(1e-4, 1e-2))] == [3e-3, .01, slice(1e-4, 1e-2)]


def test_networks_without_a_name(loaders):
    assert hpa_learner(loaders, resnet18, pretrained=False).model.config['arch'] == 'resnet18'
    def resnet34(**kwargs): return nn.Linear(1, 1)
    for arch, said in ((nn.Sequential(nn.Linear(4, 28)), 'a network .Sequential.'), (resnet34, 'resnet34 is not'),
                       (xresnet18, r'such as xresnet18\(c_in=4, n_out=28\)')):
        with pytest.raises(HPAError, match=said) as e: hpa_learner(loaders, arch, pretrained=False)
        assert 'HPALearner(dls, model)' in str(e.value)
    learn = HPALearner(loaders, xresnet18(c_in=4, n_out=28))
    learn.remove_cb(ProgressCallback)
    with learn.no_logging(): learn.fit(1, 1e-3)


def test_loaders_that_were_made_to_normalise_three_channels(loaders):
    vision_learner(loaders, resnet18, n_out=28, pretrained=False)
    hpa_learner(loaders, 'lenet5', pretrained=False)
    from fastai.data.transforms import Normalize
    loaders.add_tfms([Normalize.from_stats(*[[.5]*3]*2, cuda=False)], 'after_batch')  # as with pretrained weights
    with pytest.raises(HPAError, match='normalise three channels.*Make the loaders again.*n_in=4'):
        hpa_learner(loaders, 'lenet5', pretrained=False)


def test_unknown_arguments_are_answered(small_atlas, make_learner):
    for given, said in ((dict(batch_size=3), 'say bs'), (dict(dry_run=True), 'hpa_fastai predict --dry-run'),
                        (dict(modle='m'), 'did you mean model')):
        with pytest.raises(HPAError, match=said): predict(small_atlas/'train', **given)
    with pytest.raises(HPAError, match='say lr'): train_model(small_atlas, learning_rate=1)
    with pytest.raises(HPAError, match='say epochs'): make_learner().fit_progressive(n_epoch=3)


def test_rates_are_the_same_everywhere(make_learner):
    assert make_learner().lr == 3e-3 and make_learner('smallresnet', pretrained=True).lr == 1e-3
    with pytest.raises(HPAError, match="or 'find'.*fit_one_cycle and fit take a slice"):
        make_learner().fit_progressive(lr=slice(1e-4, 1e-3))


def test_foreign_loaders_are_refused_before_anything_is_said(capsys):
    with pytest.raises(HPAError, match='auto_learner takes loaders'): auto_learner(object())
    assert capsys.readouterr().out == ''


def test_a_calibration_says_that_it_removes_thresholds(make_learner, recwarn):
    learn = make_learner(size=32)
    learn.calibrate('platt')
    assert not [w for w in recwarn if 'thresholds' in str(w.message)]
    learn.fit_thresholds()
    with pytest.warns(UserWarning, match='thresholds fitted .* before.*learn.fit_thresholds'): learn.calibrate('platt')
    assert learn.thresholds is None


def test_an_exported_learner_knows_no_ids(make_learner, small_atlas, tmp_path):
    learn = make_learner(size=32)
    one = learn.dls.valid_ds.items.Id.iloc[0]
    learn.predict(one)
    learn.export(tmp_path/'e.pkl')
    again = load_learner(tmp_path/'e.pkl')
    with pytest.raises(HPAError, match='exported learner knows no Ids'): again.predict(one)
    assert torch.is_tensor(again.predict(small_atlas/'train'/f'{one}_green.png')[2])
