"Single cells cut out: the pixels of an independent computation, at every scale, at the edge, of every kind of file."
from dataclasses import replace

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from scipy import ndimage as ndi

from cell_models import BOX, SQUARE, bundle_of
from hpa_fastai.batches.settings import CellCrop
from hpa_fastai.cells.cells import predict_cells
from hpa_fastai.cells.crops import CellCrops, file_pixel_size
from hpa_fastai.cells.segmentation import CellError, segment_cells
from hpa_fastai.formats.names import CHANNELS
from hpa_fastai.data.reader import ImageReader
from hpa_fastai.simulate.atlas import simulate_fov


@pytest.fixture(scope='module')
def field():
    "Pixels, and the outlines that are found in them"
    img = simulate_fov([7], size=256, seed=3, difficulty='easy')[0]
    return img, segment_cells(img)


def thinned(plane, height, width):
    "Linear interpolation between the centres of pixels, without averaging: what OpenCV's INTER_LINEAR does"
    at = [np.clip((np.arange(n)+.5)*m/n-.5, 0, m-1) for n, m in zip((height, width), plane.shape)]
    low = [np.floor(a).astype(int) for a in at]
    high = [np.minimum(a+1, m-1) for a, m in zip(low, plane.shape)]
    (y, x), plane = [a-b for a, b in zip(at, low)], plane.astype(float)
    rows = plane[low[0]]*(1-y)[:, None]+plane[high[0]]*y[:, None]
    return np.rint(rows[:, low[1]]*(1-x)+rows[:, high[1]]*x)


def averaged(plane, height, width):
    "Averages over areas"
    return np.asarray(Image.fromarray(plane.astype(np.uint8)).resize((width, height), Image.BILINEAR)).astype(float)


def boxed(img, masks, cell, k, margin, size):
    "The bounding box of a cell in a picture that was reduced, and the margin as far as there is picture"
    h, w = (round(n*k) for n in masks.shape)
    masks = np.array([[masks[int(y/k), int(x/k)] for x in range(w)] for y in range(h)])
    ys, xs = np.nonzero(masks == cell)
    rows = slice(max(0, ys.min()-margin), min(h, ys.max()+1+margin))
    columns = slice(max(0, xs.min()-margin), min(w, xs.max()+1+margin))
    inside = (masks == cell)[rows, columns]
    return [thinned(thinned(plane, h, w)[rows, columns]*inside, size, size) for plane in img]


def squared(img, masks, cell, k, side, size):
    "A square around the middle of a cell, black where there is no picture"
    h, w = (round(n*k) for n in masks.shape)
    masks = np.asarray(Image.fromarray(masks).resize((w, h), Image.NEAREST))
    ys, xs = np.nonzero(masks == cell)
    top, left = (ys.min()+ys.max()+1-side)//2, (xs.min()+xs.max()+1-side)//2
    wide = np.zeros((4, h+2*side, w+2*side))
    wide[:, side:-side, side:-side] = [averaged(plane, h, w)*(masks == cell) for plane in img]
    return [averaged(plane, size, size) for plane in wide[:, top+side:top+2*side, left+side:left+2*side]]


@pytest.mark.parametrize('settings, by_hand, extent, pixel_size', [
    (BOX, boxed, 20, .16), (BOX, boxed, 20, None), (replace(BOX, size=128, crop=CellCrop(margin=3)), boxed, 3, None),
    (SQUARE, squared, 640, .16), (SQUARE, squared, 640, None),
    (replace(SQUARE, crop=CellCrop(100, pixel_size=.5)), squared, 100, .16)])
def test_the_pixels_of_every_cell(field, settings, by_hand, extent, pixel_size):
    img, masks = field
    cells = list(range(1, masks.max()+1))
    assert len(cells) > 5 and set(np.unique(masks[0])) != {0}  # some are cut by the edge
    cells = cells[::2]
    got = CellCrops(torch.from_numpy(img), masks, settings, pixel_size)(cells).numpy()
    k = (pixel_size or .64)/settings.crop.pixel_size if settings.crop.pixel_size else 1
    for cell, picture in zip(cells, got.astype(float)):
        want = np.array(by_hand(img, masks, cell, k, extent, settings.size))
        assert np.abs(picture-want).max() <= 2 and np.abs(picture-want).mean() < .3


