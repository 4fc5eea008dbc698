"Networks: four channels, any library, weights from a file, and clear words when they can't be had."
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from hpa_fastai.models.architectures import ModelError, create_model, four_channels, list_models


@pytest.mark.parametrize('arch', ['lenet5', 'smallresnet', 'alexnet', 'resnet18', 'regnet_x_400mf', 'efficientnet_b0',
                                  'vit_tiny_patch16_224', 'swin_tiny_patch4_window7_224'])
def test_networks_train_a_step_at_64_px(arch):
    model = create_model(arch, 28, pretrained=False, size=64)
    loss = model(torch.randn(4, 4, 64, 64)).square().mean()
    loss.backward()
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    assert torch.isfinite(loss) and any(g is not None and g.abs().sum() > 0 for g in grads)


def test_all_four_channels_reach_the_output():
    model = create_model('resnet18', 5, pretrained=False, size=64).eval()
    x = torch.zeros(4, 4, 64, 64)
    for i in range(4): x[i, i] = torch.rand(64, 64)
    out = model(x)
    assert len({tuple(o.tolist()) for o in out}) == 4


@pytest.mark.parametrize('stem', ['copy', 'mean', 'zero'])
def test_stem_of_pretrained_weights(stem):
    published = torchvision.models.resnet18().conv1.weight.detach()
    w = four_channels(published, stem)
    want = dict(copy=published[:, 0], mean=published.mean(1), zero=torch.zeros_like(published[:, 0]))[stem]
    assert torch.equal(w[:, :3], published) and torch.allclose(w[:, 3], want)


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_timm_weights_from_a_file(tmp_path, suffix):
    source, file = timm.create_model('resnet10t'), tmp_path/f'weights{suffix}'
    torch.save(source.state_dict(), file) if suffix == '.pth' else save_file(source.state_dict(), file)
    body = create_model('resnet10t', 28, pretrained=file, size=64)[0]
    got, want = body.state_dict(), source.state_dict()
    first = 'conv1.0.weight'
    assert torch.equal(got[first][:, :3], want[first]) and torch.equal(got[first][:, 3], want[first][:, 0])
    assert all(torch.equal(got[k], want[k]) for k in got if k != first)


def test_torchvision_weights_from_a_file(tmp_path):
    source = torchvision.models.regnet_x_400mf()
    torch.save(source.state_dict(), tmp_path/'w.pth')
    body = create_model('regnet_x_400mf', 28, pretrained=tmp_path/'w.pth', size=64)[0]
    assert torch.equal(body.stem[0].weight[:, :3], source.stem[0].weight)


@pytest.mark.parametrize('arch', ['tf_efficientnet_b0', 'resnetv2_50x1_bit', 'nf_regnet_b0'])
def test_special_convolutions_survive_the_fourth_channel(tmp_path, arch):
    "Padding and weight standardisation of the stem are those of the network when it is built again without weights"
    source = timm.create_model(arch)
    torch.save(source.state_dict(), tmp_path/'w.pth')
    tuned = create_model(arch, 3, pretrained=tmp_path/'w.pth', size=64).eval()
    again = create_model(**tuned.config, pretrained=False).eval()
    again.load_state_dict(tuned.state_dict())
    x = torch.rand(2, 4, 64, 64)
    with torch.no_grad(): assert torch.equal(tuned(x), again(x))


def test_weights_saved_in_parallel_are_read(tmp_path):
    source = timm.create_model('resnet10t')
    torch.save({f'module.{k}': v for k, v in source.state_dict().items()}, tmp_path/'w.pth')
    body = create_model('resnet10t', 3, pretrained=tmp_path/'w.pth', size=64)[0]
    assert torch.equal(body.layer1[0].conv1.weight, source.layer1[0].conv1.weight)


