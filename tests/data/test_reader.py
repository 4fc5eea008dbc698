"Finding and reading fields of view: every layout, every setting, every kind of bad file."
import io, json, os, pickle, re, socket, struct, sys, unicodedata, warnings, zlib
from dataclasses import asdict
import numpy as np, pandas as pd, pytest, tifffile, torch
from PIL import Image, ImageFile
from hpa_fastai.data.planes import MAX_PIXELS
from hpa_fastai.basics.errors import *
from hpa_fastai.data.names import *
from hpa_fastai.data.files import *
from hpa_fastai.data.planes import *
from hpa_fastai.data.reader import *
from hpa_fastai.data.tensors import *
from hpa_fastai.data.verify import verify_images

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

# ---- finding

@pytest.mark.parametrize('id_', ['10580_1610_C1_1', 'a.b.c', 'U-2 OS 3', 'plate_red_1', '000a6c98-bb9b-11e8-b2b9-ac1f6b6435d0', 'ü'])
@pytest.mark.parametrize('ext,suffix', [('png','red'), ('PNG','RED'), ('tif','Red'), ('TIFF','red'), ('jpeg','red'), ('JPG','red')])
def test_ids_and_extensions(tmp_path, id_, ext, suffix):
    (tmp_path/f'{id_}_{suffix}.{ext}').touch()
    row = only(tmp_path)
    assert (row.Id, row.red, row.green) == (id_, str(tmp_path/f'{id_}_{suffix}.{ext}'), None)

def test_columns_and_order(tmp_path):
    for i in ('b','a','C'): write(tmp_path, picture(16), i)
    t = find_images(tmp_path)
    assert list(t.columns) == ['Id','layout','red','green','blue','yellow']
    assert list(t.Id) == ['C','a','b'] and set(t.layout) == {'channels'}

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
    (tmp_path/'paths.csv').write_text(f'ID,Red,Green,Blue,Yellow,group\n07,r0815.png,g0815.png,b0815.png,{tmp_path}/y0815.png,k\n')
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
    assert t.Id.tolist()==['007', 'NA'] and t.green.tolist()==[f'{tmp_path}/ü.png', f'{tmp_path}/g2.png'] and list(t.columns)==['Id', 'layout', *CHANNELS, 'Größe']

def test_a_csv_of_paths_that_is_none_is_one_line(tmp_path):
    for raw,words in ((b'PK\x03\x04', 'a zip archive'), ('Id,path\n'.encode('utf-16')[:-1], 'breaks off'), (b'Id,path\n,a.png\n', 'row 2: the Id is empty'),
                      (b'Id,path,path\na,b,c\n', "two columns called 'path'"), (b'Id,path\na,b,c\n', 'row 2: 3 values for 2 columns')):
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

SYSTEM = ['@eaDir', '@Recycle', '#recycle', '#snapshot', '$RECYCLE.BIN', 'lost+found', '__MACOSX', 'System Volume Information', '.AppleDouble']

@pytest.mark.parametrize('name', SYSTEM)
@pytest.mark.filterwarnings('error')
def test_folders_of_storage_systems_are_left_out(tmp_path, name):
    write(tmp_path/'p', picture(16))
    write(tmp_path/'p'/name, picture(16), 'A2')
    (tmp_path/'p'/name/'A1_red.png').mkdir()
    for n in ('Thumbs.db', '.DS_Store', '._A1_red.png', 'desktop.ini', 'notes.txt', 'train.csv', 'run.log', 'index.html', 'meta.xml'): (tmp_path/'p'/n).touch()
    assert list(find_images(tmp_path).Id) == ['A1']
    assert find_images(list(tmp_path.rglob('*'))).equals(find_images(tmp_path))

def _irregular(path, kind):
    match kind:
        case 'FIFO': os.mkfifo(path)
        case 'folder': path.mkdir()
        case 'device': path.symlink_to('/dev/zero')
        case 'socket':
            here = os.getcwd() # the name of a socket may not be long
            os.chdir(path.parent)
            with socket.socket(socket.AF_UNIX) as s: s.bind(path.name)
            os.chdir(here)

IRREGULAR = ['FIFO', 'folder', 'device', 'socket']

@pytest.mark.parametrize('kind', IRREGULAR)
@pytest.mark.parametrize('name', ['A2.png', 'A1_red.png', 'A2.zarr'])
def test_only_files_are_images(tmp_path, kind, name):
    if (kind, name)==('folder', 'A2.zarr'): pytest.skip('a zarr picture is a folder')
    write(tmp_path, picture(16), channels=['green','blue','yellow'])
    _irregular(tmp_path/name, kind)
    for source in (tmp_path, list(tmp_path.iterdir())):
        with pytest.warns(UserWarning, match=f'1 entries are called like images but are no files.*1 {kind}'): t = find_images(source)
        assert list(t.Id) == ['A1'] and t.red[0] is None

@pytest.mark.parametrize('kind', IRREGULAR)
def test_reading_what_is_no_file_ends(tmp_path, kind):
    _irregular(tmp_path/'A1.png', kind)
    (tmp_path/'paths.csv').write_text('Id,path\nA1,A1.png\n')
    with pytest.raises(ImageError, match=f'^A1: .*A1.png: a {kind}, not a picture'): read_image(find_images(tmp_path/'paths.csv').iloc[0])
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

@pytest.mark.parametrize('url', [False, True])
def test_kinds_that_are_not_read_are_counted(tmp_path, url):
    write(tmp_path, picture(16))
    for n in ('a.czi', 'b.CZI', 'c.lif', 'd.nd2', 'e.gif', 'f.webp', 'g.jp2', 'h.tif.gz', 'i.bmp', 'j.npy', 'k.zip', 'A1_red', 'A2_red.png.part', 'A3_green.dat'): (tmp_path/n).touch()
    for n in ('a.csv', 'a.csv.gz', 'a.txt', 'a_red.json', 'a.xml', 'a.html', 'README', 'a.md', 'a.log', 'a.py'): (tmp_path/n).touch()
    source = f'file://{tmp_path}' if url else tmp_path
    with pytest.warns(UserWarning) as w: t = find_images(source)
    assert list(t.Id) == ['A1'] and len(w) == 1
    said = str(w[0].message)
    assert said.startswith(f'{source}: 14 files of kinds that are not read are left out: 2 .czi, ') and '\n' not in said
    assert t.attrs['left_out'] == [said]

def test_object_storage_lists_files_only(tmp_path):
    write(tmp_path, picture(16), channels=['green'])
    os.mkfifo(tmp_path/'A1_red.png')
    (tmp_path/'A1_blue.png').mkdir()
    write(tmp_path/'@eaDir', picture(16), 'A2')
    with pytest.warns(UserWarning, match='2 entries'): t = find_images(f'file://{tmp_path}')
    assert list(t.Id) == ['A1'] and t.red[0] is None and t.blue[0] is None and t.green[0]

