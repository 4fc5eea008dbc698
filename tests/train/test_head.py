"The best linear layer for the features as they are."
import pytest
import torch

from hpa_fastai.all import hpa_learner
from hpa_fastai.train.head import known_head

from training import SmallMemory


@pytest.fixture(scope='module')
def fitted(small_atlas, cache):
    "A learner whose head was fitted, and the same learner before"
    from hpa_fastai.all import HPADataLoaders
    dls = HPADataLoaders.from_csv(small_atlas, size=48, bs=16, group='antibody', cache=cache, progress=False)
    return hpa_learner(dls, 'smallresnet').fit_head(), hpa_learner(dls, 'smallresnet')


def test_the_fitted_head_is_the_best_there_is(fitted):
    learn, before = fitted
    dls, norm, layer = learn.dls, learn.model[1][-3], learn.model[1][-1]
    known = known_head(before, norm.running_mean, (norm.running_var + norm.eps).sqrt())
    dl = dls.test_dl(dls.train_ds.items, with_labels=True, cache=dls.train.cache)
    learn.model.eval()
    with torch.no_grad():
        features, y = zip(*((learn.model[1][:-1](learn.model[0](x)), y) for x, y in dl))
        features, y = (torch.cat(o).as_subclass(torch.Tensor) for o in (features, y))
    weights = torch.tensor(dls.train.weights).float()[:, None]
    @torch.no_grad()
    def value():
        loss = (learn.loss_func.elements(layer(features), y)*weights).mean(0).sum()
        distance = torch.cat([layer.weight, layer.bias[:, None]], 1) - known
        return (loss + distance.square().sum()/2/len(y)).item()
    best = value()
    for t in (layer.weight, layer.bias):
        step = .05*torch.randn(t.shape)
        for way in (-1, 1):
            with torch.no_grad(): t += way*step
            assert value() > best
            with torch.no_grad(): t -= way*step


def test_a_head_for_as_many_images_as_there_is_time_for(fitted):
    learn, _ = fitted
    whole = learn.model[1][-1].weight
    def other(**kwargs): return hpa_learner(learn.dls, 'smallresnet').fit_head(**kwargs).model[1][-1].weight
    assert torch.allclose(other(), whole, atol=1e-4)
    assert not torch.allclose(other(most=16), whole, atol=1e-2)
    assert not torch.allclose(other(seconds=1e-6), whole, atol=1e-2)


def test_too_little_memory_for_the_head(make_learner):
    learn, same = (make_learner() for _ in range(2))
    learn.model[0].layers.insert(0, SmallMemory(1))
    with pytest.warns(UserWarning, match='with 2 images in a batch; continuing with 1'): learn.fit_head()
    same.fit_head()
    assert torch.allclose(learn.model[1][-1].weight, same.model[1][-1].weight, atol=1e-3)
