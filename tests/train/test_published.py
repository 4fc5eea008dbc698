"Training starts from published weights: pictures as these know them, the user's loaders as they were, one answer."
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.learner import Learner, load_learner
from published_starts import draw_network, save_weights
from safetensors.torch import save_file

from hpa_fastai.batches.loaders import HPADataLoaders
from hpa_fastai.batches.settings import ImageSettings
from hpa_fastai.data.labels import HPA28, LabelSet
from hpa_fastai.data.reader import ImageReader
from hpa_fastai.deploy.loading import load_bundle
from hpa_fastai.models.networks import ModelError
from hpa_fastai.models.registry import PUBLISHED
from hpa_fastai.train.fine_tuning import worth_fine_tuning
from hpa_fastai.train.learner import HPALearner, hpa_learner

NAME = 'hpa-densenet121'


@pytest.fixture(scope='session')
def densenet(tmp_path_factory):
    "A densenet with random weights, and the file of a published model with these"
    model = draw_network(NAME)
    return model, save_weights(model, tmp_path_factory.mktemp('published'), NAME)


@pytest.fixture
def dls(small_atlas, cache):
    return HPADataLoaders.from_csv(small_atlas, size=64, bs=8, group='antibody', cache=cache, progress=False)


def pixels(dls, n=6): return dls.valid.cache.batch(dls.valid.places[:n]).as_subclass(torch.Tensor)


def as_published(name, x, size=64):
    "What the network is to be given, written out"
    settings = PUBLISHED[name].settings
    x = x.float()/255
    if settings.minmax:
        low, high = (o[:, None, None, None] for o in (x.flatten(1).amin(1), x.flatten(1).amax(1)))
        return (x - low)/(high - low)
    mean, std = (torch.tensor(o)[:, None, None] for o in (settings.mean, settings.std))
    return (x - mean)/std.clamp_min(.01)


def test_the_same_classes_are_known_at_once(dls, densenet, monkeypatch, tmp_path):
    "Before any training: the published model's own outputs, by validate, get_preds and the saved bundle alike"
    model, file = densenet
    monkeypatch.setenv('HPA_FASTAI_MODELS', str(file.parent))
    before, batch = dls.settings, dls.valid.one_batch()[0]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        learn = hpa_learner(dls, NAME)
    with torch.no_grad(): want = model(as_published(NAME, pixels(dls))).sigmoid()
    with learn.no_bar(), learn.no_logging():
        loss = learn.validate()[0]
        logits, targets = learn.get_preds(act=lambda x: x)
    assert learn.model.known == list(HPA28.classes) and torch.allclose(logits[:6].sigmoid(), want, atol=1e-5)
    assert loss == pytest.approx(float(learn.loss_func(logits, targets)), abs=1e-5)
    settings = PUBLISHED[NAME].settings
    assert learn.dls.settings == ImageSettings(ImageReader(size=64), 64, settings.mean, settings.std)
    assert learn.dls.settings_suffice() and dls.settings == before and torch.equal(dls.valid.one_batch()[0], batch)
    with pytest.warns(UserWarning, match='no thresholds were fitted'): learn.save_bundle(tmp_path/'model')
    bundle = load_bundle(tmp_path/'model')
    assert bundle.settings == learn.dls.settings and np.abs(bundle.probs(pixels(dls)) - want.numpy()).max() < 1e-5
    assert f'Started from: {NAME} ({PUBLISHED[NAME].licence}; ' in (tmp_path/'model'/'README.md').read_text()


def test_other_classes_keep_what_they_share(small_atlas, cache, densenet):
    labels = LabelSet('mine', ['Spots', 'Nucleoplasm', 'cytosol'])
    table = pd.read_csv(small_atlas/'train.csv').assign(Target=lambda df: [str(i % 3) for i in range(len(df))])
    dls = HPADataLoaders.from_df(table, small_atlas/'train', labels, size=64, bs=8, cache=cache, progress=False)
    learn = hpa_learner(dls, NAME, densenet[1])
    assert learn.model.known == ['Nucleoplasm', 'cytosol'] and learn.knows_cells
    learn.fit_head()
    with learn.no_bar(): assert torch.isfinite(learn.get_preds()[0]).all()


def test_the_head_alone_for_few_images_and_all_of_it_where_asked(dls, densenet):
    learn = hpa_learner(dls, NAME, densenet[1])
    assert not worth_fine_tuning(learn) and learn.pretrained
    body = {k: v.clone() for k, v in learn.model[0].state_dict().items()}
    with learn.no_bar(), learn.no_logging(): learn.fit_progressive(fine_tune=False, verbose=False)
    assert all(torch.equal(v, body[k]) for k, v in learn.model[0].state_dict().items())
    assert learn.history['started_from'].startswith(NAME) and learn.history['stages'] == ['64 px: the head alone']
    learn = hpa_learner(dls, NAME, densenet[1])
    with learn.no_bar(), learn.no_logging(): learn.fit_progressive(epochs=1, verbose=False, best=False)
    rates = [h['lr'] for h in learn.opt.hypers]
    assert rates[0] == pytest.approx(rates[1]/2) and learn.history['stages'] == ['64 px: 1 epoch']
    state = learn.model[0].state_dict()
    moved = [k for k, v in state.items() if not torch.equal(v, body[k])]
    assert moved and not any('running' in k for k in moved), 'statistics of batch norms stay'
    assert learn.history['started_from'].startswith(NAME)


