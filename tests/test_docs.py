"Public names are documented, links lead somewhere, and the README can be typed in as it stands."
import ast
import importlib
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
MODULES = sorted(
    '.'.join(p.relative_to(ROOT / 'hpa_fastai').with_suffix('').parts)
    for p in (ROOT / 'hpa_fastai').rglob('*.py')
    if p.stem not in ('_modidx', '__init__', 'all')
)


# Docstrings and parameters

PROTOCOL = {
    'encodes',
    'decodes',
    'setups',
    'to_detach',
    *(
        f'{when}_{what}'
        for when in ('before', 'after')
        for what in ('fit', 'epoch', 'train', 'validate', 'batch', 'pred', 'loss', 'backward', 'step')
    ),
}  # of fastai's transforms, loaders and callbacks


def decorated(node, name): return any(name in ast.unparse(d) for d in node.decorator_list)

def inherited(cls, name):
    "Whether `name` is documented where it was first defined"
    return name in PROTOCOL or cls is not None and any(name in vars(b) for b in cls.__mro__[1:])

def arguments(node):
    "The named arguments of a function, without `self` and `cls`"
    args = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return args[1:] if args and args[0].arg in ('self', 'cls') else args

def undocumented(source, module=None):
    "What a reader of `source` would look for in vain: (line, name, what is missing)"
    lines = source.splitlines()
    tree = ast.parse(source)
    public = next(
        (ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == '__all__'), []
    )
    def commented(a): return '#' in lines[a.end_lineno-1][a.end_col_offset:]
    def function(node, name, doc=True):
        if doc and not ast.get_docstring(node): yield node.lineno, name, 'docstring'
        rows = [a.lineno for a in arguments(node)]
        for a in arguments(node):
            if not commented(a): yield a.lineno, name, f'comment behind {a.arg}'
            elif rows.count(a.lineno) > 1: yield a.lineno, name, f'line of its own for {a.arg}'
    def klass(node):
        cls = getattr(module, node.name, None)
        if not ast.get_docstring(node): yield node.lineno, node.name, 'docstring'
        for n in node.body:
            if isinstance(n, ast.AnnAssign) and not n.target.id.startswith('_') and not commented(n):
                yield n.lineno, f'{node.name}.{n.target.id}', 'comment'
            if isinstance(n, ast.FunctionDef):
                if n.name == '__init__':
                    yield from function(n, f'{node.name}()', doc=False)
                elif not n.name.startswith('_') and not inherited(cls, n.name):
                    yield from function(n, f'{node.name}.{n.name}')
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name in public: yield from klass(node)
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith('_'):
            if decorated(node, 'dispatch'): continue  # fastai asks for it
            if decorated(node, 'patch'):
                owner = ast.unparse(node.args.args[0].annotation)
                if not owner.startswith('_'): yield from function(node, f'{owner}.{node.name}')
            elif node.name in public: yield from function(node, node.name)


@pytest.mark.parametrize('name', MODULES)
def test_public_names_are_documented(name):
    module = importlib.import_module(f'hpa_fastai.{name}')
    assert [
        f'{n}: no {what} (line {i})'
        for i, n, what in undocumented(Path(module.__file__).read_text(encoding='utf-8'), module)
    ] == []


def test_what_is_undocumented_is_found():
    source = '''
__all__ = ['f', 'g', 'A']
def f(a, b=1): "Two on a line"  # of a comment
def g(
    a,  # documented
    b,
): return a
def _h(x): return x
class A:
    "A class"
    n: int  # documented
    m: int
    def __init__(self, x): self.x = x
    def _private(self, y): return y
    def method(self): return 1
'''
    assert [(n, what) for _, n, what in undocumented(source)] == [
        ('f', 'line of its own for a'),
        ('f', 'line of its own for b'),
        ('g', 'docstring'),
        ('g', 'comment behind b'),
        ('A.m', 'comment'),
        ('A()', 'comment behind x'),
        ('A.method', 'docstring'),
    ]


