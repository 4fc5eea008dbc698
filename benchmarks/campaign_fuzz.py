"The part of campaign.py that reads changed files: valid samples, readers beside strict ones, and watched workers."
import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
import numpy as np
from campaign_mutations import change_files

sys.path.insert(0, str(Path(__file__).parent.parent/'tests'))  # files as microscopes write them

MOST_SECONDS, MOST_MEGABYTES, HANGS = 2, 500, 30
JOB = 2000    # inputs of a worker, which is a process of its own


def png_samples(folder, field):
    from PIL import Image
    grey, colour = Image.fromarray(field[0]), Image.fromarray(field[:3].transpose(1, 2, 0).copy())
    grey.save(folder/'grey.png')
    Image.fromarray(field[1].astype(np.uint16)*257).save(folder/'grey 16.png')
    colour.save(folder/'rgb.png')
    Image.fromarray(field.transpose(1, 2, 0).copy()).save(folder/'rgba.png')
    grey.convert('LA').save(folder/'grey and alpha.png')
    colour.quantize(16).save(folder/'palette.png')
    Image.fromarray((field[0] > 40).astype(np.uint8)*7).save(folder/'mask.png')


def tiff_samples(folder, field):
    import tifffile
    from PIL import Image
    write, deep = tifffile.imwrite, field.astype(np.uint16)*16
    for compression in ('tiff_lzw', 'jpeg', 'zstd', 'packbits'):
        Image.fromarray(field[0]).save(folder/f'{compression}.tif', compression=compression)
    Image.fromarray(field[:3].transpose(1, 2, 0).copy()).save(folder/'rgb lzw.tif', compression='tiff_lzw')
    write(folder/'plain.tif', field[0], metadata=None)
    write(folder/'deflate.tif', deep[0], compression='zlib', rowsperstrip=16, metadata=None)
    write(folder/'tiled.tif', deep, tile=(16, 16), compression='zlib', photometric='minisblack')
    write(folder/'imagej.tif', deep[None], imagej=True, metadata=dict(axes='ZCYX', Labels=['a', 'b', 'c', 'd']))
    write(folder/'big.tif', deep, bigtiff=True, photometric='minisblack')
    write(folder/'float.tif', field[0].astype(np.float32)/255, metadata=None, byteorder='>')
    write(folder/'ome.ome.tif', deep, ome=True, photometric='minisblack', metadata=dict(axes='CYX'))
    set_of_files = folder/'set'
    set_of_files.mkdir()
    names = [f'part{c}.ome.tif' for c in range(4)]
    data = ''.join(f'<TiffData FirstC="{c}" IFD="0" PlaneCount="1"><UUID FileName="{name}">urn:uuid:{c}</UUID>'
                   '</TiffData>' for c, name in enumerate(names))
    channels = ''.join(f'<Channel ID="Channel:0:{c}" SamplesPerPixel="1"/>' for c in range(4))
    for c, name in enumerate(names):
        text = ('<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
                f'UUID="urn:uuid:{c}"><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" '
                f'SizeX="48" SizeY="48" SizeC="4" SizeZ="1" SizeT="1">{channels}{data}</Pixels></Image></OME>')
        write(set_of_files/name, deep[c], description=text, metadata=None)


def jpg_samples(folder, field):
    from PIL import Image
    grey, colour = Image.fromarray(field[0]), Image.fromarray(field[:3].transpose(1, 2, 0).copy())
    grey.save(folder/'grey.jpg')
    colour.save(folder/'rgb.jpg', quality=90)
    colour.save(folder/'progressive.jpg', progressive=True, subsampling=0, exif=b'Exif\0\0II*\0\x08\0\0\0\0\0')
    colour.save(folder/'restarts.jpg', restart_marker_rows=1)
    colour.convert('CMYK').save(folder/'cmyk.jpg')


