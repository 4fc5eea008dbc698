"Near-duplicates: speed of fingerprinting beside decoding, and recall and false pairs on planted copies"
import argparse, itertools, tempfile, time
from pathlib import Path
import numpy as np, pandas as pd
from PIL import Image
from hpa_fastai.data.duplicates import *
from hpa_fastai.formats.names import *
from hpa_fastai.data.files import *
from hpa_fastai.data.reader import *
from hpa_fastai.simulate.atlas import simulate_atlas

def turned(fov, rng): return np.rot90(fov, rng.integers(1, 4), (1, 2))
def flipped(fov, rng): return np.flip(fov, rng.integers(1, 3))
def brighter(fov, rng): return (fov*1.2).clip(0, 255).astype(np.uint8)
def same(fov, rng): return fov
def everything(fov, rng): return turned(flipped(brighter(fov, rng), rng), rng)

kinds = {
    'turned': (turned, 'png'),
    'flipped': (flipped, 'png'),
    'jpg q85': (same, 'jpg'),
    'brightness x1.2': (brighter, 'png'),
    'all four': (everything, 'jpg'),
}

def plant(table, folder, seed=0):
    "One changed copy of every field, the kinds of change in turn; gives the kind by Id of the copy."
    rng, reader, kind_of = np.random.default_rng(seed), ImageReader(missing='zero'), {}
    for row,(kind,(change,ending)) in zip(table.to_dict('records'), itertools.cycle(kinds.items())):
        for channel,plane in zip(CHANNELS, np.ascontiguousarray(change(reader.array(row), rng))):
            Image.fromarray(plane).save(
                folder / f'copy-{row["Id"]}_{channel}.{ending}', **(dict(quality=85) if ending == 'jpg' else {})
            )
        kind_of[f'copy-{row["Id"]}'] = kind
    return kind_of

def blank(folder, n, size=128):
    "Fields whose protein channel shows nothing: black, constant, and constant with camera noise."
    rng = np.random.default_rng(1)
    for i in range(n):
        for channel in CHANNELS:
            green = (
                np.zeros((size, size))
                if i % 3 == 0
                else np.full((size, size), 7.0) + (i % 3 == 2) * rng.normal(0, 1, (size, size))
            )
            plane = green if channel=='green' else np.zeros((size, size))
            Image.fromarray(plane.clip(0, 255).astype(np.uint8)).save(folder/f'blank{i}_{channel}.png')

def recall(name, table, of_group):
    "Recall by kind of change, and false pairs, for one source of images."
    with tempfile.TemporaryDirectory() as tmp:
        kind_of = plant(table, Path(tmp))
        blank(Path(tmp), 30)
        both = pd.concat([table, find_images(tmp)], ignore_index=True)
        pairs = duplicate_pairs(both)
    found = {frozenset(p) for p in zip(pairs.Id, pairs.other)}
    planted = {c: frozenset((c, c.removeprefix('copy-'))) for c in kind_of}
    hit = pd.Series({c: p in found for c,p in planted.items()}).groupby(pd.Series(kind_of)).mean()
    original = lambda i: i.removeprefix('copy-')
    other = [p for p in found if len({original(i) for i in p})>1]
    related = [p for p in other if len({of_group.get(original(i)) for i in p})==1]
    n = len(both)
    print(f'{name}: {len(table)} fields, one copy each, 30 blank fields')
    for k in kinds: print(f'   recall, {k:<16} {hit[k]:7.2%}')
    print(f'   recall, all              {np.mean([p in found for p in planted.values()]):7.2%}')
    print(
        f'   pairs that were not planted: {len(other)} of {len(found)} found ({len(related)} of these within one '
        f'group of the source), {len(other) / (n * (n - 1) / 2):.1e} of all pairs'
    )
    print(f'   pairs with a blank field: {sum(any(i.startswith("blank") for i in p) for p in found)}')

def speed(name, table, fields, chunk=25):
    """Fields a second, decoded in full and fingerprinted, on one thread; in small chunks taken in turn, since
    other work on the machine comes and goes."""
    rows = pd.concat([table]*-(-fields//len(table)), ignore_index=True).head(fields)
    reader, times = ImageReader(missing='zero'), []
    decode = lambda part: [reader.array(row) for row in part.to_dict('records')]
    for k in range(0, len(rows), chunk):
        part, took = rows.iloc[k:k+chunk], {}
        for what, f in list(dict(decode=decode, fingerprint=lambda p: fingerprints(p, num_workers=1)).items())[
            :: 1 if k // chunk % 2 else -1
        ]:
            t = time.perf_counter()
            f(part)
            took[what] = (time.perf_counter() - t) / len(part)
        times.append(took)
    t = pd.DataFrame(times)
    ratio = (t.decode/t.fingerprint).median()
    print(
        f'{name}, {fields} fields: decode {1 / t.decode.median():.0f} fields/s, fingerprint (files to fingerprint) '
        f'{1 / t.fingerprint.median():.0f} fields/s, {ratio:.0%} of the speed of decoding'
    )

def search(n):
    "Seconds to find the pairs among n fingerprints."
    rng = np.random.default_rng(0)
    prints = rng.normal(size=(n, 4, 144)).astype(np.float32)
    fp = Fingerprints(
        [f'{i:06}' for i in range(n)],
        (prints / np.linalg.norm(prints, axis=2, keepdims=True)).astype(np.float16),
        np.full((n, 4), 9.0),
    )
    t = time.perf_counter()
    found = len(duplicate_pairs(fp))
    print(f'search among {n} fields: {time.perf_counter()-t:.1f} s, {found} pairs')

def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--real-data', help='folder with mosaic/images and mosaic/train.csv')
    p.add_argument('--n', type=int, default=300, help='simulated fields')
    p.add_argument('--size', type=int, default=512, help='px of a simulated field')
    p.add_argument('--speed-fields', type=int, default=10_000, help='fields to decode and fingerprint for the speed')
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        atlas = simulate_atlas(tmp, n=a.n, size=a.size, difficulty='easy', progress=False)
        sources = {f'simulated, {a.size} px': (find_images(f'{tmp}/train'), dict(zip(atlas.Id, atlas.antibody)))}
        if a.real_data:
            labels = pd.read_csv(f'{a.real_data}/mosaic/train.csv')
            sources['mosaic, 512 px'] = find_images(f'{a.real_data}/mosaic/images'), dict(zip(labels.Id, labels.group))
        for name,(table,group) in sources.items(): recall(name, table, group)
        for name,(table,_) in sources.items(): speed(name, table, a.speed_fields)
    search(10_000)

if __name__=='__main__': main()
