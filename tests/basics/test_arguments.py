"Numbers that make no sense are told in one line by every function, before it does anything."
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hpa_fastai.all import (HPADataLoaders, HPAError, ImageReader, MultilabelStratifiedSplitter, Predictor, compare,
                            create_model, evaluate_predictions, explore, find_images, get_labels, load_bundle, monitor,
                            predict, predict_cells, read_images, read_labels, read_predictions, report, run_demo,
                            simulate_atlas, simulate_fov, stratified_folds, test_bundle as check_bundle, train_folds,
                            verify_folder, watch)
from hpa_fastai.basics.arguments import RANGES
from hpa_fastai.deploy.saving import write_bundle
from hpa_fastai.data.image_tables import image_table
from hpa_fastai.formats.names import CHANNELS

WRONG = [-2, float('nan'), float('inf'), 10**20, 'many', True, [7.5], np.float32('nan')]


def doors(atlas, bundle, tmp):
    "Functions of one number, by the name that the message gives it"
    df = read_labels(atlas/'train.csv')
    images, quiet = atlas/'train', dict(progress=False)
    several = {
        'size bs valid_pct fold folds seed oversample most_draws num_workers':
            lambda **number: HPADataLoaders.from_df(df, images, cache=False, **quiet, **number),
        'folds seed size bs lr minutes epochs dropout oversample most_draws':
            lambda **number: train_folds(df, images, tmp/'folds', **number),
        'folds trained_folds minutes': lambda **number: compare(df, images, tmp/'compared', archs=['lenet5'], **number),
        'bs num_workers': lambda **number: Predictor(bundle, **number),
        'prior diameter pixel_size bs num_workers': lambda **number: predict_cells(bundle, images, **number),
        'n size seed num_workers': lambda **number: simulate_atlas(tmp/'atlas', **quiet, **number, difficulty='easy'),
        'size seed': lambda **number: simulate_fov([0], **number, difficulty='easy'),
        'timeout settle': lambda **number: watch(tmp, None, **number),
        'size minutes': lambda **number: run_demo(tmp/'demo', **number),
        'most alpha seed': lambda **number: monitor(tmp/'p.csv', bundle, **number)}
    for names,door in several.items():
        for name in names.split(): yield name, door
    yield 'folds', lambda folds: stratified_folds(df, folds)
    yield 'valid_pct', lambda valid_pct: MultilabelStratifiedSplitter(valid_pct)(df)
    yield 'num_workers', lambda num_workers: list(
        read_images(find_images(images)[:1], ImageReader(size=32), num_workers))
    yield 'num_workers', lambda num_workers: verify_folder(images, num_workers=num_workers)
    yield 'tol', lambda tol: check_bundle(bundle, tol=tol)
    yield 'dropout', lambda dropout: create_model('lenet5', 28, False, 32, dropout=dropout)


def test_every_door_tells_a_wrong_number_in_one_line(small_atlas, trained, tmp_path):
    for name, door in doors(small_atlas, trained[1], tmp_path):
        for wrong in WRONG:
            if name == 'seed' and isinstance(wrong, list): continue  # simulate_fov takes a list of seeds
            message = rf'^{name}: .* is not a (whole )?number from'
            with pytest.raises(HPAError, match=message) as e: door(**{name: wrong})
            assert '\n' not in str(e.value) and len(str(e.value)) < 150
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('wrong', [
    dict(lr=-1), dict(lr=0), dict(lr=float('nan')), dict(epochs=0), dict(epochs=(1, 0), sizes=(32, 48)),
    dict(minutes=float('inf')), dict(sizes=(7,))])
def test_training_refuses_before_it_begins(trained, wrong):
    settings = {'sizes': (32,), **wrong}
    with pytest.raises(HPAError, match=f'^{next(iter(wrong))}: '): trained[0].fit_progressive(**settings)


@pytest.mark.parametrize('name', RANGES)
def test_numbers_of_numpy_become_those_of_python(name):
    from hpa_fastai.basics.arguments import checked
    lo = max(RANGES[name].lo, 1e-3)
    given = np.int64(np.ceil(lo)) if RANGES[name].whole else np.float32(np.ceil(lo*1e4)/1e4)
    assert type(checked(**{name: given})) is (int if RANGES[name].whole else float)


@pytest.mark.parametrize('given', [dict(size=np.int64(64)), dict(bits=np.uint8(12)), dict(pixel_size=np.float32(.5))])
def test_readers_take_numbers_of_numpy(given):
    (name, number), = given.items()
    reader = ImageReader(**given)
    assert reader == ImageReader(**{name: number.item()}) and type(getattr(reader, name)) is type(number.item())


NO_PATHS = [None, ' ', 7, object()]
WITH_DEFAULTS = {'predict model', 'cells model', 'watch predictor', 'explore csv', 'from_csv csv', 'from_csv images'}


