"Pictures that are read beside the network, in threads and in processes."
import numpy as np
import pytest
import tifffile
import torch

from hpa_fastai.all import ImageReader, find_images
from hpa_fastai.batches import streaming
from hpa_fastai.batches.streaming import read_ahead

READERS = [ImageReader(size=32), ImageReader(size=16)]


@pytest.fixture
def table(small_atlas):
    "Fields of view, one of which has lost a file"
    table = find_images(small_atlas/'train').iloc[:40].reset_index(drop=True)
    table.loc[5, 'green'] = str(small_atlas/'train'/'lost_green.png')
    return table


def read(table, todo, processes):
    "What is read, and the stamps of the files"
    stamps = {}
    return list(read_ahead(table, todo, READERS, 4, 8, None, stamps, processes)), stamps


def test_processes_read_what_threads_read(table, monkeypatch):
    monkeypatch.setattr(streaming, '_MANY', 20)
    todo = [7, *range(5, 39)]
    (by_threads, stamps), (by_processes, same) = (read(table, todo, o) for o in (False, True))
    assert [i for i, _ in by_processes] == [i for i, _ in by_threads] == todo and stamps == same
    for (_, a), (_, b) in zip(by_threads, by_processes):
        assert a == b if isinstance(a, str) else all(torch.equal(a[r], b[r]) for r in READERS)
    assert 'lost_green.png' in dict(by_processes)[5]


def test_processes_end_when_nobody_listens(table, monkeypatch):
    started = []
    class Pool(streaming.ProcessPoolExecutor):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            started.append(self)
    monkeypatch.setattr(streaming, '_MANY', 20)
    monkeypatch.setattr(streaming, 'ProcessPoolExecutor', Pool)
    stream = read_ahead(table, range(40), READERS, 4, 8, None, None, True)
    next(stream)
    workers = list(started[0]._processes.values())
    stream.close()
    for o in workers: o.join(10)
    assert workers and not any(o.is_alive() for o in workers)


CASES = [(10, 4, 32, None), (40, 3, 32, None), (40, 4, None, None), (40, 4, 32, 's3://bucket/a.png')]


@pytest.mark.parametrize('n, num_workers, size, first', CASES)
def test_when_threads_are_enough(table, monkeypatch, n, num_workers, size, first):
    "A few pictures, a few cores, pictures as large as they are, and addresses"
    monkeypatch.setattr(streaming, '_MANY', 20)
    if first: table.loc[0, 'red'] = first
    assert not streaming._worth_processes(table, n, [ImageReader(size=size)], num_workers)
    assert first or streaming._worth_processes(table, 40, READERS, 4)


@pytest.mark.filterwarnings('ignore::UserWarning')
def test_whole_pictures_come_with_the_size_that_their_file_states(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (4, 64, 64), dtype=np.uint8)
    names = dict(Name=['Alexa 555', 'Alexa 488', 'DAPI', 'Alexa 647'])
    stated = dict(axes='CYX', PhysicalSizeX=.3, PhysicalSizeXUnit='µm', Channel=names)
    tifffile.imwrite(tmp_path/'a.ome.tif', pixels, ome=True, photometric='minisblack', metadata=stated)
    table = find_images(tmp_path)
    sizes = [None, .3, .25]
    for reader, asked in ((READERS[0], table), (ImageReader(), table), (ImageReader(), table.assign(pixel_size=.25))):
        (_, got), = read_ahead(asked, [0], [reader], 1, 1)
        assert got['pixel_size'] == sizes.pop(0)
