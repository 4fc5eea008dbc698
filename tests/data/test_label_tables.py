"Tables of labels with columns and words of any kind: found, or told with what may be meant."
import warnings

import pandas as pd
import pytest

from hpa_fastai.data.labels import HPA28, LabelError
from hpa_fastai.data.label_tables import guess_labels, label_faults, read_labels

WORDS = ['Nucleoplasm, Golgi apparatus', 'Cytosol', 'mitochondria; cytosol']
CELLS = ['0 7', '25', '23 25']


def table(id_column='Field', label_column='Location', cells=WORDS, **more):
    return pd.DataFrame({id_column: ['a', 'b', 'c'], label_column: cells, **more})


@pytest.mark.parametrize('id_column', ['Field', 'Image name', 'image_id', 'FOV', 'File', 'Id', 'Fields'])
@pytest.mark.parametrize('label_column', ['Location', 'Location(s)', 'LABELS', 'Classes', 'Compartment', 'Target'])
def test_usual_names_of_columns_are_found(id_column, label_column):
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter('always')
        df = read_labels(table(id_column, label_column, well=['A1']*3))
    assert df.values.tolist() == [[i, cell, 'A1'] for i, cell in zip('abc', CELLS)]
    said = ' '.join(str(w.message) for w in noted)
    for column, usual in ((id_column, 'Id'), (label_column, 'Target')):
        assert (f'the column {column!r} is read as' in said) == (column != usual)


def test_columns_that_are_named_are_taken_at_their_word():
    df = read_labels(table('A', 'B', Id=['x']*3, Target=['1']*3), id_column='A', label_column='b')
    assert df.values.tolist() == [['a', '0 7'], ['b', '25'], ['c', '23 25']] and list(df) == ['Id', 'Target']


def test_a_wrong_name_is_answered_with_the_likeliest():
    with pytest.raises(LabelError, match=r"no column 'Feild' \(columns are Field, Location\); "
                                         r"did you mean id_column='Field' \(--id-column Field\)\?"):
        read_labels(table(), id_column='Feild')
    with pytest.raises(LabelError, match='cannot hold both'): read_labels(table(), HPA28, False, None, 'Field', 'Field')


def test_columns_are_proposed_by_what_stands_in_them():
    odd = table('Bild Nr', 'Ort', well=['A1', 'A2', 'A3'])
    with pytest.raises(LabelError, match=r"did you mean id_column='Bild Nr', label_column='Ort' "
                                         r"\(--id-column 'Bild Nr' --label-column Ort\)\?"):
        read_labels(odd, ids=['a', 'b', 'c'])
    with pytest.raises(LabelError, match=r"id_column='NAME', label_column='NAME'"):
        read_labels(pd.DataFrame({'x': ['1'], 'y': ['2']}))


@pytest.mark.filterwarnings('ignore:table. the column')
def test_the_images_tell_which_column_names_them():
    df = table(Image=['f1', 'f2', 'f3'])
    assert read_labels(df, ids=['f1', 'f2', 'f3']).Id.tolist() == ['f1', 'f2', 'f3']
    assert read_labels(df, ids=lambda: ['a', 'b', 'c']).Id.tolist() == ['a', 'b', 'c']
    with pytest.raises(LabelError, match="no column 'Id'"): read_labels(df)


def test_numbers_below_a_name_that_is_no_label_are_not_taken_for_classes():
    numbers = table('Id', 'Class', [1, 2, 3])
    with pytest.raises(LabelError, match="did you mean label_column='Class'"): read_labels(numbers)
    assert read_labels(numbers, label_column='Class').Target.tolist() == ['1', '2', '3']


def test_words_decide_which_set_a_table_is_of():
    assert guess_labels(table('Id', 'Label')) == HPA28 and guess_labels(table()) == HPA28
    assert guess_labels(table('Id', 'Label', ['3|1', '2', '1'])).name == 'hpa19'
    assert guess_labels(table(cells=['Midbody', 'Nucleoli rim', 'Negative'])).name == 'hpa31'
    assert guess_labels(table(cells=['left', 'right', 'none'])) is None
    assert read_labels(table('Id', 'Label')).Target.tolist() == CELLS


def test_all_wrong_words_are_told_at_once():
    df = pd.DataFrame({'Id': list('abcdefgh'), 'Target': ['Golgi', 'Cytosol, Golgi', 'ER', *['Cytosol']*5]})
    with pytest.raises(LabelError) as e: read_labels(df)
    assert str(e.value) == ("table: 3 rows have labels that are not among the 28 classes of hpa28: "
                            "'Golgi' (row 0 and 1 more; did you mean 'Golgi apparatus'?), "
                            "'ER' (row 2; did you mean 'Endoplasmic reticulum'?)")
    assert [f.row for f in label_faults(df)[1]] == [0, 1, 2]


def test_words_of_ones_own_are_listed_as_they_can_be_given():
    own = table('Id', 'Target', ['Nucleus', 'Cilium, Cytosol', 'Nucleus'])
    with pytest.raises(LabelError) as e: read_labels(own)
    assert ("list them: labels=['Cilium', 'Cytosol', 'Nucleus'] (--labels Cilium,Cytosol,Nucleus)") in str(e.value)
    assert read_labels(own, 'Cilium,Cytosol,Nucleus').Target.tolist() == ['2', '0 1', '2']
    with pytest.raises(LabelError, match="all are classes of hpa31: pass labels='hpa31'"):
        read_labels(table('Id', 'Target', ['Midbody', 'Vesicles', 'Cytosol']))


def test_many_wrong_words_stay_one_readable_line():
    df = pd.DataFrame({'Id': map(str, range(3000)), 'Target': [f'word {i%40}' for i in range(3000)]})
    with pytest.raises(LabelError, match='and 32 more words.*in each row below the heading name') as e: read_labels(df)
    assert len(str(e.value)) < 800
