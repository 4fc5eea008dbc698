"""Cells: how well outlines fit simulated cells beside two baselines, and real cells that were cut out and laid on black
(`mosaics`, with --real-data); how fast they are found; and what the field of view adds to predictions of cells."""
import argparse, time
from pathlib import Path
import numpy as np
from scipy import ndimage as ndi
from skimage.filters import threshold_otsu
from skimage.segmentation import watershed
from hpa_fastai.cells.segmentation import compare_masks, segment_cells
from hpa_fastai.data.labels import HPA28, LabelSet
from hpa_fastai.simulate.atlas import simulate_fov

EIGHT = LabelSet(
    'eight',
    (
        'Nucleoplasm',
        'Nucleoli',
        'Nuclear membrane',
        'Endoplasmic reticulum',
        'Golgi apparatus',
        'Plasma membrane',
        'Mitochondria',
        'Negative',
    ),
    negative=7,
)


def components(img):
    "Baseline: Otsu's threshold on microtubules and ER, connected areas without the specks"
    light = ndi.gaussian_filter(np.sqrt(img[[0, 3]].astype(float).mean(0)), 2)
    labels = ndi.label(light>.5*threshold_otsu(light))[0]
    return labels*(np.bincount(labels.ravel())>light.size/1000)[labels]


def voronoi(img):
    "Baseline: Otsu's threshold on the nuclei, and what is nearest to each of them"
    blue = ndi.gaussian_filter(img[2].astype(float), 2)
    nuclei = ndi.label(blue>threshold_otsu(blue))[0]
    light = ndi.gaussian_filter(np.sqrt(img[[0, 3]].astype(float).mean(0)), 2)
    return watershed(ndi.distance_transform_edt(nuclei==0), nuclei, mask=(light>.5*threshold_otsu(light))|(nuclei>0))


def total(rows):
    "Figures over all cells of all fields"
    pairs, truth, found = (sum(r[k] for r in rows) for k in ('pairs', 'truth', 'found'))
    return 2*pairs/(truth+found), pairs/found, pairs/truth, np.nansum([r['pairs']*r['iou'] for r in rows])/max(pairs, 1)


def with_nucleus(img, masks):
    "The cells whose nucleus can be seen, by the light of the nuclear channel"
    light = ndi.maximum(ndi.gaussian_filter(img[2].astype(float), 2), masks, range(1, masks.max()+1))
    return np.where(np.r_[False, np.array(light)>15][masks], masks, 0)


def outlines(a):
    fovs = [simulate_fov([k % len(HPA28)], a.size, seed=[a.seed, k], difficulty='easy') for k in range(a.n)]
    print(
        f'{a.n} simulated fields of {a.size} px, seed {a.seed}, {sum(len(np.unique(m)) - 1 for _, m in fovs)} cells, '
        f'{sum(len(np.unique(with_nucleus(i, m))) - 1 for i, m in fovs)} with their nucleus in the picture',
        flush=True,
    )
    for name, f in dict(components=components, voronoi=voronoi, segment_cells=segment_cells).items():
        f1, precision, recall, iou = total([compare_masks(m, f(i)) for i, m in fovs])
        print(
            f'{name:14} all cells: F1 at IoU 0.5 {f1:.3f} (precision {precision:.3f}, recall {recall:.3f}), mean IoU '
            f'of the pairs {iou:.3f}',
            flush=True,
        )
    for name, f in dict(voronoi=voronoi, segment_cells=lambda i: segment_cells(i, border='nucleus')).items():
        rows = [compare_masks(with_nucleus(i, m), f(i)) for i, m in fovs]
        f1, precision, recall, iou = total(rows)
        print(
            f'{name:14} cells with nucleus: F1 at IoU 0.5 {f1:.3f} (precision {precision:.3f}, recall {recall:.3f}), '
            f'mean IoU of the pairs {iou:.3f}',
            flush=True,
        )
    print('wanted: F1 0.85, mean IoU 0.75')


def mosaics(a):
    "Real cells on black: their outlines are where the light ends, and none touches another"
    from hpa_fastai.data.files import find_images
    from hpa_fastai.data.reader import ImageReader
    table, rows = find_images(a.real_data/'mosaic'/'images').iloc[::12], dict(voronoi=[], segment_cells=[])
    n = 0
    for row in table.to_dict('records'):
        img = ImageReader().array(row)
        cells = ndi.label(ndi.binary_closing(img.max(0) > 0, iterations=2))[0]
        cells = np.where((np.bincount(cells.ravel()) > 500)[cells], cells, 0)
        cells = np.unique(cells, return_inverse=True)[1].reshape(cells.shape)
        n += cells.max()
        for name, f in dict(voronoi=voronoi, segment_cells=segment_cells).items():
            rows[name].append(compare_masks(cells, f(img)))
    print(f'{len(table)} mosaics of {n} real cells, each on black')
    for name, found in rows.items():
        f1, precision, recall, iou = total(found)
        print(f'{name:14} F1 at IoU 0.5 {f1:.3f} (precision {precision:.3f}, recall {recall:.3f}), mean IoU {iou:.3f}')


