"Notebooks, library and README agree; the package is light to import; notebooks keep the house rules."
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import hpa_fastai

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
BIN = Path(sys.executable).parent


def run(*args, cwd=ROOT, **kwargs):
    "Run a command of this environment"
    env = {**os.environ, 'PATH': f'{BIN}{os.pathsep}{os.environ["PATH"]}'}
    return subprocess.run(list(map(str, args)), cwd=cwd, env=env, capture_output=True, text=True, **kwargs)


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    "A copy of the project, exported and cleaned anew"
    top = tmp_path_factory.mktemp('project')
    for name in ('nbs', 'hpa_fastai'):
        shutil.copytree(ROOT / name, top / name, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints'))
    for name in ('pyproject.toml', 'settings.ini', 'README.md'): shutil.copy(ROOT/name, top)
    for cmd in ('nbdev-export', 'nbdev-clean'):
        done = run(BIN/cmd, cwd=top)
        assert done.returncode == 0, done.stderr
    return top


def texts(top, pattern):
    return {p.relative_to(top).as_posix(): p.read_text(encoding='utf-8') for p in sorted(top.glob(pattern))}


def test_library_is_exported_from_notebooks(copy):
    ours, theirs = texts(ROOT, 'hpa_fastai/**/*.py'), texts(copy, 'hpa_fastai/**/*.py')
    assert [k for k in ours | theirs if ours.get(k) != theirs.get(k)] == [], 'run: make prepare'


def test_every_module_has_a_notebook():
    sources = {re.search(r'File to edit: (?:\.\./)+(nbs/\S+?)\.?\s', p.read_text(encoding='utf-8') + ' ')[1]
               for p in ROOT.glob('hpa_fastai/**/*.py') if p.name != '_modidx.py' and p.stat().st_size}
    assert all((ROOT/s).is_file() for s in sources)


def test_notebooks_are_clean(copy):
    ours, theirs = texts(ROOT, 'nbs/**/*.ipynb'), texts(copy, 'nbs/**/*.ipynb')
    assert [k for k in ours if ours[k] != theirs[k]] == [], 'run: make prepare'


def test_readme_is_made_from_its_notebook():
    from hpa_fastai.dev.readme import readme
    text, pictures = readme(ROOT/'nbs'/'index.ipynb')
    assert (ROOT/'README.md').read_text(encoding='utf-8') == text, 'run: make prepare'
    for name, data in pictures.items(): assert (ROOT/name).read_bytes() == data, 'run: make prepare'


@pytest.mark.parametrize('nb', NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_a_page(nb):
    assert nb.stat().st_size < 1_000_000, 'store smaller pictures'
    cells = json.loads(nb.read_text(encoding='utf-8'))['cells']
    first = ''.join(cells[0]['source'])
    assert cells[0]['cell_type'] == 'markdown' and re.match(r'# \S', first), 'the first cell is the title'
    assert re.search(r'^> \S', first, re.M), 'a > line says what the reader can do afterwards'
    assert not any(o.get('output_type') == 'error' for c in cells for o in c.get('outputs', []))


def test_import_is_light():
    done = run(
        sys.executable,
        '-c',
        "import sys, hpa_fastai, hpa_fastai.cli.main; print(sorted({'torch', 'fastai', 'numpy', 'pandas'} & "
        "set(sys.modules)))",
    )
    assert done.stdout.strip() == '[]', done.stderr


def test_wheel_holds_modules_and_weights(tmp_path):
    top = tmp_path/'project'
    shutil.copytree(ROOT/'hpa_fastai', top/'hpa_fastai', ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('setup.py', 'settings.ini', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, top)
    built = run(sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation', '-v', '-w', tmp_path, top)
    assert built.returncode == 0, built.stderr
    assert 'absent from setuptools' not in built.stdout + built.stderr
    names = {n for n in zipfile.ZipFile(next(tmp_path.glob('*.whl'))).namelist() if n.startswith('hpa_fastai/')}
    assert names == {p.relative_to(ROOT).as_posix() for p in (ROOT/'hpa_fastai').rglob('*')
                     if p.is_file() and not {'__pycache__', 'dev'} & {*p.parts}}


def test_metadata_stands_in_settings_ini():
    from configparser import ConfigParser
    from importlib.metadata import metadata, version
    parser = ConfigParser(delimiters=['='])
    parser.read(ROOT/'settings.ini', encoding='utf-8')
    assert version('hpa_fastai') == hpa_fastai.__version__ == parser['DEFAULT']['version']
    assert metadata('hpa_fastai')['Summary'] == parser['DEFAULT']['description']


def test_all_that_is_written_follows_the_umask(small_atlas, trained, tmp_path):
    "A model, a table, a cache or a page that a group may read is not kept from it, and a private one stays private"
    from hpa_fastai.all import explore, report
    from hpa_fastai.batches.cache import build_cache
    from hpa_fastai.cells.cells import predict_cells
    from hpa_fastai.data.files import find_images
    from hpa_fastai.data.reader import ImageReader
    from hpa_fastai.deploy.onnx import export_onnx
    from hpa_fastai.deploy.predictor import Predictor
    from hpa_fastai.simulate.atlas import simulate_atlas
    from hpa_fastai.train.checkpoints import write_checkpoint
    few, mask = find_images(small_atlas/'train').head(2), 0o027
    old = os.umask(mask)
    try:
        trained[0].save_bundle(tmp_path/'m')
        build_cache(few, ImageReader(size=16), tmp_path/'cache', progress=False)
        predictor = Predictor(trained[1], device='cpu')
        for end in ('csv', 'parquet'):
            predictor.to_file(
                few, tmp_path / f'p.{end}', embeddings=tmp_path / f'e.{"npy" if end == "csv" else end}', progress=False
            )
        predict_cells(predictor, few, out=tmp_path/'cells.csv', progress=False)
        write_checkpoint(tmp_path/'checkpoint.pt', {})
        simulate_atlas(tmp_path/'atlas', n=2, size=64, masks=True, difficulty='easy', progress=False)
        explore(small_atlas, out=tmp_path/'explore.html')
        report(tmp_path/'p.csv', tmp_path/'report.html')
        export_onnx(trained[1], tmp_path/'model.onnx')
    finally: os.umask(old)
    modes = {p.relative_to(tmp_path): p.stat().st_mode & 0o777 for p in tmp_path.rglob('*')}
    assert len(modes) > 20 and modes == {p: (0o777 if (tmp_path/p).is_dir() else 0o666) & ~mask for p in modes}


def test_versions_are_known_without_metadata(tmp_path, monkeypatch):
    "Packages that are folders on `sys.path`, as in a notebook without internet"
    from importlib import metadata
    from hpa_fastai.deploy.bundle import package_versions
    def none(name): raise metadata.PackageNotFoundError(name)
    before = package_versions()
    monkeypatch.setattr(metadata, 'version', none)
    assert {k: v.split('+')[0] for k, v in package_versions().items()} == {
        k: v.split('+')[0] for k, v in before.items()
    }
    assert hpa_fastai.__version__ == before['hpa_fastai']


def test_nbdev_test_hands_arguments_on():
    done = run(BIN/'nbdev_test', '--help')
    assert done.returncode == 0 and '--save' in done.stdout


def test_nbdev_test_without_nbdev_says_what_to_install(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            '-c',
            f"import sys; sys.executable = {str(tmp_path / 'python')!r}; from hpa_fastai.dev.readme import "
            "nbdev_test; nbdev_test()",
        ],
        capture_output=True,
        text=True,
        env={**os.environ, 'PATH': str(tmp_path)},
    )
    assert (
        done.returncode == 1
        and "pip install 'hpa_fastai[dev]'" in done.stderr
        and len(done.stderr.strip().splitlines()) == 1
    )
