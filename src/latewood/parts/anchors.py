"""Parameter anchors: where parameters were, and how much each of them mattered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from latewood.core.errors import DataError
from latewood.parts.growing import Growing


class Anchors(Growing):
    """A quadratic penalty ``1/2 sum F (theta - theta*)^2`` that holds parameters near ``theta*`` by importance ``F``.

    The parameters are those of the module that are trained. A tensor that has grown since (a head) is held in its old part
    only; new rows are free. :meth:`penalty` weighs by importance (EWC), :meth:`distance` holds all parameters alike (L2).

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> _ = nn.init.zeros_(layer.weight)
    >>> anchors = Anchors(layer)
    >>> anchors.move()
    >>> _ = layer.weight.data.add_(0.5)
    >>> anchors.distance().item(), anchors.penalty().item()
    (0.5, 0.0)
    >>> anchors.replace([torch.full((1, 2), 3.0)], decay=1.0)
    >>> _ = layer.weight.data.add_(0.5)
    >>> anchors.penalty().item()
    0.75
    """

    values: Tensor
    importance: Tensor

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "_module", module)
        self.register_buffer("values", torch.zeros(0))
        self.register_buffer("importance", torch.zeros(0))
        self.register_buffer("rows", torch.zeros(0, dtype=torch.int64))

    rows: Tensor
    _module: nn.Module

    def penalty(self) -> Tensor:
        """The penalty by importance now, a scalar with gradient; zero while no importance is known."""
        if not len(self.importance):
            return self.importance.sum()
        parts = self._old_parts()
        return _quadratic(parts, _shaped(self.values, parts), _shaped(self.importance, parts))

    def distance(self) -> Tensor:
        """The squared distance ``sum (theta - theta*)^2`` now, a scalar with gradient; zero while nothing is anchored."""
        if not len(self.values):
            return self.values.sum()
        parts = self._old_parts()
        return 2 * _quadratic(parts, _shaped(self.values, parts))

    def move(self) -> None:
        """Anchor the parameters where they are now; what is known of their importance stays."""
        importance = self._padded()[0] if len(self.importance) else self.importance
        self._keep(self._flat(self._parameters_now()), importance)

    def add(self, importance: list[Tensor]) -> None:
        """Add the quadratic penalty of one more task, centred at the parameters as they are now (EWC, one term a task).

        The sum of the tasks' quadratics is, up to a constant, one quadratic with importance ``sum F_t`` around the mean of the
        ``theta*_t`` weighted by ``F_t``; that is what is kept, so the memory does not grow with the tasks.
        """
        before, values = self._padded()
        new, now = self._flat(importance), self._flat(self._parameters_now())
        total = before + new
        self._keep(torch.where(total > 0, (before * values + new * now) / total.clamp(min=1e-38), now), total)

    def replace(self, importance: list[Tensor], decay: float) -> None:
        """Keep one quadratic: importance ``decay * F + new`` around the parameters as they are now (online EWC)."""
        before, _ = self._padded()
        self._keep(self._flat(self._parameters_now()), decay * before + self._flat(importance))

    def _keep(self, values: Tensor, importance: Tensor) -> None:
        self.values, self.importance = values.detach(), importance.detach()
        self.rows = torch.tensor([len(p) if p.dim() else 1 for p in self._parameters_now()], device=values.device)

    def _parameters_now(self) -> list[Tensor]:
        return [p for p in self._module.parameters() if p.requires_grad]

    def _old_parts(self) -> list[Tensor]:
        # A slice of everything would cost another copy of the parameter in the backward pass.
        pairs = zip(self._parameters_now(), self.rows.tolist(), strict=True)
        return [p[:rows] if p.dim() and len(p) > rows else p for p, rows in pairs]

    def _flat(self, tensors: Iterable[Tensor]) -> Tensor:
        return torch.cat([t.flatten() for t in tensors])

    def _padded(self) -> tuple[Tensor, Tensor]:
        """Importance and values at the parameters' present sizes, zero where a tensor has grown."""
        now = self._parameters_now()
        if not len(self.values):
            return torch.zeros_like(self._flat(now)).detach(), self._flat(now).detach()
        sizes = [part.numel() for part in self._old_parts()]
        padded = []
        for vector in (self.importance if len(self.importance) else torch.zeros_like(self.values), self.values):
            pieces = zip(vector.split(sizes), now, strict=True)
            padded.append(torch.cat([F.pad(piece, (0, p.numel() - len(piece))) for piece, p in pieces]))
        return padded[0], padded[1]