def test_wrong_weights_file_is_one_line(tmp_path):
    (tmp_path/'w.pth').write_bytes(b'not weights')
    torch.save(dict(a=torch.zeros(1)), tmp_path/'v.pth')
    for f, words in (('none.pth', 'no such'), ('w.pth', 'read safely')):
        with pytest.raises(ModelError, match=words) as e: create_model('resnet10t', 28, pretrained=tmp_path/f, size=64)
        assert '\n' not in str(e.value)
    for arch in ('regnet_x_400mf', 'resnet10t'):
        with pytest.raises(ModelError, match='not the weights'):
            create_model(arch, 28, pretrained=tmp_path/'v.pth', size=64)


def test_a_weights_file_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self): return (open, (str(tmp_path/'was_here'), 'w'))
    torch.save(Evil(), tmp_path/'evil.pth')
    for arch in ('resnet10t', 'regnet_x_400mf'):
        with pytest.raises(ModelError, match='read safely'):
            create_model(arch, 28, pretrained=tmp_path/'evil.pth', size=64)
    assert not (tmp_path/'was_here').exists()


@pytest.mark.parametrize('arch', ['resnet18', 'regnet_x_400mf'])
def test_offline_is_said_at_once(arch, monkeypatch):
    import hpa_fastai.models.architectures as m
    monkeypatch.setattr(m, 'is_online', lambda url: False)
    import huggingface_hub
    monkeypatch.setattr(huggingface_hub, 'try_to_load_from_cache', lambda *_: None)
    with pytest.raises(ModelError, match="can't be reached; pass pretrained=False") as e:
        create_model(arch, 28, size=64)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('arch', ['squeezenet1_1', 'googlenet'])
def test_networks_that_cannot_be_had_say_so(arch):
    with pytest.raises(ModelError, match=arch): create_model(arch, 28, pretrained=False, size=96)


def test_unknown_names_get_near_ones():
    with pytest.raises(ModelError, match='resnet18'): create_model('resnet_18', 28, pretrained=False)
    assert 'resnet50' in list_models('resnet*') and list_models('no_such*') == []


def test_weights_of_simulated_cells_come_with_the_package():
    from hpa_fastai.models.architectures import create_model, simulated_weights
    from safetensors import safe_open
    with safe_open(simulated_weights(), 'pt') as f: seen = f.metadata()['seen']
    assert 'simulated' in seen
    a, b = (create_model('smallresnet', 5, pretrained=o)[0].state_dict() for o in (True, True))
    c = create_model('smallresnet', 5, pretrained=False)[0].state_dict()
    weights = [k for k in a if k.endswith('weight') and a[k].ndim == 4]
    assert all(torch.equal(a[k], b[k]) for k in a) and not any(torch.equal(a[k], c[k]) for k in weights)
    assert all(v.dtype == torch.float32 for v in a.values() if v.is_floating_point())


def test_classes_that_the_weights_know_by_name_start_from_them():
    classes = ['Plasma membrane', 'Something new', 'Nucleoplasm']
    a, b = (create_model('smallresnet', 3, classes=classes)[1] for _ in range(2))
    shuffled = create_model('smallresnet', 3, classes=classes[::-1])[1]
    assert torch.equal(a[-1].weight[[0, 2]], b[-1].weight[[0, 2]])
    assert torch.equal(a[-1].weight[0], shuffled[-1].weight[2])
    assert not torch.equal(a[-1].weight[1], b[-1].weight[1]), 'of a new class nothing is known'
    assert torch.equal(a[-1].bias[[0, 2]], b[-1].bias[[0, 2]]) and torch.equal(a[2].running_mean, b[2].running_mean)


def test_weights_without_a_head_leave_the_head_alone(tmp_path):
    body = create_model('smallresnet', 2, pretrained=False)[0]
    save_file({k: v for k, v in body.state_dict().items() if v.is_floating_point()}, tmp_path/'body.safetensors')
    model = create_model('smallresnet', 2, pretrained=tmp_path/'body.safetensors', classes=['Nucleoplasm', 'Nucleoli'])
    assert torch.equal(model[0][0].weight, body[0].weight) and model.eval()(torch.zeros(1, 4, 32, 32)).shape == (1, 2)
