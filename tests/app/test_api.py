"Programs ask the page through its endpoints, and get what the functions of the package give."
import os
import resource
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from gradio_client import Client, handle_file

import hpa_fastai
from hpa_fastai.app.guard import AppError
from hpa_fastai.data.corrections import Corrections
from hpa_fastai.data.files import find_images
from programs import COMMAND, Program

FIELD = ('red', 'green', 'blue', 'yellow')


def client_of(page, **settings):
    return Client(page.url, verbose=False, download_files=False, analytics_enabled=False, **settings)


def files_of(images, i): return [handle_file(file) for file in images.iloc[i][list(FIELD)]]


def test_predictions_are_those_of_predict(page, small_atlas, trained):
    images = find_images(small_atlas/'train').head(6)
    same = hpa_fastai.predict(images, trained[1], progress=False)
    client = client_of(page)
    files = [handle_file(file) for file in images[list(FIELD)].to_numpy().ravel()]
    found = client.predict(files, '', api_name='/predict')
    classes = client.predict(api_name='/about')['classes']
    assert [row['Id'] for row in found] == same.Id.tolist() and [row['Names'] for row in found] == same.Names.tolist()
    for row, other in zip(found, same.to_dict('records')):
        assert max(abs(row[c]-other[c]) for c in classes) <= 1e-6
    assert client.predict(api_name='/about')['digest'] == page.state.model.digest


def test_four_clients_at_once_get_their_own_answers(page, small_atlas, trained):
    images = find_images(small_atlas/'train').head(20)
    same = hpa_fastai.predict(images, trained[1], progress=False).set_index('Id')
    clients = [client_of(page) for _ in range(4)]
    before = set(page.home.glob('drop-*'))
    def ask(i): return clients[i % 4].predict(files_of(images, i), '', api_name='/predict')
    with ThreadPoolExecutor(20) as pool: found = list(pool.map(ask, range(20)))
    for i, rows in enumerate(found):
        assert [row['Id'] for row in rows] == [images.Id[i]]
        assert abs(rows[0]['Nucleoplasm']-same.Nucleoplasm[images.Id[i]]) <= 1e-6
    assert not set(page.home.glob('drop-*'))-before


def test_a_fault_is_told_as_a_sentence(page, small_atlas, tmp_path):
    (tmp_path/'notes.txt').write_text('nothing')
    with pytest.raises(Exception, match='notes.txt: not a picture, left out; drop pictures'):
        client_of(page).predict([handle_file(str(tmp_path/'notes.txt'))], '', api_name='/predict')


def test_corrections_are_given_and_read(open_page, predicted, small_atlas, tmp_path):
    page = open_page(predicted[0], small_atlas/'train', out=tmp_path)
    client, Ids = client_of(page), page.state.run.predictions.Id
    assert client.predict(api_name='/corrections') == []
    assert client.predict(Ids[3], ['Cytosol', 'Nucleoli'], 'ben', api_name='/correct') == ''
    found = client.predict(api_name='/corrections')
    assert [(row['Id'], row['user'], row['model']) for row in found] == [(Ids[3], 'ben', page.state.model.digest)]
    assert len(Corrections(tmp_path/'corrections.csv', 'hpa28').table()) == 1
    for Id, names, why in (('nobody', ['Cytosol'], 'no such field of view'), (Ids[3], ['Cytosoll'], 'did you mean'),
                           (Ids[3], [], 'at least one class'), (Ids[3], None, 'a list of class names')):
        with pytest.raises(Exception, match=why): client.predict(Id, names, 'ben', api_name='/correct')
    assert len(Corrections(tmp_path/'corrections.csv', 'hpa28').table()) == 1


def test_a_full_disk_while_correcting_loses_nothing(open_page, predicted, small_atlas, tmp_path):
    page = open_page(predicted[0], small_atlas/'train', out=tmp_path)
    page.state.labelling.save(0, ['Cytosol'], 'anna')
    kept, Id = (tmp_path/'corrections.csv').read_bytes(), page.state.run.predictions.Id[1]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(kept)+20, before[1]))  # as on a full disk: the row does not fit
    try:
        with pytest.raises(Exception, match='was not saved .*, all earlier ones are'):
            client_of(page).predict(Id, ['Cytosol'], 'anna', api_name='/correct')
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path/'corrections.csv').read_bytes() == kept
    client_of(page).predict(Id, ['Cytosol'], 'anna', api_name='/correct')
    assert (tmp_path/'corrections.csv').read_bytes().startswith(kept)


def test_a_password_is_asked_for(open_page, ask):
    page = open_page(serving=dict(password='correct horse'))
    for path in ('/config', '/gradio_api/info', '/gradio_api/queue/data?session_hash=a'):
        assert ask(page.url+path)[0] == 401
    form = dict(content_type='application/x-www-form-urlencoded')
    assert ask(page.url+'/login', b'username=anna&password=wrong', **form)[0] == 400
    client = client_of(page, auth=('anna', 'correct horse'))
    assert client.predict(api_name='/about')['digest'] == page.state.model.digest


def test_the_command_serves_the_page_until_it_is_ended(trained, tmp_path, ask):
    "A real process: it says its address, answers, and takes its temporary files along when it ends"
    program = Program(COMMAND, 'app', '--model', trained[1], '--no-browser', cwd=tmp_path,
                      env={**os.environ, 'TMPDIR': str(tmp_path)})
    try:
        url = next(line for line in program.stdout if 'The app is at' in line).split()[4]
        assert ask(url)[0] == 200 and len(list(tmp_path.glob('hpa_fastai-app-*'))) == 1
        program.send_signal(signal.SIGTERM)
        assert program.wait(60) == 0
    finally: program.kill()
    assert not list(tmp_path.glob('hpa_fastai-app-*'))


def test_what_is_not_there_is_told_before_the_page_opens(open_page, predicted, small_atlas, trained, tmp_path):
    cases = [(dict(model=str(tmp_path/'gone')), 'gone'), (dict(data=tmp_path/'nowhere'), 'nowhere'),
             (dict(folder=tmp_path/'none.csv'), 'nothing there'),
             (dict(folder=predicted[0], images=tmp_path), 'the folder is empty'),
             (dict(folder=predicted[0], embeddings=tmp_path/'e.npy'), 'no such file')]
    for settings, words in cases:
        with pytest.raises(hpa_fastai.all.HPAError, match=words): open_page(**settings)
    page = open_page(folder=predicted[0])  # a table without its images: names alone
    assert page.state.run.images == {} and len(page.state.run) == 90


def test_a_page_without_a_model_takes_labels(open_page, small_atlas, monkeypatch, tmp_path):
    "The first model of a laboratory without a network: labels first"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    for name in ('http_proxy', 'https_proxy'): monkeypatch.setenv(name, 'http://127.0.0.1:9')
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    page = open_page(model=None, out=tmp_path/'out')
    assert page.state.model is None and len(page.state.run) == 90 and page.state.run.is_given.all()
    assert page.state.labelling.save(0, ['Cytosol'], 'anna') == ''
    with pytest.raises(Exception, match='hpa_fastai train'):
        client_of(page).predict([], '', api_name='/predict')


def test_a_port_in_use_is_told(page):
    from hpa_fastai.app.page import open_app
    port = int(page.url.rpartition(':')[2])
    with pytest.raises(AppError, match=f'port {port} on 127.0.0.1: Address already in use'):
        open_app(port=port, browser=False)
