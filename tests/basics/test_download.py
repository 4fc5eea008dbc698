"A file comes whole, checked and once: over connections that break, from busy servers, onto disks that are full"
import os
import signal
import subprocess
import sys
import threading
import time
from hashlib import sha256

import pytest
from archive_server import serving

from hpa_fastai.basics import download
from hpa_fastai.basics.download import DownloadError, fetch_file
from hpa_fastai.basics.errors import HPAError

CONTENT = os.urandom(1_000_000)
CHECKSUM = sha256(CONTENT).hexdigest()


@pytest.fixture
def archive(monkeypatch):
    for name in ('HTTP_PROXY', 'http_proxy', 'HF_HUB_OFFLINE', 'TRANSFORMERS_OFFLINE'):
        monkeypatch.delenv(name, raising=False)
    with serving(files={'w.bin': CONTENT}) as archive: yield archive


def names(folder): return sorted(p.name for p in folder.iterdir() if p.suffix != '.lock')


def refused(archive, folder, kind, *words, name='w.bin', sha256=CHECKSUM, n_bytes=None, url=''):
    "One line that says what, where and what to do; and no file"
    url = url or archive.url(name)
    with pytest.raises(DownloadError) as e: fetch_file(url, folder/'w.bin', sha256, n_bytes, progress=False)
    assert e.value.kind == kind, str(e.value)
    message = str(e.value)
    assert isinstance(e.value, HPAError) and '\n' not in message and ';' in message and len(message) < 320, message
    for word in words: assert word in message, message
    assert not (folder/'w.bin').exists()


def child(archive, to):
    "Start another process that downloads; its number"
    pid = os.fork()
    if pid: return pid
    try:
        fetch_file(archive.url('w.bin'), to, CHECKSUM, progress=False)
        os._exit(0)
    finally: os._exit(1)


forks = pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork')


def test_a_file_is_fetched_and_then_not_again(archive, tmp_path, capfd):
    to = tmp_path/'a'/'b'/'w.bin'
    for _ in range(2): assert fetch_file(archive.url('w.bin'), to, CHECKSUM, len(CONTENT)) == to
    assert to.read_bytes() == CONTENT and archive.served == len(CONTENT)
    assert names(to.parent) == ['w.bin'] and 'w.bin: 100%' in capfd.readouterr().err


def test_a_file_of_unknown_size_and_checksum_is_fetched(archive, tmp_path):
    archive.announces = False
    assert fetch_file(archive.url('w.bin'), tmp_path/'w.bin', progress=False).read_bytes() == CONTENT


@pytest.mark.parametrize('states', [True, False])
def test_only_the_rest_is_fetched_after_a_break(archive, tmp_path, states, monkeypatch):
    "With a name of its state, or with a checksum"
    monkeypatch.setattr(time, 'sleep', lambda s: None)
    archive.breaks_after, archive.states = [400_000, 300_000], states
    assert fetch_file(archive.url('w.bin'), tmp_path/'w.bin', CHECKSUM, progress=False).read_bytes() == CONTENT
    starts = [int(r.removeprefix('bytes=').rstrip('-')) if r else 0 for _, r in archive.asked]
    assert len(starts) == 3 and 0 < starts[1] <= 400_000 < starts[2] <= 700_000
    assert len(CONTENT) <= archive.served <= len(CONTENT) + 2*2**14


