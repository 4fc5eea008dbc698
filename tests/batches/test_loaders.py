"DataLoaders: leak-free splits, oversampling in training alone, and the same pixels with and without a cache."

import inspect
import multiprocessing
import pickle
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.core import DataLoaders
from fastai.vision.all import DisplayedTransform, FlipItem, RandomResizedCrop, aug_transforms

from hpa_fastai.all import MeanAP, NormalizeRGBY, Predictor, TensorRGBY, TrainingBar, hpa_learner, predict_cells
from hpa_fastai.batches.dataloader import HPADataLoader
from hpa_fastai.batches.dataloader import effective_sample, order_of, rarity_weights
from hpa_fastai.batches.loaders import HPADataBlock, HPADataLoaders
from hpa_fastai.batches.settings import ImageSettings
from hpa_fastai.batches.sources import dataset_stats
from hpa_fastai.basics.errors import ImageError
from hpa_fastai.data.files import attach_images, find_images
from hpa_fastai.data.labels import HPA28, HPAError, LabelError
from hpa_fastai.data.label_tables import read_labels
from hpa_fastai.data.reader import ImageReader
from hpa_fastai.formats.addresses import parse_address
from hpa_fastai.formats.names import CHANNELS
from hpa_fastai.simulate.atlas import simulate_atlas
from microscopes import write_image_xpress


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp('cache')


def loaders(path, cache, **kwargs):
    return HPADataLoaders.from_csv(path, size=32, bs=16, cache=cache, progress=False, **kwargs)


def test_every_class_is_on_both_sides(small_atlas, cache):
    dls = loaders(small_atlas, cache)
    train, valid = (HPA28.encode(ds.items.Target).sum(0) for ds in (dls.train_ds, dls.valid_ds))
    total = train + valid
    assert ((train > 0) & (valid > 0))[total >= 5].all()
    assert abs(len(dls.valid_ds) / 90 - 0.2) < 0.03


def test_groups_are_never_divided(small_atlas, cache):
    dls = loaders(small_atlas, cache, group='antibody')
    assert not set(dls.train_ds.items.antibody) & set(dls.valid_ds.items.antibody)


def test_folds_cover_everything_once(small_atlas, cache):
    valid = [set(loaders(small_atlas, cache, fold=k, folds=3).valid_ds.items.Id) for k in range(3)]
    assert sum(map(len, valid)) == 90 == len(set.union(*valid))


@pytest.mark.parametrize('own', ['valid_col', 'splitter'])
def test_a_split_of_ones_own(small_atlas, cache, own):
    df = read_labels(small_atlas / 'train.csv')
    df['held_out'] = ['True' if i % 4 == 0 else 'false' for i in range(90)]
    split = (
        dict(valid_col='held_out')
        if own == 'valid_col'
        else dict(splitter=lambda o: (list(range(30)), np.arange(60, 90)))
    )
    dls = HPADataLoaders.from_df(df, small_atlas / 'train', size=32, bs=16, cache=cache, progress=False, **split)
    want = (df.Id[df.held_out == 'false'], df.Id[::4]) if own == 'valid_col' else (df.Id[:30], df.Id[60:])
    assert [ds.items.Id.tolist() for ds in (dls.train_ds, dls.valid_ds)] == [o.tolist() for o in want]
    assert len(dls.train.weights) == len(dls.train_ds)


@pytest.mark.parametrize('loaded', [False, True])
def test_the_number_of_a_column_is_that_of_the_file(small_atlas, cache, tmp_path, loaded):
    "Reading puts Id and Target first, which moves the others"
    df = read_labels(small_atlas/'train.csv')[['Id', 'Target']]
    df = pd.DataFrame(dict(Id=df.Id, is_bad=np.arange(90) < 45, is_valid=np.arange(90) % 4 == 0, Target=df.Target))
    df.to_csv(tmp_path/'own.csv', index=False)
    csv = df if loaded else tmp_path/'own.csv'
    for number in (2, -2):
        dls = loaders(small_atlas, cache, csv=csv, valid_col=number)
        assert dls.valid_ds.items.Id.tolist() == df.Id[df.is_valid].tolist()
    for wrong in (True, False):
        with pytest.raises(HPAError, match='is no column'): loaders(small_atlas, cache, csv=csv, valid_col=wrong)
    with pytest.raises(HPAError, match='no column number 4; it has 4'):
        loaders(small_atlas, cache, csv=csv, valid_col=4)


