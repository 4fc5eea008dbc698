"Every option is declared once, and its default is that of the function that it is for."
import ast
import importlib
import inspect
from pathlib import Path

import pytest

import hpa_fastai
from hpa_fastai.cli.main import make_parser
from hpa_fastai.data.labels import LabelSet

COMMANDS = make_parser()._subparsers._group_actions[0].choices
CALLS = {  # of each command: the functions that take its options
    'demo': ['cli.demo.run_demo'],
    'simulate': ['simulate.atlas.simulate_atlas'],
    'verify': ['data.verify.verify_folder', 'data.reader.ImageReader'],
    'explore': ['interpret.explore.explore', 'data.reader.ImageReader'],
    'train': ['experiments.training.train_model', 'data.reader.ImageReader'],
    'compare': ['experiments.compare.compare', 'data.reader.ImageReader'],
    'calibrate': ['experiments.recalibration.calibrate_model'],
    'evaluate': ['deploy.predictor.Predictor'],
    'predict': ['interpret.prediction.predict', 'deploy.watch.watch'],
    'cells': ['cells.cells.predict_cells', 'deploy.predictor.Predictor'],
    'report': ['interpret.report.report', 'data.reader.ImageReader'],
    'models': ['deploy.published_bundles.fetch_model'],
    'test-model': ['deploy.loading.test_bundle'],
}
OTHERWISE = {  # a function of Python returns what a command writes to a file
    ('predict', 'out'), ('cells', 'out'),
    ('train', 'size'), ('compare', 'size'),  # of training, not of `ImageReader`
}


def parameters(dotted):
    "The parameters of a function or class, and their defaults"
    module, name = dotted.rsplit('.', 1)
    return inspect.signature(getattr(importlib.import_module(f'hpa_fastai.{module}'), name)).parameters


def plain(value):
    "A default as both sides can write it"
    if isinstance(value, LabelSet): return value.name
    return str(value) if isinstance(value, Path) else tuple(value) if isinstance(value, list) else value


def test_every_command_calls_a_function(): assert set(CALLS) == set(COMMANDS)


@pytest.mark.parametrize('command', CALLS)
def test_defaults_are_those_of_the_functions(command):
    compared, differ = set(), {}
    for dotted in CALLS[command]:
        for name, parameter in parameters(dotted).items():
            action = next((a for a in COMMANDS[command]._actions if a.dest == name and a.option_strings), None)
            if action is None or parameter.default is parameter.empty or (command, name) in OTHERWISE: continue
            compared.add(name)
            asked = action.default
            if plain(asked) != plain(parameter.default): differ[name] = (asked, parameter.default)
    assert compared and not differ


def test_every_option_is_declared_once():
    package, seen = Path(hpa_fastai.__file__).parent/'cli', {}
    for module in sorted(package.glob('*.py')):
        for node in ast.walk(ast.parse(module.read_text(encoding='utf-8'))):
            if not (isinstance(node, ast.Call) and getattr(node.func, 'attr', '') == 'add_argument' and node.args):
                continue
            name = node.args[0]
            if isinstance(name, ast.Constant) and name.value.startswith('--'):
                seen.setdefault(name.value, []).append(module.name)
    assert (
        '--watch' in seen
        and {option: where for option, where in seen.items() if len(where) > 1 and option != '--masks'} == {}
    )  # of simulate and of cells
    from hpa_fastai.cli.options import OPTIONS
    assert not {'--'+name.replace('_', '-') for name in OPTIONS} & set(seen)


WITH_TABLES = [name for name, parser in COMMANDS.items() if any(a.dest == 'csv' for a in parser._actions)]

@pytest.mark.parametrize('command', WITH_TABLES)
def test_tables_are_found_beside_the_data_and_where_one_stands(
    command, small_atlas, trained, tmp_path, monkeypatch, capsys
):
    "--csv is looked for in the data folder first and then in the working folder, by every command"
    from hpa_fastai.cli.main import main

    (tmp_path / 'mine.csv').write_bytes((small_atlas / 'train.csv').read_bytes())
    monkeypatch.chdir(tmp_path)
    more = {
        'train': ['--dry-run'],
        'compare': ['--archs', 'no_such_network'],
        'calibrate': ['--group', 'no_such_column', '--out', 'new'],
        'evaluate': ['--model', str(trained[1])],
        'verify': [],
        'explore': ['--out', 'e.html'],
        'report': ['--out', 'r.html'],
    }[command]
    model = [str(trained[1])] if command == 'calibrate' else []
    for csv, found in (('train.csv', True), ('mine.csv', True), ('none.csv', False)):
        main(
            [command, *model, str(small_atlas), '--csv', csv, *more,
             *(['--force'] if command in ('explore', 'report') else [])]
        )
        assert ('none.csv' in capsys.readouterr().err) == (not found)


def test_a_field_of_view_that_failed_is_named_once(capsys):
    from hpa_fastai.cli.options import report_failures
    assert report_failures([('A1', 'A1: no yellow channel'), ('A2', 'cut off')], 3) == 1
    assert capsys.readouterr().err.splitlines()[:2] == ['A1: no yellow channel', 'A2: cut off']