MASKS = ['_cp_masks.png', '_cp_masks.tif', '_seg.npy', '_cp_output.png', '_cp_outlines.png', '_flows.tif', '_mask.png', '_masks.tif', '_cellmask.png', '_cell_mask.png',
         '_nucleimask.png', '_nuclei_mask.png', '_segmentation.png', '_label.tif', '_labels.tif', '_outlines.png', '_predictedmask.png', '_Simple Segmentation.tif',
         '_Object Predictions.png', '_Probabilities.tif', '-labels.png', '.labels.tif', '_StarDist.tif', '_overlay.png', '_MASK.TIF']

@pytest.mark.parametrize('of', ['A1', 'A1_blue', 'A1_blue_red_green'])
@pytest.mark.parametrize('layout', ['channels', 'single'])
def test_masks_beside_images_are_no_fields_of_view(tmp_path, of, layout):
    if layout=='channels': write(tmp_path, picture(16))
    else: Image.fromarray(np.moveaxis(picture(16)[:3], 0, -1)).save(tmp_path/'A1.png')
    for n in MASKS: (tmp_path/f'{of}{n}').touch()
    (tmp_path/'A1_cp_outlines.txt').touch()
    for source in (tmp_path, list(tmp_path.iterdir()), f'file://{tmp_path}'):
        with pytest.warns(UserWarning) as w: t = find_images(source)
        assert list(t.Id) == ['A1'] and len(w) == 1 and f'{len(MASKS)} masks and other files of programs' in str(w[0].message)

def test_masks_in_folders_and_without_their_image(tmp_path):
    write(tmp_path, picture(16))
    for n in ('masks/A1.png', 'masks/A1_blue.png', 'outlines/A1_cp_outlines.png', 'more/A1_cp_masks.png', 'A9_mask.png'):
        (tmp_path/n).parent.mkdir(exist_ok=True)
        (tmp_path/n).touch()
    with pytest.warns(UserWarning, match='5 masks'): assert list(find_images(tmp_path).Id) == ['A1']

def test_a_folder_of_masks_alone_says_what_it_found(tmp_path):
    for n in ('A1_cp_masks.png', 'A2_cp_masks.png'): (tmp_path/n).touch()
    with pytest.warns(UserWarning, match='2 masks.*the first is A'): t = find_images(tmp_path)
    assert len(t) == 0 and 'name it in a csv of paths' in t.attrs['left_out'][0]
    (tmp_path/'paths.csv').write_text('Id,path\nA1,A1_cp_masks.png\n')
    assert find_images(tmp_path/'paths.csv').green[0].endswith('A1_cp_masks.png')

@pytest.mark.filterwarnings('error')
def test_pictures_called_like_masks_stay_pictures(tmp_path):
    for n in ('B1.png', 'spectral_label.png', 'mask.png', 'seg.png', 'unmasked.png'): (tmp_path/n).touch()
    assert len(find_images(tmp_path)) == 5
    write(tmp_path/'deep', picture(16), 'A1_mask')
    assert 'A1_mask' in list(find_images(tmp_path).Id)

@pytest.mark.parametrize('name', ['{}-{}', '{}.{}', '{} {}', '{} - {}', '{} ({})', '{}_({})', '{}[{}]', '{}_{}'])
@pytest.mark.parametrize('case', [str, str.upper, str.title])
def test_other_spellings_of_the_colours(tmp_path, name, case):
    for id_,channels in (('A1', CHANNELS), ('b-2.c', ['green'])):
        for c in channels: (tmp_path/f'{name.format(id_, case(c))}.tif').touch()
    t = find_images(tmp_path)
    assert list(t.Id) == ['A1', 'b-2.c'] and t.yellow[0].endswith('.tif') and t.green[1] and t.red[1] is None and set(t.layout) == {'channels'}

MICROSCOPES = {'Leica': ['x_ch00', 'x_ch01'], 'Opera Phenix': ['r01c01f01p01-ch1sk1fk1fl1', 'r01c01f01p01-ch2sk1fk1fl1'], 'ImageXpress': ['p_C03_s1_w1', 'p_C03_s1_w2'],
               'MetaMorph': ['x_w1DAPI', 'x_w2FITC'], 'ImageJ': ['C1-x', 'C2-x'], 'Zeiss': ['x_C1', 'x_C2'], 'stains': ['x_DAPI', 'x_GFP'],
               'CellVoyager': ['A_T0001F001L01A01Z01C01', 'A_T0001F001L01A01Z01C02'], 'InCell': ['A - 1(fld 1 wv DAPI - DAPI)', 'A - 1(fld 1 wv FITC - FITC)']}
TOKENS = {'Leica': 'ch00, ch01', 'Opera Phenix': 'ch1, ch2', 'ImageXpress': 'w1, w2', 'MetaMorph': 'w1DAPI, w2FITC', 'ImageJ': 'C1, C2', 'Zeiss': 'C1, C2', 'stains': 'DAPI, GFP',
          'CellVoyager': 'C01, C02', 'InCell': 'DAPI - DAPI, FITC - FITC'}

@pytest.mark.parametrize('program', MICROSCOPES)
def test_names_of_microscopes_are_said_and_a_csv_of_paths_reads_them(tmp_path, program):
    x = picture(32)
    for n,p in zip(MICROSCOPES[program], x): Image.fromarray(p).save(tmp_path/f'{n}.tif')
    said = []
    for row in find_images(tmp_path).itertuples():
        with pytest.raises(ImageError, match=f'one grey plane.*{program}') as e: read_image(row)
        said.append(str(e.value))
    assert all(f'(there are {TOKENS[program]})' in s and 'csv of paths with the columns Id, red, green, blue, yellow' in s and 'channels=' not in s for s in said)
    blue,green = (f'{n}.tif' for n in MICROSCOPES[program])
    (tmp_path/'paths.csv').write_text(f'Id,red,green,blue,yellow\nx,,{green},{blue},\n')
    assert same(read_image(find_images(tmp_path/'paths.csv').iloc[0], channels='gb')[[2, 1]], x[:2])

def test_names_of_microscopes_beside_labels(tmp_path):
    for n in range(4): (tmp_path/f'A1_w{n+1}.tif').touch()
    with pytest.raises(ImageError, match=r'ImageXpress.*\(there are w1, w2, w3, w4\).*csv of paths'): attach_images(pd.DataFrame(dict(Id=['A1'])), tmp_path)

def test_a_lone_grey_file_says_what_to_do(tmp_path):
    Image.fromarray(picture(32)[0]).save(tmp_path/'U-2 OS-red.png')
    Image.fromarray(picture(32)[0]).save(tmp_path/'A1.png')
    t = find_images(tmp_path)
    with pytest.raises(ImageError, match='by colours.*there are red'): read_image(t.iloc[1])
    with pytest.raises(ImageError, match='one grey plane.*csv of paths'): read_image(t.iloc[0])
    assert read_image(t.iloc[0], channels='g')[1].any() # a set of one channel says so

