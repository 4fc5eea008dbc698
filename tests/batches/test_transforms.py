"Batch transforms: the same numbers for training, validation and prediction; augmentation that keeps what it must."
import math

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from hpa_fastai.batches.tensors import TensorRGBY
from hpa_fastai.batches.settings import ImageSettings, normalize, resize
from hpa_fastai.batches.transforms import AugmentRGBY, MoveRGBY, NormalizeRGBY, ResizeRGBY, random_affine
from hpa_fastai.formats.names import CHANNELS
from hpa_fastai.data.reader import ImageReader


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.randint(0, 256, (6, 4, 48, 48), dtype=torch.uint8)


def test_resizing_averages_areas():
    x = torch.zeros(1, 4, 8, 8)
    x[..., ::2, ::2] = 1
    assert torch.equal(resize(x, 4), torch.full((1, 4, 4, 4), .25))
    assert resize(x, 16).shape[-1] == 16


def waves(period, n=128):
    "A sine and a cosine of a period in pixels, across a picture"
    at = (torch.arange(n)+.5)*2*math.pi/period
    return torch.stack([.5+.5*torch.sin(at), .5+.5*torch.cos(at)]).expand(1, n, 2, n).permute(0, 2, 1, 3)


def amplitude(x):
    "Of a sine and a cosine that are side by side, without the edges of the picture"
    return (2*x[0, :, 8:-8, 8:-8]-1).square().sum(0).mean().sqrt().item()


def by_pillow(x, size):
    "What Pillow does"
    def small(plane): return Image.fromarray(plane).resize((size, size), Image.BICUBIC, reducing_gap=1.)
    return torch.stack([torch.from_numpy(np.array(small(p.numpy()))) for p in x[0]])[None]


@pytest.mark.parametrize('shrink', [resize, by_pillow])
def test_three_quarters_of_the_size_keep_more_detail_than_half(shrink):
    noise = torch.rand(1, 4, 128, 128, generator=torch.Generator().manual_seed(0))
    half, more, whole = (shrink(noise, size).std().item() for size in (64, 96, 128))
    assert 1.15*half < more < .8*whole
    for period in (5, 6, 8, 12):  # pixels: all of them can be shown at half the size
        half, more, whole = (amplitude(shrink(waves(period).contiguous(), size)) for size in (64, 96, 128))
        assert half+.01 < more < whole+1e-3 and more > .9, period
    too_fine = waves(2.1).contiguous()  # cannot be shown at three quarters, and must not turn into something else
    assert amplitude(shrink(too_fine, 96)) < .35


def test_reading_small_and_shrinking_what_was_read_agree():
    from hpa_fastai.simulate.atlas import simulate_fov
    img = simulate_fov([7], size=128, seed=1)[0]
    for size in (64, 96, 100):
        small = resize(torch.from_numpy(img)[None].float()/255, size)[0].numpy()*255
        difference = np.abs(small-ImageReader(size).array(img))
        assert difference.max() < 1.1 if size==64 else difference.mean() < 2


def test_each_side_is_resized_by_itself_and_figures_stay():
    x = TensorRGBY(torch.rand(2, 4, 96, 32))
    x.figures = torch.ones(2, 2, 4)
    out = ResizeRGBY(48)(x)
    assert out.shape == (2, 4, 48, 48) and type(out) is TensorRGBY and out.figures.shape == (2, 2, 4)
    rows = torch.rand(1, 4, 96, 1)
    narrow, square = (resize(rows.expand(-1, -1, 96, width), 48) for width in (32, 96))
    assert torch.allclose(narrow, square, atol=1e-6)


def test_blank_channel_becomes_zeros_not_nan(batch):
    batch[:, 1] = 7
    out = ImageSettings(size=32)(batch)
    assert torch.isfinite(out).all() and out[:, 1].abs().max() < 1e-3 and out[:, 0].std() > .5


def test_faint_noise_is_not_amplified_to_full_contrast():
    faint = torch.randint(0, 2, (1, 4, 64, 64), dtype=torch.uint8)
    assert ImageSettings(size=64)(faint).std() < .5


def test_transforms_agree_with_preprocess(batch):
    mean, std = (.1, .2, .3, .4), (.2, .2, .3, .3)
    x = TensorRGBY(batch.float()/255)
    for m, s in ((None, None), (mean, std)):
        ours = NormalizeRGBY(m, s)(ResizeRGBY(32)(x))
        assert torch.allclose(ours.as_subclass(torch.Tensor), ImageSettings(size=32, mean=m, std=s)(batch), atol=1e-6)


def test_normalising_ignores_brightness(batch):
    x = batch.float()/255
    assert torch.allclose(normalize(x*.5), normalize(x), atol=1e-3)


def test_augmentation_is_for_training_only(batch):
    x = TensorRGBY(batch.float()/255)
    assert torch.equal(AugmentRGBY()(x, split_idx=1), x)
    assert not torch.equal(AugmentRGBY()(x, split_idx=0), x)


