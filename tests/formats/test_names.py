"What the name of a file says: field of view, channel, mask, and how microscopes write it."
import os
import unicodedata

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from hpa_fastai.basics.errors import ImageError
from hpa_fastai.data.files import attach_images, find_images
from hpa_fastai.data.image_tables import image_table
from hpa_fastai.formats.names import CHANNELS
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


UNKNOWN = [program for program in MICROSCOPES if program not in ('MetaMorph', 'stains', 'InCell')]


@pytest.mark.parametrize('program', UNKNOWN)
def test_names_of_microscopes_are_said_and_read_when_the_user_says_which_is_which(tmp_path, program):
    x = picture(32)
    *names, tokens = MICROSCOPES[program]
    for n,p in zip(names, x): Image.fromarray(p).save(tmp_path/f'{n}.tif')
    with pytest.raises(ImageError) as e: find_images(tmp_path)
    first, second = tokens.split(', ')
    is_plate = program in ('Opera Phenix', 'ImageXpress')
    differ = f"seem to differ in {tokens}. Say which is which"
    if is_plate: differ = "there are channel 1, channel 2: say which is"
    assert differ in str(e.value) and e.value.kind=='unclear channels'
    example = f'red={first},green={second}'
    assert f'--channels {example})' in str(e.value) and (is_plate or names[0] in str(e.value))
    assert is_plate or 'csv of paths with the columns Id, red, green, blue, yellow' in str(e.value)

    channels = {'blue': first, 'green': second.swapcase()}
    t = find_images(tmp_path, channels)
    assert len(t)==1 and same(read_image(t.iloc[0], channels=channels)[[2, 1]], x[:2])
    blue,green = (f'{n}.tif' for n in names)
    (tmp_path/'paths.csv').write_text(f'Id,red,green,blue,yellow\nx,,{green},{blue},\n')
    assert same(read_image(find_images(tmp_path/'paths.csv').iloc[0], channels='gb')[[2, 1]], x[:2])


@pytest.mark.parametrize('program', ['MetaMorph', 'stains', 'InCell'])
def test_names_with_dyes_are_guessed_with_a_word(tmp_path, program):
    x = picture(32)
    *names, _ = MICROSCOPES[program]
    for n,p in zip(names, x): Image.fromarray(p).save(tmp_path/f'{n}.tif')
    with pytest.warns(UserWarning, match='the names of the files hold dyes: .* is green.*If that is wrong, say'):
        t = find_images(tmp_path)
    assert len(t)==1 and t.layout[0]=='channels' and set(t.attrs['channels'])=={'green', 'blue'}
    assert same(read_image(t.iloc[0], channels='bg')[[2, 1]], x[:2])


def test_names_of_microscopes_beside_labels(tmp_path):
    for n in range(4): Image.fromarray(picture(16)[0]).save(tmp_path/f'A1_w{n+1}.tif')
    labels = pd.DataFrame(dict(Id=['A1']))
    with pytest.raises(ImageError, match='A1_w1.tif, A1_w2.tif, A1_w3.tif.*in w1, w2, w3, w4.*csv of paths'):
        attach_images(labels, tmp_path)
    channels = dict(zip(CHANNELS, ('w1', 'w2', 'w3', 'w4')))
    assert attach_images(labels, tmp_path, channels).yellow[0].endswith('A1_w4.tif')


SHAPES = ['{i}_{t}', '{t}-{i}', '{i} ({t})', '{i}.{t}.proj', '{i} - {t}', 'plate_{t}_{i}', '{i}_[{t}]_max']
TOKENS = {
    'dyes': ('AF555', 'AF488', 'DAPI', 'AF647'), 'numbers': ('561', '488', '405', '640'), 'w': ('w1', 'w2', 'w3', 'w4'),
    'long': ('Alexa Fluor 555', 'Alexa Fluor 488', 'Hoechst 33342', 'Alexa Fluor 647'), 'plain': (1, 2, 3, 4),
    'letters': ('R', 'G', 'B', 'Y'), 'words': ('Tubulin', 'Antibody', 'nuc', 'Cal-ER')}


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('kind', TOKENS)
@pytest.mark.parametrize('case', [str, str.upper])
def test_any_part_of_a_name_names_the_channel_when_the_user_says_so(tmp_path, shape, kind, case):
    ids, x = ['Exp12_A01_s3', 'Exp12_A02_s3'], picture(16)
    for i in ids:
        for token,plane in zip(TOKENS[kind], x):
            Image.fromarray(plane).save(tmp_path/f'{shape.format(i=i, t=case(str(token)))}.tif')
    channels = dict(zip(CHANNELS, TOKENS[kind]))
    t = find_images(tmp_path, channels)
    assert len(t)==2 and set(t.layout)=={'channels'} and all(i in given for i,given in zip(ids, t.Id))
    assert same(read_image(t.iloc[0], channels=channels), x) and not set(t.Id[0]) & set('()[]')
    one = image_table(t.blue[0], channels)
    assert len(one)==1 and one.yellow[0]==t.yellow[0]


