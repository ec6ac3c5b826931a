"""Fixed changed views of an image, which a prediction can be averaged over and is the same again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from latewood.images.augment import operate

#: Maps images in [0, 1], shape (n, channels, height, width), to the same shape and range.
View = Callable[[Tensor], Tensor]


def _all(images: Tensor, value: float) -> Tensor:
    return images.new_full((len(images),), value)


def _policy(*operations: tuple[str, float]) -> View:
    """A sub-policy of AutoAugment: these operations of :mod:`latewood.images.augment` with their strengths."""

    def view(images: Tensor) -> Tensor:
        for operation, strength in operations:
            sign = -1.0 if strength < 0 else 1.0
            images = operate(operation, images, _all(images, abs(strength)), _all(images, sign)).clamp(0, 1)
        return images

    return view


def _factor(level: int) -> float:
    """Level 0 to 9 of brightness, colour, contrast and sharpness, which change by at most 0.9, as a strength."""
    return level / 9 * 0.9 / 0.99


def _degrees(level: int) -> float:
    """Level 0 to 9 of a rotation, at most 30 degrees, as a strength."""
    return level / 9 * 30 / 135


def _shear(level: int) -> float:
    """Level 0 to 9 of a shear, at most 0.3, as a strength."""
    return level / 9 * 0.3 / 0.99


def _shift(rows: float, columns: float) -> View:
    """Shifted down and right by these shares of the image's sides; what comes in is black."""

    def view(images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        down, right = round(rows * height), round(columns * width)
        moved = F.pad(images, (max(right, 0), max(-right, 0), max(down, 0), max(-down, 0)))
        return moved[..., max(-down, 0) :, max(-right, 0) :][..., :height, :width]

    return view


def _scale(factor: float) -> View:
    """Larger or smaller around the middle."""

    def view(images: Tensor) -> Tensor:
        matrix = torch.tensor([[1 / factor, 0.0, 0.0], [0.0, 1 / factor, 0.0]]).to(images).repeat(len(images), 1, 1)
        grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, mode="bilinear", align_corners=False)

    return view


def _noise(seed: int, deviation: float) -> View:
    """One fixed pattern of noise, so that a prediction is the same again, whatever else is predicted with it."""

    def view(images: Tensor) -> Tensor:
        drawn = torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(seed))
        return (images + deviation * drawn.to(images)).clamp(0, 1)

    return view


def _then(first: View, second: View) -> View:
    return lambda images: second(first(images))


#: The first ten sub-policies for CIFAR (Cubuk et al., 2019, appendix). There each operation has a probability; here it acts
#: if that is at least one half, or the larger of the two, and always in the positive direction, so that a prediction is the
#: same again.
AUTOAUGMENT: list[View] = [
    _policy(("contrast", _factor(6))),
    _policy(("rotate", _degrees(2))),
    _policy(("sharpness", _factor(1)), ("sharpness", _factor(3))),
    _then(_policy(("shear-y", _shear(8))), _shift(150 / 331, 0.0)),
    _policy(("auto-contrast", 0.0), ("equalize", 0.0)),
    _policy(("posterize", 0.5)),
    _policy(("brightness", _factor(7))),
    _policy(("brightness", _factor(9))),
    _policy(("equalize", 0.0), ("equalize", 0.0)),
    _policy(("contrast", _factor(7)), ("sharpness", _factor(5))),
]
#: For grey images: a shift by an eighth in each direction, three scales, three patterns of noise.
SHIFTS: list[View] = [
    *(_shift(rows, columns) for rows, columns in ((0.125, 0.0), (-0.125, 0.0), (0.0, 0.125), (0.0, -0.125))),
    *(_scale(factor) for factor in (0.8, 0.9, 1.15)),
    *(_noise(seed, 0.1) for seed in range(3)),
]
