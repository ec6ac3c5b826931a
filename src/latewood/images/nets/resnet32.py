"""ResNet-32, the residual network for small images."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from latewood.core.data import Data
from latewood.images.nets._image import ImageBackbone, check_at_least_one, image_shape
from latewood.images.nets._residual import ResidualBackbone, stages


def resnet32(example: Data, *, width: int = 16, augment: str = "none", normalise: str = "dataset") -> ImageBackbone:
    """ResNet-32 for CIFAR (He et al. 2016, section 4.2): three stages of five blocks; ``4 * width`` = 64 features.

    The stages have ``width``, twice and four times as many channels. Where a stage changes the shape, the shortcut has
    no parameters (option A: every other pixel, new channels zero), convolutions have no bias, and each batch norm has a
    weight and a bias: 463,504 parameters for colour images, the number that the survey of class-incremental learning
    (Zhou et al. 2024) counts with; projections (option B) would make it 466,256. The features end with a ReLU.

    ``augment`` is a name of :func:`latewood.images.augment.augmentation`. ``normalise`` is ``dataset`` (published mean
    and deviation for that shape of images), ``cifar10``, ``cifar100``, ``imagenet``, ``mnist`` or ``none``.

    Errors: :class:`~latewood.core.errors.ConfigurationError` for a setting that does not exist or does not fit.

    >>> import torch
    >>> photos = Data(image=torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    >>> backbone = resnet32(photos[:1])
    >>> backbone(backbone.prepare(photos)).shape, sum(p.numel() for p in backbone.parameters())
    (torch.Size([2, 64]), 463504)
    """
    check_at_least_one("resnet32", width=width)
    settings = {"name": "resnet32", "width": width, "augment": augment, "normalise": normalise}
    stem = nn.Sequential(
        nn.Conv2d(image_shape(example)[0], width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
    )
    body = stages((width, 2 * width, 4 * width), 5, SubsampleShortcut)
    return ResidualBackbone(example, settings, stem=stem, stages=body, width=4 * width)


class SubsampleShortcut(nn.Module):
    """The shortcut without parameters: every ``stride``-th pixel, with zeros as the new channels (option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.more, self.stride = outputs - inputs, stride

    def forward(self, inputs: Tensor) -> Tensor:
        return F.pad(inputs[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
