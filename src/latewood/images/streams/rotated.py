"""Domain-incremental by rotation: all classes return, each time turned by a larger angle."""

from __future__ import annotations

import math

import torch

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError
from latewood.core.stream import Stream
from latewood.images.datasets import ImageData
from latewood.images.streams._common import choice, chosen_images, domain_incremental


def rotated(
    dataset: str | ImageData, *, steps: int = 5, degrees: float = 90.0, size: int | None = None, classes: str | None = None
) -> Stream:
    """The whole data set ``steps`` times, turned by angles from 0 to ``degrees`` at equal distances (Lopez-Paz and Ranzato,
    2017). Bilinear; what turns in from outside is black. ``classes`` leaves only some classes, as in
    :func:`~latewood.images.streams.split.split`.

    >>> [probe.name for probe in rotated("digits", steps=3).probes]
    ['0 degrees', '45 degrees', '90 degrees']
    """
    if steps < 1:
        raise ConfigurationError(f"steps must be at least 1, but it is {steps}.")
    if not math.isfinite(degrees):
        raise ConfigurationError(f"degrees must be a number, but it is {degrees}.")
    if degrees == 0 and steps > 1:
        raise ConfigurationError("degrees must not be 0 where more than one arrival is to be turned.")
    images = chosen_images(dataset, size, classes)
    angles = [degrees * step / max(1, steps - 1) for step in range(steps)]
    config = {"dataset": images.name, "size": size, **choice(classes), "steps": steps, "degrees": degrees}
    names = [f"{angle:g} degrees" for angle in angles]
    return domain_incremental(
        f"rotated-{images.name}", names, lambda _: images, config, lambda part, step: _turn(part, angles[step])
    )


def _turn(part: Data, angle: float) -> Data:
    if angle == 0:
        return part
    from kornia.geometry.transform import rotate

    image = part.tensor("image")
    chunks = [rotate(chunk.float(), torch.full((len(chunk),), angle)) for chunk in image.split(4096)]
    turned = torch.cat([chunk.round().to(image.dtype) if image.dtype == torch.uint8 else chunk for chunk in chunks])
    return part.with_columns(image=turned)
