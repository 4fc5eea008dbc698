"Segmentation: outlines of simulated cells, at every size and kind of picture."
import sys

import numpy as np
import pytest
from PIL import Image

from hpa_fastai.cells.segmentation import *
from hpa_fastai.data.files import find_images
from hpa_fastai.data.reader import FULL_PIXEL
from hpa_fastai.batches.tensors import read_image
from hpa_fastai.cells.masks import encode_masks
from hpa_fastai.simulate.atlas import simulate_fov


@pytest.fixture(scope='module')
def fovs(): return [simulate_fov([k], size=256, seed=400 + k, difficulty='easy') for k in (0, 6, 21, 25)]


def test_outlines_agree_with_the_truth(fovs):
    rows = [compare_masks(t, segment_cells(a)) for a, t in fovs]
    pairs = sum(r['pairs'] for r in rows)
    assert 2*pairs/sum(r['truth'] + r['found'] for r in rows) > .8
    assert sum(r['pairs']*r['iou'] for r in rows)/pairs > .8


@pytest.mark.parametrize('size', [128, 512, 1024])
def test_size_of_the_picture_does_not_matter(fovs, size):
    img = fovs[1][0]
    large = np.stack([np.asarray(Image.fromarray(p).resize((size, size), Image.BILINEAR)) for p in img])
    a, b = segment_cells(img), segment_cells(large)
    assert b.shape == (size, size)
    small = np.asarray(Image.fromarray(b).resize((256, 256), Image.NEAREST))
    assert compare_masks(a, small)['f1'] > .9


def test_the_protein_has_no_say(fovs):
    img = fovs[0][0].copy()
    a = segment_cells(img)
    img[1] = np.random.default_rng(0).integers(0, 256, img[1].shape)
    assert (segment_cells(img) == a).all()


def test_turning_the_picture_turns_the_outlines(fovs):
    img, _ = fovs[2]
    turned = segment_cells(np.ascontiguousarray(img[:, ::-1]))
    assert compare_masks(segment_cells(img), turned[::-1])['f1'] > .9


def test_float_and_16_bit_pictures_give_the_same(fovs):
    img, _ = fovs[3]
    a = segment_cells(img)
    assert (segment_cells(img/np.float32(255)) == a).mean() > .999
    assert (segment_cells(img.astype(np.uint16)*257) == a).mean() > .999


def test_scale_is_measured_or_given(fovs):
    img, _ = fovs[0]
    d = nucleus_diameter(img[2].astype(float))
    assert 8 < d*82/256 < 18  # µm
    assert compare_masks(segment_cells(img), segment_cells(img, pixel_size=82/256))['f1'] > .8
    assert (segment_cells(img, diameter=d) == segment_cells(img)).all()
    for bad in (dict(diameter=0), dict(pixel_size=-1), dict(pixel_size=80), dict(border='cut')):
        with pytest.raises(CellError) as e: segment_cells(img, **bad)
        assert len(str(e.value).splitlines()) == 1


def test_cells_at_the_border(fovs):
    img, _ = fovs[1]
    every, nucleus, whole = (segment_cells(img, border=b) for b in ('all', 'nucleus', 'drop'))
    assert len(touches_border(every)) and not len(touches_border(whole))
    assert every.max() > nucleus.max() > whole.max() > 0
    assert ((whole > 0) <= (every > 0)).all()
    blue = img[2] > 60
    assert all(blue[nucleus == i].any() for i in range(1, nucleus.max() + 1))


@pytest.mark.parametrize('img', [np.zeros((4, 100, 130), np.uint8), np.full((4, 100, 130), 90, np.uint8),
                                 np.random.default_rng(0).poisson(4, (4, 200, 150)).astype(np.uint8),
                                 np.random.default_rng(0).integers(0, 4, (4, 40, 40)).astype(np.uint8)],
                         ids=['black', 'even', 'noise', 'tiny'])
def test_no_cells(img):
    m = segment_cells(img)
    assert m.shape == img.shape[1:] and m.max() == 0 and encode_masks(m) == {}
    assert segment_cells(img, diameter=20).max() == 0


def test_missing_landmarks(fovs):
    img, truth = fovs[0]
    no_er = img.copy()
    no_er[3] = 0
    assert compare_masks(segment_cells(img), segment_cells(no_er))['f1'] > .6
    no_er[0] = 0
    assert 0 < segment_cells(no_er).max() <= truth.max()


def test_not_a_field_of_view():
    with pytest.raises(CellError, match='4×H×W'): segment_cells(np.zeros((3, 64, 64), np.uint8))


def test_without_scikit_image(monkeypatch, fovs):
    monkeypatch.setitem(sys.modules, 'skimage.filters', None)
    with pytest.raises(CellError, match=r"pip install 'hpa_fastai\[cells\]'"): segment_cells(fovs[0][0])


def test_real_cells(real_data):
    "Every nucleus has its cell, cells are as large as cells are"
    for folder in ('hpav18_jpg', 'kaggle_png'):
        for _, row in find_images(real_data/'native'/folder).iterrows():
            img = read_image(row)
            m = segment_cells(img, border='nucleus')
            area = np.bincount(m.ravel())[1:]*FULL_PIXEL**2
            assert 5 < m.max() < 40 and 300 < np.median(area) < 3000  # µm²
            bright = img[2].numpy() > np.percentile(img[2], 99)/2
            assert (m[bright] > 0).mean() > .95
