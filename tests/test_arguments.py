"Numbers that make no sense are told in one line by every function, before it does anything."
import numpy as np
import pytest

from hpa_fastai.all import (HPADataLoaders, HPAError, ImageReader, MultilabelStratifiedSplitter, Predictor, compare, create_model, find_images, monitor,
                            predict_cells, read_images, read_labels, run_demo, simulate_atlas, simulate_fov, stratified_folds, test_bundle as check_bundle, train_folds,
                            verify_images, watch)
from hpa_fastai.arguments import RANGES

WRONG = [-2, float('nan'), float('inf'), 10**20, 'many', True, [7.5], np.float32('nan')]


def doors(atlas, bundle, tmp):
    "Functions of one number, by the name that the message gives it"
    df = read_labels(atlas/'train.csv')
    from_df = lambda **number: HPADataLoaders.from_df(df, atlas/'train', cache=False, progress=False, **number)
    folds = lambda **number: train_folds(df, atlas/'train', tmp/'folds', **number)
    yield from ((name, from_df) for name in ('size', 'bs', 'valid_pct', 'fold', 'n_folds', 'seed', 'oversample', 'num_workers'))
    yield from ((name, folds) for name in ('n_folds', 'seed', 'size', 'bs', 'lr', 'minutes', 'epochs', 'dropout', 'oversample'))
    yield from ((name, lambda **number: compare(df, atlas/'train', tmp/'compared', archs=['lenet5'], **number)) for name in ('folds', 'n_folds', 'minutes'))
    yield from ((name, lambda **number: Predictor(bundle, **number)) for name in ('bs', 'n_workers'))
    yield from ((name, lambda **number: predict_cells(bundle, atlas/'train', **number)) for name in ('prior', 'diameter', 'pixel_size', 'bs', 'n_workers'))
    yield from ((name, lambda **number: simulate_atlas(tmp/'atlas', progress=False, **number)) for name in ('n', 'size', 'seed', 'n_workers'))
    yield from ((name, lambda **number: simulate_fov([0], **number)) for name in ('size', 'seed'))
    yield from ((name, lambda **number: watch(tmp, None, **number)) for name in ('timeout', 'settle'))
    yield from ((name, lambda **number: run_demo(tmp/'demo', **number)) for name in ('size', 'minutes'))
    yield from ((name, lambda **number: monitor(tmp/'p.csv', bundle, **number)) for name in ('most', 'alpha', 'seed'))
    yield 'n_folds', lambda n_folds: stratified_folds(df, n_folds)
    yield 'valid_pct', lambda valid_pct: MultilabelStratifiedSplitter(valid_pct)(df)
    yield 'n_workers', lambda n_workers: list(read_images(find_images(atlas/'train')[:1], ImageReader(size=32), n_workers))
    yield 'n_workers', lambda n_workers: verify_images(atlas/'train', n_workers=n_workers)
    yield 'tol', lambda tol: check_bundle(bundle, tol=tol)
    yield 'dropout', lambda dropout: create_model('lenet5', 28, False, 32, dropout=dropout)


def test_every_door_tells_a_wrong_number_in_one_line(small_atlas, trained, tmp_path):
    for name, door in doors(small_atlas, trained[1], tmp_path):
        for wrong in WRONG:
            if name == 'seed' and isinstance(wrong, list): continue  # simulate_fov takes a list of seeds
            with pytest.raises(HPAError, match=rf'^{name}: .* is not a (whole )?number from') as told: door(**{name: wrong})
            assert '\n' not in str(told.value) and len(str(told.value)) < 150
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('wrong', [dict(lr=-1), dict(lr=0), dict(lr=float('nan')), dict(epochs=0), dict(epochs=(1, 0), sizes=(32, 48)), dict(minutes=float('inf')), dict(sizes=(7,))])
def test_training_refuses_before_it_begins(trained, wrong):
    with pytest.raises(HPAError, match=f'^{next(iter(wrong))}: '): trained[0].fit_progressive(**{'sizes': (32,), **wrong})


@pytest.mark.parametrize('name', RANGES)
def test_numbers_of_numpy_become_those_of_python(name):
    from hpa_fastai.arguments import checked
    lo = max(RANGES[name].lo, 1e-3)
    given = np.int64(np.ceil(lo)) if RANGES[name].whole else np.float32(np.ceil(lo*1e4)/1e4)
    assert type(checked(**{name: given})) is (int if RANGES[name].whole else float)