def test_advice_for_a_split_of_ones_own_can_be_followed(small_atlas, cache):
    df = read_labels(small_atlas/'train.csv').assign(is_valid=np.arange(90) < 45)
    with pytest.warns(UserWarning, match="groups of column 'antibody' are in .*; let valid_col keep them together"):
        loaders(small_atlas, cache, csv=df, valid_col='is_valid')


@pytest.mark.parametrize(
    'kwargs, words',
    [
        (dict(valid_col='nothing'), "no column 'nothing'"),
        (dict(valid_col='Id'), 'neither True nor False'),
        (dict(valid_col='all'), 'both need some'),
        (dict(fold=0, valid_col='all'), 'give one of them'),
        (dict(splitter=lambda o: [[0], [1], [2]]), 'gives 3 parts'),
    ],
)
def test_splits_that_are_none(small_atlas, cache, kwargs, words):
    df = read_labels(small_atlas / 'train.csv').assign(all=True)
    with pytest.raises(HPAError, match=words):
        HPADataLoaders.from_df(df, small_atlas / 'train', size=32, cache=cache, progress=False, **kwargs)


class Darker(DisplayedTransform):
    "Half as bright, or less"

    order = 11

    def __init__(self, factor=0.5):
        self.factor = factor

    def encodes(self, x: TensorRGBY):
        return (x * self.factor).to(x.dtype)


@pytest.mark.parametrize('cached', [True, False])
@pytest.mark.parametrize('kind', ['item_tfms', 'batch_tfms'])
def test_transforms_of_ones_own(small_atlas, cache, tmp_path, kind, cached):
    "Seen in every batch; and no bundle is saved that would not know of them"
    make = lambda **own: loaders(
        small_atlas, cache if cached else False, normalize='dataset', augment=False, num_workers=0, **own
    )
    plain, dark = make(), make(**{kind: Darker()})
    norm = lambda x: (
        x.as_subclass(torch.Tensor) * torch.tensor(plain.settings.std)[:, None, None]
        + torch.tensor(plain.settings.mean)[:, None, None]
    )
    x, y = (norm(d.valid.one_batch()[0]) for d in (plain, dark))
    assert (y - x / 2).abs().max() < 0.01 and x.max() > 0.2
    assert plain.settings_suffice() and not dark.settings_suffice()
    with pytest.warns(UserWarning, match='change validation pictures'):
        learn = hpa_learner(dark, 'lenet5', pretrained=False)
    with pytest.raises(HPAError, match="a bundle can't describe them"):
        learn.save_bundle(tmp_path / 'm')
    assert not (tmp_path / 'm').exists()


def test_transforms_of_the_same_kind_take_the_place_of_ours(small_atlas, cache, tmp_path):
    own = [NormalizeRGBY((0.1,) * 4, (0.2,) * 4), *aug_transforms(size=None)]
    dls = loaders(small_atlas, cache, batch_tfms=own)
    assert dls.settings.mean == (0.1,) * 4 and sum(isinstance(t, NormalizeRGBY) for t in dls.valid.after_batch.fs) == 1
    assert dls.settings_suffice() and dls.one_batch()[0].shape == (16, 4, 32, 32)


def test_what_the_learner_is_made_with_stands_in_its_signature(small_atlas, cache):
    shown = {k: p.default for k, p in inspect.signature(hpa_learner).parameters.items()}
    learn = hpa_learner(loaders(small_atlas, cache), 'lenet5', pretrained=False)
    assert (learn.wd, learn.splitter, learn.opt_func) == tuple(shown[k] for k in ('wd', 'splitter', 'opt_func'))
    assert {'splitter', 'valid_col', 'item_tfms', 'batch_tfms'} <= {
        *inspect.signature(HPADataLoaders.from_csv).parameters
    }


def test_same_seed_same_split(small_atlas, cache):
    ids = [sorted(loaders(small_atlas, cache, seed=s).valid_ds.items.Id) for s in (1, 1, 2)]
    assert ids[0] == ids[1] != ids[2]


def test_cache_and_files_give_the_same_batches(small_atlas, cache):
    with_cache, without = loaders(small_atlas, cache), loaders(small_atlas, False, num_workers=0)
    for (x, y), (u, v) in zip(with_cache.valid, without.valid):
        assert torch.equal(x, u) and torch.equal(y, v) and type(x) is type(u) and type(y) is type(v)


