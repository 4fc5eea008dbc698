"A plan lists what find_images lists, with the same Ids, in any number of pieces."
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hpa_fastai.basics.errors import HPAError
from hpa_fastai.cli.main import main
from hpa_fastai.data.files import find_images
from hpa_fastai.data.folders import FIELD_COLUMNS
from hpa_fastai.formats.names import CHANNELS
from hpa_fastai.scale import planning
from hpa_fastai.scale.manifest import read_plan
from hpa_fastai.scale.planning import make_plan
from hpa_fastai.simulate.atlas import simulate_atlas
from microscopes import write_image_xpress, write_operetta, write_yokogawa, write_zarr_plate

pytest.importorskip('pyarrow')
pytestmark = pytest.mark.filterwarnings('ignore')


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pictures')
    simulate_atlas(folder, n=12, size=32, seed=0, progress=False)
    return find_images(folder/'train')


def fields_of(plan): return pd.concat([plan.shard(n) for n in range(plan.n_shards)], ignore_index=True)


def assert_same(plan, table):
    "The fields of a plan are those of a table of find_images, and so is all that is known of them"
    fields = fields_of(plan)
    assert fields[FIELD_COLUMNS].to_numpy().tolist() == table[FIELD_COLUMNS].to_numpy().tolist()
    assert list(fields) == list(table)
    for c in table.columns.difference(FIELD_COLUMNS):
        assert fields[c].astype(str).tolist() == table[c].astype(str).tolist()


LAYOUTS = {  # name: where the files of field n go
    'flat': lambda n, c: f'{n}_{c}.png',
    'a folder a plate': lambda n, c: f'plate{n%3}/{n}_{c}.png',
    'the same names in each folder': lambda n, c: f'plate{n%3}/{n//3}_{c}.png',
    'deeper': lambda n, c: f'plate{n%2}/day{n%3}/{n//6}_{c}.png',
    'a folder a channel': lambda n, c: f'{c}/{n}_{c}.png',
    'a folder a field': lambda n, c: f'field{n}/image_{c}.png',
    'beside pictures': lambda n, c: f'plate{n%3}/{n}_{c}.png' if n else f'{n}_{c}.png',
}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_folders_in_pieces_have_the_ids_of_the_whole(pictures, tmp_path, layout):
    for n, row in pictures.iterrows():
        for c in CHANNELS:
            file = tmp_path/'images'/LAYOUTS[layout](n, c)
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(row[c], file)
    plan = make_plan(tmp_path/'images', tmp_path/'plan', shard_size=5, progress=False)
    assert_same(plan, find_images(tmp_path/'images'))


@pytest.mark.parametrize('write', [write_image_xpress, write_yokogawa, write_zarr_plate])
def test_plates_are_planned_with_what_the_microscope_says(tmp_path, write):
    (tmp_path/'images').mkdir()
    ending = '.zarr' if write is write_zarr_plate else ''
    for name in ('one', 'two'): write(tmp_path/'images'/f'{name}{ending}')
    table = find_images(tmp_path/'images')
    assert_same(make_plan(tmp_path/'images', tmp_path/'plan', shard_size=3, progress=False), table)


def test_a_missing_channel_stays_missing(pictures, tmp_path):
    "None is None: readers ask whether there is a file"
    shutil.copytree(Path(pictures.green[0]).parent, tmp_path/'images')
    for file in sorted((tmp_path/'images').glob('*_yellow.png'))[::2]: file.unlink()
    plan = make_plan(tmp_path/'images', tmp_path/'plan', shard_size=5, progress=False)
    assert_same(plan, find_images(tmp_path/'images'))
    assert fields_of(plan).yellow[0] is None


