"What printed numbers promise, by simulation: few runs, and limits that chance alone does not reach"
import json

import numpy as np
import pandas as pd
import pytest
from hpa_fastai.data.labels import HPA28
from hpa_fastai.evaluate.calibration import (
    calibrate, calibration_error, crossfit_calibration, expit, fit_isotonic, log_losses, logit,
    perfect_calibration_error, reliability)
from hpa_fastai.evaluate.evaluation import class_intervals, compare_models, evaluate
from hpa_fastai.evaluate.metrics import (
    MetricError, average_precision, bootstrap_f1, confusion_counts, f1_interval, group_numbers, independent_images,
    macro_f1, simulate_scores)
from hpa_fastai.evaluate.threshold_methods import f1_optimum
from hpa_fastai.evaluate.thresholds import f1_curves, fit_thresholds


@pytest.fixture(scope='module')
def everything():
    "Scores and labels of so many images that they stand for all"
    return simulate_scores(100_000, sample=10**6)


def true_f1(everything, thresholds=.3):
    probs, targets = everything
    hits, alarms, missed = confusion_counts(probs > thresholds, targets)
    return 2*hits/(2*hits + alarms + missed)


@pytest.mark.parametrize('n, group_size', [(60, 1), (60, 6), (600, 1), (600, 6)])
def test_interval_of_macro_f1_holds_the_truth_of_the_classes_present(everything, n, group_size):
    true, held = true_f1(everything), []
    for run in range(50):
        p, t = simulate_scores(n, sample=run + 1, group_size=group_size)
        groups = None if group_size == 1 else np.arange(n)//group_size
        low, high = f1_interval(p > .3, t, groups, n_draws=100)
        assert 0 <= low <= macro_f1(p > .3, t) <= high <= 1
        held.append(low <= true[t.any(0)].mean() <= high)
    assert np.mean(held) >= .86


