"fastai's transforms mean on four channels what they mean on photographs, or are refused by name"
import random

import numpy as np
import pytest
import torch
from PIL import Image
from fastai.vision.all import (
    ColReader, ColSplitter, CropPad, DataBlock, EndSplitter, FlipItem, FuncSplitter, GrandparentSplitter, Hue,
    ImageDataLoaders, IndexSplitter, MaskSplitter, MultiCategoryBlock, Normalize, PILImage, RandomCrop, RandomErasing,
    RandomResizedCrop, RandomSplitter, RandomSubsetSplitter, RatioResize, Resize, ResizeMethod, Saturation,
    TrainTestSplitter, Transform, aug_transforms, get_image_files, imagenet_stats)

from hpa_fastai.all import (HPA28, AugmentRGBY, HPADataBlock, HPADataLoaders, HPAError, ImageReader, MoveRGBY,
                            RGBYBlock, SplitError, TensorRGBY, attach_images, hpa_learner, read_labels)


@pytest.fixture(scope='module')
def table(small_atlas):
    df = read_labels(small_atlas/'train.csv')
    return df.assign(held_out=[i % 4 == 0 for i in range(len(df))])


@pytest.fixture
def make(small_atlas, tmp_path_factory):
    cache = tmp_path_factory.getbasetemp()/'fastai_transforms'
    def make(**kwargs):
        return HPADataLoaders.from_csv(
            small_atlas, **{'size': 48, 'bs': 8, 'cache': cache, 'progress': False, 'group': 'antibody'} | kwargs)
    return make


def names(row): return [HPA28.classes[i] for i in HPA28.parse(row['Target'])]


def sides(dls): return [dl.one_batch()[0].shape[-1] for dl in dls.loaders]


def kinds(dls): return [type(t).__name__ for t in dls.train.after_batch.fs]


@pytest.mark.parametrize('tfm,shape', [
    (Resize(40), (40, 40)), (Resize((24, 40)), (24, 40)), (Resize(40, method=ResizeMethod.Pad), (40, 40)),
    (RandomResizedCrop(32, min_scale=.3), (32, 32)), (CropPad(70), (70, 70)), (RandomCrop(20), (20, 20))])
def test_plain_block_cuts_and_resizes(small_atlas, table, tfm, shape):
    block = DataBlock((RGBYBlock, MultiCategoryBlock(vocab=list(HPA28.classes))), get_y=names,
                      splitter=RandomSplitter(seed=0), item_tfms=tfm, batch_tfms=aug_transforms(max_lighting=.5))
    dls = block.dataloaders(attach_images(table.head(12), small_atlas/'train'), bs=4, num_workers=0)
    for dl in dls.loaders:
        x, _ = dl.one_batch()
        assert (type(x), x.shape[1:]) == (TensorRGBY, (4, *shape)) and x.dtype == torch.float32


def test_a_cut_is_the_one_that_fastai_makes():
    "The same random numbers cut the same part of a tensor and of Pillow's picture"
    pixels = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    tensor = TensorRGBY(torch.from_numpy(np.concatenate([pixels, pixels[..., :1]], -1)).permute(2, 0, 1).contiguous())
    for tfm in (RandomCrop(50), CropPad((100, 60)), Resize(90, method='crop'), RandomResizedCrop(64)):
        found = []
        for picture in (tensor, PILImage.create(pixels)):
            random.seed(3)
            found.append(tfm(picture, split_idx=0))
        ours, theirs = found[0][:3].permute(1, 2, 0).numpy().astype(int), np.asarray(found[1]).astype(int)
        assert np.abs(ours-theirs).max() <= 2, tfm


def test_resize_says_at_which_size_pictures_are_read(make):
    dls = make(item_tfms=Resize(32))
    assert sides(dls) == [32, 32]
    assert (dls.settings.reader.size, dls.settings.size) == (32, 32) and dls.settings_suffice()
    assert torch.equal(dls.valid.one_batch()[0], make(size=32).valid.one_batch()[0])


