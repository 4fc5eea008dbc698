"Corrections of labels: nothing that somebody chose is lost, and what can't be right is named by its row."
import threading
import warnings

import numpy as np
import pandas as pd
import pytest

import programs
from hpa_fastai.basics.errors import HPAError
from hpa_fastai.data import corrections as module
from hpa_fastai.data.corrections import (
    CORRECTION_COLUMNS, UNDO, Corrections, label_set_name, merge_corrections, read_corrections, standing_corrections)
from hpa_fastai.data.labels import HPA19, HPA28, LabelError, LabelSet

HEADER = ','.join(CORRECTION_COLUMNS)
ADD = '''
import sys
from hpa_fastai.data.corrections import Corrections
from hpa_fastai.data.labels import HPA28
mine = Corrections(sys.argv[1], HPA28)
for k in range(int(sys.argv[3])): mine.add(f'{sys.argv[2]}{k}', 'Cytosol', user=sys.argv[2])
'''


@pytest.fixture
def mine(tmp_path): return Corrections(tmp_path/'corrections.csv', HPA28)


def test_two_programs_that_write_at_once_lose_nothing(mine):
    writers = [programs.Program(ADD, mine.file, user, 200) for user in ('anna', 'ben')]
    for writer in writers: assert writer.communicate(60)[1] == ''
    table = mine.table()
    assert len(table) == 400 and (table.user + table.Id.str.extract(r'(\d+)')[0] == table.Id).all()
    for user in ('anna', 'ben'): assert table.Id[table.user == user].tolist() == [f'{user}{k}' for k in range(200)]
    assert mine.file.read_text().count(HEADER) == 1


def test_threads_that_write_at_once_lose_nothing(mine):
    def work(name):
        for k in range(20): mine.add(f'{name}{k}', 'Cytosol')
    threads = [threading.Thread(target=work, args=(name,)) for name in 'abcd']
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert sorted(mine.table().Id) == sorted(f'{name}{k}' for name in 'abcd' for k in range(20))


@pytest.mark.parametrize('n_before', [0, 3])
def test_a_full_disk_is_one_line_and_takes_nothing_away(mine, n_before):
    for k in range(n_before): mine.add(f'f{k}', 'Cytosol')
    before = mine.file.read_bytes() if n_before else None
    limit = len(before or b'') + 20  # a part of the row would fit
    done = programs.run(ADD, mine.file, 'new', 1, largest_file=limit)
    said = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and 'the correction of new0 was not saved (File too large)' in said
    assert 'make room' in said
    assert (mine.file.read_bytes() if mine.file.exists() else None) == before
    mine.add('new0', 'Cytosol')
    assert mine.current().Id.tolist() == [*(f'f{k}' for k in range(n_before)), 'new0']


def test_a_disk_that_fails_when_it_is_asked_to_keep_a_row(mine, monkeypatch):
    mine.add('a', 'Cytosol')
    before = mine.file.read_bytes()
    def fail(_): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(module.os, 'fsync', fail)
    with pytest.raises(HPAError, match='the correction of b was not saved .No space left on device.'):
        mine.add('b', 'Cytosol')
    assert mine.file.read_bytes() == before


def test_a_row_is_on_the_disk_when_it_was_added(mine, monkeypatch):
    kept = []
    monkeypatch.setattr(module.os, 'fsync', lambda number: kept.append(mine.file.read_bytes()))
    mine.add('a', 'Cytosol')
    assert kept == [mine.file.read_bytes()] and kept[0].endswith(b'\n')


ODD = ['=1+1', '+2', '-3', '@x', "'=1", '007', '1e5', '2021-01-02', '12.0', 'a,b', 'say "hi"', "it's",
       'Zürich µ 日本', 'x;y', 'a b', '#NAME?', 'nan', 'undo']

