"Several nodes: a cache on each, the same images on all, one model, and nobody who waits for a node that is lost."
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from programs import COMMAND, Program

pytest.importorskip('accelerate')
pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='nodes are simulated by what Linux has')


@pytest.fixture
def atlas(small_atlas, tmp_path):
    "A copy of the small atlas that a test may change"
    return shutil.copytree(small_atlas, tmp_path/'atlas')


def free_port():
    with socket.create_server(('127.0.0.1', 0)) as free: return free.getsockname()[1]


def start(tmp_path, programs, nodes=(0, 1), homes=None, **env):
    "Start processes as a launcher does, on these nodes, each with a cache folder of its own"
    shared = os.environ | dict(OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='', WORLD_SIZE=str(len(nodes)),
                               MASTER_ADDR='127.0.0.1', MASTER_PORT=str(free_port()), HPA_FASTAI_PATIENCE='60') | env
    started = []
    for rank, (node, (code, *args)) in enumerate(zip(nodes, programs)):
        folder = tmp_path/f'node{node}'
        folder.mkdir(exist_ok=True)
        own = dict(RANK=str(rank), LOCAL_RANK=str(list(nodes[:rank]).count(node)),
                   XDG_CACHE_HOME=str(homes or folder/'cache'))
        started.append(Program(code, *args, cwd=folder, env=shared | own))
    return started


def ends(started):
    "What each process printed, its errors, and its exit code"
    try: said = [program.communicate(120) for program in started]
    finally:
        for program in started: program.kill()
    return [(*streams, program.returncode) for program, streams in zip(started, said)]


def launch(tmp_path, code, *args, nodes=(0, 1), **kwargs):
    "What processes print that all run one program and come to its end"
    found = ends(start(tmp_path, [(code, *args)]*len(nodes), nodes, **kwargs))
    assert {rc for *_, rc in found} == {0}, found
    return [out for out, *_ in found], [err for _, err, _ in found]


LOADERS = """
import sys, torch, warnings
from hpa_fastai.all import *
from hpa_fastai.basics.processes import start_processes
from hpa_fastai.batches import cache
def build(*args, before=cache._build):
    print('builds')
    before(*args)
cache._build = build
start_processes(torch.device('cpu'))
dls = HPADataLoaders.from_csv(sys.argv[1], size=32, bs=8, group='antibody', valid_pct=.3, device='cpu', progress=False,
                              **eval(sys.argv[2] if len(sys.argv)>2 else '{}'))
for dl in dls.loaders: print(*dl.dataset.items.Id)
"""


@pytest.mark.parametrize('shares_home', [False, True])
def test_a_cache_is_built_once_for_each_folder_of_caches(small_atlas, tmp_path, shares_home):
    nodes, homes = (0, 0, 1, 1), tmp_path/'home' if shares_home else None
    out, _ = launch(tmp_path, LOADERS, small_atlas, nodes=nodes, homes=homes)
    assert [text.count('builds') for text in out] == ([1, 0, 0, 0] if shares_home else [1, 0, 1, 0])
    caches = [p for p in tmp_path.rglob('hpa_fastai/*') if not p.is_dir() or p.name.startswith('building')]
    assert len(caches) == (1 if shares_home else 2), 'nothing but the caches is left'
    assert len({text.replace('builds\n', '') for text in out}) == 1, 'all have the same images'


def test_a_cache_that_one_node_has_already_is_not_built_there(small_atlas, tmp_path):
    for _ in range(2): out, _ = launch(tmp_path, LOADERS, small_atlas)
    shutil.rmtree(tmp_path/'node1'/'cache'/'hpa_fastai')
    again, _ = launch(tmp_path, LOADERS, small_atlas)
    assert ['builds' in text for text in (*out, *again)] == [False, False, False, True]


@pytest.mark.parametrize('cache', [True, False])
def test_a_picture_that_one_node_can_not_read_is_left_out_on_all(small_atlas, atlas, tmp_path, cache):
    there = pd.read_csv(atlas/'train.csv').Id
    broken = next(atlas.rglob(f'{there[3]}_green*'))
    broken.write_bytes(broken.read_bytes()[:100])
    said = ends(start(tmp_path, [(LOADERS, folder, f'dict(cache={cache})') for folder in (small_atlas, atlas)]))
    (first, err, _), (second, _, _) = said
    first, second = (re.sub('builds\n', '', text) for text in (first, second))
    assert first == second and sorted(first.split()) == sorted(set(there) - {there[3]})
    assert "1 of 90 fields of view can't be read" in err and 'in process 1 on ' in err


