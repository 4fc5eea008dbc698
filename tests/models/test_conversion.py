"Conversion: the same numbers as an independent network, and one line for every file that is none of the published."
import pickle
import zipfile

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from published_files import (MEAN, STD, densenet_checkpoint, densenet_onnx, inception_checkpoint, inception_onnx,
                             subcell_files)
from safetensors.torch import save_file
from torch import nn

from hpa_fastai.models import conversion
from hpa_fastai.models.conversion import CHANNEL_MEAN, CHANNEL_STD, ConversionError, convert, read_state_dict
from hpa_fastai.models.graphs import fill_from_layers, graph_layers, read_graph
from hpa_fastai.models.networks import vector_head, published_body

DENSENET, INCEPTION, SUBCELL = 'hpa-densenet121', 'hpa-inception-v3-cells', 'subcell-vit'


@pytest.fixture(scope='session')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('published')


@pytest.fixture(scope='session')
def densenet_graph(folder):
    return densenet_onnx(folder/'densenet_model.onnx')


@pytest.fixture(scope='session')
def densenet_weights(folder):
    return densenet_checkpoint(folder/'bestfitting_default_model.pth')


@pytest.fixture(scope='session')
def inception_graph(folder):
    return inception_onnx(folder/'bestfitting-inceptionv3-single-cell.onnx')


@pytest.fixture(scope='session')
def subcell(folder):
    return subcell_files(folder)


@torch.no_grad()
def compute(converted, pixels):
    "Probabilities and embedding of a converted network"
    mean, std = (torch.tensor(figures)[:, None, None] for figures in (MEAN, STD))
    if converted.arch == DENSENET: pixels = (pixels - mean)/std
    network = converted.network()
    embedding = network[0](pixels)
    return network[1](embedding).sigmoid(), embedding


def assert_same(found, expected):
    (probs, embedding), (expected_probs, expected_embedding) = found, expected
    assert (probs - expected_probs).abs().max() < 1e-5 and (embedding - expected_embedding).abs().max() < 1e-4
    assert expected_probs.std() > .01 and expected_embedding.std() > .1, 'the comparison would say nothing'


def picture(size, n=1):
    return torch.rand(n, 4, size, size, generator=torch.Generator().manual_seed(1))


def run_graph(file, x, gives_probabilities):
    classes, features = map(torch.from_numpy, onnxruntime.InferenceSession(file).run(None, dict(image=x.numpy())))
    return (classes if gives_probabilities else classes.sigmoid()), features


@pytest.mark.parametrize('size', [256, pytest.param(1024, marks=pytest.mark.slow)])
def test_the_densenet_computes_what_its_graph_does(densenet_graph, size):
    file, reference = densenet_graph
    converted, x = convert(DENSENET, file), picture(size)
    assert (converted.normalised_inside, converted.gives_probabilities, converted.heads) == (True, False, None)
    found = compute(converted, x)
    assert_same(found, run_graph(file, x, converted.gives_probabilities))
    with torch.no_grad(): assert_same(found, reference(x))


def test_the_inception_network_computes_what_its_graph_does(inception_graph):
    file, reference = inception_graph
    converted, x = convert(INCEPTION, str(file)), picture(128)
    assert (converted.normalised_inside, converted.gives_probabilities, converted.heads) == (False, True, None)
    found = compute(converted, x)
    assert_same(found, run_graph(file, x, converted.gives_probabilities))
    with torch.no_grad(): assert_same(found, reference(x))


def test_norms_that_were_folded_only_add(densenet_graph, inception_graph):
    for arch, (file, _), n_folded in ((DENSENET, densenet_graph, 59), (INCEPTION, inception_graph, 94)):
        state = convert(arch, file).state
        folded = [k for k, t in state.items() if k.endswith('.weight') and t.ndim == 1 and (t == 1).all()]
        assert len(folded) == n_folded + 1, 'and the normalisation of the head, which was not published'


