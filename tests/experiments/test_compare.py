"Folds and experiments: every image judged by a model that has not seen it; runs go on; failures stay where they are."
import json
import shutil

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use('agg')
from hpa_fastai.all import HPA28, ImageReader, Predictor, predict, read_labels, stratified_folds
from hpa_fastai.cli.main import main
from hpa_fastai.evaluate.crossfit import crossfit
from hpa_fastai.experiments.compare import check_experiments, compare, read_experiments
from hpa_fastai.experiments.folds import train_folds
from hpa_fastai.experiments.options import ExperimentError, split_options
from hpa_fastai.data.labels import HPAError
from hpa_fastai.evaluate.metrics import macro_f1, simulate_scores
from hpa_fastai.deploy.tables import read_predictions

FAST = dict(arch='lenet5', pretrained=False, size=32, sizes=(32,), epochs=1, bs=16)


@pytest.fixture(scope='module')
def cache(tmp_path_factory): return tmp_path_factory.mktemp('cache')


@pytest.fixture(scope='module')
def folds(small_atlas, cache, tmp_path_factory):
    "Three folds of a moment's training, and the folder they are in"
    out = tmp_path_factory.mktemp('folds')/'out'
    return train_folds(small_atlas/'train.csv', small_atlas/'train', out, 3, group='antibody', progress=False, cache=cache, **FAST), out


def again(small_atlas, out, cache, n_folds=3, **kwargs):
    return train_folds(small_atlas/'train.csv', small_atlas/'train', out, n_folds, **{**dict(group='antibody', progress=False, cache=cache), **FAST, **kwargs})


def test_a_class_that_stands_alone_out_of_fold():
    probs, targets = simulate_scores(300, seed=3)
    targets[targets[:, 0], 1:] = False
    free, alone = (crossfit(probs, targets, np.arange(300)%3, calibration=None, exclusive=o) for o in (None, 0))
    assert alone.preds[alone.preds[:, 0]].sum(1).max() == 1 < free.preds[free.preds[:, 0]].sum(1).max()
    assert alone.thresholds.exclusive == 0


def test_every_image_is_judged_by_the_model_of_its_fold(folds, small_atlas):
    res, out = folds
    df = read_labels(small_atlas/'train.csv')
    expected = stratified_folds(df, 3, group='antibody', seed=42)
    assert res.predictions.Id.tolist() == df.Id.tolist() and res.predictions.fold.tolist() == expected.tolist()
    for k, model in enumerate(res.models):
        raw = read_predictions(out/f'fold{k}.csv')
        assert set(raw.Id) == set(df.Id[expected == k])


def test_tables_are_those_of_predict(folds):
    res, out = folds
    written = read_predictions(out/'predictions.csv')
    assert list(written) == ['Id', 'Predicted', 'Names', *HPA28.classes, 'flags', 'error', 'fold']
    for c in ('Id', 'Predicted', 'Names', 'flags'): assert written[c].tolist() == res.predictions[c].tolist()
    assert written.fold.tolist() == res.predictions.fold.tolist()
    assert len(pd.read_csv(out/'classes.csv')) == 28
    with_names = written[written.Names != '']
    assert not with_names['flags'].str.contains('no-location').any() and written[written.Names == '']['flags'].str.contains('no-location').all()


def test_evaluation_is_of_the_decisions_in_the_table(folds, small_atlas):
    res, _ = folds
    targets = HPA28.encode(read_labels(small_atlas/'train.csv').Target)
    assert np.isclose(res.evaluation.macro_f1, macro_f1(HPA28.encode(res.predictions.Predicted) > 0, targets > 0))
    assert res.evaluation.n_groups


def test_a_fold_s_thresholds_do_not_know_it():
    "Change one part's labels: its own decisions stay"
    rng = np.random.default_rng(0)
    targets, parts = rng.random((120, 28)) < .2, np.arange(120) % 3
    probs = np.clip(targets*.4 + rng.random((120, 28))*.6, 0, 1)
    other = targets.copy()
    other[parts == 0] = ~other[parts == 0]
    a, b = (crossfit(probs, t, parts, calibration=None) for t in (targets, other))
    assert (a.preds[parts == 0] == b.preds[parts == 0]).all() and (a.preds[parts == 1] != b.preds[parts == 1]).any()


