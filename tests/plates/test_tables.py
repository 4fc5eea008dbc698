"Plates: every image of every microscope in its place, and what is missing said by well."
import re
import shutil

import numpy as np
import pytest
import tifffile

from hpa_fastai.basics.errors import ImageError
from hpa_fastai.cli.main import main
from hpa_fastai.data.files import find_images
from hpa_fastai.data.image_tables import image_table
from hpa_fastai.data.reader import ImageReader
from hpa_fastai.data.verify import verify_folder
from hpa_fastai.deploy.predictor import Predictor
from hpa_fastai.deploy.tables import read_predictions
from microscopes import (as_read, change_attributes, field, write_image_xpress, write_operetta, write_yokogawa,
                         write_zarr_plate)

pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')
CHANNELS = 'red', 'green', 'blue', 'yellow'


@pytest.fixture
def told():
    "What `find_images` says"
    import warnings
    def found(*args, **kwargs):
        with warnings.catch_warnings(record=True) as w:
            warnings.simplefilter('always')
            table = find_images(*args, **kwargs)
        return table, ' / '.join(str(o.message) for o in w)
    return found


def planes(row, **settings):
    "The planes of a field of view as they are in its files"
    return {c: np.asarray(plane) for c,plane,_ in ImageReader(**settings).planes(dict(row))}


def whole(row, **settings): return np.stack(list(planes(row, **settings).values()))


# real plates

def test_a_real_plate_of_a_cell_voyager(real_data, told, trained, tmp_path):
    folder = real_data/'plates'/'cv8000'
    table, said = told(folder)
    assert sorted(set(table.well))==['D08', 'E03', 'F08'] and len(table)==12
    assert set(table.field)=={1, 2, 3, 4} and set(table.planes)=={4} and set(table.pixel_size)=={.325}
    assert table.red.isna().all() and table.yellow.isna().all() and table.green.notna().all()
    assert '488 is green' in said and '405 is blue' in said and '6 shading' in said
    for row in table.iloc[[0, 7]].to_dict('records'):
        prefix = f'{row["plate"]}_{row["well"]}_T0001F{row["field"]:03d}'
        for c,channel in (('green', 2), ('blue', 1)):
            files = sorted(folder.glob(f'{prefix}L01A*Z*C{channel:02d}.tif'))
            assert len(files)==4
            stack = np.stack([tifffile.imread(file) for file in files])
            assert np.array_equal(planes(row, channels='gb', z='max')[c], stack.max(0))
    with pytest.raises(ImageError, match="a Z stack of 4 planes; .*z='sharpest'"): planes(table.iloc[0], channels='gb')
    predictor = Predictor(trained[1], reading=dict(missing='zero', z='max'), device='cpu')
    out = tmp_path/'out.csv'
    assert not predictor.to_file(table.head(3), out, progress=False).errors
    predicted = read_predictions(out)
    assert list(predicted.well)==['D08']*3 and predicted.error.eq('').all() and predicted.Names.notna().all()


def test_a_real_plate_with_projections_beside_one_plane(real_data, told):
    folder = real_data/'plates'/'imagexpress_projection'
    with pytest.raises(ImageError, match=r'channel 1 \(FITC_05\), .* would all be green.*--channels red=w1,green=w2'):
        find_images(folder)
    table, said = told(folder, dict(red=3, green=2, blue='w1'))
    assert list(table.Id)==[f'Projection-Mix_E0{w}_s{s}' for w in (7, 8) for s in (1, 2)]
    assert 'planes' not in table and not table.green.str.contains('thumb|ZStep|[|]').any()
    row = table.iloc[0]
    want = tifffile.imread(next(folder.glob('Projection-Mix_E07_s1_w2[0-9A-F]*.tif')))
    assert np.array_equal(planes(row, channels='rgb')['green'], want) and '18 thumb' in said
    alone = find_images(folder, dict(green=4))
    assert alone.green.notna().sum()==2 and alone.green.str.contains('ZStep_1').sum()==2