@pytest.fixture(scope='module')
def oblong(small_atlas, tmp_path_factory):
    "Pictures of 60×48 px, with the table of their labels"
    folder = tmp_path_factory.mktemp('oblong')
    df = read_labels(small_atlas/'train.csv').head(16)
    df = df.assign(held_out=[i % 2 == 0 for i in range(len(df))])
    for file in (file for i in df.Id for file in (small_atlas/'train').glob(f'{i}_*')):
        Image.open(file).crop((0, 0, 60, 48)).save(folder/f'{file.stem}.png')
    return folder, df


def values(dls, plain):
    "Batches of loaders that augment and normalise nothing, and of a plain block, drawn by the same random numbers"
    found = []
    for o in (dls, plain):
        random.seed(4)
        found.append([dl.after_batch(dl.do_batch([dl.do_item(i) for i in range(4)]))[0] for dl in o.loaders])
    return found


SHAPES = dict(
    crop=lambda: Resize(32), squish=lambda: Resize(32, 'squish'), reflection=lambda: Resize(32, 'pad'),
    border=lambda: Resize(32, 'pad', pad_mode='border'), smaller=lambda: CropPad(32), larger=lambda: CropPad(80),
    random=lambda: RandomCrop(32), resized=lambda: RandomResizedCrop(32), two=lambda: [Resize(40), RandomCrop(32)])


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('by', ['from_df', 'block'])
@pytest.mark.filterwarnings('ignore:item_tfms cut and resize')
def test_pictures_that_are_not_square_are_shaped_as_fastai_does_it(oblong, tmp_path, shape, by):
    folder, df = oblong
    items = attach_images(df, folder)
    ours = dict(valid_col='held_out', augment=False, item_tfms=SHAPES[shape]())
    if by == 'block':
        dls = HPADataBlock(mean=(0,)*4, std=(1,)*4, **ours).dataloaders(items, bs=4, num_workers=0)
    else:
        dls = HPADataLoaders.from_df(df, folder, bs=4, num_workers=0, progress=False, normalize=([0]*4, [1]*4),
                                     cache=tmp_path, **ours)
    block = DataBlock((RGBYBlock, MultiCategoryBlock(vocab=list(HPA28.classes))), get_y=names,
                      splitter=ColSplitter('held_out'), item_tfms=SHAPES[shape]())
    plain = block.dataloaders(items, bs=4, num_workers=0)
    for ours, theirs in zip(*values(dls, plain)):
        assert ours.shape == theirs.shape and torch.allclose(ours, theirs, atol=1e-6)


def test_pictures_that_are_not_square_have_no_cache_unless_they_get_a_black_margin(oblong, tmp_path):
    folder, df = oblong
    def made(**kwargs):
        return HPADataLoaders.from_df(df, folder, progress=False, cache=tmp_path, valid_col='held_out', **kwargs)
    with pytest.warns(UserWarning, match='without a cache; size=… alone reads them whole'):
        dls = made(item_tfms=Resize(32))
    assert dls.train.cache is None and dls.settings.reader.size is None and not dls.settings_suffice()
    margin = made(item_tfms=Resize(32, 'pad', pad_mode='zeros'))
    assert margin.train.cache is not None and margin.settings_suffice()
    assert torch.equal(margin.valid.one_batch()[0], made(size=32).valid.one_batch()[0])
    with pytest.raises(HPAError, match=r'RatioResize: .* add Resize\(32\), or say size instead'):
        made(item_tfms=RatioResize(32))
    with pytest.raises(HPAError, match='RandomResizedCrop: .* some of these are not'):
        made(item_tfms=RandomResizedCrop(32, split_idx=0))


@pytest.mark.parametrize('tfm', [CropPad(32), RandomCrop(32)])
def test_crops_of_square_pictures_are_cut_from_them_as_they_are(small_atlas, table, tmp_path, tfm):
    "Without a size, pictures are not enlarged first; and they keep their cache"
    ours = dict(valid_col='held_out', augment=False, item_tfms=tfm)
    dls = HPADataLoaders.from_df(table, small_atlas/'train', bs=4, progress=False, normalize=([0]*4, [1]*4),
                                 cache=tmp_path, **ours)
    whole = ImageReader().array(dls.valid_ds.items.iloc[0].to_dict())
    assert dls.train.cache is not None and whole.shape == (4, 64, 64)
    assert np.allclose(dls.valid.one_batch()[0][0]*255, whole[:, 16:48, 16:48], atol=.01)


