"Weights of others: downloaded or carried over, converted, held against what was published, kept once and whole"
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from archive_server import on_archive, serving
from published_files import densenet_onnx, subcell_files, test_vectors
from safetensors.torch import load_file

from hpa_fastai.basics.paths import file_sha256
from hpa_fastai.batches.settings import normalize
from hpa_fastai.data.labels import HPA28
from hpa_fastai.models.schema import PublishedConfig
from hpa_fastai.models import published
from hpa_fastai.models.architectures import create_model
from hpa_fastai.models.conversion import Converted, convert
from hpa_fastai.basics.download import DownloadError
from hpa_fastai.models.networks import ModelError, published_body, vector_head
from hpa_fastai.models.published import keep_weights, models_folder, published_record, published_vectors
from hpa_fastai.models.published import published_weights
from hpa_fastai.models.registry import PUBLISHED
from hpa_fastai.simulate.plan import CLASS_FREQUENCY

NAME = 'hpa-densenet121'
WEIGHTS, VECTORS = 'densenet_model.onnx', ('test_input.npy', 'test_output_classes.npy', 'test_output_features.npy')
forks = pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork')


@pytest.fixture(scope='session')
def densenet(tmp_path_factory):
    "The files of the archive with random weights, and the network they were made of"
    folder = tmp_path_factory.mktemp('densenet')
    file, reference = densenet_onnx(folder/WEIGHTS)
    test_vectors(folder, reference, NAME)
    return folder, reference


CONVERTED = {}


def convert_once(arch, files, channels):
    "What `convert` says of a file; it is asked once, which takes most of the time of these tests"
    checksum = file_sha256(files[0])
    if checksum not in CONVERTED: CONVERTED[checksum] = convert(arch, files, channels)
    return CONVERTED[checksum]


