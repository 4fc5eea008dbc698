"Masks: found under the names of other programs, read, checked, and written as text."
import base64
import os
import warnings
import zlib

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image, ImageFile

from hpa_fastai.cells.masks import *
from hpa_fastai.cells.segmentation import CellError
from hpa_fastai.data.files import find_images
from hpa_fastai.formats.names import CHANNELS
from hpa_fastai.simulate.atlas import simulate_fov
from microscopes import write_image_xpress, write_zarr_plate


@pytest.fixture(scope='module')
def truth(): return simulate_fov([0], size=256, seed=400, difficulty='easy')[1]


def test_masks_from_files(truth, tmp_path):
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


@pytest.mark.parametrize('name,options', [
    ('m.png', {}), ('m.tif', dict(compression='tiff_adobe_deflate')), ('m.tif', dict(compression='tiff_lzw')),
    ('m.tif', {})])
@pytest.mark.parametrize('loss', ['cut', 'zeros'])
def test_damaged_masks_are_refused(truth, tmp_path, name, options, loss, monkeypatch):
    truth = truth.astype(np.uint16)
    Image.fromarray(truth).save(tmp_path/name, **options)
    assert (read_mask(tmp_path/name) == truth).all()
    monkeypatch.setattr(ImageFile, 'LOAD_TRUNCATED_IMAGES', True)
    whole = (tmp_path/name).read_bytes()
    start, n = 0, len(whole)
    if name == 'm.tif':
        with tifffile.TiffFile(tmp_path/name) as tif:
            start, n = tif.pages[0].dataoffsets[-1], tif.pages[0].databytecounts[-1]
        if loss == 'zeros' and not options: pytest.skip('without sums nothing tells')
        if loss == 'cut' and start + n < len(whole): pytest.skip('tags are at the end')
    kept = start + n*4//5
    zeros = bytes(start + n - kept) + whole[start + n:]
    (tmp_path/name).write_bytes(whole[:kept] + (zeros if loss == 'zeros' else b''))
    why = 'damaged or cut off|not a mask that can be read'
    with pytest.raises(CellError, match=why): read_mask(tmp_path/name)


def test_masks_that_cannot_be(truth, tmp_path):
    np.save(tmp_path/'cellpose_seg.npy', dict(masks=truth))
    (tmp_path/'bad.png').write_bytes(b'nothing')
    refused = [
        (tmp_path/'cellpose_seg.npy', 'PNG or TIFF'), (tmp_path/'bad.png', 'bad.png'),
        (tmp_path/'none.tif', 'no such file'),
        (np.full((4, 4), -1), 'negative'), (np.zeros((2, 9, 9), int), 'H×W'), (np.full((4, 4), .5), 'whole number'),
        (np.eye(4)/3 + .1, 'whole number'), (np.full((4, 4), np.nan), 'whole number')]
    for bad, why in refused:
        with pytest.raises(CellError, match=why): read_mask(bad)
    with pytest.raises(CellError, match='this picture'): read_mask(np.ones((4, 8), int), 8, 8)


def _three_cells():
    "Three cells, 1 to 3, two of them at the edge"
    m = np.zeros((40, 40), np.uint8)
    m[0:9, 0:9], m[20:30, 20:30], m[35:, 35:] = 1, 2, 3
    return m


