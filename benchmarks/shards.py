"""What shards and Ray cost against one run over the same images.

    python benchmarks/shards.py [--fields 20000] [--shard-size 1000] [--repeat 3]

Each way is the command of the package, in processes of its own, from start to end; the orders alternate. One run
(`predict FOLDER`) is the baseline. The seconds of a start are those until the first field of view is begun: imports and
the model for all ways, and for Ray its cluster and workers too. They do not grow with the images, so overheads are
given with and without them. `plan` and `gather` are added to the ways that need them.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

COMMAND = [sys.executable, '-c', 'import sys; from hpa_fastai.cli.main import main; sys.exit(main())']


def run(*args):
    "Run a command of the package: when it began, and its seconds"
    began, start = time.time(), time.perf_counter()
    done = subprocess.run([*COMMAND, *map(str, args), '--no-progress'], capture_output=True, text=True)
    if done.returncode: raise SystemExit(f'{args}: exit code {done.returncode}\n{(done.stdout+done.stderr)[-3000:]}')
    return began, time.perf_counter()-start


def make_images(tmp, n, size):
    "Simulated fields of view, most of them hard links to the first thousand, and an untrained model"
    from hpa_fastai.all import HPADataLoaders, find_images, hpa_learner, simulate_atlas
    from hpa_fastai.formats.names import CHANNELS
    simulate_atlas(tmp/'atlas', n=min(n, 1000), size=size, seed=0, progress=False)
    dls = HPADataLoaders.from_csv(tmp/'atlas', size=size, bs=32, cache=tmp/'cache', progress=False)
    hpa_learner(dls, 'smallresnet').save_bundle(tmp/'model')
    rows = find_images(tmp/'atlas'/'train').to_dict('records')
    for i in range(n):
        folder = tmp/'images'/f'{i//1000:03}'
        folder.mkdir(parents=True, exist_ok=True)
        for c in CHANNELS: os.link(rows[i % len(rows)][c], folder/f'field{i:06}_{c}.png')
    return tmp/'images', tmp/'model'


def seconds_of_start(began, plan, parts):
    "From the beginning of a command until a worker began its first shard"
    firsts = [json.loads(o.read_text())['seconds'] for o in (plan/parts).glob('part-*.json')]
    ends = [o.stat().st_mtime for o in (plan/parts).glob('part-*.json')]
    return min(np.subtract(ends, firsts))-began


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--fields', type=int, default=20_000)
    parser.add_argument('--size', type=int, default=128)
    parser.add_argument('--shard-size', type=int, default=1000)
    parser.add_argument('--repeat', type=int, default=3)
    a = parser.parse_args()
    tmp = Path(tempfile.mkdtemp(prefix='shards-'))
    try:
        images, model = make_images(tmp, a.fields, a.size)
        of_all = '--model', model, '--device', 'cpu', '--bs', 32
        _, planned = run('plan', images, '--out', tmp/'plan', '--shard-size', a.shard_size)
        found = {'one run': [], 'shards': [], 'Ray': []}
        starts, gathered = {'shards': [], 'Ray': []}, []
        for k in range(a.repeat):
            for way in list(found)[::1 if k % 2 == 0 else -1]:
                parts = f'{way.split()[0]}{k}'
                if way == 'one run': began, seconds = run('predict', images, '--out', tmp/f'{parts}.parquet', *of_all)
                else:
                    more = ['--ray'] if way == 'Ray' else []
                    began, seconds = run('predict', '--plan', tmp/'plan', '--parts', parts, *more, *of_all)
                    starts[way].append(seconds_of_start(began, tmp/'plan', parts))
                    gathered.append(run('gather', tmp/'plan', '--parts', parts, '--out', tmp/f'{parts}.parquet')[1])
                found[way].append(seconds)
                print(f'{way}: {seconds:.1f} s', flush=True)
            files = [(tmp/f'{name}{k}.parquet').read_bytes() for name in ('one', 'shards', 'Ray')]
            print('the tables are the same, byte for byte' if len({*files}) == 1 else 'THE TABLES DIFFER', flush=True)
        n_cpus = len(os.sched_getaffinity(0))
        median = {way: np.median(values) for way, values in found.items()}
        start = {way: np.median(values) for way, values in starts.items()}
        one, begin = median['one run'], start['shards']  # one run starts as shards do
        print(f'{a.fields:,} fields of view of {a.size} px, shards of {a.shard_size:,}, {n_cpus} CPUs, medians of '
              f'{a.repeat}: one run {one:.1f} s ({a.fields/one:,.0f} fields of view a second)')
        for way, wanted in (('shards', 5), ('Ray', 15)):
            after = (median[way]-start[way])/(one-begin)-1
            print(f'{way}: {median[way]:.1f} s, {100*(median[way]/one-1):+.1f} % (wanted: at most {wanted} %); start '
                  f'{start[way]:.1f} s, without the starts {100*after:+.1f} %')
        print(f'plan {planned:.1f} s, gather {np.median(gathered):.1f} s')
    finally: shutil.rmtree(tmp)


if __name__ == '__main__': main()
