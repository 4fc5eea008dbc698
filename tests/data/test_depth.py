"The bits of the camera: from what files state, or from what a sample of the pictures shows."
import numpy as np
import pytest
import tifffile
from PIL import Image

from hpa_fastai.batches.loaders import HPADataLoaders
from hpa_fastai.batches.tensors import read_image
from hpa_fastai.data.depth import Depth, find_depth, reader_for
from hpa_fastai.data.files import find_images
from hpa_fastai.formats.pictures import png_chunk
from hpa_fastai.formats.names import CHANNELS
from hpa_fastai.data.reader import ImageReader
from hpa_fastai.data.verify import verify_folder
from pictures import as_camera

RNG = np.random.default_rng(0)


def depth_of(folder, **settings): return find_depth(find_images(folder), ImageReader(), **settings)


def field(folder, id_, values, **options):
    "A field of view of 16-bit TIFF; its largest value is `values`, or they are as given"
    folder.mkdir(parents=True, exist_ok=True)
    if np.isscalar(values): values = np.r_[RNG.integers(1, values, 32*32-1), values].reshape(32, 32)
    for c in CHANNELS: tifffile.imwrite(folder/f'{id_}_{c}.tif', values.astype(options.get('dtype', np.uint16)),
                                        **{k: v for k,v in options.items() if k!='dtype'})
    return folder


@pytest.mark.parametrize('factor,bits', [(1, 8), (16, 12), (4095/255, 12), (16383/255, 14), (257, 16)])
def test_a_folder_read_by_its_own_depth_is_the_one_of_8_bits(small_atlas, tmp_path, factor, bits, capsys):
    eight, folder = find_images(small_atlas/'train'), as_camera(small_atlas/'train', tmp_path/'camera', factor)
    table, depth = find_images(folder), depth_of(folder)
    assert depth.bits == bits and f'{bits} bits of 16 are used: ' in depth.line and '--bits' in depth.line
    for reader in (depth.of(ImageReader(32)), reader_for(table, ImageReader(32, bits=10))):
        pairs = zip(table.to_dict('records')[:5], eight.to_dict('records'))
        assert max(np.abs(reader.array(a)-ImageReader(32).array(b).astype(float)).max() for a,b in pairs) <= 1.5
    assert f'{bits} bits of 16' in str(verify_folder(folder, progress=False))
    dls = HPADataLoaders.from_csv(small_atlas, images=folder, size=32, bs=8, cache=tmp_path/'cache', progress=False)
    assert dls.settings.reader.bits == bits and capsys.readouterr().out.count('bits of 16 are used') == 1


def test_files_of_8_bits_need_no_depth(small_atlas):
    assert depth_of(small_atlas/'train') == Depth()
    line = depth_of(small_atlas/'train', remembered=(12,)).line
    assert 'files of 8 bits; the model was trained on files of 12 bits' in line


def test_faint_pictures_keep_their_grey_levels(small_atlas, tmp_path):
    table = find_images(as_camera(small_atlas/'train', tmp_path/'faint', 4095/255/16))
    reader = find_depth(table, ImageReader()).of(ImageReader())
    pictures = [reader.array(row) for row in table.to_dict('records')[:5]]
    assert reader.bits == 12 and all(len(np.unique(img)) > 100 and img.max() <= 17 for img in pictures)


def test_one_field_by_itself(small_atlas, tmp_path):
    table = find_images(as_camera(small_atlas/'train', tmp_path/'camera'))
    img, eight = read_image(table.iloc[0]), read_image(find_images(small_atlas/'train').iloc[0])
    assert (img.float()-eight.float()).abs().max() <= 1 and (read_image(img/255).float()-eight.float()).abs().max() <= 1
    assert read_image(table.iloc[0], bits=16).max() <= 16


def test_one_value_beyond_proves_more_bits(tmp_path):
    for i in range(9): field(tmp_path, f'a{i}', 4095)
    assert depth_of(tmp_path).bits == 12
    field(tmp_path, 'a9', 4096)
    assert depth_of(tmp_path).bits == 14


def test_values_moved_to_the_upper_end_of_16_bits(tmp_path):
    for i in range(9): field(tmp_path, f'a{i}', RNG.integers(0, 1000, (32, 32))*16)
    assert depth_of(tmp_path).bits == 16


@pytest.mark.parametrize('stated,options', [
    (12, dict(ome=True, metadata=dict(axes='YX', SignificantBits=12))),
    (14, dict(imagej=True, metadata=dict(axes='YX', min=0., max=16383.))),
    (12, dict(extratags=[(281, 'H', 1, 4095, True)]))])
def test_what_tiff_files_state(tmp_path, stated, options):
    for i in range(9): field(tmp_path, f'a{i}', 200, **options)
    depth = depth_of(tmp_path)
    assert depth.bits == stated and ('the files state it' in depth.line) == ('ome' in options)


@pytest.mark.parametrize('factor,bits', [(1, 12), (16, 16)])
def test_what_png_files_state(tmp_path, factor, bits):
    "Values of a camera are moved to the upper end by the standard, and left as they are by some programs"
    for c in CHANNELS:
        Image.fromarray((RNG.integers(1, 900, (32, 32))*factor).astype(np.uint16)).save(tmp_path/f'a_{c}.png')
        data = (tmp_path/f'a_{c}.png').read_bytes()
        (tmp_path/f'a_{c}.png').write_bytes(data[:33]+png_chunk(b'sBIT', bytes([12]))+data[33:])
    assert depth_of(tmp_path).bits == bits


@pytest.mark.parametrize('dtype', [np.int16, np.int32, np.uint32])
def test_types_without_a_range_of_their_own(tmp_path, dtype):
    for i in range(9): field(tmp_path, f'a{i}', 4000, dtype=dtype)
    assert depth_of(tmp_path).bits == 12


def test_floats_are_not_rounded_and_broken_files_are_passed_over(tmp_path):
    for c in CHANNELS: tifffile.imwrite(tmp_path/f'f_{c}.tif', RNG.random((32, 32)).astype(np.float32))
    assert find_depth(find_images(tmp_path), ImageReader()) == Depth(16)
    for i in range(9): field(tmp_path/'b', f'a{i}', 4000)
    for f in list((tmp_path/'b').glob('a3_*')): f.write_bytes(f.read_bytes()[:500])
    assert depth_of(tmp_path/'b').bits == 12


def test_what_was_told_stands(tmp_path):
    for i in range(9): field(tmp_path, f'a{i}', 900)
    table = find_images(tmp_path)
    assert find_depth(table, ImageReader(bits=10)) == Depth(10)
    assert find_depth(table, ImageReader(scale='percentile')) == Depth()