def test_a_real_plate_that_lacks_two_waves(real_data, told, trained, tmp_path):
    folder = real_data/'plates'/'imagexpress_htd'
    table, said = told(folder)
    assert list(table.well)==['C03'] and table.absent[0]=='channel 3 (Texas Red), channel 4 (Cy5)'
    for part in ('1 well lacks images of channel 3 (Texas Red), channel 4 (Cy5): C03', 'wells that the HTD file names '
                 'have no image: E03', 'C03 5 of 6', '1 of 26 planes'): assert part in said
    want = tifffile.imread(next(folder.rglob('*_w2.TIF')))
    assert np.array_equal(planes(table.iloc[0], channels='gb')['green'], want)
    predicted = Predictor(trained[1], device='cpu')(table)
    assert 'no red and no yellow channel (the plate lacks images of channel 3 (Texas Red), channel 4 (Cy5) here)' \
        in predicted.error[0]
    black = Predictor(trained[1], reading=dict(missing='zero'), device='cpu')(table)
    assert black.error.tolist()==[''] and black.Names[0] is not None


# round trips

@pytest.mark.parametrize('version', [5, 6])
@pytest.mark.parametrize('index', ['Index.xml', 'Index.idx.xml'])
def test_a_plate_of_an_opera_phenix(tmp_path, told, version, index):
    write_operetta(tmp_path/'plate7', [(3, 11), (4, 2)], n_fields=2, index=index, version=version)
    table, said = told(tmp_path/'plate7')
    assert list(table.Id)==['plate7_C11_f1', 'plate7_C11_f2', 'plate7_D02_f1', 'plate7_D02_f2']
    assert table.pixel_size.round(6).eq(.297).all() and list(table['row'])==[3, 3, 4, 4]
    assert 'Alexa 555 is red' in said and 'taken as in the Human Protein Atlas' in said
    for k,row in enumerate(table.to_dict('records')): assert np.array_equal(whole(row), as_read(field(k)))


def test_stacks_of_an_opera_phenix(tmp_path):
    write_operetta(tmp_path/'plate7', [(3, 11)], n_fields=1, planes=3)
    row = find_images(tmp_path/'plate7').iloc[0]
    assert row.planes==3 and np.array_equal(whole(row, z='max'), as_read(field(0))+2)
    assert whole(row, z='sharpest').shape==(4, 64, 64)
    again = tmp_path/'table.csv'
    find_images(tmp_path/'plate7').to_csv(again, index=False)
    assert np.array_equal(whole(find_images(again).iloc[0], z='max'), as_read(field(0))+2)


def test_an_image_xpress_with_stacks_and_sites(tmp_path):
    write_image_xpress(tmp_path/'p', ['C03', 'D12'], sites=2, planes=2)
    table = find_images(tmp_path/'p')
    assert list(table.Id)==['plate7_C03_s1', 'plate7_C03_s2', 'plate7_D12_s1', 'plate7_D12_s2']
    for k,row in enumerate(table.to_dict('records')): assert np.array_equal(whole(row, z='max'), as_read(field(k))+1)


@pytest.mark.parametrize('version', [2, 3])
def test_an_ome_zarr_plate(tmp_path, version):
    pytest.importorskip('zarr')
    write_zarr_plate(tmp_path/'plate7.zarr', ['C/3', 'AB/12'], version=version)
    table = find_images(tmp_path/'plate7.zarr')
    assert list(table.Id)==['plate7_AB12_f0', 'plate7_AB12_f1', 'plate7_C03_f0', 'plate7_C03_f1']
    assert set(table.layout)=={'zarr'} and table.pixel_size.eq(.325).all() and list(table.column)==[12, 12, 3, 3]
    for k,id_ in enumerate(('plate7_C03_f0', 'plate7_C03_f1', 'plate7_AB12_f0', 'plate7_AB12_f1')):
        row = table[table.Id==id_].iloc[0]
        assert np.array_equal(whole(row), as_read(field(k)))
    assert find_images(tmp_path).equals(table) and image_table(tmp_path/'plate7.zarr').equals(table)


