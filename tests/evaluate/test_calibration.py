"Calibration: the fits, what they do to the error, and what they refuse to make worse."
import json
import numpy as np
import pandas as pd
import pytest

from hpa_fastai.data.labels import HPA28
from hpa_fastai.evaluate.calibration import (
    Calibration, calibrate, calibration_error, crossfit_calibration, expit, fit_platt, log_losses, logit,
    perfect_calibration_error, plot_reliability, reliability, score_counts, shift_prior)
from hpa_fastai.evaluate.metrics import MetricError, simulate_scores


def one_class(n=4000, slope=1., offset=0., seed=0):
    "Scores whose true calibration line is known."
    rng = np.random.default_rng(seed)
    x = rng.normal(-1, 2, (n, 3))
    return expit(x), rng.random((n, 3)) < expit(slope*x + offset)


def test_platt_finds_the_line():
    line, cov = fit_platt(*score_counts(*one_class(20000, .6, -.8)))
    np.testing.assert_allclose(line, [[.6, -.8]]*3, atol=.08)
    assert (np.sqrt(cov[:, 0, 0]) < .05).all()

def test_platt_agrees_with_logistic_regression_where_data_abound():
    from sklearn.linear_model import LogisticRegression
    p, t = one_class(20000, 1.4, .5)
    ref = LogisticRegression(C=1e6).fit(logit(p[:, :1]), t[:, 0])
    line, _ = fit_platt(*score_counts(p[:, :1], t[:, :1]))
    np.testing.assert_allclose(line[0], [ref.coef_[0, 0], ref.intercept_[0]], atol=.03)

def test_few_positives_lean_on_the_other_classes():
    p, t = one_class(3000, 1., 1.5)
    p, t = np.hstack([p]*4), np.hstack([t]*4)
    few = t.copy()
    few[:, 0] &= np.cumsum(t[:, 0]) <= 3
    p_few = p.copy()
    p_few[t[:, 0] & ~few[:, 0], 0] = .0001
    alone = fit_platt(*score_counts(p_few[:, :1], few[:, :1]))[0][0]
    shared = fit_platt(*score_counts(p_few, few))[0][0]
    assert np.isfinite(alone).all()
    assert abs(shared[0] - 1) < abs(alone[0] - 1) + .3

@pytest.mark.parametrize('method', ['none', 'temperature', 'platt', 'isotonic', 'auto'])
def test_round_trip_order_and_range(method):
    p, t = simulate_scores(1500, noise=1.)
    cal = calibrate(p, t, method)
    again = Calibration.from_dict(json.loads(json.dumps(cal.to_dict())))
    np.testing.assert_allclose(again(p), cal(p))
    out = cal(p.astype(np.float32))
    assert out.dtype == np.float32 and out.min() >= 0 and out.max() <= 1
    for c in (0, 20):
        order = np.argsort(p[:, c])
        assert (np.diff(cal(p)[order, c]) >= -1e-9).all()

def test_halves_the_error_of_a_miscalibrated_model():
    for seed in range(2):
        p, t = simulate_scores(1000, noise=1.5, seed=seed)
        assert calibration_error(crossfit_calibration(p, t, 'auto'), t) < calibration_error(p, t)/2

def test_leaves_a_calibrated_model_alone():
    kept = 0
    for seed in range(6):
        p, t = simulate_scores(500, noise=0., seed=seed)
        kept += calibrate(p, t).method == 'none'
    assert kept >= 5

def test_isotonic_only_where_there_is_enough():
    p, t = simulate_scores(1500)
    assert set(calibrate(p, t, 'isotonic').steps) == set(np.flatnonzero(t.sum(0) >= 100))

def test_awkward_data():
    p, t = (x.copy() for x in simulate_scores(200))
    t[:, 0], t[:, 1], p[:, 2], p[:, 3], p[:, 4] = False, True, .3, 0., 1.
    for method in ('temperature', 'platt', 'isotonic', 'auto'): assert np.isfinite(calibrate(p, t, method)(p)).all()
    assert np.isfinite(calibrate(p[:1], t[:1])(p)).all()

def test_refusals():
    p, t = simulate_scores(50)
    with pytest.raises(MetricError, match='unknown'): calibrate(p, t, 'beta')
    with pytest.raises(MetricError, match='logits'): calibrate(logit(p), t)
    fitted = calibrate(p, t, 'platt')
    with pytest.raises(MetricError, match='3 classes but the calibration was fitted on 28'): fitted(p[:, :3])
    with pytest.raises(MetricError, match='between 0 and 1'): shift_prior(p, [.5]*28, [1.]*28)

def test_calibration_error_by_hand():
    assert calibration_error(np.full((100, 1), .3), np.arange(100)[:, None] < 30, bins=1) == pytest.approx(0)
    assert calibration_error(np.full((100, 1), .8), np.arange(100)[:, None] < 30, bins=1) == pytest.approx(.5)

def test_reliability_counts_everything():
    p, t = simulate_scores(300)
    r = reliability(p, t)
    assert (r.low <= r.was + 1e-9).all() and (r.was <= r.high + 1e-9).all()
    assert r.decisions.sum() == p.size and (r.decisions*r.was).sum() == pytest.approx(t.sum())
    assert len(plot_reliability({'a': p, 'b': p}, t)[0].get_legend().get_texts()) == 3

def test_shift_prior_is_bayes():
    p, t = one_class(200000, 1., 0.)
    p, t = p[:, 0], t[:, 0]
    keep = ~t | (np.random.default_rng(0).random(len(t)) < .2)
    moved = shift_prior(p[keep][:, None], [t.mean()], [t[keep].mean()])
    assert calibration_error(moved, t[keep][:, None]) < .01 < calibration_error(p[keep][:, None], t[keep][:, None])

def test_never_worse_on_real_tables(real_data):
    known = pd.read_csv(real_data/'scores/known_labels.csv', dtype=str)
    t = HPA28.encode(known.Target).astype(bool)
    for f in sorted((real_data/'scores').glob('*.npz')):
        z = np.load(f, allow_pickle=True)
        p = z['scores'][pd.Index(z['ids'].astype(str)).get_indexer(known.Id)]
        q = crossfit_calibration(p, t, 'auto')
        assert calibration_error(q, t) <= calibration_error(p, t) + 1e-9
        assert log_losses(q, t).mean() <= log_losses(p, t).mean() + 1e-9


def test_the_error_of_a_perfect_model_is_never_above_one():
    "However few groups there are: a number above one could not be saved with a model"
    probs = np.full((60, 4), .5)
    targets, groups = np.repeat(np.eye(2, 4), 30, axis=0), np.repeat([0, 1], 30)
    for by_class in (False, True):
        assert perfect_calibration_error(probs, targets, groups, by_class=by_class) <= 1
