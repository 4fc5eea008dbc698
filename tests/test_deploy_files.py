"What the container and the Space name is there: files, extras, options, arguments; their check of health works."
import fnmatch
import inspect
import json
import re
import runpy
import subprocess
import sys
import threading
from configparser import ConfigParser
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parent.parent
DEPLOY, SPACE = ROOT/'deploy', ROOT/'deploy'/'space'
needs_app = pytest.mark.skipif(find_spec('hpa_fastai.app.page') is None, reason='there is no page yet')


def settings():
    parser = ConfigParser(delimiters=['='])
    parser.read(ROOT/'settings.ini', encoding='utf-8')
    return parser['DEFAULT']


def extras(): return {key.removesuffix('_requirements') for key in settings() if key.endswith('_requirements')}


def instructions():
    "The instructions of the Dockerfile, each a word and the rest of its line"
    text = (DEPLOY/'Dockerfile').read_text(encoding='utf-8')
    text = re.sub(r'^\s*#.*\n', '', text, flags=re.M).replace('\\\n', ' ')
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def of(word): return [rest for name, rest in instructions() if name == word]


def copied():
    "What is copied from the repository into the image"
    return [path for rest in of('COPY') if '--from=' not in rest for path in rest.split()[:-1]]


def test_every_instruction_is_one():
    known = {'FROM', 'WORKDIR', 'COPY', 'RUN', 'USER', 'VOLUME', 'ENV', 'EXPOSE', 'HEALTHCHECK', 'ENTRYPOINT', 'CMD'}
    assert {name for name, _ in instructions()} <= known and instructions()[0][0] == 'FROM'
    stages = {rest.split(' AS ')[1] for rest in of('FROM') if ' AS ' in rest}
    assert {re.search(r'--from=(\w+)', rest)[1] for rest in of('COPY') if '--from=' in rest} == stages


def test_what_is_copied_exists_and_is_sent_to_docker():
    rules = [line for line in (DEPLOY/'Dockerfile.dockerignore').read_text().splitlines() if line and line[0] != '#']
    def is_sent(path):
        sent = True
        for rule in rules:
            if fnmatch.fnmatch(path, rule.removeprefix('!')): sent = rule.startswith('!')
        return sent
    assert copied()
    for path in copied(): assert (ROOT/path).exists() and is_sent(path), path
    assert not any(map(is_sent, ('hpa_model', '.venv', 'demo', 'nbs', '.git')))


def test_all_that_the_package_is_built_from_is_copied(tmp_path):
    named = {'settings.ini', 'setup.py', 'pyproject.toml', 'README.md', 'hpa_fastai'}
    assert named <= {*copied()}
    manifest = (ROOT/'MANIFEST.in').read_text().split()
    assert {*copied()} >= {word for word in manifest if (ROOT/word).is_file()}


def test_python_is_one_that_the_package_runs_on():
    found = {re.match(r'python:([\d.]+)-slim', rest)[1] for rest in of('FROM')}
    assert len(found) == 1 and all(v in SpecifierSet(f'>={settings()["min_python"]}') for v in found)


def test_extras_of_the_container_exist():
    named = re.search(r'\.whl\)\[([\w,]+)\]', ' '.join(of('RUN')))[1].split(',')
    assert 'app' in named and {*named} <= extras() - {'dev'}


def test_the_container_does_not_run_as_root():
    users = of('USER')
    order = [name for name, _ in instructions()]
    assert users and users[-1] not in ('root', '0') and order.index('USER') < order.index('ENTRYPOINT')
    assert f'useradd --create-home --uid 1000 {users[-1]}' in ' '.join(of('RUN'))


def test_no_password_is_in_the_files():
    for file in DEPLOY.rglob('*'):
        if not file.is_file(): continue
        for line in file.read_text(encoding='utf-8').splitlines():
            assert not re.search(r'HPA_FASTAI_PASSWORD\s*=\s*\S|--password\b', line), f'{file}: {line}'


def command(): return [*json.loads(of('ENTRYPOINT')[0]), *json.loads(of('CMD')[0])]


