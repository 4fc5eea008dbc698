"An engine in place of PyTorch: the same answers, or PyTorch and a line that says why."
import os
import pickle
import shutil
import subprocess
import sys
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


def set_fastest(monkeypatch, name):
    "As if one engine were twice as fast as the others"
    def times(ways, size): return {o: 1. + (o == name) for o in ways}
    monkeypatch.setattr(engine_choice, 'images_a_second', times)


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
    with pytest.raises(ResultError, match="engine was 'onnxruntime' and is now 'torch'"):
        Predictor(trained[1], bs=1).to_file(plate, out, progress=False)
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


def test_what_ran_is_recorded(trained, monkeypatch):
    models = [trained[1]]
    assert Predictor(models).about()['engine'] == 'torch'
    assert Predictor(models, engine='openvino').about()['engine'] == 'openvino'
    set_fastest(monkeypatch, 'onnxruntime')
    assert Predictor(models, engine='auto').about()['engine'] == 'onnxruntime'
    monkeypatch.setattr(engine_choice, 'engine_difference', lambda *_: .5)
    with pytest.warns(UserWarning, match='PyTorch takes its place'): fallen = Predictor(models, engine='openvino')
    assert fallen.about()['engine'] == 'torch' and fallen.where == 'cpu, full precision'


def test_a_bundle_with_an_engine_goes_back_to_pytorch(trained):
    quick = load_bundle(trained[1]).with_engine('openvino')
    assert Predictor(quick).engines == ['torch'] and Predictor(quick, engine='onnxruntime').engines == ['onnxruntime']
    again = pickle.loads(pickle.dumps(quick.engine))
    x = torch.rand(2, 4, 48, 48)
    np.testing.assert_array_equal(again(x)[1], quick.engine(x)[1])


def test_auto_measures_once(trained, plate, capsys, monkeypatch):
    timed = []
    times = engine_choice.images_a_second
    def counted(ways, size):
        timed.append(list(ways))
        return times(ways, size, .05)
    monkeypatch.setattr(engine_choice, 'images_a_second', counted)
    first = Predictor(trained[1], engine='auto')
    assert 'images/s; measured once, and kept in' in capsys.readouterr().out
    again = Predictor(trained[1], engine='auto')
    assert timed == [['torch', *BOTH]] and capsys.readouterr().out == ''
    assert first.where == again.where
    same(first(plate), Predictor(trained[1])(plate))


@pytest.mark.parametrize('fastest', ['torch', *BOTH])
def test_auto_takes_the_fastest(monkeypatch, fastest):
    set_fastest(monkeypatch, fastest)
    chosen = choose_engine(network(), 32)
    assert (chosen.name if chosen else 'torch') == fastest


def test_pytorch_stays_where_another_is_hardly_faster(monkeypatch):
    monkeypatch.setattr(engine_choice, 'images_a_second', lambda ways, size: dict.fromkeys(ways, 1.04) | {'torch': 1.})
    assert choose_engine(network(), 32) is None


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


class Counted(nn.Module):
    "Code that counts the pictures of a batch, which an exporter takes for a constant"
    def forward(self, x): return x.mean((2, 3)) - x.mean((2, 3)).sum(0)/len(x)


@pytest.mark.parametrize('engine', ['auto', *BOTH])
@pytest.mark.parametrize('body, why', [(Undecided(), 'cannot be written as an ONNX graph'),
                                       (Lacking(), 'it cannot run the network'),
                                       (Counted(), 'its answers for the network differ by')],
                         ids=['export', 'operation', 'batch'])
def test_pytorch_runs_what_an_engine_cannot(body, why, engine):
    with pytest.warns(UserWarning, match=why) as said:
        assert choose_engine(nn.Sequential(body, nn.Identity()), 32, engine) is None
    assert all('PyTorch takes its place' in str(w.message) and '\n' not in str(w.message) for w in said)


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
    for _ in range(2):  # it is compared at each start
        with pytest.warns(UserWarning, match='its answers for smallresnet differ by'):
            assert choose_engine(model, 32, engine) is None


def test_an_engine_that_gives_nan_is_not_used(monkeypatch):
    monkeypatch.setattr(engines.OnnxRuntimeSession, '__call__', lambda self, x: [np.full((len(x), 256), np.nan, 'f4'),
                                                                                np.zeros((len(x), 28), 'f4')])
    with pytest.warns(UserWarning, match='differ by up to inf'):
        assert choose_engine(network(), 32, 'onnxruntime') is None


DAMAGE = {'no graph': ('network.onnx', b'no graph'), 'absent': ('network.onnx', None), 'no checksum': ('sha256', None),
          'bytes': ('sha256', b'\xff\xfe'), 'half': ('measured.json', b'{"half a'), 'list': ('measured.json', b'[1]'),
          'number': ('measured.json', b'{"a": 1}'), 'text': ('measured.json', b'{"a": {"torch": "fast"}}'),
          'deep': ('measured.json', b'['*100_000), 'no record': ('measured.json', None)}


