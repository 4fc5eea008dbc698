"Tables of results: whole or resumable, harmless in a spreadsheet, the same when read back."
import csv
import json
import os
import re

import numpy as np
import pandas as pd
import pytest

from hpa_fastai.deploy.scoring import judged, write_submission
from hpa_fastai.data.labels import HPA19, HPA28, ZTG10, LabelSet, get_labels
from hpa_fastai.deploy.embeddings import EmbeddingFile
from hpa_fastai.deploy.journal import Journal
from hpa_fastai.deploy.tables import (ResultError, as_predictions, check_ids, labels_of, read_cells,
                                      read_predictions, result_columns, with_labels)

ODD = ['=HYPERLINK("http://x")', '+1', '-1', '@SUM(1)', '\t=1', "'=1", "'plain", '../../etc/passwd', 'a\nb', 'a\r\nb', 'a,b', '"a"', 'x'*300, '🔬', ' a ', 'nan', 'NA', '', '007']


def row(id_, labels=ZTG10, error='', p=.123456789):
    return (id_, '' if error else '2 3', '' if error else 'Nucleoli|Golgi apparatus', *[np.nan if error else p]*len(labels), '', error)


def write(out, rows, labels=ZTG10, about=None):
    with Journal(out, result_columns(labels), about or {}) as j:
        j.add(rows)
        j.finish([r[0] for r in rows])


@pytest.mark.parametrize('name', ['p.csv', 'p.parquet'])
def test_any_id_is_written_and_read_back(tmp_path, name):
    rows = [row(i, error='' if n % 3 else f'{i} is broken') for n, i in enumerate(ODD)]
    write(tmp_path/name, rows)
    df = read_predictions(tmp_path/name)
    assert df.Id.tolist() == ODD and df['error'].tolist() == [r[-1] for r in rows] and df['Predicted'].tolist() == [r[1] for r in rows]
    assert np.allclose(df[ZTG10.classes[0]], [r[3] for r in rows], atol=1e-6, equal_nan=True)
    assert os.listdir(tmp_path) == [name]


def test_no_cell_is_a_formula(tmp_path):
    evil = LabelSet('evil', ('=1+1', 'ok'))
    write(tmp_path/'p.csv', [(i, '0', '=1+1', .1, .2, '', '=boom' if n % 2 else '') for n, i in enumerate(ODD)], evil)
    cells = pd.read_csv(tmp_path/'p.csv', header=None, dtype=str, keep_default_na=False).to_numpy().ravel()
    assert not [c for c in cells if c[:1] in ('=', '+', '-', '@', '\t', '\r')]
    assert read_predictions(tmp_path/'p.csv').columns[3] == '=1+1'


def test_ids_that_no_table_can_hold_are_refused():
    with pytest.raises(ResultError, match='NUL'): check_ids(['a\0'])
    with pytest.raises(ResultError, match='more than one'): check_ids(['a', 'b', 'a'])
    assert check_ids([os.fsdecode(b'caf\xe9')]) == ['caf\\udce9']


def test_ids_lead_nowhere(tmp_path):
    (tmp_path/'in').mkdir()
    write(tmp_path/'in'/'p.csv', [row('../outside'), row('/tmp/outside')])
    assert os.listdir(tmp_path) == ['in'] and os.listdir(tmp_path/'in') == ['p.csv']


def test_a_planted_link_is_refused(tmp_path):
    (tmp_path/'mine').write_text('years of work')
    (tmp_path/'p.csv.part').symlink_to(tmp_path/'mine')
    (tmp_path/'p.csv.part.json').write_text('{}')
    with pytest.raises(ResultError, match='link'): Journal(tmp_path/'p.csv', result_columns(ZTG10), {})
    assert (tmp_path/'mine').read_text() == 'years of work'


