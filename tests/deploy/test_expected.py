"One expected score by every door, named for what it is, and intervals that know what images share"
import json
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
from fastai.callback.tracker import SaveModelCallback

from hpa_fastai.basics.errors import HPAError
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
    learn.fit_thresholds()
    assert learn.evaluate(learn.dls.train).decided == 'trained'
    seen = learn.evaluate(learn.dls.valid)
    assert seen.decided == 'seen' and 'on the images that calibration or thresholds were fitted on' in str(seen)
    assert not seen.expected and str(seen).startswith('macro F1')


def test_the_best_epoch_was_chosen_on_these_images(as_trained):
    learn, bundle = as_trained
    evaluation = learn.evaluate()
    text = ' '.join(str(evaluation).split())
    assert evaluation.decided == 'epoch' and 'the best epoch was chosen on these images' in text
    assert 'expect a little less on new ones' in (bundle/'README.md').read_text()
    assert 'of the epoch with the lowest loss' in (bundle/'README.md').read_text()


def load(small_atlas, cache, **split):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # it says that antibodies are divided
        return HPADataLoaders.from_csv(small_atlas, size=32, bs=16, cache=cache, progress=False, **split)


def fit_head_only(dls):
    learn = hpa_learner(dls, 'smallresnet')
    with learn.no_bar(): learn.fit_progressive(sizes=(32,), fine_tune=False, verbose=False)
    return learn


def test_groups_of_a_learner(small_atlas, tmp_path, head):
    "Heads by folds keep antibodies together, even where nobody named a group"
    n_antibodies = pd.read_csv(small_atlas/'train.csv').antibody.nunique()
    assert head.evaluate().n_groups == n_antibodies
    for group, n_groups, is_divided in ((None, n_antibodies, False), (False, 90, True)):
        learn = fit_head_only(load(small_atlas, tmp_path, group=group))
        scores = learn.out_of_fold
        parts = scores.items.assign(part=scores.part).groupby('antibody').part.nunique()
        assert (parts.max() > 1) == is_divided
        evaluation = learn.evaluate()
        assert evaluation.n_groups == n_groups and evaluation.decided == 'unseen'


def test_a_split_that_divides_antibodies_is_named(small_atlas, tmp_path):
    "Held out for validation are images of antibodies that the head learnt from; their number is that of the others"
    for group, decided in ((None, 'known'), ('antibody', ''), (False, '')):
        learn = fit_head_only(load(small_atlas, tmp_path, valid_pct=.5, group=group))
        evaluation = learn.evaluate()
        assert evaluation.decided == decided and not evaluation.expected
        assert ('antibodies that the model knows' in ' '.join(str(evaluation).split())) == (decided == 'known')


def test_held_out_images_do_not_set_the_thresholds(small_atlas, tmp_path):
    "As many images are held out as the head learnt from, and their labels decide nothing"
    learn = fit_head_only(load(small_atlas, tmp_path, valid_pct=.5, group=False))
    assert len(learn.out_of_fold.items) == len(learn.dls.valid_ds)
    learn.fit_thresholds()
    probs, _ = learn.get_preds()
    want = learn.decide(probs).numpy().sum(0)
    assert learn.evaluate().table.predicted.tolist() == want.tolist()


@pytest.fixture
def plainly(small_atlas, tmp_path):
    "Makes learners on images that share nothing, trained for a moment by fastai's own loop"
    def make(**kwargs):
        learn = hpa_learner(load(small_atlas, tmp_path/'cache', valid_pct=.5, group=False), 'lenet5', pretrained=False,
                            path=tmp_path)
        with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-3, **kwargs)
        return learn
    return make


def test_a_callback_that_loads_the_best_epoch_has_chosen_it_on_these_images(plainly, tmp_path):
    learn = plainly(cbs=SaveModelCallback(monitor='macro_f1'))
    assert np.isnan(learn.fit_thresholds().expected_f1)  # none is to be expected
    evaluation = learn.evaluate()
    assert evaluation.decided == 'epoch' and str(evaluation).startswith('macro F1')
    assert np.isnan(learn.thresholds.expected_f1) and 'expected' not in repr(learn.thresholds)
    file = learn.save_bundle(tmp_path/'model', note=False)
    assert score_headline(json.loads((file/'config.json').read_text())).startswith('Macro F1')
    learn.thresholds = .3
    assert learn.evaluate().decided == 'epoch'  # by hand, so that only the weights know these images
    for kept in (dict(every_epoch=True), dict(at_end=True)):
        assert plainly(cbs=SaveModelCallback(**kept)).evaluate().decided == 'unseen'


def test_a_calibration_is_not_judged_on_its_own_images(plainly):
    learn = plainly()
    learn.calibrate('platt')
    learn.thresholds = .3
    evaluation, on_own = learn.evaluate(), learn.evaluate(learn.dls.valid)
    assert evaluation.decided == 'unseen' and on_own.decided == 'seen'
    assert evaluation.scores['calibration_error_by_class'] > on_own.scores['calibration_error_by_class']
    learn.calibrate('platt', dl=learn.dls.train)
    learn.thresholds = .3
    assert learn.evaluate().decided == '' and learn.evaluate(learn.dls.train).decided == 'trained'


def test_fits_on_a_part_of_the_images(plainly):
    "Thresholds of other images are used as they are; those of some of these images have seen them"
    learn = plainly()
    items = learn.dls.valid_ds.items
    learn.fit_thresholds(dl=learn.dls.test_dl(items.iloc[:30], with_labels=True))
    assert learn.evaluate().decided == 'seen'
    learn.fit_thresholds(dl=learn.dls.test_dl(items, with_labels=True))
    assert learn.evaluate().decided == 'unseen'


def test_thresholds_for_other_frequencies_stay_so(plainly):
    learn, share = plainly(), np.full(28, .01)
    usual, as_here = learn.fit_thresholds('f1').expected_f1, learn.evaluate()
    rare = learn.fit_thresholds('f1', prevalence=share).expected_f1
    evaluation = learn.evaluate()
    assert evaluation.decided == 'prevalence' and not evaluation.expected
    assert learn.thresholds.expected_f1 == rare != usual
    assert evaluation.table.predicted.sum() < as_here.table.predicted.sum()  # cross-fitted for these frequencies, too


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
    shuffled = truth.sample(frac=1, random_state=0)
    by_function = evaluate_predictions(predictions, truth, group=lambda name: slides[name])
    assert by_column.interval == by_function.interval
    for known, group in ((truth, truth.Slide), (shuffled, shuffled.Slide), (shuffled, shuffled.Slide.tolist()),
                         (shuffled, slides), (truth, slides.loc[predictions.Id])):
        assert evaluate_predictions(predictions, known, group=group).interval == by_column.interval
    with pytest.raises(HPAError, match='89 groups for 90 rows'):
        evaluate_predictions(predictions, truth, group=truth.Slide[1:])
    with pytest.warns(UserWarning, match='30 of 90 images'):
        some = evaluate_predictions(predictions[30:], truth, group=truth.Slide)
    assert some.n_groups == slides.loc[predictions.Id[30:]].nunique()
    with pytest.warns(UserWarning, match='column Slide'): alone = evaluate_predictions(predictions, truth)
    assert alone.n_groups is None and evaluate_predictions(predictions, truth, group=False).n_groups == 90
    atlas = predict(small_atlas/'train', model=trained[1], progress=False)
    known = pd.read_csv(small_atlas/'train.csv')
    assert evaluate_predictions(atlas, known).n_groups == known.antibody.nunique()
    assert np.isfinite(by_column.interval).all()
