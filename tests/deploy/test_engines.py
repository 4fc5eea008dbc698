"An engine in place of PyTorch: the same answers, or PyTorch and a line that says why."
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from torch import nn

import hpa_fastai
from hpa_fastai.batches.settings import ImageSettings
from hpa_fastai.cells.cells import predict_cells
from hpa_fastai.cli.main import main
from hpa_fastai.data.files import find_images
from hpa_fastai.data.labels import HPA28
from hpa_fastai.data.reader import ImageReader
from hpa_fastai.deploy.bundle import Bundle
from hpa_fastai.deploy.loading import load_bundle
from hpa_fastai.deploy.predictor import Predictor
from hpa_fastai.deploy.tables import ResultError, read_predictions
from hpa_fastai.models import engine_choice, engines, exported
from hpa_fastai.models.architectures import create_model
from hpa_fastai.models.engine_choice import choose_engine
from hpa_fastai.models.exported import EngineError, exported_graph, graph_folder

NAMES = list(HPA28.classes)
BOTH = ('onnxruntime', 'openvino')


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    "Every test begins on a machine that has no graphs yet"
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'caches'))


@pytest.fixture
def plate(small_atlas, tmp_path):
    "Five fields of view, one of which cannot be read"
    (tmp_path/'plate').mkdir()
    for _, row in find_images(small_atlas/'train').head(5).iterrows():
        for c in ('red', 'green', 'blue', 'yellow'): shutil.copy(row[c], tmp_path/'plate')
    (tmp_path/'plate'/f'{row.Id}_green.png').write_bytes(b'no picture')
    return tmp_path/'plate'


def network(arch='smallresnet', size=32, n=28):
    torch.manual_seed(0)
    return create_model(arch, n, pretrained=False, size=size).eval()


def same(ours, theirs, most=1e-3):
    "The same table: equal decisions and flags, probabilities to a thousandth"
    others = [c for c in theirs if c not in NAMES]
    assert list(ours) == list(theirs)
    pd.testing.assert_frame_equal(ours[others], theirs[others])
    np.testing.assert_allclose(ours[NAMES].to_numpy(float), theirs[NAMES].to_numpy(float), atol=most, rtol=0)


@pytest.mark.parametrize('engine', BOTH)
@pytest.mark.parametrize('settings', [{}, dict(tta=True), dict(bs=2)], ids=str)
def test_a_folder_gets_the_same_answers(plate, trained, tmp_path, engine, settings):
    for name in ('torch', engine):
        df = hpa_fastai.predict(plate, model=trained[1], engine=name, out=tmp_path/f'{name}.csv',
                                embeddings=tmp_path/f'{name}.npy', progress=False, **settings)
        if name == 'torch': theirs = df
    same(df, theirs)
    assert df['error'].ne('').sum() == 1
    ours, theirs = (np.load(tmp_path/f'{name}.npy') for name in (engine, 'torch'))
    assert np.isnan(ours).any(1).tolist() == df['error'].ne('').tolist()
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


@pytest.mark.parametrize('engine', BOTH)
@pytest.mark.parametrize('arch, size', [
    ('resnet10t', 48), ('hpa-densenet121', 64), ('hpa-inception-v3-cells', 80), ('subcell-vit', 64),
    ('efficientnet_b0', 64), ('convnext_atto', 64), ('shufflenet_v2_x0_5', 64)])
def test_networks_of_all_kinds(arch, size, engine, recwarn):
    bundle = Bundle.assemble(network(arch, size), HPA28, ImageSettings(ImageReader(size=size)))
    quick = bundle.with_engine(engine)
    assert quick.engine.name == engine and not [w for w in recwarn if 'engine' in str(w.message)]
    images = torch.randint(0, 256, (3, 4, size, size), dtype=torch.uint8)
    for ours, theirs in zip(quick.run(quick.inputs(images)), bundle.run(bundle.inputs(images))):
        np.testing.assert_allclose(ours, theirs, atol=1e-3*max(1, np.abs(theirs).max()))


def test_an_ensemble_and_its_cells(plate, trained):
    models = [trained[1], Bundle.assemble(network(), HPA28, ImageSettings(ImageReader(size=32)))]
    ours, theirs = (Predictor(models, engine=name) for name in ('onnxruntime', 'torch'))
    same(ours(plate), theirs(plate))
    assert ours.where == 'cpu, full precision, onnxruntime' and theirs.where == 'cpu, full precision'
    same(*(predict_cells(p, plate, progress=False) for p in (ours, theirs)))