def test_calibration_leaves_the_ranking_over_all_folds():
    "One line a class for all parts; what is judged as calibrated has not seen its part"
    rng = np.random.default_rng(0)
    targets, parts = rng.random((120, 28)) < .2, np.arange(120) % 3
    probs = np.clip(targets*.3 + rng.random((120, 28))*.4 + .01, 0, 1)
    d = crossfit(probs, targets, parts, calibration='platt')
    ranks = lambda p: np.argsort(np.argsort(p, 0), 0)
    assert (ranks(d.probs) == ranks(probs)).all() and (ranks(d.unseen_probs) != ranks(probs)).any()
    other = targets.copy()
    other[parts == 0] = ~other[parts == 0]
    assert np.allclose(crossfit(probs, other, parts, calibration='platt').unseen_probs[parts == 0], d.unseen_probs[parts == 0])


def test_models_decide_as_they_were_judged(folds, small_atlas):
    res, out = folds
    p = Predictor(out)
    assert len(p.bundles) == 3 and np.allclose(p.thresholds.values, res.thresholds.values)
    metrics = p.bundles[0].config['metrics']
    assert [r['class'] for r in metrics] == list(HPA28.classes) and np.isclose(metrics[0]['f1'], res.evaluation.table.f1.iloc[0])
    one, by_list = (predict(small_atlas/'train', model=m, progress=False).head(8) for m in (out, res.models))
    assert one.equals(by_list)


def test_models_pass_their_own_test(folds):
    from hpa_fastai.deploy.loading import test_bundle
    assert test_bundle(folds[0].models[1]) < 1e-3


def test_finished_folds_are_kept_and_missing_ones_come_back_the_same(folds, small_atlas, cache):
    res, out = folds
    kept = {k: (out/f'fold{k}.csv').stat().st_mtime_ns for k in (0, 2)}
    shutil.rmtree(out/'fold1')
    new = again(small_atlas, out, cache)
    assert {k: (out/f'fold{k}.csv').stat().st_mtime_ns for k in (0, 2)} == kept
    classes = list(HPA28.classes)
    assert np.allclose(new.predictions[classes].to_numpy(float), res.predictions[classes].to_numpy(float), atol=2e-4)


@pytest.mark.parametrize('kwargs, words', [(dict(epochs=2), 'epochs was 1 and is now 2'), (dict(seed=1), 'seed was 42 and is now 1'), (dict(loss_func='bce'), 'loss_func'),
                                           (dict(n_folds=4), 'n_folds was 3 and is now 4'), (dict(group=None), 'group')])
def test_settings_that_differ_are_named(folds, small_atlas, cache, kwargs, words):
    with pytest.raises(ExperimentError, match=words) as e: again(small_atlas, folds[1], cache, **kwargs)
    assert '\n' not in str(e.value)


def test_changed_labels_are_noticed(folds, small_atlas, cache):
    df = read_labels(small_atlas/'train.csv')
    df.loc[3, 'Target'] = '27'
    with pytest.raises(ExperimentError, match='labelled_images'): train_folds(df, small_atlas/'train', folds[1], 3, group='antibody', progress=False, cache=cache, **FAST)


def test_force_begins_again_and_a_strange_folder_is_left_alone(small_atlas, cache, tmp_path):
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'thesis.txt').write_text('years of work')
    for force in (False, True):
        with pytest.raises(ExperimentError, match='holds no folds'): again(small_atlas, tmp_path/'mine', cache, force=force)
    assert (tmp_path/'mine'/'thesis.txt').exists()
    again(small_atlas, tmp_path/'out', cache, folds=[0])
    res = again(small_atlas, tmp_path/'out', cache, folds=[2], n_folds=4, force=True)
    assert not (tmp_path/'out'/'fold0').exists() and set(res.predictions.fold) == {2}


def test_some_folds_only(small_atlas, cache, tmp_path):
    res = again(small_atlas, tmp_path/'out', cache, folds=[1])
    assert set(res.predictions.fold) == {1} and len(res.models) == 1 and res.evaluation.n_images == len(res.predictions) < 60
    with pytest.raises(ExperimentError, match='folds'): again(small_atlas, tmp_path/'out', cache, folds=[3])