# Links

def words(text): return re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', text)

def anchors(page):
    "The headings of a notebook or a Markdown file, as links write them"
    text = page.read_text(encoding='utf-8')
    if page.suffix == '.ipynb': text = '\n'.join(prose(page))
    return {
        re.sub(r'[^\w\- ]', '', words(h).lower()).strip().replace(' ', '-')
        for h in re.findall(r'^#+ (.+)$', text, re.M)
    }

def prose(nb):
    return [
        ''.join(c['source'])
        for c in json.loads(nb.read_text(encoding='utf-8'))['cells']
        if c['cell_type'] == 'markdown'
    ]

def broken_links(page, text):
    "Links of `text` in the file `page` to files or headings that aren't there"
    text = re.sub(r'```.*?```|`[^`\n]*`', '`', text, flags=re.S)
    for link in re.findall(r'\]\(([^)\s]+)\)|(?:src|href)="([^"]+)"', text):
        link = ''.join(link)
        if re.match(r'[a-z]+:', link): continue
        name, _, anchor = link.partition('#')
        target = page.parent/name if name else page
        if not target.exists(): yield f'{link}: no such file'
        elif anchor and anchor.lower() not in anchors(target): yield f'{link}: no such heading'


@pytest.mark.parametrize('nb', NOTEBOOKS, ids=lambda p: p.stem)
def test_links_between_notebooks(nb): assert [f for t in prose(nb) for f in broken_links(nb, t)] == []