def speed(a):
    for size in (512, 2048):
        img, _ = simulate_fov([7], size, seed=[a.seed, 0], difficulty='easy')
        segment_cells(img)
        times = []
        for f in (components, voronoi, segment_cells):
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(a.repeat): f(img)
            times.append(((time.perf_counter()-wall)/a.repeat, (time.process_time()-cpu)/a.repeat))
        print(
            f'speed, {size} px: '
            + '; '.join(
                f'{n} {w:.2f} s ({c:.2f} s of one core)'
                for n, (w, c) in zip(('components', 'voronoi', 'segment_cells'), times)
            )
            + '; wanted: 1 s a core at 512 px',
            flush=True,
        )


def mixed_fov(rng, seed, size):
    "A field in which each cell has one of two patterns: image, mask, truth cells × classes"
    u, v = rng.choice(len(EIGHT), 2, replace=False)
    (img, masks), (other, _) = (simulate_fov([k], size, seed=seed, labels=EIGHT, difficulty='easy') for k in (u, v))
    second = rng.random(masks.max()+1)<.5
    img[1] = np.where(second[masks], other[1], img[1])
    truth = np.zeros((masks.max(), len(EIGHT)))
    truth[np.arange(len(truth)), np.where(second[1:], v, u)] = 1
    return img, masks, truth


def prior(a):
    """Mean average precision over cells, for several weights of the field of view; and macro F1 with the model's own
    thresholds, which were fitted to fields, beside that with thresholds fitted to the other half of the cells"""
    import tempfile, warnings
    from fastai.torch_core import set_seed
    from sklearn.metrics import average_precision_score
    from hpa_fastai.all import HPADataLoaders, Predictor, hpa_learner, simulate_atlas
    from hpa_fastai.cells.cells import predict_cells
    from hpa_fastai.evaluate.metrics import macro_f1
    from hpa_fastai.evaluate.thresholds import fit_thresholds
    warnings.simplefilter('ignore')
    with tempfile.TemporaryDirectory() as tmp:
        simulate_atlas(f'{tmp}/atlas', n=480, size=192, labels=EIGHT, balance='even', seed=11,
                       difficulty='easy', progress=False)
        set_seed(0)
        dls = HPADataLoaders.from_csv(
            f'{tmp}/atlas', labels=EIGHT, size=96, bs=16, group='antibody', cache=f'{tmp}/cache', progress=False
        )
        learn = hpa_learner(dls, 'resnet10t', pretrained=False)
        with learn.no_bar(), learn.no_logging(): learn.fit_progressive(sizes=(64, 96), minutes=a.minutes, verbose=False)
        learn.fit_thresholds()
        print(f'on its own validation fields: macro F1 {learn.evaluate().macro_f1:.3f} with these thresholds')
        p = Predictor(learn.save_bundle(f'{tmp}/model'), device='cpu')
    rng = np.random.default_rng(a.seed)
    fovs = [mixed_fov(rng, [a.seed, 1, k], 192) for k in range(a.mixed)]
    truth = np.concatenate([t for *_, t in fovs])
    large = np.concatenate([np.bincount(m.ravel())[1:] for _, m, _ in fovs])>800
    half = np.concatenate([np.full(len(t), k % 2) for k, (*_, t) in enumerate(fovs)])[large]
    thresholds = p.bundles[0].thresholds
    print(
        f'{large.sum()} cells of at least 800 px in {a.mixed} fields with two patterns each; mean average precision '
        'over the classes, by weight of the field of view:'
    )
    for w in (0, .25, .5, .75, 1):
        df = predict_cells(p, [i for i, *_ in fovs], masks=[m for _, m, _ in fovs], prior=w, progress=False)
        probs = df[list(EIGHT.classes)].to_numpy()
        score = np.mean([average_precision_score(truth[large, c], probs[large, c]) for c in range(len(EIGHT))])
        of_cells, known = probs[large], truth[large]
        fitted = np.zeros_like(known, bool)
        for part in (0, 1):
            own = fit_thresholds(of_cells[half != part], known[half != part], folds=0, exclusive=EIGHT.negative)
            fitted[half == part] = own.predict(of_cells[half == part])
        print(
            f'   {w:4}: {score:.3f}; macro F1 with the thresholds of fields '
            f'{macro_f1(thresholds.predict(of_cells), known):.3f}, of cells {macro_f1(fitted, known):.3f}'
            + {0: ' (the cell alone)', 0.5: ' (the default)', 1: ' (the field alone: baseline)'}.get(w, ''),
            flush=True,
        )


if __name__=='__main__':
    ap = argparse.ArgumentParser(description=__doc__)
    parts = dict(outlines=outlines, mosaics=mosaics, speed=speed, prior=prior)
    ap.add_argument('parts', nargs='*', metavar='PART', help=f'{", ".join(parts)}; all unless given')
    ap.add_argument('--n', type=int, default=100, help='fields for the outlines')
    ap.add_argument('--size', type=int, default=512, help='px of a field for the outlines')
    ap.add_argument('--seed', type=int, default=20211, help='of the fields; the settings were chosen on others')
    ap.add_argument('--repeat', type=int, default=5, help='runs of the speed')
    ap.add_argument('--mixed', type=int, default=60, help='fields with two patterns')
    ap.add_argument('--minutes', type=float, default=3, help='of training for the prior')
    ap.add_argument('--real-data', type=Path, help='folder with mosaic/, for the mosaics')
    a = ap.parse_args()
    for name in a.parts or [part for part in parts if part != 'mosaics' or a.real_data]: parts[name](a)
