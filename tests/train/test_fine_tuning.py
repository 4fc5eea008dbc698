"What of a pretrained network is kept."
import pytest
import torch

from hpa_fastai.all import hpa_learner, worth_fine_tuning
from hpa_fastai.train import fine_tuning
from hpa_fastai.train.callbacks import copy_weights, get_weights


def test_what_is_worth_fine_tuning(loaders, monkeypatch):
    learn = hpa_learner(loaders, 'smallresnet')
    assert not worth_fine_tuning(learn) and worth_fine_tuning(hpa_learner(loaders, 'smallresnet', pretrained=False))
    monkeypatch.setattr(fine_tuning, 'FEW', len(loaders.train_ds))
    assert worth_fine_tuning(learn), 'there are enough'


def test_what_interrupts_going_back_leaves_the_trained_weights(loaders, monkeypatch):
    learn = hpa_learner(loaders, 'smallresnet')
    start = learn.start_weights
    with torch.no_grad(): learn.model[1][-1].weight += 1
    trained, losses = copy_weights(learn), iter([torch.ones(3)])
    monkeypatch.setattr(fine_tuning, 'validation_losses', lambda learn: next(losses))
    with pytest.raises(StopIteration): fine_tuning.average_with_start(learn, start)
    assert all(torch.equal(a, b) for a, b in zip(trained, get_weights(learn)))


def test_going_back_towards_the_start_is_no_training_to_other_callbacks(make_learner, tmp_path):
    from fastai.callback.all import CSVLogger, SaveModelCallback
    learn = make_learner('smallresnet', 32, True, cbs=[SaveModelCallback(monitor='mean_ap'), CSVLogger()])
    learn.fit_progressive(sizes=(32,), epochs=2, verbose=False)
    assert 0 <= learn.history['kept_of_start'] <= 1 and learn.start_weights is None
    assert len(learn.recorder.values[-1]) == 2+len(learn.metrics) and learn.recorder.losses
    assert (tmp_path/'history.csv').read_text().count('\n') == 3, 'a heading and two epochs'