def test_stacks_and_times_of_an_ome_zarr_plate(tmp_path):
    pytest.importorskip('zarr')
    write_zarr_plate(tmp_path/'plate7.zarr', n_fields=1, planes=2, times=3)
    with pytest.raises(ImageError, match='3 time points; say time='): find_images(tmp_path)
    table = find_images(tmp_path, time='all')
    assert list(table.Id)==[f'plate7_C03_f0_t00{t}' for t in (1, 2, 3)] and list(table.time)==[1, 2, 3]
    for t,row in enumerate(table.to_dict('records')):
        assert np.array_equal(whole(row, z='max'), as_read(field(0))+1+10*t)
    assert np.array_equal(whole(find_images(tmp_path, time=2).iloc[0], z='max'), as_read(field(0))+11)


def test_an_ome_zarr_plate_on_object_storage(tmp_path):
    pytest.importorskip('zarr')
    import fsspec
    write_zarr_plate(tmp_path/'plate7.zarr')
    fs = fsspec.filesystem('memory')
    fs.put(str(tmp_path/'plate7.zarr'), '/lab/plate7.zarr', recursive=True)
    table = find_images('memory://lab')
    assert list(table.Id)==['plate7_C03_f0', 'plate7_C03_f1'] and table.pixel_size.eq(.325).all()
    assert np.array_equal(whole(table.iloc[1]), as_read(field(1)))


def test_time_points_of_a_cell_voyager(tmp_path):
    write_yokogawa(tmp_path/'p', times=2)
    with pytest.raises(ImageError, match="plate plate7: 2 time points; say time='first'"): find_images(tmp_path)
    assert list(find_images(tmp_path, time='all').Id)==['plate7_C03_f1_t001', 'plate7_C03_f1_t002']
    first = find_images(tmp_path, time='first')
    assert list(first.Id)==['plate7_C03_f1'] and np.array_equal(whole(first.iloc[0]), as_read(field(0)))


def test_the_file_of_a_plate_leads_to_its_field(tmp_path):
    write_yokogawa(tmp_path/'p', ['C03', 'C04'])
    file = next((tmp_path/'p').glob('*_C04_*C02.tif'))
    found = image_table(file)
    assert list(found.Id)==['plate7_C04_f1'] and np.array_equal(whole(found.iloc[0]), as_read(field(1)))


def test_a_model_of_a_plate_learns_its_scale_from_the_index(tmp_path):
    from hpa_fastai.batches.loaders import HPADataLoaders
    write_operetta(tmp_path/'p', [(3, c) for c in range(1, 9)], n_fields=2)
    table = find_images(tmp_path/'p')
    labels = table[['Id']].assign(Target=['0', '1']*8)
    dls = HPADataLoaders.from_df(labels, tmp_path/'p', size=32, bs=4, cache=False, progress=False)
    assert dls.settings.reader.field_width==pytest.approx(64*.297)
    assert set(dls.train_ds.items.columns)>={'plate', 'well', 'pixel_size'}
    assert dls.settings.reader.channels['red']=='Alexa 555'


def test_a_table_of_a_plate_that_goes_through_a_csv(tmp_path):
    write_operetta(tmp_path/'p', [(3, 1), (3, 2)], n_fields=1, lost=['r03c02f01p01-ch3sk1fk1fl1.tiff'])
    table = find_images(tmp_path/'p')
    table.to_csv(tmp_path/'t.csv', index=False)
    again = find_images(tmp_path/'t.csv')
    assert again.pixel_size.dtype==float and again.pixel_size.tolist()==table.pixel_size.tolist()
    assert again['row'].tolist()==[3, 3] and again.field.tolist()==[1, 1]
    (tmp_path/'t.csv').write_text((tmp_path/'t.csv').read_text().replace(',0.297,', ',wide,', 1))
    with pytest.raises(ImageError, match="row 2: pixel_size is .wide.; give the µm"): find_images(tmp_path/"t.csv")


