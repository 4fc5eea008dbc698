"""Do activation maps point at the structure that the class is named after? And how long do they take?

    python benchmarks/interpret.py [--minutes 3] [--arch resnet10t] [--n 24] [--size 128] [--tta]

A network learns twelve locations on simulated cells. Then fields with a single location are drawn whose
structure is known to the pixel (where the simulator draws the location brighter than 0.4; the background is
below 0.2), and the map's mass inside the structure is compared with the structure's share of the field: 1 is a
map that knows nothing. Beside it stand the same figure of the plain Grad-CAM, of a network of the same kind
that learned nothing (a map that follows bright spots rather than the class would do as well there), and of the
map for another class in the same picture. `held` is the share of the fields of view in which the class was the
network's first choice.

The clock: maps for 100 fields of view from files to arrays, beside predicting them.
"""
import argparse, tempfile, time
from dataclasses import replace
from pathlib import Path
import numpy as np, pandas as pd, torch
from fastai.torch_core import set_seed
from hpa_fastai.all import *
from hpa_fastai.interpret.activation import *
from hpa_fastai.simulate.patterns import PATTERNS

NAMES = (
    'Nucleoplasm',
    'Nucleoli',
    'Nuclear membrane',
    'Golgi apparatus',
    'Endoplasmic reticulum',
    'Mitochondria',
    'Focal adhesion sites',
    'Microtubules',
    'Centrosome',
    'Plasma membrane',
    'Cytosol',
    'Nuclear speckles',
)
LABELS = LabelSet('twelve', NAMES)
PLACED = ('Nucleoli', 'Golgi apparatus', 'Centrosome', 'Focal adhesion sites', 'Plasma membrane')


def field(name, size, seed):
    "A field of view with one location, and the pixels of its structure"
    draw, kept = PATTERNS[name.casefold()], []
    def watched(cells):
        kept.append(draw(cells))
        return kept[0]
    PATTERNS[name.casefold()] = watched
    try: img, _ = simulate_fov([LABELS.numbers[name.casefold()]], size, seed, labels=LABELS, difficulty='easy')
    finally: PATTERNS[name.casefold()] = draw
    return img, kept[0] > .4


def share(maps, masks):
    "Mass of the maps inside the masks over the masks' share of the field; an empty map has the chance share"
    mass, area = (maps*masks).sum((1, 2))/np.maximum(maps.sum((1, 2)), 1e-12), masks.mean((1, 2))
    return np.where(maps.any((1, 2)), mass, area).mean()/area.mean()


def train(path, arch, minutes, size):
    set_seed(0)
    simulate_atlas(path/'atlas', n=1200, size=size, labels=LABELS, balance='even', seed=0,
                   difficulty='easy', progress=False)
    dls = HPADataLoaders.from_csv(
        path / 'atlas', labels=LABELS, size=size, bs=32, group='antibody', cache=path / 'cache', progress=False
    )
    learn = hpa_learner(dls, arch, pretrained=False)
    with learn.no_bar(), learn.no_logging():
        learn.fit_progressive(sizes=(size // 2, size), minutes=minutes, verbose=False)
    learn.fit_thresholds()
    print(f'{arch}, {minutes:g} minutes of training: macro F1 {learn.evaluate().macro_f1:.3f} on its validation images')
    return load_bundle(learn.save_bundle(path/'hpa_model'))


def untrained(model):
    "The same network before it learned anything"
    torch.manual_seed(1)
    return replace(model, model=create_model(**model.config['model'], pretrained=False).eval())


def by_class(model, n, size, tta):
    blank, rows = untrained(model), {}
    for name in PLACED:
        imgs, masks = zip(*(field(name, size, [77, i]) for i in range(n)))
        imgs, masks, c = np.stack(imgs), np.stack(masks), LABELS.numbers[name.casefold()]
        run = lambda m, c=c, **kw: share(activation_maps(m, imgs, c, tta=tta, **kw), masks)
        rows[name] = {
            'structure %': 100 * masks.mean(),
            'map': run(model),
            'Grad-CAM': run(model, method='gradcam'),
            'untrained': run(blank),
            'other class': np.mean(
                [run(model, o) for o in (LABELS.numbers['microtubules'], LABELS.numbers['nucleoplasm'])]
            ),
            'held': (model.probs(torch.from_numpy(imgs)).argmax(1) == c).mean(),
        }
    return pd.DataFrame(rows).T


def clock(model, path, size):
    simulate_atlas(path/'hundred', n=100, size=size, labels=LABELS, balance='even', seed=5,
                   difficulty='easy', progress=False)
    table = find_images(path/'hundred'/'train')
    predictor = Predictor(model)
    for what, f in (
        ('predict', lambda: predictor(table)),
        ('maps of the top class', lambda: activation_maps(predictor, table)),
        ('maps, eight symmetries', lambda: activation_maps(predictor, table, tta=True)),
    ):
        t = time.perf_counter()
        f()
        print(f'{what:>24}: {time.perf_counter() - t:6.2f} s for 100 fields of view at {size} px', flush=True)


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--minutes', type=float, default=3)
    p.add_argument('--arch', default='resnet10t')
    p.add_argument('--n', type=int, default=24, help='fields of view a class')
    p.add_argument('--size', type=int, default=128)
    p.add_argument('--tta', action='store_true')
    p.add_argument('--model', help='a bundle of these twelve classes, instead of training one')
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        model = load_bundle(args.model) if args.model else train(Path(tmp), args.arch, args.minutes, args.size)
        clock(model, Path(tmp), args.size)
        print(
            f'\nmass of the map in the structure over its share of the field, {args.n} fields of view each (asked: at '
            'least 3)',
            flush=True,
        )
        print(by_class(model, args.n, args.size, args.tta).round(2).to_string())
