"Heads by folds: one head of all images, and a score of each image by heads that have not seen it."
import numpy as np
import pytest
import torch

from hpa_fastai.all import HPADataLoaders, hpa_learner
from hpa_fastai.evaluate.metrics import average_precision
from hpa_fastai.train.head_folds import fit_head_by_folds


@pytest.fixture
def head_learner(small_atlas, cache):
    "Makes learners that know simulated cells"
    def make(**split):
        dls = HPADataLoaders.from_csv(
            small_atlas, size=48, bs=16, group='antibody', cache=cache, progress=False, **split)
        return hpa_learner(dls, 'smallresnet')
    return make


def test_a_split_that_was_asked_for_is_held_out(head_learner):
    free, asked = (fit_head_by_folds(head_learner(**split)) for split in ({}, dict(valid_pct=.2)))
    ids = set(asked.dls.valid_ds.items.Id)
    assert ids <= set(free.out_of_fold.items.Id) and not ids & set(asked.out_of_fold.items.Id)
    for learn in (free, asked):
        with learn.no_bar(): learn.calibrate(), learn.fit_thresholds(), learn.evaluate()
    assert free.evaluation.n_images == len(free.out_of_fold.items) and free.evaluation.decided == 'unseen'
    assert asked.evaluation.n_images == len(ids) and asked.evaluation.decided == ''


def test_no_group_is_scored_by_a_head_that_saw_it(head_learner):
    scores = fit_head_by_folds(head_learner()).out_of_fold
    assert scores.items.assign(part=scores.part).groupby('antibody').part.nunique().max() == 1
    assert len(np.unique(scores.part)) == 5


def test_labels_that_mean_nothing_are_not_learnt(head_learner):
    "The head knows them by heart; the scores of the folds are no better than chance"
    learn = head_learner()
    for dl in learn.dls.loaders:
        items = dl.dataset.items
        items['Target'] = [str(i % 2) for i in np.random.default_rng(0).permutation(len(items))]
    scores = fit_head_by_folds(learn).out_of_fold
    with learn.no_bar():
        seen = learn.get_preds(dl=learn.dls.test_dl(scores.items), act=torch.sigmoid)[0].numpy()
    ap = lambda p: average_precision(p, scores.targets.numpy())[:2].mean()
    assert ap(seen) > .9 and ap(scores.logits.sigmoid().numpy()) < .7


def test_new_weights_forget_the_scores(head_learner):
    learn = fit_head_by_folds(head_learner())
    learn.fit_head()
    assert learn.out_of_fold is None
