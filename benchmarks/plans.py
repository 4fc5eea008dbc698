"""Time and memory of listing a million fields of view once, and of gathering ten million results.

    python benchmarks/plans.py [--rows 1000000] [--results 10000000] [--parts 1000]

A csv of paths is made into a plan, and read whole by `find_images` as the baseline. Then a plan of `--results` fields
of view gets synthetic parts; they are gathered, and copied one after the other by pyarrow, unchecked, as the baseline.
Each runs in a process of its own, whose largest memory is printed.
"""
import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CHANNELS = ('red', 'green', 'blue', 'yellow')


def write_rows(file, n):
    "Write a csv of paths: n Ids in no order, on four thousand files that exist"
    folder = file.parent/'images'
    folder.mkdir(exist_ok=True)
    for k in range(1000):
        for c in CHANNELS: (folder/f'{k}_{c}.png').touch()
    rng = np.random.default_rng(0)
    with open(file, 'w') as f:
        f.write(f'Id,{",".join(CHANNELS)},gene\n')
        for start in range(0, n, 100_000):
            ids = rng.permutation(np.arange(start, min(start+100_000, n)))
            for i in ids:
                files = ','.join(f'images/{i%1000}_{c}.png' for c in CHANNELS)
                f.write(f'{i%9973:05d}_{i}_A1_1,{files},G{i%20000}\n')


def make_parts(plan_folder):
    "Write a part for each shard: random probabilities, and the Ids of the shard"
    import pyarrow as pa
    from hpa_fastai.basics.paths import file_sha256
    from hpa_fastai.data.labels import HPA28
    from hpa_fastai.deploy.tables import result_columns
    from hpa_fastai.scale.manifest import read_plan
    from hpa_fastai.scale.parts import Parts
    plan = read_plan(plan_folder)
    parts, rng = Parts(plan), np.random.default_rng(0)
    parts.folder.mkdir()
    about = dict(manifest=plan.hash, models=['random'])
    (parts.folder/'run.json').write_text(json.dumps(about))
    n = plan.shard_size
    values = {c: pa.array(rng.random(n, np.float32)) for c in HPA28.classes}
    texts = dict(Predicted=['0 25']*n, Names=['Nucleoplasm|Cytosol']*n, flags=['']*n, error=['']*n)
    for shard in range(plan.n_shards):
        ids = plan.ids(shard)
        columns = {c: ids if c == 'Id' else values[c][:len(ids)] if c in values else texts[c][:len(ids)]
                   for c in result_columns(HPA28)}
        file = parts.file(shard)
        pa.parquet.write_table(pa.table(columns), file)
        facts = dict(fields=len(ids), rows=len(ids), errors=0, seconds=5., device='cpu')
        record = dict(about, shard=shard, **facts, bytes=file.stat().st_size, sha256=file_sha256(file))
        parts.file(shard, 'json').write_text(json.dumps(record))


def step(name, place, more):
    "Do one of the steps, in this process"
    place = Path(place)
    if name == 'plan':
        from hpa_fastai.scale.planning import make_plan
        print(make_plan(place/'rows.csv', place/'plan', progress=False).n_fields)
    if name == 'whole table':
        from hpa_fastai.data.files import find_images
        print(len(find_images(place/'rows.csv')))
    if name == 'large plan':
        from hpa_fastai.scale.planning import make_plan
        print(make_plan(place/'rows.csv', place/'large', shard_size=int(more), sizes=False, progress=False).n_fields)
    if name == 'gather':
        from hpa_fastai.scale.gather import gather
        print(gather(place/'large', place/'all.parquet', progress=False).parts.plan.n_fields)
    if name == 'plain copy':
        import pyarrow.parquet as pq
        files, n = sorted((place/'large'/'predictions').glob('*.parquet')), 0
        with pq.ParquetWriter(place/'copy.parquet', pq.read_schema(files[0])) as writer:
            for file in files:
                table = pq.read_table(file)
                n += len(table)
                for start in range(0, len(table), 10_000): writer.write_table(table.slice(start, 10_000))
        print(n)


def measured(name, place, more=''):
    "Run a step in a process of its own: seconds, megabytes, what it says"
    code = f'import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import plans, resource; ' \
           f'plans.step({name!r}, {str(place)!r}, {str(more)!r}); ' \
           'print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e3)'
    start = time.perf_counter()
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    seconds = time.perf_counter()-start
    if done.returncode: raise SystemExit(done.stderr)
    n, megabytes = done.stdout.split()[-2:]
    print(f'{name:<14}{int(n):>12,} rows{seconds:>9.1f} s{float(megabytes):>10,.0f} MB', flush=True)


def main(place, args):
    lines = [o for o in open('/proc/cpuinfo') if o.startswith('model name')]
    processor = lines[0].split(':')[1].strip() if lines else platform.machine()
    print(f'{processor}; each line is a process of its own, its start included')
    if args.rows:
        write_rows(place/'rows.csv', args.rows)
        for name in ('plan', 'whole table'): measured(name, place)
    if args.results:
        write_rows(place/'rows.csv', args.results)
        measured('large plan', place, args.results//args.parts)
        make_parts(place/'large')
        for name in ('gather', 'plain copy'): measured(name, place)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--rows', type=int, default=1_000_000, help='of the plan; 0: leave it out')
    parser.add_argument('--results', type=int, default=10_000_000, help='to gather; 0: leave it out')
    parser.add_argument('--parts', type=int, default=1000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp: main(Path(tmp), args)