def path_doors(atlas, bundle, tmp):
    "Functions of one path, by the argument"
    df, predictor, learn_nothing = read_labels(atlas/'train.csv'), Predictor(bundle), dict(cache=False, progress=False)
    yield 'find_images source', find_images
    yield 'verify_folder folder', verify_folder
    yield 'explore folder', lambda o: explore(o, out=tmp/'e.html')
    yield 'explore csv', lambda o: explore(atlas, o, out=tmp/'e.html')
    yield 'explore out', lambda o: explore(atlas, out=o)
    yield 'report what', lambda o: report(o, tmp/'r.html')
    yield 'report out', lambda o: report(atlas, o)
    yield 'predict folder', predictor
    yield 'predict model', Predictor
    yield 'load_bundle', load_bundle
    yield 'test_bundle', check_bundle
    yield 'cells images', lambda o: predict_cells(predictor, o)
    yield 'cells model', lambda o: predict_cells(o, atlas/'train')
    yield 'watch folder', lambda o: watch(o, predictor)
    yield 'watch predictor', lambda o: watch(tmp, o, tmp/'w.csv', timeout=.1)
    yield 'watch out', lambda o: watch(tmp, predictor, o)
    yield 'simulate_atlas path', lambda o: simulate_atlas(o, n=1, difficulty='easy')
    yield 'run_demo out', lambda o: run_demo(o)
    yield 'train_folds out', lambda o: train_folds(df, atlas/'train', o)
    yield 'get_labels', get_labels
    yield 'read_labels', read_labels
    yield 'read_predictions', read_predictions
    yield 'evaluate_predictions', lambda o: evaluate_predictions(o, df)
    yield 'from_csv path', lambda o: HPADataLoaders.from_csv(o)
    yield 'from_csv csv', lambda o: HPADataLoaders.from_csv(atlas, o, **learn_nothing)
    yield 'from_csv images', lambda o: HPADataLoaders.from_csv(atlas, images=o, **learn_nothing)
    yield 'from_df df', lambda o: HPADataLoaders.from_df(o, atlas/'train', **learn_nothing)
    yield 'from_df images', lambda o: HPADataLoaders.from_df(df, o, **learn_nothing)
    yield 'save_bundle', lambda o: write_bundle(None, o, None)


def test_what_is_no_path_is_told_in_one_line_by_every_door(small_atlas, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, door in path_doors(small_atlas, trained[1], tmp_path):
        has_default = name in WITH_DEFAULTS
        for wrong in NO_PATHS[has_default:]:
            try: door(wrong)
            except HPAError as e: assert len(str(e)) < 200 and '\n' not in str(e), name
            else: pytest.fail(f'{name} takes {wrong!r}')
    for wrong in NO_PATHS[1:]:
        images, model = small_atlas/'train', trained[1]
        with pytest.raises(HPAError, match='^out: .* is not a path'): predict(images, model, wrong)
        with pytest.raises(HPAError, match='^out: .* is not a path'): predict_cells(model, images, out=wrong)
        with pytest.raises(HPAError, match='^masks: '):
            predict_cells(model, find_images(images)[:1], masks=wrong, progress=False)
    assert not list(tmp_path.iterdir())


class Named:
    def __init__(self, path): self.path = str(path)
    def __fspath__(self): return self.path


FORMS = ['~', 'bytes', 'PathLike', 'glob', 'keys', 'array', 'bytes of files', '~ of files', 'csv with ~']

@pytest.mark.parametrize('form', FORMS)
def test_a_folder_and_its_files_in_any_form_are_the_same(form, small_atlas, trained, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path/'some').mkdir()
    ids = find_images(small_atlas/'train').Id[:2].tolist()
    for i in ids:
        for f in sorted((small_atlas/'train').glob(f'{i}_*')): (tmp_path/'some'/f.name).symlink_to(f)
    folder, files = tmp_path/'some', sorted(map(str, (tmp_path/'some').iterdir()))
    paths = {c: [f'~/some/{i}_{c}.png' for i in ids] for c in CHANNELS}
    pd.DataFrame({'Id': ids, **paths}).to_csv(tmp_path/'paths.csv', index=False)
    forms = {
        '~': lambda: '~/some',
        'bytes': lambda: os.fsencode(folder),
        'PathLike': lambda: Named(folder),
        'glob': lambda: folder.glob('*'),
        'keys': lambda: dict.fromkeys(files).keys(),
        'array': lambda: np.array(files),
        'bytes of files': lambda: map(os.fsencode, files),
        '~ of files': lambda: [f'~/some/{Path(f).name}' for f in files],
        'csv with ~': lambda: '~/paths.csv'}
    source = forms[form]
    want = find_images(folder)
    for find in (find_images, image_table): assert find(source()).to_dict('records') == want.to_dict('records')
    assert not verify_folder(source(), progress=False).exit_code
    assert sorted(predict(source(), trained[1], '~/p.csv', progress=False).Id) == ids
    assert (tmp_path/'p.csv').is_file() and not (tmp_path/'~').exists()


def test_home_folders_in_paths_that_no_shell_saw(small_atlas, trained, tmp_path, monkeypatch):
    from hpa_fastai.cli.main import main
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path/'atlas').symlink_to(small_atlas)
    (tmp_path/'model').symlink_to(trained[1])
    assert len(load_bundle('~/model').labels) == 28 and len(Predictor(Path('~/model')).bundles) == 1
    settings = dict(size=32, cache=False, progress=False)
    dls = HPADataLoaders.from_csv('~/atlas', '~/atlas/train.csv', '~/atlas/train', **settings)
    assert len(dls.items) and len(read_labels('~/atlas/train.csv')) == 90
    simulate_atlas('~/simulated', n=1, size=32, difficulty='easy', progress=False)
    assert main(['predict', '~/simulated', '--model=~/model', '--out=~/p.csv', '--no-progress']) in (0, None)
    report('~/p.csv', '~/r.html')
    assert {o.name for o in tmp_path.iterdir()} >= {'simulated', 'p.csv', 'r.html'} and not (tmp_path/'~').exists()


def test_folders_in_a_list_of_files_are_not_passed_over(small_atlas, tmp_path):
    files = sorted((small_atlas/'train').iterdir())[:4]
    assert len(find_images([*files, small_atlas/'train', tmp_path])) == 1  # as a glob gives them
    (tmp_path/files[0].name).touch()
    with pytest.raises(HPAError, match='a folder in a list of files'): find_images([*files, tmp_path])
