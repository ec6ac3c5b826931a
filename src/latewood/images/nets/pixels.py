"""The pixels themselves as features: no network at all."""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor

from latewood.core.data import Data
from latewood.images.nets._image import ImageBackbone


def pixels(example: Data) -> ImageBackbone:
    """Pixels scaled to [0, 1] and flattened: channels x height x width features, no parameters.

    What a closed-form learner such as nearest class mean or ridge regression needs where images are simple and small.

    >>> import torch
    >>> digit = Data(image=torch.full((1, 1, 8, 8), 51, dtype=torch.uint8))
    >>> backbone = pixels(digit)
    >>> features = backbone(backbone.prepare(digit))
    >>> features.shape, round(features.max().item(), 3)
    (torch.Size([1, 64]), 0.2)
    """
    return PixelBackbone(example)


class PixelBackbone(ImageBackbone):
    """What :func:`pixels` builds."""

    cheap: ClassVar[bool] = True

    def __init__(self, example: Data) -> None:
        super().__init__(example, {"name": "pixels"})
        self.width = math.prod(self.shape)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.flatten(1)
