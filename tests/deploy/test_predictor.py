"Predicting a folder: same numbers as validation, every row in its place whatever happens, nothing overwritten."
import os
import shutil
import signal
import subprocess
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile

import hpa_fastai
from hpa_fastai.all import HPADataLoaders, hpa_learner
from hpa_fastai.cli.main import main
from hpa_fastai.deploy.loading import load_bundle, test_bundle as check_bundle
from hpa_fastai.data.reader import ImageReader
from hpa_fastai.data.files import find_images
from hpa_fastai.batches.tensors import read_image
from hpa_fastai.deploy.predictor import Predictor
from hpa_fastai.interpret.prediction import predict
from hpa_fastai.deploy.scoring import evaluate_predictions
from hpa_fastai.data.labels import HPA28, HPAError
from hpa_fastai.data.label_tables import read_labels
from hpa_fastai.deploy.journal import Journal
from hpa_fastai.deploy.tables import read_predictions, result_columns
from hpa_fastai.evaluate.thresholds import plain_thresholds
import programs
from pictures import as_camera

NAMES = list(HPA28.classes)


@pytest.fixture
def plate(small_atlas, tmp_path):
    "Ten fields of view in nested folders"
    for i, row in find_images(small_atlas/'train').head(10).iterrows():
        to = tmp_path/'plate'/f'well{i%3}'
        to.mkdir(parents=True, exist_ok=True)
        for c in ('red', 'green', 'blue', 'yellow'): shutil.copy(row[c], to)
    return tmp_path/'plate'


def probs(df): return df[NAMES].to_numpy(float)


def test_same_probabilities_as_get_preds(trained):
    learn, path = trained
    with learn.no_bar(): want, _ = learn.get_preds()
    got = hpa_fastai.predict(learn.dls.valid_ds.items, model=path, progress=False)
    assert np.abs(probs(got) - want.numpy()).max() < 1e-4
    assert (HPA28.encode(got.Predicted) == learn.thresholds.predict(want.numpy())).all()


def test_the_table(plate, trained, tmp_path):
    df = predict(plate, model=trained[1], out=tmp_path/'p.csv', bs=4, progress=False)
    assert list(df.columns) == ['Id', 'Predicted', 'Names', *NAMES, 'flags', 'error']
    assert df.Id.tolist() == find_images(plate).Id.tolist() and (df['error'] == '').all()
    for _, r in df.iterrows(): assert r.Names == '|'.join(HPA28.classes[i] for i in HPA28.parse(r.Predicted))
    saved = pd.read_csv(tmp_path/'p.csv', keep_default_na=False, dtype=dict(Predicted=str))
    assert saved.Id.tolist() == df.Id.tolist() and saved.Predicted.tolist() == df.Predicted.tolist()
    assert np.abs(probs(saved) - probs(df)).max() < 1e-6


@pytest.mark.parametrize('bs', [1, 3, 4, 32])
def test_rows_never_shift_when_files_are_broken(plate, trained, bs):
    table = find_images(plate)
    whole = predict(plate, model=trained[1], progress=False)
    Path(table.green[1]).write_bytes(Path(table.green[1]).read_bytes()[:300])
    Path(table.red[5]).write_bytes(b'')
    Path(table.blue[9]).unlink()
    df = predict(plate, model=trained[1], bs=bs, progress=False)
    bad = [1, 5, 9]
    good = [i for i in range(10) if i not in bad]
    assert df.Id.tolist() == whole.Id.tolist()
    assert np.abs(probs(df)[good] - probs(whole)[good]).max() < 1e-5
    assert np.isnan(probs(df)[bad]).all() and (df.Predicted[bad] == '').all() and (df['error'][good] == '').all()
    assert all(table.Id[i] in df['error'][i] for i in bad)
    assert Path(table.green[1]).name in df['error'][1] and 'blue' in df['error'][9]


def test_all_broken_is_still_a_table(plate, trained):
    for f in plate.rglob('*_green.png'): f.write_bytes(b'nothing')
    df = predict(plate, model=trained[1], progress=False)
    assert len(df) == 10 and (df['error'] != '').all()


def test_batch_size_does_not_matter(plate, trained):
    a, b = (predict(plate, model=trained[1], bs=bs, progress=False) for bs in (1, 7))
    assert np.abs(probs(a) - probs(b)).max() < 1e-5


def test_ensemble_is_the_mean_and_decodes_once(plate, trained, tmp_path, monkeypatch):
    import torch
    one, two = load_bundle(trained[1]), load_bundle(trained[1])
    with torch.no_grad(): two.model[1][-1].weight.mul_(.5)
    pa, pb = (probs(predict(plate, model=m, progress=False)) for m in (one, two))
    reads, real = [], ImageReader.array_and_width
    monkeypatch.setattr(ImageReader, 'array_and_width', lambda self, row: (reads.append(row['Id']), real(self, row))[1])
    both = probs(predict(plate, model=[one, two], progress=False))
    assert np.abs(both - (pa + pb)/2).max() < 1e-6 and np.abs(pa - pb).max() > 1e-3 and len(reads) == 10


def test_ensemble_doubts_and_flags_in_any_order(plate, trained):
    "Ranges of thresholds and limits of flags are those of all models, not of the first"
    bundle = load_bundle(trained[1])
    sure = replace(bundle, thresholds=plain_thresholds(.1, 28))
    wide = replace(sure, thresholds=replace(sure.thresholds, low=np.zeros(28), high=np.full(28, 1.9)))
    strict = replace(
        wide, flagger=replace(bundle.flagger, limits={**bundle.flagger.limits, 'unlike': 1e-6, 'saturated': -1.0})
    )
    a, b = (Predictor(m, device='cpu') for m in ([sure, strict], [strict, sure]))
    assert a.thresholds.high == pytest.approx(np.full(28, 1.)) and a.thresholds.low == pytest.approx(np.full(28, .05))
    one, two = a(plate), b(plate)
    assert one['flags'].tolist() == two['flags'].tolist() and one['flags'].str.contains('saturated').all()
    assert one['flags'].str.contains('uncertain').all()
    assert not Predictor(sure, device='cpu')(plate)['flags'].str.contains('uncertain').any()


