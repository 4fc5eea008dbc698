"Failures: every miss and false alarm is found, named and shown, and turned labels come out on top"
import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hpa_fastai.data.files import find_images
from hpa_fastai.data.labels import HPA28, HPAError, LabelSet
from hpa_fastai.data.label_tables import read_labels
from hpa_fastai.deploy.scoring import judged
from hpa_fastai.evaluate.calibration import log_losses
from hpa_fastai.evaluate.failures import confident_limits, find_failures, label_candidates, top_losses
from hpa_fastai.evaluate.gallery import show_failures
from hpa_fastai.evaluate.metrics import MetricError, simulate_scores
from hpa_fastai.evaluate.thresholds import plain_thresholds

@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close('all')

THREE = LabelSet('three', ('a', 'b', 'c'))
PROBS = np.array([[.9, .2, .1], [.1, .8, .3], [.6, .7, .02], [.2, .1, .9]])
TARGETS = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1]])

def test_top_losses_names_what_was_right_missed_and_wrong():
    t = top_losses(PROBS, TARGETS, labels=THREE, ids=list('wxyz'))
    assert t.Id.tolist()[:2]==['x', 'y']
    names = t[['right', 'missed', 'wrongly_given', 'worst']].to_numpy().tolist()
    assert names[0]==['b', 'a', '', 'a'] and t.probability[0]==.1
    assert names[1]==['b', '', 'a', 'a']
    assert np.allclose(np.sort(t.loss), np.sort(3*log_losses(PROBS, TARGETS)))

def test_decisions_as_array_number_one_a_class_or_thresholds():
    d = PROBS>.65
    for preds in (d, .65, [.65]*3, plain_thresholds(.65, 3)):
        assert find_failures(PROBS, TARGETS, preds, THREE).values.tolist()==[['a', 'missed', 1, .1]]

def test_every_failure_once_most_confident_first():
    p, t = simulate_scores(400, seed=1)
    f = find_failures(p, t, .4, HPA28)
    d = p>.4
    assert len(f)==(d!=t).sum() and (f.kind=='missed').sum()==(t&~d).sum()
    for (name,kind),g in f.groupby(['class', 'kind']):
        c = HPA28.numbers[name.casefold()]
        assert set(g.Id)==set(np.flatnonzero((t&~d if kind=='missed' else d&~t)[:,c]))
        assert g.probability.is_monotonic_increasing if kind=='missed' else g.probability.is_monotonic_decreasing

def test_tables_become_arrays():
    pred = pd.DataFrame(PROBS, columns=THREE.classes).assign(
        Id=list('wxyz'), Predicted=['0', '1', '', '2'], error=['', np.nan, '', 'broken'])
    truth = pd.DataFrame(dict(Id=list('zyxq'), Target=['2', '1', '0 1', '0']))
    with pytest.warns(UserWarning, match='2 of 4 images'): known = judged(pred, truth, THREE)
    assert known['ids'].tolist()==['x', 'y']
    assert known['targets'].tolist()==[[True, True, False], [False, True, False]]
    assert known['preds'].tolist()==[[False, True, False], [False]*3]
    assert top_losses(**known).Id.tolist()==['x', 'y'] and find_failures(**known)['class'].tolist()==['a', 'b']
    with pytest.raises(HPAError, match="no column 'Nucleoplasm'"): judged(pred, truth)

def test_no_images_one_image_no_failures():
    none = np.zeros((0, 3))
    for table in (top_losses, find_failures, label_candidates): assert len(table(none, none, labels=THREE))==0
    one = PROBS[:1], TARGETS[:1]
    assert top_losses(*one, labels=THREE).Id.tolist()==[0]
    for table in (find_failures, label_candidates): assert len(table(*one, labels=THREE))==0
    with pytest.raises(MetricError, match='no failures to show'): show_failures(find_failures(*one), pd.DataFrame())
    with pytest.raises(MetricError, match='ids names 2 images but there are 4'): top_losses(PROBS, TARGETS, ids=[1, 2])

def test_turned_labels_are_found():
    rng = np.random.default_rng(0)
    t = rng.random((3000, 28))<np.geomspace(.3, .01, 28)
    p, turned = 1/(1+np.exp(-rng.normal(np.where(t, 2, -4), 1.7))), rng.random(t.shape)<.03*t.mean(0)
    before, found = label_candidates(p, t, .5), label_candidates(p, t^turned, .5)
    hit = turned[found.Id, found['class'].astype(int)]
    assert hit.sum()>.5*turned.sum()                                # most of what was turned
    assert len(found)-hit.sum()<len(before)+.2*turned.sum()         # and not much else that was not there before
    assert found.trust.is_monotonic_increasing
    wrong = found[found.suspicion=='wrong']
    assert (t^turned)[wrong.Id, wrong['class'].astype(int)].all()

def test_confidence_is_judged_class_by_class():
    rng = np.random.default_rng(0)
    t = np.stack([np.arange(200)<100, np.arange(200)<10], 1)
    p = np.where(t, [.9, .4], [.1, .05])+rng.normal(0, .01, t.shape)
    high, low = confident_limits(p, t)
    assert np.allclose(high, [.9, .4], atol=.02) and np.allclose(low, [.1, .05], atol=.02)
    t[150, 1], p[150, 1] = False, .45                               # a rare class: .45 is as sure as this model gets
    c = label_candidates(p, t, [.5, .2])
    assert (150, '1', 'missing') in set(zip(c.Id, c['class'], c.suspicion))
    assert not len(label_candidates(p[:, 1:]*.1, t[:, 1:], .5))       # a class never given
    assert np.isnan(confident_limits(p, t, least=11)[0]).tolist()==[False, True]

def test_galleries(small_atlas):
    table, p = find_images(small_atlas/'train'), np.full((90, 28), .1)
    t = HPA28.encode(read_labels(small_atlas/'train.csv').set_index('Id').Target[table.Id])>0
    p[:5, 2] = .9
    f = find_failures(p, t, .5, HPA28, table.Id)
    fig = show_failures(f, table, ['Nucleoli', 'Centrosome'], n=2)
    words = [x.get_text() for a in fig.axes for x in a.texts]
    assert {'missed', 'given wrongly', 'Nucleoli', 'Centrosome', 'none wrong'}<=set(words)
    assert sum(len(a.images) for a in fig.axes)==6
    lost = show_failures(f, table[:0], ['Nucleoli'], n=1)
    assert [x.get_text() for a in lost.axes for x in a.texts].count('no picture')==2