def _save_as(m, path, kind):
    "A label mask of three cells as other programs write it"
    grey, ground = Image.fromarray(m), m == 0
    match kind:
        case 'palette':
            image = Image.fromarray(m, 'P')
            image.putpalette([0, 0, 0, 250, 9, 9, 9, 250, 9, 9, 9, 250])
            image.save(path)
        case 'RGB': grey.convert('RGB').save(path)
        case 'RGBA': grey.convert('RGBA').save(path)
        case 'grey with alpha': grey.convert('LA').save(path)
        case 'red alone': Image.merge('RGB', [grey, *[Image.new('L', grey.size)]*2]).save(path)
        case '0 and 255': Image.fromarray(np.where(ground, 0, 255).astype(np.uint8)).save(path)
        case '0 and 1': Image.fromarray((~ground).astype(np.uint8)).save(path)
        case '1-bit': Image.fromarray(~ground).save(path)
        case 'RGB of 0 and 255': Image.fromarray(np.where(ground, 0, 255).astype(np.uint8)).convert('RGB').save(path)
        case 'float': tifffile.imwrite(path.with_suffix('.tif'), m.astype(np.float32))
        case 'float of 0 and 0.5':
            tifffile.imwrite(path.with_suffix('.tif'), np.where(ground, 0, .5).astype(np.float32))
        case 'one plane deep': tifffile.imwrite(path.with_suffix('.tif'), m[None, None].astype(np.uint16))
        case 'bool': np.save(path.with_suffix('.npy'), ~ground)


@pytest.mark.parametrize('kind', [
    'palette', 'RGB', 'RGBA', 'grey with alpha', 'red alone', '0 and 255', '0 and 1', '1-bit', 'RGB of 0 and 255',
    'float', 'float of 0 and 0.5', 'one plane deep', 'bool'])
def test_masks_of_every_kind_have_one_number_a_cell(tmp_path, kind):
    m, path = _three_cells(), tmp_path/'A1_mask.png'
    _save_as(m, path, kind)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        found = find_masks(tmp_path, ['A1'])['A1']
        read, large = read_mask(found), read_mask(found, 80, 80)
    assert read.dtype == np.int32 and (read == m).all() and large.max() == 3
    two_values = kind in ('0 and 255', '0 and 1', '1-bit', 'RGB of 0 and 255', 'float of 0 and 0.5', 'bool')
    assert any('each area that is connected is taken for a cell' in str(w.message) for w in caught) == two_values


def test_one_cell_alone_keeps_its_number():
    m = np.where(_three_cells() == 2, 7, 0)
    assert (read_mask(m) == m).all() and (read_mask(np.ones((9, 9), int)) == 1).all()


@pytest.mark.parametrize('mask,why', [
    (np.where(_three_cells() == 2, 2, 1), '1, 2'),  # of ilastik: classes from 1
    (np.where(_three_cells() == 2, 0, 255), '0 does not lie between the cells'),  # black on white
    (np.where(_three_cells() == 2, 5, 1) + (_three_cells() == 1), 'nothing in it is 0'),  # a background of 1
    (np.stack([np.eye(9), np.eye(9)[::-1], np.zeros((9, 9))], -1).astype(np.uint8)*255, 'picture in colours')])
def test_masks_with_another_background_are_refused_with_a_word(mask, why):
    with pytest.raises(CellError, match=why): read_mask(mask)


MASK_NAMES = [
    '{}.png', '{}_cp_masks.png', '{}_cp_masks.tif', '{}_blue_cp_masks.png', '{}_mask.png', '{}_masks.tif',
    '{}_cellmask.png', '{}_cell_mask.png', '{}_nucleimask.png', '{}_segmentation.png', '{}_label.tif', '{}_labels.tif',
    '{}-labels.png', '{}_Simple Segmentation.tif', '{}_Object Predictions.png', '{}_predictedmask.png',
    '{}_StarDist.tif', 'masks/{}.png', 'masks/{}_blue_cp_masks.png']


@pytest.mark.parametrize('name', MASK_NAMES)
@pytest.mark.parametrize('where', ['beside', 'elsewhere'])
def test_masks_are_found_under_the_names_that_programs_give(tmp_path, name, where):
    images = tmp_path/'images'
    images.mkdir()
    for i in ('A1', 'A2'):
        for c in ('red', 'green', 'blue', 'yellow'): (images/f'{i}_{c}.png').touch()
    folder = images if where == 'beside' else tmp_path/'other'
    for i in ('A1', 'A2'):
        file = folder/name.format(i)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        for n in ('_cp_outlines.png', '_flows.tif', '_cp_output.png'): (folder/f'{i}{n}').touch()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        table = find_images(images)
    assert list(table.Id) == ['A1', 'A2']
    assert find_masks(folder, table.Id, table) == {i: folder/name.format(i) for i in ('A1', 'A2')}


