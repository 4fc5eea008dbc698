"Files to fields of view, csvs of paths, and labels beside images."
import os

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hpa_fastai.basics.errors import ImageError
from hpa_fastai.data.files import attach_images, find_images
from hpa_fastai.formats.names import CHANNELS
from hpa_fastai.data.reader import ImageReader
from hpa_fastai.batches.tensors import TensorRGBY, read_image, read_images
from pictures import picture, plane_files, read, same, write


def test_columns_and_order(tmp_path):
    for i in ('b','a','C'): write(tmp_path, picture(16), i)
    t = find_images(tmp_path)
    assert list(t.columns) == ['Id','layout','red','green','blue','yellow']
    assert list(t.Id) == ['C','a','b'] and set(t.layout) == {'channels'}


def test_same_well_on_two_plates(tmp_path):
    for p in ('p1','p2'): write(tmp_path/p, picture(16))
    t = find_images(tmp_path)
    assert list(t.Id) == ['p1/A1','p2/A1'] and t.red[0].endswith(os.path.join('p1','A1_red.png'))


def test_a_folder_for_each_channel(tmp_path):
    x = picture(16)
    for c in CHANNELS: write(tmp_path/c, x, channels=[c])
    assert list(find_images(tmp_path).Id) == ['A1'] and same(read(tmp_path), x)


def test_half_written_plates_are_not_mixed(tmp_path):
    write(tmp_path/'p1', picture(16), channels=['red','green'])
    write(tmp_path/'p2', picture(16), channels=['blue','yellow'])
    assert list(find_images(tmp_path).Id) == ['p1/A1','p2/A1']


def test_composite_beside_channels_is_passed_over(tmp_path):
    write(tmp_path, picture(16))
    (tmp_path/'A1_blue_red_green.jpg').touch()
    (tmp_path/'A1_red.jpg').touch()
    with pytest.warns(UserWarning, match='2 files are passed over'): t = find_images(tmp_path)
    assert len(t) == 1 and t.red[0].endswith('.png')


def test_csv_of_paths(tmp_path):
    x = picture(16)
    for c,p in zip(CHANNELS, x): Image.fromarray(p).save(tmp_path/f'{c[0]}0815.png')
    row = f'07,r0815.png,g0815.png,b0815.png,{tmp_path}/y0815.png,k'
    (tmp_path/'paths.csv').write_text(f'ID,Red,Green,Blue,Yellow,group\n{row}\n')
    t = find_images(tmp_path/'paths.csv')
    assert t.Id[0]=='07' and t.group[0]=='k' and same(read_image(t.iloc[0]), x)
    assert same(read_image(find_images(t).iloc[0]), x)
    (tmp_path/'twice.csv').write_text('Id,path\na,x.png\na,y.png\n')
    with pytest.raises(ImageError, match='twice.csv row 3: Id a'): find_images(tmp_path/'twice.csv')


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16', 'utf-16-le', 'cp1252'])
@pytest.mark.parametrize('delimiter', [',', ';', '\t'])
def test_a_csv_of_paths_is_read_as_every_table(tmp_path, encoding, delimiter):
    text = 'ID, Größe,Red,Green,\n007,x,r.png, ü.png,\n,,,,\nNA,,r2.png,g2.png,\n'
    (tmp_path/'paths.csv').write_bytes(text.replace(',', delimiter).encode(encoding))
    t = find_images(tmp_path/'paths.csv')
    assert t.Id.tolist()==['007', 'NA'] and t.green.tolist()==[f'{tmp_path}/ü.png', f'{tmp_path}/g2.png']
    assert list(t.columns)==['Id', 'layout', *CHANNELS, 'Größe']


@pytest.mark.parametrize('raw,words', [
    (b'PK\x03\x04', 'a zip archive'),
    ('Id,path\n'.encode('utf-16')[:-1], 'breaks off'),
    (b'Id,path\n,a.png\n', 'row 2: the Id is empty'),
    (b'Id,path,path\na,b,c\n', "two columns called 'path'"),
    (b'Id,path\na,b,c\n', 'row 2: 3 values for 2 columns')], ids=lambda o: o if isinstance(o, str) else '')
def test_a_csv_of_paths_that_is_none_is_one_line(tmp_path, raw, words):
    (tmp_path/'p.csv').write_bytes(raw)
    with pytest.raises(ImageError, match=words) as e: find_images(tmp_path/'p.csv')
    assert '\n' not in str(e.value)