NO_ROOM = """
import shutil, os
if os.environ['RANK'] == '1': shutil.disk_usage = lambda *_: shutil._ntuple_diskusage(10**9, 10**9, 1000)
"""


def test_a_node_without_room_for_a_cache_reads_the_files_and_the_first_says_so(small_atlas, tmp_path):
    (first, second), (err, _) = launch(tmp_path, NO_ROOM + LOADERS, small_atlas)
    assert first.replace('builds\n', '') == second and 'builds' in first
    assert re.search(r'process 1 on \S+ has no room for an image cache and reads the files each time; the 1 others '
                     r'wait for it at each step; give a folder with room there with cache=… \(--cache\)', err)


TRAIN = ('--group antibody --arch lenet5 --pretrained no --size 32 --sizes 32 --epochs 1 --bs 8 --device cpu '
         '--no-progress').split()


def remove_row(atlas):
    table = pd.read_csv(atlas/'train.csv')
    table[:-1].to_csv(atlas/'train.csv', index=False)


def change_label(atlas):
    table = pd.read_csv(atlas/'train.csv')
    table['Target'] = ['0', *table.Target[1:]] if table.Target[0] != '0' else ['1', *table.Target[1:]]
    table.to_csv(atlas/'train.csv', index=False)


def remove_pictures(atlas):
    for file in atlas.rglob(f"{pd.read_csv(atlas/'train.csv').Id[0]}_*"): file.unlink()


def save_again(atlas):
    from PIL import Image
    for file in atlas.rglob('*.png'): Image.open(file).save(file, compress_level=0)


@pytest.mark.parametrize('change, why', [
    (remove_row, 'labelled images: 89 in process 1 on .*, and 90 in process 0 .*the same version of the data'),
    (change_label, 'digest of the labels: .* in process 1 .*the same version of the data'),
    (save_again, 'image files: most have another size in process 1 .*the same version of the data'),
    (remove_pictures, '1 of 90 Ids have no image in .*add the files'),
    (shutil.rmtree, 'no such f|did not find each other')])
def test_nodes_with_other_data_are_refused(small_atlas, atlas, tmp_path, change, why):
    change(atlas)
    for _, err, rc in ends(start(tmp_path, [(COMMAND, 'train', folder, *TRAIN) for folder in (small_atlas, atlas)],
                                 HPA_FASTAI_PATIENCE='5')):
        lines = [line for line in err.splitlines() if line.startswith('hpa_fastai: ')]
        assert rc == 2 and len(lines) == 1 and re.search(why, lines[0]), err
    assert not list(tmp_path.rglob('hpa_model*')), 'nothing was written'


OTHER_VERSION = """
import os, hpa_fastai
if os.environ['RANK'] == '1': hpa_fastai.__version__ = '0.0.9'
"""
NO_CACHE = """
import os, pathlib
if os.environ['RANK'] == '1':
    pathlib.Path('cache').mkdir(exist_ok=True)
    pathlib.Path('cache/hpa_fastai').write_text('a file')
"""


@pytest.mark.parametrize('first, why', [
    (OTHER_VERSION, r'version of hpa_fastai: 0\.0\.9 in process 1 on \S+, and .* in process 0 on .*; install the same'),
    (NO_CACHE, 'no image cache can be kept there')])
def test_a_node_with_another_version_or_without_a_cache_folder_is_refused(small_atlas, tmp_path, first, why):
    for _, err, rc in ends(start(tmp_path, [(first + COMMAND, 'train', small_atlas, *TRAIN)]*2)):
        lines = [line for line in err.splitlines() if line.startswith('hpa_fastai: ')]
        assert rc == 2 and len(lines) == 1 and re.search(why, lines[0]), err
    assert not list(tmp_path.rglob('hpa_model*')), 'nothing was written'


@pytest.mark.parametrize('rank', [0, 1])
@pytest.mark.parametrize('address', ['127.0.0.1', 'no-such-node.invalid'])
def test_a_node_that_finds_no_others_ends(small_atlas, tmp_path, rank, address):
    "Nobody listens there, or nobody comes"
    env = os.environ | dict(WORLD_SIZE='2', RANK=str(rank), LOCAL_RANK='0', MASTER_ADDR=address,
                            MASTER_PORT=str(free_port()), HPA_FASTAI_PATIENCE='2', CUDA_VISIBLE_DEVICES='')
    (_, err, rc), = ends([Program(COMMAND, 'train', small_atlas, *TRAIN, cwd=tmp_path, env=env)])
    lines = [line for line in err.splitlines() if line.startswith('hpa_fastai: ')]
    assert rc == 2 and len(lines) == 1 and 'did not find each other at ' + address in lines[0], err
    assert 'check MASTER_ADDR' in lines[0]