def test_a_list_of_files_is_no_more_than_these_files(tmp_path):
    write_operetta(tmp_path/'p', [(3, 1), (3, 2)])
    files = sorted((tmp_path/'p'/'Images').glob('r03c02f01*'))
    assert list(find_images(files).Id)==['p_C02_f1'] and 'absent' not in find_images(files)
    write_yokogawa(tmp_path/'q', n_fields=2)
    assert list(find_images(sorted((tmp_path/'q').glob('*F002*'))).Id)==['plate7_C03_f2']


def test_a_plate_has_one_name_from_wherever_it_is_seen(tmp_path, monkeypatch):
    write_operetta(tmp_path/'p', [(3, 1)], n_fields=1)
    ids = [list(find_images(tmp_path).Id)]
    for folder,source in ((tmp_path, 'p'), (tmp_path/'p', 'Images'), (tmp_path/'p'/'Images', '.')):
        monkeypatch.chdir(folder)
        ids.append(list(find_images(source).Id))
    assert ids==[['p_C01_f1']]*4


def test_measurements_of_harmony_are_called_by_the_folder_above(tmp_path):
    for name in ('night1', 'night2'): write_operetta(tmp_path/name/'Measurement 1', [(3, 1)], n_fields=1)
    assert list(find_images(tmp_path).Id)==['night1_Measurement 1_C01_f1', 'night2_Measurement 1_C01_f1']
    assert list(find_images(tmp_path/'night2').Id)==['night2_Measurement 1_C01_f1']


def test_ids_of_a_series_do_not_change_while_it_grows(tmp_path):
    write_yokogawa(tmp_path/'p')
    assert list(find_images(tmp_path, time='all').Id)==['plate7_C03_f1_t001']
    write_yokogawa(tmp_path/'p', times=2)
    assert list(find_images(tmp_path, time='all').Id)==['plate7_C03_f1_t001', 'plate7_C03_f1_t002']


def test_lasers_by_their_wavelength_from_a_shell(tmp_path):
    write_yokogawa(tmp_path/'p')
    row = find_images(tmp_path, dict(red=561, green=488, blue=405, yellow=640)).iloc[0]
    assert np.array_equal(whole(row), as_read(field(0)))


def test_plates_in_a_folder_with_a_bar_in_its_name(tmp_path):
    write_yokogawa(tmp_path/'a|b', planes=2)
    assert np.array_equal(whole(find_images(tmp_path/'a|b').iloc[0], z='max'), as_read(field(0))+1)


def test_several_makers_in_one_folder(tmp_path):
    write_yokogawa(tmp_path/'p'/'Images')
    write_operetta(tmp_path/'p', [(4, 1)], n_fields=1)
    write_image_xpress(tmp_path/'p'/'Images', ['E05'], name='plate8')
    assert list(find_images(tmp_path).well)==['D01', 'C03', 'E05']


def test_a_cell_voyager_that_writes_png(tmp_path):
    from PIL import Image
    write_yokogawa(tmp_path/'p')
    for file in sorted((tmp_path/'p').glob('*.tif')):
        Image.fromarray(tifffile.imread(file)).save(file.with_suffix('.png'))
        file.unlink()
    assert np.array_equal(whole(find_images(tmp_path).iloc[0]), as_read(field(0)))


def test_ids_on_object_storage_are_those_of_a_disk(tmp_path):
    import fsspec
    for day in ('monday', 'tuesday'): write_yokogawa(tmp_path/'lab2'/day)
    fsspec.filesystem('memory').put(str(tmp_path/'lab2'), '/lab2', recursive=True)
    assert list(find_images('memory://lab2').Id)==list(find_images(tmp_path/'lab2').Id)


# what is wrong

