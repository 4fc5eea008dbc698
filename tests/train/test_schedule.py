"Plans of a training: sizes, time, batches, memory."
import pytest
import torch

from hpa_fastai.all import HPAError, Stage, default_sizes, measure_steps, plan_stages
from hpa_fastai.train.callbacks import TrainingError
from hpa_fastai.train.schedule import stage_batch

from training import SmallMemory, copy, same


def test_sizes_grow_and_end_at_what_is_read():
    for size in (32, 48, 96, 128, 224, 512, 1024):
        sizes = default_sizes(size)
        assert list(sizes) == sorted(set(sizes)) and sizes[-1] == size and min(sizes) >= min(size, 32)


@pytest.mark.parametrize('per_pass', [3, 100, 10_000])
def test_a_plan_fills_its_time_for_any_amount_of_data(per_pass):
    seconds = [(.1, 2.), (.2, 4.), (.4, 8.)]
    plan = plan_stages((64, 96, 128), seconds, [1, 1, 2], 600, per_pass)
    spent = sum(s.epochs*(s.steps*step + valid) for s, (step, valid) in zip(plan, seconds))
    assert abs(spent/600 - 1) < .05
    assert [s.size for s in plan] == [64, 96, 128] and all(1 <= s.epochs <= 12 for s in plan)
    assert [s.part for s in plan] == [(0, .25), (.25, .5), (.5, 1)]


def test_no_time_at_all_still_gives_a_plan():
    assert plan_stages((64,), [(1., 10.)], [1], 1, 5) == [Stage(64, 1, 1, valid_seconds=10.)]


@pytest.mark.parametrize('n', [10, 300, 100_000])
def test_batches_are_never_smaller_than_asked_for(n):
    assert all(stage_batch(32, size, 256, n) >= 32 for size in (64, 128, 256)) and stage_batch(32, 256, 256, n) == 32


def test_measuring_leaves_the_model_alone(trained):
    learn, _ = trained
    before = copy(learn)
    measure_steps(learn)
    assert same(before, copy(learn))


def test_a_batch_larger_than_the_training_set(make_learner):
    learn = make_learner()
    learn.dls.train.bs = 10_000
    with pytest.raises(HPAError, match='fewer than a batch of 10000'): measure_steps(learn)


def test_too_little_memory_halves_the_batch(make_learner):
    learn = make_learner()
    learn.model[0].layers.insert(0, SmallMemory(5))
    with pytest.warns(UserWarning, match='with 8 images in a batch; continuing with 4'):
        learn.fit_progressive(sizes=(48,), epochs=1, verbose=False)
    assert len(learn.training_log) == 1 and learn.dls.train.bs == 16
    with pytest.warns(UserWarning, match='with 8 images in a batch; continuing with 4'):
        learn.fit_progressive(sizes=(48,), minutes=.03, lr='find', verbose=False)
    assert learn.training_log and learn.dls.train.bs == 16 and 1e-4 <= learn.history['lr'] <= 1e-2
    learn.model[0].layers[0].n = 1
    with pytest.raises(TrainingError, match='with only 2 images'):
        learn.fit_progressive(sizes=(48,), epochs=1, verbose=False)


def test_too_little_memory_leaves_no_half_precision(make_learner, monkeypatch):
    for room in ('schedule', 'callbacks', 'learner'):
        monkeypatch.setattr(f'hpa_fastai.train.{room}.amp_dtype', lambda *_: torch.bfloat16)
    learn = make_learner()
    learn.model[0].layers.insert(0, SmallMemory(5))
    with pytest.raises(torch.OutOfMemoryError): learn.fit(1, 1e-3)
    assert hasattr(learn, 'training_precision') and not torch.is_autocast_enabled('cpu')
