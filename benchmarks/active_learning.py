"""How many labels an order saves: macro F1 by the number of labels that a person gave, for each order of `label_order`.

A simulated atlas a seed to choose fields from, and one more to judge by, all with the classes as frequent as in 2018.
The embeddings are those of the network that comes with the package. After each batch of labels, its last layer and its
thresholds are fitted again, as `hpa_fastai train` does with few images (but images are dealt into folds once, not up to
five times). Judged are the classes with ten fields or more to judge by. Three cases:

few    100 fields drawn by chance have labels, and the network knows no class
known  no field has a label, but the network knows the classes, from easier simulated fields
wrong  800 fields have labels, every fifth or so wrong somewhere; each answer puts one field right

"labels needed" is how many an order needs to be as good as chance with 100, 200, …, as a share of these; "more" if 400
are not enough. The method was chosen on the seeds 100 and 101, and changed after a look at 0 to 5: none of these is
among those printed, and neither are the fields that they were judged by.

    python benchmarks/active_learning.py [--seeds 6 7 8] [--cases few known wrong] [--out FOLDER] [--plot curves.png]
"""
import argparse
import os
import platform
import shutil
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from hpa_fastai.all import (HPA28, HPADataLoaders, attach_images, default_cache_folder, f1_scores, fit_thresholds,
                            hpa_learner, rarity_weights, read_labels, simulate_atlas)
from hpa_fastai.experiments.active_learning import label_order
from hpa_fastai.simulate.plan import mislabel
from hpa_fastai.train import head_folds
from hpa_fastai.train.head import LinearHead, best_head, head_inputs, known_head

warnings.filterwarnings('ignore')
head_folds.n_repeats = lambda n: 1
LEAST = 10      # fields of a class to judge by
MARKS = 100, 200, 300, 400


def loaders(folder, size): return HPADataLoaders.from_csv(folder, size=size, bs=64, group='antibody', progress=False)


def fields(folder, name, seed, n, size):
    "Embeddings, true labels and Ids of simulated fields, kept for the next run"
    file = folder/f'{name}_{seed}_{n}_{size}.npz'
    if not file.is_file():
        start, atlas = time.perf_counter(), folder/f'{name}_{seed}'
        simulate_atlas(atlas, n=n, size=size, seed=seed, num_workers=1, progress=False, force=True)
        table = attach_images(read_labels(atlas/'train.csv', HPA28), atlas/'train')
        z = head_inputs(hpa_learner(loaders(atlas, size), 'smallresnet'), table).numpy()
        np.savez(file, z=z, y=HPA28.encode(table.Target) > 0, ids=table.Id.to_numpy().astype(str))
        shutil.rmtree(atlas)
        seconds = time.perf_counter()-start
        print(f'{name}, seed {seed}: {n} fields simulated and embedded in {seconds:.0f} s', flush=True)
    with np.load(file) as saved: return {name: saved[name] for name in saved}


class Model:
    "The last layer of the network and its thresholds, fitted again and again"
    def __init__(self, knows_classes):
        with tempfile.TemporaryDirectory() as d:
            simulate_atlas(Path(d)/'atlas', n=64, size=64, progress=False)
            self.learn = hpa_learner(loaders(Path(d)/'atlas', 64), 'smallresnet')
        if not knows_classes: self.learn.model.known = ()
        n = self.learn.model[1][-1].in_features
        zero, one = torch.zeros(n), torch.ones(n)
        known = known_head(self.learn, zero, one).detach()
        self.head, self.thresholds = LinearHead(zero, one, known[:, :-1], known[:, -1]), np.full(len(HPA28), .5)

    def fit(self, z, y, ids):
        "Fit to labelled fields, and return their probabilities by folds"
        items, weights = pd.DataFrame(dict(Id=ids, Target=HPA28.decode(y))), rarity_weights(y, .5)
        scores = head_folds.score_out_of_fold(self.learn, torch.from_numpy(z), items, weights)
        probs, groups = scores.logits.sigmoid().numpy(), head_folds.shared_groups(self.learn, items)
        self.head = best_head(self.learn, torch.from_numpy(z), torch.from_numpy(y), weights)
        self.thresholds = fit_thresholds(probs, y, groups=groups, folds=0)
        return probs

    def __call__(self, z): return torch.sigmoid(self.head(torch.from_numpy(z))).detach().numpy()

    def macro_f1(self, test):
        probs = self(test['z'])
        preds = self.thresholds.predict(probs) if hasattr(self.thresholds, 'predict') else probs > self.thresholds
        return np.nanmean(f1_scores(preds, test['y'])[test['y'].sum(0) >= LEAST])


def ask_for_labels(pool, test, order, seed, n_first, knows_classes, step):
    "Macro F1 after each batch of labels, and the fields whose labels were asked for"
    model, n = Model(knows_classes), len(pool['y'])
    has_label, curve = np.isin(np.arange(n), np.random.default_rng([seed, 1]).permutation(n)[:n_first]), []
    for asked in range(0, MARKS[-1]+1, step):
        if has_label.any(): model.fit(*(pool[k][has_label] for k in ('z', 'y', 'ids')))
        curve.append(model.macro_f1(test))
        first = label_order(model(pool['z']), pool['z'], model.thresholds, order, seed, has_label)[:step]
        if asked < MARKS[-1]: has_label[first] = True
    return curve, pool['y'][has_label]


