"Tables that people made: whatever program wrote them, they are read or refused with one line."
import contextlib
import io
import zipfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hpa_fastai.data.labels import HPAError, same_form
from hpa_fastai.data.label_tables import read_labels
from hpa_fastai.basics.paths import find_beside
from hpa_fastai.basics.spreadsheets import read_table, to_numbers

TEXT = 'Id,Target\na,16 0\nb,5\n'


def save(folder, content, name='train.csv'):
    path = folder/name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def archive(*names):
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, 'w') as z:
        for n in names: z.writestr(n, 'x')
    return raw.getvalue()


@pytest.mark.parametrize('typed', ['Zu\u0308rich', ' Zürich', 'Zürich\n', '\ufeffZürich', 'Zürich\u200b '])
def test_names_that_look_the_same_are_the_same(typed):
    assert same_form(typed) == 'Zürich'


READ = {
    'UTF-16 LE without a mark': TEXT.encode('utf-16-le'), 'UTF-16 BE without a mark': TEXT.encode('utf-16-be'),
    'UTF-16 BE': ('\ufeff'+TEXT).encode('utf-16-be'), 'UTF-16 LE': ('\ufeff'+TEXT).encode('utf-16-le'),
    'UTF-32': TEXT.encode('utf-32'), 'two marks': b'\xef\xbb\xbf'*2 + TEXT.encode(),
    'carriage returns': TEXT.replace('\n', '\r').encode(), 'Windows lines': TEXT.replace('\n', '\r\n').encode(),
    'blanks after commas': b'Id, Target\na, 16 0\nb, 5\n',
    'quotes after blanks': b'"Id", "Target"\n"a", "16 0"\n"b", "5"\n',
    'semicolons': TEXT.replace(',', ';').encode(),
    'tabs': TEXT.replace(',', '\t').encode(),
    'bars': TEXT.replace(',', '|').encode(),
    'the line of Excel': b'sep=;\r\n' + TEXT.replace(',', ';').encode(),
    'that line and tabs': b'sep=\t\r\n' + TEXT.replace(',', '\t').encode(),
    'blank rows of a spreadsheet': b'Id;Target;\n;;\na;16 0;\n;;\nb;5;\n;;\n',
    'no break of blanks': 'Id\xa0,Target\na,16 0\nb\xa0,5\n'.encode(),
    'the end of a DOS file': TEXT.encode()+b'\x1a',
    'marks that were copied': 'Id,Target\na,\ufeff16 0\n\u200bb,5\n'.encode(),
    'a title that a spreadsheet exported': b'Experiment 12;;\n;;\nDate:;3 May;\nId;Target;\na;16 0;\nb;5;\n',
    'a header with commas in quotes': b'"Id";"Target";"a, b, c"\n"a";"16 0";\n"b";"5";\n',
}


@pytest.mark.parametrize('kind', READ)
def test_every_usual_kind_is_read(tmp_path, kind):
    assert read_labels(save(tmp_path, READ[kind])).iloc[:, :2].values.tolist() == [['a', '16 0'], ['b', '5']]


