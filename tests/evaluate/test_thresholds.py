"Thresholds: exactness, strength from other classes, options, awkward data, and the real score tables."
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from hpa_fastai.data.labels import HPA28
from hpa_fastai.evaluate.metrics import MetricError, f1_scores, macro_f1, simulate_scores
from hpa_fastai.evaluate.threshold_methods import best_constant, f1_optimum, match_prevalence
from hpa_fastai.evaluate.thresholds import (
    THRESHOLD_METHODS, Thresholds, average_thresholds, decide, fit_thresholds, plain_thresholds, plot_f1_curves,
    prevalence_thresholds)


@pytest.fixture(scope='module')
def scores(): return simulate_scores(500, seed=2)


def brute_force(score, positive):
    cuts = np.unique(np.concatenate([[0.], score]))
    return max(f1_scores((score > c)[:, None], positive[:, None])[0] for c in cuts - 1e-12)

@pytest.mark.parametrize('seed', range(8))
@pytest.mark.parametrize('digits', [1, 2, 8])
def test_optimum_is_exact_over_all_distinct_scores(seed, digits):
    rng = np.random.default_rng(seed)
    targets = rng.random((60, 5)) < .2
    probs = np.clip(.4*targets + .6*rng.random((60, 5)), 0, 1).round(digits)
    best = f1_optimum(probs, targets)
    found = f1_scores(probs > best, targets)
    for c in np.flatnonzero(targets.any(0)): assert found[c] == pytest.approx(brute_force(probs[:, c], targets[:, c]))

def test_optimum_of_neighbouring_floats():
    low = np.float32(.3)
    probs = np.array([[low], [np.nextafter(low, np.float32(1))]], np.float32)
    th = fit_thresholds(probs, [[0], [1]], 'f1', folds=0)
    assert th.predict(probs).tolist() == [[False], [True]]

def test_best_constant_by_hand(scores):
    grid = np.arange(1, 100)/100
    macro = [macro_f1(scores[0] > g, scores[1]) for g in grid]
    assert best_constant(*scores)[0] == pytest.approx(grid[np.argmax(macro)])

def test_prevalence_matches(scores):
    probs, targets = scores
    assert ((probs > match_prevalence(probs, targets.mean(0))).sum(0) == targets.sum(0)).all()
    assert ((probs > match_prevalence(probs, np.full(28, .25))).sum(0) == 125).all()
    assert not (probs > match_prevalence(probs, np.zeros(28))).any()
    assert (probs > match_prevalence(probs, np.ones(28))).all()

def test_auto_beats_every_simple_method_on_new_images():
    "On average over models and sizes; the figures are in benchmarks/thresholds.py."
    total = dict.fromkeys(THRESHOLD_METHODS, 0.)
    for seed in range(6):
        probs, targets = simulate_scores(5000, seed=50 + seed)
        for n in (100, 600):
            for m in THRESHOLD_METHODS:
                values = fit_thresholds(probs[:n], targets[:n], m, folds=0).values
                total[m] += macro_f1(probs[2000:] > values, targets[2000:])
    assert max(total, key=total.get) == 'auto'
    assert total['auto'] > total['f1'] + 12*.01

def test_a_large_class_stands_alone_and_a_small_one_leans():
    "The same scores of one class, beside classes whose calibration says something else."
    rng = np.random.default_rng(0)
    def world(n, offset):
        targets = rng.random((n, 12)) < .25
        logits = rng.normal(np.where(targets, 1.5, -1.5), 1) + np.r_[0, np.full(11, offset)]
        return 1/(1 + np.exp(-logits)), targets
    def move(n):
        "How far the first class's threshold follows the others."
        with_high, with_low = (fit_thresholds(*world(n, o), folds=0).values for o in (3., -3.))
        return abs(np.log(with_high[0]/(1 - with_high[0])) - np.log(with_low[0]/(1 - with_low[0])))
    assert move(20000) < .2 < move(25)

def test_a_class_without_positives_takes_the_average_place():
    probs, targets = simulate_scores(500, seed=5, noise=0.)
    blind = targets.copy()
    rare = int(targets.sum(0).argmin())
    blind[:, rare] = False
    th = fit_thresholds(probs, blind, folds=0)
    assert .05 < th.values[rare] < .8 and th.support[rare] == 0
    full = fit_thresholds(probs, targets, folds=0)
    np.testing.assert_allclose(np.delete(th.values, rare), np.delete(full.values, rare), atol=.1)