def test_a_state_dict_with_every_tensor_twice(densenet_weights, densenet_graph):
    file, reference = densenet_weights
    converted, x = convert(DENSENET, [file]), picture(128)
    with torch.no_grad(): assert_same(compute(converted, x), reference(x))
    assert converted.normalised_inside and not converted.gives_probabilities
    assert {k: (t.shape, t.dtype) for k, t in converted.state.items()} == \
        {k: (t.shape, t.dtype) for k, t in convert(DENSENET, densenet_graph[0]).state.items()}


def test_the_checkpoint_of_the_inception_network(tmp_path):
    file, reference = inception_checkpoint(tmp_path/'12.00_ema.pth')
    x = picture(128)
    with torch.no_grad(): assert_same(compute(convert(INCEPTION, file), x), reference(x))


@pytest.mark.parametrize('size', [96, *(pytest.param(size, marks=pytest.mark.slow) for size in (448, 640))])
def test_the_transformer_computes_the_mean_of_its_heads(subcell, size):
    files, reference = subcell
    converted, x = convert(SUBCELL, files[::-1]), picture(size)
    assert (converted.heads, converted.gives_probabilities, converted.normalised_inside) == (2, True, False)
    with torch.no_grad(): assert_same(compute(converted, x), reference(x))


@pytest.mark.parametrize('published,ours', [('bg', 'gb'), pytest.param('rbg', 'rgb', marks=pytest.mark.slow),
                                            pytest.param('ybg', 'gby', marks=pytest.mark.slow)])
def test_variants_do_not_look_at_the_channels_that_they_lack(tmp_path, published, ours):
    files, reference = subcell_files(tmp_path, n_heads=1, channels=published)
    converted, x = convert(SUBCELL, files, ours), picture(64)
    with torch.no_grad(): assert_same(compute(converted, x), reference(x))
    for i, channel in enumerate('rgby'):
        if channel not in published: x[:, i] = torch.rand(64, 64)
    with torch.no_grad(): assert_same(compute(converted, x), reference(x))
    with pytest.raises(ConversionError, match=r'is \(768, 2|3, 16, 16\), where \(768, 4, 16, 16\) is expected'):
        convert(SUBCELL, files)


def test_the_figures_are_those_of_the_authors():
    assert (CHANNEL_MEAN, CHANNEL_STD) == (MEAN, STD)


def refused(match, arch, *args):
    with pytest.raises(ConversionError, match=match) as e: convert(arch, *args)
    assert '\n' not in str(e.value) and len(str(e.value)) < 500
    return str(e.value)


class Program:
    def __init__(self, file): self.file = file
    def __reduce__(self): return open, (str(self.file), 'w')


def test_a_pickle_is_not_run_but_named(tmp_path, subcell):
    program = Program(tmp_path/'was_here')
    for name, what in {'all.pth': program, 'part.pth': dict(state_dict={'a': torch.zeros(1)}, best=program)}.items():
        torch.save(what, tmp_path/name)
        assert f'{tmp_path/name}: a pickle that holds code' in refused(r'open\)', DENSENET, tmp_path/name)
        refused(r'open\)', SUBCELL, [subcell[0][0], tmp_path/name])
    torch.save(nn.Linear(2, 2), tmp_path/'module.pth')
    refused('holds code .*Linear', INCEPTION, tmp_path/'module.pth')
    assert not (tmp_path/'was_here').exists()


def test_numbers_of_numpy_are_no_code(tmp_path):
    notes = dict(best_score=np.float64(.5), epoch=np.int64(3), lr=np.float32(.1))
    torch.save(dict(notes, state_dict={'module.a': torch.zeros(1)}), tmp_path/'w.pth')
    assert list(read_state_dict(tmp_path/'w.pth')) == ['a']


