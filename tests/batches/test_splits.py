"Splits: nothing divided, every class everywhere, the same on every machine"

import hashlib
import re
import numpy as np, pandas as pd, pytest
from hpa_fastai.data.labels import *
from hpa_fastai.data.label_tables import *
from hpa_fastai.batches.splits import *


def counts(df, part):
    return np.stack([HPA28.encode(df.Target)[part == p].sum(0, dtype=int) for p in np.unique(part)])


def make(groups=300, mixed=False):
    "A table whose groups hold one label set each, or several; made without a random generator that could change."
    noise, rows = lambda *key: int(hashlib.md5(repr(key).encode()).hexdigest()[:8], 16) / 2**32, []
    p = 2.0 ** -np.arange(1, 29).clip(1, 8) / 1.5
    for g in range(groups):
        for i in range(1 + int(8 * noise(g))):
            target = [c for c in range(28) if noise(g, c, i * mixed) < p[c]] or [0]
            rows.append((f'{g}_1_A1_{i}', HPA28.format(target), f'plate{g % 7}'))
    return pd.DataFrame(rows, columns=['Id', 'Target', 'plate'])


@pytest.fixture(scope='module')
def table():
    return make()


@pytest.fixture(scope='module')
def hpav18(real_data):
    return read_labels(real_data / 'labels' / 'hpav18.csv')


def test_2018_in_five(real_data):
    df = read_labels(real_data / 'labels' / 'kaggle2018_train.csv')
    fold = stratified_folds(df, 5)
    c, sizes = counts(df, fold), np.bincount(fold)
    assert np.abs(c - c.sum(0) / 5).max() <= 1
    assert np.abs(sizes / sizes.mean() - 1).max() <= 0.005


def test_hpav18_by_antibody(hpav18):
    fold, antibody = stratified_folds(hpav18, 5, group=antibody_of), hpav18.Id.str.split('_').str[0]
    assert antibody.nunique() == 12815 and pd.Series(fold).groupby(antibody.to_numpy()).nunique().max() == 1
    c = counts(hpav18, fold)
    off = np.abs(c / (c.sum(0) / 5) - 1)
    assert (c > 0).all()
    possible = (
        np.arange(28) != 15
    )  # seven antibodies of six images each: no five folds hold them less unevenly than this
    assert off[:, possible].mean() <= 0.015 and off[:, possible].max() <= 0.15
    assert sorted(c[:, 15]) == [6, 6, 6, 12, 12]


@pytest.mark.parametrize('mixed', [False, True])
@pytest.mark.parametrize('n', [2, 3, 5, 10])
def test_groups_stay_whole_and_classes_spread(n, mixed):
    df = make(mixed=mixed)
    fold = stratified_folds(df, n, group=antibody_of, seed=n)
    antibody = df.Id.map(antibody_of)
    assert set(fold) == set(range(n)) and pd.Series(fold).groupby(antibody.to_numpy()).nunique().max() == 1
    onehot, c = HPA28.encode(df.Target), counts(df, fold)
    enough = np.array([antibody[onehot[:, k] > 0].nunique() >= n for k in range(28)])
    assert (c[:, enough] > 0).all()
    assert np.abs(np.bincount(fold) / len(df) * n - 1).max() < 0.02
    common = c.sum(0) > 200
    assert np.abs(c[:, common] / (c[:, common].sum(0) / n) - 1).max() < 0.1


def test_a_class_with_as_many_groups_as_folds_is_in_every_fold():
    rows = [(f'big{g}_{i}', '0', g) for g in range(40) for i in range(20)]
    rows += [(f'rare{g}_{i}', '15 0', 100 + g) for g, size in enumerate([60, 40, 1, 1, 1]) for i in range(size)]
    rows += [(f'rods{g}', '27 25', 200 + g) for g in range(5)]
    df = pd.DataFrame(rows, columns=['Id', 'Target', 'g'])
    for seed in range(5):
        assert (counts(df, stratified_folds(df, 5, group='g', seed=seed))[:, [0, 15, 25, 27]] > 0).all()


def uneven(seed):
    "Ten classes in 24 groups of very different sizes; in most such tables the even and the complete split are at odds."
    rng, rows = np.random.RandomState(seed), []
    for g in range(24):
        size, target = (
            int(1 + 60 * rng.random_sample() ** 5),
            [c for c in range(10) if rng.random_sample() < 0.28] or [10],
        )
        rows += [(f'{g}_{i}', HPA28.format(target), g) for i in range(size)]
    return pd.DataFrame(rows, columns=['Id', 'Target', 'g'])


