"""Small networks and tables that the tests of the workshop share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latewood.core.data import Data
from latewood.parts.backbone import Backbone


class Linear(Backbone):
    """One linear layer on the column ``x``; ``scale`` is a setting that changes the features and no weight."""

    def __init__(self, inputs: int = 4, width: int = 3, seed: int = 0, scale: float = 1.0, shape: bool = True) -> None:
        super().__init__("x", (inputs,) if shape else None, {"scale": scale})
        self.width, self.scale = width, scale
        self.weight = nn.Parameter(torch.randn(inputs, width, generator=torch.Generator().manual_seed(seed)))

    def forward(self, inputs: Tensor) -> Tensor:
        features = inputs @ self.weight * self.scale
        return features.mean(1) if features.dim() == 3 else features


class Moody(Backbone):
    """A network that gives itself away when it is not in evaluation mode: batch normalisation, dropout, augmentation."""

    def __init__(self, inputs: int = 4, width: int = 3, seed: int = 0) -> None:
        super().__init__("x", (inputs,), {})
        self.width = width
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.layers = nn.Sequential(nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.Dropout(0.5))

    def preprocess(self, raw: Tensor) -> Tensor:
        return raw.float() + (torch.randn(raw.shape) if self.training else 0.0)

    def forward(self, inputs: Tensor) -> Tensor:
        features: Tensor = self.layers(inputs)
        return features


@pytest.fixture
def linear() -> Callable[..., Backbone]:
    """Builds a linear backbone: ``inputs``, ``width``, ``seed``, ``scale``, and ``shape=False`` for rows of any shape."""
    return Linear


@pytest.fixture
def moody() -> Callable[..., Backbone]:
    """Builds a backbone whose output depends on the mode that it is in."""
    return Moody


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded generator."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def table() -> Callable[..., Data]:
    """Builds a labelled table: the labels of its rows, and the seed of their features."""

    def build(labels: list[int], inputs: int = 4, seed: int = 0, **columns: Any) -> Data:
        rows = torch.randn(len(labels), inputs, generator=torch.Generator().manual_seed(seed))
        return Data(x=rows, label=torch.tensor(labels), **columns)

    return build
