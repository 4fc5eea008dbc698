"Excel workbooks, made with openpyxl: the table is found on any sheet, and every cell is text as a person sees it."
import datetime
import io
import re
import subprocess
import sys
import warnings
import zipfile

import pandas as pd
import pytest
from openpyxl import Workbook

from hpa_fastai.basics.errors import HPAError
from hpa_fastai.basics.spreadsheets import read_table
from hpa_fastai.data.labels import LabelError, get_labels
from hpa_fastai.data.label_tables import read_labels

ROWS = [['Id', 'Target'], ['a', '16 0'], ['b', 5]]


def save(folder, *sheets, name='train.xlsx'):
    "A workbook of sheets, each a list of rows or a pair of title and rows"
    book = Workbook()
    book.remove(book.active)
    for number, sheet in enumerate(sheets):
        title, rows = sheet if isinstance(sheet, tuple) else (f'Sheet{number}', sheet)
        made = book.create_sheet(title)
        for row in rows: made.append(row)
    book.save(folder/name)
    return folder/name


LAID_OUT = {
    'as usual': ROWS,
    'a title and empty rows above': [['Experiment 12'], [], *ROWS],
    'notes of two cells above': [['Date:', '3 May'], ['Plate:', 'A'], *ROWS],
    'empty rows within': [ROWS[0], [], ROWS[1], [], [], ROWS[2], []],
    'empty columns': [[None, None, *row] for row in ROWS],
    'a column that was emptied': [['Id', None, 'Target'], ['a', None, '16 0'], ['b', None, 5]],
    'blanks around names': [[' Id ', 'Target '], *ROWS[1:]],
    'numbers that Excel made': [ROWS[0], ROWS[1], ['b', 5.0]],
}


@pytest.mark.parametrize('kind', LAID_OUT)
def test_a_table_is_found_wherever_it_stands(tmp_path, kind):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        df = read_labels(save(tmp_path, LAID_OUT[kind]))
    assert df.values.tolist() == [['a', '16 0'], ['b', '5']] and list(df) == ['Id', 'Target']


def test_row_numbers_are_those_of_excel(tmp_path):
    path = save(tmp_path, [['My title'], [], ['Id', 'Target'], ['a', 1], [], ['b', 99]])
    with pytest.raises(LabelError, match='train.xlsx row 6: label 99'): read_labels(path)


def test_cells_are_what_a_person_sees(tmp_path):
    path = save(tmp_path, [['Id', 'v'], ['t', '007'], [12.0, .5], [True, None], [datetime.date(2024, 2, 1), 1e20],
                           [datetime.time(12, 30), '=1+1']])
    from openpyxl import load_workbook
    book = load_workbook(path)
    book.active['A8'], book.active['A9'] = 1, 'é\nß'
    book.active['A8'].number_format = '000'
    book.active['B6'] = None
    book.save(path)
    table = read_table(path)
    assert table.Id.tolist() == ['t', '12', 'TRUE', '2024-02-01', '12:30:00', '001', 'é\nß']
    assert table.v.tolist()[:4] == ['007', '0.5', '', '1.00000E+20']


@pytest.mark.parametrize('value', [datetime.datetime(2024, 2, 1), 12345678901234567890, datetime.time(1, 2)])
def test_ids_that_excel_rewrote_are_told(tmp_path, value):
    path = save(tmp_path, [['Id', 'Target'], ['a', 1], [value, 2]])
    with pytest.raises(LabelError, match='row 3: Id .* looks rewritten by a spreadsheet'): read_labels(path)


def test_merged_cells_count_for_all_their_rows(tmp_path):
    path = save(tmp_path, [['Id', 'Target', 'well'], ['a', 1, 'A1'], ['b', 2], ['c', 3]])
    from openpyxl import load_workbook
    book = load_workbook(path)
    book.active.merge_cells('C2:C4')
    book.active.merge_cells('B3:B4')
    book.save(path)
    df = read_labels(path)
    assert df.well.tolist() == ['A1']*3 and df.Target.tolist() == ['1', '2', '2']


def test_the_sheet_with_the_table_is_read_and_named(tmp_path):
    notes, summary = [['made in May'], ['by me']], [['year', 'n'], [2024, 7], [2025, 8]]
    path = save(tmp_path, ('Notes', notes), ('Summary', summary), ('Labels', ROWS))
    with pytest.warns(UserWarning, match="train.xlsx: the sheet 'Labels' is read, not 'Notes', 'Summary'"):
        assert read_labels(path).Id.tolist() == ['a', 'b']


def test_hidden_sheets_are_passed_over(tmp_path):
    path = save(tmp_path, ('old', [['Id', 'Target'], ['x', 1]]), ('new', ROWS))
    from openpyxl import load_workbook
    book = load_workbook(path)
    book['old'].sheet_state = 'hidden'
    book.save(path)
    assert read_labels(path).Id.tolist() == ['a', 'b']


