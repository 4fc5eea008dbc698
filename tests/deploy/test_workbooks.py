"Results as Excel workbooks: a short first sheet, the same table when read back, and nothing that Excel would run."

import numpy as np
import pandas as pd
import pytest
from openpyxl import load_workbook

from hpa_fastai.basics import workbooks
from hpa_fastai.basics.workbooks import read_sheets
from hpa_fastai.data.labels import HPA19, HPA28, get_labels
from hpa_fastai.deploy import journal as journals
from hpa_fastai.deploy.beside import columns_beside
from hpa_fastai.deploy.journal import Journal
from hpa_fastai.deploy.tables import (ResultError, as_predictions, cell_columns, check_out,
                                      read_cells, read_predictions, result_columns)

EVIL = ['=cmd|calc', '+1', '-1', '@x', "'=1", '#REF!', '007', '1-2', 'plate_A01_s1', 'TRUE', '12.0', 'NA', 'é\nß']


def rows_of(labels, ids, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for n, id_ in enumerate(ids):
        probs = rng.random(len(labels)).astype(np.float32)
        given = [] if n % 4 == 3 else sorted({int(probs.argmax()), n % len(labels)})
        if n == 2: rows.append((id_, '', '', *[np.nan]*len(labels), '', f'{id_}_red.png: damaged'))
        else:
            names = '|'.join(labels.classes[i] for i in given)
            rows.append((id_, labels.format(given), names, *probs, '' if n % 3 else 'uncertain', ''))
    return rows


def write(out, labels, rows, about=None, **more):
    with Journal(out, result_columns(labels), about or dict(a=1)) as journal:
        journal.add(rows)
        journal.finish(**more)
    return out


@pytest.mark.parametrize('labels', [HPA28, HPA19, get_labels(['Golgi, cis', 'ER/Golgi', 'None', '=Sum'])])
def test_what_is_written_is_read_back(tmp_path, labels):
    rows = rows_of(labels, EVIL)
    of_csv = read_predictions(write(tmp_path/'a.csv', labels, rows))
    of_excel = read_predictions(write(tmp_path/'a.xlsx', labels, rows))
    assert list(of_excel) == list(of_csv) and of_excel.Id.tolist() == EVIL
    texts = ['Id', 'Predicted', 'Names', 'flags', 'error']
    assert of_excel[texts].values.tolist() == of_csv[texts].values.tolist()
    probs = of_excel[list(labels.classes)].to_numpy(np.float32)
    assert np.array_equal(probs, np.array([r[3:-2] for r in rows], np.float32), equal_nan=True)
    assert as_predictions(tmp_path/'a.xlsx')[1].classes == labels.classes


def test_the_first_sheet_is_short_and_can_be_filtered(tmp_path):
    ids = ['10580_1610_C1_1', '10580_1610_C2_1', '77_1610_A12_3']
    table = pd.DataFrame({'Id': ids, 'layout': 'channels', 'red': 'a', 'gene': ['x', 'y', 'z']})
    notes = {'models': 'resnet18', 'threshold of Nucleoplasm': .25}
    write(tmp_path/'a.xlsx', HPA28, rows_of(HPA28, ids), beside=columns_beside(ids, table), notes=notes)
    book = load_workbook(tmp_path/'a.xlsx')
    assert book.sheetnames == ['Results', 'Probabilities', 'About']
    first = book['Results']
    assert [c.value for c in first[1]] == ['Id', 'Well', 'Antibody', 'gene', 'Names', 'Top class', 'Top probability',
                                           'flags', 'error']
    assert [c.value for c in first[4]][:4] == ['77_1610_A12_3', 'A12', '77', 'z'] and first[4][8].value
    assert first.freeze_panes == 'B2' and first.auto_filter.ref == 'A1:I4' and first['A1'].font.bold
    assert first['G2'].number_format == '0.000' and 15 < first.column_dimensions['A'].width < 30
    assert ', ' in first['E3'].value and '|' not in first['E3'].value
    said = {row[0]: row[1] for row in book['About'].values}
    assert said['models'] == 'resnet18' and said['threshold of Nucleoplasm'] == .25
    assert said['made with'].startswith('hpa_fastai ')
    df = read_predictions(tmp_path/'a.xlsx')
    assert df.gene.tolist() == ['x', 'y', 'z'] and list(df)[:31] == result_columns(HPA28)[:31]


def test_nothing_is_run_by_excel(tmp_path):
    write(tmp_path/'a.xlsx', HPA28, rows_of(HPA28, [*EVIL, 'a\x07b']))
    for sheet in load_workbook(tmp_path/'a.xlsx'):
        kinds = {cell.data_type for row in sheet.iter_rows() for cell in row}
        assert kinds <= {'s', 'n', 'inlineStr'}, kinds
    assert read_predictions(tmp_path/'a.xlsx').Id.iloc[-1] == 'a\ufffdb'


def test_a_workbook_that_was_sorted_and_annotated(tmp_path):
    out = write(tmp_path/'a.xlsx', HPA28, rows_of(HPA28, list('abcdef')))
    before = read_predictions(out).set_index('Id')
    book = load_workbook(out)
    sheet = book['Results']
    rows = [[c.value for c in row] for row in sheet.iter_rows(min_row=2)]
    for number, row in enumerate(reversed(rows), 2):
        for column, value in enumerate(row, 1): sheet.cell(number, column, value)
        sheet.cell(number, len(row)+1, 'good')
    sheet.cell(1, len(row)+1, 'my comment')
    sheet['B2'] = 'Cytosol; nucleoli'
    book.save(out)
    after = read_predictions(out)
    assert after.Id.tolist() == list('fedcba') and after['my comment'].tolist() == ['good']*6
    assert after.Names[0] == 'Cytosol|Nucleoli' and after.Predicted[0] == '25 2'
    probs = after.set_index('Id')[list(HPA28.classes)].loc[before.index]
    assert np.array_equal(probs, before[list(HPA28.classes)], equal_nan=True)
    sheet['B2'] = 'Nukleus'
    book.save(out)
    with pytest.raises(ResultError, match="a.xlsx: label 'Nukleus' is not a class"): read_predictions(out)


def test_a_csv_that_excel_saved_as_a_workbook(tmp_path):
    rows = rows_of(HPA28, EVIL)
    write(tmp_path/'a.csv', HPA28, rows)
    pd.read_csv(tmp_path/'a.csv', dtype={'Id': str}, keep_default_na=False).to_excel(tmp_path/'b.xlsx', index=False)
    assert read_predictions(tmp_path/'b.xlsx').Id.tolist() == EVIL


def test_cells_and_their_masks(tmp_path):
    long = 'abc'*25_000
    probs = [.5]*len(HPA28)
    rows = [('a', 1, 1., 2., 3, True, 64, 64, '25', 'Cytosol', *probs, long, ''),
            ('a', 2, 1., 2., 3, False, 64, 64, '', '', *probs, 'x', ''),
            ('b', 0, np.nan, np.nan, 0, False, 64, 64, '', '', *[np.nan]*28, '', 'no cells')]
    for name in ('a.csv', 'a.xlsx'):
        with Journal(tmp_path/name, cell_columns(HPA28), {}, several_rows=True) as journal:
            journal.add(rows[:2])
            journal.add(rows[2:])
            journal.finish()
    of_csv, of_excel = read_cells(tmp_path/'a.csv'), read_cells(tmp_path/'a.xlsx')
    assert of_excel['mask'].tolist() == [long, 'x', '']
    pd.testing.assert_frame_equal(of_excel, of_csv, check_dtype=False)
    assert list(read_sheets(tmp_path/'a.xlsx')) == ['Results', 'Probabilities', 'Masks', 'About']


def test_a_run_that_was_killed_goes_on(tmp_path):
    out, rows = tmp_path/'a.xlsx', rows_of(HPA28, list('abcd'))
    with Journal(out, result_columns(HPA28), dict(a=1)) as journal: journal.add(rows[:2])
    assert not out.exists() and (tmp_path/'a.xlsx.part').exists()
    with Journal(out, result_columns(HPA28), dict(a=1)) as journal:
        assert journal.left(list('abcd')) == [2, 3]
        journal.add(rows[2:])
        journal.finish()
    assert [p.name for p in tmp_path.iterdir()] == ['a.xlsx'] and read_predictions(out).Id.tolist() == list('abcd')


def test_a_run_that_was_killed_while_it_wrote_the_workbook(tmp_path, monkeypatch):
    out, rows = tmp_path/'a.xlsx', rows_of(HPA28, list('abcd'))
    def killed(*_, **__): raise KeyboardInterrupt
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(journals, 'csv_to_xlsx', killed)
        write(out, HPA28, rows)
    assert not out.exists()
    with Journal(out, result_columns(HPA28), dict(a=1)) as journal:
        assert journal.left(list('abcd')) == []
        journal.finish()
    assert len(read_predictions(out)) == 4


def test_too_many_rows_for_excel_are_kept_as_csv(tmp_path, monkeypatch):
    monkeypatch.setattr(workbooks, 'MAX_ROWS', 4)
    with pytest.raises(ResultError, match='4 rows are more than the 3 that Excel can show') as e:
        write(tmp_path/'a.xlsx', HPA28, rows_of(HPA28, list('abcd')))
    assert 'a.xlsx.part, which is a csv: rename it' in str(e.value)
    (tmp_path/'a.xlsx.part').rename(tmp_path/'a.csv')
    assert len(read_predictions(tmp_path/'a.csv')) == 4


def test_a_workbook_needs_openpyxl_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'openpyxl', None)
    with pytest.raises(ResultError, match=r'a workbook needs openpyxl: pip install "hpa_fastai\[excel\]"'):
        check_out(tmp_path/'a.xlsx')


def test_other_workbooks_are_no_results(tmp_path):
    pd.DataFrame({'a': [1]}).to_excel(tmp_path/'a.xlsx')
    with pytest.raises(ResultError, match='not a table of predictions .no sheet has a column Id'):
        read_predictions(tmp_path/'a.xlsx')
    pd.DataFrame({'Id': [1], 'Target': [2]}).to_excel(tmp_path/'b.xlsx', index=False)
    with pytest.raises(ResultError, match='it has no column Names'): read_predictions(tmp_path/'b.xlsx')


@pytest.mark.parametrize('read, command', [(read_predictions, 'predict'), (read_cells, 'cells')])
def test_the_first_sheet_saved_alone_is_known(tmp_path, read, command):
    (tmp_path/'p.csv').write_text('Id,Names,Top class,Top probability,flags,error\nA1,Actin,Actin,0.9,,\n')
    with pytest.raises(ResultError) as e: read(tmp_path/'p.csv')
    assert f'give the workbook itself, or the .csv that {command} writes' in str(e.value)
