"Metrics against scikit-learn and by hand, intervals, and what is refused."
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, f1_score, precision_recall_fscore_support
from hpa_fastai.data.labels import HPA19, HPA28
from hpa_fastai.evaluate.metrics import (
    MetricError, average_precision, bootstrap_f1, check_probs, class_table, f1_interval, f1_scores, macro_f1, micro_f1,
    plot_class_table, sample_f1, simulate_scores)


def case(seed, n=200, c=7, ties=False):
    rng = np.random.default_rng(seed)
    targets = rng.random((n, c)) < rng.choice([.02, .1, .4], c)
    probs = np.clip(.3*targets + .7*rng.random((n, c)), 0, 1)
    return (probs.round(1) if ties else probs), targets


@pytest.mark.parametrize('seed', range(20))
@pytest.mark.parametrize('ties', [False, True])
def test_equal_to_sklearn(seed, ties):
    probs, targets = case(seed, ties=ties)
    preds, here = probs > .5, targets.any(0)
    p, r, f, n = precision_recall_fscore_support(targets, preds, average=None, zero_division=np.nan)
    table = class_table(preds, targets, probs=probs)
    np.testing.assert_allclose(table.precision, p)
    np.testing.assert_allclose(table.recall, r)
    np.testing.assert_allclose(table.f1[here], f[here])
    assert table.f1[~here].isna().all() and (table.support == n).all()
    ap = [average_precision_score(targets[:, c], probs[:, c]) for c in np.flatnonzero(here)]
    np.testing.assert_allclose(table.average_precision[here], ap)
    macro = f1_score(targets[:, here], preds[:, here], average='macro', zero_division=0)
    assert macro_f1(preds, targets) == pytest.approx(macro)
    assert micro_f1(preds, targets) == pytest.approx(f1_score(targets, preds, average='micro'))
    assert sample_f1(preds, targets) == pytest.approx(f1_score(targets, preds, average='samples', zero_division=1))

def test_macro_f1_counts_only_classes_present_and_is_not_the_mean_of_batches():
    targets = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0]], bool)
    preds = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 1]], bool)
    assert macro_f1(preds, targets) == .5
    assert macro_f1(preds[:1], targets[:1]) == 1

def test_inputs_of_many_kinds():
    probs, targets = case(0)
    preds = probs > .5
    score, ap = macro_f1(preds, targets), average_precision(probs, targets)
    for kind in (int, float, np.uint8, bool):
        assert macro_f1(preds.astype(kind), targets.astype(kind).tolist()) == score
    assert macro_f1(pd.DataFrame(preds), pd.DataFrame(targets)) == score
    assert average_precision(probs.astype(np.float16), targets) == pytest.approx(ap, abs=.02, nan_ok=True)

def test_one_row_and_constant_scores():
    assert macro_f1([[1, 0]], [[1, 0]]) == 1
    np.testing.assert_allclose(average_precision(np.full((10, 1), .3), [[1]]*4 + [[0]]*6), [.4])

@pytest.mark.parametrize('call,words', [
    (lambda: macro_f1([[.3, 1]], [[0, 1]]), 'preds row 0, class 0: 0.3 is neither 0 nor 1'),
    (lambda: macro_f1([[1, 0]], [[1], [0]]), 'preds has shape (1, 2) but targets (2, 1)'),
    (lambda: macro_f1([1, 0], [1, 0]), 'one row per image'),
    (lambda: macro_f1([[1, 0]], [[0, 0]]), 'no image has any class'),
    (lambda: check_probs([[2., -3.]]), 'look like logits'),
    (lambda: check_probs([[.1, np.nan]]), 'row 0, class 1: NaN'),
    (lambda: check_probs([[.1, np.inf]]), 'logits'),
    (lambda: check_probs(np.zeros((0, 3))), 'nothing to score'),
    (lambda: average_precision([[.1, .2]], [[1]]), 'probs has shape (1, 2) but targets (1, 1)'),
    (lambda: class_table([[1, 0]], [[1, 0]], HPA28), 'labels name 28 classes but the scores have 2'),
    (lambda: bootstrap_f1([[1], [0]], [[1], [0]], groups=['a']), 'groups names 1 images but there are 2')])
def test_refused_in_one_line(call, words):
    with pytest.raises(MetricError) as e: call()
    assert words in str(e.value) and '\n' not in str(e.value)

def test_bootstrap_is_a_bootstrap():
    probs, targets = case(3)
    preds, n = probs > .5, len(probs)
    rng, by_hand = np.random.default_rng(0), []
    for _ in range(5):
        rows = rng.integers(0, n, n)
        by_hand.append(f1_scores(preds[rows], targets[rows]))
    np.testing.assert_allclose(bootstrap_f1(preds, targets, n_draws=5), by_hand, atol=1e-6)

def test_groups_are_drawn_whole():
    probs, targets = case(4)
    copies = np.repeat(np.arange(len(probs)), 4)
    p, t = (probs > .5)[copies], targets[copies]
    alone, blind = f1_interval(probs > .5, targets), f1_interval(p, t)
    grouped = f1_interval(p, t, groups=[f'antibody {i}' for i in copies])
    np.testing.assert_allclose(grouped, alone, atol=1e-3)
    assert blind[1] - blind[0] < .65*(grouped[1] - grouped[0])

def test_interval_covers():
    probs, targets = simulate_scores(40000, HPA19, noise=0)
    truth, hits = macro_f1(probs > .4, targets), 0
    for i in range(60):
        rows = np.random.default_rng(i).integers(0, 40000, 1500)
        low, high = f1_interval(probs[rows] > .4, targets[rows], n_draws=150)
        hits += low <= truth <= high
    assert hits >= 51

def test_simulated_scores():
    probs, targets = simulate_scores(3000, seed=1)
    assert probs.shape == targets.shape == (3000, 28) and 0 <= probs.min() and probs.max() <= 1
    assert targets.sum(0).argmax() == 0
    again, _ = simulate_scores(3000, seed=1)
    assert (again == probs).all()

def test_picture_has_every_class():
    probs, targets = simulate_scores(300)
    ax = plot_class_table(class_table(probs > .5, targets, HPA28))
    assert sorted(t.get_text().split('  (')[0] for t in ax.get_yticklabels()) == sorted(HPA28.classes)

def test_needs_no_torch():
    code = ('import sys, hpa_fastai.evaluate.evaluation; '
            'print([m for m in ("torch", "fastai", "sklearn", "matplotlib") if m in sys.modules])')
    found = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == '[]'

def test_real_labels(real_data):
    table = pd.read_csv(real_data/'labels/kaggle2018_train.csv')
    targets = HPA28.encode(table.Target)
    preds = np.zeros_like(targets)
    preds[:, 0] = 1
    assert micro_f1(preds, targets) == pytest.approx(2*12885/(31072 + targets.sum()))
    assert macro_f1(preds, targets) == pytest.approx(2*12885/(31072 + 12885)/28)
