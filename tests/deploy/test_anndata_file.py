"An AnnData file holds the embeddings, the table and the layout of the map, and is whole or not there."
import os
import shutil
import signal
import subprocess
import sys
import warnings
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest

import programs
from hpa_fastai.basics.errors import HPAError
from hpa_fastai.cells.cells import predict_cells
from hpa_fastai.cli.main import main
from hpa_fastai.data.files import find_images
from hpa_fastai.data.labels import ZTG10
from hpa_fastai.deploy.anndata_file import annotation_table, keep_layout, read_anndata, write_anndata
from hpa_fastai.deploy.embeddings import EmbeddingFile
from hpa_fastai.deploy.journal import Journal
from hpa_fastai.deploy.tables import csv_text, result_columns
from hpa_fastai.interpret.embedding_map import embedding_map, read_embeddings
from hpa_fastai.interpret.prediction import predict
from hpa_fastai.simulate.atlas import simulate_atlas

needs_anndata = pytest.mark.skipif(find_spec('anndata') is None, reason='needs anndata')
COLUMNS = result_columns(ZTG10)


def row(id_, error=''): return [id_, '2', 'Nucleoli', *[.125]*10, '', error]


def read(path):
    import anndata
    with warnings.catch_warnings():
        for kind in (FutureWarning, PendingDeprecationWarning): warnings.simplefilter('error', kind)
        return anndata.read_h5ad(path)


@pytest.fixture
def plate(small_atlas, tmp_path):
    "Ten fields of view, one of them broken"
    (tmp_path/'plate').mkdir()
    for _, o in find_images(small_atlas/'train').head(10).iterrows():
        for c in ('red', 'green', 'blue', 'yellow'): shutil.copy(o[c], tmp_path/'plate')
    sorted((tmp_path/'plate').glob('*_green.png'))[3].write_bytes(b'broken')
    return tmp_path/'plate'


# ---- without the package

@pytest.fixture
def without_anndata(monkeypatch):
    for package in ('anndata', 'h5py'): monkeypatch.setitem(sys.modules, package, None)


@pytest.mark.parametrize('command', ['predict', 'cells'])
def test_a_missing_package_is_said_before_any_work(tmp_path, monkeypatch, capsys, without_anndata, command):
    monkeypatch.chdir(tmp_path)
    assert main([command, 'nowhere', '--embeddings', 'e.h5ad']) == 2
    said = capsys.readouterr().err
    assert ".h5ad file needs anndata: pip install 'hpa_fastai[anndata]'" in said and said.count('\n') == 1
    assert os.listdir(tmp_path) == []


def test_a_missing_package_is_said_by_the_map(tmp_path, without_anndata):
    (tmp_path/'e.h5ad').write_bytes(b'any')
    with pytest.raises(HPAError, match=r"pip install 'hpa_fastai\[anndata\]'"): read_embeddings(tmp_path/'e.h5ad')


# ---- the table in it

def test_any_table_of_images_makes_columns_that_can_be_stored(tmp_path):
    "Names with a slash, reserved and equal ones, numbers as names; dates, lists, missing values, odd characters"
    (tmp_path/'p.csv').write_text(csv_text([COLUMNS, row('=a'), row('b', 'damaged'), row('c, "d"\nd')]))
    ids = ['=a', 'b', 'c, "d"\nd']
    beside = pd.DataFrame({
        'a/b': ['x', None, 'x'], 'a_b': [1, 2, 3], '_index': [True, False, True], '': [.5, np.nan, 1], 7: list('xyz'),
        '.': [[1, 2], 'two', None], 'when': pd.to_datetime(['2024-01-01', None, '2024-01-03']),
        'n': pd.array([1, None, 3], 'Int64'), 'nul': ['a\0b', 'c', 'd'],
        'half': pd.Series(['\udcfc', 'c', 'c'], ids, dtype=object),
        'error': ['of', 'another', 'kind']}, ids)
    obs = annotation_table(tmp_path/'p.csv', COLUMNS, beside)
    assert obs.index.tolist() == ids and obs.error.tolist() == ['', 'damaged', '']
    assert list(obs)[len(COLUMNS)-1:] == ['a_b', 'a_b_', '_index_', '_', '7', '._', 'when', 'n', 'nul', 'half']
    assert obs.a_b.tolist() == ['x', '', 'x'] and obs.a_b.dtype == 'category' and obs.a_b_.tolist() == [1, 2, 3]
    assert obs.nul.tolist() == ['ab', 'c', 'd'] and obs.n.isna().tolist() == [False, True, False]
    assert obs.half.tolist() == ['\\udcfc', 'c', 'c'] and obs['_index_'].dtype == bool
    if find_spec('anndata') is None: return
    x = np.zeros((3, 2), np.float32)
    write_anndata(tmp_path/'e.h5ad', obs, lambda a, b: x[a:b], dict(classes=list(ZTG10.classes)))
    back = read(tmp_path/'e.h5ad').obs
    assert list(back) == list(obs) and back.index.tolist() == obs.index.tolist()
    for c in obs: assert back[c].astype(str).tolist() == obs[c].astype(str).tolist(), c


