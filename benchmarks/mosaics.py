"""Accuracy on real cells that training never saw, for several seeds of the same training.

The folder holds `train.csv` (Id, Target, group) and `images/`; cells are reused between its images, so no split
divides a group. The images are dealt into outer folds once, the same for all seeds. Each outer fold is predicted by
models that were trained on the other folds: calibration, thresholds and everything else come from those alone.
A seed is that of the training: of what it sets aside, or of the folds that it scores its images by. The interval
draws whole groups of images, and is that of these groups: they are a development set, on whose like the recipe was
chosen, so that other images will score a little less.

Two ways stand side by side: the recipe of `hpa_fastai train`, which fits the head to all images that it is given
(calibration and thresholds from heads by folds), and the old way, which sets a fifth of them aside (for
calibration and thresholds). A plain fastai pipeline (resnet18 with four input channels, pictures as large as those of
the recipe, binary cross entropy; threshold 0.5, and thresholds fitted on the other folds), the same network
fine-tuned, and one without the weights of simulated cells can be asked for; those take the minutes that are given.
Other weights of simulated cells can stand in for those of the package (`--weights`, a file that `pretrain` wrote), and
what weights know without any training on real cells can be asked for instead (`--untrained`).

    python benchmarks/mosaics.py --real-data=DIR [--seeds 0 1 2 3 4] [--folds 3] [--plain] [--fine-tune] [--scratch]
                                 [--weights FILE] [--untrained]
"""
import argparse
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from hpa_fastai.all import CHANNELS, HPA28, HPADataLoaders, ImageReader, class_table, create_model, f1_interval
from hpa_fastai.all import fit_thresholds, hpa_learner, macro_f1, read_labels
from hpa_fastai.batches.dealing import deal_images
from hpa_fastai.batches.settings import normalize
from hpa_fastai.batches.splits import group_codes
from hpa_fastai.data.files import attach_images

warnings.filterwarnings('ignore')


SIZE = 384  # pixels, of the recipe and of the plain pipeline


def judge(probs, preds, targets, folds, groups):
    "F1 by class, macro F1 of all images together with its interval, and mean average precision, also by fold"
    table = class_table(preds, targets, HPA28, probs)
    there = table.support > 0
    by_fold = [class_table(preds[folds == k], targets[folds == k], HPA28, probs[folds == k]) for k in np.unique(folds)]
    low, high = f1_interval(preds, targets, groups)
    return dict(
        macro_f1=macro_f1(preds, targets),
        low=low,
        high=high,
        mean_ap=float(table.average_precision[there].mean()),
        mean_ap_by_fold=float(np.mean([t.average_precision[t.support > 0].mean() for t in by_fold])),
        classes=', '.join(f'{n} {f:.2f}' for n, f in table.f1[there].items()),
    )


def recipe(df, folds, seed, train, cache, pretrained=True):
    "Probabilities, decisions, and the score that each model expects of itself"
    from fastai.torch_core import set_seed
    probs, preds, expected = np.zeros((len(df), 28)), np.zeros((len(df), 28), bool), []
    for k in np.unique(folds):
        set_seed(seed)
        dls = HPADataLoaders.from_df(
            df[folds != k], df, HPA28, size=SIZE, group='group', seed=seed, cache=cache, progress=False, device='cpu')
        learn = hpa_learner(dls, 'smallresnet', pretrained)
        with learn.no_bar(), learn.no_logging():
            train(learn, seed)
            learn.calibrate()
            learn.fit_thresholds()
            expected.append(learn.evaluate().macro_f1)
            unseen = learn.dls.test_dl(df[folds == k], num_workers=0)
            probs[folds == k] = learn.get_preds(dl=unseen)[0].numpy()
        preds[folds == k] = learn.thresholds.predict(probs[folds == k])
    return probs, preds, expected


def untrained(df, targets, weights, sizes=(192, 256, 384)):
    "Print the average precision of weights that have seen no real cell, at several sizes in pixels"
    model = create_model('smallresnet', len(HPA28), weights, classes=HPA28.classes).eval()
    there = targets.any(0)
    for size in sizes:
        pictures = torch.stack([torch.from_numpy(ImageReader(size=size).array(row)) for row in df.to_dict('records')])
        with torch.no_grad(): logits = torch.cat([model(normalize(o.float()/255)) for o in pictures.split(32)])
        precision = class_table(logits.numpy() > 0, targets, HPA28, logits.sigmoid().numpy()).average_precision[there]
        by_class = ', '.join(f'{name} {ap:.2f}' for name, ap in precision.items())
        print(f'untrained, {size} px: mean AP {precision.mean():.3f}; {by_class}', flush=True)


