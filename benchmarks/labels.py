"Reading and encoding of label tables, beside a plain pandas loop"
import argparse, time
import numpy as np, pandas as pd
from hpa_fastai.data.labels import *
from hpa_fastai.data.label_tables import *

def plain(cells):
    "What one writes without a package: split every string."
    onehot = np.zeros((len(cells), 28), np.uint8)
    for row,cell in zip(onehot, cells): row[[int(t) for t in cell.split()]] = 1
    return onehot

def best(f, repeats):
    "Shortest time of some runs, and the result."
    times = []
    for _ in range(repeats):
        t = time.perf_counter()
        out = f()
        times.append(time.perf_counter()-t)
    return min(times), out

def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--real-data', help='folder with labels/hpav18.csv and labels/kaggle2018_train.csv')
    p.add_argument('--repeats', type=int, default=5)
    a = p.parse_args()
    rng = np.random.default_rng(0)
    tables = {'100,000 random label sets': HPA28.decode(rng.random((100_000, 28))<.08)}
    if a.real_data:
        real = [read_labels(f'{a.real_data}/labels/{n}.csv').Target for n in ('kaggle2018_train', 'hpav18')]
        tables['100,000 rows of 2018 and HPAv18'] = list(pd.concat(real)[:100_000])
    for name,cells in tables.items():
        t, onehot = best(lambda: HPA28.encode(cells), a.repeats)
        tp, other = best(lambda: plain(cells), a.repeats)
        td, _ = best(lambda: HPA28.decode(onehot), a.repeats)
        assert (onehot==other).all()
        print(f'{name} ({len(set(cells))} distinct): encode {t:.3f} s, plain loop {tp:.3f} s, decode {td:.3f} s')
    if a.real_data:
        for n, ls in (
            ('kaggle2018_train', 'hpa28'),
            ('hpav18', 'hpa28'),
            ('kaggle2021_train', 'hpa19'),
            ('zero_to_gans_train', 'ztg10'),
        ):
            path = f'{a.real_data}/labels/{n}.csv'
            t, df = best(lambda: read_labels(path, ls), a.repeats)
            tp, _ = best(lambda: pd.read_csv(path), a.repeats)
            print(f'{n}: {len(df)} rows read and checked in {t:.3f} s, pandas.read_csv alone {tp:.3f} s')

if __name__=='__main__': main()
