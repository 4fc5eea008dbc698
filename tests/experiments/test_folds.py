"Folds: every image judged by a model that has not seen it; runs go on where they stopped."
import shutil

import numpy as np
import pandas as pd
import pytest
from fastai.callback.core import Callback

from hpa_fastai.all import HPA28, Predictor, predict, read_checkpoint, read_labels, stratified_folds
from hpa_fastai.deploy.loading import load_bundle, test_bundle as check_bundle
from hpa_fastai.deploy.tables import read_predictions
from hpa_fastai.evaluate.calibration import wilson_interval
from hpa_fastai.evaluate.metrics import macro_f1
from hpa_fastai.experiments.folds import train_fold, train_folds
from hpa_fastai.experiments.options import ExperimentError


@pytest.fixture(scope='module')
def train(small_atlas, fast):
    "Train folds of the small atlas into a folder"
    def run(out, folds=3, atlas=small_atlas, **options):
        return train_folds(atlas/'train.csv', atlas/'train', out, folds, **{**fast, **options})
    return run


@pytest.fixture(scope='module')
def folds(train, tmp_path_factory):
    "Three folds of a moment's training, and the folder they are in"
    out = tmp_path_factory.mktemp('folds')/'out'
    return train(out), out


def test_every_image_is_judged_by_the_model_of_its_fold(folds, small_atlas):
    res, out = folds
    df = read_labels(small_atlas/'train.csv')
    expected = stratified_folds(df, 3, group='antibody', seed=42)
    assert res.predictions.Id.tolist() == df.Id.tolist() and res.predictions.fold.tolist() == expected.tolist()
    for k in range(3): assert set(read_predictions(out/f'fold{k}.csv').Id) == set(df.Id[expected == k])


def test_tables_are_those_of_predict(folds):
    res, out = folds
    written = read_predictions(out/'predictions.csv')
    assert list(written) == ['Id', 'Predicted', 'Names', *HPA28.classes, 'flags', 'error', 'Target', 'antibody', 'fold']
    for c in ('Id', 'Predicted', 'Names', 'flags', 'fold'): assert written[c].tolist() == res.predictions[c].tolist()
    assert len(pd.read_csv(out/'classes.csv')) == 28
    assert (written['flags'].str.contains('no-location') == (written.Names == '')).all()


def test_evaluation_is_of_the_decisions_in_the_table(folds, small_atlas):
    res, _ = folds
    targets = HPA28.encode(read_labels(small_atlas/'train.csv').Target) > 0
    assert np.isclose(res.evaluation.macro_f1, macro_f1(HPA28.encode(res.predictions.Predicted) > 0, targets))
    assert res.evaluation.n_groups
    bins = res.evaluation.reliability
    low, high = wilson_interval(bins.was, bins.decisions)
    assert (bins.high - bins.low > high - low).all()  # as wide as groups make it


def test_models_decide_as_they_were_judged(folds, small_atlas):
    res, out = folds
    p = Predictor(out)
    assert len(p.bundles) == 3 and np.allclose(p.thresholds.values, res.thresholds.values)
    metrics = p.bundles[0].config['metrics']
    assert [r['class'] for r in metrics] == list(HPA28.classes)
    assert np.isclose(metrics[0]['f1'], res.evaluation.table.f1.iloc[0])
    by_folder, by_list = (predict(small_atlas/'train', model=m, progress=False).head(8) for m in (out, res.models))
    assert by_folder.equals(by_list)


def test_models_pass_their_own_test(folds):
    assert check_bundle(folds[0].models[1]) < 1e-3


def test_each_fold_keeps_the_images_that_trained_it(folds):
    res, _ = folds
    for k, model in enumerate(res.models):
        of_others = res.predictions.Id[res.predictions.fold != k]
        assert sorted(load_bundle(model).known.Ids) == sorted(of_others)


def test_finished_folds_are_kept_and_missing_ones_come_back_the_same(folds, train):
    res, out = folds
    written = lambda: {k: (out/f'fold{k}.csv').stat().st_mtime_ns for k in (0, 2)}
    before = written()
    shutil.rmtree(out/'fold1')
    new = train(out)
    assert written() == before
    probs, new_probs = (o.predictions[list(HPA28.classes)].to_numpy(float) for o in (res, new))
    assert np.allclose(new_probs, probs, atol=2e-4)


@pytest.mark.parametrize('options, words', [
    (dict(epochs=2), 'epochs was 1 and is now 2'),
    (dict(seed=1), 'seed was 42 and is now 1'),
    (dict(loss_func='bce'), 'loss_func'),
    (dict(folds=4), 'folds was 3 and is now 4'),
    (dict(group=None), 'group')])
def test_settings_that_differ_are_named(folds, train, options, words):
    with pytest.raises(ExperimentError, match=words) as e: train(folds[1], **options)
    assert '\n' not in str(e.value)


def test_changed_labels_are_noticed(folds, small_atlas, fast):
    df = read_labels(small_atlas/'train.csv')
    df.loc[3, 'Target'] = '27'
    with pytest.raises(ExperimentError, match='labelled_images'):
        train_folds(df, small_atlas/'train', folds[1], 3, **fast)


def test_a_strange_folder_is_left_alone(train, tmp_path):
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'thesis.txt').write_text('years of work')
    for force in (False, True):
        with pytest.raises(ExperimentError, match='holds no folds'): train(tmp_path/'mine', force=force)
    assert (tmp_path/'mine'/'thesis.txt').exists()


