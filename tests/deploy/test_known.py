"A model names the training images that a new one is most like, and a damaged file of them is refused in one line."
import hashlib
import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file, save_file

from hpa_fastai.all import HPA28, HPADataLoaders, Predictor, calibrate_model, hpa_learner, load_bundle
from hpa_fastai.data.label_tables import read_labels
from hpa_fastai.deploy import saving
from hpa_fastai.deploy.bundle import Bundle, BundleError
from hpa_fastai.deploy.hub import FILES
from hpa_fastai.deploy.loading import read_sample, test_bundle as check_bundle
from hpa_fastai.deploy.saving import write_bundle
from hpa_fastai.evaluate.known_images import MOST_KNOWN, KnownImages, rows_to_keep
from hpa_fastai.interpret.embedding_map import neighbors

FILE = 'known_images.safetensors'


@pytest.fixture
def copy(trained, tmp_path):
    shutil.copytree(trained[1], tmp_path/'copy')
    return tmp_path/'copy'


def embeddings_of(bundle, items):
    images = torch.stack([bundle.settings.reader(r) for r in items.to_dict('records')])
    return bundle.run(bundle.inputs(images))[1]


def replace_known(path, **changes):
    "Other known images, with a checksum that fits"
    with open(path/FILE, 'rb') as f: header = json.loads(f.read(int.from_bytes(f.read(8), 'little')))
    texts = header['__metadata__']
    tensors = dict(embeddings=changes.pop('embeddings', load_file(path/FILE)['embeddings']), **changes.pop('more', {}))
    save_file(tensors, path/FILE, metadata=texts | changes)
    config = json.loads((path/'config.json').read_text())
    config['known']['sha256'] = hashlib.sha256((path/FILE).read_bytes()).hexdigest()
    (path/'config.json').write_text(json.dumps(config))


def test_a_training_image_is_nearest_to_itself(trained):
    learn, path = trained
    bundle, items = load_bundle(path), learn.dls.train_ds.items
    tables = bundle.known.nearest(embeddings_of(bundle, items), k=3)
    assert [table.Id[0] for table in tables] == items.Id.tolist()
    assert min(table.similarity[0] for table in tables) > .999
    names = {Id: '|'.join(o) for Id, o in zip(items.Id, HPA28.to_names(HPA28.encode(items.Target)))}
    assert all(table.Names.tolist() == [names[Id] for Id in table.Id] for table in tables)
    assert all(len(table) == 3 and table.similarity.is_monotonic_decreasing for table in tables)


def test_nearest_are_those_of_the_map(trained):
    known = load_bundle(trained[1]).known
    expected = neighbors(known.embeddings.astype(np.float32), known.Ids, known.Ids[4], k=5)
    found = known.nearest(known.embeddings[4], k=6)[0][1:]
    assert found.Id.tolist() == expected.Id.tolist()
    assert np.allclose(found.similarity, expected.similarity, atol=1e-5)


def test_validation_images_are_not_among_them(trained):
    learn, path = trained
    assert load_bundle(path).known.Ids == learn.dls.train_ds.items.Id.tolist()


def test_same_after_saving_and_loading(trained, tmp_path):
    bundle = load_bundle(trained[1])
    again = load_bundle(write_bundle(bundle, tmp_path/'again', torch.from_numpy(read_sample(trained[1], 28)[0])))
    assert again.known.Ids == bundle.known.Ids and again.known.names == bundle.known.names
    assert (again.known.embeddings == bundle.known.embeddings).all() and again.config == bundle.config
    for file in (trained[1]/FILE, tmp_path/'again'/FILE):
        assert file.stat().st_mode == (file.parent/'config.json').stat().st_mode


def test_the_network_runs_once_over_each_picture(trained, tmp_path, monkeypatch):
    learn, seen, run = trained[0], [], Bundle.run
    def counted(self, x, half=False):
        seen.append(len(x))
        return run(self, x, half)
    monkeypatch.setattr(Bundle, 'run', counted)
    learn.save_bundle(tmp_path/'model', note=False)
    n_sample = len(read_sample(tmp_path/'model', 28)[0])
    assert sum(seen) == len(learn.dls.train_ds) + len(learn.dls.valid_ds) + n_sample