@pytest.mark.parametrize('options', [{}, {'tta': True}, {'at_least_one': True}], ids=str)
def test_a_class_that_stands_alone(plate, trained, options):
    "Whatever thresholds a bundle is made with, its label set says which class never stands beside another"
    bundle = load_bundle(trained[1])
    bundle = replace(bundle, thresholds=plain_thresholds(.01, 28))
    crowded = predict(plate, model=bundle, progress=False, **options)
    alone = HPA28.parse(crowded.Predicted[0])[0]
    labels = replace(HPA28, negative=alone)
    df = predict(plate, model=[replace(bundle, labels=labels)]*2, progress=False, **options)
    name = HPA28.classes[alone]
    assert [name in o.split('|') for o in crowded.Names] == [True]*10
    assert all(o == name or name not in o.split('|') for o in df.Names) and (df.Names != crowded.Names).all()


def test_augmented_predictions_do_not_mind_turning(plate, trained, tmp_path):
    from PIL import Image
    turned = tmp_path/'turned'
    shutil.copytree(plate, turned)
    for f in turned.rglob('*.png'): Image.open(f).transpose(Image.Transpose.ROTATE_90).save(f)
    a, b = (probs(predict(p, model=trained[1], tta=True, progress=False)) for p in (plate, turned))
    assert np.abs(a - b).max() < 1e-3  # pixels are rounded when they are reduced


def test_at_least_one(plate, trained):
    df = predict(plate, model=trained[1], at_least_one=True, progress=False)
    assert (df.Predicted != '').all() and not df['flags'].str.contains('no-location').any()


def test_blank_protein_is_flagged(plate, trained):
    from PIL import Image
    f = next(plate.rglob('*_green.png'))
    Image.new('L', (64, 64)).save(f)
    df = predict(plate, model=trained[1], progress=False).set_index('Id')
    assert 'blank-protein' in df['flags'][f.name.removesuffix('_green.png')]
    assert df['flags'].str.contains('blank-protein').sum() == 1 and np.isfinite(probs(df)).all()


RUN = """
import sys, time
import hpa_fastai
import hpa_fastai.deploy.predictor as inf
real = inf.Predictor.infer
def slow(*args):
    print('batch', flush=True)
    time.sleep(float(sys.argv[4]))
    return real(*args)
inf.Predictor.infer = slow
hpa_fastai.predict(sys.argv[1], model=sys.argv[2], out=sys.argv[3], bs=4, progress=False)
"""


def kill_after(batches, folder, model, out):
    "Start a run and kill it without warning when it has done so many batches"
    p = programs.Program(RUN, folder, model, out, '.05')
    for _ in range(batches): p.stdout.readline()
    time.sleep(.02)
    p.send_signal(signal.SIGKILL)
    p.wait()


@pytest.mark.parametrize('name', [pytest.param('p.csv', marks=pytest.mark.slow), 'p.parquet'])
def test_a_killed_run_goes_on_to_the_same_table(small_atlas, trained, tmp_path, name):
    predict(small_atlas/'train', model=trained[1], out=tmp_path/f'whole-{name}', bs=4, progress=False)
    out = tmp_path/name
    if name == 'p.csv': kill_after(9, small_atlas/'train', trained[1], out)
    else: unfinished(small_atlas/'train', trained, out)
    assert not out.exists() and (tmp_path/f'{name}.part').read_bytes().count(b'\n') > 8
    kept = (tmp_path/f'{name}.part').read_bytes()
    reads, real = [], ImageReader.array_and_width
    with pytest.MonkeyPatch.context() as m:
        m.setattr(ImageReader, 'array_and_width', lambda self, row: (reads.append(row['Id']), real(self, row))[1])
        predict(small_atlas/'train', model=trained[1], out=out, bs=4, progress=False)
    assert len(reads) == 90 - (kept.count(b'\n') - 1)
    assert out.read_bytes() == (tmp_path/f'whole-{name}').read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == [name, f'whole-{name}']


@pytest.mark.parametrize('after', [False, True])
@pytest.mark.parametrize('name, vectors', [('p.csv', 'e.npy'), ('p.parquet', 'e.parquet')])
def test_a_run_killed_around_the_last_name_of_a_file_goes_on(plate, trained, tmp_path, name, vectors, after):
    "When the embeddings have their name and the table not yet, and when both have and the notes of the run remain"
    out = dict(model=trained[1], out=tmp_path/name, embeddings=tmp_path/vectors, progress=False)
    real = os.replace
    def killed(old, new):
        if str(new).endswith(name) and not after: raise KeyboardInterrupt
        real(old, new)
        if str(new).endswith(name): raise KeyboardInterrupt
    with pytest.MonkeyPatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(os, 'replace', killed)
        predict(plate, **out)
    assert (tmp_path/vectors).exists() and (tmp_path/name).exists() == after
    predict(plate, **out)
    predict(plate, model=trained[1], out=tmp_path/f'w{name}', embeddings=tmp_path/f'w{vectors}', progress=False)
    for file in (name, vectors): assert (tmp_path/file).read_bytes() == (tmp_path/f'w{file}').read_bytes()
    assert not list(tmp_path.glob('*.part*'))


def unfinished(plate, trained, out, **kwargs):
    "Leave a table in the making, its last line cut off"
    predictor = Predictor(trained[1], bs=4, **kwargs)
    real, n = Predictor.infer, []
    with pytest.MonkeyPatch.context() as m, pytest.raises(KeyboardInterrupt):
        def stop(*args):
            n.append(1)
            if len(n) > 2: raise KeyboardInterrupt
            return real(*args)
        m.setattr(Predictor, 'infer', stop)
        predictor.to_file(plate, out, progress=False)
    with open(f'{out}.part', 'ab') as f: f.write(b'half,a,line')


