"""What all image backbones share: scaling of raw pixels, augmentation, normalisation, grey images as colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError, DataError
from latewood.core.registry import nearest
from latewood.images.augment import augmentation
from latewood.parts.backbone import Backbone

#: Mean and standard deviation of each channel, in units of the full range, as published with the data sets.
STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "mnist": ((0.1307,), (0.3081,)),
}


class ImageBackbone(Backbone):
    """A backbone that reads the column ``image``: uint8 rows (channels, height, width), or floating-point ones in [0, 1].

    :meth:`preprocess` scales to [0, 1], augments (in training mode only), brings to the network's size and normalises
    with ``mean`` and ``std``. With three of them, a grey image becomes three equal channels. ``channels`` is how many
    the network gets to see.

    Errors: :class:`~latewood.core.errors.DataError` if the example holds no images of that kind;
    :class:`~latewood.core.errors.ConfigurationError` if ``augment`` does not exist.
    """

    shape: tuple[int, int, int]
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        example: Data,
        settings: Mapping[str, Any],
        *,
        augment: str = "none",
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
    ) -> None:
        shape = image_shape(example)
        if len(mean) not in (1, shape[0]) and shape[0] != 1:
            raise DataError(f"This network takes images of {len(mean)} channels or grey ones, but these have {shape[0]}.")
        super().__init__("image", shape, settings)
        self.channels = max(len(mean), shape[0])
        self.augmentation = augmentation(augment, shape)
        # They follow from the settings, so they belong to no checkpoint; as buffers they follow the device.
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def preprocess(self, raw: Tensor) -> Tensor:
        """Network inputs, float32 of shape ``(n, channels, height, width)``, of raw rows."""
        # In full precision even where the training step around it runs in bfloat16, which has only 8 bits for a pixel.
        with torch.autocast(raw.device.type, enabled=False):
            pixels = _unit_range(raw)
            if self.training and self.augmentation is not None:
                pixels = self.augmentation(pixels)
            return (self.resize(pixels) - self.mean) / self.std

    def resize(self, pixels: Tensor) -> Tensor:
        """Pixels in [0, 1], brought to the size that the network takes: any size, unless a network says otherwise."""
        return pixels


def image_shape(example: Data) -> tuple[int, int, int]:
    """The shape (channels, height, width) of the images in ``example``. Errors: DataError if they are not images."""
    raw = example.tensor("image")
    if raw.dim() != 4:
        raise DataError(
            f"The image column must hold rows of shape channels x height x width, but they have {raw.dim() - 1} dimensions."
        )
    _unit_range(raw[:1])
    if raw.is_floating_point() and len(raw) and not 0 <= float(raw[0].min()) <= float(raw[0].max()) <= 1:
        raise DataError(
            f"Floating-point images must lie in [0, 1], but these reach from {raw[0].min():g} to {raw[0].max():g}; "
            "give pixels from 0 to 255 as uint8."
        )
    channels, height, width = raw.shape[1:]
    return channels, height, width


def statistics(normalise: str, shape: tuple[int, int, int]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel that the setting ``normalise`` stands for.

    The name of a data set, ``none``, or ``dataset``: CIFAR-100's for 3x32x32, MNIST's for 1x28x28, ImageNet's for other
    colour images, 0.5 and 0.5 otherwise. It depends on the shape alone, never on images that have not arrived yet.

    >>> statistics("dataset", (1, 28, 28))
    ((0.1307,), (0.3081,))
    """
    if normalise == "none":
        return (0.0,), (1.0,)
    if normalise == "dataset":
        if shape[0] == 3:
            return STATISTICS["cifar100" if shape[1:] == (32, 32) else "imagenet"]
        return STATISTICS["mnist"] if shape == (1, 28, 28) else ((0.5,), (0.5,))
    if normalise not in STATISTICS:
        raise ConfigurationError(
            f"There is no normalisation {normalise!r}{nearest(normalise, ('dataset', 'none', *STATISTICS))}."
        )
    mean, std = STATISTICS[normalise]
    if len(mean) != shape[0]:
        raise ConfigurationError(
            f"normalise={normalise!r} is for images of {len(mean)} channels, but these have {shape[0]}; try 'none'."
        )
    return mean, std


def check_at_least_one(name: str, **settings: int) -> None:
    """Errors: ConfigurationError if one of these settings of the net ``name`` is below 1."""
    for setting, value in settings.items():
        if value < 1:
            raise ConfigurationError(f"The {setting} of {name} must be at least 1, but it is {value}.")


def _unit_range(raw: Tensor) -> Tensor:
    if raw.is_floating_point():
        return raw.float()
    if raw.dtype != torch.uint8:
        kind = str(raw.dtype).removeprefix("torch.")
        raise DataError(f"Images must be uint8, or floating-point numbers in [0, 1], but the image column holds {kind}.")
    return raw.float() / 255
