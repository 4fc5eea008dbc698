"Small networks for single cells with random weights, as bundles."
import torch

from hpa_fastai.batches.settings import CellCrop, ImageSettings
from hpa_fastai.data.labels import HPA19
from hpa_fastai.data.reader import ImageReader
from hpa_fastai.deploy.bundle import Bundle
from hpa_fastai.deploy.saving import write_bundle
from hpa_fastai.evaluate.thresholds import plain_thresholds


BOX = ImageSettings(ImageReader(), 64, (0,)*4, (1,)*4, crop=CellCrop(margin=20, pixel_size=.32))
SQUARE = ImageSettings(ImageReader(), 64, minmax=True, crop=CellCrop(640, pixel_size=.08))
FIELD = ImageSettings(ImageReader(size=64), 64)


def published_as(name, task):
    "What a bundle says of the published model that it is"
    return dict(name=name, task=task, files={}, address='https://example.org', licence='MIT', citation='',
                checked='nothing', difference=None)


def bundle_of(settings, labels=HPA19, seed=0, threshold=.5, arch='test_vit', **kwargs):
    "A bundle of a small network whose weights are drawn at random"
    from hpa_fastai.all import create_model
    torch.manual_seed(seed)
    model = create_model(arch, len(labels), pretrained=False, size=settings.size)
    torch.nn.init.normal_(model[1][-1].weight, std=.3)
    return Bundle.assemble(model, labels, settings, plain_thresholds(threshold, len(labels)), **kwargs)


def save_model(path, settings, **kwargs):
    "The same in a folder"
    size = settings.reader.size or settings.size
    sample = torch.randint(0, 256, (2, 4, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return write_bundle(bundle_of(settings, **kwargs), path, sample)