@pytest.mark.parametrize('asked', ['dataset', 'source', 'minmax', ((.1,)*4, (.2,)*4)])
def test_who_asked_for_other_figures_keeps_them(small_atlas, cache, densenet, asked):
    dls = HPADataLoaders.from_csv(small_atlas, size=64, bs=8, cache=cache, progress=False, normalize=asked)
    with pytest.warns(UserWarning, match='as you asked; hpa-densenet121 was trained') as said:
        learn = hpa_learner(dls, NAME, densenet[1])
    assert learn.dls.settings == dls.settings and len([w for w in said if 'as you asked' in str(w.message)]) == 1


def test_figures_that_are_its_own_need_no_word(small_atlas, cache, densenet):
    own = PUBLISHED[NAME].settings
    normalize = own.mean, own.std
    dls = HPADataLoaders.from_csv(small_atlas, size=64, bs=8, cache=cache, progress=False, normalize=normalize)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        warnings.filterwarnings('ignore', 'valid has no image|.* antibodies are in')
        assert hpa_learner(dls, NAME, densenet[1]).dls.settings == dls.settings


def test_other_weights_leave_pictures_alone(dls, densenet, tmp_path):
    "From scratch, or from a file that says nothing of a published model"
    save_file(densenet[0].state_dict(), tmp_path/'mine.safetensors')
    for pretrained in (False, tmp_path/'mine.safetensors'):
        learn = hpa_learner(dls, NAME, pretrained)
        assert learn.dls.settings == dls.settings and not learn.knows_cells and learn.origin == {}


def test_resumed_copied_and_exported_alike(dls, densenet, tmp_path):
    def train(**kwargs):
        learn = hpa_learner(dls, NAME, densenet[1])
        with learn.no_bar(), learn.no_logging():
            return learn.fit_progressive(fine_tune=False, folder=tmp_path/'training', verbose=False, **kwargs)
    learn, again = train(), train(resume=True)
    with learn.no_bar(): want = learn.get_preds()[0]
    learn.export(tmp_path/'export.pkl')
    theirs = Learner(learn.dls, learn.model, loss_func=learn.loss_func)
    for other in (again, load_learner(tmp_path/'export.pkl'), HPALearner.from_learner(theirs)):
        assert other.dls.settings == learn.dls.settings
        dl = other.dls.test_dl(dls.valid_ds.items, num_workers=0)
        with other.no_bar(): assert torch.allclose(other.get_preds(dl=dl)[0], want, atol=1e-4)
    assert again.history['started_from'] == learn.history['started_from']


def test_unverified_weights_are_named_once(dls, densenet, tmp_path):
    file = save_weights(densenet[0], tmp_path, NAME, checked='nothing')
    with pytest.warns(UserWarning, match='unverified') as said: learn = hpa_learner(dls, NAME, file)
    notes = [str(w.message) for w in said if 'unverified' in str(w.message)]
    assert len(notes) == 1 and '\n' not in notes[0] and 'unverified' in learn.origin['started_from']


@pytest.mark.parametrize('arch', [
    'hpa-inception-v3-cells', pytest.param('subcell-vit', marks=pytest.mark.slow)])
def test_networks_for_cells_train_too(dls, arch, tmp_path):
    file = save_weights(draw_network(arch), tmp_path, arch)
    learn = hpa_learner(dls, arch, file)
    x, y = learn.dls.valid.one_batch()
    assert torch.allclose(x[:6].as_subclass(torch.Tensor), as_published(arch, pixels(dls)), atol=1e-5)
    assert learn.dls.settings_suffice() and learn.knows_cells
    body = [p.detach().clone() for p in learn.model[0].parameters()]
    learn.dls.train.draw = 8
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-4)
    assert any(not torch.equal(a, b) for a, b in zip(body, learn.model[0].parameters()))
    assert all(torch.isfinite(p).all() for p in learn.model.parameters())


def test_sizes_that_a_transformer_cannot_take(small_atlas, cache):
    dls = HPADataLoaders.from_csv(small_atlas, size=72, bs=8, cache=cache, progress=False)
    with pytest.raises(ModelError, match='^subcell-vit does not take pictures of 72 px; take .* multiple of 16$'):
        hpa_learner(dls, 'subcell-vit', pretrained=False)
