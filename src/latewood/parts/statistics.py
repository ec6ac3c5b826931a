"""Streaming statistics in float64 that are exact under any order and any grouping of what arrives."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from latewood.core.errors import DataError
from latewood.parts.growing import Growing


class Float64(Growing):
    """A module whose tensors are float64 wherever the device has that; Apple's MPS has not, so there they stay on the CPU."""

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # Of what is done to the learner around it (`.to(...)`, `.half()`) only the change of device applies.
        device = fn(torch.empty(0)).device
        if device.type == "mps":
            return self
        return super()._apply(lambda tensor: tensor.to(device), recurse)  # type: ignore[no-untyped-call]


class ClassSums(Float64):
    """Sum of the features and number of samples of each class: the means, without any sample.

    >>> sums = ClassSums(2)
    >>> sums.update(torch.tensor([[1.0, 0.0], [3.0, 2.0]]), torch.tensor([1, 1]), classes=2)
    >>> sums.means()
    tensor([[0., 0.],
            [2., 1.]], dtype=torch.float64)
    """

    sums: Tensor
    counts: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("sums", torch.zeros(0, width, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(0, dtype=torch.int64))

    def update(self, features: Tensor, columns: Tensor, classes: int) -> None:
        """Add samples: ``features`` (n, width), the class column of each (n,), and how many classes there are now."""
        self._make_room(classes)
        features, columns = features.to(self.sums), columns.to(self.sums.device)
        # A product and not index_add_: its order of summation is fixed on every device.
        self.sums += F.one_hot(columns, len(self.sums)).to(features).T @ features
        self.counts = self.counts + torch.bincount(columns, minlength=len(self.sums))

    def subtract(self, features: Tensor, columns: Tensor) -> None:
        """Take samples that were added before out again."""
        features, columns = features.to(self.sums), columns.to(self.sums.device)
        self.sums -= F.one_hot(columns, len(self.sums)).to(features).T @ features
        self.counts = self.counts - torch.bincount(columns, minlength=len(self.sums))

    def keep(self, columns: Tensor) -> None:
        """Drop every class but these."""
        self.sums, self.counts = self.sums[columns], self.counts[columns]

    def means(self) -> Tensor:
        """The mean of each class, shape ``(classes, width)``; zero for a class without samples."""
        return self.sums / torch.where(self.counts > 0, self.counts, 1)[:, None]

    def add(self, other: ClassSums, columns: Tensor, classes: int) -> None:
        """Add another's sums, whose class ``i`` is our ``columns[i]``."""
        self._make_room(classes)
        self.sums[columns] += other.sums
        added = torch.zeros_like(self.counts, dtype=other.counts.dtype)
        added[columns] = other.counts
        self.counts = self.counts + added  # fractions, if either has faded

    def _make_room(self, classes: int) -> None:
        more = max(0, classes - len(self.sums))
        self.sums, self.counts = F.pad(self.sums, (0, 0, 0, more)), F.pad(self.counts, (0, more))

    def fade(self, decay: float) -> None:
        """Multiply all sums, and the weight of all samples so far, by ``decay``."""
        self.sums *= decay
        self.counts = self.counts.double() * decay


class SharedCovariance(Float64):
    """Class means and the covariance within classes, pooled over all of them.

    Kept as sums of outer products, ``sum x x'`` and ``sum_c s_c s_c' / n_c``, whose difference is the scatter within classes:
    exact whatever the order, the grouping or the return of classes.
    """

    products: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.classes = ClassSums(width)
        self.register_buffer("products", torch.zeros(width, width, dtype=torch.float64))

    def update(self, features: Tensor, columns: Tensor, classes: int) -> None:
        """Add samples, as :meth:`ClassSums.update`."""
        features = features.to(self.products)
        self.classes.update(features, columns, classes)
        self.products.addmm_(features.T, features)

    def subtract(self, features: Tensor, columns: Tensor) -> None:
        """Take samples that were added before out again."""
        features = features.to(self.products)
        self.classes.subtract(features, columns)
        self.products.addmm_(features.T, features, alpha=-1)

    def covariance(self) -> Tensor:
        """The pooled covariance, shape ``(width, width)``: scatter within classes divided by the number of samples."""
        sums, counts = self.classes.sums, self.classes.counts
        between = self.classes.means().T @ sums
        return (self.products - between) / counts.sum().clamp(min=1)


class RandomExpansion(Float64):
    """A fixed random layer with ReLU, ``max(0, z B)``, that lifts features (n, width) to ``expansion`` dimensions.

    ``B`` has the initial values of a linear layer without bias (Kaiming-uniform, a = sqrt 5) and never changes.
    """

    weight: Tensor

    def __init__(self, width: int, expansion: int) -> None:
        super().__init__()
        self.width, self.expansion = width, expansion
        self.register_buffer("weight", torch.zeros(0, 0, dtype=torch.float64))

    def draw(self, generator: torch.Generator) -> None:
        """Draw ``B``, once."""
        if not len(self.weight):
            bound = 1 / math.sqrt(self.width)
            values = torch.rand(self.width, self.expansion, generator=generator, dtype=torch.float64)
            self.weight = (values * 2 * bound - bound).to(self.place)

    def forward(self, features: Tensor) -> Tensor:
        lifted: Tensor = F.relu(features.to(self.weight) @ self.weight)
        return lifted


class RecursiveRidge(Float64):
    """Ridge regression that is updated by batches and always equals the solution on all rows so far.

    Minimises ``|Y - X W|^2 + gamma |W|^2`` over all rows seen. Kept are the weights ``W`` (width, targets) and
    ``R = (X'X + gamma I)^-1`` (width, width), which is G-ACIL's "regularized feature autocorrelation matrix"; nothing for
    each row. An update of ``n`` rows costs two products with ``R``'s size, ``4 n width^2`` FLOPs, and one Cholesky
    factor of size ``n``, independent of what came before.

    In float64 because the error of the recursion grows with ``|X|^2 / gamma``: at 1e10 about 7 digits are left. A larger
    ``gamma`` is the remedy.

    >>> ridge = RecursiveRidge(2, gamma=1.0)
    >>> ridge.update(torch.eye(2), torch.tensor([[1.0], [2.0]]))
    >>> ridge.weight
    tensor([[0.5000],
            [1.0000]], dtype=torch.float64)
    """

    weight: Tensor
    inverse: Tensor

    def __init__(self, width: int, gamma: float) -> None:
        super().__init__()
        self.gamma = gamma
        self.register_buffer("weight", torch.zeros(width, 0, dtype=torch.float64))
        # Made at the first update: at full size it is large, and a learner that is only being built needs none.
        self.register_buffer("inverse", torch.zeros(0, 0, dtype=torch.float64))

    def update(self, rows: Tensor, targets: Tensor) -> None:
        """Learn ``rows`` (n, width) with ``targets`` (n, t); if ``t`` has grown, new columns of the weights start at zero.

        Missing columns of ``targets`` count as zeros. Errors: :class:`~latewood.core.errors.DataError` if the update can't
        be solved (NaN, or numbers too large for ``gamma``); nothing has changed then.
        """
        self._change(rows, targets, 1)

    def downdate(self, rows: Tensor, targets: Tensor) -> None:
        """Unlearn rows that were learned with these targets: the solution is the one on all others.

        Errors: :class:`~latewood.core.errors.DataError` if such rows can't have been learned; nothing has changed then.
        """
        self._change(rows, targets, -1)

    def keep(self, targets: Tensor) -> None:
        """Drop every target but these columns; the weights of the others don't depend on them."""
        self.weight = self.weight[:, targets]

    def _change(self, rows: Tensor, targets: Tensor, sign: int) -> None:
        rows, targets = rows.to(self.weight), targets.to(self.weight)
        inverse = self.inverse if len(self.inverse) else torch.eye(len(self.weight)).to(self.weight) / self.gamma
        projected = rows @ inverse
        core = sign * projected @ rows.T
        core.diagonal().add_(1)
        factor, failed = torch.linalg.cholesky_ex(core)
        if failed or not torch.isfinite(factor).all() or not torch.isfinite(targets).all():
            reason = f"or are too large for gamma = {self.gamma}" if sign > 0 else "or were never learned"
            raise DataError(f"The ridge update can't be solved: rows hold NaN, {reason}.")
        more = targets.shape[1] - self.weight.shape[1]
        self.inverse, self.weight = inverse, F.pad(self.weight, (0, max(0, more)))
        residual = F.pad(targets, (0, max(0, -more))) - rows @ self.weight
        # With L L' = I + X R X' and V = L^-1 X R, the Woodbury identity is R <- R - V'V, and W <- W + V' L^-1 (Y - X W);
        # with the other sign in all three places, rows leave.
        whitened = torch.linalg.solve_triangular(factor, projected, upper=False)
        self.inverse.addmm_(whitened.T, whitened, alpha=-sign)
        self.weight.addmm_(whitened.T, torch.linalg.solve_triangular(factor, residual, upper=False), alpha=sign)

    def symmetrise(self) -> None:
        """Average ``R`` with its transpose, which rounding drives apart by a last bit an update."""
        self.inverse = (self.inverse + self.inverse.T) / 2

    def forward(self, rows: Tensor) -> Tensor:
        """Predicted targets, shape ``(n, t)``."""
        targets: Tensor = rows.to(self.weight) @ self.weight
        return targets


def ridge_solution(rows: Tensor, targets: Tensor, gamma: float) -> Tensor:
    """The joint solution ``(X'X + gamma I)^-1 X'Y`` in float64: what :class:`RecursiveRidge` must equal."""
    rows, targets = rows.double(), targets.double()
    gram = rows.T @ rows + gamma * torch.eye(rows.shape[1], dtype=torch.float64, device=rows.device)
    solution: Tensor = torch.linalg.solve(gram, rows.T @ targets)
    return solution
