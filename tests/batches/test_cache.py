"The image cache: right pixels, rebuilt when it must be, safe when interrupted."

import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import programs
from hpa_fastai.batches.cache import ImageCache, build_cache, cache_key, read_images
from hpa_fastai.data.files import find_images
from hpa_fastai.data.reader import ImageReader
from hpa_fastai.batches.tensors import read_image
from hpa_fastai.data.labels import HPAError


def kill_oneself(*_):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def table(small_atlas, tmp_path):
    "Eight fields of view in a folder of their own"
    import shutil

    for i, row in find_images(small_atlas / 'train').head(8).iterrows():
        for c in ('red', 'green', 'blue', 'yellow'):
            shutil.copy(row[c], tmp_path)
    return find_images(tmp_path)


def test_pixels_are_those_of_read_image(table, tmp_path):
    cache = build_cache(table, ImageReader(size=40), tmp_path / 'cache', progress=False)
    for i in (0, 5):
        assert np.array_equal(cache.batch(cache.rows([table.Id[i]]))[0], read_image(table.iloc[i], 40))


def test_processes_fill_it_as_threads_do(small_atlas, tmp_path, monkeypatch):
    monkeypatch.setattr('hpa_fastai.batches.cache.PROCESSES_FROM', 20)
    table = find_images(small_atlas / 'train').head(40)
    gone = table.assign(
        red=[*table.red[:30], 'gone.png', *table.red[31:]], ignored=[threading.Lock() for _ in range(40)]
    )
    one, two = (build_cache(gone, ImageReader(size=16), tmp_path / f'{n}', n, progress=False) for n in (1, 2))
    assert np.array_equal(one.images, two.images) and list(one.errors) == list(two.errors) == [table.Id[30]]
    assert one.images[29].max() > 0 and one.images[30].max() == 0


DAEMON = """
import multiprocessing, sys
import hpa_fastai.batches.cache as c
from hpa_fastai.data.files import find_images
from hpa_fastai.data.reader import ImageReader
def build():
    cache = c.build_cache(find_images(sys.argv[1]), ImageReader(size=16), sys.argv[2], progress=False)
    print(len(cache.errors), flush=True)
if __name__=='__main__':
    c.PROCESSES_FROM = 2
    p = multiprocessing.get_context('fork').Process(target=build, daemon=True)
    p.start(), p.join()
"""


def test_a_daemon_builds_it_too(table, tmp_path):
    run = programs.run(DAEMON, Path(table.red[0]).parent, tmp_path / 'cache')
    assert run.stdout == '0\n', run.stderr


def test_a_caller_at_work_with_processes_of_its_own(small_atlas, tmp_path, monkeypatch):
    from joblib import Parallel, delayed

    monkeypatch.setattr('hpa_fastai.batches.cache.PROCESSES_FROM', 20)
    table = find_images(small_atlas / 'train').head(40)
    others = Parallel(2, return_as='generator', batch_size=1)(delayed(time.sleep)(0.1) for _ in range(8))
    next(others)
    assert not build_cache(table, ImageReader(size=16), tmp_path / 'cache', 2, progress=False).errors
    assert len(list(others)) == 7


def test_a_process_that_is_killed_is_one_line(small_atlas, tmp_path, monkeypatch):
    monkeypatch.setattr('hpa_fastai.batches.cache.PROCESSES_FROM', 20)
    monkeypatch.setattr('hpa_fastai.batches.cache.read_into', kill_oneself)
    with pytest.raises(HPAError, match='is the disk full, or the memory'):
        build_cache(
            find_images(small_atlas / 'train').head(40), ImageReader(size=16), tmp_path / 'cache', 2, progress=False
        )
    assert not list((tmp_path / 'cache').iterdir())


def test_order_of_rows_does_not_matter_for_pixels(table, tmp_path):
    cache = build_cache(table[::-1], ImageReader(size=16), tmp_path / 'cache', progress=False)
    assert np.array_equal(cache.batch(cache.rows([table.Id[2]]))[0], read_image(table.iloc[2], 16))


@pytest.mark.parametrize('change', ['content', 'size', 'setting'])
def test_rebuilt_when_something_changes(table, tmp_path, change):
    reader = ImageReader(size=16)
    old = cache_key(table, reader)
    if change == 'content':
        os.utime(table.red[0], ns=(1, 1))
    if change == 'size':
        Path(table.red[0]).write_bytes(b'')
    if change == 'setting':
        reader = ImageReader(size=16, missing='zero')
    assert cache_key(table, reader) != old