@pytest.mark.parametrize('seed', [0, 1, 7, 8, 12, 14, 17, 21, 41, 59])
def test_few_groups_that_hold_many_classes(seed):
    df = uneven(seed)
    fold, onehot = stratified_folds(df, 5, group='g', seed=seed), HPA28.encode(df.Target)
    groups = np.array([df.g[onehot[:, c] > 0].nunique() for c in range(28)])
    assert (counts(df, fold)[:, groups >= 5] > 0).all()


@pytest.mark.parametrize('group', [None, antibody_of, 'plate'], ids=['none', 'antibody', 'plate'])
def test_any_order_of_rows(table, group):
    fold, part = stratified_folds(table, 4, group=group, seed=3), stratified_parts(table, group=group, seed=3)
    for s in range(3):
        other = table.sample(frac=1, random_state=s)
        assert (stratified_folds(other, 4, group=group, seed=3) == fold[other.index]).all()
        assert (stratified_parts(other.reset_index(drop=True), group=group, seed=3) == part[other.index]).all()


def test_the_name_of_a_group_does_not_matter(table):
    antibody = table.Id.map(antibody_of)
    renamed = 1000 - pd.factorize(antibody)[0]
    as_series = pd.Series(antibody.values, index=pd.Index(table.Id, name='Id')).sample(frac=1, random_state=0)
    fold = stratified_folds(table, 5, group=antibody_of)
    for g in (renamed, list(renamed), antibody.values, as_series):
        assert (stratified_folds(table, 5, group=g) == fold).all()


def test_the_split_is_the_same_on_any_machine(table):
    "Written down once: a change here changes every split that anybody has made."
    digest = lambda a: hashlib.sha256(','.join(map(str, a)).encode()).hexdigest()[:12]
    assert digest(stratified_folds(table, 5, group=antibody_of, seed=1)) == 'a54201f4b4cc'
    assert digest(stratified_folds(table, 5, seed=1)) == 'd859d8186dd1'
    assert digest(stratified_parts(table, group=antibody_of, seed=1)) == 'f6a87b2e1722'


def test_seeds_differ(table):
    folds = [stratified_folds(table, 5, group=antibody_of, seed=s) for s in range(4)]
    assert all((a != b).mean() > 0.5 for i, a in enumerate(folds) for b in folds[:i])


def test_splitter_in_a_datablock(table):
    from fastai.data.block import DataBlock

    train, valid = MultilabelStratifiedSplitter(0.2, group=antibody_of, seed=1)(table)
    assert sorted(train + valid) == list(range(len(table))) and abs(len(valid) / len(table) - 0.2) < 0.005
    ds = DataBlock(
        get_x=lambda r: r.Id,
        get_y=lambda r: r.Target,
        splitter=MultilabelStratifiedSplitter(0.2, group=antibody_of, seed=1),
    ).datasets(table)
    assert [len(ds.train), len(ds.valid)] == [len(train), len(valid)]
    assert ds.valid[0][0] == table.Id[valid[0]]


def test_three_parts(table):
    part = stratified_parts(table, dict(train=0.6, valid=0.25, threshold=0.15), group=antibody_of)
    share = pd.Series(part).value_counts(normalize=True)
    assert (
        abs(share['train'] - 0.6) < 0.01 and abs(share['valid'] - 0.25) < 0.01 and abs(share['threshold'] - 0.15) < 0.01
    )
    assert pd.Series(part).groupby(table.Id.map(antibody_of).to_numpy()).nunique().max() == 1


def test_labels_of_another_set():
    rng = np.random.default_rng(0)
    df = pd.DataFrame({'Image': range(100), 'Label': [str(i) for i in rng.integers(0, 10, 100)]})
    fold, cls = stratified_folds(df, 5, labels='ztg10'), df.Label.astype(int).to_numpy()
    assert (
        np.abs(np.stack([np.bincount(cls[fold == f], minlength=10) for f in range(5)]) - np.bincount(cls) / 5).max()
        <= 1
    )


def test_missing_groups_stand_alone(table):
    codes = group_codes(table.assign(g=np.where(np.arange(len(table)) < 50, 'one', None)), 'g')
    assert len(np.unique(codes[:50])) == 1 and len(np.unique(codes[50:])) == len(table) - 50


