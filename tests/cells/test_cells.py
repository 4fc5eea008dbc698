"Cells: outlines of simulated cells, masks from files, the text of the 2021 competition, predictions a cell."
import base64
import os
import subprocess
import sys
import zlib
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hpa_fastai.deploy.loading import load_bundle
from hpa_fastai.cells.segmentation import *
from hpa_fastai.cells.masks import *
from hpa_fastai.cells.cells import *
from hpa_fastai.simulate.atlas import simulate_fov
from hpa_fastai.evaluate.thresholds import plain_thresholds


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


@pytest.mark.parametrize('name,options', [('m.png', {}), ('m.tif', dict(compression='tiff_adobe_deflate')), ('m.tif', dict(compression='tiff_lzw')), ('m.tif', {})])
@pytest.mark.parametrize('loss', ['cut', 'zeros'])
def test_damaged_masks_are_refused(fovs, tmp_path, name, options, loss, monkeypatch):
    from PIL import ImageFile
    truth = fovs[0][1].astype(np.uint16)
    Image.fromarray(truth).save(tmp_path/name, **options)
    assert (read_mask(tmp_path/name) == truth).all()
    monkeypatch.setattr(ImageFile, 'LOAD_TRUNCATED_IMAGES', True)
    whole = (tmp_path/name).read_bytes()
    start, n = 0, len(whole)
    if name == 'm.tif':
        import tifffile
        with tifffile.TiffFile(tmp_path/name) as tif: start, n = tif.pages[0].dataoffsets[-1], tif.pages[0].databytecounts[-1]
        if loss == 'zeros' and not options: pytest.skip('without sums nothing tells')
        if loss == 'cut' and start + n < len(whole): pytest.skip('tags are at the end')
    kept = start + n*4//5
    (tmp_path/name).write_bytes(whole[:kept] + (bytes(start + n - kept) + whole[start + n:] if loss == 'zeros' else b''))
    with pytest.raises(CellError, match='damaged or cut off|not a mask that can be read'): read_mask(tmp_path/name)


def test_masks_that_cannot_be(fovs, tmp_path):
    np.save(tmp_path/'cellpose_seg.npy', dict(masks=fovs[0][1]))
    (tmp_path/'bad.png').write_bytes(b'nothing')
    for bad, why in ((tmp_path/'cellpose_seg.npy', 'PNG or TIFF'), (tmp_path/'bad.png', 'bad.png'), (tmp_path/'none.tif', 'no such file'),
                     (np.full((4, 4), -1), 'negative'), (np.zeros((2, 9, 9), int), 'H×W'), (np.full((4, 4), .5), 'whole number'), (np.eye(4)/3+.1, 'whole number'), (np.full((4, 4), np.nan), 'whole number')):
        with pytest.raises(CellError, match=why): read_mask(bad)
    with pytest.raises(CellError, match='this picture'): read_mask(np.ones((4, 8), int), 8, 8)


def _three_cells():
    "Three cells, 1 to 3, two of them at the edge"
    m = np.zeros((40, 40), np.uint8)
    m[0:9, 0:9], m[20:30, 20:30], m[35:, 35:] = 1, 2, 3
    return m


def _save_as(m, path, kind):
    "A label mask of three cells as other programs write it"
    import tifffile
    from PIL import Image
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
        case 'float of 0 and 0.5': tifffile.imwrite(path.with_suffix('.tif'), np.where(ground, 0, .5).astype(np.float32))
        case 'one plane deep': tifffile.imwrite(path.with_suffix('.tif'), m[None, None].astype(np.uint16))
        case 'bool': np.save(path.with_suffix('.npy'), ~ground)


@pytest.mark.parametrize('kind', ['palette', 'RGB', 'RGBA', 'grey with alpha', 'red alone', '0 and 255', '0 and 1', '1-bit', 'RGB of 0 and 255', 'float',
                                  'float of 0 and 0.5', 'one plane deep', 'bool'])
