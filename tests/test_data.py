"DataLoaders: leak-free splits, oversampling in training alone, and the same pixels with and without a cache."
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from hpa_fastai.data import HPADataBlock, HPADataLoaders, dataset_stats, rarity_weights
from hpa_fastai.images import ImageError, attach_images, find_images
from hpa_fastai.labels import HPA28, HPAError, LabelError, read_labels


@pytest.fixture(scope='module')
def cache(tmp_path_factory): return tmp_path_factory.mktemp('cache')


def loaders(path, cache, **kwargs): return HPADataLoaders.from_csv(path, size=32, bs=16, cache=cache, progress=False, **kwargs)


def test_every_class_is_on_both_sides(small_atlas, cache):
    dls = loaders(small_atlas, cache)
    train, valid = (HPA28.encode(ds.items.Target).sum(0) for ds in (dls.train_ds, dls.valid_ds))
    total = train + valid
    assert ((train > 0) & (valid > 0))[total >= 5].all()
    assert abs(len(dls.valid_ds)/90 - .2) < .03


def test_groups_are_never_divided(small_atlas, cache):
    dls = loaders(small_atlas, cache, group='antibody')
    assert not set(dls.train_ds.items.antibody) & set(dls.valid_ds.items.antibody)


def test_folds_cover_everything_once(small_atlas, cache):
    valid = [set(loaders(small_atlas, cache, fold=k, n_folds=3).valid_ds.items.Id) for k in range(3)]
    assert sum(map(len, valid)) == 90 == len(set.union(*valid))


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
    targets = HPA28.encode(['0']*95 + ['27']*5)
    w = rarity_weights(targets, 1.)
    assert np.isclose(w[:95].sum(), w[95:].sum())
    assert (rarity_weights(targets, 0) == 1).all()


def test_an_epoch_can_have_any_number_of_steps(small_atlas, cache):
    dl = loaders(small_atlas, cache).train
    for steps in (2, 11):
        dl.draw = steps*dl.bs
        assert len(dl) == steps == sum(1 for _ in dl)
    dl.draw = None
    assert len(dl) == len(dl.dataset)//16


def test_drawing_without_weights_shows_every_image(small_atlas, cache):
    dl = loaders(small_atlas, cache, oversample=0).train
    assert sorted(dl.get_idxs()) == list(range(len(dl.dataset)))
    dl.draw = 2*len(dl.dataset)
    assert np.bincount(dl.get_idxs()).tolist() == [2]*len(dl.dataset)


def test_unreadable_fields_are_left_out_and_named(small_atlas, tmp_path):
    shutil.copytree(small_atlas, tmp_path/'atlas')
    broken = Path(find_images(tmp_path/'atlas'/'train').green[4])
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.warns(UserWarning, match=f'1 of 90 fields of view.*{broken.name}'): dls = loaders(tmp_path/'atlas', tmp_path/'cache')
    assert len(dls.train_ds) + len(dls.valid_ds) == 89
    assert broken.name.rsplit('_', 1)[0] not in set(dls.train_ds.items.Id) | set(dls.valid_ds.items.Id)


def test_unreadable_fields_are_left_out_without_a_cache_too(small_atlas, tmp_path):
    shutil.copytree(small_atlas, tmp_path/'atlas')
    Path(find_images(tmp_path/'atlas'/'train').green[4]).write_bytes(b'')
    df = read_labels(tmp_path/'atlas'/'train.csv')
    with pytest.warns(UserWarning, match='1 of 90'): dls = HPADataLoaders.from_df(df, tmp_path/'atlas'/'train', size=32, cache=False, num_workers=0, progress=False, group=[i.split('_')[0] for i in df.Id])
    assert sum(len(x) for x, _ in dls.valid) == len(dls.valid_ds)


def test_ids_without_images_are_counted_and_named(small_atlas, cache):
    df = pd.concat([read_labels(small_atlas/'train.csv'), pd.DataFrame(dict(Id=['a_1', 'a_2'], Target=['3', '4']))])
    with pytest.raises(ImageError, match='2 .*a_1, a_2'): HPADataLoaders.from_df(df, small_atlas/'train', size=32, cache=cache)


def test_images_without_labels_are_counted(small_atlas, cache):
    df = read_labels(small_atlas/'train.csv')
    with pytest.warns(UserWarning, match='10'): dls = HPADataLoaders.from_df(df[10:], small_atlas/'train', size=32, cache=False, num_workers=0)
    assert len(dls.train_ds) + len(dls.valid_ds) == 80


@pytest.mark.parametrize('kwargs, words', [(dict(csv='none.csv'), 'none.csv'), (dict(images='none'), 'none'), (dict(fold=7), 'fold 7'),
                                           (dict(group='plate_x'), 'plate_x'), (dict(labels='hpa27'), 'hpa27'), (dict(normalize='imagenet'), 'imagenet')])
def test_faults_are_one_line(small_atlas, cache, kwargs, words):
    with pytest.raises(HPAError, match=words) as e: loaders(small_atlas, cache, **kwargs)
    assert '\n' not in str(e.value)


def test_label_out_of_range_names_its_row(small_atlas, cache, tmp_path):
    df = read_labels(small_atlas/'train.csv')
    df.loc[5, 'Target'] = '28'
    df.to_csv(tmp_path/'train.csv', index=False)
    with pytest.raises(LabelError, match=r'train\.csv.*7.*28'): loaders(small_atlas, cache, csv=tmp_path/'train.csv')


def test_dataset_normalisation_uses_training_images(small_atlas, cache):
    dls = loaders(small_atlas, cache, normalize='dataset')
    mean, std = dataset_stats(dls.train_ds.items, dls.reader)
    assert np.allclose(dls.preprocess().mean, mean) and np.allclose(dls.preprocess().std, std)


def test_block_is_a_plain_datablock(small_atlas):
    items = attach_images(read_labels(small_atlas/'train.csv'), small_atlas/'train')
    x, y = HPADataBlock(size=24, augment=False).dataloaders(items, bs=4, num_workers=0).one_batch()
    assert x.shape == (4, 4, 24, 24) and y.shape == (4, 28)


def test_real_mosaics_load_with_their_groups(real_data, tmp_path):
    dls = HPADataLoaders.from_csv(real_data/'mosaic', images='images', group='group', size=64, cache=tmp_path, progress=False)
    assert len(dls.train_ds) + len(dls.valid_ds) == 245
    assert not set(dls.train_ds.items.group) & set(dls.valid_ds.items.group)
    x, _ = dls.valid.one_batch()
    assert torch.isfinite(x).all()