def test_low_scoring_class_gets_a_low_threshold():
    rng = np.random.default_rng(1)
    probs, targets = simulate_scores(600, seed=6)
    targets[:, 15] = np.arange(600) < 6
    probs[:, 15] = np.where(targets[:, 15], rng.uniform(.04, .12, 600), rng.uniform(.0001, .01, 600))
    th = fit_thresholds(probs, targets)
    assert .005 < th.values[15] < .06

def test_same_answer_twice_and_seed_matters_little(scores):
    a, b, c = (fit_thresholds(*scores, seed=s, folds=0).values for s in (0, 0, 1))
    assert (a == b).all() and np.abs(a - c).max() < .15

def test_order_of_images_and_float32_change_nothing_much(scores):
    probs, targets = scores
    base = fit_thresholds(probs, targets, folds=0).values
    assert (fit_thresholds(probs[::-1], targets[::-1], folds=0).values == base).all()
    np.testing.assert_allclose(fit_thresholds(probs.astype(np.float32), targets, folds=0).values, base, atol=.02)

def test_expected_f1_does_not_flatter(scores):
    probs, targets = scores
    new_probs, new_targets = simulate_scores(20000, seed=2)
    for method in THRESHOLD_METHODS:
        th = fit_thresholds(probs, targets, method)
        real = macro_f1(th.predict(new_probs[500:]), new_targets[500:])
        assert abs(th.expected_f1 - real) < .08
    th = fit_thresholds(probs, targets, 'f1')
    assert th.expected_f1 < macro_f1(th.predict(probs), targets)

def test_crossfit_labels_never_touch_their_fold(scores):
    "Labels are noise: an honest expected F1 is far below the flattering one."
    probs, _ = scores
    noise = np.random.default_rng(0).random(probs.shape) < .05
    th = fit_thresholds(probs, noise, 'f1')
    assert th.expected_f1 < macro_f1(th.predict(probs), noise) - .03

def test_groups_are_kept_whole():
    "Copies of one image in all folds would make over-fitted thresholds look right."
    probs, _ = simulate_scores(80, seed=1)
    noise = np.random.default_rng(0).random(probs.shape) < .05
    copies = np.repeat(np.arange(80), 5)
    blind = fit_thresholds(probs[copies], noise[copies], 'f1').expected_f1
    assert fit_thresholds(probs[copies], noise[copies], 'f1', groups=copies).expected_f1 < blind - .02

def test_json_round_trip(scores):
    for method in (*THRESHOLD_METHODS, .3):
        th = fit_thresholds(*scores, method)
        again = Thresholds.from_dict(json.loads(json.dumps(th.to_dict())))
        assert (again.values == th.values).all() and (again.low == th.low).all()
        assert again.method == th.method and again.expected_f1 == th.expected_f1
        assert (th.low <= th.values).all() and (th.values <= th.high).all()
    unmeasured = json.dumps(fit_thresholds(*scores, folds=0).to_dict())
    assert np.isnan(Thresholds.from_dict(json.loads(unmeasured)).expected_f1)

