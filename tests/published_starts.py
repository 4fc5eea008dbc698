"Files of published weights in the form of the package, with random numbers in the place of real ones."
import torch
from published_files import draw_norms

from hpa_fastai.models.architectures import create_model
from hpa_fastai.models.networks import PUBLISHED_LABELS
from hpa_fastai.models.published import keep_weights
from hpa_fastai.models.registry import PUBLISHED


def draw_network(arch, size=64, heads=None, seed=0):
    "A published network with random weights, whose features are not all alike"
    torch.manual_seed(seed)
    model = create_model(arch, len(PUBLISHED_LABELS[arch].classes), pretrained=False, size=size, heads=heads)
    for m in model.modules():
        if isinstance(m, torch.nn.Conv2d): torch.nn.init.kaiming_normal_(m.weight, nonlinearity='relu')
    return draw_norms(model)


def record_of(name, checked='outputs'):
    "The record of a published model in the file of its weights"
    model = PUBLISHED[name]
    return dict(name=name, task=model.task, files={file.name: '0'*64 for file in model.files}, address='https://here',
                licence=model.licence, citation=model.citation, checked=checked, difference=0., heads=None)


def save_weights(model, folder, name, checked='outputs'):
    "The weights of a network as those of the published model of a name"
    return keep_weights(folder/f'{name}.safetensors', model.state_dict(), record_of(name, checked))
