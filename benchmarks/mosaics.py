"""Accuracy on real cells that training never saw: out-of-fold predictions of three grouped folds.

The folder holds `train.csv` (Id, Target, group) and `images/`; cells are reused between its images, so the
folds never divide a group. Each image is predicted by a model, and decided by thresholds, that have not seen
it. The default recipe stands beside a plain fastai pipeline (resnet18 with four input channels, 128 px, binary
cross entropy, threshold 0.5) on the same folds, beside the same network fine-tuned, and beside it without the
weights of simulated cells, where these are asked for. Those take the minutes that are given; the default recipe
fits the head alone to so few images, and takes what it takes.

    python benchmarks/mosaics.py --real-data=DIR [--minutes 5] [--seeds 0 1 2] [--plain] [--fine-tune] [--scratch]
"""
import argparse
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from hpa_fastai.all import CHANNELS, HPA28, class_table, macro_f1, read_labels, stratified_folds, train_folds

warnings.filterwarnings('ignore')


def row(name, seed, table, f1, mean_ap, took):
    "Figures of one pooled table"
    per_class = table[table.support > 0]
    print(
        f'{name:15} seed {seed}: macro F1 {f1:.3f}, mean AP {mean_ap:.3f}; {took:.1f} min in all; F1 by class: '
        + ', '.join(f'{n} {f:.2f}' for n, f in per_class.f1.items())
        + '; AP: '
        + ', '.join(f'{f:.2f}' for f in per_class.average_precision),
        flush=True,
    )
    return dict(name=name, seed=seed, macro_f1=f1, mean_ap=mean_ap)


def recipe(data, seed, n_folds, minutes, folder, cache, **options):
    "By class, macro F1 and mean average precision of the package's recipe"
    e = train_folds(
        data / 'train.csv',
        data / 'images',
        folder,
        n_folds,
        labels=HPA28,
        group='group',
        seed=seed,
        progress=False,
        minutes=minutes,
        size=384,
        bs=32,
        cache=cache,
        **options,
    ).evaluation
    return e.table, e.macro_f1, e.scores['mean_ap']


def plain_fastai(data, seed, n_folds, minutes):
    "The same of what a fastai user writes"
    from fastai.vision.all import (
        BCEWithLogitsLossFlat,
        DataBlock,
        IndexSplitter,
        IntToFloatTensor,
        MultiCategoryBlock,
        Normalize,
        TensorImage,
        TransformBlock,
        aug_transforms,
        resnet18,
        set_seed,
        vision_learner,
    )
    from PIL import Image
    df = read_labels(data/'train.csv', HPA28)
    folds, targets, probs = (
        stratified_folds(df, n_folds, group='group', labels=HPA28, seed=seed),
        HPA28.encode(df.Target) > 0,
        np.zeros((len(df), 28)),
    )
    opened = lambda r: TensorImage(
        np.stack(
            [
                np.asarray(Image.open(data / 'images' / f'{r.Id}_{c}.png').resize((128, 128), Image.BILINEAR))
                for c in CHANNELS
            ]
        )
    )
    for k in range(n_folds):
        set_seed(seed + k)
        block = DataBlock(
            (TransformBlock(batch_tfms=IntToFloatTensor), MultiCategoryBlock(vocab=list(map(str, range(28))))),
            get_x=opened,
            get_y=lambda r: r.Target.split(),
            splitter=IndexSplitter(np.flatnonzero(folds == k)),
            batch_tfms=[
                *aug_transforms(flip_vert=True, max_lighting=0, max_warp=0),
                Normalize.from_stats([0.08] * 4, [0.14] * 4, cuda=False),
            ],
        )
        dls = block.dataloaders(df, bs=32, num_workers=0, device='cpu')
        learn = vision_learner(dls, resnet18, n_in=4, n_out=28, pretrained=False, loss_func=BCEWithLogitsLossFlat())
        with learn.no_bar(), learn.no_logging():
            start = time.perf_counter()
            learn.fit(1, 1e-3)
            learn.fit_one_cycle(max(1, round(minutes*60/(time.perf_counter() - start)) - 1), 3e-3)
            probs[folds == k] = learn.get_preds()[0].numpy()
    table = class_table(probs > .5, targets, HPA28, probs)
    return table, macro_f1(probs > .5, targets), float(table.average_precision[table.support > 0].mean())


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--real-data', type=Path, required=True, help='folder with mosaic/')
    p.add_argument('--minutes', type=float, default=5., help='of training, for each fold')
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    p.add_argument('--folds', type=int, default=3)
    p.add_argument('--plain', action='store_true', help='also a plain fastai pipeline')
    p.add_argument('--fine-tune', action='store_true', help='also the recipe with the body trained')
    p.add_argument('--scratch', action='store_true', help='also the recipe without the weights of simulated cells')
    a = p.parse_args()
    data, rows = a.real_data/'mosaic', []
    with tempfile.TemporaryDirectory() as d:
        ours = lambda name, seed, **options: recipe(
            data, seed, a.folds, a.minutes, Path(d) / f'{name}{seed}', Path(d) / 'cache', **options
        )
        variants = {'default recipe': lambda seed: ours('default', seed)}
        if a.fine_tune: variants['fine-tuned'] = lambda seed: ours('tuned', seed, fine_tune=True)
        if a.scratch: variants['from scratch'] = lambda seed: ours('scratch', seed, pretrained=False)
        if a.plain: variants['plain fastai'] = lambda seed: plain_fastai(data, seed, a.folds, a.minutes)
        for seed in a.seeds:
            for name, run in variants.items():
                start = time.perf_counter()
                rows.append(row(name, seed, *run(seed), (time.perf_counter() - start)/60))
    print('\nmean over the seeds')
    print(
        pd.DataFrame(rows)
        .groupby('name', sort=False)[['macro_f1', 'mean_ap']]
        .agg([np.mean, np.min, np.max])
        .round(3)
        .to_string()
    )


if __name__ == '__main__': main()
