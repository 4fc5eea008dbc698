"""How long the package makes you wait before it does anything: each start as a process of its own, beside a bare
Python and fastai."""
import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

HERE = 'import sys; import hpa_fastai; hpa_fastai.predict(sys.argv[1], model=sys.argv[2], progress=False)'

STARTS = [('bare python', [sys.executable, '-c', 'pass'], None),
          ('import hpa_fastai', [sys.executable, '-c', 'import hpa_fastai'], .2),
          ('hpa_fastai --help', [str(Path(sys.executable).parent/'hpa_fastai'), '--help'], .5),
          ('import fastai.vision.all', [sys.executable, '-W', 'ignore', '-c', 'import fastai.vision.all'], None)]


def first_predictions(folder):
    "Starts that end with the first prediction: a network that was not trained, and one field of view"
    from hpa_fastai.all import HPADataLoaders, hpa_learner, simulate_atlas
    simulate_atlas(folder/'atlas', n=40, size=64, balance='even', difficulty='easy', progress=False)
    simulate_atlas(folder/'one', n=1, size=512, difficulty='easy', progress=False)
    dls = HPADataLoaders.from_csv(folder/'atlas', size=128, bs=16, cache=folder/'cache', progress=False)
    model = hpa_learner(dls, 'resnet18', pretrained=False).save_bundle(folder/'model')
    command = [
        str(Path(sys.executable).parent / 'hpa_fastai'),
        'predict',
        folder / 'one',
        '--model',
        model,
        '--out',
        folder / 'out.csv',
        '--force',
        '--no-progress',
    ]
    return [
        ('import torch', [sys.executable, '-c', 'import torch'], None),
        ('import torch, timm', [sys.executable, '-c', 'import torch, timm'], None),
        ('first prediction, Python', [sys.executable, '-W', 'ignore', '-c', HERE, folder / 'one', model], 6.0),
        ('first prediction, command', command, 6.0),
    ]


def seconds(cmd):
    "Seconds until the process has ended, and those that it spent computing"
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(list(map(str, cmd)), check=True, stdout=subprocess.DEVNULL)
    took, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--repeats', type=int, default=7)
    p.add_argument('--light', action='store_true', help='leave out what ends with a prediction')
    a = p.parse_args()
    warnings.simplefilter('ignore')
    with tempfile.TemporaryDirectory() as tmp:
        starts = STARTS + ([] if a.light else first_predictions(Path(tmp)))
        times = {name: [] for name, *_ in starts}
        for _ in range(a.repeats):
            for name, cmd, _ in starts: times[name].append(seconds(cmd))
    for name, _, wanted in starts:
        took, computed = map(statistics.median, zip(*times[name]))
        print(
            f'{name:26} {took:6.3f} s, computing {computed:6.3f} s'
            + (f'  (wanted: under {wanted} s)' if wanted else '')
        )


if __name__ == '__main__': main()
