"""Features that were computed before, as a backbone: what a learner stands on where the embedding is done elsewhere."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from latewood.parts.backbone import Backbone


class Embedded(Backbone):
    """Reads the column ``features``, rows of ``width`` numbers, and leaves them as they are."""

    cheap: ClassVar[bool] = True

    def __init__(self, width: int, name: str = "embedded") -> None:
        super().__init__("features", (width,), {"name": name, "width": width})
        self.width = width

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs


class Features(Embedded):
    """Reads the column ``features``, rows of ``width`` numbers, and brings each row to the length ``sqrt(width)``.

    With that length a feature is about one in size whatever network it came from, so that one regularisation suits them
    all: sentence encoders give rows of length one, vision transformers rows of length fifty.

    >>> import torch
    >>> from latewood.core.data import Data
    >>> backbone = Features(4)
    >>> backbone(backbone.prepare(Data(features=torch.tensor([[3.0, 0.0, 4.0, 0.0]]))))
    tensor([[1.2000, 0.0000, 1.6000, 0.0000]])
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, "features")

    def forward(self, inputs: Tensor) -> Tensor:
        scaled: Tensor = F.normalize(inputs) * self.width**0.5
        return scaled