def test_masks_of_plates_and_of_files_called_otherwise(tmp_path):
    for n in ('p1/A1_mask.png', 'p2/A1_mask.png', 'p2/B1.png', 'r07_cp_masks.png', 'e\u0301_mask.png'):
        (tmp_path/n).parent.mkdir(exist_ok=True)
        (tmp_path/n).touch()
    found = find_masks(tmp_path, ['p1/A1', 'p2/A1', 'B1', 'é'])
    assert {i: p.relative_to(tmp_path).as_posix() for i,p in found.items()} == {
        'p1/A1': 'p1/A1_mask.png', 'p2/A1': 'p2/A1_mask.png', 'B1': 'p2/B1.png', 'é': 'e\u0301_mask.png'}
    table = pd.DataFrame(dict(Id=['well 7'], red='x/r07.tif', green='x/g07.tif', blue='x/b07.tif', yellow=None))
    assert find_masks(tmp_path, table.Id, table) == {'well 7': tmp_path/'r07_cp_masks.png'}


def test_cells_before_nuclei_and_never_a_picture(tmp_path):
    for n in ('A1_nucleimask.png', 'A1_cellmask.png', 'A1.png'): (tmp_path/n).touch()
    assert find_masks(tmp_path, ['A1'])['A1'].name == 'A1_cellmask.png'
    os.mkfifo(tmp_path/'B1_mask.png')
    with pytest.raises(CellError, match='no masks'): find_masks(tmp_path, ['B1'])
    single = pd.DataFrame(dict(Id=['A1'], **dict.fromkeys(CHANNELS, str(tmp_path/'A1.png'))))
    for n in ('A1_nucleimask.png', 'A1_cellmask.png'): (tmp_path/n).unlink()
    with pytest.raises(CellError, match='no masks'): find_masks(tmp_path, single.Id, single)


def test_text_is_what_pycocotools_writes(truth):
    coco = pytest.importorskip('pycocotools._mask')
    rng = np.random.default_rng(0)
    masks = [truth] + [np.ones((5, 7), int), rng.integers(0, 4, (33, 17)), np.eye(9, dtype=int)*3]
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


@pytest.mark.parametrize('shape', [(0, 9), (9, 0), (0, 0)])
def test_a_mask_without_pixels_is_refused(tmp_path, shape):
    np.save(tmp_path/'a.npy', np.zeros(shape, np.int32))
    with pytest.raises(CellError, match='a mask is H×W'): read_mask(tmp_path/'a.npy')


@pytest.mark.filterwarnings('ignore::UserWarning')
def test_a_field_inside_a_file_has_its_mask_by_its_id(truth, tmp_path):
    folder = tmp_path/'masks'
    folder.mkdir()
    mask = Image.fromarray(truth.astype(np.uint8))
    for name in ('0.png', 'run.png'): mask.save(folder/name)  # called like a part of a plate, and like a file with many
    plate = find_images(write_zarr_plate(tmp_path/'plate'/'p.zarr', n_fields=1).parent)
    inside = pd.DataFrame(dict(Id=['run_004'], layout='single', **dict.fromkeys(CHANNELS, f'{tmp_path}/run.lif#3')))
    for table in (plate, inside):
        with pytest.raises(CellError, match='no masks'): find_masks(folder, table.Id, table)
        mask.save(folder/f'{table.Id[0]}_cellmask.png')
        assert find_masks(folder, table.Id, table) == {table.Id[0]: folder/f'{table.Id[0]}_cellmask.png'}


@pytest.mark.filterwarnings('ignore::UserWarning')
def test_planes_of_a_stack_are_no_masks(tmp_path):
    table = find_images(write_image_xpress(tmp_path/'plate', planes=3))
    planes = tmp_path/'plate'/'TimePoint_1'/'ZStep_2'
    with pytest.raises(CellError, match='no masks'): find_masks(planes, table.Id, table)