def test_pixels_are_uint8_until_the_device(small_atlas, cache):
    dl = loaders(small_atlas, cache).train
    assert next(iter(dl.create_batches(iter(range(16)))))[0].dtype == torch.uint8


def test_validation_is_neither_augmented_nor_oversampled(small_atlas, cache):
    valid = loaders(small_atlas, cache).valid
    a, b = (torch.cat([x for x, _ in valid]) for _ in range(2))
    assert torch.equal(a, b) and len(a) == len(valid.dataset)
    assert valid.weights is None


def test_rare_classes_are_drawn_more_often():
    targets = HPA28.encode(['0'] * 95 + ['27'] * 5)
    w = rarity_weights(targets, 1.0)
    assert np.isclose(w[:95].sum(), w[95:].sum())
    assert (rarity_weights(targets, 0) == 1).all()


@pytest.mark.parametrize('power', [.5, 1, 3, 10])
@pytest.mark.parametrize('most', [1, 2, 5, 20, 1000])
def test_no_image_is_drawn_over_and_over(power, most):
    "Eleven images of the rarest class among 31,072 were drawn 117 times an epoch each, at a power of 1"
    n = (12885, 8228, 3777, 2513, 1254, 537, 172, 53, 28, 21, 11)
    w = rarity_weights(np.repeat(np.eye(len(n)), n, axis=0), power, most)
    assert w.mean() == pytest.approx(1) and w.max() <= most*(1 + 1e-9)
    assert (np.diff(w) >= -1e-9).all()  # a rarer class is never drawn less often
    if most == 1000 and power == 1: assert w.max() > 50
    capped = w > most*(1 - 1e-9)
    free = rarity_weights(np.repeat(np.eye(len(n)), n, axis=0), power, 1e9)
    ratio = (w/free)[~capped]
    assert not len(ratio) or np.allclose(ratio, ratio[0])  # all others as before, a little more often


def test_an_epoch_draws_no_image_more_often_than_asked(small_atlas, cache):
    for most in (1, 3):
        dl = loaders(small_atlas, cache, oversample=2, most_draws=most).train
        assert dl.weights.max() <= most*(1 + 1e-9) and dl.new().most_draws == most
        drawn = np.mean([np.bincount(dl.get_idxs(), minlength=len(dl.dataset)) for _ in range(400)], 0)
        assert drawn.max() < most + 4*(most/400)**.5


def test_an_epoch_that_is_worth_little_says_so(small_atlas, cache):
    assert effective_sample(np.ones(7)) == 7 and effective_sample([1, 0, 0, 0]) == 1
    with pytest.warns(UserWarning, match=r'oversample=10: .* worth \d+ drawn alike'):
        loaders(small_atlas, cache, oversample=10, most_draws=1000)


def test_an_epoch_can_have_any_number_of_steps(small_atlas, cache):
    dl = loaders(small_atlas, cache).train
    for steps in (2, 11):
        dl.draw = steps * dl.bs
        assert len(dl) == steps == sum(1 for _ in dl)
    dl.draw = None
    assert len(dl) == len(dl.dataset) // 16


def test_drawing_without_weights_shows_every_image(small_atlas, cache):
    dl = loaders(small_atlas, cache, oversample=0).train
    assert sorted(dl.get_idxs()) == list(range(len(dl.dataset)))
    dl.draw = 2 * len(dl.dataset)
    assert np.bincount(dl.get_idxs()).tolist() == [2] * len(dl.dataset)


def test_unreadable_fields_are_left_out_and_named(small_atlas, tmp_path):
    shutil.copytree(small_atlas, tmp_path / 'atlas')
    broken = Path(find_images(tmp_path / 'atlas' / 'train').green[4])
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.warns(UserWarning, match=f'1 of 90 fields of view.*{broken.name}'):
        dls = loaders(tmp_path / 'atlas', tmp_path / 'cache')
    assert len(dls.train_ds) + len(dls.valid_ds) == 89
    assert broken.name.rsplit('_', 1)[0] not in set(dls.train_ds.items.Id) | set(dls.valid_ds.items.Id)


