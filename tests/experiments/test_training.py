"Where a training starts: the best weights that can be had, said in one line, without waiting for what is not there."
import time
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from archive_server import serving
from published_files import densenet_onnx
from published_files import test_vectors as vectors
from published_starts import draw_network, save_weights

from hpa_fastai.basics.errors import HPAError
from hpa_fastai.basics.paths import file_sha256
from hpa_fastai.batches.loaders import HPADataLoaders
from hpa_fastai.experiments import starts
from hpa_fastai.experiments.starts import auto_learner, find_start
from hpa_fastai.data.label_tables import read_labels
from hpa_fastai.experiments.training import parts_unsaid, train_model, warn_of_parts
from hpa_fastai.models.networks import NoWeights
from hpa_fastai.models.registry import PUBLISHED

BEST = 'hpa-densenet121'


@pytest.fixture
def network(monkeypatch, tmp_path):
    "What is on the machine and what answers, after how many seconds; `asked` tells what was asked for"
    state = SimpleNamespace(kept=False, answers=(), asked=[], seconds=0, models=tmp_path/'models')
    state.models.mkdir()
    for name in ('HF_HUB_OFFLINE', 'TRANSFORMERS_OFFLINE', 'HPA_FASTAI_MIRROR'): monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('HPA_FASTAI_MODELS', str(state.models))
    def is_online(url):
        state.asked.append(url)
        time.sleep(state.seconds)
        return any(part in url for part in state.answers)
    monkeypatch.setattr(starts, 'is_online', is_online)
    monkeypatch.setattr(starts, 'kept_weights', lambda arch: 'model.safetensors' if state.kept else None)
    return state


@pytest.mark.parametrize('kept, answers, name, words', [
    (False, (), 'smallresnet', 'which knows simulated cells: no weights of hpa-densenet121'),
    (False, ('huggingface',), 'resnet18', 'which knows photographs: no weights of hpa-densenet121, which knows cells'),
    (False, ('zenodo', 'huggingface'), BEST, ' MB to download once); --arch resnet18'),
    (False, ('zenodo',), BEST, 'MIT licence'),
    (True, (), 'resnet18', 'can\'t be reached'),
])
def test_the_best_that_can_be_had(network, kept, answers, name, words):
    network.kept, network.answers = kept, answers
    found, said = find_start()
    assert found == name and said.startswith(f'Starting with {name}') and words in said and '\n' not in said
    assert len(network.asked) == 2 - kept


def test_nothing_is_asked_where_the_best_is_kept(network):
    (network.models/f'{BEST}.safetensors').touch()
    name, said = find_start()
    assert (name, network.asked) == (BEST, []) and 'on this machine' in said


