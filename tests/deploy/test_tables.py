"Tables of results: harmless in a spreadsheet, the same when read back."
import csv
import os
import re

import numpy as np
import pandas as pd
import pytest

from hpa_fastai.deploy.scoring import judged, write_submission
from hpa_fastai.data.labels import HPA28, ZTG10, LabelSet, get_labels
from hpa_fastai.deploy.tables import (ResultError, as_predictions, cell_columns, check_ids, labels_of,
                                      read_cells, read_predictions, with_labels)

from result_tables import row, write

ODD = ['=HYPERLINK("http://x")', '+1', '-1', '@SUM(1)', '\t=1', "'=1", "'plain", '../../etc/passwd',
       'a\nb', 'a\r\nb', 'a,b', '"a"', 'x'*300, '🔬', ' a ', 'nan', 'NA', '', '007', 'x\ry']


@pytest.mark.parametrize('name', ['p.csv', 'p.parquet'])
def test_any_id_is_written_and_read_back(tmp_path, name):
    rows = [row(i, error='' if n % 3 else f'{i} is broken') for n, i in enumerate(ODD)]
    write(tmp_path/name, rows)
    df = read_predictions(tmp_path/name)
    assert df.Id.tolist() == ODD and df['error'].tolist() == [r[-1] for r in rows]
    assert df['Predicted'].tolist() == [r[1] for r in rows]
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


def test_not_a_table_of_predictions(tmp_path):
    (tmp_path/'x.csv').write_text('a,b\n1,2\n')
    with pytest.raises(ResultError, match='not a table'): read_predictions(tmp_path/'x.csv')
    with pytest.raises(ResultError, match='no such file'): read_predictions(tmp_path/'y.csv')


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
    lines = [
        delimiter.join(re.sub(r'^(-?\d+)\.(\d+)$', r'\1,\2', c) if comma else c for c in row) + delimiter
        for row in cells
    ]
    path.write_bytes('\r\n'.join([*lines, delimiter*(len(cells[0])), '']).encode(encoding))


@pytest.mark.parametrize(
    'kind',
    [
        {},
        dict(encoding='utf-16', delimiter='\t'),
        dict(encoding='utf-8-sig', delimiter=',', comma=False),
        dict(encoding='utf-16-le'),
    ],
)
@pytest.mark.parametrize('labels', ['hpa28', 'ztg10', 'hpa19'])
def test_a_table_that_a_spreadsheet_saved_again_means_the_same(tmp_path, labels, kind):
    path = numbered(labels, tmp_path)
    before = read_predictions(path)
    resaved(path, **kind)
    after = read_predictions(path)
    pd.testing.assert_frame_equal(after, before)
    assert labels_of(after) == get_labels(labels) == labels_of(before)


@pytest.mark.parametrize(
    'raw, words',
    [
        (b'PK\x03\x04', 'a zip archive'),
        ('Id,Predicted\n'.encode('utf-16')[:-1], 'breaks off'),
        (b'Id,Predicted\n1,\0\n', 'a zero byte'),
        (
            b'Id,Predicted,Names,Actin,flags,error\n1,0,Actin,half,,\n',
            "column 'Actin' holds 'half', which is no number",
        ),
        (b'Id,Predicted,Names,Actin,Actin,flags,error\n', "two columns are called 'Actin'"),
        (b'', 'empty'),
        (b'Id,Predicted,Names,Actin,flags,error\n1,0,Actin,.5,,,7\n', 'not a table of predictions'),
        (b'PAR1xx', 'parquet'),
    ],
)
def test_a_table_that_cannot_be_read_is_one_line(tmp_path, raw, words):
    for name in ('p.csv', 'p.parquet'):
        (tmp_path/name).write_bytes(raw)
        with pytest.raises(ResultError, match=words if name == 'p.csv' else 'not a table of predictions') as e:
            read_predictions(tmp_path / name)
        assert '\n' not in str(e.value)


