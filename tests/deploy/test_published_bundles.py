"Published models as bundles: gotten once, found by name, named by default, checked, and called what they are."
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from archive_server import on_archive, serving
from published_files import densenet_onnx, inception_onnx, subcell_files, test_vectors

from hpa_fastai.all import HPA28, find_images, simulate_atlas
from hpa_fastai.basics.errors import HPAError
from hpa_fastai.basics.paths import file_sha256
from hpa_fastai.cli.main import main
from hpa_fastai.data.reader import ImageReader
from hpa_fastai.deploy.bundle import BundleError
from hpa_fastai.deploy.loading import load_bundle, test_bundle as check_bundle
from hpa_fastai.deploy.predictor import Predictor
from hpa_fastai.interpret.prediction import predict
from hpa_fastai.deploy.published_bundles import default_model, fetch_model, published_models
from hpa_fastai.models.networks import NoWeights
from hpa_fastai.models.registry import PUBLISHED

NAME = 'hpa-densenet121'


@pytest.fixture(scope='session')
def files(tmp_path_factory):
    "Files in the published forms with random weights, and the networks that they were made of"
    folder = tmp_path_factory.mktemp('published')
    densenet, reference = densenet_onnx(folder/'densenet_model.onnx')
    test_vectors(folder, reference, NAME)
    cells = folder/'cells'
    cells.mkdir()
    inception, of_cells = inception_onnx(cells/'bestfitting-inceptionv3-single-cell.onnx')
    test_vectors(cells, of_cells, 'hpa-inception-v3-cells')
    return {NAME: (folder, reference), 'hpa-inception-v3-cells': (cells, of_cells)}


