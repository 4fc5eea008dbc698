"Files of published weights in the form of the package, with random numbers in the place of real ones."
import torch
from published_files import draw_norms

from hpa_fastai.models.architectures import create_model
from hpa_fastai.models.networks import PUBLISHED_LABELS


def draw_network(arch, size=64, heads=None, seed=0):
    "A published network with random weights, whose features are not all alike"
    torch.manual_seed(seed)
    model = create_model(arch, len(PUBLISHED_LABELS[arch].classes), pretrained=False, size=size, heads=heads)
    for m in model.modules():
        if isinstance(m, torch.nn.Conv2d): torch.nn.init.kaiming_normal_(m.weight, nonlinearity='relu')
    return draw_norms(model)