def test_what_breaks_off_again_and_again_is_kept(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(time, 'sleep', lambda s: None)
    archive.breaks_after = [500_000] + [0]*20
    refused(archive, tmp_path, 'broken', 'w.bin', 'MB came and are kept; call again to go on')
    kept, archive.breaks_after = (tmp_path/'w.bin.part').stat().st_size, []
    archive.count_anew()
    fetch_file(archive.url('w.bin'), tmp_path/'w.bin', CHECKSUM, progress=False)
    assert kept > 400_000 and archive.served == len(CONTENT) - kept


@forks
def test_a_killed_download_is_gone_on_with(archive, tmp_path):
    archive.pause = 0.05
    killed, part = child(archive, tmp_path/'w.bin'), tmp_path/'w.bin.part'
    while not part.exists() or part.stat().st_size < 100_000: time.sleep(0.02)
    os.kill(killed, signal.SIGKILL)
    os.waitpid(killed, 0)
    assert not (tmp_path/'w.bin').exists()
    kept, archive.pause = part.stat().st_size, 0
    archive.count_anew()
    assert fetch_file(archive.url('w.bin'), tmp_path/'w.bin', CHECKSUM, progress=False).read_bytes() == CONTENT
    assert archive.served == len(CONTENT) - kept and names(tmp_path) == ['w.bin']


def interrupted(archive, tmp_path):
    "A part that is there"
    archive.breaks_after = [300_000] + [0]*5
    with pytest.raises(DownloadError): fetch_file(archive.url('w.bin'), tmp_path/'w.bin', progress=False)
    archive.breaks_after = []
    archive.count_anew()
    return (tmp_path/'w.bin.part').stat().st_size


def test_a_file_that_changed_meanwhile_begins_anew(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(time, 'sleep', lambda s: None)
    assert interrupted(archive, tmp_path) > 200_000
    archive.files['w.bin'] = new = os.urandom(900_000)
    assert fetch_file(archive.url('w.bin'), tmp_path/'w.bin', progress=False).read_bytes() == new
    assert archive.served == len(new)


@pytest.mark.parametrize('states, ranges', [(False, True), (True, False)])
def test_without_a_way_to_go_on_all_is_fetched(archive, tmp_path, states, ranges, monkeypatch):
    "The server names no state and there is no checksum, or it sends all in any case"
    monkeypatch.setattr(time, 'sleep', lambda s: None)
    archive.states, archive.ranges = states, ranges
    interrupted(archive, tmp_path)
    assert fetch_file(archive.url('w.bin'), tmp_path/'w.bin', progress=False).read_bytes() == CONTENT
    assert archive.served == len(CONTENT)


def test_halves_of_two_files_are_not_joined(archive, tmp_path, monkeypatch):
    "A server that names no state can't say that the file changed; the checksum does"
    archive.states = False
    (tmp_path/'w.bin.part').write_bytes(bytes(300_000))
    assert fetch_file(archive.url('w.bin'), tmp_path/'w.bin', CHECKSUM, progress=False).read_bytes() == CONTENT


@pytest.mark.parametrize('n', [len(CONTENT), len(CONTENT) + 10])
def test_a_part_that_is_too_long_begins_anew(archive, tmp_path, n):
    (tmp_path/'w.bin.part').write_bytes(bytes(n))
    assert fetch_file(archive.url('w.bin'), tmp_path/'w.bin', CHECKSUM, progress=False).read_bytes() == CONTENT


def test_a_part_that_is_whole_gets_its_name(archive, tmp_path):
    "The process was killed before the last step"
    (tmp_path/'w.bin.part').write_bytes(CONTENT)
    (tmp_path/'w.bin.part.tag').write_text('"v1"')
    fetch_file(archive.url('w.bin'), tmp_path/'w.bin', CHECKSUM, progress=False)
    assert archive.asked == [] and names(tmp_path) == ['w.bin']


def test_another_file_is_thrown_away(archive, tmp_path):
    archive.files['w.bin'] = bytes(1000)
    refused(archive, tmp_path, 'damaged', 'w.bin', 'damaged or another file', CHECKSUM[:12], 'was removed; try again')
    assert names(tmp_path) in ([], ['w.bin.part.tag'])


def test_a_file_of_another_size_is_not_fetched(archive, tmp_path):
    refused(archive, tmp_path, 'damaged', 'has 1,000,000 bytes, not 1,000', n_bytes=1000)
    assert not (tmp_path/'w.bin.part').exists()


def test_an_answer_without_end_is_cut_off(archive, tmp_path):
    archive.announces, archive.pause = False, 0.01
    refused(archive, tmp_path, 'damaged', 'more came than the 50,000 bytes', 'it was cut off', n_bytes=50_000)
    assert not (tmp_path/'w.bin.part').exists()


def test_a_damaged_file_is_replaced_once_there_is_a_whole_one(archive, tmp_path):
    (tmp_path/'w.bin').write_bytes(b'damaged')
    archive.first = [(404, {}, b'')]
    with pytest.raises(DownloadError): fetch_file(archive.url('w.bin'), tmp_path/'w.bin', CHECKSUM, progress=False)
    assert (tmp_path/'w.bin').read_bytes() == b'damaged'
    assert fetch_file(archive.url('w.bin'), tmp_path/'w.bin', CHECKSUM, progress=False).read_bytes() == CONTENT


def test_a_file_that_is_not_there(archive, tmp_path):
    refused(archive, tmp_path, 'refused', 'nothing.bin', '404', 'check the address', name='nothing.bin')
    archive.first = [(403, {}, b'')]
    refused(archive, tmp_path, 'refused', 'w.bin', '403', 'open the address in a browser')


def test_a_busy_server_is_asked_again_when_it_says(archive, tmp_path):
    archive.first = [(503, {'Retry-After': '1'}, b'')]
    began = time.monotonic()
    fetch_file(archive.url('w.bin'), tmp_path/'w.bin', CHECKSUM, progress=False)
    assert time.monotonic() - began >= 1 and len(archive.asked) == 2


def test_a_server_that_failed_is_asked_again(archive, tmp_path):
    archive.first = [(502, {}, b'')]
    fetch_file(archive.url('w.bin'), tmp_path/'w.bin', CHECKSUM, progress=False)
    assert len(archive.asked) == 2


def test_a_server_that_stays_busy_is_left_alone(archive, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(time, 'sleep', waits.append)
    archive.first = [(503, {'Retry-After': '3600'}, b'')]*9
    refused(archive, tmp_path, 'busy', 'w.bin', '503', 'try again in 60 minutes, as it asks')
    assert len(archive.asked) == 1 and not waits
    archive.first = [(503, {'Retry-After': '20'}, b'')]*9
    refused(archive, tmp_path, 'busy', 'w.bin', '503', 'several times', 'try again later')
    assert len(archive.asked) == 6 and set(waits) == {20}


def test_a_redirect_is_followed(archive, tmp_path):
    archive.first = [(302, {'Location': archive.url('elsewhere/w.bin')}, b'')]
    fetch_file(archive.url('old.bin'), tmp_path/'w.bin', CHECKSUM, progress=False)
    assert [path for path, _ in archive.asked] == ['/old.bin', '/elsewhere/w.bin']
    archive.first = [(302, {'Location': archive.url('w.bin')}, b'')]*50
    (tmp_path/'w.bin').unlink()
    refused(archive, tmp_path, 'refused', 'Exceeded 30 redirects')


@pytest.mark.parametrize('kind, body', [
    ('text/html; charset=utf-8', b'Please log in'),
    ('application/octet-stream', b'\n<!DOCTYPE html><html>Please log in</html>')])
def test_a_page_in_place_of_the_file(archive, tmp_path, kind, body):
    archive.first = [(200, {'Content-Type': kind}, body)]
    refused(archive, tmp_path, 'page', 'w.bin', 'a web page came', 'open the address in a browser', sha256=None)
    assert (tmp_path/'w.bin.part').stat().st_size == 0
    fetch_file(archive.url('w.bin'), tmp_path/'w.bin', CHECKSUM, progress=False)


def test_a_full_disk(archive, tmp_path):
    "What came is kept, and the download continues once there is room"
    small = tmp_path/'small'
    small.mkdir()
    mounted = os.geteuid() == 0 and sys.platform == 'linux' and subprocess.run(
        ['mount', '-t', 'tmpfs', '-o', 'size=512k', 'tmpfs', small], capture_output=True).returncode == 0
    if not mounted: pytest.skip('a small disk can be mounted by root alone')
    try:
        refused(archive, small, 'disk', str(small), 'No space left on device', 'make room', 'MB are kept in')
        kept = (small/'w.bin.part').stat().st_size
        archive.count_anew()
        subprocess.run(['mount', '-o', 'remount,size=2m', small], check=True)
        assert fetch_file(archive.url('w.bin'), small/'w.bin', CHECKSUM, progress=False).read_bytes() == CONTENT
        assert kept > 400_000 and archive.served == len(CONTENT) - kept
    finally: subprocess.run(['umount', small], check=True)


@pytest.mark.skipif(sys.platform == 'win32', reason='limits of a process')
def test_a_quota(archive, tmp_path):
    "As above, without being root: no file of this process may grow beyond half of what comes"
    import resource
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, old[1]))
    try: refused(archive, tmp_path, 'disk', str(tmp_path), 'File too large', '0.5 MB are kept in w.bin.part')
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, old)
    fetch_file(archive.url('w.bin'), tmp_path/'w.bin', CHECKSUM, progress=False)