def test_an_id_that_a_spreadsheet_rewrote_is_said_beside_the_images(tmp_path):
    Image.fromarray(np.zeros((8, 8, 4), np.uint8)).save(tmp_path/'a.png')
    with pytest.raises(ImageError, match="Id '1-12-01' looks rewritten by a spreadsheet"):
        attach_images(pd.DataFrame(dict(Id=['a', '1-12-01'], Target=['0', '1'])), tmp_path)


def test_csv_without_files(tmp_path):
    (tmp_path/'e.csv').write_text('Id,red,green\nx,,\n')
    with pytest.raises(ImageError, match='x: no channel has a file'): read_image(find_images(tmp_path/'e.csv').iloc[0])
    with pytest.raises(ImageError, match='none.csv does not exist: no such file'): find_images(tmp_path/'none.csv')


def test_list_of_files(tmp_path):
    write(tmp_path/'p', picture(16))
    assert find_images(list((tmp_path/'p').iterdir())).equals(find_images(tmp_path/'p'))
    assert len(find_images([])) == 0


@pytest.mark.parametrize('typed', ['a1', 'A 1', 'A01', 'A1.png', 'A1_green', 'A1_green.tif', 'A-1'])
def test_an_id_typed_in_another_way_is_said(tmp_path, typed):
    write(tmp_path, picture(16))
    for ids in ([typed], [typed, 'A1']):
        with pytest.raises(ImageError, match=f"is {typed!r} the image 'A1'"):
            attach_images(pd.DataFrame(dict(Id=ids)), tmp_path)


def test_attach(tmp_path):
    for i in 'abc': write(tmp_path, picture(16), i)
    df = pd.DataFrame(dict(Id=['c','a'], Target=['1','0 2'], group=['x','y']), index=[7,9])
    with pytest.warns(UserWarning, match='1 of 3 fields of view have no row'): t = attach_images(df, tmp_path)
    assert list(t.Id) == ['c','a'] and list(t.index) == [7,9]
    assert list(t.group) == ['x','y'] and t.red[7].endswith('c_red.png')
    again = attach_images(t, find_images(tmp_path).query('Id!="b"'))
    assert list(again.columns) == list(t.columns)


def test_attach_names_absent_ids(tmp_path):
    write(tmp_path, picture(16), 'a')
    df = pd.DataFrame(dict(Id=['a','b','c','d','e'], Target=['0']*5))
    with pytest.raises(ImageError, match=r'4 of 5 Ids have no image in .*: b, c, d, …'): attach_images(df, tmp_path)
    with pytest.raises(ImageError, match='none of the 1 Ids.*first Id is a_red.*called a'):
        attach_images(pd.DataFrame(dict(Id=['a_red'])), tmp_path)


def test_ids_never_become_paths(tmp_path):
    write(tmp_path/'in', picture(16), 'a')
    write(tmp_path/'out', picture(16), 'secret')
    for bad in ('../out/secret', '../../etc/passwd', str(tmp_path/'out'/'secret')):
        with pytest.raises(ImageError, match='1 of 2 Ids have no image'):
            attach_images(pd.DataFrame(dict(Id=['a',bad])), tmp_path/'in')


@pytest.mark.parametrize('name,id_', [
    ('img{:03}.ome.tif', 'img00'), ('Zürich é_C{}.tif', 'Zürich é'), ('scan_{:02}.TIFF', 'scan_0')])
def test_no_set_of_ome_files_hides_another(tmp_path, name, id_):
    x = [picture(32), picture(32)]
    for k in (0, 1): plane_files(tmp_path, x[k], [name.format(n) for n in range(4*k, 4*k+4)])
    table = find_images(tmp_path)
    assert len(table)==2 and all(same(read_image(r), a) for r,a in zip(table.to_dict('records'), x))
    assert find_images([str(tmp_path/name.format(n)) for n in range(4)]).Id.tolist() == [id_]


def test_real_mosaic_has_its_labels(real_data):
    df = attach_images(pd.read_csv(real_data/'mosaic'/'train.csv'), real_data/'mosaic'/'images')
    assert len(df)==245 and all(isinstance(x, TensorRGBY) for _,x in read_images(df[:8], ImageReader(128)))
