"""Prediction: speed beside its bound and plain fastai, growth of time and memory, kills, start-up, pictures
unlike training."""
import argparse, os, random, signal, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np

RUN = '''
import sys
from hpa_fastai.deploy.predictor import Predictor
Predictor(sys.argv[2], device="cpu").to_file(sys.argv[1], sys.argv[3], progress=False)
'''
TIMED = '''
import sys, time, resource, numpy as np
from hpa_fastai.deploy.predictor import Predictor
p = Predictor(sys.argv[2], device='cpu')
p(np.zeros((4, 64, 64), np.uint8))
t = time.perf_counter()
p.to_file(sys.argv[1], sys.argv[3], progress=False)
print(time.perf_counter()-t, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024)'''


def make_model(tmp, arch, size, n=80):
    "A bundle that was trained for a moment"
    import torch
    from hpa_fastai.all import HPADataLoaders, hpa_learner, simulate_atlas
    if not (tmp/'atlas').exists(): simulate_atlas(tmp/'atlas', n=n, size=64, balance='even',
                                                  difficulty='easy', progress=False)
    dls = HPADataLoaders.from_csv(
        tmp / 'atlas', size=size, bs=16, cache=tmp / 'cache', progress=False, device=torch.device('cpu')
    )
    learn = hpa_learner(dls, arch, pretrained=False)
    return learn, learn.save_bundle(tmp/f'{arch}-{size}', force=True)


def clone(source, folder, n):
    "n fields of view, as hard links to those of `source`"
    from hpa_fastai.formats.names import CHANNELS
    from hpa_fastai.data.files import find_images
    rows = find_images(source).to_dict('records')
    for i in range(n):
        to = folder/f'{i//1000:03}'
        to.mkdir(parents=True, exist_ok=True)
        for c in CHANNELS: os.link(rows[i % len(rows)][c], to/f'fov{i:06}_{c}.png')
    return folder


def seconds(f):
    t = time.perf_counter()
    f()
    return time.perf_counter()-t


