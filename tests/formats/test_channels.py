"Which plane is which channel, and which values become 0 and 255."
import re

import numpy as np
import pytest
import tifffile
from PIL import Image

from hpa_fastai.basics.errors import ImageError
from hpa_fastai.data.files import find_images
from hpa_fastai.formats.names import CHANNELS
from hpa_fastai.data.reader import ImageReader
from hpa_fastai.batches.tensors import read_image
from pictures import fails, picture, read, same, smooth, write


def test_pseudo_coloured_jpg(tmp_path):
    x = smooth()
    for c,planes in dict(red=[0], green=[1], blue=[2], yellow=[0,1]).items():
        rgb = np.zeros((96,96,3), np.uint8)
        rgb[...,planes] = x[CHANNELS.index(c)][...,None]
        Image.fromarray(rgb).save(tmp_path/f'800_A6_1_{c}.jpg', quality=98, subsampling=0)
    assert np.abs(np.asarray(read(tmp_path)).astype(int)-x).mean() < 2
    for f in list(tmp_path.iterdir()): f.rename(f.with_suffix('.png'))
    assert np.abs(np.asarray(read(tmp_path)).astype(int)-x).mean() < 2


def test_pseudo_coloured_png_is_the_maximum_exactly(tmp_path):
    x = picture()
    for c,p in zip(CHANNELS, x): Image.fromarray(np.dstack([p//2, 0*p, p])).save(tmp_path/f'A_{c}.png')
    assert same(read(tmp_path), x)


@pytest.mark.parametrize('ext', ['png','tif'])
def test_12_and_16_bit(tmp_path, ext):
    x = picture()
    write(tmp_path, x.astype(np.uint16)*16, ext=ext)
    assert np.asarray(read(tmp_path, bits=16)).max() <= 16
    assert np.abs(np.asarray(read(tmp_path)).astype(int)-x).max() <= 1
    assert np.abs(np.asarray(read(tmp_path, bits=12)).astype(int)-x).max() <= 1
    fails('does not fit into bits=10', tmp_path, bits=10)
    stretched = np.asarray(read(tmp_path, scale='percentile', percentiles=(0,100)))
    assert stretched.min()==0 and stretched.max()==255


def test_percentile_of_8_bit_and_of_black(tmp_path):
    x = picture()//4
    x[3] = 0
    img = np.asarray(read(write(tmp_path, x), scale='percentile'))
    assert img[:3].max()==255 and img[3].max()==0


def test_rgb_and_rgba(tmp_path):
    x = picture()
    Image.fromarray(np.moveaxis(x[:3], 0, -1)).save(tmp_path/'1.png')
    Image.fromarray(np.dstack([*x[:3], np.full_like(x[0], 255)])).save(tmp_path/'2.png')
    Image.fromarray(np.moveaxis(x, 0, -1)).save(tmp_path/'3.png')
    t = find_images(tmp_path)
    assert set(t.layout)=={'single'}
    for i in (0,1):
        img = np.asarray(read_image(t.iloc[i], channels='rgb'))
        assert same(img[:3], x[:3]) and img[3].max()==0
        assert same(read_image(t.iloc[i], missing='zero'), img)
        message = f"{i+1}: no yellow channel in .*{i+1}.png; if the data set has none say channels='rgb'"
        with pytest.raises(ImageError, match=message): read_image(t.iloc[i])
    assert same(read_image(t.iloc[2]), x)
    assert np.asarray(read_image(t.iloc[2], channels='gb')).any((1,2)).tolist() == [False,True,True,False]


def test_stacks_without_names(tmp_path):
    x = picture()
    tifffile.imwrite(tmp_path/'1.tif', x, photometric='minisblack')
    tifffile.imwrite(tmp_path/'2.tif', np.moveaxis(x, 0, -1), photometric='minisblack', planarconfig='contig')
    tifffile.imwrite(tmp_path/'3.tif', x.astype(np.uint16)*257, compression='zlib', photometric='minisblack')
    tifffile.imwrite(tmp_path/'4.tif', x[::-1], photometric='minisblack')
    pages = [Image.fromarray(p) for p in x]
    pages[0].save(tmp_path/'5.tif', save_all=True, append_images=pages[1:], compression='tiff_lzw')
    t = find_images(tmp_path)
    for i in (0,1,2,4): assert same(read_image(t.iloc[i]), x), i
    assert same(read_image(t.iloc[3], channels='ybgr'), x)
    assert same(read_image(t.iloc[3], channels=dict(red=3, green=2, blue=1, yellow=0)), x)
    assert same(read_image(t.iloc[0], channels=dict(green=1))[1], x[1])
    with pytest.raises(ImageError, match="planes without names: 4, but channels='rgb' names 3"):
        read_image(t.iloc[0], channels='rgb')
    with pytest.raises(ImageError, match='no plane 7'): read_image(t.iloc[0], channels=dict(red=7))


@pytest.mark.parametrize('dtype', ['>u2', '<u2', '>i4', 'i2', 'u4', 'i8'])
def test_bits_of_any_type_of_integers(tmp_path, dtype):
    x = picture(32)
    a = x.astype(dtype)*16
    assert np.abs(np.asarray(read_image(a, bits=12)).astype(int)-x).max() <= 1
    assert np.abs(np.asarray(read_image(a)).astype(int)-x).max() <= 1
    if dtype[1:]=='u2': assert ImageReader().array(a).max() <= 16
    else:
        name = np.dtype(dtype).newbyteorder('=')
        with pytest.raises(ImageError, match=f'{name} values have no known range.*bits=12'): ImageReader().array(a)
    if dtype[-2]=='i':
        with pytest.raises(ImageError, match='below zero'): read_image(-a, bits=12)


@pytest.mark.parametrize('dtype', ['f2', '>f4', 'f8'])
def test_floats_of_any_width(dtype):
    x = picture(32)
    assert np.abs(np.asarray(read_image((x/255).astype(dtype))).astype(int)-x).max() <= 1
    assert np.asarray(read_image((x/255).astype(dtype), scale='percentile')).max() == 255


@pytest.mark.parametrize('a', [np.zeros((4,9,9), bool), np.zeros((4,9,9), complex), np.full((4,9,9), 'x')])
@pytest.mark.parametrize('scale', ['dtype', 'percentile'])
def test_what_is_no_intensity(a, scale):
    with pytest.raises(ImageError, match='not intensities'): read_image(a, scale=scale)


def test_the_channels_that_are_recommended_can_be_read(tmp_path):
    x = picture(32)
    by_name = dict(red='Tubulin', blue='DAPI', yellow='ER', green='Cam2')
    by_number = dict(red=0, green=1, blue=2)
    named = dict(Labels=['DAPI','Cam2','Tubulin','ER'])
    for more,channels,expected in ((named, 'rgby', by_name), ({}, 'rgb', by_number)):
        tifffile.imwrite(tmp_path/'a.tif', x, imagej=True, metadata=dict(axes='CYX', **more))
        shown = re.search('in a shell: --channels ([^)]+)', fails('which', tmp_path, channels=channels))[1]
        given = {c: int(v) if v.isdigit() else v for c,v in (pair.split('=') for pair in shown.split(','))}
        assert given==expected and read(tmp_path, channels=given).shape==(4,32,32)


def test_real_jpg_is_grey_as_the_maximum(real_data):
    row = find_images(real_data/'native'/'hpav18_jpg').iloc[0]
    img = np.asarray(read_image(row))
    for i,c in enumerate(CHANNELS): assert same(img[i], np.asarray(Image.open(row[c])).max(2))