def test_a_colour_in_front(tmp_path):
    for c in CHANNELS: (tmp_path/f'{c}_A1.png').touch()
    assert list(find_images(tmp_path).Id) == ['A1'] and only(tmp_path).blue.endswith('blue_A1.png')

def test_one_colour_in_a_name_proves_nothing(tmp_path):
    for n in ('U-2 OS-red.png', 'cells.green.png', 'red_cells.png', 'A1-blue.png'): (tmp_path/n).touch()
    assert set(find_images(tmp_path).layout) == {'single'} and len(find_images(tmp_path)) == 4

@pytest.mark.parametrize('name', ['é', 'Å1', '한글'])
def test_ids_have_one_form(tmp_path, name):
    for form in ('NFD', 'NFC'):
        folder = write(tmp_path/form, picture(16), unicodedata.normalize(form, name))
        assert list(find_images(folder).Id) == [unicodedata.normalize('NFC', name)] and os.path.exists(only(folder).red)
        for csv in ('NFD', 'NFC'):
            t = attach_images(pd.DataFrame(dict(Id=[unicodedata.normalize(csv, name)+' '], Target=['0'])), folder)
            assert t.Id[0] == unicodedata.normalize('NFC', name) and os.path.exists(t.red[0])
    paths = pd.DataFrame(dict(Id=[unicodedata.normalize(f, name) for f in ('NFD', 'NFC')], path=['a.png', 'b.png']))
    with pytest.raises(ImageError, match='a second time'): find_images(paths)

def test_names_that_are_not_utf8(tmp_path):
    folder = os.fsencode(write(tmp_path, picture(16)))
    for c in CHANNELS: os.rename(folder+f'/A1_{c}.png'.encode(), folder+b'/Z\xfcrich_'+f'{c}.png'.encode())
    row = only(tmp_path)
    assert row.Id == r'Z\udcfcrich' and read_image(row).shape == (4, 16, 16)
    assert os.path.exists(attach_images(pd.DataFrame(dict(Id=[r'Z\udcfcrich'], Target=['0'])), tmp_path).red[0])

@pytest.mark.parametrize('typed', ['a1', 'A 1', 'A01', 'A1.png', 'A1_green', 'A1_green.tif', 'A-1'])
def test_an_id_typed_in_another_way_is_said(tmp_path, typed):
    write(tmp_path, picture(16))
    for ids in ([typed], [typed, 'A1']):
        with pytest.raises(ImageError, match=f"is {typed!r} the image 'A1'"): attach_images(pd.DataFrame(dict(Id=ids)), tmp_path)

# ---- labels beside images

def test_attach(tmp_path):
    for i in 'abc': write(tmp_path, picture(16), i)
    df = pd.DataFrame(dict(Id=['c','a'], Target=['1','0 2'], group=['x','y']), index=[7,9])
    with pytest.warns(UserWarning, match='1 of 3 fields of view have no row'): t = attach_images(df, tmp_path)
    assert list(t.Id) == ['c','a'] and list(t.index) == [7,9] and list(t.group) == ['x','y'] and t.red[7].endswith('c_red.png')
    again = attach_images(t, find_images(tmp_path).query('Id!="b"'))
    assert list(again.columns) == list(t.columns)

def test_attach_names_absent_ids(tmp_path):
    write(tmp_path, picture(16), 'a')
    df = pd.DataFrame(dict(Id=['a','b','c','d','e'], Target=['0']*5))
    with pytest.raises(ImageError, match=r'4 of 5 Ids have no image in .*: b, c, d, …'): attach_images(df, tmp_path)
    with pytest.raises(ImageError, match='none of the 1 Ids.*first Id is a_red.*called a'): attach_images(pd.DataFrame(dict(Id=['a_red'])), tmp_path)

def test_ids_never_become_paths(tmp_path):
    write(tmp_path/'in', picture(16), 'a')
    write(tmp_path/'out', picture(16), 'secret')
    for bad in ('../out/secret', '../../etc/passwd', str(tmp_path/'out'/'secret')):
        with pytest.raises(ImageError, match='1 of 2 Ids have no image'): attach_images(pd.DataFrame(dict(Id=['a',bad])), tmp_path/'in')

# ---- layouts

def test_png_8_bit(tmp_path):
    x = picture()
    img = read(write(tmp_path, x))
    assert type(img) is TensorRGBY and img.dtype==torch.uint8 and same(img, x)

@pytest.mark.parametrize('compression', ['tiff_lzw', 'tiff_adobe_deflate', 'raw', 'packbits'])
@pytest.mark.parametrize('bits', [8, 16])
def test_tiff(tmp_path, compression, bits):
    x = picture()
    assert same(read(write(tmp_path, x if bits==8 else x.astype(np.uint16)*257, ext='tif', compression=compression)), x)

def test_tiff_with_tiles_and_big_endian(tmp_path):
    x = picture(64)
    for c,p in zip(CHANNELS, x): tifffile.imwrite(tmp_path/f'A_{c}.tif', p.astype('>u2')*257, byteorder='>', compression='zlib', tile=(32,32))
    assert same(read(tmp_path), x)

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
    assert np.asarray(read(tmp_path)).max() <= 16
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
        with pytest.raises(ImageError, match=f"{i+1}: no yellow channel in .*{i+1}.png; if the data set has none say channels='rgb'"): read_image(t.iloc[i])
    assert same(read_image(t.iloc[2]), x)
    assert np.asarray(read_image(t.iloc[2], channels='gb')).any((1,2)).tolist() == [False,True,True,False]

def test_rgb_tiff(tmp_path):
    x = picture()
    tifffile.imwrite(tmp_path/'a.tif', np.moveaxis(x[:3], 0, -1), photometric='rgb')
    assert same(read(tmp_path, channels='rgb')[:3], x[:3])

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
    with pytest.raises(ImageError, match="planes without names: 4, but channels='rgb' names 3"): read_image(t.iloc[0], channels='rgb')
    with pytest.raises(ImageError, match='no plane 7'): read_image(t.iloc[0], channels=dict(red=7))

def test_ome_tiff_names(tmp_path):
    x = picture()
    tifffile.imwrite(tmp_path/'a.ome.tif', x[[2,0,3,1]], metadata=dict(axes='CYX', Channel=dict(Name=['DAPI','Microtubules','ER (calreticulin)','Antibody'])))
    assert only(tmp_path).Id=='a' and same(read(tmp_path), x)
    tifffile.imwrite(tmp_path/'a.ome.tif', x, metadata=dict(axes='CYX', Channel=dict(Name=['Cy3','FITC','DAPI','Cy5'])))
    fails('planes are called Cy3, FITC, DAPI, Cy5: say which of them is red', tmp_path)
    assert same(read(tmp_path, channels=dict(red='Cy3', green='FITC', blue='DAPI', yellow='Cy5')), x)
    fails("no plane 'Cy7': there are 4, called Cy3", tmp_path, channels=dict(red='Cy7'))