@pytest.mark.parametrize('file, content', DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_cache_is_made_again(file, content, recwarn, monkeypatch):
    set_fastest(monkeypatch, 'openvino')
    model = network()
    choose_engine(model, 32)
    folder, = graph_folder().iterdir()
    before = {o.name: o.read_bytes() for o in folder.iterdir()}
    (folder/file).unlink() if content is None else (folder/file).write_bytes(content)
    assert choose_engine(model, 32).name == 'openvino'
    assert {o.name: o.read_bytes() for o in folder.iterdir()} == before
    assert not [w for w in recwarn if 'engine' in str(w.message)]


def test_a_killed_export_leaves_nothing_for_ever(monkeypatch):
    model = network()
    replaced = exported.os.replace
    def killed(*_): raise KeyboardInterrupt
    monkeypatch.setattr(exported.os, 'replace', killed)
    with pytest.raises(KeyboardInterrupt): exported_graph(model, 32)
    folder, = graph_folder().iterdir()
    assert not (folder/'network.onnx').exists()
    assert [o.name for o in folder.glob('network*')] == ['network.onnx.tmp']
    monkeypatch.setattr(exported.os, 'replace', replaced)
    exported_graph(model, 32)
    assert sorted(o.name for o in folder.iterdir()) == ['lock', 'network.onnx', 'sha256']


EXPORT = """
import sys, torch
from hpa_fastai.models import exported
from hpa_fastai.models.architectures import create_model
torch.manual_seed(0)
write = exported.write_graph
def counted(*args):
    print('exported', flush=True)
    return write(*args)
exported.write_graph = counted
print(len(exported.exported_graph(create_model('smallresnet', 28, pretrained=False, size=32).eval(), 32)[0]))
"""


def test_processes_that_start_together_export_once():
    runs = [subprocess.Popen([sys.executable, '-c', EXPORT], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [run.communicate()[0].split() for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0]
    assert sum('exported' in words for words in said) == 1 and len({words[-1] for words in said}) == 1


def test_a_cache_of_another_version_is_not_used(monkeypatch):
    model = network()
    _, old = exported_graph(model, 32)
    change_weights(old)
    monkeypatch.setattr(torch, '__version__', '99.0')
    assert choose_engine(model, 32, 'onnxruntime')
    assert {o.name for o in graph_folder().iterdir()} > {old.name}


def test_the_name_of_a_graph_tells_everything_apart(monkeypatch):
    model, known = network(), exported.graph_digest(network(), 32)
    assert exported.graph_digest(model, 32) == known != exported.graph_digest(model, 64)
    versions = exported.version_of
    for package in ('hpa_fastai', 'timm', 'torchvision'):
        monkeypatch.setattr(exported, 'version_of', lambda name, p=package: '99' if name == p else versions(name))
        assert exported.graph_digest(model, 32) != known
    monkeypatch.undo()
    with torch.no_grad(): next(model.parameters()).add_(1e-3)
    assert exported.graph_digest(model, 32) != known


def test_what_is_measured_holds_for_these_circumstances_alone(monkeypatch):
    set_fastest(monkeypatch, 'openvino')
    model = network()
    assert choose_engine(model, 32).name == 'openvino'
    set_fastest(monkeypatch, 'onnxruntime')
    assert choose_engine(model, 32).name == 'openvino'
    usual = torch.get_num_threads()
    torch.set_num_threads(usual+1)
    try: assert choose_engine(model, 32).name == 'onnxruntime'
    finally: torch.set_num_threads(usual)
    monkeypatch.setattr(engine_choice, 'processor_name', lambda: 'another')
    assert choose_engine(model, 32).name == 'onnxruntime'


def test_without_a_place_for_graphs_it_works_all_the_same(trained, plate, tmp_path, monkeypatch, capsys):
    (tmp_path/'file').write_text('')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'file'))
    with pytest.warns(UserWarning, match='nothing can be kept there') as said:
        found = Predictor(trained[1], engine='onnxruntime')
    assert all('XDG_CACHE_HOME' in str(w.message) for w in said)
    assert found.where.endswith('onnxruntime')
    same(found(plate), Predictor(trained[1])(plate))
    set_fastest(monkeypatch, 'openvino')
    for _ in range(2):
        with pytest.warns(UserWarning, match='nothing can be kept there'): Predictor(trained[1], engine='auto')
        assert 'images/s; measured at each start' in capsys.readouterr().out


def test_a_cache_that_may_only_be_read_is_read(trained, plate, monkeypatch, recwarn):
    expected = Predictor(trained[1], engine='openvino')(plate)
    def closed(*_, **__): raise PermissionError(13, 'Permission denied')
    for name in ('utime', 'replace'): monkeypatch.setattr(exported.os, name, closed)
    monkeypatch.setattr(exported, 'write_graph', closed)
    same(Predictor(trained[1], engine='openvino')(plate), expected, 0)
    assert not [w for w in recwarn if 'kept' in str(w.message)]


QUIET = '''
import sys
from hpa_fastai.models.engines import Engine, SESSIONS
import torch
for name in SESSIONS: Engine(name, open(sys.argv[1], 'rb').read())(torch.zeros(1, 4, 32, 32))
'''


def test_nothing_is_collected_about_the_use_of_engines(tmp_path):
    _, folder = exported_graph(network(), 32)
    home, caches = tmp_path/'home', tmp_path/'other'
    home.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != 'ORT_DISABLE_TELEMETRY'}
    environment.update(HOME=str(home), XDG_CACHE_HOME=str(caches), TMPDIR=str(home))
    subprocess.run([sys.executable, '-c', QUIET, folder/'network.onnx'], env=environment, check=True)
    written = [o.relative_to(tmp_path) for o in (*home.rglob('*'), *caches.rglob('*')) if o.is_file()]
    assert [o for o in written if 'torch' not in str(o)] == []


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
