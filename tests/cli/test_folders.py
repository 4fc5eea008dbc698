"A folder with names of its own by every door: 12-bit TIFFs called after dyes, in a shell and from Python."
import json

import numpy as np
import pandas as pd
import pytest
import tifffile

from cell_models import FIELD, save_model
from hpa_fastai.basics.errors import ImageError
from hpa_fastai.batches.loaders import HPADataLoaders
from hpa_fastai.cli.main import main
from hpa_fastai.data.labels import HPA28
from hpa_fastai.formats.names import CHANNELS
from hpa_fastai.data.reader import ImageReader
from hpa_fastai.data.verify import verify_folder
from hpa_fastai.deploy.predictor import Predictor
from hpa_fastai.interpret.prediction import predict
from hpa_fastai.simulate.atlas import simulate_fov


DYES = dict(red='AF555', green='AF488', blue='DAPI', yellow='AF647')
SAID = ','.join(f'{c}={t}' for c, t in DYES.items())


def write_folder(folder, tokens, n=12):
    "Fields of view as a confocal writes them: four 12-bit pictures in 16-bit files, one a dye"
    folder.mkdir()
    rows = []
    for k in range(n):
        id_ = f'Exp12_A{k//4 + 1:02}_s{k%4 + 1}'
        img = np.asarray(simulate_fov([k%3], size=64, seed=k, difficulty='easy')[0]).astype(np.uint16)*16
        for token, plane in zip(tokens, img): tifffile.imwrite(folder/f'{id_}_{token}.tif', plane)
        rows.append((id_, str(k%3)))
    pd.DataFrame(rows, columns=['Id', 'Target']).to_csv(folder.parent/'labels.csv', index=False)
    return folder


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp('place')
    write_folder(place/'dyes', DYES.values())
    write_folder(place/'waves', ('w1', 'w2', 'w3', 'w4'))
    write_folder(place/'three', ('AF555', 'AF488', 'DAPI'))
    write_folder(place/'colours', CHANNELS)
    lines = ['Id;red;green;blue;yellow']
    for k in range(12):
        id_ = f'Exp12_A{k//4 + 1:02}_s{k%4 + 1}'
        lines.append(';'.join([id_, *(f'dyes/{id_}_{token}.tif' for token in DYES.values())]))
    (place/'paths.csv').write_text('\n'.join(lines))
    (place/'paths.tsv').write_text('\n'.join(lines).replace(';', '\t'))
    save_model(place/'model', FIELD, labels=HPA28)
    return place


def shell(capsys, *args):
    code = main(list(map(str, args)))
    printed = capsys.readouterr()
    return code, printed.out, ' '.join(printed.err.split())


def test_verify(place, capsys):
    code, out, err = shell(capsys, 'verify', place/'dyes', '--csv', place/'labels.csv', '--no-progress')
    assert code==0 and '12 fields of view in 48 files' in out
    assert 'AF488 is green (protein of interest), DAPI is blue (nucleus)' in out and f'say --channels {SAID}' in out
    code, out, err = shell(capsys, 'verify', place/'dyes', '--channels', SAID, '--no-progress')
    assert code==0 and '12 fields of view in 48 files' in out and 'are dyes' not in out


DOORS = {
    'verify': ['verify', 'IMAGES', '--no-progress'],
    'explore': ['explore', 'IMAGES', '--csv', 'CSV', '--out', 'OUT.html'],
    'train': ['train', 'PLACE', '--images', 'IMAGES', '--csv', 'CSV', '--dry-run', '--pretrained', 'no',
              '--out', 'OUT'],
    'folds': ['train', 'PLACE', '--images', 'IMAGES', '--csv', 'CSV', '--folds', '3', '--pretrained', 'no',
              '--arch', 'lenet5', '--out', 'OUT', '--no-progress'],
    'compare': ['compare', 'PLACE', '--images', 'IMAGES', '--csv', 'CSV', '--archs', 'lenet5', '--out', 'OUT',
                '--no-progress'],
    'predict': ['predict', 'IMAGES', '--model', 'MODEL', '--out', 'OUT.csv', '--no-progress'],
    'evaluate': ['evaluate', 'PLACE', '--images', 'IMAGES', '--csv', 'CSV', '--model', 'MODEL', '--no-progress'],
    'calibrate': ['calibrate', 'MODEL', 'PLACE', '--images', 'IMAGES', '--csv', 'CSV', '--out', 'OUT', '--no-progress'],
    'report': ['report', 'IMAGES', '--csv', 'CSV', '--out', 'OUT.html', '--no-progress']}


