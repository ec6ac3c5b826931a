"""What the residual networks share: the basic block, and a backbone made of a stem, stages and global average pooling."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from latewood.core.data import Data
from latewood.images.nets._image import ImageBackbone, image_shape, statistics

Shortcut = Callable[[int, int, int], nn.Module]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation, added to a shortcut (He et al. 2016, figure 5 left)."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.convolution1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.convolution2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else shortcut(inputs, outputs, stride)

    def forward(self, inputs: Tensor) -> Tensor:
        residual = F.relu(self.norm1(self.convolution1(inputs)))
        return F.relu(self.norm2(self.convolution2(residual)) + self.shortcut(inputs))


def stages(widths: Iterable[int], blocks: int, shortcut: Shortcut) -> nn.Sequential:
    """Stages of ``blocks`` basic blocks each; every stage but the first halves height and width."""
    result = nn.Sequential()
    inputs = 0
    for outputs in widths:
        first = BasicBlock(inputs or outputs, outputs, 2 if inputs else 1, shortcut)
        result.append(nn.Sequential(first, *(BasicBlock(outputs, outputs, 1, shortcut) for _ in range(blocks - 1))))
        inputs = outputs
    return result


class ResidualBackbone(ImageBackbone):
    """``stem``, ``stages`` and global average pooling; convolutions start Kaiming-normal, batch norms at 1 and 0."""

    def __init__(
        self,
        example: Data,
        settings: Mapping[str, Any],
        *,
        stem: nn.Sequential,
        stages: nn.Sequential,
        width: int,
    ) -> None:
        mean, std = statistics(settings["normalise"], image_shape(example))
        super().__init__(example, settings, augment=settings["augment"], mean=mean, std=std)
        self.stem, self.stages, self.width = stem, stages, width
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, inputs: Tensor) -> Tensor:
        maps: Tensor = self.stages(self.stem(inputs))
        return maps.mean((2, 3))
