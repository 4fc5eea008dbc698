"A model is fitted to labelled images without training: honest figures, a new bundle, and the old one as it was."
import re
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from hpa_fastai.cli.main import main
from hpa_fastai.basics.errors import HPAError
from hpa_fastai.batches.settings import CellCrop
from hpa_fastai.data.files import attach_images
from hpa_fastai.data.label_tables import read_labels
from hpa_fastai.data.labels import HPA28, HPA19
from hpa_fastai.deploy.bundle import Bundle
from hpa_fastai.deploy.loading import load_bundle, test_bundle as check_bundle
from hpa_fastai.deploy.predictor import Predictor
from hpa_fastai.interpret.prediction import predict
from hpa_fastai.deploy.saving import write_bundle
from hpa_fastai.evaluate.calibration import Calibration
from hpa_fastai.evaluate.metrics import macro_f1
from hpa_fastai.evaluate.thresholds import plain_thresholds
from hpa_fastai.experiments.recalibration import calibrate_model, deal_parts
from hpa_fastai.interpret.model_report import ModelReport
from hpa_fastai.models.registry import PUBLISHED, PublishedFile
from hpa_fastai.simulate.atlas import simulate_atlas

NAMES = list(HPA28.classes)


@pytest.fixture(scope='module')
def known(tmp_path_factory):
    "A network that knows simulated cells, as published models are: at one half, never evaluated, and too low here"
    import torch
    from hpa_fastai.all import HPADataLoaders, hpa_learner
    folder = tmp_path_factory.mktemp('known')
    simulate_atlas(folder/'atlas', n=150, size=64, balance='even', seed=1, difficulty='easy', progress=False)
    dls = HPADataLoaders.from_csv(folder/'atlas', size=64, bs=50, cache=folder/'cache', progress=False)
    learn = hpa_learner(dls, 'smallresnet')
    with learn.no_bar(), learn.no_logging(): learn.fit_progressive(sizes=(64,), fine_tune=False, verbose=False)
    with torch.no_grad(): learn.model[1][-1].bias -= 3
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        learn.thresholds = replace(plain_thresholds(.5, 28), at_least_one=True)
        return learn.save_bundle(folder/'hpa_model')


@pytest.fixture(scope='module')
def mine(tmp_path_factory):
    "A hundred labelled images that the model has not seen"
    folder = tmp_path_factory.mktemp('mine')
    simulate_atlas(folder, n=100, size=64, balance='even', seed=2, difficulty='easy', progress=False)
    return folder


@pytest.fixture(scope='module')
def calibrated(known, mine, tmp_path_factory):
    return calibrate_model(known, mine, tmp_path_factory.mktemp('new')/'model', group='antibody', progress=False)


def test_the_new_model_predicts_with_what_was_fitted(calibrated, known, mine):
    "In a new folder, with samples, history, evaluation and reference; the network and the model it came from stay"
    was, now = load_bundle(known), load_bundle(calibrated.path)
    assert all((a == b).all() for a, b in zip(was.model.state_dict().values(), now.model.state_dict().values()))
    assert was.thresholds.at_least_one and (was.thresholds.values == .5).all() and not was.config['validation']
    assert now.thresholds.method == 'auto' and not now.thresholds.at_least_one
    assert now.config['training']['calibrated'] == f'100 images of {mine.name}'
    assert {**was.config['training'], 'calibrated': 1}.keys() == now.config['training'].keys()
    assert now.config['validation']['n_images'] == 100 and now.config['validation']['n_groups'] > 5
    assert check_bundle(calibrated.path) < 1e-5
    card = (calibrated.path/'README.md').read_text()
    assert 'each image was scored by a fit that left it out' in card and f'100 images of {mine.name}' in card
    df = predict(attach_images(read_labels(mine/'train.csv'), mine/'train'), model=calibrated.path, progress=False)
    assert df[NAMES].sum().sum() > 0 and not df['flags'].str.contains('unlike-training').mean() > .1


def test_what_is_said_of_it_is_honest(calibrated, known, mine, tmp_path):
    "Before: what the model decided. After: each image by what has not seen it, which noise cannot flatter"
    table = attach_images(read_labels(mine/'train.csv'), mine/'train')
    as_it_was = HPA28.encode(Predictor(known)(table).Predicted)
    assert calibrated.before.macro_f1 == pytest.approx(macro_f1(as_it_was, HPA28.encode(table.Target)))
    assert calibrated.difference.scores == (calibrated.before.macro_f1, calibrated.after.macro_f1)
    without_rule = replace(load_bundle(known), thresholds=plain_thresholds(.5, 28))
    better = calibrate_model(without_rule, mine, tmp_path/'better', group='antibody', progress=False)
    assert better.difference.interval[0] > 0 and 'calibrated is better' in repr(better)
    assert better.after.macro_f1 == calibrated.after.macro_f1
    noise = pd.read_csv(mine/'train.csv').assign(Target=lambda t: np.random.default_rng(0).permutation(t.Target))
    noise.to_csv(tmp_path/'noise.csv', index=False)
    of_noise = calibrate_model(known, mine, tmp_path/'model', csv=tmp_path/'noise.csv', method='f1', progress=False)
    on_what_it_saw = HPA28.encode(Predictor(tmp_path/'model')(table).Predicted)
    assert of_noise.after.macro_f1 < .12
    assert macro_f1(on_what_it_saw, HPA28.encode(noise.Target)) > of_noise.after.macro_f1 + .05