def test_presizing(make):
    dls = make(item_tfms=Resize(60), batch_tfms=aug_transforms(size=32, min_scale=.75))
    assert sides(dls) == [32, 32] and 'AugmentRGBY' not in kinds(dls)
    assert (dls.settings.reader.size, dls.settings.size) == (60, 32) and dls.settings_suffice()
    mine = dls.new().set_size(48)
    assert sides(mine) == [48, 48] and sides(dls) == [32, 32]
    assert sides(make(batch_tfms=aug_transforms(size=40))) == [40, 40]


def test_random_crops_of_pictures(make):
    dls = make(item_tfms=RandomResizedCrop(32, min_scale=.35))
    assert sides(dls) == [32, 32] and dls.settings.reader.size == 48
    with pytest.warns(UserWarning, match='save_bundle will refuse'): hpa_learner(dls, 'lenet5', pretrained=False)
    in_training = make(item_tfms=RandomResizedCrop(32, split_idx=0))
    assert sides(in_training) == [32, 32] and in_training.settings_suffice()
    assert sides(make(item_tfms=[Resize(40), RandomCrop(24)])) == [24, 24]
    own_reader = make(item_tfms=[Resize(40), RandomCrop(24)], reader=ImageReader(size=48))
    assert sides(own_reader) == [24, 24] and own_reader.settings.reader.size == 48


def test_an_augmentation_of_ones_own_says_how_pictures_are_moved(make):
    for augment in (True, False, AugmentRGBY(scale=2)):
        tfms = make(batch_tfms=AugmentRGBY(scale=1, gain=.1), augment=augment).train.after_batch.fs
        assert [t.gain for t in tfms if isinstance(t, AugmentRGBY)] == [.1]
        assert [t.scale for t in tfms if isinstance(t, MoveRGBY)] == [1]
        assert not any(getattr(t, 'move', False) for t in tfms)
    assert 'MoveRGBY' not in kinds(make(batch_tfms=AugmentRGBY(move=False)))
    moved = make(batch_tfms=[AugmentRGBY(), MoveRGBY(1)]).train.after_batch.fs
    assert [t.scale for t in moved if isinstance(t, MoveRGBY)] == [1]


def test_augmentation_of_fastai_stands_in_the_place_of_ours(make):
    assert kinds(make())[2] == 'AugmentRGBY'
    dls = make(batch_tfms=aug_transforms(flip_vert=True))
    assert 'AugmentRGBY' not in kinds(dls) and dls.settings_suffice()
    assert 'AugmentRGBY' in kinds(make(batch_tfms=RandomErasing()))
    assert 'AugmentRGBY' in kinds(make(batch_tfms=aug_transforms(), augment=AugmentRGBY(scale=1)))
    one, other = (dls.train.after_batch(dls.train.do_batch([dls.train_ds[0]]))[0] for _ in range(2))
    dls.train.before_iter()
    assert not torch.equal(one, other)


def test_figures_of_a_source_survive_fastais_augmentation(make):
    plain, lit = (make(normalize='source', augment=False, batch_tfms=t) for t in (None, aug_transforms(
        do_flip=False, max_rotate=0, max_warp=0, max_zoom=1., p_lighting=0.)))
    a, b = (dls.train.after_batch(dls.train._gather(np.arange(4)))[0] for dls in (plain, lit))
    assert torch.allclose(a, b, atol=1e-3)


def test_normalize_of_fastai_stands_in_the_place_of_ours(make, small_atlas, table):
    dls = make(batch_tfms=Normalize.from_stats([.1]*4, [.2]*4, cuda=False))
    assert kinds(dls).count('NormalizeRGBY') == 1 and 'Normalize' not in kinds(dls)
    assert np.allclose(dls.settings.mean, .1) and np.allclose(dls.settings.std, .2) and dls.settings_suffice()
    assert make(batch_tfms=Normalize()).settings.mean == make(normalize='dataset').settings.mean
    block = HPADataBlock(size=32, batch_tfms=Normalize(), valid_col='held_out')
    dls = block.dataloaders(attach_images(table, small_atlas/'train'), bs=8, num_workers=0)
    assert len(dls.settings.mean) == 4 and dls.valid_ds.items.held_out.all()
    with pytest.raises(HPAError, match='Normalize has figures of 3 channels, and these pictures have four'):
        make(batch_tfms=[*aug_transforms(), Normalize.from_stats(*imagenet_stats, cuda=False)])


