"""Calibration error before and after: a network trained on a simulated atlas, and the real score tables.

    python benchmarks/calibration.py [--real-data DIR]

A small convolutional network is trained with focal loss on half of a simulated atlas; the other half calibrates
it, cross-fitted in five parts, so that no image's own label takes part in its calibration. The error is over
all image–class decisions, in 15 bins of equally many; 'equal width' is the other common definition, in 15 bins
of equal width.
"""
import argparse, tempfile
from pathlib import Path
import numpy as np, pandas as pd
from hpa_fastai.evaluate.calibration import calibrate, calibration_error, crossfit_calibration, log_losses
from hpa_fastai.data.labels import HPA28


def atlas_scores(n, size, epochs, seed):
    import torch
    from torch import nn
    from PIL import Image
    from hpa_fastai.train.losses import SigmoidFocalLoss
    from hpa_fastai.simulate.atlas import simulate_atlas
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as d:
        table = simulate_atlas(d, n=n, size=size, seed=seed, difficulty='easy')
        x = np.stack(
            [
                np.stack([np.asarray(Image.open(f'{d}/train/{i}_{c}.png')) for c in ('red', 'green', 'blue', 'yellow')])
                for i in table.Id
            ]
        )
    x, y = torch.tensor(x).float()/255, torch.tensor(HPA28.encode(table.Target)).float()
    x = (x - x.mean((2, 3), keepdim=True))/(x.std((2, 3), keepdim=True) + .02)
    block = lambda i, o: [nn.Conv2d(i, o, 3, padding=1, stride=2), nn.BatchNorm2d(o), nn.ReLU()]
    net = nn.Sequential(
        *block(4, 24),
        *block(24, 48),
        *block(48, 64),
        *block(64, 96),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(96, 28),
    )
    order, loss = torch.randperm(n), SigmoidFocalLoss()
    train, test = order[:n//2], order[n//2:]
    opt = torch.optim.AdamW(net.parameters(), 3e-3)
    for _ in range(epochs):
        for i in train[torch.randperm(len(train))].split(50):
            opt.zero_grad()
            loss(net(x[i]), y[i]).backward()
            opt.step()
    net.eval()
    with torch.no_grad(): return torch.sigmoid(net(x[test])).numpy(), y[test].numpy().astype(bool)


def equal_width(p, t, bins=15):
    p, t = p.ravel(), t.ravel()
    b = np.minimum((p*bins).astype(int), bins - 1)
    return np.abs(np.bincount(b, p, bins) - np.bincount(b, t, bins)).sum()/len(p)


def report(name, p, t, repeats=5):
    print(f'\n{name}: {len(p)} images; `auto` chooses {calibrate(p, t).method!r} on all of them')
    rows = {'before': [(calibration_error(p, t), equal_width(p, t), log_losses(p, t).mean())]}
    for method in ('auto', 'temperature', 'platt', 'isotonic'):
        rows[method] = []
        for r in range(repeats):
            q = crossfit_calibration(p, t, method, seed=r)
            rows[method].append((calibration_error(q, t), equal_width(q, t), log_losses(q, t).mean()))
    print(
        pd.DataFrame(
            {k: np.mean(v, 0) for k, v in rows.items()}, index=['calibration error', 'equal width', 'log loss']
        )
        .T.round(5)
        .to_string()
    )


if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--real-data', type=Path, help='folder with scores/*.npz and scores/known_labels.csv')
    ap.add_argument('--images', type=int, default=1000)
    ap.add_argument('--size', type=int, default=64)
    ap.add_argument('--epochs', type=int, default=15)
    ap.add_argument('--seeds', type=int, default=2)
    a = ap.parse_args()
    for seed in range(a.seeds): report(f'simulated atlas, seed {seed}', *atlas_scores(a.images, a.size, a.epochs, seed))
    if a.real_data:
        known = pd.read_csv(a.real_data/'scores/known_labels.csv', dtype=str)
        for f in sorted((a.real_data/'scores').glob('*.npz')):
            z = np.load(f, allow_pickle=True)  # the published tables keep their ids as Python strings
            report(
                f.stem,
                z['scores'][pd.Index(z['ids'].astype(str)).get_indexer(known.Id)].astype(float),
                HPA28.encode(known.Target).astype(bool),
            )