def zarr_samples(folder, field):
    import zarr
    from zarr import codecs
    axes = [dict(name='c', type='channel'), dict(name='y', type='space'), dict(name='x', type='space')]
    scales = [dict(version='0.4', axes=axes, datasets=[dict(path='0')])]
    channels = dict(channels=[dict(label=name) for name in ('red', 'green', 'blue', 'yellow')])
    packed = {2: ['blosc', 'zstd', 'gzip', None], 3: [codecs.BloscCodec(), codecs.ZstdCodec(checksum=True),
                                                     codecs.GzipCodec(), None]}
    for form, compressors in packed.items():
        for name, compressor in zip(('blosc', 'zstd', 'gzip', 'plain'), compressors):
            if form == 2 and name != 'plain':
                import numcodecs
                compressor = numcodecs.get_codec(dict(id=compressor))
            root = zarr.open_group(str(folder/f'{name}{form}.zarr'), mode='w', zarr_format=form)
            meta = dict(multiscales=scales, omero=channels)
            root.attrs.update(meta if form == 2 else dict(ome=meta))
            root.create_array('0', data=field.astype(np.uint16)*16, chunks=(1, 48, 24), compressors=compressor)
    root = zarr.open_group(str(folder/'shards.zarr'), mode='w')
    root.attrs.update(dict(ome=dict(multiscales=scales)))
    root.create_array('0', data=field, chunks=(1, 24, 24), shards=(2, 48, 48))


def plate_samples(folder, _):
    import microscopes
    microscopes.write_operetta(folder/'phenix.plate', [(3, 11)], n_fields=1)
    microscopes.write_operetta(folder/'phenix6.plate', [(3, 11)], n_fields=1, version=6, planes=2)
    microscopes.write_image_xpress(folder/'express.plate', planes=2)
    microscopes.write_yokogawa(folder/'voyager.plate')
    for version in (2, 3): microscopes.write_zarr_plate(folder/f'ngff{version}.zarr', n_fields=1, version=version)


def lif_samples(folder, field):
    from microscope_files import DYES, lif_of
    deep = field.astype(np.uint16)*16
    (folder/'fields.lif').write_bytes(lif_of({'A1': (deep, 'CYX', DYES), 'A2': (field[:2], 'CYX', DYES[:2])}, bits=12))
    (folder/'stack.lif').write_bytes(lif_of({'A1': (np.stack([deep]*2), 'ZCYX', DYES),
                                             'tiles': (np.stack([deep]*2), 'MCYX', DYES)}))
    (folder/'scan.lif').write_bytes(lif_of({'scan': (field, 'λYX', ['Green LUT']), 'A1': (field, 'CYX', DYES)}))


def czi_samples(folder, field):
    from microscope_files import write_czi
    deep = field.astype(np.uint16)*16
    write_czi(folder/'scenes.czi', np.stack([deep]*2)[:, None, None])
    write_czi(folder/'stack.czi', np.stack([deep]*4).reshape(1, 2, 2, *deep.shape))
    write_czi(folder/'packed.czi', deep[None, None, None], compression='zstd1:ExplicitLevel=2')
    write_czi(folder/'colour.czi', field[:3].transpose(1, 2, 0).copy()[None, None, None, None], ['camera'])
    write_czi(folder/'tiles.czi', np.stack([field]*2)[:, None, None], apart=(40, 0))


def nd2_samples(folder, field):
    from microscope_files import DYES, nd2_of
    deep = (field.astype(np.uint16)*16).transpose(1, 2, 0)
    (folder/'points.nd2').write_bytes(nd2_of(np.stack([deep]*4).reshape(2, 1, 2, *deep.shape), DYES, ['P1', 'P2']))
    (folder/'times.nd2').write_bytes(nd2_of(np.stack([deep]*2).reshape(1, 2, 1, *deep.shape), DYES, ['P1']))
    (folder/'packed.nd2').write_bytes(nd2_of(deep[None, None, None], DYES, ['P1'], packed=True))


def npy_samples(folder, field):
    mask = np.zeros((48, 48), np.int32)
    for k in range(4): mask[2+11*k:10+11*k, 4:40] = k+1
    for name, array in dict(int32=mask, uint16=mask.astype(np.uint16), columns=np.asfortranarray(mask.astype(np.uint8)),
                            yes_no=mask > 0, real=mask.astype(np.float64), four=mask[None]).items():
        np.save(folder/f'{name}.npy', array)


