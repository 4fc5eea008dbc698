"""Every threshold method side by side: on real score tables, on small validation sets, on made-believe models, and
by the clock.

    python benchmarks/thresholds.py --real-data DIR [--repeats 20] [--scores FILE.npz ...]

Cross-fitting: the labelled images are cut into five random parts; thresholds fitted on four are applied to the
fifth. The pooled predictions of all images are scored once with macro F1 (the organisers': over the whole set,
classes present in the truth), which gives one figure a repeat. Only labels and scores of the four parts are
used; unlabelled images and training prevalences are not. Intervals: 95 %, of the difference to the best simple
method, by repeats (over random cuts of the same images, not over new images).
"""
import argparse, time
from pathlib import Path
import numpy as np, pandas as pd
from hpa_fastai.data.labels import HPA28
from hpa_fastai.evaluate.metrics import macro_f1, simulate_scores
from hpa_fastai.evaluate.threshold_methods import f1_optimum
from hpa_fastai.evaluate.thresholds import fit_thresholds, THRESHOLD_METHODS

fit = lambda p, t, method: fit_thresholds(p, t, method, folds=0).values
WAYS = {f'constant {c}': (lambda p, t, c=c: fit(p, t, c)) for c in (0.5, 0.15, 0.3)} | {
    'best constant': lambda p, t: fit(p, t, 'constant'),
    'optimum': lambda p, t: fit(p, t, 'f1'),
    'optimum × 0.7': lambda p, t: 0.7 * fit(p, t, 'f1'),
    'prevalence': lambda p, t: fit(p, t, 'prevalence'),
    '100 cross-fitted optima': lambda p, t: fit(p, t, 'crossfit'),
    'auto': lambda p, t: fit(p, t, 'auto'),
}


def load(real, files):
    known = pd.read_csv(real/'scores/known_labels.csv', dtype=str)
    targets = HPA28.encode(known.Target).astype(bool)
    for f in files or sorted((real/'scores').glob('*.npz')):
        z = np.load(f, allow_pickle=True)     # the published tables keep their ids as Python strings
        yield Path(f).stem, z['scores'][pd.Index(z['ids'].astype(str)).get_indexer(known.Id)], targets


def crossfit(p, t, way, repeat):
    fold, preds = np.random.default_rng(repeat).permutation(len(p)) % 5, np.zeros_like(t)
    for k in range(5): preds[fold == k] = p[fold == k].astype(float) > way(p[fold != k], t[fold != k])
    return macro_f1(preds, t)


def small(p, t, way, n, repeat):
    order = np.random.default_rng(repeat).permutation(len(p))
    a, b = order[:n], order[n:]
    return macro_f1(p[b].astype(float) > way(p[a], t[a]), t[b])


def row(x, base):
    d = x - base
    return f'{x.mean():.4f}  [{d.mean():+.4f} ± {1.96*d.std(ddof=1)/np.sqrt(len(d)):.4f}]'


def real_tables(tables, repeats):
    out = {
        name: {w: np.array([crossfit(p, t, f, r) for r in range(repeats)]) for w, f in WAYS.items()}
        for name, p, t in tables
    }
    print(
        f'\nFive-fold cross-fitting, {repeats} repeats: mean macro F1 [difference to the best other method on that '
        'table]'
    )
    show = {}
    for name, res in out.items():
        best = max((w for w in res if w != 'auto'), key=lambda w: res[w].mean())
        show[name] = {w: row(x, res[best]) for w, x in res.items()}
    print(pd.DataFrame(show).to_string())
    print(f"auto, mean over tables: {np.mean([r['auto'].mean() for r in out.values()]):.4f}")


def small_sets(tables, repeats):
    print(
        f'\nSmall validation sets, {repeats} draws, applied to the rest: mean macro F1 [difference to the best '
        'constant]'
    )
    for n in (60, 120, 300):
        show = {}
        for name, p, t in tables:
            res = {w: np.array([small(p, t, f, n, r) for r in range(repeats)]) for w, f in WAYS.items()}
            show[name] = {w: row(x, res['best constant']) for w, x in res.items()}
        print(f'{n} images\n{pd.DataFrame(show).to_string()}')


def make_believe(models):
    rows = []
    for seed in range(models):
        skill, noise = (3.5, 4., 5.)[seed % 3], (0., .5, 1.)[seed//3 % 3]
        p, t = simulate_scores(24000, skill=skill, noise=noise, seed=1000 + seed)
        top = macro_f1(p[4000:] > f1_optimum(p[4000:], t[4000:]), t[4000:])
        rows += [
            dict(n=n, way=w, loss=top - macro_f1(p[4000:] > f(p[:n], t[:n]), t[4000:]))
            for n in (60, 120, 300, 600, 4000)
            for w, f in WAYS.items()
        ]
    print(
        f'\n{models} make-believe models (`simulate_scores`): macro F1 lost against the best possible thresholds, by '
        'labelled images'
    )
    print(pd.DataFrame(rows).pivot_table(index='way', columns='n', values='loss').loc[list(WAYS)].round(4).to_string())


def speed():
    p, t = simulate_scores(31072)
    p = p.astype(np.float32)
    print('\nSeconds for 31,072 × 28, best of three: the fit alone, and with the cross-fitted expected F1')
    for method in THRESHOLD_METHODS:
        took = []
        for folds in (0, 5):
            runs = []
            for _ in range(3):
                start = time.perf_counter()
                fit_thresholds(p, t, method, folds=folds)
                runs.append(time.perf_counter() - start)
            took.append(min(runs))
        print(f'{method:12} {took[0]:.2f}  {took[1]:.2f}')


if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--real-data', type=Path, help='folder with scores/*.npz and scores/known_labels.csv')
    ap.add_argument('--scores', nargs='*', help='other score tables of the same images')
    ap.add_argument('--repeats', type=int, default=20)
    ap.add_argument('--models', type=int, default=12, help='make-believe models')
    a = ap.parse_args()
    if a.real_data:
        tables = list(load(a.real_data, a.scores))
        real_tables(tables, a.repeats)
        small_sets(tables, a.repeats)
    make_believe(a.models)
    speed()
