"Batch transforms: the same numbers for training, validation and prediction; augmentation that keeps what it must."
import pytest
import torch

from hpa_fastai.batches.tensors import TensorRGBY
from hpa_fastai.batches.settings import ImageSettings, normalize, resize
from hpa_fastai.batches.transforms import AugmentRGBY, NormalizeRGBY, ResizeRGBY, random_affine


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.randint(0, 256, (6, 4, 48, 48), dtype=torch.uint8)


def test_resizing_averages_areas():
    x = torch.zeros(1, 4, 8, 8)
    x[..., ::2, ::2] = 1
    assert torch.equal(resize(x, 4), torch.full((1, 4, 4, 4), .25))
    assert resize(x, 16).shape[-1] == 16


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
    out = AugmentRGBY(scale=1, gain=0, gamma=0)(TensorRGBY(x), split_idx=0)
    places = {tuple(torch.nonzero(o[0] > .5).flatten().tolist()) for o in out}
    assert places == {(0, 1), (0, 6), (1, 0), (1, 7), (6, 0), (6, 7), (7, 1), (7, 6)}


def test_pictures_of_a_batch_differ():
    torch.manual_seed(0)
    assert len({tuple(t.flatten().tolist()) for t in random_affine(64, 1.25)}) == 64


def test_augmented_pixels_stay_in_range(batch):
    out = AugmentRGBY(gain=.9, gamma=.9)(TensorRGBY(batch.float()/255), split_idx=0)
    assert out.min() >= 0 and out.max() <= 1 and torch.isfinite(out).all()