def test_a_predictor_serves_several_threads(plate, trained):
    predictor, table = Predictor(trained[1], engine='openvino'), find_images(plate)
    expected = predictor(table)
    with ThreadPoolExecutor(4) as pool: found = list(pool.map(predictor, [table]*8))
    for df in found: pd.testing.assert_frame_equal(df, expected)


def test_a_session_belongs_to_one_batch_at_a_time():
    graph, _ = exported_graph(network(), 32)
    engine, x = engines.Engine('openvino', graph), torch.rand(64, 4, 32, 32)
    expected = [engine(o) for o in x.split(4)]
    together = threading.Barrier(4)
    def run(o):
        together.wait()
        return engine(o)
    with ThreadPoolExecutor(4) as pool: found = list(pool.map(run, x.split(4)))
    for (_, ours), (_, theirs) in zip(found, expected): np.testing.assert_array_equal(ours, theirs)


def test_a_run_goes_on_with_the_same_engine_alone(plate, trained, tmp_path):
    out = tmp_path/'p.csv'
    predictor = Predictor(trained[1], bs=1, engine='onnxruntime')
    parts = predictor.stream
    def broken(*args, **kwargs):
        for i, part in enumerate(parts(*args, **kwargs)):
            if i == 2: raise KeyboardInterrupt
            yield part
    predictor.stream = broken
    with pytest.raises(KeyboardInterrupt): predictor.to_file(plate, out, progress=False)
    with pytest.raises(ResultError, match='engine'): Predictor(trained[1], bs=1).to_file(plate, out, progress=False)
    Predictor(trained[1], bs=1, engine='onnxruntime').to_file(plate, out, progress=False)
    assert read_predictions(out).Id.tolist() == find_images(plate).Id.tolist()


def test_what_cannot_be_had_is_said_before_any_work(trained, plate, monkeypatch, tmp_path, capsys):
    def said(*options):
        assert main(['predict', str(plate), '--model', str(trained[1]), '--out', str(tmp_path/'p.csv'), *options]) == 2
        line, = capsys.readouterr().err.strip().splitlines()
        return line
    assert 'choose one of auto, torch, onnxruntime, openvino' in said('--engine', 'tensorrt')
    assert '--precision full' in said('--engine', 'onnxruntime', '--precision', 'force-half')
    versions = engines.version_of
    monkeypatch.setattr(engines, 'version_of', lambda name: None if name in BOTH else versions(name))
    for name in BOTH: assert f'pip install {name}' in said('--engine', name)
    assert not (tmp_path/'p.csv').exists()
    same(Predictor(trained[1], engine='auto')(plate), Predictor(trained[1])(plate), 0)  # PyTorch is always there


def test_a_gpu_has_no_engine(trained):
    bundle = replace(load_bundle(trained[1]), device=torch.device('meta'))
    with pytest.raises(EngineError, match='runs on the processor, not on meta'): bundle.with_engine('openvino')


def test_auto_measures_once(trained, plate, capsys, monkeypatch):
    timed = []
    times = engine_choice.images_a_second
    def counted(ways, size):
        timed.append(list(ways))
        return times(ways, size, .05)
    monkeypatch.setattr(engine_choice, 'images_a_second', counted)
    first = Predictor(trained[1], engine='auto')
    assert 'is the fastest here' in capsys.readouterr().out
    again = Predictor(trained[1], engine='auto')
    assert timed == [['torch', *BOTH]] and capsys.readouterr().out == ''
    assert first.where == again.where
    same(first(plate), Predictor(trained[1])(plate))


@pytest.mark.parametrize('fastest', ['torch', *BOTH])
def test_auto_takes_the_fastest(monkeypatch, fastest):
    monkeypatch.setattr(engine_choice, 'images_a_second', lambda ways, size: {o: 1.+(o == fastest) for o in ways})
    chosen = choose_engine(network(), 32)
    assert (chosen.name if chosen else 'torch') == fastest


class Undecided(nn.Module):
    "Layers that no exporter can follow"
    def forward(self, x): return torch.linalg.eigvals(x[:, 0]).real


class UnknownFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x.mean((2, 3))
    @staticmethod
    def symbolic(g, x): return g.op('nowhere::Unheard', x)


class Lacking(nn.Module):
    def forward(self, x): return UnknownFunction.apply(x)


@pytest.mark.parametrize('engine', ['auto', *BOTH])
@pytest.mark.parametrize('body, why', [(Undecided(), 'cannot be written as an ONNX graph'),
                                       (Lacking(), 'it cannot run this network')], ids=['export', 'operation'])
def test_pytorch_runs_what_an_engine_cannot(body, why, engine):
    with pytest.warns(UserWarning, match=why) as said:
        assert choose_engine(nn.Sequential(body, nn.Identity()), 32, engine) is None
    assert all('PyTorch runs' in str(w.message) and '\n' not in str(w.message) for w in said)