def test_unreadable_fields_are_left_out_without_a_cache_too(small_atlas, tmp_path):
    shutil.copytree(small_atlas, tmp_path / 'atlas')
    Path(find_images(tmp_path / 'atlas' / 'train').green[4]).write_bytes(b'')
    df = read_labels(tmp_path / 'atlas' / 'train.csv')
    with pytest.warns(UserWarning, match='1 of 90'):
        dls = HPADataLoaders.from_df(
            df,
            tmp_path / 'atlas' / 'train',
            size=32,
            cache=False,
            num_workers=0,
            progress=False,
            group=[i.split('_')[0] for i in df.Id],
        )
    assert sum(len(x) for x, _ in dls.valid) == len(dls.valid_ds)


def test_ids_without_images_are_counted_and_named(small_atlas, cache):
    df = pd.concat([read_labels(small_atlas / 'train.csv'), pd.DataFrame(dict(Id=['a_1', 'a_2'], Target=['3', '4']))])
    with pytest.raises(ImageError, match='2 .*a_1, a_2'):
        HPADataLoaders.from_df(df, small_atlas / 'train', size=32, cache=cache)


def test_images_without_labels_are_counted(small_atlas, cache):
    df = read_labels(small_atlas / 'train.csv')
    with pytest.warns(UserWarning, match='10'):
        dls = HPADataLoaders.from_df(df[10:], small_atlas / 'train', size=32, cache=False, num_workers=0)
    assert len(dls.train_ds) + len(dls.valid_ds) == 80


@pytest.mark.parametrize(
    'kwargs, words',
    [
        (dict(csv='none.csv'), 'none.csv'),
        (dict(images='none'), 'none'),
        (dict(fold=7), 'fold 7'),
        (dict(group='plate_x'), 'plate_x'),
        (dict(labels='hpa27'), 'hpa27'),
        (dict(normalize='imagenet'), 'imagenet'),
    ],
)
def test_faults_are_one_line(small_atlas, cache, kwargs, words):
    with pytest.raises(HPAError, match=words) as e:
        loaders(small_atlas, cache, **kwargs)
    assert '\n' not in str(e.value)


def test_label_out_of_range_names_its_row(small_atlas, cache, tmp_path):
    df = read_labels(small_atlas / 'train.csv')
    df.loc[5, 'Target'] = '28'
    df.to_csv(tmp_path / 'train.csv', index=False)
    with pytest.raises(LabelError, match=r'train\.csv.*7.*28'):
        loaders(small_atlas, cache, csv=tmp_path / 'train.csv')


def test_dataset_normalisation_uses_training_images(small_atlas, cache):
    dls = loaders(small_atlas, cache, normalize='dataset')
    mean, std = dataset_stats(dls.train_ds.items, dls.reader)
    assert np.allclose(dls.settings.mean, mean) and np.allclose(dls.settings.std, std)


class Mine(HPADataLoaders):
    "Loaders of somebody's own"


def test_what_only_this_data_has_sits_on_loaders_of_its_own(small_atlas, cache):
    dls = Mine.from_csv(small_atlas, size=32, bs=16, cache=cache, progress=False)
    other = dls.new()
    assert type(dls) is type(other) is Mine and type(dls.test_dl(small_atlas/'train')) is HPADataLoader
    assert hash(dls.settings) == hash(other.settings) and other.set_size(16).settings.size == 16
    assert dls.settings == ImageSettings(ImageReader(size=32))
    assert not {'set_size', 'settings', 'settings_suffice', 'fields'} & {*dir(DataLoaders)}


@pytest.mark.parametrize('asked', ['image', 'source', 'dataset'])
def test_other_figures_in_the_place_of_what_was_asked_for(small_atlas, cache, asked):
    "In loaders of their own: the first ones, whose images and cache they are, stay as they were"
    dls = HPADataLoaders.from_csv(small_atlas, size=32, bs=16, cache=cache, progress=False, normalize=asked)
    before, batch = dls.settings, dls.valid.one_batch()[0]
    for figures in (dict(mean=(.1,)*4, std=(.2,)*4), dict(minmax=True)):
        other = dls.new().normalize_by(**figures)
        assert other.settings == ImageSettings(ImageReader(size=32), 32, **figures)
        for dl in other.loaders: assert dl.settings == other.settings
        pixels = other.valid.cache.batch(other.valid.places[:16])
        assert torch.allclose(other.valid.one_batch()[0].as_subclass(torch.Tensor), other.settings(pixels), atol=1e-5)
        assert other.settings_suffice() and other.new().settings == other.settings
        assert dls.settings == before and torch.equal(dls.valid.one_batch()[0], batch)
        assert torch.isfinite(other.train.one_batch()[0]).all()