def test_what_is_measured_does_not_depend_on_what_is_kept(trained, tmp_path):
    learn, path = trained
    without = learn.save_bundle(tmp_path/'without', note=False, known=False)
    assert not (without/FILE).exists() and load_bundle(without).known is None
    assert load_bundle(without).config['flags'] == load_bundle(path).config['flags']
    assert check_bundle(without) < 1e-3
    assert 'training images, no pixels' not in (without/'README.md').read_text()
    assert f'Ids and labels of {len(learn.dls.train_ds)} training images, no pixels' in (path/'README.md').read_text()


def test_a_bundle_from_before_has_none(copy):
    config = json.loads((copy/'config.json').read_text())
    del config['known']
    (copy/'config.json').write_text(json.dumps(config))
    (copy/FILE).unlink()
    assert load_bundle(copy).known is None and check_bundle(copy) < 1e-3


@pytest.mark.parametrize('spoil, words', [
    (lambda p: (p/FILE).unlink(), 'missing; the bundle is not complete'),
    (lambda p: os.truncate(p/FILE, 1000), 'not a safetensors file.*copy the bundle again'),
    (lambda p: (p/FILE).write_bytes(b''), 'not a safetensors file'),
    (lambda p: (p/FILE).write_bytes(bytes(2**27)), 'larger than 5,000 images can be'),
    (lambda p: (p/FILE).write_bytes((p/FILE).read_bytes()[:-2] + b'\0\0'), 'the checksum is not that of config.json'),
    (lambda p: replace_known(p, images='code'), 'no Id and names for each'),
    (lambda p: replace_known(p, images='a\t\n'*100), 'no Id and names for each'),
    (lambda p: replace_known(p, embeddings=np.zeros((72, 3), np.float16)), 'no embeddings of'),
    (lambda p: replace_known(p, more=dict(code=np.zeros(3))), 'no embeddings of'),
])
def test_damage_is_one_line(copy, spoil, words):
    spoil(copy)
    with pytest.raises(BundleError, match=words) as e: load_bundle(copy)
    assert FILE in str(e.value) and '\n' not in str(e.value)


@pytest.mark.parametrize('n', [-1, 0, MOST_KNOWN + 1])
def test_a_false_number_is_refused(copy, n):
    config = json.loads((copy/'config.json').read_text())
    config['known']['n'] = n
    (copy/'config.json').write_text(json.dumps(config))
    with pytest.raises(BundleError, match=r'known\.n is'): load_bundle(copy)


def test_a_link_out_of_the_folder_is_refused(copy):
    shutil.move(copy/FILE, copy.parent/FILE)
    (copy/FILE).symlink_to(copy.parent/FILE)
    with pytest.raises(BundleError, match='a link that leaves the bundle'): load_bundle(copy)


def test_few_images_are_all_kept(small_atlas, tmp_path):
    few = read_labels(small_atlas/'train.csv').head(7)
    dls = HPADataLoaders.from_df(few, small_atlas/'train', size=32, bs=4, valid_pct=.3, cache=False, progress=False)
    bundle = load_bundle(hpa_learner(dls, 'lenet5', pretrained=False).save_bundle(tmp_path/'model', note=False))
    assert bundle.known.Ids == dls.train_ds.items.Id.tolist()
    assert len(bundle.known.nearest(bundle.known.embeddings[:1], k=50)[0]) == len(dls.train_ds)


