"Bundles: everything travels, nothing runs, and what is damaged is refused in one line."
import hashlib
import io
import json
import os
import shutil
import signal
import time
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from hpa_fastai.all import (HPA28, HPADataLoaders, HPALearner, ImageSettings, create_model, hpa_learner,
                            plain_thresholds)
from hpa_fastai.deploy import loading, saving
from hpa_fastai.data.label_tables import read_labels
from hpa_fastai.deploy.bundle import BundleError
from hpa_fastai.deploy.loading import load_bundle, test_bundle as check_bundle


@pytest.fixture
def copy(trained, tmp_path):
    shutil.copytree(trained[1], tmp_path/'copy')
    return tmp_path/'copy'


def test_same_probabilities_as_validation(trained):
    learn, path = trained
    with learn.no_bar(): probs, _ = learn.get_preds()
    bundle = load_bundle(path)
    images = torch.stack([bundle.settings.reader(r) for r in learn.dls.valid_ds.items.to_dict('records')])
    assert np.abs(bundle.probs(images) - probs.numpy()).max() < 1e-4


@pytest.mark.parametrize(
    'arch',
    [
        'resnet18',
        'resnet50',
        'convnext_tiny',
        'efficientnet_b0',
        'densenet121',
        'vit_tiny_patch16_224',
        pytest.param('swin_tiny_patch4_window7_224', marks=pytest.mark.slow),
        'smallresnet',
        'lenet5',
        pytest.param('alexnet', marks=pytest.mark.slow),
    ],
)
def test_every_kind_of_network_comes_back_as_it_was_trained(small_atlas, tmp_path_factory, tmp_path, arch):
    "One step of training at 64 px on a few images, through the bundle and back"
    cache = tmp_path_factory.getbasetemp()/'kinds-cache'
    few = read_labels(small_atlas/'train.csv').head(12)
    dls = HPADataLoaders.from_df(few, small_atlas/'train', size=64, bs=8, valid_pct=.3, cache=cache, progress=False)
    learn = hpa_learner(dls, arch, pretrained=False)
    before = [p.detach().clone() for p in learn.model.parameters()]
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)
        probs, _ = learn.get_preds()
    assert any(not torch.equal(a, b) for a, b in zip(before, learn.model.parameters())) and torch.isfinite(probs).all()
    learn.save_bundle(tmp_path/'model')
    bundle = load_bundle(tmp_path/'model')
    images = torch.stack([bundle.settings.reader(r) for r in dls.valid_ds.items.to_dict('records')])
    assert np.abs(bundle.probs(images) - probs.numpy()).max() < 1e-4


@pytest.mark.parametrize('arch, folded', [('densenet121', 59), ('inception_v3', 94), ('resnet18', 20)])
def test_norms_are_folded_where_a_convolution_comes_before(trained, arch, folded):
    "timm's networks too, whose norm and activation are one layer; DenseNet's other 62 norms come before theirs"
    torch.manual_seed(0)
    model = create_model(arch, 28, pretrained=False, size=96).eval()
    norms = [m for m in model[0].modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        for t, low in ((norm.weight, .5), (norm.bias, -.2), (norm.running_mean, -.2), (norm.running_var, .5)):
            torch.nn.init.uniform_(t, low, low + 1)
    bundle = replace(load_bundle(trained[1]), model=model, settings=ImageSettings(size=96))
    fast, x = bundle.folded(), torch.randn(2, 4, 96, 96)
    assert len(norms) - sum(isinstance(m, torch.nn.BatchNorm2d) for m in fast.model[0].modules()) == folded
    graph = getattr(fast.model[0], 'usual', fast.model[0]).graph
    assert not any('batch_norm' in str(node.target) for node in graph.nodes)
    for a, b in zip(bundle.run(x), fast.run(x)): assert np.abs(a - b).max() < 1e-4*max(1, np.abs(a).max())
    assert any(m is norms[0] for m in model[0].modules())  # the network itself is as it was


def test_settings_travel(trained):
    learn, path = trained
    b = load_bundle(path)
    assert (b.labels, b.settings) == (learn.dls.labels, learn.dls.settings)
    assert np.allclose(b.thresholds.values, learn.thresholds.values)
    assert b.config['training']['images'] == len(learn.dls.train_ds) and len(b.config['metrics']) == 28
    assert 'Nucleoplasm' in (path/'README.md').read_text()


def test_sample_is_computed_again(trained): assert check_bundle(trained[1]) < 1e-5


def test_a_changed_sample_is_noticed(copy):
    with np.load(copy/'sample.npz') as f: images, probs = f['images'], f['probs']
    np.savez(copy/'sample.npz', images=images, probs=probs[:, ::-1])
    with pytest.raises(BundleError, match='differ by up to'): check_bundle(copy)


def test_taken_places_are_left_alone(trained, tmp_path):
    learn, path = trained
    with pytest.raises(BundleError, match='already holds a model'): learn.save_bundle(path)
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'thesis.txt').write_text('years of work')
    with pytest.raises(BundleError, match='not a model bundle'): learn.save_bundle(tmp_path/'mine', force=True)
    assert (tmp_path/'mine'/'thesis.txt').read_text() == 'years of work'


