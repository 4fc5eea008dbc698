"Files with several fields of view in folders: rows, Ids, time points, and what is wrong with some of them."
import shutil

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from hpa_fastai.all import ImageReader, find_images, image_table, predict, verify_folder
from hpa_fastai.basics.errors import HPAError, ImageError
from hpa_fastai.batches.cache import cache_key
from hpa_fastai.cli.main import main
from hpa_fastai.data.files import attach_images
from hpa_fastai.data.folders import fov_stamp
from hpa_fastai.simulate.atlas import simulate_fov
from microscope_files import DYES, lif_of, nd2_of, write_czi

pytest.importorskip('liffile'), pytest.importorskip('nd2'), pytest.importorskip('pylibCZIrw')
pytestmark = pytest.mark.filterwarnings('ignore:the planes of the files have names of dyes')


def cells(n, size=64):
    "Simulated fields of view in the order of the dyes, 12 of 16 bits"
    return np.stack([simulate_fov([i % 28], size=size, seed=i)[0][[2, 1, 0, 3]].astype(np.uint16)*16 for i in range(n)])


CELLS = cells(3)


@pytest.fixture
def day(tmp_path):
    "A CZI of three scenes, a LIF of two fields and a scan, an ND2 of two time points"
    folder = tmp_path/'day'
    folder.mkdir()
    write_czi(folder/'a.czi', CELLS[:, None, None])
    three = CELLS[1][[2, 1, 0]]
    (folder/'b.lif').write_bytes(lif_of({'A1': (CELLS[0], 'CYX', DYES), 'sweep': (CELLS[0], 'λYX', ['Green LUT']),
                                         'A2': (three, 'CYX', [DYES[2], DYES[1], DYES[0]])}, bits=12))
    (folder/'c.nd2').write_bytes(nd2_of(CELLS[None, :2, None].transpose(0, 1, 2, 4, 5, 3), DYES, ['P1']))
    return folder


IDS = ['a_001', 'a_002', 'a_003', 'b_001', 'b_003', 'c']


def test_each_field_of_view_is_a_row_that_says_what_the_microscope_wrote(day):
    with pytest.warns(UserWarning, match='1 pictures in files of microscopes .* first is b.lif#1, a wavelength scan'):
        table = find_images(day)
    assert list(table.Id) == IDS and set(table.layout) == {'single'}
    assert [address.rpartition('/')[2] for address in table.green] == [
        'a.czi#0', 'a.czi#1', 'a.czi#2', 'b.lif#0', 'b.lif#2', 'c.nd2']
    assert list(table.position) == ['scene 1', 'scene 2', 'scene 3', 'A1', 'A2', '']
    assert list(table.pixel_size) == pytest.approx([.08]*6) and 'time' not in table and 'planes' not in table
    assert (table.red == table.green).all() and (table.red == table.yellow).all()


@pytest.mark.parametrize('time, ids, address', [
    ('first', ['c'], 'c.nd2#0@0'), (2, ['c'], 'c.nd2#0@1'), ('all', ['c_t001', 'c_t002'], 'c.nd2#0@0')])
def test_time_points_are_rows_on_demand(day, time, ids, address):
    table = find_images(day, time=time)
    number = '_t001' if time == 'all' else ''
    of_series = table[table.Id.str.startswith('c')]
    assert list(table.Id) == [id_+number for id_ in IDS[:-1]]+ids and list(of_series.Id) == ids
    assert of_series.green.iloc[0].endswith(address)
    assert list(of_series.time) == ([1, 2] if time == 'all' else [2 if time == 2 else 1])
    read = [ImageReader(bits=12).array(row) for _, row in of_series.iterrows()]
    for img, t in zip(read, of_series.time): assert (np.abs(img.astype(int)[[2, 1, 0, 3]]-CELLS[t-1]/16) <= 1).all()


def test_a_series_without_a_choice_and_a_time_point_that_is_not_there_fail_alone(day):
    for time, said in ((None, "2 time points; say time='first'"), (9, 'no time point number 8, counted from 0')):
        table = find_images(day, time=time)
        read = ImageReader(missing='zero', time=time)
        for row in table.to_dict('records'):
            if row['Id'] != 'c': assert read.array(row).any()
            else:
                with pytest.raises(ImageError, match=said): read.array(row)
    for time in ('last', 0, -1, True, 1.5):
        with pytest.raises(ImageError, match='choose .first., .all., or the number'): find_images(day, time=time)
        with pytest.raises(ImageError, match='choose .first.'): ImageReader(time=time)


