"""The gate: how a model does on its canaries, what an update lost, and whether that is too much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

#: A fall counts only if at least so many more canaries of the class are wrong: one alone is chance.
_FEWEST_LOST = 2


@dataclass(frozen=True)
class Loss:
    """A class whose canaries are recognised less often than before; shares of right ones in [0, 1]."""

    label: str
    before: float
    after: float


@dataclass(frozen=True)
class Tally:
    """Of a class's canaries, how many are recognised."""

    right: int
    total: int

    @property
    def share(self) -> float:
        """The share of right ones, in [0, 1]."""
        return self.right / self.total


def tallies(predicted: Tensor, labels: Tensor) -> dict[int, Tally]:
    """For each class among ``labels`` (n,) how many of ``predicted`` (n,) are right.

    >>> tallies(torch.tensor([1, 2, 2]), torch.tensor([1, 1, 2]))
    {1: Tally(right=1, total=2), 2: Tally(right=1, total=1)}
    """
    right = predicted.cpu() == labels
    return {int(c): Tally(int(right[labels == c].sum()), int((labels == c).sum())) for c in labels.unique()}


def losses(before: Mapping[int, Tally], after: Mapping[int, Tally], names: Mapping[int, str]) -> list[tuple[Loss, int]]:
    """What fell, worst first, each with the number of canaries that it cost; both are tallies over the same canaries."""
    fell = [
        (Loss(names[label], then.share, after[label].share), then.right - after[label].right)
        for label, then in before.items()
        if label in after and after[label].right < then.right
    ]
    return sorted(fell, key=lambda found: found[0].after - found[0].before)


def too_much(fallen: Sequence[tuple[Loss, int]], limit: float) -> list[Loss]:
    """The losses that hold an update back: a share that fell by more than ``limit``, and not by one canary alone."""
    return [loss for loss, count in fallen if loss.before - loss.after > limit and count >= _FEWEST_LOST]


def fitted_temperature(scores: Tensor, columns: Tensor, doubt: float) -> float:
    """The temperature at which ``softmax(scores / temperature)`` says best how sure one may be: least cross-entropy.

    ``scores`` (n, classes) of samples with the classes ``columns`` (n,); after Guo et al., 2017, "On calibration of modern
    neural networks". ``doubt`` is the share of its weight that each target gives to all classes alike (Platt, 1999, gives
    ``1 / (n + 2)``): without it, samples that are all right would make the model sure of everything. Searched on a grid of
    121 values from 1e-3 to 1e3, which needs no derivative and always ends.
    """
    scores, columns = scores.double().cpu(), columns.cpu()
    possible = torch.isfinite(scores).all(0)
    if not len(scores) or possible.sum() < 2 or not possible[columns].all():
        return 1.0
    scores, columns = scores[:, possible], (possible.cumsum(0) - 1)[columns]
    grid = torch.logspace(-3, 3, 121, dtype=torch.float64)
    costs = torch.stack([F.cross_entropy(scores / temperature, columns, label_smoothing=doubt) for temperature in grid])
    return float(grid[costs.argmin()])