@pytest.mark.parametrize('n_groups', [2, 5])
def test_intervals_hold_with_few_groups(everything, n_groups):
    true, held, of_classes = true_f1(everything), [], []
    for run in range(40):
        group = np.arange(120)*n_groups//120
        p, t = simulate_scores(120, sample=run + 1, group_size=120//n_groups)
        if not t.any(): continue
        draws = bootstrap_f1(p > .3, t, group, 100)
        low, high = f1_interval(p > .3, t, group, draws=draws)
        held.append(low <= true[t.any(0)].mean() <= high)
        low, high = class_intervals(p > .3, t, draws, group)
        of_classes += ((low <= true) & (true <= high))[t.any(0)].tolist()
    assert np.mean(held) >= .86 and np.mean(of_classes) > .8


def test_images_of_one_group_have_no_interval():
    p, t = simulate_scores(120)
    one = evaluate(p, t, .3, HPA28, groups=['plate 1']*120, decided='unseen')
    assert np.isnan(one.interval).all() and one.table[['low', 'high']].isna().all(axis=None) and not one.expected
    assert 'new images' not in str(one)
    assert one.reliability[['low', 'high']].isna().all(axis=None)
    text = str(one)
    assert text.startswith('macro F1 ') and 'on 120 images in one group' in text and 'nan' not in text
    assert 'all images are of one group' in text and '(95 % interval' not in text
    json.dumps([one.to_dict(), one.class_records()], allow_nan=False)
    assert np.isnan(f1_curves(p, t, 3, groups=[0]*120)[2:]).all()


def test_reliability_knows_groups():
    p, t = (np.repeat(x, 4, axis=0) for x in simulate_scores(300))
    copies, thirds = np.arange(1200)//4, np.arange(1200)//400
    alone, grouped, few = (reliability(p, t, groups=groups) for groups in (None, copies, thirds))
    width = [(r.high - r.low).to_numpy() for r in (alone, grouped, few)]
    assert (width[1] > 1.6*width[0])[1:].all() and (width[2] > width[1])[1:].all()


def test_one_image_of_each_class_is_no_certainty():
    one = np.eye(28, dtype=bool)
    low, high = f1_interval(one, one)
    assert low < .9 and high == 1
    assert f1_interval(one & False, one)[0] == 0 and f1_interval(one & False, one)[1] > .1


def test_interval_of_a_class_knows_groups():
    p, t = simulate_scores(600, group_size=6)
    alone, grouped = evaluate(p, t, .3), evaluate(p, t, .3, groups=np.arange(600)//6)
    there = (alone.table.support > 30).to_numpy()
    widths = [(ev.table.high - ev.table.low)[there] for ev in (alone, grouped)]
    assert np.median(widths[1]/widths[0]) > 1.2


@pytest.mark.parametrize('empty', [None, float('nan'), '', ' ', pd.NA, pd.NaT])
def test_an_empty_cell_is_a_group_of_its_own(empty):
    assert group_numbers(['a', empty, 'b', empty], 4).tolist() == [0, 2, 1, 3]
    assert group_numbers(pd.Series(['a', empty, 'a', empty], index=list('wxyz')), 4).tolist() == [0, 1, 0, 2]
    assert group_numbers(np.array([7, np.nan, 7, np.nan]), 4).tolist() == [0, 1, 0, 2]


def test_unknown_groups_stand_alone():
    assert group_numbers([None, 'a', None, 'a', float('nan')], 5).tolist() == [1, 0, 2, 0, 3]
    p, t = simulate_scores(300)
    unknown = np.array([None]*300, object)
    draws = (bootstrap_f1(p > .3, t, groups, 50) for groups in (unknown, np.arange(300)))
    assert np.array_equal(*draws, equal_nan=True)
    assert (independent_images(t, t, unknown) == t.sum(0)).all()
    assert (fit_thresholds(p, t, groups=unknown).values == fit_thresholds(p, t).values).all()
    for call in (evaluate, fit_thresholds, calibrate):
        with pytest.raises(MetricError, match='groups names 7 images but there are 300'): call(p, t, groups=[1]*7)


def test_the_headline_says_what_it_is_a_mean_of():
    p, t = simulate_scores(60)
    n = t.any(0).sum()
    text = str(evaluate(p, t, .3, HPA28))
    assert f'mean of the {n} of 28 classes present (support at least 1)' in text
    assert 'each image counts as independent' in text and 'a perfect model' in text
    assert 'few' not in text.split('\n')[4] and 'independent' not in str(evaluate(p, t, .3, HPA28, groups=False))
    assert '10 groups are few' in str(evaluate(p, t, .3, HPA28, groups=np.arange(60)//6))


def test_comparison_of_models_that_differ_in_nothing_or_little():
    p, t = simulate_scores(120)
    assert compare_models(p, p, t).interval == (0, 0)
    other = p.copy()
    other[t[:, 0].argmax(), 0] = 0
    comparison = compare_models(p, other, t)
    low, high = comparison.interval
    assert low < comparison.difference < 0 < high
    few = comparison.table.support.between(1, 2)
    assert (comparison.table.low[few] < 0).all() and (comparison.table.high[few] > 0).all()


def test_comparison_of_one_image_or_one_group_has_no_interval():
    p, t = simulate_scores(120)
    for rows, groups in ((slice(0, 120), ['slide']*120), (t.any(1).argmax() + np.arange(1), None)):
        one = compare_models(p[rows], p[rows]*.2, t[rows], groups=groups)
        assert np.isnan(one.interval).all() and one.table[['low', 'high']].isna().all(axis=None)
        assert 'cannot tell' in repr(one) and 'nan' not in repr(one)


def test_comparison_stays_between_minus_one_and_one_and_speaks_of_groups():
    t = np.eye(2, dtype=bool)[[0, 1]*6]
    groups = np.arange(12)//4
    found = compare_models(1. - t, t*1., t, groups=groups)
    assert found.difference == 1 == found.interval[1] and -1 <= found.interval[0]
    assert '3 groups are few' in repr(found)
    assert 'group=' in repr(compare_models(1. - t, t*1., t))
    assert ';' not in repr(compare_models(1. - t, t*1., t, groups=False)).split('draws)')[1]


def test_fewer_than_five_groups_choose_no_calibration():
    for n_groups in (1, 2, 4):
        for run in range(8):
            p, t = simulate_scores(n_groups*60, noise=0, group_size=60, sample=run + 1)
            assert calibrate(p, t, groups=np.arange(n_groups*60)//60).method == 'none'


def test_two_images_choose_no_calibration():
    for run in range(10):
        p, t = simulate_scores(2, sample=run + 1)
        assert calibrate(p, t).method == 'none'


def test_a_calibrated_model_is_left_alone_whatever_its_groups():
    for run in range(8):
        p, t = simulate_scores(360, noise=0, group_size=6, sample=run + 1)
        assert calibrate(p, t, groups=np.arange(360)//6).method == 'none'
    p, t = simulate_scores(1200, noise=1.5, group_size=6)
    assert calibrate(p, t, groups=np.arange(1200)//6).method != 'none'


def test_crossfit_calibration_does_not_divide_groups():
    "A group whose labels are wrong throughout does not teach its own images"
    p, t = simulate_scores(600, noise=1.)
    groups = np.arange(600)//60
    wrong = t.copy()
    wrong[:60] = ~wrong[:60]
    q = crossfit_calibration(p, wrong, 'platt', groups=groups)
    other = wrong.copy()
    other[:60] = ~other[:60]
    assert np.allclose(q[:60], crossfit_calibration(p, other, 'platt', groups=groups)[:60])


def test_groups_weigh_less_in_a_calibration(everything):
    "With shared labels, a line that takes images as independent is too sure of itself"
    losses = []
    for run in range(6):
        p, t = simulate_scores(240, group_size=6, sample=run + 1)
        fits = (calibrate(p, t, 'platt', groups=groups) for groups in (np.arange(240)//6, None))
        losses.append([log_losses(fit(everything[0]), everything[1]).mean() for fit in fits])
    grouped, alone = np.mean(losses, 0)
    assert grouped < alone


def test_isotonic_steps_keep_the_ranking():
    p, t = simulate_scores(3000, noise=1.)
    fitted = calibrate(p, t, 'isotonic')
    assert set(fitted.steps) == set(fit_isotonic(p, t)) and len(fitted.steps) > 5
    before, after = average_precision(expit(logit(p)), t), average_precision(fitted(p), t)
    assert np.allclose(before, after)
    assert calibration_error(fitted(p), t) < calibration_error(p, t)/5


@pytest.mark.parametrize('n, group_size', [(600, 1), (600, 6)])
def test_ranges_hold_the_best_threshold_of_all_images(everything, n, group_size):
    best, held, narrow = logit(f1_optimum(*everything)), [], []
    for run in range(6):
        p, t = simulate_scores(n, sample=run + 1, group_size=group_size)
        th = fit_thresholds(p, t, groups=np.arange(n)//group_size, folds=0)
        low, middle, high = logit(th.low), logit(th.values), logit(th.high)
        held.append((low <= best) & (best <= high))
        narrow.append((middle - (middle - low)/1.8 <= best) & (best <= middle + (high - middle)/1.8))
    assert np.mean(held) > .74 and np.mean(held) > np.mean(narrow) + .08


@pytest.mark.parametrize('method', ['auto', 'f1', 'constant', 'prevalence', 'crossfit'])
def test_expected_f1_is_that_of_later_frequencies(method):
    base = simulate_scores(50_000)[1].mean(0)
    later = (base/10).clip(.0005)
    probs, targets = simulate_scores(200_000, sample=10**6, prevalence=later)
    said, true, here = [], [], []
    for run in range(5):
        p, t = simulate_scores(1200, sample=run + 1)
        th = fit_thresholds(p, t, method, prevalence=later)
        said.append(th.expected_f1)
        here.append(fit_thresholds(p, t, method).expected_f1)
        true.append(true_f1((probs, targets), th.values)[t.any(0)].mean())
    assert abs(np.mean(said) - np.mean(true)) < .05 < np.mean(here) - np.mean(true)


def test_matching_later_frequencies_weighs_the_labelled_images():
    later = (simulate_scores(50_000)[1].mean(0)*8).clip(.002, .6)
    probs, targets = simulate_scores(20_000, sample=10**6, prevalence=later)
    p, t = simulate_scores(1200)
    given = (probs > fit_thresholds(p, t, 'prevalence', prevalence=later, folds=0).values).mean(0)
    common = t.sum(0) > 30
    assert (np.abs(given/later - 1)[common] < .35).all()


def test_a_perfect_model_reads_what_is_said_of_one():
    for by_class in (False, True):
        read, said = [], []
        for run in range(10):
            p, t = simulate_scores(150, noise=0, sample=run + 1)
            read.append(calibration_error(p, t, by_class=by_class))
            said.append(perfect_calibration_error(p, by_class=by_class, seed=run))
        assert abs(np.mean(read)/np.mean(said) - 1) < .1
    p, t = simulate_scores(600, noise=1.5)
    assert calibration_error(p, t, by_class=True) > 1.5*perfect_calibration_error(p, by_class=True)