def test_other_files_of_the_same_name_and_folders_keep_ids_apart(day):
    shutil.copy(day/'a.czi', day/'c.czi')
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(day/'b.png')
    (day/'more').mkdir()
    shutil.copy(day/'a.czi', day/'more'/'a.czi')
    ids = list(find_images(day).Id)
    assert len(set(ids)) == len(ids) == 13
    assert {'a_001', 'more/a_001', 'b', 'b.lif_001', 'c.czi_003', 'c.nd2'} <= set(ids)


def test_ids_stay_when_a_file_grows(tmp_path):
    write_czi(tmp_path/'a.czi', CELLS[:2, None, None])
    before = set(find_images(tmp_path).Id)
    write_czi(tmp_path/'a.czi', CELLS[:3, None, None])
    assert before == {'a_001', 'a_002'} and before < set(find_images(tmp_path).Id)


def test_no_field_is_lost_where_files_would_have_the_same_ids(tmp_path):
    def lif(name, n):
        (tmp_path/name).write_bytes(lif_of({f'P{i}': (CELLS[i], 'CYX', DYES) for i in range(n)}, bits=12))

    lif('scan.lif', 2), lif('scan_001.lif', 1), lif('day.lif', 2)
    for c, name in enumerate(('blue', 'green', 'red', 'yellow')):
        tifffile.imwrite(tmp_path/f'day_001_{name}.tif', CELLS[0, c])
    for name, n in (('a.ome.tif', 2), ('a_001.ome.tif', 1)):
        with tifffile.TiffWriter(tmp_path/name, ome=True) as w:
            for i in range(n):
                w.write(CELLS[i], photometric='minisblack', metadata=dict(axes='CYX', Channel=dict(Name=DYES)))
    found = find_images(tmp_path).set_index('Id').green.map(lambda address: address.rpartition('/')[2]).to_dict()
    assert found == {
        'scan_001': 'scan_001.lif', 'scan.lif_001': 'scan.lif#0', 'scan.lif_002': 'scan.lif#1',
        'day_001': 'day_001_green.tif', 'day.lif_001': 'day.lif#0', 'day.lif_002': 'day.lif#1',
        'a_001': 'a_001.ome.tif', 'a.ome.tif_001': 'a.ome.tif#0', 'a.ome.tif_002': 'a.ome.tif#1'}


def test_fields_that_no_name_can_tell_apart_are_refused(tmp_path):
    for name, n in (('scan.lif', 2), ('scan_001.lif', 1)):
        (tmp_path/name).write_bytes(lif_of({f'P{i}': (CELLS[i], 'CYX', DYES) for i in range(n)}, bits=12))
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path/'scan.lif_001.png')
    said = 'scan.lif_001 is the Id of two fields of view, in scan.lif and in scan.lif_001.png; rename one'
    with pytest.raises(ImageError, match=said): find_images(tmp_path)


def test_ids_of_a_series_stay_when_it_grows(tmp_path):
    ids = []
    for n in (1, 2):
        (tmp_path/'c.nd2').write_bytes(nd2_of(CELLS[None, :n, None].transpose(0, 1, 2, 4, 5, 3), DYES, ['P1']))
        tifffile.imwrite(tmp_path/'s.ome.tif', CELLS[:n], metadata=dict(axes='TCYX', Channel=dict(Name=DYES)))
        for i, c in enumerate(('blue', 'green')):
            tifffile.imwrite(tmp_path/f'p_{c}.tif', CELLS[:n, i], imagej=True, metadata=dict(axes='TYX'))
        table = find_images(tmp_path, time='all')
        ids.append(list(table.Id))
        assert list(table.time) == list(range(1, n+1))*3
        for row in table.to_dict('records'): assert ImageReader(bits=12, missing='zero').array(row).any()
    assert ids == [['c_t001', 'p_t001', 's_t001'], ['c_t001', 'c_t002', 'p_t001', 'p_t002', 's_t001', 's_t002']]


def test_the_most_pictures_are_counted_in_each_file(tmp_path, monkeypatch):
    for name in 'ab': (tmp_path/f'{name}.lif').write_bytes(
        lif_of({f'P{i}': (CELLS[i], 'CYX', DYES) for i in range(2)}, bits=12))
    monkeypatch.setattr('hpa_fastai.formats.positions.MOST_POSITIONS', 3)
    assert len(find_images(tmp_path)) == 4
    monkeypatch.setattr('hpa_fastai.formats.positions.MOST_POSITIONS', 1)
    with pytest.raises(ImageError, match='2 pictures in one file are refused'): find_images(tmp_path)