def test_masks_in_a_folder_of_their_own_are_no_fields(pictures, tmp_path):
    for folder in ('images', 'masks'): (tmp_path/'data'/folder).mkdir(parents=True)
    for _, row in pictures.iterrows():
        for c in CHANNELS: shutil.copy(row[c], tmp_path/'data'/'images')
        shutil.copy(row.blue, tmp_path/'data'/'masks'/f'{row.Id}.png')
    plan = make_plan(tmp_path/'data', tmp_path/'plan', progress=False)
    assert fields_of(plan).Id.tolist() == pictures.Id.tolist()


def test_long_tables_in_pieces_are_as_short_ones(pictures, tmp_path, monkeypatch):
    "Delimiters, quotes, relative paths, a second path and further columns too"
    for c in CHANNELS: shutil.copy(pictures[c][0], tmp_path/f'{c}.png')
    ids = np.random.default_rng(0).permutation([f'field "{n}", é' for n in range(500)])
    table = pd.DataFrame({'Id': ids, **{c: f'{c}.png' for c in CHANNELS}, 'gene': [f'G{n%7}' for n in range(500)],
                          'pixel_size': '0.16'})
    for sep in (',', ';', '\t'):
        table.to_csv(tmp_path/'paths.csv', index=False, sep=sep)
        made = []
        for longest in (2**40, 0):
            monkeypatch.setattr(planning, '_LONG_TABLE', longest)
            monkeypatch.setattr(planning, '_ROWS', 100)
            out = tmp_path/f'plan{longest}'
            made.append(make_plan(tmp_path/'paths.csv', out, shard_size=30, force=True, progress=False))
        assert made[0].files == made[1].files and made[0].hash == made[1].hash
        assert fields_of(made[0]).Id.tolist() == sorted(ids)
    assert_same(made[1], find_images(tmp_path/'paths.csv').assign(
        **{c: str(tmp_path/f'{c}.png') for c in CHANNELS}))


def test_an_id_twice_is_found_wherever_it_is(pictures, tmp_path, monkeypatch):
    "In pieces that are far apart, in a folder and a table, and within one table"
    monkeypatch.setattr(planning, '_LONG_TABLE', 0)
    monkeypatch.setattr(planning, '_ROWS', 100)
    ids = [f'f{n}' for n in range(1000)]
    table = pd.DataFrame(dict(Id=[*ids, 'f17'], path=pictures.green[0]))
    table.to_csv(tmp_path/'paths.csv', index=False)
    with pytest.raises(HPAError, match="the Id 'f17' stands for two fields of view"):
        make_plan(tmp_path/'paths.csv', tmp_path/'plan', progress=False)
    table[:5].assign(Id=[*ids[:4], pictures.Id[3]]).to_csv(tmp_path/'few.csv', index=False)
    with pytest.raises(HPAError, match=f"the Id '{pictures.Id[3]}' stands for two"):
        make_plan([Path(pictures.green[0]).parent, tmp_path/'few.csv'], tmp_path/'plan', progress=False)
    assert not (tmp_path/'plan').exists()


def test_the_command_says_what_is_missing(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    table = pd.DataFrame(dict(Id=['a', 'b', 'c'], path=[pictures.green[0], 'gone.png', pictures.green[1]]))
    table.to_csv('paths.csv', index=False)
    assert main(['plan', 'paths.csv', '--no-progress']) == 1
    said = capsys.readouterr()
    assert 'plan: 3 fields of view in 1 shard' in said.out and 'the first is b' in said.err
    assert main(['plan', 'paths.csv', '--no-progress']) == 2 and 'exists' in capsys.readouterr().err
    assert main(['plan', 'paths.csv', '--no-sizes', '--force', '--no-progress']) == 0
    assert np.isnan(read_plan('plan').sizes(0)).all()
    assert main(['plan', 'nowhere', '--out', 'other']) == 2 and main(['gather', 'nowhere']) == 2
    assert 'hpa_fastai plan IMAGES' in capsys.readouterr().err


def test_without_pyarrow_one_line_says_what_to_install(pictures, tmp_path, monkeypatch):
    import sys
    for name in [o for o in sys.modules if o.split('.')[0] == 'pyarrow']: monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'pyarrow', None)
    with pytest.raises(HPAError, match=r"pip install 'hpa_fastai\[parquet\]'"):
        make_plan(Path(pictures.green[0]).parent, tmp_path/'plan', progress=False)


