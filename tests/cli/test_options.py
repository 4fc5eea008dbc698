"Every option is declared once, and its default is that of the function that it is for."
import ast
import importlib
import inspect
import shutil
from pathlib import Path

import pytest

import hpa_fastai
from hpa_fastai.cli.main import make_parser
from hpa_fastai.cli.options import READING
from hpa_fastai.data.labels import LabelSet

COMMANDS = make_parser()._subparsers._group_actions[0].choices
LOADERS, FIT = 'batches.loaders.HPADataLoaders.from_df', 'train.learner.HPALearner.fit_progressive'
CALLS = {  # of each command: the functions that take its options
    'demo': ['cli.demo.run_demo'],
    'simulate': ['simulate.atlas.simulate_atlas'],
    'download': ['atlas.download.download_genes'],
    'join': ['atlas.sources.join_sources'],
    'verify': ['data.verify.verify_folder', 'data.reader.ImageReader'],
    'explore': ['interpret.explore.explore', 'data.reader.ImageReader'],
    'pack': ['data.packing.pack_images', 'data.reader.ImageReader'],
    'train': ['experiments.training.train_model', 'data.reader.ImageReader', LOADERS, FIT],
    'compare': ['experiments.compare.compare', 'experiments.folds.train_folds', 'data.reader.ImageReader',
                'experiments.starts.auto_learner', 'train.learner.hpa_learner', LOADERS, FIT],
    'calibrate': ['experiments.recalibration.calibrate_model'],
    'evaluate': ['deploy.predictor.Predictor', 'data.label_tables.read_labels', 'deploy.scoring.evaluate_predictions'],
    'predict': ['interpret.prediction.predict', 'deploy.watch.watch', 'scale.shards.predict_shards',
                'scale.ray_workers.predict_with_ray'],
    'cells': ['cells.cells.predict_cells', 'deploy.predictor.Predictor', 'scale.shards.predict_shards',
              'scale.ray_workers.predict_with_ray'],
    'plan': ['scale.planning.make_plan'],
    'gather': ['scale.gather.gather'],
    'proteins': ['interpret.protein_report.protein_report', 'data.reader.ImageReader'],
    'report': ['interpret.report.report', 'data.reader.ImageReader'],
    'figure': ['interpret.figure.figure', 'interpret.counts.plot_counts'],
    'map': ['interpret.embedding_map.embedding_map', 'deploy.predictor.Predictor'],
    'app': ['app.page.open_app'],
    'models': ['deploy.published_bundles.fetch_model'],
    'test-model': ['deploy.loading.test_bundle'],
}
ONLY_IN_THE_SHELL = {
    'dry_run': {'train', 'predict'},  # a rehearsal
    'out': {'verify', 'evaluate'}, 'force': {'verify', 'evaluate'},  # a file for what the function returns
    'images': {'evaluate'}, 'csv': {'compare'},  # Python gives the table itself
    'progress': {'evaluate'},
    'status': {'gather'}, 'slurm': {'plan'}, 'nextflow': {'plan'}, 'task': {'plan'},
    'kind': {'figure'}, 'watch': {'predict'}, 'submission': {'cells'},  # functions of their own
    'ray_workers': {'predict', 'cells'},  # two numbers in Python
}
OTHER_DEFAULTS = {  # option: functions whose default is another, for a reason
    'out': {'predict', 'predict_cells', 'watch', 'figure', 'plot_counts', 'protein_report'},  # Python returns it
    'size': {'ImageReader'},  # of a reader alone: the size of the file
    'device': {'from_df'},  # fastai's None is a GPU where there is one
    'pretrained': {'hpa_learner'}, 'arch': {'hpa_learner'},  # asks for nothing that can't be had; chooses nothing
    'fine_tune': {'fit_progressive'},  # does as it is told
    'progress': {'verify_folder', 'report'},  # a bar where it takes long; none in a notebook
    'trained_folds': {'train_folds'},  # all of them
    'folds': {'from_df'},  # how many there are, where one is asked for; the command trains one model without them
    'width': {'figure', 'plot_counts'},  # of the kind of figure
    'lr': {'hpa_learner'},  # of fastai's own ways to fit
    'embeddings': {'predict_shards', 'predict_with_ray'},  # whether to, where parts have names of their own
}


def parameters(dotted):
    "The parameters of a function or class, and their defaults"
    package, module, *names = dotted.split('.')
    function = importlib.import_module(f'hpa_fastai.{package}.{module}')
    for name in names: function = getattr(function, name)
    return inspect.signature(function).parameters


def plain(value):
    "A default as both sides can write it"
    if isinstance(value, LabelSet): return value.name
    return str(value) if isinstance(value, Path) else tuple(value) if isinstance(value, list) else value


def test_every_command_calls_a_function(): assert set(CALLS) == set(COMMANDS)


def options_of(command):
    return [a for a in COMMANDS[command]._actions if a.option_strings and a.dest != 'help']


def functions_of(command):
    "The parameters of each function of a command; the settings that `reading` takes are those of `ImageReader`"
    found = {dotted.rsplit('.', 1)[1]: dict(parameters(dotted)) for dotted in CALLS[command]}
    takes_reading = any('reading' in known for known in found.values()) or command == 'cells'
    return {**found, **({'reading': dict.fromkeys(READING)} if takes_reading else {})}


