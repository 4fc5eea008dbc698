"Models of single cells: the table that they make, embeddings beside it, runs that are killed, and what is refused."
import json
import os
import shutil
import signal
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import programs
from cell_models import BOX, FIELD, SQUARE, bundle_of, published_as, save_model
from hpa_fastai.basics.errors import HPAError, ImageError
from hpa_fastai.batches.settings import CellCrop
from hpa_fastai.cells.cells import cells_submission, predict_cells
from hpa_fastai.cells.crops import CellCrops
from hpa_fastai.cells.segmentation import CellError, segment_cells
from hpa_fastai.cli.main import main
from hpa_fastai.data.files import find_images
from hpa_fastai.data.labels import HPA19, LabelSet
from hpa_fastai.formats.names import CHANNELS
from hpa_fastai.data.reader import ImageReader
from hpa_fastai.batches.tensors import read_image
from hpa_fastai.deploy.bundle import BundleError
from hpa_fastai.deploy.journal import Journal
from hpa_fastai.deploy.predictor import Predictor
from hpa_fastai.interpret.prediction import predict
from hpa_fastai.deploy.tables import ResultError, read_cells
from hpa_fastai.deploy.watch import watch
from hpa_fastai.evaluate.calibration import Calibration
from hpa_fastai.evaluate.thresholds import plain_thresholds
from hpa_fastai.interpret.activation import Explainer
from hpa_fastai.interpret.drift import monitor


SETTINGS = dict(box=BOX, square=SQUARE)
CLASSES = list(HPA19.classes)
HALVES = [np.tile([1]*28+[0]*8+[2]*28, (64, 1))]*3  # two cells in each of three fields of view


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    "A folder of models: two kinds of single cells, and one of fields"
    folder = tmp_path_factory.mktemp('models')
    for name, settings in dict(SETTINGS, field=FIELD).items(): save_model(folder/name, settings)
    return folder


@pytest.fixture
def plate(small_atlas, tmp_path):
    "Three fields of view"
    (tmp_path/'plate').mkdir()
    for _, row in find_images(small_atlas/'train').head(3).iterrows():
        for c in CHANNELS: shutil.copy(row[c], tmp_path/'plate')
    return tmp_path/'plate'


@pytest.mark.parametrize('kind', SETTINGS)
def test_every_cell_is_judged_by_its_crop(plate, models, tmp_path, kind):
    df = predict_cells(models/kind, plate, out=tmp_path/'c.csv', embeddings=tmp_path/'e.npy', progress=False)
    bundle, vectors = bundle_of(SETTINGS[kind]), np.load(tmp_path/'e.npy')
    assert json.loads((tmp_path/'e.ids.json').read_text()) == [[i, c] for i, c in zip(df.Id, df.cell)]
    assert vectors.shape == (len(df), bundle.model.n_features) and (df['error'] == '').all()
    for _, row in find_images(plate).iterrows():
        img, rows = read_image(row), df.Id == row.Id
        crops = CellCrops(img.as_subclass(torch.Tensor), segment_cells(img), bundle.settings)
        probs, features = bundle.run(bundle.inputs(crops(df.cell[rows].tolist())))
        assert np.abs(df.loc[rows, CLASSES].to_numpy()-probs).max() < 1e-5
        assert np.abs(vectors[rows]-features).max() < 1e-4
    assert df[CLASSES].std().max() > .05  # cells differ
    table = predict_cells(models/kind, plate, progress=False)
    pd.testing.assert_frame_equal(df, table, check_dtype=False, atol=1e-6)
    assert len(cells_submission(df)) == 3


@pytest.mark.slow
def test_batches_precision_and_symmetries(plate, models):
    one, many = (predict_cells(models/'square', plate, bs=bs, progress=False)[CLASSES] for bs in (1, 32))
    assert np.abs(one-many).to_numpy().max() < 1e-5
    network = bundle_of(SQUARE, arch='test_resnet')
    half, full, tta = (predict_cells(Predictor(network, **o), plate, progress=False)[CLASSES]
                       for o in (dict(precision='force-half'), {}, dict(tta=True)))
    assert 1e-6 < np.abs(half-full).to_numpy().max() < .05 and np.abs(tta-full).to_numpy().max() > 1e-3
    turned = [torch.rot90(read_image(r).as_subclass(torch.Tensor), 1, (1, 2)) for _, r in find_images(plate).iterrows()]
    masks = [segment_cells(read_image(r)) for _, r in find_images(plate).iterrows()]
    averaged = Predictor(models/'square', tta=True)
    straight = predict_cells(averaged, plate, masks=masks, progress=False)
    rotated = predict_cells(averaged, turned, masks=[np.rot90(m) for m in masks], progress=False)
    inner = ~straight.border.to_numpy()  # of the square, turning may move the middle by a pixel
    assert np.median(np.abs(straight[CLASSES].to_numpy()-rotated[CLASSES].to_numpy())[inner]) < .01


