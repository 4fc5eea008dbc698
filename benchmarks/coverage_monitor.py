"""Do the monitor and the flag `unlike-training` keep the level that they promise? Nominal and measured, by simulation.

    python benchmarks/coverage_monitor.py [--runs 400] [--only monitor|flags]

The monitor: a reference of 200 validation images and a run of the same kind, drawn again and again; every alarm is
false. Half of the variance of every trait, and three quarters of what decides a name, lies between groups: antibodies
of six images, or wells of 30. `found` is the share of runs in which a protein channel at 60 % brightness is reported.
The monitor also says which differences it would have noticed in four of five cases: `dark`, `unlike` and `name` are the
shares of runs with just such a difference (of a protein channel, of pictures unlike training, of a name that one
picture in ten has) in which it is reported, where one was named.

The flag: distances of training, validation and new pictures of one kind, from a cloud that is fitted to the training
pictures as a model does it; `measured` is the share of new pictures that get the flag, on average over models, and
`worst` that of the worst model in twenty.
"""
import argparse
import re
from collections import defaultdict
from dataclasses import fields
from types import SimpleNamespace
import numpy as np, pandas as pd
from scipy.stats import chi2, norm
from hpa_fastai.data.labels import HPA28, LabelSet
from hpa_fastai.evaluate.flags import Flagger
from hpa_fastai.evaluate.reference import Reference
from hpa_fastai.interpret.drift import compare_run


class Quick(LabelSet):
    "The 28 classes, for tables of numbers alone"
    def encode(self, column):
        onehot = np.zeros((len(column), 28), np.uint8)
        for i, cell in enumerate(column): onehot[i, [int(k) for k in cell.split()]] = 1
        return onehot


LABELS = Quick(**{f.name: getattr(HPA28, f.name) for f in fields(HPA28) if f.init})
TRAITS = dict(red=.5, green=.6, blue=.5, yellow=.5, sharpness=.3, unlikeness=.3)  # standard deviations of logarithms
SHARES = np.linspace(.02, .4, 28)  # of the images that get each name
SHARES[6] = .1
PLATE_IDS = dict(antibody='{g}_1_A1_{i}', other='scan{g}x{i}')  # Ids that name their group, and Ids that do not


def grouped(rng, groups, shape, icc):
    "Normal numbers of variance 1, of which `icc` lies between groups"
    groups = np.unique(groups, return_inverse=True)[1]
    between = rng.normal(size=(groups.max() + 1, shape))[groups]
    return np.sqrt(icc)*between + np.sqrt(1 - icc)*rng.normal(size=(len(groups), shape))


def pictures(rng, groups, icc, dim=1., unlike=.05, name=.1):
    "Traits and decisions of pictures, in groups, with the share of those unlike training and of those with a name"
    z = grouped(rng, groups, len(TRAITS), icc)
    traits = {name: sd*z[:, k] for k, (name, sd) in enumerate(TRAITS.items())}
    traits['green'] = traits['green'] + np.log(dim)
    traits['unlikeness'] = np.exp(traits['unlikeness'] - 1 + TRAITS['unlikeness']*(norm.ppf(unlike) - norm.ppf(.05)))
    shares = np.where(np.arange(28) == 6, name, SHARES)
    return traits, grouped(rng, groups, 28, 1.5*icc) > norm.ppf(1 - shares)


def stated_differences(noticed):
    "The kind of each difference that is said to be noticed, and the pictures that have it"
    said = dict(dark=('brightness', 'dim', r'(\d+)% in the protein channel'),
                unlike=('unlikeness', 'unlike', r'(\d+)% of the pictures unlike'),
                name=('names', 'name', r'a name that is given to 10 % .* from (\d+)% on'))
    found = {column: (kind, what, re.search(text, noticed)) for column, (kind, what, text) in said.items()}
    return {column: (kind, {what: min(int(match[1])/100, .999)})
            for column, (kind, what, match) in found.items() if match}


def predictions(rng, groups, decisions, ids):
    "A table of predictions"
    flags = np.where(grouped(rng, groups, 1, .5)[:, 0] > norm.ppf(.99), 'saturated', '')
    table = pd.DataFrame(dict(
        Id=[ids.format(g=g, i=i) for i, g in enumerate(groups)],
        Predicted=[' '.join(map(str, np.flatnonzero(row))) for row in decisions], Names='as above', flags=flags,
        error='', well=groups))
    return pd.concat([table, pd.DataFrame(decisions.astype(float), columns=list(HPA28.classes))], axis=1)


