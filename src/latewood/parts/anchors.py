"""Parameter anchors: where parameters were, and how much each of them mattered."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from latewood.core.errors import DataError
from latewood.parts.growing import Growing


class Anchors(Growing):
    """A quadratic penalty ``1/2 sum F (theta - theta*)^2`` that holds parameters near ``theta*`` by importance ``F``.

    A tensor that has grown since (a head) is held in its old part only; new rows are free. All values lie in two flat
    vectors, so that the penalty is a handful of operations however many parameters there are.
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
        """The penalty now, a scalar with gradient; zero while nothing is anchored."""
        if not len(self.values):
            return self.values.sum()
        return 0.5 * (self.importance * (self._flat(self._old_parts()) - self.values) ** 2).sum()

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
        return [p[:rows] if p.dim() else p for p, rows in zip(self._parameters_now(), self.rows.tolist(), strict=True)]

    def _flat(self, tensors: Iterable[Tensor]) -> Tensor:
        return torch.cat([t.flatten() for t in tensors])

    def _padded(self) -> tuple[Tensor, Tensor]:
        """Importance and values at the parameters' present sizes, zero where a tensor has grown."""
        now = self._parameters_now()
        if not len(self.values):
            return torch.zeros_like(self._flat(now)).detach(), self._flat(now).detach()
        sizes = [part.numel() for part in self._old_parts()]
        padded = []
        for vector in (self.importance, self.values):
            pieces = zip(vector.split(sizes), now, strict=True)
            padded.append(torch.cat([F.pad(piece, (0, p.numel() - len(piece))) for piece, p in pieces]))
        return padded[0], padded[1]


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
