"The command: exit codes, one-line errors, files where they are asked for."
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import programs
from hpa_fastai.cli.main import main
from hpa_fastai.data.files import find_images

COMMAND = Path(sys.executable).parent/'hpa_fastai'


def run(*args, cwd=None):
    return subprocess.run([str(COMMAND), *map(str, args)], capture_output=True, text=True, cwd=cwd)


def test_help_and_version():
    done = run('--help')
    assert done.returncode == 0 and all(c in done.stdout for c in ('demo', 'simulate', 'train', 'evaluate', 'predict'))
    done = run('--version')
    assert (
        all(w in done.stdout for w in ('hpa_fastai', 'python', 'torch', 'fastai', 'timm', 'device'))
        and len(done.stdout.splitlines()) == 1
    )


def test_version_without_torch(tmp_path):
    (tmp_path/'torch.py').write_text('raise ImportError', encoding='utf-8')
    done = subprocess.run(
        [sys.executable, '-c', 'from hpa_fastai.cli.main import main; main(["--version"])'],
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(tmp_path), os.environ.get('PYTHONPATH', '')])},
    )
    assert done.returncode == 0 and 'device none, without torch' in done.stdout


@pytest.mark.parametrize('args', [[], ['no-such'], ['predict'], ['train', 'x', '--fold', 'one']])
def test_wrong_usage_is_code_2(args): assert run(*args).returncode == 2


NUMBERS = dict(  # of each command: options that take numbers
    train=('size', 'sizes', 'minutes', 'epochs', 'bs', 'lr', 'oversample', 'most-draws', 'seed', 'valid-pct',
           'fold', 'folds'),
    compare=('size', 'sizes', 'minutes', 'epochs', 'bs', 'lr', 'oversample', 'most-draws', 'seed', 'folds',
             'trained-folds'),
    predict=('bs', 'num-workers', 'timeout', 'settle'),
    evaluate=('bs', 'num-workers'),
    cells=('bs', 'num-workers', 'prior', 'pixel-size'),
    calibrate=('bs', 'num-workers', 'seed'),
    figure=('per-location', 'n', 'width', 'dpi', 'pixel-size'),
    map=('bs', 'num-workers', 'seed'),
    simulate=('n', 'size', 'seed', 'label-noise', 'variation'),
    demo=('minutes',),
    app=('port', 'max-upload', 'bs', 'num-workers'),
    pack=('size', 'tar-size', 'num-workers'),
    plan=('shard-size',),
)


