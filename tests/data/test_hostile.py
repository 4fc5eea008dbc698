"Files that were made to run code, to reach other files or to exhaust the machine are refused at once, in one line."
import gzip
import json
import os
import pickle
import struct
import subprocess
import sys
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile

from hpa_fastai.formats.pictures import png_chunk
from pictures import encoded

zarr, numcodecs = pytest.importorskip('zarr', minversion='3'), pytest.importorskip('numcodecs')

READ = '''
import json, resource, sys
from pathlib import Path
import numpy as np, tifffile, zarr
from hpa_fastai.basics.errors import ImageError
from hpa_fastai.formats.pictures import open_planes
from hpa_fastai.formats.ome import ome_set
from hpa_fastai.formats.pixel_size import stated_pixel_size
from hpa_fastai.cells.masks import read_mask
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e3
def tried(read):
    before = peak()
    try: said = f'read: {type(read())}'
    except Exception as e: said = f'{type(e).__name__}: {e}'
    return dict(said=said, megabytes=peak()-before)
*warm_up, folder = sys.argv[1:]
for path in warm_up: open_planes(path)
found = {}
for path in sorted(Path(folder).iterdir()):
    if path.name=='pipe': continue
    for header in (True, False): found[f'{path.name} {header}'] = tried(lambda: open_planes(str(path), header=header))
    if path.suffix=='.zarr':
        import fsspec
        remote = f'memory://{path.name}'
        fsspec.filesystem('memory').put(str(path), f'/{path.name}', recursive=True)
        found[f'{path.name} storage'] = tried(lambda: open_planes(remote))
    else: found[f'{path.name} mask'] = tried(lambda: read_mask(path))
    found[f'{path.name} listed'] = tried(lambda: (ome_set(path), stated_pixel_size(path)))
print(json.dumps(found))
'''


def ome(body):
    schema = 'http://www.openmicroscopy.org/Schemas/OME/2016-06'
    return f'<OME xmlns="{schema}"><Image><Pixels {body}</Pixels></Image></OME>'


def write_tiff(path, **kwargs):
    tifffile.imwrite(path, np.full((64, 64), 7, np.uint8), metadata=None, **kwargs)


def pages_of_one_strip(path, n=128, side=8192):
    "A TIFF whose pages share the bytes of one strip"
    strip, at, pages = zlib.compress(bytes(side*side), 9), 8, []
    start = 8 + n*(2 + 9*12 + 4)
    for k in range(n):
        tags = [(256,3,1,side), (257,3,1,side), (258,3,1,8), (259,3,1,8), (262,3,1,1), (273,4,1,start), (277,3,1,1),
                (278,3,1,side), (279,4,1,len(strip))]
        at += 2 + 9*12 + 4
        pages.append(struct.pack('<H', 9) + b''.join(struct.pack('<HHII', *t) for t in tags)
                     + struct.pack('<I', at if k<n-1 else 0))
    path.write_bytes(b'II*\0' + struct.pack('<I', 8) + b''.join(pages) + strip)


def one_strip(path, strip, side=64, next_page=0, codec=8):
    tags = [(256,3,1,side), (257,3,1,side), (258,3,1,8), (259,3,1,codec), (262,3,1,1), (273,4,1,122), (277,3,1,1),
            (278,3,1,side), (279,4,1,len(strip))]
    path.write_bytes(b'II*\0' + struct.pack('<IH', 8, 9) + b''.join(struct.pack('<HHII', *t) for t in tags)
                     + struct.pack('<I', next_page) + strip)


def write_zarr(path, shape=(4, 64, 64), chunk=(1, 64, 64), kind='<u2', compressor=None, filters=None, data=b'', at='0'):
    (path/'0').mkdir(parents=True)
    (path/'.zgroup').write_text('{"zarr_format": 2}')
    axes = [dict(name=n) for n in 'cyx']
    scales = [dict(version='0.4', axes=axes, datasets=[dict(path=at)])]
    (path/'.zattrs').write_text(json.dumps(dict(multiscales=scales)))
    array = dict(zarr_format=2, shape=shape, chunks=chunk, dtype=kind, compressor=compressor, filters=filters,
                 order='C', fill_value=0)
    (path/'0'/'.zarray').write_text(json.dumps(array))
    for k in range(shape[0] if data else 0): (path/'0'/f'{k}.0.0').write_bytes(data)


class Code:
    def __init__(self, file): self.file = file
    def __reduce__(self): return os.mkdir, (self.file,)


