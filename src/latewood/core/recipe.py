"""Recipe: how to train by gradient on one experience."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from latewood.core.errors import ConfigurationError
from latewood.core.registry import nearest

Optimizer = Literal["sgd", "adam", "adamw"]
Schedule = Literal["constant", "cosine", "step"]
Precision = Literal["float32", "bfloat16", "auto"]
Switch = Literal["on", "off", "auto"]
_CHOICES: dict[str, tuple[str, ...]] = {
    "optimizer": get_args(Optimizer),
    "schedule": get_args(Schedule),
    "precision": get_args(Precision),
    "channels_last": get_args(Switch),
    "compile": get_args(Switch),
}


@dataclass(frozen=True)
class Recipe:
    """How to train by gradient on one experience; a fresh optimiser is made for each.

    ``schedule``: ``constant``, ``cosine`` (to zero over the experience's steps) or ``step`` (times ``lr_decay`` at each of
    ``milestones``, in epochs); ``warmup`` is a share of the steps with a linearly rising rate. ``clip`` is the largest
    gradient norm. ``precision``, ``channels_last`` and ``compile`` are the fast path: each can be switched, and ``auto``
    takes what a short measurement on this machine shows to be faster (remembered, so that runs stay repeatable). They
    are off by default because they change the arithmetic, and so the last bits of every result.

    >>> Recipe(epochs=2, lr=0.1, schedule="cosine").epochs
    2
    """

    epochs: int = 1
    batch_size: int = 32
    optimizer: Optimizer = "sgd"
    lr: float = 0.03
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Schedule = "constant"
    milestones: tuple[int, ...] = ()
    lr_decay: float = 0.1
    warmup: float = 0.0
    clip: float | None = None
    precision: Precision = "float32"
    channels_last: Switch = "off"
    compile: Switch = "off"

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                hint = nearest(str(getattr(self, name)), allowed)
                raise ConfigurationError(f"recipe.{name} can't be {getattr(self, name)!r}{hint}.")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"recipe.{name} must be at least 1, but it is {getattr(self, name)}.")
        for name in ("lr", "momentum", "weight_decay", "lr_decay"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ConfigurationError(f"recipe.{name} must be a number of at least 0, but it is {getattr(self, name)}.")
        if not 0 <= self.warmup < 1:
            raise ConfigurationError(f"recipe.warmup is a share of the steps, from 0 to below 1, but it is {self.warmup}.")
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ConfigurationError(f"recipe.clip must be above 0 and finite, but it is {self.clip}.")

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
            return self.lr_decay ** sum(epoch >= milestone for milestone in self.milestones)
        return 1.0

    @property
    def undecided(self) -> bool:
        """Whether a switch is left to measurement."""
        return "auto" in (self.precision, self.channels_last, self.compile)