def test_a_word_of_a_channel_elsewhere_in_the_name_does_no_harm(tmp_path):
    for i in ('GFP-line_1', 'GFP-line_2'):
        for token in ('DAPI', 'gfp', 'Cy3'): (tmp_path/f'{i}_{token}.tif').touch()
    t = find_images(tmp_path, dict(red='Cy3', green='GFP', blue='DAPI'))
    assert list(t.Id)==['GFP-line_1', 'GFP-line_2'] and t.green[0].endswith('1_gfp.tif')
    with pytest.warns(UserWarning, match='gfp is green'): assert list(find_images(tmp_path).Id)==list(t.Id)


def test_names_of_colours_and_whole_fields_stay_what_they_are(tmp_path):
    "A model that remembers other names reads them"
    channels = dict(red='AF555', green='AF488', blue='DAPI', yellow='AF647')
    write(tmp_path/'colours', picture(16))
    assert find_images(tmp_path/'colours', channels).equals(find_images(tmp_path/'colours'))
    (tmp_path/'whole').mkdir()
    for n in ('DAPI_1', 'DAPI_2'):
        tifffile.imwrite(tmp_path/'whole'/f'{n}.tif', picture(16), photometric='minisblack')
    t = find_images(tmp_path/'whole', channels)
    assert set(t.layout)=={'single'} and list(t.Id)==['DAPI_1', 'DAPI_2']
    with pytest.warns(UserWarning, match='without names are taken in the order red, green, blue, yellow'):
        assert same(read_image(t.iloc[0], channels=channels), read_image(t.iloc[0]))


def test_numbers_of_planes_are_no_parts_of_names(tmp_path):
    for n in range(4): tifffile.imwrite(tmp_path/f'A_{n}.tif', picture(16), photometric='minisblack')
    assert len(find_images(tmp_path, dict(red=3, green=2, blue=1, yellow=0)))==4


DYES = dict(red='AF555', green='AF488', blue='DAPI', yellow='AF647')


def plate(folder, tokens=tuple(DYES.values()), n=4, name='Exp12_A01_s{n}_{t}.tif'):
    x = picture(16)
    for k in range(n):
        for i,t in enumerate(tokens):
            file = folder/name.format(n=k, t=t)
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(x[i%4]).save(file)
    return x


def test_a_guess_says_what_why_and_how_to_overrule_it(tmp_path):
    plate(tmp_path)
    with pytest.warns(UserWarning) as w: t = find_images(tmp_path)
    assert len(w)==1 and list(t.Id)==[f'Exp12_A01_s{n}' for n in range(4)] and t.attrs['channels']==DYES
    for words in ('AF555 is red (microtubules)', 'DAPI is blue (nucleus)', '16 files are 4 fields of view',
                  'the first is Exp12_A01_s0', '--channels red=AF555,green=AF488,blue=DAPI,yellow=AF647'):
        assert words in str(w[0].message)
    with pytest.warns(UserWarning):
        swapped = find_images(tmp_path, DYES | dict(red='AF488', green='AF555', yellow='nothing'))
    assert swapped.green[0].endswith('AF555.tif') and swapped.yellow[0] is None


def test_brightfield_merged_pictures_thumbnails_and_masks_are_left_out_of_a_guess(tmp_path):
    plate(tmp_path, (*DYES.values(), 'BF', 'merge', 'DAPI_thumb', 'DAPI_cp_masks'))
    with pytest.warns(UserWarning) as w: t = find_images(tmp_path)
    assert len(t)==4 and t.attrs['channels']==DYES
    said = ' '.join(str(o.message) for o in w)
    assert '12 files beside those of the channels are left out' in said and '4 BF' in said and '4 masks' in said


def test_two_dyes_of_one_channel_are_for_the_user_to_decide(tmp_path):
    plate(tmp_path, ('DAPI', 'AF488', 'AF555', 'AF568'))
    with pytest.raises(ImageError, match='AF555 and AF568 would both be red.*Say which is which') as e:
        find_images(tmp_path)
    assert '--channels red=AF555,green=AF488,blue=DAPI,yellow=AF568' in str(e.value)


def test_numbers_in_ids_are_no_dyes(tmp_path):
    for n in range(400, 650, 5): Image.fromarray(np.zeros((16, 16, 4), np.uint8)).save(tmp_path/f'cell_{n}.png')
    assert set(find_images(tmp_path).layout)=={'single'}


def test_a_folder_for_each_field_of_view(tmp_path):
    x = plate(tmp_path, name='plate/A0{n}/{t}.tif')
    with pytest.warns(UserWarning, match='4 fields'): t = find_images(tmp_path)
    assert list(t.Id)==['A00', 'A01', 'A02', 'A03'] and same(read_image(t.iloc[0]), x)


def test_guids_of_metaxpress(tmp_path):
    guid = '0A1B2C3D-0000-4444-8888-00000000000{}'
    for n in (1, 2, 3, 4): (tmp_path/f'x_C03_s1_w{n}{guid.format(n)}.TIF').touch()
    t = find_images(tmp_path, {c: f'w{n+1}' for n,c in enumerate(CHANNELS)})
    assert list(t.Id)==['x_C03_s1'] and t.well[0]=='C03' and set(t.layout)=={'channels'}


def test_a_model_that_remembers_other_dyes_falls_back_on_the_guess(tmp_path):
    plate(tmp_path, ('TRITC', 'FITC', 'DAPI', 'Cy5'))
    with pytest.warns(UserWarning, match='TRITC is red'): t = find_images(tmp_path, DYES)
    assert t.yellow[0].endswith('Cy5.tif') and t.attrs['channels']['red']=='TRITC'


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