def test_one_plate_that_is_not_clear_does_not_end_the_others(tmp_path, told, trained):
    write_image_xpress(tmp_path/'good', name='good')
    write_image_xpress(tmp_path/'bad', waves=('FITC', 'GFP', 'DAPI', 'Cy5'), name='bad')
    table, said = told(tmp_path)
    assert list(table.Id)==['bad_C03_s1', 'good_C03_s1'] and 'plate bad: there are channel 1 (FITC)' in said
    predicted = Predictor(trained[1], device='cpu')(table).set_index('Id')
    assert predicted.error['good_C03_s1']==''
    assert 'plate bad: there are channel 1 (FITC)' in predicted.error['bad_C03_s1']
    assert 'FITC and GFP would both be green' in predicted.error['bad_C03_s1']
    with pytest.raises(ImageError, match='plate bad: .* would both be green'): find_images(tmp_path/'bad')


def test_why_the_channels_of_a_plate_are_not_known_is_told(tmp_path):
    write_operetta(tmp_path/'plate7', [(3, 11)])
    index = tmp_path/'plate7'/'Images'/'Index.xml'
    index.write_text(index.read_text()[:900])
    with pytest.raises(ImageError, match='there are channel 1, .*; Index.xml: the index can not be read'):
        find_images(tmp_path/'plate7')


def test_an_index_that_puts_an_image_in_two_places(tmp_path, told):
    write_operetta(tmp_path/'p', [(3, 1)], n_fields=1)
    index = tmp_path/'p'/'Images'/'Index.xml'
    text = index.read_text()
    first = text[text.index('<Image '):text.index('</Image>')+8]
    index.write_text(text.replace('</Images>', first.replace('<Col>1<', '<Col>2<') + '</Images>'))
    table, said = told(tmp_path)
    assert list(table.well)==['C01'] and 'puts 1 images in two places' in said and 'the first counts, C01' in said


def test_time_points_of_each_field_of_an_ome_zarr_plate(tmp_path):
    pytest.importorskip('zarr')
    write_zarr_plate(tmp_path/'a.zarr', n_fields=1, times=1)
    write_zarr_plate(tmp_path/'b.zarr', n_fields=1, times=3)
    shutil.copytree(tmp_path/'b.zarr'/'C'/'3'/'0', tmp_path/'a.zarr'/'C'/'3'/'1')
    change_attributes(tmp_path/'a.zarr'/'C'/'3', 3, lambda told: told['well']['images'].append(dict(path='1')))
    assert list(find_images(tmp_path/'a.zarr', time='all').time)==[1, 1, 2, 3]
    first = find_images(tmp_path/'a.zarr', time='first')
    assert len(first)==2 and all(whole(row).shape==(4, 64, 64) for row in first.to_dict('records'))


def test_ome_zarr_plates_of_the_same_name_and_wells_listed_twice(tmp_path, told):
    pytest.importorskip('zarr')
    for day in ('monday', 'tuesday'): write_zarr_plate(tmp_path/day/'p.zarr', n_fields=1)
    def twice(told): told['plate']['wells'] += [told['plate']['wells'][0], dict(path='odd/x', rowIndex=99)]
    change_attributes(tmp_path/'monday'/'p.zarr', 3, twice)
    table, said = told(tmp_path)
    assert list(table.Id)==['monday/p_C03_f0', 'tuesday/p_C03_f0']
    assert 'well C03 is listed twice' in said and "well 'odd/x' is on no plate" in said


def test_a_path_within_an_ome_zarr_plate_means_its_fields(tmp_path):
    pytest.importorskip('zarr', minversion='3')
    plate = write_zarr_plate(tmp_path/'p.zarr', ['C/3', 'C/4', 'D/3'])
    table = find_images(tmp_path)
    for address in table.green:
        one = image_table(address)
        assert list(one.green)==[address] and one.equals(find_images([address]))
        assert one.iloc[0].to_dict()==table[table.green==address].iloc[0].to_dict()
    assert list(image_table(plate/'C'/'3').well)==['C03']*2 and list(find_images([plate/'C']).column)==[3, 3, 4, 4]
    assert list(find_images([plate/'C'/'3'/'0', plate/'D'/'3']).well)==['C03', 'D03', 'D03']
    assert np.array_equal(whole(image_table(plate/'D'/'3'/'1').iloc[0]), as_read(field(5)))
    row = image_table(plate/'C'/'9'/'0').iloc[0]
    assert row.Id=='p.zarr/C/9/0'
    with pytest.raises(ImageError, match='C/9/0'): ImageReader().array(row)
    series = write_zarr_plate(tmp_path/'s.zarr', ['C/3'], times=2)
    assert list(image_table(f'{series}/C/3/1#0@1').Id)==['s_C03_f1_t002']


