"Labels: every public table as it is, and one clear line for every table that is not"

import json
from dataclasses import asdict
import numpy as np, pandas as pd, pytest
from fastai.data.transforms import CategoryMap
from fastcore.foundation import L
from hpa_fastai.data.labels import *
from hpa_fastai.data.label_tables import *

tables = {
    'kaggle2018_train.csv': ('hpa28', 31072),
    'kaggle2018_sample_submission.csv': ('hpa28', 11702),
    'hpav18.csv': ('hpa28', 74606),
    'kaggle2021_train.csv': ('hpa19', 21806),
    'zero_to_gans_train.csv': ('ztg10', 19236),
}


def write(tmp_path, text, name='train.csv'):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize('name', tables)
def test_public_tables_are_read_unchanged(real_data, name):
    labels, rows = tables[name]
    ls, path = get_labels(labels), real_data / 'labels' / name
    df, raw = read_labels(path, labels), pd.read_csv(path, dtype=str)
    raw = raw[[c for c in raw if not c.startswith('Unnamed')]]
    assert list(df.columns) == ['Id', 'Target'] and len(df) == rows
    once = [ls.sep.join(dict.fromkeys(t.split(ls.sep))) for t in raw.iloc[:, 1]]  # 146 rows of 2021 name a class twice
    assert list(df.Id) == list(raw.iloc[:, 0]) and list(df.Target) == once
    onehot = ls.encode(df.Target)
    assert [set(np.flatnonzero(r)) for r in onehot] == [set(map(int, t.split(ls.sep))) for t in raw.iloc[:, 1]]
    assert (ls.encode(ls.decode(onehot)) == onehot).all()


def test_2018_class_counts(real_data):
    counts = HPA28.encode(read_labels(real_data / 'labels' / 'kaggle2018_train.csv').Target).sum(0, dtype=int)
    assert counts[[0, 8, 15, 25, 27]].tolist() == [12885, 53, 21, 8228, 11]


def test_successors_agree_with_the_two_competitions(real_data):
    old = read_labels(real_data / 'labels' / 'kaggle2018_train.csv').set_index('Id').Target
    new = read_labels(real_data / 'labels' / 'kaggle2021_train.csv', 'hpa19').set_index('Id').Target
    mapped, truth = HPA28.convert(HPA28.encode(old.loc[new.index]), HPA19), HPA19.encode(new)
    assert (mapped == truth).all(1).mean() > 0.9
    both = (mapped & truth).sum(0, dtype=int)
    assert (both[:18] / mapped.sum(0, dtype=int)[:18]).min() > 0.9


def test_convert_takes_probabilities():
    p = np.random.default_rng(0).random((5, 28))
    q = HPA28.convert(p, 'hpa19')
    assert np.allclose(q[:, 17], p[:, [8, 9, 10, 20, 26]].max(1)) and (q[:, 18] == 0).all()
    assert np.allclose(HPA28.convert(p, 'ztg10')[:, 8], p[:, 19])


def renamed(a, b):
    return {a.classes[i]: b.classes[j] for i, j in a.successors(b).items() if a.classes[i] != b.classes[j]}


def test_finer_classes_go_where_they_lie():
    assert renamed(HPA31, HPA28) == {
        'Cell Junctions': 'Cell junctions', 'Centriolar satellite': 'Microtubule organizing center',
        'Midbody': 'Cytokinetic bridge', 'Nucleoli rim': 'Nucleoli'}
    dots = ['Cytoplasmic bodies', 'Endosomes', 'Lipid droplets', 'Lysosomes', 'Peroxisomes', 'Vesicles']
    assert renamed(HPA31, HPA19) == {
        **dict.fromkeys(dots, 'Vesicles and punctate cytosolic patterns'), 'Cell Junctions': 'Plasma membrane',
        'Centriolar satellite': 'Centrosome', 'Focal adhesion sites': 'Actin filaments', 'Nucleoli rim': 'Nucleoli'}
    lost = {c for i, c in enumerate(HPA31.classes) if i not in HPA31.successors(HPA19)}
    assert lost == {'Cytokinetic bridge', 'Midbody', 'Mitotic chromosome'}


