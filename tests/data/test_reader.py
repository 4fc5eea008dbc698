"Settings of reading: sizes, what is missing, pixels in memory, threads."
import json
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from hpa_fastai.basics.errors import ImageError
from hpa_fastai.data.files import find_images
from hpa_fastai.formats.names import CHANNELS
from hpa_fastai.data.reader import ImageReader
from hpa_fastai.batches.tensors import TensorRGBY, read_image, read_images
from pictures import fails, picture, read, same, smooth, write


def test_in_memory():
    x = picture()
    for a in (x, torch.from_numpy(x), np.moveaxis(x, 0, -1), TensorRGBY(x)): assert same(read_image(a), x)
    assert same(read_image(x.astype(np.float32)/255), x)
    assert read_image(x, 48).shape == (4,48,48)
    with pytest.raises(ImageError, match='shape'): read_image(x[None,None])


def test_size_is_exact_and_reduces_by_areas(tmp_path):
    x = picture(96)
    write(tmp_path, x)
    assert read(tmp_path, 64).shape == (4,64,64)
    box = x.reshape(4,24,4,24,4).mean((2,4))
    assert np.abs(np.asarray(read(tmp_path, 24))-box).max() <= .5
    assert read(tmp_path, 200).shape == (4,200,200)


def test_not_square_is_padded_with_zeros(tmp_path):
    write(tmp_path, np.full((4,96,48), 200, np.uint8))
    img = np.asarray(read(tmp_path, 32))
    assert img.shape==(4,32,32) and (img[:,:,8:24]==200).all() and img[:,:,:8].max()==0 and img[:,:,24:].max()==0


def test_sizes_may_differ_between_fields(tmp_path):
    for n in (32,64,96): write(tmp_path, picture(n), str(n))
    assert {tuple(read_image(r, 32).shape) for r in find_images(tmp_path).itertuples()} == {(4,32,32)}


def test_pixel_size(tmp_path):
    write(tmp_path, smooth(64))
    assert read(tmp_path, pixel_size=.16).shape == (4,128,128)
    img = np.asarray(read(tmp_path, 64, pixel_size=.08*2048/64/2)) # half of an HPA field across
    assert img[:,16:48,16:48].any() and img[:,:16].max()==0
    img = np.asarray(read(tmp_path, 64, pixel_size=.08*2048/64*2)) # two fields across: the centre is read
    large = np.asarray(Image.fromarray(smooth(64)[0]).resize((128,128), Image.BILINEAR))
    assert np.abs(img[0].astype(int)-large[32:96,32:96]).max() <= 1
    with pytest.raises(ImageError, match='is pixel_size in µm'): read(tmp_path, pixel_size=80)


def test_reading_is_the_same_in_any_thread_and_order(tmp_path):
    for i in range(6): write(tmp_path, picture(80), str(i))
    t,reader = find_images(tmp_path), ImageReader(32, scale='percentile')
    alone = [reader(r) for r in t.to_dict('records')]
    for n in (1,2,5):
        got = list(read_images(t, reader, num_workers=n))
        assert [i for i,_ in got]==list(range(6)) and all(same(a, b) for a,(_,b) in zip(alone, got))


def test_settings_survive_json():
    r = ImageReader(256, channels=dict(red='Cy3', green=1), scale='percentile', percentiles=[2,99], bits=12,
                    pixel_size=.1, z='max', missing='zero')
    assert ImageReader(**json.loads(json.dumps(asdict(r)))) == r
    assert json.dumps(asdict(ImageReader(bits=12.))) == json.dumps(asdict(ImageReader(bits=12)))


WRONG_SETTINGS = {
    'channels': ['', 'rgbx', 'rr', dict(pink=1), ['red'], dict(g=0, green=1), dict(g=-1)],
    'missing': ['no'], 'scale': ['max'], 'z': ['mean'], 'size': [0, 2.5], 'percentiles': [(9,1), 3, ('a', 2)],
    'bits': [32, 12.5, '12'], 'pixel_size': [-1, float('inf'), 'x']}


@pytest.mark.parametrize('name,value', [(name, value) for name,values in WRONG_SETTINGS.items() for value in values])
def test_settings_that_cannot_be(name, value):
    with pytest.raises(ImageError, match=name) as e: ImageReader(**{name: value})
    assert e.value.kind=='setting'


def test_missing_channel(tmp_path):
    x = picture(32)
    write(tmp_path, x, channels=('red','green','blue'))
    fails("no yellow channel; copy its file again, beside A1_red.png; if the data set has none say", tmp_path)
    three = read(tmp_path, channels='rgb')
    assert same(three, read(tmp_path, missing='zero')) and same(three[:3], x[:3])
    nothing = dict(Id='x', layout='channels', **dict.fromkeys(CHANNELS))
    with pytest.raises(ImageError, match='no channel has a file'): read_image(nothing)
    with pytest.raises(ImageError) as e: read(tmp_path)
    assert (e.value.kind, e.value.channel) == ('missing channel', 'yellow')


def test_pillow_images():
    x = picture(32)
    grey = Image.fromarray(x[1])
    deep, real = Image.fromarray(x[1].astype(np.uint16)*257), Image.fromarray(x[1]/np.float32(255))
    for im in (grey, deep, grey.convert('LA'), real):
        assert same(read_image(im, channels='g')[1], x[1]), im.mode
    assert same(read_image(Image.fromarray(np.moveaxis(x, 0, -1))), x)
    assert same(read_image(Image.fromarray(np.moveaxis(x[:3], 0, -1)), channels='rgb')[:3], x[:3])
    assert np.abs(np.asarray(read_image(grey.convert('I'), channels='g', bits=8))[1].astype(int)-x[1]).max()==0
    for mode in ('1', 'P', 'CMYK', 'YCbCr', 'HSV'):
        source = grey if mode in '1P' else grey.convert('RGB')
        with pytest.raises(ImageError, match='not intensities'): read_image(source.convert(mode))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_tensors_with_a_gradient(dtype):
    x = picture(32)
    got = read_image((torch.from_numpy(x)/255).to(dtype).requires_grad_())
    assert np.abs(np.asarray(got).astype(int)-x).max() <= 1


@pytest.mark.parametrize('what,words', [
    (None, 'cannot read a NoneType'), (3, 'cannot read a int'), ([], 'cannot read a list'),
    ({}, 'a row that names no files'), (dict(Id='a'), 'it has Id'),
    (pd.DataFrame(dict(a=[1])), 'cannot read a DataFrame'),
    (np.zeros(9), 'shape'), (np.zeros((0,0)), 'too small'), (np.zeros((4,9,9), 'M8[s]'), 'not intensities')])
def test_what_is_no_picture(what, words):
    with pytest.raises(ImageError, match=words) as e: read_image(what)
    assert '\n' not in str(e.value)


def test_real_layouts(real_data):
    t = find_images(real_data/'native')
    assert len(t)==7 and t.notna().all(axis=None)
    for row in t.itertuples():
        small,full = (np.asarray(read_image(row, s)).astype(float) for s in (256, None))
        assert full.shape[1] in (1728,2048,3072) and small.shape==(4,256,256)
        assert np.abs(small.mean((1,2))-full.mean((1,2))).max() < .5
        assert np.corrcoef(np.sqrt(small[0]).ravel(), np.sqrt(small[3]).ravel())[0,1] > .5
