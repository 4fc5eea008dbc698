"Small networks for single cells with random weights, as bundles."
import json
from dataclasses import asdict, replace

import torch

from hpa_fastai.batches.settings import CellCrop, ImageSettings
from hpa_fastai.data.labels import HPA19
from hpa_fastai.data.reader import ImageReader
from hpa_fastai.deploy.bundle import Bundle, package_versions
from hpa_fastai.deploy.saving import write_bundle
from hpa_fastai.deploy.schema import FORMAT
from hpa_fastai.evaluate.thresholds import plain_thresholds


BOX = ImageSettings(ImageReader(), 64, (0,)*4, (1,)*4, crop=CellCrop(margin=20, pixel_size=.32))
SQUARE = ImageSettings(ImageReader(), 64, minmax=True, crop=CellCrop(640, pixel_size=.08))


def bundle_of(settings, labels=HPA19, seed=0, threshold=.5, **config):
    "A bundle of a small network whose weights are drawn at random"
    from hpa_fastai.all import create_model
    torch.manual_seed(seed)
    model = create_model('smallresnet', len(labels), pretrained=False, size=settings.size).eval()
    torch.nn.init.normal_(model[1][-1].weight, std=.5)
    thresholds = plain_thresholds(threshold, len(labels))
    preprocess = {k: v for k, v in asdict(settings).items() if k != 'reader'}
    config = dict(
        format_version=FORMAT, model=model.config, labels=asdict(labels), reader=asdict(settings.reader),
        preprocess=preprocess, thresholds=replace(thresholds, exclusive=labels.negative).to_dict(), calibration=None,
        training={}, metrics=None, validation=None, reference=None, versions=package_versions(), **config)
    return Bundle(model, labels, settings, thresholds, None, json.loads(json.dumps(config)))


def save_model(path, settings, **kwargs):
    "The same in a folder"
    size = settings.reader.size or settings.size
    sample = torch.randint(0, 256, (2, 4, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return write_bundle(bundle_of(settings, **kwargs), path, sample)
