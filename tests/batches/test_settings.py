"The way an input is made: one minimum and maximum for all channels, no normalisation, single cells; in bundles too."
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from cell_models import BOX, SQUARE, bundle_of, save_model
from hpa_fastai.basics.errors import HPAError
from hpa_fastai.batches.settings import CellCrop, ImageSettings, min_max
from hpa_fastai.data.reader import ImageReader
from hpa_fastai.deploy.bundle import BundleError
from hpa_fastai.deploy.loading import load_bundle, test_bundle as check_bundle
from hpa_fastai.deploy.onnx import export_onnx


@pytest.fixture
def pictures(): return torch.from_numpy(np.random.default_rng(0).integers(20, 200, (3, 4, 64, 64), dtype=np.uint8))


def test_one_minimum_and_maximum_for_all_channels(pictures):
    pictures[0, 1] //= 4
    pictures[2] = 77
    got = ImageSettings(ImageReader(), 64, minmax=True)(pictures).numpy()
    for picture, out in zip(pictures.numpy().astype(float)[:2], got):
        want = (picture-picture.min())/(picture.max()-picture.min())
        assert np.abs(out-want).max() < 1e-6
    assert not got[2].any()


def test_a_channel_that_is_not_taken_stays_black_and_does_not_count(pictures):
    pictures[:, 3] = 0
    three = ImageSettings(ImageReader(channels='gbr', missing='zero'), 64, minmax=True)
    assert three.channels == (1, 2, 0)
    out = three(pictures)
    assert not out[:, 3].any() and out[:, :3].amin() == 0 and out.amax() == 1
    assert ImageSettings(ImageReader(), 64, minmax=True)(pictures)[:, :3].amin() > .05
    named = ImageSettings(ImageReader(channels={'green': 0, 'blue': 'DAPI'}), 64, minmax=True)
    assert torch.equal(named(pictures), min_max(pictures/255, (1, 2)))


def test_pictures_of_a_batch_do_not_change_each_other(pictures):
    settings = ImageSettings(ImageReader(), 32, minmax=True)
    assert torch.equal(settings(pictures), torch.cat([settings(p[None]) for p in pictures]))


@pytest.mark.parametrize('crop, words', [
    (dict(size=4), 'from 8'), (dict(size=640, margin=20), 'fixed size has none'), (dict(margin=-1), 'from 0'),
    (dict(pixel_size=float('-inf')), 'µm per pixel'), (dict(pixel_size='0.08'), 'µm per pixel')])
def test_crops_that_cannot_be(crop, words):
    with pytest.raises(HPAError, match=words): CellCrop(**crop)


def test_minmax_stands_alone():
    with pytest.raises(HPAError, match='minmax replaces'):
        ImageSettings(size=64, minmax=True, mean=(0,)*4, std=(1,)*4)


@pytest.mark.parametrize('settings, words', [(BOX, 'bounding box and 20 px around it, at 0.32 µm'),
                                             (SQUARE, '640 px around it, at 0.08 µm')])
def test_a_bundle_keeps_them(tmp_path, pictures, settings, words):
    path = save_model(tmp_path/'model', settings)
    loaded = load_bundle(path)
    assert loaded.settings == settings and hash(loaded.settings) == hash(settings)
    assert check_bundle(path) < 1e-5
    assert np.allclose(loaded.probs(pictures), bundle_of(settings).probs(pictures), atol=1e-6)
    card = (path/'README.md').read_text(encoding='utf-8')
    assert words in card and settings.normalized_by in card and 'hpa_fastai cells FOLDER' in card


def test_bundles_from_before_load(tmp_path):
    settings = ImageSettings(ImageReader(size=64), 64)
    path = save_model(tmp_path/'model', settings)
    config = json.loads((path/'config.json').read_text())
    for name in ('minmax', 'crop'): del config['preprocess'][name]
    (path/'config.json').write_text(json.dumps(config))
    assert load_bundle(path).settings == settings


@pytest.mark.parametrize('change, words', [
    (dict(minmax=1), 'preprocess.minmax is 1'), (dict(minmax=True, mean=[0.]*4, std=[1.]*4), 'minmax replaces'),
    (dict(crop=dict(size=640)), "crop has no field 'margin'"),
    (dict(crop=dict(size=640, margin=3, pixel_size=None, masked=True)), 'fixed size has none'),
    (dict(crop=dict(size=None, margin=3, pixel_size=0., masked=True)), 'pixel_size')])
def test_settings_that_cannot_be_are_one_line(tmp_path, change, words):
    path = save_model(tmp_path/'model', ImageSettings(ImageReader(size=64), 64))
    config = json.loads((path/'config.json').read_text())
    config['preprocess'].update(change)
    (path/'config.json').write_text(json.dumps(config))
    with pytest.raises(BundleError, match=words) as e: load_bundle(path)
    assert '\n' not in str(e.value)


def test_the_onnx_graph_says_the_same(tmp_path, pictures):
    ort = pytest.importorskip('onnxruntime', reason='no onnxruntime: pip install onnx onnxruntime')
    few = ImageReader(channels='gb', missing='zero')
    smaller = ImageSettings(ImageReader(size=64), 48)  # three quarters of what is read: no whole number of pixels
    for k, settings in enumerate((SQUARE, replace(SQUARE, reader=few), BOX, smaller)):
        bundle = bundle_of(settings, arch='test_resnet')
        session = ort.InferenceSession(export_onnx(bundle, tmp_path/f'{k}.onnx'))
        pictures[2] = 77
        said = session.run(None, dict(images=pictures.numpy()))[0]
        assert np.abs(said-bundle.probs(pictures)).max() < 1e-4 and np.ptp(said, axis=0).max() > 1e-3


def test_loaders_train_with_it(small_atlas):
    from hpa_fastai.all import HPADataLoaders
    dls = HPADataLoaders.from_csv(small_atlas, size=32, bs=8, normalize='minmax', cache=False, progress=False)
    assert dls.settings.minmax and dls.settings_suffice()
    batch = dls.valid.one_batch()[0].as_subclass(torch.Tensor)
    assert batch.amin() >= 0 and batch.amax() <= 1 and (batch.amax((1, 2, 3)) == 1).all()