WHY = {
    'shared strip.tif': 'GB would be decoded', 'few shared.tif': 'its planes share their pixels',
    'channels.tif': 'GB would be decoded', 'imagej.tif': 'GB would be decoded', 'shaped.tif': 'GB would be decoded',
    'inflates.tif': 'longer than their pixels', 'wordy.tif': 'MB of metadata', 'circle.tif': 'in a circle',
    'absolute.tif': 'a file of another folder', 'parent.tif': 'a file of another folder', 'fifo.tif': 'a FIFO',
    'pickle.zarr': "the codec 'pickle'", 'objects.zarr': 'are not intensities', 'plugin.zarr': "the codec 'a_plugin'",
    'nothing.zarr': 'GB would be decoded', 'few chunks.zarr': 'no chunk of plane',
    'outside.zarr': 'outside of the store',
    'zstd.zarr': 'is larger than the chunks', 'gzip.zarr': 'is larger than the chunks',
    'blosc.zarr': 'is larger than the chunks', 'wordy.zarr': 'MB of metadata', 'copy.zarr': "the codec 'pickle'",
    'swells.tif': 'INSUFFICIENT_SPACE', 'jpeg.tif': 'states that it has 8000x8000 px',
    'scans.tif': 'of more than 64 scans',
    'jpeg 2000.tif': 'compression JPEG2000 is not read', 'words.tif': 'define words of their own',
    'scans.jpg': 'of more than 64 scans', 'chunks.png': 'chunks is refused', 'long.png': 'of values are refused',
    'long.jpg': 'of values are refused', 'parts.zarr': 'is larger than the chunks',
    'unstated.zarr': 'is larger than the chunks',
    'pair.zarr': 'together', 'crumbs.zarr': 'chunks are refused', 'shards.zarr': 'is larger than the chunks',
    'link.zarr': 'a link to a folder is in it', 'postscript.png': 'postscript.png: ',
}
IN_CHUNKS = {'zstd.zarr', 'gzip.zarr', 'blosc.zarr', 'parts.zarr', 'unstated.zarr', 'shards.zarr'}
IN_PIXELS = {'swells.tif', 'jpeg.tif', 'scans.tif', 'scans.jpg', 'chunks.png', 'long.png', 'long.jpg'}