def test_replacing_leaves_nothing_behind(trained, copy):
    trained[0].save_bundle(copy, force=True)
    assert sorted(p.name for p in copy.parent.iterdir()) == ['copy']
    load_bundle(copy)


def test_a_killed_save_leaves_the_old_bundle_whole_and_the_next_one_cleans_up(copy):
    "The folder of a save that still runs is left alone, that of a killed one is removed"
    bundle, sample = load_bundle(copy), torch.zeros(1, 4, 48, 48, dtype=torch.uint8)
    before = {p.name: p.read_bytes() for p in copy.iterdir()}
    reached, reach = os.pipe()
    pid = os.fork()
    if pid == 0:
        def stop_here(file):
            os.write(reach, b'.')
            time.sleep(60)
        try:
            saving.file_sha256 = stop_here
            saving.write_bundle(bundle, copy, sample, force=True)
        finally: os._exit(1)
    os.read(reached, 1)
    leftover, = copy.parent.glob('.copy-*')
    saving.write_bundle(bundle, copy.parent/'copy', sample, force=True)
    assert leftover.is_dir()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert {p.name for p in copy.iterdir()} == before.keys() and load_bundle(copy) and leftover.is_dir()
    saving.write_bundle(bundle, copy, sample, force=True)
    assert [p.name for p in copy.parent.iterdir()] == ['copy']


def test_the_only_model_is_not_cleaned_up_before_there_is_another(copy, monkeypatch):
    "A replacement that was killed between its two renames leaves the old model under another name"
    bundle, sample = load_bundle(copy), torch.zeros(1, 4, 48, 48, dtype=torch.uint8)
    old = copy.with_name('.copy-0123abcd-old')
    copy.rename(old)
    def full(*_): raise OSError(28, 'No space left on device')
    with monkeypatch.context() as m, pytest.raises(BundleError, match='make room'):
        m.setattr(saving, 'file_sha256', full)
        saving.write_bundle(bundle, copy, sample)
    load_bundle(old)
    saving.write_bundle(bundle, copy, sample)
    assert [p.name for p in copy.parent.iterdir()] == ['copy']


@pytest.mark.parametrize('can_exchange', [True, False])
def test_a_model_is_there_whenever_a_replacement_is_killed(copy, can_exchange):
    bundle, sample = load_bundle(copy), torch.zeros(1, 4, 48, 48, dtype=torch.uint8)
    for when in range(3):
        pid = os.fork()
        if pid == 0:
            renamed = []
            def killed_at(step):
                def rename(*paths):
                    renamed.append(step(*paths))
                    if len(renamed) > when: os._exit(1)
                    return renamed[-1]
                return rename
            try:
                saving.exchange = killed_at(saving.exchange) if can_exchange else lambda *_: False
                os.rename = killed_at(os.rename)
                saving.shutil.rmtree = killed_at(shutil.rmtree)
                saving.write_bundle(bundle, copy, sample, force=True)
            finally: os._exit(1)
        os.waitpid(pid, 0)
        if can_exchange: assert (copy/'config.json').is_file()
        load_bundle(copy)
        assert (copy/'config.json').is_file()
    saving.write_bundle(bundle, copy, sample, force=True)
    assert [p.name for p in copy.parent.iterdir()] == ['copy']


