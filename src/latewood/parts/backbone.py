"""Backbone: what turns a column of raw data into features, with the preprocessing that belongs to it."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from latewood.core import configure, registry
from latewood.core.data import Data
from latewood.core.errors import ConfigurationError, DataError


class Backbone(nn.Module, ABC):
    """Maps one column of a :class:`~latewood.core.data.Data` to features of shape ``(n, width)``.

    ``column`` names the column that it reads, ``shape`` is the shape of one raw row there (checked, so that images of
    another size get a sentence and not a stack trace), ``width`` the number of features, ``settings`` what it was made
    with. Preprocessing is part of it, since every pretrained network wants its own: :meth:`prepare` turns raw rows into
    network inputs and applies training augmentation only in training mode; :meth:`forward` takes such inputs.
    """

    width: int
    #: Whether its features cost less to compute than to keep.
    cheap: ClassVar[bool] = False
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


def build_backbone(
    wanted: str | Mapping[str, Any], wing: str, example: Data, default: Callable[[], str], what: str = "backbone"
) -> Backbone:
    """The backbone of a wing that ``wanted`` names: a net of the wing, or one on a hub or in a folder.

    ``wanted`` is a name, or settings of the net with ``name`` among them (``{"name": "mlp", "width": 64}``); ``frozen``
    keeps it as it is. Without a name it is what ``default`` says. ``example`` is a row of the data that it must read.
    Errors: :class:`~latewood.core.errors.ConfigurationError` for an unknown name or setting.
    """
    if not isinstance(wanted, str | Mapping):
        raise ConfigurationError(f"{what} names a net, or has settings such as {what}.name, but it is {wanted!r}.")
    settings = {"name": wanted} if isinstance(wanted, str) else dict(wanted)
    frozen = configure.validate(settings.pop("frozen", False), bool, f"{what}.frozen")
    name = settings.pop("name", None) or default()
    known = {entry.name for entry in registry.entries("nets", wing)}
    if name not in known and ("/" in name or Path(name).is_dir()):  # on a hub, or a folder in a hub's form
        nets = importlib.import_module(f"latewood.{wing}.nets")
        settings, name = {**settings, "name": name}, nets.pretrained(example)
    builder = registry.find("nets", name, wing).load()
    backbone: Backbone = configure.build(builder, settings, what, example=example)
    return backbone.freeze() if frozen else backbone


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a single number"
