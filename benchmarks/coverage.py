"""How often the numbers that are printed hold: nominal and measured rates, by simulation.

A simulated model (`simulate_scores`) sees many samples of images. Its true scores and its best thresholds are known
from 300,000 further images. *Grouped* samples consist of groups of six images (as of one antibody) that share their
labels and half of the noise of their scores; some samples are of few large groups. For each promise: what is promised,
how often it was kept, and beside it how often a simpler way would have kept it (the middle of the bootstrap draws,
images taken as independent, a range as wide as the draws, thresholds and scores that know nothing of a change of
frequencies). `bias` is how far macro F1 lies above the truth.

The monitor of new pictures and the flag `unlike-training` are counted by `coverage_monitor.py`, which is run as well.

    python benchmarks/coverage.py [--runs 100] [--only intervals classes comparisons calibration ranges prior error
                                   monitor flags]
"""
import argparse
import time
from itertools import product

import numpy as np
import pandas as pd
from coverage_monitor import flag_rates, monitor_rates

from hpa_fastai.evaluate.calibration import calibrate, calibration_error, expit, log_losses, logit
from hpa_fastai.evaluate.calibration import perfect_calibration_error, score_counts, wilson_interval
from hpa_fastai.evaluate.evaluation import class_intervals, compare_models
from hpa_fastai.evaluate.metrics import bootstrap_f1, confusion_counts, f1_interval, macro_f1, simulate_scores
from hpa_fastai.evaluate.threshold_methods import best_constant, counts_above, f1_of_counts, match_prevalence
from hpa_fastai.evaluate.threshold_methods import optimum_or_constant
from hpa_fastai.evaluate.thresholds import WIDER, fit_thresholds

MANY = 300_000  # images that stand for all
SIZES = 60, 150, 600, 2000  # images of a sample
FEW = 2, 3, 5, 10  # groups, of 120 images
MODELS = dict(good=dict(skill=5.), fair=dict(), poor=dict(skill=3., noise=1.))


def groups_of(n, size):
    "The group of each image, None where each stands alone"
    return None if size == 1 else np.arange(n)//size


def all_images(model, seed=0, **more):
    "Scores and labels of so many images that they stand for all"
    return simulate_scores(MANY, seed=seed, sample=10**6, **{**model, **more})


def f1_of_all(probs, targets, thresholds):
    "The true F1 of each class"
    hits, alarms, missed = confusion_counts(probs > thresholds, targets)
    return 2*hits/np.maximum(2*hits + alarms + missed, 1)


def show(title, rows, by):
    "Print the mean of each column by setting, and over all settings"
    table = pd.DataFrame(rows).groupby(by, sort=False).mean()
    print(f'\n{title}\n{table.round(3).to_string()}', flush=True)
    worst = table.filter(regex='held').min()
    said = ', '.join(f'{name} {value:.3f}' for name, value in worst.items())
    if said: print(f'smallest of all settings: {said}', flush=True)


