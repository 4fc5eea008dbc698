"Weights files from strangers: one line for whatever they hold, nothing run, and no more memory than they have bytes."
import json
import resource
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from hpa_fastai.models.architectures import ModelError, create_model

WEIGHTS = create_model('smallresnet', 2, pretrained=False)[0].state_dict()


class Evil:
    def __reduce__(self): return (pytest.fail, ('code of a weights file was run',))


def text(file): file.write_text('weights')
def empty(file): file.write_bytes(b'')
def folder(file): file.mkdir()


def archive(file):
    with zipfile.ZipFile(file, 'w') as z: z.writestr('readme.txt', 'weights')


def swelling_archive(file):
    with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('w/data/0', bytes(300_000_000))


def header(n=None, **fields):
    "A safetensors file with one entry, whose header says something else than the file holds"
    def write(file):
        entry = dict(dtype='F32', shape=[4], data_offsets=[0, 16]) | fields
        data = json.dumps({'0.0.weight': entry, 'b': dict(dtype='F32', shape=[4], data_offsets=[0, 16])}).encode()
        file.write_bytes((len(data) if n is None else n).to_bytes(8, 'little') + data + bytes(16))
    return write


def holds(content):
    return lambda file: torch.save(content, file)


def with_weights(change):
    return lambda file: torch.save({k: change(v) for k, v in WEIGHTS.items()}, file)


def safe(tensors):
    return lambda file: save_file(tensors, file)


WHOLE = {'whole': lambda t: t.long(), 'yes or no': lambda t: t.bool(), 'complex': lambda t: t.to(torch.complex64)}
CASES = {
    'text': ('w.pth', text, 'read safely'),
    'text as safetensors': ('w.safetensors', text, 'a header of'),
    'empty': ('w.pth', empty, 'read safely'),
    'empty safetensors': ('w.safetensors', empty, 'read safely'),
    'folder': ('w.pth', folder, 'no model in this folder'),
    'nothing': ('w.pth', lambda file: None, 'no such weights file'),
    'zip': ('w.pth', archive, 'read safely'),
    'zip as safetensors': ('w.safetensors', archive, 'a header of'),
    'zip that swells': ('w.pth', swelling_archive, '300,000,000 bytes of tensors in a file of'),
    'pickle with code': ('w.pth', holds(Evil()), 'read safely'),
    'code beside weights': ('w.pth', holds(WEIGHTS | {'0.1.bias': Evil()}), 'read safely'),
    'header of a terabyte': ('w.safetensors', header(n=10**12), 'a header of 1,000,000,000,000 bytes'),
    'entry of 10 GB': ('w.safetensors', header(shape=[25 * 10**8], data_offsets=[0, 10**10]), 'read safely'),
    'negative offsets': ('w.safetensors', header(data_offsets=[-16, 0]), 'read safely'),
    'overlapping offsets': ('w.safetensors', header(), 'read safely'),
    'list': ('w.pth', holds([torch.ones(2)]), 'a list, where tensors by name are expected'),
    'tensor': ('w.pth', holds(torch.ones(2)), 'a Tensor, where tensors by name are expected'),
    'number': ('w.pth', holds(3), 'a int, where tensors by name are expected'),
    'lists by name': ('w.pth', holds({'0.weight': [1., 2.]}), "'0.weight' is a list, where a tensor is expected"),
    'tensors by name by name': ('w.pth', holds({'net': {'a': torch.ones(2)}}), "'net' is a dict, where a tensor"),
    'state that is none': ('w.pth', holds({'state_dict': 3}), 'a int, where tensors by name are expected'),
    'numbers for names': ('w.pth', holds({3: torch.ones(2)}), "'3' is no name"),
    'one number many times': ('w.pth', holds({'a': torch.ones(1).expand(10**12)}), 'more numbers than it holds'),
    'on no device': ('w.pth', holds({'a': torch.ones(2, device='meta')}), 'without values'),
    'sparse': ('w.pth', holds({'a': torch.eye(3).to_sparse()}), 'without values'),
    'eight bits': ('w.pth', holds({'a': torch.ones(2).to(torch.float8_e4m3fn)}), 'no type of weights'),
    'not a number': ('w.pth', with_weights(lambda t: t + torch.nan), 'values that are not finite'),
    'infinite': ('w.safetensors', safe({k: v / 0 if v.ndim else v for k, v in WEIGHTS.items()}), 'are not finite'),
    **{name: ('w.pth', with_weights(change), 'not the weights of smallresnet.* is of torch')
       for name, change in WHOLE.items()},
}


@pytest.mark.parametrize('case', CASES)
@pytest.mark.filterwarnings('ignore:Sparse')
def test_a_weights_file_that_is_none_is_one_line(tmp_path, case):
    name, write, words = CASES[case]
    write(tmp_path/name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError, match=words) as e:
        create_model('smallresnet', 2, pretrained=tmp_path/name, size=32)
    assert '\n' not in str(e.value) and str(tmp_path) in str(e.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


@pytest.mark.parametrize('part, value', [
    ('labels', {'classes': 3}), ('model', []), ('model', {'arch': ['resnet18']}), ('preprocess', {'mean': 'red'}),
    ('seen', 7), ('reader', []), ('published', {'name': []}), ('labels', {'classes': [[]]*2}),
])
def test_settings_of_a_bundle_that_are_none_are_one_line(trained, tmp_path, part, value):
    from hpa_fastai.train.learner import hpa_learner
    config = json.loads((trained[1]/'config.json').read_text())
    config[part] = config[part] | value if isinstance(value, dict) and isinstance(config[part], dict) else value
    (tmp_path/'config.json').write_text(json.dumps(config))
    (tmp_path/'model.safetensors').write_bytes((trained[1]/'model.safetensors').read_bytes())
    with pytest.raises(ModelError, match=f'config.json.{part}.*copy the bundle again') as e:
        hpa_learner(trained[0].dls, config['model']['arch'] if part != 'model' else 'smallresnet', pretrained=tmp_path)
    assert '\n' not in str(e.value)


def test_deeply_nested_settings_are_one_line(tmp_path):
    (tmp_path/'config.json').write_text('[' * 100_000)
    (tmp_path/'model.safetensors').write_bytes(b'')
    with pytest.raises(ModelError, match='not readable as JSON'): create_model('smallresnet', 2, pretrained=tmp_path)


@pytest.mark.parametrize('arch, size', [
    ('eva02_tiny_patch14_224', 8), ('vit_b_16', 30), ('maxvit_tiny_rw_224', 100),
])
def test_a_size_that_no_option_fits_needs_no_memory(arch, size, monkeypatch):
    "What is refused on the meta device is not tried again with memory"
    devices, build = set(), torch.nn.Linear.__init__
    def noted(self, *args, **kwargs):
        build(self, *args, **kwargs)
        devices.add(self.weight.device.type)
    monkeypatch.setattr(torch.nn.Linear, '__init__', noted)
    with pytest.raises(ModelError, match=f'does not take pictures of {size} px'), torch.device('meta'):
        create_model(arch, 2, pretrained=False, size=size)
    assert devices <= {'meta'}


@pytest.mark.parametrize('arch', ['regnet_x_400mf', 'swin_v2_t', 'vit_b_16', 'resnet18'])
def test_networks_are_built_without_memory(arch):
    with torch.device('meta'): model = create_model(arch, 2, pretrained=False, size=224)
    assert {p.device.type for p in model.parameters()} == {'meta'}