def test_no_class_becomes_a_narrower_one():
    assert renamed(HPA28, HPA31) == {'Cell junctions': 'Cell Junctions'} and renamed(HPA19, HPA31) == {}
    lost = {c for i, c in enumerate(HPA28.classes) if i not in HPA28.successors(HPA31)}
    assert lost == {'Microtubule ends', 'Microtubule organizing center', 'Rods & rings'}
    assert 17 not in HPA19.successors(HPA31) and HPA19.successors(HPA31)[18] == 30


@pytest.mark.parametrize('ls', [HPA28, HPA19, HPA31, ZTG10], ids=lambda ls: ls.name)
def test_all_forms_mean_the_same(ls):
    rng = np.random.default_rng(1)
    onehot = (rng.random((200, len(ls))) < 0.1).astype(np.uint8)
    names, idxs, cells = ls.to_names(onehot), [list(np.flatnonzero(r)) for r in onehot], ls.decode(onehot)
    for form in (cells, names, idxs, ['|'.join(n) for n in names], pd.Series(cells), np.array(cells)):
        assert (ls.encode(form) == onehot).all()


def test_label_set_survives_json():
    for ls in (HPA28, HPA19, HPA31, ZTG10):
        assert LabelSet(**json.loads(json.dumps(asdict(ls)))) == ls


def test_a_single_cell_is_not_taken_for_a_column():
    with pytest.raises(LabelError, match="single cell '16 0'"):
        HPA28.encode('16 0')


def test_submission_files(tmp_path):
    onehot = HPA28.encode(['16 0', ''])
    HPA28.submission(['a', 'b'], onehot).to_csv(tmp_path / 's.csv', index=False)
    assert (tmp_path / 's.csv').read_text().split() == ['Id,Predicted', 'a,0', '16', 'b,']
    assert list(ZTG10.submission([], ZTG10.encode([])).columns) == ['Image', 'Label']


@pytest.mark.parametrize(
    'text',
    [
        b'Id,Target\na,16 0\nb,5\n',
        b'Id,Target\r\na,16 0\r\nb,5\r\n',
        b'\xef\xbb\xbfId,Target\na,16 0\nb,5\n',
        b'Id;Target\na;16 0\nb;5\n',
        b'Id\tTarget\na\t16 0\nb\t5\n',
        b'Id,Target\na,16 0 \nb,5 ',
        b'Id,Target,\na,16 0,\nb,5,\n',
        b'Id,Target\na,16 0,,\nb,5\n',
        b'Id,Target\n\na,16 0\n\nb,5\n\n',
        b',Id,Target\n0,a,16 0\n1,b,5\n',
        b'Unnamed: 0,Id,Target\n0,a,16 0\n1,b,5\n',
        b'id,target\na,16 0\nb,5.0\n',
        b'Id,Predicted\na,16 0\nb,5\n',
        b'Id,Target\na,Cytokinetic bridge|Nucleoplasm\nb,nuclear bodies\n',
        b'"Id","Target"\n"a","16 0"\n"b","5"\n',
        'Id,Target\na,16 0\nb,5\n'.encode('utf-16'),
    ],
)
def test_usual_kinds_of_csv(tmp_path, text):
    df = read_labels(write(tmp_path, text))
    assert df.values.tolist() == [['a', '16 0'], ['b', '5']] and list(df.columns) == ['Id', 'Target']


def test_other_columns_are_kept(tmp_path):
    df = read_labels(write(tmp_path, 'Id,Target,group,score,plate\na,1,x,0.5,007\nb,2,y,,008\n'))
    assert list(df.columns) == ['Id', 'Target', 'group', 'score', 'plate']
    assert (
        df.group.tolist() == ['x', 'y']
        and df.score[0] == 0.5
        and np.isnan(df.score[1])
        and df.plate.tolist() == ['007', '008']
    )


def test_mosaic_table_keeps_its_group(real_data):
    df = read_labels(real_data / 'mosaic' / 'train.csv')
    assert list(df.columns) == ['Id', 'Target', 'group'] and len(df) == 245 and df.group.notna().all()