MATCH = """
import sys, time
import hpa_fastai
from hpa_fastai.deploy.journal import Journal
real, when = Journal.revise, sys.argv[4]
def revise(*args):
    if when == 'after': real(*args)
    print('there', flush=True)
    time.sleep(60)
Journal.revise = revise
hpa_fastai.predict(sys.argv[1], model=sys.argv[2], out=sys.argv[3], bs=4, thresholds='prevalence', progress=False)
"""


@pytest.mark.parametrize('name, when', [
    ('p.csv', 'before'), ('p.parquet', 'after'), pytest.param('p.csv', 'after', marks=pytest.mark.slow),
    pytest.param('p.parquet', 'before', marks=pytest.mark.slow)])
def test_a_run_killed_around_its_last_decisions_comes_to_the_same(plate, trained, tmp_path, name, when):
    "Between the last row and the decisions that take all rows, and between these and the name of the table"
    p = programs.Program(MATCH, plate, trained[1], tmp_path/name, when)
    assert p.stdout.readline() == 'there\n'
    p.send_signal(signal.SIGKILL)
    p.wait()
    assert not (tmp_path/name).exists() and (tmp_path/f'{name}.part').read_bytes().count(b'\n') == 11
    options = dict(model=trained[1], bs=4, thresholds='prevalence', progress=False)
    with pytest.MonkeyPatch.context() as m, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        whole = predict(plate, out=tmp_path/f'whole-{name}', **options)
        m.setattr(ImageReader, 'array_and_width', None)  # nothing is read again
        again = predict(plate, out=tmp_path/name, **options)
    assert again.equals(whole) and (tmp_path/name).read_bytes() == (tmp_path/f'whole-{name}').read_bytes()
    assert sorted(o.name for o in tmp_path.iterdir()) == sorted([name, f'whole-{name}', 'plate'])


@pytest.fixture(scope='module')
def steady(trained):
    "The bundle with a threshold in the middle, so that locations differ by what decides"
    return replace(load_bundle(trained[1]), thresholds=plain_thresholds(.5, 28))


def test_each_class_is_given_as_often_as_it_is_known_to_occur(small_atlas, steady, tmp_path):
    "In memory, in a file, and in one that was begun by a run that was stopped; flags follow"
    folder, options = small_atlas/'train', dict(model=steady, thresholds='prevalence', progress=False)
    with pytest.warns(UserWarning, match='matched on 90 images, which are few'): df = predict(folder, **options)
    known = Predictor(steady, thresholds='prevalence').prevalence
    given = HPA28.encode(df.Predicted).sum(0)
    assert (given == np.rint(known*90)).all() and given.max() > 5
    for c in np.flatnonzero(given):
        highest = df[NAMES[c]].nlargest(int(given[c])).index
        assert all(c in HPA28.parse(o) for o in df.Predicted[highest])
    at_one_half = predict(folder, model=steady, progress=False)
    assert np.abs(probs(df) - probs(at_one_half)).max() == 0 and (df.Predicted != at_one_half.Predicted).any()
    assert (df['flags'].str.contains('no-location') == df.Predicted.eq('')).all()
    assert df['flags'].str.contains('uncertain').any() and not at_one_half['flags'].str.contains('uncertain').any()
    others = [o.str.replace('uncertain|no-location', '', regex=True).str.strip() for o in
              (df['flags'], at_one_half['flags'])]
    assert (others[0] == others[1]).all()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        filed = predict(folder, out=tmp_path/'p.csv', embeddings=tmp_path/'e.npy', **options)
    assert filed[['Id', 'Predicted', 'Names', 'flags']].equals(df[['Id', 'Predicted', 'Names', 'flags']])
    assert np.load(tmp_path/'e.npy').shape[0] == 90


def test_rules_of_the_model_hold_where_a_prevalence_is_matched(plate, steady):
    "No image stays empty where none may; the class that stands alone does; what could not be read stays as it is"
    next(plate.rglob('*_green.png')).write_bytes(b'')
    labels = replace(HPA28, negative=0)
    rare = {**steady.config, 'metrics': [{**o, 'support': 1} for o in steady.config['metrics']]}
    crowd = {**steady.config, 'metrics': [{**o, 'support': rare['validation']['n_images']} for o in rare['metrics']]}
    never_empty = replace(steady.thresholds, at_least_one=True)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for config in (rare, crowd):
            bundle = replace(steady, config=config, labels=labels, thresholds=never_empty)
            df = predict(plate, model=bundle, thresholds='prevalence', progress=False)
            said = df[df['error'] == '']
            assert len(said) == 9 and (said.Predicted != '').all() and (df.Predicted[df['error'] != ''] == '').all()
            assert all(o == NAMES[0] or NAMES[0] not in o.split('|') for o in said.Names)
        df = predict(plate, model=replace(steady, config=rare), thresholds='prevalence', progress=False)
        assert (df.Predicted == '').all()
        df = predict(plate, model=replace(steady, config=rare), thresholds='prevalence', at_least_one=True,
                     progress=False)
        assert (df.Predicted != '').sum() == 9


def test_another_choice_of_thresholds_is_another_run(plate, trained, tmp_path):
    unfinished(plate, trained, tmp_path/'p.csv', thresholds='prevalence')
    for choice in ('model', .4):
        with pytest.raises(HPAError, match=f"thresholds was 'prevalence' and is now {choice!r}"):
            predict(plate, model=trained[1], out=tmp_path/'p.csv', bs=4, thresholds=choice, progress=False)
    assert Predictor(trained[1], thresholds=[.4]*28).about()['thresholds'] == [.4]*28


