"How fast pictures are read from tars, beside the same pictures as four PNG each, cold and warm, in the same run."
import argparse
import os
import platform
import statistics
import subprocess
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from hpa_fastai.data.files import find_images
from hpa_fastai.data.packing import pack_images
from hpa_fastai.data.reader import ImageReader
from hpa_fastai.formats.addresses import parse_address
from hpa_fastai.formats.names import CHANNELS
from hpa_fastai.formats.pictures import open_image_file, reading_pool
from hpa_fastai.simulate.atlas import simulate_fov

EACH = 8  # pictures that are made of a simulated one, by turning and mirroring
AT_A_TIME = 100  # fields of view of a turn


def draw(folder, i, size):
    "Write one simulated field of view, turned and mirrored, as four PNG each"
    x = simulate_fov([i % 28], size, i)[0]
    for k in range(EACH):
        turned = np.rot90(x, k % 4, (1, 2))
        if k >= 4: turned = turned[:, ::-1]
        for c, plane in zip(CHANNELS, turned): Image.fromarray(np.ascontiguousarray(plane)).save(
            f'{folder}/{i:05d}-{k}_{c}.png')


def forget(rows, everything):
    "Empty the disk cache of the files of some rows, or of the whole machine with its entries of folders"
    if everything: return Path('/proc/sys/vm/drop_caches').write_text('3')
    for file in {parse_address(row[c]).files[0] for row in rows for c in CHANNELS}:
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def only_bytes(row):
    "Read the files of a row without decoding them"
    for path in dict.fromkeys(row[c] for c in CHANNELS):
        with open_image_file(path) as f: f.read()


def seconds(rows, read, pool):
    start = time.perf_counter()
    for _ in pool.map(read, rows): pass
    return time.perf_counter()-start


def compare(name, tables, read, threads, cold, everything, shuffled):
    "Files and tars take turns, some fields of view at a time, so that both see the same machine"
    order = np.random.RandomState(0).permutation(len(tables[0])) if shuffled else np.arange(len(tables[0]))
    os.sync()
    taken = []
    with reading_pool(threads) as pool:
        for turn, part in enumerate(np.array_split(order, max(1, len(order)//AT_A_TIME))):
            rows, of_turn = [table.iloc[part].to_dict('records') for table in tables], [0, 0]
            for which in (0, 1)[::1 - turn % 2*2]:
                if cold: forget(rows[which], everything)
                else: list(pool.map(only_bytes, rows[which]))
                of_turn[which] = seconds(rows[which], read, pool)
            taken.append(of_turn)
    files, tars = np.sum(taken, 0)
    ratios = sorted(of_files/of_tars for of_files, of_tars in taken)
    print(f'{name:52} {statistics.median(ratios):5.2f} times (all: {files/tars:.2f}; half of the turns within '
          f'{ratios[len(ratios)//4]:.2f} and {ratios[-1-len(ratios)//4]:.2f}): {len(order)/tars:6.0f} fields/s from '
          f'tars, {len(order)/files:6.0f} from PNG', flush=True)


def size_of(folder): return sum(p.stat().st_size for p in folder.iterdir()), sum(1 for _ in folder.iterdir())


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--n', type=int, default=4000, help='fields of view')
    parser.add_argument('--size', type=int, default=512, help='pixels of a side')
    parser.add_argument('--threads', type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument('--drop-caches', action='store_true', help='empty the cache of the whole machine; root only')
    parser.add_argument('--folder', help='keep the pictures here, for another run')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        base = Path(args.folder or tmp)
        files, tars = base/'files', base/'tars'
        if not files.exists():
            files.mkdir(parents=True)
            n = -(-args.n//EACH)
            with ProcessPoolExecutor(args.threads) as pool: list(pool.map(draw, [files]*n, range(n), [args.size]*n))
        start = time.perf_counter()
        if not (tars/'pack.json').exists(): print(pack_images(files, tars, progress=False))
        tables = [find_images(folder) for folder in (files, tars)]
        assert tables[0].Id.tolist() == tables[1].Id.tolist()
        cpu = next((line.split(':')[1].strip() for line in Path('/proc/cpuinfo').read_text().splitlines()
                    if line.startswith('model name')), platform.processor())
        disk = subprocess.run(['findmnt', '-no', 'SOURCE,FSTYPE', '-T', base], capture_output=True, text=True).stdout
        print(f'{cpu}, {args.threads} threads, load {os.getloadavg()[0]:.1f}, {disk.strip()}; packed in '
              f'{time.perf_counter()-start:.0f} s')
        for folder in (files, tars): print('{}: {:,} bytes in {:,} files'.format(folder.name, *size_of(folder)))
        reader = ImageReader()
        for i in range(0, len(tables[0]), 97):
            assert np.array_equal(*(reader.array(table.iloc[i]) for table in tables)), 'other pixels'
        how = 'caches of the machine dropped' if args.drop_caches else 'POSIX_FADV_DONTNEED'
        for read, what in ((reader.array, 'read'), (only_bytes, 'bytes only')):
            for shuffled in (False, True):
                order = 'at random' if shuffled else 'in order'
                compare(f'{what}, {order}, cold ({how})', tables, read, args.threads, True, args.drop_caches, shuffled)
            compare(f'{what}, in order, warm', tables, read, args.threads, False, False, False)