bad = {
    'empty file': ('', 'train.csv is empty'),
    'header only': ('Id,Target\n', 'train.csv has a header but no rows'),
    'unknown class': ('Id,Target\na,1\nb,28 0\n', r"train.csv row 3: label 28 is not one of the 28 classes \(0..27\)"),
    'negative class': ('Id,Target\na,-1\n', 'row 2: label -1 is not one'),
    'unknown name': (
        'Id,Target\na,Nucleolus\n',
        "row 2: label 'Nucleolus' is not a class of hpa28; did you mean 'Nucleoli'",
    ),
    'no label': ('Id,Target\na,1\nb,\n', 'row 3: Target of b is empty'),
    'NaN label': ('Id,Target\na,1\nb,nan\n', 'row 3: Target of b is empty'),
    'short row': ('Id,Target\na,1\nb\n', 'row 3: Target of b is empty'),
    'no Id': ('Id,Target\na,1\n,2\n', 'row 3: the Id is empty'),
    'Excel number': ('Id,Target\n1.00E+05,1\n', r'row 2: Id .1.00E\+05. looks rewritten by a spreadsheet'),
    'Excel date': ('Id,Target\n01-Feb,1\n', 'row 2: Id .01-Feb. looks rewritten'),
    'Excel error': ('Id,Target\n#NAME?,1\n', 'row 2: Id .#NAME.. looks rewritten'),
    'decimal Id': ('Id,Target\n19567.0,1\n', 'row 2: Id .19567.0. looks rewritten'),
    'no label column': ('Id,Class\na,1\n', r"no column 'Target' \(columns are Id, Class\)"),
    'labels split at commas': ('Id,Target\na,16,0\n', "row 2: 3 values for 2 columns; is '0' part of a label"),
    'two columns of one name': ('Id,Target,Target\na,1,2\n', "two columns called 'Target'"),
    'clash': (
        'Id,Target\na,1\na,2\nb,3\nb,4 3\n',
        r"2 Ids occur more than once with different labels: a \('1' and '2'\), b",
    ),
    'other data set': ('ID,Label\na,8|5|0\n', "pass labels='hpa19'"),
}


@pytest.mark.parametrize('case', bad)
def test_bad_table(tmp_path, case):
    text, message = bad[case]
    with pytest.raises(LabelError, match=message) as e:
        read_labels(write(tmp_path, text))
    assert '\n' not in str(e.value)


def test_row_numbers_are_those_of_the_file(tmp_path):
    with pytest.raises(LabelError, match='row 6: label 99'):
        read_labels(write(tmp_path, 'Id,Target\n\na,1\n\nb,2\nc,99\n'))


def test_ids_and_groups_may_be_called_none(tmp_path):
    df = read_labels(write(tmp_path, 'Id,Target,group\nnone,1,NA\nNA,2,NA\n'))
    assert df.Id.tolist() == ['none', 'NA'] and df.group.tolist() == ['NA', 'NA']


def test_missing_file(tmp_path):
    with pytest.raises(LabelError, match='does not exist'):
        read_labels(tmp_path / 'none.csv')


def test_repeats_that_agree_are_merged_with_a_note(tmp_path):
    with pytest.warns(UserWarning, match='1 repeated rows of 1 Ids'):
        df = read_labels(write(tmp_path, 'Id,Target\na,3 0\nb,1\na,0 3\n'))
    assert df.Id.tolist() == ['a', 'b']


def test_empty_labels_on_request(tmp_path):
    df = read_labels(write(tmp_path, 'Id,Target\na,1\nb,\n'), allow_empty=True)
    assert df.Target.tolist() == ['1', '']


def test_tables_in_memory():
    df = read_labels(pd.DataFrame({'Image': [5, 6], 'Label': ['1 2', 3]}), 'ztg10')
    assert df.values.tolist() == [['5', '1 2'], ['6', '3']]
    with pytest.raises(LabelError, match='table row 1: Label of 6 is empty'):
        read_labels(pd.DataFrame({'Image': [5, 6], 'Label': ['1', None]}), 'ztg10')