def test_a_number_decides_for_all_classes(plate, steady):
    df = predict(plate, model=steady, thresholds=.3, progress=False)
    assert [HPA28.encode([o])[0].tolist() for o in df.Predicted] == (probs(df) > np.float32(.3)).tolist()
    never_empty = replace(steady, thresholds=replace(steady.thresholds, at_least_one=True))
    assert (predict(plate, model=never_empty, thresholds=1, progress=False).Predicted != '').all()


@pytest.mark.parametrize('choice, words', [
    ('best', 'give model, prevalence, or a number'), (50, 'between 0 and 1'), ([.5], 'one for each of the 28 classes'),
    ('prevalence', 'not known how often each class occurs')], ids=str)
def test_thresholds_that_cannot_be(plate, steady, choice, words):
    unknown = replace(steady, config={**steady.config, 'validation': None})
    with pytest.raises(HPAError, match=words): predict(plate, model=unknown, thresholds=choice, progress=False)


def test_a_batch_is_as_small_as_the_largest_network_needs(trained):
    bundle = load_bundle(trained[1])
    large = replace(bundle, settings=replace(bundle.settings, size=1024))
    found = [Predictor(m, device='cpu') for m in (bundle, [bundle, large], bundle)]
    assert [p.bs for p in found] == [32, 8, 32] and [p.about()['bs'] for p in found] == [32, 8, 32]
    assert Predictor(large, device='cpu', bs=3).bs == 3


def test_the_command_matches_a_prevalence_and_says_that_images_are_few(plate, trained, tmp_path, capsys):
    args = ['predict', str(plate), '--model', str(trained[1]), '--out', str(tmp_path/'p.csv'), '--no-progress']
    assert main([*args, '--thresholds', 'most']) == 2
    assert "'most' is none of model, prevalence, and a number" in capsys.readouterr().err
    assert main([*args, '--thresholds', 'prevalence', '--watch', '--timeout', '1']) == 2
    assert 'a watched folder is never complete' in capsys.readouterr().err
    with pytest.warns(UserWarning, match='^the prevalence was matched on 10 images, which are few: .* in 20 has'):
        assert main([*args, '--thresholds', 'prevalence']) == 0
    assert '10 fields of view in' in capsys.readouterr().out
    assert main(['cells', str(plate), '--model', str(trained[1]), '--out', str(tmp_path/'c.csv'), '--no-progress',
                 '--thresholds', 'prevalence']) == 2
    assert 'among cells' in capsys.readouterr().err and not (tmp_path/'c.csv').exists()


def acquired_again(row, like):
    "Other pictures under the same names"
    for c in ('red', 'green', 'blue', 'yellow'): shutil.copy(like[c], row[c])


@pytest.mark.filterwarnings('ignore:.*have changed files')
@pytest.mark.parametrize('embeddings', [None, 'e.npy'])
def test_pictures_that_were_replaced_meanwhile_are_predicted_again(plate, trained, tmp_path, embeddings):
    "A table goes on with the pictures that are there now, and reads no others again"
    kwargs = dict(
        model=trained[1], out=tmp_path / 'p.csv', bs=4, progress=False, embeddings=embeddings and tmp_path / embeddings
    )
    rows = find_images(plate).to_dict('records')
    predictor = Predictor(trained[1], bs=4)
    with pytest.MonkeyPatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(Journal, 'finish', lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        predictor.to_file(plate, tmp_path/'p.csv', embeddings=kwargs['embeddings'], progress=False)
    acquired_again(rows[5], rows[0])
    os.remove(rows[6]['green'])
    shutil.copy(rows[1]['green'], rows[6]['green'])  # a channel alone
    reads, real = set(), ImageReader.array_and_width
    with (
        pytest.MonkeyPatch.context() as m,
        pytest.warns(UserWarning, match='2 of .* have changed files since they were predicted'),
    ):
        m.setattr(ImageReader, 'array_and_width', lambda self, row: (reads.add(row['Id']), real(self, row))[1])
        df = predict(plate, **kwargs)
    assert {rows[5]['Id'], rows[6]['Id']} <= reads and (embeddings or len(reads) == 2)
    whole = predict(plate, **{**kwargs, 'out': tmp_path/'whole.csv', 'embeddings': embeddings and tmp_path/'whole.npy'})
    assert df.equals(whole) and df.Id.is_unique
    if embeddings: assert np.allclose(np.load(tmp_path/'e.npy'), np.load(tmp_path/'whole.npy'), equal_nan=True)
    assert not list(tmp_path.glob('*.part*'))


@pytest.mark.parametrize('room', [450, 15_000, 20_500])
def test_a_full_disk_is_one_line_and_the_run_goes_on(plate, trained, tmp_path, room):
    "At the start, in the middle of the rows, and while embeddings are converted"
    import resource
    kwargs = dict(model=trained[1], out=tmp_path/'p.csv', bs=4, progress=False, embeddings=tmp_path/'e.npy')
    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, old[1]))
        with pytest.raises(HPAError, match=f'{tmp_path}/[pe].(csv|npy)[^ ]*: .*same call or command goes on'):
            predict(plate, **kwargs)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    df = predict(plate, **kwargs)
    assert df.equals(predict(plate, **{**kwargs, 'out': tmp_path/'w.csv', 'embeddings': tmp_path/'w.npy'}))
    there = sorted(o.name for o in tmp_path.iterdir() if o.is_file())
    assert there == ['e.ids.json', 'e.npy', 'p.csv', 'w.csv', 'w.ids.json', 'w.npy']


@pytest.fixture
def small_disk(tmp_path):
    "A disk of its own, of 96 kB"
    (tmp_path/'disk').mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=96k', 'tmpfs', str(tmp_path/'disk')]
    if not shutil.which('mount') or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip('no disk can be mounted here')
    yield tmp_path/'disk'
    subprocess.run(['umount', str(tmp_path/'disk')], check=True)