def test_letters_of_every_usual_encoding(tmp_path):
    text = 'Id;Größe\nZürich;3,5\n'
    for encoding in ('utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'cp1252', 'latin-1'):
        table = read_table(save(tmp_path, text.encode(encoding)))
        assert (list(table), table.values.tolist()) == (['Id', 'Größe'], [['Zürich', '3,5']])
    assert read_table(save(tmp_path, 'Id,name\na,Café'.encode('latin-1'))).name.tolist() == ['Café']


def test_cells_may_be_very_long(tmp_path):
    assert len(read_table(save(tmp_path, 'Id,mask\na,'+'y'*300_000+'\n'))['mask'][2]) == 300_000


REFUSED = {
    'a damaged workbook': (archive('xl/workbook.xml'), 'is a damaged Excel workbook .*; copy it again, or open it'),
    'a binary workbook': (archive('xl/workbook.bin'), 'is a binary Excel workbook, .* save it as .xlsx, or as CSV'),
    'a workbook with a password': (b'\xd0\xcf\x11\xe0' + 'EncryptedPackage'.encode('utf-16-le'),
                                   'is an Excel workbook with a password, .* save it without the password'),
    'an old workbook': (b'\xd0\xcf\x11\xe0'+b'\0'*99, 'is an old Excel workbook'),
    'a LibreOffice spreadsheet': (archive('mimetype', 'content.xml'), 'is a LibreOffice spreadsheet'),
    'a Numbers spreadsheet': (archive('Index/Document.iwa'), 'is a Numbers spreadsheet'),
    'a zip archive': (archive('train.csv'), 'is a zip archive, not a table of text; unpack it'),
    'a cut archive': (archive('train.csv')[:20], 'is a zip archive'),
    'gzip': (b'\x1f\x8b\x08'+b'\0'*9, 'is a gzip archive'),
    'parquet': (b'PAR1'+b'\0'*9, 'is a parquet file'),
    'a web page': (b'\n<!DOCTYPE html><html>', 'is a web page, not a table'),
    'a pointer': (b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n', 'is a pointer of Git LFS'),
    'UTF-16 cut at an odd byte': (TEXT.encode('utf-16')[:-1], 'breaks off in the middle of a character'),
    'that without a mark': (TEXT.encode('utf-16-le')[:-1], 'breaks off in the middle of a character'),
    'UTF-8 cut in a letter': ('Id,Target\nZürich,1\nBü'.encode()[:-1], 'breaks off in the middle of a character'),
    'zero bytes': (b'Id,Target\na,1\nb,\0\0\0\0', 'row 3: a zero byte'), 'nothing but zeros': (b'\0'*512, 'zero byte'),
    'another encoding': ('Id,Target\n日本語,1\n'.encode('cp932') + b'\x81', 'CSV UTF-8'),
    'an open quote': (b'Id,Target\na,"3\nb,5\n', r'row 2: a quote \("\) is opened and never closed'),
    'two columns of one name': (b'Id,Target, Target\na,1,2\n', "two columns called 'Target'"),
    'a long row': (b'Id,Target\na,16,0\n', "row 2: 3 values for 2 columns; is '0' part of a label"),
}


@pytest.mark.parametrize('kind', REFUSED)
def test_what_is_no_table_says_what_it_is(tmp_path, kind):
    content, message = REFUSED[kind]
    with pytest.raises(HPAError, match=f'train.csv.*{message}') as e: read_labels(save(tmp_path, content))
    assert '\n' not in str(e.value)


def test_what_cannot_be_opened(tmp_path):
    with pytest.raises(HPAError, match='is a folder'): read_table(tmp_path)
    with pytest.raises(HPAError, match='does not exist'): read_table(tmp_path/'none.csv')


def test_numbers_with_a_decimal_comma():
    assert to_numbers(pd.Series(['0,93', '1', ' 2.5 '])).tolist() == [.93, 1, 2.5]
    assert to_numbers(pd.Series(['', '9,3E-05'])).isna().tolist() == [True, False]


def test_the_folder_of_the_data_comes_before_the_working_folder(tmp_path, monkeypatch):
    (tmp_path/'atlas').mkdir()
    monkeypatch.chdir(tmp_path)
    save(tmp_path, TEXT)
    save(tmp_path, TEXT, 'other.csv')
    save(tmp_path/'atlas', TEXT)
    assert find_beside('train.csv', 'atlas').resolve() == tmp_path/'atlas'/'train.csv'
    assert find_beside('other.csv', 'atlas').resolve() == tmp_path/'other.csv'
    assert find_beside(tmp_path/'train.csv', 'atlas') == tmp_path/'train.csv'
    with pytest.raises(HPAError) as e: find_beside('none.csv', tmp_path/'atlas')
    assert str(tmp_path/'atlas'/'none.csv') in str(e.value) and str(tmp_path/'none.csv') in str(e.value)


def _explore(folder, csv):
    from hpa_fastai.interpret.explore import explore
    explore(folder, csv)


def _report(folder, csv):
    from hpa_fastai.interpret.report import report
    report(folder, csv=csv)


def _from_csv(folder, csv):
    from hpa_fastai.batches.loaders import HPADataLoaders
    HPADataLoaders.from_csv(folder, csv, cache=False)


def _train(folder, csv):
    from hpa_fastai.cli.main import main
    line = ['train', str(folder), '--csv', str(csv), '--dry-run', '--out', 'm']
    with contextlib.redirect_stderr(io.StringIO()) as printed: code = main(line)
    if code == 2: raise HPAError(printed.getvalue())


@pytest.mark.parametrize('door', [_explore, _report, _from_csv, _train])
def test_every_door_looks_in_the_same_places(tmp_path, monkeypatch, door):
    (tmp_path/'atlas'/'train').mkdir(parents=True)
    save(tmp_path, TEXT)
    save(tmp_path/'atlas', TEXT.replace('5', '99'))
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((8, 8, 4), np.uint8)).save('atlas/train/a.png')
    with pytest.raises(HPAError, match='99'): door('atlas', 'train.csv')  # of the folder, not of the working folder
    save(tmp_path, TEXT.replace('5', '99'), 'other.csv')
    with pytest.raises(HPAError, match='99'): door('atlas', 'other.csv')
