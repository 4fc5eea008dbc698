"Plans of atlases: how often each class comes, and what the fields of an antibody have in common."
import numpy as np, pytest
from hpa_fastai.data.labels import HPA28, HPA19, ZTG10
from hpa_fastai.simulate.plan import CLASS_FREQUENCY, plan_atlas

@pytest.mark.parametrize('balance', ['atlas', 'even'])
def test_antibodies_have_a_few_fields_and_one_label_set(balance):
    df = plan_atlas(2800, HPA28, 0, balance)
    assert (df.groupby('antibody').Target.nunique() == 1).all()
    sizes = df.groupby('antibody').size()
    assert sizes.max() <= 6 and 3.5 < sizes.mean() < 5.5
    assert (df.Id.str.split('_').str[0] == df.antibody).all() and df.Id.is_unique

def test_the_imbalance_is_that_of_the_competition():
    y = HPA28.encode(plan_atlas(12000, HPA28).Target)
    f = np.array([CLASS_FREQUENCY[c.casefold()] for c in HPA28.classes])
    assert abs(y.sum(1).mean() - 1.634) < .06 and y.sum(1).min() == 1
    assert np.abs(y.mean(0) - f).max() < .03 and np.corrcoef(y.mean(0), f)[0, 1] > .99
    lysosomes, endosomes = (y[:, HPA28.classes.index(name)] > 0 for name in ('Lysosomes', 'Endosomes'))
    assert (endosomes | ~lysosomes).all()

@pytest.mark.parametrize('labels', [HPA28, HPA19, ZTG10])
@pytest.mark.parametrize('seed', [0, 7])
def test_even_has_every_class(labels, seed):
    n = len(labels)
    for difficulty in ('easy', 'atlas'):
        first = plan_atlas(n, labels, seed, 'even', difficulty).targets
        assert {k for targets in first for k in targets} == set(range(n))
    plan = plan_atlas(n*80, labels, seed, 'even', 'easy').targets
    counts = np.bincount([k for targets in plan for k in targets])
    if labels.negative is not None: counts = np.delete(counts, labels.negative)
    assert np.abs(counts/counts.mean() - 1).max() < .4
    lengths = np.bincount([len(targets) for targets in plan])
    assert len(lengths) == 4 and lengths[1] > lengths[2] > lengths[3] > 0

def test_negative_has_no_other_label():
    plans = [targets for targets in plan_atlas(3000, HPA19, 0, 'even').targets if HPA19.negative in targets]
    assert plans and all(targets == [HPA19.negative] for targets in plans)