def test_the_address_of_a_stack_means_its_field(tmp_path):
    write_yokogawa(tmp_path/'q', ('C03', 'C04'), planes=2)
    table = find_images(tmp_path/'q')
    assert '|' in table.green[1] and image_table(table.green[1]).equals(table[1:].reset_index(drop=True))


def test_a_file_of_a_plate_that_is_in_no_field_says_why(tmp_path, trained):
    plate = write_image_xpress(tmp_path/'plate7')
    thumb = plate/'TimePoint_1'/'plate7_C03_s1_w2_thumb.TIF'
    said = 'plate7_C03_s1_w2_thumb.TIF: a thumbnail of a plate is no field of view; give the pictures themselves'
    with pytest.raises(ImageError, match=said): image_table(thumb)
    with pytest.raises(ImageError, match=said): Predictor(trained[1])(thumb)
    with pytest.raises(ImageError, match='w4.TIF: belongs to a plate, but is of another channel or time point'):
        image_table(plate/'TimePoint_1'/'plate7_C03_s1_w4.TIF', 'rgb')
    series = write_yokogawa(tmp_path/'series', times=2)
    with pytest.raises(ImageError, match='is of another channel or time point'):
        image_table(next(series.glob('*T0002*C01.tif')), dict(blue=1, green=2, red=3, yellow=4), 'first')


def test_a_plate_without_its_index(tmp_path, told):
    "The names of the files are enough, but for the names of the channels"
    write_operetta(tmp_path/'plate7', [(3, 11)], index=None)
    with pytest.raises(ImageError, match='plate plate7: there are channel 1, channel 2, .*e.g. .*--channels red=ch1'):
        find_images(tmp_path)
    table, _ = told(tmp_path, dict(blue='ch1', green=2, red='3', yellow='ch04'))
    assert list(table.Id)==['plate7_C11_f1', 'plate7_C11_f2']
    assert np.array_equal(whole(table.iloc[0]), as_read(field(0)))


def test_an_index_that_is_cut_off_or_grows_without_end(tmp_path, told):
    write_operetta(tmp_path/'plate7', [(3, 11)])
    index = tmp_path/'plate7'/'Images'/'Index.xml'
    whole_text = index.read_text()
    mapping = dict(blue=1, green=2, red=3, yellow=4)
    index.write_text(whole_text[:1500])
    table, said = told(tmp_path, mapping)
    assert len(table)==2 and 'the index can not be read (it is no XML, or cut off' in said
    index.write_text('<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaa">]>' + whole_text.partition('?>')[2])
    assert 'defines words of its own' in told(tmp_path, mapping)[1]


def test_an_index_that_names_images_which_are_not_there(tmp_path, told, trained):
    lost = [f'r03c11f02p01-ch{k}sk1fk1fl1.tiff' for k in (1, 2, 3, 4)] + ['r04c02f01p01-ch3sk1fk1fl1.tiff']
    write_operetta(tmp_path/'plate7', [(3, 11), (4, 2)], lost=lost)
    table, said = told(tmp_path)
    assert '5 images that the index names are not there, the first is' in said
    assert 'wells lack images of channel 3 (Alexa 555): D02' in said.replace('1 well lacks', 'wells lack')
    predicted = Predictor(trained[1], device='cpu')(table).set_index('Id')
    assert predicted.error.ne('').to_dict()=={'plate7_C11_f1': False, 'plate7_C11_f2': True, 'plate7_D02_f1': True,
                                              'plate7_D02_f2': False}
    assert 'the plate lacks images of channel 3 (Alexa 555) here' in predicted.error['plate7_D02_f1']