def test_masks_may_be_very_long_in_a_table_of_cells(tmp_path):
    row = ['007', 1, 2, 3, 400, 'False', 64, 64, '0', 'Mitochondria', *[.5]*10, 'm'*200_000, '']
    head = cell_columns(ZTG10)
    pd.DataFrame([row], columns=head).to_csv(tmp_path/'c.csv', index=False)
    before = read_cells(tmp_path/'c.csv')
    resaved(tmp_path/'c.csv', 'utf-16')
    after = read_cells(tmp_path/'c.csv')
    pd.testing.assert_frame_equal(after, before)
    assert after.border.tolist() == [False] and after.Id.tolist() == ['007']
    assert len(after['mask'][0]) == 200_000 and labels_of(after).name == 'ztg10'


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
    with pytest.warns(UserWarning, match='1 of 3'):
        res = write_submission(table, tmp_path / 'sample.csv', tmp_path / 's.csv')
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
    ev = evaluate_predictions(
        changed(numbered(labels, tmp_path, missing=False)),
        pd.DataFrame({ls.id_col: [7, 8, 9], ls.label_col: [0, 2, 1]}),
        n_draws=5,
    )
    assert ev.macro_f1 == 1 and list(ev.table.index) == list(ls.classes)


def test_names_that_pandas_makes_nothing_of(tmp_path):
    own = LabelSet('own', ('None', 'Cilia', 'NA'))
    write(
        tmp_path / 'p.csv',
        [
            ('a', '0', 'None', 0.9, 0.1, 0.1, '', ''),
            ('b', '0 1', 'None|Cilia', 0.9, 0.9, 0.1, '', ''),
            ('c', '', '', 0.1, 0.1, 0.1, '', ''),
        ],
        own,
    )
    table, labels = as_predictions(pd.read_csv(tmp_path/'p.csv'))
    assert table.Names.tolist() == ['None', 'None|Cilia', ''] and labels.classes == own.classes


@pytest.mark.parametrize('read', [read_cells, pd.read_csv, str])
def test_a_table_of_cells_is_taken_whoever_read_it(tmp_path, read):
    from hpa_fastai.cells.cells import cells_submission

    head = cell_columns(HPA28)
    rows = [
        ['7', 1, 2, 3, 400, False, 64, 48, '0', 'Nucleoplasm', 0.9, *[0.0] * 27, 'abc', ''],
        ['8', 0, *[np.nan] * 4, 32, 32, '', '', *[np.nan] * 28, '', 'no cells'],
    ]
    pd.DataFrame(rows, columns=head).to_csv(tmp_path/'c.csv', index=False)
    found = cells_submission(read(tmp_path/'c.csv'))  # 28 classes, which the table says by itself
    assert found.values.tolist() == [['7', 64, 48, '0 0.9000 abc'], ['8', 32, 32, '']]


def test_a_page_is_made_of_a_table_that_pandas_read(tmp_path):
    from hpa_fastai.interpret.report import report

    table = pd.read_csv(numbered('ztg10', tmp_path)).assign(fold=1)
    page = report(table, tmp_path/'r.html').read_text(encoding='utf-8')
    assert 'Nuclear bodies' in page and 'damaged' in page and '>nan<' not in page


def test_the_label_set_travels_with_a_table(tmp_path):
    own = LabelSet('own', ('Cilia', 'None'), sep=';', negative=1)
    table = with_labels(
        pd.DataFrame(
            [('a', '0', 'Cilia', 0.9, 0.1, '', '')],
            columns=['Id', 'Predicted', 'Names', *own.classes, 'flags', 'error'],
        ),
        own,
    )
    table.to_parquet(tmp_path/'p.parquet')
    table.to_csv(tmp_path/'p.csv', index=False)
    assert labels_of(table[:1]) == own == labels_of(read_predictions(tmp_path/'p.parquet'))
    assert labels_of(read_predictions(tmp_path/'p.csv')).classes == own.classes
    renamed = table.rename(columns={'Cilia': 'Basal body'})
    assert labels_of(renamed).classes == ('Basal body', 'None')  # what was noted is out of date
    assert labels_of(table.assign(fold=1)) == own and labels_of(table, HPA28) == HPA28


def test_classes_of_another_set_are_said(tmp_path):
    df = pd.read_csv(numbered('ztg10', tmp_path))
    with pytest.raises(ResultError, match="no column 'Nuclear membrane'.*not those of hpa28.*labels="):
        as_predictions(df, 'hpa28')
    with pytest.raises(ResultError, match='is expected, got list'): as_predictions([1])
