"A model knows the images that made it, and says so where it is scored or calibrated on them."
import json
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
import tifffile

from hpa_fastai.all import Predictor, calibrate_model, find_images, load_bundle, simulate_atlas
from hpa_fastai.cli.main import main
from hpa_fastai.deploy.bundle import picture_digest, picture_digests, seen_by
from hpa_fastai.deploy.predictor import locate

END = 'this is no score for new images'


@pytest.fixture(scope='module')
def head(small_atlas, tmp_path_factory):
    "A model of which only the last layer was fitted, so that all images trained it"
    from hpa_fastai.all import HPADataLoaders, hpa_learner
    folder = tmp_path_factory.mktemp('head')
    dls = HPADataLoaders.from_csv(small_atlas, size=48, bs=16, group='antibody', cache=folder/'cache', progress=False)
    learn = hpa_learner(dls, 'smallresnet')
    with learn.no_bar(), learn.no_logging(): learn.fit_progressive(sizes=(48,), fine_tune=False, verbose=False)
    return learn.save_bundle(folder/'hpa_model', note=False)


@pytest.fixture(scope='module')
def new(tmp_path_factory):
    folder = tmp_path_factory.mktemp('new')
    simulate_atlas(folder, n=90, size=64, balance='even', seed=5, difficulty='easy', progress=False)
    return folder


def score(data, model, capsys):
    assert main(['evaluate', str(data), '--model', str(model), '--no-progress']) == 0
    return capsys.readouterr().out


def test_evaluate_says_which_images_made_the_model(small_atlas, trained, head, new, capsys):
    learn, model = trained
    n, n_valid = len(learn.dls.train_ds), len(learn.dls.valid_ds)
    assert f'{n} of these 90 images trained the model and {n_valid} set its thresholds: {END}' in score(
        small_atlas, model, capsys)
    assert f'90 of these 90 images trained the model: {END}' in score(small_atlas, head, capsys)
    for bundle in (model, head): assert END not in score(new, bundle, capsys)


def test_a_picture_is_known_by_its_pixels_and_not_by_its_name(small_atlas, head, new, tmp_path):
    bundles, known, others = [load_bundle(head)], find_images(small_atlas/'train'), find_images(new/'train')
    for row in known.iloc[:5].itertuples(): shutil.copy(row.green, tmp_path/f'other{row.Index}_green.png')
    copies = find_images(tmp_path)
    assert seen_by(bundles, copies) == f'5 of these 5 images trained the model: {END}'
    assert seen_by(bundles, others.assign(Id=known.Id)) == ''
    assert seen_by(bundles, locate([np.zeros((4, 8, 8), np.uint8)])) == ''