def change_weights(folder):
    "Another network in place of an exported one, with a checksum of its own"
    model = onnx.load(folder/'network.onnx')
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32: tensor.CopyFrom(onnx.numpy_helper.from_array(values*1.5+.1, tensor.name))
    graph = model.SerializeToString()
    (folder/'network.onnx').write_bytes(graph)
    (folder/'sha256').write_text(exported.hashlib.sha256(graph).hexdigest())


@pytest.mark.parametrize('engine', ['auto', *BOTH])
def test_an_engine_with_other_answers_is_not_used(engine):
    model = network()
    _, folder = exported_graph(model, 32)
    change_weights(folder)
    with pytest.warns(UserWarning, match='its answers differ by up to'): assert choose_engine(model, 32, engine) is None
    with pytest.warns(UserWarning, match='its answers differ by up to'): assert choose_engine(model, 32, engine) is None


def test_an_engine_that_gives_nan_is_not_used(monkeypatch):
    monkeypatch.setattr(engines.OnnxRuntimeSession, '__call__', lambda self, x: [np.full((len(x), 256), np.nan, 'f4'),
                                                                                np.zeros((len(x), 28), 'f4')])
    with pytest.warns(UserWarning, match='its answers differ by up to inf'):
        assert choose_engine(network(), 32, 'onnxruntime') is None


@pytest.mark.parametrize('damage', [lambda f: (f/'network.onnx').write_bytes(b'no graph'),
                                    lambda f: (f/'network.onnx').unlink(), lambda f: (f/'sha256').unlink(),
                                    lambda f: (f/'measured.json').write_text('{"half a'),
                                    lambda f: (f/'measured.json').write_text('[1]'),
                                    lambda f: (f/'measured.json').write_text('{"a": 1}'),
                                    lambda f: (f/'measured.json').unlink()],
                         ids=['damaged', 'absent', 'no checksum', 'half a record', 'list', 'other', 'no record'])
def test_a_damaged_cache_is_made_again(damage, recwarn):
    model = network()
    assert choose_engine(model, 32, 'onnxruntime')
    folder, = graph_folder().iterdir()
    before = (folder/'network.onnx').read_bytes()
    damage(folder)
    assert choose_engine(model, 32, 'onnxruntime')
    assert (folder/'network.onnx').read_bytes() == before
    assert len(json.loads((folder/'measured.json').read_text())) >= 1
    assert not [w for w in recwarn if 'engine' in str(w.message)]


def test_a_cache_of_another_version_is_not_used(monkeypatch):
    model = network()
    _, old = exported_graph(model, 32)
    change_weights(old)
    monkeypatch.setattr(torch, '__version__', '99.0')
    assert choose_engine(model, 32, 'onnxruntime')
    assert {o.name for o in graph_folder().iterdir()} > {old.name}


def test_without_a_place_for_graphs_it_works_all_the_same(trained, plate, tmp_path, monkeypatch):
    (tmp_path/'file').write_text('')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'file'))
    with pytest.warns(UserWarning, match='nothing can be kept there') as said:
        found = Predictor(trained[1], engine='onnxruntime')
    assert all('XDG_CACHE_HOME' in str(w.message) for w in said)
    assert found.where.endswith('onnxruntime')
    same(found(plate), Predictor(trained[1])(plate))


def test_half_precision_of_an_engine(trained, plate):
    half = Predictor(trained[1], precision='force-half', engine='openvino')
    assert half.where == 'cpu, half precision, openvino'
    ours, theirs = (p(plate)[NAMES].to_numpy(float) for p in (half, Predictor(trained[1])))
    readable = ~np.isnan(theirs).any(1)
    assert 0 <= np.abs(ours-theirs)[readable].max() < 2e-2


@pytest.mark.parametrize('error, advice', [
    (torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB'), '--bs'),
    (RuntimeError('CUDA error: unspecified launch failure\nfor debugging'), '--device cpu')], ids=['memory', 'lost'])
def test_a_gpu_that_fails_is_one_line(trained, plate, tmp_path, monkeypatch, capsys, error, advice):
    def fail(*_): raise error
    monkeypatch.setattr(Bundle, 'run', fail)
    assert main(['predict', str(plate), '--model', str(trained[1]), '--out', str(tmp_path/'p.csv'),
                 '--no-progress']) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert advice in line and 'GPU' in line
    monkeypatch.undo()
    assert main(['predict', str(plate), '--model', str(trained[1]), '--out', str(tmp_path/'p.csv'),
                 '--no-progress']) == 1  # one of the five cannot be read
    assert len(read_predictions(tmp_path/'p.csv')) == 5