def test_embeddings_on_a_full_disk(plate, trained, small_disk):
    "A file that is written through a map would end the process with a signal"
    (small_disk/'filler').write_bytes(bytes(53_000))
    args = ['predict', str(plate), '--model', str(trained[1]), '--out', str(small_disk/'p.csv')]
    args += ['--embeddings', str(small_disk/'e.npy'), '--no-progress']
    done = programs.run(programs.COMMAND, *args)
    assert done.returncode == 2 and f'{small_disk}/e.npy' in done.stderr and 'No space left' in done.stderr, done
    assert 'the rows are kept in' in done.stderr.splitlines()[1] and len(done.stderr.splitlines()) == 2
    (small_disk/'filler').unlink()
    assert main(args) == 0
    assert np.load(small_disk/'e.npy').shape[0] == 10


def test_other_arguments_or_another_model_stop(plate, trained, tmp_path):
    out = tmp_path/'p.csv'
    unfinished(plate, trained, out)
    before = (tmp_path/'p.csv.part').read_bytes()
    with pytest.raises(HPAError, match='bs was 4 and is now 5'):
        predict(plate, model=trained[1], out=out, bs=5, progress=False)
    with pytest.raises(HPAError, match='models was'):
        predict(plate, model=[trained[1]] * 2, out=out, bs=4, progress=False)
    assert (tmp_path/'p.csv.part').read_bytes() == before
    whole = predict(plate, model=trained[1], bs=5, progress=False)
    forced = predict(plate, model=trained[1], out=out, bs=5, force=True, progress=False)
    assert forced.Id.tolist() == whole.Id.tolist() and sorted(p.name for p in tmp_path.iterdir()) == ['p.csv', 'plate']


def test_images_that_came_in_the_meantime_get_their_place(plate, trained, tmp_path):
    late = sorted(find_images(plate).Id)[0]
    (tmp_path/'late').mkdir()
    for f in plate.rglob(f'{late}_*'): shutil.move(f, tmp_path/'late')
    unfinished(plate, trained, tmp_path/'p.csv')
    for f in (tmp_path/'late').iterdir(): shutil.move(f, plate)
    df = predict(plate, model=trained[1], out=tmp_path/'p.csv', bs=4, progress=False)
    assert df.Id.tolist() == find_images(plate).Id.tolist() and df.Id[0] == late
    assert np.abs(probs(df) - probs(predict(plate, model=trained[1], bs=4, progress=False))).max() < 1e-5


def test_two_runs_do_not_write_one_table(plate, trained, tmp_path):
    predictor = Predictor(trained[1])
    about = dict(source=str(plate), **predictor.about(), embeddings=None)
    with Journal(tmp_path/'p.csv', result_columns(HPA28), about):
        with pytest.raises(HPAError, match='another run'): predictor.to_file(plate, tmp_path/'p.csv', progress=False)


def test_finished_pictures_do_not_wait_for_slow_ones(plate, trained, monkeypatch):
    last, real = find_images(plate).Id[9], ImageReader.array_and_width
    def slow(self, row):
        if row['Id'] == last: time.sleep(.3)
        return real(self, row)
    monkeypatch.setattr(ImageReader, 'array_and_width', slow)
    stream = Predictor(trained[1]).stream(find_images(plate), patience=.02)
    parts = [[r[0] for r in rows] for rows, _ in stream]
    assert len(parts) > 1 and sum(parts, []) == find_images(plate).Id.tolist()


def test_results_do_not_depend_on_the_neighbours(plate, trained):
    table, predictor = find_images(plate), Predictor(trained[1], bs=4)
    whole = {r[0]: r for rows, _ in predictor.stream(table) for r in rows}
    some = [r for rows, _ in predictor.stream(table, [1, 2, 6, 9]) for r in rows]
    assert [r[0] for r in some] == table.Id[[1, 2, 6, 9]].tolist() and all(r == whole[r[0]] for r in some)


def test_one_predictor_serves_many_threads(plate, trained):
    predictor, table = Predictor(trained[1], bs=4, tta=True), find_images(plate)
    whole = predictor(table)
    with ThreadPoolExecutor(4) as pool: parts = list(pool.map(lambda i: predictor(table[i % 5:i % 5+4]), range(12)))
    for i, p in enumerate(parts):
        assert p.Id.tolist() == table.Id[i % 5:i % 5+4].tolist()
        assert np.abs(probs(p) - probs(whole)[i % 5:i % 5+4]).max() < 1e-5


def test_whatever_names_pictures_can_be_predicted(plate, trained, tmp_path):
    table, predictor = find_images(plate), Predictor(trained[1])
    want = probs(predictor(table))
    table.drop(columns='layout').to_csv(tmp_path/'paths.csv', index=False)
    pixels = [read_image(r).numpy() for r in table.to_dict('records')]
    files = sorted(map(str, plate.rglob('*.png')))
    for source in (str(plate), files, tmp_path/'paths.csv', table, pixels, np.stack(pixels)):
        assert np.abs(probs(predictor(source)) - want).max() < 1e-5
    assert len(predictor(pixels[0])) == 1


def test_fields_of_different_sizes_share_a_batch(trained, plate):
    from dataclasses import replace
    bundle = load_bundle(trained[1])
    bundle.settings = replace(bundle.settings, reader=replace(bundle.settings.reader, size=None))
    arrays = [
        np.random.default_rng(i).integers(0, 255, (4, *s), np.uint8)
        for i, s in enumerate([(64, 64), (96, 80), (64, 64), (100, 100)])
    ]
    together, alone = Predictor(bundle)(arrays), [Predictor(bundle)(a) for a in arrays]
    assert np.abs(probs(together) - np.concatenate([probs(a) for a in alone])).max() < 1e-5


