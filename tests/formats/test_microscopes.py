"""Files of microscopes that hold several fields of view.

CZI is written by Zeiss' own library, OME-TIFF by tifffile. No program for Python writes LIF and ND2, so these are put
together by hand (tests/microscope_files.py) and read by the real libraries; real files are read with --real-data.
"""
import builtins
import os
import re
import resource
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile

from hpa_fastai.basics.errors import ImageError
from hpa_fastai.data.reader import ImageReader
from hpa_fastai.formats.channels import assign_channels
from hpa_fastai.formats.microscopes import positions_of, read_position
from hpa_fastai.formats.pictures import open_planes
from hpa_fastai.formats.pixel_size import stated_pixel_size
from microscope_files import DYES, lif_of, nd2_of, part, random_values, write_czi

liffile, nd2 = pytest.importorskip('liffile'), pytest.importorskip('nd2')
czi = pytest.importorskip('pylibCZIrw.czi')

VALUES = random_values(2, 2, 3, 4, 64, 80)  # fields, time points, depths, channels, height, width


def write_lif(path, values, names=DYES, bits=12):
    path.write_bytes(lif_of({f'Position {i+1}': (field, 'TZCYX', names) for i, field in enumerate(values)}, bits))
    return str(path)


def write_nd2(path, values, names=DYES, **kwargs):
    points = [f'P{i+1}' for i in range(len(values))]
    path.write_bytes(nd2_of(values.transpose(0, 1, 2, 4, 5, 3), names, points, **kwargs))
    return str(path)


def write_ome(path, values, names=DYES):
    with tifffile.TiffWriter(path, ome=True) as w:
        for i, field in enumerate(values):
            w.write(field, photometric='minisblack', metadata=dict(
                axes='TZCYX', Name=f'P{i+1}', Channel=dict(Name=names), PhysicalSizeX=.08, PhysicalSizeXUnit='µm'))
    return str(path)


READS = [(liffile.LifImage, 'frame'), (czi.CziReader, 'read'), (nd2.ND2File, 'read_frame'),
         (tifffile.TiffPage, 'asarray')]
WRITERS = dict(lif=write_lif, czi=write_czi, nd2=write_nd2, tif=write_ome)


@pytest.fixture(params=WRITERS)
def written(request, tmp_path):
    return WRITERS[request.param](tmp_path/f'day.{request.param}', VALUES)


def test_every_position_comes_back_as_it_was_written(written):
    found = positions_of(written)
    assert [(p.number, p.width, p.height, p.n_z, p.n_t, p.why_not) for p in found] == [
        (i, 80, 64, 3, 2, '') for i in range(2)]
    assert all(p.channels == tuple(DYES) and p.pixel_size == pytest.approx(.08) for p in found)
    for i, t in np.ndindex(2, 2):
        p = open_planes(f'{written}#{i}@{t}', z='max')
        assert (np.stack(p.planes) == VALUES[i, t].max(0)).all() and p.names == DYES and p.size == (80, 64)
        assert np.shape(open_planes(f'{written}#{i}@{t}', z='sharpest').planes) == (4, 3, 64, 80)
        assert stated_pixel_size(f'{written}#{i}@{t}') == pytest.approx(.08)


def test_a_header_has_the_same_names_and_no_pixels(written, monkeypatch):
    def refuse(*args, **kwargs): raise AssertionError('pixels are read')
    for reader, name in READS: monkeypatch.setattr(reader, name, refuse)
    p = open_planes(f'{written}#1@1', z='max', header=True)
    assert p.names == DYES and p.size == (80, 64) and not np.any(p.planes)
    with pytest.raises(ImageError, match='a Z stack of 3 planes'): open_planes(f'{written}#1@1', header=True)
    with pytest.raises(ImageError, match='2 time points; say time='): open_planes(f'{written}#1', z='max', header=True)