def test_masks_of_every_kind_have_one_number_a_cell(tmp_path, kind):
    import warnings
    m, path = _three_cells(), tmp_path/'A1_mask.png'
    _save_as(m, path, kind)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        found = find_masks(tmp_path, ['A1'])['A1']
        read, large = read_mask(found), read_mask(found, 80, 80)
    assert read.dtype == np.int32 and (read == m).all() and large.max() == 3
    two_values = kind in ('0 and 255', '0 and 1', '1-bit', 'RGB of 0 and 255', 'float of 0 and 0.5', 'bool')
    assert any('each area that is connected is taken for a cell' in str(w.message) for w in told) == two_values


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


MASK_NAMES = ['{}.png', '{}_cp_masks.png', '{}_cp_masks.tif', '{}_blue_cp_masks.png', '{}_mask.png', '{}_masks.tif', '{}_cellmask.png', '{}_cell_mask.png', '{}_nucleimask.png',
              '{}_segmentation.png', '{}_label.tif', '{}_labels.tif', '{}-labels.png', '{}_Simple Segmentation.tif', '{}_Object Predictions.png', '{}_predictedmask.png',
              '{}_StarDist.tif', 'masks/{}.png', 'masks/{}_blue_cp_masks.png']


@pytest.mark.parametrize('name', MASK_NAMES)
@pytest.mark.parametrize('where', ['beside', 'elsewhere'])
def test_masks_are_found_under_the_names_that_programs_give(tmp_path, name, where):
    import warnings
    from hpa_fastai.data.files import find_images
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
    assert {i: p.relative_to(tmp_path).as_posix() for i,p in found.items()} == {'p1/A1': 'p1/A1_mask.png', 'p2/A1': 'p2/A1_mask.png', 'B1': 'p2/B1.png', 'é': 'e\u0301_mask.png'}
    table = pd.DataFrame(dict(Id=['well 7'], red='x/r07.tif', green='x/g07.tif', blue='x/b07.tif', yellow=None))
    assert find_masks(tmp_path, table.Id, table) == {'well 7': tmp_path/'r07_cp_masks.png'}


def test_cells_before_nuclei_and_never_a_picture(tmp_path):
    for n in ('A1_nucleimask.png', 'A1_cellmask.png', 'A1.png'): (tmp_path/n).touch()
    assert find_masks(tmp_path, ['A1'])['A1'].name == 'A1_cellmask.png'
    os.mkfifo(tmp_path/'B1_mask.png')
    with pytest.raises(CellError, match='no masks'): find_masks(tmp_path, ['B1'])
    single = pd.DataFrame(dict(Id=['A1'], **dict.fromkeys(('red', 'green', 'blue', 'yellow'), str(tmp_path/'A1.png'))))
    (tmp_path/'A1_nucleimask.png').unlink(), (tmp_path/'A1_cellmask.png').unlink()
    with pytest.raises(CellError, match='no masks'): find_masks(tmp_path, single.Id, single)


@pytest.fixture
def plate(small_atlas, tmp_path):
    "Three fields of view, and the masks that belong to them"
    import shutil
    from hpa_fastai.data.files import find_images
    (tmp_path/'plate').mkdir()
    for _, row in find_images(small_atlas/'train').head(3).iterrows():
        for c in ('red', 'green', 'blue', 'yellow'): shutil.copy(row[c], tmp_path/'plate')
    return tmp_path/'plate'


def test_a_row_a_cell(plate, trained, tmp_path):
    from hpa_fastai.data.files import find_images
    from hpa_fastai.data.tensors import read_image
    from hpa_fastai.data.labels import HPA28
    df = predict_cells(trained[1], plate, out=tmp_path/'cells.csv', progress=False)
    classes = list(HPA28.classes)
    assert list(df) == ['Id', 'cell', 'x', 'y', 'area', 'border', 'width', 'height', 'Predicted', 'Names', *classes, 'mask', 'error']
    table = find_images(plate)
    assert df.Id.unique().tolist() == table.Id.tolist() and (df['error'] == '').all()
    for id_, rows in df.groupby('Id'):
        m = segment_cells(read_image(table[table.Id == id_].iloc[0]))
        assert rows.cell.tolist() == list(range(1, m.max() + 1))
        for _, r in rows.iterrows():
            own = decode_mask(r['mask'], r.width, r.height)
            assert (own == (m == r.cell)).all() and own.sum() == r.area
            assert r.border == (own[[0, -1]].any() or own[:, [0, -1]].any())
            ys, xs = np.nonzero(own)
            assert abs(r.x - xs.mean()) < .1 and abs(r.y - ys.mean()) < .1
    saved = pd.read_csv(tmp_path/'cells.csv', keep_default_na=False)
    assert len(saved) == len(df) and np.abs(saved[classes].to_numpy(float) - df[classes].to_numpy(float)).max() < 1e-6
    with pytest.raises(ValueError, match='exists'): predict_cells(trained[1], plate, out=tmp_path/'cells.csv', progress=False)


