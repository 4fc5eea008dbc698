"What the command line says is in its own words, and a misspelt word is answered with the nearest."
import subprocess
import sys
from pathlib import Path

import pytest

from hpa_fastai.cli.main import COMMANDS, make_parser, main
from hpa_fastai.cli.wording import error_for_shell, for_shell, nearest

ORDER = ('verify', 'explore', 'train', 'evaluate', 'predict', 'cells', 'report', 'figure', 'map', 'calibrate',
         'compare', 'models', 'test-model', 'demo', 'simulate')


def test_help_lists_the_commands_in_the_order_of_a_project(capsys):
    assert main([]) == 2
    alone = capsys.readouterr().out
    listed = [line.split()[0] for line in alone.splitlines() if line.startswith('  ') and line[2] not in ' -']
    assert [name for name in listed if name in ORDER] == list(ORDER)
    assert set(listed) == set(make_parser().commands) and len(listed) == sum(map(len, COMMANDS.values()))
    with pytest.raises(SystemExit) as end: main(['--help'])
    assert end.value.code == 0 and capsys.readouterr().out == alone
    with pytest.raises(SystemExit): main(['help', 'train'])
    assert capsys.readouterr().out.startswith('usage: hpa_fastai train ')


@pytest.mark.parametrize('args, meant', [
    ('predcit plate7', 'there is no command \'predcit\'; did you mean predict?'),
    ('trian data', 'did you mean train?'),
    ('train data --epoch-s 3', 'did you mean --epochs?'),
    ('train data --batch-size 8', 'did you mean --bs?'),
    ('train data --learning-rate=.1', 'did you mean --lr?'),
    ('predict data --n-workers 2', 'did you mean --num-workers'),
    ('predict data --overwrite', 'did you mean --force?'),
    ('predict data more', "'more' is one argument too many; put a name with spaces in quotes (hpa_fastai predict"),
])
def test_misspelt_words_are_answered_with_the_nearest(args, meant, capsys):
    assert main(args.split()) == 2
    said = capsys.readouterr().err
    assert meant in said and said.startswith('hpa_fastai: ') and said.count('\n') == 1


def test_no_word_is_guessed_from_nothing():
    assert nearest('zzz', ['train', 'predict']) == '' and nearest('--zzz', []) == ''


