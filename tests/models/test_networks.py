"Networks of the published models: structure, sizes, heads, and what a new last layer takes over."
import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from hpa_fastai.batches.settings import ImageSettings
from hpa_fastai.data.labels import HPA28, HPA31, HPAError
from hpa_fastai.data.reader import ImageReader
from hpa_fastai.deploy.bundle import Bundle
from hpa_fastai.models.schema import NetworkConfig
from hpa_fastai.evaluate.thresholds import plain_thresholds
from hpa_fastai.models.architectures import create_model, list_models, source_library
from hpa_fastai.models.networks import (PUBLISHED_LABELS, PUBLISHED_NETWORKS, AveragedHeads, ModelError,
                                        PatchConvolution, published_body)


@pytest.mark.parametrize('arch,size', [('hpa-densenet121', 64), ('hpa-inception-v3-cells', 64), ('subcell-vit', 64)])
def test_published_networks_train_a_step(arch, size):
    model = create_model(arch, 5, pretrained=False, size=size)
    model(torch.randn(3, 4, size, size)).square().mean().backward()
    grads = [p.grad for p in model.parameters()]
    assert all(g is not None and torch.isfinite(g).all() for g in grads)
    assert model.n_features == dict(zip(PUBLISHED_NETWORKS, (1024, 2048, 1536)))[arch]


@pytest.mark.parametrize('arch', PUBLISHED_NETWORKS)
def test_a_bundle_can_build_them_again_without_storage(arch):
    with torch.device('meta'): model = create_model(arch, 3, pretrained=False, size=128)
    settings = NetworkConfig.model_validate(model.config, context=dict(n_classes=3)).model_dump()
    with torch.device('meta'): again = create_model(**settings, pretrained=False)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert again(torch.zeros(2, 4, 128, 128, device='meta')).shape == (2, 3)


def test_several_heads_stand_in_the_configuration():
    with torch.device('meta'): model = create_model('subcell-vit', 31, pretrained=False, size=64, heads=3)
    assert model.config['heads'] == 3 and isinstance(model[1], AveragedHeads)
    settings = NetworkConfig.model_validate(model.config, context=dict(n_classes=31)).model_dump()
    with torch.device('meta'): assert len(create_model(**settings, pretrained=False)[1].heads) == 3


@pytest.mark.parametrize('arch,heads', [('hpa-densenet121', 2), ('resnet18', 2), ('subcell-vit', 0),
                                        ('subcell-vit', 51)])
def test_heads_that_cannot_be(arch, heads):
    with pytest.raises(ModelError, match='only subcell-vit has several heads'):
        create_model(arch, 31, pretrained=False, size=64, heads=heads)


@pytest.mark.parametrize('arch,size', [('hpa-densenet121', 48), ('hpa-inception-v3-cells', 16), ('subcell-vit', 100)])
def test_sizes_that_cannot_be_are_one_line(arch, size):
    with pytest.raises(ModelError, match=f'{arch} does not take pictures of {size} px; take') as e:
        create_model(arch, 3, pretrained=False, size=size)
    assert '\n' not in str(e.value)


def test_names_are_known():
    assert set(PUBLISHED_NETWORKS) <= set(list_models())
    assert {source_library(arch) for arch in PUBLISHED_NETWORKS} == {'hpa_fastai'}
    with pytest.raises(HPAError, match='did you mean.*subcell-vit'): create_model('subcell_vit', 31, pretrained=False)


@pytest.mark.parametrize('arch,n_folded', [('hpa-densenet121', 59), ('hpa-inception-v3-cells', 94)])
def test_norms_fold_into_the_convolutions_before_them(arch, n_folded):
    torch.manual_seed(0)
    model = create_model(arch, 28, pretrained=False, size=64).eval()
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm2d): m.running_mean.normal_(0, .1), m.running_var.uniform_(.5, 1.5)
    settings = ImageSettings(reader=ImageReader(size=64), size=64)
    folded = Bundle(model, HPA28, settings, plain_thresholds(.5, 28), None, {}).folded().model

    def biases(m): return sum(isinstance(c, torch.nn.Conv2d) and c.bias is not None for c in m.modules())
    assert biases(getattr(folded[0], 'usual', folded[0])) - biases(model) == n_folded
    x = torch.rand(2, 4, 64, 64)
    with torch.no_grad(): assert torch.allclose(folded(x), model(x), atol=1e-4)


def test_the_transformer_takes_one_size_after_the_other():
    torch.manual_seed(0)
    body = published_body('subcell-vit', 64).eval()
    vit = body.features
    torch.nn.init.normal_(vit.pos_embed)
    with torch.no_grad():
        first = body(torch.rand(1, 4, 96, 96))
        for size in (64, 80): assert body(torch.rand(1, 4, size, size)).shape == first.shape == (1, 1536)
    grid = vit.pos_embed[0, 1:].T.reshape(1, 768, 28, 28)
    want = F.interpolate(grid, (5, 7), mode='bicubic', align_corners=False)[0].flatten(1).T
    assert torch.equal(vit.positions(5, 7)[0, 1:], want) and torch.equal(vit.positions(5, 7)[0, 0], vit.pos_embed[0, 0])