def test_columns_that_differ_between_sources_become_texts(pictures, tmp_path):
    "As in one table; a column that holds no values of one kind is left out, as in results"
    green = pictures.green
    pd.DataFrame(dict(Id=['a'], path=green[:1], row=['A'], file_bytes=['mine'])).to_csv(tmp_path/'a.csv', index=False)
    pd.DataFrame(dict(Id=['b'], path=green[1:2], row=[1])).to_csv(tmp_path/'b.csv', index=False)
    plan = make_plan([tmp_path/'a.csv', tmp_path/'b.csv'], tmp_path/'plan', progress=False)
    fields = fields_of(plan)
    assert fields.row.tolist() == ['A', '1'] and fields.file_bytes.tolist() == ['mine', '']
    table = pd.DataFrame(dict(Id=['a', 'b'], path=[o.encode() for o in green[:2]], places=[[1, 2], [3]]))
    table.set_index('Id').to_parquet(tmp_path/'odd.parquet')
    odd = make_plan(tmp_path/'odd.parquet', tmp_path/'odd', progress=False)
    assert fields_of(odd).green.tolist() == green[:2].tolist() and 'places' not in fields_of(odd)


@pytest.mark.parametrize('encoding', ['utf-16', 'cp1252'])
def test_long_tables_may_have_the_encodings_of_short_ones(pictures, tmp_path, monkeypatch, encoding):
    monkeypatch.setattr(planning, '_LONG_TABLE', 0)
    table = pd.DataFrame(dict(Id=['Zürich', 'b'], path=pictures.green[:2]))
    table.to_csv(tmp_path/'a.csv', index=False, encoding=encoding)
    plan = make_plan(tmp_path/'a.csv', tmp_path/'plan', progress=False)
    assert fields_of(plan).Id.tolist() == ['Zürich', 'b']
    (tmp_path/'b.csv').write_text('Id,path\na,b\nc,d,e,f,g\n')
    with pytest.raises(HPAError, match='b.csv: not a table of paths'): make_plan(tmp_path/'b.csv', tmp_path/'no')


def test_mixed_microscopes_have_their_columns_in_one_order(tmp_path):
    write_operetta(tmp_path/'images'/'op', [(3, 3)])
    write_image_xpress(tmp_path/'images'/'ix')
    (tmp_path/'images'/'png').mkdir()
    simulate_atlas(tmp_path/'atlas', n=2, size=32, progress=False)
    for file in (tmp_path/'atlas'/'train').iterdir(): shutil.copy(file, tmp_path/'images'/'png')
    assert_same(make_plan(tmp_path/'images', tmp_path/'plan', progress=False), find_images(tmp_path/'images'))


def test_two_runs_never_make_one_plan(pictures, tmp_path, monkeypatch):
    "The slower one does not replace the plan of the other, nor what was made of it"
    images, real, made = Path(pictures.green[0]).parent, planning.source_tables, []
    def slowly(*arguments):
        if not made:
            made.append('begun')
            with pytest.raises(HPAError, match='another run is making a plan there'):
                make_plan(images, tmp_path/'plan', progress=False)
            (tmp_path/'plan').mkdir()
            (tmp_path/'plan'/'mine.txt').touch()
        return real(*arguments)
    monkeypatch.setattr(planning, 'source_tables', slowly)
    with pytest.raises(HPAError, match='exists and is no plan'): make_plan(images, tmp_path/'plan', progress=False)
    assert sorted(o.name for o in tmp_path.iterdir()) == ['plan'] and (tmp_path/'plan'/'mine.txt').exists()
