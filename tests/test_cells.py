"Cells: outlines of simulated cells, masks from files, the text of the 2021 competition, predictions a cell."
import base64
import subprocess
import sys
import zlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hpa_fastai.cells import *
from hpa_fastai.simulate import simulate_fov


@pytest.fixture(scope='module')
def fovs(): return [simulate_fov([k], size=256, seed=400 + k) for k in (0, 6, 21, 25)]


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


def test_text_is_what_pycocotools_writes(fovs):
    coco = pytest.importorskip('pycocotools._mask')
    rng = np.random.default_rng(0)
    masks = [t for _, t in fovs] + [np.ones((5, 7), int), rng.integers(0, 4, (33, 17)), np.eye(9, dtype=int)*3]
    for m in masks:
        texts = encode_masks(m)
        assert list(texts) == [i for i in np.unique(m) if i]
        for i, text in texts.items():
            counts = coco.encode(np.asfortranarray((m == i).astype(np.uint8)[:, :, None]))[0]['counts']
            assert text == base64.b64encode(zlib.compress(counts, zlib.Z_BEST_COMPRESSION)).decode()
            assert (decode_mask(text, m.shape[1], m.shape[0]) == (m == i)).all()


@pytest.mark.parametrize('width,height,text', [
    (1118, 1600, 'eNqLi8xJM7BOTjS08DT2NfI38DfyM/Q3NMAJgJJ+RkBs7JecF5tnAADw+Q9I'),
    (1600, 1066, 'eNqLiYrLN7DNCjDMMIj0N/Iz9DcwBEIDfyN/QyA2AAsBRfxMPcKTA1MMADVADIo=')], ids=['first', 'second'])
def test_published_examples(width, height, text):
    m = decode_mask(text, width, height)
    assert m.shape == (height, width) and 0 < m.sum() < 2000
    ys, xs = np.nonzero(m)
    assert np.ptp(ys) < 60 and np.ptp(xs) < 60  # one compact thing: rows and columns are not mixed up
    assert encode_masks(m.astype(int)) == {1: text}


@pytest.mark.parametrize('text', ['', 'not base64!', 'aGVsbG8=', base64.b64encode(zlib.compress(b'5')).decode()])
def test_text_that_is_no_mask(text):
    with pytest.raises(CellError): decode_mask(text, 10, 10)


def test_masks_from_files(fovs, tmp_path):
    import tifffile
    _, truth = fovs[0]
    Image.fromarray(truth.astype(np.uint8)).save(tmp_path/'a.png')
    Image.fromarray((truth*50).astype(np.uint16)).save(tmp_path/'b_cellmask.png')
    tifffile.imwrite(tmp_path/'c_blue_cp_masks.tif', truth.astype(np.uint16))
    np.save(tmp_path/'d.npy', truth)
    found = find_masks(tmp_path, list('abcde'))
    assert list(found) == list('abcd')
    for p in found.values(): assert ((read_mask(p) > 0) == (truth > 0)).all()
    assert (read_mask(found['b']) == truth*50).all()  # numbers are kept
    half = read_mask(found['d'], 128, 128)
    assert half.shape == (128, 128) and set(np.unique(half)) <= set(np.unique(truth))
    with pytest.raises(CellError, match='no masks'): find_masks(tmp_path, ['x'])


def test_masks_that_cannot_be(fovs, tmp_path):
    np.save(tmp_path/'cellpose_seg.npy', dict(masks=fovs[0][1]))
    (tmp_path/'bad.png').write_bytes(b'nothing')
    for bad, why in ((tmp_path/'cellpose_seg.npy', 'PNG or TIFF'), (tmp_path/'bad.png', 'bad.png'), (tmp_path/'none.tif', 'no such file'),
                     (np.ones((4, 4), bool), 'whole number'), (np.full((4, 4), -1), 'negative'), (np.zeros((2, 4, 4), int), 'H×W'),
                     (np.full((4, 4), .5), 'whole number')):
        with pytest.raises(CellError, match=why): read_mask(bad)
    with pytest.raises(CellError, match='this picture'): read_mask(np.ones((4, 8), int), 8, 8)