def test_some_folds_only_and_force_begins_again(train, tmp_path):
    res = train(tmp_path/'out', trained_folds=[0])
    assert set(res.predictions.fold) == {0} and len(res.models) == 1
    assert res.evaluation.n_images == len(res.predictions) < 60
    with pytest.raises(ExperimentError, match='trained_folds'): train(tmp_path/'out', trained_folds=[3])
    res = train(tmp_path/'out', trained_folds=[2], folds=4, force=True)
    assert not (tmp_path/'out'/'fold0').exists() and set(res.predictions.fold) == {2}


@pytest.mark.filterwarnings('ignore')
def test_folds_keep_antibodies_whole_though_nobody_said_so(train, small_atlas, tmp_path):
    df = read_labels(small_atlas/'train.csv')
    res = train(tmp_path/'out', folds=2, group=None, trained_folds=[0])
    in_fold = df.Id.isin(res.predictions.Id)
    assert not set(df.antibody[in_fold]) & set(df.antibody[~in_fold]) and res.evaluation.decided == 'epoch'
    evaluation = train(tmp_path/'divided', folds=2, group=False, trained_folds=[0]).evaluation
    assert evaluation.decided == 'epoch' and evaluation.n_groups == evaluation.n_images


@pytest.mark.filterwarnings('ignore')
def test_antibodies_that_are_too_few_to_be_kept_whole(small_atlas, fast, tmp_path):
    df = read_labels(small_atlas/'train.csv')
    few = df[df.antibody.isin(df.antibody.value_counts().index[:2])]
    res = train_folds(few, small_atlas/'train', tmp_path/'out', 3, **fast | dict(group=None, trained_folds=[1]))
    assert res.evaluation.decided == 'known' and not res.evaluation.expected and np.isnan(res.thresholds.expected_f1)


@pytest.mark.filterwarnings('ignore')
def test_a_fold_of_one_or_two_large_groups(small_atlas, fast, tmp_path):
    "One group leaves no other to fit on, which is said; two of them judge each other, whichever is larger"
    df = read_labels(small_atlas/'train.csv')
    df['Plate'] = np.repeat(['a', 'b', 'c'], [45, 24, 21])
    decided = {}
    for fold in (0, 1):
        options = dict(fast, group='Plate', trained_folds=[fold])
        res = train_folds(df, small_atlas/'train', tmp_path/str(fold), 2, **options)
        plates = tuple(sorted(set(df.Plate[df.Id.isin(res.predictions.Id)])))
        decided[plates] = res.evaluation.decided
        assert np.isnan(res.thresholds.expected_f1) == (not res.evaluation.expected)
    assert decided == {('a',): 'seen', ('b', 'c'): 'epoch'}


def test_broken_images_are_in_the_table_with_the_reason(small_atlas, train, tmp_path):
    atlas, out = tmp_path/'atlas', tmp_path/'out'
    shutil.copytree(small_atlas, atlas)
    df = read_labels(atlas/'train.csv')
    (atlas/'train'/f'{df.Id[4]}_green.png').write_bytes(b'')
    with pytest.warns(UserWarning, match='1 of 90'): res = train(out, folds=2, atlas=atlas, cache=tmp_path/'cache')
    row = res.predictions.set_index('Id').loc[df.Id[4]]
    assert len(res.predictions) == 90 and 'green' in row['error'] and row.Predicted == '' and pd.isna(row.fold)
    assert res.evaluation.n_images == 89
    written = pd.read_csv(out/'predictions.csv', dtype=str, keep_default_na=False).set_index('Id')
    assert written.fold[df.Id[4]] == '' and set(written.fold) == {'', '0', '1'}


class Stop(Callback):
    "Ask for a stop after the first epoch"
    order = 100
    def after_epoch(self): self.stop_when_asked.asked = True

def test_a_stopped_training_is_no_finished_fold(train, tmp_path):
    "Ctrl-C ends the run, keeps the checkpoint, and the next run goes on from it"
    out = tmp_path/'out'
    with pytest.warns(UserWarning, match='stopped'), pytest.raises(KeyboardInterrupt):
        train(out, trained_folds=[0], epochs=3, cbs=[Stop()])
    assert (out/'fold0-training'/'checkpoint.pt').is_file() and not (out/'fold0').exists()


def test_the_speed_of_a_training_is_kept_with_it(small_atlas, fast, tmp_path):
    "Where a run was stopped between the training of a fold and the file of its model"
    df = read_labels(small_atlas/'train.csv')
    first, again = (train_fold(df, small_atlas/'train', 0, 3, folder=tmp_path/'t', **fast)
                    for _ in range(2))
    assert again.history['images_per_second'] == first.history['images_per_second'] > 0


def test_the_speed_counts_the_epochs_before_a_stop(small_atlas, fast, tmp_path):
    class Stop(Callback):
        def before_epoch(self):
            if self.epoch == 1: raise RuntimeError('the power is gone')
    df, options = read_labels(small_atlas/'train.csv'), {**fast, 'epochs': 2}
    with pytest.raises(RuntimeError, match='power'):
        train_fold(df, small_atlas/'train', 0, 3, folder=tmp_path/'t', cbs=Stop(), **options)
    kept = read_checkpoint(tmp_path/'t'/'checkpoint.pt')['parts']
    learn = train_fold(df, small_atlas/'train', 0, 3, folder=tmp_path/'t', **options)
    count = next(cb for cb in learn.cbs if type(cb).__name__ == 'CountImages')
    assert count.n == 2*kept['n'] > 0 and count.seconds > kept['seconds'] > 0