def test_an_index_can_not_lead_out_of_its_folder(tmp_path, told):
    write_operetta(tmp_path/'plate7', [(3, 11)])
    index = tmp_path/'plate7'/'Images'/'Index.xml'
    index.write_text(index.read_text().replace('<URL>r03c11f01p01-ch1', '<URL>../../secret/r03c11f01p01-ch1'))
    table, _ = told(tmp_path/'plate7')
    assert not table.blue.str.contains('secret').any()


def test_a_mapping_of_what_is_not_there(tmp_path):
    write_image_xpress(tmp_path/'p')
    with pytest.raises(ImageError, match="plate7: no channel 'Alexa 448' for green: .*did you mean 'Alexa 488'"):
        find_images(tmp_path, dict(green='Alexa 448', blue=1))
    with pytest.raises(ImageError, match='no channel 9 for red: there are channel'): find_images(tmp_path, dict(red=9))
    with pytest.raises(ImageError, match=r'channel 1 \(DAPI\) is given for two channels'):
        find_images(tmp_path, dict(blue='DAPI', green=1))


def test_wells_with_different_channels(tmp_path, told):
    write_image_xpress(tmp_path/'p', ['C03', 'C04'])
    for file in (tmp_path/'p').rglob('*_C04_s1_w4.TIF'): file.unlink()
    table, said = told(tmp_path)
    assert list(table.absent)==['', 'channel 4 (Alexa 647)']
    assert '1 well lacks images of channel 4 (Alexa 647): C04' in said


def test_a_field_in_two_places_counts_once(tmp_path, told):
    write_yokogawa(tmp_path/'p')
    for file in list((tmp_path/'p').glob('*.tif')):
        shutil.copy(file, file.with_name(re.sub('L01', 'L02', file.name)))
    table, said = told(tmp_path)
    assert len(table)==1 and '4 images stand in two places and count once' in said


def test_plates_of_the_same_name(tmp_path):
    for day in ('monday', 'tuesday'): write_yokogawa(tmp_path/day)
    assert list(find_images(tmp_path).Id)==['monday/plate7_C03_f1', 'tuesday/plate7_C03_f1']


def test_sizes_of_pixels_that_differ_are_said(tmp_path, told):
    write_yokogawa(tmp_path/'p')
    file = tmp_path/'p'/'MeasurementDetail.mrf'
    file.write_text(file.read_text().replace('Ch="2" bts:HorizontalPixelDimension="0.325"',
                                             'Ch="2" bts:HorizontalPixelDimension="0.65"'))
    table, said = told(tmp_path)
    assert 'pixel sizes differ: channel 1 (405) 0.325 µm, channel 2 (488) 0.65 µm' in said
    assert table.pixel_size.tolist()==[.65]


def test_a_picture_of_another_depth_in_the_middle(tmp_path):
    write_yokogawa(tmp_path/'p', ['C03', 'C04', 'C05'])
    file = next((tmp_path/'p').glob('*_C04_*C02.tif'))
    tifffile.imwrite(file, (tifffile.imread(file)>>4).astype(np.uint8))
    found = verify_folder(tmp_path/'p', progress=False)
    problems = found.problems
    assert set(problems[problems.problem=='depths differ'].Id)=={'plate7_C04_f1'}


def test_a_slice_of_another_size(tmp_path, trained):
    write_yokogawa(tmp_path/'p', ['C03', 'C04'], planes=2)
    tifffile.imwrite(next((tmp_path/'p').glob('*_C04_*Z02C02.tif')), np.zeros((32, 32), np.uint16))
    predicted = Predictor(trained[1], reading=dict(z='max'), device='cpu')(tmp_path/'p').set_index('Id')
    assert predicted.error['plate7_C03_f1']==''
    assert 'the other planes of its stack have 64x64 px' in predicted.error['plate7_C04_f1']