@pytest.mark.parametrize('cut', range(1, 60, 7))
def test_a_cut_line_is_written_again(tmp_path, cut):
    rows = [row(i) for i in ('one', 'two\nlines', 'three "quoted"', 'four')]
    write(tmp_path/'whole.csv', rows)
    with Journal(tmp_path/'p.csv', result_columns(ZTG10), {}) as j: j.add(rows[:3])
    part = tmp_path/'p.csv.part'
    os.truncate(part, part.stat().st_size - cut)
    with Journal(tmp_path/'p.csv', result_columns(ZTG10), {}) as j:
        assert j.done == [r[0] for r in rows[:len(j)]] and len(j) < 3
        j.add(rows[len(j):])
        j.finish([r[0] for r in rows])
    assert (tmp_path/'p.csv').read_bytes() == (tmp_path/'whole.csv').read_bytes()


def test_killed_between_the_name_and_the_end(tmp_path):
    write(tmp_path/'p.csv', [row('a'), row('b', error='bad')])
    (tmp_path/'p.csv.part.json').write_text('{}')
    with Journal(tmp_path/'p.csv', result_columns(ZTG10), {}) as j: assert j.complete and j.done == ['a', 'b'] and j.failed == [('b', 'bad')]
    assert os.listdir(tmp_path) == ['p.csv']


def test_a_foreign_part_is_left_alone(tmp_path):
    (tmp_path/'p.csv.part').write_text('mine')
    with pytest.raises(ResultError, match='no record'): Journal(tmp_path/'p.csv', result_columns(ZTG10), {})
    (tmp_path/'p.csv.part.json').write_text('{"bs": ')
    with pytest.raises(ResultError, match='damaged'): Journal(tmp_path/'p.csv', result_columns(ZTG10), {})
    assert (tmp_path/'p.csv.part').read_text() == 'mine'


def test_an_old_table_stays_until_the_new_one_is_whole(tmp_path):
    write(tmp_path/'p.csv', [row('old')])
    with Journal(tmp_path/'p.csv', result_columns(ZTG10), {}, force=True) as j: j.add([row('new')])
    assert read_predictions(tmp_path/'p.csv').Id.tolist() == ['old']
    with Journal(tmp_path/'p.csv', result_columns(ZTG10), {}, force=True) as j:
        assert j.done == ['new']
        j.finish()
    assert read_predictions(tmp_path/'p.csv').Id.tolist() == ['new']


@pytest.mark.parametrize('labels, head, sep', [(HPA28, 'Id,Predicted', ' '), (HPA19, 'ID,Predicted', '|'), (HPA19, 'ID,Label', '|'), (ZTG10, 'Image,Label', ' ')])
def test_submissions_follow_the_sample(tmp_path, labels, head, sep):
    cell = sep.join('02')
    df = pd.DataFrame([(i, cell, '', *[.1]*len(labels), '', e) for i, e in [('10', ''), ('=2', ''), ('03', ''), ('7', 'broken')]],
                      columns=['Id', 'Predicted', 'Names', *labels.classes, 'flags', 'error'])
    (tmp_path/'sample.csv').write_text(head+'\n03,0\n7,0\n10,0\nunknown,0\n=2,0\n')
    with pytest.warns(UserWarning, match='2 of 5'): write_submission(df, tmp_path/'sample.csv', tmp_path/'s.csv', labels)
    assert (tmp_path/'s.csv').read_text() == f'{head}\n03,{cell}\n7,\n10,{cell}\nunknown,\n=2,{cell}\n'
    with pytest.raises(ResultError, match='exists'): write_submission(df, tmp_path/'sample.csv', tmp_path/'s.csv', labels)


@pytest.mark.parametrize('text, words', [('Image,Class\n1,0\n', 'columns'), ('Id,Predicted\nzzz,0\n', 'none of its 1 Ids'), ('', 'not a sample')])
def test_a_wrong_sample_is_one_line(tmp_path, text, words):
    df = pd.DataFrame([('1', '0', '', *[.1]*28, '', '')], columns=['Id', 'Predicted', 'Names', *HPA28.classes, 'flags', 'error'])
    (tmp_path/'sample.csv').write_text(text)
    with pytest.raises(ResultError, match=words) as e: write_submission(df, tmp_path/'sample.csv', tmp_path/'s.csv')
    assert '\n' not in str(e.value)


