"Activation maps: they point where the evidence is, for every kind of network, and say so when they can't"
import sys
import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np, pytest, torch
from torch import nn
from published_starts import draw_network
from hpa_fastai.data.labels import *
from hpa_fastai.basics.errors import *
from hpa_fastai.data.files import *
from hpa_fastai.simulate.atlas import *
from hpa_fastai.models.architectures import *
from hpa_fastai.deploy.loading import load_bundle
from hpa_fastai.deploy.predictor import *
from hpa_fastai.interpret.activation import *

@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close('all')

@pytest.fixture
def table(small_atlas): return find_images(small_atlas/'train').head(6)

@pytest.fixture(scope='module')
def bundle(trained): return load_bundle(trained[1])

class Seer(nn.Sequential):
    "Class 0 is the sum of the protein channel, class 1 that of the nuclei; each layer is known by heart"
    def __init__(self):
        conv = nn.Conv2d(4, 2, 1, bias=False)
        conv.weight.data = torch.tensor([[0., 1, 0, 0], [0, 0, 1, 0]])[...,None,None]
        head = nn.Linear(2, 2, bias=False)
        head.weight.data = torch.eye(2)
        body = nn.Sequential(conv, nn.AvgPool2d(2), nn.AvgPool2d(2))
        super().__init__(body, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), head))

@pytest.mark.parametrize('method', METHODS)
def test_map_is_where_the_evidence_is(method):
    model, x = Seer().eval(), torch.zeros(2, 4, 32, 32)
    x[:, 1, 2:8, 2:8] = x[:, 2, 20:28, 20:28] = 1
    maps = layer_maps(model, x, [0, 1], place_layers(model, 32), method)
    green, blue = maps[0, :16, :16].sum()/maps[0].sum(), maps[1, 16:, 16:].sum()/maps[1].sum()
    assert green>.999 and blue>.999
    if method=='layercam': assert maps[0, 2:8, 2:8].sum()/maps[0].sum()>.9