def test_unreadable_fields_are_named_and_zero(table, tmp_path):
    Path(table.blue[3]).write_bytes(Path(table.blue[3]).read_bytes()[:100])
    cache = build_cache(table, ImageReader(size=16), tmp_path / 'cache', progress=False)
    assert list(cache.errors) == [table.Id[3]] and Path(table.blue[3]).name in cache.errors[table.Id[3]]
    assert cache.images[3].max() == 0 and cache.images[4].max() > 0


def test_a_folder_that_cannot_be_made_is_one_line(table):
    with pytest.raises(HPAError, match='no image cache can be kept there'):
        build_cache(table, ImageReader(size=16), '/proc/nowhere', progress=False)


def test_needs_a_size(table):
    with pytest.raises(HPAError, match='needs a size'):
        build_cache(table, ImageReader())


def test_too_small_a_disk_is_said_and_files_are_used(table, tmp_path, monkeypatch):
    import shutil

    monkeypatch.setattr(shutil, 'disk_usage', lambda _: shutil._ntuple_diskusage(100, 99, 1))
    with pytest.warns(UserWarning, match='reading from the files instead'):
        assert build_cache(table, ImageReader(size=16), tmp_path / 'cache', progress=False) is None


BUILD = """
import sys, time
from hpa_fastai.data.files import find_images
from hpa_fastai.data.reader import ImageReader
import hpa_fastai.batches.cache as c
read = c.read_images
def slowly(*args):
    for o in read(*args): time.sleep(float(sys.argv[3])); yield o
c.read_images = slowly
print(c.build_cache(find_images(sys.argv[1]), ImageReader(size=16), sys.argv[2], progress=False).file)
"""


def test_killed_build_leaves_no_cache(table, tmp_path):
    folder, cache = Path(table.red[0]).parent, tmp_path / 'cache'
    p = programs.Program(BUILD, folder, cache, 1)
    deadline = time.time() + 60
    while not list(cache.glob('building-*/*.npy')) and time.time() < deadline:
        time.sleep(0.05)
    assert list(cache.glob('building-*/*.npy')) and p.poll() is None
    p.send_signal(signal.SIGKILL)
    p.wait()
    assert not list(cache.glob('*.npy'))
    assert len(build_cache(table, ImageReader(size=16), cache, progress=False)) == len(table)
    assert not list(cache.glob('building-*'))  # what the killed one left is gone


def test_two_processes_at_once_agree(table, tmp_path):
    folder, cache = Path(table.red[0]).parent, tmp_path / 'cache'
    both = [programs.Program(BUILD, folder, cache, 0.1) for _ in range(2)]
    while not list(cache.glob('building-*/*.npy')):
        time.sleep(0.02)
    assert (
        len(build_cache(table[:1], ImageReader(size=16), cache, progress=False)) == 1
    )  # and leaves the others' work alone
    files = {p.communicate()[0] for p in both}
    assert len(files) == 1 and [p.returncode for p in both] == [0, 0]
    cache = build_cache(table, ImageReader(size=16), cache, progress=False)
    assert np.array_equal(cache.images[1], read_image(table.iloc[1], 16))


def spoil(file, how):
    "Damage a cache as cleaners, full disks and people do"
    whole, info = file.read_bytes(), json.dumps(dict(ids=build_ids(file), errors={})).encode()
    pixels = whole[: -len(info)]
    assert whole == pixels + info
    damaged = {
        'gone': None,
        'empty': b'',
        'cut in the Ids': whole[:-20],
        'without Ids': pixels,
        'Ids of something else': pixels + b'[1, 2]',
        'errors without Ids': pixels + b'{"errors": {}}',
        'other Ids': pixels + info.replace(b'"ids": ["', b'"ids": ["x'),
        'cut in the pixels': pixels[:-1],
        'of something else': b'<html>',
    }
    if how == 'of another shape':
        np.save(file, np.zeros((8, 4, 8, 8), np.uint8))
    elif damaged[how] is None:
        file.unlink()
    else:
        file.write_bytes(damaged[how])


def build_ids(file):
    return list(ImageCache(file).row)


DAMAGE = [
    'gone', 'empty', 'cut in the Ids', 'without Ids', 'Ids of something else', 'errors without Ids', 'other Ids',
    'cut in the pixels', 'of something else', 'of another shape',
]