@pytest.mark.filterwarnings('ignore:half precision')
def test_half_precision_never_says_something_else(plate, models):
    "Some processors have wrong kernels for the first layer of a vision transformer"
    half, full = (predict_cells(Predictor(models/'box', device='cpu', precision=o), plate, progress=False)[CLASSES]
                  for o in ('force-half', 'full'))
    assert np.abs(half-full).to_numpy().max() < .1


def test_an_ensemble_averages(plate, models, tmp_path):
    alone = [predict_cells(models/kind, plate, progress=False)[CLASSES].to_numpy() for kind in SETTINGS]
    out = dict(out=tmp_path/'c.parquet', embeddings=tmp_path/'e.parquet')
    both = predict_cells([models/kind for kind in SETTINGS], plate, **out, progress=False)
    assert np.abs(both[CLASSES].to_numpy()-np.mean(alone, 0)).max() < 1e-5
    vectors = pd.read_parquet(tmp_path/'e.parquet')
    assert vectors[['Id', 'cell']].equals(both[['Id', 'cell']]) and vectors.shape[1] == 2+2*64
    with pytest.raises(HPAError, match='one judges single cells and one whole fields') as e:
        predict_cells([models/'box', models/'field'], plate, progress=False)
    assert '\n' not in str(e.value)


def test_calibration_and_thresholds_count(plate):
    bundle = bundle_of(BOX)
    plain = predict_cells(bundle, plate, progress=False)
    calibration = Calibration('platt', (.5,)*19, (.3,)*19, {})
    tuned = replace(bundle, calibration=calibration, thresholds=plain_thresholds(.2, 19))
    got = predict_cells(tuned, plate, progress=False)
    assert np.abs(got[CLASSES].to_numpy()-calibration(plain[CLASSES].to_numpy())).max() < 1e-5
    for _, row in got.iterrows():
        named = set(row.Names.split('|'))-{''}
        above = {c for c in CLASSES if row[c] > .2}
        assert named in (above-{'Negative'}, above & {'Negative'})


def test_negative_stands_alone(plate):
    df = predict_cells(bundle_of(BOX, threshold=.01), plate, progress=False)
    assert all(o == 'Negative' or 'Negative' not in o.split('|') for o in df.Names)
    many = LabelSet('many', tuple(f'place {k}' for k in range(30)) + ('Negative',), negative=30)
    df = predict_cells(bundle_of(SQUARE, many, threshold=.01), plate, progress=False)
    assert list(many.classes) == [c for c in df if c in many.classes]
    assert all(o == 'Negative' or 'Negative' not in o.split('|') for o in df.Names)


def test_a_model_of_fields_gives_embeddings_too(plate, models, tmp_path):
    df = predict_cells(models/'field', plate, out=tmp_path/'c.csv', embeddings=tmp_path/'e.npy', progress=False)
    vectors = np.load(tmp_path/'e.npy')
    assert vectors.shape == (len(df), 64) and np.isfinite(vectors).all() and len(np.unique(vectors, axis=0)) > 3
    pd.testing.assert_frame_equal(df, predict_cells(models/'field', plate, progress=False), check_dtype=False)


def test_fields_without_cells_have_a_row_of_nan(plate, models, tmp_path):
    for f in plate.glob(sorted(plate.glob('*_red.png'))[1].name.replace('_red', '_*')): f.write_bytes(b'nothing')
    df = predict_cells(models/'box', plate, out=tmp_path/'c.csv', embeddings=tmp_path/'e.npy', progress=False)
    vectors = np.load(tmp_path/'e.npy')
    assert len(vectors) == len(df) and (np.isnan(vectors).all(1) == (df['error'] != '')).all()
    assert (df['error'] != '').sum() == 1 and (df.cell == 0).sum() == 1


RUN = """
import sys, time
from hpa_fastai.cells import cells
real = cells.Journal.add
def slow(*args):
    real(*args)
    print('added', flush=True)
    time.sleep(.1)
cells.Journal.add = slow
folder, model, out, embeddings = sys.argv[1:]
cells.predict_cells(model, folder, out=out, embeddings=embeddings, progress=False)
"""