def test_ids_stay_as_they_are(mine):
    for k, Id in enumerate(ODD): mine.add(Id, str(k), previous='0', user='=cmd|calc', model='-1')
    table = mine.table()
    assert table.Id.tolist() == ODD and table.Target.tolist() == [str(k) for k in range(len(ODD))]
    assert set(table.user) == {'=cmd|calc'} and set(table.model) == {'-1'} and set(table.previous) == {'0'}
    cells = [cell for line in mine.file.read_text().splitlines() for cell in line.split(',') if cell]
    assert not any(cell[0] in '=+-@' for cell in cells)
    df = pd.DataFrame({'Id': ODD, 'Target': '27'})
    merged, report = merge_corrections(df, mine.file, HPA28)
    assert merged.Target.tolist() == table.Target.tolist() and report.unknown == []


@pytest.mark.parametrize('separator, encoding, ends', [
    (';', 'utf-8-sig', '\r\n'), (',', 'utf-8-sig', '\r\n'), ('\t', 'utf-16', '\r\n'), (',', 'utf-8', '\n')])
def test_a_file_that_a_spreadsheet_saved_is_read_and_goes_on(mine, separator, encoding, ends):
    lines = [['note', 'user', 'Target', 'Id'], ['look again', 'anna', '2|Cytosol', '007'], ['', 'ben', 'UNDO', '007'],
             ['', 'ben', 'Nucleoli', "'=1+1"]]
    text = ends.join(separator.join(line) for line in lines) + ends
    mine.file.write_bytes(text.encode(encoding))
    assert mine.current()[['Id', 'Target', 'user']].values.tolist() == [['=1+1', '2', 'ben']]
    mine.add('008', 'Cytosol', user='eva')
    mine.add('009', 'Cytosol', user='eva')
    table = mine.table()
    assert table.Id.tolist() == ['007', '007', '=1+1', '008', '009'] and table.Target[3] == UNDO
    assert mine.file.read_text('utf-8').splitlines()[:2] == [HEADER + ',note', '007,2|Cytosol,,,anna,,,look again']
    assert all(line.count(',') == 7 for line in mine.file.read_text('utf-8').splitlines())


def test_a_file_of_excel_with_our_columns_goes_on_without_being_rewritten(mine):
    mine.file.write_bytes(b'\xef\xbb\xbf' + f'{HEADER}\r\na,25,,,anna,\r\n'.encode())
    before = mine.file.read_bytes()
    mine.add('b', 'Cytosol')
    assert mine.file.read_bytes().startswith(before) and mine.table().Id.tolist() == ['a', 'b']


def test_a_file_whose_lines_end_as_on_old_computers_loses_nothing(mine):
    mine.file.write_bytes(f'{HEADER}\ra,25,,,anna,\rb,16,,,anna,\r'.encode())
    mine.add('c', '2')
    assert mine.current().Id.tolist() == ['a', 'b', 'c']


def test_a_file_in_the_encoding_of_windows_goes_on_in_utf_8(mine):
    mine.file.write_bytes(f'{HEADER}\r\nZürich,25,,,Jörg,\r\n'.encode('cp1252'))
    mine.add('Köln', '2')
    assert mine.current().Id.tolist() == ['Zürich', 'Köln'] and mine.current().user[0] == 'Jörg'
    assert mine.file.read_text('utf-8').count('Zürich') == 1


def test_a_workbook_of_corrections_is_read(tmp_path):
    pytest.importorskip('openpyxl')
    df = pd.DataFrame({'Target': ['Cytosol', 'undo', '16'], 'Id': ['007', '007', 'b']})
    df.to_excel(tmp_path/'c.xlsx', index=False)
    table = read_corrections(tmp_path/'c.xlsx', HPA28)
    assert standing_corrections(table)[['Id', 'Target']].values.tolist() == [['b', '16']]


TORN = [b'b', b'b,16 0', b'b,16 0,,', b'b,"16', b'b,25,"a, b",\xc3', b'"b, c",25,,,']

@pytest.mark.parametrize('torn', TORN)
def test_half_a_row_is_told_and_never_continued(mine, torn):
    mine.add('a', '25')
    whole = mine.file.read_bytes()
    with open(mine.file, 'ab') as f: f.write(torn)
    with pytest.warns(UserWarning, match='the last row breaks off and is not read'):
        assert mine.current().Id.tolist() == ['a']
    with pytest.warns(UserWarning, match='the last row breaks off and is removed'): mine.add('c', '16')
    assert mine.file.read_bytes().startswith(whole)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert mine.current()[['Id', 'Target']].values.tolist() == [['a', '25'], ['c', '16']]


