"Evaluation and comparison of models."
import json
from dataclasses import replace

import numpy as np
import pytest

from hpa_fastai.data.labels import HPA28
from hpa_fastai.evaluate.evaluation import compare_models, confusion_table, evaluate, top_confusions
from hpa_fastai.evaluate.metrics import MetricError, class_table, f1_interval, macro_f1, simulate_scores
from hpa_fastai.evaluate.thresholds import fit_thresholds, plain_thresholds


@pytest.fixture(scope='module')
def scores(): return simulate_scores(400, seed=4)


def test_figures_are_those_of_the_metrics(scores):
    p, t = scores
    th = fit_thresholds(p, t, folds=0)
    ev, d = evaluate(p, t, th, HPA28), th.predict(p)
    assert ev.macro_f1 == macro_f1(d, t) and ev.interval == pytest.approx(f1_interval(d, t))
    table = class_table(d, t, HPA28, p)
    assert (ev.table[table.columns].fillna(-1) == table.fillna(-1)).all().all()
    inside = (ev.table.low <= ev.table.f1 + 1e-9) & (ev.table.f1 <= ev.table.high + 1e-9)
    assert inside[t.any(0)].all()

def test_thresholds_of_three_kinds(scores):
    p, t = scores
    assert evaluate(p, t, .3).macro_f1 == evaluate(p, t, np.full(28, .3)).macro_f1 == macro_f1(p > .3, t)
    with pytest.raises(MetricError, match='one for each of the 28'): evaluate(p, t, [.3, .2])

KINDS = dict(one=.1, each=np.full(28, .1), thresholds=plain_thresholds(.1, 28))

@pytest.mark.parametrize('thresholds', KINDS.values(), ids=KINDS)
def test_a_class_that_stands_alone_is_scored_alone(scores, thresholds):
    p, t = scores
    want = plain_thresholds(.1, 28, exclusive=0).predict(p)
    labels = replace(HPA28, negative=0)
    assert evaluate(p, t, thresholds, labels).macro_f1 == macro_f1(want, t) != evaluate(p, t, thresholds).macro_f1
    assert compare_models(p, p, t, thresholds, .1, labels, n_draws=20).scores == (macro_f1(want, t),)*2

def test_text_fits_one_screen(scores):
    p, t = scores
    ids = [f'{i:08}-bad3-11e8-b2b8-ac1f6b6435d0' for i in range(400)]
    ev = evaluate(p, t, .4, HPA28, ids=ids, groups=np.arange(400)//8)
    lines = str(ev).splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 100 and 'in 50 groups' in lines[0]

def test_groups_widen_the_interval(scores):
    p, t = (np.repeat(x, 4, axis=0) for x in scores)
    a, b = evaluate(p, t, .4), evaluate(p, t, .4, groups=np.repeat(np.arange(400), 4))
    assert b.interval[1] - b.interval[0] > 1.5*(a.interval[1] - a.interval[0]) and b.n_groups == 400

def test_confusion_by_hand():
    truth = [[1, 0, 0], [1, 0, 0], [1, 1, 0], [0, 0, 1]]
    given = [[0, 1, 0], [1, 0, 0], [0, 1, 1], [0, 0, 0]]
    table = confusion_table(given, truth)
    np.testing.assert_allclose(table.values, [[1/3, 1/3, 1/3], [0, 1, 0], [0, 0, 0]])
    top = top_confusions(table)
    assert top[['truth', 'given instead']].values.tolist() == [['0', '1'], ['0', '2']]

def test_perfect_model_and_absent_class():
    t = np.eye(4, dtype=bool)[[0, 1, 2, 0, 1, 2]]
    ev = evaluate(np.where(t, .9, .1), t)
    assert ev.macro_f1 == 1 and top_confusions(ev.confusion).empty and np.isnan(ev.table.f1.iloc[3])
    assert ev.table.low.iloc[0] < .7 and ev.table.high.iloc[0] == 1
    assert '–' in str(ev) and 'nan' not in str(ev)

def test_one_image():
    assert evaluate([[.9, .2]], [[1, 0]]).macro_f1 == 1

def test_hardest(scores):
    p, t = (x.copy() for x in scores)
    t[7] = False
    t[7, 27], p[7, 27], p[7, 0] = True, 1e-6, .999
    hard = evaluate(p, t, .5, HPA28).hardest
    assert hard.Id[0] == 7 and hard.missed[0] == 'Rods & rings' and 'Nucleoplasm' in hard.wrongly_given[0]
    with pytest.raises(MetricError, match='ids names 2'): evaluate(p, t, ids=[1, 2])

def test_paired_difference_is_known_better_than_the_scores(scores):
    p, t = scores
    rng = np.random.default_rng(0)
    q = 1/(1 + np.exp(-np.log(p/(1 - p)) - 2*rng.standard_normal(p.shape)))
    duel = compare_models(q, p, t, .4, .4, HPA28, names=('noisy', 'clean'))
    assert duel.difference == pytest.approx(macro_f1(p > .4, t) - macro_f1(q > .4, t))
    assert duel.interval[0] > 0 and duel.p_better > .97 and 'clean is better' in repr(duel)
    widths = [np.diff(f1_interval(x > .4, t))[0] for x in (p, q)]
    assert duel.interval[1] - duel.interval[0] < sum(widths)
    back = compare_models(p, q, t, .4, .4, names=('clean', 'noisy'))
    assert back.difference == -duel.difference and 'clean is better' in repr(back)

def test_a_model_against_itself(scores):
    p, t = scores
    duel = compare_models(p, p, t, .4, .4)
    assert duel.difference == 0 and duel.interval == (0, 0) and duel.p_better == .5 and 'cannot tell' in repr(duel)

def test_decisions_that_were_made_already(scores):
    p, t = scores
    decided = p > .35
    assert evaluate(p, t, decided).macro_f1 == macro_f1(decided, t)
    assert compare_models(p, p, t, decided, .2, n_draws=20).scores == (macro_f1(decided, t), macro_f1(p > .2, t))
    with pytest.raises(MetricError, match='preds has shape'): evaluate(p, t, decided[:, :3])

def test_what_is_saved_has_one_row_a_class_and_plain_values(scores):
    p, t = scores
    ev = evaluate(p, t & (np.arange(28) < 27), .4, HPA28)
    records = ev.class_records()
    assert [r['class'] for r in records] == list(HPA28.classes) and records[27]['f1'] is None
    assert json.loads(json.dumps([records, ev.to_dict()], allow_nan=False)) == [records, ev.to_dict()]
