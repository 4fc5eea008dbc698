"""How hard each class of a simulated atlas is, beside how hard it is in real images.

A network is trained on one atlas, and predicts another that it has not seen; the average precision by class is
compared with that of two sets of scores that others' models gave real images, at each level of difficulty. It starts
from the weights of the package, which know the easy level, so that minutes are enough; `--scratch` does not.
The folder holds `scores/known_labels.csv` (Id, Target) and `scores/*.npz` (ids, scores).
The level of the atlas was designed with an eye on the first set of scores only.

    python benchmarks/difficulty.py --real-data=DIR [--minutes 5] [--seeds 0 1] [--levels atlas easy] [--scratch]
"""
import argparse
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from hpa_fastai.all import HPA28, HPADataLoaders, attach_images, class_table, hpa_learner, read_labels, simulate_atlas

warnings.filterwarnings('ignore')
SEEN, HELD_BACK = 'xception_512', 'final_submission'


def precision_by_class(targets, probs):
    "Average precision of the 28 classes"
    return class_table(probs > .5, targets, HPA28, probs).average_precision.to_numpy()


def of_real_images(data, name):
    "Average precision of the scores of a model for the images whose labels are known"
    known = read_labels(data/'scores'/'known_labels.csv', HPA28)
    with np.load(data/'scores'/f'{name}.npz', allow_pickle=True) as saved:      # the ids are objects
        scores = pd.DataFrame(saved['scores'], saved['ids'])
    return precision_by_class(HPA28.encode(known.Target) > 0, scores.loc[known.Id].to_numpy())


def of_simulated_images(level, folder, seed, minutes, n, n_test, size, arch, pretrained):
    "Average precision of a network on unseen simulated images, and the seconds of the whole"
    from fastai.torch_core import set_seed
    start = time.perf_counter()
    for name, k, s in (('train', n, seed), ('test', n_test, 1000 + seed)):
        simulate_atlas(folder/name, n=k, size=256, balance='even', seed=s, difficulty=level, progress=False)
    set_seed(seed)
    dls = HPADataLoaders.from_csv(folder/'train', size=size, bs=32, group='antibody', cache=folder/'cache',
                                  progress=False)
    learn = hpa_learner(dls, arch, pretrained)
    with learn.no_bar(), learn.no_logging(): learn.fit_progressive(minutes=minutes, verbose=False)
    test = attach_images(read_labels(folder/'test'/'train.csv', HPA28), folder/'test'/'train')
    with learn.no_bar(), learn.no_logging(): probs = learn.get_preds(dl=dls.test_dl(test, num_workers=0))[0].numpy()
    return precision_by_class(HPA28.encode(test.Target) > 0, probs), time.perf_counter() - start


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--real-data', type=Path, required=True, help='folder with scores/')
    p.add_argument('--minutes', type=float, default=5., help='of training')
    p.add_argument('--seeds', type=int, nargs='+', default=[0], help='of the cells and of training')
    p.add_argument('--levels', nargs='+', default=['atlas', 'easy'], help='of difficulty')
    p.add_argument('--n', type=int, default=2000, help='simulated fields of view to train on')
    p.add_argument('--n-test', type=int, default=800, help='and to predict')
    p.add_argument('--size', type=int, default=128, help='the largest training size, in pixels')
    p.add_argument('--arch', default='smallresnet', help='the network')
    p.add_argument('--scratch', action='store_true', help='without weights that know something already')
    a = p.parse_args()
    table = pd.DataFrame({name: of_real_images(a.real_data, name) for name in (SEEN, HELD_BACK)}, HPA28.classes)
    for level in a.levels:
        runs = []
        for seed in a.seeds:
            with tempfile.TemporaryDirectory() as d:
                found, seconds = of_simulated_images(
                    level, Path(d), seed, a.minutes, a.n, a.n_test, a.size, a.arch, not a.scratch)
            runs.append(found)
            print(f'{level}, seed {seed}: mean AP {found.mean():.3f}; {seconds/60:.1f} min', flush=True)
        table[level] = np.mean(runs, 0)
    print('\naverage precision by class\n' + table.sort_values(SEEN).round(3).to_string())
    for level in a.levels:
        rank = table.corr('spearman')[level]
        print(f'{level}: mean AP {table[level].mean():.3f}, above 0.99 in {(table[level] > .99).sum()} classes; '
              f'rank correlation with {SEEN} {rank[SEEN]:.2f}, with {HELD_BACK} (held back) {rank[HELD_BACK]:.2f}')


if __name__ == '__main__': main()