def test_every_id_of_the_competition_in_its_order(real_data, tmp_path):
    sample = real_data/'labels'/'kaggle2018_sample_submission.csv'
    ids = pd.read_csv(sample).Id
    df = pd.DataFrame({'Id': ids[::-1], 'Predicted': '3', 'error': ''})
    res = write_submission(df, sample, tmp_path/'s.csv')
    assert pd.read_csv(tmp_path/'s.csv').Id.tolist() == ids.tolist() and (res.Predicted == '3').all()


def test_not_a_table_of_predictions(tmp_path):
    (tmp_path/'x.csv').write_text('a,b\n1,2\n')
    with pytest.raises(ResultError, match='not a table'): read_predictions(tmp_path/'x.csv')
    with pytest.raises(ResultError, match='no such file'): read_predictions(tmp_path/'y.csv')


@pytest.mark.parametrize('name', ['p.csv', 'p.parquet'])
@pytest.mark.parametrize('at', range(2))
def test_a_kill_while_names_are_given_loses_nothing(tmp_path, monkeypatch, name, at):
    "Rows come in another order than they are wanted, and the run ends before one of its files has its name"
    replace, calls = os.replace, []
    def killed(a, b):
        if os.fspath(b).endswith((name, 'e.npy')):
            calls.append(b)
            if len(calls) == at+1: raise KeyboardInterrupt
        replace(a, b)
    with Journal(tmp_path/name, result_columns(ZTG10), {}, embeddings=EmbeddingFile(tmp_path/'e.npy')) as j:
        j.add([row('b'), row('a')], np.array([[1., 2], [3, 4]]))
        with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
            m.setattr(os, 'replace', killed)
            j.finish(['a', 'b'])
    with Journal(tmp_path/name, result_columns(ZTG10), {}, embeddings=EmbeddingFile(tmp_path/'e.npy')) as j: j.finish(['a', 'b'])
    assert read_predictions(tmp_path/name).Id.tolist() == ['a', 'b'] and np.load(tmp_path/'e.npy').tolist() == [[3, 4], [1, 2]]
    assert sorted(os.listdir(tmp_path)) == ['e.ids.json', 'e.npy', name]


def numbered(labels, tmp_path, missing=True):
    "A table as predict writes it, with Ids that are numbers and single labels, and its file"
    classes = list(get_labels(labels).classes)
    rows = [(str(i), str(k), classes[k], *np.eye(len(classes))[k]*.9+.05, '', '') for i, k in ((7, 0), (8, 2), (9, 1))]
    if missing: rows.append(('10', '', '', *[np.nan]*len(classes), '', 'damaged'))
    write(tmp_path/'p.csv', rows, get_labels(labels))
    return tmp_path/'p.csv'


def resaved(path, encoding='cp1252', delimiter=';', comma=True):
    "What a spreadsheet makes of a table"
    csv.field_size_limit(10**9)
    cells = list(csv.reader(path.read_text(encoding='utf-8').splitlines()))
    lines = [delimiter.join(re.sub(r'^(-?\d+)\.(\d+)$', r'\1,\2', c) if comma else c for c in row)+delimiter for row in cells]
    path.write_bytes('\r\n'.join([*lines, delimiter*(len(cells[0])), '']).encode(encoding))