@needs_app
def test_the_command_of_the_container_is_understood(monkeypatch):
    from hpa_fastai.app import page
    from hpa_fastai.cli.main import main
    seen, signature = {}, inspect.signature(page.open_app)
    monkeypatch.setattr(page, 'open_app', lambda *args, **options: seen.update(
        signature.bind(*args, **options).arguments))
    assert main(command()[1:]) in (0, None)
    assert seen['host'] == '0.0.0.0' and seen['port'] == 7860 and seen['browser'] is False
    assert [*map(str, seen['model'])] == ['/model'] and str(seen['out']) == '/data/hpa_app'


def test_the_port_is_the_same_everywhere():
    port = command()[command().index('--port') + 1]
    assert of('EXPOSE') == [port] and f"'127.0.0.1', {port}" in of('HEALTHCHECK')[0]
    assert f'port={port}' in (SPACE/'app.py').read_text() and f':{port}:{port} ' in (DEPLOY/'README.md').read_text()


def test_what_is_written_lies_where_its_user_may_write():
    out = command()[command().index('--out') + 1]
    assert of('VOLUME') == ['/data'] and out.startswith('/data/') and 'chown lab /data' in ' '.join(of('RUN'))
    assert 'HPA_FASTAI_MODELS=/data/' in of('ENV')[0]


@pytest.mark.parametrize('status', [200, 500, None])
def test_the_check_of_health_tells_a_page_from_none(status):
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()
        def log_message(self, *args): pass
    server = HTTPServer(('127.0.0.1', 0), Answer)
    port = str(server.server_port)
    if status: threading.Thread(target=server.serve_forever, daemon=True).start()
    else: server.server_close()
    _, program, code = json.loads(of('HEALTHCHECK')[0].split('CMD ')[1])[:3]
    done = subprocess.run([sys.executable, program, code.replace('7860', port)], capture_output=True)
    if status:
        server.shutdown()
        server.server_close()
    assert (done.returncode == 0) == (status == 200)


# Space

def header():
    yaml = pytest.importorskip('yaml')
    return yaml.safe_load((SPACE/'README.md').read_text(encoding='utf-8').split('---\n')[1])


def test_the_header_of_the_space_is_valid():
    h, colours = header(), {'red', 'yellow', 'green', 'blue', 'indigo', 'purple', 'pink', 'gray'}
    assert h['sdk'] == 'gradio' and {h['colorFrom'], h['colorTo']} <= colours and len(h['short_description']) <= 60
    assert (SPACE/h['app_file']).is_file() and h['license'] == settings()['license'].lower()
    assert h['python_version'] in SpecifierSet(f'>={settings()["min_python"]}')
    gradio, = (Requirement(o) for o in settings()['app_requirements'].split() if o.startswith('gradio'))
    assert h['sdk_version'] in gradio.specifier


def test_requirements_of_the_space_are_of_this_package():
    lines = (SPACE/'requirements.txt').read_text().split('\n')
    wanted = [Requirement(line) for line in lines if line and not line.startswith('--')]
    ours, = (o for o in wanted if o.name == settings()['lib_name'])
    assert 'app' in ours.extras and ours.extras <= extras() - {'dev'} and ours.url == f'git+{settings()["git_url"]}'


@pytest.mark.parametrize('has_model', [True, False])
def test_the_program_of_the_space_opens_the_app(has_model, tmp_path, monkeypatch):
    (tmp_path/'app.py').write_text((SPACE/'app.py').read_text())
    if has_model: (tmp_path/'model').mkdir()
    stand_in, seen = ModuleType('hpa_fastai.app.page'), {}
    stand_in.open_app = lambda **options: seen.update(options)
    monkeypatch.setitem(sys.modules, 'hpa_fastai.app.page', stand_in)
    runpy.run_path(str(tmp_path/'app.py'), run_name='__main__')
    assert seen == dict(model=tmp_path/'model' if has_model else None, host='0.0.0.0', port=7860, browser=False)


@needs_app
def test_the_arguments_of_the_space_exist():
    from hpa_fastai.app.page import open_app
    named = re.findall(r'(\w+)=', re.search(r'open_app\((.*)\)', (SPACE/'app.py').read_text())[1])
    assert {*named} <= {*inspect.signature(open_app).parameters}


def test_the_page_about_them_names_what_is_there():
    text = (DEPLOY/'README.md').read_text(encoding='utf-8')
    for path in re.findall(r'`(deploy/[\w/.]+|tests/[\w/.]+)`|-f (deploy/\w+)', text):
        assert (ROOT/(path[0] or path[1])).exists(), path
    assert 'never built' in text