def table_samples(folder, field):
    import pandas as pd
    ids = [f'{k:08x}-bb99-11e8-b2b9-ac1f6b6435d0' for k in range(12)]
    targets = [f'{k % 28} {(k*7+1) % 28}' for k in range(12)]
    labels = pd.DataFrame(dict(Id=ids, Target=targets, group=[k//3 for k in range(12)]))
    paths = pd.DataFrame({'Id': ids, **{c: [f'{i}_{c}.png' for i in ids] for c in ('red', 'green', 'blue', 'yellow')}})
    scores = {f'p_{n}': np.round(np.linspace(0, 1, 12), 3) for n in range(28)}
    for name, table in dict(labels=labels, paths=paths, scores=labels.assign(**scores)).items():
        table.to_csv(folder/f'{name}.csv', index=False)
        table.to_excel(folder/f'{name}.xlsx', index=False)
    labels.to_csv(folder/'semicolons.csv', sep=';', index=False, encoding='utf-16')


def picture_reads():
    from hpa_fastai.cells.masks import read_mask
    from hpa_fastai.formats.pictures import open_planes
    return dict(header=lambda path: open_planes(path, header=True), planes=open_planes, mask=read_mask)


def store_reads():
    reads = picture_reads()
    reads.pop('mask')
    return reads


def positions_reads():
    from hpa_fastai.data.files import find_images
    from hpa_fastai.formats.microscopes import positions_of
    from hpa_fastai.formats.pictures import open_planes
    def read(path):
        n = len(positions_of(path))
        for k in range(min(n, 3)): planes = open_planes(f'{path}#{k}@0', z='max')
        return planes if n else open_planes(path)
    return dict(header=lambda path: open_planes(f'{path}#0@0', z='max', header=True), planes=read,
                listed=lambda path: find_images([path], time='first'))


def plate_reads():
    from hpa_fastai.data.image_tables import image_table
    from hpa_fastai.data.reader import ImageReader
    reader = ImageReader(missing='zero', z='max')
    def read(path):
        rows = image_table(path, time='first').head(2).to_dict('records')
        return [reader.array(row) for row in rows]
    return dict(table=lambda path: image_table(path, time='first'), pictures=read)


def mask_reads():
    from hpa_fastai.cells.masks import read_mask
    return dict(mask=read_mask)


def table_reads():
    from hpa_fastai.basics.spreadsheets import read_table
    from hpa_fastai.data.files import find_images
    from hpa_fastai.data.label_tables import read_labels
    return dict(table=read_table, labels=read_labels, paths=find_images)


def strict_jpg(path):
    from PIL import Image
    with Image.open(path) as im: im.verify()
    with Image.open(path) as im: im.load()


def strict_png(path):
    "Read a PNG by Pillow, which checks its sums; without the chunks that a reader may pass over"
    data = Path(path).read_bytes()
    at, needed = 8, [data[:8]]
    while at+12 <= len(data):
        n = 12 + int.from_bytes(data[at:at+4], 'big')
        if not data[at+4] & 32: needed.append(data[at:at+n])  # a capital letter
        at += n
    strict_jpg(io.BytesIO(b''.join(needed)))


DECODERS = {5: 'lzw', 7: 'jpeg8', 8: 'zlib', 32946: 'zlib', 32773: 'packbits', 50000: 'zstd'}  # of imagecodecs


def strict_tiff(path):
    "Decode each strip and tile of a TIFF by imagecodecs, and count the bytes"
    import imagecodecs
    import tifffile
    with tifffile.TiffFile(path) as tif:
        for page in tif.series[0].pages:
            if page is None: raise ValueError('a plane is missing')
            first, data_of_file = page.keyframe, Path(page.parent.filehandle.path).read_bytes()
            decoder = DECODERS.get(first.compression)
            if first.compression != 1 and not decoder: continue
            for k, (at, n) in enumerate(zip(page.dataoffsets, page.databytecounts)):
                data = data_of_file[at:at+n]
                settings = dict(tables=first.jpegtables) if decoder == 'jpeg8' and first.jpegtables else {}
                if decoder: data = getattr(imagecodecs, f'{decoder}_decode')(data, **settings)
                rows = first.chunks[0]
                if not first.is_tiled and len(first.chunked) == 3 and k == len(page.dataoffsets)-1:
                    rows = first.imagelength - k*rows
                if decoder != 'jpeg8' and len(data) < first.bitspersample*np.prod(first.chunks[1:])*rows//8:
                    raise ValueError('a strip or tile is too short')


def no_strict(path): pass


KINDS = {  # a new reader is a line: samples, reads, strict reader
    'PNG': (png_samples, picture_reads, strict_png),
    'TIFF': (tiff_samples, picture_reads, strict_tiff),
    'JPG': (jpg_samples, picture_reads, strict_jpg),
    'OME-Zarr': (zarr_samples, store_reads, no_strict),
    'LIF': (lif_samples, positions_reads, no_strict),
    'CZI': (czi_samples, positions_reads, no_strict),
    'ND2': (nd2_samples, positions_reads, no_strict),
    'plates': (plate_samples, plate_reads, no_strict),
    'npy': (npy_samples, mask_reads, no_strict),
    'tables': (table_samples, table_reads, no_strict),
}


def load_samples(folder):
    "The files of each sample: [(name, {name within: content})]"
    found = []
    for path in sorted(folder.iterdir()):
        files = sorted(f for f in path.rglob('*') if f.is_file()) if path.is_dir() else [path]
        found.append((path.name, {str(f.relative_to(folder)): f.read_bytes() for f in files}))
    return found


def make_input(samples, seed, kind, index):
    "The files of an input, and the one that is opened: both follow from the seed"
    rng = np.random.default_rng([seed, [*KINDS].index(kind), index])
    name, files = samples[rng.integers(len(samples))]
    opened = name if name.endswith(('.zarr', '.plate')) else sorted(files)[0]
    return change_files(rng, files), opened


def write_input(folder, files):
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        (folder/name).write_bytes(content)


def megabytes(what):
    return int(re.search(what+rb':\s+(\d+)', Path('/proc/self/status').read_bytes())[1])/1000


def place_of(error):
    "The line of the package that an exception came from, and its message without numbers"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if 'hpa_fastai' in f.filename]
    where = f'{Path(frames[-1].filename).name}:{frames[-1].lineno}' if frames else ''
    said = re.sub(r'/.*?\.(png|jpg|tif|zarr|lif|czi|nd2|npy|csv|xlsx)\b', 'FILE', ' '.join(str(error).split()))
    return f"{type(error).__name__} {where} {re.sub('[0-9]+', '#', said)[:110]}"


def work(kind, seed, start, stop, folder, samples):
    "Read a range of inputs; where it is and what it found stand in files, so that a crash keeps them"
    from hpa_fastai.basics.errors import HPAError
    warnings.simplefilter('ignore')
    resource.setrlimit(resource.RLIMIT_AS, (8*10**9,)*2)
    _, make_reads, strict = KINDS[kind]
    reads, samples = make_reads(), load_samples(samples)
    write_input(folder/'files', dict(samples[0][1]))
    state = dict(index=start, step='', tried=0, read=0, refused=0, slowest=(0., ''), most=(0., ''))
    at = os.open(folder/'state', os.O_CREAT | os.O_WRONLY)
    events = open(folder/'events', 'a', buffering=1)
    def tell(what, group): events.write(json.dumps([what, kind, state['index'], f"{state['step']}: {group}"])+'\n')
    for index in range(start, stop):
        files, opened = make_input(samples, seed, kind, index)
        write_input(folder/'files', files)
        path = str(folder/'files'/opened)
        for step, read in reads.items():
            state.update(index=index, step=step)
            os.pwrite(at, json.dumps(state).encode().ljust(400), 0)
            Path('/proc/self/clear_refs').write_text('5')
            memory, began = megabytes(b'VmRSS'), time.process_time()
            said, refused = '', False
            try: read(path)
            except HPAError as e:
                refused, said = True, str(e)
                if '\n' in said or 'MemoryError' in said: tell('faults', place_of(e))
                elif re.search(r'cannot be read \(\w+(Error|Exception)', said): tell('unexplained', place_of(e))
            except BaseException as e:
                refused = True
                tell('faults', place_of(e))
            took, grown = time.process_time()-began, megabytes(b'VmHWM')-memory
            if took > MOST_SECONDS: tell('slow', f'{took:.1f} s')
            if grown > MOST_MEGABYTES: tell('large', f'{grown:.0f} MB')
            name = f'{kind} {index} {step}'
            state['slowest'], state['most'] = max(state['slowest'], (took, name)), max(state['most'], (grown, name))
            state['refused' if refused else 'read'] += 1
            if step == 'planes' and not refused:
                state['step'] = 'strict'
                try: strict(path)
                except Exception as e: tell('lenient', f"{opened.rpartition('.')[0]} {place_of(e)}")
        state['tried'] += 1
    os.pwrite(at, json.dumps(dict(state, index=stop)).encode().ljust(400), 0)


def read_state(folder):
    try: return json.loads((folder/'state').read_bytes())
    except (OSError, ValueError): return None


def watch(jobs, workers, seed, samples, tmp):
    "Run a worker for each job, and go on behind an input that ends or stops one; yields (folder, state, crashes)"
    waiting, running, n = list(jobs), {}, 0
    while waiting or running:
        while waiting and len(running) < workers:
            kind, start, stop = waiting.pop(0)
            folder = tmp/f'job{(n := n+1)}'
            folder.mkdir()
            command = [sys.executable, '-W', 'ignore', __file__, kind, str(seed), str(start), str(stop), str(folder),
                       str(samples/kind)]
            log = open(folder/'stderr', 'wb')
            running[subprocess.Popen(command, stdout=log, stderr=log)] = folder, kind, start, stop
        time.sleep(.05)
        for process, (folder, kind, start, stop) in list(running.items()):
            silent = time.time() - max((f.stat().st_mtime for f in folder.glob('state')), default=time.time())
            if process.poll() is None and silent < HANGS: continue
            hangs, state = process.poll() is None, read_state(folder)
            process.kill()
            process.wait()
            del running[process]
            crashes = []
            if state is None or process.returncode == 1:
                raise SystemExit(f'a worker for {kind} {start} failed: {(folder/"stderr").read_text()[-900:]}')
            if state['index'] < stop:
                what = ('hangs', f'{HANGS} s') if hangs else ('crashes', f'rc {process.returncode}')
                crashes.append([what[0], kind, state['index'], f"{state['step']}: {what[1]}"])
                state['tried'] += 1
                if state['index']+1 < stop: waiting.insert(0, (kind, state['index']+1, stop))
            yield folder, state, crashes


def fuzz(kinds=tuple(KINDS), inputs=200_000, seed=0, workers=2, keep=None, first=0, progress=False):
    """Read changed files of each kind; the figures and the findings {what: Counter of groups}, with the first input
    of each in the folder `keep`"""
    from hpa_fastai.simulate.atlas import simulate_fov
    field = simulate_fov([0, 25], size=48, seed=seed)[0]
    figures = dict(tried=0, read=0, refused=0, slowest=(0., ''), most=(0., ''))
    found, firsts = {}, {}
    memory = '/dev/shm' if os.access('/dev/shm', os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory, prefix='campaign-') as tmp:
        tmp = Path(tmp)
        for kind in kinds:
            (tmp/'samples'/kind).mkdir(parents=True)
            KINDS[kind][0](tmp/'samples'/kind, field)
        each = -(-inputs//len(kinds))
        jobs = [(kind, first+k, first+min(k+JOB, each)) for k in range(0, each, JOB) for kind in kinds]
        for folder, state, crashes in watch(jobs, workers, seed, tmp/'samples', tmp):
            for name in ('tried', 'read', 'refused'): figures[name] += state[name]
            for name in ('slowest', 'most'): figures[name] = max(figures[name], tuple(state[name]))
            events = [json.loads(line) for line in open(folder/'events')] if (folder/'events').exists() else []
            for what, kind, index, group in events+crashes:
                found.setdefault(what, Counter())[f'{kind} {group}'] += 1
                firsts.setdefault((what, f'{kind} {group}'), (kind, index))
            shutil.rmtree(folder)
            if progress: print(f"{figures['tried']:,} of {each*len(kinds):,}", end='\r', file=sys.stderr, flush=True)
        if keep:
            for kind, index in set(firsts.values()):
                files, _ = make_input(load_samples(tmp/'samples'/kind), seed, kind, index)
                write_input(Path(keep)/f'{kind}-{index}', files)
    return figures, found, firsts


def describe(figures, found, firsts, most=25):
    "The lines that are printed"
    yield (f"inputs tried {figures['tried']:,}; reads that gave pixels or a table {figures['read']:,}, "
           f"refused {figures['refused']:,}")
    yield 'slowest {:.2f} s ({}), most memory {:.0f} MB ({})'.format(*figures['slowest'], *figures['most'])
    for what in ('crashes', 'hangs', 'faults', 'slow', 'large', 'lenient', 'unexplained'):
        groups = found.get(what, Counter())
        yield f'{what}: {sum(groups.values())}'
        for group, n in groups.most_common(most): yield f'  {n:6,} × {group} (input {firsts[what, group][1]})'


if __name__ == '__main__':
    kind, *numbers, folder, samples = sys.argv[1:]
    work(kind, *map(int, numbers), Path(folder), Path(samples))
