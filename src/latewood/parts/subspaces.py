"""Training in subspaces: leading directions of gradients, a sketch of many of them, a basis that grows, a projected Adam."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from latewood.core.errors import ConfigurationError
from latewood.core.recipe import Recipe
from latewood.parts.growing import Growing

#: A new direction of which the basis leaves less than this length is none.
_LEAST_RESIDUAL = 1e-3
#: Directions of a sketch with a smaller share of its energy are rounding.
_LEAST_ENERGY = 1e-12
#: Random directions beyond those asked for, and passes over the matrix, of the approximate decomposition.
_SPARE, _PASSES = 8, 2


def leading(matrices: Tensor, count: int, exact: bool = True) -> tuple[Tensor, Tensor]:
    """The ``count`` leading left singular vectors (..., m, count) and singular values (..., count) of matrices (..., m, n).

    Exact: from the eigenvectors of the smaller Gram matrix, in float64, where squaring costs no digit that float32 has.
    A vector whose singular value is zero may be zero itself. Otherwise approximately: the matrix acts twice on
    ``count + 8`` fixed random directions, and is decomposed within what they span (Halko et al., 2011).

    >>> vectors, values = leading(torch.diag(torch.tensor([1.0, 3.0, 2.0])), 2)
    >>> values.tolist(), vectors.abs().argmax(0).tolist()
    ([3.0, 2.0], [1, 2])
    """
    rows, columns = matrices.shape[-2:]
    if not exact and count + _SPARE < min(rows, columns):
        basis = _range(matrices, count + _SPARE)
        vectors, values = leading(basis.mT @ matrices, count)
        return basis @ vectors, values
    double = matrices.double()
    wide = rows <= columns
    squares, found = torch.linalg.eigh(double @ double.mT if wide else double.mT @ double)
    values = squares[..., -count:].flip(-1).clamp_min(0).sqrt()
    found = found[..., -count:].flip(-1)
    vectors = found if wide else double @ found / values.clamp_min(1e-300).unsqueeze(-2)
    return vectors.to(matrices), values.to(matrices)


def _range(matrices: Tensor, count: int) -> Tensor:
    """An orthonormal basis of most of what the columns of these matrices span."""
    drawn = torch.randn(matrices.shape[-1], count, generator=torch.Generator().manual_seed(0))
    basis: Tensor = torch.linalg.qr(matrices @ drawn.to(matrices))[0]
    for _ in range(_PASSES - 1):
        right = torch.linalg.qr(matrices.mT @ basis)[0]
        basis = torch.linalg.qr(matrices @ right)[0]
    return basis


def frequent_directions(vectors: Tensor, values: Tensor) -> Tensor:
    """A sketch (..., m, c) of ``c + 1`` singular vectors (..., m, c + 1): all squared values are reduced by the last one.

    Its ``S S^T`` is below that of the matrix, by at most the square taken off (Liberty, 2013; Ghashami et al., 2016).
    """
    squares = values.square()
    kept = (squares[..., :-1] - squares[..., -1:]).clamp_min(0).sqrt()
    return vectors[..., :-1] * kept.unsqueeze(-2)


@dataclass(frozen=True)
class SubspaceSettings:
    """How :class:`Subspaces` train a matrix.

    ``rank`` is the dimension of the subspace that moves, ``sketch`` the number of directions that are remembered of the
    gradients. Both are found anew every ``gap`` steps, the older sketch multiplied by ``decay`` before. At the end the
    directions with a share below ``threshold`` of the sketch's energy join the basis (``at_least_one``: the first in any
    case). ``orthogonal`` keeps gradients out of the basis. ``memory`` remembers the task's gradients in a ``sketch``, or
    only the ``last`` one. ``exact`` is that of :func:`leading`. ``align_sign`` turns new directions so that they point
    where those before them did, in whose coordinates the moments are.

    Errors: :class:`~latewood.core.errors.ConfigurationError` for numbers that don't fit.
    """

    rank: int = 15
    sketch: int = 100
    gap: int = 1
    threshold: float = 0.98
    decay: float = 1.0
    orthogonal: bool = True
    memory: Literal["sketch", "last"] = "sketch"
    exact: bool = True
    align_sign: bool = False
    at_least_one: bool = False

    def __post_init__(self) -> None:
        for name in ("rank", "sketch", "gap"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must be at least 1, but it is {getattr(self, name)}.")
        if not 0 < self.threshold <= 1:
            raise ConfigurationError(f"threshold is a share of energy above 0 and at most 1, but it is {self.threshold}.")
        if not 0 <= self.decay <= 1:
            raise ConfigurationError(f"decay must lie between 0 and 1, but it is {self.decay}.")

    def check(self, rows: int, columns: int) -> None:
        """Errors: :class:`~latewood.core.errors.ConfigurationError` if they don't fit matrices of this shape."""
        smaller = min(rows, columns)
        if self.rank > smaller or self.sketch >= smaller:
            raise ConfigurationError(
                f"Matrices of {rows}x{columns} need a rank of at most {smaller} and a sketch below {smaller}, "
                f"but rank is {self.rank} and sketch is {self.sketch}."
            )