def test_half_a_header_is_begun_anew(mine):
    mine.file.write_bytes(b'Id,Tar')
    with pytest.warns(UserWarning, match='breaks off'): mine.add('a', '25')
    assert mine.current().Id.tolist() == ['a'] and mine.file.read_text().startswith(HEADER + '\n')


def test_a_last_row_without_an_end_of_line_counts(mine):
    mine.file.write_text(f'{HEADER}\na,25,,,anna,,')
    mine.add('b', '16')
    assert mine.current()[['Id', 'Target']].values.tolist() == [['a', '25'], ['b', '16']]


def test_what_was_taken_back_brings_back_what_was_before(mine):
    mine.add('a', '1', user='anna')
    mine.add('a', '2', user='ben')
    assert len(mine.conflicts()) == 1
    assert [mine.undo('a', 'ben') for _ in range(3)] == [True, True, False]
    assert mine.current().empty and mine.conflicts().empty
    assert mine.table().Target.tolist() == ['1', '2', UNDO, UNDO] and mine.table().previous.tolist()[2:] == ['2', '1']
    merged, report = merge_corrections(pd.DataFrame({'Id': ['a'], 'Target': ['3']}), mine.file, HPA28)
    assert merged.Target.tolist() == ['3'] and (report.n_changed, report.n_same) == (0, 0)


def test_people_who_agree_in_the_end_have_no_conflict(mine):
    for user, target in (('anna', '2 25'), ('ben', '1'), ('ben', 'Cytosol, Nucleoli')): mine.add('a', target, user=user)
    assert mine.conflicts().empty


def test_conflicts_say_who_said_what_and_which_stands(mine):
    for k in range(5):
        for user, target in (('anna', 'Cytosol'), ('ben', 'Nucleoli')): mine.add(f'f{k}', target, user=user)
    df = pd.DataFrame({'Id': [f'f{k}' for k in range(5)], 'Target': '0'})
    merged, report = merge_corrections(df, mine.file, HPA28)
    assert set(merged.Target) == {'2'} and len(report.conflicts) == 5
    assert 'f0 (anna: Cytosol; ben: Nucleoli, which stands)' in str(report) and 'and 2 more' in str(report)
    assert 'f3 (' not in str(report)


FAULTS = [
    ('Id,Target\na,25\n,25\n', 'row 3: the Id is empty'),
    ('Id,Target\na,25\nb,Cytosool\n', "row 3: label 'Cytosool' is not a class of hpa28; did you mean 'Cytosol'"),
    ('Id,Target\na,28\nb,25\nc,31\nd,99\n', 'row 2: label 28 is not one of the 28 classes .*also rows 4, 5'),
    ('Id,Target\na,25\n\nb, \n', 'row 4: Target of b is empty; write its classes, or undo, or delete the row'),
    ('Id,Target\na,Vesicles\n', 'these are labels of hpa31, and labels of hpa28 are corrected'),
    ('Id,user\na,anna\n', "no column 'Target' .*corrections need the columns Id and Target"),
    ('Target,user\n25,anna\n', "no column 'Id' .*corrections need the columns Id and Target"),
    ('', 'is empty'), ('\n \n', 'is empty'), ('Id,Target\n', 'holds no corrections'),
    ('Id,Target\na,2,5\n', "is '5' part of a label"),
]

@pytest.mark.parametrize('text, message', FAULTS)
def test_what_cannot_be_right_is_one_line(tmp_path, text, message):
    (tmp_path/'c.csv').write_text(text)
    with pytest.raises(HPAError, match=message) as failed: read_corrections(tmp_path/'c.csv', HPA28)
    assert '\n' not in str(failed.value) and 'c.csv' in str(failed.value)
    assert (tmp_path/'c.csv').read_text() == text


def test_files_that_are_not_there(tmp_path):
    (tmp_path/'corrections.csv').touch()
    with pytest.raises(HPAError, match='did you mean .*corrections.csv'):
        read_corrections(tmp_path/'corections.csv', HPA28)
    with pytest.raises(HPAError, match='is a folder'): read_corrections(tmp_path, HPA28)