def test_only_the_planes_of_one_field_and_time_point_are_read(tmp_path, monkeypatch):
    "Planes are counted where the libraries read them"
    read = []
    def count(owner, name):
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **kwargs: read.append(1) or real(*args, **kwargs))
    for owner, name in READS: count(owner, name)
    for ending, write in WRITERS.items():
        path = write(tmp_path/f'day.{ending}', VALUES)
        read.clear()
        open_planes(f'{path}#1@1', z='max')
        assert len(read) == (3 if ending == 'nd2' else 12), ending  # a frame of ND2 has all channels


@pytest.mark.parametrize('ending', WRITERS)
def test_names_find_the_channels_and_a_wrong_name_is_refused(ending, tmp_path):
    flat = VALUES[:1, :1, :1]
    path = WRITERS[ending](tmp_path/f'one.{ending}', flat)
    with pytest.warns(UserWarning, match='Alexa Fluor 647 is yellow'):
        assert assign_channels(open_planes(path), 'rgby') == dict(red=2, green=1, blue=0, yellow=3)
    img = ImageReader(bits=16, channels=dict(red='Alexa Fluor 555', blue='Hoechst'), missing='zero').array(path)
    assert img[0].any() and img[2].any() and not img[[1, 3]].any()
    said = "no plane 'Alexa 488': there are 4, called Hoechst, .*did you mean 'Alexa Fluor 488'?"
    with pytest.raises(ImageError, match=said):
        ImageReader(channels=dict(green='Alexa 488', blue='Hoechst')).array(path)


def test_fields_of_one_file_may_have_other_channels(tmp_path):
    three, four = VALUES[0, 0, 0][[2, 1, 0]], VALUES[1, 0, 0]
    images = {'A1': (four, 'CYX', DYES), 'A2': (three, 'CYX', [DYES[i] for i in (2, 1, 0)])}
    (tmp_path/'plate.lif').write_bytes(lif_of(images))
    path = str(tmp_path/'plate.lif')
    assert [len(p.channels) for p in positions_of(path)] == [4, 3]
    with pytest.warns(UserWarning): found = assign_channels(open_planes(f'{path}#1'), 'rgb')
    assert found == dict(red=0, green=1, blue=2)


def test_camera_bits_that_a_file_states_are_used(tmp_path):
    values = VALUES[:1, :1, :1] | 1
    for path in (write_lif(tmp_path/'a.lif', values), write_nd2(tmp_path/'a.nd2', values)):
        p = open_planes(path)
        assert p.bits == 12 and p.format.endswith(' 12-bit')
    assert open_planes(write_czi(tmp_path/'a.czi', values)).bits is None


def test_colours_on_the_screen_are_a_guess_that_is_told(tmp_path):
    colours = ['Blue LUT', 'Green LUT', 'Red LUT', 'Yellow LUT']
    (tmp_path/'a.lif').write_bytes(lif_of({'a': (VALUES[0, 0, 0], 'CYX', colours)}))
    with pytest.warns(UserWarning, match='Blue LUT is blue .*colours on the screen'):
        assert assign_channels(open_planes(str(tmp_path/'a.lif')), 'rgby') == dict(red=2, green=1, blue=0, yellow=3)


def test_a_colour_camera_comes_as_red_green_blue(tmp_path):
    colours = np.random.default_rng(0).integers(0, 255, (1, 1, 1, 1, 64, 80, 3), dtype=np.uint8)
    path = write_czi(tmp_path/'a.czi', colours[..., ::-1], ['camera'])  # the library stores blue, green, red
    p = open_planes(path)
    assert p.kind == 'colour' and (np.stack(p.planes) == colours[0, 0, 0, 0].transpose(2, 0, 1)).all()


