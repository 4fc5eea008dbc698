"How long the package makes you wait before it does anything: each start as a process of its own, beside a bare Python and fastai."
import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

STARTS = [('bare python', [sys.executable, '-c', 'pass'], None),
          ('import hpa_fastai', [sys.executable, '-c', 'import hpa_fastai'], .2),
          ('hpa_fastai --help', [str(Path(sys.executable).parent/'hpa_fastai'), '--help'], .5),
          ('import fastai.vision.all', [sys.executable, '-W', 'ignore', '-c', 'import fastai.vision.all'], None)]


def seconds(cmd):
    start = time.perf_counter()
    subprocess.run(cmd, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--repeats', type=int, default=7)
    a = p.parse_args()
    times = {name: [] for name, *_ in STARTS}
    for _ in range(a.repeats):
        for name, cmd, _ in STARTS: times[name].append(seconds(cmd))
    for name, _, wanted in STARTS:
        print(f'{name:26} {statistics.median(times[name]):6.3f} s' + (f'  (wanted: under {wanted} s)' if wanted else ''))


if __name__ == '__main__': main()
