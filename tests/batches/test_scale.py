"Pictures of a known scale are brought to that of training, and both are said."
import numpy as np
import pytest
import tifffile

from hpa_fastai.basics.errors import HPAError
from hpa_fastai.batches.loaders import HPADataLoaders
from hpa_fastai.batches.scale import describe_scale, usual_width
from hpa_fastai.data.files import find_images
from hpa_fastai.data.image_tables import image_table
from hpa_fastai.data.reader import ImageReader
from hpa_fastai.deploy.hub import read_otherwise
from hpa_fastai.deploy.loading import load_bundle
from hpa_fastai.deploy.predictor import Predictor
from hpa_fastai.simulate.atlas import simulate_atlas, simulate_fov
from hpa_fastai.train.learner import hpa_learner

pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')


def write(path, img, um):
    path.parent.mkdir(parents=True, exist_ok=True)
    names = dict(Channel=dict(Name=['tubulin', 'protein', 'DAPI', 'ER']))
    size = dict(PhysicalSizeX=um, PhysicalSizeXUnit='µm') if um else {}
    tifffile.imwrite(path, img, metadata=dict(axes='CYX', **size, **names))


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    "A model of pictures 41 µm wide: 64 px of 0.64 µm"
    folder = tmp_path_factory.mktemp('scale')
    simulate_atlas(folder/'a', n=40, size=64, seed=0, difficulty='easy', progress=False)
    for row in find_images(folder/'a'/'train').to_dict('records'):
        img = np.stack([planes for _,planes,_ in ImageReader().planes(row)])
        write(folder/'b'/'train'/f'{row["Id"]}.ome.tif', img, .64)
    (folder/'b'/'train.csv').write_bytes((folder/'a'/'train.csv').read_bytes())
    dls = HPADataLoaders.from_csv(folder/'b', size=32, bs=8, group='antibody', cache=False, progress=False)
    assert dls.settings.reader.field_width==pytest.approx(40.96)
    learn = hpa_learner(dls, 'lenet5', pretrained=False)
    return load_bundle(learn.save_bundle(folder/'model'))


@pytest.fixture(scope='module')
def large():
    "A picture four times as large, whose middle is the first"
    return np.asarray(simulate_fov([0], size=256, seed=3)[0])


def test_the_model_remembers_the_scale_of_its_training(model):
    assert model.settings.reader.field_width==pytest.approx(40.96)


def test_a_picture_of_another_magnification_is_brought_to_it(model, large, tmp_path):
    write(tmp_path/'same'/'A.ome.tif', large[:, 96:160, 96:160], .64)
    write(tmp_path/'wide'/'A.ome.tif', large, .64)
    write(tmp_path/'fine'/'A.ome.tif', large[:, 96:160, 96:160].repeat(2, 1).repeat(2, 2), .32)
    read = {name: model.settings.reader.array(find_images(tmp_path/name).iloc[0]).astype(int)
            for name in ('same', 'wide', 'fine')}
    assert np.abs(read['same']-read['wide']).mean()<2 and np.abs(read['same']-read['fine']).mean()<2
    squeezed = ImageReader(size=32).array(find_images(tmp_path/'wide').iloc[0]).astype(int)
    assert np.abs(read['same']-squeezed).mean()>5


def test_a_picture_without_a_scale_fills_the_network(model, large, tmp_path):
    write(tmp_path/'A.ome.tif', large, None)
    row = find_images(tmp_path).iloc[0]
    assert np.array_equal(model.settings.reader.array(row), ImageReader(size=32).array(row))
    assert describe_scale(find_images(tmp_path), model.settings.reader)==''


@pytest.mark.parametrize('um, flagged', [(.32, False), (.6, False), (.7, True), (.17, False), (.15, True)])
def test_a_scale_more_than_twice_off_is_a_flag(model, large, tmp_path, um, flagged):
    write(tmp_path/'A.ome.tif', large[:, :128, :128], um)  # as wide at 0.32 µm
    answer = Predictor(model, device='cpu')(tmp_path)
    assert ('other-scale' in answer['flags'].iloc[0])==flagged


def test_both_scales_are_said_once(model, large, tmp_path, capsys):
    for name in 'AB': write(tmp_path/f'{name}.ome.tif', large, .64)
    predictor = Predictor(model, device='cpu')
    for _ in range(2): predictor(tmp_path)
    said = capsys.readouterr().out
    assert said.count('0.64 µm a pixel are stated, so the pictures are 163.8 µm wide; the model learned 40.96 µm')==1
    assert 'the middle is read, 6 % of each (flag: other-scale)' in said


def test_the_index_of_a_plate_states_the_scale(model, large, tmp_path):
    write(tmp_path/'A.ome.tif', large, None)
    table = find_images(tmp_path)
    stated = table.assign(pixel_size=.64)
    reader = model.settings.reader
    assert not np.array_equal(reader.array(table.iloc[0]), reader.array(stated.iloc[0]))
    assert 'other-scale' in Predictor(model, device='cpu')(stated)['flags'].iloc[0]


def test_a_size_that_is_given_counts_more(model, large, tmp_path):
    write(tmp_path/'A.ome.tif', large, .64)
    row = find_images(tmp_path).iloc[0]
    given = read_otherwise(model, dict(pixel_size=.16)).settings.reader
    assert np.array_equal(given.array(row), ImageReader(size=32).array(row))  # 256 px of 0.16 µm are as wide


def test_half_of_the_pictures_must_state_it(tmp_path):
    for k in range(4): write(tmp_path/f'A{k}.ome.tif', np.zeros((4, 32, 32), np.uint8), .5 if k<2 else None)
    table = find_images(tmp_path)
    assert usual_width(table, ImageReader(16))==16 and usual_width(table[1:], ImageReader(16)) is None
    assert usual_width(image_table(np.zeros((4, 8, 8), np.uint8)), ImageReader(16)) is None


@pytest.mark.parametrize('width', [0, -1, float('nan'), 'wide'])
def test_a_width_that_is_none(width):
    with pytest.raises(HPAError, match='field_width=.*give the µm'): ImageReader(16, field_width=width)
