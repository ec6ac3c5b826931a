"""The network at the bottom of a model: from contents (texts, images) to what its learner learns from."""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from latewood.core.data import Data
from latewood.core.errors import CheckpointError, ConfigurationError
from latewood.core.learner import Learner
from latewood.core.seeding import seeded
from latewood.model.arrivals import Kind
from latewood.parts.backbone import Backbone, build_backbone
from latewood.parts.features import Features

#: What a model stands on if it isn't told.
DEFAULT_BACKBONES: dict[Kind, str] = {"images": "facebook/dinov2-small", "text": "sentence"}
_WINGS: dict[Kind, str] = {"images": "images", "text": "language"}
_FACTS, _NETWORK, _WEIGHTS = "backbone.json", "network", "weights.safetensors"
#: Rows in one pass through the network.
_BATCH = 64


class Embedder:
    """A backbone with the kind, size and channels of the contents that it takes; ``trained`` if the learner trains it too.

    A frozen backbone makes features (n, width) of contents once, and the learner never sees anything else. A trained one
    stays with the learner, whose inputs are then the images themselves, uint8 ``(n, channels, size, size)``.
    """

    def __init__(self, backbone: Backbone, kind: Kind, size: int, channels: int, trained: bool) -> None:
        self.backbone, self.kind, self.size, self.channels, self.trained = backbone, kind, size, channels, trained
        if not trained:
            backbone.freeze()

    @classmethod
    def make(
        cls, kind: Kind, wanted: str | Mapping[str, Any] | None, size: int | None, channels: int, trained: bool, seed: int
    ) -> Embedder:
        """From a name (and settings), as :func:`~latewood.parts.backbone.build_backbone` takes it.

        ``size`` is the side of the square that images are brought to; by default what the network resizes to, or 32.
        """
        if kind == "text" and trained:
            raise ConfigurationError("A text encoder stays frozen; leave out train_backbone.")
        if channels not in (1, 3):
            raise ConfigurationError(f"Images have 1 channel (grey) or 3 (colour), but not {channels}.")
        if size is not None and size < 1:
            raise ConfigurationError(f"size must be at least 1 pixel, but it is {size}.")
        wanted = wanted or DEFAULT_BACKBONES[kind]
        backbone = _built(wanted, kind, size or 224, channels, seed)
        wish = _wish(backbone)
        if size is None and (wish or 32) != 224:
            backbone = _built(wanted, kind, wish or 32, channels, seed)
        return cls(backbone, kind, size or wish or 32, channels, trained)

    @property
    def name(self) -> str:
        """What the network is called."""
        return str(self.backbone.settings.get("name"))

    @torch.no_grad()
    def __call__(self, contents: Tensor | list[str]) -> Tensor:
        """What the learner learns from: features, float32 ``(n, width)``; the images themselves if the backbone is trained."""
        if self.trained:
            assert isinstance(contents, Tensor)
            return contents
        count = len(contents)
        # Texts of a length share a batch, so that little is spent on padding.
        order = sorted(range(count), key=lambda i: len(contents[i])) if isinstance(contents, list) else list(range(count))
        features = torch.empty(count, self.backbone.width)
        for start in range(0, count, _BATCH):
            rows = order[start : start + _BATCH]
            batch = Data({self.backbone.column: [contents[i] for i in rows] if isinstance(contents, list) else contents[rows]})
            features[rows] = self.backbone(self.backbone.prepare(batch)).float().cpu()
        return features

    def learner_backbone(self) -> Backbone:
        """What a learner stands on: these features, or the network itself if it is trained."""
        return copy.deepcopy(self.backbone) if self.trained else Features(self.backbone.width)

    def data(self, inputs: Tensor, **columns: Tensor) -> Data:
        """Inputs as the learner takes them."""
        return Data({("image" if self.trained else "features"): inputs} | columns)

    def save(self, folder: Path) -> None:
        """Write the network and what it was made with into a folder; a checkpoint of a hub in the hub's own format."""
        settings = dict(self.backbone.settings)
        save = getattr(self.backbone, "save", None)
        if callable(save):
            save(folder / _NETWORK)
        else:
            save_file(self.backbone.state_dict(), folder / _WEIGHTS)
        facts = {"kind": self.kind, "size": self.size, "channels": self.channels, "trained": self.trained, "settings": settings}
        (folder / _FACTS).write_text(json.dumps(facts, indent=1))

    @classmethod
    def load(cls, folder: Path) -> Embedder:
        """What :meth:`save` wrote. Errors: :class:`~latewood.core.errors.CheckpointError` if it can't be read."""
        try:
            facts = json.loads((folder / _FACTS).read_text())
            settings = dict(facts["settings"])
            if (folder / _NETWORK).is_dir():
                settings = {name: value for name, value in settings.items() if name != "revision"}
                settings["name"] = str(folder / _NETWORK)
            backbone = _built(settings, facts["kind"], facts["size"], facts["channels"], seed=0)
            if (folder / _WEIGHTS).exists():
                backbone.load_state_dict(load_file(folder / _WEIGHTS))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"The backbone in {folder} can't be read ({error}).") from error
        return cls(backbone, facts["kind"], facts["size"], facts["channels"], facts["trained"])


def _built(wanted: str | Mapping[str, Any], kind: Kind, size: int, channels: int, seed: int) -> Backbone:
    image = torch.zeros(1, channels, size, size, dtype=torch.uint8)
    example = Data(image=image) if kind == "images" else Data(text=["a text"])
    wing = _WINGS[kind]
    nets = importlib.import_module(f"latewood.{wing}.nets")
    with seeded(seed, "initial weights"):
        return build_backbone(wanted, wing, example, lambda: str(nets.default_backbone(Learner, example)))


def _wish(backbone: Backbone) -> int | None:
    """The side of the square that a network's own preprocessing starts with."""
    sizing = getattr(backbone, "sizing", None)
    if sizing is None:
        return None
    wish = sizing.resize or sizing.crop or 224
    return wish if isinstance(wish, int) else max(wish)
