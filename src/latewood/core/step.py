"""One step of training, and the fast path that it may take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from latewood.core.data import Data
from latewood.core.recipe import Recipe


class Trainable(Protocol):
    """What the loop needs of a learner."""

    recipe: Recipe
    generator: torch.Generator
    epoch: int
    after_batch: Callable[[Data], None] | None

    @property
    def device(self) -> torch.device: ...
    def train(self, mode: bool = True) -> Any: ...
    def loss(self, batch: Data) -> Tensor: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def parameter_groups(self) -> list[dict[str, Any]]: ...
    def compute_modules(self) -> Sequence[nn.Module]: ...


def train_step(
    learner: Trainable,
    batch: Data,
    optimizer: torch.optim.Optimizer,
    parameters: list[nn.Parameter],
    recipe: Recipe,
    device: torch.device,
) -> Tensor:
    """One step of the optimiser on one batch; returns the loss, still on the device."""
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
        loss = learner.loss(batch)
    loss.backward()
    if recipe.clip is not None:
        nn.utils.clip_grad_norm_(parameters, recipe.clip)
    optimizer.step()
    return loss.detach()


@contextmanager
def accelerated(learner: Trainable, recipe: Recipe) -> Iterator[Callable[[bool], Any]]:
    """Put the learner's compute modules on the fast path that the recipe asks for, and take them off it at the end.

    Yields a switch back to the plain path for single steps, because operations inside compiled code can't be counted.
    """
    modules = list(learner.compute_modules())
    before = [module._compiled_call_impl for module in modules]
    plain_layout = [p for module in modules for p in module.parameters() if p.is_contiguous()]
    if recipe.channels_last == "on":
        for module in modules:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if recipe.compile == "on":
        for module in modules:
            module.compile()
    compiled = [module._compiled_call_impl for module in modules]

    @contextmanager
    def plain(wanted: bool) -> Iterator[None]:
        if not (wanted and any(compiled)):
            yield
            return
        _set_compiled(modules, [None] * len(modules))
        try:
            yield
        finally:
            _set_compiled(modules, compiled)

    try:
        yield plain
    finally:
        _set_compiled(modules, before)
        if recipe.channels_last == "on":
            for parameter in plain_layout:
                parameter.data = parameter.data.contiguous()


def _set_compiled(modules: list[nn.Module], implementations: list[Any]) -> None:
    for module, implementation in zip(modules, implementations, strict=True):
        module._compiled_call_impl = implementation