def words(place, door, images, out):
    known = dict(IMAGES=place/images, CSV=place/'labels.csv', PLACE=place, MODEL=place/'model')
    return [str(known.get(word, word)).replace('OUT', str(out)) for word in DOORS[door]]


@pytest.mark.parametrize('door', DOORS)
def test_names_that_nobody_knows_stop_every_command_before_any_work(place, capsys, tmp_path, door):
    code, out, err = shell(capsys, *words(place, door, 'waves', tmp_path/'out'))
    assert code==2 and 'plate Exp12: there are channel 1, channel 2, channel 3, channel 4: say which is red' in err
    assert '--channels red=w1,green=w2,blue=w3,yellow=w4' in err and 'channels=' not in err
    assert not list(tmp_path.glob('out*/fold*')) and not list(tmp_path.glob('*.csv*'))


@pytest.mark.parametrize('door', ['verify', 'train', 'predict', 'evaluate'])
@pytest.mark.parametrize('images', ['waves', 'paths.csv', 'paths.tsv'])
def test_what_is_said_or_listed_is_read_by_every_command(place, capsys, tmp_path, door, images):
    said = ['--channels', 'red=w1,green=w2,blue=w3,yellow=w4'] if images=='waves' else []
    code, out, err = shell(capsys, *words(place, door, images, tmp_path/'out'), *said)
    assert code==0, err
    if door=='predict':
        table = pd.read_csv(tmp_path/'out.csv', keep_default_na=False)
        assert len(table)==12 and (table.error=='').all() and table.Id[0]=='Exp12_A01_s1'


def test_the_same_numbers_whatever_the_files_are_called(place, tmp_path):
    def probs(images, **reading): return predict(place/images, place/'model', progress=False, **reading)
    colours = probs('colours')
    with pytest.warns(UserWarning, match='are dyes'): dyes = probs('dyes')
    waves = probs('waves', reading=dict(channels=dict(zip(CHANNELS, ('w1', 'w2', 'w3', 'w4')))))
    assert dyes.equals(colours) and waves[list(colours)].equals(colours) and probs('paths.csv').equals(colours)
    assert set(waves.channels)=={'red=w1, green=w2, blue=w3, yellow=w4'} and waves.well[0]=='A01'


@pytest.mark.parametrize('door', ['train', 'folds', 'predict', 'evaluate', 'calibrate'])
def test_three_dyes_for_four_channels_are_said_before_any_work(place, capsys, tmp_path, door):
    code, out, err = shell(capsys, *words(place, door, 'three', tmp_path/'out'))
    assert code==2 and 'none of the 12 fields of view has a yellow channel (ER)' in err
    assert '--channels red=AF555,green=AF488,blue=DAPI' in err and '--missing zero' in err


def test_three_dyes_are_read_when_that_is_said(place, capsys, tmp_path):
    args = words(place, 'predict', 'three', tmp_path/'out')
    for k, way in enumerate((['--channels', 'rgb'], ['--missing', 'zero'])):
        code, out, err = shell(capsys, *args, '--force', *way)
        assert code==0 and 'could not be read' not in err


def test_a_model_remembers_what_its_files_were_called(place, tmp_path):
    waves = dict(zip(CHANNELS, ('w1', 'w2', 'w3', 'w4')))
    for images, reader in (('waves', ImageReader(channels=waves)), ('dyes', None)):
        dls = HPADataLoaders.from_csv(
            place, 'labels.csv', images, size=64, bs=4, cache=False, reader=reader, progress=False)
        assert dls.settings.reader.channels==(waves if images=='waves' else DYES)
    save_model(tmp_path/'model', dls.settings, labels=HPA28)
    assert json.loads((tmp_path/'model'/'config.json').read_text())['reader']['channels']==DYES
    predictor = Predictor(tmp_path/'model', 'cpu')
    assert predictor.channels==DYES
    for images in ('dyes', 'colours'): assert (predictor(place/images)['error']=='').all()
    with pytest.raises(ImageError, match='plate Exp12: .*say which is red'):
        predictor(place/'waves')


def test_python_says_it_in_python(place):
    with pytest.raises(ImageError, match=r"channels=\{'red': 'w1', 'green': 'w2', 'blue': 'w3', 'yellow': 'w4'\}"):
        verify_folder(place/'waves', progress=False)