def end_of(table): return [address.rpartition('/')[2] for address in table.green]


def test_an_address_means_one_field_of_view_alone_and_in_a_list(day, trained):
    whole = find_images(day)
    for source in ('b.lif#2', 'a.czi#1'):
        one = image_table(day/source)
        assert end_of(one) == [source] and list(one.Id) == [whole.Id[end_of(whole).index(source)]]
        assert find_images([day/source]).equals(one) and find_images(str(day/source)).equals(one)
        assert 'position' in one and one.pixel_size[0] == pytest.approx(.08)
    assert list(find_images([day/'a.czi#2', day/'b.lif', day/'a.czi#0']).Id) == ['a_001', 'a_003', 'b_001', 'b_003']
    assert end_of(image_table(day/'c.nd2#0@1')) == ['c.nd2#0@1']
    assert list(image_table(day/'c.nd2#0@1').Id) == ['c_t002'] and list(image_table(day/'c.nd2#0').Id) == ['c']
    both = find_images([day/'c.nd2#0@1', day/'a.czi#0', day/'c.nd2#0@0'])
    assert list(both.Id) == ['a_001', 'c_t001', 'c_t002'] and list(both.time[1:]) == [1, 2]
    assert list(predict(day/'a.czi#1', model=trained[1], progress=False).Id) == ['a_002']
    img = ImageReader(bits=12).array(image_table(day/'a.czi#1').iloc[0])
    assert (np.abs(img[[2, 1, 0, 3]].astype(int)-CELLS[1]/16) <= 1).all()


def test_an_address_that_leads_nowhere_says_so(day, trained):
    for address, said in (('b.lif#9', 'there is no picture 10, but 3'), ('b.lif#1', 'sweep is no field of view'),
                          ('c.nd2#0@5', 'no time point number 5')):
        row = image_table(day/address).iloc[0]
        assert row.Id == address
        with pytest.raises(ImageError, match=said): ImageReader(missing='zero').array(row)
    with pytest.raises(ImageError, match='none.lif: no such file'): image_table(day/'none.lif#1')
    with pytest.raises(ImageError, match='No such file|no such file'):
        ImageReader().array(find_images([day/'none.lif#1']).iloc[0])
    failed = predict([day/'a.czi#0', day/'a.czi#9'], model=trained[1], progress=False).set_index('Id').error
    assert failed['a_001'] == '' and 'no picture 10' in failed['a.czi#9']


def test_a_file_of_many_that_is_called_like_a_channel(tmp_path):
    images = {f'P{i}': (CELLS[i], 'CYX', DYES) for i in range(2)}
    (tmp_path/'cells_green.lif').write_bytes(lif_of(images, bits=12))
    for source in (tmp_path, tmp_path/'cells_green.lif'):
        table = image_table(source)
        assert list(table.Id) == ['cells_001', 'cells_002'] and set(table.layout) == {'single'}
    img = ImageReader(bits=12).array(image_table(tmp_path/'cells_green.lif#1').iloc[0])
    assert (np.abs(img[[2, 1, 0, 3]].astype(int)-CELLS[1]/16) <= 1).all()


def test_an_address_in_one_file_for_each_channel_means_the_whole_field(tmp_path):
    for c, name in enumerate(('blue', 'green', 'red', 'yellow')):
        tifffile.imwrite(tmp_path/f'A1_{name}.tif', CELLS[:2, c], imagej=True, metadata=dict(axes='TYX'))
    row = image_table(tmp_path/'A1_red.tif#0@1').iloc[0]
    assert row.Id == 'A1_t002' and row.layout == 'channels'
    assert (np.abs(ImageReader(bits=12).array(row)[[2, 1, 0, 3]].astype(int)-CELLS[1]/16) <= 1).all()


def test_wells_with_other_channels_are_assigned_by_their_own_names(day):
    table = find_images(day).set_index('Id')
    full, three = (ImageReader(bits=12, missing='zero').array(table.loc[id_]) for id_ in ('b_001', 'b_003'))
    assert (np.abs(full[[2, 1, 0, 3]].astype(int)-CELLS[0]/16) <= 1).all()
    assert (np.abs(three[[2, 1, 0]].astype(int)-CELLS[1][:3]/16) <= 1).all() and not three[3].any()
    with pytest.raises(ImageError, match='no yellow channel in .*b.lif#2'): ImageReader().array(table.loc['b_003'])