def test_join_groups():
    assert join_groups(['A', 'A', 'B', 'C', 'D'], [0, 1, 1, 2, 3], ['x', 'y', 'z', 'w', 'w']).tolist() == [
        0,
        0,
        0,
        1,
        1,
    ]


def test_antibodies():
    assert [antibody_of(i) for i in ('10580_1610_C1_1', '66194_1747_H5_14_cr58065a33e0124', '21679_si28_B7_4')] == [
        '10580',
        '66194',
        '21679',
    ]
    assert [antibody_of(i) for i in ('800_A6_1', '1_mixed_img95', 'ab_12', 17)] == [
        '800_A6_1',
        '1_mixed_img95',
        'ab_12',
        '17',
    ]


def test_too_few_groups(table):
    with pytest.raises(SplitError, match='3 groups cannot fill 5 parts'):
        stratified_folds(table, 5, group=np.arange(len(table)) % 3)


def test_a_group_with_most_images(table):
    one = np.where(np.arange(len(table)) < 0.6 * len(table), -1, np.arange(len(table)))
    with pytest.raises(SplitError, match='holds 60% of the images'):
        stratified_folds(table, 5, group=one)
    with pytest.warns(UserWarning, match='holds 60% of the images'):
        train, valid = MultilabelStratifiedSplitter(0.2, group=one)(table)
    assert set(np.flatnonzero(one == -1)) <= set(train) and abs(len(valid) / len(table) - 0.2) < 0.02


bad = {
    'folds: 1 is not a whole number from 2': lambda t: stratified_folds(t, 1),
    "no column 'well'": lambda t: stratified_folds(t, 5, group='well'),
    '2 groups for': lambda t: stratified_folds(t, 5, group=[1, 2]),
    "no column 'Id'": lambda t: stratified_folds(t.drop(columns='Id'), 5),
    "no column 'Target'": lambda t: stratified_folds(t.drop(columns='Target'), 5),
    'no rows': lambda t: stratified_folds(t[:0], 5),
    'valid_pct: 1.2 is not': lambda t: MultilabelStratifiedSplitter(1.2)(t),
    'label 28': lambda t: stratified_folds(t.assign(Target='28'), 5),
    'row 1 has no label': lambda t: stratified_folds(t.assign(Target=['1', None] + ['1'] * (len(t) - 2)), 5),
}


@pytest.mark.parametrize('message', bad)
def test_bad_input(table, message):
    with pytest.raises(HPAError, match=message) as e:
        bad[message](table)
    assert '\n' not in str(e.value)


def test_check_of_a_sound_split(table):
    fold = stratified_folds(table, 5, group=antibody_of)
    check = check_split(table, fold, group=antibody_of)
    assert list(check.table['images']) == list(HPA28.encode(table.Target).sum(0, dtype=int))
    assert (check.table[[str(f) for f in range(5)]].to_numpy().T == counts(table, fold)).all()
    assert not [f for f in check.faults if 'more than one part' in f]


def test_a_class_without_images_is_named(table):
    assert 'no image of Rods & rings' in ' | '.join(
        check_split(table.assign(Target='0 ' + ' '.join(map(str, range(27)))), np.arange(len(table)) % 2).faults
    )


def test_check_finds_leaks_and_gaps(hpav18):
    part = np.where(np.random.default_rng(0).random(len(hpav18)) < 0.2, 'valid', 'train')
    faults = ' | '.join(check_split(hpav18, part).faults)
    assert 'antibodies are in more than one part' in faults and 'pass group=antibody_of' in faults
    rare = HPA28.encode(hpav18.Target)[:, 15] > 0
    assert 'valid has no image of Microtubule ends' in ' | '.join(
        check_split(hpav18, np.where(rare, 'train', part)).faults
    )
    doubles = pd.Series('same', index=pd.Index(hpav18.Id[:50], name='Id'))
    good = stratified_folds(hpav18, 5, group=antibody_of)
    assert check_split(hpav18, good, group=antibody_of).ok
    assert '1 sets of near-duplicates' in ' | '.join(
        check_split(hpav18, good, group=antibody_of, duplicates=doubles).faults
    )


def test_check_of_row_lists(table):
    n = len(table)
    faults = check_split(table, (range(0, n - 10), range(n - 20, n - 5)), group=antibody_of).faults
    assert '5 rows are in no part' in faults and '10 rows are in several parts' in faults
    with pytest.raises(SplitError, match='beyond'):
        check_split(table, ([0], [n]))
    with pytest.warns(UserWarning, match='rows are in several parts'):
        check_split(table, ([*range(n)], [0])).warn()