def test_formulas_that_were_never_calculated_are_told(tmp_path):
    path = save(tmp_path, [['Id', 'Target'], ['="a"&ROW()', 1]])
    with pytest.raises(LabelError, match='row 2: the formula in A2 was never calculated; open the workbook'):
        read_labels(path)


def test_a_workbook_is_one_by_its_content(tmp_path):
    book = save(tmp_path, ROWS).rename(tmp_path/'train.csv')
    assert read_labels(book).Id.tolist() == ['a', 'b']
    (tmp_path/'text.xlsx').write_text('Id,Target\na,3\n')
    assert read_labels(tmp_path/'text.xlsx').Id.tolist() == ['a']


def test_what_cannot_be_read_is_one_line(tmp_path):
    whole = save(tmp_path, ROWS).read_bytes()
    files = {'half.xlsx': (whole[:len(whole)//2], 'half.xlsx is a damaged Excel workbook'),
             '~$train.xlsx': (b'\x03Jane', r'only says that train.xlsx is open in Excel; give train.xlsx instead'),
             'empty.xlsx': (save(tmp_path, [], name='none.xlsx').read_bytes(), 'empty.xlsx is empty')}
    for name, (content, message) in files.items():
        (tmp_path/name).write_bytes(content)
        with pytest.raises(HPAError, match=message) as e: read_table(tmp_path/name)
        assert '\n' not in str(e.value)


def test_a_workbook_that_would_fill_the_memory_is_refused(tmp_path):
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, 'w', zipfile.ZIP_DEFLATED) as z:
        z.writestr('xl/workbook.xml', '')
        with z.open('xl/worksheets/sheet1.xml', 'w', force_zip64=True) as f:
            for _ in range(301): f.write(bytes(2**20))
    (tmp_path/'bomb.xlsx').write_bytes(bomb.getvalue())
    with pytest.raises(HPAError, match='workbook of 301 MB when it is unpacked; .* save it as CSV'):
        read_table(tmp_path/'bomb.xlsx')


def test_a_stray_format_in_the_last_cell_costs_nothing(tmp_path):
    path = save(tmp_path, ROWS)
    from openpyxl import load_workbook
    from openpyxl.styles import Font
    book = load_workbook(path)
    book.active['XFD1048576'].font = Font(bold=True)
    book.save(path)
    assert read_labels(path).Id.tolist() == ['a', 'b']


def test_without_openpyxl_the_line_says_how_to_get_it(tmp_path):
    path = save(tmp_path, ROWS)
    code = ('import sys; sys.modules["openpyxl"] = None\nfrom hpa_fastai.basics.spreadsheets import read_table\n'
            f'try: read_table({str(path)!r})\nexcept ValueError as e: print(e)')
    said = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert said == ('train.xlsx is an Excel workbook; to read it: pip install "hpa_fastai[excel]", '
                    'or save it as CSV UTF-8\n')


def test_classes_may_stand_in_a_workbook(tmp_path):
    path = save(tmp_path, [['name'], ['Cilium'], ['Nucleus']], name='own.xlsx')
    assert get_labels(path).classes == ('Cilium', 'Nucleus')


def test_what_pandas_wrote_is_read(tmp_path):
    df = pd.DataFrame({'Id': ['001', 'b'], 'Target': ['3', '16 0'], 'score': [.25, 1]})
    df.to_excel(tmp_path/'a.xlsx')
    pd.testing.assert_frame_equal(read_labels(tmp_path/'a.xlsx'), df, check_dtype=False)


def test_a_workbook_whose_styles_are_missing_or_whose_archive_is_of_the_future(tmp_path):
    pd.DataFrame(dict(Id=['007'], Target=[1])).to_excel(tmp_path/'a.xlsx', index=False)
    with zipfile.ZipFile(tmp_path/'a.xlsx') as z: parts = {name: z.read(name) for name in z.namelist()}
    sheet = 'xl/worksheets/sheet1.xml'
    parts[sheet] = re.sub(rb'<c r="A2"( s="\d+")?', b'<c r="A2" s="99"', parts[sheet])
    with zipfile.ZipFile(tmp_path/'b.xlsx', 'w') as z:
        for name, content in parts.items(): z.writestr(name, content)
    with pytest.raises(HPAError, match='b.xlsx is a damaged Excel workbook'): read_table(tmp_path/'b.xlsx')
    raw = bytearray((tmp_path/'a.xlsx').read_bytes())
    raw[raw.index(b'PK\x01\x02')+6] = 255  # the version that is needed to unpack
    (tmp_path/'c.xlsx').write_bytes(raw)
    with pytest.raises(HPAError, match='c.xlsx is a'): read_table(tmp_path/'c.xlsx')