def plain_fastai(data, df, folds, seed, minutes):
    "The same of what a fastai user writes"
    from fastai.vision.all import (
        BCEWithLogitsLossFlat,
        DataBlock,
        IndexSplitter,
        IntToFloatTensor,
        MultiCategoryBlock,
        Normalize,
        TensorImage,
        TransformBlock,
        aug_transforms,
        resnet18,
        set_seed,
        vision_learner,
    )
    from PIL import Image
    probs = np.zeros((len(df), 28))
    opened = lambda r: TensorImage(
        np.stack(
            [
                np.asarray(Image.open(data / 'images' / f'{r.Id}_{c}.png').resize((SIZE, SIZE), Image.BILINEAR))
                for c in CHANNELS
            ]
        )
    )
    for k in np.unique(folds):
        set_seed(seed)
        block = DataBlock(
            (TransformBlock(batch_tfms=IntToFloatTensor), MultiCategoryBlock(vocab=list(map(str, range(28))))),
            get_x=opened,
            get_y=lambda r: r.Target.split(),
            splitter=IndexSplitter(np.flatnonzero(folds == k)),
            batch_tfms=[
                *aug_transforms(flip_vert=True, max_lighting=0, max_warp=0),
                Normalize.from_stats([0.08] * 4, [0.14] * 4, cuda=False),
            ],
        )
        dls = block.dataloaders(df, bs=32, num_workers=0, device='cpu')
        learn = vision_learner(dls, resnet18, n_in=4, n_out=28, pretrained=False, loss_func=BCEWithLogitsLossFlat())
        with learn.no_bar(), learn.no_logging():
            start = time.perf_counter()
            learn.fit(1, 1e-3)
            learn.fit_one_cycle(max(1, round(minutes*60/(time.perf_counter() - start)) - 1), 3e-3)
            probs[folds == k] = learn.get_preds()[0].numpy()
    return probs, probs > .5, []


def by_other_folds(probs, targets, folds, groups):
    "Decisions by thresholds that were fitted on the scores of the other folds"
    preds = np.zeros(probs.shape, bool)
    for k in np.unique(folds):
        rest = folds != k
        preds[~rest] = fit_thresholds(probs[rest], targets[rest], groups=groups[rest]).predict(probs[~rest])
    return preds


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--real-data', type=Path, required=True, help='folder with mosaic/')
    p.add_argument('--minutes', type=float, default=5., help='of a training of the whole network, for each fold')
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2, 3, 4])
    p.add_argument('--folds', type=int, default=3, help='outer folds; more leave more images to train on')
    p.add_argument('--plain', action='store_true', help='also a plain fastai pipeline')
    p.add_argument('--fine-tune', action='store_true', help='also the recipe with the body trained')
    p.add_argument('--scratch', action='store_true', help='also the recipe without the weights of simulated cells')
    p.add_argument('--weights', type=Path, help='file of weights in place of those of the package')
    p.add_argument('--untrained', action='store_true', help='only what the weights know by themselves')
    a = p.parse_args()
    data, rows = a.real_data/'mosaic', []
    df = attach_images(read_labels(data/'train.csv', HPA28), data/'images')
    targets = HPA28.encode(df.Target) > 0
    groups = group_codes(df, 'group')
    folds = deal_images(targets, groups, a.folds)
    print(f'{len(df)} images in {df.group.nunique()} groups; outer folds of {np.bincount(folds)} images', flush=True)
    weights = a.weights or True
    if a.untrained: return untrained(df, targets, weights)
    by_folds = lambda learn, seed: learn.fit_progressive(fine_tune=False, seed=seed, verbose=False)
    fifth_aside = lambda learn, seed: learn.fit_head(most=20_000)
    by_the_clock = lambda learn, seed: learn.fit_progressive(minutes=a.minutes, verbose=False)
    with tempfile.TemporaryDirectory() as d:
        cache = Path(d)/'cache'
        ours = lambda train, pretrained=weights: lambda seed: recipe(df, folds, seed, train, cache, pretrained)
        variants = {'all images': ours(by_folds), 'a fifth set aside': ours(fifth_aside)}
        if a.fine_tune: variants['fine-tuned'] = ours(by_the_clock)
        if a.scratch: variants['from scratch'] = ours(by_the_clock, pretrained=False)
        if a.plain: variants['plain fastai'] = lambda seed: plain_fastai(data, df, folds, seed, a.minutes)
        for seed in a.seeds:
            for name, run in variants.items():
                start = time.perf_counter()
                probs, preds, expected = run(seed)
                decided = {name: preds}
                if name == 'plain fastai':
                    decided = {'plain, at 0.5': preds, 'plain, fitted': by_other_folds(probs, targets, folds, groups)}
                for what, preds in decided.items():
                    row = dict(name=what, seed=seed, expected=np.mean(expected) if expected else np.nan,
                               **judge(probs, preds, targets, folds, groups), minutes=(time.perf_counter() - start)/60)
                    rows.append(row)
                    print(
                        '{name:18} seed {seed}: macro F1 {macro_f1:.3f} (95 % interval over groups {low:.3f} to '
                        '{high:.3f}; expected {expected:.3f}), mean AP {mean_ap:.3f} (by fold {mean_ap_by_fold:.3f}); '
                        '{minutes:.1f} min; {classes}'.format(**row), flush=True)
    print('\nover the seeds: mean, smallest, largest, and spread')
    spread = lambda values: values.max() - values.min()
    figures = ['macro_f1', 'low', 'high', 'mean_ap', 'mean_ap_by_fold', 'expected']
    summary = pd.DataFrame(rows).groupby('name', sort=False)[figures].agg(['mean', 'min', 'max', spread])
    print(summary.rename(columns={'<lambda_0>': 'spread', '<lambda>': 'spread'}).round(3).T.to_string())


if __name__ == '__main__': main()
