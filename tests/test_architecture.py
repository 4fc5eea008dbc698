"Imports go one way, rooms stay small, lines stay readable, and one import hides nothing of fastai."
import ast
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT/'hpa_fastai'
MODULES = sorted(p for p in LIBRARY.rglob('*.py') if p.name != '_modidx.py' and p.stat().st_size)
PACKAGES = sorted(p.name for p in LIBRARY.iterdir() if (p/'__init__.py').is_file() and p.name != 'dev')
BIN = Path(sys.executable).parent


def run(*args):
    "Run a tool of this environment on this project"
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])}
    return subprocess.run([str(BIN/args[0]), *args[1:]], cwd=ROOT, env=env, capture_output=True, text=True)


def test_packages_import_one_way():
    done = run('lint-imports', '--config', 'pyproject.toml', '--no-cache')
    assert done.returncode == 0, done.stdout


def test_no_module_imports_private_names_of_another():
    found = []
    for module in MODULES:
        for node in ast.walk(ast.parse(module.read_text(encoding='utf-8'))):
            if not isinstance(node, ast.ImportFrom) or not (node.level or (node.module or '').startswith('hpa_fastai')):
                continue
            found += [f'{module.relative_to(LIBRARY)}: {a.name}' for a in node.names if re.match(r'_[^_]', a.name)]
    assert found == []


def test_the_house_can_be_seen_at_a_glance():
    assert len(PACKAGES) <= 18
    rooms = {p: len([m for m in MODULES if m.parent == LIBRARY/p]) for p in PACKAGES}
    assert max(rooms.values()) <= 14, rooms
    lines = {str(m.relative_to(LIBRARY)): len(m.read_text(encoding='utf-8').splitlines()) for m in MODULES}
    assert {m: n for m, n in lines.items() if n > 400} == {}


def test_few_private_functions_are_used_once():
    "A helper that says no more than its body stands in its caller"
    library = '\n'.join(m.read_text(encoding='utf-8') for m in MODULES)
    used = Counter(re.findall(r'\b_[a-z]\w*', library))
    once = sorted(name for name in set(re.findall(r'^def (_[a-z]\w*)\(', library, re.M)) if used[name] <= 2)
    assert len(once) <= 1.75*len(MODULES), once


def test_code_is_clean():
    "No line over 120 characters, no name that is never used or hides another"
    done = run(
        'ruff', 'check', '--no-cache', '--output-format', 'concise', 'hpa_fastai', 'tests', 'benchmarks', 'setup.py'
    )
    found = [line for line in done.stdout.splitlines() if re.match(r'\S+:\d+:\d+: ', line)]
    def text(line):
        name, row = line.split(':')[:2]
        return (ROOT/name).read_text(encoding='utf-8').splitlines()[int(row) - 1]
    assert [line for line in found if not text(line).startswith('__all__ = [')] == []  # which nbdev wraps


def test_one_import_hides_nothing_of_fastai_and_fastcore():
    import fastai.vision.all
    import fastcore.all
    import hpa_fastai.all

    theirs = {
        name: o for name, o in {**vars(fastcore.all), **vars(fastai.vision.all)}.items() if not name.startswith('_')
    }
    assert {name for name, o in theirs.items() if vars(hpa_fastai.all).get(name, o) is not o} == set()


def test_one_import_brings_what_users_call():
    import fastai.vision.all
    import hpa_fastai.all
    ours = set(hpa_fastai.all.__all__) - set(vars(fastai.vision.all))
    assert len(ours) < 220, len(ours)