def test_files_that_are_cut_off_or_something_else(tmp_path, densenet_graph, densenet_weights):
    for file in (densenet_graph[0], densenet_weights[0]):
        for n in (0, 100, 200_000):
            (tmp_path/file.name).write_bytes(file.read_bytes()[:n])
            refused(f'{file.name}: .*(truncated|without a graph)', DENSENET, tmp_path/file.name)
    for name in ('page.onnx', 'page.pth', 'page.safetensors'):
        (tmp_path/name).write_text('<!DOCTYPE html><html><body>502 Bad Gateway</body></html>'*20)
        refused(f'{name}: .*truncated', DENSENET, tmp_path/name)
    refused('nothing.onnx: no such file', DENSENET, tmp_path/'nothing.onnx')
    torch.save([torch.zeros(2)], tmp_path/'list.pth')
    refused('list.pth: not a state dict', DENSENET, tmp_path/'list.pth')
    refused('2 files, where one is expected', DENSENET, [tmp_path/'list.pth']*2)
    refused("'resnet18' is not one of the published networks", 'resnet18', tmp_path/'list.pth')


def test_a_file_larger_than_any_is_not_read(tmp_path):
    with open(tmp_path/'large.onnx', 'wb') as f: f.truncate(2**30 + 1)
    refused('larger than any published model', DENSENET, tmp_path/'large.onnx')


KINDS = [('sparse', torch.Tensor.to_sparse), ('meta', lambda t: t.to('meta')), ('complex', torch.Tensor.cfloat),
         ('nested', lambda t: torch.nested.nested_tensor([torch.zeros(3), torch.zeros(4)])),
         ('bool', torch.Tensor.bool), ('qint8', lambda t: torch.quantize_per_tensor(t, .1, 0, torch.qint8)),
         ('finite', lambda t: t.double()*1e300)]


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('kind,change', KINDS)
@pytest.mark.parametrize('name', ['logit.weight', 'conv1.0.weight'])
def test_tensors_of_other_kinds(tmp_path, densenet_weights, kind, change, name):
    "What PyTorch reads without running code need not be numbers that a layer can hold"
    tensors = torch.load(densenet_weights[0], weights_only=False)['state_dict']
    torch.save(tensors | {name: change(tensors[name])}, tmp_path/'other.pth')
    with pytest.raises(ConversionError, match=f'other.pth: {name} .*{kind}') as e:
        convert(DENSENET, tmp_path/'other.pth')
    assert len(str(e.value).splitlines()) == 1


def test_parts_of_one_tensor_are_looked_at_one_by_one(subcell, tmp_path):
    "A tensor that claims to be huge is never put together with others"
    tensors = torch.load(subcell[0][0])
    key = 'encoder.encoder.layer.3.attention.attention.key.weight'
    torch.save(tensors | {key: torch.zeros(1).expand(2**40, 768)}, tmp_path/subcell[0][0].name)
    with pytest.raises(ConversionError, match=f'{key} is \\(1099511627776, 768\\)'):
        convert(SUBCELL, [tmp_path/subcell[0][0].name, subcell[0][1]])