def test_transforms_that_would_do_nothing_are_refused(make):
    class OfPillow(Transform):
        def encodes(self, x: PILImage): return x
    with pytest.raises(HPAError, match='item_tfms: OfPillow does nothing with these pictures, which are TensorRGBY'):
        make(item_tfms=[Resize(32), OfPillow()])
    with pytest.raises(HPAError, match='hue and saturation are of pictures in RGB'): make(batch_tfms=Hue(p=1.))
    lit = aug_transforms(xtra_tfms=[Saturation(p=1.)])
    with pytest.raises(HPAError, match='hue and saturation'): make(batch_tfms=lit)
    with pytest.raises(HPAError, match='are square'): make(item_tfms=Resize((32, 48)))
    assert sides(make(item_tfms=[FlipItem()])) == [48, 48]


@pytest.mark.parametrize('splitter', [
    RandomSplitter(seed=1), TrainTestSplitter(random_state=0), EndSplitter(), IndexSplitter([1, 2, 3]),
    RandomSubsetSplitter(.5, .3, seed=1), MaskSplitter([True]*5+[False]*500), ColSplitter('held_out')])
def test_splitters_of_fastai(small_atlas, table, splitter):
    found = HPADataLoaders.from_df(table, small_atlas/'train', size=32, cache=False, progress=False, splitter=splitter)
    want = [list(o) for o in splitter(table)]
    ids = [table.Id.iloc[o].tolist() for o in want]
    assert [ds.items.Id.tolist() for ds in (found.train_ds, found.valid_ds)] == ids


def test_splitters_that_look_at_paths_are_told_what_fits(small_atlas, table):
    def by(splitter): HPADataBlock(size=32, splitter=splitter).datasets(attach_images(table, small_atlas/'train'))
    for splitter in (GrandparentSplitter(), FuncSplitter(lambda row: row.held_out)):
        with pytest.raises(SplitError, match='a splitter is called with the table'):
            HPADataLoaders.from_df(table, small_atlas/'train', size=32, cache=False, progress=False, splitter=splitter)
    with pytest.raises(SplitError, match="the table has no column 'is_valid'; it has Id"): by(ColSplitter())
    with pytest.raises(SplitError, match='valid_col and splitter'):
        HPADataBlock(valid_col='held_out', splitter=RandomSplitter())


def test_words_of_fastai_are_answered_in_the_name_of_what_was_called(small_atlas, table, make):
    hints = dict(folder='say images', fn_col='is Id', batch_size='say bs', augmnt='did you mean augment')
    for given, hint in hints.items():
        with pytest.raises(TypeError, match=f"^HPADataLoaders.from_csv has no argument '{given}': .*{hint}"):
            HPADataLoaders.from_csv(small_atlas, **{given: 1})
    with pytest.raises(HPAError, match="^HPADataLoaders.from_df has no argument 'path': say images"):
        HPADataLoaders.from_df(table, path=small_atlas)
    dls = make(val_bs=4)
    assert [len(dl.one_batch()[0]) for dl in dls.loaders] == [8, 4]


def test_foreign_loaders_are_told_what_to_use(small_atlas, table):
    block = DataBlock((RGBYBlock(32), MultiCategoryBlock), get_y=names, splitter=RandomSplitter(seed=0))
    with pytest.raises(HPAError, match=r'got DataLoaders; make them with .* take vision_learner\(dls, …, n_in=4\)'):
        hpa_learner(block.dataloaders(attach_images(table, small_atlas/'train'), bs=4, num_workers=0), 'lenet5')
    files = table.assign(file=table.Id+'_green.png').head(8)
    photos = ImageDataLoaders.from_df(files, small_atlas, folder='train', fn_col='file', label_col='Target',
                                      label_delim=' ', item_tfms=Resize(32), bs=4, num_workers=0)
    with pytest.raises(HPAError, match=r'got DataLoaders; make them with .* take vision_learner\(dls, …\), which'):
        hpa_learner(photos, 'lenet5')


