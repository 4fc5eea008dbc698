"""Report: seconds for the page of a run of 2,000 predictions with pictures, maps and comparison with training,
beside the page without pictures and a bare table."""
import argparse, os, tempfile, time, warnings
from pathlib import Path
import pandas as pd


def seconds(f):
    "Time on the clock, and of all cores together"
    t, c = time.perf_counter(), time.process_time()
    f()
    return time.perf_counter()-t, time.process_time()-c


def many(run, source, folder, n):
    "A run of n fields of view: hard links to those of `source`, with their predictions"
    from hpa_fastai.formats.names import CHANNELS
    from hpa_fastai.data.files import find_images
    files, ids = find_images(source).set_index('Id'), [f'{i % len(run):04}-{i // len(run):03}' for i in range(n)]
    (folder).mkdir()
    for i, new in enumerate(ids):
        for c in CHANNELS: os.link(files.loc[run.Id.iat[i % len(run)], c], folder/f'{new}_{c}.png')
    return pd.concat([run]*-(-n//len(run)), ignore_index=True)[:n].assign(Id=ids)


def main(tmp, a):
    from hpa_fastai.all import HPADataLoaders, hpa_learner, simulate_atlas
    from hpa_fastai.deploy.predictor import Predictor
    from hpa_fastai.deploy.loading import load_bundle
    from hpa_fastai.interpret.report import report

    for name, n, size, seed in (('atlas', 80, 64, 0), ('plate', 60, a.size, 1)):
        simulate_atlas(tmp / name, n=n, size=size, balance='even', seed=seed, difficulty='easy', progress=False)
    learn = hpa_learner(
        HPADataLoaders.from_csv(tmp / 'atlas', size=a.read, bs=16, cache=tmp / 'cache', progress=False),
        a.arch,
        pretrained=False,
    )
    learn.fit_thresholds()
    learn.evaluate()
    model = load_bundle(learn.save_bundle(tmp/'model'))
    run = many(Predictor(model, device='cpu')(tmp/'plate'/'train'), tmp/'plate'/'train', tmp/'many', a.n)
    out = tmp/'page.html'
    t = [
        min(seconds(f) for _ in range(a.repeat))
        for f in (
            lambda: report(run, out, model, tmp / 'many', force=True),
            lambda: report(run, tmp / 'bare.html', model, force=True),
            lambda: run.to_html(tmp / 'table.html'),
        )
    ]
    shown = out.read_text(encoding='utf-8').count('<figure')
    print(
        f'report of {a.n} predictions ({a.size} px PNG, {a.arch} at {a.read} px, {shown} pictures): {t[0][0]:.1f} s, '
        f'of which {t[0][1]:.1f} s of computing (wanted under 30), {out.stat().st_size / 1e6:.1f} MB (wanted under '
        '10); '
        f'without pictures {t[1][0]:.1f} s; pandas\' to_html, the table alone, {t[2][0]:.1f} s',
        flush=True,
    )
    if a.keep: out.replace(a.keep)


if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--n', type=int, default=2000, help='predictions')
    ap.add_argument('--size', type=int, default=512, help='pixels of the files')
    ap.add_argument('--read', type=int, default=128, help='pixels that the network gets')
    ap.add_argument('--arch', default='resnet18')
    ap.add_argument('--repeat', type=int, default=1)
    ap.add_argument('--keep', type=Path, help='leave the page there')
    a = ap.parse_args()
    warnings.simplefilter('ignore')
    with tempfile.TemporaryDirectory() as tmp: main(Path(tmp), a)