@pytest.mark.parametrize('arch,size', [('subcell-vit', 64), ('vit_tiny_patch16_224', 64), ('vit_b_32', 64)])
def test_patches_are_the_same_in_half_precision(arch, size):
    "A convolution of such patches is not, on processors with tiles of bfloat16; its gradients neither"
    torch.manual_seed(0)
    model, x = create_model(arch, 3, pretrained=False, size=size), torch.rand(2, 4, size, size)
    name, patches = next((n, m) for n, m in model.named_modules() if isinstance(m, PatchConvolution))
    assert isinstance(patches, torch.nn.Conv2d) and f'{name}.weight' in model.state_dict()
    grads = []
    for half in (False, True):
        with torch.autocast('cpu', torch.bfloat16, enabled=half): y = patches(x).float()
        y.square().mean().backward()
        grads.append((y.detach(), patches.weight.grad.clone()))
        patches.zero_grad()
    want = F.conv2d(x, patches.weight, patches.bias, patches.stride).detach()
    assert torch.allclose(grads[0][0], want, atol=1e-5)
    for a, b in zip(*grads): assert (a - b).abs().max() < .02*a.abs().max()


def test_a_network_of_another_size_is_the_same_network():
    small, large = (create_model('subcell-vit', 2, pretrained=False, size=size) for size in (64, 96))
    large.load_state_dict(small.state_dict())
    x = torch.rand(1, 4, 96, 96)
    with torch.no_grad(): assert torch.equal(small.eval()(x), large.eval()(x))


def test_heads_average_probabilities_however_small():
    torch.manual_seed(0)
    heads, x = AveragedHeads(8, 4, 3).double(), 3*torch.randn(6, 8).double()
    for i, head in enumerate(heads.heads): head[-1].bias.data += 20*i-30
    want = torch.stack([head(x).sigmoid() for head in heads.heads]).mean(0)
    assert torch.allclose(heads(x), torch.logit(want), rtol=1e-9)
    for sign in (-1, 1):
        for head in heads.heads: head[-1].bias.data.fill_(sign*500.)
        assert torch.allclose(heads(x), torch.tensor(sign*500.).double(), atol=20)


def test_they_survive_a_pickle():
    model = create_model('hpa-inception-v3-cells', 2, pretrained=False, size=64).eval()
    again = pickle.loads(pickle.dumps(model))
    x = torch.rand(1, 4, 64, 64)
    with torch.no_grad(): assert torch.equal(again(x), copy.deepcopy(model)(x))


@pytest.fixture(scope='module')
def densenet_file(tmp_path_factory):
    torch.manual_seed(1)
    model = create_model('hpa-densenet121', 28, pretrained=False, size=64)
    file = tmp_path_factory.mktemp('weights')/'hpa-densenet121.safetensors'
    save_file(model.state_dict(), file, metadata=dict(published='{}'))
    return model, file


def test_classes_of_the_same_name_start_from_the_published_rows(densenet_file):
    published, file = densenet_file
    classes = ['Something new', 'CELL JUNCTIONS', 'Vesicles and punctate cytosolic patterns', 'Cytosol']
    model = create_model('hpa-densenet121', 4, pretrained=file, size=64, classes=classes)
    linear, theirs = model[1][-1], published[1][-1]
    assert model.known == ['CELL JUNCTIONS', 'Cytosol']
    rows = [HPA28.classes.index(c) for c in ('Cell junctions', 'Cytosol')]
    assert torch.equal(linear.weight[[1, 3]], theirs.weight[rows])
    assert torch.equal(linear.bias[[1, 3]], theirs.bias[rows])
    assert not any((theirs.weight == linear.weight[i]).all(1).any() for i in (0, 2)), 'of these nothing is known'
    body = model[0].state_dict()
    assert all(torch.equal(v, body[k]) for k, v in published[0].state_dict().items())


def test_rows_mean_nothing_in_a_file_that_does_not_say_it_is_published(densenet_file, tmp_path):
    published, _ = densenet_file
    save_file(published.state_dict(), tmp_path/'w.safetensors')
    model = create_model('hpa-densenet121', 28, pretrained=tmp_path/'w.safetensors', size=64, classes=HPA28.classes)
    assert model.known == [] and torch.equal(model[0].features.conv0.weight, published[0].features.conv0.weight)


def test_heads_are_taken_over_row_by_row(tmp_path):
    torch.manual_seed(2)
    published = create_model('subcell-vit', 31, pretrained=False, size=64, heads=2)
    save_file(published.state_dict(), tmp_path/'w.safetensors', metadata=dict(published='{}'))
    classes = ['Nucleoli', 'New', 'Negative']
    model = create_model('subcell-vit', 3, pretrained=tmp_path/'w.safetensors', size=64, classes=classes, heads=2)
    assert model.known == ['Nucleoli', 'Negative']
    x = torch.randn(4, 1536)
    rows = [HPA31.classes.index('Nucleoli'), 30]
    with torch.no_grad(): assert torch.allclose(model[1](x)[:, [0, 2]], published[1](x)[:, rows], atol=1e-6)
    plain = create_model('subcell-vit', 3, pretrained=tmp_path/'w.safetensors', size=64, classes=classes)
    assert plain.known == [] and torch.equal(plain[0].pooling.weigh.weight, published[0].pooling.weigh.weight)


def test_weights_of_another_network_are_refused(densenet_file, tmp_path):
    _, file = densenet_file
    with pytest.raises(ModelError, match='not the weights of subcell-vit') as e:
        create_model('subcell-vit', 31, pretrained=file, size=64)
    assert '\n' not in str(e.value)
    torch.save({'backbone.features.conv0.weight': torch.zeros(1)}, tmp_path/'published.pth')
    with pytest.raises(ModelError, match='models get hpa-densenet121 --from FILE'):
        create_model('hpa-densenet121', 28, pretrained=tmp_path/'published.pth', size=64)


def test_every_network_has_its_classes():
    assert [len(PUBLISHED_LABELS[arch]) for arch in PUBLISHED_NETWORKS] == [28, 19, 31]