def change(path, f):
    c = json.loads((path/'config.json').read_text())
    f(c)
    (path/'config.json').write_text(json.dumps(c))


def deep(n): return [deep(n-1)] if n else 0


def link(file):
    "Put the file somewhere else, and a link in its place"
    shutil.move(file, file.parent.parent/file.name)
    file.symlink_to(file.parent.parent/file.name)


def weights(path, data):
    "Other weights, with a checksum that fits"
    (path/'model.safetensors').write_bytes(data)
    change(path, lambda c: c.update(sha256=hashlib.sha256(data).hexdigest()))


def figures(path, f):
    "Other tensors, in a file that is what it says"
    from safetensors.torch import load, save
    tensors = load((path/'model.safetensors').read_bytes())
    f(tensors)
    weights(path, save(tensors))


def lying(what):
    "A safetensors file whose header is not true"
    shape, end, n = {
        'model': ([5 * 10**9], 20 * 10**9, None),
        'offsets': ([4], 10**12, None),
        'length': ([4], 16, 10**12),
    }[what]
    header = json.dumps({'0.conv1.weight': dict(dtype='F32', shape=shape, data_offsets=[0, end])}).encode()
    return (n or len(header)).to_bytes(8, 'little') + header + bytes(16)


def a_pickle():
    "What torch.save writes, with code in it"
    f = io.BytesIO()
    torch.save({'a': Evil()}, f)
    return f.getvalue()


def steps(at, value):
    return dict(method='isotonic', slope=[1] * 28, offset=[0] * 28, steps={'0': [at, value]})


class Evil:
    def __reduce__(self): return (pytest.fail, ('code of a bundle was run',))