def test_a_folder_that_can_not_be_made(archive, tmp_path):
    (tmp_path/'file').write_text('')
    refused(archive, tmp_path/'file', 'disk', str(tmp_path/'file'), 'name another folder')


@forks
def test_of_two_processes_one_downloads(archive, tmp_path):
    archive.pause = 0.02
    both = [child(archive, tmp_path/'w.bin') for _ in range(2)]
    assert [os.waitpid(pid, 0)[1] for pid in both] == [0, 0]
    assert archive.served == len(CONTENT) and len(archive.asked) == 1


def test_who_waits_is_told(archive, tmp_path, capfd):
    archive.pause = 0.02
    first = threading.Thread(target=fetch_file, args=(archive.url('w.bin'), tmp_path/'w.bin', CHECKSUM, None, False))
    first.start()
    while not archive.asked: time.sleep(0.01)
    fetch_file(archive.url('w.bin'), tmp_path/'w.bin', CHECKSUM)
    first.join()
    assert 'w.bin: another process is fetching it; waiting' in capfd.readouterr().err and len(archive.asked) == 1


@pytest.mark.parametrize('url, words', [
    ('http://127.0.0.1:9/w.bin', ('Connection refused', 'check the connection')),
    ('http://nowhere.invalid/w.bin', ('nowhere.invalid', 'check the connection'))])
