"TIFF and OME-Zarr of every kind, whole and damaged, in one file or several."
import io
import os
import struct
import zlib

import numpy as np
import pytest
import tifffile

from hpa_fastai.basics.errors import ImageError
from hpa_fastai.data.files import find_images
from hpa_fastai.formats.names import CHANNELS
from hpa_fastai.formats.channels import MAX_PIXELS
from hpa_fastai.formats.pictures import open_planes
from hpa_fastai.data.reader import ImageReader
from hpa_fastai.batches.tensors import read_image
from hpa_fastai.data.verify import verify_folder
from pictures import LOSSES, RNG, encoded, fails, one_file, only, picture, plane_files, read, same, smooth, write


@pytest.mark.parametrize('compression', ['tiff_lzw', 'tiff_adobe_deflate', 'raw', 'packbits'])
@pytest.mark.parametrize('bits', [8, 16])
def test_tiff(tmp_path, compression, bits):
    x = picture()
    assert same(read(write(tmp_path, x if bits==8 else x.astype(np.uint16)*257, ext='tif', compression=compression)), x)


def test_tiff_with_tiles_and_big_endian(tmp_path):
    x = picture(64)
    big = dict(byteorder='>', compression='zlib', tile=(32,32))
    for c,p in zip(CHANNELS, x): tifffile.imwrite(tmp_path/f'A_{c}.tif', p.astype('>u2')*257, **big)
    assert same(read(tmp_path), x)


def test_rgb_tiff(tmp_path):
    x = picture()
    tifffile.imwrite(tmp_path/'a.tif', np.moveaxis(x[:3], 0, -1), photometric='rgb')
    assert same(read(tmp_path, channels='rgb')[:3], x[:3])


def test_ome_tiff_names(tmp_path):
    x = picture()
    names = ['DAPI','Microtubules','ER (calreticulin)','Antibody']
    tifffile.imwrite(tmp_path/'a.ome.tif', x[[2,0,3,1]], metadata=dict(axes='CYX', Channel=dict(Name=names)))
    assert only(tmp_path).Id=='a' and same(read(tmp_path), x)
    names = ['Cam1','FITC','DAPI','Cy5']
    tifffile.imwrite(tmp_path/'a.ome.tif', x, metadata=dict(axes='CYX', Channel=dict(Name=names)))
    fails('planes are called Cam1, FITC, DAPI, Cy5: say which of them is red', tmp_path)
    names = ['GFP','FITC','DAPI','Cy5']
    tifffile.imwrite(tmp_path/'a.ome.tif', x, metadata=dict(axes='CYX', Channel=dict(Name=names)))
    fails('planes are called GFP, FITC, DAPI, Cy5: say which of them is red and which is green', tmp_path)
    tifffile.imwrite(tmp_path/'a.ome.tif', x, metadata=dict(axes='CYX', Channel=dict(Name=['Cy3','FITC','DAPI','Cy5'])))
    with pytest.warns(UserWarning, match='Cy3 is red.*are dyes.*If that is wrong'): assert same(read(tmp_path), x)
    assert same(read(tmp_path, channels=dict(red='Cy3', green='FITC', blue='DAPI', yellow='Cy5')), x)
    fails("no plane 'Cy7': there are 4, called Cy3", tmp_path, channels=dict(red='Cy7'))


def test_imagej_tiff(tmp_path):
    x = picture()
    names = ['protein','tubulin','nuclei','ER']
    tifffile.imwrite(tmp_path/'a.tif', x[[1,0,2,3]], imagej=True, metadata=dict(axes='CYX', Labels=names))
    assert same(read(tmp_path), x)


def test_z_stacks(tmp_path):
    x = RNG.integers(0, 256, (3,4,32,32), dtype=np.uint8)
    tifffile.imwrite(tmp_path/'a.ome.tif', x, metadata=dict(axes='ZCYX'))
    fails("a Z stack of 3 planes; project it first, or say z='max'", tmp_path)
    assert same(read(tmp_path, z='max'), x.max(0))
    tifffile.imwrite(tmp_path/'a.ome.tif', x, metadata=dict(axes='TCYX'))
    fails('3 time points', tmp_path, z='max')


