"Corrected labels change what is learned and judged, and never which images are learned from and judged."
import numpy as np
import pytest

from hpa_fastai.basics.errors import HPAError
from hpa_fastai.batches.loaders import HPADataLoaders
from hpa_fastai.batches.splits import antibody_of
from hpa_fastai.data.corrections import Corrections, merge_corrections
from hpa_fastai.data.files import find_images
from hpa_fastai.data.label_tables import read_labels
from hpa_fastai.data.labels import HPA28


@pytest.fixture(scope='module')
def table(small_atlas): return read_labels(small_atlas/'train.csv', HPA28)


@pytest.fixture(scope='module')
def corrected(table, tmp_path_factory):
    "Corrections of every second image, which would make another split"
    mine = Corrections(tmp_path_factory.mktemp('corrected')/'corrections.csv', HPA28)
    for k, Id in enumerate(table.Id[::2]): mine.add(Id, str(k%3))
    return mine.file


def make(small_atlas, tmp_path_factory, corrections=None, **kwargs):
    cache = tmp_path_factory.getbasetemp()/'cache of corrected'
    return HPADataLoaders.from_csv(
        small_atlas, size=32, bs=16, cache=cache, progress=False, corrections=corrections, **kwargs)


def ids(dls): return [dl.dataset.items.Id.tolist() for dl in dls.loaders]


WAYS = [dict(), dict(group='antibody'), dict(group=antibody_of), dict(valid_pct=.3), dict(fold=2, group='antibody'),
        dict(seed=7)]

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('way', WAYS, ids=lambda way: '-'.join(way) or 'default')
def test_images_keep_their_side(small_atlas, table, corrected, tmp_path_factory, way):
    before, after = (make(small_atlas, tmp_path_factory, file, **way) for file in (None, corrected))
    assert ids(after) == ids(before)
    target = dict(zip(table.Id, table.Target))
    for k, Id in enumerate(table.Id[::2]): target[Id] = str(k%3)
    for dl in after.loaders:
        items = dl.dataset.items
        assert HPA28.encode(items.Target).tolist() == HPA28.encode([target[Id] for Id in items.Id]).tolist()
        assert dl.targets.tolist() == HPA28.encode(items.Target).tolist()
    assert after.corrections.n_changed + after.corrections.n_same == len(table.Id[::2]) and before.corrections is None


@pytest.mark.filterwarnings('ignore')
def test_corrected_labels_would_make_another_split(small_atlas, table, corrected, tmp_path_factory):
    "Without which the test above would say nothing"
    merged = merge_corrections(table, corrected, HPA28)[0]
    before = make(small_atlas, tmp_path_factory, group='antibody')
    naive = HPADataLoaders.from_df(merged, small_atlas/'train', size=32, bs=16, cache=False, progress=False,
                                   group='antibody')
    assert ids(naive) != ids(before)


@pytest.mark.filterwarnings('ignore')
def test_other_ways_to_split_are_kept_too(small_atlas, table, corrected, tmp_path):
    df = table.assign(valid=[k%4 == 0 for k in range(len(table))])
    common = dict(size=32, bs=16, cache=tmp_path/'cache', progress=False)
    def split(df): return np.flatnonzero(df.Target != '16').tolist(), np.flatnonzero(df.Target == '16').tolist()
    by_row = [k//3 for k in range(len(table))]
    for way in (dict(valid_col='valid'), dict(splitter=split), dict(group=by_row), dict(group=np.array(by_row))):
        before, after = (HPADataLoaders.from_df(df, small_atlas/'train', **common, **way, corrections=file)
                         for file in (None, corrected))
        assert ids(after) == ids(before)


@pytest.mark.filterwarnings('ignore')
def test_added_fields_of_view_are_trained_on_alone(small_atlas, table, tmp_path):
    few, others = table[15:], table[:15]
    common = dict(size=32, bs=16, cache=tmp_path/'cache', progress=False, group='antibody')
    before = HPADataLoaders.from_df(few, small_atlas/'train', **common)
    mine = Corrections(tmp_path/'c.csv', HPA28)
    for row in others.itertuples(): mine.add(row.Id, row.Target)
    after = HPADataLoaders.from_df(few, small_atlas/'train', **common, corrections=mine.file)
    assert ids(after)[1] == ids(before)[1]
    assert ids(after)[0] == ids(before)[0] + others.Id.tolist() and after.corrections.added == others.Id.tolist()
    assert len(after.train.weights) == len(after.train_ds)


@pytest.mark.filterwarnings('ignore:(train|valid|.*no row in the table)')
def test_an_added_field_of_view_of_a_group_that_is_judged_is_left_out(small_atlas, table, tmp_path):
    antibodies = table.Id.map(antibody_of)
    judged = antibodies[antibodies.duplicated()].iloc[0]
    new = table.Id[antibodies == judged].iloc[-1]
    df = table.assign(valid=antibodies.isin([judged, *antibodies.unique()[-5:]]))
    few, more = df[df.Id != new], df.loc[df.Id == new, ['Id', 'Target']]
    common = dict(size=32, bs=16, cache=tmp_path/'cache', progress=False, group=antibody_of, valid_col='valid')
    plain = HPADataLoaders.from_df(few, small_atlas/'train', **common)
    with pytest.warns(UserWarning, match=f'1 of 1 added fields of view belong to groups of validation images.*{new}'):
        after = HPADataLoaders.from_df(few, small_atlas/'train', **common, corrections=more)
    assert ids(after) == ids(plain)


@pytest.mark.filterwarnings('ignore')
def test_the_file_is_found_as_tables_are(small_atlas, table, tmp_path, tmp_path_factory, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Corrections('mine.csv', HPA28).add(table.Id[0], 'Cytosol')
    assert make(small_atlas, tmp_path_factory, 'mine.csv').corrections.n_changed <= 1
    assert capsys.readouterr().out.count('Corrections: ') == 1
    assert make(small_atlas, tmp_path_factory, 'train.csv').corrections.n_same == len(table)  # the table itself
    with pytest.raises(HPAError, match='no such file or folder; did you mean'):
        make(small_atlas, tmp_path_factory, 'mime.csv')


def test_corrections_of_other_images_change_nothing_and_say_so(small_atlas, tmp_path, tmp_path_factory, capsys):
    mine = Corrections(tmp_path/'c.csv', HPA28)
    for k in range(5): mine.add(f'elsewhere{k}', 'Cytosol')
    dls = make(small_atlas, tmp_path_factory, mine.file, group='antibody')
    assert dls.corrections.n_changed == 0 and len(find_images(small_atlas/'train')) == sum(map(len, ids(dls)))
    assert '5 corrected Ids have neither a row in the table nor an image' in capsys.readouterr().out
    for k in range(5): assert mine.undo(f'elsewhere{k}')
    make(small_atlas, tmp_path_factory, mine.file, group='antibody')
    assert 'labels of 0 fields of view changed' in capsys.readouterr().out