def test_its_own_calibration_is_taken_off(known, mine, calibrated, tmp_path):
    "What a model's calibration did to its probabilities has no part in the new one, only in what it was worth before"
    bent = replace(load_bundle(known), calibration=Calibration('platt', np.full(28, .3), np.full(28, -1.), {}))
    found = calibrate_model(bent, mine, tmp_path/'model', group='antibody', progress=False)
    assert (found.bundle.thresholds.values == calibrated.bundle.thresholds.values).all()
    assert found.after.macro_f1 == calibrated.after.macro_f1
    assert found.before.scores['calibration_error'] != calibrated.before.scores['calibration_error']


def test_unlike_is_what_differs_from_these_images(calibrated, mine):
    from hpa_fastai.batches.tensors import read_image
    table = attach_images(read_labels(mine/'train.csv'), mine/'train').head(20)
    exchanged = [read_image(row).numpy()[[0, 2, 1, 3]] for _, row in table.iterrows()]
    share = [Predictor(calibrated.path)(o)['flags'].str.contains('unlike-training').mean() for o in (table, exchanged)]
    assert share[0] < .15 and share[1] > .5
    assert load_bundle(calibrated.path).config['reference']['n'] in range(35, 66)  # about half of them


def test_twenty_images_and_classes_that_none_of_them_has(known, mine, tmp_path, capsys):
    table = pd.read_csv(mine/'train.csv').head(20)
    table.to_csv(tmp_path/'few.csv', index=False)
    args = ['calibrate', str(known), str(mine), '--csv', str(tmp_path/'few.csv'), '--out', str(tmp_path/'model')]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # eighty images have no row
        assert main([*args, '--no-progress']) == 0
    said = capsys.readouterr().out
    assert re.search(r'as it was 0\.\d+, calibrated 0\.\d+; difference', said) and 'half of the 20 images' in said
    now = load_bundle(tmp_path/'model')
    support = now.thresholds.support
    assert support.min() == 0 and np.isfinite(now.thresholds.values).all()
    assert len(predict(mine/'train', model=tmp_path/'model', progress=False)) == 100
    assert main([*args, '--no-progress']) == 2 and 'exists; give another name' in capsys.readouterr().err


def test_what_cannot_be_read_is_left_out_and_named(known, mine, tmp_path, capsys):
    import shutil
    shutil.copytree(mine, tmp_path/'mine')
    broken = sorted((tmp_path/'mine'/'train').glob('*_green.png'))[3]
    broken.write_bytes(b'')
    args = ['calibrate', str(known), str(tmp_path/'mine'), '--out', str(tmp_path/'model'), '--no-progress']
    assert main(args) == 1
    said = capsys.readouterr()
    assert broken.name in said.err and '1 of 100 fields of view could not be read' in said.err
    assert load_bundle(tmp_path/'model').config['training']['calibrated'] == '99 images of mine'


def test_published_origin_goes_along(known, mine, tmp_path, monkeypatch):
    "Where a model came from, and the test vectors that were published with it"
    bundle = load_bundle(known)
    model = replace(PUBLISHED['hpa-densenet121'], name='some-model', arch=bundle.config['model']['arch'],
                    labels=bundle.labels, settings=bundle.settings, files=(PublishedFile('model.onnx', '', '0'*64),))
    monkeypatch.setitem(PUBLISHED, 'some-model', model)
    published = dict(name='some-model', task='fields', files={'model.onnx': '0'*64}, address='https://example.org/model',
                     licence='MIT', citation='Somebody, 2019', checked='outputs', difference=1e-6)
    bundle = Bundle.assemble(bundle.model, bundle.labels, bundle.settings, bundle.thresholds, published=published)
    x = np.random.default_rng(0).normal(size=(1, 4, 64, 64)).astype(np.float32)
    import torch
    with torch.no_grad(): probs = bundle.model(torch.from_numpy(x)).sigmoid().numpy()
    sample = torch.randint(0, 255, (1, 4, 64, 64), dtype=torch.uint8)
    write_bundle(bundle, tmp_path/'published', sample, published=dict(published_input=x, published_probs=probs))
    calibrate_model(tmp_path/'published', mine, tmp_path/'model', progress=False)
    assert load_bundle(tmp_path/'model').config['published'] == published
    assert check_bundle(tmp_path/'model') < 1e-4
    with np.load(tmp_path/'model'/'sample.npz') as arrays: assert (arrays['published_probs'] == probs).all()