def test_broken_images_are_in_the_table_with_the_reason(small_atlas, tmp_path):
    shutil.copytree(small_atlas, tmp_path/'atlas')
    df = read_labels(tmp_path/'atlas'/'train.csv')
    (tmp_path/'atlas'/'train'/f'{df.Id[4]}_green.png').write_bytes(b'')
    with pytest.warns(UserWarning, match='1 of 90'): res = again(tmp_path/'atlas', tmp_path/'out', tmp_path/'cache', n_folds=2)
    row = res.predictions.set_index('Id').loc[df.Id[4]]
    assert len(res.predictions) == 90 and 'green' in row['error'] and row.Predicted == '' and pd.isna(row.fold)
    assert res.evaluation.n_images == 89


def test_options_find_their_function():
    parts = split_options(dict(arch='lenet5', lr=1e-3, wd=.1, sizes=(32, 64), oversample=0, reader=ImageReader(size=64)))
    assert set(parts['data']) == {'oversample', 'reader', 'size'} and set(parts['model']) == {'arch', 'wd'} and set(parts['fit']) == {'lr', 'sizes'}
    with pytest.raises(ExperimentError, match="'epoch'.*did you mean epochs"): split_options(dict(epoch=3))


@pytest.mark.parametrize('experiments, words', [([dict(arch='lenet5')], 'number 1 has no name'), ([dict(name='a'), dict(name='a')], "'a' stands there more than once"),
                                                (dict(a=dict(losss=1)), 'experiments, a: option'), ('abc', 'by the name'), (dict(a=3), 'by the name')])
def test_experiments_that_make_no_sense_are_said(experiments, words):
    with pytest.raises(ExperimentError, match=words): check_experiments(experiments)


@pytest.mark.parametrize('name, text', [('e.yaml', 'a: {}\nb: {size: 48, sizes: [32, 48]}\n'), ('e.json', '[{"name": "a"}, {"name": "b", "size": 48, "sizes": [32, 48]}]'),
                                        ('e.csv', 'name,size,sizes\na,,\nb,48,"[32, 48]"\n'), ('e.CSV', 'sep=;\nname;size; sizes\na;;\nb;48;[32, 48]\n'),
                                        ('e.csv', 'name\tsize\tsizes\na\t\t\nb\t48\t[32, 48]\n'.encode('utf-16'))])
def test_experiments_come_from_files(tmp_path, name, text):
    (tmp_path/name).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert read_experiments(tmp_path/name) == dict(a={}, b=dict(size=48, sizes=[32, 48]))


def test_files_of_experiments_that_cannot_be_read(tmp_path):
    (tmp_path/'e.yaml').write_text('a: [1,\n')
    for name in ('e.yaml', 'none.yaml'):
        with pytest.raises(ExperimentError, match=name) as e: read_experiments(tmp_path/name)
        assert '\n' not in str(e.value)
    for name, raw, words in (('e.xlsx', b'PK\x03\x04', 'a zip archive'), ('e.csv', 'name,lr\n'.encode('utf-16')[:-1], 'breaks off'),
                             ('d.csv', b'name,lr,lr\na,1,2\n', "two columns called 'lr'")):
        (tmp_path/name).write_bytes(raw)
        with pytest.raises(ExperimentError, match=words): read_experiments(tmp_path/name)


def test_a_decimal_comma_is_a_decimal_point(tmp_path):
    (tmp_path/'e.csv').write_text('name;lr\na;0,01\n')
    assert read_experiments(tmp_path/'e.csv') == dict(a=dict(lr=.01))


@pytest.fixture(scope='module')
def compared(small_atlas, cache, tmp_path_factory):
    "Four experiments, one of which can't be run"
    out = tmp_path_factory.mktemp('compared')/'out'
    trials = dict(base={}, bce=dict(loss_func='bce'), broken=dict(arch='mixer_s16_224', sizes=(16, 32)))
    run = lambda **kwargs: compare(small_atlas/'train.csv', small_atlas/'train', out, trials, archs=['resnet10t'], group='antibody', progress=False, cache=cache, **{**FAST, **kwargs})
    return run, run(), out