def speed(tmp, a):
    import pandas as pd, torch
    from hpa_fastai.all import find_images, simulate_atlas
    from hpa_fastai.deploy.predictor import Predictor
    learn, model = make_model(tmp, 'resnet18', 128)
    simulate_atlas(tmp/'large', n=48, size=512, balance='even', difficulty='easy', progress=False)
    folder = clone(tmp/'large', tmp/'many', a.n)
    table, p = find_images(folder), Predictor(model, device='cpu')
    b, rows = p.bundles[0], table.to_dict('records')
    x = torch.stack([b.settings.reader(r).as_subclass(torch.Tensor) for r in rows[:32]])
    def decode():
        with ThreadPoolExecutor(p.num_workers) as pool: list(pool.map(b.settings.reader.array, rows))
    def forward():
        for _ in range(a.n//32): b.run(b.inputs(x))
    def plain():
        dl = learn.dls.test_dl(table, num_workers=0)
        with learn.no_bar(): learn.get_preds(dl=dl)
    ours = lambda: p.to_file(folder, tmp/'speed.csv', force=True, progress=False)
    halved = Predictor(model, device='cpu', precision='force-half')
    half = lambda: halved.to_file(folder, tmp/'half.csv', force=True, progress=False)
    res = np.array([[seconds(f) for f in (decode, forward, ours, plain, half)] for _ in range(a.repeat)])/a.n
    best = res.min(0)
    shares = (res[:,0]+res[:,1])/res[:,2], res[:,3]/res[:,2], res[:,3]/res[:,4]
    apart = np.abs(
        np.subtract(*(pd.read_csv(tmp / f'{o}.csv')[list(p.labels.classes)].to_numpy() for o in ('speed', 'half')))
    ).max()
    print(
        f'speed ({a.n} FOVs, 512 px PNG, resnet18 at 128 px, {p.num_workers} threads): {1 / best[2]:.1f} FOVs/s; '
        f'decoding alone {1 / best[0]:.1f}, forward alone {1 / best[1]:.1f}, '
        f'bound 1/(decode + forward) {1 / (best[0] + best[1]):.1f}; {np.median(shares[0]):.2f} of the bound (wanted '
        '0.85); '
        f'test_dl + get_preds {1 / best[3]:.1f}: {np.median(shares[1]):.2f} times (wanted 1.5); in half precision '
        f'{1 / best[4]:.1f}: {np.median(shares[2]):.2f} times, probabilities up to {apart:.4f} apart',
        flush=True,
    )


def growth(tmp, a):
    _, model = make_model(tmp, 'lenet5', 32)
    found = []
    for n in (200, a.many):
        folder = clone(tmp/'atlas', tmp/f'grow{n}', n)
        runs = []
        for k in range(3 if n==200 else 1):
            out = subprocess.run(
                [sys.executable, '-c', TIMED, folder, model, tmp / f'grow{n}-{k}.csv'],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            runs.append([float(v) for v in out.split()])
        t, peak = np.median(runs, 0)
        found.append((t/n, peak))
        print(f'growth, {n} FOVs: {t:.1f} s, {1000*t/n:.2f} ms a FOV, peak memory {peak:.0f} MB', flush=True)
    (t0, m0), (t1, m1) = found
    print(
        f'growth: {100 * (t1 / t0 - 1):+.1f} % time a FOV (wanted within 5 %), {100 * (m1 / m0 - 1):+.1f} % memory '
        '(wanted at most 5 %)',
        flush=True,
    )


def kill(tmp, a):
    from hpa_fastai.deploy.tables import read_predictions
    _, model = make_model(tmp, 'lenet5', 32)
    folder, right, rng = clone(tmp/'atlas', tmp/'killed', a.kill_n), 0, random.Random(a.seed)
    start = lambda out: subprocess.Popen([sys.executable, '-c', RUN, str(folder), str(model), str(out)])
    took = seconds(lambda: start(tmp/'whole.csv').wait())
    out, kills = tmp/'killed.csv', 0
    while kills<a.kills:
        p = start(out)
        try: p.wait(rng.uniform(.15, .95)*took/2)
        except subprocess.TimeoutExpired:
            p.send_signal(signal.SIGKILL)
            p.wait()
            kills += 1
        if out.exists():
            right += out.read_bytes()==(tmp/'whole.csv').read_bytes()
            out.unlink()
    if start(out).wait()==0: same = out.read_bytes()==(tmp/'whole.csv').read_bytes()
    print(
        f'kill: {kills} kills at random moments over {a.kill_n} FOVs ({took:.0f} s uninterrupted); the final table is '
        f'{"byte for byte the same" if same else "DIFFERENT"}, {len(read_predictions(out))} rows',
        flush=True,
    )


def start_up(tmp, a):
    _, model = make_model(tmp, 'resnet18', 128)
    code = (
        'import sys; import hpa_fastai; print(len(hpa_fastai.predict(sys.argv[1], model=sys.argv[2], progress=False)))'
    )
    clone(tmp/'atlas', tmp/'one', 1)
    t = [
        seconds(
            lambda: subprocess.run([sys.executable, '-c', code, tmp / 'one', model], check=True, capture_output=True)
        )
        for _ in range(3)
    ]
    bare = seconds(
        lambda: subprocess.run(
            [sys.executable, '-c', 'import torch, fastai.vision.all'], check=True, capture_output=True
        )
    )
    print(
        f'start-up: import, load and first prediction {sorted(t)[1]:.1f} s (wanted under 6); importing torch and '
        f'fastai alone {bare:.1f} s',
        flush=True,
    )


def odd(tmp, a):
    "Pictures unlike training: an undertrained network on simulated cells"
    import skimage.data
    from PIL import Image
    from sklearn.metrics import roc_auc_score
    from hpa_fastai.all import HPADataLoaders, find_images, hpa_learner, simulate_atlas
    from hpa_fastai.deploy.loading import load_bundle
    from hpa_fastai.data.reader import ImageReader
    from hpa_fastai.deploy.predictor import Predictor
    simulate_atlas(tmp/'train', n=400, size=192, balance='even', difficulty='easy', progress=False)
    simulate_atlas(tmp/'unseen', n=100, size=192, balance='even', seed=5, difficulty='easy', progress=False)
    dls = HPADataLoaders.from_csv(tmp/'train', size=64, bs=32, group='antibody', cache=tmp/'cache', progress=False)
    learn = hpa_learner(dls, 'resnet10t', pretrained=False)
    with learn.no_bar(), learn.no_logging(): learn.fit_progressive(sizes=(48, 64), minutes=.25, verbose=False)
    learn.fit_thresholds()
    b, rng = load_bundle(learn.save_bundle(tmp/'odd')), np.random.default_rng(0)
    p = Predictor(b)
    cells = [ImageReader().array(r) for r in find_images(tmp/'unseen').to_dict('records')]
    resized = lambda a, s: np.stack(
        [
            np.asarray(Image.fromarray(np.ascontiguousarray(o)).resize((s, s), Image.BILINEAR, reducing_gap=1.0))
            for o in a
        ]
    )
    def photo(name):
        o = np.asarray(getattr(skimage.data, name)())
        o = o[...,:3] if o.ndim==3 else np.stack([o]*3, -1)
        s = min(o.shape[:2])
        o = o[rng.integers(0, o.shape[0]-s+1):][:s, rng.integers(0, o.shape[1]-s+1):][:, :s]
        return np.ascontiguousarray(o.transpose(2, 0, 1)[[0,1,2,0]])

    names = (
        'astronaut',
        'camera',
        'coffee',
        'chelsea',
        'rocket',
        'coins',
        'page',
        'text',
        'moon',
        'brick',
        'grass',
        'gravel',
        'clock',
    )
    sets = dict(
        enlarged=[resized(c[:, 64:128, 64:128], 192) for c in cells],
        shrunk=[np.tile(resized(c, 64), (1, 3, 3)) for c in cells],
        green_blue=[c[[0, 2, 1, 3]] for c in cells],
        red_green=[c[[1, 0, 2, 3]] for c in cells],
        reversed=[c[::-1].copy() for c in cells],
        photographs=[photo(n) for n in names for _ in range(3) if n in dir(skimage.data)],
        noise=[rng.integers(0, 256, (4, 192, 192), np.uint8) for _ in range(50)],
    )
    def unlike(arrays):
        x = b.pixels([b.settings.reader(o) for o in arrays])
        return b.flagger.unlikeness(x, b.run(b.inputs(x))[1])
    base = unlike(cells)
    known = p(dls.valid_ds.items)['flags'].str.contains('unlike-training').mean()
    print(
        f'unlike training: flagged are {100 * known:.1f} % of validation (wanted 1 %), {100 * (base > 1).mean():.1f} '
        '% of unseen cells',
        flush=True,
    )
    for k,v in sets.items():
        d = unlike(v)
        print(
            f'unlike training, {k}: AUROC '
            f'{roc_auc_score(np.r_[np.zeros(len(base)), np.ones(len(d))], np.r_[base, d]):.3f} (wanted 0.95), flagged '
            f'{100 * (d > 1).mean():.0f} %',
            flush=True,
        )


if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__)
    parts = dict(speed=speed, growth=growth, kill=kill, start=start_up, odd=odd)
    ap.add_argument('parts', nargs='*', metavar='PART', help=f'{", ".join(parts)}; all unless given')
    ap.add_argument('--n', type=int, default=384, help='fields of view for the speed; a multiple of 32')
    ap.add_argument('--repeat', type=int, default=3, help='runs of the speed')
    ap.add_argument('--many', type=int, default=20_000, help='fields of view for the growth')
    ap.add_argument('--kill-n', type=int, default=10_000, help='fields of view for the kills')
    ap.add_argument('--kills', type=int, default=10, help='how often to kill')
    ap.add_argument('--seed', type=int, default=0)
    a = ap.parse_args()
    import warnings
    warnings.simplefilter('ignore')
    with tempfile.TemporaryDirectory() as tmp:
        for name in a.parts or parts: parts[name](Path(tmp), a)
