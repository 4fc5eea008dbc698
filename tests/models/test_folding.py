"A densenet that is computed in another way for prediction"
from collections import OrderedDict

import pytest
import timm
import torch
from torch import nn

from hpa_fastai.models.folding import FoldedDenseNet


def trained_densenet(name='densenet121', published=False):
    "Of timm, with figures of normalisation as after training; `published`: pooled twice, and with layers behind"
    torch.manual_seed(0)
    body = timm.create_model(name, in_chans=4, num_classes=0, global_pool='')
    if published:
        features = body.features
        features.pool0 = nn.Sequential(features.pool0, nn.MaxPool2d(2, 2))
        pooling = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(1024))
        body = nn.Sequential(OrderedDict(features=features, pooling=pooling))
    for norm in body.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, -.3, 1.5)
            norm.weight.data[::9] = 0
            for t in (norm.bias, norm.running_mean): nn.init.uniform_(t, -.2, .2)
            nn.init.uniform_(norm.running_var, .5, 1.5)
    return body.eval()


@pytest.mark.parametrize('name, published, size',
                         [('densenet121', False, 96), ('densenet169', False, 70), ('densenet121', True, 1024),
                          ('densenet121', True, 161)])
@torch.no_grad()
def test_the_same_numbers(name, published, size):
    body, x = trained_densenet(name, published), torch.randn(1, 4, size, size)
    expected, found = body(x), FoldedDenseNet(body, body).eval()(x)
    assert found.shape == expected.shape
    assert (found-expected).abs().max() < 1e-5*expected.abs().max()


@torch.no_grad()
def test_a_picture_alone_is_as_in_a_batch():
    body, x = trained_densenet(), torch.randn(3, 4, 96, 96)
    fast = FoldedDenseNet(body, body).eval()
    assert torch.equal(fast(x), torch.cat([fast(o) for o in x.split(1)]))
    assert torch.equal(fast(x.contiguous(memory_format=torch.channels_last)), fast(x))


def test_training_and_half_precision_use_the_usual_layers():
    body, x = trained_densenet(), torch.randn(1, 4, 64, 64)
    called = []
    body.register_forward_hook(lambda *_: called.append(1))
    fast = FoldedDenseNet(body, body).eval()
    fast(x).sum().backward()
    assert len(called) == 1 and body.features.conv0.weight.grad is not None
    with torch.no_grad():
        with torch.autocast('cpu', torch.bfloat16): fast(x)
        fast.train()(x)
        assert len(called) == 3
        fast.eval()(x)
    assert len(called) == 3


def test_another_network_is_none():
    for name in ('resnet10t', 'vgg11'):
        with pytest.raises(AttributeError): FoldedDenseNet(timm.create_model(name), None)