@pytest.mark.parametrize('kind', [{}, dict(encoding='utf-16', delimiter='\t'), dict(encoding='utf-8-sig', delimiter=',', comma=False), dict(encoding='utf-16-le')])
@pytest.mark.parametrize('labels', ['hpa28', 'ztg10', 'hpa19'])
def test_a_table_that_a_spreadsheet_saved_again_means_the_same(tmp_path, labels, kind):
    path = numbered(labels, tmp_path)
    before = read_predictions(path)
    resaved(path, **kind)
    after = read_predictions(path)
    pd.testing.assert_frame_equal(after, before)
    assert labels_of(after) == get_labels(labels) == labels_of(before)


@pytest.mark.parametrize('raw, words', [(b'PK\x03\x04', 'a zip archive'), ('Id,Predicted\n'.encode('utf-16')[:-1], 'breaks off'), (b'Id,Predicted\n1,\0\n', 'a zero byte'),
                                        (b'Id,Predicted,Names,Actin,flags,error\n1,0,Actin,half,,\n', "column 'Actin' holds 'half', which is no number"),
                                        (b'Id,Predicted,Names,Actin,Actin,flags,error\n', "two columns are called 'Actin'"), (b'', 'empty'),
                                        (b'Id,Predicted,Names,Actin,flags,error\n1,0,Actin,.5,,,7\n', 'not a table of predictions'), (b'PAR1xx', 'parquet')])
def test_a_table_that_cannot_be_read_is_one_line(tmp_path, raw, words):
    for name in ('p.csv', 'p.parquet'):
        (tmp_path/name).write_bytes(raw)
        with pytest.raises(ResultError, match=words if name == 'p.csv' else 'not a table of predictions') as e: read_predictions(tmp_path/name)
        assert '\n' not in str(e.value)


def test_masks_may_be_very_long_in_a_table_of_cells(tmp_path):
    row = ['007', 1, 2, 3, 400, 'False', 64, 64, '0', 'Mitochondria', *[.5]*10, 'm'*200_000, '']
    head = ['Id', 'cell', 'x', 'y', 'area', 'border', 'width', 'height', 'Predicted', 'Names', *ZTG10.classes, 'mask', 'error']
    pd.DataFrame([row], columns=head).to_csv(tmp_path/'c.csv', index=False)
    before = read_cells(tmp_path/'c.csv')
    resaved(tmp_path/'c.csv', 'utf-16')
    after = read_cells(tmp_path/'c.csv')
    pd.testing.assert_frame_equal(after, before)
    assert after.border.tolist() == [False] and after.Id.tolist() == ['007'] and len(after['mask'][0]) == 200_000 and labels_of(after).name == 'ztg10'


@pytest.mark.parametrize('read', [read_predictions, pd.read_csv, str])
@pytest.mark.parametrize('labels', ['hpa28', 'ztg10', 'hpa19'])
def test_a_table_is_taken_whoever_read_it(tmp_path, labels, read):
    from hpa_fastai.deploy.scoring import evaluate_predictions
    ls = get_labels(labels)
    table = read(numbered(labels, tmp_path))
    truth = pd.DataFrame({ls.id_col: [7, 8, 9], ls.label_col: [0, 2, 1]})
    ev = evaluate_predictions(table, truth)
    assert ev.n_images == 3 and ev.macro_f1 == 1 and list(ev.table.index) == list(ls.classes)
    assert judged(table, truth)['labels'] == ls and judged(table, truth)['preds'].sum() == 3
    (tmp_path/'sample.csv').write_text(f'{ls.id_col},{ls.pred_col}\n8,0\n7,0\n10,0\n')
    with pytest.warns(UserWarning, match='1 of 3'): res = write_submission(table, tmp_path/'sample.csv', tmp_path/'s.csv')
    assert res.values.tolist() == [['8', '2'], ['7', '0'], ['10', '']]


by_id = lambda path: pd.read_csv(path, index_col='Id')
by_id_too = lambda path: pd.read_csv(path).set_index('Id', drop=False)
no_flags = lambda path: pd.read_csv(path).drop(columns=['flags', 'error'])
no_names = lambda path: pd.read_csv(path).drop(columns=['Names', 'flags'])