def test_imagej_tiff(tmp_path):
    x = picture()
    tifffile.imwrite(tmp_path/'a.tif', x[[1,0,2,3]], imagej=True, metadata=dict(axes='CYX', Labels=['protein','tubulin','nuclei','ER']))
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
    zarr = pytest.importorskip('zarr')
    if version=='0.5' and zarr.__version__<'3': pytest.skip('NGFF 0.5 needs zarr 3')
    x = picture(64)
    root = zarr.open_group(str(tmp_path/'w1.ome.zarr'), mode='w', **(dict(zarr_format=2 if version=='0.4' else 3) if zarr.__version__>='3' else {}))
    a = root.create_array('0', shape=(4,1,64,64), chunks=(1,1,32,32), dtype='uint8') if zarr.__version__>='3' else root.create_dataset('0', shape=(4,1,64,64), chunks=(1,1,32,32), dtype='uint8')
    a[:] = x[:,None]
    meta = dict(multiscales=[dict(version=version, axes=[dict(name=n, type='channel' if n=='c' else 'space') for n in 'czyx'], datasets=[dict(path='0')])],
                omero=dict(channels=[dict(label=n) for n in ('tubulin','protein','nucleus','ER')]))
    root.attrs.update(meta if version=='0.4' else dict(ome=meta))
    row = only(tmp_path)
    assert (row.Id, row.layout) == ('w1','zarr') and same(read_image(row), x)
    assert len(find_images(tmp_path)) == 1

def test_a_folder_called_zarr(tmp_path):
    (tmp_path/'x.zarr').mkdir()
    fails('x.zarr', tmp_path)

def test_in_memory():
    x = picture()
    for a in (x, torch.from_numpy(x), np.moveaxis(x, 0, -1), TensorRGBY(x)): assert same(read_image(a), x)
    assert same(read_image(x.astype(np.float32)/255), x)
    assert read_image(x, 48).shape == (4,48,48)
    with pytest.raises(ImageError, match='shape'): read_image(x[None,None])

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
    with pytest.raises(ImageError, match=r"s3://bucket/x: Install s3fs to access S3; pip install 'hpa_fastai\[cloud\]'"): find_images('s3://bucket/x')

# ---- size

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
    assert np.abs(img[0].astype(int)-np.asarray(Image.fromarray(smooth(64)[0]).resize((128,128), Image.BILINEAR))[32:96,32:96]).max() <= 1
    with pytest.raises(ImageError, match='is pixel_size in µm'): read(tmp_path, pixel_size=80)

def test_reading_is_the_same_in_any_thread_and_order(tmp_path):
    for i in range(6): write(tmp_path, picture(80), str(i))
    t,reader = find_images(tmp_path), ImageReader(32, scale='percentile')
    alone = [reader(r) for r in t.to_dict('records')]
    for n in (1,2,5):
        got = list(read_images(t, reader, n_workers=n))
        assert [i for i,_ in got]==list(range(6)) and all(same(a, b) for a,(_,b) in zip(alone, got))

# ---- settings

def test_settings_survive_json():
    r = ImageReader(256, channels=dict(red='Cy3', green=1), scale='percentile', percentiles=[2,99], bits=12, pixel_size=.1, z='max', missing='zero')
    assert ImageReader(**json.loads(json.dumps(asdict(r)))) == r

@pytest.mark.parametrize('bad', [dict(channels=''), dict(channels='rgbx'), dict(channels='rr'), dict(channels=dict(pink=1)), dict(missing='no'), dict(scale='max'), dict(size=0),
                                 dict(size=2.5), dict(percentiles=(9,1)), dict(bits=32), dict(pixel_size=-1), dict(z='mean'), dict(bits=12.5), dict(bits='12'),
                                 dict(pixel_size=float('inf')), dict(pixel_size='x'), dict(percentiles=3), dict(percentiles=('a', 2)), dict(channels=['red']), dict(channels=dict(g=0, green=1)), dict(channels=dict(g=-1))])
def test_settings_that_cannot_be(bad):
    with pytest.raises(ImageError, match=next(iter(bad))): ImageReader(**bad)

# ---- bad input: one line each, and none stops a run

