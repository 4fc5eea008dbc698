"""What a summary by protein is worth, on simulated proteins that a model has not seen.

A network is trained on one atlas. It predicts another one of proteins, each with four antibodies in three cell lines
and two fields of view of each, and macro F1 is counted by field of view and by protein, with the same model and the
same thresholds. Then it predicts the cells of an atlas in which some proteins vary between cells: some cells show
another location, no protein, or less of it. The area under the ROC curve says how well the ranking by spatial variation
finds those that are elsewhere, among proteins that do not vary and among each of the other kinds. At the end, 100,000
fields of view are summarised.

    python benchmarks/proteins.py [--minutes 4] [--seed 0] [--difficulty atlas]
"""
import argparse
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from hpa_fastai.all import HPA28, evaluate, find_images, predict, predict_cells, simulate_atlas, train_model
from hpa_fastai.cells.proteins import summarise_proteins
from hpa_fastai.cells.variation import cell_variation
from hpa_fastai.deploy.tables import with_labels

warnings.filterwarnings('ignore')


def named(texts):
    "Bool, rows × classes, of names with | between them"
    return np.array([[c in text.split('|') for c in HPA28.classes] for text in texts])


def by_field_and_by_protein(model, folder, n_proteins, seed, difficulty):
    truth = simulate_atlas(folder/'proteins', n=24*n_proteins, size=256, seed=seed+1000, balance='even',
                           difficulty=difficulty, per_protein=(4, 3, 2), progress=False)
    predictions = predict(folder/'proteins'/'train', model, progress=False)
    truth = truth.set_index('Id').loc[predictions.Id].reset_index()
    fields = evaluate(predictions[list(HPA28.classes)].to_numpy(float), HPA28.encode(truth.Target)>0, labels=HPA28,
                      preds=HPA28.encode(predictions.Predicted)>0, groups=truth.gene)
    start = time.perf_counter()
    found = summarise_proteins(predictions, layout=truth)
    seconds = time.perf_counter()-start
    proteins = evaluate(found[list(HPA28.classes)].to_numpy(float), named(found.known), labels=HPA28,
                        preds=named(found.main+'|'+found.additional))
    print(f'macro F1 of {len(predictions)} fields of view {fields.macro_f1:.3f}, of {len(found)} proteins '
          f'{proteins.macro_f1:.3f}: {proteins.macro_f1-fields.macro_f1:+.3f}; summarised in {seconds:.2f} s')
    print(f'agreement of antibodies and cell lines {found.agreement.mean():.2f}, of those that are wrong '
          f'{found.agreement[found.match<1].mean():.2f}', flush=True)


def variation(model, folder, n_proteins, seed, difficulty):
    truth = simulate_atlas(folder/'varied', n=12*n_proteins, size=256, seed=seed+2000, balance='even',
                           difficulty=difficulty, per_protein=(2, 3, 2), variation=.75, masks=True, progress=False)
    cells = predict_cells(model, folder/'varied'/'train', folder/'varied'/'masks', prior=0, progress=False)
    kind = truth.groupby('gene').variation.first()
    for images in (find_images(folder/'varied'/'train'), None):
        found = cell_variation(cells, layout=truth, images=images).set_index('gene')
        its = kind[found.index]
        known = found.spatial.notna()
        print(f'\nbrightness {"measured" if images is not None else "not known"}: {len(cells)} cells of {len(found)} '
              f'proteins, {known.sum()} with enough cells that have signal')
        for other in ('', 'absent', 'brightness'):
            pair = known & its.isin(['pattern', other])
            auroc = roc_auc_score(its[pair]=='pattern', found.spatial[pair])
            print(f'  another location found among {"proteins that do not vary" if not other else other}: '
                  f'AUROC {auroc:.3f} ({(its[pair]=="pattern").sum()} and {(its[pair]!="pattern").sum()} proteins)')
        if images is None: continue
        for column, other in (('without_signal', 'absent'), ('intensity', 'brightness')):
            pair = its.isin([other, ''])
            print(f'  {other} found by {column}: AUROC {roc_auc_score(its[pair]==other, found[column][pair]):.3f}')
        print(found.groupby(its)[['spatial', 'without_signal', 'intensity']].mean().round(3).to_string(), flush=True)


def many_fields(n=100_000):
    rng = np.random.default_rng(0)
    gene = rng.integers(0, n//8, n)
    antibody = 4*gene+rng.integers(0, 4, n)
    probs = rng.beta(.3, 3, (n, 28))
    table = pd.DataFrame(probs, columns=list(HPA28.classes)).assign(
        Id=[f'{a}_{i}_A1_1' for i, a in enumerate(antibody)], Predicted=HPA28.decode(probs>.5), flags='', error='',
        Names=['|'.join(o) for o in HPA28.to_names(probs>.5)], gene=[f'G{g}' for g in gene],
        antibody=antibody.astype(str), cell_line=rng.choice(['U-2 OS', 'HeLa', 'A-431'], n))
    start = time.perf_counter()
    found = summarise_proteins(with_labels(table, HPA28))
    print(f'\n{n:,} fields of view of {len(found):,} proteins summarised in {time.perf_counter()-start:.1f} s')


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--minutes', type=float, default=4., help='of training')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--difficulty', choices=('atlas', 'easy'), default='atlas')
    p.add_argument('--n', type=int, default=1200, help='fields of view to train on')
    p.add_argument('--proteins', type=int, default=60, help='to predict')
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        simulate_atlas(d/'train', n=a.n, size=256, seed=a.seed, balance='even', difficulty=a.difficulty, progress=False)
        train_model(d/'train', d/'model', group='antibody', arch='smallresnet', size=192, minutes=a.minutes,
                    seed=a.seed, cache=d/'cache', progress=False)
        by_field_and_by_protein(d/'model', d, a.proteins, a.seed, a.difficulty)
        variation(d/'model', d, a.proteins, a.seed, a.difficulty)
    many_fields()


if __name__ == '__main__': main()
