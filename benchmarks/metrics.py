"""Time of the metrics for the whole 2018 training table (31,072 × 28), beside scikit-learn's.

    python benchmarks/metrics.py
"""
import argparse, time
import numpy as np
from sklearn.metrics import average_precision_score, f1_score, precision_recall_fscore_support
from hpa_fastai.evaluate.metrics import class_table, f1_interval, macro_f1, micro_f1, sample_f1, simulate_scores


def best_of(f, n):
    runs = []
    for _ in range(n):
        start = time.perf_counter()
        f()
        runs.append(time.perf_counter() - start)
    return 1000*min(runs)


if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--images', type=int, default=31072)
    a = ap.parse_args()
    probs, targets = simulate_scores(a.images)
    probs = probs.astype(np.float32)
    preds = probs > .5
    ours = {
        'macro_f1': (
            lambda: macro_f1(preds, targets),
            lambda: f1_score(targets, preds, average='macro', zero_division=0),
        ),
        'micro_f1': (lambda: micro_f1(preds, targets), lambda: f1_score(targets, preds, average='micro')),
        'sample_f1': (
            lambda: sample_f1(preds, targets),
            lambda: f1_score(targets, preds, average='samples', zero_division=1),
        ),
        'class_table with average precision': (
            lambda: class_table(preds, targets, probs=probs),
            lambda: (
                precision_recall_fscore_support(targets, preds, zero_division=0),
                average_precision_score(targets, probs, average=None),
            ),
        ),
        'f1_interval, 500 draws': (lambda: f1_interval(preds, targets), None),
    }
    print(f'{a.images:,} × 28, milliseconds, best of five (of two for scikit-learn)')
    for name, (f, sk) in ours.items():
        print(f"{name:36} {best_of(f, 5):8.1f}   scikit-learn {f'{best_of(sk, 2):8.1f}' if sk else '       –'}")