@pytest.mark.parametrize('command', CALLS)
def test_every_option_is_a_parameter_of_the_same_name(command):
    known = {name for function in functions_of(command).values() for name in function}
    only_in_the_shell = {name for name, commands in ONLY_IN_THE_SHELL.items() if command in commands}
    assert {action.dest for action in options_of(command)} - known - only_in_the_shell == set()


@pytest.mark.parametrize('command', CALLS)
def test_every_default_is_that_of_the_functions(command):
    differ, compared = {}, 0
    for action in options_of(command):
        for function, known in functions_of(command).items():
            parameter = known.get(action.dest)
            if parameter is None or parameter.default is parameter.empty: continue
            if function in OTHER_DEFAULTS.get(action.dest, ()): continue
            compared += 1
            if plain(action.default) != plain(parameter.default):
                differ[f'--{action.dest}, {function}'] = (action.default, parameter.default)
    assert compared and not differ


@pytest.mark.parametrize('command', CALLS)
def test_help_states_each_default(command):
    "Numbers and words, 0 and 1 too; an option without a value has none"
    said = ''.join(COMMANDS[command].format_help().split())  # lines break at hyphens too
    kinds = int, float, str
    texts = [action for action in options_of(command) if action.nargs != 0 and type(action.default) in kinds]
    for action in texts:
        shown = f'{action.help} (default: {action.default})'.replace('%%', '%')
        assert ''.join(shown.split()) in said, action.dest


def test_only_what_is_saved_with_a_model_says_so():
    for command, parser in COMMANDS.items():
        assert ('(saved with the model)' in parser.format_help()) == (command in ('train', 'compare')), command


def test_the_exceptions_are_needed():
    "No option is in the lists that could be out of them"
    for name, commands in ONLY_IN_THE_SHELL.items():
        for command in commands:
            assert name in {a.dest for a in options_of(command)}, (command, name)
            assert name not in {o for known in functions_of(command).values() for o in known}, (command, name)
    doors = {dotted.rsplit('.', 1)[1]: dotted for dotteds in CALLS.values() for dotted in dotteds}
    for name, functions in OTHER_DEFAULTS.items():
        for function in functions: assert name in parameters(doors[function]), (function, name)


def test_loaders_have_the_same_defaults_by_every_door():
    "What a training is made of has one default in fastai's manner, in one call, and in the shell"
    from hpa_fastai.all import HPADataBlock, HPADataLoaders, train_model
    doors = [inspect.signature(o).parameters for o in (HPADataLoaders.from_df, HPADataBlock, train_model)]
    for name, default in dict(size=384, bs=32, valid_pct=None, fold=None, seed=42).items():
        assert {known[name].default for known in doors if name in known} == {default}, name
    for name in ('n_workers', 'n_folds', 'loss'):
        assert all(name not in known for known in doors)


def test_every_option_is_declared_once():
    package, seen = Path(hpa_fastai.__file__).parent/'cli', {}
    for module in sorted(package.glob('*.py')):
        for node in ast.walk(ast.parse(module.read_text(encoding='utf-8'))):
            if not (isinstance(node, ast.Call) and getattr(node.func, 'attr', '') == 'add_argument' and node.args):
                continue
            name = node.args[0]
            if isinstance(name, ast.Constant) and name.value.startswith('--'):
                seen.setdefault(name.value, []).append(module.name)
    several = {'--masks', '--n', '--reference', '--method', '--by'}  # with a meaning of their own in each command
    assert '--watch' in seen and {o: where for o, where in seen.items() if len(where) > 1 and o not in several} == {}
    from hpa_fastai.cli.options import OPTIONS
    assert not {'--'+name.replace('_', '-') for name in OPTIONS} & set(seen)


@pytest.fixture(scope='module')
def few_images(small_atlas, tmp_path_factory):
    "Thirty images of the small atlas, and their labels"
    import pandas as pd
    from hpa_fastai.data.files import find_images
    folder = tmp_path_factory.mktemp('few')
    (folder/'train').mkdir()
    table = pd.read_csv(small_atlas/'train.csv').head(30)
    table.to_csv(folder/'train.csv', index=False)
    for _, row in find_images(small_atlas/'train').set_index('Id').loc[table.Id].iterrows():
        for file in map(Path, row[['red', 'green', 'blue', 'yellow']]): shutil.copy(file, folder/'train'/file.name)
    return folder


WITH_TABLES = [  # the app would serve its page until it is ended
    name for name, parser in COMMANDS.items() if name != 'app' and any(a.dest == 'csv' for a in parser._actions)]

@pytest.mark.parametrize('command', WITH_TABLES)
def test_tables_are_found_beside_the_data_and_where_one_stands(
    command, few_images, trained, tmp_path, monkeypatch, capsys
):
    "--csv is looked for in the data folder first and then in the working folder, by every command"
    from hpa_fastai.cli.main import main

    (tmp_path / 'mine.csv').write_bytes((few_images / 'train.csv').read_bytes())
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
            [command, *model, str(few_images), '--csv', csv, *more,
             *(['--force'] if command in ('explore', 'report') else [])]
        )
        assert ('none.csv' in capsys.readouterr().err) == (not found)


def test_a_field_of_view_that_failed_is_named_once(capsys):
    from hpa_fastai.cli.options import report_failures
    assert report_failures([('A1', 'A1: no yellow channel'), ('A2', 'cut off')], 3) == 1
    assert capsys.readouterr().err.splitlines()[:2] == ['A1: no yellow channel', 'A2: cut off']
