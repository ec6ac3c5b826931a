"""Backbone: what turns a column of raw data into features, with the preprocessing that belongs to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self

from torch import Tensor, nn

from latewood.core.data import Data
from latewood.core.errors import DataError


class Backbone(nn.Module, ABC):
    """Maps one column of a :class:`~latewood.core.data.Data` to features of shape ``(n, width)``.

    ``column`` names the column that it reads, ``shape`` is the shape of one raw row there (checked, so that images of
    another size get a sentence and not a stack trace), ``width`` the number of features, ``settings`` what it was made
    with. Preprocessing is part of it, since every pretrained network wants its own: :meth:`prepare` turns raw rows into
    network inputs and applies training augmentation only in training mode; :meth:`forward` takes such inputs.
    """

    width: int
    #: Whether its weights and running statistics stay as they are, whatever is trained around it.
    frozen = False

    def __init__(self, column: str, shape: tuple[int, ...] | None, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.column, self.shape, self.settings = column, shape, dict(settings)

    @abstractmethod
    def forward(self, inputs: Tensor) -> Tensor:
        """Features of shape ``(n, width)`` of prepared inputs."""

    def preprocess(self, raw: Tensor) -> Tensor:
        """Network inputs of raw rows: scaling, normalisation, resizing, and augmentation in training mode."""
        return raw.float()

    def prepare(self, data: Data) -> Tensor:
        """The column that this backbone reads, checked and preprocessed, on the backbone's device."""
        return self.preprocess(self._raw(data))

    def config(self) -> dict[str, Any]:
        """What it was made with, in a form that JSON can hold."""
        return {**self.settings, "frozen": True} if self.frozen else dict(self.settings)

    def freeze(self, frozen: bool = True) -> Self:
        """Fix weights, and (by staying in evaluation mode) running statistics, dropout and augmentation; or let go again."""
        self.frozen = frozen
        return self.requires_grad_(not frozen).train(self.training)

    def train(self, mode: bool = True) -> Self:
        return super().train(mode and not self.frozen)

    def _raw(self, data: Data) -> Tensor:
        raw = data.tensor(self.column)
        if self.shape is not None and tuple(raw.shape[1:]) != self.shape:
            raise DataError(
                f"The {self.column} column holds rows of {_by(raw.shape[1:])}, but this model was made for {_by(self.shape)}."
            )
        device = next((t.device for t in (*self.parameters(), *self.buffers())), raw.device)
        return raw.to(device)


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a single number"