@pytest.mark.parametrize(
    'spoil, words',
    [
        (lambda p: change(p, lambda c: c.update(format_version=99)), 'format 99.*upgrade'),
        (lambda p: change(p, lambda c: c.update(code='import os')), 'unknown field'),
        (lambda p: change(p, lambda c: c.pop('reader')), "no field 'reader'"),
        (lambda p: change(p, lambda c: c['reader'].update(path='/etc/passwd')), 'unknown fields'),
        (lambda p: change(p, lambda c: c['model'].update(n_out=3)), 'model'),
        (lambda p: change(p, lambda c: c['model'].update(arch='resnet18')), 'not the weights'),
        (lambda p: change(p, lambda c: c['thresholds'].update(values=[0.5])), 'thresholds.values is a list of 1'),
        (lambda p: change(p, lambda c: c['thresholds']['values'].__setitem__(3, float('nan'))), 'NaN'),
        (lambda p: change(p, lambda c: c['thresholds']['values'].__setitem__(3, '0.5')), r"values\[3\] is '0.5'"),
        (lambda p: change(p, lambda c: c['labels']['classes'].append(c['labels']['classes'][0])), 'model.n_out'),
        (
            lambda p: change(p, lambda c: c['labels']['classes'].__setitem__(1, c['labels']['classes'][0])),
            'listed twice',
        ),
        (lambda p: change(p, lambda c: c['labels'].update(negative=28)), 'labels.negative'),
        (lambda p: change(p, lambda c: c['reader'].update(size=True)), 'reader.size'),
        (lambda p: change(p, lambda c: c['reader'].update(channels={'green': {'a': 1}})), 'reader.channels'),
        (lambda p: change(p, lambda c: c['reader'].update(percentiles=[9, 1])), 'percentiles'),
        (lambda p: change(p, lambda c: c['preprocess'].update(mean=[0, 0, 0])), 'preprocess.mean'),
        (lambda p: change(p, lambda c: c['model'].update(dropout=-1)), 'dropout'),
        (lambda p: change(p, lambda c: c['model'].update(arch='../../etc/passwd')), 'arch'),
        (lambda p: change(p, lambda c: c['model'].update(arch='/etc/passwd')), 'arch'),
        (lambda p: change(p, lambda c: c['model'].update(arch='hf-hub:somebody/model')), 'arch'),
        (lambda p: change(p, lambda c: c['model'].update(arch='__import__("os").system("touch pwned")')), 'arch'),
        (lambda p: change(p, lambda c: c['model'].update(arch='resnet_from_the_future')), 'no network is called'),
        (lambda p: change(p, lambda c: c['model'].update(size=10**9)), 'model.size'),
        (lambda p: change(p, lambda c: c['model'].update(size=10**500)), 'model.size'),
        (lambda p: change(p, lambda c: c.update(model=None)), 'model is None'),
        (lambda p: change(p, lambda c: c.update(labels=[])), 'labels is a list'),
        (
            lambda p: change(
                p,
                lambda c: c.update(
                    calibration=dict(method='isotonic', slope=[1] * 28, offset=[0] * 28, steps={'99': [[0], [1]]})
                ),
            ),
            'steps',
        ),
        (lambda p: change(p, lambda c: c.update(training={'x': deep(50)})), 'nested too deeply'),
        (lambda p: change(p, lambda c: c.update(training=[1])), 'training is a list of 1'),
        (lambda p: change(p, lambda c: c.update(metrics=c['metrics'][:3])), 'metrics is a list of 3: a list of 28'),
        (lambda p: change(p, lambda c: c.update(metrics=c['metrics'][:3])), 'metrics is a list of 3: a list of 28'),
        (lambda p: change(p, lambda c: c['versions'].update({'a\nb\x1b[2J': '1'})), r'versions\.a\\nb\\x1b\[2J is'),
        (lambda p: change(p, lambda c: c['preprocess'].update(mean=[.1]*4)), 'mean and std go together'),
        (lambda p: change(p, lambda c: c['preprocess'].update(source=True)), 'mean and std go together'),
        (lambda p: change(p, lambda c: c.update(calibration=steps([0, 1], [0]))), 'two lists of equal length'),
        (lambda p: change(p, lambda c: c.update(calibration=steps([1, 0], [0, 1]))), 'rising numbers'),
        (lambda p: change(p, lambda c: c.update(versions={'a': 'x' * 10**6})), 'versions.a'),
        (lambda p: change(p, lambda c: c.update(sha256='0')), 'sha256'),
        (lambda p: change(p, lambda c: c['flags'].pop('unlike')), 'flags'),
        (lambda p: change(p, lambda c: c['flags'].update(embedding=0)), 'flags.embedding'),
        (lambda p: figures(p, lambda t: t.pop('training.embedding.mean')), 'figures of the training'),
        (lambda p: figures(p, lambda t: t.update({'training.picture.mean': torch.zeros(3)})), 'wrong shape'),
        (lambda p: figures(p, lambda t: t['training.picture.basis'].fill_(float('nan'))), 'not finite'),
        (lambda p: figures(p, lambda t: t.update(more=torch.zeros(3))), 'not the weights'),
        (lambda p: figures(p, lambda t: t['1.4.weight'].fill_(float('nan'))), '1.4.weight holds values that are not'),
        (lambda p: figures(p, lambda t: t['1.4.bias'].fill_(float('inf'))), '1.4.bias holds values that are not fin'),
        (lambda p: figures(p, lambda t: t.update({'1.4.bias': t['1.4.bias'].long()})), 'whole numbers, expected'),
        (lambda p: figures(p, lambda t: t.update({'1.4.bias': t['1.4.bias'] > 0})), 'whole numbers, expected'),
        (lambda p: figures(p, lambda t: t.update({'1.4.bias': t['1.4.bias']*1j})), 'whole numbers, expected'),
        (lambda p: (p / 'config.json').write_text('{"a": 1, "a": 2}'), 'occurs twice'),
        (lambda p: (p / 'config.json').write_text('{"format_version": ' + '1' * 5000 + '}'), 'JSON'),
        (lambda p: (p / 'config.json').write_bytes(b' ' * (2**24 + 1)), 'MB'),
        (lambda p: link(p / 'model.safetensors'), 'leaves the bundle'),
        (lambda p: link(p / 'config.json'), 'leaves the bundle'),
        (lambda p: weights(p, lying('model')), 'not a safetensors file'),
        (lambda p: weights(p, lying('offsets')), 'not a safetensors file'),
        (lambda p: weights(p, lying('length')), 'not a safetensors file'),
        (lambda p: weights(p, a_pickle()), 'not a safetensors file'),
        (lambda p: (p / 'config.json').write_text('{"format_version": 1'), 'JSON'),
        (lambda p: (p / 'config.json').write_text('[' * 100_000), 'JSON'),
        (lambda p: (p / 'config.json').write_text('[1]'), 'not the configuration'),
        (lambda p: os.truncate(p / 'model.safetensors', 1000), 'checksum'),
        (lambda p: (p / 'model.safetensors').unlink(), 'missing'),
        (
            lambda p: change(p, lambda c: c['labels']['classes'].__setitem__(0, 'error')),
            "class 0 is called 'error', like a column",
        ),
        (lambda p: change(p, lambda c: c['labels']['classes'].__setitem__(1, 'Golgi|cis')), 'separates names'),
        (
            lambda p: change(p, lambda c: c['labels']['classes'].__setitem__(1, '0')),
            'a number in a table means a position',
        ),
        (lambda p: change(p, lambda c: c['labels'].update(sep='')), 'sep'),
        (lambda p: (p / 'config.json').unlink(), 'config.json is missing'),
        (shutil.rmtree, 'train one with'),
    ],
)
def test_damage_is_one_line(copy, spoil, words):
    spoil(copy)
    with pytest.raises(BundleError, match=words) as e: load_bundle(copy)
    assert '\n' not in str(e.value)