def test_block_is_a_plain_datablock(small_atlas):
    items = attach_images(read_labels(small_atlas / 'train.csv'), small_atlas / 'train')
    x, y = HPADataBlock(size=24, augment=False).dataloaders(items, bs=4, num_workers=0).one_batch()
    assert x.shape == (4, 4, 24, 24) and y.shape == (4, 28)


def test_changes_of_a_block_are_kept(small_atlas):
    "Also where the sizes of the pictures make it anew"
    items = attach_images(read_labels(small_atlas/'train.csv'), small_atlas/'train')
    called = []
    def mine(df):
        called.append(len(df))
        return list(range(40)), list(range(40, 90))
    block = HPADataBlock(item_tfms=RandomResizedCrop(32))
    block.splitter = mine
    block = block.new(item_tfms=[RandomResizedCrop(24), Darker()])
    dls = block.dataloaders(items, bs=4, num_workers=0)
    assert called == [90] and len(dls.valid_ds) == 50 and dls.train.held_out
    assert 'Darker' in [type(t).__name__ for t in dls.train.after_item.fs]
    assert dls.one_batch()[0].shape == (4, 4, 24, 24) and dls.settings.size == 24
    assert not dls.settings_suffice() and not HPADataBlock(size=24).dataloaders(items, num_workers=0).train.held_out
    block.item_tfms.append(FlipItem())
    block.batch_tfms.append(Darker())
    dls = block.dataloaders(items, bs=4, num_workers=0)
    assert {'FlipItem', 'Darker'} <= {type(t).__name__ for t in dls.train.after_item.fs}
    assert 'Darker' in [type(t).__name__ for t in dls.train.after_batch.fs]


def test_new_transforms_of_a_block_leave_ours(small_atlas):
    items = attach_images(read_labels(small_atlas/'train.csv'), small_atlas/'train')
    dls = HPADataBlock(size=24, mean=(.1,)*4, std=(.2,)*4).new(batch_tfms=Darker()).dataloaders(items, num_workers=0)
    assert dls.settings.mean == (.1,)*4 and 'Darker' in [type(t).__name__ for t in dls.train.after_batch.fs]


def test_real_mosaics_load_with_their_groups(real_data, tmp_path):
    dls = HPADataLoaders.from_csv(
        real_data / 'mosaic', images='images', group='group', size=64, cache=tmp_path, progress=False
    )
    assert len(dls.train_ds) + len(dls.valid_ds) == 245
    assert not set(dls.train_ds.items.group) & set(dls.valid_ds.items.group)
    x, _ = dls.valid.one_batch()
    assert torch.isfinite(x).all()


@pytest.fixture
def spawned(monkeypatch):
    "Processes are started as on Windows, on macOS and in services; the list of those that were"
    started, before, Spawned = [], multiprocessing.get_start_method(), multiprocessing.get_context('spawn').Process
    launch = Spawned._Popen
    monkeypatch.setattr(Spawned, '_Popen', staticmethod(lambda process: (started.append(process), launch(process))[1]))
    multiprocessing.set_start_method('spawn', force=True)
    yield started
    multiprocessing.set_start_method(before, force=True)


def test_training_and_prediction_where_processes_are_spawned(small_atlas, tmp_path, spawned):
    df = read_labels(small_atlas / 'train.csv').head(8)
    dls = HPADataLoaders.from_df(
        df, small_atlas / 'train', size=32, bs=4, valid_pct=0.5, cache=False, num_workers=1, progress=False
    )
    with dls.train.fake_l.no_multiproc():
        next(iter(dls.train))  # a loop that is left early
    dls.valid.fake_l.num_workers = 0  # one process is enough: the other loader is pickled below
    learn = hpa_learner(dls, 'lenet5', pretrained=False)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(1)
    predictor, table = (
        Predictor(learn.save_bundle(tmp_path / 'model', note=False)),
        find_images(small_atlas / 'train')[:2],
    )
    for o in (dls, learn.model, learn.loss_func, predictor.bundles[0], HPADataBlock(), TrainingBar(), MeanAP()):
        pickle.loads(pickle.dumps(o))
    assert len(predictor(table)) == predict_cells(predictor, table, progress=False).Id.nunique() == 2
    assert len(spawned) == 1