def _quadratic(parameters: Sequence[Tensor], centres: list[Tensor], importance: list[Tensor] | None = None) -> Tensor:
    value: Tensor = _Quadratic.apply(centres, importance, *parameters)  # type: ignore[no-untyped-call]
    return value


class _Quadratic(torch.autograd.Function):
    """``1/2 sum F (theta - theta*)^2`` in a few operations over whole lists of tensors.

    With a gradient of its own, because it is at hand once the value is computed: torch's would keep two more copies of all
    parameters and take three times as long.
    """

    @staticmethod
    def forward(ctx: Any, centres: list[Tensor], importance: list[Tensor] | None, *parameters: Tensor) -> Tensor:
        moved = torch._foreach_sub(parameters, centres)
        pulls = moved if importance is None else torch._foreach_mul(moved, importance)
        ctx.save_for_backward(*pulls)
        # Dot products and not a fused norm, whose sum in float32 is wrong in the fourth digit for millions of parameters.
        return 0.5 * torch.stack([torch.dot(pull.flatten(), by.flatten()) for pull, by in zip(pulls, moved, strict=True)]).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Any, ...]:
        return None, None, *torch._foreach_mul(ctx.saved_tensors, slope)


def _shaped(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of a flat vector in the shapes of these tensors."""
    return [piece.view(part.shape) for piece, part in zip(flat.split([p.numel() for p in like]), like, strict=True)]


class FixedRows:
    """Some rows of a head as they are now: :meth:`restore` puts them back, whatever weight decay or momentum did to them.

    >>> head = nn.Linear(2, 3)
    >>> before = head.weight.detach().clone()
    >>> fixed = FixedRows(head, torch.tensor([True, True, False]))
    >>> _ = head.weight.data.mul_(0.9)
    >>> fixed.restore()
    >>> (head.weight == before).all(1).tolist()
    [True, True, False]
    """

    def __init__(self, head: nn.Module, rows: Tensor) -> None:
        self._head = head
        self._rows = rows.nonzero().flatten()
        self._values = [p.detach()[self._rows] for p in head.parameters()]

    @torch.no_grad()
    def restore(self) -> None:
        """Put the rows back."""
        for parameter, values in zip(self._head.parameters(), self._values, strict=True):
            parameter[self._rows] = values


def batch_fisher(parameters: Sequence[Tensor], losses: Iterable[tuple[Tensor, int]]) -> list[Tensor]:
    """The Fisher information as Smith et al. (2022) estimate it: the mean over batches of ``B g^2``.

    ``losses`` yields the mean loss of each batch and its size ``B``; ``g`` is that loss's gradient. With batches of one
    sample it is :func:`empirical_fisher`; with larger ones it is smaller, and cheaper. Returns one tensor for each parameter.
    """
    total, batches = [torch.zeros_like(p) for p in parameters], 0
    for loss, size in losses:
        gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
        torch._foreach_addcmul_(total, gradients, gradients, value=size)
        batches += 1
    if not batches:
        raise DataError("The Fisher information needs at least one sample.")
    torch._foreach_div_(total, batches)
    return total


def empirical_fisher(
    module: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], inputs: Iterable[tuple[Tensor, Tensor]]
) -> list[Tensor]:
    """The diagonal of the empirical Fisher information: the mean over samples of the squared gradient of each sample's loss.

    Of the samples' own gradients and not of a batch's mean gradient, whose square is smaller by up to the batch size.
    ``inputs`` yields network inputs and targets in chunks; ``loss`` takes the module's output and targets for one sample.
    The module is evaluated in evaluation mode. Returns one tensor for each trainable parameter.
    """
    parameters = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    others = {name: b for name, b in (*module.named_parameters(), *module.named_buffers()) if name not in parameters}

    def one(values: dict[str, Tensor], row: Tensor, target: Tensor) -> Tensor:
        return loss(functional_call(module, {**values, **others}, (row[None],)), target[None])

    each = vmap(grad(one), in_dims=(None, 0, 0), randomness="different")
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    samples = 0
    module.eval()
    for rows, targets in inputs:
        for name, gradient in each(parameters, rows.detach(), targets).items():
            total[name] += gradient.square().sum(0)
        samples += len(rows)
    if not samples:
        raise DataError("The Fisher information needs at least one sample.")
    return [value / samples for value in total.values()]