def test_options_of_predict():
    th = Thresholds(np.array([.5, .05, .4]), np.array([.4, .03, .3]), np.array([.6, .08, .5]), 'x', np.ones(3, int))
    p = np.array([[.45, .04, .01], [.55, .2, .9], [.01, .01, .39], [.5, .05, .4]])
    assert th.predict(p).tolist() == [[0, 0, 0], [1, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert th.predict(p, at_least_one=True).sum(1).tolist() == [1, 3, 1, 1]
    assert th.predict(p, at_least_one=True)[0].tolist() == [1, 0, 0]
    assert th.predict(p, exclusive=2)[1].tolist() == [0, 0, 1]
    assert th.predict(np.array([[.99, .01, .45]]), exclusive=2).tolist() == [[1, 0, 0]]
    assert th.predict(p, at_least_one=True, exclusive=2)[2].tolist() == [0, 0, 1]
    assert th.undecided(p)[1].tolist() == [1, 0, 0] and th.predict(p, abstain=True)[1].tolist() == [0, 1, 1]
    assert th.undecided(p, .06)[0].tolist() == [1, 1, 0]
    constant = Thresholds(np.full(3, .5), np.full(3, .5), np.full(3, .5), 'x', np.ones(3, int))
    assert constant.predict(p, at_least_one=True)[2].tolist() == [0, 0, 1]

def test_a_class_that_stands_alone_stands_alone_wherever_thresholds_decide(scores):
    probs, targets = scores
    targets = targets.copy()
    targets[targets[:, 0], 1:] = False
    free, alone = (fit_thresholds(probs, targets, exclusive=o) for o in (None, 0))
    called = alone.predict(probs, at_least_one=True)
    assert called[called[:, 0]].sum(1).max() == 1 < free.predict(probs)[called[:, 0]].sum(1).max()
    assert (alone.values == free.values).all()
    assert alone.expected_f1 > free.expected_f1  # measured by the decisions that will be made
    again = Thresholds.from_dict(json.loads(json.dumps(alone.to_dict())))
    assert (again.predict(probs) == alone.predict(probs)).all()
    for odd in (28, -1, 'Nucleoplasm', True, 1.5):
        with pytest.raises(MetricError, match='not the number of a class'):
            fit_thresholds(probs, targets, exclusive=odd)

def test_thresholds_that_leave_no_image_empty(scores):
    "The rule is kept with the thresholds, holds wherever they decide, and gives way to the class that stands alone"
    probs = scores[0]
    plain = plain_thresholds(.9, 28)
    rule = replace(plain, at_least_one=True)
    empty = ~plain.predict(probs).any(1)
    named = rule.predict(probs)
    assert empty.any() and (named[empty].argmax(1) == probs[empty].argmax(1)).all()
    assert (named[empty].sum(1) == 1).all() and (named[~empty] == plain.predict(probs)[~empty]).all()
    assert (decide(probs, rule) == named).all() and (plain.predict(probs, at_least_one=True) == named).all()
    again = Thresholds.from_dict(json.loads(json.dumps(rule.to_dict())))
    older = {k: v for k, v in plain.to_dict().items() if k != 'at_least_one'}
    assert again.at_least_one and not Thresholds.from_dict(older).at_least_one
    assert [average_thresholds([rule, o]).at_least_one for o in (rule, plain)] == [True, False]
    alone = replace(rule, exclusive=0).predict(probs)
    assert alone.any(1).all() and alone[alone[:, 0]].sum(1).max() == 1
    assert not rule.predict(probs, abstain=.5).any(1).all()  # who abstains gets no stopgap

@pytest.mark.parametrize('n', [1, 7, 500])
def test_each_class_is_given_as_often_as_it_is_known_to_occur(scores, n):
    probs, share = scores[0][:n], scores[1].mean(0)
    th = prevalence_thresholds(probs, share)
    assert (th.predict(probs).sum(0) == np.rint(share*n)).all() and th.method == 'prevalence'
    assert ((0 <= th.low) & (th.low <= th.values) & (th.values <= th.high) & (th.high <= 1)).all()

def test_the_range_of_a_matched_threshold_is_that_of_other_samples():
    probs, targets = simulate_scores(40_000, seed=3)
    share = targets.mean(0)
    true = prevalence_thresholds(probs, share).values
    samples = [prevalence_thresholds(probs[k::100], share) for k in range(100)]
    above, below = np.mean([th.low > true for th in samples]), np.mean([th.high < true for th in samples])
    assert .05 < above < .13 and .05 < below < .13

@pytest.mark.parametrize('tied', [.2, 1e-9, 1.])
def test_images_that_cannot_be_told_apart_are_decided_alike(tied):
    probs = np.full((10, 2), tied)
    probs[0] = .9
    th = prevalence_thresholds(probs, [.3, 1])
    assert len({tuple(row) for row in th.predict(probs)[1:].tolist()}) == 1 and th.predict(probs)[:, 1].all()

@pytest.mark.parametrize('share', [[.1]*27, [-.1]*28, [10]*28, [np.nan]*28, .1])
def test_a_prevalence_that_is_none(scores, share):
    with pytest.raises(MetricError, match='one share between 0 and 1 for each of the 28 classes'):
        prevalence_thresholds(scores[0], share)

def test_averages_do_not_depend_on_the_order(scores):
    each = [fit_thresholds(scores[0][k::3], scores[1][k::3], m, folds=3) for k, m in enumerate(('auto', 'f1', 'auto'))]
    a, b = average_thresholds(each), average_thresholds(each[::-1])
    for name in ('values', 'low', 'high', 'support'):
        mean = pytest.approx(np.mean([getattr(th, name) for th in each], 0))
        assert getattr(a, name) == mean and getattr(b, name) == mean
    assert ((a.low <= a.values) & (a.values <= a.high)).all()
    assert (a.undecided(scores[0]) == b.undecided(scores[0])).all()

def test_prevalence_shift_does_what_resampling_would():
    probs, targets = simulate_scores(30000, seed=9)
    c = int(np.argsort(targets.sum(0))[14])
    share = np.clip(targets.mean(0), .001, .999)
    share[c] = min(10*share[c], .5)
    moved = fit_thresholds(probs, targets, 'f1', prevalence=share, folds=0).values[c]
    here = targets[:, c].mean()
    kept_share = here/(1 - here)*(1 - share[c])/share[c]
    keep = targets[:, c] | (np.random.default_rng(0).random(30000) < kept_share)
    p, t = probs[keep][:, [c]], targets[keep][:, [c]]
    assert f1_scores(p > moved, t)[0] == pytest.approx(f1_scores(p > f1_optimum(p, t), t)[0], abs=.01)
    for method in ('auto', 'constant', 'prevalence', 'crossfit'):
        shifted, plain = (fit_thresholds(probs[:3000], targets[:3000], method, prevalence=prevalence, folds=0)
                          for prevalence in (share, None))
        assert shifted.values[c] <= plain.values[c] + .02

@pytest.mark.parametrize('method', THRESHOLD_METHODS)
def test_awkward_data_have_a_stated_fallback(method, scores):
    probs, targets = (x.copy() for x in scores)
    targets[:, 0], targets[:, 1] = False, True
    probs[:, 2], probs[:, 3], probs[:, 4] = .3, 0., 1.
    probs[:, 5] = probs[:, 5].round(1)
    th = fit_thresholds(probs, targets, method)
    assert np.isfinite(th.values).all() and ((0 <= th.values) & (th.values <= 1)).all() and np.isfinite(th.expected_f1)
    assert th.predict(probs).shape == targets.shape
    one = fit_thresholds(probs[:1], [[True] + [False]*27], method)
    assert np.isfinite(one.values).all() and np.isnan(one.expected_f1)
    two = fit_thresholds(np.array([[.9], [.1]]), [[1], [0]], method)
    assert two.predict([[.95], [.01]]).tolist() == [[True], [False]]

@pytest.mark.parametrize('change,words', [
    (lambda p, t: (p*20 - 10, t), 'look like logits'),
    (lambda p, t: (np.where(np.arange(28) == 3, np.nan, p), t), 'class 3: NaN'),
    (lambda p, t: (p[:, :19], t), 'probs has shape (500, 19) but targets (500, 28)'),
    (lambda p, t: (p, t*.5), 'neither 0 nor 1'),
    (lambda p, t: (p, t & False), 'no image has any class'),
    (lambda p, t: (p[0], t[0]), 'images × classes')])
def test_refused_in_one_line(change, words, scores):
    with pytest.raises(MetricError) as e: fit_thresholds(*change(*scores))
    assert words in str(e.value) and '\n' not in str(e.value)

@pytest.mark.parametrize('settings,words', [
    (dict(method='otsu'), "'otsu' is unknown"),
    (dict(method=1.5), '1.5'),
    (dict(prevalence=[.1]*3), 'each of the 28'),
    (dict(prevalence=[0.]*28), 'class 0 must lie'),
    (dict(groups=[1, 2]), 'groups names 2')])
def test_bad_settings(settings, words, scores):
    with pytest.raises(MetricError) as e: fit_thresholds(*scores, **settings)
    assert words in str(e.value)

def test_wrong_number_of_classes_at_prediction(scores):
    th = fit_thresholds(*scores, folds=0)
    with pytest.raises(MetricError, match='19 classes but there are thresholds for 28'): th.predict(scores[0][:, :19])

def test_picture(scores):
    fig = plot_f1_curves(*scores, fit_thresholds(*scores, folds=0), HPA28, classes=[0, 3, 27])
    titles = [ax.get_title().split(' (')[0] for ax in fig.axes if ax.get_visible()]
    assert titles == [HPA28.classes[c] for c in (0, 3, 27)]

def test_real_tables(real_data):
    "One repeat of cross-fitting; the benchmark does twenty."
    known = pd.read_csv(real_data/'scores/known_labels.csv', dtype=str)
    targets, got = HPA28.encode(known.Target), []
    for f in sorted((real_data/'scores').glob('*.npz')):
        z = np.load(f, allow_pickle=True)
        rows = pd.Index(z['ids'].astype(str)).get_indexer(known.Id)
        got.append(fit_thresholds(z['scores'][rows], targets).expected_f1)
    assert np.mean(got) > .825