def test_no_network(archive, tmp_path, url, words):
    refused(archive, tmp_path, 'offline', *words, url=url)


@pytest.mark.parametrize('url', ['ftp://127.0.0.1/w.bin', 'w.bin', 'http:///w.bin'])
def test_no_address(archive, tmp_path, url): refused(archive, tmp_path, 'refused', 'check it', url=url)


@pytest.mark.parametrize('name', ['HF_HUB_OFFLINE', 'TRANSFORMERS_OFFLINE'])
def test_a_variable_forbids_to_ask(archive, tmp_path, monkeypatch, name):
    "What is there is used"
    monkeypatch.setenv(name, '1')
    refused(archive, tmp_path, 'offline', name, 'unset it to download')
    (tmp_path/'w.bin').write_bytes(CONTENT)
    fetch_file(archive.url('w.bin'), tmp_path/'w.bin', CHECKSUM)
    assert archive.asked == []


def test_a_proxy_of_the_environment_is_used(archive, tmp_path, monkeypatch):
    monkeypatch.setenv('http_proxy', archive.address)
    fetch_file('http://archive.invalid/deep/w.bin', tmp_path/'w.bin', CHECKSUM, progress=False)
    assert archive.asked == [('http://archive.invalid/deep/w.bin', None)]
    monkeypatch.setenv('http_proxy', 'http://127.0.0.1:9')
    refused(archive, tmp_path/'other', 'offline', 'through the proxy (Connection refused', 'HTTP_PROXY',
            url='http://archive.invalid/w.bin')


def test_a_password_is_in_no_message(archive, tmp_path):
    url = archive.url('nothing.bin').replace('//', '//me:secret@')
    with pytest.raises(DownloadError) as e: fetch_file(url, tmp_path/'w.bin', progress=False)
    assert 'secret' not in str(e.value)
    with pytest.raises(DownloadError) as e: fetch_file('http://me:secret@127.0.0.1:9/w', tmp_path/'w', progress=False)
    assert 'secret' not in str(e.value)


@pytest.mark.parametrize('rest', [(206, {'Content-Range': 'bytes 0-9/10'}, bytes(10)),
                                  (416, {'Content-Range': 'bytes */20000'}, b'')])
def test_a_server_that_announces_more_than_it_has_is_left(archive, tmp_path, monkeypatch, rest):
    "Asked for the rest, it sends another part, or says that there is none; and so on without end"
    monkeypatch.setattr(time, 'sleep', lambda s: None)
    for known in (CHECKSUM, None):
        archive.first = [(200, {'Content-Length': '20010', 'ETag': '"v1"'}, CONTENT[:20_000]), rest]*9
        archive.asked.clear()
        refused(archive, tmp_path, 'broken', 'another part than was asked for', sha256=known)
        assert len(archive.asked) <= 7


def test_what_does_not_end_is_cut_off(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(download, 'MAX_BYTES', 200_000)
    archive.announces = False
    for length in ('²', '-5'):
        archive.first = [(200, {'Content-Length': length}, CONTENT)]
        refused(archive, tmp_path, 'damaged', 'more came than the 200,000 bytes', sha256=None)
        assert not (tmp_path/'w.bin.part').exists()