def test_reading_what_was_read_changes_nothing(tmp_path):
    df = read_labels(write(tmp_path, 'ID,Label,group\na,8|5|0,x\nb,18,y\n'), 'hpa19')
    df.to_csv(tmp_path / 'again.csv', index=False)
    pd.testing.assert_frame_equal(read_labels(tmp_path / 'again.csv', 'hpa19'), df)


def test_own_label_set(tmp_path):
    own = get_labels(write(tmp_path, 'name\nCilium\nNucleus\n', 'own.csv'))
    assert own.classes == ('Cilium', 'Nucleus') and own.name == 'own' and own.parse('1 0') == [1, 0]
    with pytest.raises(LabelError, match="'cilium' is listed twice"):
        get_labels(write(tmp_path, 'name\nCilium\ncilium\n', 'two.csv'))
    with pytest.raises(LabelError, match="call it 'name'"):
        get_labels(write(tmp_path, 'a,b\n1,2\n', 'odd.csv'))
    with pytest.raises(LabelError, match='number the 2 classes 0..1'):
        get_labels(write(tmp_path, 'index,name\n1,x\n2,y\n', 'from1.csv'))


@pytest.mark.parametrize('names', [L('b', 'a'), (c for c in 'ba'), CategoryMap(['b', 'a'], sort=False)])
def test_names_in_whatever_holds_them_in_order(names):
    assert get_labels(names).classes == ('b', 'a')


@pytest.mark.parametrize('wrong,near', [('hpa82', 'hpa28'), ('hpa_18', 'hpa19'), ('ztg', 'ztg10')])
def test_near_matches_of_a_label_set(wrong, near):
    with pytest.raises(LabelError, match=f"did you mean .*'{near}'"):
        get_labels(wrong)


@pytest.mark.parametrize(
    'classes,message',
    [
        (['1', '2', '3'], "class 0 is called '1', but a number in a table means a position"),
        (['0', '2'], "class 1 is called '2'"),
        (['0.5', 'b'], "class 0 is called '0.5'"),
        (['a', '1 2'], 'looks like several numbers'),
        (['a', '0;1'], 'looks like several numbers'),
        ([1, 2, 3], 'class 0 is 1, not a text'),
        ([None, 'a'], 'class 0 is None, not a text'),
        ('abc', 'the classes are one text'),
        (['a', 'Golgi|cis'], 'separates names in tables'),
        (['a\tb'], 'an invisible character'),
        (['a\u200b'], 'an invisible character'),
        (['a\x9b2J'], 'an invisible character'),
        (['gpj\u202eexe'], 'an invisible character'),
        (['a\u2028b'], 'an invisible character'),
        (['a', ' b'], 'a blank before or after'),
        (['Zürich', 'Zu\u0308rich'], 'is listed twice'),
        (['a', 'A'], 'is listed twice'),
    ],
)
def test_names_that_would_break_a_table_are_refused(classes, message):
    with pytest.raises(LabelError, match=message.replace('(', r'\(')) as e:
        get_labels(classes) if classes != 'abc' else LabelSet('x', classes)
    assert '\n' not in str(e.value)


def test_columns_of_tables_are_no_names():
    from hpa_fastai.deploy.tables import cell_columns, result_columns

    for column in {*result_columns(LabelSet('none', ('a',))), *cell_columns(LabelSet('none', ('a',))), 'Target'} - {
        'a'
    }:
        for name in (column, column.upper()):
            with pytest.raises(LabelError, match='like a column in tables of results'):
                get_labels(['a', name])


def test_numbers_that_are_their_own_positions_are_names():
    ls = get_labels(['0', '1', '2'])
    assert ls.parse('2 0') == [2, 0] == ls.parse([2, 0]) and ls.decode(ls.encode(['1', '0 2'])) == ['1', '0 2']


@pytest.mark.parametrize('name', ['None', 'NA', 'nan', 'null', 'n/a', 'True', 'False'])
def test_words_for_nothing_may_be_names(tmp_path, name):
    ls = get_labels(['Cilia', name, 'Nucleus'])
    df = read_labels(write(tmp_path, f'Id,Target\na,{name}\nb,Cilia|{name}\nc,{name.upper()}\n'), ls)
    assert df.Target.tolist() == ['1', '0 1', '1'] and ls.parse('') == [] and ls.parse(float('nan')) == []


