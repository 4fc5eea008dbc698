"Listing folders, object storage and lists: what is found, what is left out, what was changed."
import io
import os

import pytest
from PIL import Image

from hpa_fastai.basics.errors import ImageError
from hpa_fastai.data.files import find_images
from hpa_fastai.data.folders import fov_stamp
from hpa_fastai.formats.names import CHANNELS
from hpa_fastai.batches.tensors import read_image
from pictures import irregular, only, picture, plane_files, same, write


def test_empty_and_absent(tmp_path):
    assert len(find_images(tmp_path)) == 0
    with pytest.raises(ImageError, match='no such folder'): find_images(tmp_path/'nowhere')
    (tmp_path/'f').touch()
    with pytest.raises(ImageError, match='give the folder'): find_images(tmp_path/'f')


def test_nested_links_and_hidden(tmp_path):
    write(tmp_path/'a'/'b'/'c', picture(16), 'deep')
    os.symlink(tmp_path/'a', tmp_path/'a'/'b'/'round')
    for n in ('.A1_red.png', '~A1_red.png', '.hidden/A1_red.png', 'notes.txt', 'A1_red.png.part'):
        (tmp_path/n).parent.mkdir(exist_ok=True)
        (tmp_path/n).touch()
    assert list(find_images(tmp_path).Id) == ['deep']


SYSTEM = ['@eaDir', '@Recycle', '#recycle', '#snapshot', '$RECYCLE.BIN', 'lost+found', '__MACOSX',
          'System Volume Information', '.AppleDouble']


NO_IMAGES = ['Thumbs.db', '.DS_Store', '._A1_red.png', 'desktop.ini', 'notes.txt', 'train.csv', 'run.log',
             'index.html', 'meta.xml']


@pytest.mark.parametrize('name', SYSTEM)
@pytest.mark.filterwarnings('error')
def test_folders_of_storage_systems_are_left_out(tmp_path, name):
    write(tmp_path/'p', picture(16))
    write(tmp_path/'p'/name, picture(16), 'A2')
    (tmp_path/'p'/name/'A1_red.png').mkdir()
    for n in NO_IMAGES: (tmp_path/'p'/n).touch()
    assert list(find_images(tmp_path).Id) == ['A1']
    assert find_images(list(tmp_path.rglob('*'))).equals(find_images(tmp_path))


IRREGULAR = ['FIFO', 'folder', 'device', 'socket']


@pytest.mark.parametrize('kind', IRREGULAR)
@pytest.mark.parametrize('name', ['A2.png', 'A1_red.png', 'A2.zarr'])
def test_only_files_are_images(tmp_path, kind, name):
    if (kind, name)==('folder', 'A2.zarr'): pytest.skip('a zarr picture is a folder')
    write(tmp_path, picture(16), channels=['green','blue','yellow'])
    irregular(tmp_path/name, kind)
    for source in (tmp_path, list(tmp_path.iterdir())):
        warned = f'1 entries are called like images but are no files.*1 {kind}'
        with pytest.warns(UserWarning, match=warned): t = find_images(source)
        assert list(t.Id) == ['A1'] and t.red[0] is None


@pytest.mark.parametrize('kind', IRREGULAR)
def test_reading_what_is_no_file_ends(tmp_path, kind):
    irregular(tmp_path/'A1.png', kind)
    (tmp_path/'paths.csv').write_text('Id,path\nA1,A1.png\n')
    row = find_images(tmp_path/'paths.csv').iloc[0]
    with pytest.raises(ImageError, match=f'^A1: .*A1.png: a {kind}, not a picture'): read_image(row)
    with pytest.raises(ImageError, match='not a picture'): read_image(tmp_path/'A1.png')


