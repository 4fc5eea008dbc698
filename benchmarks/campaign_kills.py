"The part of campaign.py that kills runs at random moments, runs them again to their end, and compares what they wrote."
import io
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from pathlib import Path
import numpy as np

ARCH = ['--arch', 'lenet5', '--pretrained', 'no', '--sizes', '24', '32', '--epochs', '2', '--bs', '16',
        '--no-calibrate']
MEASURED = ('minutes', 'images_per_second', 'seconds', 'date', 'created', 'started', 'time', 'updated')


def command(*args):
    "A command of the shell, run in this process; its code must be 0"
    from hpa_fastai.cli.main import main
    code = main([*map(str, args), '--no-progress'])
    if code: sys.exit(code)


def save_again(shared, out):
    from hpa_fastai.deploy.loading import load_bundle
    from hpa_fastai.deploy.saving import write_bundle
    import torch
    write_bundle(load_bundle(shared/'other'), out/'model', torch.zeros(1, 4, 48, 48, dtype=torch.uint8), force=True)


def fill_cache(shared, out):
    from hpa_fastai.batches.cache import build_cache
    from hpa_fastai.data.files import find_images
    from hpa_fastai.data.reader import ImageReader
    table = find_images(shared/'atlas'/'train')
    cache = build_cache(table, ImageReader(size=32), out/'cache', progress=False)
    np.save(out/'rows.npy', cache.batch(cache.rows(list(table.Id))))


def predict(shared, out, table, *more):
    command('predict', shared/'atlas'/'train', '--model', shared/'model', '--out', out/table, '--bs', '4', *more)


RUNS = {  # by name: how often of a hundred kills, and what is run (with the folder of what all share, and its own)
    'predict csv': (10, lambda s, o: predict(s, o, 'p.csv')),
    'predict parquet': (9, lambda s, o: predict(s, o, 'p.parquet')),
    'predict csv, npy': (10, lambda s, o: predict(s, o, 'p.csv', '--embeddings', o/'e.npy')),
    'predict parquet, parquet': (9, lambda s, o: predict(s, o, 'p.parquet', '--embeddings', o/'e.parquet')),
    'cells': (10, lambda s, o: command('cells', s/'few', '--masks', s/'masks', '--model', s/'model', '--out', o/'c.csv',
                                       '--embeddings', o/'e.npy', '--bs', '4')),
    'watch': (8, lambda s, o: predict(s, o, 'p.csv', '--watch', '--timeout', '1', '--settle', '0')),
    'train': (8, lambda s, o: command('train', s/'atlas', '--out', o/'m', '--cache', o/'cache', '--resume', *ARCH)),
    'train again': (4, lambda s, o: command('train', s/'atlas', '--out', o/'m', '--cache', o/'cache', '--force',
                                            *ARCH)),
    'train folds': (8, lambda s, o: command('train', s/'atlas', '--out', o/'m', '--cache', o/'cache', '--folds', 2,
                                            *ARCH)),
    'compare': (8, lambda s, o: command('compare', s/'atlas', '--out', o/'c', '--cache', o/'cache', '--archs',
                                        'lenet5,resnet10t', '--folds', 2, '--no-progress', *ARCH[2:-1])),
    'save_bundle': (6, save_again),
    'cache': (5, fill_cache),
    'report': (5, lambda s, o: command('report', s/'p.csv', '--images', s/'atlas'/'train', '--reference', s/'model',
                                       '--out', o/'r.html', '--force')),
}


def get_ready():
    "Import what the runs need, once for all of them; one thread, so that copies of this process are safe"
    import hpa_fastai.all  # noqa: F401
    import matplotlib
    import torch
    matplotlib.use('Agg')
    torch.set_num_threads(1)


def prepare(shared):
    "Pictures, two models and a table that the runs share"
    from fastai.torch_core import set_seed
    from hpa_fastai.all import HPADataLoaders, hpa_learner, predict as predict_all, simulate_atlas
    simulate_atlas(shared/'atlas', n=60, size=64, balance='even', difficulty='easy', progress=False)
    simulate_atlas(shared/'with masks', n=12, size=128, difficulty='easy', masks=True, progress=False)
    (shared/'with masks'/'train').rename(shared/'few')
    (shared/'with masks'/'masks').rename(shared/'masks')
    dls = HPADataLoaders.from_csv(shared/'atlas', size=48, bs=16, cache=False, progress=False)
    for seed, name in enumerate(('model', 'other')):
        set_seed(seed)
        hpa_learner(dls, 'lenet5', pretrained=False).save_bundle(shared/name)
    predict_all(shared/'atlas'/'train', model=shared/'model', out=shared/'p.csv', progress=False)


def begin(run, shared, out, log):
    "Start a run in a copy of this process"
    pid = os.fork()
    if pid: return pid
    try:
        os.setsid()
        for stream in (1, 2): os.dup2(os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND), stream)
        run(shared, out)
        code = 0
    except SystemExit as e: code = e.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)


