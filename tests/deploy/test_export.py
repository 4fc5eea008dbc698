"Models elsewhere: ONNX gives the same numbers, the Hub gives the same files."
import shutil

import numpy as np
import pytest
import torch
from published_starts import draw_network

from hpa_fastai.batches.settings import ImageSettings
from hpa_fastai.deploy import hub
from hpa_fastai.deploy.bundle import Bundle, BundleError
from hpa_fastai.deploy.loading import load_bundle
from hpa_fastai.deploy.predictor import Predictor
from hpa_fastai.deploy.onnx import export_onnx
from hpa_fastai.evaluate.thresholds import plain_thresholds
from hpa_fastai.models.networks import PUBLISHED_LABELS


@pytest.mark.parametrize('method', ['none', 'temperature', 'platt'])
def test_onnx_runtime_agrees(trained, tmp_path, method):
    ort = pytest.importorskip('onnxruntime', reason='no onnxruntime: pip install onnx onnxruntime')
    from hpa_fastai.evaluate.calibration import calibrate
    b = load_bundle(trained[1])
    rng = np.random.default_rng(0)
    p = rng.random((200, 28))
    b.calibration = calibrate(p, rng.random((200, 28)) < p**2, method)
    f = export_onnx(b, tmp_path/'m.onnx')
    for n in (1, 3):
        x = rng.integers(0, 256, (n, 4, 48, 48), dtype=np.uint8)
        x[0, 1] = 0  # a blank channel must not divide by zero
        assert np.abs(ort.InferenceSession(f).run(None, dict(images=x))[0] - b.probs(torch.from_numpy(x))).max() < 1e-3


@pytest.mark.parametrize('arch, heads', [
    ('hpa-densenet121', None), pytest.param('hpa-inception-v3-cells', None, marks=pytest.mark.slow),
    pytest.param('subcell-vit', 2, marks=pytest.mark.slow)])
def test_published_networks_are_the_same_everywhere(arch, heads, tmp_path):
    "Folded, in half precision, and in ONNX Runtime: normalised, or from minimum to maximum, and with averaged heads"
    ort = pytest.importorskip('onnxruntime', reason='no onnxruntime: pip install onnx onnxruntime')
    labels, model = PUBLISHED_LABELS[arch], draw_network(arch, 64, heads)
    torch.nn.init.normal_(model[0][0].pos_embed if heads else model[1][-1].bias, std=.1)
    settings = ImageSettings(size=64, minmax=True) if heads else ImageSettings(size=64, mean=(.07,)*4, std=(.12,)*4)
    b = Bundle(model, labels, settings, plain_thresholds(.5, len(labels)), None, {})
    x = torch.randint(0, 256, (3, 4, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    probs, embeddings = b.run(b.inputs(x))
    assert probs.std() > .01 and embeddings.std(0).max() > .01
    folded = b.folded()
    assert (folded is b) == (heads is not None)
    for other, most in ((folded.run(b.inputs(x)), 1e-4), (b.run(b.inputs(x), half=True), 2e-2)):
        assert np.abs(other[0] - probs).max() < most
        assert np.abs(other[1] - embeddings).max() < most*max(1, np.abs(embeddings).max())
    for size in (x, x[:1]):
        found = ort.InferenceSession(export_onnx(b, tmp_path/'m.onnx', force=True)).run(None, dict(images=size.numpy()))
        assert np.abs(found[0] - probs[:len(size)]).max() < 1e-4


def test_isotonic_calibration_is_not_left_out_silently(trained, tmp_path):
    pytest.importorskip('onnx')
    from hpa_fastai.evaluate.calibration import calibrate
    b = load_bundle(trained[1])
    p = np.random.default_rng(0).random((400, 28))
    b.calibration = calibrate(p, p > .5, 'isotonic')
    with pytest.raises(BundleError, match='isotonic'): export_onnx(b, tmp_path/'m.onnx')
    assert not list(tmp_path.iterdir())


@pytest.fixture
def the_hub(trained, tmp_path, monkeypatch):
    "A folder in the place of the Hub; its cache holds links to the contents of the files"
    fetched, download = [], tmp_path/'cache'/'models--lab--model'
    def snapshot_download(name, allow_patterns):
        fetched.append(name)
        shutil.copytree(trained[1], download/'blobs')
        snapshot = download/'snapshots'/'0123abcd'
        snapshot.mkdir(parents=True)
        for file in allow_patterns: (snapshot/file).symlink_to(f'../../blobs/{file}')
        return str(snapshot)
    monkeypatch.setattr('huggingface_hub.snapshot_download', snapshot_download)
    monkeypatch.chdir(tmp_path)
    return fetched


def test_a_model_of_the_hub_is_fetched(the_hub):
    assert Predictor('lab/model').bundles[0].config['model']['arch'] == 'resnet10t' and the_hub == ['lab/model']


def test_a_name_that_the_hub_cannot_have(monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    with pytest.raises(BundleError, match='^a--b/c: neither a folder here nor a model on'): hub.pull_model('a--b/c')


def test_a_folder_wins(the_hub, trained, tmp_path):
    shutil.copytree(trained[1], tmp_path/'lab'/'model')
    Predictor('lab/model')
    with pytest.raises(BundleError, match='no model there; did you mean lab/model'):
        Predictor('lab/modle')  # a slip of the pen is not looked for elsewhere
    assert not the_hub


def test_links_of_a_download_lead_nowhere_else(the_hub, tmp_path):
    folder = hub.pull_model('lab/model')
    load_bundle(folder)
    (tmp_path/'mine.json').write_text((folder/'config.json').read_text())
    (folder/'config.json').unlink()
    (folder/'config.json').symlink_to(tmp_path/'mine.json')
    with pytest.raises(BundleError, match='leaves the bundle'): load_bundle(folder)


def test_offline_says_so(the_hub, monkeypatch):
    def offline(*args, **kwargs): raise ConnectionError('no route')
    monkeypatch.setattr('huggingface_hub.snapshot_download', offline)
    with pytest.raises(BundleError, match="can't be reached"): Predictor('lab/model')


def test_only_a_model_that_works_is_shared(the_hub, trained, tmp_path, monkeypatch):
    shared = []
    monkeypatch.setattr('huggingface_hub.HfApi.create_repo', lambda self, name, **kw: f'https://hub/{name}')
    monkeypatch.setattr('huggingface_hub.HfApi.upload_folder', lambda self, **kw: shared.append(kw))
    assert hub.push_model(trained[1], 'lab/model') == 'https://hub/lab/model'
    assert set(shared[0]['allow_patterns']) == set(hub.FILES)
    shutil.copytree(trained[1], tmp_path/'bad')
    (tmp_path/'bad'/'sample.npz').unlink()
    with pytest.raises(BundleError, match='missing'): hub.push_model(tmp_path/'bad', 'lab/model')
    assert len(shared) == 1