def test_nothing_of_the_neighbours(field):
    "Pixels beyond the outline count for nothing, but for what interpolation takes from the nearest"
    img, masks = field
    other = np.where(ndi.binary_dilation(masks == 2, iterations=4), img, 255-img).astype(np.uint8)
    for settings in (BOX, SQUARE):
        seen = replace(settings, crop=replace(settings.crop, masked=False))
        pairs = [[CellCrops(torch.from_numpy(o), masks, s, .16)([2]) for o in (img, other)] for s in (settings, seen)]
        assert [torch.equal(a, b) for a, b in pairs] == [True, False]


def test_one_field_at_two_resolutions_is_one_field(field):
    "Unless anybody says otherwise, a small file is a whole field that was reduced"
    img, masks = field
    large, outlines = (np.repeat(np.repeat(a, 2, -2), 2, -1) for a in (img, masks))
    for settings in (BOX, SQUARE):
        pairs = (img, masks), (large, outlines)
        a, b = (CellCrops(torch.from_numpy(i), m, settings)([1, 4]).float() for i, m in pairs)
        assert (a-b).abs().mean() < 3
    assert [file_pixel_size(n, n) for n in (256, 512, 1499, 1500, 2048, 3072)] == [
        .64, .32, pytest.approx(.08*2048/1499), .08, .08, .08]


def test_nearly_the_same_scale_is_the_same(field):
    "0.08 µm a pixel for 0.0800885 is no reason to blur a picture"
    img, masks = field
    ways = [replace(SQUARE, size=640, crop=CellCrop(640, pixel_size=o)) for o in (.08, .0800885, None)]
    exact, near, file = (CellCrops(torch.from_numpy(img), masks, way, .08)([2]) for way in ways)
    assert torch.equal(exact, near) and torch.equal(exact, file)


def test_a_few_pixels_far_away_do_not_make_a_cell_small(field):
    img, masks = field
    strayed = masks.copy()
    far = np.argwhere(masks == 0)[-1] if (masks == 0).any() else np.array([255, 255])
    strayed[tuple(far)] = 2
    settings = replace(BOX, crop=CellCrop(margin=5))
    a, b = (CellCrops(torch.from_numpy(img), m, settings)([2]).float() for m in (masks, strayed))
    assert (a-b).abs().mean() < .5


def test_a_scale_that_no_memory_holds(field):
    img, masks = field
    with pytest.raises(CellError, match='is pixel_size in µm a pixel'):
        CellCrops(torch.from_numpy(img), masks, SQUARE, 80)


@pytest.mark.parametrize('bits', [8, 12, 16])
def test_the_same_cells_from_files_of_more_bits(tmp_path, field, bits):
    "A file of 12 bits in 16 is read by its own range, and without rounding"
    img, masks = field
    values = img if bits == 8 else img.astype(np.uint16)*(16 if bits == 12 else 257)
    for c, plane in zip(CHANNELS, values): tifffile.imwrite(tmp_path/f'a_{c}.tif', plane)
    reader = ImageReader(pixel_size=.16)
    for settings in (BOX, SQUARE):
        bundle = bundle_of(replace(settings, reader=reader))
        files = predict_cells(bundle, tmp_path, masks={'a': masks}, progress=False)
        pixels = predict_cells(bundle, img, masks=masks, progress=False)
        classes = list(bundle.labels.classes)
        difference = (files[classes]-pixels[classes]).abs().to_numpy().max()
        assert (files['error'] == '').all() and difference < (1e-6 if bits == 8 else .02)
        assert np.ptp(files[classes].to_numpy(), axis=0).max() > .05