def test_a_table_of_labels_is_read_and_never_written(tmp_path):
    text = 'Id,Target,well\na,25,1\nb,16 0,2\n'
    (tmp_path/'train.csv').write_text(text)
    df = pd.DataFrame({'Id': ['a', 'b'], 'Target': ['25', '16']})
    merged, report = merge_corrections(df, tmp_path/'train.csv', HPA28)
    assert merged.Target.tolist() == ['25', '0 16'] and report.gained == {'Nucleoplasm': 1} and report.n_same == 1
    with pytest.raises(LabelError, match='is a table of labels, which is not changed'):
        Corrections(tmp_path/'train.csv', HPA28).add('a', '1')
    assert (tmp_path/'train.csv').read_text() == text


def test_labels_are_written_as_their_set_writes_them(tmp_path):
    mine = Corrections(tmp_path/'c.csv', HPA19)
    mine.add('a', ['Cytosol', 'Nucleoplasm'], previous='Negative')
    assert mine.table()[['Target', 'previous']].values.tolist() == [['0|16', '18']]
    merged, report = merge_corrections(pd.DataFrame({'Id': ['a'], 'Target': ['18']}), mine.file, HPA19)
    assert merged.Target.tolist() == ['0|16'] and report.lost == {'Negative': 1}
    with pytest.raises(LabelError, match='takes back a correction'):
        Corrections(tmp_path/'c.csv', LabelSet('mine', ('undo', 'redo')))


@pytest.mark.parametrize('Id', ['', ' ', 'a\nb', 'a\0b'])
def test_what_is_no_id_is_refused(mine, Id):
    with pytest.raises(LabelError, match='can not be the Id'): mine.add(Id, '1')
    assert not mine.file.exists()


def test_the_rest_of_a_table_stays(mine):
    df = pd.DataFrame({'Id': ['a', 'b', 'c'], 'Target': ['16 0', '25', '3'], 'antibody': [1, 2, 3]}, index=[7, 3, 5])
    for Id, target in (('b', '2'), ('a', '0 16'), ('new', '5'), ('gone', '6')): mine.add(Id, target)
    merged, report = merge_corrections(df, mine.file, HPA28, ids=['a', 'b', 'c', 'new', 'other'])
    assert merged.Id.tolist() == ['a', 'b', 'c', 'new'] and merged.Target.tolist() == ['16 0', '2', '3', '5']
    assert merged.antibody.tolist()[:3] == [1, 2, 3] and np.isnan(merged.antibody[3])
    assert df.Target.tolist() == ['16 0', '25', '3'] and report.before.to_dict() == {'a': '16 0', 'b': '25', 'c': '3'}
    assert report.to_dict() == dict(
        changed=1, added=1, same=1, gained={'Nucleoli': 1, 'Nuclear bodies': 1}, lost={'Cytosol': 1}, unknown=1,
        conflicts=0)


def test_unknown_ids_are_named_three_at_most(mine):
    for k in range(5): mine.add(f'x{k}', '1')
    report = merge_corrections(pd.DataFrame({'Id': ['a'], 'Target': ['1']}), mine.file, HPA28)[1]
    assert 'x0, x1, x2 and 2 more' in str(report) and len(report.unknown) == 5 and '\n' not in str(report)


def test_without_locks_a_row_is_still_written(mine, monkeypatch):
    def refuse(*args, **kwargs): raise OSError(38, 'Function not implemented')
    monkeypatch.setattr(module.FileLock, 'acquire', refuse)
    mine.add('a', '1')
    assert mine.current().Id.tolist() == ['a']


def test_a_file_that_stays_locked_is_told(mine, monkeypatch):
    monkeypatch.setattr(module, 'PATIENCE', .1)
    with mine._alone():
        with pytest.raises(HPAError, match='another program keeps this file locked'): mine.add('a', '1')
    assert not mine.file.exists()


EARLIER = 'Id,Target,previous,model,user,time'