@pytest.mark.parametrize('table, vectors', [
    ('c.csv', 'e.npy'), pytest.param('c.parquet', 'e.parquet', marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_byte_for_byte(plate, models, tmp_path, table, vectors):
    predict_cells(models/'square', plate, out=tmp_path/f'w{table}', embeddings=tmp_path/f'w{vectors}', progress=False)
    args = [str(plate), str(models/'square'), str(tmp_path/table), str(tmp_path/vectors)]
    run = programs.Program(RUN, *args)
    for _ in range(2): run.stdout.readline()
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert not (tmp_path/table).exists() and (tmp_path/f'{vectors}.part').stat().st_size >= 2*4*64
    with open(tmp_path/f'{vectors}.part', 'ab') as f: f.write(b'half a row')
    predict_cells(models/'square', plate, out=tmp_path/table, embeddings=tmp_path/vectors, progress=False)
    for name in (table, vectors): assert (tmp_path/name).read_bytes() == (tmp_path/f'w{name}').read_bytes()
    left = {o.name for o in tmp_path.iterdir() if o.is_file()}
    assert left-{'e.ids.json', 'we.ids.json'} == {table, vectors, f'w{table}', f'w{vectors}'}


def test_a_field_acquired_again_is_judged_again_and_vectors_stay_in_step(plate, models, tmp_path, monkeypatch):
    args = dict(out=tmp_path/'c.csv', embeddings=tmp_path/'e.npy', progress=False)
    add = Journal.add
    def add_and_stop(self, *rows):
        add(self, *rows)
        if len(self) == 3: raise KeyboardInterrupt
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Journal, 'add', add_and_stop)
        predict_cells(models/'box', plate, **args)
    second = sorted(plate.glob('*_green.png'))[1]
    time.sleep(.02)
    shutil.copy(sorted(plate.glob('*_green.png'))[0], second)
    os.utime(second)
    with pytest.warns(UserWarning, match='predicted again'): df = predict_cells(models/'box', plate, **args)
    whole = predict_cells(models/'box', plate, out=tmp_path/'w.csv', embeddings=tmp_path/'w.npy', progress=False)
    assert df.equals(whole) and (tmp_path/'e.npy').read_bytes() == (tmp_path/'w.npy').read_bytes()
    with pytest.raises(ResultError, match='exists'):
        predict_cells(models/'box', plate, out=tmp_path/'n.csv', embeddings=tmp_path/'w.npy', progress=False)
    assert not (tmp_path/'n.csv.part').exists()
    with pytest.raises(CellError, match='beside a table'):
        predict_cells(models/'box', plate, embeddings=tmp_path/'n.npy', progress=False)


def test_a_field_that_fails_changes_no_type_of_probabilities(plate, models):
    before = predict_cells(models/'box', plate, progress=False)[CLASSES].dtypes
    sorted(plate.glob('*_green.png'))[0].write_bytes(b'broken')
    df = predict_cells(models/'box', plate, progress=False)
    assert df['error'].ne('').sum() == 1 and df[CLASSES].dtypes.equals(before)


def test_whole_fields_are_refused_at_every_door(plate, models, tmp_path):
    "In one line, that names the command to use, and before anything is written"
    predictor = Predictor(models/'box')
    doors = [
        lambda: predict(plate, models/'box', progress=False), lambda: predictor(plate),
        lambda: predict(plate, models/'box', out=tmp_path/'p.csv', progress=False),
        lambda: predictor.to_file(plate, tmp_path/'p.csv', progress=False),
        lambda: watch(plate, models/'box', tmp_path/'p.csv', timeout=1, progress=False),
        lambda: Explainer(models/'box'), lambda: predictor.infer([{ImageReader(): torch.zeros(4, 8, 8)}]),
        lambda: monitor(pd.DataFrame(), bundle_of(BOX))]
    for door in doors:
        with pytest.raises(BundleError, match='test_vit judges single cells.*`hpa_fastai cells FOLDER`') as e: door()
        assert '\n' not in str(e.value)
    assert not list(tmp_path.glob('p.csv*'))


def test_the_commands_refuse(plate, models, small_atlas, tmp_path, capsys):
    for args in (['predict', plate, '--out', tmp_path/'p.csv'], ['evaluate', small_atlas],
                 ['predict', plate, '--out', tmp_path/'p.csv', '--watch', '--timeout', '1']):
        assert main([*map(str, args), '--model', str(models/'box'), '--no-progress']) == 2
        said = capsys.readouterr().err.strip()
        assert '`hpa_fastai cells FOLDER`' in said and 'Traceback' not in said
    assert not list(tmp_path.glob('p.csv*'))


def test_the_published_model_of_fields_is_refused_for_cells(plate):
    fields = bundle_of(FIELD, published=published_as('hpa-densenet121', 'fields'))
    words = 'hpa-densenet121 judges whole fields.*`hpa_fastai predict FOLDER`.*cells'
    with pytest.raises(BundleError, match=words) as e:
        predict_cells(fields, plate, progress=False)
    assert '--model hpa-inception-v3-cells' in str(e.value) and '\n' not in str(e.value)
    assert len(Predictor(fields)(plate)) == 3


@pytest.mark.parametrize('prior', [0, .5, 1])
def test_there_is_nothing_to_weigh(plate, models, tmp_path, prior):
    with pytest.raises(CellError, match='nothing to weigh'):
        predict_cells(models/'box', plate, out=tmp_path/'c.csv', prior=prior, progress=False)
    assert not (tmp_path/'c.csv.part').exists()


@pytest.mark.parametrize('missing, channels, fitting', [
    ('yellow', 'rgby', 'subcell-vit-without-er'), ('red', 'rgby', 'subcell-vit-without-microtubules'),
    ('red yellow', 'rgby', 'subcell-vit-dna-protein'), ('red', 'rgb', 'subcell-vit-dna-protein'), ('blue', 'gb', None)])
def test_the_model_that_does_without_a_channel_is_named(plate, missing, channels, fitting):
    "Of one field of view in its row; where no field has the channel, before anything is predicted"
    reader = ImageReader(channels=channels)
    subcell = bundle_of(replace(SQUARE, reader=reader), published=published_as('subcell-vit', 'cells'))
    other = bundle_of(replace(SQUARE, reader=reader))
    files = [f for c in missing.split() for f in sorted(plate.glob(f'*_{c}.png'))]
    def errors(model):
        try: return [said for said in predict_cells(model, plate, progress=False)['error'] if said]
        except ImageError as e: return [str(e)]
    for unlinked in (files[::3], [f for k, f in enumerate(files) if k % 3]):
        for f in unlinked: f.unlink()
        (said,), (plain,) = map(errors, (subcell, other))
        assert 'channel' in said and (f'--model {fitting} does without' if fitting else 'channel') in said
        assert '--model' not in plain and (fitting or '--model' not in said)


def test_a_channel_that_the_model_does_not_take(plate):
    "A file of it is not read, and none is needed"
    three = bundle_of(replace(SQUARE, reader=ImageReader(channels='rgb', missing='zero')))
    with_it = predict_cells(three, plate, masks=HALVES, progress=False)
    for f in plate.glob('*_yellow.png'): f.unlink()
    without = predict_cells(three, plate, masks=HALVES, progress=False)
    assert (without['error'] == '').all() and with_it.equals(without)


def test_the_scale_of_the_files_counts(plate, models):
    "As an argument, and as a setting of the model"
    guessed, small, large = (predict_cells(models/'square', plate, pixel_size=size, progress=False,
                                           masks=HALVES)[CLASSES].to_numpy()
                             for size in (None, .2, .08*2048/64))
    assert np.abs(guessed-large).max() < 1e-6 < .01 < np.abs(guessed-small).max()
    settled = bundle_of(replace(SQUARE, reader=ImageReader(pixel_size=.2)))
    assert np.abs(predict_cells(settled, plate, masks=HALVES, progress=False)[CLASSES].to_numpy()-small).max() < 1e-5


def test_unmasked_crops_see_the_surroundings(plate):
    open_ = replace(BOX, crop=CellCrop(margin=20, pixel_size=.32, masked=False))
    a, b = (predict_cells(bundle_of(s), plate, masks=HALVES, progress=False)[CLASSES].to_numpy() for s in (BOX, open_))
    assert np.abs(a-b).max() > 1e-3


def test_the_command(plate, models, tmp_path, capsys):
    args = ['cells', plate, '--model', models/'box', '--out', tmp_path/'c.csv', '--embeddings', tmp_path/'e.parquet',
            '--submission', tmp_path/'s.csv', '--no-progress']
    assert main(list(map(str, args))) == 0
    assert 'cells of 3 fields of view' in capsys.readouterr().out
    df = read_cells(tmp_path/'c.csv')
    assert pd.read_parquet(tmp_path/'e.parquet').cell.tolist() == df.cell.tolist() and len(df) > 3
    assert main([*map(str, args[:4]), '--prior', '.5', '--out', str(tmp_path/'d.csv'), '--no-progress']) == 2
    assert 'nothing to weigh' in capsys.readouterr().err
    assert main([*map(str, args[:4]), '--out', str(tmp_path/'d.csv'), '--embeddings', str(tmp_path/'d.txt')]) == 2
    assert 'ends in .npy or .parquet' in capsys.readouterr().err