@pytest.mark.filterwarnings('ignore:.*this image cache is damaged')
@pytest.mark.parametrize('how', DAMAGE)
def test_a_damaged_cache_is_built_again(table, tmp_path, how):
    file = build_cache(table, ImageReader(size=16), tmp_path / 'cache', progress=False).file
    spoil(file, how)
    again = build_cache(table, ImageReader(size=16), tmp_path / 'cache', progress=False)
    assert np.array_equal(again.batch(again.rows([table.Id[5]]))[0], read_image(table.iloc[5], 16)) and not again.errors
    assert [o.suffix for o in (tmp_path / 'cache').iterdir()] == ['.npy']


def test_a_damaged_cache_is_said(table, tmp_path):
    spoil(build_cache(table, ImageReader(size=16), tmp_path / 'cache', progress=False).file, 'cut in the pixels')
    with pytest.warns(UserWarning, match='damaged; it is built again'):
        build_cache(table, ImageReader(size=16), tmp_path / 'cache', progress=False)


def test_tables_of_another_order_make_the_same_file(table, tmp_path):
    one, two = (
        build_cache(t, ImageReader(size=16), tmp_path / f'{n}', progress=False).file
        for n, t in enumerate((table, table[::-1]))
    )
    assert one.name == two.name and one.read_bytes() == two.read_bytes()


KILLED = """
import builtins, os, signal, sys
from hpa_fastai.data.files import find_images
from hpa_fastai.data.reader import ImageReader
import hpa_fastai.batches.cache as c
table, left = find_images(sys.argv[1])[::-1], [int(sys.argv[3])]
def dying(module, name, f):
    def step(*args, **kwargs):
        left[0] -= 1
        if not left[0]: os.kill(os.getpid(), signal.SIGKILL)
        return f(*args, **kwargs)
    setattr(module, name, step)
for name in ('replace', 'rename', 'fsync', 'mkdir', 'utime', 'posix_fallocate', 'rmdir', 'unlink'):
    dying(os, name, getattr(os, name))
dying(c.json, 'dumps', c.json.dumps)
dying(builtins, 'open', open)
c.build_cache(table, ImageReader(size=16), sys.argv[2], num_workers=1, progress=False)
print(left[0])
"""


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:.*this image cache is damaged')
@pytest.mark.parametrize('before', ['nothing', 'whole', 'damaged'])
def test_a_kill_between_any_two_steps_spoils_no_pixels(table, tmp_path, before):
    "Killed at its first call of the system, at its second, …, until it comes to its end"
    reader, folder, k = ImageReader(size=16), Path(table.red[0]).parent, 0
    if before == 'whole':
        folder.joinpath('x.txt').write_text('not an image')
    while True:
        k += 1
        place = tmp_path / f'cache{k}'
        if before != 'nothing':
            file = build_cache(table, reader, place, progress=False).file
            if before == 'damaged':
                spoil(file, 'other Ids')
        done = programs.run(KILLED, folder, place, k)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        for _ in range(2):
            cache = build_cache(table, reader, place, progress=False)
            for i in (0, 3, 7):
                assert np.array_equal(cache.batch(cache.rows([table.Id[i]]))[0], read_image(table.iloc[i], 16))
            assert not cache.errors
        if not done.returncode:
            break
    assert k > (2 if before == 'whole' else 10)


def test_errors_stay_with_their_pixels(table, tmp_path, monkeypatch):
    "Of two builds at once, one of which could not read a file, the file that counts has its own errors"
    def build(bad):
        def read(t, reader, n):
            for i, img in read_images(t, reader, n):
                yield i, HPAError('gone for a moment') if bad and not i else img
        monkeypatch.setattr('hpa_fastai.batches.cache.read_images', read)
        return build_cache(table, ImageReader(size=16), tmp_path / f'{bad}', progress=False).file
    good, bad = build(False), build(True)
    os.replace(bad, good)
    assert list(ImageCache(good).errors) == [min(table.Id)] and not ImageCache(good).images[0].any()


@pytest.mark.parametrize(
    'error, words', [*((n, 'the disk is full') for n in (27, 28, 122)), (13, 'no image cache can be kept there')]
)
def test_a_disk_that_fills_up_and_one_that_is_not_ours(table, tmp_path, monkeypatch, error, words):
    def refuse(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, 'posix_fallocate', refuse)
    if error == 13:
        with pytest.raises(HPAError, match=words):
            build_cache(table, ImageReader(size=16), tmp_path / 'cache', progress=False)
    else:
        with pytest.warns(UserWarning, match=words):
            assert build_cache(table, ImageReader(size=16), tmp_path / 'cache', progress=False) is None
    assert not list((tmp_path / 'cache').iterdir())
