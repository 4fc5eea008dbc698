"Several data folders become one table, which is at once the labels and the list of pictures."
import pandas as pd
import pytest

from hpa_fastai.atlas.sources import join_sources
from hpa_fastai.basics.errors import HPAError
from hpa_fastai.batches.loaders import HPADataLoaders
from hpa_fastai.data.labels import LabelError
from hpa_fastai.simulate.atlas import simulate_atlas


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    "A competition without antibodies, and an atlas with names of classes"
    base = tmp_path_factory.mktemp('sources')
    for k, name in enumerate(('hpa2018', 'hpav18')):
        simulate_atlas(base/name, n=8, size=48, seed=k, balance='even', difficulty='easy', progress=False)
    table = pd.read_csv(base/'hpa2018'/'train.csv')
    new = {Id: f'{i:08x}-bb99' for i, Id in enumerate(table.Id)}
    for file in (base/'hpa2018'/'train').iterdir():
        Id, _, rest = file.name.rpartition('_')
        file.rename(file.with_name(f'{new[Id]}_{rest}'))
    table.assign(Id=table.Id.map(new))[['Id', 'Target']].to_csv(base/'hpa2018'/'train.csv', index=False)
    return base


def test_two_sources_become_one_table(folders, tmp_path):
    both = join_sources([folders/'hpa2018', folders/'hpav18'], folders/'both.csv', force=True)
    assert both.source.value_counts().to_dict() == {'hpa2018': 8, 'hpav18': 8}
    own = both[both.source == 'hpa2018']
    assert (own.antibody == own.Id).all() and both.antibody.iloc[-1].startswith('HPA')
    assert both.red.iloc[0].startswith('hpa2018/train/')  # relative to the table
    dls = HPADataLoaders.from_csv(folders, 'both.csv', 'both.csv', group='antibody', size=32, bs=4, cache=False,
                                  progress=False)
    assert dls.train.n + dls.valid.n == 16
    elsewhere = join_sources({'a': folders/'hpa2018', 'b': folders/'hpav18'}, tmp_path/'both.csv')
    assert set(elsewhere.source) == {'a', 'b'} and elsewhere.red.iloc[0] == str(folders/both.red.iloc[0])


def test_an_image_of_two_sources_is_taken_once(folders, tmp_path):
    with pytest.warns(UserWarning, match='8 Ids are in several folders'):
        both = join_sources({'a': folders/'hpav18', 'b': folders/'hpav18'}, tmp_path/'both.csv')
    assert set(both.source) == {'a'} and len(both) == 8


def test_what_can_not_be_joined(folders, tmp_path):
    with pytest.raises(HPAError, match='two data folders or more'): join_sources([folders/'hpav18'], tmp_path/'x.csv')
    (tmp_path/'x.csv').write_text('mine')
    with pytest.raises(HPAError, match='x.csv exists'):
        join_sources([folders/'hpa2018', folders/'hpav18'], tmp_path/'x.csv')
    with pytest.raises(HPAError, match='none: no such file or folder'):
        join_sources([folders/'hpa2018', folders/'none'], tmp_path/'y.csv')
    with pytest.raises(LabelError): join_sources([folders/'hpa2018', folders/'hpav18'], tmp_path/'y.csv', 'ztg10')
    assert (tmp_path/'x.csv').read_text() == 'mine' and not (tmp_path/'y.csv').exists()
