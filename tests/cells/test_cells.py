"Single cells: what a network sees of them, their predictions, and the submission of the 2021 competition."
import os
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from hpa_fastai.cells.cells import *
from hpa_fastai.cells.masks import decode_mask
from hpa_fastai.cells.segmentation import CellError, segment_cells
from hpa_fastai.cli.main import main
from hpa_fastai.data.files import find_images
from hpa_fastai.data.labels import HPA19, HPA28
from hpa_fastai.formats.names import CHANNELS
from hpa_fastai.batches.tensors import read_image
from hpa_fastai.deploy.journal import Journal
from hpa_fastai.deploy.loading import load_bundle
from hpa_fastai.deploy.predictor import Predictor
from hpa_fastai.deploy.tables import ResultError, read_cells
from hpa_fastai.evaluate.thresholds import plain_thresholds
from hpa_fastai.simulate.atlas import simulate_fov


@pytest.fixture(scope='module')
def predictor(trained): return Predictor(trained[1])


@pytest.fixture
def plate(small_atlas, tmp_path):
    "Three fields of view, and the masks that belong to them"
    (tmp_path/'plate').mkdir()
    for _, row in find_images(small_atlas/'train').head(3).iterrows():
        for c in CHANNELS: shutil.copy(row[c], tmp_path/'plate')
    return tmp_path/'plate'


def test_a_row_a_cell(plate, predictor, tmp_path):
    df = predict_cells(predictor, plate, out=tmp_path/'cells.csv', progress=False)
    classes = list(HPA28.classes)
    where = ['Id', 'cell', 'x', 'y', 'area', 'border', 'width', 'height']
    assert list(df) == [*where, 'Predicted', 'Names', *classes, 'mask', 'error']
    table = find_images(plate)
    assert df.Id.unique().tolist() == table.Id.tolist() and (df['error'] == '').all()
    for id_, rows in df.groupby('Id'):
        m = segment_cells(read_image(table[table.Id == id_].iloc[0]))
        assert rows.cell.tolist() == list(range(1, m.max() + 1))
        for _, r in rows.iterrows():
            mask = decode_mask(r['mask'], r.width, r.height)
            assert (mask == (m == r.cell)).all() and mask.sum() == r.area
            assert r.border == (mask[[0, -1]].any() or mask[:, [0, -1]].any())
            ys, xs = np.nonzero(mask)
            assert abs(r.x - xs.mean()) < .1 and abs(r.y - ys.mean()) < .1
    saved = pd.read_csv(tmp_path/'cells.csv', keep_default_na=False)
    assert len(saved) == len(df)
    assert np.abs(saved[classes].to_numpy(float) - df[classes].to_numpy(float)).max() < 1e-6
    with pytest.raises(ValueError, match='exists'):
        predict_cells(predictor, plate, out=tmp_path/'cells.csv', progress=False)


def stop_after_two(monkeypatch, *args, **kwargs):
    "`predict_cells`, interrupted after the second field of view"
    add = Journal.add
    def add_and_die(self, rows, *args, **kwargs):
        add(self, rows, *args, **kwargs)
        if len(self) == 2: raise KeyboardInterrupt
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Journal, 'add', add_and_die)
        predict_cells(*args, progress=False, **kwargs)


def test_a_stopped_run_goes_on(plate, predictor, tmp_path, monkeypatch):
    "Stopped after the second field of view, the same command ends with the same bytes"
    whole = predict_cells(predictor, plate, out=tmp_path/'whole.csv', progress=False)
    part = tmp_path/'cells.csv.part'
    stop_after_two(monkeypatch, predictor, plate, out=tmp_path/'cells.csv')
    left = part.read_bytes()
    assert not (tmp_path/'cells.csv').exists() and (tmp_path/'whole.csv').read_bytes().startswith(left)
    with pytest.raises(ResultError, match='prior was 0.5 and is now 0.25'):
        predict_cells(predictor, plate, out=tmp_path/'cells.csv', prior=.25, progress=False)
    assert part.read_bytes() == left
    again = predict_cells(predictor, plate, out=tmp_path/'cells.csv', progress=False)
    assert (tmp_path/'cells.csv').read_bytes() == (tmp_path/'whole.csv').read_bytes()
    assert again.equals(whole) and again.equals(read_cells(tmp_path/'cells.csv'))
    assert sorted(o.name for o in tmp_path.glob('cells.csv*')) == ['cells.csv']
    part.write_bytes(left.replace(b'0', b'1'))
    (tmp_path/'cells.csv.part.json').write_text('{}')
    assert predict_cells(predictor, plate, out=tmp_path/'cells.csv', force=True, progress=False).equals(whole)