@pytest.fixture
def archive(files, tmp_path, monkeypatch):
    "An archive on this machine that the registry names, an empty folder of models, and an empty working folder"
    for name in ('HPA_FASTAI_MIRROR', 'HF_HUB_OFFLINE', 'TRANSFORMERS_OFFLINE', 'http_proxy', 'HTTP_PROXY'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('HPA_FASTAI_MODELS', str(tmp_path/'models'))
    (tmp_path/'here').mkdir()
    monkeypatch.chdir(tmp_path/'here')
    with serving() as archive:
        for name, (folder, _) in files.items():
            hashed = {file.name for file in PUBLISHED[name].files}
            monkeypatch.setitem(PUBLISHED, name, on_archive(PUBLISHED[name], archive, folder, hashed, f'{name}-'))
        yield archive


@pytest.fixture(scope='session')
def gotten(files, tmp_path_factory):
    "A folder with the bundle of the densenet, made once for all tests that only read it"
    folder = tmp_path_factory.mktemp('gotten')
    with pytest.MonkeyPatch.context() as m:
        m.setenv('HPA_FASTAI_MODELS', str(folder))
        model, source = PUBLISHED[NAME], files[NAME][0]
        known = dataclasses.replace(model.files[0], sha256=file_sha256(source/model.files[0].name))
        m.setitem(PUBLISHED, NAME, dataclasses.replace(model, files=(known,)))
        fetch_model(NAME, source, progress=False)
    return folder


@pytest.fixture
def here(archive, gotten, tmp_path):
    "The same folder of models, copied"
    shutil.copytree(gotten, tmp_path/'models')
    return tmp_path/'models'


@pytest.fixture(scope='session')
def plate(tmp_path_factory):
    "Two fields of view of simulated cells"
    folder = tmp_path_factory.mktemp('plate')
    simulate_atlas(folder, n=2, size=128, seed=1, balance='even', difficulty='easy', progress=False)
    return folder/'train'


def test_a_model_is_downloaded_checked_and_becomes_a_bundle(archive, tmp_path):
    folder = fetch_model(NAME, progress=False)
    assert folder == tmp_path/'models'/NAME
    assert check_bundle(folder) < 1e-4
    bundle = load_bundle(folder)
    record = bundle.config['published']
    assert (record['name'], record['checked'], bundle.labels) == (NAME, 'outputs', HPA28)
    assert record['difference'] < 1e-4
    assert 'which it reproduces' in (folder/'README.md').read_text(encoding='utf-8')
    assert [o.name for o in (tmp_path/'models').iterdir() if not o.name.endswith('.lock')] == [NAME]
    before = len(archive.asked)
    assert fetch_model(NAME, progress=False) == folder and len(archive.asked) == before


def test_a_folder_is_predicted_as_the_published_network_would(here, files, plate):
    reference = files[NAME][1]
    df = predict(plate, model=NAME, progress=False, precision='full')
    reader = ImageReader(size=1024)
    x = torch.stack([torch.from_numpy(reader.array(r)) for r in find_images(plate).to_dict('records')]).float()/255
    with torch.no_grad(): probs, embeddings = reference(x)
    assert np.abs(df[list(HPA28.classes)].to_numpy(float) - probs.numpy()).max() < 1e-5
    expected = (probs.numpy() > .5) | (np.arange(28) == probs.numpy().argmax(1)[:, None])
    assert df.Predicted.tolist() == HPA28.decode(expected)
    predictor = Predictor(NAME, device='cpu')
    places = [{predictor.readers[0]: (o*255).round().byte()} for o in x[:1]]
    assert np.abs(predictor.infer(places)[1][0] - embeddings[:1].numpy()).max() < 1e-4


def test_embeddings_without_pooling_are_the_published_ones(here, files):
    bundle = load_bundle(here/NAME)
    assert bundle.model.n_features == 1024


def test_the_default_answers_and_says_so(here, plate, capsys):
    assert main(['predict', str(plate), '--no-progress']) == 0
    out, err = capsys.readouterr()
    line = next(o for o in err.splitlines() if 'No model was named' in o)
    assert NAME in line and 'MIT' in line and str(here/NAME) in line
    assert len(pd.read_csv('predictions.csv')) == 2


def test_the_first_time_the_line_names_what_is_downloaded(archive, capsys):
    default_model()
    assert '36 MB, downloaded once' in capsys.readouterr().err


def test_a_model_of_ones_own_comes_first(archive, trained, plate, capsys):
    shutil.copytree(trained[1], 'hpa_model')
    assert str(default_model()) == 'hpa_model'
    assert main(['predict', str(plate), '--no-progress']) == 0
    assert 'No model was named' not in capsys.readouterr().err and archive.asked == []


def test_none_is_neither(archive, plate, capsys):
    assert main(['predict', str(plate), '--model', 'none']) == 2
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and 'hpa_fastai train' in err and '--from FILE' in err and archive.asked == []


def test_offline_the_line_says_what_to_carry_and_how_to_do_without(archive, plate, monkeypatch, capsys):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    assert main(['predict', str(plate), '--no-progress']) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert '--from' in last and 'hpa_fastai train' in last and PUBLISHED[NAME].page in last
    with pytest.raises(NoWeights): predict(plate, progress=False)


@pytest.mark.slow
def test_cells_have_a_default_of_their_own(archive, plate, capsys):
    assert main(['cells', str(plate), '--no-progress']) == 0
    err = capsys.readouterr().err
    assert 'hpa-inception-v3-cells answers' in err
    cells = pd.read_csv('cells.csv', keep_default_na=False)
    assert (cells.cell > 0).all() and cells.Predicted.ne('').all()


def test_a_carried_file_and_the_list(archive, files, capsys):
    assert main(['models']) == 0
    assert 'yes' not in capsys.readouterr().out
    served = len(archive.asked)
    assert main(['models', 'get', NAME, '--from', str(files[NAME][0]), '--no-progress']) == 0
    assert len(archive.asked) == served  # all was there
    capsys.readouterr()
    main(['models'])
    out = capsys.readouterr().out
    assert 'yes: agrees with the published test vectors' in out and 'MIT' in out
    table = published_models().set_index('name')
    assert table.here[NAME] and not table.here['subcell-vit']
    assert main(['test-model', NAME]) == 0


@pytest.mark.parametrize('line', [['models', 'get'], ['models', 'list', NAME], ['models', 'get', 'hpa-densnet']])
def test_wrong_usage_is_one_line(archive, line, capsys):
    assert main(line) == 2 and capsys.readouterr().err.count('\n') == 1


@pytest.mark.slow
def test_another_file_is_unverified_wherever_it_is_used(archive, plate, tmp_path):
    other, _ = densenet_onnx(tmp_path/'fold3.onnx', seed=3)
    with pytest.raises(HPAError, match='no-verify'): fetch_model(NAME, other, progress=False)
    assert not (tmp_path/'models'/NAME).exists()
    folder = fetch_model(NAME, other, verify=False, progress=False)
    assert 'UNVERIFIED' in (folder/'README.md').read_text(encoding='utf-8')
    assert published_models().set_index('name').checked[NAME] == 'unverified'
    with pytest.warns(UserWarning, match='unverified'): predict(plate, model=NAME, progress=False)
    with pytest.warns(UserWarning, match='unverified'): assert main(['predict', str(plate), '--no-progress']) == 0


def test_a_verified_model_says_nothing(here, plate):
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        Predictor(NAME, device='cpu')


CHANGES = {
    'classes': lambda c: c['labels'].update(classes=c['labels']['classes'][::-1]),
    'input': lambda c: c['preprocess'].update(mean=[0.]*4),
    'task': lambda c: c['published'].update(task='cells'),
    'size of reading': lambda c: c['reader'].update(size=512),
    'checksums': lambda c: c['published'].update(files={'densenet_model.onnx': '0'*64}),
}


@pytest.mark.parametrize('part', CHANGES)
def test_an_altered_bundle_is_refused(here, plate, part, capsys):
    config = json.loads((here/NAME/'config.json').read_text(encoding='utf-8'))
    CHANGES[part](config)
    (here/NAME/'config.json').write_text(json.dumps(config), encoding='utf-8')
    with pytest.raises(BundleError, match=f'its {part} is not that of the published model'): load_bundle(here/NAME)
    assert main(['predict', str(plate)]) == 2
    assert f'models get {NAME} --force' in capsys.readouterr().err


@pytest.mark.slow
def test_what_the_files_need_otherwise_can_be_said(here, plate, capsys):
    one = ['predict', str(plate), '--no-progress', '--model', NAME]
    assert main([*one, '--out', 'plain.csv']) == 0
    assert main([*one, '--out', 'stretched.csv', '--scale', 'percentile']) == 0
    plain, stretched = (pd.read_csv(f).Nucleoplasm for f in ('plain.csv', 'stretched.csv'))
    assert np.abs(plain - stretched).max() > 1e-4
    inside = predict(plate, model=NAME, reading=dict(scale='percentile'), progress=False).Nucleoplasm
    assert np.allclose(inside.astype(float), stretched, atol=1e-5)
    assert main([*one, '--out', 'plain.csv', '--scale', 'percentile']) == 2  # the table was made otherwise
    assert 'plain.csv' in capsys.readouterr().err


def test_the_same_file_again_is_no_other(here, files):
    assert fetch_model(NAME, files[NAME][0], progress=False) == here/NAME


@pytest.mark.slow
def test_several_processes_get_one_model(archive, tmp_path, files):
    "Each of them ends with the same bundle, whoever made it"
    code = ("import sys; from hpa_fastai.deploy.published_bundles import fetch_model; "
            f"print(fetch_model('{NAME}', sys.argv[1], verify=False, progress=False))")
    run = [sys.executable, '-c', code, str(files[NAME][0]/'densenet_model.onnx')]
    started = [subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [p.communicate() for p in started]
    assert [p.returncode for p in started] == [0, 0], said
    assert {out.strip() for out, _ in said} == {os.environ['HPA_FASTAI_MODELS'] + f'/{NAME}'}
    assert check_bundle(tmp_path/'models'/NAME) < 1e-4


@pytest.mark.slow
def test_subcell_has_no_test_vectors_and_says_so(archive, tmp_path, monkeypatch):
    made, reference = subcell_files(tmp_path, n_heads=2)
    model = PUBLISHED['subcell-vit']
    known = dataclasses.replace(model.files[0], sha256=file_sha256(made[0]))
    monkeypatch.setitem(PUBLISHED, 'subcell-vit', dataclasses.replace(model, files=(known, *model.files[1:])))
    folder = fetch_model('subcell-vit', tmp_path, progress=False)
    bundle = load_bundle(folder)
    assert (bundle.config['published']['checked'], bundle.config['model']['heads']) == ('file', 2)
    assert published_models().set_index('name').checked['subcell-vit'] == 'published file; no test vectors exist'
    x = torch.rand(1, 4, 448, 448, generator=torch.Generator().manual_seed(0))
    probs, embedding = bundle.run(x)
    with torch.no_grad(): expected = reference(x)
    assert np.abs(probs - expected[0].numpy()).max() < 1e-5
    assert np.abs(embedding - expected[1].numpy()).max() < 1e-4


@pytest.mark.parametrize('line', [
    ['predict', 'nowhere'], ['predict', 'nowhere', '--watch'], ['cells', 'nowhere'], ['evaluate', 'nowhere']])
def test_nothing_is_downloaded_for_a_folder_that_is_not_there(archive, line, capsys):
    assert main([*line, '--no-progress']) == 2
    assert capsys.readouterr().err.count('\n') == 1 and archive.asked == []


def test_what_stands_in_the_place_of_the_model_is_left_alone(here):
    (here/NAME/'config.json').unlink()
    for force in (False, True):
        with pytest.raises(BundleError, match='in the place of the model'):
            fetch_model(NAME, force=force, progress=False)
    assert (here/NAME/'model.safetensors').is_file()


def test_a_model_that_lost_its_weights_is_made_anew(here):
    (here/NAME/'model.safetensors').unlink()
    assert check_bundle(fetch_model(NAME, progress=False)) < 1e-4


def test_test_vectors_that_are_none_are_refused(here):
    with np.load(here/NAME/'sample.npz') as arrays: arrays = dict(arrays)
    for x in (arrays['published_input'][:, :3], arrays['published_input'][:0]):
        np.savez(here/NAME/'sample.npz', **arrays | dict(published_input=x))
        with pytest.raises(BundleError, match="don't belong together"): check_bundle(here/NAME)
