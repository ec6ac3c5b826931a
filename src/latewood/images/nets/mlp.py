"""A multilayer perceptron on the pixels."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor, nn

from latewood.core.data import Data
from latewood.images.nets._image import ImageBackbone, check_at_least_one


def mlp(example: Data, *, width: int = 256, depth: int = 2, augment: str = "none") -> ImageBackbone:
    """``depth`` layers of ``width`` units with ReLU on the flattened pixels in [0, 1]; ``width`` features.

    Two hidden layers are what the MNIST experiments of the field use (Lopez-Paz & Ranzato 2017 with ``width=100``).
    ``augment`` is a name of :func:`latewood.images.augment.augmentation`.

    Errors: :class:`~latewood.core.errors.ConfigurationError` if ``width`` or ``depth`` is below 1.

    >>> import torch
    >>> digits = Data(image=torch.zeros(5, 1, 8, 8, dtype=torch.uint8))
    >>> backbone = mlp(digits[:1], width=32)
    >>> backbone(backbone.prepare(digits)).shape
    torch.Size([5, 32])
    """
    return Perceptron(example, width, depth, augment)


class Perceptron(ImageBackbone):
    """What :func:`mlp` builds."""

    def __init__(self, example: Data, width: int, depth: int, augment: str) -> None:
        check_at_least_one("mlp", width=width, depth=depth)
        settings = {"name": "mlp", "width": width, "depth": depth, "augment": augment}
        super().__init__(example, settings, augment=augment)
        sizes = (math.prod(self.shape), *[width] * depth)
        self.layers = nn.Sequential(*(layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())))
        self.width = width

    def forward(self, inputs: Tensor) -> Tensor:
        features: Tensor = self.layers(inputs.flatten(1))
        return features