def test_a_head_keeps_all_images_that_trained_it(small_atlas, tmp_path, monkeypatch):
    dls = HPADataLoaders.from_csv(small_atlas, size=32, bs=16, cache=tmp_path/'cache', progress=False)
    learn = hpa_learner(dls, 'smallresnet')
    with learn.no_bar(), learn.no_logging(): learn.fit_progressive(sizes=(32,), fine_tune=False, verbose=False)
    bundle = load_bundle(learn.save_bundle(tmp_path/'model', note=False))
    assert sorted(bundle.known.Ids) == sorted(read_labels(small_atlas/'train.csv').Id) and len(bundle.known) == 90
    rows = learn.out_of_fold.items.set_index('Id').loc[bundle.known.Ids].reset_index()
    assert np.allclose(bundle.known.embeddings, embeddings_of(bundle, rows), rtol=2e-3, atol=2e-3)
    asked, run = [], saving._run_on_pictures
    monkeypatch.setattr(saving, '_run_on_pictures', lambda *args, kept: asked.append(kept) or run(*args, kept=kept))
    learn.save_bundle(tmp_path/'again', note=False)
    assert asked == [(), ()]  # the network has run over them when the head was fitted
    learn.out_of_fold.embeddings = None  # as after a training that went on from a checkpoint
    other = load_bundle(learn.save_bundle(tmp_path/'other', note=False))
    assert other.known.Ids == bundle.known.Ids
    assert np.allclose(other.known.embeddings, bundle.known.embeddings, rtol=2e-3, atol=2e-3)


def test_more_images_than_a_model_keeps(trained, tmp_path, monkeypatch):
    learn = trained[0]
    monkeypatch.setattr(saving, 'rows_to_keep', lambda targets: rows_to_keep(targets, most=30))
    first, second = (load_bundle(learn.save_bundle(tmp_path/name, note=False)) for name in 'ab')
    assert len(first.known) == 30 and first.known.Ids == second.known.Ids
    assert first.config['flags'] == load_bundle(trained[1]).config['flags']
    rows = learn.dls.train_ds.items.set_index('Id').loc[first.known.Ids].reset_index()
    assert np.allclose(first.known.embeddings, embeddings_of(first, rows), rtol=2e-3, atol=2e-3)


def test_rare_classes_are_kept():
    rng = np.random.default_rng(1)
    targets = rng.random((20_000, 28)) < np.r_[.6, .4, np.full(25, .01), .0005]
    kept = rows_to_keep(targets.astype(np.uint8))
    assert len(kept) == MOST_KNOWN and (np.diff(kept) > 0).all()
    assert targets[kept][:, 27].sum() == targets[:, 27].sum() > 0
    assert (targets[kept].sum(0) >= np.minimum(targets.sum(0), MOST_KNOWN//28)).all()
    at_random = rng.permutation(20_000)[:MOST_KNOWN]
    assert (targets[kept][:, 2:].sum(0) > targets[at_random][:, 2:].sum(0)).all()
    assert (rows_to_keep(targets.astype(np.uint8)) == kept).all()


def test_large_numbers_stay_finite():
    known = KnownImages(['a', 'b'], ['', 'Cytosol'], np.array([[1e6, 1.], [1., 1e-9]]))
    assert np.isfinite(known.embeddings).all() and known.nearest([[1., 0.]])[0].Id[0] == 'b'


def test_a_calibrated_model_keeps_them(trained, small_atlas, tmp_path):
    with pytest.warns(UserWarning): calibrate_model(trained[1], small_atlas, tmp_path/'mine', progress=False)
    old, new = load_bundle(trained[1]), load_bundle(tmp_path/'mine')
    assert new.known.Ids == old.known.Ids and (new.known.embeddings == old.known.embeddings).all()


def test_each_of_an_ensemble_has_its_own(trained, copy):
    config = json.loads((copy/'config.json').read_text())
    (copy/'config.json').write_text(json.dumps(config | dict(known=None)))
    one, other = Predictor([trained[1], copy]).bundles
    assert len(one.known) == len(trained[0].dls.train_ds) and other.known is None


def test_it_travels_with_the_model(): assert FILE in FILES


def test_embeddings_of_a_run_are_understood(trained, small_atlas):
    bundle, found = load_bundle(trained[1]), []
    items = trained[0].dls.train_ds.items.head(3)
    for e in embeddings_of(bundle, items): found.append(bundle.known.nearest(e, k=1)[0])
    assert pd.concat(found).Id.tolist() == items.Id.tolist()
