"Tables in the making: whole or resumable, whatever moment a run is killed at."
import os

import numpy as np
import pytest

from hpa_fastai.data.labels import ZTG10
from hpa_fastai.deploy.embeddings import EmbeddingFile
from hpa_fastai.deploy.journal import Journal
from hpa_fastai.deploy.tables import ResultError, read_predictions, result_columns

from result_tables import row, write


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
    with Journal(tmp_path / 'p.csv', result_columns(ZTG10), {}) as j:
        assert j.complete and j.done == ['a', 'b'] and j.errors.lines(2) == ['b: bad']
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
    with Journal(tmp_path / name, result_columns(ZTG10), {}, embeddings=EmbeddingFile(tmp_path / 'e.npy')) as j:
        j.finish(['a', 'b'])
    assert read_predictions(tmp_path/name).Id.tolist() == ['a', 'b']
    assert np.load(tmp_path/'e.npy').tolist() == [[3, 4], [1, 2]]
    assert sorted(os.listdir(tmp_path)) == ['e.ids.json', 'e.npy', name]


def test_a_run_that_could_not_begin_leaves_no_table_for_its_own(tmp_path, monkeypatch):
    out, columns = tmp_path/'p.csv', ['Id', 'Predicted', 'Names', 'p', 'flags', 'error']
    with Journal(out, columns, dict(model='old')) as journal:
        journal.add([('x', '', '', .1, '', '')])
        journal.finish()
    def full(*_): raise OSError(28, 'No space left on device')
    for broken in ('open_locked', 'write_whole'):
        with monkeypatch.context() as m:
            m.setattr(f'hpa_fastai.deploy.journal.{broken}', full)
            with pytest.raises(OSError, match='No space'): Journal(out, columns, dict(model='new'), force=True)
        with pytest.raises(ResultError, match='exists; give another name'): Journal(out, columns, dict(model='new'))
    with Journal(out, columns, dict(model='new'), force=True) as journal:
        assert not journal.complete and not journal.done