def test_a_killed_run_goes_on(plate, trained, tmp_path):
    "Killed after the first field of view, the same command ends with the same bytes"
    import time
    from hpa_fastai.data.files import find_images
    from hpa_fastai.deploy.tables import ResultError, read_cells
    whole = predict_cells(trained[1], plate, out=tmp_path/'whole.csv', progress=False)
    code = f"""import time, hpa_fastai.deploy.journal as r
from hpa_fastai.cells.cells import predict_cells
add = r.Journal.add
def slow(self, rows, embeddings=None):
    add(self, rows, embeddings)
    time.sleep(60 if len(self)==2 else 0)
r.Journal.add = slow
predict_cells({str(trained[1])!r}, {str(plate)!r}, out={str(tmp_path/'cells.csv')!r}, progress=False)"""
    run, part = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', code]), tmp_path/'cells.csv.part'
    ids = find_images(plate).Id.tolist()
    try:
        while not (part.exists() and ids[1] in part.read_text()):
            assert run.poll() is None
            time.sleep(.1)
    finally:
        run.kill()
        run.wait()
    left = part.read_bytes()
    assert not (tmp_path/'cells.csv').exists() and (tmp_path/'whole.csv').read_bytes().startswith(left)
    with pytest.raises(ResultError, match='prior was 0.5 and is now 0.25'): predict_cells(trained[1], plate, out=tmp_path/'cells.csv', prior=.25, progress=False)
    assert part.read_bytes() == left
    again = predict_cells(trained[1], plate, out=tmp_path/'cells.csv', progress=False)
    assert (tmp_path/'cells.csv').read_bytes() == (tmp_path/'whole.csv').read_bytes()
    assert again.equals(whole) and again.equals(read_cells(tmp_path/'cells.csv'))
    assert sorted(o.name for o in tmp_path.glob('cells.csv*')) == ['cells.csv']
    part.write_bytes(left.replace(b'0', b'1'))
    (tmp_path/'cells.csv.part.json').write_text('{}')
    assert predict_cells(trained[1], plate, out=tmp_path/'cells.csv', force=True, progress=False).equals(whole)


def test_with_or_without_a_file_the_table_is_the_same(plate, trained, tmp_path):
    want = predict_cells(trained[1], plate, progress=False)
    for name in ('c.csv', 'c.parquet'):
        pd.testing.assert_frame_equal(predict_cells(trained[1], plate, out=tmp_path/name, progress=False), want, check_dtype=False)


@pytest.mark.parametrize('prior', [0., .5, 1.])
def test_a_class_that_stands_alone_does_so_in_cells(plate, trained, prior):
    bundle = replace(load_bundle(trained[1]), thresholds=plain_thresholds(.01, 28))
    crowded = predict_cells(bundle, plate, prior=prior, progress=False)
    name = crowded.Names[0].split('|')[0]
    labels = replace(bundle.labels, negative=bundle.labels.classes.index(name))
    cells = predict_cells(replace(bundle, labels=labels), plate, prior=prior, progress=False)
    assert crowded.Names.str.contains(name, regex=False).all()
    assert all(o == name or name not in o.split('|') for o in cells.Names)


