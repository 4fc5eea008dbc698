"""What stands beside a picture that is shrunk at random in training: black, its mirror image, or its mean.

The same network is trained from scratch in each way, for the same number of epochs, on the same pictures with the
same seeds. Black changes the mean and the deviation by which a picture is normalised; the mirror image does not; and
a picture that is normalised before it is shrunk is surrounded by its own mean. Validation never sees a margin.

Simulated cells are judged on cells of another seed; with --real-data also the mosaics of real cells, in outer folds
that divide no group, each predicted by a network that was trained on the others (see mosaics.py).

    python benchmarks/augmentation.py [--seeds 0 1 2] [--n 400] [--epochs 12] [--real-data=DIR]
"""
import argparse
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch.nn.functional as F
from fastai.torch_core import set_seed
from fastai.vision.core import DisplayedTransform

from hpa_fastai.all import HPA28, AugmentRGBY, HPADataLoaders, attach_images, hpa_learner, read_labels, simulate_atlas
from hpa_fastai.batches.dealing import deal_images
from hpa_fastai.batches.splits import group_codes
from hpa_fastai.batches.tensors import TensorRGBY
from hpa_fastai.batches.transforms import random_affine
from hpa_fastai.train.metrics import mean_ap

warnings.filterwarnings('ignore')


class Shrink(DisplayedTransform):
    "Shrink or enlarge at random, with a margin of some kind"
    split_idx = 0
    def __init__(self, margin, order): self.margin, self.order = margin, order
    def encodes(self, x: TensorRGBY):
        grid = F.affine_grid(random_affine(len(x), 1.25, x.device), x.shape, align_corners=False)
        return F.grid_sample(x, grid, padding_mode=self.margin, align_corners=False)


WAYS = {
    'black': lambda: Shrink('zeros', 19),
    'mirrored': lambda: Shrink('reflection', 19),
    'normalised first': lambda: Shrink('zeros', 100),  # 99 is the order of normalising, which makes the mean 0
    'normalised, mirrored': lambda: Shrink('reflection', 100),
    'never shrunk': lambda: None,
}


def train(df, images, way, seed, a, cache, **split):
    "A network that was trained from scratch"
    set_seed(seed)
    shrink = WAYS[way]()
    dls = HPADataLoaders.from_df(
        df, images, size=a.size, bs=32, augment=AugmentRGBY(scale=1), batch_tfms=shrink and [shrink], cache=cache,
        seed=seed, progress=False, device='cpu', **split)
    learn = hpa_learner(dls, 'smallresnet', pretrained=False)
    with learn.no_bar(), learn.no_logging(): learn.fit_progressive(sizes=(a.size,), epochs=a.epochs, verbose=False)
    return learn


def predict(learn, items):
    "Probabilities of images that were not trained on"
    with learn.no_bar(): return learn.get_preds(dl=learn.dls.test_dl(items, num_workers=0))[0].numpy()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    p.add_argument('--n', type=int, default=400, help='simulated images to train on')
    p.add_argument('--epochs', type=int, default=12)
    p.add_argument('--size', type=int, default=96, help='pixels')
    p.add_argument('--ways', nargs='+', choices=WAYS, default=list(WAYS))
    p.add_argument('--real-data', type=Path, help='folder with mosaic/')
    a = p.parse_args()
    rows = []
    def note(data, way, seed, probs, targets, start):
        rows.append(dict(data=data, way=way, seed=seed, mean_ap=mean_ap(probs, targets)))
        took = time.perf_counter()-start
        print(f'{data:9} {way:20} seed {seed}: mean AP {rows[-1]["mean_ap"]:.3f}; {took:.0f} s', flush=True)
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        for name, n, seed in (('train', a.n, 31), ('test', 300, 32)):
            simulate_atlas(d/name, n=n, size=a.size, balance='even', seed=seed, difficulty='easy', progress=False)
        tables = {name: attach_images(read_labels(d/name/'train.csv'), d/name/'train') for name in ('train', 'test')}
        for seed in a.seeds:
            for way in a.ways:
                start = time.perf_counter()
                learn = train(tables['train'], d/'train'/'train', way, seed, a, d/'cache', group='antibody')
                note('simulated', way, seed, predict(learn, tables['test']), HPA28.encode(tables['test'].Target), start)
        if a.real_data:
            df = attach_images(read_labels(a.real_data/'mosaic'/'train.csv', HPA28), a.real_data/'mosaic'/'images')
            targets = HPA28.encode(df.Target) > 0
            folds = deal_images(targets, group_codes(df, 'group'), 3)
            for seed in a.seeds:
                for way in a.ways:
                    start, probs = time.perf_counter(), np.zeros((len(df), 28))
                    for k in np.unique(folds):
                        learn = train(df[folds != k], df, way, seed, a, d/'cache', group='group')
                        probs[folds == k] = predict(learn, df[folds == k])
                    note('real', way, seed, probs, targets, start)
    summary = pd.DataFrame(rows).groupby(['data', 'way'], sort=False).mean_ap.agg(['mean', 'min', 'max'])
    print('\nmean average precision over the seeds\n' + summary.round(3).to_string())


if __name__ == '__main__': main()