def test_corrections_of_one_label_set_are_not_read_or_continued_as_another(mine):
    mine.add('a', 'Peroxisomes')
    mine.undo('a')
    assert mine.table().labels.tolist() == ['hpa28', 'hpa28']
    before, other = mine.file.read_bytes(), Corrections(mine.file, HPA19)
    df = pd.DataFrame({'Id': ['a'], 'Target': ['8']})
    calls = [
        other.table, other.current, other.conflicts, lambda: other.add('b', 'Cytosol'), lambda: other.undo('a'),
        lambda: merge_corrections(df, mine.file, HPA19), lambda: merge_corrections(df, mine.table(), HPA19)]
    for call in calls:
        with pytest.raises(LabelError, match=r'row \d: corrects labels of hpa28, not of hpa19; give another file') as e:
            call()
        assert '\n' not in str(e.value)
    assert mine.file.read_bytes() == before


def test_a_spreadsheet_keeps_the_label_set_and_a_refused_file_is_not_rewritten(mine):
    mine.file.write_text('labels;Target;Id;user\n;5;a;anna\nhpa19;8;b;anna\n')
    before = mine.file.read_bytes()
    with pytest.raises(LabelError, match='row 3: corrects labels of hpa19, not of hpa28'): mine.add('c', 'Cytosol')
    assert mine.file.read_bytes() == before
    other = Corrections(mine.file, HPA19)
    other.add('c', 'Cytosol')
    assert other.table().labels.tolist() == ['', 'hpa19', 'hpa19']


def test_sets_of_the_same_name_are_told_apart_by_their_classes(tmp_path):
    first, second = LabelSet('custom', ('dots', 'rings')), LabelSet('custom', ('rings', 'dots'))
    mine = Corrections(tmp_path/'c.csv', first)
    mine.add('a', 'rings')
    names = label_set_name(first), label_set_name(second)
    assert names[0] != names[1] and label_set_name(LabelSet('hpa28', ('dots', 'rings'))) != 'hpa28'
    with pytest.raises(LabelError, match=f'corrects labels of {names[0]}, not of {names[1]}'):
        Corrections(mine.file, second).table()
    for same in (LabelSet('mine', ('Dots', 'Rings')), 'dots,rings'):
        assert Corrections(mine.file, same).current().Target.tolist() == ['1']
    odd = Corrections(tmp_path/'odd.csv', LabelSet('=1, "x"\ny', ('dots', 'rings')))
    odd.add('a', 'dots')
    odd.add('b', 'dots')
    assert odd.table().Id.tolist() == ['a', 'b']


def test_files_that_name_no_label_set_are_read_and_go_on(mine):
    for text in ('Id,Target\na,8\n', 'Id,Target,labels\na,8,\n', 'Id,Target,labels\na,8,Peroxisomes|Cytosol\n',
                 'Id,labels\na,Peroxisomes\n'):
        mine.file.write_text(text)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            assert read_corrections(mine.file, HPA28)[['Id', 'Target']].values.tolist() == [['a', '8']]
            with pytest.raises(LabelError, match='is a table of labels, which is not changed'): mine.add('b', '1')
        assert mine.file.read_text() == text
    mine.file.write_text(f'{EARLIER},note\na,8,,,anna,,look\nb,1')
    with pytest.warns(UserWarning, match='breaks off'): mine.add('c', 'Cytosol')
    assert mine.table()[['Id', 'Target', 'labels']].values.tolist() == [['a', '8', ''], ['c', '25', 'hpa28']]
    assert mine.file.read_text().splitlines()[1] == 'a,8,,,anna,,,look'


def test_other_names_of_columns_lose_nothing_when_the_file_goes_on(tmp_path):
    mine = Corrections(tmp_path/'c.csv', HPA19)
    mine.file.write_text('ID,Label,user\na,8|16,anna\n')
    mine.add('b', 'Negative')
    assert mine.table()[['Id', 'Target', 'user']].values.tolist() == [['a', '8|16', 'anna'], ['b', '18', '']]


@pytest.mark.parametrize('target', [None, 5, 1.5, {'Cytosol': 1}, b'16', np.array([0, 1]), pd.Series(['Cytosol'])])
def test_what_is_neither_text_nor_list_is_no_target(mine, target):
    with pytest.raises(LabelError, match='a: target is a text or a list of names, such as .*; got '):
        mine.add('a', target)
    assert not mine.file.exists()
    mine.add('a', 'nuclear membrane')
    assert mine.current().Target.tolist() == ['1']