@pytest.mark.parametrize('version', [2, 3])
def test_an_ome_zarr_plate_that_is_not_whole(tmp_path, told, trained, version):
    pytest.importorskip('zarr')
    path = write_zarr_plate(tmp_path/'plate7.zarr', ['C/3', 'C/4', 'C/5'], n_fields=1, version=version)
    shutil.rmtree(path/'C'/'4')
    shutil.rmtree(path/'C'/'5'/'0'/'0')
    table, said = told(tmp_path)
    assert list(table.well)==['C03', 'C05'] and 'well C04: no attributes' in said
    predicted = Predictor(trained[1], device='cpu')(table)
    assert predicted.error[0]=='' and 'plate7_C05_f0' in predicted.error[1]

    def leave(told): told['plate']['wells'][0]['path'] = '../../secret'
    change_attributes(path, version, leave)
    assert list(told(tmp_path)[0].well)==['C05']
    change_attributes(path, version, lambda told: told['plate'].update(wells='many'))
    with pytest.raises(ImageError, match='do not describe a plate'): find_images(tmp_path)


def test_verify_says_all_about_a_plate_and_names_stacks_by_their_first_file(tmp_path):
    write_image_xpress(tmp_path/'p', ['C03', 'C04'], planes=2)
    for file in (tmp_path/'p').rglob('*_C04_s1_w4.TIF'): file.unlink()
    said = str(verify_folder(tmp_path/'p', progress=False))
    assert 'well lacks images of channel 4' in said and 'DAPI is blue' in said
    assert 'plate7_C03_s1_w3.TIF and 1 more of its stack' in said and '|' not in said


def test_other_pictures_beside_a_plate(tmp_path):
    write_yokogawa(tmp_path/'p')
    for c in CHANNELS: tifffile.imwrite(tmp_path/f'A1_{c}.tif', np.zeros((64, 64), np.uint8))
    table = find_images(tmp_path)
    assert list(table.Id)==['A1', 'plate7_C03_f1'] and table.well[0]=='' and table['row'][1]==3
    assert 'channels' not in table.attrs


def test_a_model_remembers_the_channels_of_its_plate(tmp_path):
    "And finds those of another one by their dyes"
    write_image_xpress(tmp_path/'p')
    table = find_images(tmp_path/'p')
    assert set(table.channels)=={'red=Alexa 555, green=Alexa 488, blue=DAPI, yellow=Alexa 647'}
    assert table.attrs['channels']==dict(red='Alexa 555', green='Alexa 488', blue='DAPI', yellow='Alexa 647')
    other = write_image_xpress(tmp_path/'q', waves=('Hoechst', 'FITC', 'TRITC', 'Cy5'))
    again = find_images(other, table.attrs['channels'])
    assert np.array_equal(whole(again.iloc[0]), as_read(field(0)))
    two = find_images(write_image_xpress(tmp_path/'r', waves=('Hoechst', 'FITC')), table.attrs['channels'])
    assert two.red[0] is None and two.yellow[0] is None and two.blue[0].endswith('w1.TIF')


def test_from_the_command_line(tmp_path, trained, capsys):
    write_image_xpress(tmp_path/'p', ['C03', 'D12'], sites=2)
    model = str(trained[1])
    with pytest.warns(UserWarning, match='Alexa 488 is green'):
        assert main(['predict', str(tmp_path/'p'), '--model', model, '--out', str(tmp_path/'out.csv')])==0
    table = read_predictions(tmp_path/'out.csv')
    assert list(table.well)==['C03', 'C03', 'D12', 'D12'] and table.field.astype(int).tolist()==[1, 2, 1, 2]
    assert set(table.channels)=={'red=Alexa 555, green=Alexa 488, blue=DAPI, yellow=Alexa 647'}
    capsys.readouterr()
    other = ['--out', str(tmp_path/'b.csv'), '--channels', 'red=9']
    assert main(['predict', str(tmp_path/'p'), '--model', model, *other])==2
    assert 'no channel 9 for red' in capsys.readouterr().err
