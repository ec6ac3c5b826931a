"""Convolutions over the weight matrices of attention: a small change of a large projection, head by head."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latewood.core.errors import ConfigurationError


class WeightConvolution(nn.Module):
    """Maps ``matrices`` weights (m, D, D') to new ones: ``Conv(W^h) + sigmoid(a) W^h`` for each head's rows ``W^h``.

    Each head of each matrix has its own ``kernel`` x ``kernel`` convolution of one channel with a bias, whose zero padding
    keeps the shape, and its own gate ``a``, 1 at first; without ``gate`` there is no second term. They are computed as one
    grouped convolution. Errors: :class:`~latewood.core.errors.ConfigurationError` if the kernel is not odd.

    >>> convolution = WeightConvolution(matrices=2, heads=4, kernel=3)
    >>> convolution(torch.rand(2, 16, 16)).shape, sum(p.numel() for p in convolution.parameters())
    (torch.Size([2, 16, 16]), 88)
    """

    def __init__(self, matrices: int, heads: int, kernel: int = 15, gate: bool = True) -> None:
        if kernel < 1 or kernel % 2 == 0:
            raise ConfigurationError(f"kernel must be odd and at least 1, but it is {kernel}.")
        super().__init__()
        self.heads, self.kernel = heads, kernel
        self.weight = nn.Parameter(torch.empty(matrices * heads, 1, kernel, kernel))
        self.bias = nn.Parameter(torch.empty(matrices * heads))
        self.gate = nn.Parameter(torch.empty(matrices * heads)) if gate else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start anew, as torch starts a convolution, from the global generator."""
        bound = 1 / self.kernel
        self.weight.uniform_(-bound, bound)
        self.bias.uniform_(-bound, bound)
        if self.gate is not None:
            self.gate.fill_(1)

    def forward(self, matrices: Tensor) -> Tensor:
        """Weights of the same shape (m, D, D')."""
        count, rows, columns = matrices.shape
        if rows % self.heads:
            raise ConfigurationError(f"A weight of {rows} rows can't be divided among {self.heads} heads.")
        images = matrices.reshape(1, count * self.heads, rows // self.heads, columns)
        changed = F.conv2d(images, self.weight, self.bias, padding=self.kernel // 2, groups=count * self.heads)
        if self.gate is not None:
            changed = changed + self.gate.sigmoid()[:, None, None] * images
        return changed.view(count, rows, columns)
