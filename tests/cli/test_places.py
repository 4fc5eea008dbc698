"A place that does not exist is answered with the nearest name beside it, and every command names what it wrote."
from pathlib import Path

import pytest

from hpa_fastai.cli.main import main
from hpa_fastai.basics.download import DownloadError, fetch_file


def told(command, capsys):
    assert main(command.split()) == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize('command', [
    'predict smal --model MODEL', 'evaluate smal --model MODEL', 'train smal --out MODEL', 'train smal --dry-run',
    'explore smal', 'map smal --model MODEL', 'calibrate MODEL smal --out new', 'report smal',
    'evaluate small --images smal --csv train.csv --model MODEL', 'predict predictions.xlsx --model smal',
    'cells smal --model MODEL', 'predict smal --watch --timeout 0 --model MODEL'])
def test_a_folder_that_may_be_meant(command, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'small').mkdir()
    for name in ('small/train.csv', 'train.csv', 'predictions.xlsx'): (tmp_path/name).write_text('Id,Target\na,0\n')
    said = told(command.replace('MODEL', str(trained[1])), capsys)
    assert 'did you mean small?' in said and 'smal' in said


@pytest.mark.parametrize('command, meant', [
    ('evaluate small --csv train_label.xlsx --model MODEL', 'train_labels.xlsx'),
    ('train small --csv train_label.xlsx', 'train_labels.xlsx'),
    ('report prediction.xlsx', 'predictions.xlsx'), ('figure prediction.xlsx --kind counts', 'predictions.xlsx')])
def test_a_table_that_may_be_meant(command, meant, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'small').mkdir()
    for name in ('train_labels.xlsx', 'predictions.xlsx'): (tmp_path/name).write_text('')
    assert f'did you mean {meant}?' in told(command.replace('MODEL', str(trained[1])), capsys)


@pytest.mark.parametrize('command', ['predict small --model MODEL', 'train small', 'evaluate small --model MODEL'])
def test_an_empty_folder_is_called_empty(command, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'small').mkdir()
    assert 'small: the folder is empty' in told(command.replace('MODEL', str(trained[1])), capsys)


@pytest.mark.parametrize('command, words', [
    ('predict small --pixel-size 0,24', 'write 0.24'), ('train small --lr 0,003', 'write 0.003'),
    ('cells small --prior ,5', 'write .5'), ('train small --epochs 1,5', 'write 1.5')])
def test_a_comma_in_a_number(command, words, capsys): assert words in told(command, capsys)


def test_what_was_written_is_named(small_atlas, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = ['--model', str(trained[1]), '--no-progress']
    assert main(['evaluate', str(small_atlas), '--out', 'scores.xlsx', *model]) == 0
    assert 'Scores of each class: scores.xlsx' in capsys.readouterr().out
    assert main(['map', str(small_atlas/'train'), '--out', 'x.pdf', '--method', 'pca', *model]) == 0
    assert 'Map: x.pdf. Caption: x.txt.' in capsys.readouterr().out and Path('x.txt').is_file()


def test_a_server_that_cannot_be_reached_is_a_short_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('HPA_FASTAI_MODELS', str(tmp_path/'models'))
    monkeypatch.setenv('HPA_FASTAI_MIRROR', 'http://nowhere.invalid')
    for name in ('HF_HUB_OFFLINE', 'TRANSFORMERS_OFFLINE', 'HTTP_PROXY', 'http_proxy'): monkeypatch.delenv(name, False)
    said = told('models get hpa-densenet121', capsys)
    assert said.count('(') == said.count(')') and len(said) < 360
    for words in ("nowhere.invalid can't be reached (", 'densenet_model.onnx', '--from FOLDER'): assert words in said
    with pytest.raises(DownloadError) as e: fetch_file('http://nowhere.invalid/w.bin', tmp_path/'w.bin')
    assert str(e.value).count('(') == str(e.value).count(')')
