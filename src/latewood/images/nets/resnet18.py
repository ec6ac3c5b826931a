"""ResNet-18, with a stem for small images or the one for ImageNet."""

from __future__ import annotations

from torch import nn

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError
from latewood.core.registry import nearest
from latewood.images.nets._image import ImageBackbone, check_at_least_one, image_shape
from latewood.images.nets._residual import ResidualBackbone, stages


def resnet18(
    example: Data, *, width: int = 64, stem: str = "small", augment: str = "none", normalise: str = "dataset"
) -> ImageBackbone:
    """ResNet-18 (He et al. 2016, table 1): four stages of two blocks; ``8 * width`` = 512 features.

    ``stem="small"`` is a 3x3 convolution that keeps the size, for images up to 64x64; ``stem="imagenet"`` a 7x7
    convolution and a max-pooling that quarter it. Shortcuts that change the shape are 1x1 convolutions with batch norm
    (option B). With the ImageNet stem and colour images it has 11,176,512 parameters. ``width=20`` gives the reduced
    ResNet-18 of Lopez-Paz & Ranzato 2017. ``augment`` and ``normalise`` are as for
    :func:`~latewood.images.nets.resnet32.resnet32`.

    Errors: :class:`~latewood.core.errors.ConfigurationError` for a setting that does not exist or does not fit.

    >>> import torch
    >>> photos = Data(image=torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    >>> backbone = resnet18(photos[:1], width=20)
    >>> backbone(backbone.prepare(photos)).shape
    torch.Size([2, 160])
    """
    check_at_least_one("resnet18", width=width)
    if stem not in _STEMS:
        raise ConfigurationError(f"There is no stem {stem!r} for resnet18{nearest(stem, _STEMS)}.")
    settings = {"name": "resnet18", "width": width, "stem": stem, "augment": augment, "normalise": normalise}
    body = stages((width, 2 * width, 4 * width, 8 * width), 2, _projection)
    first = _STEMS[stem](image_shape(example)[0], width)
    return ResidualBackbone(example, settings, stem=first, stages=body, width=8 * width)


def _small_stem(inputs: int, outputs: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def _imagenet_stem(inputs: int, outputs: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 7, 2, padding=3, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, padding=1))


_STEMS = {"small": _small_stem, "imagenet": _imagenet_stem}


def _projection(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