def test_a_link_counts_as_what_it_leads_to(tmp_path):
    write(tmp_path/'far', picture(16), 'A1', channels=['red'])
    (tmp_path/'p').mkdir()
    (tmp_path/'p'/'A1_red.png').symlink_to(tmp_path/'far'/'A1_red.png')
    (tmp_path/'p'/'A1_green.png').symlink_to('nowhere')
    row = only(tmp_path/'p')
    assert row.red and row.green
    with pytest.raises(ImageError, match='a link to a file that is not there'): read_image(row)


def test_a_folder_called_like_an_image_is_entered(tmp_path):
    write(tmp_path/'export.tif', picture(16))
    with pytest.warns(UserWarning, match='1 folder'): t = find_images(tmp_path)
    assert list(t.Id) == ['A1']


UNREAD = ['a.vsi', 'b.VSI', 'c.oir', 'd.lsm', 'e.gif', 'f.webp', 'g.jp2', 'h.tif.gz', 'i.bmp', 'j.npy', 'k.zip',
          'A1_red', 'A2_red.png.part', 'A3_green.dat']


TEXTS = ['a.csv', 'a.csv.gz', 'a.txt', 'a_red.json', 'a.xml', 'a.html', 'README', 'a.md', 'a.log', 'a.py']


@pytest.mark.parametrize('url', [False, True])
def test_kinds_that_are_not_read_are_counted(tmp_path, url):
    write(tmp_path, picture(16))
    for n in (*UNREAD, *TEXTS): (tmp_path/n).touch()
    source = f'file://{tmp_path}' if url else tmp_path
    with pytest.warns(UserWarning) as w: t = find_images(source)
    assert list(t.Id) == ['A1'] and len(w) == 1
    said = str(w[0].message)
    assert said.startswith(f'{source}: 14 files of kinds that are not read are left out: 2 .vsi, ') and '\n' not in said
    assert t.attrs['left_out'] == [said]


def test_object_storage_lists_files_only(tmp_path):
    write(tmp_path, picture(16), channels=['green'])
    os.mkfifo(tmp_path/'A1_red.png')
    (tmp_path/'A1_blue.png').mkdir()
    write(tmp_path/'@eaDir', picture(16), 'A2')
    with pytest.warns(UserWarning, match='2 entries'): t = find_images(f'file://{tmp_path}')
    assert list(t.Id) == ['A1'] and t.red[0] is None and t.blue[0] is None and t.green[0]


def test_object_storage():
    fsspec = pytest.importorskip('fsspec')
    x,fs = picture(32), fsspec.filesystem('memory')
    for c,p in zip(CHANNELS, x):
        b = io.BytesIO()
        Image.fromarray(p).save(b, 'PNG')
        fs.pipe(f'/bucket/plate 7/deep/A1_{c}.png', b.getvalue())
    row = only('memory://bucket')
    assert row.Id=='A1' and row.red.startswith('memory://') and same(read_image(row), x)
    fs.pipe('/bucket/plate 7/deep/A1_red.png', b'')
    with pytest.raises(ImageError, match='A1: memory://.*A1_red.png'): read_image(row)
    with pytest.raises(ImageError, match='no such folder'): find_images('memory://nowhere')


def test_object_storage_says_what_to_install(monkeypatch):
    fsspec = pytest.importorskip('fsspec')
    def absent(url): raise ImportError('Install s3fs to access S3')
    monkeypatch.setattr(fsspec.core, 'url_to_fs', absent)
    message = r"s3://bucket/x: Install s3fs to access S3; pip install 'hpa_fastai\[cloud\]'"
    with pytest.raises(ImageError, match=message): find_images('s3://bucket/x')


def test_all_files_of_a_set_make_its_stamp(tmp_path):
    names = [f'pos1_C{k}.ome.tif' for k in range(4)]
    plane_files(tmp_path, picture(32), names)
    row = find_images(tmp_path).iloc[0]
    before = fov_stamp(row)
    for name in names:
        os.utime(tmp_path/name, ns=(0, 0))
        before, last = fov_stamp(row), before
        assert before!=last, name
