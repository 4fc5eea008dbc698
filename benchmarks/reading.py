"How fast images are found, checked and read: each figure beside a plain Pillow loop, or its limit, in the same run."
import argparse, os, statistics, subprocess, sys, tempfile, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
import numpy as np
from PIL import Image
from hpa_fastai.formats.pictures import reading_pool
from hpa_fastai.data.reader import ImageReader
from hpa_fastai.formats.names import CHANNELS
from hpa_fastai.data.files import find_images
from hpa_fastai.data.verify import verify_folder

def plain_loop(row, size):
    return np.stack([np.asarray(Image.open(row[c]).convert('L').resize((size, size))) for c in CHANNELS])

def decode_only(row, size):
    for c in CHANNELS: Image.open(row[c]).load()

def seconds(f, rows):
    start = time.perf_counter()
    for r in rows: f(r)
    return time.perf_counter()-start

def compare(name, rows, size, repeat, wanted, bound=False):
    "Ours and the plain loop take turns, so that both see the same machine; the median of the ratios counts"
    ours = ImageReader(size).array
    loops = [lambda r: plain_loop(r, size), ours] + ([lambda r: decode_only(r, size)] if bound else [])
    for f in loops: f(rows[0])
    runs = [[seconds(f, rows)/len(rows) for f in loops] for _ in range(repeat)]
    ratio = [statistics.median(r[0]/r[i] for r in runs) for i in range(1, len(loops))]
    best = [min(t) for t in zip(*runs)]
    line = f'{name:34} {ratio[0]:5.2f} times the plain loop (wanted {wanted})'
    line += f'; FOVs/s a core: ours {1/best[1]:.1f}, plain {1/best[0]:.1f}'
    print(line + (f'; decoding alone would be {ratio[1]:.2f} times' if bound else ''), flush=True)

def read_all(rows, size):
    for r in rows: ImageReader(size).array(r)

def threads(name, rows, size, repeat):
    "One thread, two and two processes, each with all rows, beside the plain loop in one thread"
    def run(pool): return seconds(lambda _: list(pool.map(read_all, [rows]*2, [size]*2)), [0])/2
    with reading_pool(2) as t, ProcessPoolExecutor(2, mp_context=get_context('forkserver')) as p:
        for pool in (t, p): list(pool.map(read_all, [rows[:2]]*2, [size]*2))
        runs = [
            (seconds(lambda r: plain_loop(r, size), rows), seconds(lambda _: read_all(rows, size), [0]), run(t), run(p))
            for _ in range(repeat)
        ]
    plain, one, two, processes = (len(rows)/min(r) for r in zip(*runs))
    print(
        f'{name:34} {two / plain:5.2f} times the plain loop by two threads ({two:.0f} FOVs/s; one {one:.0f}, plain '
        f'{plain:.0f}); {processes / plain:.2f} times by two processes ({len(os.sched_getaffinity(0))} cores, load '
        f'{os.getloadavg()[0]:.1f})',
        flush=True,
    )

def listing(n=25_000):
    with tempfile.TemporaryDirectory() as folder:
        for i in range(n):
            for c in CHANNELS: open(f'{folder}/{i:08x}-bb99-11e8-b2b9-ac1f6b6435d0_{c}.png', 'w').close()
        best = min(seconds(find_images, [folder]) for _ in range(3))
    print(f'{"find_images, "+format(4*n, ",")+" files":34} {best:5.2f} s (wanted under 1.5)', flush=True)

def headers(name, folder, n):
    best = min(seconds(lambda f: verify_folder(f, progress=False), [folder]) for _ in range(3))
    print(f'{"verify_folder, headers, "+name:34} {n/best:5.0f} FOVs/s (wanted 1500 for PNG; {n} FOVs)', flush=True)

def tiff_copy(rows, folder):
    for r in rows:
        for c in CHANNELS: Image.open(r[c]).save(Path(folder)/f'{r["Id"]}_{c}.tif', compression='tiff_lzw')

_memory = '''
import re, sys
from pathlib import Path
from hpa_fastai.data.reader import ImageReader
from PIL import Image
from hpa_fastai.data.files import find_images
folder, small, size, depth = sys.argv[1:]
ImageReader(64).array(find_images(small).iloc[0])
def kib(what): return int(re.search(what+r':\\s+(\\d+)', Path('/proc/self/status').read_text())[1])
Path('/proc/self/clear_refs').write_text('5') # forget the peak of importing
before = kib('VmRSS')
x = ImageReader(int(size) or None).array(find_images(folder).iloc[0])
print((kib('VmHWM')-before)*1024/(4*3072*3072*int(depth)))
'''

def large_copy(row, folder, ext, depth):
    "A 3072 px field of the pixels of a real one, and a small one of the same kind"
    for size in (3072, 64):
        to = folder/f'{size} {ext} {depth}'
        to.mkdir()
        for c in CHANNELS:
            a = np.asarray(Image.open(row[c])).astype(np.uint8 if depth==1 else np.uint16)*(1 if depth==1 else 257)
            Image.fromarray(np.pad(a, (0, max(0, size-len(a))), mode='reflect')[:size,:size]).save(to/f'x_{c}.{ext}')
        yield to

def memory(row):
    """Largest resident size of a new process while it reads a field, less that before, in units of the decoded
    size (Linux)"""
    with tempfile.TemporaryDirectory() as folder:
        for ext,depth in (('png',1), ('png',2), ('tif',2)):
            large,small = large_copy(row, Path(folder), ext, depth)
            for size in (512, 0):
                out = subprocess.run(
                    [sys.executable, '-c', _memory, large, small, str(size), str(depth)],
                    capture_output=True,
                    text=True,
                    check=True,
                )
                print(
                    f'{f"memory, 3072 px {8 * depth}-bit {ext} to {size or 3072}":34} {float(out.stdout):5.2f} times '
                    'the decoded size (wanted at most 3)',
                    flush=True,
                )

def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--real-data', required=True, type=Path, help='folder with mosaic/ and native/')
    parser.add_argument('--fields', type=int, default=60, help='fields of view of 512 px a run')
    parser.add_argument('--repeat', type=int, default=5, help='runs; the median counts')
    args = parser.parse_args()
    mosaic = find_images(args.real_data/'mosaic'/'images').to_dict('records')
    native = find_images(args.real_data/'native').to_dict('records')
    width = {r['Id']: Image.open(r['red']).size[0] for r in native}
    kind = lambda ext, w: [r for r in native if r['red'].endswith(ext) and width[r['Id']]==w]
    compare('512 px PNG to 128 px', mosaic[:args.fields], 128, args.repeat, 1.25, bound=True)
    compare('2048 px JPG to 512 px', kind('jpg', 2048), 512, args.repeat, 2.5)
    compare('2048 px PNG to 512 px', kind('png', 2048), 512, args.repeat, 1.2, bound=True)
    threads('512 px PNG to 128 px, in parallel', mosaic[:args.fields], 128, 2*args.repeat)
    threads('2048 px PNG to 512 px, in parallel', kind('png', 2048), 512, args.repeat)
    listing()
    headers('PNG', args.real_data/'mosaic'/'images', len(mosaic))
    with tempfile.TemporaryDirectory() as folder:
        tiff_copy(mosaic[:100], folder)
        headers('TIFF', folder, 100)
    memory(kind('png', 2048)[0])

if __name__ == '__main__': main()
