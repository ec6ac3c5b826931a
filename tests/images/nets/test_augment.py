"""Augmentation: repeatable from torch's seed, different for each image, true to what each name promises."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from latewood.core.errors import ConfigurationError
from latewood.images.augment import TrivialAugment, augmentation, operate

NAMES = ["crop", "crop-flip", "crop-flip-jitter", "resized-crop-flip", "resized-crop-flip-jitter", "contrastive", "trivial"]


def batch(n: int = 16, *shape: int) -> Tensor:
    return torch.rand(n, *(shape or (3, 16, 16)), generator=torch.Generator().manual_seed(0))


def augmented(name: str, images: Tensor, seed: int = 0) -> Tensor:
    module = augmentation(name, tuple(images.shape[1:]))
    assert module is not None
    torch.manual_seed(seed)
    result: Tensor = module(images)
    return result


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (1, 28, 28), (3, 32, 24)], ids=str)
def test_shape_and_range_stay(name: str, shape: tuple[int, ...]) -> None:
    images = batch(32, *shape)
    result = augmented(name, images)
    assert result.shape == images.shape
    assert result.dtype == torch.float32
    assert result.isfinite().all()
    assert 0 <= result.min() <= result.max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_batch(name: str) -> None:
    first = augmented(name, batch())
    random.seed(5)
    np.random.seed(5)
    assert torch.equal(first, augmented(name, batch()))
    assert not torch.equal(first, augmented(name, batch(), seed=1))


@pytest.mark.parametrize("name", NAMES)
def test_two_modules_of_one_name_agree(name: str) -> None:
    """Nothing depends on what a module has drawn before, so a resumed run augments as one that never stopped."""
    used = augmentation(name, (3, 16, 16))
    assert used is not None
    used(batch())
    torch.manual_seed(0)
    assert torch.equal(used(batch()), augmented(name, batch()))


@pytest.mark.parametrize("name", NAMES)
def test_each_image_gets_its_own_draw(name: str) -> None:
    same = batch(1).repeat(32, 1, 1, 1)
    assert len(augmented(name, same).flatten(1).unique(dim=0)) > 8


def test_images_are_left_as_they_were() -> None:
    images = batch()
    before = images.clone()
    for name in NAMES:
        augmented(name, images)
    assert torch.equal(images, before)


def test_a_crop_is_a_window_of_the_padded_image() -> None:
    images = batch(64, 3, 8, 8)
    windows = F.pad(images, (4, 4, 4, 4)).unfold(2, 8, 1).unfold(3, 8, 1).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
    found = (windows == augmented("crop", images)[:, None]).flatten(2).all(2)
    assert found.any(1).all()
    assert len(found.nonzero()[:, 1].unique()) > 20


def test_half_of_the_images_are_flipped() -> None:
    images = batch(400, 3, 8, 8)
    windows = F.pad(images, (4, 4, 4, 4)).unfold(2, 8, 1).unfold(3, 8, 1).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
    result = augmented("crop-flip", images)[:, None]
    straight = (windows == result).flatten(2).all(2).any(1)
    mirrored = (windows == result.flip(-1)).flatten(2).all(2).any(1)
    assert (straight ^ mirrored).all()
    assert 150 < int(mirrored.sum()) < 250


def test_jitter_multiplies_the_brightness_by_at_most_a_quarter() -> None:
    images = torch.full((256, 3, 16, 16), 0.4)
    centre = augmented("crop-flip-jitter", images)[:, :, 8, 8]  # which no crop moves out of the image
    factors = centre[:, 0] / 0.4
    assert torch.equal(centre[:, 0], centre[:, 2])
    assert 1 - 63 / 255 <= factors.min() < 0.78
    assert 1.22 < factors.max() <= 1 + 63 / 255


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match=r"no augmentation 'crop_flip' .did you mean 'crop-flip'"):
        augmentation("crop_flip", (3, 8, 8))
    assert augmentation("none", (3, 8, 8)) is None


@pytest.mark.parametrize("operation", TrivialAugment.operations)
def test_trivial_operations_start_at_the_image_itself(operation: str) -> None:
    images = batch(4, 3, 24, 20) ** 2  # dark, so that equalising changes it
    strength, sign = torch.zeros(4), torch.tensor([1.0, -1.0, 1.0, -1.0])
    changed = operate(operation, images, strength, sign)
    if operation in ("auto-contrast", "equalize"):  # they have no strength
        assert not torch.equal(changed, images)
    else:
        torch.testing.assert_close(changed, images, atol=1e-5, rtol=1e-5)
    if operation != "identity":
        assert not torch.allclose(operate(operation, images, torch.ones(4), sign), images, atol=0.01)


def test_trivial_geometry_moves_as_far_as_it_says() -> None:
    images = batch(2, 1, 40, 40)
    ones = torch.ones(2)
    shifted = operate("shift-x", images, ones / 4, torch.tensor([1.0, -1.0]))
    torch.testing.assert_close(shifted[0, :, :, :-8], images[0, :, :, 8:])
    torch.testing.assert_close(shifted[1, :, :, 8:], images[1, :, :, :-8])
    turned = operate("rotate", images, ones * 2 / 3, torch.tensor([1.0, -1.0]))
    torch.testing.assert_close(turned[0], images[0].rot90(1, (1, 2)))
    torch.testing.assert_close(turned[1], images[1].rot90(-1, (1, 2)))


def test_trivial_auto_contrast_fills_the_range_and_leaves_flat_images_alone() -> None:
    images = torch.cat([batch(1) * 0.5 + 0.2, torch.full((1, 3, 16, 16), 0.3)])
    changed = operate("auto-contrast", images, torch.zeros(2), torch.ones(2))
    assert changed[0].min().item() == pytest.approx(0)
    assert changed[0].max().item() == pytest.approx(1)
    torch.testing.assert_close(changed[1], images[1])


def test_a_resized_crop_shows_a_part_of_the_image_at_its_size() -> None:
    """Of an image whose brightness grows to the right, a part spans less of the range, in the same order or mirrored."""
    ramp = torch.linspace(0, 1, 64).expand(256, 3, 64, 64)
    rows = augmented("resized-crop-flip", ramp)[:, 0, 32]
    steps = rows.diff(dim=1)
    assert ((steps >= -1e-6).all(1) | (steps <= 1e-6).all(1)).all()
    spans = rows.amax(1) - rows.amin(1)
    assert spans.min() > 0.15  # 5 % of the area at a ratio of 3/4 is a fifth of the width
    assert spans.min() < 0.35
    assert spans.max() > 0.9


def test_contrastive_views_turn_one_colour_image_in_five_grey_and_change_the_colours_of_most() -> None:
    colour = torch.tensor([0.6, 0.3, 0.2])
    views = augmented("contrastive", colour[:, None, None].expand(2000, 3, 16, 16))
    middle = views[:, :, 8, 8]  # no crop reaches it
    grey = middle.amax(1) - middle.amin(1) < 1e-6
    assert 0.15 < grey.double().mean() < 0.25
    left = (middle - colour).abs().amax(1) < 1e-6
    assert 0.11 < left.double().mean() < 0.21  # neither jittered (one in five) nor grey