@pytest.mark.parametrize('changed', [by_id, by_id_too, no_flags, no_names])
@pytest.mark.parametrize('labels', ['hpa28', 'ztg10', 'hpa19'])
def test_a_table_is_taken_whatever_was_left_out_or_made_the_index(tmp_path, labels, changed):
    from hpa_fastai.deploy.scoring import evaluate_predictions
    ls = get_labels(labels)
    ev = evaluate_predictions(changed(numbered(labels, tmp_path, missing=False)), pd.DataFrame({ls.id_col: [7, 8, 9], ls.label_col: [0, 2, 1]}), n_draws=5)
    assert ev.macro_f1 == 1 and list(ev.table.index) == list(ls.classes)


def test_names_that_pandas_makes_nothing_of(tmp_path):
    own = LabelSet('own', ('None', 'Cilia', 'NA'))
    write(tmp_path/'p.csv', [('a', '0', 'None', .9, .1, .1, '', ''), ('b', '0 1', 'None|Cilia', .9, .9, .1, '', ''), ('c', '', '', .1, .1, .1, '', '')], own)
    table, labels = as_predictions(pd.read_csv(tmp_path/'p.csv'))
    assert table.Names.tolist() == ['None', 'None|Cilia', ''] and labels.classes == own.classes


@pytest.mark.parametrize('read', [read_cells, pd.read_csv, str])
def test_a_table_of_cells_is_taken_whoever_read_it(tmp_path, read):
    from hpa_fastai.cells.cells import cells_submission
    head = ['Id', 'cell', 'x', 'y', 'area', 'border', 'width', 'height', 'Predicted', 'Names', *HPA28.classes, 'mask', 'error']
    rows = [['7', 1, 2, 3, 400, False, 64, 48, '0', 'Nucleoplasm', .9, *[0.]*27, 'abc', ''], ['8', 0, *[np.nan]*4, 32, 32, '', '', *[np.nan]*28, '', 'no cells']]
    pd.DataFrame(rows, columns=head).to_csv(tmp_path/'c.csv', index=False)
    found = cells_submission(read(tmp_path/'c.csv'))  # 28 classes, which the table says by itself
    assert found.values.tolist() == [['7', 64, 48, '0 0.9000 abc'], ['8', 32, 32, '']]


def test_a_page_is_made_of_a_table_that_pandas_read(tmp_path):
    from hpa_fastai.interpret.report import report
    page = report(pd.read_csv(numbered('ztg10', tmp_path)).assign(fold=1), tmp_path/'r.html').read_text(encoding='utf-8')
    assert 'Nuclear bodies' in page and 'damaged' in page and '>nan<' not in page


def test_the_label_set_travels_with_a_table(tmp_path):
    own = LabelSet('own', ('Cilia', 'None'), sep=';', negative=1)
    table = with_labels(pd.DataFrame([('a', '0', 'Cilia', .9, .1, '', '')], columns=['Id', 'Predicted', 'Names', *own.classes, 'flags', 'error']), own)
    table.to_parquet(tmp_path/'p.parquet')
    table.to_csv(tmp_path/'p.csv', index=False)
    assert labels_of(table[:1]) == own == labels_of(read_predictions(tmp_path/'p.parquet'))
    assert labels_of(read_predictions(tmp_path/'p.csv')).classes == own.classes
    assert labels_of(table.rename(columns={'Cilia': 'Basal body'})).classes == ('Basal body', 'None')  # what was noted is out of date
    assert labels_of(table.assign(fold=1)) == own and labels_of(table, HPA28) == HPA28


def test_classes_of_another_set_are_said(tmp_path):
    df = pd.read_csv(numbered('ztg10', tmp_path))
    with pytest.raises(ResultError, match="no column 'Nuclear membrane'.*not those of hpa28.*labels=") as e: as_predictions(df, 'hpa28')
    with pytest.raises(ResultError, match='is expected, got list'): as_predictions([1])