@pytest.mark.parametrize('size', [200, 1600])
def test_pictures_with_the_same_dark_middle_differ(head, tmp_path, size):
    bundle = load_bundle(head)
    for number in range(6):
        pixels = np.zeros((size, size), np.uint8)
        pixels[:size//4], pixels[-size//4:] = 20 + number, 40 + number
        tifffile.imwrite(tmp_path/f'{number}_green.tif', pixels)
    table = find_images(tmp_path)
    bundle.config['seen'] = dict(trained=picture_digests(table[:1]), fitted='')
    assert seen_by([bundle], table[1:]) == ''
    assert '1 of these 6 images' in seen_by([bundle], table)


def test_a_picture_that_is_in_no_file_is_neither_kept_nor_compared(head):
    bundle, table = load_bundle(head), locate([np.zeros((4, 8, 8), np.uint8)])
    addresses = pd.DataFrame(dict(Id=['A01_s1'], green=['memory://plate/A01_s1_green.png']))
    for rows in (table, addresses, addresses.assign(green=3)):
        bundle.config['seen'] = dict(trained=picture_digests(rows), fitted='')
        assert bundle.config['seen']['trained'] == '' and seen_by([bundle], rows) == ''
        assert picture_digest(rows.iloc[0]) == ''


def make_learner(data, folder, **kwargs):
    from hpa_fastai.all import HPADataLoaders, hpa_learner
    dls = HPADataLoaders.from_csv(data, size=32, bs=16, cache=folder/f'cache of {data.name}', progress=False)
    return hpa_learner(dls, 'lenet5', **{'pretrained': False, **kwargs})


@pytest.mark.filterwarnings('ignore')
def test_what_trained_a_model_is_kept_by_those_that_go_on_from_it(small_atlas, new, tmp_path):
    older, newer = find_images(small_atlas/'train'), find_images(new/'train')
    learn = make_learner(small_atlas, tmp_path)
    n = len(learn.dls.train_ds)
    for name, data in (('first', new), ('second', new)):
        file = learn.save_bundle(tmp_path/name)
        learn = make_learner(data, tmp_path, pretrained=file)
        bundles = [load_bundle(learn.save_bundle(tmp_path/f'after {name}'))]
        assert seen_by(bundles, older) == f'{n} of these 90 images trained the model: {END}'
        assert seen_by(bundles, newer) == f'{len(learn.dls.train_ds)} of these 90 images trained the model: {END}'


@pytest.mark.filterwarnings('ignore')
def test_only_the_images_of_a_fit_set_the_thresholds(small_atlas, new, tmp_path):
    older, newer = find_images(small_atlas/'train'), find_images(new/'train')
    learn = make_learner(small_atlas, tmp_path)
    n, n_valid = len(learn.dls.train_ds), len(learn.dls.valid_ds)
    trained = f'{n} of these 90 images trained the model'
    def said(table): return seen_by([load_bundle(learn.save_bundle(tmp_path/'model', force=True))], table)
    assert said(older) == f'{trained}: {END}'
    learn.fit_thresholds()
    fitted = f'{trained} and {n_valid} set its thresholds: {END}'
    assert said(older) == fitted
    with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=20, show_plot=False)
    assert said(older) == fitted and 'thresholds' in learn.fitted_here
    learn.fit_thresholds(dl=make_learner(new, tmp_path).dls.valid)
    assert said(older) == f'{trained}: {END}'
    assert 'set its thresholds' in said(newer) and 'trained' not in said(newer)
    learn.thresholds = .5
    assert said(newer) == ''


def test_models_that_decide_together_and_models_from_before(head, trained, small_atlas):
    table = find_images(small_atlas/'train')
    both = Predictor([trained[1], trained[1]], device='cpu').bundles
    assert seen_by(both, table) == seen_by(both[:1], table)
    for bundle in both: bundle.config['seen'] = None
    assert seen_by(both, table) == ''
    one = json.loads((head/'config.json').read_text())
    del one['seen']
    (head/'config.json').write_text(json.dumps(one))
    assert load_bundle(head).config['seen'] is None


def test_calibrate_says_it_and_remembers_its_images(small_atlas, trained, new, tmp_path, capsys):
    with pytest.warns(UserWarning, match='of these 90 images trained the model'):
        calibrate_model(trained[1], small_atlas, tmp_path/'same', progress=False)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        calibrate_model(trained[1], new, tmp_path/'calibrated', progress=False)
    assert not any('trained the model' in str(o.message) for o in told)
    assert f'90 of these 90 images set its thresholds: {END}' in score(new, tmp_path/'calibrated', capsys)
    assert f'{len(trained[0].dls.train_ds)} of these 90 images trained' in score(small_atlas, tmp_path/'same', capsys)


def test_pictures_in_a_tar_are_recognised(small_atlas, tmp_path):
    "By their bytes there, not by the tar"
    from hpa_fastai.data.packing import pack_images
    for name in ('one', 'two'): pack_images(small_atlas/'train', tmp_path/name, size=64, progress=False)
    packed = [find_images(tmp_path/name).to_dict('records') for name in ('one', 'two')]
    digests = [list(map(picture_digest, rows)) for rows in packed]
    assert digests[0] == digests[1] and len(set(digests[0])) == 90 and '' not in digests[0]