@pytest.mark.parametrize('version', ['0.4','0.5'])
def test_ome_zarr(tmp_path, version):
    zarr = pytest.importorskip('zarr', minversion='3')
    x = picture(64)
    root = zarr.open_group(str(tmp_path/'w1.ome.zarr'), mode='w', zarr_format=2 if version=='0.4' else 3)
    root.create_array('0', shape=(4,1,64,64), chunks=(1,1,32,32), dtype='uint8')[:] = x[:,None]
    axes = [dict(name=n, type='channel' if n=='c' else 'space') for n in 'czyx']
    meta = dict(multiscales=[dict(version=version, axes=axes, datasets=[dict(path='0')])],
                omero=dict(channels=[dict(label=n) for n in ('tubulin','protein','nucleus','ER')]))
    root.attrs.update(meta if version=='0.4' else dict(ome=meta))
    row = only(tmp_path)
    assert (row.Id, row.layout) == ('w1','zarr') and same(read_image(row), x)
    assert len(find_images(tmp_path)) == 1


def test_a_folder_called_zarr(tmp_path):
    (tmp_path/'x.zarr').mkdir()
    fails('x.zarr', tmp_path)


def test_bombs_in_tiff_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr('hpa_fastai.formats.tiff.tiff_pixels', lambda *args: pytest.fail('was decoded'))
    side = int(MAX_PIXELS**.5)+16
    tifffile.imwrite(tmp_path/'a.tif', np.zeros((side,side), np.uint8), compression='zlib')
    fails('is refused', tmp_path)


def tiff_head(tags, at=8):
    "The beginning of a TIFF of one page, with its tags: (number, type, count, value)"
    return b'II*\0' + struct.pack('<I', at) + tiff_tags(tags)


def tiff_tags(tags): return struct.pack('<H', len(tags)) + b''.join(struct.pack('<HHII', *t) for t in tags) + bytes(4)


def strips(a, codec=1, pack=lambda b: b, written=8, bits=8):
    "A TIFF of eight strips, of which the last may not have been written; the list of strips stands before them"
    rows, start = len(a)//8, 198
    parts = [pack(a[k*rows:(k+1)*rows].tobytes()) for k in range(written)]
    sizes = [len(p) for p in parts] + [0]*(8-written)
    places = [start+sum(sizes[:k]) if n else 0 for k,n in enumerate(sizes)]
    tags = [(256,3,1,a.shape[1]), (257,3,1,len(a)), (258,3,1,bits), (259,3,1,codec), (262,3,1,1), (273,4,8,134),
            (277,3,1,1), (278,3,1,rows), (279,4,8,166), (284,3,1,1)]
    return tiff_head(tags) + struct.pack('<16I', *places, *sizes) + b''.join(parts)


@pytest.mark.parametrize('codec,pack', [(1, bytes), (8, zlib.compress)])
def test_strips_of_a_tiff_that_were_never_written(tmp_path, codec, pack):
    assert same(one_file(tmp_path, strips(smooth()[0], codec, pack))(), smooth()[0])
    for written in (7, 4, 1):
        one_file(tmp_path, strips(smooth()[0], codec, pack, written))
        fails(f'{8-written} of 8 strips or tiles were never written', tmp_path, channels='g')


