"""Accuracy on real cells that training never saw: out-of-fold predictions of three grouped folds.

The folder holds `train.csv` (Id, Target, group) and `images/`; cells are reused between its images, so the folds never divide a
group. Each image is predicted by a model, and decided by thresholds, that have not seen it. The default recipe stands beside the
same network without the weights of simulated cells, where that is asked for.

    python benchmarks/mosaics.py --real-data=DIR [--minutes 5] [--seeds 0 1 2] [--scratch]
"""
import argparse
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from hpa_fastai.all import HPA28, train_folds

warnings.filterwarnings('ignore')


def row(name, seed, folds, took):
    "Figures of one pooled table"
    e = folds.evaluation
    per_class = e.table[e.table.support > 0]
    print(f'{name:22} seed {seed}: macro F1 {e.macro_f1:.3f} ({e.interval[0]:.3f} to {e.interval[1]:.3f}), mean AP {e.scores["mean_ap"]:.3f}; {took:.1f} min in all; F1 by class: '
          + ', '.join(f'{n} {f:.2f}' for n, f in per_class.f1.items()) + '; AP: ' + ', '.join(f'{f:.2f}' for f in per_class.average_precision if f == f), flush=True)
    return dict(name=name, seed=seed, macro_f1=e.macro_f1, mean_ap=e.scores['mean_ap'])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--real-data', type=Path, required=True, help='folder with mosaic/')
    p.add_argument('--minutes', type=float, default=5., help='of training, for each fold')
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    p.add_argument('--folds', type=int, default=3)
    p.add_argument('--scratch', action='store_true', help='also without pretrained weights')
    a = p.parse_args()
    data = a.real_data/'mosaic'
    variants = {'default recipe': {}} | ({'from scratch': dict(pretrained=False)} if a.scratch else {})
    rows = []
    with tempfile.TemporaryDirectory() as d:
        for seed in a.seeds:
            for name, options in variants.items():
                start = time.perf_counter()
                folds = train_folds(data/'train.csv', data/'images', Path(d)/f'{name}{seed}', a.folds, labels=HPA28, group='group', seed=seed, progress=False,
                                    minutes=a.minutes, size=192, bs=32, cache=Path(d)/'cache', **options)
                rows.append(row(name, seed, folds, (time.perf_counter() - start)/60))
    print('\nmean over the seeds')
    print(pd.DataFrame(rows).groupby('name', sort=False)[['macro_f1', 'mean_ap']].agg([np.mean, np.min, np.max]).round(3).to_string())


if __name__ == '__main__': main()