def intervals(runs):
    "Macro F1: the interval against the true mean F1 of the classes present"
    rows = []
    for name, model in MODELS.items():
        probs, targets = all_images(model)
        true = f1_of_all(probs, targets, .3)
        for n, size in [*product(SIZES, (1, 6)), *((120, 120//k) for k in FEW)]:
            groups = groups_of(n, size)
            for run in range(runs):
                p, t = simulate_scores(n, sample=run + 1, group_size=size, **model)
                if not t.any(): continue
                draws = bootstrap_f1(p > .3, t, groups, 300, run)
                present = t.any(0)
                low, high = f1_interval(p > .3, t, groups, draws=draws)
                alone = np.nanquantile(np.nanmean(bootstrap_f1(p > .3, t, None, 300, run), 1), [.025, .975])
                middle = np.nanquantile(np.nanmean(draws, 1), [.025, .975])
                truth = true[present].mean()
                rows.append(dict(
                    images=n, group_of=size, model=name, nominal=.95, held=low <= truth <= high,
                    draws_held=middle[0] <= truth <= middle[1], ungrouped_held=alone[0] <= truth <= alone[1],
                    all_28_held=middle[0] <= true.mean() <= middle[1], width=high - low,
                    width_of_draws=middle[1] - middle[0], bias=macro_f1(p > .3, t) - truth,
                    classes=present.sum()))
    show('1. interval of macro F1 (classes present)', rows, ['images', 'group_of', 'model'])


def classes(runs):
    "F1 of single classes: the interval against the truth, by the number of images or groups with the class"
    rows = []
    for name, model in MODELS.items():
        probs, targets = all_images(model)
        true = f1_of_all(probs, targets, .3)
        for size in (1, 6):
            for n in (300, 2000):
                for run in range(runs//2):
                    p, t = simulate_scores(n, sample=run + 1, group_size=size, **model)
                    groups, d = groups_of(n, size), p > .3
                    draws = bootstrap_f1(d, t, groups, 300, run)
                    low, high = class_intervals(d, t, draws, groups)
                    hits, alarms, missed = confusion_counts(d, t)
                    n_either = np.maximum(hits + alarms + missed, 1)
                    by_images = wilson_interval(hits/n_either, n_either)
                    by_images = 2*by_images/(1 + by_images)
                    for c in np.flatnonzero(t.any(0)):
                        n_groups = t[:, c].sum()/size
                        rows.append(dict(
                            support=next(k for k in ('1', '2', '5', '20', '100', '2000') if n_groups <= int(k)),
                            group_of=size, nominal=.95, held=low[c] <= true[c] <= high[c],
                            wilson_of_images_held=by_images[0, c] <= true[c] <= by_images[1, c]))
    rows.sort(key=lambda row: (row['group_of'], int(row['support'])))
    show('2. interval of the F1 of one class (support: up to so many images or groups)', rows, ['group_of', 'support'])


def comparisons(runs):
    "The difference of two models on the same images"
    def other(probs, run):
        noise = np.random.default_rng([run, 9]).normal(0, 1.2, probs.shape)
        return expit(.9*logit(probs) + noise)
    rows = []
    for name, model in MODELS.items():
        probs, targets = all_images(model)
        gain = f1_of_all(other(probs, 10**6), targets, .3) - f1_of_all(probs, targets, .3)
        for n in SIZES:
            for size in (1, 6):
                for run in range(runs//2):
                    p, t = simulate_scores(n, sample=run + 1, group_size=size, **model)
                    groups, q = groups_of(n, size), other(p, run)
                    low, high = compare_models(p, q, t, .3, .3, groups=groups, n_draws=300, seed=run).interval
                    draws = [bootstrap_f1(x > .3, t, groups, 300, run) for x in (p, q)]
                    middle = np.quantile(np.nanmean(draws[1] - draws[0], 1), [.025, .975])
                    truth = gain[t.any(0)].mean()
                    rows.append(dict(
                        images=n, group_of=size, nominal=.95, held=low <= truth <= high,
                        draws_held=middle[0] <= truth <= middle[1], width=high - low,
                        width_of_draws=middle[1] - middle[0], found=low > 0 or high < 0))
    show('3. interval of the difference of two models', rows, ['images', 'group_of'])


def calibration(runs):
    "`auto` leaves a calibrated model alone, and helps another"
    rows = []
    for noise in (0., .5, 1.):
        probs, targets = all_images(dict(noise=noise))
        as_it_is = log_losses(probs, targets).mean()
        for n, size in ((120, 60), (240, 60), (240, 30), (120, 6), (360, 6), (1200, 6), (360, 1), (1200, 1)):
            for run in range(max(runs//5, 4)):
                p, t = simulate_scores(n, sample=run + 1, group_size=size, noise=noise)
                chosen = calibrate(p, t, groups=groups_of(n, size))
                blind = calibrate(p, t)
                rows.append(dict(
                    noise=noise, images=n, group_of=size, left_alone=chosen.method == 'none',
                    change_of_loss=log_losses(chosen(probs), targets).mean()/as_it_is - 1,
                    ungrouped_left_alone=blind.method == 'none',
                    ungrouped_change_of_loss=log_losses(blind(probs), targets).mean()/as_it_is - 1))
    show("4. calibrate('auto') (noise 0: the model is calibrated, and is to be left alone)", rows,
         ['noise', 'images', 'group_of'])


def ranges(runs):
    "The range of a threshold against the threshold that is best for all images"
    rows = []
    for name, model in MODELS.items():
        probs, targets = all_images(model)
        n_all, n_pos = score_counts(probs, targets)
        tp = counts_above(n_pos)
        f1 = f1_of_counts(tp, counts_above(n_all) - tp, tp[:, :1])
        smooth = pd.DataFrame(f1.T).rolling(9, center=True, min_periods=1).mean().to_numpy().T
        best = 28*(smooth.argmax(1) + 0.)/560 - 14
        true = dict(auto=best, crossfit=best, f1=best, constant=logit(best_constant(probs, targets)),
                    prevalence=logit(match_prevalence(probs, targets.mean(0))))
        for method, at in true.items():
            for n, size in ((120, 1), (600, 1), (2000, 1), (600, 6), (2000, 6)):
                for run in range(max(runs//20, 3)):
                    p, t = simulate_scores(n, sample=run + 1, group_size=size, **model)
                    th = fit_thresholds(p, t, method, groups=groups_of(n, size), folds=0)
                    low, value, high = logit(th.low), logit(th.values), logit(th.high)
                    narrow_low, narrow_high = value + (low - value)/WIDER, value + (high - value)/WIDER
                    blind = fit_thresholds(p, t, method, folds=0)
                    ends = (logit(end) - logit(blind.values) for end in (blind.low, blind.high))
                    blind_low, blind_high = (value + end/WIDER for end in ends)
                    known = slice(None) if method in ('auto', 'constant') else t.any(0)
                    doubtful = th.undecided(p)
                    sure = ~(th.predict(p) & ~doubtful).any(1) & doubtful.any(1)
                    rows.append(dict(
                        method=method, images=n, group_of=size, nominal=.8,
                        held=((low <= at) & (at <= high))[known].mean(),
                        draws_held=((narrow_low <= at) & (at <= narrow_high))[known].mean(),
                        ungrouped_draws_held=((blind_low <= at) & (at <= blind_high))[known].mean(),
                        width_in_logits=(high - low)[known].mean(), uncertain=sure.mean()))
    show('5. range of a threshold', rows, ['method', 'images', 'group_of'])


def prior(runs):
    "Expected F1 and thresholds where the classes are more or less frequent than here"
    rows = []
    for factor in (.1, .33, 1., 3.):
        base = simulate_scores(MANY, noise=0)[1].mean(0)
        later = (base*factor).clip(.0005, .6)
        probs, targets = all_images({}, prevalence=later)
        best = macro_f1(probs > optimum_or_constant(probs, targets), targets)
        for n, size in ((600, 1), (1200, 6)):
            for method in ('auto', 'f1', 'prevalence'):
                for run in range(max(runs//10, 4)):
                    p, t = simulate_scores(n, sample=run + 1, group_size=size)
                    groups = groups_of(n, size)
                    th = fit_thresholds(p, t, method, prevalence=later, groups=groups)
                    blind = fit_thresholds(p, t, method, groups=groups)
                    true = f1_of_all(probs, targets, th.values)
                    there = t.any(0)
                    ranks = match_prevalence(p, later)
                    rows.append(dict(
                        times_as_frequent=factor, images=n, group_of=size, method=method, expected=th.expected_f1,
                        true=true[there].mean(), expected_here=blind.expected_f1, true_28=true.mean(),
                        of_ranks_28=f1_of_all(probs, targets, ranks).mean() if method == 'prevalence' else np.nan,
                        best_possible_28=best))
    show('6. expected F1 and thresholds under other frequencies', rows,
         ['times_as_frequent', 'images', 'group_of', 'method'])


def error(runs):
    "Calibration error of a calibrated model, beside what a perfect one is said to read"
    rows = []
    for n in SIZES:
        for size in (1, 6):
            for run in range(max(runs//5, 4)):
                p, t = simulate_scores(n, sample=run + 1, group_size=size, noise=0)
                groups, row = groups_of(n, size), dict(images=n, group_of=size)
                for by_class in (False, True):
                    name = 'by_class' if by_class else 'pooled'
                    row |= {name: calibration_error(p, t, by_class=by_class),
                            f'{name}_perfect': perfect_calibration_error(p, t, groups, by_class=by_class)}
                rows.append(row)
    show('7. calibration error of a calibrated model', rows, ['images', 'group_of'])


def monitor(runs):
    "False alarms of the monitor, and what it finds"
    print('\n8. the monitor of new pictures', flush=True)
    monitor_rates(4*runs)


def flags(runs):
    "Usual pictures that get the flag `unlike-training`"
    print('\n9. the flag unlike-training', flush=True)
    flag_rates(max(runs//2, 10))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = dict(intervals=intervals, classes=classes, comparisons=comparisons, calibration=calibration, ranges=ranges,
                 prior=prior, error=error, monitor=monitor, flags=flags)
    p.add_argument('--runs', type=int, default=100, help='samples in each setting of the intervals; fewer elsewhere')
    p.add_argument('--only', nargs='+', choices=list(parts), default=list(parts), help='parts to run')
    a = p.parse_args()
    for name in a.only:
        start = time.perf_counter()
        parts[name](a.runs)
        print(f'({time.perf_counter() - start:.0f} s)', flush=True)


if __name__ == '__main__': main()