@pytest.mark.parametrize(
    'field,value',
    [
        ('sep', ''),
        ('sep', '0'),
        ('sep', None),
        ('sep', ','),
        ('id_col', ''),
        ('label_col', None),
        ('negative', 3),
        ('negative', -1),
        ('negative', 'b'),
        ('negative', 1.5),
        ('name', ''),
    ],
)
def test_fields_of_a_label_set_are_checked(field, value):
    if (field, value) == ('sep', ','):
        assert LabelSet('x', ('a', 'b'), sep=',').parse('0,1') == [0, 1]
    else:
        with pytest.raises(LabelError, match=f'{field} is|label set'):
            LabelSet(**dict(dict(name='x', classes=('a', 'b')), **{field: value}))


def test_a_very_long_number_is_no_class():
    for text in ('9' * 400, '9' * 5000 + '.0'):
        with pytest.raises(LabelError, match='is not one of the 28 classes'):
            HPA28.parse(text)


def test_lists_of_names_come_in_many_kinds():
    for kind in (list, tuple, np.array, pd.Series, pd.Index):
        assert get_labels(kind(['a', 'b'])).classes == ('a', 'b')


@pytest.mark.parametrize('ids', [['1E+05', '2E+05'], ['1-12-01', 'x'], ['3-Jan', '5.0']])
def test_odd_ids_of_images_that_are_there_are_right(tmp_path, ids):
    path = write(tmp_path, 'Id,Target\n' + ''.join(f'{i},1\n' for i in ids))
    assert read_labels(path, ids=ids).Id.tolist() == ids == read_labels(path, ids=lambda: ids).Id.tolist()
    with pytest.raises(LabelError, match='looks rewritten by a spreadsheet.*ids='):
        read_labels(path)
    with pytest.raises(LabelError, match='looks rewritten by a spreadsheet, and no image has this name'):
        read_labels(path, ids=['a'])


def test_ids_that_all_are_numbers_with_dashes_are_right(tmp_path):
    assert read_labels(write(tmp_path, 'Id,Target\n1-12-01,1\n2-31-14,2\n')).Id.tolist() == ['1-12-01', '2-31-14']
    with pytest.raises(LabelError, match='rewritten'):
        read_labels(write(tmp_path, 'Id,Target\n1-12-01,1\n5e10,2\n'))


def test_a_column_that_would_take_the_place_of_the_labels_is_refused(tmp_path):
    with pytest.raises(LabelError, match="a column 'Target' besides 'Label'"):
        read_labels(write(tmp_path, 'ID,Label,Target\na,1,2\n'), 'hpa19')
    with pytest.raises(LabelError, match='differ only in case'):
        read_labels(write(tmp_path, 'Id,ID,Target\na,b,2\n'))


def test_names_of_ids_and_columns_are_compared_in_one_form(tmp_path):
    df = read_labels(
        write(tmp_path, 'Größe,Target\nZu\u0308rich,1\n'.replace('ö', 'o\u0308')), get_labels(HPA28, id_col='Größe')
    )
    assert df.Id.tolist() == ['Zürich']


def test_all_faults_are_listed(tmp_path):
    df, faults = label_faults(write(tmp_path, 'Id,Target\na,99\n,1\nc,\nd,3\n'))
    assert [(e.kind, e.row) for e in faults] == [('bad Id', 3), ('bad label', 2), ('bad label', 4)] and len(df) == 4


def test_a_class_that_pandas_makes_nothing_of_is_said(tmp_path):
    ls, path = get_labels(['Cilia', 'NA']), write(tmp_path, 'Id,Target\na,NA\nb,Cilia\n')
    for allow in (True, False):
        assert (
            read_labels(path, ls, allow).Target.tolist()
            == ['1', '0']
            == read_labels(pd.read_csv(path, keep_default_na=False), ls, allow).Target.tolist()
        )
        with pytest.raises(LabelError, match="row 0: no label.*; pandas reads the class 'NA' as a missing value"):
            read_labels(pd.read_csv(path), ls, allow)