@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('act', [nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh])
def test_maps_are_those_of_the_papers(act, method):
    "Gradients are cut at zero, not their products with features, which may be negative unless a ReLU made them"
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), act(), nn.AvgPool2d(2), nn.Conv2d(8, 8, 3, padding=1), act())
    head = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), act(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    model, x = nn.Sequential(body, head).eval(), torch.randn(2, 4, 16, 16)
    layers = place_layers(model, 16)
    maps = []
    for layer in layers if method=='layercam' else layers[:1]:
        end = 1+next((i for i,module in enumerate(body) if module is layer.module), 4)
        features = body[:end](x)
        out = head(body[end:](features))
        gradient, = torch.autograd.grad(out[0, 1]+out[1, 2], features)
        weight = gradient.clamp_min(0) if method=='layercam' else gradient.mean((2, 3), keepdim=True)
        heat = (weight*features).sum(1, keepdim=True).clamp_min(0)
        maps.append(nn.functional.interpolate(heat, (16, 16), mode='bilinear')[:,0])
        maps[-1] = maps[-1]/maps[-1].amax((1, 2), keepdim=True)
    by_hand = torch.stack(maps).prod(0)
    by_hand = by_hand/by_hand.amax((1, 2), keepdim=True)
    assert len(layers)==2 and (by_hand>.1).float().mean()>.02
    torch.testing.assert_close(layer_maps(model, x, [1, 2], layers, method), by_hand.detach(), rtol=1e-4, atol=1e-5)

def test_evidence_against_a_class_is_not_shown():
    model = Seer().eval()
    model[1][2].weight.data = torch.tensor([[1., -1], [0, 1]])
    x = torch.zeros(1, 4, 32, 32)
    x[:, 2] = 1
    for method in METHODS: assert not layer_maps(model, x, [0], place_layers(model, 32), method).any()

def test_one_answer_from_every_holder_of_a_model(trained, table):
    learn, folder = trained
    holders = (learn, folder, str(folder), load_bundle(folder), Predictor(folder), [folder])
    maps = [activation_maps(m, table) for m in holders]
    assert maps[0].shape==(6, 48, 48) and maps[0].dtype==np.float32
    for m in maps[1:]: np.testing.assert_allclose(m, maps[0], atol=1e-4)
    assert np.isfinite(maps[0]).all() and maps[0].min()>=0 and np.allclose(maps[0].max((1, 2)), 1)

def test_classes_by_name_number_or_list(bundle, table):
    top = Predictor(bundle)(table)[list(HPA28.classes)].to_numpy().argmax(1)
    every = activation_maps(bundle, table, list(HPA28.classes))
    assert every.shape==(6, 28, 48, 48)
    np.testing.assert_allclose(activation_maps(bundle, table), every[range(6), top], atol=1e-4)
    np.testing.assert_allclose(activation_maps(bundle, table, 'Nucleoli'), every[:,2], atol=1e-4)
    np.testing.assert_allclose(activation_maps(bundle, table, [2, 'Centrosome'], bs=5), every[:,[2, 19]], atol=1e-4)
    assert not np.allclose(every[:,2], every[:,19], atol=.05)

def test_average_over_symmetries_turns_with_the_cells(bundle):
    img = simulate_fov([2], 48, seed=3, difficulty='easy')[0]
    a, b, c = activation_maps(bundle, [img, np.rot90(img, axes=(1, 2)), img[:, ::-1]], 2, tta=True)
    np.testing.assert_allclose(np.rot90(a), b, atol=2e-3)
    np.testing.assert_allclose(a[::-1], c, atol=2e-3)

@pytest.mark.parametrize('arch, size, layout', [
    ('test_vit', 64, 'NLC'), ('test_convnext', 64, 'NCHW'), ('test_efficientnet', 64, 'NCHW'), ('swin_t', 64, 'NHWC'),
    ('densenet121', 64, 'NCHW'), ('mobilenet_v3_small', 64, 'NCHW'), ('lenet5', 32, 'NCHW'),
])
def test_every_kind_of_network(arch, size, layout):
    torch.manual_seed(0)
    model = create_model(arch, 3, pretrained=False, size=size).eval()
    layers = place_layers(model, size)
    assert layout in {l.layout for l in layers} and all(1<l.side<=size for l in layers)
    x = torch.randn(2, 4, size, size)
    for method in METHODS:
        maps = layer_maps(model, x, [0, 2], layers, method)
        assert maps.shape==(2, size, size) and torch.isfinite(maps).all() and maps.min()>=0 and maps.max()<=1
    assert not any(m._forward_hooks for m in model.modules()) and all(p.grad is None for p in model.parameters())

@pytest.mark.parametrize('arch, size, layer', [
    ('hpa-densenet121', 128, 'features'), ('hpa-inception-v3-cells', 64, 'attention'),
    ('subcell-vit', 64, 'features.norm')])
def test_published_networks_show_where_they_looked(arch, size, layer):
    "In the last maps, or patches, that have places"
    model = draw_network(arch, heads=2 if arch=='subcell-vit' else None)
    layers = place_layers(model, size)
    assert layers[0].name==layer and layers[0].layout==('NLC' if arch=='subcell-vit' else 'NCHW')
    x = torch.rand(1, 4, size, size, generator=torch.Generator().manual_seed(0))
    for method in METHODS:
        maps = layer_maps(model, x.repeat(3, 1, 1, 1), range(3), layers, method)
        assert maps.shape==(3, size, size) and torch.isfinite(maps).all() and maps.amax()==1

def small_vit():
    "torchvision's transformer, which has its own names and a class token too"
    from torchvision.models import VisionTransformer
    body = VisionTransformer(64, 8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64)
    body.conv_proj, body.heads = nn.Conv2d(4, 32, 8, 8), nn.Identity()
    return nn.Sequential(body, nn.Linear(32, 3)), body.conv_proj

def timm_vit():
    model = create_model('test_vit', 3, pretrained=False, size=64)
    return model, model[0].patch_embed

@pytest.mark.parametrize('make', [small_vit, timm_vit])
def test_patches_of_a_transformer_lie_in_their_places(make):
    torch.manual_seed(0)
    model, patches = make()
    layers = place_layers(model.eval(), 64)
    x, seen = torch.zeros(1, 4, 64, 64), []
    changed = x.clone()
    changed[:, :, :16, 48:] = 5         # top right
    norm = next(l for l in layers if l.layout=='NLC')
    first = next(m for m in model.modules() if isinstance(m, nn.LayerNorm))  # before any attention mixes the patches
    hook = first.register_forward_hook(lambda m, i, o: seen.append(norm.to_map(o)))
    model(x), model(changed)
    hook.remove()
    where = (seen[1]-seen[0]).abs().sum(1)[0]
    assert where[:norm.side//4, -norm.side//4:].sum()/where.sum()>.99

def test_no_places_no_map():
    model = nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(4*32*32, 8)), nn.Linear(8, 3)).eval()
    assert place_layers(model, 32)==[]
    with pytest.raises(InterpretError, match='keeps the places'): layer_maps(model, torch.zeros(1, 4, 32, 32), [0], [])

