"""Learning rates by unit: the more a tensor matters for what must be kept, the slower it learns (ADEPT, arXiv 2510.10071).

A unit is one trainable parameter tensor, and each has a group of the optimiser to itself, because the rate is what differs:
a factor on its gradient would be taken out again by Adam.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from latewood.core.errors import ConfigurationError, DataError
from latewood.core.seeding import seeded

#: How importances become numbers from 0 to 1. ``joint``: by the range of all units. ``split``: norms by that, and the
#: others by their own range; for a norm has so large an importance per element that beside it all others are about 0.
Normalisation = Literal["joint", "split"]

Batch = TypeVar("Batch")


def unit_groups(module: nn.Module) -> list[dict[str, Any]]:
    """One group for each trainable parameter of ``module``, as torch's optimisers take them: ``unit`` is its name, ``norm``
    tells whether it belongs to a normalisation layer, which gets no weight decay.

    >>> [(group["unit"], group["norm"]) for group in unit_groups(nn.Sequential(nn.Linear(2, 2, bias=False), nn.LayerNorm(2)))]
    [('0.weight', False), ('1.weight', True), ('1.bias', True)]
    """
    norms = {id(p) for child in module.modules() if "norm" in type(child).__name__.lower() for p in child.parameters(False)}
    groups: list[dict[str, Any]] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            group: dict[str, Any] = {"params": [parameter], "unit": name, "norm": id(parameter) in norms}
            groups.append(group | ({"weight_decay": 0.0} if group["norm"] else {}))
    return groups


def unit_importance(module: nn.Module, loss: Callable[[Batch], Tensor], probe: Iterable[Batch]) -> dict[str, float]:
    """For each unit ``mean |theta| · mean |gradient|``, element by element, averaged over its elements; the gradient's
    absolute value is averaged over the batches of ``probe``. ``loss`` gives the scalar loss of a batch.

    The module is evaluated in evaluation mode. Weights, ``.grad``, modes and random generators are as before.

    Errors: :class:`~latewood.core.errors.ConfigurationError` if nothing is trainable;
    :class:`~latewood.core.errors.DataError` for an empty probe, or one on which the gradient is not finite.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> with torch.no_grad():
    ...     _ = layer.weight.copy_(torch.tensor([[1.0, -2.0]]))
    >>> unit_importance(layer, lambda x: layer(x).sum(), [torch.tensor([[3.0, 4.0]]), torch.tensor([[-3.0, 0.0]])])
    {'weight': 3.5}
    """
    units = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if not units:
        raise ConfigurationError("No parameter is trainable, so there is no unit that could matter.")
    totals = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in units.values()]
    modes = [(child, child.training) for child in module.modules()]
    batches = 0
    try:
        module.eval()
        with seeded("unit importance"), torch.enable_grad():
            for batch in probe:
                # Not by backward(), which would leave the probe's gradients for the next step of training.
                gradients = torch.autograd.grad(loss(batch), list(units.values()), allow_unused=True)
                for total, gradient in zip(totals, gradients, strict=True):
                    if gradient is not None:
                        total += gradient.abs()
                batches += 1
    finally:
        for child, training in modes:
            child.training = training
    if not batches:
        raise DataError("The probe holds no batch; what matters can't be measured without one.")
    importance = {
        name: float((parameter.detach().float().abs() * total / batches).mean())
        for (name, parameter), total in zip(units.items(), totals, strict=True)
    }
    if unfit := next((name for name, value in importance.items() if not math.isfinite(value)), None):
        raise DataError(f"On the probe the importance of {unfit} is not finite; look at its batches and at the weights.")
    return importance


def rate_multipliers(
    importance: Mapping[str, float], norms: Collection[str] = (), normalisation: Normalisation = "split"
) -> dict[str, float]:
    """``2 (1 - I)`` for importances normalised to ``I`` from 0 to 1: the most important unit rests, the least important
    learns at twice the base rate. Units of equal importance learn at the base rate.

    >>> rate_multipliers({"q": 1.0, "down": 3.0, "norm": 9.0}, norms=["norm"])
    {'q': 2.0, 'down': 0.0, 'norm': 0.0}
    >>> rate_multipliers({"q": 1.0, "down": 3.0, "norm": 9.0}, norms=["norm"], normalisation="joint")
    {'q': 2.0, 'down': 1.5, 'norm': 0.0}
    """
    if normalisation not in ("joint", "split"):
        raise ConfigurationError(f"The normalisation must be 'joint' or 'split', but it is {normalisation!r}.")
    everything = list(importance.values())
    others = [value for name, value in importance.items() if name not in norms] if normalisation == "split" else everything
    return {name: _multiplier(value, everything if name in norms else others) for name, value in importance.items()}


def set_unit_rates(
    optimizer: torch.optim.Optimizer, multipliers: Mapping[str, float], scheduler: LambdaLR | None = None
) -> None:
    """Give each group of ``optimizer``, as :func:`unit_groups` makes them, its multiple of the optimiser's ``lr``.

    Always of the ``lr`` that the optimiser was made with, so it may be called again and again, and after a checkpoint was
    loaded. What changes is the base rate, ``initial_lr``, on which a schedule multiplies; give the ``scheduler`` if it is
    one of torch. Nothing else of the optimiser is touched.

    Errors: :class:`~latewood.core.errors.ConfigurationError` unless each group is one unit that has a multiplier; no rate is
    changed then.

    >>> layer = nn.Linear(2, 1)
    >>> optimizer = torch.optim.AdamW(unit_groups(layer), lr=0.1)
    >>> set_unit_rates(optimizer, {"weight": 0.5, "bias": 2.0})
    >>> [(group["unit"], group["initial_lr"]) for group in optimizer.param_groups]
    [('weight', 0.05), ('bias', 0.2)]
    """
    for group in optimizer.param_groups:
        if "unit" not in group or len(group["params"]) != 1:
            raise ConfigurationError("A group of the optimiser is not one unit; make its groups with unit_groups.")
        if group["unit"] not in multipliers:
            raise ConfigurationError(f"There is no multiplier for the unit {group['unit']!r}.")
    for i, group in enumerate(optimizer.param_groups):
        group["initial_lr"] = optimizer.defaults["lr"] * multipliers[group["unit"]]
        if scheduler is not None:
            scheduler.base_lrs[i] = group["initial_lr"]
            # The scheduler has set the rate of the step to come already.
            group["lr"] = group["initial_lr"] * scheduler.lr_lambdas[i](scheduler.last_epoch)


def adapt_unit_rates(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Batch], Tensor],
    probe: Iterable[Batch],
    normalisation: Normalisation = "split",
    scheduler: LambdaLR | None = None,
) -> dict[str, float]:
    """Measure what matters on ``probe`` at the present weights, set the rates accordingly, and return the multipliers.

    Right after an expansion all importances are 0 or nearly so; train some steps first. Errors: those of
    :func:`unit_importance` and :func:`set_unit_rates`.
    """
    importance = unit_importance(module, loss, probe)
    norms = [group["unit"] for group in optimizer.param_groups if group.get("norm")]
    multipliers = rate_multipliers(importance, norms, normalisation)
    set_unit_rates(optimizer, multipliers, scheduler)
    return multipliers


def _multiplier(value: float, values: list[float]) -> float:
    low, high = min(values), max(values)
    return 2 * (1 - (value - low) / (high - low)) if high > low else 1.0
