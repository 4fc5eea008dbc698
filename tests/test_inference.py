"Predicting a folder: same numbers as validation, every row in its place whatever happens, nothing overwritten."
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import hpa_fastai
from hpa_fastai.inference import evaluate_predictions, predict
from hpa_fastai.images import find_images
from hpa_fastai.labels import HPA28, HPAError, read_labels

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
    assert df.Id.tolist() == find_images(plate).Id.tolist() and (df.error == '').all()
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
    assert np.isnan(probs(df)[bad]).all() and (df.Predicted[bad] == '').all() and (df.error[good] == '').all()
    assert all(table.Id[i] in df.error[i] for i in bad)
    assert Path(table.green[1]).name in df.error[1] and 'blue' in df.error[9]


def test_all_broken_is_still_a_table(plate, trained):
    for f in plate.rglob('*_green.png'): f.write_bytes(b'nothing')
    df = predict(plate, model=trained[1], progress=False)
    assert len(df) == 10 and (df.error != '').all()


def test_batch_size_does_not_matter(plate, trained):
    a, b = (predict(plate, model=trained[1], bs=bs, progress=False) for bs in (1, 7))
    assert np.abs(probs(a) - probs(b)).max() < 1e-5


def test_ensemble_is_the_mean_and_decodes_once(plate, trained, tmp_path, monkeypatch):
    import torch
    from hpa_fastai.bundle import load_bundle
    one, two = load_bundle(trained[1]), load_bundle(trained[1])
    with torch.no_grad(): two.model[1][-1].weight.mul_(.5)
    pa, pb = (probs(predict(plate, model=m, progress=False)) for m in (one, two))
    import hpa_fastai.inference as inf
    reads, real = [], inf.read_images
    monkeypatch.setattr(inf, 'read_images', lambda *a: (reads.append(o) or o for o in real(*a)))
    both = probs(predict(plate, model=[one, two], progress=False))
    assert np.abs(both - (pa + pb)/2).max() < 1e-6 and np.abs(pa - pb).max() > 1e-3 and len(reads) == 10


def test_augmented_predictions_do_not_mind_turning(plate, trained, tmp_path):
    from PIL import Image
    turned = tmp_path/'turned'
    shutil.copytree(plate, turned)
    for f in turned.rglob('*.png'): Image.open(f).transpose(Image.Transpose.ROTATE_90).save(f)
    a, b = (probs(predict(p, model=trained[1], tta=True, progress=False)) for p in (plate, turned))
    assert np.abs(a - b).max() < 1e-4


def test_at_least_one(plate, trained):
    df = predict(plate, model=trained[1], at_least_one=True, progress=False)
    assert (df.Predicted != '').all() and not df.flags.str.contains('no-location').any()


def test_blank_protein_is_flagged(plate, trained):
    from PIL import Image
    f = next(plate.rglob('*_green.png'))
    Image.new('L', (64, 64)).save(f)
    df = predict(plate, model=trained[1], progress=False).set_index('Id')
    assert 'blank-protein' in df.flags[f.name.removesuffix('_green.png')]
    assert df.flags.str.contains('blank-protein').sum() == 1 and np.isfinite(probs(df)).all()


def test_existing_results_are_kept(plate, trained, tmp_path):
    out = tmp_path/'p.csv'
    out.write_text('mine')
    with pytest.raises(HPAError, match='exists'): predict(plate, model=trained[1], out=out)
    assert out.read_text() == 'mine'
    predict(plate, model=trained[1], out=out, force=True, progress=False)
    assert out.read_text().startswith('Id,Predicted')


@pytest.mark.parametrize('kwargs, words', [(dict(model='nowhere'), 'train one with'), (dict(out='p.txt'), 'csv'), (dict(out='no/such/p.csv'), 'no folder'),
                                           (dict(device='abacus'), 'abacus'), (dict(folder='nowhere'), 'nowhere'), (dict(model=[]), 'no model')])
def test_faults_are_one_line(plate, trained, kwargs, words):
    with pytest.raises(HPAError, match=words) as e: predict(**{**dict(folder=plate, model=trained[1], progress=False), **kwargs})
    assert '\n' not in str(e.value)


def test_an_empty_folder_says_what_is_expected(trained, tmp_path):
    with pytest.raises(HPAError, match='_green'): predict(tmp_path, model=trained[1], progress=False)


def test_predictions_are_scored_by_id(small_atlas, trained):
    df = predict(small_atlas/'train', model=trained[1], progress=False)
    truth = read_labels(small_atlas/'train.csv')
    perfect = df.merge(truth, on='Id').assign(Predicted=lambda d: d.Target).drop(columns='Target')
    assert evaluate_predictions(perfect.sample(frac=1, random_state=0), truth).macro_f1 == 1
    with pytest.warns(UserWarning, match='2 of 90'): evaluate_predictions(df[2:], truth)
    with pytest.raises(HPAError, match='none of the'): evaluate_predictions(df.assign(Id='x'), truth)


def test_full_size_competition_images(real_data, trained, tmp_path):
    df = predict(real_data/'native'/'kaggle_png', model=trained[1], out=tmp_path/'p.csv', progress=False)
    assert len(df) == 3 and (df.error == '').all() and np.isfinite(probs(df)).all()


def test_pseudo_coloured_jpg(real_data, trained):
    df = predict(real_data/'native'/'hpav18_jpg', model=trained[1], progress=False)
    assert len(df) == 4 and (df.error == '').all() and np.isfinite(probs(df)).all()