def test_nothing_is_asked_where_downloads_are_forbidden(network, monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    name, said = find_start()
    assert (name, network.asked) == ('smallresnet', []) and 'HF_HUB_OFFLINE is set' in said


def test_a_machine_without_a_network_waits_once(network):
    network.seconds, start = .5, time.monotonic()
    find_start()
    assert len(network.asked) == 2 and time.monotonic() - start < .9


def test_what_breaks_off_gives_way_to_the_next_best(network, small_atlas, monkeypatch, capsys):
    network.answers, tried = ('zenodo',), []
    def make(dls, arch, pretrained):
        tried.append(arch)
        if arch == BEST: raise NoWeights('zenodo.org: the server is busy; try again later')
        return SimpleNamespace(arch=arch)
    monkeypatch.setattr(starts, 'hpa_learner', make)
    monkeypatch.setattr(starts, 'check_loaders', lambda *_: None)
    assert auto_learner(None).arch == 'smallresnet' and tried == [BEST, 'smallresnet']
    first, second = capsys.readouterr().out.splitlines()
    assert 'MB to download once' in first and 'since zenodo.org: the server is busy; hpa_fastai models get' in second
    with pytest.raises(NoWeights, match='the server is busy'): auto_learner(None, pretrained=True)
    with pytest.raises(NoWeights): auto_learner(None, BEST, pretrained=True)
    assert auto_learner(None, pretrained=False).arch == 'smallresnet'
    monkeypatch.setattr(starts, 'hpa_learner', lambda dls, arch, pretrained: pretrained and make(dls, BEST, True))
    auto_learner(None, BEST)
    assert 'Training from scratch: zenodo.org: the server is busy.' in capsys.readouterr().out


def test_a_file_says_which_network_it_is_for(network, small_atlas, tmp_path):
    dls = HPADataLoaders.from_csv(small_atlas, size=64, bs=8, cache=tmp_path/'cache', progress=False)
    file = save_weights(draw_network(BEST), tmp_path, BEST)
    learn = auto_learner(dls, pretrained=file)
    assert learn.model.config['arch'] == BEST and network.asked == []


def test_train_takes_the_published_network_by_itself(network, small_atlas, tmp_path, capsys):
    "The head alone, from what is kept on this machine, to a bundle that sees pictures as its weights do"
    save_weights(draw_network(BEST), network.models, BEST)
    learn = train_model(small_atlas, tmp_path/'model', size=64, cache=tmp_path/'cache', progress=False)
    said = capsys.readouterr().out
    assert said.count('\n') == 2 and f'Starting with {BEST}, which knows cells of the real atlas' in said
    assert f'{BEST} at 64 px on ' in said and 'only the last layer is trained' in said
    settings = PUBLISHED[BEST].settings
    assert (learn.dls.settings.mean, learn.dls.settings.std) == (settings.mean, settings.std)
    assert torch.isfinite(learn.get_preds()[0]).all() and learn.history['started_from'].startswith(BEST)


def test_from_an_archive_to_the_published_outputs(network, small_atlas, tmp_path, monkeypatch, capsys):
    "Downloaded in the published form, converted, compared; untrained, it says what the archive's network says"
    file, reference = densenet_onnx(tmp_path/'densenet_model.onnx')
    network.answers = ('127.0.0.1',)
    vectors(tmp_path, reference, BEST)
    model = PUBLISHED[BEST]
    files = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.suffix in ('.onnx', '.npy')}
    with serving(files=files) as archive:
        def here(published, sha256=None): return replace(published, url=archive.url(published.name), sha256=sha256)
        test_files = {part: here(f) for part, f in model.test_files.items()}
        known = replace(model, files=(here(model.files[0], file_sha256(file)),), test_files=test_files)
        monkeypatch.setitem(PUBLISHED, BEST, known)
        dls = HPADataLoaders.from_csv(small_atlas, size=96, bs=8, cache=tmp_path/'cache', progress=False)
        learn = auto_learner(dls)
    assert 'MIT licence, 36 MB to download once' in capsys.readouterr().out
    pixels = dls.valid.cache.batch(dls.valid.places).as_subclass(torch.Tensor)
    with torch.no_grad(): want = reference(pixels.float()/255)[0]
    with learn.no_bar(), learn.no_logging():
        probs, _ = learn.get_preds()
        assert torch.isfinite(torch.tensor(learn.validate())).all()
    assert learn.model.known == dls.vocab and torch.allclose(probs, want, atol=1e-5) and want.std(0).max() > 1e-3


def test_an_uneven_split_is_said_where_it_is_used(small_atlas, tmp_path):
    "Kept back until it is known whether the parts are used, as all about them is"
    df = read_labels(small_atlas/'train.csv')
    n = len(df)
    plates = ['one']*round(.46*n)+['two']*round(.44*n)
    df['plate'] = plates+[f'{i}' for i in range(n-len(plates))]
    with warnings.catch_warnings():
        warnings.filterwarnings('error', '.*instead of 20%')
        with parts_unsaid():
            dls = HPADataLoaders.from_df(df, small_atlas/'train', size=32, bs=16, group='plate', cache=False,
                                         progress=False)
    with pytest.warns(UserWarning, match='valid holds .*% of the images instead of 20%.*one has 46%, two has 44%'):
        warn_of_parts(dls, .2)


def test_the_power_of_rarity_reaches_the_loaders(small_atlas, tmp_path, monkeypatch):
    "By the function and by the command"
    from hpa_fastai.cli.main import main
    from hpa_fastai.experiments import training
    seen = []
    def made(*args, **kw):
        seen.append((kw['oversample'], kw['most_draws']))
        raise HPAError('far enough')
    monkeypatch.setattr(training.HPADataLoaders, 'from_csv', made)
    monkeypatch.chdir(tmp_path)
    for args, wanted in (({}, (.5, 20)), (dict(oversample=1, most_draws=3), (1, 3))):
        with pytest.raises(HPAError, match='far enough'):
            train_model(small_atlas, arch='lenet5', progress=False, **args)
        words = [o for k, v in args.items() for o in (f'--{k.replace("_", "-")}', str(v))]
        assert main(['train', str(small_atlas), '--arch', 'lenet5', *words]) == 2
        assert seen == [wanted]*2
        seen.clear()
