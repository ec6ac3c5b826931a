"""Backbone: what turns a column of raw data into features, with the preprocessing that belongs to it."""

from __future__ import annotations

import importlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from torch import Tensor, nn

from latewood.core import configure, registry
from latewood.core.data import Data
from latewood.core.errors import ConfigurationError, DataError

#: The file of a model folder that tells what the network was trained on.
SEEN = "classes.json"


class Seen(NamedTuple):
    """What a backbone was trained on: a data set, and the names of those of its classes that it saw."""

    data: str
    classes: tuple[str, ...]


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
    #: The classes that its training saw; ``None`` where that is not known.
    seen: Seen | None = None
    #: Whether it may meet streams of such classes.
    allow_seen = False

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
        switches = {"frozen": self.frozen, "allow_seen": self.allow_seen}
        return self.settings | {name: True for name, on in switches.items() if on}

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
        device = next((t.device for t in chain(self.parameters(), self.buffers())), raw.device)
        return raw.to(device)


def build_backbone(
    wanted: str | Mapping[str, Any], wing: str, example: Data, default: Callable[[], str], what: str = "backbone"
) -> Backbone:
    """The backbone of a wing that ``wanted`` names: a net of the wing, or one on a hub or in a folder.

    ``wanted`` is a name, or settings of the net with ``name`` among them (``{"name": "mlp", "width": 64}``); ``frozen``
    keeps it as it is, ``allow_seen`` lets it meet streams of classes that its training saw. Without a name it is what
    ``default`` says. ``example`` is a row of the data that it must read.
    Errors: :class:`~latewood.core.errors.ConfigurationError` for an unknown name or setting.
    """
    if not isinstance(wanted, str | Mapping):
        raise ConfigurationError(f"{what} names a net, or has settings such as {what}.name, but it is {wanted!r}.")
    settings = {"name": wanted} if isinstance(wanted, str) else dict(wanted)
    frozen = configure.validate(settings.pop("frozen", False), bool, f"{what}.frozen")
    allow_seen = configure.validate(settings.pop("allow_seen", False), bool, f"{what}.allow_seen")
    name = settings.pop("name", None) or default()
    known = {entry.name for entry in registry.entries("nets", wing)}
    if name not in known and ("/" in name or Path(name).is_dir()):  # on a hub, or a folder in a hub's form
        nets = importlib.import_module(f"latewood.{wing}.nets")
        settings, name = {**settings, "name": name}, _reader(Path(name)) or nets.pretrained(example)
    builder = registry.find("nets", name, wing).load()
    backbone: Backbone = configure.build(builder, settings, what, example=example)
    if "name" in settings:
        backbone.seen = read_seen(Path(settings["name"]))
    backbone.allow_seen = allow_seen
    return backbone.freeze() if frozen else backbone


def read_seen(folder: Path) -> Seen | None:
    """What ``folder/classes.json`` tells of a network's training; ``None`` without such a file.

    Errors: :class:`~latewood.core.errors.ConfigurationError` if it is damaged.
    """
    file = folder.expanduser() / SEEN
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        return Seen(str(told["data"]), tuple(map(str, told["classes"])))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{file} is damaged: it must tell 'data', a name, and 'classes', a list of names.") from error


def _reader(folder: Path) -> str | None:
    """The net of the wing that reads this folder, where the folder names one itself."""
    try:
        told = json.loads((folder.expanduser() / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # whoever reads the network tells what is wrong
    return told.get("latewood_net") if isinstance(told, dict) else None


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a single number"