def test_a_file_that_swells_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, 'MAX_BYTES', 10_000_000)
    with zipfile.ZipFile(tmp_path/'w.pth', 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('w/data/0', bytes(20_000_000))
    assert (tmp_path/'w.pth').stat().st_size < 100_000
    with pytest.raises(ConversionError, match='w.pth: truncated, .*20 MB once unpacked'):
        read_state_dict(tmp_path/'w.pth')


@pytest.mark.filterwarnings('error')
def test_an_old_pickle_is_refused_in_words_of_its_own(tmp_path):
    (tmp_path/'w.pth').write_bytes(pickle.dumps(dict(a=nn.Linear), protocol=4))
    with pytest.raises(ConversionError, match=r'w.pth: truncated, .* \(Unsupported operand 149\)$'):
        read_state_dict(tmp_path/'w.pth')


@pytest.mark.parametrize('change,match', [
    (lambda s: s.pop('backbone.features.denseblock4.denselayer3.norm2.bias'), 'no tensor .*denselayer3.norm2.bias'),
    (lambda s: s.update({'fc3.weight': torch.zeros(2)}), "'fc3.weight' is left over"),
    (lambda s: s.update({'logit.weight': torch.zeros(19, 1024)}), r'logit.weight is \(19, 1024\), where \(28, 1024\)'),
    (lambda s: s['encoder3.0.norm.weight'].add_(1), 'norm.weight differs from backbone.features.transition1.norm'),
    (lambda s: s['bn2.bias'].fill_(float('nan')), 'bn2.bias has values that are not finite'),
])
def test_state_dicts_of_another_network(tmp_path, densenet_weights, change, match):
    state = {k: t.clone() for k, t in read_state_dict(densenet_weights[0]).items()}
    change(state)
    save_file(state, tmp_path/'changed.safetensors')
    refused(f'changed.safetensors.*{match}', DENSENET, tmp_path/'changed.safetensors')


def test_encoders_and_heads_belong_together(subcell, tmp_path):
    encoder, head, _ = subcell[0]
    refused('1 encoders and 0 heads', SUBCELL, [encoder])
    refused('0 encoders and 1 heads', SUBCELL, head)
    torch.save({f'{i}.weight': torch.zeros(2, 2) for i in (0, 3, 6)}, tmp_path/'other_head.pth')
    match = r'head 0: 0.weight is \(2, 2\), where \(512, 1536\) is expected'
    refused(match, SUBCELL, [encoder, tmp_path/'other_head.pth'])
    state = read_state_dict(encoder) | {'decoder.weight': torch.zeros(2)}
    torch.save(state, tmp_path/'other.pth')
    refused("'decoder.weight' is left over", SUBCELL, [tmp_path/'other.pth', head])


def changed(densenet_graph, tmp_path, change):
    model = onnx.load(densenet_graph[0])
    change(model.graph, {t.name: t for t in model.graph.initializer})
    onnx.save(model, tmp_path/'changed.onnx')
    return tmp_path/'changed.onnx'


def first(graph, kind): return next(node for node in graph.node if node.op_type == kind)


def replace_array(arrays, name, values):
    arrays[name].CopyFrom(numpy_helper.from_array(np.asarray(values, np.float32), name))


def add_lstm(graph, arrays):
    graph.node.insert(300, helper.make_node('Softmax', [graph.node[299].output[0]], ['odd']))


def leave_out_a_pooling(graph, arrays):
    i, pool = next((i, n) for i, n in enumerate(graph.node) if n.op_type == 'MaxPool' and len(n.attribute) > 0)
    pool.CopyFrom(helper.make_node('Identity', pool.input, pool.output, name=pool.name))


def widen_the_last_layer(graph, arrays):
    name = [n for n in graph.node if n.op_type == 'Gemm'][-1].input[1]
    replace_array(arrays, name, np.zeros((19, 1024)))


def change_a_stride(graph, arrays):
    next(a for a in first(graph, 'Conv').attribute if a.name == 'strides').ints[:] = [1, 1]


def change_a_constant(graph, arrays):
    next(a for a in first(graph, 'BatchNormalization').attribute if a.name == 'epsilon').f = .01


def normalise_otherwise(graph, arrays):
    name = first(graph, 'Div').input[1]
    constant = next(n for n in graph.node if name in n.output)
    constant.attribute[0].t.CopyFrom(numpy_helper.from_array(np.float32(.5)))


def forget_a_layer(graph, arrays):
    at = [i for i, n in enumerate(graph.node) if n.op_type == 'BatchNormalization'][20]
    node = graph.node[at]
    node.CopyFrom(helper.make_node('Identity', [node.input[0]], node.output))


def break_a_number(graph, arrays):
    conv = first(graph, 'Conv')
    values = numpy_helper.to_array(arrays[conv.input[1]]).copy()
    values[0, 0, 0, 0] = np.inf
    replace_array(arrays, conv.input[1], values)


@pytest.mark.parametrize('change,match', [
    (add_lstm, "node 300 is 'Softmax'"), (leave_out_a_pooling, '2 nodes MaxPool, where 3 are expected'),
    (widen_the_last_layer, r'its weight is \(19, 1024\), where \(28, 1024\) is expected'),
    (change_a_stride, r'strides is \[1. 1.\], where \(2, 2\) is expected'),
    (change_a_constant, 'epsilon is 0.01, where 1e-05 is expected'),
    (normalise_otherwise, 'changes pixels before its first layer'),
    (forget_a_layer, 'stands where a norm layer is expected'), (break_a_number, 'values that are not finite')])
def test_graphs_of_another_network(densenet_graph, tmp_path, change, match):
    refused(match, DENSENET, changed(densenet_graph, tmp_path, change))


def test_a_graph_of_the_other_network(densenet_graph, inception_graph):
    refused('another network: .* nodes Relu', INCEPTION, densenet_graph[0])
    refused("another network: node .* is 'ReduceMean'", DENSENET, inception_graph[0])


def test_weights_in_other_files_are_not_followed(densenet_graph, tmp_path):
    onnx.save(onnx.load(densenet_graph[0]), tmp_path/'outside.onnx', save_as_external_data=True, location='weights.bin')
    refused('outside.onnx: its weights are in other files', DENSENET, tmp_path/'outside.onnx')


def test_functions_in_a_graph_are_refused(densenet_graph, tmp_path):
    model = onnx.load(densenet_graph[0])
    model.functions.append(helper.make_function('other', 'f', ['x'], ['y'], [helper.make_node('Relu', ['x'], ['y'])],
                                                [helper.make_opsetid('', 11)]))
    onnx.save(model, tmp_path/'functions.onnx')
    refused('functions or sparse arrays', DENSENET, tmp_path/'functions.onnx')


class TwoLinear(nn.Module):
    "The second linear layer as a product and a sum, and arrays that several nodes share"
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(4, 5, 3, bias=False), nn.BatchNorm2d(5), nn.Linear(5, 5)

    def forward(self, x):
        x = self.norm(self.conv(x)).mean((2, 3))
        return self.linear(torch.relu(self.linear(x)))


def test_products_and_shared_layers(tmp_path):
    torch.manual_seed(0)
    network = TwoLinear().eval()
    weight, bias = (t.detach().numpy() for t in (network.linear.weight.T, network.linear.bias))
    node = helper.make_node
    scale = (network.norm.weight/(network.norm.running_var + network.norm.eps).sqrt()).detach()
    graph = helper.make_graph(
        [node('Identity', ['w'], ['w again']), node('Conv', ['x', 'c', 'b'], ['1'], strides=[1, 1], pads=[0]*4),
         node('ReduceMean', ['1'], ['2'], axes=[2, 3], keepdims=0), node('MatMul', ['2', 'w'], ['3']),
         node('Add', ['b again', '3'], ['4']), node('Relu', ['4'], ['5']), node('MatMul', ['5', 'w again'], ['6']),
         node('Add', ['6', 'b again'], ['y'])], 'g', [helper.make_tensor_value_info('x', 1, [1, 4, 64, 64])],
        [helper.make_tensor_value_info('y', 1, [1, 5])],
        [numpy_helper.from_array(v.astype(np.float32), name) for name, v in dict(
            w=weight, c=(network.conv.weight.detach()*scale[:, None, None, None]).numpy(),
            b=np.arange(5.), **{'b again': bias}).items()])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid('', 11)]), tmp_path/'shared.onnx')
    layers = graph_layers(read_graph(tmp_path/'shared.onnx'))
    assert [(layer.kind, layer.uses) for layer in layers] == [('convolution', 1), ('linear', 2)]
    ours = TwoLinear().eval()
    state = fill_from_layers(ours.to('meta'), layers)
    ours.load_state_dict(state, assign=True)
    x = torch.rand(2, 4, 64, 64)
    network.norm.bias.data, network.norm.running_mean.data = torch.arange(5.), torch.zeros(5)
    with torch.no_grad(): assert torch.allclose(ours(x), network(x), atol=1e-5)


def test_a_converted_network_is_that_of_create_model(densenet_graph):
    converted = convert(DENSENET, densenet_graph[0])
    built = nn.Sequential(published_body(DENSENET, 64), vector_head(1024, 28))
    built.load_state_dict(converted.state)
    assert all(t.dtype in (torch.float32, torch.int64) and t.is_contiguous() for t in converted.state.values())
    save_file(converted.state, densenet_graph[0].parent/'ours.safetensors')