def test_the_field_as_prior(plate, trained):
    from hpa_fastai.deploy.predictor import Predictor
    from hpa_fastai.data.labels import HPA28
    p, classes = Predictor(trained[1]), list(HPA28.classes)
    fov = p(plate).set_index('Id')[classes]
    field, cell, both = (predict_cells(p, plate, prior=w, progress=False) for w in (1, 0, .5))
    assert np.abs(field[classes].to_numpy() - fov.loc[field.Id].to_numpy()).max() < 1e-5
    want = np.sqrt(field[classes].to_numpy()*cell[classes].to_numpy())
    assert np.abs(both[classes].to_numpy() - want).max() < 1e-6
    with pytest.raises(CellError, match='prior'): predict_cells(p, plate, prior=1.5, progress=False)


def test_a_cell_is_seen_without_its_neighbours(fovs, trained):
    "What happens in one cell changes nothing in the others"
    img, truth = fovs[0]
    changed = img.copy()
    changed[1][truth == 1] = np.random.default_rng(0).integers(0, 200, (truth == 1).sum())
    changed[1][truth == 2] = 0
    from hpa_fastai.cells.cells import single_cells
    import torch
    both = [single_cells(torch.from_numpy(a).float(), truth, list(range(1, truth.max() + 1))) for a in (img, changed)]
    same = [bool((a == b).all()) for a, b in zip(*both)]
    assert same == [False, False] + [True]*(truth.max() - 2)
    assert both[0].shape[1:] == (4, 256, 256)


def test_fields_that_fail_keep_a_row(plate, trained):
    from PIL import Image
    reds = sorted(plate.glob('*_red.png'))
    reds[0].write_bytes(b'nothing')
    for f in plate.glob(reds[1].name.replace('_red', '_*')): Image.new('L', (64, 64)).save(f)
    df = predict_cells(trained[1], plate, progress=False)
    first, second, third = (df[df.Id == f.name.removesuffix('_red.png')] for f in reds)
    assert len(first) == len(second) == 1 and len(third) > 1
    assert reds[0].name in first['error'].item() and second['error'].item() == 'no cells'
    assert first.cell.item() == second.cell.item() == 0 and second.width.item() == 64 and (third['error'] == '').all()


def test_masks_in_place_of_outlines(plate, trained, tmp_path):
    from hpa_fastai.data.files import find_images
    ids = find_images(plate).Id.tolist()
    m = np.zeros((64, 64), np.uint8)
    m[5:30, 5:30], m[40:, 40:] = 7, 3
    (tmp_path/'masks').mkdir()
    for i in ids[:2]: Image.fromarray(m).save(tmp_path/'masks'/f'{i}.png')
    df = predict_cells(trained[1], plate, tmp_path/'masks', progress=False)
    assert df.cell.tolist() == [3, 7, 3, 7, 0] and df.border.tolist()[:2] == [True, False] and 'no mask' in df['error'].iloc[-1]
    df = predict_cells(trained[1], plate, {i: m for i in ids}, border='drop', progress=False)
    assert df.cell.tolist() == [7]*3
    with pytest.raises(CellError, match='one each'): predict_cells(trained[1], plate, [m], progress=False)


def test_damaged_pictures_whose_names_are_not_utf8(plate, trained, tmp_path):
    from hpa_fastai.data.files import find_images
    for c in ('red', 'green', 'blue', 'yellow'):
        os.rename(find_images(plate)[c].iloc[0], os.fsencode(plate) + b'/\xfcber_' + c.encode() + b'.png')
    with open(os.fsencode(plate) + b'/\xfcber_green.png', 'r+b') as f: f.truncate(99)
    df = predict_cells(trained[1], plate, out=tmp_path/'cells.csv', progress=False)
    assert df['error'][df.Id == '\\udcfcber'].str.contains('damaged or cut off').tolist() == [True] and (df['error'] == '').sum() > 2


def test_masks_of_two_values_beside_the_images(plate, trained):
    from hpa_fastai.data.files import find_images
    m = np.zeros((64, 64), np.uint8)
    m[5:30, 5:30], m[40:, 40:] = 255, 255
    ids = find_images(plate).Id.tolist()
    for i in ids: Image.fromarray(m).save(plate/f'{i}_blue_cp_masks.png')
    with pytest.warns(UserWarning) as told: df = predict_cells(trained[1], plate, plate, progress=False)
    assert df.Id.tolist() == [i for i in ids for _ in (1, 2)] and df.cell.tolist() == [1, 2]*len(ids) and (df['error'] == '').all()
    assert sum('each area that is connected' in str(w.message) for w in told) >= 1