@pytest.mark.parametrize('apart, sizes', [((70, 0), [(80, 64)]*2), ((80, 0), [(160, 64)])])
def test_tiles_of_a_czi_are_fields_if_they_overlap_and_pieces_of_one_if_they_do_not(apart, sizes, tmp_path):
    with czi.create_czi(str(tmp_path/'a.czi')) as d:
        for i in range(2): d.write(VALUES[i, 0, 0, 0], plane=dict(C=0), location=(i*apart[0], 0))
        d.write_metadata('a')
    assert [(p.width, p.height) for p in positions_of(str(tmp_path/'a.czi'))] == sizes
    assert np.shape(open_planes(f'{tmp_path}/a.czi#{len(sizes)-1}').planes[0])[::-1] == sizes[-1]


def test_compressed_czi(tmp_path):
    path = write_czi(tmp_path/'a.czi', VALUES[:1, :1, :1], compression='zstd1:ExplicitLevel=2')
    assert (np.stack(open_planes(path).planes) == VALUES[0, 0, 0]).all()


def test_compressed_nd2(tmp_path):
    path = write_nd2(tmp_path/'a.nd2', VALUES, packed=True)
    assert (np.stack(open_planes(f'{path}#1@1', z='max').planes) == VALUES[1, 1].max(0)).all()


def test_scans_and_sections_are_named(tmp_path):
    images = {'sweep': (VALUES[0, 0, :, 0], 'λYX', ['Green LUT']), 'depth': (VALUES[0, 0, :, 0], 'CZX', DYES[:3])}
    (tmp_path/'a.lif').write_bytes(lif_of(images))
    assert [p.why_not for p in positions_of(str(tmp_path/'a.lif'))] == [
        'a wavelength scan: axes λYX 3x64x80', 'a section through the depth: axes CZX 3x64x80']
    with pytest.raises(ImageError) as e: open_planes(str(tmp_path/'a.lif'))
    assert 'holds no field of view: sweep is a wavelength scan' in str(e.value) and 'depth is a section' in str(e.value)
    with pytest.raises(ImageError, match='sweep is no field of view, but a wavelength scan'):
        open_planes(f'{tmp_path}/a.lif#0')


def test_real_scans_say_what_they_hold(real_data):
    folder = real_data/'microscope'
    files = {'LeicaLASX_wavelength-sweep_example.lif': 'x_y_lambdaEmi is a wavelength scan: axes λYX 20x64x64',
             'testdata_2channel_xz.lif': 'xz is a section through the depth: axes CZX 2x512x512'}
    for name, said in files.items():
        assert all(p.why_not and p.pixel_size for p in positions_of(str(folder/name)))
        with pytest.raises(ImageError) as e: open_planes(str(folder/name))
        assert 'holds no field of view: ' in str(e.value) and said in str(e.value) and '\n' not in str(e.value)
    assert positions_of(str(folder/'testdata_2channel_xz.lif'))[0].channels == ('FITC', 'TRITC')


@pytest.mark.parametrize('ending', WRITERS)
def test_many_threads_read_one_file(ending, tmp_path):
    path = WRITERS[ending](tmp_path/f'day.{ending}', VALUES)
    wanted = [(i, t) for _ in range(20) for i, t in np.ndindex(2, 2)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda it: np.stack(open_planes(f'{path}#{it[0]}@{it[1]}', z='max').planes), wanted))
    assert all((a == VALUES[i, t].max(0)).all() for a, (i, t) in zip(found, wanted))


