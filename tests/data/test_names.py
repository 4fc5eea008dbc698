"What the name of a file says: field of view, channel, mask, and how microscopes write it."
import os
import unicodedata

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hpa_fastai.basics.errors import ImageError
from hpa_fastai.data.files import attach_images, find_images
from hpa_fastai.data.names import CHANNELS
from hpa_fastai.batches.tensors import read_image
from pictures import only, picture, same, write


IDS = ['10580_1610_C1_1', 'a.b.c', 'U-2 OS 3', 'plate_red_1', '000a6c98-bb9b-11e8-b2b9-ac1f6b6435d0', 'ü']

ENDINGS = [('png','red'), ('PNG','RED'), ('tif','Red'), ('TIFF','red'), ('jpeg','red'), ('JPG','red')]


@pytest.mark.parametrize('id_', IDS)
@pytest.mark.parametrize('ext,suffix', ENDINGS)
def test_ids_and_extensions(tmp_path, id_, ext, suffix):
    (tmp_path/f'{id_}_{suffix}.{ext}').touch()
    row = only(tmp_path)
    assert (row.Id, row.red, row.green) == (id_, str(tmp_path/f'{id_}_{suffix}.{ext}'), None)


MASKS = ['_cp_masks.png', '_cp_masks.tif', '_seg.npy', '_cp_output.png', '_cp_outlines.png', '_flows.tif',
         '_mask.png', '_masks.tif', '_cellmask.png', '_cell_mask.png', '_nucleimask.png', '_nuclei_mask.png',
         '_segmentation.png', '_label.tif', '_labels.tif', '_outlines.png', '_predictedmask.png',
         '_Simple Segmentation.tif', '_Object Predictions.png', '_Probabilities.tif', '-labels.png', '.labels.tif',
         '_StarDist.tif', '_overlay.png', '_MASK.TIF']


@pytest.mark.parametrize('of', ['A1', 'A1_blue', 'A1_blue_red_green'])
@pytest.mark.parametrize('layout', ['channels', 'single'])
def test_masks_beside_images_are_no_fields_of_view(tmp_path, of, layout):
    if layout=='channels': write(tmp_path, picture(16))
    else: Image.fromarray(np.moveaxis(picture(16)[:3], 0, -1)).save(tmp_path/'A1.png')
    for n in MASKS: (tmp_path/f'{of}{n}').touch()
    (tmp_path/'A1_cp_outlines.txt').touch()
    for source in (tmp_path, list(tmp_path.iterdir()), f'file://{tmp_path}'):
        with pytest.warns(UserWarning) as w: t = find_images(source)
        assert list(t.Id) == ['A1'] and len(w) == 1
        assert f'{len(MASKS)} masks and other files of programs' in str(w[0].message)


def test_masks_in_folders_and_without_their_image(tmp_path):
    write(tmp_path, picture(16))
    masks = ('masks/A1.png', 'masks/A1_blue.png', 'outlines/A1_cp_outlines.png', 'more/A1_cp_masks.png', 'A9_mask.png')
    for n in masks:
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
    assert list(t.Id) == ['A1', 'b-2.c'] and set(t.layout) == {'channels'}
    assert t.yellow[0].endswith('.tif') and t.green[1] and t.red[1] is None


MICROSCOPES = { # program: two names, and what stands for the channels in them
    'Leica': ('x_ch00', 'x_ch01', 'ch00, ch01'),
    'Opera Phenix': ('r01c01f01p01-ch1sk1fk1fl1', 'r01c01f01p01-ch2sk1fk1fl1', 'ch1, ch2'),
    'ImageXpress': ('p_C03_s1_w1', 'p_C03_s1_w2', 'w1, w2'),
    'MetaMorph': ('x_w1DAPI', 'x_w2FITC', 'w1DAPI, w2FITC'),
    'ImageJ': ('C1-x', 'C2-x', 'C1, C2'),
    'Zeiss': ('x_C1', 'x_C2', 'C1, C2'),
    'stains': ('x_DAPI', 'x_GFP', 'DAPI, GFP'),
    'CellVoyager': ('A_T0001F001L01A01Z01C01', 'A_T0001F001L01A01Z01C02', 'C01, C02'),
    'InCell': ('A - 1(fld 1 wv DAPI - DAPI)', 'A - 1(fld 1 wv FITC - FITC)', 'DAPI - DAPI, FITC - FITC')}


@pytest.mark.parametrize('program', MICROSCOPES)
def test_names_of_microscopes_are_said_and_a_csv_of_paths_reads_them(tmp_path, program):
    x = picture(32)
    *names, tokens = MICROSCOPES[program]
    for n,p in zip(names, x): Image.fromarray(p).save(tmp_path/f'{n}.tif')
    messages = []
    for row in find_images(tmp_path).itertuples():
        with pytest.raises(ImageError, match=f'one grey plane.*{program}') as e: read_image(row)
        messages.append(str(e.value))
    for message in messages:
        assert f'(there are {tokens})' in message and 'channels=' not in message
        assert 'csv of paths with the columns Id, red, green, blue, yellow' in message
    blue,green = (f'{n}.tif' for n in names)
    (tmp_path/'paths.csv').write_text(f'Id,red,green,blue,yellow\nx,,{green},{blue},\n')
    assert same(read_image(find_images(tmp_path/'paths.csv').iloc[0], channels='gb')[[2, 1]], x[:2])


def test_names_of_microscopes_beside_labels(tmp_path):
    for n in range(4): (tmp_path/f'A1_w{n+1}.tif').touch()
    with pytest.raises(ImageError, match=r'ImageXpress.*\(there are w1, w2, w3, w4\).*csv of paths'):
        attach_images(pd.DataFrame(dict(Id=['A1'])), tmp_path)


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
