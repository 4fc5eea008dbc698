"Cross-fitting: nothing is decided about an image by what has seen its labels."
import numpy as np

from hpa_fastai.evaluate.crossfit import crossfit
from hpa_fastai.evaluate.metrics import simulate_scores

PARTS = np.arange(120) % 3


def scores(signal, noise):
    "Labels, and probabilities that know something of them."
    rng = np.random.default_rng(0)
    targets = rng.random((120, 28)) < .2
    return np.clip(targets*signal + rng.random((120, 28))*noise, .01, .99), targets

def turned(targets, part):
    "The labels, with those of one part turned round."
    other = targets.copy()
    other[PARTS == part] = ~other[PARTS == part]
    return other


def test_the_decisions_about_a_part_do_not_know_its_labels():
    probs, targets = scores(.4, .6)
    a, b = (crossfit(probs, t, PARTS, calibration=None) for t in (targets, turned(targets, 0)))
    assert (a.preds[PARTS == 0] == b.preds[PARTS == 0]).all()
    assert (a.preds[PARTS == 1] != b.preds[PARTS == 1]).any()

def test_calibration_leaves_the_ranking_over_all_parts():
    "One line a class for all parts; what is judged as calibrated has not seen its part"
    probs, targets = scores(.3, .4)
    d = crossfit(probs, targets, PARTS, calibration='platt')
    ranks = lambda p: np.argsort(np.argsort(p, 0), 0)
    assert (ranks(d.probs) == ranks(probs)).all() and (ranks(d.unseen_probs) != ranks(probs)).any()
    other = crossfit(probs, turned(targets, 0), PARTS, calibration='platt')
    assert np.allclose(other.unseen_probs[PARTS == 0], d.unseen_probs[PARTS == 0])

def test_a_class_that_stands_alone():
    probs, targets = simulate_scores(300, seed=3)
    targets[targets[:, 0], 1:] = False
    free, alone = (crossfit(probs, targets, np.arange(300) % 3, calibration=None, exclusive=o) for o in (None, 0))
    assert alone.preds[alone.preds[:, 0]].sum(1).max() == 1 < free.preds[free.preds[:, 0]].sum(1).max()
    assert alone.thresholds.exclusive == 0
