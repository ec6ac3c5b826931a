"""Any pretrained vision network of the Hugging Face hub, by name or from a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError
from latewood.core.registry import nearest
from latewood.images.nets._image import ImageBackbone
from latewood.images.nets._sizing import _INTERPOLATIONS, Sizing, read_sizing
from latewood.parts.pretrained import find_checkpoint, first_line, load_network, save_checkpoint, weight_names

_POOLINGS = ("auto", "cls", "mean", "pooler")
_PREPROCESSING = ("preprocessor_config.json", "processor_config.json")


def hub(
    example: Data,
    *,
    name: str,
    pooling: str = "auto",
    preprocessing: str | Mapping[str, Any] = "checkpoint",
    revision: str | None = None,
    local_only: bool = False,
    augment: str = "none",
) -> ImageBackbone:
    """A pretrained vision network: ViT, DINOv2, the image tower of CLIP or SigLIP, ResNet, ConvNeXt, Swin, …

    ``name`` is a name on the hub (``google/vit-base-patch16-224-in21k``) or a folder in the hub's format;
    ``revision`` a branch, tag or commit of it. ``local_only`` forbids to download what is not in the hub's local cache.
    Only weights as safetensors are loaded, in float32, by the library transformers; no code of a checkpoint is ever run.

    ``pooling`` makes features of shape ``(n, width)`` of the network's output: ``cls`` is the class token behind the last
    LayerNorm (not ViT's ``pooler_output``, which adds a tanh layer), ``mean`` the mean over patches or positions,
    ``pooler`` the network's own pooled output. ``auto`` is ``cls`` for networks with such a token (ViT, DINOv2, DeiT)
    and ``pooler`` for the others (CLIP: the class token behind its last LayerNorm, before the projection; ResNet,
    ConvNeXt, Swin: the average over positions).

    ``preprocessing`` is ``checkpoint`` (size, crop, interpolation and statistics of the checkpoint's image processor),
    ``unit`` (the same size and crop, but pixels stay in [0, 1], as several papers have it), or the numbers themselves,
    named as in :class:`~latewood.images.nets._sizing.Sizing`. Images are resized in whole batches on the device. Grey
    images become three equal channels. ``augment``, a name of :func:`latewood.images.augment.augmentation`, acts on the
    images as they arrive, before they are resized.

    The backbone comes in evaluation mode. Its ``config()`` holds the numbers of preprocessing and, from the hub, the
    commit that was loaded: given back to this function, it builds the same again even where the name has moved on.

    Errors: :class:`~latewood.core.errors.ConfigurationError` with one sentence if the checkpoint is not there, has no
    weights as safetensors, lacks weights of the network, is no vision network, or does not fit the settings.

    >>> import tempfile
    >>> from transformers import ViTConfig, ViTModel
    >>> folder = tempfile.mkdtemp()
    >>> tiny = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16)
    >>> ViTModel(tiny).save_pretrained(folder)
    >>> digits = Data(image=torch.zeros(5, 1, 8, 8, dtype=torch.uint8))
    >>> backbone = hub(digits[:1], name=folder, preprocessing="unit")
    >>> backbone(backbone.prepare(digits)).shape
    torch.Size([5, 8])
    >>> backbone.config()["pooling"], backbone.config()["preprocessing"]["resize"]
    ('cls', [16, 16])
    """
    if pooling not in _POOLINGS:
        raise ConfigurationError(f"There is no pooling {pooling!r}{nearest(pooling, _POOLINGS)}.")
    folder = find_checkpoint(name, revision, local_only, _PREPROCESSING, "google/vit-base-patch16-224-in21k")
    if pooling == "auto":
        pooling = "cls" if any(weight.endswith("cls_token") for weight in weight_names(folder)) else "pooler"
    network = _load(name, folder, pooling)
    sizing = _sizing(name, folder, preprocessing, network.config)
    settings = {
        "name": name,
        "pooling": pooling,
        "preprocessing": sizing.config(),
        "revision": None if Path(name).expanduser().is_dir() else folder.name,
        "augment": augment,
    }
    return HubBackbone(example, settings, network, sizing)


class HubBackbone(ImageBackbone):
    """What :func:`hub` builds; ``network`` is the model of transformers."""

    def __init__(self, example: Data, settings: Mapping[str, Any], network: nn.Module, sizing: Sizing) -> None:
        # Folded, so that (pixels * scale - mean) / std costs no third pass over the images.
        mean, std = ([value / sizing.scale for value in values] for values in (sizing.mean, sizing.std))
        super().__init__(example, settings, augment=settings["augment"], mean=mean, std=std)
        self.network, self.sizing, self.pooling = network, sizing, settings["pooling"]
        self.extra_tokens = _extra_tokens(network)
        self.eval()
        self.width = self._probe(settings["name"])

    def resize(self, pixels: Tensor) -> Tensor:
        return self.sizing.apply(pixels)

    def forward(self, inputs: Tensor) -> Tensor:
        output = self.network(pixel_values=inputs)
        pooled: Tensor
        if self.pooling == "pooler":
            pooled = output.pooler_output.flatten(1)
        elif self.pooling == "cls":
            pooled = output.last_hidden_state[:, 0]
        else:
            states = output.last_hidden_state
            pooled = states.mean((2, 3)) if states.dim() == 4 else states[:, self.extra_tokens :].mean(1)
        return pooled

    def save(self, folder: Path) -> None:
        """Write the network, as it is now, and its preprocessing as a folder in the hub's format.

        :func:`hub` with that folder as ``name``, no ``revision``, and the rest of :meth:`config` builds a backbone with the
        same features, bit for bit. Errors: :class:`~latewood.core.errors.StorageError` if ``folder`` exists already and is
        not empty, or can't be written.
        """
        save_checkpoint(folder, [self.network], {"preprocessor_config.json": _processor(self.sizing)})

    @torch.no_grad()
    def _probe(self, name: str) -> int:
        """The number of features, found by one image; what the network can't do with it becomes one sentence."""
        inputs = self.preprocess(torch.zeros(1, *self.shape))
        try:
            return int(self(inputs).shape[1])
        except (ValueError, RuntimeError, AttributeError, IndexError) as error:
            size = "x".join(map(str, inputs.shape[1:]))
            reason = first_line(error) if isinstance(error, ValueError | RuntimeError) else "it has no such output"
            raise ConfigurationError(
                f"The network {name!r} gives no features with pooling={self.pooling!r} of images that preprocessing "
                f"made {size}: {reason}."
            ) from None


def _load(name: str, folder: Path, pooling: str) -> nn.Module:
    """The vision network of a checkpoint."""
    network = load_network(
        name,
        folder,
        part="vision_config",
        inputs="pixel_values",
        kind="vision network",
        rows="images",
        pooler=pooling == "pooler",
    )
    if getattr(network.config, "model_type", "") == "vit_mae":
        raise ConfigurationError(
            f"{name!r} is a masked autoencoder, which hides most of each image at random; "
            "right would be a network fine-tuned from it."
        )
    if pooling == "cls" and not any(weight.endswith("cls_token") for weight, _ in network.named_parameters()):
        raise ConfigurationError(f"{name!r} has no class token behind its last layer; use pooling='pooler' or 'mean'.")
    return network


def _sizing(name: str, folder: Path, preprocessing: str | Mapping[str, Any], config: Any) -> Sizing:
    if not isinstance(preprocessing, str):
        return Sizing.from_config(preprocessing)
    if preprocessing not in ("checkpoint", "unit"):
        hint = nearest(preprocessing, ("checkpoint", "unit"))
        raise ConfigurationError(f"There is no preprocessing {preprocessing!r}{hint}.")
    told = read_sizing(folder)
    if preprocessing == "checkpoint":
        if told is None:
            raise ConfigurationError(
                f"The checkpoint {name!r} has no preprocessor_config.json that says how to prepare images; "
                "use preprocessing='unit', or give the numbers yourself."
            )
        return told
    channels = getattr(config, "num_channels", 3)
    plain = Sizing(mean=(0.0,) * channels, std=(1.0,) * channels)
    if told is not None:
        return replace(plain, resize=told.resize, crop=told.crop, interpolation=told.interpolation)
    size = getattr(config, "image_size", 224)
    return replace(plain, resize=(size, size) if isinstance(size, int) else tuple(size))


def _processor(sizing: Sizing) -> dict[str, Any]:
    """Preprocessing in the words of an image processor of transformers, one that can resize in both ways and crop."""
    resize, crop = sizing.resize, sizing.crop
    told: dict[str, Any] = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": resize is not None,
        "resample": next(number for number, name in _INTERPOLATIONS.items() if name == sizing.interpolation),
        "do_center_crop": crop is not None,
        "do_rescale": True,
        "rescale_factor": sizing.scale / 255,
        "do_normalize": True,
        "image_mean": list(sizing.mean),
        "image_std": list(sizing.std),
    }
    if resize is not None:
        told["size"] = {"shortest_edge": resize} if isinstance(resize, int) else _edges(resize)
    return told | ({"crop_size": _edges(crop)} if crop else {})


def _edges(size: tuple[int, int]) -> dict[str, int]:
    return {"height": size[0], "width": size[1]}


def _extra_tokens(network: nn.Module) -> int:
    """How many tokens come before those of the patches."""
    single = ("cls_token", "class_embedding", "distillation_token")
    count = 0
    for weight, value in network.named_parameters():
        last = weight.rsplit(".", 1)[-1]
        count += 1 if last in single else value.shape[1] if last == "register_tokens" else 0
    return count