def test_a_mapping_of_channels_goes_from_the_model_to_the_answer(plate, trained, tmp_path):
    import torch
    import tifffile
    from hpa_fastai.deploy.saving import write_bundle
    from hpa_fastai.batches.cache import cache_key
    from hpa_fastai.cells.cells import predict_cells
    table, bundle = find_images(plate), load_bundle(trained[1])
    (tmp_path/'stacks').mkdir()
    for r in table.to_dict('records'):
        tifffile.imwrite(
            tmp_path / 'stacks' / f'{r["Id"]}.tif', read_image(r).numpy()[[1, 3, 0, 2]], photometric='minisblack'
        )
    reader = replace(bundle.settings.reader, channels={'g': 0, 'yellow': 1, 'r': 2, 'blue': 3})
    mapped = replace(
        bundle, settings=replace(bundle.settings, reader=reader), config={**bundle.config, 'reader': reader.remembered}
    )
    write_bundle(mapped, tmp_path/'mapped', torch.stack([read_image(r, 48) for r in table.head(2).to_dict('records')]))
    saved = load_bundle(tmp_path/'mapped')
    assert saved.settings.reader == reader and hash(saved.settings.reader) == hash(reader)
    assert cache_key(table, saved.settings.reader) == cache_key(table, reader)
    want = predict(plate, model=trained[1], progress=False)
    got = predict(tmp_path/'stacks', model=tmp_path/'mapped', progress=False)
    assert (got['error'] == '').all() and got.Id.tolist() == want.Id.tolist()
    assert np.abs(probs(got) - probs(want)).max() < 1e-5
    both = predict(tmp_path/'stacks', model=[saved, tmp_path/'mapped'], progress=False)
    assert np.abs(probs(both) - probs(want)).max() < 1e-5
    cells = predict_cells(Predictor(saved), find_images(tmp_path/'stacks').head(1), None, None, progress=False)
    assert set(cells['error']) <= {'', 'no cells'}


def test_pictures_of_every_kind_in_memory(plate, trained):
    import torch
    from PIL import Image
    table, predictor = find_images(plate).head(2), Predictor(trained[1])
    want, pixels = probs(predictor(table)), [read_image(r) for r in table.to_dict('records')]
    pillow = [Image.fromarray(np.moveaxis(x.numpy(), 0, -1)) for x in pixels]
    leaf = (torch.stack([torch.as_tensor(np.asarray(x)) for x in pixels])/255).requires_grad_()
    as_objects, record = np.array(pillow + [None], object)[:2], table.to_dict('records')[0]
    for source in (pillow, leaf, list(leaf), [pillow[0], leaf[1]], as_objects, record, table.iloc[0]):
        got = probs(predictor(source))
        assert np.abs(got - want[:len(got)]).max() < 5e-3  # floats are rounded once less
    assert len(predictor(pillow[0])) == 1


@pytest.mark.parametrize(
    'source, words',
    [
        (None, 'a NoneType holds no pictures'),
        (7, 'a int holds no pictures'),
        ([None, np.zeros((4, 9, 9))], '1 of 2 are not pictures, the first is a NoneType'),
        ([np.zeros((4, 9, 9)), 'a_red.png'], '1 of 2 are not pictures, the first is a str'),
    ],
)
def test_what_cannot_be_predicted_is_one_line(trained, source, words):
    with pytest.raises(HPAError, match=words) as e: predict(source, model=trained[1], progress=False)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize(
    'machine, feature, fast',
    [
        ('x86_64', None, False),
        ('x86_64', '_is_avx512_bf16_supported', True),
        ('x86_64', '_is_amx_tile_supported', True),
        ('AMD64', None, False),
        ('aarch64', '_is_avx512_bf16_supported', False),
    ],
)
def test_half_precision_only_where_it_is_fast(trained, monkeypatch, machine, feature, fast):
    "A processor that has to emulate bfloat16 computes in full precision and says so, once, unless it is forced"
    import platform
    import types
    import torch
    import hpa_fastai.deploy.predictor as inference
    monkeypatch.setattr(platform, 'machine', lambda: machine)
    monkeypatch.setattr(inference.torch.ops, 'mkldnn', types.SimpleNamespace(_is_mkldnn_bf16_supported=lambda: False))
    for name in ('_is_avx512_bf16_supported', '_is_amx_tile_supported'):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name == feature)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        predictor = Predictor(trained[1], device='cpu', precision='half')
    assert len([w for w in said if 'no instructions for bfloat16' in str(w.message)]) == (not fast)
    assert (predictor.half, 'half' in predictor.where) == (fast, fast)
    assert predictor.about()['precision'] == ('half' if fast else 'full')
    forced = Predictor(trained[1], device='cpu', precision='force-half')
    assert forced.half and forced.about()['precision'] == 'half'


def test_half_precision_is_close(plate, trained):
    full, half = (Predictor(trained[1], device='cpu', precision=p) for p in ('auto', 'force-half'))
    assert 'full' in full.where and 'half' in half.where
    diff = np.abs(probs(full(plate)) - probs(half(plate))).max()
    assert 0 < diff < .02


@pytest.mark.parametrize('name', ['e.npy', 'e.parquet'])
def test_embeddings_stand_beside_their_ids(plate, trained, tmp_path, name):
    next(plate.rglob('*_green.png')).write_bytes(b'broken')
    df = predict(plate, model=trained[1], out=tmp_path/'p.csv', embeddings=tmp_path/name, bs=4, progress=False)
    if name.endswith('npy'):
        import json
        e, ids = np.load(tmp_path/name), json.loads((tmp_path/'e.ids.json').read_text())
    else:
        e = pd.read_parquet(tmp_path/name)
        ids, e = e.Id.tolist(), e.iloc[:, 1:].to_numpy()
    assert ids == df.Id.tolist() and (np.isnan(e).all(1) == (df['error'] != '')).all() and np.isnan(e).any(1).sum() == 1
    b = Predictor(trained[1]).bundles[0]
    k = int(np.flatnonzero(df['error'] == '')[-1])
    assert np.abs(b.run(b.inputs(b.settings.reader(find_images(plate).iloc[k])[None]))[1][0] - e[k]).max() < 1e-4


