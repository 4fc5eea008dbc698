"One expected score by every door, named for what it is, and intervals that know what images share"
import json
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest

from hpa_fastai.batches.loaders import HPADataLoaders
from hpa_fastai.cli.main import main
from hpa_fastai.deploy.saving import score_headline
from hpa_fastai.deploy.scoring import evaluate_predictions
from hpa_fastai.interpret.prediction import predict
from hpa_fastai.train.learner import hpa_learner


@pytest.fixture(scope='module')
def head(small_atlas, tmp_path_factory):
    "A learner whose head was fitted to all images, with antibodies as groups"
    dls = HPADataLoaders.from_csv(small_atlas, size=32, bs=16, group='antibody', cache=tmp_path_factory.mktemp('cache'),
                                  progress=False)
    learn = hpa_learner(dls, 'smallresnet')
    with learn.no_bar(): learn.fit_progressive(sizes=(32,), fine_tune=False, verbose=False)
    return learn


@pytest.fixture
def as_trained(trained):
    "The learner that all tests share, which keeps its evaluation and its thresholds"
    learn, bundle = trained
    evaluation, thresholds = learn.evaluation, learn._thresholds
    yield learn, bundle
    learn.evaluation, learn._thresholds = evaluation, thresholds


@pytest.fixture(scope='module')
def plain(small_atlas, tmp_path_factory):
    "The small atlas with Ids that say nothing, and a column of slides"
    place = tmp_path_factory.mktemp('plain')
    shutil.copytree(small_atlas/'train', place/'train')
    table = pd.read_csv(small_atlas/'train.csv')
    new = {old: f'field{number:03}' for number, old in enumerate(table.Id)}
    for file in (place/'train').iterdir():
        old, colour = file.stem.rsplit('_', 1)
        file.rename(file.with_name(f'{new[old]}_{colour}.png'))
    slides = pd.factorize(table.antibody)[0] + 1
    table.assign(Id=table.Id.map(new), Slide=slides).drop(columns='antibody').to_csv(place/'train.csv', index=False)
    return place


def test_expected_score_is_one_number(head, tmp_path):
    head.fit_thresholds()
    before, evaluation = head.thresholds.expected_f1, head.evaluate()
    assert evaluation.decided == 'unseen' and str(evaluation).startswith('expected macro F1')
    assert head.thresholds.expected_f1 == evaluation.macro_f1 != before
    config = json.loads((head.save_bundle(tmp_path/'model', note=False)/'config.json').read_text())
    assert config['thresholds']['expected_f1'] == pytest.approx(evaluation.macro_f1)
    assert config['validation']['decided'] == 'unseen'
    said = score_headline(config)
    assert said.startswith(f'Expected macro F1 {evaluation.macro_f1:.3f} (95 % interval')
    assert f'in {evaluation.n_groups} groups: mean of ' in said and 'expect this score on new images' in said


def test_images_that_were_used_are_named_for_it(head, as_trained):
    if head.thresholds is None: head.fit_thresholds()
    assert head.evaluate(head.dls.valid).decided == 'trained'
    learn, _ = as_trained
    assert learn.evaluate(learn.dls.train).decided == 'trained'
    seen = learn.evaluate(learn.dls.valid)
    assert seen.decided == 'seen' and 'on the images that the thresholds were fitted on' in str(seen)
    assert not seen.expected and str(seen).startswith('macro F1')


def test_the_best_epoch_was_chosen_on_these_images(as_trained):
    learn, bundle = as_trained
    evaluation = learn.evaluate()
    text = ' '.join(str(evaluation).split())
    assert evaluation.decided == 'epoch' and 'the best epoch was chosen on these images' in text
    assert 'expect a little less on new ones' in (bundle/'README.md').read_text()
    assert 'of the epoch with the lowest loss' in (bundle/'README.md').read_text()


def test_groups_of_a_learner(small_atlas, tmp_path, head):
    n_antibodies = pd.read_csv(small_atlas/'train.csv').antibody.nunique()
    assert head.evaluate().n_groups == n_antibodies
    for group, n_groups in ((None, n_antibodies), (False, 90)):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            dls = HPADataLoaders.from_csv(small_atlas, size=32, bs=16, group=group, cache=tmp_path, progress=False)
        learn = hpa_learner(dls, 'smallresnet')
        with learn.no_bar(): learn.fit_progressive(sizes=(32,), fine_tune=False, verbose=False)
        assert learn.evaluate().n_groups == n_groups


def test_evaluate_command_takes_groups(plain, trained, capsys):
    model = str(trained[1])
    def said(*options):
        assert main(['evaluate', str(plain), '--model', model, '--no-progress', *options]) == 0
        return capsys.readouterr()
    n_slides = pd.read_csv(plain/'train.csv').Slide.nunique()
    with pytest.warns(UserWarning, match='--group Slide'): unknown = said()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        grouped, none = said('--group', 'Slide'), said('--group', 'none')
    assert f'on 90 images in {n_slides} groups' in grouped.out and 'independent' not in grouped.out
    assert 'each image counts as independent' in unknown.out
    assert 'on 90 images\n' in none.out and 'independent' not in none.out
    assert main(['evaluate', str(plain), '--model', model, '--no-progress', '--group', 'Slid']) == 2
    assert "did you mean 'Slide'?" in capsys.readouterr().err


def test_predictions_take_groups_in_any_form(small_atlas, plain, trained):
    predictions = predict(plain/'train', model=trained[1], progress=False)
    truth = pd.read_csv(plain/'train.csv')
    by_column = evaluate_predictions(predictions, truth, group='Slide')
    slides = truth.set_index('Id').Slide
    by_values = evaluate_predictions(predictions, truth, group=slides.loc[predictions.Id].tolist())
    by_function = evaluate_predictions(predictions, truth, group=lambda name: slides[name])
    assert by_column.interval == by_values.interval == by_function.interval
    with pytest.warns(UserWarning, match='column Slide'): alone = evaluate_predictions(predictions, truth)
    assert alone.n_groups is None and evaluate_predictions(predictions, truth, group=False).n_groups == 90
    atlas = predict(small_atlas/'train', model=trained[1], progress=False)
    known = pd.read_csv(small_atlas/'train.csv')
    assert evaluate_predictions(atlas, known).n_groups == known.antibody.nunique()
    assert np.isfinite(by_column.interval).all()
