"""Domain-incremental by permuted pixels: all classes return, each time with the pixels in another fixed order."""

from __future__ import annotations

import torch

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError
from latewood.core.seeding import generator
from latewood.core.stream import Stream
from latewood.images.datasets import ImageData
from latewood.images.streams._common import choice, chosen_images, domain_incremental


def permuted(
    dataset: str | ImageData, *, steps: int = 5, seed: int = 0, size: int | None = None, classes: str | None = None
) -> Stream:
    """The whole data set ``steps`` times, from the second time on under a random permutation of its pixels each
    (Goodfellow et al., 2014). The permutation is one for all channels; the first arrival is the data set as it is.
    ``classes`` leaves only some classes, as in :func:`~latewood.images.streams.split.split`.

    >>> stream = permuted("digits", steps=3)
    >>> bool((stream[0].train["image"] == stream[1].train["image"]).all())
    False
    """
    if steps < 1:
        raise ConfigurationError(f"steps must be at least 1, but it is {steps}.")
    images = chosen_images(dataset, size, classes)
    height, width = images.train.tensor("image").shape[-2:]

    def permute(part: Data, step: int) -> Data:
        if step == 0:
            return part
        order = torch.randperm(height * width, generator=generator(seed, "permuted", step))
        pixels = part.tensor("image").flatten(2)[:, :, order]
        return part.with_columns(image=pixels.unflatten(2, (height, width)))

    config = {"dataset": images.name, "size": size, **choice(classes), "steps": steps, "seed": seed}
    names = [f"permutation {step}" for step in range(steps)]
    return domain_incremental(f"permuted-{images.name}", names, lambda _: images, config, permute)