def test_a_folder_with_its_images_and_one_table(tmp_path):
    "Where there is no train.csv and no folder train, the only table and the folder itself are the data set"
    simulate_atlas(tmp_path, n=6, size=32, difficulty='easy', progress=False)
    for image in list((tmp_path/'train').iterdir()): image.rename(tmp_path/image.name)
    (tmp_path/'train').rmdir()
    (tmp_path/'train.csv').rename(tmp_path/'localisations.csv')
    dls = HPADataLoaders.from_csv(tmp_path, size=32, cache=False, progress=False)
    assert len(dls.train_ds)+len(dls.valid_ds) == 6
    (tmp_path/'antibodies.csv').write_text('Id,antibody\n')
    message = r'2 tables and no train.csv: antibodies.csv, localisations.csv; choose one: .*--csv FILE'
    with pytest.raises(HPAError, match=message):
        HPADataLoaders.from_csv(tmp_path, size=32, cache=False, progress=False)


@pytest.mark.parametrize('off', [None, False])
def test_normalisation_can_be_switched_off(small_atlas, cache, off):
    dls = loaders(small_atlas, cache, normalize=off, augment=False)
    x = dls.valid.one_batch()[0]
    assert 0 <= x.min() < x.max() <= 1 and dls.settings.normalized_by == 'nothing' and dls.settings_suffice()


@pytest.mark.parametrize('wrong', [True, 3, (.1, .2), 'imagenet', ([.1]*3, [.2]*3)])
def test_other_normalisations_are_told_which_there_are(small_atlas, cache, wrong):
    with pytest.raises(HPAError, match="is not one of 'image', .* or None, which normalises nothing"):
        loaders(small_atlas, cache, normalize=wrong)


@pytest.mark.parametrize('two', ['valid_pct fold', 'valid_pct valid_col', 'valid_pct splitter', 'fold valid_col',
                                 'fold splitter', 'valid_col splitter'])
def test_ways_to_split_that_contradict_each_other_are_refused(small_atlas, cache, two):
    ways = dict(valid_pct=.5, fold=1, valid_col='all', splitter=lambda o: ([0, 1], [2]))
    with pytest.raises(HPAError, match='{} and {} each say which images are for validation'.format(*two.split())):
        loaders(small_atlas, cache, **{name: ways[name] for name in two.split()})


def test_arguments_of_a_split_that_would_do_nothing_are_refused(small_atlas, cache):
    with pytest.raises(HPAError, match='folds=3 says nothing without fold'): loaders(small_atlas, cache, folds=3)
    def halves(df): return range(1, len(df)), [0]
    with pytest.raises(HPAError, match='splitter divides .* groups? of images that group= keeps together'):
        loaders(small_atlas, cache, splitter=halves, group='antibody')
    df = read_labels(small_atlas/'train.csv')
    def whole(df): return np.flatnonzero(df.antibody!=df.antibody[0]), np.flatnonzero(df.antibody==df.antibody[0])
    assert loaders(small_atlas, cache, splitter=whole, group='antibody').train.group == 'antibody'
    kept = HPADataLoaders.from_df(df, small_atlas/'train', size=32, cache=cache, progress=False, group='antibody_of')
    assert not set(kept.train_ds.items.antibody) & set(kept.valid_ds.items.antibody)


def test_warnings_point_at_the_line_of_the_user(small_atlas, cache):
    with pytest.warns(UserWarning, match='antibody') as said: loaders(small_atlas, cache)
    assert {Path(warning.filename).name for warning in said} == {Path(__file__).name}


@pytest.mark.filterwarnings('ignore::UserWarning')
def test_files_of_stacks_keep_the_order_in_which_they_are_named(tmp_path):
    table = find_images(write_image_xpress(tmp_path/'plate', ('C03', 'C04'), sites=2, planes=2))
    files = [file for address in table.green for file in parse_address(address).files][::-1]
    assert list(order_of(table, files).Id) == list(table.Id)[::-1]
    inside = pd.DataFrame([dict(dict.fromkeys(CHANNELS, f'{name}#{n}'), Id=f'{name}{n}')
                           for name in ('a.lif', 'b.lif') for n in (0, 1)])
    assert list(order_of(inside, ['b.lif', 'a.lif']).Id) == ['b.lif0', 'b.lif1', 'a.lif0', 'a.lif1']
