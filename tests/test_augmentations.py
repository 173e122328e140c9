"""Random shift, exactly and in distribution, and kornia's augmentations with the paper's settings."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from augmentations import RandomShift, make_augmentation
from tests.support.oracle import OBS_SHAPE, random_batch

PAD = 4


def random_shift(pad: int = PAD, seed: int = 0) -> RandomShift:
    return RandomShift(pad, torch.Generator().manual_seed(seed))


# -- random shift ------------------------------------------------------------------------------------------------------


def test_random_shift_is_replicate_pad_and_crop_at_every_offset() -> None:
    offsets = torch.cartesian_prod(torch.arange(9), torch.arange(9))
    images = random_batch(size=len(offsets)).obs
    padded = F.pad(images.float(), (PAD, PAD, PAD, PAD), mode="replicate")
    _, height, width = OBS_SHAPE
    pairs = zip(padded, offsets.tolist(), strict=True)
    expected = torch.stack([image[:, dy : dy + height, dx : dx + width] for image, (dy, dx) in pairs])
    shifted = random_shift().crop(images, offsets)
    assert shifted.dtype == torch.uint8
    assert shifted.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(shifted.float(), expected)


def test_random_shift_draws_one_offset_per_image_over_the_whole_range() -> None:
    """Every pixel holds its own position, so the middle pixel of a shifted image shows the offset."""
    length = 16
    position = torch.arange(length * length, dtype=torch.uint8).view(1, 1, length, length)
    images = position.expand(3000, 3, length, length)
    shifted = random_shift()(images)
    assert shifted.shape == images.shape
    assert torch.equal(shifted, shifted[:, :1].expand_as(shifted)), "the channels of an image have different offsets"
    middle = shifted[:, 0, 8, 8].long()
    dy, dx = middle // length - 8, middle % length - 8
    offsets, counts = torch.stack([dy, dx]).unique(dim=1, return_counts=True)
    assert offsets.shape == (2, 81)
    assert offsets.min() == -PAD
    assert offsets.max() == PAD
    expected = len(images) / 81
    chi_square = ((counts - expected).square() / expected).sum()
    assert chi_square < 124.8  # the critical value for 80 degrees of freedom and p = 0.001


def test_random_shift_without_padding_changes_nothing() -> None:
    images = random_batch().obs
    assert torch.equal(random_shift(pad=0)(images), images)


def test_random_shift_draws_from_its_generator_only() -> None:
    images = random_batch().obs
    torch.manual_seed(0)
    first = random_shift(seed=3)(images)
    torch.manual_seed(1)
    assert torch.equal(random_shift(seed=3)(images), first)
    assert not torch.equal(random_shift(seed=4)(images), first)


# -- the others --------------------------------------------------------------------------------------------------------


def is_scaled_by_one_factor_near_1(image: torch.Tensor, view: torch.Tensor) -> bool:
    """Noise of 0.05, clamped at two standard deviations, gives factors from 0.9 to 1.1."""
    factor = view / image
    return bool((factor - factor.mean()).abs().max() < 1e-5 and (factor - 1.0).abs().max() < 0.1 + 1e-5)


def keeps_its_middle(image: torch.Tensor, view: torch.Tensor) -> bool:
    middle = (slice(None), slice(11, 13), slice(13, 15))
    return bool((view[middle] - image[middle]).abs().max() < 64)


EXPECTED_CHANGE: dict[str, Callable[[torch.Tensor, torch.Tensor], bool]] = {
    "hflip": lambda image, view: torch.equal(view, image.flip(2)),
    "vflip": lambda image, view: torch.equal(view, image.flip(1)),
    "cutout": lambda image, view: bool(((view == image) | (view == 0)).all()),
    "rotation": keeps_its_middle,
    "intensity": is_scaled_by_one_factor_near_1,
}


@pytest.mark.parametrize("name", EXPECTED_CHANGE)
def test_kornia_augmentation(name: str) -> None:
    """Keeps shape and range, and changes at least one image, in the expected way."""
    torch.manual_seed(0)
    images = random_batch(size=64).obs.clamp(min=1)
    augmented = make_augmentation(name, PAD, torch.Generator())(images)
    assert augmented.shape == images.shape
    assert augmented.dtype == torch.float32
    assert augmented.min() >= 0
    assert augmented.max() <= (281 if name == "intensity" else 255)  # 281 = 1.1 * 255, rounded up
    pairs = list(zip(images.float(), augmented, strict=True))
    different = [(image, view) for image, view in pairs if not torch.equal(image, view)]
    assert different
    assert len(different) < len(pairs) or name in ("rotation", "intensity")
    assert all(EXPECTED_CHANGE[name](image, view) for image, view in different)


@pytest.mark.parametrize(("name", "share"), [("cutout", 0.5), ("hflip", 0.1), ("vflip", 0.1)])
def test_share_of_images_that_kornia_changes(name: str, share: float) -> None:
    """The probabilities of the paper (appendix E)."""
    torch.manual_seed(0)
    images = torch.randint(1, 256, (1000, 3, 8, 8))
    different = (make_augmentation(name, PAD, torch.Generator())(images) != images).flatten(1).any(dim=1)
    assert float(different.float().mean()) == pytest.approx(share, abs=0.05)


def test_intensity_factors_are_drawn_per_image() -> None:
    """1 + 0.05 N(0, 1)."""
    torch.manual_seed(0)
    bright = torch.full((1000, 3, 8, 8), 100.0)
    factors = make_augmentation("intensity", PAD, torch.Generator())(bright)[:, 0, 0, 0] / 100
    assert float(factors.std()) == pytest.approx(0.05, rel=0.15)
    assert float(factors.mean()) == pytest.approx(1.0, abs=0.01)


def test_rotation_angles_are_drawn_per_image() -> None:
    """Uniform from -5 to 5 degrees: absolute angles of 2.5 degrees on average."""
    torch.manual_seed(0)
    ramp = torch.arange(33.0).expand(1000, 1, 33, 33)  # rotated, its middle column rises by sin(angle) per row
    middle = make_augmentation("rotation", PAD, torch.Generator())(ramp)[:, 0, :, 16]
    angles = torch.rad2deg(torch.asin((middle[:, 24] - middle[:, 8]).abs() / 16))
    assert 4.5 < float(angles.max()) < 5.1
    assert float(angles.mean()) == pytest.approx(2.5, abs=0.3)


def test_augmentation_none_is_the_identity() -> None:
    images = random_batch().obs
    assert torch.equal(make_augmentation("none", PAD, torch.Generator())(images), images)


def test_an_unknown_augmentation_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="blur"):
        make_augmentation("blur", PAD, torch.Generator())
