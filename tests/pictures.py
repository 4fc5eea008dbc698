"Pictures on disk for the tests of reading, and what reading them should give."
import io
import os
import socket

import numpy as np
import pytest
import tifffile
from PIL import Image

from hpa_fastai.basics.errors import ImageError
from hpa_fastai.data.files import find_images
from hpa_fastai.formats.names import CHANNELS
from hpa_fastai.batches.tensors import read_image


RNG = np.random.default_rng(0)

def picture(h=96, w=None): return RNG.integers(0, 256, (4, h, w or h), dtype=np.uint8)

def smooth(h=96): return (np.add.outer(np.arange(h), np.arange(h))*np.array([1,.7,.5,.3])[:,None,None]).astype(np.uint8)


def write(folder, x, id_='A1', ext='png', channels=CHANNELS, **kwargs):
    folder.mkdir(parents=True, exist_ok=True)
    for c in channels: Image.fromarray(x[CHANNELS.index(c)]).save(folder/f'{id_}_{c}.{ext}', **kwargs)
    return folder


def only(folder): return find_images(folder).iloc[0]

def read(folder, size=None, **kwargs): return read_image(only(folder), size, **kwargs)

def same(a, b): return np.array_equal(np.asarray(a), np.asarray(b))


def fails(match, folder, **kwargs):
    "The error of reading: one line that starts with the Id and matches"
    with pytest.raises(ImageError, match=match) as e: read(folder, **kwargs)
    assert '\n' not in str(e.value) and str(e.value).startswith(only(folder).Id+': ')
    return str(e.value)


def encoded(a, file_format, **kwargs):
    f = io.BytesIO()
    Image.fromarray(a).save(f, file_format, **kwargs)
    return f.getvalue()


def one_file(folder, data, name='A1_green.png'):
    "The green plane of a field of view of one file, as numbers"
    (folder/name).write_bytes(data)
    return lambda **kwargs: np.asarray(read(folder, channels='g', **kwargs))[1].astype(float)


LOSSES = {
    'cut': lambda b,n: b[:-n],
    'zeros': lambda b,n: b[:-n]+bytes(n),
    'zeros inside': lambda b,n: b[:len(b)//2]+bytes(n)+b[len(b)//2+n:]}


def irregular(path, kind):
    "Make something that is no file"
    match kind:
        case 'FIFO': os.mkfifo(path)
        case 'folder': path.mkdir()
        case 'device': path.symlink_to('/dev/zero')
        case 'socket':
            here = os.getcwd() # the name of a socket may not be long
            os.chdir(path.parent)
            with socket.socket(socket.AF_UNIX) as s: s.bind(path.name)
            os.chdir(here)


def plane_files(folder, x, names):
    "Each plane of a field of view in a file of its own, whose metadata name them all"
    file = '<TiffData IFD="0" FirstC="{0}" PlaneCount="1"><UUID FileName="{1}">urn:uuid:{0}</UUID></TiffData>'
    files = ''.join(file.format(k, name) for k,name in enumerate(names))
    channels = ''.join(f'<Channel ID="Channel:0:{k}" SamplesPerPixel="1"/>' for k in range(len(names)))
    xml = ('<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
           f'<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="{x.shape[2]}" SizeY="{x.shape[1]}" '
           f'SizeC="{len(names)}" SizeZ="1" SizeT="1">{channels}{files}</Pixels></Image></OME>')
    for n,p in zip(names, x): tifffile.imwrite(folder/n, p, description=xml.encode(), metadata=None, compression='zlib')


def as_camera(folder, out, factor=4095/255, ids=None):
    "The 8-bit pictures of a folder as a camera of more bits writes them: TIFF of 16 bits"
    out.mkdir(parents=True, exist_ok=True)
    for row in find_images(folder).to_dict('records'):
        if ids is not None and row['Id'] not in ids: continue
        for c in CHANNELS:
            values = np.rint(np.asarray(Image.open(row[c])).astype(float)*factor).astype(np.uint16)
            tifffile.imwrite(out/f'{row["Id"]}_{c}.tif', values)
    return out