def test_one_split_gets_one_advice_about_groups():
    df = pd.DataFrame(dict(Id=[f'{i//2}_1_A1_{i%2}' for i in range(60)], Target=[str(i//2%3) for i in range(60)]))
    halves = [list(range(0, 60, 2)), list(range(1, 60, 2))]
    def advice(df): return [fault for fault in check_split(df, halves, labels=HPA28).faults if '--group' in fault]
    (of_ids,), (of_column,) = advice(df), advice(df.assign(antibody=df.Id.str.split('_').str[0]))
    assert 'pass group=antibody_of' in of_ids and "add group='antibody'" in of_column
    (of_ids,) = advice(df.assign(plate=[i//20 for i in range(60)]))
    assert 'pass group=antibody_of' in of_ids


def test_a_split_of_ones_own_is_advised_to_keep_groups_together():
    "Groups given beside it would be refused, so no advice asks for them"
    df = pd.DataFrame(dict(Id=[f'{i//2}_1_A1_{i%2}' for i in range(60)], Target=[str(i//2%3) for i in range(60)]))
    halves = [list(range(0, 60, 2)), list(range(1, 60, 2))]
    for table in (df, df.assign(antibody=df.Id.str.split('_').str[0])):
        faults = ' | '.join(check_split(table, halves, labels=HPA28, way='valid_col').faults)
        assert 'let valid_col keep them together, or pass group=False' in faults
        assert 'antibody_of' not in faults and '--group' not in faults
    marked = df.assign(is_valid=[i > 50 for i in range(60)])
    with pytest.raises(SplitError, match='valid_col divides 1 group of images'):
        train_valid_rows(marked, valid_col='is_valid', group=antibody_of)


@pytest.mark.parametrize('number', [2, -2, np.int64(2)])
def test_a_column_by_its_number(number):
    df = pd.DataFrame(dict(Id=[*'abcdef'], is_bad=[True]*6, is_valid=[False]*4+[True]*2, Target='0'))
    assert split_by_column(df, number) == ([0, 1, 2, 3], [4, 5])


@pytest.mark.parametrize('wrong', [True, False, np.True_])
def test_truth_is_no_column(wrong):
    df = pd.DataFrame(dict(Id=[*'abcdef'], is_valid=[False]*4+[True]*2))
    with pytest.raises(SplitError, match='valid_col: (True|False) is no column; give its name'):
        split_by_column(df, wrong)


def said_of(split):
    "Warnings of a split"
    import warnings
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        split()
    return [str(one.message) for one in said]


def test_two_huge_groups_are_named_where_they_make_validation_small():
    "Twenty per cent were asked for, and 46 % fit in no part of that size: half of it was left, without a word"
    groups = ['plate 1']*46 + ['plate 2']*44 + [f'well {i}' for i in range(10)]
    df = pd.DataFrame({'Id': [f'i{i}' for i in range(100)], 'Target': ['0', '5']*50, 'plate': groups})
    for split in (MultilabelStratifiedSplitter(.2, 'plate'), lambda df: train_valid_rows(df, group='plate'),
                  lambda df: stratified_parts(df, dict(train=.8, valid=.2), 'plate')):
        assert said_of(lambda split=split: split(df)) == [
            'valid holds 10% of the images instead of 20%, because no group may be divided: plate 1 has 46%, '
            'plate 2 has 44%']
    said, = said_of(lambda: stratified_folds(df, 5, 'plate'))
    assert re.search(r'fold \d holds 46% of the images instead of 20%', said) and 'plate 1 has 46%' in said


def test_an_even_split_says_nothing(table):
    assert said_of(lambda: MultilabelStratifiedSplitter(.2, antibody_of)(table)) == []
    assert said_of(lambda: stratified_folds(table, 5, antibody_of)) == []
    few = pd.DataFrame({'Id': list('abcdefg'), 'Target': ['0']*7})
    assert said_of(lambda: MultilabelStratifiedSplitter(.2)(few)) == []


def test_middling_groups_that_fit_nowhere_are_said():
    df = pd.DataFrame({'Id': [f'i{i}' for i in range(120)], 'Target': '0', 'plate': np.repeat(list('abcdef'), 20)})
    said, = said_of(lambda: stratified_folds(df, 5, 'plate'))
    assert 'holds 33% of the images instead of 20%' in said and 'a has 17%' in said and '3 more' in said
