"Public names are documented, links lead somewhere, and the README can be typed in as it stands."
import ast
import importlib
import inspect
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
MODULES = sorted(p.stem for p in (ROOT/'hpa_fastai').glob('*.py') if p.stem not in ('_modidx', '__init__', 'all'))


# Docstrings and parameters

PROTOCOL = {'encodes', 'decodes', 'setups', *(f'{when}_{what}' for when in ('before', 'after') for what in ('fit', 'epoch', 'train', 'validate', 'batch', 'pred', 'loss', 'backward', 'step'))}  # of fastai's transforms and callbacks

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
    public = next((ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == '__all__'), [])
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
            if isinstance(n, ast.AnnAssign) and not n.target.id.startswith('_') and not commented(n): yield n.lineno, f'{node.name}.{n.target.id}', 'comment'
            if isinstance(n, ast.FunctionDef):
                if n.name == '__init__': yield from function(n, f'{node.name}()', doc=False)
                elif not n.name.startswith('_') and not inherited(cls, n.name): yield from function(n, f'{node.name}.{n.name}')
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
    assert [f'{n}: no {what} (line {i})' for i, n, what in undocumented(Path(module.__file__).read_text(encoding='utf-8'), module)] == []


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
    assert [(n, what) for _, n, what in undocumented(source)] == [('f', 'line of its own for a'), ('f', 'line of its own for b'), ('g', 'docstring'), ('g', 'comment behind b'),
                                                   ('A.m', 'comment'), ('A()', 'comment behind x'), ('A.method', 'docstring')]


# Links

def words(text): return re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', text)

def anchors(page):
    "The headings of a notebook or a Markdown file, as links write them"
    text = page.read_text(encoding='utf-8')
    if page.suffix == '.ipynb': text = '\n'.join(prose(page))
    return {re.sub(r'[^\w\- ]', '', words(h).lower()).strip().replace(' ', '-') for h in re.findall(r'^#+ (.+)$', text, re.M)}

def prose(nb): return [''.join(c['source']) for c in json.loads(nb.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'markdown']

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


@pytest.mark.parametrize('page', ['README.md', 'CONTRIBUTING.md', 'CHANGELOG.md'])
def test_links_of_pages(page): assert list(broken_links(ROOT/page, (ROOT/page).read_text(encoding='utf-8'))) == []


def test_broken_links_are_found(tmp_path):
    page = tmp_path/'a.md'
    page.write_text('# One & two\n', encoding='utf-8')
    text = '[a](a.md#one--two) [b](b.md) [c](#three) [d](https://example.org/x) `[e](e.md)` <img src="f.png">'
    assert list(broken_links(page, text)) == ['b.md: no such file', '#three: no such heading', 'f.png: no such file']