def test_a_file_that_cannot_be_opened_says_why(copy, monkeypatch):
    def refuse(self, *args, **kwargs): raise PermissionError(13, 'Permission denied', str(self))
    with monkeypatch.context() as m:
        m.setattr('pathlib.Path.read_text', refuse)
        with pytest.raises(BundleError, match='config.json: no permission to read it; ask its owner') as e:
            load_bundle(copy)
    assert 'again' not in str(e.value)


def test_loading_runs_no_pickle(copy, tmp_path, monkeypatch):
    import pickle
    def refuse(*args, **kwargs): raise AssertionError('a pickle was opened')
    monkeypatch.setattr(pickle, 'load', refuse)
    monkeypatch.setattr(torch, 'load', refuse)
    check_bundle(copy)


@pytest.mark.parametrize('arch, size', [
    ('vit_gigantic_patch14_224', 224), ('eva02_enormous_patch14_clip_224', 8), ('regnet_y_128gf', 64),
    ('vit_h_14', 15), ('subcell-vit', 30),
])
def test_a_claim_costs_no_memory(copy, arch, size):
    "The gigantic network of the config is never built, whether it takes pictures of that size or not"
    import resource
    change(copy, lambda c: c['model'].update(arch=arch, size=size))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BundleError) as e: load_bundle(copy)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000 and '\n' not in str(e.value)  # kB


def curve(values): return dict(method='isotonic', slope=[1] * 28, offset=[0] * 28, steps={'0': [values, values]})


@pytest.mark.parametrize('spoil, words', [
    (lambda c: c['labels'].update(classes=[0] * 300_000), r'classes\[0\] is 0'),
    (lambda c: c['validation'].update(scores={f'{i}': 'a' for i in range(300_000)}), '300000 keys'),
    (lambda c: c['model'].update({f'{i}': 0 for i in range(300_000)}), '300005 keys'),
    (lambda c: c.update(calibration=curve(['a'] * 100_000)), r"steps.0\[0\]\[0\] is 'a'"),
    (lambda c: c.update(training=[[]] * 3_000_000), 'values, where at most'),
])
def test_long_settings_cost_no_memory(copy, spoil, words):
    import resource
    change(copy, spoil)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BundleError, match=words): load_bundle(copy)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def sample_of(path, **arrays): np.savez_compressed(path/'sample.npz', **arrays)