def test_submission(plate, trained, tmp_path):
    from hpa_fastai.data.labels import HPA19, HPA28
    for f in plate.glob(sorted(plate.glob('*_red.png'))[0].name.replace('_red', '_*')): Image.new('L', (64, 64)).save(f)
    df = predict_cells(trained[1], plate, progress=False)
    sub = cells_submission(df, HPA28, tmp_path/'s.csv')
    assert list(sub) == ['ID', 'ImageWidth', 'ImageHeight', 'PredictionString'] and sub.ID.tolist() == df.Id.unique().tolist()
    assert (tmp_path/'s.csv').read_text().splitlines()[0] == 'ID,ImageWidth,ImageHeight,PredictionString'
    assert sub.PredictionString[0] == '' and (sub.ImageWidth == 64).all()
    probs = HPA28.convert(df[list(HPA28.classes)].to_numpy(float), HPA19)
    for _, s in sub.iloc[1:].iterrows():
        words = s.PredictionString.split(' ')
        rows = df[df.Id == s.ID]
        got = {(mask, int(k)): float(p) for k, p, mask in zip(words[::3], words[1::3], words[2::3])}
        want = {(rows['mask'][i], k): probs[i, k] for i in rows.index for k in range(19) if probs[i, k] >= .01}
        assert got.keys() == want.keys() and all(abs(got[k] - want[k]) < 1e-4 for k in want)
    with pytest.raises(CellError, match='exists'): cells_submission(df, HPA28, tmp_path/'s.csv')
    with pytest.raises(CellError, match='no column'): cells_submission(df.drop(columns='mask'), HPA28)


def test_the_command(plate, trained, tmp_path, capsys):
    from hpa_fastai.cli.main import main
    args = ['cells', str(plate), '--model', str(trained[1]), '--out', str(tmp_path/'c.csv'), '--submission', str(tmp_path/'s.csv'), '--no-progress']
    assert main(args) == 0
    assert 'cells of 3 fields of view' in capsys.readouterr().out
    assert len(pd.read_csv(tmp_path/'s.csv')) == 3 and len(pd.read_csv(tmp_path/'c.csv')) > 3
    assert main(args) == 2 and 'exists' in capsys.readouterr().err
    sorted(plate.glob('*_red.png'))[0].write_bytes(b'nothing')
    assert main([*args, '--force']) == 1 and '1 of 3' in capsys.readouterr().err


def test_without_scikit_image(tmp_path):
    (tmp_path/'skimage').mkdir()
    (tmp_path/'skimage'/'__init__.py').write_text('raise ImportError')
    code = "import numpy as np; from hpa_fastai.cells.segmentation import segment_cells; segment_cells(np.eye(64, dtype=np.uint8)[None].repeat(4, 0)*200)"
    done = subprocess.run([sys.executable, '-c', f'import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}'], capture_output=True, text=True)
    assert done.returncode == 1 and "pip install 'hpa_fastai[cells]'" in done.stderr.splitlines()[-1]


def test_real_cells(real_data):
    "Every nucleus has its cell, cells are as large as cells are"
    from hpa_fastai.data.files import find_images
    from hpa_fastai.data.tensors import read_image
    from hpa_fastai.data.reader import FULL_PIXEL
    for folder in ('hpav18_jpg', 'kaggle_png'):
        for _, row in find_images(real_data/'native'/folder).iterrows():
            img = read_image(row)
            m = segment_cells(img, border='nucleus')
            area = np.bincount(m.ravel())[1:]*FULL_PIXEL**2
            assert 5 < m.max() < 40 and 300 < np.median(area) < 3000  # µm²
            bright = img[2].numpy() > np.percentile(img[2], 99)/2
            assert (m[bright] > 0).mean() > .95
