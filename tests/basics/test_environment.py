"Closed streams, terminals without letters, no home folder, no screen: the command runs all the same."
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import pandas as pd
import pytest

from hpa_fastai.basics import environment
from hpa_fastai.data.files import find_images
from hpa_fastai.formats.names import CHANNELS

BARE = dict(LC_ALL='C', PYTHONUTF8='0', PYTHONCOERCECLOCALE='0', PYTHONIOENCODING='ascii', HOME='/proc/nowhere',
            MPLBACKEND='module://not_installed.backend')
COMMANDS = ('demo', 'verify', 'explore', 'train', 'compare', 'evaluate', 'predict', 'report', 'cells', 'test-model',
            'simulate')


def run(*args, close='', cwd=None, **settings):
    "Run the command with streams that a shell closed (`2>&-`) and with such variables"
    line = [sys.executable, '-m', 'hpa_fastai', *map(str, args)]
    shell = ['sh', '-c', f'"$@" {close}', 'sh', *line]
    return subprocess.run(shell if close else line, capture_output=True, cwd=cwd, env={**os.environ, **settings})


def fax_tiff(path):
    "Write an 8-bit TIFF that claims to be a fax: libtiff complains of it on its own"
    import struct
    tags = [(256, 3, 1, 16), (257, 3, 1, 16), (258, 3, 1, 8), (259, 3, 1, 4), (262, 3, 1, 1), (273, 4, 1, 122),
            (277, 3, 1, 1), (278, 3, 1, 16), (279, 4, 1, 256)]
    directory = b''.join(struct.pack('<HHII', *t) for t in tags)
    path.write_bytes(b'II*\0' + struct.pack('<IH', 8, 9) + directory + bytes(260))


def test_what_a_library_writes_to_a_closed_stream_is_not_in_the_table(trained, tmp_path):
    (tmp_path/'plate').mkdir()
    for c in CHANNELS: fax_tiff(tmp_path/'plate'/f'a_{c}.tif')
    done = run('predict', 'plate', '--model', trained[1], '--out', 'p.csv', close='2>&-', cwd=tmp_path)
    assert done.returncode == 1 and not done.stderr
    assert pd.read_csv(tmp_path/'p.csv').Id.tolist() == ['a']
    assert b'Fax' not in (tmp_path/'p.csv').read_bytes()


@pytest.mark.parametrize('close', ['<&-', '>&-', '2>&-', '<&- >&- 2>&-'])
def test_any_stream_may_be_closed(close):
    code = '''
import os, sys
from hpa_fastai.basics.environment import settle_in
settle_in()
print('out')
print('err', file=sys.stderr)
sys.stdin.read()
for i in range(3): os.fstat(i)
sys.exit(os.system('echo child && echo child >&2'))'''
    line = ['sh', '-c', f'"$@" {close}', 'sh', sys.executable, '-c', code]
    done = subprocess.run(line, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0
    assert done.stdout.split() == ([] if ' >&-' in f' {close}' else ['out', 'child'])
    assert done.stderr.split() == ([] if '2>&-' in close else ['err', 'child'])


def test_a_library_without_a_stream_draws_no_bar(small_atlas, trained, monkeypatch):
    from hpa_fastai.interpret.prediction import predict
    monkeypatch.setattr(sys, 'stderr', None)
    assert len(predict(find_images(small_atlas/'train')[:2], trained[1])) == 2


def test_help_on_a_terminal_without_letters():
    code = '''
import sys
from hpa_fastai.cli.main import main
for command in sys.argv[1:]:
    try: main([command, '--help'])
    except SystemExit as e: assert not e.code'''
    done = subprocess.run([sys.executable, '-c', code, *COMMANDS], capture_output=True, env={**os.environ, **BARE})
    assert done.returncode == 0 and done.stdout.count(b'usage: ') == len(COMMANDS), done.stderr
    assert b' ?m' in done.stdout  # the unit of a pixel's size


@pytest.mark.parametrize('encoding', ['ascii', 'cp1252'])
def test_messages_on_any_terminal(tmp_path, encoding):
    done = run('verify', os.fsdecode('µ–\u0142'.encode() + b'\xff'), PYTHONIOENCODING=encoding, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith(b'hpa_fastai: ') and b'Traceback' not in done.stderr


def test_a_page_in_a_bare_container(small_atlas, tmp_path):
    pd.read_csv(small_atlas/'train.csv').head(6).to_csv(tmp_path/'few.csv', index=False)
    place = dict(cwd=tmp_path, TMPDIR=str(tmp_path), MPLCONFIGDIR=matplotlib.get_cachedir())  # fonts were listed before
    arguments = ('explore', small_atlas, '--csv', tmp_path/'few.csv', '--out', tmp_path/'e.html')
    done = run(*arguments, close='<&- 2>&-', **BARE, **place)
    assert done.returncode == 0 and '<svg' in (tmp_path/'e.html').read_text(encoding='utf-8')


@pytest.mark.parametrize('home', [None, '/proc/nowhere', 'a file', '/proc'])
def test_without_a_home_images_are_cached_among_temporary_files(home, tmp_path, monkeypatch):
    from hpa_fastai.batches.cache import default_cache_folder
    import pwd, tempfile
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    if home == 'a file': (tmp_path/home).touch()
    if home: monkeypatch.setenv('HOME', home if home[0] == '/' else str(tmp_path/home))
    else:
        monkeypatch.delenv('HOME')
        monkeypatch.setattr(pwd, 'getpwuid', lambda uid: {}[uid])
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    environment.temporary_home.cache_clear()
    with pytest.warns(UserWarning, match='no home folder that can be written to'): folder = default_cache_folder()
    assert folder.parent.parent.parent == tmp_path and folder.parent.parent.stat().st_mode & 0o777 == 0o700
    environment.temporary_home.cache_clear()


def test_a_temporary_home_of_somebody_else_is_not_taken(tmp_path, monkeypatch):
    import tempfile
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    taken = tmp_path/f'hpa_fastai-{os.getuid()}'
    taken.symlink_to('/etc')
    environment.temporary_home.cache_clear()
    assert environment.temporary_home() != taken and environment.temporary_home().parent == tmp_path
    environment.temporary_home.cache_clear()


def test_text_files_are_utf8_everywhere():
    import re
    calls = re.compile(r'(?:\.read_text|\.write_text|(?<![\w.])open)\((?:[^()]|\([^()]*\))*\)')
    for module in Path(environment.__file__).parents[1].rglob('*.py'):
        for call in calls.findall(module.read_text(encoding='utf-8')):
            assert 'encoding' in call or re.search(r"""['"][rwa]\+?b\+?['"]""", call), f'{module.name}: {call}'
