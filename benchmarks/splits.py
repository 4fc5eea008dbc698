"Stratified splits in five: how even, how fast, how much memory, beside iterative-stratification and scikit-learn"
import argparse, subprocess, sys, time
import numpy as np, pandas as pd
from hpa_fastai.data.labels import *
from hpa_fastai.data.label_tables import *
from hpa_fastai.batches.splits import *

def ours(df, group): return stratified_folds(df, 5, group=group)

def iterative(df, group):
    "iterative-stratification; it knows no groups."
    from iterstrat.ml_stratifiers import MultilabelStratifiedKFold
    onehot, fold = HPA28.encode(df.Target), np.zeros(len(df), int)
    for i, (_, valid) in enumerate(MultilabelStratifiedKFold(5, shuffle=True, random_state=0).split(onehot, onehot)):
        fold[valid] = i
    return fold

def sklearn(df, group):
    "StratifiedGroupKFold of scikit-learn, which takes one class an image: here its label set."
    import warnings
    from sklearn.model_selection import StratifiedGroupKFold
    fold = np.zeros(len(df), int)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for i, (_, valid) in enumerate(
            StratifiedGroupKFold(5).split(df, pd.factorize(df.Target)[0], group_codes(df, group))
        ):
            fold[valid] = i
    return fold

def floor(sizes):
    "The least mean and largest relative deviation of five folds of groups whose sizes are multiples of one number."
    unit, total = np.gcd.reduce(sizes), sizes.sum()
    folds = np.full(5, total//unit//5)
    folds[:total//unit%5] += 1
    off = np.abs(folds*unit/(total/5)-1)
    return off.mean(), off.max()

def quality(df, fold, group):
    onehot, codes = HPA28.encode(df.Target), group_codes(df, group)
    c, sizes = np.stack([onehot[fold==f].sum(0, dtype=int) for f in range(5)]), np.bincount(fold, minlength=5)
    due = c.sum(0)/5
    off = np.abs(c/due-1)
    least = np.array([floor(np.unique(codes[onehot[:,k]>0], return_counts=True)[1]) for k in range(28)])
    free = least[:,1]<=.15
    return (
        {
            'sizes off': np.abs(sizes / sizes.mean() - 1).max(),
            'images off': np.abs(c - due).max(),
            'mean off': off.mean(),
            'largest off': off.max(),
            'mean, free classes': off[:, free].mean(),
            'largest, free classes': off[:, free].max(),
            'class missing from fold': int((c == 0).sum()),
            'groups divided': int((pd.Series(fold).groupby(codes).nunique() > 1).sum()),
        },
        least,
        free,
    )

def memory(real_data, name):
    "Most memory that a fresh process held which reads the table and splits it, in MB (Linux)."
    code = ("import sys; sys.path.insert(0, %r); import splits as b; from hpa_fastai.batches.splits import *\n"
            "df, group = b.tables(%r)[%r](); stratified_folds(df, 5, group=group)\n"
            "print(next(l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')))")
    out = subprocess.run(
        [sys.executable, '-c', code % (sys.path[0], real_data, name)], capture_output=True, text=True, check=True
    )
    return int(out.stdout)/1024

def tables(real_data):
    read = lambda name: read_labels(f'{real_data}/labels/{name}.csv')
    return {
        '2018 (no groups)': lambda: (read('kaggle2018_train'), None),
        'HPAv18 (antibodies)': lambda: (read('hpav18'), antibody_of),
        '2018 and HPAv18': lambda: (
            pd.concat([read('kaggle2018_train'), read('hpav18')], ignore_index=True),
            antibody_of,
        ),
    }

def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--real-data', required=True, help='folder with labels/kaggle2018_train.csv and labels/hpav18.csv')
    p.add_argument('--repeats', type=int, default=3, help='runs of each; the best time is given')
    a = p.parse_args()
    for name,table in tables(a.real_data).items():
        (df, group), rows = table(), {}
        for f in (ours, sklearn if group else iterative):
            best = np.inf
            for _ in range(a.repeats):
                t = time.perf_counter()
                fold = f(df, group)
                best = min(best, time.perf_counter()-t)
            q, least, free = quality(df, fold, group)
            rows[
                {'ours': 'hpa_fastai', 'iterative': 'iterative-stratification', 'sklearn': 'StratifiedGroupKFold'}[
                    f.__name__
                ]
            ] = dict(seconds=best, **q)
        r = pd.DataFrame(rows)
        r = r.astype(object)
        for k in r.index:
            r.loc[k] = [
                f'{v:.2%}'
                if 'off' in k and 'images' not in k or 'free' in k
                else f'{v:.2f}'
                if k in ('seconds', 'images off')
                else str(int(v))
                for v in r.loc[k]
            ]
        print(f'\n{name}: {len(df)} rows, {len(np.unique(group_codes(df, group)))} groups')
        print(r.to_string())
        print(
            f'no split can do better than: mean off {least[:, 0].mean():.2%}, largest off {least[:, 1].max():.2%}'
            + ''.join(
                f'; {HPA28.classes[k]} cannot be within 15 % (at least {least[k, 1]:.1%})'
                for k in np.flatnonzero(~free)
            )
        )
        print(f'memory of the whole process, Python and libraries included: {memory(a.real_data, name):.0f} MB at most')

if __name__=='__main__': main()