def correct_labels(pool, test, order, seed, n, share, step):
    "Macro F1 after each batch of corrected labels, and how many were wrong: at first, and corrected"
    z, truth, ids = (pool[k][:n] for k in ('z', 'y', 'ids'))
    names, noted = [c.casefold() for c in HPA28.classes], {}
    for antibody, row in zip((i.split('_')[0] for i in ids), truth):
        if antibody in noted: continue
        rng = np.random.default_rng([seed, 2, len(noted)])
        noted[antibody] = np.isin(np.arange(len(names)), mislabel(np.flatnonzero(row).tolist(), names, share, rng))
    given = np.array([noted[i.split('_')[0]] for i in ids])
    wrong, checked, model, curve = (given != truth).any(1), np.zeros(n, bool), Model(False), []
    for asked in range(0, MARKS[-1]+1, step):
        probs = model.fit(z, given, ids)
        curve.append(model.macro_f1(test))
        first = label_order(probs, z, model.thresholds, order, seed, checked, given)[:step]
        if asked < MARKS[-1]:
            checked[first] = True
            given[first] = truth[first]
    return curve, (wrong.sum(), (wrong & checked).sum())


def needed(curve, of_chance, step, n_first=0):
    "Labels that a curve needs to reach that of chance at each mark, as a share of these"
    so_far, numbers = np.maximum.accumulate(curve), np.arange(len(curve))*step
    shares = []
    for mark in MARKS:
        target = of_chance[mark//step]
        if so_far[-1] < target: shares.append(np.inf)
        else: shares.append((np.interp(target, so_far, numbers) + n_first)/(mark + n_first))
    return shares


def listed(shares): return ' '.join(f'{s:.2f}' if np.isfinite(s) else 'more' for s in shares)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--seeds', type=int, nargs='+', default=[6, 7, 8])
    p.add_argument('--cases', nargs='+', default=['few', 'known', 'wrong'], choices=['few', 'known', 'wrong'])
    p.add_argument('--n', type=int, default=2500, help='fields to choose from')
    p.add_argument('--n-test', type=int, default=2500, help='fields to judge by')
    p.add_argument('--size', type=int, default=128, help='of the fields, in pixels')
    p.add_argument('--share', type=float, default=.15, help='chance of each location to be noted wrongly, in "wrong"')
    p.add_argument('--out', type=Path, default=default_cache_folder()/'active_learning', help='folder of embeddings')
    p.add_argument('--plot', type=Path, help='file for a picture of the curves')
    a = p.parse_args()
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', 2)))
    print(f'{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}')
    a.out.mkdir(parents=True, exist_ok=True)
    test = fields(a.out, 'test', 1001, a.n_test, a.size)
    pools = {seed: fields(a.out, 'pool', seed, a.n, a.size) for seed in a.seeds}
    print(f'judged by {len(test["y"])} fields, {(test["y"].sum(0) >= LEAST).sum()} of {len(HPA28)} classes')
    figures = {}
    for case in a.cases:
        step, orders = (100, ['random', 'informative', 'disagreement']) if case == 'wrong' else (
            50, ['random', 'uncertain', 'informative'])
        n_first, curves = 100 if case == 'few' else 0, {}
        print(f'\n{case}: macro F1 by labels {"checked" if case == "wrong" else "given"}, mean of {len(a.seeds)} seeds'
              f'\n{"":13}' + ''.join(f'{n:6}' for n in range(0, MARKS[-1]+1, step))
              + f'   labels needed, of {", ".join(map(str, MARKS))}', flush=True)
        for order in orders:
            start, runs = time.perf_counter(), []
            for seed, pool in pools.items():
                if case == 'wrong': runs.append(correct_labels(pool, test, order, seed, 800, a.share, step))
                else: runs.append(ask_for_labels(pool, test, order, seed, n_first, case == 'known', step))
            curves[order] = curve = np.mean([o[0] for o in runs], 0)
            shares = needed(curve, curves['random'], step) if order != 'random' else [1]*len(MARKS)
            if case == 'wrong':
                wrong, found = np.sum([o[1] for o in runs], 0)
                more = f'{found} of {wrong} wrong ones found'
            else: more = f'{np.mean([(o[1].sum(0) > 0).sum() for o in runs]):.1f} classes have labels'
            if n_first and order != 'random':
                more += f', with the first 100: {listed(needed(curve, curves["random"], step, n_first))}'
            print(f'{order:13}' + ''.join(f' {f:.3f}' for f in curve) + f'   {listed(shares)}   {more}   '
                  f'{time.perf_counter()-start:.0f} s', flush=True)
        figures[case] = step, curves
    if a.plot:
        import matplotlib.pyplot as plt
        fig, axs = plt.subplots(1, len(figures), figsize=(4*len(figures), 3), layout='constrained', squeeze=False)
        for ax, (case, (step, curves)) in zip(axs[0], figures.items()):
            for order, curve in curves.items(): ax.plot(np.arange(len(curve))*step, curve, label=order)
            ax.set(title=case, xlabel='labels', ylabel='macro F1')
            ax.legend(fontsize=7)
        fig.savefig(a.plot, dpi=150)


if __name__ == '__main__': main()