@pytest.mark.parametrize('page', ['README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'SECURITY.md'])
def test_links_of_pages(page): assert list(broken_links(ROOT/page, (ROOT/page).read_text(encoding='utf-8'))) == []


def test_broken_links_are_found(tmp_path):
    page = tmp_path/'a.md'
    page.write_text('# One & two\n', encoding='utf-8')
    text = '[a](a.md#one--two) [b](b.md) [c](#three) [d](https://example.org/x) `[e](e.md)` <img src="f.png">'
    assert list(broken_links(page, text)) == ['b.md: no such file', '#three: no such heading', 'f.png: no such file']


def test_the_limits_that_are_promised_hold():
    from hpa_fastai.formats import channels, czi, lif, nd2, ome, ome_zarr, pictures, positions, tiff
    from hpa_fastai.deploy.loading import MAX_SAMPLE
    from hpa_fastai.evaluate.known_images import MOST_KNOWN, MOST_TEXT
    from hpa_fastai.models.graphs import MAX_BYTES
    from hpa_fastai.plates import images
    limits = (ROOT/'SECURITY.md').read_text(encoding='utf-8').split('## Limits')[1]
    promised = {int(n.replace(',', '')) for n in re.findall(r'\| ([\d,]+)', limits)}
    assert pictures._MOST_CHUNKS == ome_zarr._MOST_CHUNKS and len(tiff._codecs) == 8
    assert lif._MOST_DESCRIPTION == czi._MOST_DESCRIPTION == nd2._MOST_LIST and len(czi._packings) == 4
    assert lif._MOST_FILES == ome._MOST_PAGES
    assert promised == {channels.MAX_PIXELS, channels.MAX_BYTES, channels.MOST_METADATA, ome._MOST_PAGES,
                        tiff._MOST_SCANS, pictures._MOST_CHUNKS, MAX_SAMPLE, MAX_BYTES, lif._MOST_DESCRIPTION,
                        positions.MOST_POSITIONS, czi._MOST_PIECES, images.MOST_INDEX, MOST_KNOWN, MOST_TEXT}
    assert ', '.join(sorted(ome_zarr._compressors)) in limits


# README

def code_blocks(page, lang):
    return re.findall(rf'^```{lang}\n(.*?)^```', (ROOT / page).read_text(encoding='utf-8'), re.M | re.S)

SHORTER = {"group='Antibody')": "group='Antibody', size=64)",
           '--arch smallresnet': '--arch smallresnet --size 64 --no-progress',
           '--n 3': '--n 1 --dpi 72', ' --model subcell-vit': '', 'calibrate hpa-densenet121': 'calibrate hpa_model'}

def shortened(text):
    for long, short in SHORTER.items(): text = text.replace(long, short)
    return text


@pytest.fixture
def place(small_atlas, trained, tmp_path, monkeypatch):
    "A folder with the plates of the README and a model, and a cache for what its commands download"
    from published_files import densenet_onnx
    for name, n in dict(plate7=24, plate8=4, plate9=8).items(): as_a_plate(small_atlas, tmp_path/name, n)
    shutil.copytree(trained[1], tmp_path/'hpa_model')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HPA_FASTAI_MODELS', str(tmp_path/'models'))
    densenet_onnx(tmp_path/'densenet_model.onnx')
    return tmp_path


def as_a_plate(atlas, folder, n):
    "The first fields of an atlas, as TIFF with the names of dyes and a workbook of locations in words"
    import pandas as pd
    from PIL import Image
    from hpa_fastai.all import HPA28, attach_images, read_labels
    table = attach_images(read_labels(atlas/'train.csv', HPA28), atlas/'train')[:n]
    folder.mkdir()
    for k, field in enumerate(table.itertuples()):
        for channel, dye in dict(red='AF555', green='AF488', blue='DAPI', yellow='AF647').items():
            Image.open(getattr(field, channel)).save(folder/f'Exp12_A{k//3+1:02d}_s{k%3+1}_{dye}.tif')
    names = [f'Exp12_A{k//3+1:02d}_s{k%3+1}' for k in range(len(table))]
    locations = [', '.join(HPA28.classes[int(c)] for c in target.split()) for target in table.Target]
    rows = dict(Field=names, Location=locations, Antibody=table.antibody)
    pd.DataFrame(rows).to_excel(folder/'locations.xlsx', index=False)


def test_what_is_shortened_stands_in_the_readme():
    text = (ROOT/'README.md').read_text(encoding='utf-8')
    assert all(long in text for long in SHORTER)


def named(code): return re.search(r'predict|train|\w+\(', code)[0]

@pytest.mark.parametrize('code', code_blocks('README.md', 'python'), ids=named)
def test_python_of_the_readme_runs(place, code):
    if 'save_bundle' in code: (place/'hpa_model').rename(place/'older')
    found = {}
    exec(compile(shortened(code), 'README.md', 'exec'), found)
    if 'df' in found: assert len(found['df']) == 4 and (found['df'].error == '').all()
    assert (place/'hpa_model'/'model.safetensors').is_file()


def test_python_of_the_readme_trains_as_its_command_does():
    lines = [l for b in code_blocks('README.md', 'sh') for l in b.splitlines()]
    command = next(l for l in lines if l.startswith('hpa_fastai train'))
    code = next(b for b in code_blocks('README.md', 'python') if 'save_bundle' in b).replace("'", '')
    said = shlex.split(command)[2:]
    assert f'from_csv({said[0]}' in code and 'save_bundle(hpa_model)' in code
    for option, value in zip(said[1::2], said[2::2]): assert f'{option[2:]}={value}' in code, option
    assert 'size=' not in code and 'bs=' not in code  # the defaults are the same


def test_commands_of_the_readme_run(place, capsys):
    from hpa_fastai.cli.main import main
    lines = [l for b in code_blocks('README.md', 'sh') for l in b.splitlines() if l.startswith('hpa_fastai ')]
    shown = {'verify', 'train', 'predict', 'figure', 'evaluate', 'models', 'cells', 'calibrate'}
    assert {shlex.split(l)[1] for l in lines} >= shown
    assert main(['models', 'get', 'hpa-densenet121', '--from', 'densenet_model.onnx', '--no-verify']) == 0
    for line in lines:
        if ' train ' in line: (place/'hpa_model').rename(place/'older')
        assert main(shlex.split(shortened(line))[1:]) == 0, f'{line}\n{capsys.readouterr().err}'
    assert {f.name for f in place.iterdir()} >= {'predictions.xlsx', 'predictions.html', 'figure.pdf', 'figure.txt'}


def test_make_targets_of_the_readme_exist():
    targets = set(re.findall(r'^(\w+):', (ROOT/'Makefile').read_text(encoding='utf-8'), re.M))
    assert {
        l.split()[1] for b in code_blocks('README.md', 'sh') for l in b.splitlines() if l.startswith('make ')
    } <= targets


def test_readme_is_short(): assert len((ROOT/'README.md').read_text(encoding='utf-8').splitlines()) < 270


# Site

def listed(contents):
    for o in contents:
        if isinstance(o, str): yield o
        else: yield from listed(o['contents'])

def test_sidebar_lists_every_notebook_once():
    import yaml

    pages = list(
        listed(
            yaml.safe_load((ROOT / 'nbs' / 'sidebar.yml').read_text(encoding='utf-8'))['website']['sidebar']['contents']
        )
    )
    there = sorted(p.relative_to(ROOT/'nbs').as_posix() for p in NOTEBOOKS)
    assert sorted(pages) == there, 'add the notebook to a part of nbs/sidebar.yml'


def imports_and_more(source):
    "Whether a cell imports and does something else"
    try: kinds = {isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse(source).body}
    except SyntaxError: return False
    return kinds == {True, False}

PAGES = [p for p in NOTEBOOKS if p.parent.name != 'tutorials' and p.name != 'index.ipynb']

@pytest.mark.parametrize('nb', PAGES, ids=lambda p: p.stem)
def test_imports_have_cells_of_their_own(nb):
    "The site runs every cell that imports, and no other: what else stands in it would be run alone"
    code = [
        ''.join(c['source']) for c in json.loads(nb.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code'
    ]
    assert [c[:80] for c in code if imports_and_more(c) and not c.startswith('#|')] == []


def test_site_and_templates_are_yaml():
    import yaml
    quarto = yaml.safe_load((ROOT/'nbs'/'_quarto.yml').read_text(encoding='utf-8'))
    assert (
        quarto['metadata-files'] == ['nbdev.yml', 'sidebar.yml']
        and (ROOT / 'nbs' / quarto['format']['html']['css']).is_file()
    )
    assert all((ROOT/'nbs'/o['href']).is_file() for o in quarto['website']['navbar']['left'])
    for form in (ROOT/'.github'/'ISSUE_TEMPLATE').glob('*.yml'):
        text = form.read_text(encoding='utf-8')
        assert (
            form.name == 'config.yml'
            or {'name', 'description', 'body'} <= yaml.safe_load(text).keys()
            and 'hpa_fastai --version' in text
        )


def test_citation_names_this_version():
    import yaml
    from importlib.metadata import version
    assert yaml.safe_load((ROOT/'CITATION.cff').read_text(encoding='utf-8'))['version'] == version('hpa_fastai')


# Tutorials

TUTORIALS = [p for p in NOTEBOOKS if p.parent.name == 'tutorials']

@pytest.mark.parametrize('nb', TUTORIALS, ids=lambda p: p.stem)
def test_tutorial_opens_in_colab(nb):
    from hpa_fastai.dev.readme import git_url, with_badge
    text, url = nb.read_text(encoding='utf-8'), git_url(ROOT)
    assert f'colab.research.google.com/github/{url.split("github.com/")[1]}/blob/main/nbs/tutorials/{nb.name}' in text
    assert f'git+{url}' in text and with_badge(text, url) == text, 'run: make prepare'
    code = [''.join(c['source']) for c in json.loads(text)['cells'] if c['cell_type'] == 'code']
    assert code[0].startswith('#| eval: false') and 'drive.mount' in code[0]
    assert sum('eval: false' in c for c in code) == 1, 'only the installation is left out'
    assert any('drive/MyDrive' in c and c != code[0] for c in code), 'one visible cell switches to real data'