class Subspaces(Growing):
    """Trains ``count`` matrices of one shape (m, n) by Adam in subspaces that leave out what earlier tasks used.

    :meth:`step` takes from each gradient what lies in the ``basis``, finds every ``gap`` steps the ``rank`` leading
    directions of the rest (``projection``, count x m x rank) and adds that gradient to the ``sketch`` (count x m x sketch),
    and moves the matrix by Adam in the coordinates of the projection; ``mean`` and ``square`` (count x rank x n) are Adam's
    moments there. :meth:`conclude` lets the leading directions of the sketch join the basis and drops the rest, so between
    tasks there is only the basis: ``basis`` holds all directions side by side, ``kept`` says how many are of which matrix.

    Everything is a buffer, so a state saved in the middle of a task goes on bit for bit.

    >>> weight = nn.Parameter(torch.zeros(4, 6))
    >>> subspaces = Subspaces(1, 4, 6, SubspaceSettings(rank=1, sketch=2))
    >>> weight.grad = torch.outer(torch.tensor([0.0, 1.0, 0.0, 0.0]), torch.ones(6))
    >>> subspaces.step([weight], lr=0.1)
    >>> weight.abs().sum(1).gt(0).tolist()
    [False, True, False, False]
    """

    basis: Tensor
    kept: Tensor
    projection: Tensor
    sketch: Tensor
    mean: Tensor
    square: Tensor
    steps: Tensor

    def __init__(self, count: int, rows: int, columns: int, settings: SubspaceSettings) -> None:
        settings.check(rows, columns)
        super().__init__()
        self.count, self.rows, self.columns, self.settings = count, rows, columns, settings
        self.register_buffer("basis", torch.empty(rows, 0))
        self.register_buffer("kept", torch.zeros(count, dtype=torch.int64))
        for name in ("projection", "sketch", "mean", "square"):
            self.register_buffer(name, torch.empty(0))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._padded: Tensor | None = None

    @torch.no_grad()
    def step(
        self,
        matrices: Sequence[nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        """Move the matrices, whose gradients are there, once. Weight decay, which is decoupled, is not projected."""
        raw = torch.stack([self._matrix(torch.zeros_like(p) if p.grad is None else p.grad) for p in matrices])
        gradients = self._outside(raw)
        if int(self.steps) % self.settings.gap == 0:
            self._refresh(gradients, raw.flatten(1).norm(dim=1))
        self.steps += 1
        moved = self.projection @ self._adam(self.projection.mT @ gradients, betas, eps)
        size = lr * corrected(int(self.steps), betas)
        for matrix, change in zip(matrices, moved, strict=True):
            if weight_decay:
                matrix.mul_(1 - lr * weight_decay)
            matrix.sub_(change.view_as(matrix), alpha=size)

    def restart(self) -> None:
        """Forget what belongs to a task alone; the basis stays."""
        for name in ("projection", "sketch", "mean", "square"):
            setattr(self, name, torch.empty(0, device=self.place))
        self.steps.zero_()

    @torch.no_grad()
    def conclude(self) -> None:
        """The task is over: its main directions join the basis."""
        if self.sketch.numel():
            grown = [
                torch.cat([old, self._new(old, one)], 1)
                for old, one in zip(self.basis.split(self.kept.tolist(), 1), self.sketch, strict=True)
            ]
            self.kept = torch.tensor([part.shape[1] for part in grown], device=self.place)
            self.basis, self._padded = torch.cat(grown, 1), None
            self._tell_if_full()
        self.restart()

    def bases(self) -> Tensor:
        """The bases one by one, (count, m, k), with columns of zeros behind those that are shorter."""
        if self._padded is None or self._padded.device != self.basis.device:
            parts = [part.T for part in self.basis.split(self.kept.tolist(), 1)]
            self._padded = nn.utils.rnn.pad_sequence(parts, batch_first=True).mT
        return self._padded

    def _outside(self, directions: Tensor) -> Tensor:
        """What the bases leave of (count, m, anything)."""
        if not self.settings.orthogonal or not self.basis.shape[1]:
            return directions
        bases = self.bases()
        return torch.baddbmm(directions, bases, bases.mT @ directions, alpha=-1)

    def _refresh(self, gradients: Tensor, sizes: Tensor) -> None:
        count = self.settings.sketch + 1
        vectors, values = leading(gradients, max(count, self.settings.rank), self.settings.exact)
        found = vectors[..., : self.settings.rank]
        # A direction below the rounding of the raw gradient is noise, and may lie anywhere, also in the basis.
        noise = max(self.rows, self.columns) * torch.finfo(gradients.dtype).eps * sizes[:, None]
        solid = values[:, : self.settings.rank] > noise
        # Rounding brings a little of the basis into weak directions, which a second look removes.
        found = self._outside(found) * solid[:, None, :]
        if self.settings.align_sign and self.projection.numel():
            found = found * torch.where((found * self.projection).sum(1, keepdim=True) < 0, -1.0, 1.0)
        self.projection = found
        self._remember(vectors[..., :count], values[..., :count])

    def _remember(self, vectors: Tensor, values: Tensor) -> None:
        if self.settings.memory == "last":
            self.sketch = (vectors * values.unsqueeze(-2))[..., :-1]
            return
        fresh = frequent_directions(vectors, values)
        if self.sketch.numel():
            both = torch.cat([self.settings.decay * self.sketch, fresh], -1)
            fresh = frequent_directions(*leading(both, self.settings.sketch + 1))
        self.sketch = fresh

    def _adam(self, gradients: Tensor, betas: tuple[float, float], eps: float) -> Tensor:
        if not self.mean.numel():
            self.mean, self.square = torch.zeros_like(gradients), torch.zeros_like(gradients)
        return direction(self.mean, self.square, gradients, betas, eps)

    def _new(self, old: Tensor, sketch: Tensor) -> Tensor:
        """The directions of a sketch that join a basis (m, k), orthonormal and orthogonal to it."""
        energy = sketch.double().square().sum(0)
        total = energy.sum()
        if not total > 0:
            return old[:, :0]
        below = energy.cumsum(0) / total < self.settings.threshold
        wanted = int((below & (energy > _LEAST_ENERGY * total)).sum())
        wanted = max(wanted, int(self.settings.at_least_one))
        found, basis = sketch[:, :wanted].double() / energy[:wanted].sqrt(), old.double()
        for _ in range(2):
            found = found - basis @ (basis.T @ found)
        found = found[:, found.norm(dim=0) > _LEAST_RESIDUAL][:, : self.rows - old.shape[1]]
        joining: Tensor = torch.linalg.qr(found)[0].to(old)
        return joining

    def _tell_if_full(self) -> None:
        free = self.rows - int(self.kept.max())
        if self.settings.orthogonal and free < self.settings.rank:
            warnings.warn(
                f"Earlier arrivals fill {self.rows - free} of {self.rows} dimensions of a matrix, which leaves fewer than the "
                f"rank of {self.settings.rank}; lower threshold or sketch, or adapt larger matrices.",
                stacklevel=2,
            )

    def _matrix(self, values: Tensor) -> Tensor:
        return values.reshape(self.rows, self.columns)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self._padded = None


def direction(mean: Tensor, square: Tensor, gradient: Tensor, betas: tuple[float, float], eps: float) -> Tensor:
    """Adam's direction ``m / (sqrt(v) + eps)`` after this gradient, which its moments take in."""
    mean.lerp_(gradient, 1 - betas[0])
    square.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
    return mean / (square.sqrt() + eps)


def corrected(step: int, betas: tuple[float, float]) -> float:
    """What the step size is multiplied with after ``step`` steps, because moments begin at zero; ``eps`` is left out of it."""
    return math.sqrt(1 - betas[1] ** step) / (1 - betas[0] ** step)


class SubspaceAdam(torch.optim.Optimizer):
    """Adam, for whose groups with ``subspaces`` they take the step; their state is that of the subspaces.

    The form of the older library transformers: the correction of the moments stands outside of the denominator.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        groups = [dict(group) for group in groups]
        # Kept apart from the groups, which torch copies deeply when a state is loaded.
        self.subspaces: list[Subspaces | None] = [group.pop("subspaces", None) for group in groups]
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move everything once by the gradients that are there."""
        for group, subspaces in zip(self.param_groups, self.subspaces, strict=True):
            settings = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}
            if subspaces is not None:
                subspaces.step(group["params"], **settings)
                continue
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._plain(parameter, parameter.grad, **settings)

    def _plain(
        self, parameter: Tensor, gradient: Tensor, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        state = self.state[parameter]
        if not state:
            state |= {"step": 0, "mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter)}
        state["step"] += 1
        moved = direction(state["mean"], state["square"], gradient, betas, eps)
        if weight_decay:
            parameter.mul_(1 - lr * weight_decay)
        parameter.sub_(moved, alpha=lr * corrected(state["step"], betas))


@dataclass(frozen=True)
class SubspaceRecipe(Recipe):
    """A :class:`~latewood.core.recipe.Recipe` whose optimiser is :class:`SubspaceAdam`.

    ``lr`` is the rate of what is not projected. ``schedule="cosine"`` is that of CoSO's authors: it falls with each epoch
    ``e`` of ``E`` as ``cos(99 pi e / (200 (E - 1)))``.

    >>> recipe = SubspaceRecipe(epochs=3, schedule="cosine")
    >>> [round(recipe.rate(step, 6), 3) for step in range(6)]
    [1.0, 1.0, 0.713, 0.713, 0.016, 0.016]
    """

    optimizer: Literal["adam"] = "adam"
    epochs: int = 20
    batch_size: int = 128
    lr: float = 5e-4
    schedule: Literal["constant", "cosine", "step"] = "cosine"
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimizer != "adam":
            raise ConfigurationError(f"recipe.optimizer must stay 'adam', which is the projected one, not {self.optimizer!r}.")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and self.eps > 0):
            raise ConfigurationError("recipe.beta1 and beta2 lie from 0 to below 1, and recipe.eps above 0.")

    def make_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return SubspaceAdam(groups, self.lr, (self.beta1, self.beta2), self.eps, self.weight_decay)

    def rate(self, step: int, steps: int) -> float:
        """What the learning rate is multiplied with at ``step`` of ``steps``."""
        if self.schedule != "cosine":
            return super().rate(step, steps)
        rising = self.warmup * steps
        if step < rising:
            return (step + 1) / (rising + 1)
        epoch = min(step * self.epochs // steps, self.epochs - 1)
        return math.cos(0.495 * math.pi * epoch / max(1, self.epochs - 1))