def claims(path, shape):
    "A sample whose header is not true"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, dict(descr='|u1', fortran_order=False, shape=shape))
    with zipfile.ZipFile(path/'sample.npz', 'w') as z:
        z.writestr('images.npy', header.getvalue() + bytes(100))
        z.writestr('probs.npy', b'')


@pytest.mark.parametrize('spoil', [
    lambda p: (p/'sample.npz').unlink(),
    lambda p: (p/'sample.npz').write_bytes(b'PK nothing'),
    lambda p: (p/'sample.npz').write_bytes(a_pickle()),
    lambda p: sample_of(p, images=np.array([Evil()], dtype=object), probs=np.zeros((1, 28))),
    lambda p: sample_of(p, images=np.zeros((1, 4, 48, 48), np.uint8), probs=np.zeros((1, 3))),
    lambda p: sample_of(p, images=np.zeros((30, 4, 48, 48), np.uint8), probs=np.zeros((30, 28))),
    lambda p: link(p/'sample.npz'),
    lambda p: sample_of(p, images=np.zeros((0, 4, 48, 48), np.uint8), probs=np.zeros((0, 28))),
    lambda p: sample_of(p, images=np.zeros((1, 4, 0, 48), np.uint8), probs=np.zeros((1, 28))),
    lambda p: sample_of(p, images=np.zeros((1, 4, 48, 48), np.uint8), probs=np.full((1, 28), 'a')),
    lambda p: sample_of(p, images=np.array('a'), probs=np.array('b')),
    lambda p: claims(p, (10**10,)),
])
def test_a_sample_that_is_none_is_one_line(copy, spoil, monkeypatch):
    monkeypatch.setattr(loading, 'MAX_SAMPLE', 200_000)
    spoil(copy)
    with pytest.raises(BundleError, match='sample') as e: check_bundle(copy)
    assert '\n' not in str(e.value)


def test_pickles_need_trust(trained, tmp_path):
    learn, path = trained
    learn.export(tmp_path/'export.pkl')
    with pytest.raises(BundleError, match='trust_pickle'): load_bundle(tmp_path/'export.pkl')
    x = torch.randint(0, 255, (2, 4, 48, 48), dtype=torch.uint8)
    a, b = load_bundle(tmp_path/'export.pkl', trust_pickle=True), load_bundle(path)
    assert np.abs(a.probs(x) - b.probs(x)).max() < 1e-5 and np.allclose(a.thresholds.values, b.thresholds.values)


def test_weights_do_not_depend_on_where_they_are(trained, tmp_path):
    (tmp_path/'link').symlink_to(trained[1])
    assert check_bundle(tmp_path/'link') < 1e-5


def test_a_class_that_stands_alone_is_known_from_the_labels(trained, tmp_path, monkeypatch):
    "In a learner, in the bundle it is saved as, and in one that an earlier version wrote"
    learn, path = trained
    labels = replace(HPA28, negative=0)
    for dl in learn.dls.loaders: monkeypatch.setattr(dl, 'labels', labels)
    monkeypatch.setattr(learn, 'evaluation', None)
    monkeypatch.setattr(learn, 'thresholds', plain_thresholds(.01, 28))
    crowded = learn.thresholds.predict(learn.get_preds(act=torch.sigmoid)[0].numpy())
    assert crowded[:, 0].all() and crowded.sum(1).min() > 1
    alone = learn.evaluate().table.predicted
    assert 0 < alone.iloc[0] + alone.iloc[1:].max() <= len(crowded) < 2*len(crowded) - 1
    bundle = learn.to_bundle()
    assert bundle.thresholds.exclusive == 0 == bundle.config['thresholds']['exclusive']
    assert learn.fit_thresholds().exclusive == 0
    saved = learn.save_bundle(tmp_path/'model')
    config = json.loads((saved/'config.json').read_text())
    del config['thresholds']['exclusive']
    (saved/'config.json').write_text(json.dumps(config))
    assert load_bundle(saved).thresholds.exclusive == 0 and load_bundle(path).thresholds.exclusive is None


