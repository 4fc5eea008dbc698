"PNG, JPG and what is neither: by every decoder, whatever other libraries are set to; bad files are one line each."
import os
import struct
import zlib

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageFile

from hpa_fastai.basics.errors import ImageError
from hpa_fastai.formats import pictures
from hpa_fastai.data.files import find_images
from hpa_fastai.formats.pictures import PNG_MAGIC, png_chunk
from hpa_fastai.data.reader import ImageReader
from hpa_fastai.batches.tensors import TensorRGBY, read_images
from hpa_fastai.data.verify import verify_folder
from pictures import LOSSES, RNG, encoded, fails, one_file, picture, read, same, smooth, write


def test_png_8_bit(tmp_path):
    x = picture()
    img = read(write(tmp_path, x))
    assert type(img) is TensorRGBY and img.dtype==torch.uint8 and same(img, x)


def png_header_of(side):
    "The beginning of a PNG that states to be so large"
    return PNG_MAGIC + png_chunk(b'IHDR', struct.pack('>IIBBBBB', side, side, 8, 0, 0, 0, 0))


def _damage(folder, kind):
    p = folder/'A1_red.png'
    good = p.read_bytes()
    im = Image.open(p).convert('L')
    p.unlink()
    match kind:
        case 'truncated': p.write_bytes(good[:len(good)//2])
        case 'damaged': p.write_bytes(good[:len(good)//2]+b'\0'*40+good[len(good)//2+40:])
        case 'zero-byte': p.touch()
        case 'wrong magic': p.write_bytes(b'GIF89a'+good)
        case 'a text': p.write_text('not found')
        case 'dangling': os.symlink(folder/'gone.png', p)
        case 'bomb': p.write_bytes(png_header_of(60000)+good[33:])
        case 'large': p.write_bytes(png_header_of(9000)+good[33:])
        case '1x1': Image.new('L', (1,1)).save(p)
        case 'other size': im.resize((48,48)).save(p)
        case 'cmyk': im.convert('CMYK').save(p, format='JPEG')
        case 'palette': im.convert('P').save(p)
        case '1-bit': im.convert('1').save(p)
        case 'nan': tifffile.imwrite(p, np.where(np.asarray(im)>99, np.nan, .5).astype(np.float32))
        case 'float': tifffile.imwrite(p, np.asarray(im).astype(np.float32))
        case 'int32': tifffile.imwrite(p, np.asarray(im).astype(np.int32)*1000)
        case 'stack': tifffile.imwrite(p, np.stack([np.asarray(im)]*3), photometric='minisblack')
        case 'white is zero': tifffile.imwrite(p, np.asarray(im), photometric='miniswhite')
        case 'cut tiff':
            im.save(p, format='TIFF', compression='tiff_lzw')
            p.write_bytes(p.read_bytes()[:-900])
        case 'cut deflate tiff':
            tifffile.imwrite(p, np.asarray(im), compression='zlib')
            p.write_bytes(p.read_bytes()[:-900])
        case 'cut jpg':
            im.save(p, format='JPEG', quality=95)
            p.write_bytes(p.read_bytes()[:-900])
        case 'two sizes':
            for x in (im, im.resize((40,40))): tifffile.imwrite(p, np.asarray(x), append=p.exists())


BAD = { # fault of a file: words of the message, and the kind of the error
    'truncated': ('damaged or cut off', 'truncated or damaged'),
    'damaged': ('damaged or cut off', 'truncated or damaged'),
    'zero-byte': (r'an empty file \(0 bytes\)', 'empty file'),
    'wrong magic': ("not a PNG, JPG or TIFF file: it starts with b'GIF89a", 'not an image'),
    'a text': ('not a PNG', 'not an image'),
    'dangling': ('a link to a file that is not there', 'dangling link'),
    'bomb': ('60000x60000 px is refused', 'too large'),
    'large': ('9000x9000 px is refused', 'too large'),
    '1x1': ('1x1 px is too small', 'too small'),
    'other size': ('channels of different sizes: A1_red.png 48x48, A1_green.png 64x64', 'sizes differ'),
    'cmyk': ('CMYK', 'no intensities'),
    'palette': ('palette', 'no intensities'),
    '1-bit': ('1-bit mask', 'no intensities'),
    'nan': ('pixels are NaN', 'unreadable'),
    'float': ('float values from', 'unreadable'),
    'int32': ('int32 values', 'unreadable'),
    'stack': ('3 planes in the file of one channel', 'unclear channels'),
    'white is zero': ('MINISWHITE', 'no intensities'),
    'cut tiff': ('cut off', 'truncated or damaged'),
    'cut deflate tiff': ('damaged or cut off', 'truncated or damaged'),
    'cut jpg': ('damaged or cut off', 'truncated or damaged'),
    'two sizes': ('2 separate pictures', 'unreadable')}


@pytest.mark.parametrize('kind', BAD)
@pytest.mark.filterwarnings('error')
def test_bad_file(tmp_path, kind):
    write(tmp_path, picture(64))
    write(tmp_path, picture(64), 'good')
    _damage(tmp_path, kind)
    message, error_kind = BAD[kind]
    assert 'A1_red.png' in fails(message, tmp_path, size=32)
    results = dict(read_images(find_images(tmp_path), ImageReader(32), 2))
    assert isinstance(results[0], ImageError) and isinstance(results[1], TensorRGBY)
    fault = results[0]
    assert (fault.kind, fault.Id) == (error_kind, 'A1')
    if kind!='other size': assert (fault.file, fault.channel) == (str(tmp_path/'A1_red.png'), 'red')


def test_no_permission(tmp_path, monkeypatch):
    write(tmp_path, picture(64))
    def refuse(path): raise PermissionError(13, 'Permission denied', path)
    if os.geteuid(): os.chmod(tmp_path/'A1_red.png', 0)
    else: monkeypatch.setattr('hpa_fastai.formats.pictures.open_image_file', refuse)
    fails('A1_red.png: no permission to read it', tmp_path)


@pytest.mark.parametrize('bits', [8, 16])
def test_grey_png_is_the_same_by_few_threads_and_by_many(tmp_path, bits, monkeypatch):
    import kornia_rs.io
    decode, used = getattr(kornia_rs.io, f'decode_image_png_u{bits}'), []
    monkeypatch.setattr(kornia_rs.io, f'decode_image_png_u{bits}', lambda *a: used.append(1) or decode(*a))
    x = picture(40, 57) if bits==8 else picture(40, 57).astype(np.uint16)*257
    write(tmp_path, x)
    for num_workers, cores, how_often in ((1, 16, 4), (3, 16, 4), (4, 2, 4), (4, 16, 0)):
        used.clear()
        monkeypatch.setattr('hpa_fastai.formats.pictures.default_workers', lambda: cores)
        (_, img), = read_images(find_images(tmp_path), ImageReader(), num_workers)
        assert same(img, x if bits==8 else x//257) and len(used)==how_often


def test_what_the_decoder_of_grey_png_refuses_goes_to_pillow(tmp_path, monkeypatch):
    import kornia_rs.io
    def refuse(*_): raise Exception('an ancillary chunk is damaged')
    monkeypatch.setattr(kornia_rs.io, 'decode_image_png_u8', refuse)
    x = picture()
    assert same(read(write(tmp_path, x)), x)


@pytest.fixture(params=['few threads', 'many threads', 'lenient Pillow', 'narrow Pillow'])
def any_decoder(request, monkeypatch):
    "Each way of decoding, and settings of Pillow that other code in a notebook may have changed"
    monkeypatch.setattr(pictures._thread, 'one_of_many', request.param=='many threads', raising=False)
    if request.param=='lenient Pillow': monkeypatch.setattr(ImageFile, 'LOAD_TRUNCATED_IMAGES', True)
    if request.param=='narrow Pillow': monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)


def as_png(rows, width, height, depth, colour):
    "A PNG of rows of bytes, of any depth and type of colour"
    head = struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, 0)
    pixels = zlib.compress(b''.join(b'\0'+bytes(r) for r in rows))
    return PNG_MAGIC + png_chunk(b'IHDR', head) + png_chunk(b'IDAT', pixels) + png_chunk(b'IEND', b'')


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('loss', LOSSES)
@pytest.mark.parametrize('kind', ['grey', '16-bit', 'RGB'])
def test_damaged_png_is_refused(tmp_path, any_decoder, kind, loss):
    x = smooth()
    a = {'grey': x[0], '16-bit': x[0].astype(np.uint16)*257, 'RGB': np.dstack([*x[:3]])}[kind]
    whole = encoded(a, 'PNG')
    assert same(one_file(tmp_path, whole)(), smooth()[0])
    assert same(one_file(tmp_path, whole+b'left by a camera')(), smooth()[0])
    for n in (1, 4, 8, 13, 20, len(whole)//20, len(whole)//4):
        if loss=='zeros inside' and n<4: continue
        one_file(tmp_path, LOSSES[loss](whole, n))
        fails('damaged or cut off', tmp_path, channels='g')


@pytest.mark.parametrize('depth,colour,size', [(8,0,64), (16,0,128), (8,2,192), (8,4,128), (8,6,256)])
def test_png_of_fewer_rows_than_it_says_is_refused(tmp_path, any_decoder, depth, colour, size):
    rows = RNG.integers(1, 256, (64, size), dtype=np.uint8)
    one_file(tmp_path, as_png(rows, 64, 64, depth, colour))()
    one_file(tmp_path, as_png(np.concatenate([rows[:63], rows[:1]*0]), 64, 64, depth, colour))()
    for n in (32, 63):
        one_file(tmp_path, as_png(rows[:n], 64, 64, depth, colour))
        fails('damaged or cut off', tmp_path, channels='g')


def test_texts_in_a_png_do_not_matter(tmp_path, any_decoder):
    from PIL import PngImagePlugin
    info = PngImagePlugin.PngInfo()
    info.add_text('Description', 'x'*3_000_000, zip=True)
    assert same(one_file(tmp_path, encoded(smooth()[0], 'PNG', pnginfo=info))(), smooth()[0])


@pytest.mark.parametrize('loss', ['cut', 'zeros'])
@pytest.mark.parametrize('progressive', [False, True])
def test_cut_jpg_is_refused(tmp_path, any_decoder, loss, progressive):
    whole = encoded(smooth()[0], 'JPEG', quality=95, progressive=progressive)
    right = one_file(tmp_path, whole, 'A1_green.jpg')()
    assert np.abs(right-smooth()[0]).mean()<2
    for more in (b'\0', b'left by a camera'): assert same(one_file(tmp_path, whole+more, 'A1_green.jpg')(), right)
    for n in (1, 20, len(whole)//20, len(whole)//2):
        one_file(tmp_path, LOSSES[loss](whole, n), 'A1_green.jpg')
        fails('damaged or cut off', tmp_path, channels='g')


@pytest.mark.parametrize('threads', ['few', 'many'])
@pytest.mark.parametrize('depth,colour', [(2,0), (4,0), (8,0), (16,0), (8,2), (16,2), (8,4), (16,4), (8,6), (16,6)])
def test_png_of_any_depth(tmp_path, depth, colour, threads, monkeypatch):
    monkeypatch.setattr(pictures._thread, 'one_of_many', threads=='many', raising=False)
    top, n = 2**depth-1, {0:1, 2:3, 4:2, 6:4}[colour]
    a = RNG.integers(0, top+1, (24, 37, n))
    a[0, :, :3], a[0, 0, :3] = 0, top
    if depth>=8: rows = a.astype('>u2' if depth==16 else 'u1').reshape(24, -1)
    else: rows = np.packbits((a[..., 0, None]>>np.arange(depth-1, -1, -1)&1).astype(np.uint8).reshape(24, -1), axis=1)
    wanted = (a[..., 0] if n in (1,2) else a[..., :3].max(2))*255/top
    got = one_file(tmp_path, as_png([r.tobytes() for r in rows], 37, 24, depth, colour))
    assert np.abs(got()-wanted).max() <= (.5 if depth<16 else .07) # half a grey level, or half a step of a half float
    checked = verify_folder(tmp_path, reader=ImageReader(channels='g'), progress=False)
    assert checked.table.format[0].startswith(f'PNG {depth}-bit')
    if depth==16: fails('does not fit into bits=12', tmp_path, channels='g', bits=12)


@pytest.mark.parametrize('numbers', [(1, 0, 0), (0, 1, 0), (0, 0, 2)])
def test_a_png_packed_in_a_way_that_does_not_exist_is_refused(tmp_path, numbers):
    head = struct.pack('>IIBBBBB', 64, 64, 8, 0, *numbers)
    write(tmp_path, picture(64))
    path = next(tmp_path.rglob('*.png'))
    path.write_bytes(PNG_MAGIC + png_chunk(b'IHDR', head) + path.read_bytes()[33:])
    for header in (True, False):
        with pytest.raises(ImageError, match='packing that does not exist'):
            pictures.open_planes(str(path), header=header)
