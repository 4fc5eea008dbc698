"Monitor: how often each simulated change is called by its name, and how often an unchanged run raises an alarm."
import argparse, tempfile, warnings
from pathlib import Path
import numpy as np, pandas as pd


def stretch(x, by=1.5):
    "Cells that are longer than wide, of the same area"
    from PIL import Image
    side = x.shape[-1]
    long = np.stack([np.asarray(Image.fromarray(p).resize((round(side*by), round(side/by)), Image.BICUBIC)) for p in x])
    long = np.concatenate([long, long[:, ::-1]], 1)
    return long[:, :side, (long.shape[-1]-side)//2:][..., :side]


def darker(x):
    x = x.copy()
    x[1] = np.round(x[1]*.5)
    return x


def soften(x):
    from scipy.ndimage import gaussian_filter
    return np.stack([gaussian_filter(p.astype(np.float32), 2).round().astype(np.uint8) for p in x])


CHANGES = dict(unchanged=lambda x: x, gain=darker, blur=soften, shape=stretch)
NAMES = dict(gain='brightness', blur='sharpness', shape='unlikeness', prevalence='names')


def make_model(folder, a):
    from fastai.torch_core import set_seed
    from hpa_fastai.all import HPADataLoaders, hpa_learner
    set_seed(0)
    dls = HPADataLoaders.from_csv(
        folder / 'atlas', size=a.read, bs=32, group='antibody', valid_pct=0.3, cache=folder / 'cache', progress=False
    )
    learn = hpa_learner(dls, 'resnet10t', pretrained=False)
    with learn.no_bar(), learn.no_logging():
        learn.fit_progressive(sizes=(a.read // 2, a.read), epochs=a.epochs, verbose=False)
    learn.fit_thresholds()
    return learn.save_bundle(folder/'model')


def measured(table, change, predictor):
    "Predictions and traits of a changed plate"
    from hpa_fastai.data.reader import ImageReader
    from hpa_fastai.interpret.drift import run_traits
    cols = np.empty(len(table), object)
    for i, row in enumerate(table.to_dict('records')): cols[i] = change(ImageReader().array(row))
    new = table[['Id']].assign(layout='array', **{c: cols for c in ('red', 'green', 'blue', 'yellow')})
    ids, traits, _ = run_traits(new, predictor.bundles[0])
    return predictor(new), pd.DataFrame(traits, index=ids)


def draws(run, traits, bundle, a, rng, weights=None):
    "Kinds of alarms in each of many draws from a plate"
    from hpa_fastai.interpret.drift import compare_run
    for _ in range(a.draws):
        i = rng.choice(len(run), a.m, replace=False, p=weights)
        yield compare_run(
            run.iloc[i], run.Id.iloc[i].tolist(), {k: traits[k].to_numpy()[i] for k in traits}, bundle
        ).kinds


def main(folder, a):
    from hpa_fastai.all import find_images, read_labels, simulate_atlas
    from hpa_fastai.deploy.predictor import Predictor
    for name, n, seed in (('atlas', a.n_train, 0), ('plate', a.n_plate, 1)):
        if not (folder / name).exists():
            simulate_atlas(folder / name, n=n, size=a.size, balance='even', seed=seed,
                           difficulty='easy', progress=False)
    model = folder/'model' if (folder/'model').exists() else make_model(folder, a)
    predictor, table, rng = (
        Predictor(model, device='cpu'),
        find_images(folder / 'plate' / 'train'),
        np.random.default_rng(0),
    )
    bundle, found = predictor.bundles[0], {k: measured(table, f, predictor) for k, f in CHANGES.items()}
    truth = read_labels(folder/'plate'/'train.csv').set_index('Id').Target
    often = found['unchanged'][0].Predicted.str.split()
    share = bundle.labels.encode(found['unchanged'][0].Predicted).mean(0)
    one = int(np.abs(share-.3).argmin())
    weights = np.array([50. if str(one) in o else 1. for o in often])
    rare = 100*share[one]
    print(
        f'monitor: {bundle.config["reference"]["n"]} validation images, plates of {a.m} images drawn {a.draws} times '
        f'from {len(table)}, {len(set(truth))} label sets',
        flush=True,
    )
    print(
        f'prevalence: {bundle.labels.classes[one]}, which {rare:.0f} % of the plate are named, is drawn 50 times as '
        'often',
        flush=True,
    )
    for k in (*CHANGES, 'prevalence'):
        run, traits = found.get(k, found['unchanged'])
        kinds = list(draws(run, traits, bundle, a, rng, weights/weights.sum() if k == 'prevalence' else None))
        others = pd.Series([o for ks in kinds for o in ks]).value_counts().to_dict()
        if k == 'unchanged':
            print(
                f'unchanged: no alarm in {np.mean([not ks for ks in kinds]):.0%} of draws (wanted 95 %); alarms '
                f'{others}',
                flush=True,
            )
        else:
            print(
                f'{k}: named {NAMES[k]!r} first in {np.mean([ks[:1] == [NAMES[k]] for ks in kinds]):.0%} of draws, at '
                f'all in {np.mean([NAMES[k] in ks for ks in kinds]):.0%}; alarms {others}',
                flush=True,
            )


if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--n-train', type=int, default=600, help='fields of view of the atlas')
    ap.add_argument('--n-plate', type=int, default=600, help='fields of view to draw plates from')
    ap.add_argument('--m', type=int, default=150, help='fields of view of a plate')
    ap.add_argument('--draws', type=int, default=100)
    ap.add_argument('--size', type=int, default=128, help='pixels of the files')
    ap.add_argument('--read', type=int, default=96, help='pixels that the model reads')
    ap.add_argument('--epochs', type=int, default=4, help='in each of two stages')
    ap.add_argument('--folder', type=Path, help='keep atlas, plate and model here')
    a = ap.parse_args()
    warnings.simplefilter('ignore')
    with tempfile.TemporaryDirectory() as tmp: main(a.folder or Path(tmp), a)
