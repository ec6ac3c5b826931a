"""Linear discriminant analysis from running sums: exact for every order and grouping of what arrives."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from latewood.core.errors import ConfigurationError
from latewood.parts.statistics import SharedCovariance

Scatter = Literal["total", "within"]


class LDA(SharedCovariance):
    """Scores ``h' S^-1 m_c - 1/2 m_c' S^-1 m_c`` for each class ``c`` with mean ``m_c``: no prior and no other intercept.

    ``S`` is a covariance of all features so far, plus ``ridge`` times the identity: ``total`` around the mean of all, as
    first session adaptation has it (Panos et al., 2023), or ``within`` classes, around the mean of each, as in the
    classical method. Both divide by the number of samples less one. Kept are sums alone, width² + classes * width numbers:
    samples can be added and subtracted in any order and grouping, and two heads can be added.

    >>> lda = LDA(2)
    >>> lda.update(torch.tensor([[0.0, 0.0], [0.0, 2.0], [4.0, 0.0], [4.0, 2.0]]), torch.tensor([0, 0, 1, 1]), classes=2)
    >>> lda(torch.tensor([[1.0, 1.0], [3.0, 1.0]])).argmax(1)
    tensor([0, 1])
    """

    def __init__(self, width: int, covariance: Scatter = "total", ridge: float = 1.0) -> None:
        super().__init__(width)
        if not ridge >= 0:
            raise ConfigurationError(f"ridge must be at least 0, but it is {ridge}.")
        self.around, self.ridge = covariance, ridge
        #: Weight and bias, until the sums change.
        self._solved: tuple[Tensor, Tensor] | None = None

    def update(self, features: Tensor, columns: Tensor, classes: int) -> None:
        self._solved = None
        super().update(features, columns, classes)

    def subtract(self, features: Tensor, columns: Tensor) -> None:
        self._solved = None
        super().subtract(features, columns)

    def add(self, other: LDA, columns: Tensor, classes: int) -> None:
        """Add what another head has seen, whose class ``i`` is our ``columns[i]``; ``classes`` is how many there are then."""
        self._solved = None
        self.classes.add(other.classes, columns, classes)
        self.products += other.products

    def keep(self, columns: Tensor) -> None:
        """Drop every class but these; their samples must have been subtracted."""
        self._solved = None
        self.classes.keep(columns)

    def covariance(self) -> Tensor:
        """The covariance without the ridge, shape ``(width, width)``; a single sample has none, and gives zero."""
        sums, counts = self.classes.sums, self.classes.counts
        if self.around == "within":
            means = self.classes.means().T @ sums
        else:
            mean = sums.sum(0)
            means = torch.outer(mean, mean) / counts.sum().clamp(min=1)
        return (self.products - means) / (counts.sum() - 1).clamp(min=1)

    def linear(self) -> tuple[Tensor, Tensor]:
        """Weight (width, classes) and bias (classes,) of the scores, computed once after each change of the sums.

        The bias of a class without samples is minus infinity. Errors: ConfigurationError if ``S`` can't be inverted.
        """
        if self._solved is None:
            self._solved = self._solve()
        return self._solved

    def forward(self, features: Tensor) -> Tensor:
        """Scores, shape ``(n, classes)``."""
        weight, bias = self.linear()
        return features.to(weight) @ weight + bias

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self._solved = None
        super()._load_from_state_dict(*arguments)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._solved = None
        return super()._apply(fn, recurse)

    def _solve(self) -> tuple[Tensor, Tensor]:
        covariance = self.covariance()
        covariance.diagonal().add_(self.ridge)
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if failed:
            count = int(self.classes.counts.sum())
            raise ConfigurationError(
                f"The covariance of {count} samples with {len(covariance)} features can't be inverted; "
                f"set a ridge above {self.ridge}."
            )
        means = self.classes.means()
        weight = torch.cholesky_solve(means.T, factor)
        bias = -0.5 * (weight.T * means).sum(1)
        return weight, bias.masked_fill(self.classes.counts == 0, -torch.inf)
