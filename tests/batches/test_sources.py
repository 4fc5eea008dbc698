"Normalising by source: a model sees the same cells whichever microscope is brighter, in training and in prediction."

import shutil
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from fastai.learner import load_learner
from fastai.torch_core import set_seed
from PIL import Image

from hpa_fastai.all import CHANNELS, HPADataLoaders, HPAError, attach_images, export_onnx, find_images
from hpa_fastai.all import hpa_learner, load_bundle, predict, read_labels
from hpa_fastai.batches.sources import Sources, _state, read_pictures, sources_of
from hpa_fastai.data.reader import ImageReader
from hpa_fastai.deploy.predictor import Predictor
from hpa_fastai.interpret.activation import activation_maps
from hpa_fastai.interpret.drift import run_traits
from hpa_fastai.interpret.explore import channel_stats
from microscopes import write_image_xpress, write_yokogawa, write_zarr_plate


@pytest.fixture(autouse=True)
def kept_here(tmp_path, monkeypatch):
    "Figures are kept in the folder of the test"
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'home'))
    return tmp_path / 'home' / 'hpa_fastai' / 'sources'


@pytest.fixture(scope='module')
def two_microscopes(small_atlas, tmp_path_factory):
    "The same cells in two folders, half as bright in the second; and the table of labels"
    folder = tmp_path_factory.mktemp('microscopes')
    for name in ('bright', 'dim'):
        (folder / name).mkdir()
    df = read_labels(small_atlas / 'train.csv')
    for i in df.Id:
        for c in CHANNELS:
            img = np.asarray(Image.open(small_atlas / 'train' / f'{i}_{c}.png'))
            Image.fromarray(img - img % 2).save(folder / 'bright' / f'{i}_{c}.png')
            Image.fromarray(img // 2).save(folder / 'dim' / f'd{i}_{c}.png')
    both = pd.concat([df, df.assign(Id='d' + df.Id)], ignore_index=True)
    return folder, both, folder / 'cache'


def loaders(folder, df, cache, **kwargs):
    settings = dict(size=48, bs=16, normalize='source', augment=False, progress=False, num_workers=0)
    return HPADataLoaders.from_df(df, folder, cache=cache, **settings, **kwargs)


@pytest.mark.parametrize('cached', [True, False])
def test_sources_look_alike_and_pictures_keep_their_brightness(two_microscopes, cached):
    folder, df, cache = two_microscopes
    dls = loaders(folder, df, cache if cached else False)
    items, xs = dls.valid_ds.items, torch.cat([x for x, _ in dls.valid]).as_subclass(torch.Tensor)
    dim = items.Id.str.startswith('d').to_numpy()
    assert abs(xs[dim].std() / xs[~dim].std() - 1) < 0.2, 'twice as bright would be twice the deviation'
    assert xs.std((2, 3)).std() > 0.05, 'normalised picture by picture'
    assert not hasattr(dls.one_batch()[0], 'figures') and dls.settings.source


def test_the_model_predicts_what_it_validated(two_microscopes, tmp_path, kept_here):
    folder, df, cache = two_microscopes
    set_seed(0)
    dls = loaders(folder, df, cache)
    learn = hpa_learner(dls, 'lenet5', pretrained=False)
    with learn.no_bar(), learn.no_logging():
        learn.fit_progressive(sizes=(48,), epochs=2, verbose=False)
        learn.fit_thresholds()
        learn.save_bundle(tmp_path / 'model')
        probs, _ = learn.get_preds()
    found = predict(folder, model=tmp_path / 'model', progress=False).set_index('Id')
    said = found.loc[dls.valid_ds.items.Id, list(dls.labels.classes)].to_numpy(float)
    assert np.abs(said - probs.numpy()).max() < 0.02  # the figures are measured on other pictures of the same source
    both = found.loc[df.Id[:90]], found.loc['d' + df.Id[:90]]
    probs = [o[list(dls.labels.classes)].to_numpy(float) for o in both]
    assert np.abs(probs[0] - probs[1]).max() < 0.05
    one = find_images(folder / 'dim')[:1]
    def alone(): return Predictor(tmp_path / 'model')(one)[list(dls.labels.classes)].to_numpy(float)
    in_folder = found.loc[one.Id, list(dls.labels.classes)].to_numpy(float)
    assert np.abs(alone() - in_folder).max() < 1e-5
    shutil.rmtree(kept_here)  # a picture whose folder was never seen is a source of its own
    assert np.abs(alone() - in_folder).max() > 1e-4
    shutil.rmtree(kept_here)
    assert np.isfinite(activation_maps(tmp_path / 'model', find_images(folder / 'dim')[:2])).all()
    ids, traits, embs = run_traits(find_images(folder / 'dim')[:8], load_bundle(tmp_path / 'model'))
    assert len(ids) == 8 and np.isfinite(embs).all()
    assert 'the figures of their source' in (tmp_path / 'model' / 'README.md').read_text()
    with pytest.raises(HPAError, match='an ONNX graph does not know'):
        export_onnx(tmp_path / 'model', tmp_path / 'm.onnx')
    black = torch.zeros(2, 4, 48, 48, dtype=torch.uint8)
    with torch.no_grad():
        assert np.isfinite(load_bundle(tmp_path / 'model').probs(black)).all()


@pytest.fixture
def by_source(trained):
    "A model that normalises by source"
    b = load_bundle(trained[1])
    return replace(b, settings=replace(b.settings, mean=(0.1,) * 4, std=(0.1,) * 4, source=True))


def test_a_picture_alone_is_normalised_as_it_was_among_the_others(two_microscopes, tmp_path):
    "Each of a few pictures gives the same answer in training, in a folder and alone, and after an export"
    folder = two_microscopes[0] / 'dim'
    df = two_microscopes[1].iloc[90:114].reset_index(drop=True)
    set_seed(0)
    learn = hpa_learner(loaders(folder, df, tmp_path / 'cache', valid_pct=0.3), 'lenet5', pretrained=False)
    ids, table = learn.dls.valid_ds.items.Id.tolist(), attach_images(df, folder)
    with learn.no_bar():
        want, _ = learn.get_preds()
    in_folder = predict(table, model=learn, progress=False).set_index('Id').loc[ids, list(learn.dls.labels.classes)]
    alone = [learn.predict(i)[2] for i in ids], [learn.predict(table[table.Id == i].iloc[0])[2] for i in ids]
    learn.export((tmp_path / 'export.pkl').absolute())
    loaded = load_learner(tmp_path / 'export.pkl')
    after = [loaded.predict(table[table.Id == i].iloc[0])[2] for i in ids]
    for probs in (in_folder.to_numpy(float), *map(np.stack, (*alone, after))):
        assert np.abs(probs - want.numpy()).max() < 1e-5


def pictures(n, brightness, seed=0):
    return [(brightness * np.random.default_rng(seed + i).random((4, 48, 48))).astype(np.uint8) for i in range(n)]


def write(folder, arrays):
    folder.mkdir(exist_ok=True)
    for i, a in enumerate(arrays):
        for c, plane in zip(CHANNELS, a):
            Image.fromarray(plane).save(folder / f'p{i}_{c}.png')
    return folder


def test_pictures_in_memory_are_normalised_by_those_of_their_call(by_source):
    served = Predictor(by_source, device='cpu')
    for arrays in (pictures(40, 30), pictures(40, 250), pictures(3, 120)):
        want = Predictor(by_source, device='cpu')(arrays)
        pd.testing.assert_frame_equal(served(arrays), want)


def test_figures_are_those_of_the_files_as_they_are(by_source, tmp_path):
    "A predictor that stays loaded says what a new one says, whatever happens in a folder"
    served = Predictor(by_source, device='cpu')

    def same(folder):
        pd.testing.assert_frame_equal(served(folder), Predictor(by_source, device='cpu')(folder))

    folder = write(tmp_path / 'plate', pictures(40, 30))
    same(folder)
    same(write(folder, pictures(40, 250)))  # the same names, other pixels
    write(folder, pictures(70, 60, seed=7))  # more of them
    same(folder)
    for f in folder.glob('p?_*.png'):
        f.unlink()  # and fewer
    same(folder)


def test_what_was_measured_serves_a_source_that_grows(by_source, tmp_path):
    "Watching does not measure again, but for files that were written anew"
    reader, looked = by_source.settings.reader, []
    sources = Sources(reader)

    def read(rows):
        looked.append(len(rows))
        return read_pictures(rows, reader)

    table = find_images(write(tmp_path / 'plate', pictures(60, 30)))
    first = sources.figures(table[:40].reset_index(drop=True), read)
    for k in range(40, 60, 4):
        assert (sources.figures(table[k : k + 4].reset_index(drop=True), read) == first[0]).all()
    assert looked == [40]
    write(tmp_path / 'plate', pictures(60, 250))
    assert (sources.figures(table[40:].reset_index(drop=True), read) > first[0]).all() and len(looked) == 2


def test_a_column_names_the_sources(two_microscopes):
    folder, df, cache = two_microscopes
    dls = loaders(folder, df.assign(plate=np.where(df.Id.str.startswith('d'), 'p1', 'p2')), cache, source='plate')
    assert set(dls.train.sources.known) == {'p1', 'p2'}
    with pytest.raises(HPAError, match="no column 'well'"):
        loaders(folder, df, cache, source='well')


def test_a_broken_picture_does_not_spoil_its_source(two_microscopes, tmp_path):
    shutil.copytree(two_microscopes[0] / 'dim', tmp_path / 'some')
    table = find_images(tmp_path / 'some')
    (tmp_path / 'some' / f'{table.Id[0]}_green.png').write_bytes(b'no picture')
    reader = ImageReader(size=48)
    assert np.allclose(Sources(reader).figures(table)[0], Sources(reader).figures(table[1:].reset_index(drop=True))[0])
    assert np.isnan(Sources(reader).figures(table[:1])).all()


def told_by(call):
    "What a call returns, and the warnings about brightness"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        found = call()
    return found, [t for w in told if '--normalize training' in (t := str(w.message))]


@pytest.mark.parametrize('n', [12, 40])
@pytest.mark.parametrize('first', ['whole', 'half'])
def test_halves_of_a_folder_are_normalised_as_the_whole(by_source, tmp_path, n, first):
    "In either order, with few pictures and with many; each call is of a program of its own"
    dim, bright = pictures(n // 2, 60), pictures(n // 2, 250, seed=99)
    table = find_images(write(tmp_path / 'plate', [*dim, *bright]))
    parts = [table[table.index % 2 == k].reset_index(drop=True) for k in (0, 1)]
    def predicted(rows): return Predictor(by_source, device='cpu')(rows).set_index('Id').iloc[:, 2:30].astype(float)
    if first == 'whole': whole = predicted(table)
    halves = [pd.concat([predicted(part) for part in parts]) for _ in range(2)]
    if first == 'half' and n < 32: whole = predicted(table)  # 40 are enough, and are measured as a whole
    pd.testing.assert_frame_equal(halves[0], halves[1])
    if first == 'whole' or n < 32: assert np.abs(halves[0].loc[whole.index] - whole).to_numpy().max() < 1e-5
    if first == 'half': return  # the first half was measured
    anew = Predictor(by_source, device='cpu', normalize='measure')(parts[0]).set_index('Id').iloc[:, 2:30].astype(float)
    assert np.abs(anew - halves[0].loc[anew.index]).to_numpy().max() > 1e-4


def test_few_pictures_and_proteins_of_one_kind_are_noted(by_source, tmp_path):
    few, usual = write(tmp_path / 'few', pictures(5, 100)), write(tmp_path / 'usual', pictures(40, 100))
    found, told = told_by(lambda: Predictor(by_source, device='cpu')(few))
    assert len(told) == 1 and 'measured on 5 pictures' in told[0] and 'is kept until more' in told[0]
    assert told_by(lambda: Predictor(by_source, device='cpu')(few))[1] == told  # as long as they are used
    assert told_by(lambda: Predictor(by_source, device='cpu')(usual))[1] == []
    arrays = pictures(40, 100)
    for a in arrays: a[1] //= 2
    _, told = told_by(lambda: Predictor(by_source, device='cpu')(write(tmp_path / 'faint', arrays)))
    assert len(told) == 1 and 'the protein varies 0.5 times as much as in training' in told[0]
    _, told = told_by(lambda: Predictor(by_source, device='cpu')(pictures(3, 100)))
    assert len(told) == 1 and 'is measured at each call' in told[0]


def test_figures_of_training_do_not_depend_on_the_folder(by_source, trained, tmp_path):
    table = find_images(write(tmp_path / 'plate', [*pictures(20, 40), *pictures(20, 250, seed=50)]))
    fixed = Predictor(by_source, device='cpu', normalize='training')
    (whole, alone), told = told_by(lambda: (fixed(table), fixed(table[3:4].reset_index(drop=True))))
    pd.testing.assert_frame_equal(alone.iloc[:, 3:31], whole.iloc[3:4, 3:31].reset_index(drop=True), atol=1e-5)
    assert told == [] and not list((tmp_path / 'home').rglob('*.json'))
    other = predict(table, by_source, normalize='model', progress=False)
    assert np.abs(other.iloc[:, 3:31].astype(float) - whole.iloc[:, 3:31].astype(float)).to_numpy().max() > 1e-4
    assert fixed.about() == {**Predictor(by_source, device='cpu').about(), 'normalize': 'training'}
    with pytest.raises(HPAError, match="normalises by each picture: leave it out"):
        Predictor(trained[1], normalize='training')
    with pytest.raises(HPAError, match="'image' is not one of"):
        Predictor(by_source, normalize='image')


def test_what_is_kept_belongs_to_pictures_and_settings(tmp_path, kept_here):
    reader, folder = ImageReader(size=48), write(tmp_path / 'plate', pictures(40, 60))
    table = find_images(folder)
    def figures(rows=table, reader=reader): return Sources(reader, keep=True).figures(rows, part=False)[0]
    first = figures()
    assert (figures(table[:9]) == first).all() and len(list(kept_here.iterdir())) == 1
    assert (figures(table[:9], ImageReader(size=48, bits=12)) != first).any()  # read otherwise
    other = find_images(write(tmp_path / 'other', pictures(40, 200)))
    named = [figures(t.assign(source='A')) for t in (table, other)]  # the same name in two folders
    assert (named[0] == first).all() and (named[1] > first).all()
    for file in kept_here.iterdir(): file.write_text('{"figures": [1')
    assert (figures() == first).all()
    write(folder, pictures(40, 200))
    assert (figures() == figures(other)).all()
    shutil.rmtree(kept_here)
    kept_here.write_text('no folder')  # nothing can be kept, and nothing fails
    assert (figures() == figures(other)).all()


def test_few_pictures_at_a_time_add_up_while_a_microscope_writes(tmp_path):
    reader, table = ImageReader(size=48), find_images(write(tmp_path / 'plate', pictures(40, 60)))
    watching, looked = Sources(reader, keep=True), []
    def read(rows):
        looked.append(len(rows))
        return read_pictures(rows, reader)
    for k in range(0, 40, 4): last = watching.figures(table[k : k + 4].reset_index(drop=True), read)
    assert looked == [4] * 8  # 32 are enough
    assert np.allclose(last[0], Sources(reader).figures(table[:32])[0], atol=1e-6)
    assert (Sources(reader, keep=True).figures(table, read, part=False)[0] == last[0]).all() and len(looked) == 8


def test_a_plate_is_one_source_however_it_is_stored(tmp_path):
    write_image_xpress(tmp_path / 'stack', ('C03', 'C04'), sites=2, planes=2)
    write_zarr_plate(tmp_path / 'p.zarr', ('C/3', 'D/4'))
    assert set(sources_of(find_images(tmp_path / 'stack'))) == {'plate7'}
    both = find_images(tmp_path)
    assert set(sources_of(both)) == {'plate7', str(tmp_path / 'p.zarr')}
    both = both.drop(columns='plate')
    assert set(sources_of(both)) == {str(tmp_path / 'stack' / 'TimePoint_1' / 'ZStep_1'), str(tmp_path / 'p.zarr')}
    stats = channel_stats(find_images(tmp_path), reader=ImageReader(z='max'))
    assert stats.groupby('source').Id.nunique().tolist() == [4, 4]


def write_zarr_values(folder, divide=1):
    import zarr
    write_zarr_plate(folder / 'p.zarr')
    for field in (folder / 'p.zarr' / 'C' / '3').glob('[0-9]'):
        pixels = zarr.open_array(str(field / '0'), mode='r+')
        pixels[:] = pixels[:] // divide


@pytest.mark.parametrize('write_plate', [
    lambda folder: write_yokogawa(folder, n_fields=2, planes=3),
    lambda folder: write_image_xpress(folder, sites=2, planes=2),
    write_zarr_values,
], ids=['CellVoyager', 'ImageXpress', 'OME-Zarr'])
def test_figures_are_measured_again_when_the_files_of_a_plate_change(write_plate, tmp_path):
    write_plate(tmp_path / 'plate')
    table = find_images(tmp_path / 'plate')
    def figures(): return Sources(ImageReader(size=48, z='max'), keep=True).figures(table, part=False)[0]
    first = figures()
    assert (figures() == first).all()
    for file in (tmp_path / 'plate').rglob('*.[tT][iI][fF]'): tifffile.imwrite(file, tifffile.imread(file) // 4)
    if write_plate is write_zarr_values: write_zarr_values(tmp_path / 'plate', 4)
    assert (figures() < first).any()


def test_any_plane_or_position_file_counts(tmp_path):
    for name in ('z1.tif', 'z2.tif', 'x.lif'): (tmp_path / name).write_bytes(b'first')
    for address, file in ((f'{tmp_path}/z1.tif|z2.tif', 'z2.tif'), (f'{tmp_path}/x.lif#3', 'x.lif')):
        before = _state((address,) * 4)
        (tmp_path / file).write_bytes(b'written again')
        assert None not in before and _state((address,) * 4) != before
