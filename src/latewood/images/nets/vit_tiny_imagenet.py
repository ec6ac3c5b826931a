"""A small vision transformer trained on 100 classes of Tiny ImageNet; it comes with Latewood and needs no network."""

from __future__ import annotations

from pathlib import Path

from latewood.core.data import Data
from latewood.images.nets._image import ImageBackbone
from latewood.images.nets.hub import hub
from latewood.parts.backbone import read_seen


def vit_tiny_imagenet(example: Data, *, pooling: str = "cls", augment: str = "none") -> ImageBackbone:
    """A transformer of 2.7 million weights for small colour images, trained on 100 classes; 192 features.

    Images are brought to 32x32 pixels; grey ones become three equal channels. ``pooling`` is ``cls`` or ``mean``, as for
    :func:`~latewood.images.nets.hub.hub`; ``augment`` is a name of :func:`latewood.images.augment.augmentation`. The
    card beside the weights, ``vit_tiny_imagenet/README.md``, says how it was made and how good it is.

    >>> import torch
    >>> photos = Data(image=torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    >>> backbone = vit_tiny_imagenet(photos[:1])
    >>> backbone(backbone.prepare(photos)).shape, len(backbone.seen.classes)
    (torch.Size([2, 192]), 100)
    """
    folder = Path(__file__).with_suffix("")
    backbone = hub(example, name=str(folder), pooling=pooling, augment=augment)
    # Where it lies on this machine is no part of what it is.
    backbone.settings = {"name": "vit-tiny-imagenet", "pooling": pooling, "augment": augment}
    backbone.seen = read_seen(folder)
    return backbone