@pytest.mark.parametrize('args, words', [
    ('predict ATLAS/train --model MODEL --out old.csv', 'overwrite it with --force'),
    ('predict ATLAS/train --model MODEL --submission s.csv', '--submission and --sample go together'),
    ('train ATLAS --out MODEL', 'replace it with --force'),
    ('train ATLAS --bits 99', '--bits 99: '),
    ('train ATLAS --channels pink', '--channels pink'),
    ('train ATLAS --epochs 0', '--epochs: 0 is not'),
    ('predict ATLAS/train --model none', '--model'),
    ('simulate ATLAS', '--force'),
    ('explore ATLAS --out old.csv', '--force'),
])
def test_errors_speak_the_language_of_the_shell(args, words, small_atlas, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path('old.csv').write_text('Id\n')
    assert main(args.replace('ATLAS', str(small_atlas)).replace('MODEL', str(trained[1])).split()) == 2
    said = capsys.readouterr().err
    assert words in said
    for python in ('=True', '=False', '=…', '(--'): assert python not in said


def test_python_is_told_in_its_own_language(small_atlas, trained, tmp_path):
    from hpa_fastai.all import HPAError, ImageReader, predict
    (tmp_path/'old.csv').write_text('Id\n')
    with pytest.raises(HPAError, match='force=True'): predict(small_atlas/'train', trained[1], tmp_path/'old.csv')
    with pytest.raises(HPAError, match='^bits=99: '): ImageReader(bits=99)


def test_every_message_of_the_library_can_be_told_to_a_shell():
    "No form of Python is left of a hint that names its option, whatever its value"
    import re
    import hpa_fastai
    hints, package = [], Path(hpa_fastai.__file__).parent
    for module in package.rglob('*.py'):
        code = re.sub(r"'\n\s+f?'", '', module.read_text(encoding='utf-8'))  # texts of several lines
        code = re.sub(r'\{[^{}]*\}', 'VALUE', code)
        hints += re.findall(r"[\w.]*=[^\s=]+ \(--[a-z][^)]*\)", code)
    assert len(hints) > 30
    for hint in hints: assert for_shell(hint).startswith('--') and '=' not in for_shell(hint), hint


def test_what_is_no_option_stays_as_it_is():
    parsers = make_parser().commands.values()
    options = {a.dest: a for parser in parsers for a in parser._actions if a.option_strings}
    for text in ('plate/n=3/a.png: cut off', 'x=True (see below)', "columns: a=1, b=2",
                 'read_labels keeps it with allow_empty=True'):
        assert error_for_shell(text, options) == text
    assert error_for_shell("lr='find' works in one process only; pass a number (--lr 0.003)", options).startswith(
        '--lr find works')


def test_a_rehearsal_refuses_what_the_run_refuses(small_atlas, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'full').mkdir()
    (tmp_path/'full'/'mine.txt').touch()
    for args in ('--fold 7', '--group donor', '--folds 95', '--pretrained none.safetensors', '--loss-func focale',
                 '--arch resnet_18', '--out full', '--out full --folds 3', '--fold 1 --folds 3', '--labels hpa27',
                 '--device no-such', '--csv none.csv', '--bits 99'):
        assert main(['train', str(small_atlas), '--dry-run', '--pretrained', 'no', *args.split()]) == 2, args
        said = capsys.readouterr()
        assert said.err.count('\n') == 1 and 'nothing was done' not in said.out
    assert sorted(p.name for p in tmp_path.rglob('*')) == ['full', 'mine.txt']


def test_a_rehearsal_ends_as_the_run_would_where_a_result_exists(small_atlas, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path('old.csv').write_text('Id\n')
    model, images = str(trained[1]), str(small_atlas/'train')
    config = (trained[1]/'config.json').read_bytes()
    rehearsals = (['train', str(small_atlas), '--pretrained', 'no', '--out', model, '--dry-run'],
                  ['predict', images, '--model', model, '--out', 'old.csv', '--dry-run'])
    for args in rehearsals:
        assert main(args) == 2
        said = capsys.readouterr().out
        assert said.index('exists: without') < said.index('nothing was')
        assert 'exists: without --force the command would stop here; with --force it would be replaced' in said
        assert 'nothing was' in said
        assert main([*args, '--force']) == 0 and 'would stop here' not in capsys.readouterr().out
    assert Path('old.csv').read_text() == 'Id\n' and (trained[1]/'config.json').read_bytes() == config


def test_python_and_shell_write_the_same_files(small_atlas, trained, tmp_path):
    "Table, submission and page of `hpa_fastai.predict` are those of the command"
    import hpa_fastai
    from hpa_fastai.data.files import find_images
    table = find_images(small_atlas/'train').head(6)
    table.to_csv(tmp_path/'paths.csv', index=False)
    (tmp_path/'sample.csv').write_text('Id,Predicted\n'+''.join(f'{i},0\n' for i in table.Id[::-1]))
    files = dict(out='p.csv', submission='s.csv', report='r.html')
    for folder in ('shell', 'python'): (tmp_path/folder).mkdir()
    wanted = {name: tmp_path/'python'/file for name, file in files.items()}
    df = hpa_fastai.predict(tmp_path/'paths.csv', trained[1], sample=tmp_path/'sample.csv', progress=False, **wanted)
    options = [part for name, file in files.items() for part in (f'--{name}', str(tmp_path/'shell'/file))]
    assert main(['predict', str(tmp_path/'paths.csv'), '--model', str(trained[1]), '--sample',
                 str(tmp_path/'sample.csv'), '--no-progress', *options]) == 0
    for name in ('p.csv', 's.csv'):
        assert (tmp_path/'shell'/name).read_bytes() == (tmp_path/'python'/name).read_bytes()
    assert len(df) == 6 and all((tmp_path/o/'r.html').stat().st_size > 10_000 for o in ('shell', 'python'))


def test_the_command_can_be_started_alone():
    done = subprocess.run([sys.executable, '-m', 'hpa_fastai'], capture_output=True, text=True)
    assert done.returncode == 2 and 'verify' in done.stdout and done.stderr == ''


def test_a_rehearsal_counts_what_the_run_would_use(small_atlas, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(['predict', str(small_atlas/'train'), '--model', str(trained[1]), '--dry-run', '--no-progress']) == 0
    said = capsys.readouterr().out
    assert 'one model of 28 classes' in said and 'less than a minute for all' in said
    train = ['train', str(small_atlas), '--arch', 'smallresnet', '--dry-run']
    assert main(train) == 0
    said = capsys.readouterr().out
    assert 'all to train on' in said and 'because 90 training images are few' in said
    assert main([*train, '--fine-tune', 'yes', '--epochs', '1']) == 0
    assert '1 epoch a stage' in capsys.readouterr().out
    assert main([*train[:2], '--pretrained', str(trained[1]), '--dry-run']) == 0
    assert 'resnet10t would be trained for seconds or minutes' in capsys.readouterr().out


@pytest.mark.parametrize('more, n', [([], 0), (['--fold', '0'], 1), (['--fine-tune', 'yes'], 1)])
def test_notes_about_a_split_are_for_trainings_that_use_it(small_atlas, tmp_path, recwarn, more, n):
    assert main(['train', str(small_atlas), '--arch', 'smallresnet', '--size', '32', '--epochs', '1', '--cache',
                 str(tmp_path/'cache'), '--no-progress', '--group', 'antibody', '--out', str(tmp_path/'m'), *more]) == 0
    said = [str(w.message) for w in recwarn]
    assert len([s for s in said if s.startswith('valid has no image')]) == n, said
    assert len([s for s in said if s.startswith('train has no image')]) in (0, n)


def test_a_rehearsal_asks_for_groups_too(small_atlas, tmp_path, monkeypatch, recwarn):
    monkeypatch.chdir(tmp_path)
    how = ['train', str(small_atlas), '--arch', 'lenet5', '--pretrained', 'no', '--dry-run']
    def asked(): return [str(w.message) for w in recwarn if '--group antibody' in str(w.message)]
    for group in ('antibody', 'none'): assert main([*how, '--group', group]) == 0 and not asked()
    assert main(how) == 0 and len(asked()) == 1
