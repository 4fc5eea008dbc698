"What somebody else may try with the page, and is refused."
import http.client
import io
import json
import os
import re
import socket
import zipfile
from urllib.parse import urlsplit

import pytest
from gradio_client import Client, handle_file

from visitor import Visitor
from hpa_fastai.app.guard import AppError
from hpa_fastai.data.files import find_images


@pytest.fixture
def secret(tmp_path):
    "A file that nobody may read through the page"
    file = tmp_path/'secret_red.png'
    file.write_bytes(b'SECRET')
    return file


def upload(page, name, content=b'\x89PNG', **headers):
    "Upload a file as a browser does, under any name; the status and the answer"
    boundary = 'x'*20
    body = (f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
            f'Content-Type: image/png\r\n\r\n').encode()+content+f'\r\n--{boundary}--\r\n'.encode()
    connection = http.client.HTTPConnection(urlsplit(page.url).netloc, timeout=30)
    connection.request('POST', '/gradio_api/upload', body,
                       {'Content-Type': f'multipart/form-data; boundary={boundary}', **headers})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


@pytest.mark.parametrize('name', ['../../../escape_red.png', '/etc/escape_red.png', '..\\..\\escape_red.png',
                                  'a/../../escape_red.png', '.escape_red.png', 'escape_red.png\x00.txt'])
def test_a_name_is_never_a_path(page, name, tmp_path):
    status, answer = upload(page, name)
    if status != 200: return
    file = json.loads(answer)[0]
    assert os.path.realpath(file).startswith(str(page.home)+os.sep) and os.path.isfile(file)


def files_outside(page, secret):
    return [str(secret), '/etc/passwd', f'{page.home}/../{secret.name}', '/proc/self/environ']


def test_files_outside_can_not_be_fetched(page, secret, ask):
    for file in files_outside(page, secret):
        for path in (f'/gradio_api/file={file}', f'/gradio_api/file/{file}', f'/file={file}', f'/static/../../{file}',
                     f'/gradio_api/file=%2e%2e/{file}', f'/assets/..%2f..%2f{file}'):
            status, text = ask(page.url+path)
            assert status in (400, 403, 404, 405) and 'SECRET' not in text and 'root:' not in text, path


def test_a_link_out_of_the_folder_is_not_followed(page, secret, ask):
    link = page.home/'link_red.png'
    link.symlink_to(secret)
    status, text = ask(f'{page.url}/gradio_api/file={link}')
    assert status in (403, 404) and 'SECRET' not in text
    link.unlink()


def call_predict(page, ask, file):
    "Ask for the prediction of a file on this computer, without uploading it; what the page answers"
    data = [[{'path': file, 'url': file, 'orig_name': 'a_red.png', 'meta': {'_type': 'gradio.FileData'}}], '']
    status, text = ask(f'{page.url}/gradio_api/call/predict', json.dumps(dict(data=data)).encode(),
                       content_type='application/json')
    if status != 200: return text
    return ask(f'{page.url}/gradio_api/call/predict/{json.loads(text)["event_id"]}')[1]


def test_files_outside_can_not_be_predicted(page, secret, small_atlas, ask):
    before = set(page.home.glob('drop-*'))
    for file in [*files_outside(page, secret), find_images(small_atlas/'train').red[0]]:
        assert call_predict(page, ask, file).startswith('event: error')
    assert not set(page.home.glob('drop-*'))-before


def test_the_page_fetches_nothing_for_others(page, ask):
    "Neither an address that is asked for, nor one that is named as a file"
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        listener.listen()
        listener.settimeout(1)
        inside = f'http://127.0.0.1:{listener.getsockname()[1]}/a_red.png'
        assert ask(f'{page.url}/gradio_api/file={inside}')[0] == 403
        assert ask(f'{page.url}/gradio_api/proxy={inside}')[0] == 403
        assert call_predict(page, ask, inside).startswith('event: error')
        with pytest.raises(TimeoutError): listener.accept()


def test_a_zip_bomb_is_not_opened(page, tmp_path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('a_red.png', bytes(200_000_000))
    (tmp_path/'bomb.zip').write_bytes(packed.getvalue())
    client = Client(page.url, verbose=False, download_files=False, analytics_enabled=False)
    with pytest.raises(Exception, match='bomb.zip: not a picture'):
        client.predict([handle_file(str(tmp_path/'bomb.zip'))], '', api_name='/predict')


def test_a_picture_that_would_fill_the_memory_is_refused(page, tmp_path):
    from PIL import Image
    Image.new('L', (30_000, 30_000)).save(tmp_path/'huge_red.png')
    client = Client(page.url, verbose=False, download_files=False, analytics_enabled=False)
    rows = client.predict([handle_file(str(tmp_path/'huge_red.png'))], '', api_name='/predict')
    assert rows[0]['error'] and not rows[0]['Names']


def test_two_gigabytes_are_refused_before_they_are_sent(page):
    connection = http.client.HTTPConnection(urlsplit(page.url).netloc, timeout=30)
    connection.putrequest('POST', '/gradio_api/upload')
    connection.putheader('Content-Type', 'multipart/form-data; boundary=x')
    connection.putheader('Content-Length', str(2*2**30))
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 413 and 'more than 1,024 MB at once' in answer.read().decode()
    connection = http.client.HTTPConnection(urlsplit(page.url).netloc, timeout=30)
    connection.putrequest('POST', '/gradio_api/upload')
    connection.putheader('Transfer-Encoding', 'chunked')
    connection.endheaders()
    assert connection.getresponse().status == 411


def test_a_script_in_a_name_does_not_run(browser, page, tmp_path):
    name = '<script>document.title="taken"<script>_red.png'
    (tmp_path/name).write_bytes(b'\x89PNG')
    page_of_script = tmp_path/'page.html'
    page_of_script.write_text('<script>document.title="taken"</script>')
    visitor = Visitor(browser, page.url)
    visitor.drop(tmp_path/name, page_of_script)
    visitor.wait('#predict-message .fault')
    assert browser.run('return document.title') == 'hpa_fastai' and browser.count('#predict-message script') == 0
    status, answer = upload(page, 'page.html', page_of_script.read_bytes())
    if status == 200:  # as a file it is only ever downloaded
        connection = http.client.HTTPConnection(urlsplit(page.url).netloc, timeout=30)
        connection.request('GET', f'/gradio_api/file={json.loads(answer)[0]}')
        got = connection.getresponse()
        assert got.status != 200 or 'attachment' in got.headers.get('content-disposition', '')


def test_other_sites_and_other_names_are_refused(page, ask):
    data = json.dumps(dict(data=[], fn_index=0, session_hash='a')).encode()
    for origin in ('http://evil.example', 'null', 'http://127.0.0.1:1'):
        assert ask(f'{page.url}/gradio_api/queue/join', data, content_type='application/json', Origin=origin)[0] == 403
    assert ask(f'{page.url}/', Host='evil.example')[0] == 403
    assert ask(f'{page.url}/config', Sec_Fetch_Site='cross-site', Sec_Fetch_Mode='no-cors')[0] == 403
    status, text = ask(f'{page.url}/')
    assert status == 200 and not re.search(r'(src|href)="https?://(?!127\.0\.0\.1)[^"]*\.(js|css|woff2?)', text)


@pytest.mark.parametrize('host', ['0.0.0.0', '::', '192.168.1.7'])
def test_a_network_needs_a_password(host):
    from hpa_fastai.app.page import open_app
    with pytest.raises(AppError, match='everybody in the network could see'): open_app(host=host, browser=False)
    with pytest.raises(AppError, match='who knows the address'): open_app(share=True, browser=False)
