"""Cosine classifiers: prototypes that are plain means, and a head with normalised rows that trains."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latewood.parts.growing import Growing
from latewood.parts.statistics import ClassSums


class Prototypes(ClassSums):
    """The mean feature of each class, as its sum and count, and the cosine of features with it.

    Features are not normalised before they are averaged, so a longer one weighs more.

    >>> prototypes = Prototypes(2)
    >>> prototypes.update(torch.tensor([[4.0, 0.0], [0.0, 4.0], [0.0, 2.0]]), torch.tensor([0, 0, 1]), classes=3)
    >>> prototypes(torch.tensor([[0.0, 5.0]])).round(decimals=2)
    tensor([[0.7100, 1.0000,   -inf]], dtype=torch.float64)
    """

    def forward(self, features: Tensor) -> Tensor:
        """Cosines, shape ``(n, classes)``; minus infinity for a class without samples."""
        # A mean points where its sum does.
        cosines = F.normalize(features.to(self.sums)) @ F.normalize(self.sums).T
        return cosines.masked_fill(self.counts == 0, -torch.inf)


class CosineHead(Growing):
    """Logits ``scale * cos(feature, row)`` with a ``scale`` that is learned, from 1; new rows start uniform in ±1/sqrt(width).

    >>> head = CosineHead(4)
    >>> head.grow(3, torch.Generator().manual_seed(0))
    >>> bool((head(100 * torch.ones(1, 4)).abs() <= 1).all())
    True
    """

    weight: nn.Parameter
    scale: nn.Parameter

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(0, width))
        self.scale = nn.Parameter(torch.ones(()))

    def grow(self, classes: int, generator: torch.Generator) -> None:
        """Have at least ``classes`` rows."""
        old, width = self.weight.shape
        if classes > old:
            bound = 1 / math.sqrt(width)
            fresh = torch.rand(classes - old, width, generator=generator) * 2 * bound - bound
            self.resize_parameter("weight", torch.cat([self.weight.detach(), fresh.to(self.weight)]))

    def forward(self, features: Tensor) -> Tensor:
        """Logits of shape ``(n, classes)``."""
        return self.scale * F.linear(F.normalize(features), F.normalize(self.weight))
