"What is known of a field of view stands beside its results: the same columns by every door, also where a run went on."
import os
import shutil

import numpy as np
import pandas as pd
import pytest

from hpa_fastai.cells.cells import predict_cells
from hpa_fastai.data.files import find_images
from hpa_fastai.data.labels import HPA28, ZTG10
from hpa_fastai.deploy import watch as watching
from hpa_fastai.deploy.beside import further_columns
from hpa_fastai.deploy.journal import Journal
from hpa_fastai.deploy.predictor import Predictor
from hpa_fastai.deploy.scoring import judged
from hpa_fastai.deploy.tables import read_cells, read_predictions, result_columns
from hpa_fastai.interpret.prediction import predict
from result_tables import row

OURS = ['plate', 'well', 'row', 'column', 'field', 'position', 'pixel_size', 'treatment']


@pytest.fixture(scope='module')
def predictor(trained): return Predictor(trained[1], bs=4, device='cpu')


def on_a_plate(table):
    "The same fields of view, on plate 007"
    n = np.arange(len(table))
    known = dict(plate='007', well=[f'A{i//2+1:02d}' for i in n], row=1, column=n//2+1, field=n%2+1,
                 position=[f'-p{i}' for i in n], pixel_size=.325, treatment=['=DMSO' if i%2 else '1e3' for i in n])
    return table.assign(**known)


@pytest.fixture
def table(small_atlas): return on_a_plate(find_images(small_atlas/'train').head(5))


def check(found, table):
    assert list(found)[-len(OURS):] == OURS and list(found)[:33] == result_columns(HPA28)
    for c in OURS[:-1]: assert found[c].tolist() == table[c].tolist(), c
    assert [str(o) for o in found.treatment][1] == '=DMSO' and found['error'].eq('').all()


@pytest.mark.parametrize('name', ['p.csv', 'p.parquet', 'p.xlsx'])
def test_a_file_has_the_columns_of_the_table(table, predictor, tmp_path, name):
    predictor.to_file(table, tmp_path/name, progress=False)
    found = read_predictions(tmp_path/name)
    check(found[[c for c in found if c != 'Antibody']], table)


def test_a_table_in_memory_has_them_too(table, predictor, trained):
    check(predictor(table), table)
    check(predict(table, trained[1], device='cpu', progress=False), table)


def test_a_run_that_goes_on_has_them_in_every_row(table, predictor, tmp_path, monkeypatch):
    class Killed(Exception): pass
    add = Journal.add
    def add_and_die(self, rows, embeddings=None):
        add(self, rows, embeddings)
        raise Killed
    monkeypatch.setattr(Journal, 'add', add_and_die)
    with pytest.raises(Killed): predictor.to_file(table, tmp_path/'p.csv', progress=False)
    monkeypatch.setattr(Journal, 'add', add)
    predictor.to_file(table, tmp_path/'p.csv', progress=False)
    check(read_predictions(tmp_path/'p.csv'), table)


def test_a_watched_folder_has_them_as_soon_as_one_is_known(small_atlas, predictor, tmp_path, monkeypatch):
    plain = find_images(small_atlas/'train').head(3)
    (tmp_path/'plate').mkdir()
    for c in ('red', 'green', 'blue', 'yellow'):
        for file in plain[c]: shutil.copy(file, tmp_path/'plate')
    os.remove(tmp_path/'plate'/os.path.basename(plain.red.iloc[2]))
    monkeypatch.setattr(watching, 'find_images', lambda *args: on_a_plate(find_images(*args)))
    watching.watch(tmp_path/'plate', predictor, tmp_path/'p.csv', timeout=.6, settle=.1, progress=False)
    found = read_predictions(tmp_path/'p.csv').sort_values('Id')
    assert list(found)[-len(OURS):] == OURS
    assert found.well.tolist() == ['A01', 'A01', 'A02'] and found.plate.eq('007').all() and found.field.sum() == 4
    assert found['error'].ne('').tolist() == [False, False, True]


def test_cells_have_them(table, predictor, tmp_path):
    in_memory = predict_cells(predictor, table.head(2), progress=False)
    predict_cells(predictor, table.head(2), out=tmp_path/'c.csv', progress=False)
    for found in (in_memory, read_cells(tmp_path/'c.csv')):
        assert list(found)[-len(OURS):] == OURS and set(found.well) == {'A01'} and set(found.plate) == {'007'}


def test_a_number_that_is_not_known_is_empty_and_the_others_stay_whole(table, predictor, tmp_path):
    table = table.assign(column=[1, None, 2, 2, 3], well=[None, *table.well[1:]])
    for name in ('p.csv', 'p.parquet', 'p.xlsx'):
        predictor.to_file(table, tmp_path/name, progress=False)
        found = read_predictions(tmp_path/name)
        assert found.column.dropna().tolist() == [1, 2, 2, 3] and str(found.column.dtype) == 'Int64', name
        assert found.well[0] == '' and found.column.isna().tolist() == [False, True, False, False, False]


def test_columns_never_replace_results(table, predictor):
    table = table.assign(Nucleoli=7., Target='0', cell=3, flags='x', green2=[np.zeros(2)]*5)
    found = predictor(table)
    assert found.Nucleoli.lt(1).all() and found['flags'].ne('x').all() and 'cell' not in found
    assert list(found)[-1] == 'Target'
    assert judged(found, table[['Id']].assign(Target='1'))['targets'].shape == (5, 28)


def test_a_complete_table_with_more_columns_is_counted_as_before(tmp_path):
    more = further_columns(pd.DataFrame(dict(Id=['a', 'b'], plate='', note=['', 'x, "y"'])), result_columns(ZTG10))
    with Journal(tmp_path/'p.csv', result_columns(ZTG10), dict(a=1)) as journal:
        journal.add([row('a'), row('b', error='damaged')])
        record = journal.record.read_text()
        journal.finish(more=more)
    journal.record.write_text(record)  # killed between the last two steps
    with Journal(tmp_path/'p.csv', result_columns(ZTG10), dict(a=1)) as journal:
        assert journal.complete and len(journal.errors) == 1 and journal.named['Nucleoli'] == 1
    assert read_predictions(tmp_path/'p.csv').note.tolist() == ['', 'x, "y"']