WELLS, FEW = np.repeat(np.arange(8), 30), np.repeat(np.arange(3), 30)
ALONE, SIXES, TWELVE = np.arange(120), np.repeat(np.arange(20), 6), np.repeat(np.arange(12), 10)
SETTINGS = {  # groups of the run, correlation in it, Ids, group=, whether the model knows the groups of its own images
    '120 independent images, nothing said': (ALONE, 0., 'other', None, True),
    '20 antibodies of 6, HPA Ids': (SIXES, .5, 'antibody', None, True),
    '20 antibodies of 6, other Ids, group=': (SIXES, .5, 'other', 'well', True),
    '20 antibodies of 6, other Ids, nothing said': (SIXES, .5, 'other', None, True),
    '12 wells of 10, group=': (TWELVE, .5, 'other', 'well', True),
    '8 wells of 30, HPA Ids': (WELLS, .5, 'antibody', None, True),
    '8 wells of 30, other Ids, group=': (WELLS, .5, 'other', 'well', True),
    '8 wells of 30, other Ids, nothing said': (WELLS, .5, 'other', None, True),
    '8 wells of 30, group=, more alike (0.66)': (WELLS, .66, 'other', 'well', True),
    '8 wells of 30, group=, model without groups': (WELLS, .5, 'other', 'well', False),
    '3 wells of 30, group=': (FEW, .5, 'other', 'well', True),
}


def monitor_rates(runs=400, alpha=.05, seed=0, word=''):
    "False alarms of a run of the same kind, and how often a dark channel is found, by setting with that word"
    rows = []
    for setting, (groups, icc, ids, group, known) in SETTINGS.items():
        if word not in setting: continue
        rng, alarms, found = np.random.default_rng(seed), [], defaultdict(list)
        of_model = np.arange(200) if not icc else np.arange(200)//6
        for i in range(runs):
            traits, decisions = pictures(rng, of_model, min(icc, .5))
            ref = Reference.fit(traits, decisions, of_model if known else np.arange(200))
            bundle = SimpleNamespace(config=dict(reference=vars(ref)), labels=LABELS,
                                     settings=SimpleNamespace(mean=None, source=False))
            def compare(**change):
                traits, decisions = pictures(rng, groups, icc, **change)
                table = predictions(rng, groups, decisions, PLATE_IDS[ids])
                return compare_run(table, table.Id.tolist(), traits, bundle, alpha, group)
            usual = compare()
            alarms.append(bool(usual.kinds))
            if i >= 100: continue  # a hundred runs are enough for the others
            changes = dict(found=('brightness', dict(dim=.6)), **stated_differences(usual.noticed))
            for column, (kind, change) in changes.items(): found[column].append(kind in compare(**change).kinds)
        rates = {column: f'{np.mean(found[column]):.0%}' if found[column] else '–'
                 for column in ('found', 'dark', 'unlike', 'name')}
        rows.append(dict(setting=setting, nominal=f'{alpha:.0%}', measured=f'{np.mean(alarms):.1%}', **rates))
        print(pd.DataFrame(rows[-1:]).to_string(index=False, header=len(rows) == 1), flush=True)
    return pd.DataFrame(rows)


def draw_pictures(rng, kind, groups, mix):
    "Embeddings and figures of pictures: normal, with heavy tails, or one in ten from another cluster"
    wide, tall = mix
    icc = .5 if len(set(groups)) < len(groups) else 0
    x, y, u = (grouped(rng, groups, k, icc) for k in (len(wide), len(tall), 1))
    u = norm.cdf(u[:, 0])
    stretch = dict(normal=np.ones(len(u)), heavy=1/np.sqrt(chi2.ppf(u, 5)/5), clusters=np.where(u > .9, 1.7, 1.))[kind]
    return (x*wide)*stretch[:, None], (y*tall)*stretch[:, None]


def flag_rates(models=60, n_new=3000, seed=0):
    "Share of new pictures of the same kind that are flagged unlike-training, by setting"
    rows = []
    for size in (1, 6):
        for kind in ('normal', 'heavy', 'clusters'):
            for dim in (64, 512):
                for n in (30, 60, 120, 300):
                    rng, rates = np.random.default_rng(seed), []
                    mix = 1/np.sqrt(np.arange(1, dim + 1)), np.ones(26)
                    for _ in range(models):
                        train, valid, new = (draw_pictures(rng, kind, np.arange(m)//s, mix)
                                             for m, s in ((4*n, size), (n, size), (n_new, 1)))
                        measured = [SimpleNamespace(embeddings=x, figures=y, saturation=np.zeros(len(x)))
                                    for x, y in (train, valid)]
                        flagger = Flagger.fit(*measured, np.arange(n)//size)
                        rates.append((flagger.unlikeness(None, *new) > 1).mean())
                    rows.append({'images in a group': size, 'pictures': kind, 'embedding': dim, 'validation': n,
                                 'nominal': '1%', 'measured': f'{np.mean(rates):.1%}',
                                 'worst': f'{np.quantile(rates, .95):.1%}'})
                    print(pd.DataFrame(rows[-1:]).to_string(index=False, header=len(rows) == 1), flush=True)
    return pd.DataFrame(rows)


if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--runs', type=int, default=400, help='of the monitor, a setting')
    ap.add_argument('--models', type=int, default=60, help='with flags, a setting')
    ap.add_argument('--alpha', type=float, default=.05, help='promised rate of false alarms of the monitor')
    ap.add_argument('--setting', default='', metavar='WORD', help='of the monitor, only those with this word')
    ap.add_argument('--only', choices=('monitor', 'flags'))
    a = ap.parse_args()
    if a.only != 'flags': print(monitor_rates(a.runs, a.alpha, word=a.setting).to_string(index=False))
    if a.only != 'monitor': print(flag_rates(a.models).to_string(index=False))
