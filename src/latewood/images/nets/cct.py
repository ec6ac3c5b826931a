"""The compact convolutional transformer, from random weights."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError
from latewood.images.nets._image import ImageBackbone, check_at_least_one, image_shape, statistics


def cct(
    example: Data,
    *,
    width: int = 256,
    depth: int = 6,
    heads: int = 4,
    ratio: int = 2,
    convolutions: int = 1,
    kernel: int = 3,
    attention_dropout: float = 0.1,
    drop_path: float = 0.1,
    augment: str = "none",
    normalise: str = "dataset",
) -> ImageBackbone:
    """The compact convolutional transformer (Hassani et al., 2021), CCT-6/3x1 as it stands, for images of any size.

    ``convolutions`` convolutions of ``kernel`` pixels, without bias, each with ReLU and a max pooling that halves both
    sides, make tokens of ``width`` numbers (64 between them); sine positions are added. ``depth`` blocks do
    ``x = x + attention(pre_norm(x))``, ``x = norm1(x)``, ``x = x + mlp(x)`` with ``heads`` heads and an MLP ``ratio`` times as
    wide; no projection of attention has a bias. The features are the tokens behind a last norm, averaged by a softmax of
    one score for each (sequence pooling). ``attention_dropout`` and ``drop_path`` (which rises with depth) act in training.

    ``augment`` and ``normalise`` are as for :func:`latewood.images.nets.resnet32.resnet32`.

    Errors: :class:`~latewood.core.errors.ConfigurationError` for a setting that does not exist or does not fit.

    >>> photos = Data(image=torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    >>> backbone = cct(photos[:1])
    >>> backbone(backbone.prepare(photos)).shape, sum(p.numel() for p in backbone.parameters())
    (torch.Size([2, 256]), 3164161)
    """
    check_at_least_one("cct", width=width, depth=depth, heads=heads, ratio=ratio, convolutions=convolutions, kernel=kernel)
    if width % heads:
        raise ConfigurationError(f"The width of cct must be a multiple of its heads, but {heads} does not divide {width}.")
    if kernel % 2 == 0:
        raise ConfigurationError(f"The kernel of cct must be odd, but it is {kernel}.")
    for name, share in (("attention_dropout", attention_dropout), ("drop_path", drop_path)):
        if not 0 <= share < 1:
            raise ConfigurationError(f"The {name} of cct must lie from 0 to below 1, but it is {share}.")
    return CompactTransformer(
        example, width, depth, heads, ratio, convolutions, kernel, attention_dropout, drop_path, augment, normalise
    )


class CompactTransformer(ImageBackbone):
    """What :func:`cct` builds; ``pool`` scores the tokens."""

    positions: Tensor

    def __init__(
        self,
        example: Data,
        width: int,
        depth: int,
        heads: int,
        ratio: int,
        convolutions: int,
        kernel: int,
        attention_dropout: float,
        drop_path: float,
        augment: str,
        normalise: str,
    ) -> None:
        settings = {"name": "cct", "width": width, "depth": depth, "heads": heads, "ratio": ratio}
        settings |= {"convolutions": convolutions, "kernel": kernel, "attention_dropout": attention_dropout}
        settings |= {"drop_path": drop_path, "augment": augment, "normalise": normalise}
        shape = image_shape(example)
        mean, std = statistics(normalise, shape)
        super().__init__(example, settings, augment=augment, mean=mean, std=std)
        self.width = width
        self.tokenizer = _tokenizer((shape[0], *[64] * (convolutions - 1), width), kernel)
        with torch.no_grad():
            tokens = self.tokenizer(torch.zeros(1, *shape)).flatten(2).shape[2]
        # They follow from the settings, so they belong to no checkpoint.
        self.register_buffer("positions", sine_positions(tokens, width), persistent=False)
        rates = torch.linspace(0, drop_path, depth).tolist()
        self.blocks = nn.ModuleList(Block(width, heads, ratio * width, attention_dropout, rate) for rate in rates)
        self.norm = nn.LayerNorm(width)
        self.pool = nn.Linear(width, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        tokens: Tensor = self.tokenizer(inputs).flatten(2).mT + self.positions
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)
        shares = self.pool(tokens).softmax(1)
        features: Tensor = (shares.mT @ tokens).squeeze(1)
        return features


class Block(nn.Module):
    """A block in the order of CCT: the residual stream itself is normalised between attention and MLP."""

    def __init__(self, width: int, heads: int, hidden: int, attention_dropout: float, drop_path: float) -> None:
        super().__init__()
        self.pre_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads, attention_dropout)
        self.norm1 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.drop_path = drop_path

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.norm1(tokens + self._sometimes(self.attention(self.pre_norm(tokens))))
        return tokens + self._sometimes(self.mlp(tokens))

    def _sometimes(self, change: Tensor) -> Tensor:
        """Left out for some of the images in training (Huang et al., 2016)."""
        if not self.training or not self.drop_path:
            return change
        kept = torch.rand(len(change), 1, 1, device=change.device) >= self.drop_path
        return change * kept / (1 - self.drop_path)


class Attention(nn.Module):
    """Attention of ``num_heads`` heads, each of which has its own rows of the projections; no biases."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = heads, dropout
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = (
            projection(tokens).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        # On so few tokens plain attention is faster in training on a processor than the fused one.
        shares = (query * query.shape[-1] ** -0.5 @ key.mT).softmax(-1)
        mixed = F.dropout(shares, self.dropout, self.training) @ value
        projected: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return projected


def sine_positions(tokens: int, width: int) -> Tensor:
    """The fixed positions of Vaswani et al. (2017), (tokens, width): sines in even columns, cosines in odd ones."""
    columns = torch.arange(width, dtype=torch.float64)
    angles = torch.arange(tokens, dtype=torch.float64)[:, None] / 10_000 ** (2 * (columns // 2) / width)
    return torch.where(columns % 2 == 0, angles.sin(), angles.cos()).float()


def _tokenizer(channels: tuple[int, ...], kernel: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(channels):
        convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        nn.init.kaiming_normal_(convolution.weight)
        layers += [convolution, nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*layers)