@pytest.mark.parametrize('change, words', [
    (lambda o, t: o.update(model=[o['model']]*2), '2 models that decide together'),
    (lambda o, t: o.update(csv='none.csv'), 'no such file or folder'),
    (lambda o, t: o.update(images='none'), 'no such file or folder'),
    (lambda o, t: o.update(group='plate'), "no column 'plate'"),
    (lambda o, t: o.update(method='best'), "threshold method 'best' is unknown"),
    (lambda o, t: o.update(calibration='best'), "calibration method 'best' is unknown"),
    (lambda o, t: o.update(model=t/'nowhere'), 'nowhere'),
    (lambda o, t: t.joinpath('new').mkdir(), 'exists; give another name'),
    (lambda o, t: o.update(bs=0), 'bs: 0'),
], ids=range(9))
def test_refused_in_one_line(known, mine, tmp_path, change, words):
    options = dict(model=known, data=mine, out=tmp_path/'new')
    change(options, tmp_path)
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(HPAError, match=words) as told: calibrate_model(**options, progress=False)
    assert '\n' not in str(told.value) and sorted(tmp_path.rglob('*')) == before


def test_models_and_tables_that_do_not_fit(known, mine, tmp_path):
    bundle = load_bundle(known)
    cells = replace(bundle, settings=replace(bundle.settings, crop=CellCrop(size=None)))
    with pytest.raises(HPAError, match='single cells'): calibrate_model(cells, mine, tmp_path/'new', progress=False)
    pd.DataFrame(dict(Id=pd.read_csv(mine/'train.csv').Id, Target='Nucleoplasm elsewhere')).to_csv(
        tmp_path/'other.csv', index=False)
    with pytest.raises(HPAError, match='other.csv: 100 rows .*row 2 and 99 more'):
        calibrate_model(known, mine, tmp_path/'new', tmp_path/'other.csv', progress=False)
    pd.read_csv(mine/'train.csv').head(9).to_csv(tmp_path/'nine.csv', index=False)
    with pytest.raises(HPAError, match='9 labelled images are too few'), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        calibrate_model(known, mine, tmp_path/'new', tmp_path/'nine.csv', progress=False)


def test_a_score_of_one_group_has_no_interval_and_promises_nothing_for_others(known, mine, tmp_path):
    with pytest.warns(UserWarning, match='all 100 images are of one group'):
        found = calibrate_model(known, mine, tmp_path/'new', group=lambda id_: 'plate7', progress=False)
    now = load_bundle(tmp_path/'new')
    card, model = (tmp_path/'new'/'README.md').read_text(), ModelReport(now, 'new')
    for text in repr(found), card, model.page():
        assert 'all images are of one group' in text and '(95 % interval' not in text
        assert 'expected macro F1' not in text.lower()
    assert 'no interval is known' in model.reliability_section().text
    of_class = [now.config['metrics'][0][k] for k in ('low', 'high')]
    assert now.config['validation']['interval'] == of_class == [None, None]


def test_images_that_trained_the_model_promise_nothing_for_others(known, tmp_path):
    with pytest.warns(UserWarning, match='150 images trained the model'):
        found = calibrate_model(known, known.parent/'atlas', tmp_path/'new', progress=False)
    assert found.after.decided == 'trained' and np.isnan(found.bundle.thresholds.expected_f1)
    assert 'expected' not in repr(found).lower() and 'this is no score for new images' in repr(found)


def test_a_named_column_with_one_image_a_well_is_taken_at_its_word(known, mine, tmp_path):
    table = pd.read_csv(mine/'train.csv').assign(Site=range(100))
    table.to_csv(tmp_path/'sites.csv', index=False)
    found = calibrate_model(known, mine, tmp_path/'new', csv=tmp_path/'sites.csv', group='Site', progress=False)
    assert found.after.n_groups == found.difference.n_groups == 100
    assert 'one by one' not in repr(found) and 'group=' not in repr(found)


def test_a_negative_class_stands_alone_in_the_new_model(known, mine, tmp_path):
    "And a bundle that already predicts by it is calibrated with it"
    bundle = replace(load_bundle(known), labels=replace(HPA28, negative=3))
    found = calibrate_model(bundle, mine, tmp_path/'new', progress=False)
    assert found.bundle.thresholds.exclusive == 3
    df = predict(mine/'train', model=tmp_path/'new', progress=False)
    assert all(o == NAMES[3] or NAMES[3] not in o.split('|') for o in df.Names) and HPA19.negative is not None


@pytest.mark.parametrize('sizes', [[1]*20, [19, 1], [20], [5, 5, 5, 5], [7, 1, 1, 1, 9, 1]])
def test_groups_stay_whole(sizes):
    groups = np.repeat(np.arange(len(sizes)), sizes)
    for n in (2, 5):
        parts = deal_parts(groups, n, seed=1)
        assert 2 <= len(set(parts)) <= n
        if len(sizes) > 1: assert all(len(set(parts[groups == g])) == 1 for g in range(len(sizes)))