ODD = ['=1+1', '-1', '@SUM(A1)', 'two\nlines', 'with, comma', 'with "quotes"', "it's", 'x'*240,
       '\U0001f52c', '..', ' leading', '%s%n', '$(touch pwned)']


def test_whatever_a_file_is_called(plate, trained, tmp_path, monkeypatch):
    "File names become Ids, and an Id is text: it is no formula, no path and no command"
    monkeypatch.chdir(tmp_path)
    row = find_images(plate).iloc[0]
    (tmp_path/'odd').mkdir()
    for name in ODD:
        for c in ('red', 'green', 'blue', 'yellow'): shutil.copy(row[c], tmp_path/'odd'/f'{name}_{c}.png')
    want = sorted(find_images('odd').Id)
    colours = ('_red', '_green', '_blue', '_yellow')
    single = [i.endswith(colours) for i in want]  # whose channels no name tells apart
    df = predict('odd', model=trained[1], out='p.csv', progress=False)
    assert df.Id.tolist() == want and len(want) >= len(ODD) - 2 and ((df['error'] == '') != single).all()
    cells = pd.read_csv('p.csv', header=None, dtype=str, keep_default_na=False)[0]
    assert not cells.str.match(r'[=+\-@\t\r]').any()
    assert sorted(os.listdir(tmp_path)) == ['odd', 'p.csv', 'plate']


def test_a_table_whose_ids_lead_elsewhere(plate, trained, tmp_path):
    table = find_images(plate).head(3)
    (tmp_path/'in').mkdir()
    df = predict(
        table.assign(Id=['../../outside', '/tmp/outside', 'x' * 300]),
        model=trained[1],
        out=tmp_path / 'in' / 'p.csv',
        progress=False,
    )
    assert (df['error'] == '').all() and os.listdir(tmp_path/'in') == ['p.csv']
    assert sorted(os.listdir(tmp_path)) == ['in', 'plate']
    with pytest.raises(HPAError, match='NUL'):
        predict(table.assign(Id=['a', 'b', 'c\0']), model=trained[1], progress=False)


def test_a_link_to_what_is_no_picture(plate, trained, tmp_path):
    (tmp_path/'secret').write_text('no picture')
    f = next(plate.rglob('*_red.png'))
    f.unlink()
    f.symlink_to(tmp_path/'secret')
    df = predict(plate, model=trained[1], progress=False)
    assert (df['error'] != '').sum() == 1 and 'not a PNG' in df['error'][df['error'] != ''].iloc[0]


def test_flags_tell_what_is_wrong(plate, trained):
    from PIL import Image, ImageFilter
    table = find_images(plate)
    for c in ('red', 'green', 'blue', 'yellow'):
        Image.open(table[c][0]).filter(ImageFilter.GaussianBlur(6)).save(table[c][0])
        Image.fromarray(np.random.default_rng(len(c)).integers(0, 256, (64, 64), dtype=np.uint8)).save(table[c][1])
    Image.open(table['green'][2]).point(lambda v: 255 if v > 2 else 0).save(table['green'][2])
    flags = predict(plate, model=trained[1], progress=False)['flags'].str.split()
    assert 'out-of-focus' in flags[0] and 'unlike-training' in flags[1] and 'saturated' in flags[2]
    for f in ('out-of-focus', 'unlike-training', 'saturated'): assert sum(f in o for o in flags[3:]) <= 1


def test_one_in_a_hundred_of_validation_is_unlike_training(trained):
    learn, path = trained
    flags = predict(learn.dls.valid_ds.items, model=path, progress=False)['flags']
    assert flags.str.contains('unlike-training').sum() <= 1


def test_existing_results_are_kept(plate, trained, tmp_path):
    out = tmp_path/'p.csv'
    out.write_text('mine')
    with pytest.raises(HPAError, match='exists'): predict(plate, model=trained[1], out=out)
    assert out.read_text() == 'mine'
    predict(plate, model=trained[1], out=out, force=True, progress=False)
    assert out.read_text().startswith('Id,Predicted')


@pytest.mark.parametrize(
    'kwargs, words',
    [
        (dict(model='nowhere'), 'train one with'),
        (dict(out='p.txt'), 'csv'),
        (dict(bs=0), 'bs: 0 is not'),
        (dict(precision='double'), 'auto, half, full'),
        (dict(embeddings='e.npy'), 'out'),
        (dict(out='no/such/p.csv'), 'no folder'),
        (dict(device='abacus'), 'abacus'),
        (dict(folder='nowhere'), 'nowhere'),
        (dict(model=[]), 'no model'),
    ],
)
def test_faults_are_one_line(plate, trained, kwargs, words):
    with pytest.raises(HPAError, match=words) as e:
        predict(**{**dict(folder=plate, model=trained[1], progress=False), **kwargs})
    assert '\n' not in str(e.value)


def test_an_empty_folder_is_called_empty(trained, tmp_path):
    with pytest.raises(HPAError, match='the folder is empty'): predict(tmp_path, model=trained[1], progress=False)


def test_predictions_are_scored_by_id(small_atlas, trained):
    df = predict(small_atlas/'train', model=trained[1], progress=False)
    truth = read_labels(small_atlas/'train.csv')
    perfect = df.merge(truth, on='Id').assign(Predicted=lambda d: d.Target).drop(columns='Target')
    assert evaluate_predictions(perfect.sample(frac=1, random_state=0), truth).macro_f1 == 1
    with pytest.warns(UserWarning, match='2 of 90'): evaluate_predictions(df[2:], truth)
    with pytest.raises(HPAError, match='none of the'): evaluate_predictions(df.assign(Id='x'), truth)


def test_full_size_competition_images(real_data, trained, tmp_path):
    df = predict(real_data/'native'/'kaggle_png', model=trained[1], out=tmp_path/'p.csv', progress=False)
    assert len(df) == 3 and (df['error'] == '').all() and np.isfinite(probs(df)).all()