def test_a_model_without_thresholds_can_be_saved(trained, tmp_path):
    learn, _ = trained
    th, learn.thresholds = learn.thresholds, None
    try:
        with pytest.warns(UserWarning, match='no thresholds were fitted.* not calibrated'):
            learn.save_bundle(tmp_path / 'm')
    finally: learn.thresholds = th
    assert (load_bundle(tmp_path/'m').thresholds.values == .5).all()
    with pytest.warns(UserWarning, match='saved, but the probabilities are not calibrated'):
        learn.save_bundle(tmp_path / 'n')


def test_figures_that_are_no_numbers_do_not_spoil_a_model(trained, tmp_path):
    learn, _ = trained
    log, learn.training_log[-1] = learn.training_log[-1], dict(learn.training_log[-1], mean_ap=float('nan'))
    learn.history['log'] = learn.training_log
    try: learn.save_bundle(tmp_path/'m', note=False)
    finally: learn.training_log[-1] = log
    assert load_bundle(tmp_path/'m').config['training']['log'][-1]['mean_ap'] is None


def test_what_could_not_be_loaded_is_not_saved(trained, tmp_path):
    bundle = load_bundle(trained[1])
    bundle.config['labels']['classes'][0] = 'x'*250
    with pytest.raises(BundleError, match=r"can't be saved: config.json.labels.classes\[0\] is .* at most 200"):
        saving.write_bundle(bundle, tmp_path/'m', torch.zeros(1, 4, 48, 48, dtype=torch.uint8))
    assert os.listdir(tmp_path) == []


def test_a_network_without_a_name_has_no_bundle(trained, tmp_path):
    body, head = torch.nn.AdaptiveAvgPool2d(1), torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 28))
    learn = HPALearner(trained[0].dls, torch.nn.Sequential(body, head), loss_func=trained[0].loss_func)
    with pytest.raises(BundleError, match='Sequential: .* learn.export'): learn.save_bundle(tmp_path/'m')


@pytest.mark.parametrize('history,said', [
    (dict(lr='find'), 'It was trained. Highest learning rate: find.'),
    (dict(minutes='3'), 'It was trained. It took 3 minutes.'),
    (dict(images='many'), 'It was trained, on many images.'),
    (dict(kept_of_start='half'), 'It was trained. Training helped only in part: half of the start was kept.'),
    (dict(stages=2, minutes=.5), 'It was trained. Stages: 2. It took 30 s.'),
    (dict(images=2000, lr=.003, minutes=3.2, kept_of_start=.25, note={1: 'a'}),
     'It was trained, on 2,000 images. Highest learning rate: 0.003. It took 3 minutes. '
     'Training helped only in part: 25% of the start was kept. Note: 1 a.'),
    (dict(corrections=dict(changed=12, added=3), comparison=dict(
        old='hpa_model', images=50, old_macro_f1=.5, new_macro_f1=.625, difference=.125, interval=[.01, .24],
        notes=['8 of these 50 images trained the old model'])),
     'It was trained. Corrections changed the labels of 12 images and added 3. On the same 50 images, hpa_model had a '
     'macro F1 of 0.500, and this model 0.625: difference +0.125 (95 % interval +0.010 to +0.240). 8 of these 50 '
     'images trained the old model.'),
    (dict(corrections='many', comparison=dict(interval=7, notes=3)),
     'It was trained. Corrections: many. On the same None images, None had a macro F1 of None, and this model None: '
     'difference None. 3.'),
])
def test_any_record_of_a_training_can_be_described(history, said):
    assert saving.describe_training(history) == said


def test_only_a_published_start_is_called_published():
    head = dict(stages=['64 px: the head alone'])
    assert 'the network before it is as it was at the start' in saving.describe_training(head)
    named = dict(head, started_from='hpa-densenet121')
    assert 'the network before it is as it was published' in saving.describe_training(named)