# ---- predictions

@needs_anndata
def test_fields_with_their_table_and_failed_ones_with_their_error(plate, trained, tmp_path):
    table = find_images(plate).assign(gene=['TP53']*5 + ['ACTB']*5)
    df = predict(table, trained[1], out=tmp_path/'p.csv', embeddings=tmp_path/'e.h5ad', bs=4, progress=False)
    predict(table, trained[1], out=tmp_path/'w.csv', embeddings=tmp_path/'w.npy', bs=4, progress=False)
    data = read(tmp_path/'e.h5ad')
    assert data.X.dtype == np.float32 and np.array_equal(data.X, np.load(tmp_path/'w.npy'), equal_nan=True)
    assert data.obs_names.tolist() == df.Id.tolist() and data.obs_names.is_unique
    assert data.var_names.tolist() == [f'e{i}' for i in range(data.n_vars)]
    for c in ('Predicted', 'Names', 'flags', 'error'): assert data.obs[c].astype(str).tolist() == df[c].tolist()
    classes = list(data.uns['hpa_fastai']['classes'])
    assert np.allclose(data.obs[classes], df[classes], atol=1e-6, equal_nan=True)
    assert data.obs.gene.tolist() == table.gene.tolist() and data.obs.gene.dtype == 'category'
    failed = np.isnan(data.X).all(1)
    assert failed.sum() == 1 and (failed == (data.obs.error != '')).all()
    assert data.uns['hpa_fastai']['label_set'] == 'hpa28' and 'resnet10t' in data.uns['hpa_fastai']['networks']


@needs_anndata
def test_fields_that_all_failed(plate, trained, tmp_path):
    for file in plate.iterdir(): file.write_bytes(b'broken')
    df = predict(plate, trained[1], out=tmp_path/'p.csv', embeddings=tmp_path/'e.h5ad', progress=False)
    data = read(tmp_path/'e.h5ad')
    assert np.isnan(data.X).all() and data.obs.error.tolist() == df['error'].tolist()


@pytest.fixture(scope='module')
def two_fields(tmp_path_factory):
    path = tmp_path_factory.mktemp('two')
    simulate_atlas(path, n=2, size=256, seed=1, difficulty='easy', progress=False)
    return path/'train'


@needs_anndata
def test_cells_are_named_by_field_and_number(two_fields, trained, tmp_path):
    out = dict(out=tmp_path/'c.parquet', embeddings=tmp_path/'e.h5ad', progress=False)
    df, data = predict_cells(trained[1], two_fields, **out), read(tmp_path/'e.h5ad')
    assert data.obs_names.tolist() == [f'{i} cell {n}' for i, n in zip(df.Id, df.cell)] and len(df) > 3
    assert data.obs.Id.tolist() == df.Id.tolist() and data.obs.cell.tolist() == df.cell.tolist()
    assert 'mask' not in data.obs and np.isfinite(data.X).all() and data.obs.Id.dtype == 'category'
    assert np.allclose(data.obs[['x', 'y', 'area']], df[['x', 'y', 'area']])