def test_masks_drawn_anew_in_a_stopped_run(plate, predictor, tmp_path, monkeypatch):
    "A field of view whose mask is another than before is predicted again"
    ids, masks, out = find_images(plate).Id.tolist(), tmp_path/'masks', tmp_path/'cells.csv'
    m = np.zeros((64, 64), np.uint8)
    m[5:30, 5:30], m[40:, 40:] = 7, 3
    masks.mkdir()
    for i in ids: Image.fromarray(m).save(masks/f'{i}.png')
    stop_after_two(monkeypatch, predictor, plate, masks, out=out)
    Image.fromarray(np.where(m==7, 0, m).astype(np.uint8)).save(masks/f'{ids[0]}.png')
    with pytest.warns(UserWarning, match=f'have changed files .* predicted again: {ids[0]}'):
        found = predict_cells(predictor, plate, masks, out=out, progress=False)
    assert found.Id.tolist() == [ids[0], *ids[1:2]*2, *ids[2:]*2]
    assert found.cell.tolist() == [3, 3, 7, 3, 7]


def test_with_or_without_a_file_the_table_is_the_same(plate, predictor, tmp_path):
    want = predict_cells(predictor, plate, progress=False)
    for name in ('c.csv', 'c.parquet'):
        df = predict_cells(predictor, plate, out=tmp_path/name, progress=False)
        pd.testing.assert_frame_equal(df, want, check_dtype=False)


@pytest.mark.parametrize('prior', [0., .5, 1.])
def test_a_class_that_stands_alone_does_so_in_cells(plate, trained, prior):
    bundle = replace(load_bundle(trained[1]), thresholds=plain_thresholds(.01, 28))
    crowded = predict_cells(bundle, plate, prior=prior, progress=False)
    name = crowded.Names[0].split('|')[0]
    labels = replace(bundle.labels, negative=bundle.labels.classes.index(name))
    cells = predict_cells(replace(bundle, labels=labels), plate, prior=prior, progress=False)
    assert crowded.Names.str.contains(name, regex=False).all()
    assert all(o == name or name not in o.split('|') for o in cells.Names)


def test_the_field_as_prior(plate, predictor):
    classes = list(HPA28.classes)
    fov = predictor(plate).set_index('Id')[classes]
    field, cell, both = (predict_cells(predictor, plate, prior=w, progress=False) for w in (1, 0, .5))
    assert np.abs(field[classes].to_numpy() - fov.loc[field.Id].to_numpy()).max() < 1e-5
    want = np.sqrt(field[classes].to_numpy()*cell[classes].to_numpy())
    assert np.abs(both[classes].to_numpy() - want).max() < 1e-6
    with pytest.raises(CellError, match='prior'): predict_cells(predictor, plate, prior=1.5, progress=False)


def test_a_cell_is_seen_without_its_neighbours():
    "What happens in one cell changes nothing in the others"
    img, truth = simulate_fov([0], size=128, seed=400, difficulty='easy')
    changed = img.copy()
    changed[1][truth == 1] = np.random.default_rng(0).integers(0, 200, (truth == 1).sum())
    changed[1][truth == 2] = 0
    cells = list(range(1, truth.max() + 1))
    both = [single_cells(torch.from_numpy(a).float(), truth, cells) for a in (img, changed)]
    same = [bool((a == b).all()) for a, b in zip(*both)]
    assert same == [False, False] + [True]*(truth.max() - 2)
    assert both[0].shape[1:] == (4, 128, 128)


