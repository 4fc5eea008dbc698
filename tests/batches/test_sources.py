"Normalising by source: a model sees the same cells whichever microscope is brighter, in training and in prediction."

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.learner import load_learner
from fastai.torch_core import set_seed
from PIL import Image

from hpa_fastai.all import CHANNELS, HPADataLoaders, HPAError, attach_images, export_onnx, find_images
from hpa_fastai.all import hpa_learner, load_bundle, predict, read_labels
from hpa_fastai.batches.sources import Sources, read_pictures
from hpa_fastai.data.reader import ImageReader
from hpa_fastai.deploy.predictor import Predictor
from hpa_fastai.interpret.activation import activation_maps
from hpa_fastai.interpret.drift import run_traits


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


def test_the_model_predicts_what_it_validated(two_microscopes, tmp_path):
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
    # one picture alone is a source of its own, and a picture with others of its plate is not
    one = find_images(folder / 'dim')[:1]
    tables = one, find_images(folder / 'dim')
    alone, together = (Predictor(tmp_path / 'model')(t).set_index('Id').loc[one.Id] for t in tables)
    assert np.abs(alone.iloc[0, 2:30].to_numpy(float) - together.iloc[0, 2:30].to_numpy(float)).max() > 1e-4
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