def test_ensemble_is_the_average(trained, bundle, table):
    twice = activation_maps([trained[1], trained[1]], table, 2)
    np.testing.assert_allclose(twice, activation_maps(bundle, table, 2), atol=1e-4)

def test_the_learner_predicts_as_before(trained, table):
    learn, x = trained[0], torch.randn(2, 4, 48, 48)
    before = learn.model.eval()(x)
    activation_maps(learn, table)
    assert torch.equal(learn.model(x), before)

def test_unreadable_none_one_blank(bundle, small_atlas, tmp_path):
    assert activation_maps(bundle, []).shape==(0, 48, 48)
    assert activation_maps(bundle, [], [1, 2]).shape==(0, 2, 48, 48)
    table = find_images(small_atlas/'train').head(3)
    for n in (0, 1): assert activation_maps(bundle, table[:n]).shape==(n, 48, 48)
    (tmp_path/'x_green.png').write_bytes(b'no picture')
    table.loc[1, 'green'] = str(tmp_path/'x_green.png')
    maps = activation_maps(bundle, table)
    assert np.isnan(maps).all((1, 2)).tolist()==[False, True, False]
    words = [t.get_text() for a in show_maps(table, maps).axes for t in a.texts]
    assert words.count("can't be read")==2
    assert np.isfinite(activation_maps(bundle, np.zeros((4, 64, 64), np.uint8), ['Nucleoli'])).all()

def test_what_is_refused(bundle, table, monkeypatch):
    with pytest.raises(HPAError, match='did you mean'): activation_maps(bundle, table, 'Nucleolus')
    with pytest.raises(InterpretError, match='layercam, gradcam'): activation_maps(bundle, table, method='magic')
    with pytest.raises(InterpretError, match='bs: 0'): activation_maps(bundle, table, bs=0)
    with pytest.raises(InterpretError, match='no pictures to show'): show_maps(table, np.zeros((0, 48, 48)))
    with pytest.raises(InterpretError, match='6 maps but 2 pictures'): show_maps(table[:2], np.zeros((6, 48, 48)))
    monkeypatch.setitem(sys.modules, 'captum.attr', None)
    with pytest.raises(InterpretError, match=r"pip install 'hpa_fastai\[interpret\]'"): activation_maps(bundle, table)

def test_protein_keeps_its_colour_where_the_network_looked():
    img, heat = np.zeros((4, 32, 32), np.uint8), np.zeros((8, 8), np.float32)
    img[1, ::2] = 200
    heat[:4] = 1
    rgb = draw_map(img, heat).astype(int)
    assert (rgb[0, :, 1]-rgb[0, :, 0]).min()>200            # green above
    assert (rgb[30, :, 1]==rgb[30, :, 0]).all() and rgb[30, 0, 1]>100       # grey below, and to be seen

def test_pictures_with_maps(bundle, table):
    maps = activation_maps(bundle, table, [0, 2])
    fig = show_maps(table, maps, titles=[['Nucleoplasm', 'Nucleoli']]*6)
    assert sum(len(a.images) for a in fig.axes)==18
    assert sum(a.get_title()=='Nucleoli' for a in fig.axes)==6
    none = show_maps(table[:1], np.zeros((1, 48, 48)))
    assert 'nothing speaks for it' in [t.get_text() for a in none.axes for t in a.texts]

def test_a_table_of_predictions(bundle, table):
    predictions = Predictor(bundle)(table)
    predictions.loc[0, 'Predicted'] = '2 19'
    predictions.loc[1, 'Predicted'] = ''
    found = list(prediction_maps(bundle, predictions[:2], table, bs=2))
    assert [(i, n) for i,n,*_ in found[:2]]==[(table.Id[0], 'Nucleoli'), (table.Id[0], 'Centrosome')] and len(found)==3
    for i,name,p,m in found:
        assert p==pytest.approx(predictions.set_index('Id').loc[i, name], abs=1e-5) and m.shape==(48, 48)
    np.testing.assert_allclose(found[0][3], activation_maps(bundle, table[:1], 'Nucleoli')[0], atol=1e-4)
    assert list(prediction_maps(bundle, predictions[:0], table))==[]
    with pytest.raises(InterpretError, match='2 of 2 predictions have no pictures'):
        list(prediction_maps(bundle, predictions[:2].assign(Id=['a', 'b']), table))