@needs_anndata
def test_the_commands(plate, two_fields, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    of_model = ['--model', str(trained[1]), '--embeddings', 'e.h5ad', '--no-progress']
    assert main(['predict', str(plate), '--out', 'p.csv', *of_model]) == 1  # one field is broken
    assert read('e.h5ad').n_obs == 10
    assert main(['cells', str(two_fields), '--out', 'c.csv', *of_model]) == 2
    assert 'e.h5ad exists' in capsys.readouterr().err
    of_model[3] = 'f.h5ad'
    assert main(['cells', str(two_fields), '--out', 'c.csv', *of_model]) == 0
    assert main(['map', 'c.csv', '--embeddings', 'f.h5ad', '--method', 'pca', '--no-progress']) == 0
    assert read('f.h5ad').obsm['X_pca'].shape == (read('f.h5ad').n_obs, 2)


# ---- kills and full disks

@needs_anndata
@pytest.mark.parametrize('after', [False, True])
def test_a_run_killed_around_the_last_name_of_a_file_goes_on(plate, trained, tmp_path, after):
    "When the embeddings have their name and the table not yet, and when both have"
    out, real = dict(out=tmp_path/'p.csv', embeddings=tmp_path/'e.h5ad', bs=4, progress=False), os.replace
    def killed(old, new):
        if str(new).endswith('p.csv') and not after: raise KeyboardInterrupt
        real(old, new)
        if str(new).endswith('p.csv'): raise KeyboardInterrupt
    with pytest.MonkeyPatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(os, 'replace', killed)
        predict(plate, trained[1], **out)
    assert (tmp_path/'e.h5ad').exists() and (tmp_path/'p.csv').exists() == after
    predict(plate, trained[1], **out)
    predict(plate, trained[1], **{**out, 'out': tmp_path/'w.csv', 'embeddings': tmp_path/'w.h5ad'})
    assert (tmp_path/'e.h5ad').read_bytes() == (tmp_path/'w.h5ad').read_bytes()
    assert sorted(o.name for o in tmp_path.iterdir()) == ['e.h5ad', 'p.csv', 'plate', 'w.csv', 'w.h5ad']


KILL = """
import os, signal, sys
import hpa_fastai.deploy.anndata_file as module, hpa_fastai.deploy.embeddings as embeddings
from hpa_fastai.interpret.embedding_map import embedding_map
from hpa_fastai.interpret.prediction import predict
from contextlib import contextmanager
real = module._open_h5
@contextmanager
def killed(*args, **kwargs):
    with real(*args, **kwargs) as file: yield file
    os.kill(os.getpid(), signal.SIGKILL)
module._open_h5 = killed
folder, model, out, e = sys.argv[1:]
if os.path.exists(e): embedding_map(out, e, out=out+'.html', method='pca', progress=False)
else: predict(folder, model, out=out, embeddings=e, bs=4, progress=False)
"""


@needs_anndata
def test_a_kill_leaves_the_file_away_or_whole(plate, trained, tmp_path):
    "While the embeddings are converted, and while the layout of a map is added to them"
    out = dict(out=tmp_path/'p.csv', embeddings=tmp_path/'e.h5ad', bs=4, progress=False)
    run = [KILL, plate, trained[1], out['out'], out['embeddings']]
    assert programs.run(*run).returncode == -signal.SIGKILL
    assert not (tmp_path/'e.h5ad').exists() and not (tmp_path/'p.csv').exists()
    predict(plate, trained[1], **out)
    whole = (tmp_path/'e.h5ad').read_bytes()
    assert programs.run(*run).returncode == -signal.SIGKILL
    assert (tmp_path/'e.h5ad').read_bytes() == whole
    embedding_map(out['out'], out['embeddings'], out=tmp_path/'m.html', method='pca', progress=False)
    assert np.isfinite(read(tmp_path/'e.h5ad').obsm['X_pca']).all(1).sum() == 9
    assert sorted(o.name for o in tmp_path.iterdir()) == ['e.h5ad', 'm.html', 'p.csv', 'plate']


def on_a_disk_of(kb, tmp_path):
    "A disk of its own"
    (tmp_path/'disk').mkdir(exist_ok=True)
    mount = ['mount', '-t', 'tmpfs', '-o', f'size={kb}k', 'tmpfs', str(tmp_path/'disk')]
    if not shutil.which('mount') or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip('no disk can be mounted here')
    return tmp_path/'disk'


FULL = """
import sys, numpy as np, pandas as pd
from pathlib import Path
from hpa_fastai.deploy.anndata_file import *
disk, vectors = Path(sys.argv[1]), np.ones((200, 300), np.float32)
obs = pd.DataFrame(dict(error=pd.Series([f'{i}'*50 for i in range(200)], dtype=object)))
obs.index = pd.Index([str(i) for i in range(200)], dtype=object)
for room in range(4_000, 400_000, 12_000):
    (disk/'filler').write_bytes(bytes(400_000-room))
    try: write_anndata(disk/'e.h5ad', obs, lambda a, b: vectors[a:b], {}, chunk=10)
    except OSError as e: assert e.strerror == 'No space left on device', (room, e)
    else:
        assert room > 240_000, room
        if room < 380_000: print('written', room)
    for name in ('e.h5ad', 'filler'): (disk/name).unlink(missing_ok=True)
print('came to the end')
"""


@needs_anndata
def test_a_full_disk_never_ends_the_process(tmp_path):
    "HDF5 by itself ends it, if the disk is full when a file is closed; at every place where it can be full"
    disk = on_a_disk_of(400, tmp_path)
    try: done = programs.run(FULL, disk)
    finally: subprocess.run(['umount', disk], check=True)
    assert done.returncode == 0 and done.stdout.endswith('came to the end\n'), done


@needs_anndata
def test_predictions_on_a_full_disk_are_one_line_and_go_on(plate, trained, tmp_path, capsys):
    disk = on_a_disk_of(160, tmp_path)
    try:
        (disk/'filler').write_bytes(bytes(110_000))
        args = ['predict', str(plate), '--model', str(trained[1]), '--out', str(disk/'p.csv')]
        args += ['--embeddings', str(disk/'e.h5ad'), '--no-progress']
        assert main(args) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert f'{disk}/e.h5ad' in said and 'No space left' in said and 'the rows are kept in' in said
        (disk/'filler').unlink()
        assert main(args) == 1 and read(disk/'e.h5ad').n_obs == 10
        whole = (disk/'e.h5ad').read_bytes()
        (disk/'filler').write_bytes(bytes(os.statvfs(disk).f_bavail*4096-20_000))
        with pytest.warns(UserWarning, match="e.h5ad: the layout can't be kept in it .No space left.*as it was"):
            embedding_map(disk/'p.csv', disk/'e.h5ad', out=tmp_path/'m.html', method='pca', progress=False)
        assert (disk/'e.h5ad').read_bytes() == whole and not list(disk.glob('tmp-*')) and (tmp_path/'m.html').exists()
    finally: subprocess.run(['umount', disk], check=True)


# ---- the map

@pytest.fixture
def written(tmp_path):
    "An AnnData file of four rows"
    x = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    with Journal(tmp_path/'p.csv', COLUMNS, {}, embeddings=EmbeddingFile(tmp_path/'e.h5ad')) as journal:
        journal.add([row(i) for i in 'abcd'], x)
        journal.finish()
    return tmp_path/'e.h5ad'


@needs_anndata
def test_the_layout_is_kept_beside_what_scanpy_added(written, tmp_path):
    data = read(written)
    data.obs['leiden'] = pd.Categorical(list('0101'))
    data.obsm['X_umap'] = np.ones((4, 2))
    data.layers['again'] = data.X.astype(float)
    data[::-1].copy().write_h5ad(written, compression='gzip')  # rows in another order
    page = embedding_map(tmp_path/'p.csv', written, out=tmp_path/'m.html', method='pca', progress=False)
    after = read(written)
    assert page.exists() and after.obs.leiden.tolist() == list('1010') and (after.obsm['X_umap'] == 1).all()
    embedding_map(tmp_path/'p.csv', data.X, out=tmp_path/'n.html', method='pca', progress=False)
    assert after.obsm['X_pca'].shape == (4, 2) and np.isfinite(after.obsm['X_pca']).all()
    x, names = read_embeddings(written)
    assert names == list('dcba') and np.array_equal(x, data.X[::-1])
    assert np.array_equal(after.layers['again'], data.layers['again'][::-1])


@needs_anndata
def test_a_layout_of_somebody_else_stays(written, tmp_path):
    data = read(written)
    data.obsm['X_pca'] = np.ones((4, 7))
    data.write_h5ad(written)
    whole = written.read_bytes()
    how = dict(method='pca', progress=False)
    with pytest.warns(UserWarning, match='e.h5ad: has another layout X_pca, which stays; .*--force'):
        embedding_map(tmp_path/'p.csv', written, out=tmp_path/'m.html', **how)
    assert (tmp_path/'m.html').exists() and written.read_bytes() == whole
    embedding_map(tmp_path/'p.csv', written, out=tmp_path/'m.html', force=True, **how)
    assert read(written).obsm['X_pca'].shape == (4, 2)
    whole = written.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        embedding_map(tmp_path/'p.csv', written, out=tmp_path/'n.html', **how)  # the same layout again
    assert written.read_bytes() == whole


@needs_anndata
def test_a_link_stays_a_link_and_permissions_stay(written, tmp_path):
    written.chmod(0o640)
    (tmp_path/'link.h5ad').symlink_to(written)
    keep_layout(tmp_path/'link.h5ad', 'X_umap', pd.DataFrame(dict(Id=['a'], x=[1.], y=[2.])))
    assert (tmp_path/'link.h5ad').is_symlink() and written.stat().st_mode & 0o777 == 0o640
    assert np.isnan(read(written).obsm['X_umap']).sum() == 6


@needs_anndata
@pytest.mark.parametrize('kind, said', [
    ('text', 'not a file of embeddings'), ('cut', 'not a file of embeddings'), ('without X', "'X'"),
    ('sparse', 'no dense matrix'), ('claims', 'not in the file itself'), ('elsewhere', 'not in the file itself'),
    ('link', 'not in the file itself'), ('without names', '_index')])
def test_a_file_that_is_none_is_one_line(written, tmp_path, kind, said):
    import h5py
    bad = tmp_path/'bad.h5ad'
    shutil.copy(written, bad)
    if kind == 'text': bad.write_text('Id,x\n')
    elif kind == 'cut': os.truncate(bad, 5000)
    else:
        with h5py.File(bad, 'r+') as f:
            if kind == 'without names': del f['obs'].attrs['_index']
            else: del f['X']
            if kind == 'sparse': f.create_group('X')
            if kind == 'claims': f.create_dataset('X', (4, 10**10), 'f4', chunks=(1, 10**6))
            if kind == 'elsewhere': f.create_dataset('X', (4, 8), 'f4', external=[(str(written), 0, 128)])
            if kind == 'link': f['X'] = h5py.ExternalLink(str(written), 'X')
    with pytest.raises(HPAError, match='bad.h5ad: not a file of embeddings') as e: read_embeddings(bad)
    assert said in str(e.value) and '\n' not in str(e.value)


@needs_anndata
def test_a_million_rows_are_written_part_by_part(tmp_path):
    "What is asked for at a time is a part of the rows"
    asked, obs = [], pd.DataFrame(index=pd.Index([str(i) for i in range(1000)], dtype=object))
    def part(start, end):
        asked.append(min(end, 1000)-start)
        return np.full((min(end, 1000)-start, 3), start, np.float32)
    write_anndata(tmp_path/'e.h5ad', obs, part, {}, chunk=64)
    assert max(asked) == 64 and np.array_equal(read_anndata(tmp_path/'e.h5ad')[0][::64, 0], np.arange(0, 1000, 64))


# ---- scanpy

@needs_anndata
@pytest.mark.slow
def test_scanpy_reads_it(small_atlas, trained, tmp_path):
    "And computes neighbours and a layout; it reads the layout of the map too"
    sc = pytest.importorskip('scanpy')
    predict(small_atlas/'train', trained[1], out=tmp_path/'p.csv', embeddings=tmp_path/'e.h5ad', progress=False)
    embedding_map(tmp_path/'p.csv', tmp_path/'e.h5ad', out=tmp_path/'m.html', method='umap', progress=False)
    data = sc.read_h5ad(tmp_path/'e.h5ad')
    ours = data.obsm['X_umap'].copy()
    assert np.isfinite(ours).all() and ours.shape == (90, 2)
    sc.pp.neighbors(data, use_rep='X')
    sc.tl.umap(data)
    assert data.obsm['X_umap'].shape == (90, 2) and not np.array_equal(data.obsm['X_umap'], ours)
    shown = sc.pl.umap(data, color=['Names', 'Nucleoli'], show=False)
    assert len(shown) == 2
