"""What progressive resizing earns: the same macro F1 in a part of the time.

One network is trained at the final size throughout, another in stages of growing size for 0.6 of that time.
Both see the same simulated cells, and both are judged on simulated cells of another seed, with thresholds of
their own validation images. With --pooled, the stages are trained a second time with pictures that PyTorch's adaptive
pooling has shrunk, which keeps no finer detail at three quarters of the size than at half.

    python benchmarks/progressive.py [--minutes 4] [--share 0.6] [--size 256] [--pooled] [--plot curves.png]
"""
import argparse
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.torch_core import set_seed

import hpa_fastai.batches.transforms
from hpa_fastai.all import HPADataLoaders, fit_thresholds, hpa_learner, macro_f1, simulate_atlas

warnings.filterwarnings('ignore')


class Curve(Callback):
    "Macro F1 on validation after each epoch, by the seconds of training so far"
    order = 80
    def __init__(self): self.seen, self.seconds = [], 0.
    def before_train(self): self.started = time.perf_counter()
    def after_train(self): self.seconds += time.perf_counter() - self.started
    def before_validate(self): self.probs, self.truth = [], []
    def after_batch(self):
        if self.training: return
        self.probs.append(self.pred.sigmoid().cpu().numpy()), self.truth.append(self.y.cpu().numpy())
    def after_validate(self):
        self.seen.append(
            (self.seconds, self.dls.settings.size, np.concatenate(self.probs), np.concatenate(self.truth))
        )
    def points(self):
        "Worked out when the training is over: its clock does not stop for it"
        return [
            (s, size, macro_f1(fit_thresholds(probs, truth).predict(probs), truth))
            for s, size, probs, truth in self.seen
        ]


def pooled(x, size):
    "Shrink by adaptive pooling"
    return F.interpolate(x, (size, size), mode='area')


def train(atlas, test, sizes, minutes, epochs, arch, seed):
    "Macro F1 on unseen cells, minutes, and the curve"
    set_seed(seed)
    dls = HPADataLoaders.from_csv(
        atlas, size=max(sizes), bs=32, group='antibody', cache=atlas.parent / 'cache', progress=False
    )
    curve = Curve()
    learn = hpa_learner(dls, arch, pretrained=False)
    start = time.perf_counter()
    with learn.no_bar(), learn.no_logging(), learn.added_cbs(curve):
        learn.fit_progressive(sizes=sizes, minutes=minutes, epochs=epochs, verbose=False)
    took = (time.perf_counter() - start)/60
    learn.calibrate(), learn.fit_thresholds()
    probs, truth = unseen(learn, test)
    return learn.thresholds.predict(probs), truth, probs, took, curve.points()


def unseen(learn, test):
    "Probabilities and truth of the cells of another seed"
    from hpa_fastai.all import HPA28, attach_images, read_labels
    items = attach_images(read_labels(test/'train.csv'), test/'train')
    with learn.no_bar(): probs, _ = learn.get_preds(dl=learn.dls.test_dl(items, num_workers=0))
    probs = probs.numpy()
    return (learn.calibration(probs) if learn.calibration else probs), HPA28.encode(items.Target)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--minutes', type=float, default=4., help='of training at the final size throughout')
    p.add_argument('--share', type=float, default=.6, help='of that time for the stages')
    p.add_argument('--epochs', type=int, help='of each stage, instead of minutes: where others use the machine, too')
    p.add_argument('--pooled', action='store_true', help='also the stages with adaptive pooling')
    p.add_argument('--arch', default='smallresnet', help='trained from scratch')
    p.add_argument('--n', type=int, default=900, help='simulated images to train on')
    p.add_argument('--size', type=int, default=256, help='pixels: the final size')
    p.add_argument('--seeds', type=int, nargs='+', default=[0])
    p.add_argument('--plot', type=Path, help='picture of both curves')
    a = p.parse_args()
    half = (a.size//2, a.size*3//4, a.size)
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        simulate_atlas(d/'atlas', n=a.n, size=a.size, balance='even', seed=31, difficulty='easy', progress=False)
        simulate_atlas(d/'test', n=400, size=a.size, balance='even', seed=32, difficulty='easy', progress=False)
        runs, filters = {}, (hpa_fastai.batches.transforms.resize, pooled)
        stages = f'{", ".join(map(str, half))} px'
        ways = [(f'{a.size} px throughout', (a.size,), 1, 0), (stages, half, a.share, 0)]
        if a.pooled: ways.append((f'{stages}, pooled', half, a.share, 1))
        for seed in a.seeds:
            for name, sizes, share, number in ways:
                minutes, epochs = (None, a.epochs*3//len(sizes)) if a.epochs else (a.minutes*share, 1)
                hpa_fastai.batches.transforms.resize = filters[number]
                made, truth, probs, took, points = train(d/'atlas', d/'test', sizes, minutes, epochs, a.arch, seed)
                quarters = [f for _, z, f in points if z == half[1]] or [np.nan]
                runs.setdefault(name, []).append((macro_f1(made, truth), took, quarters[-1]))
                print(f'seed {seed}  {name:30} {took:5.2f} min  macro F1 on unseen cells {macro_f1(made, truth):.3f}')
                print(
                    '   seconds of training: size, macro F1 on validation:',
                    '  '.join(f'{s:.0f}: {z}, {f:.3f}' for s, z, f in points),
                    flush=True,
                )
                if a.plot and seed == a.seeds[0]:
                    draw(a.plot, name, points)
        print('\nmeans of the seeds')
        for name, figures in runs.items():
            f, t, quarters = np.mean(figures, 0)
            also = '' if np.isnan(quarters) else f'; at the end of {half[1]} px, on validation {quarters:.3f}'
            print(f'{name:30} macro F1 {f:.3f} in {t:.2f} min{also}')


def draw(file, name, points):
    "Add a curve to the picture"
    import matplotlib.pyplot as plt
    fig = plt.figure(1, figsize=(6, 3.5), layout='constrained')
    t, _, f = zip(*points)
    style = dict(color='#0072B2', marker='o') if 'throughout' in name else dict(color='#D55E00', marker='s')
    plt.plot(t, f, label=name, markersize=4, **style)
    plt.xlabel('seconds of training'), plt.ylabel('macro F1 on validation'), plt.legend(), plt.grid(alpha=.3)
    fig.savefig(file, dpi=120)


if __name__ == '__main__': main()