def test_rows_of_the_table_of_labels_name_their_pictures(make):
    dls = make()
    df = dls.valid_ds.items[['Id', 'Target']]
    assert dls.test_dl(df).items.Id.tolist() == df.Id.tolist()
    assert dls.fields(df.iloc[0]).Id.tolist() == [df.Id.iloc[0]]
    learn = hpa_learner(dls, 'lenet5', pretrained=False)
    assert torch.equal(learn.predict(df.iloc[0])[2], learn.predict(df.Id.iloc[0])[2])
    with learn.no_bar(), pytest.raises(HPAError, match='with_labels=True'):
        learn.get_preds(dl=dls.test_dl(df), with_loss=True)


def test_a_list_of_no_transforms_is_for_no_augmentation(make):
    assert 'AugmentRGBY' not in kinds(make(batch_tfms=[])) and 'AugmentRGBY' in kinds(make(batch_tfms=None))
    assert 'AugmentRGBY' in kinds(make(batch_tfms=[], augment=AugmentRGBY(scale=1)))


def test_a_plain_block_refuses_figures_of_three_channels(small_atlas, table):
    items = attach_images(table.head(12), small_atlas/'train')
    def batch(norm):
        block = DataBlock((RGBYBlock(32), MultiCategoryBlock(vocab=list(HPA28.classes))), get_y=names, batch_tfms=norm)
        return block.dataloaders(items, bs=4, num_workers=0).one_batch()[0]
    with pytest.raises(HPAError, match='Normalize has figures of 3 channels, and these pictures have four'):
        batch(Normalize.from_stats(*imagenet_stats, cuda=False))
    for norm in (Normalize(), Normalize.from_stats([.1]*4, [.2]*4, cuda=False)): assert batch(norm).min() < 0


def test_a_plain_block_is_told_what_its_items_are(small_atlas, table):
    def first(source, **kwargs):
        block = DataBlock((RGBYBlock(32), MultiCategoryBlock), get_y=lambda row: ['a'], **kwargs)
        return block.datasets(source)
    items = attach_images(table, small_atlas/'train')
    takes = r'RGBYBlock takes rows of find_images\(folder\).*: pass that table to dataloaders'
    with pytest.raises(HPAError, match=f'a file of one channel; {takes}'):
        first(small_atlas/'train', get_items=get_image_files)[0]
    with pytest.raises(HPAError, match=f'no such file; {takes}'): first(items, get_x=ColReader('Id'))[0]
    with pytest.raises(HPAError, match=r'names no files: .*\(attach_images\(df, folder\) adds them\)'): first(table)[0]


def test_loaders_are_made_anew_with_other_arguments(make):
    dls = make().new(bs=4)
    assert isinstance(dls, HPADataLoaders) and [len(dl.one_batch()[0]) for dl in dls.loaders] == [4, 4]
    with pytest.raises(HPAError, match='bs: 0 is not'): dls.new(bs=0)


def test_loaders_know_the_folder_of_the_data(make, small_atlas, table):
    assert make().path == make().new().path == small_atlas
    assert HPADataLoaders.from_df(table, small_atlas/'train', size=32, cache=False, progress=False
                                  ).path == small_atlas/'train'


def test_a_column_has_a_number_and_a_seed_may_be_none(make, small_atlas, table):
    found = HPADataLoaders.from_df(table, small_atlas/'train', size=32, cache=False, progress=False,
                                   valid_col=list(table).index('held_out'))
    assert found.valid_ds.items.held_out.all() and not found.train_ds.items.held_out.any()
    with pytest.raises(SplitError, match='no column number 99'):
        HPADataLoaders.from_df(table, small_atlas/'train', size=32, valid_col=99)
    splits = {tuple(make(seed=None).valid_ds.items.Id) for _ in range(3)}
    assert len(splits) > 1


def test_a_cut_that_lies_outside_is_refused():
    "As Pillow does, where it would be a black picture of another size"
    x = TensorRGBY(torch.ones(4, 6, 10, dtype=torch.uint8))
    for tl in ((20, 20), (20, 0), (0, 7), (-5, 0)):
        with pytest.raises(HPAError, match=r'lies outside of a picture of 10×6'): x.crop_pad(4, tl=tl)
    assert x.crop_pad(4, tl=(-2, 4)).shape == (4, 4, 4)