@pytest.mark.parametrize('number', ['-2', 'nan', 'inf', '99999999999999999999', '1e400', 'many', '', '0x10', '9'*5000])
def test_numbers_that_make_no_sense_are_told_in_one_line(number, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command, options in NUMBERS.items():
        places = dict(demo=[], app=[], pack=['nowhere', '--out', 'new'],
                      calibrate=['model', 'nowhere', '--out', 'new'], figure=['nowhere', '--images', 'x'])
        place = places.get(command, ['nowhere'])
        for option in options:
            assert main([command, *place, f'--{option}', number]) == 2
            err = capsys.readouterr().err
            assert f'--{option}: ' in err and ' is not a' in err and err.count('\n') == 1 and len(err) < 300
    assert not os.listdir(tmp_path)


def test_every_number_of_the_command_has_limits():
    from hpa_fastai.cli.main import make_parser
    commands = make_parser()._subparsers._group_actions[0].choices
    found = {
        name: {a.option_strings[0][2:] for a in p._actions if type(a.default) in (int, float)}
        for name, p in commands.items()
    }
    assert all(options <= set(NUMBERS.get(name, ())) for name, options in found.items()), found
    of_the_reader = {'bits', 'percentiles', 'pixel_size'}  # which `ImageReader` checks
    assert {a.dest for p in commands.values() for a in p._actions if a.type in (int, float)} <= of_the_reader


def test_train_evaluate_predict(small_atlas, tmp_path, capsys):
    atlas, model = str(small_atlas), str(tmp_path/'model')
    training = ['--group', 'antibody', '--arch', 'lenet5', '--pretrained', 'no', '--sizes', '32', '--epochs', '1']
    assert main(['train', atlas, *training, '--cache', str(tmp_path/'cache'), '--out', model]) == 0
    said = capsys.readouterr().out
    assert 'images to train on' in said and 'macro F1' in said and (tmp_path/'model'/'config.json').is_file()
    assert main(['evaluate', atlas, '--model', model, '--out', str(tmp_path/'classes.csv'), '--no-progress']) == 0
    assert 'macro F1' in capsys.readouterr().out and len(pd.read_csv(tmp_path/'classes.csv')) == 28
    assert main(['predict', f'{atlas}/train', '--model', model, '--out', str(tmp_path/'p.csv')]) == 0
    assert 'predicting on' in capsys.readouterr().err and len(pd.read_csv(tmp_path/'p.csv')) == 90
    assert main(['test-model', model]) == 0


def test_some_inputs_failed_is_code_1(small_atlas, trained, tmp_path, capsys):
    import shutil
    shutil.copytree(small_atlas/'train', tmp_path/'plate')
    broken = Path(find_images(tmp_path/'plate').red[7])
    broken.write_bytes(broken.read_bytes()[:100])
    code = main(
        [
            'predict',
            str(tmp_path / 'plate'),
            '--model',
            str(trained[1]),
            '--out',
            str(tmp_path / 'p.csv'),
            '--no-progress',
        ]
    )
    err = capsys.readouterr().err
    assert code == 1 and broken.name in err and '1 of 90' in err
    assert len(pd.read_csv(tmp_path/'p.csv')) == 90


def test_predict_says_what_it_does_and_writes_what_is_asked(small_atlas, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    base = [
        'predict',
        str(small_atlas / 'train'),
        '--model',
        str(trained[1]),
        '--bs',
        '16',
        '--device',
        'cpu',
        '--no-progress',
    ]
    assert main([*base, '--dry-run']) == 0
    said = capsys.readouterr().out
    assert (
        '90 fields of view' in said
        and 'cpu, full precision' in said
        and 'nothing was written' in said
        and not os.listdir(tmp_path)
    )
    ids = find_images(small_atlas/'train').Id.tolist()
    (tmp_path/'sample.csv').write_text('Id,Predicted\n' + ''.join(f'{i},0\n' for i in reversed(ids)))
    assert (
        main([*base, '--out', 'p.parquet', '--embeddings', 'e.npy', '--submission', 's.csv', '--sample', 'sample.csv'])
        == 0
    )
    assert sorted(os.listdir(tmp_path)) == ['e.ids.json', 'e.npy', 'p.parquet', 's.csv', 'sample.csv']
    assert pd.read_csv('s.csv').Id.tolist() == ids[::-1] and pd.read_parquet('p.parquet').Id.tolist() == ids
    for more in (
        ['--out', 'p.parquet'],
        ['--out', 'q.csv', '--submission', 's.csv', '--sample', 'sample.csv'],
        ['--out', 'q.csv', '--submission', 't.csv'],
        ['--out', 'q.csv', '--embeddings', 'e.npy'],
        ['--out', 'q.csv', '--submission', 't.csv', '--sample', 'none.csv'],
    ):
        assert main([*base, *more]) == 2
    assert not (tmp_path/'q.csv').exists()


@pytest.mark.parametrize('args, words', [
    (['predict', 'nowhere', '--model', 'MODEL'], 'nowhere'),
    (['predict', 'ATLAS/train', '--model', 'none'], 'train one with'),
    (['train', 'nowhere'], 'nowhere'),
    (['train', 'ATLAS', '--csv', 'none.csv'], 'none.csv'),
    (['train', 'ATLAS', '--labels', 'hpa27'], 'hpa27'),
    (['train', 'ATLAS', '--group', 'donor'], 'donor'),
    (['train', 'ATLAS', '--arch', 'resnet_18', '--pretrained', 'no', '--size', '32'], 'resnet18'),
    (['train', 'ATLAS', '--out', 'MODEL'], 'force'),
    (['train', 'ATLAS', '--loss-func', 'focale'], 'focal'),
    (['train', 'ATLAS', '--bs', '0'], '--bs: 0'),
    (['train', 'ATLAS', '--out', '/proc/nowhere/model'], '/proc/nowhere/model'),
    (['train', 'ATLAS', '--arch', 'lenet5', '--pretrained', 'no', '--cache', '/proc/nowhere'], '--no-cache'),
    (['evaluate', 'ATLAS', '--model', 'MODEL', '--csv', 'none.csv'], 'none.csv'),
    (['simulate', 'ATLAS'], 'force'),
    (['simulate', 'new', '--n', '0'], 'n'),
])
def test_could_not_start_is_code_2_and_one_line(small_atlas, trained, tmp_path, monkeypatch, capsys, args, words):
    monkeypatch.chdir(tmp_path)
    args = [a.replace('ATLAS', str(small_atlas)).replace('MODEL', str(trained[1])) for a in args]
    assert main(args + ['--no-progress']) == 2
    err = capsys.readouterr().err
    assert (
        words in err
        and err.startswith('hpa_fastai: ')
        and len(err.strip().splitlines()) == 1
        and 'Traceback' not in err
    )
    assert not (tmp_path/'hpa_model').exists() and not (tmp_path/'predictions.csv').exists()


def test_dry_run_says_what_would_be_done_and_makes_nothing(small_atlas, tmp_path, tmp_path_factory, monkeypatch,
                                                           capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'home'))
    monkeypatch.setenv('MPLCONFIGDIR', str(tmp_path_factory.mktemp('matplotlib')))  # where it lists fonts at first
    assert main(['train', str(small_atlas), '--size', '32', '--no-progress', '--dry-run']) == 0
    assert '90 labelled images' in capsys.readouterr().out and os.listdir(tmp_path) == []
    for setting in (['--bits', '40'], ['--channels', 'xyz'], ['--channels', 'red=0,red=1']):
        assert main(['train', str(small_atlas), *setting, '--dry-run']) == 2
        assert setting[0][2:] in capsys.readouterr().err


def test_offline_training_goes_on_from_scratch(small_atlas, tmp_path, monkeypatch, capsys):
    import hpa_fastai.models.architectures as m
    monkeypatch.setattr(m, '_timm_file', lambda arch: (_ for _ in ()).throw(m._no_weights(arch, 'no network')))
    monkeypatch.chdir(tmp_path)
    assert (
        main(
            [
                'train',
                str(small_atlas),
                '--arch',
                'resnet10t',
                '--sizes',
                '32',
                '--epochs',
                '1',
                '--cache',
                str(tmp_path / 'cache'),
                '--no-progress',
            ]
        )
        == 0
    )
    assert 'Training from scratch: the pretrained weights of resnet10t' in capsys.readouterr().out


def test_offline_training_starts_from_simulated_cells(small_atlas, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    monkeypatch.setenv('HPA_FASTAI_MODELS', str(tmp_path/'models'))
    monkeypatch.setattr('hpa_fastai.experiments.starts.kept_weights', lambda arch: None)
    monkeypatch.chdir(tmp_path)
    assert (
        main(
            [
                'train',
                str(small_atlas),
                '--sizes',
                '32',
                '--epochs',
                '1',
                '--cache',
                str(tmp_path / 'cache'),
                '--no-progress',
            ]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert 'Starting with smallresnet, which knows simulated cells: no weights of hpa-densenet121' in said
    assert 'only the last layer is trained, in seconds or minutes (--fine-tune yes trains the whole network)' in said


def test_a_stopped_training_is_kept_and_goes_on(small_atlas, tmp_path, capsys):
    out, log = tmp_path/'m', tmp_path/'m.training'/'log.csv'
    args = ['train', str(small_atlas), '--arch', 'lenet5', '--pretrained', 'no', '--size', '48', '--epochs', '6',
            '--out', str(out), '--cache', str(tmp_path/'cache'), '--no-progress']
    p = programs.Program('import warnings; warnings.simplefilter("default"); ' + programs.COMMAND, *args)
    while not log.exists() and p.poll() is None: time.sleep(.05)
    p.send_signal(signal.SIGINT)
    said = p.communicate()
    assert p.returncode == 1 and 'training was stopped' in said[1], said
    assert (out/'model.safetensors').exists() and log.exists()
    assert main(args) == 2
    said = capsys.readouterr().err
    assert said.count('\n') == 1 and '--resume goes on' in said
    mine = (out/'config.json').read_text()
    (out/'config.json').write_text(mine.replace('"constant"', '"mine"') + ' ')
    assert main([*args, '--resume']) == 2 and 'already holds a model' in capsys.readouterr().err and log.exists()
    (out/'config.json').write_text(mine)
    assert main([*args, '--resume']) == 0 and 'continuing in' in capsys.readouterr().out and not log.exists()
    assert (out/'config.json').read_text() != mine


def test_a_model_that_cannot_be_saved_is_kept(small_atlas, tmp_path, monkeypatch, capsys):

    args = [
        'train',
        str(small_atlas),
        '--arch',
        'lenet5',
        '--pretrained',
        'no',
        '--size',
        '32',
        '--sizes',
        '32',
        '--epochs',
        '1',
        '--out',
        str(tmp_path / 'm'),
        '--no-cache',
        '--no-progress',
    ]
    def full(*_): raise OSError(28, 'No space left on device')
    with monkeypatch.context() as m:
        m.setattr('hpa_fastai.deploy.saving._write_files', full)
        assert main(args) == 2
    said = capsys.readouterr().err
    assert (
        f'the training is kept in {tmp_path / "m.training"}' in said
        and 'No space left' in said
        and 'Traceback' not in said
    )
    with monkeypatch.context() as m:
        m.setattr('hpa_fastai.train.callbacks.AverageWeights.before_fit', full)  # nothing is trained again
        assert main([*args, '--resume']) == 0
    assert (tmp_path/'m'/'config.json').is_file() and not (tmp_path/'m.training').exists()


def test_places_that_cannot_take_a_model_are_refused_before_training(small_atlas, tmp_path, monkeypatch, capsys):
    import shutil

    args = [
        'train',
        str(small_atlas),
        '--arch',
        'lenet5',
        '--pretrained',
        'no',
        '--size',
        '32',
        '--no-cache',
        '--no-progress',
        '--out',
    ]
    monkeypatch.setattr('hpa_fastai.experiments.training.fit_and_save', None)
    assert main([*args, '/proc/nowhere/m']) == 2 and "can't be made" in capsys.readouterr().err
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: shutil._ntuple_diskusage(100, 99, 1))
    assert main([*args, str(tmp_path/'m')]) == 2 and 'MB are free' in capsys.readouterr().err


@pytest.mark.parametrize('command', ['verify ATLAS/train', '--help'])
def test_a_reader_who_leaves_changes_nothing(small_atlas, command):
    "As in `hpa_fastai … 2>&1 | true`: all lines come after the other end is closed"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [str(COMMAND), *command.replace('ATLAS', str(small_atlas)).split()], stdout=writer, stderr=writer
    )
    os.close(writer)
    assert done.returncode == 0


def test_training_reads_as_it_is_told(small_atlas, tmp_path, capsys):
    import json

    args = [
        'train',
        str(small_atlas),
        '--arch',
        'lenet5',
        '--pretrained',
        'no',
        '--sizes',
        '32',
        '--epochs',
        '1',
        '--no-cache',
        '--no-progress',
    ]
    reading = [
        '--channels',
        'rgb',
        '--missing',
        'zero',
        '--z',
        'channels',
        '--scale',
        'percentile',
        '--percentiles',
        '2',
        '98',
    ]
    assert main([*args, *reading, '--out', str(tmp_path/'m')]) == 0
    asked = dict(channels='rgb', missing='zero', z='channels', scale='percentile', percentiles=[2, 98])
    saved = json.loads((tmp_path/'m'/'config.json').read_text())['reader']
    assert {name: saved[name] for name in asked} == asked
    for wrong, words in (
        (['--channels', 'pink'], '--channels pink'),
        (['--bits', '99'], '--bits 99'),
        (['--pixel-size', '-1'], '--pixel-size -1'),
    ):
        assert main([*args, *wrong, '--out', str(tmp_path / 'n')]) == 2 and words in capsys.readouterr().err


def test_names_that_are_not_utf8_by_every_door(small_atlas, trained, tmp_path, monkeypatch):
    "Folders and files of an old Windows share: every command runs, and an Id of the results is an Id of the labels"
    from hpa_fastai.data.files import find_images
    plate = os.path.join(os.fsencode(tmp_path), b'tr', b'd\xe9p\xf4t')
    os.makedirs(plate)
    ids = []
    for k, (_, row) in enumerate(find_images(small_atlas/'train').head(4).iterrows()):
        for c in ('red', 'green', 'blue', 'yellow'): shutil.copy(row[c], plate+b'/Z\xfcrich%d_' % k+f'{c}.png'.encode())
        ids.append(rf'Z\udcfcrich{k}')
    (tmp_path/'train.csv').write_text('Id,Target\n'+''.join(f'{i},{k%2}\n' for k, i in enumerate(ids)))
    monkeypatch.chdir(tmp_path)
    model = str(trained[1])
    for argv in (
        ['verify', os.fsdecode(plate), '--csv', 'train.csv', '--deep', '--out', 'v.csv'],
        ['predict', 'tr', '--model', model, '--out', 'p.csv'],
        ['cells', 'tr', '--model', model, '--out', 'c.csv'],
        ['explore', 'tr', '--csv', str(tmp_path / 'train.csv'), '--out', 'e.html'],
        [
            'train',
            '.',
            '--images',
            'tr',
            '--out',
            'm',
            '--epochs',
            '1',
            '--sizes',
            '32',
            '--arch',
            'lenet5',
            '--cache',
            'cc',
            '--dry-run',
        ],
    ):
        assert main([*argv, *(() if argv[0] in ('explore', 'verify') else ('--no-progress',))]) in (0, None), argv
    assert sorted(pd.read_csv('p.csv').Id) == sorted(ids)


def test_hints_are_true_by_both_doors():
    import re
    import hpa_fastai

    options = {
        'force=True': '--force',
        'resume=True': '--resume',
        'cache=…': '--cache',
        'group=antibody_of': '--group',
        'pretrained=False': '--pretrained',
        'model=…': '--model',
    }
    for module in Path(hpa_fastai.__file__).parent.rglob('*.py'):
        if module.stem == 'onnx' or module.parent.name == 'cli':
            continue  # there is no command for the one, and the other is the command
        for line in module.read_text(encoding='utf-8').splitlines():
            for argument, option in options.items():
                if argument in line and re.search(r"Error\(|warn\(|^\s+f?['\"]", line):
                    assert option in line, f'{module.name}: {line.strip()}'


def test_names_of_files_do_not_command_the_terminal(tmp_path):
    picture = np.full((64, 64), 9, np.uint8)
    for c in ('red', 'green', 'blue', 'yellow'): Image.fromarray(picture).save(tmp_path/f'a\x1b]0;owned\x07_{c}.png')
    (tmp_path/'b\x1b[2J\u202e_green.png').write_bytes(b'no picture')
    for args in (('verify', tmp_path), ('verify', tmp_path/'no\x1b[31m'), ('predict', tmp_path/'no\x1b[31m')):
        done = programs.run(programs.COMMAND, *args)
        said = done.stdout + done.stderr
        assert not set(said) & set('\x1b\x07\u202e'), said
        assert r'\x1b' in said, said


def test_a_typing_error_in_the_folder_of_a_model_is_not_looked_for_on_the_network(tmp_path, trained, monkeypatch,
                                                                                  capsys):
    asked = []
    def look_up(host, *args, **kwargs):
        asked.append(host)
        raise socket.gaierror('no network')
    monkeypatch.setattr(socket, 'getaddrinfo', look_up)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained[1], tmp_path/'models'/'best')
    assert main(['predict', '.', '--model', 'modles/best']) == 2
    said = capsys.readouterr().err
    assert 'did you mean models/best?' in said and "can't be reached" not in said and not asked


@pytest.mark.parametrize('number, words', [(28, 'make room.*goes on from there'), (27, 'make room'), (122, 'make room'),
                                           (30, 'give another place'), (5, 'Input/output error$')])
def test_a_disk_that_refuses_is_one_line_with_the_file(tmp_path, monkeypatch, capsys, number, words):
    def refuse(*args, **kwargs): raise OSError(number, os.strerror(number), 'run/table.csv')
    monkeypatch.setattr('hpa_fastai.simulate.atlas.simulate_atlas', refuse)
    assert main(['simulate', str(tmp_path/'atlas')]) == 2
    said = capsys.readouterr().err.strip()
    assert re.match(f'hpa_fastai: run/table.csv: .*{words}', said) and '\n' not in said, said


def test_a_limit_of_the_size_of_files_keeps_rows_and_goes_on(trained, small_atlas, tmp_path):
    out = tmp_path/'p.csv'
    command = ['predict', small_atlas/'train', '--model', trained[1], '--out', out, '--no-progress', '--bs', '8']
    done = programs.run(programs.COMMAND, *command, largest_file=9000)
    said = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    assert f'{out}.part' in said and 'File too large' in said and 'the same call or command goes on' in said
    kept = (tmp_path/'p.csv.part').read_bytes()
    assert main(list(map(str, command))) == 0
    assert out.read_bytes().startswith(kept[:kept.rindex(b'\n')])
