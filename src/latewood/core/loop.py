"""The one training loop: epochs, batches, device, precision, progress."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from latewood.core.cost import StepCounter, current_meter
from latewood.core.data import Data
from latewood.core.errors import ConfigurationError, LatewoodError
from latewood.core.progress import current_progress

if TYPE_CHECKING:
    from latewood.core.learner import GradientLearner

Switch = Literal["on", "off", "auto"]


@dataclass(frozen=True)
class Recipe:
    """How to train by gradient on one experience; a fresh optimiser is made for each.

    ``schedule``: ``constant``, ``cosine`` (to zero over the experience's steps) or ``step`` (times ``decay`` at each of
    ``milestones``, in epochs); ``warmup`` is a share of the steps with a linearly rising rate. ``clip`` is the largest
    gradient norm. ``precision``, ``channels_last`` and ``compile`` are the fast path: each can be switched, and ``auto``
    takes what a short measurement on this machine shows to be faster (remembered, so that runs stay repeatable). They
    are off by default because they change the arithmetic, and so the last bits of every result.

    >>> Recipe(epochs=2, lr=0.1, schedule="cosine").epochs
    2
    """

    epochs: int = 1
    batch_size: int = 32
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.03
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine", "step"] = "constant"
    milestones: tuple[int, ...] = ()
    decay: float = 0.1
    warmup: float = 0.0
    clip: float | None = None
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    channels_last: Switch = "off"
    compile: Switch = "off"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"recipe.{name} must be at least 1, but it is {getattr(self, name)}.")
        for name in ("lr", "momentum", "weight_decay", "decay"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ConfigurationError(f"recipe.{name} must be a number of at least 0, but it is {getattr(self, name)}.")
        if not 0 <= self.warmup < 1:
            raise ConfigurationError(f"recipe.warmup is a share of the steps, from 0 to below 1, but it is {self.warmup}.")
        if self.clip is not None and not self.clip > 0:
            raise ConfigurationError(f"recipe.clip must be above 0, but it is {self.clip}.")

    def make_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimiser over these parameter groups; a group's own ``lr`` or ``weight_decay`` goes before the recipe's."""
        common: dict[str, Any] = {"lr": self.lr, "weight_decay": self.weight_decay}
        if self.optimizer == "sgd":
            return torch.optim.SGD(groups, momentum=self.momentum, **common)
        return (torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW)(groups, **common)

    def rate(self, step: int, steps: int) -> float:
        """What the learning rate is multiplied with at ``step`` of ``steps``."""
        rising = self.warmup * steps
        if step < rising:
            return (step + 1) / (rising + 1)
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1.0, steps - rising)))
        if self.schedule == "step":
            epoch = step * self.epochs // steps
            return self.decay ** sum(epoch >= milestone for milestone in self.milestones)
        return 1.0

    @property
    def undecided(self) -> bool:
        """Whether a switch is left to measurement."""
        return "auto" in (self.precision, self.channels_last, self.compile)


def fit(learner: GradientLearner, data: Data) -> None:
    """Train ``learner`` on ``data`` as its recipe says. Errors: :class:`LatewoodError` once the loss is NaN or infinite."""
    recipe, device = learner.recipe, learner.device
    data = _resident(data, device)
    if recipe.undecided:
        from latewood.core.speed import decide

        recipe = decide(learner, data[: recipe.batch_size].to(device), recipe)
    groups = learner.parameter_groups()
    optimizer = recipe.make_optimizer(groups)
    steps = recipe.epochs * math.ceil(len(data) / recipe.batch_size)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: recipe.rate(step, steps))
    parameters = [p for group in groups for p in group["params"]]
    after_batch = _own_hook(learner, "after_batch")
    counter, progress = StepCounter(current_meter()), current_progress()
    progress.phase("learning", steps)
    with accelerated(learner, recipe) as plain:
        for epoch in range(recipe.epochs):
            learner.epoch = epoch
            total = torch.zeros((), device=device)
            for batch in data.batches(recipe.batch_size, learner.generator):
                batch = batch.to(device)
                with counter.step(_shape(batch)) as measured, plain(measured):
                    loss = train_step(learner, batch, optimizer, parameters, recipe, device)
                scheduler.step()
                total += loss
                if after_batch is not None:
                    after_batch(batch)
                progress.step(loss)
            # One look an epoch: more would make the processor wait for the device.
            if not torch.isfinite(total):
                raise LatewoodError(
                    f"The loss became NaN or infinite in epoch {epoch + 1} of {recipe.epochs}; "
                    f"lower recipe.lr (now {recipe.lr}) or set recipe.clip."
                )


def train_step(
    learner: GradientLearner,
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
def accelerated(learner: GradientLearner, recipe: Recipe) -> Iterator[Callable[[bool], Any]]:
    """Put the learner's compute modules on the fast path that the recipe asks for, and take them off it at the end.

    Yields a switch back to the plain path for single steps, because operations inside compiled code can't be counted.
    """
    modules = list(learner.compute_modules())
    if recipe.channels_last == "on":
        for module in modules:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if recipe.compile == "on":
        for module in modules:
            module.compile()
    compiled = [module._compiled_call_impl for module in modules]

    @contextmanager
    def plain(wanted: bool) -> Iterator[None]:
        if not (wanted and recipe.compile == "on"):
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
        if recipe.compile == "on":
            _set_compiled(modules, [None] * len(modules))
        if recipe.channels_last == "on":
            for module in modules:
                module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def resolve_device(name: str) -> torch.device:
    """The device called ``auto`` (the fastest there is), ``cpu``, ``cuda`` (or ``cuda:1``) or ``mps``.

    >>> resolve_device("cpu")
    device(type='cpu')
    """
    kind = name.split(":", maxsplit=1)[0]
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(k for k in ("cuda", "mps", "cpu") if available[k]))
    if kind not in available:
        raise ConfigurationError(f"There is no device {name!r}; choose auto, cpu, cuda or mps.")
    if not available[kind]:
        raise ConfigurationError(f"Device {name!r} was asked for, but torch finds none on this machine.")
    return torch.device(name)


def _resident(data: Data, device: torch.device) -> Data:
    """The data on the device, once, where it fits into half of the free memory there; otherwise as it is."""
    if device.type != "cuda":
        return data
    size = sum(c.numel() * c.element_size() for c in data[:1].values() if isinstance(c, Tensor)) * len(data)
    return data.to(device) if size < torch.cuda.mem_get_info(device)[0] / 2 else data


def _own_hook(learner: GradientLearner, name: str) -> Callable[[Data], None] | None:
    from latewood.core.learner import GradientLearner

    defined = getattr(type(learner), name) is not getattr(GradientLearner, name)
    return getattr(learner, name) if defined else None


def _shape(batch: Data) -> tuple[object, ...]:
    return tuple(tuple(c.shape) if isinstance(c, Tensor) else len(c) for c in batch.values())


def _set_compiled(modules: list[nn.Module], implementations: list[Any]) -> None:
    for module, implementation in zip(modules, implementations, strict=True):
        module._compiled_call_impl = implementation
