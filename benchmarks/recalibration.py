"""What `calibrate` says of itself, beside what the calibrated model does on fresh images.

    python benchmarks/recalibration.py [--draws 200]

Logits of 28 classes are drawn with the prevalences of 2018; each class has its own separation, and a wrong slope and
offset, as a model has on a foreign microscope. A few images are calibrated on as `calibrate_model` does, and 8,000
fresh ones tell the truth, over the classes that the few images have. In groups, images share their labels and half
of their noise, and stay on one side. No network takes part.
"""
import argparse
import warnings
from dataclasses import replace
import numpy as np
from hpa_fastai.data.labels import HPA28
from hpa_fastai.evaluate.crossfit import crossfit
from hpa_fastai.evaluate.evaluation import compare_models
from hpa_fastai.evaluate.metrics import f1_scores
from hpa_fastai.evaluate.thresholds import plain_thresholds
from hpa_fastai.experiments.recalibration import deal_parts
from hpa_fastai.simulate.plan import CLASS_FREQUENCY

SHARES = np.array([CLASS_FREQUENCY[name.casefold()] for name in HPA28.classes])
N = len(SHARES)


def draw(rng, world, n, per_group):
    separation, slope, offset = world
    n_groups = -(-n//per_group)
    groups = np.repeat(np.arange(n_groups), per_group)[:n]
    targets = rng.random((n_groups, N)) < SHARES
    empty = ~targets.any(1)
    targets[empty, rng.choice(N, empty.sum(), p=SHARES/SHARES.sum())] = True
    targets, own = targets[groups], rng.normal(size=(n, N))
    noise = own if per_group == 1 else (rng.normal(size=(n_groups, N))[groups] + own)/np.sqrt(2)
    truth = separation*(separation*(targets - .5) + noise) + np.log(SHARES/(1 - SHARES))
    return 1/(1 + np.exp(-(truth*slope + offset))), targets, groups


def one(seed, n, per_group):
    rng = np.random.default_rng(seed)
    world = rng.uniform(1.5, 4, N), rng.uniform(.6, 1.4, N), rng.normal(size=N)
    probs, targets, codes = draw(rng, world, n, per_group)
    groups = codes if per_group > 1 else None
    parts = deal_parts(codes if per_group > 1 else np.zeros(n, int), 5, 42)
    decided, as_it_was = crossfit(probs, targets, parts, groups), replace(plain_thresholds(.5, N), at_least_one=True)
    said = compare_models(probs, decided.unseen_probs, targets, as_it_was.predict(probs), decided.preds, groups=groups)
    fresh, truth, _ = draw(rng, world, 8000, 1)
    new = decided.calibration(fresh) if decided.calibration else fresh
    preds, seen = (as_it_was.predict(fresh), decided.thresholds.predict(new)), targets.any(0)
    before, after = (np.nanmean(f1_scores(o, truth)[seen]) for o in preds)
    return *said.scores, *said.interval, before, after


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--draws', type=int, default=200)
    draws = parser.parse_args().draws
    warnings.simplefilter('ignore')
    print('images a group   after: said  fresh   difference: said   fresh   interval holds   wrong: better  worse')
    for n, per_group in ((30, 1), (100, 1), (300, 1), (100, 4)):
        before, after, low, high, was, now = np.transpose([one(seed, n, per_group) for seed in range(draws)])
        gain = now - was
        holds, better, worse = (low <= gain) & (gain <= high), low > 0, high < 0
        print(f'{n:6} {per_group:7}   {after.mean():11.3f}  {now.mean():5.3f}   {(after - before).mean():+16.3f}  '
              f'{gain.mean():+6.3f}   {holds.mean():14.0%}   {(better & (gain < 0)).sum():3} of {better.sum():3}  '
              f'{(worse & (gain > 0)).sum():3} of {worse.sum():3}', flush=True)


if __name__ == '__main__': main()