def end(pid, seconds=300):
    "Wait for a run; its code, or None if it took too long"
    deadline = time.time()+seconds
    while time.time() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done: return os.waitstatus_to_exitcode(status)
        time.sleep(.002)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def plain(value):
    "A value of a json file without what is measured by the clock"
    if isinstance(value, dict): return {k: plain(v) for k, v in value.items() if k not in MEASURED}
    return [plain(v) for v in value] if isinstance(value, list) else value


def written(folder):
    "What a run left: {name: content} of its files, without measured times; archives by their parts"
    found = {}
    for file in sorted(folder.rglob('*')):
        name = str(file.relative_to(folder))
        if not file.is_file() or name.startswith('cache'): continue
        data = file.read_bytes()
        if name.endswith('.json'): data = json.dumps(plain(json.loads(data))).encode()
        elif name.endswith('experiments.csv'):
            import pandas as pd
            table = pd.read_csv(io.BytesIO(data), dtype=str)
            data = table.drop(columns=['minutes', 'images_per_second']).to_csv().encode()
        elif name.endswith('.npz'):
            with zipfile.ZipFile(file) as z: data = b''.join(z.read(n) for n in sorted(z.namelist()))
        elif name.endswith(('.png', '.html')) and ('experiments' in name or 'r.html' in name):
            data = re.sub(rb'\d{4}-\d\d-\d\d( \d\d:\d\d)?', b'', data) if b'<html' in data else b''
        elif name.endswith('README.md'): data = re.sub(rb'It took [^.]*\. ?|Images per second: [\d,.]+ ?', b'', data)
        found[name] = data
    return found


def set_up(name, shared, out):
    "An empty folder for a run; where something is replaced, that lies in it"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    if name in ('save_bundle', 'train again'):
        shutil.copytree(shared/'model', out/('model' if name == 'save_bundle' else 'm'))
    if name == 'report': (out/'r.html').write_text('old')


def whole_models(out):
    "Load every model that a killed run left under its name"
    from hpa_fastai.deploy.loading import load_bundle
    for name in ('model', 'm'):
        if (out/name/'config.json').exists() or name == 'model' and (out.name == 'save_bundle'): load_bundle(out/name)


def rows_lost(before, after):
    "Lines of tables that are missing or there twice"
    n = 0
    for file in (f for f in before if f.endswith('.csv')):
        a, b = before[file].splitlines(), after.get(file, b'').splitlines()
        n += len(set(a) - set(b)) + len(b) - len(set(b))
    return n


def kill_and_finish(name, run, shared, out, log, rng, seconds):
    "Kill a run at one to three random moments, then let it end; (kills, moments, code of the last run)"
    set_up(name, shared, out)
    killed, moments = 0, []
    for _ in range(int(rng.integers(1, 4))):
        pid, moment = begin(run, shared, out, log), rng.uniform(0, seconds)
        time.sleep(moment)
        try: os.kill(pid, signal.SIGKILL)
        except ProcessLookupError: pass
        code = end(pid)
        if code != -signal.SIGKILL: return killed, moments, code  # it came to its end before
        killed, moments = killed+1, [*moments, f'{moment:.3f}']
        whole_models(out)
    return killed, moments, end(begin(run, shared, out, log))


def kill_runs(n=100, seed=0, names=tuple(RUNS), keep=None):
    "Kill runs of each kind; yields (name, seconds of a whole run, kills, kills survived, rows lost, faults)"
    get_ready()
    with tempfile.TemporaryDirectory(prefix='campaign-') as tmp:
        shared = Path(tmp)/'shared'
        shared.mkdir()
        prepare(shared)
        for name in names:
            share, run = RUNS[name]
            out, log, rng = Path(tmp)/name.replace(' ', '_'), Path(tmp)/'log', np.random.default_rng([seed, len(name)])
            set_up(name, shared, out)
            start = time.perf_counter()
            if end(begin(run, shared, out, log)) != 0: raise SystemExit(f'{name}: {log.read_text()[-2000:]}')
            seconds, whole = time.perf_counter()-start, written(out)
            killed = survived = lost = tries = 0
            faults, wanted = [], max(1, round(share*n/100))
            while killed < wanted and (tries := tries+1) < 10*wanted:
                log.write_text('')
                try:
                    kills, moments, code = kill_and_finish(name, run, shared, out, log, rng, seconds)
                    found = written(out)
                    different = sorted(f for f in {*whole, *found} if whole.get(f) != found.get(f))
                    said = (log.read_text().strip().splitlines() or [''])[-1]
                    was_done = code == 2 and ' exists' in said and not different  # killed behind its last file
                    ended = '' if code == 0 or was_done else f'code {code}, {said[-300:]}; '
                    fault = ended + ', '.join(different)
                    lost += rows_lost(whole, found)
                except Exception as e: kills, moments, fault = 1, [], f'{type(e).__name__}: {e}'
                killed += kills
                if not fault: survived += kills
                elif kills: faults.append(f'killed after {", ".join(moments)} s: {fault}')
                if fault and keep: shutil.copytree(out, Path(keep)/f'{out.name}-{tries}', dirs_exist_ok=True)
            yield name, seconds, killed, survived, lost, faults