def test_a_file_without_a_field_of_view_is_an_error_alone_and_a_row_that_says_so_in_a_folder(day):
    scan = day/'scan.lif'
    scan.write_bytes(lif_of({'sweep': (CELLS[0], 'λYX', ['Green LUT'])}))
    said = 'scan.lif: holds no field of view: sweep is a wavelength scan: axes λYX 4x64x64'
    with pytest.raises(ImageError, match=said): image_table(scan)
    row = find_images(day).set_index('Id').loc['scan']
    with pytest.raises(ImageError, match='holds no field of view: sweep is a wavelength scan'): ImageReader().array(row)


def test_a_file_named_alone_and_an_address_in_a_table_are_read(day, tmp_path):
    assert list(image_table(day/'a.czi').Id) == ['a_001', 'a_002', 'a_003']
    assert list(image_table(str(day/'c.nd2'), time='all').Id) == ['c_t001', 'c_t002']
    pd.DataFrame(dict(Id=['x'], path=['a.czi#2'])).to_csv(day/'paths.csv', index=False)
    img = ImageReader(bits=12).array(find_images(day/'paths.csv').iloc[0])
    assert (np.abs(img[[2, 1, 0, 3]].astype(int)-CELLS[2]/16) <= 1).all()


def test_damaged_files_are_rows_and_never_end_a_run(day, trained, tmp_path):
    (day/'cut.czi').write_bytes((day/'a.czi').read_bytes()[:7000])
    (day/'cut.lif').write_bytes((day/'b.lif').read_bytes()[:700])
    (day/'empty.nd2').write_bytes(b'')
    reading = dict(missing='zero', time='first')
    df = predict(day, model=trained[1], out=tmp_path/'p.csv', progress=False, reading=reading)
    failed = df.set_index('Id')['error']
    assert sorted(failed.index) == sorted([*IDS, 'cut.czi', 'cut.lif', 'empty'])
    assert (failed[IDS] == '').all() and failed['cut.czi'].count('damaged') and failed['cut.lif'].count('damaged')
    assert 'an empty file' in failed['empty'] and list(df.position[:3]) == ['scene 1', 'scene 2', 'scene 3']


def test_a_missing_library_fails_the_rows_of_its_files(day, monkeypatch):
    import builtins
    real = builtins.__import__
    def without(name, *args, **kwargs):
        if name.partition('.')[0] == 'liffile': raise ImportError(name)
        return real(name, *args, **kwargs)
    monkeypatch.setattr(builtins, '__import__', without)
    table = find_images(day).set_index('Id')
    assert 'b' in table.index and 'a_001' in table.index
    with pytest.raises(ImageError, match=r"reading LIF needs liffile: pip install 'hpa_fastai\[lif\]'"):
        ImageReader().array(table.loc['b'])


def test_time_points_and_pictures_of_tiff(tmp_path):
    series = np.stack([CELLS[0], CELLS[1]])
    tifffile.imwrite(tmp_path/'imagej.tif', series, imagej=True, metadata=dict(axes='TCYX', Labels=DYES*2))
    with tifffile.TiffWriter(tmp_path/'slide.ome.tif', ome=True) as w:
        for i in range(2):
            told = dict(axes='CYX', Name=f'well {i+1}', Channel=dict(Name=DYES))
            w.write(CELLS[i], photometric='minisblack', metadata=told)
    tifffile.imwrite(tmp_path/'one.ome.tif', CELLS[2], photometric='minisblack',
                     metadata=dict(axes='CYX', Channel=dict(Name=DYES)))
    table = find_images(tmp_path)
    assert list(table.Id) == ['imagej', 'one', 'slide_001', 'slide_002']
    assert list(table.position) == ['', '', 'well 1', 'well 2']
    with pytest.raises(ImageError, match="2 time points; say time='first'"): ImageReader().array(table.iloc[0])
    table = find_images(tmp_path, 'rgby', 'all')
    assert list(table.Id) == ['imagej_t001', 'imagej_t002', 'one_t001', 'slide_001_t001', 'slide_002_t001']
    assert list(table.time) == [1, 2, 1, 1, 1]
    img = ImageReader(bits=12).array(table.iloc[-1])
    assert (np.abs(img[[2, 1, 0, 3]].astype(int)-CELLS[1]/16) <= 1).all()