def test_pseudo_coloured_jpg(real_data, trained):
    df = predict(real_data/'native'/'hpav18_jpg', model=trained[1], progress=False)
    assert len(df) == 4 and (df['error'] == '').all() and np.isfinite(probs(df)).all()


@pytest.fixture(scope='module')
def of_camera(small_atlas, tmp_path_factory):
    "A model trained on the small atlas as a 12-bit camera writes it, and the folder of its pictures"
    folder = tmp_path_factory.mktemp('camera')
    images = as_camera(small_atlas/'train', folder/'train')
    dls = HPADataLoaders.from_csv(small_atlas, images=images, size=48, bs=16, cache=folder/'cache', progress=False)
    learn = hpa_learner(dls, 'resnet10t', pretrained=False)
    with learn.no_bar(), learn.no_logging(): learn.fit_progressive(sizes=(48,), epochs=1, verbose=False)
    learn.fit_thresholds()
    return learn, learn.save_bundle(folder/'hpa_model', note=False), images


def test_depth_is_saved_with_the_model_and_belongs_to_the_files(of_camera, small_atlas, tmp_path, capsys):
    learn, model, images = of_camera
    predictor, valid = Predictor(model, device='cpu'), learn.dls.valid_ds.items
    assert predictor.readers[0].bits == 12
    expected = learn.get_preds()[0].numpy()
    assert np.abs(probs(predictor(valid))-expected).max() < 1e-4
    check_bundle(model)
    assert '12 bits of 16 are used' in capsys.readouterr().out
    eight = Predictor(model, device='cpu')(find_images(small_atlas/'train').set_index('Id').loc[valid.Id].reset_index())
    said = capsys.readouterr().out
    assert 'files of 8 bits; the model was trained on files of 12 bits' in said
    assert np.abs(probs(eight)-expected).max() < .02
    sixteen = predictor(as_camera(small_atlas/'train', tmp_path/'16', 257, set(valid.Id)))
    assert '16 bits of 16 are used' in capsys.readouterr().out
    assert np.abs(probs(sixteen)-probs(predictor(valid.sort_values('Id')))).max() < .005


def test_faint_pictures_get_the_same_answers(of_camera, small_atlas, tmp_path):
    _, model, images = of_camera
    predictor, faint = Predictor(model, device='cpu'), as_camera(small_atlas/'train', tmp_path/'faint', 4095/255/16)
    assert np.abs(probs(predictor(faint))-probs(predictor(images))).max() < .03


def test_a_value_beyond_the_depth_is_an_error_of_its_field(of_camera, small_atlas, tmp_path):
    _, model, images = of_camera
    ids = find_images(images).Id[:3]
    folder = as_camera(small_atlas/'train', tmp_path/'some', ids=set(ids))
    a = tifffile.imread(folder/f'{ids[1]}_green.tif')
    a[0, 0] = 9000
    tifffile.imwrite(folder/f'{ids[1]}_green.tif', a)
    df = Predictor(model, device='cpu', reading=dict(bits=12))(folder)
    assert (df['error']!='').tolist() == [False, True, False]
    assert 'value 9000 does not fit into bits=12' in df['error'][1] and '--bits 14' in df['error'][1]
    assert (Predictor(model, device='cpu')(folder)['error']=='').all()


def test_a_run_goes_on_with_the_depth_that_it_began_with(of_camera, small_atlas, tmp_path):
    _, model, images = of_camera
    folder, out = as_camera(small_atlas/'train', tmp_path/'some'), tmp_path/'p.csv'
    predictor = Predictor(model, device='cpu', bs=4)
    stream = predictor.stream
    def killed(*args, **kwargs):
        yield next(stream(*args, **kwargs))
        raise KeyboardInterrupt
    predictor.stream = killed
    with pytest.raises(KeyboardInterrupt): predictor.to_file(folder, out, progress=False)
    a = tifffile.imread(next(folder.glob('*_green.tif')))
    for c in ('red', 'green', 'blue', 'yellow'): tifffile.imwrite(folder/f'zz_{c}.tif', a+np.uint16(9000))
    Predictor(model, device='cpu', bs=4).to_file(folder, out, progress=False)
    df = read_predictions(out)
    assert df.Id[df['error']!=''].tolist() == ['zz'] and '--bits 14' in df['error'].iloc[-1]


@pytest.mark.parametrize('read, size, ahead, at_once', [
    (64, 48, 64, 4), (4096, 48, 8, 1), (8192, 48, 2, 1), (64, 3072, 64, 4),
])
def test_the_size_of_pictures_limits_their_number(trained, small_atlas, monkeypatch, read, size, ahead, at_once):
    "Whatever a model asks for, the pictures that wait and those that are computed take about two gigabytes"
    from hpa_fastai.deploy import predictor as module
    from hpa_fastai.deploy.bundle import Bundle
    bundle = load_bundle(trained[1])
    settings = replace(bundle.settings, size=size, reader=replace(bundle.settings.reader, size=read))
    monkeypatch.setattr(Bundle, 'folded', lambda self: self)
    predictor, said = Predictor(replace(bundle, settings=settings), num_workers=32), {}
    predictor.n_threads = 8
    def read_ahead(table, todo, readers, num_workers, ahead, *args, **kwargs):
        said['ahead'] = ahead
        return (o for o in ())
    def side_by_side(f, groups, n, *args):
        said['at once'] = n
        return (o for o in groups)
    monkeypatch.setattr(module, 'read_ahead', read_ahead)
    monkeypatch.setattr(module, 'run_side_by_side', side_by_side)
    assert list(predictor.stream(predictor.find(small_atlas/'train'))) == []
    assert said == {'ahead': ahead, 'at once': at_once}
    assert predictor.bs*4*max(read, size)**2 <= 2**29