def _png_header(w, h):
    chunk = b'IHDR'+struct.pack('>IIBBBBB', w, h, 8, 0, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n'+struct.pack('>I', 13)+chunk+struct.pack('>I', zlib.crc32(chunk))

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
        case 'bomb': p.write_bytes(_png_header(60000, 60000)+good[33:])
        case 'large': p.write_bytes(_png_header(9000, 9000)+good[33:])
        case '1x1': Image.new('L', (1,1)).save(p)
        case 'other size': im.resize((48,48)).save(p)
        case 'cmyk': im.convert('CMYK').save(p, format='JPEG')
        case 'palette': im.convert('P').save(p)
        case '1-bit': im.convert('1').save(p)
        case 'nan': tifffile.imwrite(p, np.where(np.asarray(im)>99, np.nan, .5).astype(np.float32))
        case 'float': tifffile.imwrite(p, np.asarray(im).astype(np.float32))
        case 'int32': tifffile.imwrite(p, np.asarray(im).astype(np.int32))
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

BAD = {'truncated':'damaged or cut off', 'damaged':'damaged or cut off', 'zero-byte':r'an empty file \(0 bytes\)', 'wrong magic':"not a PNG, JPG or TIFF file: it starts with b'GIF89a", 'a text':'not a PNG',
       'dangling':'a link to a file that is not there', 'bomb':'60000x60000 px is refused|refused: .*3600000000 pixels', 'large':'9000x9000 px is refused', '1x1':'1x1 px is too small',
       'other size':'channels of different sizes: A1_red.png 48x48, A1_green.png 64x64', 'cmyk':'CMYK', 'palette':'palette', '1-bit':'1-bit mask', 'nan':'pixels are NaN', 'float':'float values from',
       'int32':'int32 values', 'stack':'3 planes in the file of one channel', 'white is zero':'MINISWHITE', 'cut tiff':'cut off', 'cut deflate tiff':'damaged or cut off', 'cut jpg':'damaged or cut off', 'two sizes':'2 separate pictures'}

@pytest.mark.parametrize('kind', BAD)
@pytest.mark.filterwarnings('error')
def test_bad_file(tmp_path, kind):
    write(tmp_path, picture(64))
    write(tmp_path, picture(64), 'good')
    _damage(tmp_path, kind)
    assert 'A1_red.png' in fails(BAD[kind], tmp_path, size=32)
    results = dict(read_images(find_images(tmp_path), ImageReader(32), 2))
    assert isinstance(results[0], ImageError) and isinstance(results[1], TensorRGBY)

def test_no_permission(tmp_path, monkeypatch):
    write(tmp_path, picture(64))
    def refuse(path): raise PermissionError(13, 'Permission denied', path)
    if os.geteuid(): os.chmod(tmp_path/'A1_red.png', 0)
    else: monkeypatch.setattr('hpa_fastai.data.formats.open_image_file', refuse)
    fails('A1_red.png: no permission to read it', tmp_path)

def test_missing_channel(tmp_path):
    x = picture(32)
    write(tmp_path, x, channels=('red','green','blue'))
    fails("no yellow channel; if the data set has none say channels='rgb'", tmp_path)
    assert same(read(tmp_path, channels='rgb'), read(tmp_path, missing='zero')) and same(read(tmp_path, channels='rgb')[:3], x[:3])
    with pytest.raises(ImageError, match='no channel has a file'): read_image(dict(Id='x', layout='channels', **dict.fromkeys(CHANNELS)))

def test_bombs_in_tiff_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr('hpa_fastai.data.tiff._tiff_pixels', lambda *args: pytest.fail('was decoded'))
    side = int(MAX_PIXELS**.5)+16
    tifffile.imwrite(tmp_path/'a.tif', np.zeros((side,side), np.uint8), compression='zlib')
    fails('is refused', tmp_path)

def test_what_is_not_a_row():
    with pytest.raises(ImageError, match='cannot read a int'): read_image(3)

@pytest.mark.parametrize('bits', [8, 16])
def test_grey_png_is_the_same_by_few_threads_and_by_many(tmp_path, bits, monkeypatch):
    import kornia_rs.io
    decode, used = getattr(kornia_rs.io, f'decode_image_png_u{bits}'), []
    monkeypatch.setattr(kornia_rs.io, f'decode_image_png_u{bits}', lambda *a: used.append(1) or decode(*a))
    x = picture(40, 57) if bits==8 else picture(40, 57).astype(np.uint16)*257
    write(tmp_path, x)
    for n_workers, cores, how_often in ((1, 16, 4), (3, 16, 4), (4, 2, 4), (4, 16, 0)):
        used.clear()
        monkeypatch.setattr('hpa_fastai.data.formats.default_workers', lambda: cores)
        (_, img), = read_images(find_images(tmp_path), ImageReader(), n_workers)
        assert same(img, x if bits==8 else x//257) and len(used)==how_often

def test_what_the_decoder_of_grey_png_refuses_goes_to_pillow(tmp_path, monkeypatch):
    import kornia_rs.io
    def refuse(*_): raise Exception('an ancillary chunk is damaged')
    monkeypatch.setattr(kornia_rs.io, 'decode_image_png_u8', refuse)
    x = picture()
    assert same(read(write(tmp_path, x)), x)

# ---- what counts as whole, and how deep it is: by every decoder, whatever other libraries are set to

@pytest.fixture(params=['few threads', 'many threads', 'lenient Pillow', 'narrow Pillow'])
def any_decoder(request, monkeypatch):
    "Each way of decoding, and settings of Pillow that other code in a notebook may have changed"
    from hpa_fastai.data import formats as decode
    monkeypatch.setattr(decode._thread, 'one_of_many', request.param=='many threads', raising=False)
    if request.param=='lenient Pillow': monkeypatch.setattr(ImageFile, 'LOAD_TRUNCATED_IMAGES', True)
    if request.param=='narrow Pillow': monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)

def as_png(rows, width, height, depth, colour):
    "A PNG of rows of bytes, of any depth and type of colour"
    head = struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, 0)
    parts = [(b'IHDR', head), (b'IDAT', zlib.compress(b''.join(b'\0'+bytes(r) for r in rows))), (b'IEND', b'')]
    return b'\x89PNG\r\n\x1a\n' + b''.join(struct.pack('>I', len(d))+t+d+struct.pack('>I', zlib.crc32(t+d)) for t,d in parts)

def in_memory(a, format, **kwargs):
    f = io.BytesIO()
    Image.fromarray(a).save(f, format, **kwargs)
    return f.getvalue()

def one_file(folder, data, name='A1_green.png'):
    "The green plane of a field of view of one file, as numbers"
    (folder/name).write_bytes(data)
    return lambda **kwargs: np.asarray(read(folder, channels='g', **kwargs))[1].astype(int)

