"Experiments: the same split for all; failures stay where they are; files are checked before the first hour."
import json

import numpy as np
import pandas as pd
import pytest

from hpa_fastai.all import HPAError, read_predictions
from hpa_fastai.cli.main import main
from hpa_fastai.experiments.compare import check_experiments, compare, read_experiments
from hpa_fastai.experiments.options import ExperimentError


@pytest.mark.parametrize('experiments, words', [
    ([dict(arch='lenet5')], 'number 1 has no name'),
    ([dict(name='a'), dict(name='a')], "'a' is there more than once"),
    (dict(a=dict(losss=1)), 'experiments, a: option'),
    ('abc', 'by the name'),
    (dict(a=3), 'by the name')])
def test_experiments_that_make_no_sense_are_said(experiments, words):
    with pytest.raises(ExperimentError, match=words): check_experiments(experiments)


FILES = [
    ('e.yaml', 'a: {}\nb: {size: 48, sizes: [32, 48]}\n'),
    ('e.json', '[{"name": "a"}, {"name": "b", "size": 48, "sizes": [32, 48]}]'),
    ('e.csv', 'name,size,sizes\na,,\nb,48,"[32, 48]"\n'),
    ('e.CSV', 'sep=;\nname;size; sizes\na;;\nb;48;[32, 48]\n'),
    ('e.csv', 'name\tsize\tsizes\na\t\t\nb\t48\t[32, 48]\n'.encode('utf-16'))]

@pytest.mark.parametrize('name, text', FILES)
def test_experiments_come_from_files(tmp_path, name, text):
    (tmp_path/name).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert read_experiments(tmp_path/name) == dict(a={}, b=dict(size=48, sizes=[32, 48]))


@pytest.mark.parametrize('name, raw, words', [
    ('e.yaml', b'a: [1,\n', 'e.yaml'),
    ('e.zip', b'PK\x03\x04', 'a zip archive'),
    ('e.xlsx', b'PK\x03\x04', 'a damaged Excel workbook'),
    ('e.csv', 'name,lr\n'.encode('utf-16')[:-1], 'breaks off'),
    ('d.csv', b'name,lr,lr\na,1,2\n', "two columns called 'lr'")])
def test_files_of_experiments_that_cannot_be_read(tmp_path, name, raw, words):
    (tmp_path/name).write_bytes(raw)
    with pytest.raises(ExperimentError, match=words) as e: read_experiments(tmp_path/name)
    assert '\n' not in str(e.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ExperimentError, match='none.yaml: no such file'): read_experiments(tmp_path/'none.yaml')


def test_a_decimal_comma_is_a_decimal_point(tmp_path):
    (tmp_path/'e.csv').write_text('name;lr\na;0,01\n')
    assert read_experiments(tmp_path/'e.csv') == dict(a=dict(lr=.01))


@pytest.fixture(scope='module')
def compared(small_atlas, fast, tmp_path_factory):
    "Experiments, one of which can't be run: the function that runs them, their table and their folder"
    out = tmp_path_factory.mktemp('compared')/'out'
    trials = dict(bce=dict(loss_func='bce'), broken=dict(arch='mixer_s16_224', sizes=(16, 32)))
    def run(): return compare(small_atlas/'train.csv', small_atlas/'train', out, trials, archs=['resnet10t'], **fast)
    return run, run(), out


def test_experiments_stand_side_by_side(compared):
    _, table, out = compared
    assert table.index.tolist() == ['resnet10t', 'bce', 'broken']
    ok = table.drop('broken')
    measured = ['macro_f1', 'low', 'high', 'mean_ap', 'minutes', 'parameters', 'images_per_second']
    assert (ok['error'] == '').all() and ok[measured].notna().all(axis=None)
    assert (ok.low <= ok.macro_f1).all() and (ok.macro_f1 <= ok.high).all()
    assert ok.parameters['resnet10t'] > ok.parameters['bce']
    assert np.isclose(ok.difference['bce'], ok.macro_f1['bce'] - ok.macro_f1['resnet10t'])
    assert np.isnan(ok.difference['resnet10t'])
    assert pd.read_csv(out/'experiments.csv').name.tolist() == table.index.tolist()
    assert (out/'experiments.png').stat().st_size > 10_000


def test_the_split_is_the_same(compared):
    _, _, out = compared
    first, second = (read_predictions(out/name/'predictions.csv').Id.tolist() for name in ('bce', 'resnet10t'))
    assert first == second


def test_a_failure_is_a_row_and_the_others_go_on(compared):
    _, table, out = compared
    assert 'does not take pictures of 16 px' in table['error']['broken'] and np.isnan(table.macro_f1['broken'])
    assert 'Traceback' in (out/'broken'/'error.txt').read_text()


def test_experiments_go_on(compared):
    run, table, out = compared
    written = lambda: {p: p.stat().st_mtime_ns for p in out.glob('*/fold0.csv')}
    before = written()
    assert run().drop(columns='error').equals(table.drop(columns='error'))
    assert written() == before and len(before) == 2


def test_wrong_networks_are_refused_at_once(small_atlas, tmp_path):
    data = small_atlas/'train.csv', small_atlas/'train', tmp_path/'out'
    with pytest.raises(HPAError, match='resnet18'): compare(*data, archs=['resnet_18'])
    with pytest.raises(ExperimentError, match='nothing to compare'): compare(*data)
    assert not (tmp_path/'out').exists()


def test_a_comparison_that_is_refused_keeps_the_table_of_the_first(compared, small_atlas, fast):
    _, _, out = compared
    before, atlas = (out/'experiments.csv').read_bytes(), small_atlas
    refused = compare(atlas/'train.csv', atlas/'train', out, archs=['resnet10t'], **{**fast, 'seed': 7})
    assert 'trained otherwise' in refused.loc['resnet10t', 'error']
    assert (out/'experiments.csv').read_bytes() == before


def test_folds_and_comparison_from_the_shell(small_atlas, fast, tmp_path, capsys):
    base = [str(small_atlas), '--group', 'antibody', '--pretrained', 'no', '--size', '32', '--sizes', '32',
            '--epochs', '1', '--bs', '16', '--cache', str(fast['cache']), '--no-progress']
    models, table, out = (str(tmp_path/name) for name in ('models', 'p.csv', 'exp'))
    assert main(['train', *base, '--arch', 'lenet5', '--folds', '2', '--out', models]) == 0
    said = capsys.readouterr().out
    assert 'macro F1' in said and '2 models' in said
    assert json.loads((tmp_path/'models'/'settings.json').read_text())['folds'] == 2
    assert main(['predict', str(small_atlas/'train'), '--model', models, '--out', table, '--no-progress']) == 0
    (tmp_path/'e.yaml').write_text('bce: {arch: lenet5, loss_func: bce}\n')
    trials = ['--archs', 'lenet5', '--experiments', str(tmp_path/'e.yaml')]
    assert main(['compare', *base, *trials, '--out', out]) == 0
    said = capsys.readouterr().out
    assert 'lenet5' in said and 'bce' in said and 'images_per_second' in said
    assert (tmp_path/'exp'/'experiments.png').is_file()
    assert main(['train', *base, '--folds', '2', '--fold', '1', '--out', str(tmp_path/'x')]) == 2
    assert main(['compare', *base, '--archs', 'resnet_18', '--out', str(tmp_path/'x')]) == 2
