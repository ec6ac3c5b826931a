"""A network of Latewood with the weights that ``latewood pretrain`` gave it, from its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from latewood.core import configure, registry
from latewood.core.checkpoint import write_tensors
from latewood.core.data import Data
from latewood.core.errors import ConfigurationError, DataError
from latewood.images.nets._image import ImageBackbone, image_shape
from latewood.images.nets._sizing import Sizing, read_sizing
from latewood.images.nets.hub import _processor
from latewood.parts.pretrained import find_checkpoint, first_line, save_checkpoint

_WEIGHTS = "model.safetensors"


def trained(example: Data, *, name: str, augment: str = "none") -> ImageBackbone:
    """What ``latewood pretrain`` made of one of the nets here that transformers does not know; ``name`` is its folder.

    Images of other sizes are brought to the one that it was trained on. ``augment`` is a name of
    :func:`latewood.images.augment.augmentation`. The backbone comes in evaluation mode.

    Errors: :class:`~latewood.core.errors.ConfigurationError` if the folder is not there or not what was written;
    :class:`~latewood.core.errors.DataError` for colour images where it was trained on grey ones.
    """
    folder = find_checkpoint(name, None, True, [], "vit-tiny-imagenet")
    sizing = read_sizing(folder)
    try:
        told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        channels, height, width = map(int, told["shape"])
        settings = dict(told["net"])
        build = registry.find("nets", settings.pop("name"), "images").load()
        blank = Data(image=torch.zeros(1, channels, height, width, dtype=torch.uint8))
        network: ImageBackbone = configure.build(build, settings, "net", example=blank)
        network.load_state_dict(load_file(folder / _WEIGHTS))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ConfigurationError(f"The trained network in {name!r} can't be read: {first_line(error)}.") from None
    if sizing is None:
        raise ConfigurationError(f"The trained network in {name!r} has lost its preprocessor_config.json; copy it again.")
    if image_shape(example)[0] not in (1, channels):
        raise DataError(
            f"The network in {name!r} was trained on grey images, but these have {image_shape(example)[0]} channels."
        )
    return TrainedBackbone(example, {"name": name, "augment": augment}, network, sizing)


class TrainedBackbone(ImageBackbone):
    """What :func:`trained` builds; ``network`` is the net itself."""

    def __init__(self, example: Data, settings: Mapping[str, Any], network: ImageBackbone, sizing: Sizing) -> None:
        super().__init__(example, settings, augment=settings["augment"], mean=sizing.mean, std=sizing.std)
        self.network, self.sizing, self.width = network, sizing, network.width
        self.eval()

    def resize(self, pixels: Tensor) -> Tensor:
        return self.sizing.apply(pixels)

    def forward(self, inputs: Tensor) -> Tensor:
        features: Tensor = self.network(inputs)
        return features

    def save(self, folder: Path) -> None:
        """Write the network, as it is now, as a folder that :func:`trained` reads.

        Errors: :class:`~latewood.core.errors.StorageError` if ``folder`` exists already and is not empty, or can't be
        written.
        """
        save_checkpoint(folder, [_Net(self.network)], trained_files(self.network, self.sizing))


def trained_files(network: ImageBackbone, sizing: Sizing) -> dict[str, Any]:
    """The JSON files beside the weights of a trained net."""
    config = {"latewood_net": "trained", "net": network.settings, "shape": list(network.shape)}
    return {"config.json": config, "preprocessor_config.json": _processor(sizing)}


class _Net:
    """Writes its own weights, as the networks of transformers do."""

    def __init__(self, network: ImageBackbone) -> None:
        self.network = network

    def save_pretrained(self, folder: Path) -> None:
        write_tensors(folder / _WEIGHTS, self.network.state_dict())