def test_symmetries_are_exact_and_all_eight_occur():
    torch.manual_seed(0)
    x = torch.zeros(200, 4, 8, 8)
    x[:, :, 0, 1] = 1
    out = MoveRGBY(1)(TensorRGBY(x), split_idx=0)
    places = {tuple(torch.nonzero(o[0] > .5).flatten().tolist()) for o in out}
    assert places == {(0, 1), (0, 6), (1, 0), (1, 7), (6, 0), (6, 7), (7, 1), (7, 6)}


def test_augmentation_alone_moves_pictures():
    torch.manual_seed(0)
    x = torch.zeros(200, 4, 8, 8)
    x[:, :, 0, 1] = 1
    def places(**kwargs):
        out = AugmentRGBY(scale=1, gain=0, gamma=0, **kwargs)(TensorRGBY(x), split_idx=0)
        return {tuple(torch.nonzero(o[0] > .5).flatten().tolist()) for o in out}
    assert len(places()) == 8 and places(move=False) == {(0, 1)}


def test_pictures_of_a_batch_differ():
    torch.manual_seed(0)
    assert len({tuple(t.flatten().tolist()) for t in random_affine(64, 1.25)}) == 64


def test_augmented_pixels_stay_in_range(batch):
    out = AugmentRGBY(gain=.9, gamma=.9)(TensorRGBY(batch.float()/255), split_idx=0)
    assert out.min() >= 0 and out.max() <= 1 and torch.isfinite(out).all()


@pytest.mark.parametrize('scale', [1, 1.25, 2])
def test_pictures_are_moved_as_by_the_affine_maps_that_were_drawn(scale):
    x = torch.rand(16, 4, 40, 40, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    moved = MoveRGBY(scale)(TensorRGBY(x), split_idx=0).as_subclass(torch.Tensor)
    torch.manual_seed(1)
    grid = torch.nn.functional.affine_grid(random_affine(16, scale), x.shape, align_corners=False)
    wanted = torch.nn.functional.grid_sample(x, grid, padding_mode='reflection', align_corners=False)
    assert torch.allclose(moved, wanted, atol=1e-4)


def test_brightness_changes_by_the_exponents_and_factors_that_were_drawn(batch):
    x = batch.float()/255
    torch.manual_seed(1)
    lit = AugmentRGBY(gain=.3, gamma=.2, move=False)(TensorRGBY(x.clone()), split_idx=0).as_subclass(torch.Tensor)
    torch.manual_seed(1)
    gamma, gain = .8+.4*torch.rand(6, 4, 1, 1), .7+.6*torch.rand(6, 4, 1, 1)
    assert torch.allclose(lit, (x**gamma*gain).clamp(0, 1), atol=1e-5)
    assert torch.equal(x, batch.float()/255)


@pytest.mark.parametrize('in_place', [False, True])
def test_each_picture_gets_mean_0_and_deviation_1(in_place):
    x = torch.rand(3, 4, 300, 200, generator=torch.Generator().manual_seed(0))*torch.rand(3, 4, 1, 1)*.9+.1
    std, mean = torch.std_mean(x.double(), dim=(2, 3), keepdim=True)
    kept, out = x.clone(), normalize(x, in_place=in_place)
    assert torch.allclose(out.double(), (kept-mean)/std.clamp_min(.01), atol=1e-5)
    assert torch.equal(x, out if in_place else kept)


@pytest.mark.parametrize('normalize', ['image', 'dataset'])
def test_cells_of_moved_pictures_look_as_in_validation(tmp_path, normalize):
    "Mean and deviation, of all and of the middle, by the loaders themselves"
    from hpa_fastai.all import HPA28, HPADataLoaders
    rng = np.random.default_rng(0)
    for i in range(48):  # alike everywhere
        planes = torch.nn.functional.avg_pool2d(torch.from_numpy(rng.random((4, 67, 67), np.float32)), 4, 1)*150+50
        for c, plane in zip(CHANNELS, planes.byte().numpy()): Image.fromarray(plane).save(tmp_path/f'p{i}_{c}.png')
    df = pd.DataFrame(dict(Id=[f'p{i}' for i in range(48)], Target=[str(i % 3) for i in range(48)]))
    dls = HPADataLoaders.from_df(
        df, tmp_path, HPA28, size=64, bs=24, normalize=normalize, augment=AugmentRGBY(scale=1.6, gain=0, gamma=0),
        cache=tmp_path/'cache', progress=False, num_workers=0)
    trained, validated = (torch.cat([b[0] for b in dl]).as_subclass(torch.Tensor) for dl in dls)
    for part in (np.s_[...], np.s_[..., 20:44, 20:44]):
        a, b = trained[part], validated[part]
        assert abs(a.mean()-b.mean()) < .1 and abs(a.std()/b.std()-1) < .1
    plain = {type(t).__name__: t for t in dls.train.after_batch.fs}
    assert plain['MoveRGBY'].scale == 1.6 and [t for t in plain][-1] == 'MoveRGBY'