def test_fields_that_fail_keep_a_row(plate, predictor):
    reds = sorted(plate.glob('*_red.png'))
    reds[0].write_bytes(b'nothing')
    for f in plate.glob(reds[1].name.replace('_red', '_*')): Image.new('L', (64, 64)).save(f)
    df = predict_cells(predictor, plate, progress=False)
    first, second, third = (df[df.Id == f.name.removesuffix('_red.png')] for f in reds)
    assert len(first) == len(second) == 1 and len(third) > 1
    assert reds[0].name in first['error'].item() and second['error'].item() == 'no cells'
    assert first.cell.item() == second.cell.item() == 0 and second.width.item() == 64
    assert (third['error'] == '').all()


def test_masks_in_place_of_outlines(plate, predictor, tmp_path):
    ids = find_images(plate).Id.tolist()
    m = np.zeros((64, 64), np.uint8)
    m[5:30, 5:30], m[40:, 40:] = 7, 3
    (tmp_path/'masks').mkdir()
    for i in ids[:2]: Image.fromarray(m).save(tmp_path/'masks'/f'{i}.png')
    df = predict_cells(predictor, plate, tmp_path/'masks', progress=False)
    assert df.cell.tolist() == [3, 7, 3, 7, 0] and df.border.tolist()[:2] == [True, False]
    assert 'no mask' in df['error'].iloc[-1]
    df = predict_cells(predictor, plate, {i: m for i in ids}, border='drop', progress=False)
    assert df.cell.tolist() == [7]*3
    with pytest.raises(CellError, match='one each'): predict_cells(predictor, plate, [m], progress=False)


def test_damaged_pictures_whose_names_are_not_utf8(plate, predictor, tmp_path):
    for c in CHANNELS:
        os.rename(find_images(plate)[c].iloc[0], os.fsencode(plate) + b'/\xfcber_' + c.encode() + b'.png')
    with open(os.fsencode(plate) + b'/\xfcber_green.png', 'r+b') as f: f.truncate(99)
    df = predict_cells(predictor, plate, out=tmp_path/'cells.csv', progress=False)
    damaged = df['error'][df.Id == '\\udcfcber'].str.contains('damaged or cut off')
    assert damaged.tolist() == [True] and (df['error'] == '').sum() > 2


def test_masks_of_two_values_beside_the_images(plate, predictor):
    m = np.zeros((64, 64), np.uint8)
    m[5:30, 5:30], m[40:, 40:] = 255, 255
    ids = find_images(plate).Id.tolist()
    for i in ids: Image.fromarray(m).save(plate/f'{i}_blue_cp_masks.png')
    with pytest.warns(UserWarning, match='each area that is connected'):
        df = predict_cells(predictor, plate, plate, progress=False)
    assert df.Id.tolist() == [i for i in ids for _ in (1, 2)]
    assert df.cell.tolist() == [1, 2]*len(ids) and (df['error'] == '').all()


def test_submission(plate, predictor, tmp_path):
    first = sorted(plate.glob('*_red.png'))[0].name
    for f in plate.glob(first.replace('_red', '_*')): Image.new('L', (64, 64)).save(f)
    df = predict_cells(predictor, plate, progress=False)
    sub = cells_submission(df, HPA28, tmp_path/'s.csv')
    assert list(sub) == ['ID', 'ImageWidth', 'ImageHeight', 'PredictionString']
    assert sub.ID.tolist() == df.Id.unique().tolist()
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
    args = ['cells', str(plate), '--model', str(trained[1]), '--out', str(tmp_path/'c.csv'),
            '--submission', str(tmp_path/'s.csv'), '--no-progress']
    assert main(args) == 0
    assert 'cells of 3 fields of view' in capsys.readouterr().out
    assert len(pd.read_csv(tmp_path/'s.csv')) == 3 and len(pd.read_csv(tmp_path/'c.csv')) > 3
    assert main(args) == 2 and 'exists' in capsys.readouterr().err
    sorted(plate.glob('*_red.png'))[0].write_bytes(b'nothing')
    assert main([*args, '--force']) == 1 and '1 of 3' in capsys.readouterr().err