@pytest.fixture(scope='module')
def read(tmp_path_factory):
    "What reading each file says, and how much memory it takes; one that hangs ends the run"
    tmp = tmp_path_factory.mktemp('hostile')
    folder, secret = tmp/'files', tmp/'secret.tif'
    folder.mkdir()
    write_tiff(secret)
    pages_of_one_strip(folder/'shared strip.tif')
    pages_of_one_strip(folder/'few shared.tif', 20)
    write_tiff(folder/'channels.tif', description=ome('SizeX="64" SizeY="64" SizeC="1000000000" Type="uint8">'))
    write_tiff(folder/'imagej.tif', description='ImageJ=1.53\nimages=1000000000\nslices=1000000000\n')
    write_tiff(folder/'shaped.tif', description='{"shape": [1000000000, 64, 64]}')
    one_strip(folder/'inflates.tif', zlib.compress(bytes(3*10**8), 1))
    write_tiff(folder/'wordy.tif', description='<OME ' + 'x'*100_000_000)
    one_strip(folder/'circle.tif', zlib.compress(bytes(4096)), next_page=8)
    for name, file in (('absolute', secret), ('parent', '../secret.tif'), ('fifo', 'pipe')):
        write_tiff(folder/f'{name}.tif', description=ome(
            f'SizeX="64" SizeY="64" SizeC="1" Type="uint8"><TiffData><UUID FileName="{file}"/></TiffData>'))
    os.mkfifo(folder/'pipe')
    code = pickle.dumps(Code(str(tmp/'ran')))
    write_zarr(folder/'pickle.zarr', filters=[dict(id='pickle', protocol=5)], data=code)
    write_zarr(folder/'objects.zarr', kind='|O', filters=[dict(id='pickle', protocol=5)], data=code)
    write_zarr(folder/'plugin.zarr', compressor=dict(id='a_plugin'), data=b'x')
    write_zarr(folder/'nothing.zarr', (120, 8192, 8192), (1, 8192, 8192))
    write_zarr(folder/'few chunks.zarr', (12, 8192, 8192), (1, 8192, 8192))
    write_zarr(folder/'outside.zarr', data=bytes(8192), at='../pickle.zarr/0')
    for codec, data in (('zstd', numcodecs.Zstd().encode(bytes(3*10**8))), ('gzip', gzip.compress(bytes(10**9), 1)),
                        ('blosc', numcodecs.Blosc('zstd').encode(bytes(3*10**8)))):
        write_zarr(folder/f'{codec}.zarr', compressor=dict(id=codec), data=bytes(data))
    write_zarr(folder/'wordy.zarr', data=bytes(8192))
    (folder/'wordy.zarr'/'.zattrs').write_text(json.dumps(dict(x='y'*100_000_000)))
    write_zarr(folder/'copy.zarr', filters=[dict(id='pickle', protocol=5)], data=code)
    plain = json.loads((folder/'wordy.zarr'/'0'/'.zarray').read_text())
    told = {'.zgroup': dict(zarr_format=2), '.zattrs': json.loads((folder/'copy.zarr'/'.zattrs').read_text()),
            '0/.zarray': plain}
    (folder/'copy.zarr'/'.zmetadata').write_text(json.dumps(dict(zarr_consolidated_format=1, metadata=told)))
    one_strip(folder/'swells.tif', zlib.compress(bytes(3*10**8), 1), side=4096)
    large, small = (imagecodecs.jpeg_encode(np.zeros((n, n), np.uint8)) for n in (8000, 64))
    one_strip(folder/'jpeg.tif', large, side=1000, codec=7)
    progressive = encoded(np.zeros((2048, 2048), np.uint8), 'JPEG', progressive=True)
    marker = progressive.rfind(b'\xff\xda')
    many = progressive[:-2] + progressive[marker:-2]*10_000 + progressive[-2:]
    (folder/'scans.jpg').write_bytes(many[:6_000_000] + many[-2:])
    one_strip(folder/'scans.tif', many[:6_000_000] + many[-2:], side=2048, codec=7)
    tifffile.imwrite(folder/'jpeg 2000.tif', np.zeros((64, 64), np.uint8), compression='jpeg2000')
    words = ''.join(f'<!ENTITY w{k} "{f"&w{k-1};"*99 if k else "w"*10_000}">' for k in range(5))
    write_tiff(folder/'words.tif', description=f'<!DOCTYPE OME [{words}]>' + ome('SizeC="1" Type="&w4;">'))
    png = encoded(np.full((64, 64), 7, np.uint8), 'PNG')
    (folder/'chunks.png').write_bytes(png[:33] + png_chunk(b'tEXt', b'a\0b')*500_000 + png[33:])
    for name, start in (('long.png', png), ('long.jpg', bytes(small))):
        (folder/name).write_bytes(start)
        os.truncate(folder/name, 2**33)
    (folder/'postscript.png').write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\nshowpage\n')
    zstd = dict(id='zstd', level=1)
    parts = [bytes(numcodecs.Zstd().encode(bytes(n))) for n in (9, 3*10**8)]
    write_zarr(folder/'parts.zarr', compressor=zstd, data=b''.join(parts))
    block = (2**17<<3 | 0b010).to_bytes(3, 'little') + b'\0'
    unstated = b'\x28\xb5\x2f\xfd\0\x58' + 7999*block + (2**17<<3 | 0b011).to_bytes(3, 'little') + b'\0'
    write_zarr(folder/'unstated.zarr', compressor=zstd, data=unstated)
    within = gzip.compress(gzip.compress(bytes(3*10**8), 9), 9)
    write_zarr(folder/'pair.zarr', compressor=dict(id='gzip'), filters=[dict(id='gzip')], data=within)
    write_zarr(folder/'crumbs.zarr', (4, 4096, 4096), (1, 1, 1), compressor=zstd, data=b'x')
    root = zarr.open_group(folder/'shards.zarr', mode='w', zarr_format=3)
    root.attrs['ome'] = dict(multiscales=[dict(axes=[dict(name=n) for n in 'cyx'], datasets=[dict(path='0')])])
    root.create_array('0', shape=(4, 64, 64), chunks=(1, 32, 32), shards=(4, 64, 64), dtype='u1')[:] = 7
    shard, = (p for p in (folder/'shards.zarr').rglob('*') if p.is_file() and p.name!='zarr.json')
    bomb, n = bytes(numcodecs.Zstd().encode(bytes(3*10**8))), 16
    index = np.array([(0, len(bomb))]*n, '<u8').tobytes()
    shard.write_bytes(bomb + index + bytes(numcodecs.CRC32C(location='end').encode(index))[-4:])
    write_zarr(folder/'link.zarr', data=bytes(8192))
    os.symlink('/', folder/'link.zarr'/'all')
    write_zarr(tmp/'plain.zarr', compressor=dict(id='zstd', level=1), data=bytes(numcodecs.Zstd().encode(bytes(8192))))
    run = [sys.executable, '-c', READ, str(secret), str(tmp/'plain.zarr'), str(folder)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=300)
    assert done.returncode==0, done.stderr
    assert not (tmp/'ran').exists()
    return json.loads(done.stdout)


@pytest.mark.parametrize('name', WHY)
@pytest.mark.parametrize('way', ['True', 'False', 'mask', 'storage', 'listed'])
def test_hostile_files_are_refused(read, name, way):
    if f'{name} {way}' not in read: pytest.skip('masks are files, and stores are folders')
    found = read[f'{name} {way}']
    assert '\n' not in found['said'] and found['megabytes']<100, found
    nothing_to_tell = way=='listed' or (name, way)==('link.zarr', 'storage') or name.endswith('.jpg') and way=='mask'
    is_looked_at = way!='True' or name not in IN_CHUNKS|IN_PIXELS
    if is_looked_at and not nothing_to_tell: assert WHY[name] in found['said'], found