LOSSES = {'cut': lambda b,n: b[:-n], 'zeros': lambda b,n: b[:-n]+bytes(n), 'zeros inside': lambda b,n: b[:len(b)//2]+bytes(n)+b[len(b)//2+n:]}

@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('loss', LOSSES)
@pytest.mark.parametrize('kind', ['grey', '16-bit', 'RGB'])
def test_damaged_png_is_refused(tmp_path, any_decoder, kind, loss):
    a = smooth()[0] if kind=='grey' else smooth()[0].astype(np.uint16)*257 if kind=='16-bit' else np.dstack([*smooth()[:3]])
    whole = in_memory(a, 'PNG')
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
    assert same(one_file(tmp_path, in_memory(smooth()[0], 'PNG', pnginfo=info))(), smooth()[0])

@pytest.mark.parametrize('loss', ['cut', 'zeros'])
@pytest.mark.parametrize('progressive', [False, True])
def test_cut_jpg_is_refused(tmp_path, any_decoder, loss, progressive):
    whole = in_memory(smooth()[0], 'JPEG', quality=95, progressive=progressive)
    right = one_file(tmp_path, whole, 'A1_green.jpg')()
    assert np.abs(right-smooth()[0]).mean()<2 and same(one_file(tmp_path, whole+b'left by a camera', 'A1_green.jpg')(), right)
    for n in (1, 20, len(whole)//20, len(whole)//2):
        one_file(tmp_path, LOSSES[loss](whole, n), 'A1_green.jpg')
        fails('damaged or cut off', tmp_path, channels='g')

def strips(a, codec=1, pack=lambda b: b, written=8, bits=8, keep=lambda b: b):
    "A TIFF of eight strips, of which the last may not have been written; the list of strips stands before them"
    rows, start = len(a)//8, 198
    parts = [pack(a[k*rows:(k+1)*rows].tobytes()) for k in range(written)]
    sizes = [len(p) for p in parts] + [0]*(8-written)
    places = [start+sum(sizes[:k]) if n else 0 for k,n in enumerate(sizes)]
    tags = [(256,3,1,a.shape[1]), (257,3,1,len(a)), (258,3,1,bits), (259,3,1,codec), (262,3,1,1), (273,4,8,134), (277,3,1,1), (278,3,1,rows), (279,4,8,166), (284,3,1,1)]
    return b'II*\0'+struct.pack('<IH', 8, 10)+b''.join(struct.pack('<HHII', *t) for t in tags)+bytes(4)+struct.pack('<16I', *places, *sizes)+keep(b''.join(parts))

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
    whole = in_memory(noise, 'TIFF', compression=compression)
    with tifffile.TiffFile(io.BytesIO(whole)) as tif: start, n = tif.pages[0].dataoffsets[0], tif.pages[0].databytecounts[0]
    one_file(tmp_path, whole)()
    for share in (20, 3):
        if loss=='zeros inside' and compression!='tiff_adobe_deflate': continue # without sums nothing tells
        data = LOSSES[loss](whole[start:start+n], n//share)
        one_file(tmp_path, whole[:start]+data if loss=='cut' and start+n==len(whole) else whole[:start]+data.ljust(n, b'\0')+whole[start+n:])
        fails('damaged or cut off', tmp_path, channels='g')

def test_chunks_of_a_zarr_that_were_never_written(tmp_path):
    zarr = pytest.importorskip('zarr')
    from hpa_fastai.data.verify import verify_images
    root = zarr.open_group(str(tmp_path/'w1.ome.zarr'), mode='w')
    a = root.create_array('0', shape=(4,32,32), chunks=(1,16,16), dtype='>u2')
    root.attrs['ome'] = dict(multiscales=[dict(axes=[dict(name=n) for n in 'cyx'], datasets=[dict(path='0')])])
    fails('no chunk of plane 0, 1, 2, 3 is in the store', tmp_path)
    assert verify_images(tmp_path, progress=False).problems.problem.tolist() == ['truncated or damaged']
    a[:3] = RNG.integers(1, 60000, (3,32,32))
    fails('no chunk of plane 3 is in the store', tmp_path)
    assert verify_images(tmp_path, deep=True, progress=False).problems.problem.tolist() == ['truncated or damaged']
    a[3, :16] = 7 # writers leave out chunks that are black: those below are right
    assert same(read(tmp_path), np.rint(a[:]/257))
    assert '2 of 16 chunks absent' in str(verify_images(tmp_path, progress=False))

@pytest.mark.parametrize('format', [2, 3])
@pytest.mark.parametrize('loss', ['cut', 'zeros', 'empty', 'no settings', 'FIFO'])
def test_damaged_chunks_of_a_zarr_are_refused(tmp_path, format, loss):
    zarr = pytest.importorskip('zarr', minversion='3')
    from hpa_fastai.data.verify import verify_images
    x = np.stack([smooth()[0]//2]*4)
    root = zarr.open_group(str(tmp_path/'w1.zarr'), mode='w', zarr_format=format)
    root.create_array('0', shape=x.shape, chunks=(1,64,64), dtype='u1')[:] = x
    root.attrs.update({k: dict(multiscales=m) if k=='ome' else m for k,m in [('multiscales' if format==2 else 'ome', [dict(axes=[dict(name=n) for n in 'cyx'], datasets=[dict(path='0')])])]})
    assert same(read(tmp_path), x)
    chunk = sorted(p for p in (tmp_path/'w1.zarr/0').rglob('*') if p.is_file() and not p.name.startswith(('.z', 'zarr')))[1]
    whole, settings = chunk.read_bytes(), next((tmp_path/'w1.zarr/0').glob('*z*ar*'))
    if loss=='no settings': settings.unlink()
    elif loss=='FIFO': chunk.unlink(), os.mkfifo(chunk)
    else: chunk.write_bytes(b'' if loss=='empty' else LOSSES[loss](whole, len(whole)//3))
    said = fails('copy it again', tmp_path)
    assert 'a folder, not' not in said and verify_images(tmp_path, deep=True, progress=False).exit_code==1

def test_what_is_no_zarr_says_so(tmp_path):
    (tmp_path/'a.zarr').mkdir()
    fails('a folder without the files that make it a zarr store', tmp_path)
    (tmp_path/'a.zarr').rmdir(), (tmp_path/'a.zarr').write_bytes(b'x')
    fails('a file, where OME-Zarr is a folder', tmp_path)

@pytest.mark.parametrize('threads', ['few', 'many'])
@pytest.mark.parametrize('depth,colour', [(2,0), (4,0), (8,0), (16,0), (8,2), (16,2), (8,4), (16,4), (8,6), (16,6)])
def test_png_of_any_depth(tmp_path, depth, colour, threads, monkeypatch):
    from hpa_fastai.data import formats as decode
    from hpa_fastai.data.verify import verify_images
    monkeypatch.setattr(decode._thread, 'one_of_many', threads=='many', raising=False)
    top, n = 2**depth-1, {0:1, 2:3, 4:2, 6:4}[colour]
    a = RNG.integers(0, top+1, (24, 37, n))
    a[0, :, :3], a[0, 0, :3] = 0, top
    if depth>=8: rows = a.astype('>u2' if depth==16 else 'u1').reshape(24, -1)
    else: rows = np.packbits((a[..., 0, None]>>np.arange(depth-1, -1, -1)&1).astype(np.uint8).reshape(24, -1), axis=1)
    wanted = (a[..., 0] if n in (1,2) else a[..., :3].max(2))*255/top
    got = one_file(tmp_path, as_png([r.tobytes() for r in rows], 37, 24, depth, colour))
    assert np.abs(got()-wanted).max() <= .5
    assert verify_images(tmp_path, reader=ImageReader(channels='g'), progress=False).table.format[0].startswith(f'PNG {depth}-bit')
    if depth==16: fails('does not fit into bits=12', tmp_path, channels='g', bits=12)

@pytest.mark.parametrize('bits,codec', [(4,1), (12,1), (12,8)])
def test_tiff_of_packed_values(tmp_path, bits, codec):
    from hpa_fastai.data.verify import verify_images
    a = RNG.integers(0, 2**bits, (64, 64))
    packed = np.packbits((a[..., None]>>np.arange(bits-1, -1, -1)&1).astype(np.uint8).reshape(64, -1), axis=1)
    data = strips(packed, codec, zlib.compress if codec==8 else bytes, bits=bits)
    got = one_file(tmp_path, data.replace(struct.pack('<HHII', 256,3,1,packed.shape[1]), struct.pack('<HHII', 256,3,1,64)))
    assert np.abs(got()-a*255/(2**bits-1)).max() <= .5
    assert verify_images(tmp_path, reader=ImageReader(channels='g'), deep=True, progress=False).table.format[0] == f'TIFF {bits}-bit grey'

def test_tiff_of_values_that_need_a_package(tmp_path):
    if 'imagecodecs' in sys.modules: pytest.skip('the package is there')
    one_file(tmp_path, strips(RNG.integers(0, 256, (64, 80), dtype=np.uint8), bits=10).replace(struct.pack('<HHII', 256,3,1,80), struct.pack('<HHII', 256,3,1,64)))
    fails('values of 10 bits needs one package more: pip install imagecodecs', tmp_path, channels='g')

def test_bits_that_ome_states(tmp_path):
    a = RNG.integers(0, 4096, (64, 64), dtype=np.uint16)
    tifffile.imwrite(tmp_path/'A1_green.ome.tif', a, metadata=dict(axes='YX', SignificantBits=12))
    assert np.abs(np.asarray(read(tmp_path, channels='g'))[1]-a*(255/4095)).max() <= .5
    assert np.abs(np.asarray(read(tmp_path, channels='g', bits=16))[1]-a*(255/65535)).max() <= .5

@pytest.mark.parametrize('dtype', ['>u2', '<u2', '>i4', 'i2', 'u4', 'i8'])
def test_bits_of_any_type_of_integers(tmp_path, dtype):
    x = picture(32)
    a = x.astype(dtype)*16
    assert np.abs(np.asarray(read_image(a, bits=12)).astype(int)-x).max() <= 1
    if dtype[1:]=='u2': assert np.asarray(read_image(a)).max() <= 16
    else:
        with pytest.raises(ImageError, match=f"{np.dtype(dtype).newbyteorder('=')} values have no known range.*bits=12"): read_image(a)
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

@pytest.mark.parametrize('codec', [34712, 34887, 50001, 50002])
def test_codecs_that_need_a_package(tmp_path, codec, capfd):
    if 'imagecodecs' in sys.modules: pytest.skip('the package is there')
    one_file(tmp_path, strips(smooth(64)[0], codec, zlib.compress))
    fails('compression .* needs one package more: pip install imagecodecs', tmp_path, channels='g')

@pytest.mark.parametrize('compression', ['lzma', 'zstd'])
def test_codecs_that_pillow_has(tmp_path, compression):
    assert same(one_file(tmp_path, in_memory(smooth()[0], 'TIFF', compression=compression))(), smooth()[0])

# ---- OME-TIFF of several files

def plane_files(folder, x, names, axes='C'):
    "Each plane of a field of view in a file of its own, whose metadata name them all"
    files = ''.join(f'<TiffData IFD="0" First{axes}="{k}" PlaneCount="1"><UUID FileName="{n}">urn:uuid:{k}</UUID></TiffData>' for k,n in enumerate(names))
    channels = ''.join(f'<Channel ID="Channel:0:{k}" SamplesPerPixel="1"/>' for k in range(len(names) if axes=='C' else 1))
    sizes = ' '.join(f'Size{c}="{len(names) if c==axes else 1}"' for c in 'CZT')
    xml = ('<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" '
           f'Type="uint8" SizeX="{x.shape[2]}" SizeY="{x.shape[1]}" {sizes}>{channels}{files}</Pixels></Image></OME>')
    for n,p in zip(names, x): tifffile.imwrite(folder/n, p, description=xml.encode(), metadata=None, compression='zlib')

@pytest.mark.parametrize('name', ['pos1_C{}.ome.tif', 'pos1.ch{}.OME.TIFF', 'pos1-{}.ome.tif'])
def test_files_of_one_ome_are_one_field(tmp_path, name):
    x = picture(32)
    plane_files(tmp_path, x, [name.format(k) for k in range(4)])
    tifffile.imwrite(tmp_path/'other.ome.tif', x, metadata=dict(axes='CYX'))
    table = find_images(tmp_path)
    assert table.Id.tolist()==['other', 'pos1'] and all(same(read_image(r), x) for r in table.itertuples())
    (tmp_path/name.format(2)).unlink()
    with pytest.raises(ImageError, match=f'pos1: .*one of 4 files that are one field of view by their OME metadata; not beside it, or empty: {name.format(2)}'):
        read_image(find_images(tmp_path).iloc[1])

def test_all_files_of_a_set_make_its_stamp(tmp_path):
    from hpa_fastai.data.folders import fov_stamp
    names = [f'pos1_C{k}.ome.tif' for k in range(4)]
    plane_files(tmp_path, picture(32), names)
    row = find_images(tmp_path).iloc[0]
    before = fov_stamp(row)
    for name in names:
        os.utime(tmp_path/name, ns=(0, 0))
        before, last = fov_stamp(row), before
        assert before!=last, name

@pytest.mark.parametrize('name', ['img{:03}.ome.tif', 'Zürich é_C{}.tif', 'scan_{:02}.TIFF'])
def test_no_set_of_ome_files_hides_another(tmp_path, name):
    x = [picture(32), picture(32)]
    for k in (0, 1): plane_files(tmp_path, x[k], [name.format(n) for n in range(4*k, 4*k+4)])
    table = find_images(tmp_path)
    assert len(table)==2 and all(same(read_image(r), a) for r,a in zip(table.to_dict('records'), x))
    assert find_images([str(tmp_path/name.format(n)) for n in range(4)]).Id.tolist()==[{'i': 'img', 'Z': 'Zürich é', 's': 'scan'}[name[0]]+{'i': '00', 'Z': '', 's': '_0'}[name[0]]]

def test_a_damaged_file_of_a_set_is_named(tmp_path):
    names = [f'pos1_C{k}.ome.tif' for k in range(4)]
    plane_files(tmp_path, RNG.integers(0, 256, (4,32,32), dtype=np.uint8), names)
    whole = (tmp_path/names[2]).read_bytes()
    (tmp_path/names[2]).write_bytes(whole[:-20])
    fails('pos1_C2.ome.tif, which belongs to it, is damaged or cut off', tmp_path)
    (tmp_path/names[2]).write_bytes(b'')
    fails('not beside it, or empty: pos1_C2.ome.tif', tmp_path)

def test_file_of_one_channel_is_read_by_itself(tmp_path):
    from hpa_fastai.data.verify import verify_images
    x, names = picture(32), [f'x_{c}.ome.tif' for c in CHANNELS]
    plane_files(tmp_path, x, names)
    assert same(read(tmp_path), x) and verify_images(tmp_path, deep=True, progress=False).exit_code==0
    (tmp_path/names[3]).unlink()
    assert same(read(tmp_path, channels='rgb')[:3], x[:3])
    fails('no yellow channel', tmp_path)

# ---- planes of ImageJ

def as_imagej(x, said=None):
    "A stack as ImageJ writes it: tags of one page, then all planes"
    about = f'ImageJ=1.53t\nimages={said or len(x)}\nchannels={said or len(x)}\nhyperstack=true\n\0'.encode()
    n, w = x.shape[1:]
    tags = [(256,4,1,w), (257,4,1,n), (258,3,1,8), (262,3,1,1), (270,2,len(about),122), (273,4,1,122+len(about)), (277,3,1,1), (278,4,1,n), (279,4,1,n*w)]
    return b'II*\0'+struct.pack('<IH', 8, 9)+b''.join(struct.pack('<HHII', *t) for t in tags)+bytes(4)+about+x.tobytes()

@pytest.mark.parametrize('program', ['ImageJ', 'tifffile', 'pages'])
@pytest.mark.parametrize('name', ['x.tif', 'x_green.tif'])
def test_a_stack_that_lost_planes_is_no_plane(tmp_path, program, name):
    x = picture(32)
    if program=='ImageJ': (tmp_path/'x.tif').write_bytes(as_imagej(x))
    else: tifffile.imwrite(tmp_path/'x.tif', x, **dict(imagej=True, metadata=dict(axes='CYX')) if program=='tifffile' else dict(photometric='minisblack', metadata=None))
    assert same(read(tmp_path), x)
    whole = (tmp_path/'x.tif').read_bytes()
    (tmp_path/'x.tif').unlink()
    for lost in (1100, 2200):
        (tmp_path/name).write_bytes(whole[:-lost])
        fails('damaged or cut off', tmp_path, channels='g')

def test_a_plane_taken_out_of_a_stack_is_whole(tmp_path):
    x, about = picture(32), b'ImageJ=1.53t\nimages=4\nchannels=4\n\0' # ImageMagick keeps this text, and writes tags last
    tags = [(256,4,1,32), (257,4,1,32), (258,3,1,8), (259,3,1,1), (262,3,1,1), (270,2,len(about),8+1024), (273,4,1,8), (278,4,1,32), (279,4,1,1024)]
    data = b'II*\0'+struct.pack('<I', 8+1024+len(about))+x[1].tobytes()+about
    assert same(one_file(tmp_path, data+struct.pack('<H', 9)+b''.join(struct.pack('<HHII', *t) for t in tags)+bytes(4), 'x_green.tif')(), x[1])

@pytest.mark.parametrize('axes', ['ZYX', 'TYX'])
def test_slices_that_are_channels(tmp_path, axes):
    x = picture(32)
    tifffile.imwrite(tmp_path/'a.tif', x, imagej=True, metadata=dict(axes=axes))
    message = fails("if they are channels say z='channels' .train and verify: --z channels", tmp_path)
    assert same(read(tmp_path, z='channels'), x)
    assert same(read(tmp_path, z='channels', channels={'g': 1, 'b': 2})[1:3], x[1:3])

def test_the_channels_that_are_recommended_can_be_read(tmp_path):
    x = picture(32)
    for names in (None, ['DAPI','GFP','Tubulin','ER']):
        tifffile.imwrite(tmp_path/'a.tif', x, imagej=True, metadata=dict(axes='CYX', **dict(Labels=names) if names else {}))
        shown = re.search('train and verify: --channels ([^)]+)', fails('which', tmp_path, channels='rgby' if names else 'rgb'))[1]
        given = {c: int(v) if v.isdigit() else v for c,v in (pair.split('=') for pair in shown.split(','))}
        assert given==(dict(red='Tubulin', blue='DAPI', yellow='ER', green='GFP') if names else dict(red=0, green=1, blue=2))
        assert read(tmp_path, channels=given).shape==(4,32,32)

def test_slices_beside_channels_are_no_channels(tmp_path):
    tifffile.imwrite(tmp_path/'a.ome.tif', RNG.integers(0, 256, (3,4,32,32), dtype=np.uint8), metadata=dict(axes='ZCYX'))
    assert 'channels' not in fails('a Z stack of 3 planes', tmp_path, z='channels').split('to take the maximum')[1]

# ---- pixels in memory

def test_pillow_images():
    x = picture(32)
    grey = Image.fromarray(x[1])
    for im in (grey, Image.fromarray(x[1].astype(np.uint16)*257), grey.convert('LA'), Image.fromarray(x[1]/np.float32(255))):
        assert same(read_image(im, channels='g')[1], x[1]), im.mode
    assert same(read_image(Image.fromarray(np.moveaxis(x, 0, -1))), x)
    assert same(read_image(Image.fromarray(np.moveaxis(x[:3], 0, -1)), channels='rgb')[:3], x[:3])
    assert np.abs(np.asarray(read_image(grey.convert('I'), channels='g', bits=8))[1].astype(int)-x[1]).max()==0
    for mode in ('1', 'P', 'CMYK', 'YCbCr', 'HSV'):
        with pytest.raises(ImageError, match='not intensities'): read_image((grey if mode in '1P' else grey.convert('RGB')).convert(mode))

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_tensors_with_a_gradient(dtype):
    x = picture(32)
    got = read_image((torch.from_numpy(x)/255).to(dtype).requires_grad_())
    assert np.abs(np.asarray(got).astype(int)-x).max() <= 1

@pytest.mark.parametrize('what,words', [(None, 'cannot read a NoneType'), ([], 'cannot read a list'), ({}, 'a row that names no files'), (dict(Id='a'), 'it has Id'),
                                        (pd.DataFrame(dict(a=[1])), 'cannot read a DataFrame'), (np.zeros(9), 'shape'), (np.zeros((0,0)), 'too small'), (np.zeros((4,9,9), 'M8[s]'), 'not intensities')])
def test_what_is_no_picture(what, words):
    with pytest.raises(ImageError, match=words) as e: read_image(what)
    assert '\n' not in str(e.value)

# ---- fastai

def test_data_block_in_worker_processes(tmp_path):
    from fastai.vision.all import ColReader, DataBlock, MultiCategoryBlock, RandomSplitter, aug_transforms
    for i in range(8): write(tmp_path, picture(48), str(i))
    df = attach_images(pd.DataFrame(dict(Id=[str(i) for i in range(8)], Target=['0','1 2']*4)), tmp_path)
    block = DataBlock(blocks=(RGBYBlock(32), MultiCategoryBlock), get_y=ColReader('Target', label_delim=' '), splitter=RandomSplitter(.5, seed=0), batch_tfms=aug_transforms(size=24))
    dls = block.dataloaders(df, bs=2, num_workers=1)
    x,y = dls.one_batch()
    assert type(x) is TensorRGBY and x.shape==(2,4,24,24) and x.dtype==torch.float32 and 0<=x.min() and x.max()<=1
    new = pickle.loads(pickle.dumps(dls.new_empty())).test_dl(df.iloc[[5]], num_workers=0).one_batch()[0]
    assert new.shape==(1,4,24,24)

def test_read_images_stops_when_nobody_listens(tmp_path):
    for i in range(30): write(tmp_path, picture(16), f'{i:02}')
    seen = []
    class Counting(ImageReader):
        def array(self, row): seen.append(row['Id']); return super().array(row)
    stream = read_images(find_images(tmp_path), Counting(16), n_workers=2)
    next(stream)
    stream.close()
    assert 1 <= len(seen) <= 6

# ---- real files

def test_real_layouts(real_data):
    t = find_images(real_data/'native')
    assert len(t)==7 and t.notna().all(axis=None)
    for row in t.itertuples():
        small,full = (np.asarray(read_image(row, s)).astype(float) for s in (256, None))
        assert full.shape[1] in (1728,2048,3072) and small.shape==(4,256,256)
        assert np.abs(small.mean((1,2))-full.mean((1,2))).max() < .5
        assert np.corrcoef(np.sqrt(small[0]).ravel(), np.sqrt(small[3]).ravel())[0,1] > .5

def test_real_jpg_is_grey_as_the_maximum(real_data):
    row = find_images(real_data/'native'/'hpav18_jpg').iloc[0]
    img = np.asarray(read_image(row))
    for i,c in enumerate(CHANNELS): assert same(img[i], np.asarray(Image.open(row[c])).max(2))

def test_real_mosaic_has_its_labels(real_data):
    df = attach_images(pd.read_csv(real_data/'mosaic'/'train.csv'), real_data/'mosaic'/'images')
    assert len(df)==245 and all(isinstance(x, TensorRGBY) for _,x in read_images(df[:8], ImageReader(128)))
