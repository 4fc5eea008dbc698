"The order of questions: undecided, rare and unlike the others first, nothing twice, the same each time"
import numpy as np
import pytest
from hpa_fastai.basics.errors import HPAError
from hpa_fastai.evaluate.calibration import expit, logit
from hpa_fastai.evaluate.thresholds import plain_thresholds
from hpa_fastai.experiments.active_learning import ORDERS, disagreement, label_order, uncertainty

N, C, D = 600, 5, 16


@pytest.fixture(scope='module')
def run():
    "Probabilities and embeddings of a run; class 4 is rare, and the model is not sure of it"
    rng = np.random.default_rng(0)
    c = rng.choice(C, N, p=[.3, .3, .2, .18, .02])
    z = rng.normal(size=(N, D)) + 6*np.eye(C, D)[c]
    probs = expit(2*(z[:, :C] - 4.5) + rng.normal(size=(N, C)) - [0, 0, 0, 0, 1])
    return probs, z, c


def test_uncertainty_is_highest_at_the_threshold_of_any_class():
    found = uncertainty([[.1, .01], [.1, .3], [.95, .99], [.5, .01]], plain_thresholds([.5, .3], None))
    assert np.allclose(found[[1, 3]], 1)
    assert found[2] < found[0] < 1
    assert np.isclose(uncertainty([[.2]], .2), 1) and uncertainty([[0.], [1.]], .5).max() < 1e-3


def test_uncertainty_of_images_that_could_not_be_read_is_unknown():
    assert np.isnan(uncertainty(np.full((3, 2), np.nan), .5)).all()
    assert len(uncertainty(np.zeros((0, 2)), .5)) == 0


@pytest.mark.parametrize('order', ORDERS)
def test_each_order_names_each_image_once_and_is_the_same_again(run, order):
    probs, z, c = run
    call = lambda seed: label_order(probs, z, order=order, given=np.eye(C)[c], seed=seed)
    assert np.array_equal(np.sort(call(0)), np.arange(N))
    assert np.array_equal(call(3), call(3))
    assert np.array_equal(call(0), call(1)) == (order in ('uncertain', 'disagreement'))


@pytest.mark.parametrize('order', ORDERS)
def test_unreadable_images_come_last_and_labelled_ones_are_left_out(run, order):
    probs, z, c = run
    broken, labelled = probs.copy(), np.arange(N) < 100
    broken[[50, 200, 300], 2] = np.nan
    unknown = z.copy()
    unknown[400] = np.nan
    found = label_order(broken, unknown, order=order, labelled=labelled, given=np.eye(C)[c])
    assert sorted(found[-3:]) == [200, 300, 400]
    assert np.array_equal(np.sort(found), np.arange(100, N))


def test_repetitions_are_not_asked_one_after_the_other(run):
    probs, z, _ = run
    twice = label_order(np.tile(probs, (2, 1)), np.tile(z, (2, 1)))[:100]
    assert len(set(twice % N)) >= 95
    undecided = label_order(np.tile(probs, (2, 1)), np.tile(z, (2, 1)), order='uncertain')[:100]
    assert len(set(undecided % N)) == 50


def test_what_looks_like_labelled_images_waits(run):
    probs, z, _ = run
    labelled = np.arange(2*N) < N//2        # so half of the repetitions are known
    found = label_order(np.tile(probs, (2, 1)), np.tile(z, (2, 1)), labelled=labelled)[:100]
    assert np.isin(found, np.arange(N, N + N//2)).mean() < .25


def test_rare_classes_come_early(run):
    probs, z, c = run
    of_rare = [(c[label_order(probs, z, seed=seed)[:60]] == 4).sum() for seed in range(5)]
    assert np.mean(of_rare) > 3*60*(c == 4).mean()


def test_a_class_with_many_labels_is_asked_for_less(run):
    probs, z, c = run
    labelled = np.isin(np.arange(N), np.flatnonzero(c == 0)[:80])
    share = lambda which, **k: (c[label_order(probs, z, **k)[:60]] == which).mean()
    assert share(0, labelled=labelled) < share(0)
    told = {which: np.tile(np.eye(C)[which], (N, 1)) for which in (0, 4)}   # what labels say counts, not the model
    assert share(4, labelled=labelled, given=told[4]) < share(4, labelled=labelled, given=told[0])


def test_probabilities_stand_in_for_embeddings(run):
    found = label_order(np.tile(run[0], (2, 1)))
    assert np.array_equal(np.sort(found), np.arange(2*N))
    assert len(set(found[:40] % N)) >= 38


def test_disagreement_finds_wrong_labels_and_needs_labels(run):
    probs, z, c = run
    given, rng = np.eye(C)[c], np.random.default_rng(1)
    wrong = rng.random(N) < .2
    given[wrong] = np.roll(given[wrong], 1, axis=1)
    assert wrong[label_order(probs, z, order='disagreement', given=given)[:60]].mean() > .8
    assert disagreement(probs, given)[wrong].min() > disagreement(probs, np.eye(C)[c]).mean()
    with pytest.raises(HPAError, match='give them'): label_order(probs, z, order='disagreement')


def test_few_images_all_alike_or_none_are_no_error():
    assert label_order(np.zeros((0, 3))).tolist() == []
    assert label_order(np.full((4, 3), np.nan)).tolist() == [0, 1, 2, 3]
    assert sorted(label_order(np.full((4, 3), .5), np.ones((4, 2)))) == [0, 1, 2, 3]
    assert label_order(np.full((2, 3), .5), labelled=np.ones(2, bool)).tolist() == []


@pytest.mark.parametrize('change, words', [
    (dict(order='best'), 'choose informative'), (dict(embeddings=np.zeros((3, 2))), 'each of the 600 images'),
    (dict(embeddings=np.zeros(N)), 'each of the 600 images'), (dict(labelled=[1, 2]), 'True or False'),
    (dict(given=np.zeros((3, C))), 'given'), (dict(thresholds=[.5]), 'one for each of the 5'), (dict(seed=-1), 'seed')])
def test_what_does_not_fit_is_refused_in_one_line(run, change, words):
    with pytest.raises(HPAError, match=words) as told: label_order(run[0], **change)
    assert '\n' not in str(told.value)


def test_logits_are_refused(run):
    with pytest.raises(HPAError, match='sigmoid'): label_order(logit(run[0]))


def test_many_images_take_bounded_memory():
    import tracemalloc
    rng = np.random.default_rng(0)
    n = 60_000
    probs, z = rng.random((n, 4), np.float32), rng.random((n, 64), np.float32)
    tracemalloc.start()
    found = label_order(probs, z, labelled=rng.random(n) < .1)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) > 50_000 and most < 20*z.nbytes   # all pairs would be a thousand times z


def test_with_200_labels_the_undecided_come_first_without_repetitions(run):
    probs, z, _ = run
    twice, labelled = np.tile(probs, (2, 1)), np.arange(2*N) < 200
    found = label_order(twice, np.tile(z, (2, 1)), labelled=labelled)[:50]
    doubt = uncertainty(twice, .5)
    assert len(set(found % N)) == 50 and not np.isin(found % N, np.arange(200)).any()
    assert np.isclose(doubt[found], np.sort(doubt[200:N])[::-1][:50]).mean() > .9