def test_time_points_of_zarr_and_of_one_file_for_each_channel(tmp_path):
    zarr = pytest.importorskip('zarr', minversion='3')
    kinds = dict(t='time', c='channel', y='space', x='space')
    axes = [dict(name=name, type=kind) for name, kind in kinds.items()]
    root = zarr.open_group(str(tmp_path/'store.zarr'), mode='w')
    root.attrs.update(dict(ome=dict(version='0.5', omero=dict(channels=[dict(label=dye) for dye in DYES]),
                                    multiscales=[dict(axes=axes, datasets=[dict(path='0')])])))
    root.create_array('0', data=CELLS[:2])
    for c, name in enumerate(('blue', 'green', 'red', 'yellow')):
        tifffile.imwrite(tmp_path/f'A1_{name}.tif', CELLS[:2, c], imagej=True, metadata=dict(axes='TYX'))
    reader = ImageReader(bits=12)
    for row in find_images(tmp_path).to_dict('records'):
        with pytest.raises(ImageError, match="2 time points; say time='first'"): reader.array(row)
    table = find_images(tmp_path, time='all')
    assert list(table.Id) == ['A1_t001', 'A1_t002', 'store_t001', 'store_t002'] and list(table.time) == [1, 2, 1, 2]
    assert list(table.layout) == ['channels']*2+['zarr']*2
    for row in table.to_dict('records'):
        assert (np.abs(reader.array(row)[[2, 1, 0, 3]].astype(int)-CELLS[row['time']-1]/16) <= 1).all()


def test_versions_and_caches_tell_positions_and_time_points_apart(day):
    first, second = find_images(day, time='first'), find_images(day, time=2)
    reader = ImageReader(size=32)
    assert list(first.Id) == list(second.Id) and cache_key(first, reader) != cache_key(second, reader)
    stamps = [fov_stamp(row) for row in first.to_dict('records')]
    assert len(set(stamps)) == len(stamps)
    write_czi(day/'a.czi', CELLS[:, None, None]+1)
    changed = [fov_stamp(row) != old for row, old in zip(first.to_dict('records'), stamps)]
    assert changed == [True]*3+[False]*3
    assert cache_key(first, reader) == cache_key(first, ImageReader(size=32, time='all'))


def test_labels_are_attached_to_positions(day):
    df = attach_images(pd.DataFrame(dict(Id=['a_002_t001', 'c_t002'], Target=['0', '1'])), day, time='all')
    assert [address.rpartition('/')[2] for address in df.green] == ['a.czi#1', 'c.nd2#0@1']


def test_verify_lists_sizes_channels_and_depth(day):
    (day/'cut.czi').write_bytes((day/'a.czi').read_bytes()[:7000])
    shutil.copy(day/'a.czi', day/'copy.czi')
    for deep in (False, True):
        found = verify_folder(day, deep=deep, progress=False, reader=ImageReader(time='all'))
        table, problems = found.table.set_index('Id'), found.problems
        problems = set(zip(problems.level, problems.problem, problems.Id))
        of_each = table.loc[['a_001_t001', 'b_001_t001', 'c_t002'], ['width', 'height']]
        assert found.n_files == 4 and (of_each == 64).all().all()
        assert list(table.format[['a_001_t001', 'b_001_t001', 'c_t001']]) == [
            'CZI 16-bit stack', 'LIF 12-bit stack', 'ND2 12-bit stack']
        assert problems == {('error', 'missing channel', 'b_003_t001'), ('error', 'truncated or damaged', 'cut'),
                            ('note', 'no field of view', ''),
                            *(('warning', 'byte-identical', f'copy_00{i}_t001') for i in (1, 2, 3))}
    assert "time='first'" in str(verify_folder(day, progress=False).problems.detail.to_list())


def test_the_command_line_chooses_time_points(day, trained, tmp_path, capsys):
    out = tmp_path/'p.csv'
    call = ['predict', str(day), '--model', str(trained[1]), '--out', str(out), '--missing', 'zero', '--no-progress']
    assert main([*call, '--time', 'all']) in (0, None)
    df = pd.read_csv(out, dtype=str)
    assert list(df.Id) == [f'{id_}_t001' for id_ in IDS]+['c_t002'] and list(df.time[-2:]) == ['1', '2']
    assert main([*call, '--force']) == 1 and 'time points; say --time first' in capsys.readouterr().err
    assert main([*call, '--force', '--time', 'last']) != 0
    assert "choose 'first', 'all', or the number of a time point" in capsys.readouterr().err
    assert main(['verify', str(day), '--time', '2', '--missing', 'zero']) == 0


def test_results_of_another_time_point_are_not_mixed(day, trained, tmp_path):
    out = tmp_path/'p.csv'
    settings = dict(model=trained[1], out=out, progress=False)
    predict(day, **settings, reading=dict(missing='zero', time='first'))
    with pytest.raises(HPAError): predict(day, **settings, reading=dict(missing='zero', time=2))