def test_experiments_stand_side_by_side(compared):
    _, table, out = compared
    assert table.index.tolist() == ['resnet10t', 'base', 'bce', 'broken']
    ok = table.drop('broken')
    assert (ok['error'] == '').all() and ok[['macro_f1', 'low', 'high', 'mean_ap', 'minutes', 'parameters', 'images_per_second']].notna().all(axis=None)
    assert (ok.low <= ok.macro_f1).all() and (ok.macro_f1 <= ok.high).all() and ok.parameters['resnet10t'] > ok.parameters['base'] == ok.parameters['bce']
    assert np.isclose(ok.difference['bce'], ok.macro_f1['bce'] - ok.macro_f1['resnet10t']) and np.isnan(ok.difference['resnet10t'])
    assert pd.read_csv(out/'experiments.csv').name.tolist() == table.index.tolist() and (out/'experiments.png').stat().st_size > 10_000


def test_the_split_is_the_same(compared):
    _, _, out = compared
    ids = [read_predictions(out/name/'predictions.csv').Id.tolist() for name in ('base', 'bce', 'resnet10t')]
    assert ids[0] == ids[1] == ids[2]


def test_a_failure_is_a_row_and_the_others_go_on(compared):
    _, table, out = compared
    assert 'does not take pictures of 16 px' in table['error']['broken'] and np.isnan(table.macro_f1['broken'])
    assert 'Traceback' in (out/'broken'/'error.txt').read_text()


def test_experiments_go_on(compared):
    run, table, out = compared
    before = {p: p.stat().st_mtime_ns for p in out.glob('*/fold0.csv')}
    assert run().drop(columns='error').equals(table.drop(columns='error'))
    assert {p: p.stat().st_mtime_ns for p in out.glob('*/fold0.csv')} == before and len(before) == 3


def test_wrong_networks_are_refused_at_once(small_atlas, tmp_path):
    with pytest.raises(HPAError, match='resnet18'): compare(small_atlas/'train.csv', small_atlas/'train', tmp_path/'out', archs=['resnet_18'])
    with pytest.raises(ExperimentError, match='nothing to compare'): compare(small_atlas/'train.csv', small_atlas/'train', tmp_path/'out')
    assert not (tmp_path/'out').exists()


def test_folds_and_comparison_from_the_shell(small_atlas, cache, tmp_path, capsys):
    base = [str(small_atlas), '--group', 'antibody', '--pretrained', 'no', '--size', '32', '--sizes', '32', '--epochs', '1', '--bs', '16', '--cache', str(cache), '--no-progress']
    assert main(['train', *base, '--arch', 'lenet5', '--folds', '2', '--out', str(tmp_path/'models')]) == 0
    said = capsys.readouterr().out
    assert 'macro F1' in said and '2 models' in said
    assert main(['predict', str(small_atlas/'train'), '--model', str(tmp_path/'models'), '--out', str(tmp_path/'p.csv'), '--no-progress']) == 0
    (tmp_path/'e.yaml').write_text('bce: {arch: lenet5, loss_func: bce}\n')
    assert main(['compare', *base, '--archs', 'lenet5', '--experiments', str(tmp_path/'e.yaml'), '--out', str(tmp_path/'exp')]) == 0
    said = capsys.readouterr().out
    assert 'lenet5' in said and 'bce' in said and 'images_per_second' in said and (tmp_path/'exp'/'experiments.png').is_file()
    assert main(['train', *base, '--folds', '2', '--fold', '1', '--out', str(tmp_path/'x')]) == 2
    assert main(['compare', *base, '--archs', 'resnet_18', '--out', str(tmp_path/'x')]) == 2
    assert json.loads((tmp_path/'models'/'settings.json').read_text())['n_folds'] == 2


def test_a_stopped_training_is_no_finished_fold(small_atlas, cache, tmp_path):
    "Ctrl-C ends the run, keeps the checkpoint, and the next run goes on from it"
    from fastai.callback.core import Callback
    class Stop(Callback):
        order = 100
        def after_epoch(self): self.stop_when_asked.asked = True
    kwargs = dict(cache=cache, folds=[0], epochs=3)
    with pytest.warns(UserWarning, match='stopped'), pytest.raises(KeyboardInterrupt): again(small_atlas, tmp_path/'out', **kwargs, cbs=[Stop()])
    assert (tmp_path/'out'/'fold0-training'/'checkpoint.pt').is_file() and not (tmp_path/'out'/'fold0').exists()