@pytest.fixture
def archive(densenet, tmp_path, monkeypatch):
    "An archive with these files, known to the registry, and an empty folder of models"
    for name in ('HPA_FASTAI_MIRROR', 'HF_HUB_OFFLINE', 'TRANSFORMERS_OFFLINE', 'http_proxy', 'HTTP_PROXY'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('HPA_FASTAI_MODELS', str(tmp_path/'models'))
    monkeypatch.setattr(published, 'convert', convert_once)
    with serving() as archive:
        register(monkeypatch, PUBLISHED[NAME], archive, densenet[0])
        yield archive


def register(monkeypatch, model, archive, folder, hashed=(WEIGHTS,)):
    "Let the registry name a local archive"
    monkeypatch.setitem(PUBLISHED, model.name, on_archive(model, archive, folder, hashed))


def get(**options): return published_weights(NAME, progress=False, **options)


def names(folder=None):
    folder = folder or models_folder()
    return sorted(p.name for p in folder.iterdir() if p.suffix != '.lock') if folder.exists() else []


def one_line(error, *words):
    message = str(error.value)
    assert '\n' not in message and len(message) < 1000, message
    for word in words: assert word in message, message


def forked(work):
    "Start a process of its own; its number"
    if pid := os.fork(): return pid
    try:
        torch.set_num_threads(1)
        work()
        os._exit(0)
    finally: os._exit(1)


def carried(densenet, tmp_path, *names):
    folder = tmp_path/'carried'
    folder.mkdir(exist_ok=True)
    for name in names: (folder/name).write_bytes((densenet[0]/name).read_bytes())
    return folder


def network_of(model, size, file, heads=None):
    body = published_body(model.arch, size)
    network = torch.nn.Sequential(body, vector_head(body.num_features, len(model.labels), heads=heads))
    network.load_state_dict(load_file(file))
    return network.eval()


def offline(monkeypatch): monkeypatch.setenv('HF_HUB_OFFLINE', '1')


def test_from_the_archive_to_a_network_that_computes_the_same(archive, densenet):
    file = get()
    record = published_record(file)
    PublishedConfig(**{k: v for k, v in record.items() if k != 'heads'})
    assert (record['name'], record['task'], record['checked'], record['heads']) == (NAME, 'fields', 'outputs', None)
    assert record['difference'] < 1e-4 and record['files'] == {WEIGHTS: file_sha256(densenet[0]/WEIGHTS)}
    assert record['address'] == archive.url(WEIGHTS) and 'doi.org/10.1038' in record['citation']
    assert names() == [f'{NAME}.npz', f'{NAME}.safetensors'] == sorted((file.name, f'{NAME}.npz'))
    model = PUBLISHED[NAME]
    network = network_of(model, 128, file)
    x = torch.rand(2, 4, 128, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        (probs, embedding), features = densenet[1](x), network[0](normalize(x, model.settings.mean, model.settings.std))
        assert torch.allclose(network[1](features).sigmoid(), probs, atol=1e-5)
        assert torch.allclose(features, embedding, atol=1e-4)
    vectors = published_vectors(NAME)
    x, probs = vectors['published_input'], vectors['published_probs']
    assert x.dtype == probs.dtype == np.float32 and x.shape[1] == 4 and probs.shape == (len(x), 28)
    with torch.no_grad(): assert np.abs(network(torch.from_numpy(x)).sigmoid().numpy() - probs).max() < 1e-5


def test_a_training_starts_from_it(archive):
    model = create_model(NAME, 2, size=128, classes=['Cytosol', 'Something new'])
    kept, (body, head) = load_file(get()), model
    assert model.known == ['Cytosol'] and torch.equal(head[-1].weight[0], kept['1.2.weight'][25])
    assert all(torch.equal(t, kept[f'0.{name}']) for name, t in body.state_dict().items())


def test_what_is_there_is_not_asked_for_again(archive, monkeypatch):
    file, n = get(), len(archive.asked)
    offline(monkeypatch)
    assert get() == file and len(archive.asked) == n == 4


@pytest.mark.parametrize('kind', ['bytes', 'one picture'])
def test_an_input_in_another_form_is_understood(archive, densenet, kind):
    "The archive may hold the test input before or after it was made ready"
    arrays = [np.load(densenet[0]/name) for name in VECTORS]
    if kind == 'one picture': arrays = [array[0] for array in arrays]
    else: arrays[0] = arrays[0]*255
    archive.files |= dict(zip(VECTORS, map(npy, arrays)))
    assert published_record(get())['checked'] == 'outputs'


def npy(array):
    import io
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize('name', VECTORS[1:])
def test_a_network_that_does_not_agree_is_not_kept(archive, densenet, name):
    right = archive.files[name]
    array = np.load(densenet[0]/name)
    array[0, 7] += 0.01
    archive.files[name] = npy(array)
    with pytest.raises(ModelError) as e: get()
    one_line(e, NAME, 'differs by 0.0', 'from the published outputs', 'was not kept', '--no-verify')
    assert names() == []
    archive.files[name] = right
    assert published_record(get())['checked'] == 'outputs'


def test_a_network_that_does_not_agree_replaces_nothing(archive):
    before = get().read_bytes()
    archive.files[VECTORS[1]] = npy(np.zeros((1, 28), np.float32))
    with pytest.raises(ModelError): get(force=True)
    assert get().read_bytes() == before and published_vectors(NAME)


@pytest.mark.parametrize('content, words', [
    (b'damaged', 'not an array that can be read'), (npy(np.zeros((1, 27), np.float32)), 'shape (1, 27), not (1, 28)'),
    (npy(np.array([{}])), 'not an array that can be read'), (npy(np.full((1, 28), np.nan, np.float32)), 'by inf')])
def test_a_known_case_that_is_none(archive, content, words):
    "Damaged, of another shape, a pickle, not a number"
    archive.files[VECTORS[1]] = content
    with pytest.raises(ModelError) as e: get()
    one_line(e, words)
    assert not (models_folder()/f'{NAME}.safetensors').exists()


def header(shape):
    "An array that claims a shape, and holds nothing"
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + '\n'
    return b'\x93NUMPY\x01\x00' + len(text).to_bytes(2, 'little') + text.encode()


@pytest.mark.parametrize('content', [header((10**6, 4, 10**4, 10**4)), b'\x93NUMPY\x01\x00\x10\x00' + b'('*16 + b'0'*99,
                                     npy(np.zeros(3, 'f4,f4')), npy(np.zeros((0, 4, 64, 64), 'f4')),
                                     npy(np.zeros((1, 4, 8, 8), 'f4'))])
def test_a_known_case_that_is_damaged_is_fetched_again(archive, densenet, content):
    "Nothing else would tell that it was, since it has no checksum"
    archive.files[VECTORS[0]] = content
    with pytest.raises(ModelError) as e: get()
    one_line(e, VECTORS[0], 'download it again')
    archive.files[VECTORS[0]] = (densenet[0]/VECTORS[0]).read_bytes()
    assert published_record(get())['checked'] == 'outputs'


def test_an_input_of_another_shape(archive):
    archive.files[VECTORS[0]] = npy(np.zeros((1, 3, 64, 64), np.float32))
    with pytest.raises(ModelError) as e: get()
    one_line(e, 'test_input.npy', 'shape (1, 3, 64, 64), not B×4×S×S')


def test_another_file_in_the_archive_is_refused(archive):
    archive.files[WEIGHTS] = b'another file'
    with pytest.raises(DownloadError) as e: get()
    one_line(e, 'damaged or another file', 'carry over', VECTORS[2], PUBLISHED[NAME].page,
             f'hpa_fastai models get {NAME} --from FOLDER')
    assert e.value.kind == 'damaged' and not (models_folder()/f'{NAME}.safetensors').exists()


def test_a_folder_that_was_carried_over(archive, densenet, tmp_path, monkeypatch):
    offline(monkeypatch)
    folder = carried(densenet, tmp_path, WEIGHTS, *VECTORS)
    record = published_record(get(source=folder))
    assert record['checked'] == 'outputs' and record['address'] == archive.url(WEIGHTS) and archive.asked == []
    assert names(folder) == sorted((WEIGHTS, *VECTORS))


def test_a_file_that_was_carried_over(archive, densenet, tmp_path, monkeypatch):
    "Its test vectors lie beside it, or are fetched; without a connection the message names them"
    file = carried(densenet, tmp_path, WEIGHTS)/WEIGHTS
    with monkeypatch.context() as m, pytest.raises(DownloadError) as e:
        offline(m)
        get(source=file)
    one_line(e, 'HF_HUB_OFFLINE', *VECTORS, PUBLISHED[NAME].page, '--from FOLDER', 'is missing', '--no-verify')
    assert f'{WEIGHTS}, ' not in str(e.value), 'what is there needs not be carried over again'
    assert names() == [] and e.value.kind == 'offline'
    assert published_record(get(source=str(file)))['checked'] == 'outputs'
    assert [path for path, _ in archive.asked] == [f'/{name}' for name in VECTORS]


def test_another_file_is_refused_unless_it_is_asked_for(archive, tmp_path):
    other, _ = densenet_onnx(tmp_path/'own fold.onnx', seed=1)
    with pytest.raises(ModelError) as e: get(source=other)
    one_line(e, 'own fold.onnx: not the file densenet_model.onnx', '--no-verify')
    assert names() == []
    record = published_record(get(source=other, verify=False))
    PublishedConfig(**{k: v for k, v in record.items() if k != 'heads'})
    assert (record['checked'], record['difference'], record['address']) == ('nothing', None, 'own%20fold.onnx')
    assert published_vectors(NAME) == {} and archive.asked == []
    assert get(source=other) and get()
    with pytest.raises(ModelError) as e: get(source=carried_other(tmp_path))
    one_line(e, 'exists already, made from other files', '--force')


def carried_other(tmp_path):
    (tmp_path/'third.onnx').write_bytes(b'third')
    return tmp_path/'third.onnx'


def test_what_is_carried_over_and_is_nothing(archive, tmp_path):
    for source, words in ((tmp_path/'nowhere', 'no such file or folder'), (tmp_path, 'no densenet_model.onnx')):
        with pytest.raises(ModelError) as e: get(source=source)
        one_line(e, str(source), words)


def test_a_mirror_is_asked_instead(archive, monkeypatch):
    monkeypatch.setenv('HPA_FASTAI_MIRROR', f'{archive.address}/a mirror/'.replace(' ', '-'))
    assert published_record(get())['checked'] == 'outputs'
    assert [path for path, _ in archive.asked] == [f'/a-mirror/{NAME}/{name}' for name in (WEIGHTS, *VECTORS)]


def test_a_mirror_is_held_to_the_checksums(archive, monkeypatch):
    monkeypatch.setenv('HPA_FASTAI_MIRROR', archive.address.replace('//', '//me:secret@'))
    archive.files[WEIGHTS] = b'another file'
    with pytest.raises(DownloadError) as e: get()
    one_line(e, 'damaged or another file')
    assert 'secret' not in str(e.value)


@forks
def test_a_killed_download_is_gone_on_with(archive):
    archive.pause = 0.02
    part = models_folder()/f'.{NAME}.download'/f'{WEIGHTS}.part'
    pid = forked(get)
    while not part.exists() or part.stat().st_size < 200_000: time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    archive.pause, kept = 0, part.stat().st_size
    archive.count_anew()
    get()
    assert archive.served == sum(map(len, archive.files.values())) - kept
    assert names() == [f'{NAME}.npz', f'{NAME}.safetensors']


@forks
def test_a_kill_before_the_last_step_leaves_nothing_half(archive, monkeypatch):
    def stop(*_):
        os.write(reach, b'.')
        time.sleep(60)
    reached, reach = os.pipe()
    with monkeypatch.context() as m:
        m.setattr(published, 'save_file', stop)
        pid = forked(get)
    os.close(reach)
    assert os.read(reached, 1) == b'.'
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert not (models_folder()/f'{NAME}.safetensors').exists()
    assert published_record(get())['checked'] == 'outputs'
    assert names() == [f'{NAME}.npz', f'{NAME}.safetensors']


@forks
def test_of_two_processes_one_makes_it(archive):
    both = [forked(get) for _ in range(2)]
    assert [os.waitpid(pid, 0)[1] for pid in both] == [0, 0]
    assert len(archive.asked) == 4 and published_record(get())['checked'] == 'outputs'


def test_what_was_changed_is_not_used(archive):
    models_folder().mkdir()
    record = dict(licence='MIT', files={})
    file = keep_weights(models_folder()/f'{NAME}.safetensors', {'0.weight': torch.zeros(9)}, record)
    content = file.read_bytes()
    assert get() == file
    for changed in (content[:-5] + b'1' + content[-4:], content.replace(b'MIT', b'BSD'), content[:-9], b'{}', b''):
        file.write_bytes(changed)
        with pytest.raises(ModelError) as e: get()
        one_line(e, str(file), 'damaged, or changed since it was made', 'remove it')
    assert archive.asked == [] and published_record(get(force=True))['checked'] == 'outputs'


def test_a_bundle_goes_first(archive, tmp_path):
    bundle = models_folder()/NAME/'model.safetensors'
    bundle.parent.mkdir(parents=True)
    bundle.write_bytes(b'')
    assert get() == bundle and archive.asked == []


def test_a_folder_that_can_only_be_read(archive):
    "What is there is used; what isn't gets one line"
    if not (os.geteuid() == 0 and sys.platform == 'linux'): pytest.skip('a disk is mounted by root alone')
    models_folder().mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', 'tmpfs', models_folder()], capture_output=True).returncode:
        pytest.skip('no disk can be mounted here')
    try:
        file = get()
        subprocess.run(['mount', '-o', 'remount,ro', models_folder()], check=True)
        assert get() == file
        with pytest.raises(DownloadError) as e: get(force=True)
        one_line(e, str(models_folder()), "can't be written to (Read-only file system)")
        subprocess.run(['mount', '-o', 'remount,rw,size=80m', models_folder()], check=True)
        (models_folder()/'full').write_bytes(bytes(30_000_000))
    finally: subprocess.run(['umount', models_folder()], check=True)


def test_a_disk_that_is_full(archive):
    "Before, while or after the download; what was there stays"
    import resource
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (1_000_000, len(archive.files[WEIGHTS]) + 100):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
        try:
            with pytest.raises(DownloadError) as e: get()
        finally: resource.setrlimit(resource.RLIMIT_FSIZE, old)
        one_line(e, str(models_folder()), 'File too large', 'make room')
        assert e.value.kind == 'disk' and not (models_folder()/f'{NAME}.safetensors').exists()
    assert get().is_file()


def test_without_a_connection_the_way_to_carry_is_told(archive, monkeypatch):
    offline(monkeypatch)
    with pytest.raises(DownloadError) as e: get()
    one_line(e, NAME, 'HF_HUB_OFFLINE', WEIGHTS, *VECTORS, PUBLISHED[NAME].page, f'models get {NAME} --from FOLDER')
    assert e.value.kind == 'offline' and names() == []


def test_names():
    with pytest.raises(ModelError, match='did you mean subcell-vit'): published_weights('subcellvit')
    with pytest.raises(ModelError, match='choose one of hpa-densenet121, hpa-inc'): published_weights('???')


def test_the_folder_of_models(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.delenv('HPA_FASTAI_MODELS', raising=False)
    assert models_folder() == tmp_path/'hpa_fastai'/'models'
    monkeypatch.setenv('HPA_FASTAI_MODELS', '~/shared')
    assert models_folder().is_absolute()


@pytest.fixture
def subcell(tmp_path, monkeypatch):
    "Empty files by the names of the archive, and a conversion that says which of them it was given"
    def convert(arch, files, channels):
        given.extend(p.name for p in files)
        return Converted(arch, {'0.weight': torch.zeros(1)}, len(files) - 1, False, True)
    given, folder = [], tmp_path/'archive'/'all_channels_MAE_MLP_classifier'
    folder.mkdir(parents=True)
    for name in ('all_channels_MAE-CellS-ProtS-Pool.pth', 'all_channels_ViT_MLP_classifier_seed_0.pth'):
        (folder.parent/name).write_bytes(name.encode())
    for i in (0, 2, 10): (folder/f'all_channels_MAE_MLP_classifier_seed_{i}.pth').write_bytes(bytes([i]))
    monkeypatch.setattr(published, 'convert', convert)
    monkeypatch.setenv('HPA_FASTAI_MODELS', str(tmp_path/'models'))
    offline(monkeypatch)
    return folder.parent, given


def test_all_heads_of_a_folder_are_used(subcell, monkeypatch):
    "Those of the encoder, in their order; no test vectors were published, and its checksum is what is known"
    folder, given = subcell
    model, encoder = PUBLISHED['subcell-vit'], folder/'all_channels_MAE-CellS-ProtS-Pool.pth'
    with pytest.raises(ModelError, match='not the file all_channels_MAE'): published_weights(model.name, folder)
    known = dataclasses.replace(model.files[0], sha256=file_sha256(encoder))
    monkeypatch.setitem(PUBLISHED, model.name, dataclasses.replace(model, files=(known, *model.files[1:])))
    record = published_record(published_weights(model.name, encoder))
    assert given == [encoder.name, *(f'all_channels_MAE_MLP_classifier_seed_{i}.pth' for i in (0, 2, 10))]
    assert (record['checked'], record['heads'], list(record['files'])) == ('file', 3, given)


def test_an_encoder_without_a_head_is_refused(subcell):
    folder, _ = subcell
    (folder/'own_ViT-Pool.pth').write_bytes(b'')
    with pytest.raises(ModelError) as e: published_weights('subcell-vit', folder/'own_ViT-Pool.pth', verify=False)
    one_line(e, 'no classifier beside own_ViT-Pool.pth; carry over own_ViT_MLP_classifier_seed_0.pth too')


def test_of_what_has_no_checksum_nothing_was_checked(subcell):
    folder, _ = subcell
    for name in ('DNA-Protein_MAE-CellS-ProtS-Pool.pth', 'DNA-Protein_MAE_MLP_classifier_seed_0.pth'):
        (folder/name).write_bytes(name.encode())
    record = published_record(published_weights('subcell-vit-dna-protein', folder))
    assert (record['checked'], record['heads']) == ('nothing', 1)


@pytest.mark.slow
def test_the_transformer_of_a_folder_computes_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv('HPA_FASTAI_MODELS', str(tmp_path/'models'))
    files, reference = subcell_files(tmp_path, n_heads=2)
    file = published_weights('subcell-vit', tmp_path, verify=False, progress=False)
    network, x = network_of(PUBLISHED['subcell-vit'], 448, file, heads=2), torch.rand(1, 4, 448, 448)
    with torch.no_grad(): assert torch.allclose(network(x).sigmoid(), reference(x)[0], atol=1e-5)


def test_every_entry_can_be_told_in_a_line():
    assert {m.name for m in PUBLISHED.values()} == set(PUBLISHED) and len(PUBLISHED) == 6
    for m in PUBLISHED.values():
        files = (*m.files, *m.test_files.values())
        assert all(f.url.startswith('https://') and f.url.isascii() and f.name in f.url for f in files)
        assert all(f.sha256 is None or re.fullmatch('[0-9a-f]{64}', f.sha256) for f in files)
        assert len({f.name for f in files}) == len(files) and m.megabytes > 30 and m.licence == 'MIT'
        assert m.task in ('fields', 'cells') and (m.settings.crop is not None) == (m.task == 'cells')
        assert '\n' not in m.citation + m.about and re.fullmatch(r'10\.\d{4}/\S+', m.doi) and json.dumps(m.about)


def test_prevalence_is_that_of_the_table(real_data):
    table = pd.read_csv(real_data/'labels/kaggle2018_train.csv')
    shares = HPA28.encode(table.Target).mean(0)
    assert np.allclose(shares, list(CLASS_FREQUENCY.values())[:28], atol=1e-9) and len(table) == 31_072