def test_a_description_is_read_once_until_the_file_changes(tmp_path, monkeypatch):
    path, real, read = write_lif(tmp_path/'a.lif', VALUES), liffile.LifFile.__init__, []
    monkeypatch.setattr(liffile.LifFile, '__init__', lambda *args, **kwargs: read.append(1) or real(*args, **kwargs))
    for _ in range(3): open_planes(f'{path}#1@1', z='max')
    assert len(read) == 1
    write_lif(tmp_path/'a.lif', VALUES[:, :1]//2)
    assert (np.stack(open_planes(f'{path}#1', z='max').planes) == VALUES[1, 0].max(0)//2).all() and len(read) == 2


# files that are damaged


@pytest.mark.parametrize('ending', WRITERS)
def test_a_file_that_was_cut_anywhere_is_refused_in_one_line(ending, tmp_path):
    whole = WRITERS[ending](tmp_path/f'day.{ending}', VALUES)
    data = open(whole, 'rb').read()
    for n in [*range(0, 300, 7), *range(300, len(data)-1, len(data)//40), len(data)-1]:
        (tmp_path/f'cut.{ending}').write_bytes(data[:n])
        with pytest.raises(ImageError) as e: open_planes(f'{tmp_path}/cut.{ending}#1@1', z='max')
        said = str(e.value)
        assert re.search('damaged or cut off|an empty file|not a PNG, JPG|without a picture', said), (n, said)
        assert '\n' not in said


def test_a_lif_that_was_cut_in_its_pixels_keeps_the_fields_before(tmp_path):
    data = lif_of({f'P{i}': (VALUES[i, 0, 0], 'CYX', DYES) for i in range(2)})
    (tmp_path/'cut.lif').write_bytes(data[:-1000])
    assert len(positions_of(str(tmp_path/'cut.lif'))) == 2
    assert (np.stack(open_planes(f'{tmp_path}/cut.lif#0').planes) == VALUES[0, 0, 0]).all()
    with pytest.raises(ImageError, match='it ends before the pixels of P1'): open_planes(f'{tmp_path}/cut.lif#1')


def test_frames_and_pieces_with_other_sizes_than_stated_are_refused(tmp_path):
    data = open(write_nd2(tmp_path/'a.nd2', VALUES[:1, :1, :1], packed=True), 'rb').read()
    at = data.index(b'x\x9c')
    for frame in (zlib.compress(bytes(100)), zlib.compress(bytes(2**26))):
        (tmp_path/'b.nd2').write_bytes(data[:at]+frame+data[at+len(frame):])
        with pytest.raises(ImageError, match='damaged'): open_planes(str(tmp_path/'b.nd2'))
    data = bytearray(open(write_czi(tmp_path/'a.czi', VALUES[:1, :1, :1]), 'rb').read())
    at = data.index(b'ZISRAWSUBBLOCK')+40
    data[at:at+8] = struct.pack('<Q', 100)
    (tmp_path/'b.czi').write_bytes(data)
    with pytest.raises(ImageError, match='shorter than it states'): open_planes(str(tmp_path/'b.czi'))


def test_what_would_exhaust_the_memory_is_refused_at_once(tmp_path):
    "Sizes, counts and packed metadata that files state, not hold"
    lif = lif_of({'a': (VALUES[0, 0, 0], 'CYX', DYES)})
    def changed(text, old, new): return part(re.sub(old, new, text, count=1))
    text = lif[13:13+2*struct.unpack_from('<I', lif, 9)[0]].decode('utf-16-le')
    czi_data = open(write_czi(tmp_path/'whole.czi', VALUES[:1, :1, :1]), 'rb').read()
    axis = ('<DimensionDescription DimID="{}" NumberOfElements="99999999" Origin="0" Length="1" Unit="m" BitInc="0" '
            'BytesInc="40960"/>')
    nd2_data = nd2_of(VALUES[:1, :1, :1].transpose(0, 1, 2, 4, 5, 3), DYES, ['a'])
    files = {
        'wide.lif': changed(text, 'NumberOfElements="80"', 'NumberOfElements="2000000000"'),
        'deep.lif': changed(text, '<Dimensions>', f'<Dimensions>{axis.format(3)}'),
        'tiles.lif': changed(text, '<Dimensions>', f'<Dimensions>{axis.format(10)}'),
        'long.lif': lif[:9]+struct.pack('<I', 2**32-1)+lif[13:],
        'words.lif': part('<!DOCTYPE a [<!ENTITY b "cc">]><LMSDataContainerHeader Version="2"/>'),
        'wide.czi': czi_data.replace(struct.pack('<4siIfI', b'X', 0, 80, 0, 80),
                                     struct.pack('<4siIfI', b'X', 0, 2**30, 0, 2**30)),
        'words.czi': czi_data.replace(b'<ImageDocument>', b'<!DOCTYPE a []>'),
        'wide.nd2': nd2_data.replace('uiWidth\0'.encode('utf-16-le')+struct.pack('<I', 80),
                                     'uiWidth\0'.encode('utf-16-le')+struct.pack('<I', 2**31)),
    }
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, data in files.items():
        (tmp_path/name).write_bytes(data)
        for address in (name, f'{name}#0'):
            try: said = f'{address}: {open_planes(str(tmp_path/address), z="max").format}'
            except ImageError as e: said = str(e)
            assert re.search('damaged|refused|no field|too large', said) and '\n' not in said, said
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-before < 200_000  # kB


def test_an_xlef_opens_files_of_its_folder_only(tmp_path):
    lof = lof_of(VALUES[0, 0, 0], DYES)
    (tmp_path/'other.lof').write_bytes(lof)
    inside = tmp_path/'day'
    inside.mkdir()
    (inside/'a.lof').write_bytes(lof)
    def xlef(*files):
        named = ''.join(f'<Reference File="{f}"/>' for f in files)
        (inside/'day.xlef').write_text(
            '<?xml version="1.0"?><LMSDataContainerHeader Version="2"><Element Name="day"><Data><Experiment/></Data>'
            f'<Memory/><Children>{named}</Children></Element></LMSDataContainerHeader>')
        return str(inside/'day.xlef')
    assert (np.stack(open_planes(xlef('a.lof')).planes) == VALUES[0, 0, 0]).all()
    assert (np.stack(open_planes(str(inside/'a.lof')).planes) == VALUES[0, 0, 0]).all()
    for name in ('../other.lof', str(tmp_path/'other.lof'), '..%2Fother.lof'):
        with pytest.raises(ImageError, match='a file of another folder'): open_planes(xlef(name))


def lof_of(a, names):
    "The bytes of a LOF, from the description of a LIF with one image"
    lif = lif_of({'a': (a, 'CYX', names)})
    text = lif[13:13+2*struct.unpack_from('<I', lif, 9)[0]].decode('utf-16-le')
    element = re.search('<Element Name="a">.*?</Element>', text)[0]
    head = part('LMS_Object_File')+struct.pack('<BIBI', 0x2a, 2, 0x2a, 0)+struct.pack('<BQ', 0x2a, a.nbytes)
    return head+a.tobytes()+part(f'<LMSDataContainerHeader Version="2">{element}</LMSDataContainerHeader>')


# libraries


@pytest.mark.parametrize('ending, library, extra', [('lif', 'liffile', 'lif'), ('czi', 'pylibCZIrw', 'czi'),
                                                    ('nd2', 'nd2', 'nd2')])
def test_a_missing_library_is_one_line_that_names_the_extra(ending, library, extra, tmp_path, monkeypatch):
    path, real = WRITERS[ending](tmp_path/f'a.{ending}', VALUES[:1, :1, :1]), builtins.__import__
    def without(name, *args, **kwargs):
        if name.partition('.')[0] == library: raise ImportError(name)
        return real(name, *args, **kwargs)
    monkeypatch.setattr(builtins, '__import__', without)
    for read in (positions_of, open_planes, read_position):
        with pytest.raises(ImageError) as e: read(path)
        assert f"reading {ending.upper()} needs {library}: pip install 'hpa_fastai[{extra}]'" in str(e.value)


def test_files_are_recognised_by_their_content(tmp_path):
    path = write_czi(tmp_path/'a.czi', VALUES[:1, :1, :1])
    os.rename(path, tmp_path/'a.png')
    assert open_planes(str(tmp_path/'a.png')).format == 'CZI 16-bit'
    (tmp_path/'b.czi').write_bytes(b'not one')
    with pytest.raises(ImageError, match='it starts with b.not one'): open_planes(str(tmp_path/'b.czi'))
    with pytest.raises(ImageError, match='there is no picture 5, but 1'): open_planes(f'{tmp_path}/a.png#4')
