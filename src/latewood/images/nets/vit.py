"""A vision transformer for small images, from random weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError, DataError
from latewood.images.nets._image import ImageBackbone, check_at_least_one, image_shape, statistics


def vit(
    example: Data,
    *,
    width: int = 192,
    depth: int = 6,
    heads: int = 3,
    patch: int = 4,
    augment: str = "none",
    normalise: str = "dataset",
) -> ImageBackbone:
    """The vision transformer of Dosovitskiy et al. (2021) for square images of any size that ``patch`` divides.

    ``depth`` layers of ``width`` with ``heads`` heads and an MLP four times as wide, on patches of ``patch`` pixels a side
    and a class token; the ``width`` features are that token behind the last LayerNorm. It is the ``ViTModel`` of
    transformers: 2,691,648 parameters as it stands for colour images of 32 pixels, a small image's worth of ViT-Tiny.

    ``augment`` and ``normalise`` are as for :func:`latewood.images.nets.resnet32.resnet32`.

    Errors: :class:`~latewood.core.errors.DataError` for images that ``patch`` does not divide into squares;
    :class:`~latewood.core.errors.ConfigurationError` for a setting that does not exist or does not fit.

    >>> import torch
    >>> photos = Data(image=torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    >>> backbone = vit(photos[:1], width=24, depth=1)
    >>> backbone(backbone.prepare(photos)).shape
    torch.Size([2, 24])
    """
    check_at_least_one("vit", width=width, depth=depth, heads=heads, patch=patch)
    if width % heads:
        raise ConfigurationError(f"The width of vit must be a multiple of its heads, but {heads} does not divide {width}.")
    channels, rows, columns = image_shape(example)
    if rows != columns or rows % patch:
        raise DataError(
            f"vit cuts square images into patches of {patch}x{patch} pixels, which images of {rows}x{columns} are not made of; "
            "set stream.size, or backbone.patch."
        )
    settings = {"name": "vit", "width": width, "depth": depth, "heads": heads, "patch": patch}
    mean, std = statistics(normalise, (channels, rows, columns))
    network = transformer(
        {
            "hidden_size": width,
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "intermediate_size": 4 * width,
            "image_size": rows,
            "patch_size": patch,
            "num_channels": channels,
        }
    )
    settings |= {"augment": augment, "normalise": normalise}
    return VisionTransformer(example, settings, network, augment=augment, mean=mean, std=std)


class VisionTransformer(ImageBackbone):
    """What :func:`vit` builds; ``network`` is the ``ViTModel`` of transformers. It also takes images of other sizes."""

    def __init__(self, example: Data, settings: Mapping[str, Any], network: Any, **preprocessing: Any) -> None:
        super().__init__(example, settings, **preprocessing)
        self.network = network
        self.width = int(network.config.hidden_size)

    def forward(self, inputs: Tensor) -> Tensor:
        other_size = inputs.shape[-1] != self.network.config.image_size
        output = self.network(pixel_values=inputs, interpolate_pos_encoding=other_size)
        features: Tensor = output.last_hidden_state[:, 0]
        return features


def transformer(config: Mapping[str, Any]) -> Any:
    """The network of a configuration of transformers."""
    import transformers

    made: Any = transformers.ViTConfig
    # On so few tokens plain attention is twice as fast in training on a processor as the fused one.
    return transformers.ViTModel(made(**config, attn_implementation="eager"), add_pooling_layer=False)