@pytest.mark.parametrize('compression', ['tiff_lzw', 'tiff_adobe_deflate', 'packbits', 'lzma', 'zstd', 'jpeg'])
@pytest.mark.parametrize('loss', LOSSES)
def test_damaged_compressed_tiff_is_refused(tmp_path, compression, loss, capfd):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8) # one code a pixel in LZW
    whole = encoded(noise, 'TIFF', compression=compression)
    with tifffile.TiffFile(io.BytesIO(whole)) as tif: page = tif.pages[0]
    (start,), (n,) = page.dataoffsets, page.databytecounts
    one_file(tmp_path, whole)()
    for share in (20, 3):
        if loss=='zeros inside' and compression!='tiff_adobe_deflate': continue # without sums nothing tells
        data = LOSSES[loss](whole[start:start+n], n//share)
        is_end = start+n==len(whole)
        one_file(tmp_path, whole[:start] + (data if loss=='cut' and is_end else data.ljust(n, b'\0')+whole[start+n:]))
        fails('damaged or cut off', tmp_path, channels='g')


def test_chunks_of_a_zarr_that_were_never_written(tmp_path):
    zarr = pytest.importorskip('zarr')
    root = zarr.open_group(str(tmp_path/'w1.ome.zarr'), mode='w')
    a = root.create_array('0', shape=(4,32,32), chunks=(1,16,16), dtype='>u2')
    root.attrs['ome'] = dict(multiscales=[dict(axes=[dict(name=n) for n in 'cyx'], datasets=[dict(path='0')])])
    fails('no chunk of plane 0, 1, 2, 3 is in the store', tmp_path)
    assert verify_folder(tmp_path, progress=False).problems.problem.tolist() == ['truncated or damaged']
    a[:3] = RNG.integers(1, 60000, (3,32,32))
    fails('no chunk of plane 3 is in the store', tmp_path)
    assert verify_folder(tmp_path, deep=True, progress=False).problems.problem.tolist() == ['truncated or damaged']
    a[3, :16] = 7 # writers leave out chunks that are black: those below are right
    assert np.abs(np.asarray(read(tmp_path))-a[:]/257).max() <= .07
    assert '2 of 16 chunks absent' in str(verify_folder(tmp_path, progress=False))


@pytest.mark.parametrize('version', [2, 3])
@pytest.mark.parametrize('loss', ['cut', 'zeros', 'empty', 'no settings', 'FIFO'])
def test_damaged_chunks_of_a_zarr_are_refused(tmp_path, version, loss):
    zarr = pytest.importorskip('zarr', minversion='3')
    x = np.stack([smooth()[0]//2]*4)
    root = zarr.open_group(str(tmp_path/'w1.zarr'), mode='w', zarr_format=version)
    root.create_array('0', shape=x.shape, chunks=(1,64,64), dtype='u1')[:] = x
    meta = dict(multiscales=[dict(axes=[dict(name=n) for n in 'cyx'], datasets=[dict(path='0')])])
    root.attrs.update(meta if version==2 else dict(ome=meta))
    assert same(read(tmp_path), x)
    files = sorted(p for p in (tmp_path/'w1.zarr/0').rglob('*') if p.is_file())
    chunk = [p for p in files if not p.name.startswith(('.z', 'zarr'))][1]
    whole, settings = chunk.read_bytes(), next((tmp_path/'w1.zarr/0').glob('*z*ar*'))
    if loss=='no settings': settings.unlink()
    elif loss=='FIFO': chunk.unlink(), os.mkfifo(chunk)
    else: chunk.write_bytes(b'' if loss=='empty' else LOSSES[loss](whole, len(whole)//3))
    message = fails('copy it again', tmp_path)
    assert 'a folder, not' not in message and verify_folder(tmp_path, deep=True, progress=False).exit_code==1


def a_store(path, x, **kwargs):
    "An OME-Zarr picture of version 3"
    zarr = pytest.importorskip('zarr', minversion='3')
    root = zarr.open_group(str(path), mode='w', zarr_format=3)
    root.create_array('0', shape=x.shape, dtype='u1', **kwargs)[:] = x
    scales = [dict(axes=[dict(name=n) for n in 'cyx'], datasets=[dict(path=kwargs.pop('named', '0'))])]
    root.attrs['ome'] = dict(multiscales=scales)


def test_a_shard_that_is_lost_is_no_black_channel(tmp_path):
    x = picture(64)
    a_store(tmp_path/'w1.zarr', x, chunks=(1,16,16), shards=(1,64,64))
    assert same(read(tmp_path), x) and 'absent' not in str(verify_folder(tmp_path, progress=False))
    (tmp_path/'w1.zarr'/'0'/'c'/'1'/'0'/'0').unlink()
    fails('no chunk of plane 1 is in the store', tmp_path)


@pytest.mark.parametrize('also', ['.DS_Store', '0/.DS_Store', '0/._zarr.json', '.zgroup', '.zattrs'])
def test_other_files_of_a_zarr_store_do_no_harm(tmp_path, also):
    x = picture(64)
    a_store(tmp_path/'w1.zarr', x, chunks=(1,32,32))
    (tmp_path/'w1.zarr'/also).write_bytes(b'{"zarr_format": 2}' if also.startswith('.z') else b'\0\0\0\1Bud1'*700)
    assert same(read(tmp_path), x)


@pytest.mark.parametrize('inner', ['./0', '0/'])
def test_places_within_a_zarr_store(tmp_path, inner):
    x = picture(64)
    a_store(tmp_path/'w1.zarr', x, chunks=(1,32,32))
    about = (tmp_path/'w1.zarr'/'zarr.json').read_text()
    (tmp_path/'w1.zarr'/'zarr.json').write_text(about.replace('"path": "0"', f'"path": "{inner}"'))
    assert same(read(tmp_path), x)


def test_a_store_of_several_pictures(tmp_path):
    zarr, x = pytest.importorskip('zarr', minversion='3'), picture(64)
    (tmp_path/'plate').mkdir()
    zarr.open_group(str(tmp_path/'plate'/'w1.zarr'), mode='w').attrs['bioformats2raw.layout'] = 3
    a_store(tmp_path/'plate'/'w1.zarr'/'0', x, chunks=(1,32,32))
    assert same(read(tmp_path/'plate'), x)
    a_store(tmp_path/'plate'/'w1.zarr'/'1', x, chunks=(1,32,32))
    fails('holds 2 pictures .0, 1.; write each to a separate store', tmp_path/'plate')


def test_what_is_no_zarr_says_so(tmp_path):
    (tmp_path/'a.zarr').mkdir()
    fails('a folder without the files that make it a zarr store', tmp_path)
    (tmp_path/'a.zarr').rmdir(), (tmp_path/'a.zarr').write_bytes(b'x')
    fails('a file, but OME-Zarr is a folder', tmp_path)


AS_WIDE_AS_64 = struct.pack('<HHII', 256,3,1,64) # the tag


@pytest.mark.parametrize('bits,codec', [(4,1), (12,1), (12,8)])
def test_tiff_of_packed_values(tmp_path, bits, codec):
    a = RNG.integers(0, 2**bits, (64, 64))
    packed = np.packbits((a[..., None]>>np.arange(bits-1, -1, -1)&1).astype(np.uint8).reshape(64, -1), axis=1)
    data = strips(packed, codec, zlib.compress if codec==8 else bytes, bits=bits)
    got = one_file(tmp_path, data.replace(struct.pack('<HHII', 256,3,1,packed.shape[1]), AS_WIDE_AS_64))
    assert np.abs(got()-a*255/(2**bits-1)).max() <= (.5 if bits<=8 else .07)
    checked = verify_folder(tmp_path, reader=ImageReader(channels='g'), deep=True, progress=False)
    assert checked.table.format[0] == f'TIFF {bits}-bit grey'


def test_tiff_of_10_bits(tmp_path):
    a = RNG.integers(0, 1024, (64, 64))
    packed = np.packbits((a[..., None]>>np.arange(9, -1, -1)&1).astype(np.uint8).reshape(64, -1), axis=1)
    got = one_file(tmp_path, strips(packed, bits=10).replace(struct.pack('<HHII', 256,3,1,80), AS_WIDE_AS_64))
    assert np.abs(got()-a*255/1023).max() <= .13


def test_bits_that_ome_states(tmp_path):
    a = RNG.integers(0, 4096, (64, 64), dtype=np.uint16)
    tifffile.imwrite(tmp_path/'A1_green.ome.tif', a, metadata=dict(axes='YX', SignificantBits=12))
    assert np.abs(np.asarray(read(tmp_path, channels='g'))[1]-a*(255/4095)).max() <= .5
    assert np.abs(np.asarray(read(tmp_path, channels='g', bits=16))[1]-a*(255/65535)).max() <= .5


@pytest.mark.parametrize('codec', [34712, 34887, 50001, 50002])
def test_codecs_that_are_not_read(tmp_path, codec):
    one_file(tmp_path, strips(smooth(64)[0], codec, zlib.compress))
    fails('compression .* is not read; save it with LZW or deflate', tmp_path, channels='g')


@pytest.mark.parametrize('compression', ['lzma', 'zstd'])
def test_codecs_of_few_programs(tmp_path, compression):
    assert same(one_file(tmp_path, encoded(smooth()[0], 'TIFF', compression=compression))(), smooth()[0])


@pytest.mark.parametrize('name', ['pos1_C{}.ome.tif', 'pos1.ch{}.OME.TIFF', 'pos1-{}.ome.tif'])
def test_files_of_one_ome_are_one_field(tmp_path, name):
    x = picture(32)
    plane_files(tmp_path, x, [name.format(k) for k in range(4)])
    tifffile.imwrite(tmp_path/'other.ome.tif', x, metadata=dict(axes='CYX'))
    table = find_images(tmp_path)
    assert table.Id.tolist()==['other', 'pos1'] and all(same(read_image(r), x) for r in table.itertuples())
    (tmp_path/name.format(2)).unlink()
    message = ('pos1: .*one of 4 files that are one field of view by their OME metadata; '
               f'missing from its folder, or empty: {name.format(2)}')
    with pytest.raises(ImageError, match=message): read_image(find_images(tmp_path).iloc[1])


def test_a_damaged_file_of_a_set_is_named(tmp_path):
    names = [f'pos1_C{k}.ome.tif' for k in range(4)]
    plane_files(tmp_path, RNG.integers(0, 256, (4,32,32), dtype=np.uint8), names)
    whole = (tmp_path/names[2]).read_bytes()
    (tmp_path/names[2]).write_bytes(whole[:-20])
    fails('pos1_C2.ome.tif, which belongs to it, is damaged or cut off', tmp_path)
    (tmp_path/names[2]).write_bytes(b'')
    fails('missing from its folder, or empty: pos1_C2.ome.tif', tmp_path)


def test_file_of_one_channel_is_read_by_itself(tmp_path):
    x, names = picture(32), [f'x_{c}.ome.tif' for c in CHANNELS]
    plane_files(tmp_path, x, names)
    assert same(read(tmp_path), x) and verify_folder(tmp_path, deep=True, progress=False).exit_code==0
    (tmp_path/names[3]).unlink()
    assert same(read(tmp_path, channels='rgb')[:3], x[:3])
    fails('no yellow channel', tmp_path)


def as_imagej(x, said=None):
    "A stack as ImageJ writes it: tags of one page, then all planes"
    about = f'ImageJ=1.53t\nimages={said or len(x)}\nchannels={said or len(x)}\nhyperstack=true\n\0'.encode()
    n, w = x.shape[1:]
    tags = [(256,4,1,w), (257,4,1,n), (258,3,1,8), (262,3,1,1), (270,2,len(about),122), (273,4,1,122+len(about)),
            (277,3,1,1), (278,4,1,n), (279,4,1,n*w)]
    return tiff_head(tags) + about + x.tobytes()


@pytest.mark.parametrize('program', ['ImageJ', 'tifffile', 'pages'])
@pytest.mark.parametrize('name', ['x.tif', 'x_green.tif'])
def test_a_stack_that_lost_planes_is_no_plane(tmp_path, program, name):
    x = picture(32)
    if program=='ImageJ': (tmp_path/'x.tif').write_bytes(as_imagej(x))
    elif program=='tifffile': tifffile.imwrite(tmp_path/'x.tif', x, imagej=True, metadata=dict(axes='CYX'))
    else: tifffile.imwrite(tmp_path/'x.tif', x, photometric='minisblack', metadata=None)
    assert same(read(tmp_path), x)
    whole = (tmp_path/'x.tif').read_bytes()
    (tmp_path/'x.tif').unlink()
    for lost in (1100, 2200):
        (tmp_path/name).write_bytes(whole[:-lost])
        fails('damaged or cut off', tmp_path, channels='g')


def test_a_plane_taken_out_of_a_stack_is_whole(tmp_path):
    # ImageMagick keeps this text, and writes tags last
    x, about = picture(32), b'ImageJ=1.53t\nimages=4\nchannels=4\n\0'
    tags = [(256,4,1,32), (257,4,1,32), (258,3,1,8), (259,3,1,1), (262,3,1,1), (270,2,len(about),8+1024), (273,4,1,8),
            (278,4,1,32), (279,4,1,1024)]
    data = b'II*\0' + struct.pack('<I', 8+1024+len(about)) + x[1].tobytes() + about + tiff_tags(tags)
    assert same(one_file(tmp_path, data, 'x_green.tif')(), x[1])


@pytest.mark.parametrize('axes', ['ZYX', 'TYX'])
def test_slices_that_are_channels(tmp_path, axes):
    x = picture(32)
    tifffile.imwrite(tmp_path/'a.tif', x, imagej=True, metadata=dict(axes=axes))
    fails("if they are channels say z='channels' .in a shell: --z channels", tmp_path)
    assert same(read(tmp_path, z='channels'), x)
    assert same(read(tmp_path, z='channels', channels={'g': 1, 'b': 2})[1:3], x[1:3])


def test_slices_beside_channels_are_no_channels(tmp_path):
    x = RNG.integers(0, 256, (3,4,32,32), dtype=np.uint8)
    tifffile.imwrite(tmp_path/'a.ome.tif', x, metadata=dict(axes='ZCYX'))
    assert 'channels' not in fails('a Z stack of 3 planes', tmp_path, z='channels').split('to take the maximum')[1]


@pytest.mark.parametrize('header', [True, False])
def test_a_plane_that_states_fewer_bytes_than_its_pixels_take(tmp_path, header):
    "As where the tag of the compression was lost: what follows the strip is no picture"
    file = tmp_path/'a.tif'
    tifffile.imwrite(file, picture(64)[0], metadata=None)
    with tifffile.TiffFile(file, mode='r+b') as tif: tif.pages[0].tags['StripByteCounts'].overwrite(64*64-100)
    with pytest.raises(ImageError, match='shorter than their pixels'): open_planes(str(file), header=header)


def test_a_tile_that_is_far_larger_than_its_picture(tmp_path):
    file = tmp_path/'a.tif'
    tifffile.imwrite(file, picture(64)[0], metadata=None, tile=(64, 64), compression='zlib')
    with tifffile.TiffFile(file, mode='r+b') as tif: tif.pages[0].tags['TileWidth'].overwrite(2**30)
    with pytest.raises(ImageError, match='its tiles exceed its picture'): open_planes(str(file))


def test_thousands_of_planes_without_a_chunk(tmp_path, monkeypatch):
    "They are found before anything is decoded"
    zarr = pytest.importorskip('zarr', minversion='3')
    root = zarr.open_group(tmp_path/'a.zarr', mode='w')
    axes = [dict(name=n) for n in 'cyx']
    root.attrs['ome'] = dict(multiscales=[dict(axes=axes, datasets=[dict(path='0')])])
    root.create_array('0', shape=(5000, 16, 16), chunks=(1, 16, 16), dtype='uint8')[:2] = 7
    monkeypatch.setattr(zarr.Array, '__getitem__', None)
    with pytest.raises(ImageError, match='4,998 planes or more have no chunk'): open_planes(str(tmp_path/'a.zarr'))


@pytest.mark.parametrize('tag', [256, 257, 259, 262, 278])
@pytest.mark.parametrize('kind, count', [(4, 182), (256, 1), (2, 1)])
def test_tags_that_are_not_one_whole_number(tmp_path, tag, kind, count):
    "A side of 182 numbers took gigabytes from a file of five thousand bytes; a lost compression made noise a picture"
    file = tmp_path/'a.tif'
    tifffile.imwrite(file, picture(64)[0], metadata=None, compression='zlib', rowsperstrip=16)
    with tifffile.TiffFile(file) as tif: at = tif.pages[0].tags[tag].offset
    data = bytearray(file.read_bytes())
    struct.pack_into('<HI', data, at+2, kind, count)
    file.write_bytes(data)
    with pytest.raises(ImageError, match=f'tag {tag} of a page is not one'): open_planes(str(file), header=True)


def test_the_other_files_of_a_set_are_looked_at_as_well(tmp_path):
    schema = 'http://www.openmicroscopy.org/Schemas/OME/2016-06'
    planes = ''.join(f'<TiffData FirstC="{c}"><UUID FileName="{c}.ome.tif">urn:uuid:{c}</UUID></TiffData>'
                     for c in '01')
    for c in '01':
        text = (f'<OME xmlns="{schema}" UUID="urn:uuid:{c}"><Image><Pixels DimensionOrder="XYCZT" Type="uint8" '
                f'SizeX="64" SizeY="64" SizeC="2" SizeZ="1" SizeT="1">{planes}</Pixels></Image></OME>')
        tifffile.imwrite(tmp_path/f'{c}.ome.tif', picture(64)[0], description=text, metadata=None)
    assert len(open_planes(str(tmp_path/'0.ome.tif')).planes) == 2
    with tifffile.TiffFile(tmp_path/'1.ome.tif') as tif: at = tif.pages[0].tags[256].offset
    data = bytearray((tmp_path/'1.ome.tif').read_bytes())
    struct.pack_into('<HI', data, at+2, 4, 182)
    (tmp_path/'1.ome.tif').write_bytes(data)
    with pytest.raises(ImageError, match='tag 256 of a page'): open_planes(str(tmp_path/'0.ome.tif'), header=True)
