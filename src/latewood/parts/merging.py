"""Merging of weights: the mean of the sets that training has left behind, kept as their sum."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from latewood.core.errors import LatewoodError
from latewood.parts.growing import Growing


class RunningMean(Growing):
    """The mean of sets of tensors, each set like ``example``, of which only the sum is kept.

    >>> mean = RunningMean([torch.zeros(2)])
    >>> mean.add([torch.tensor([1.0, 2.0])]); mean.add([torch.tensor([3.0, 2.0])])
    >>> mean.means(), mean.sets
    ([tensor([2., 2.])], 2)
    """

    count: Tensor

    def __init__(self, example: Sequence[Tensor]) -> None:
        super().__init__()
        self._parts = len(example)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        for number, tensor in enumerate(example):
            self.register_buffer(f"sum_{number}", torch.zeros_like(tensor, requires_grad=False))

    @property
    def sets(self) -> int:
        """How many sets were added."""
        return int(self.count)

    @torch.no_grad()
    def add(self, tensors: Sequence[Tensor]) -> None:
        """Add a set. The sum holds no view of it, so that training may go on with these very tensors."""
        torch._foreach_add_(self._sums(), list(tensors))
        self.count += 1

    def means(self) -> list[Tensor]:
        """The mean of the sets so far. Errors: :class:`~latewood.core.errors.LatewoodError` while there is none."""
        if not self.sets:
            raise LatewoodError("The mean of sets of weights is asked for before one was added.")
        return list(torch._foreach_div(self._sums(), self.sets))

    def _sums(self) -> list[Tensor]:
        return [getattr(self, f"sum_{number}") for number in range(self._parts)]


def merge_share(alpha: float, times: int) -> float:
    """The share by which ``times`` merges with a fixed target move, if each of them moves by ``alpha``.

    >>> merge_share(0.1, 1), round(merge_share(0.1, 13), 3)
    (0.1, 0.746)
    """
    return alpha if times == 1 else 1 - (1 - alpha) ** times
