"""How a language model is trained on an arrival of text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch

from latewood.core.errors import ConfigurationError
from latewood.core.recipe import Optimizer, Recipe


@dataclass(frozen=True)
class TextRecipe(Recipe):
    """A :class:`~latewood.core.recipe.Recipe` with what continual pre-training needs beside it.

    ``batch_size`` is the number of rows of a whole step, replayed ones included, and of all processes together;
    ``accumulation`` cuts it into so many passes. ``steps`` is the number of steps on an arrival (default: until each new row
    was seen ``epochs`` times). ``arrivals`` above 1 makes one schedule span so many arrivals of ``steps`` each, with one
    optimiser: nothing is warmed up again at a border. ``decay`` chooses what comes after the warm-up: ``constant``,
    ``linear``, ``cosine``, or ``wsd``, constant until the last ``cooldown`` share of the steps and linear from there; all of
    them end at ``floor`` times the rate. ``save_every`` keeps a checkpoint within the arrival after so many steps.

    >>> recipe = TextRecipe(lr=1e-3, decay="wsd", cooldown=0.5, warmup=0.1, floor=0.1)
    >>> [round(recipe.rate(step, 100), 2) for step in (0, 9, 40, 75, 100)]
    [0.09, 0.91, 1.0, 0.55, 0.1]
    """

    optimizer: Optimizer = "adamw"
    batch_size: int = 16
    lr: float = 1e-3
    weight_decay: float = 0.1
    warmup: float = 0.02
    clip: float | None = 1.0
    steps: int | None = None
    arrivals: int = 1
    decay: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    cooldown: float = 0.1
    floor: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    accumulation: int = 1
    save_every: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "save_every"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigurationError(f"recipe.{name} must be at least 1, but it is {getattr(self, name)}.")
        if self.arrivals < 1 or (self.arrivals > 1 and self.steps is None):
            raise ConfigurationError(
                "recipe.arrivals needs recipe.steps: one schedule over several arrivals must know its end."
            )
        if self.accumulation < 1 or self.batch_size % self.accumulation:
            raise ConfigurationError(
                f"recipe.accumulation must divide the batch of {self.batch_size} rows, but it is {self.accumulation}."
            )
        if not (0 <= self.floor <= 1 and 0 < self.cooldown <= 1):
            raise ConfigurationError("recipe.floor lies from 0 to 1, and recipe.cooldown above 0 and at most at 1.")

    def make_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        if self.optimizer != "adamw":
            return super().make_optimizer(groups)
        betas = (self.beta1, self.beta2)
        return torch.optim.AdamW(groups, lr=self.lr, betas=betas, weight_decay=self.weight_decay)

    def rate(self, step: int, steps: int) -> float:
        """What the learning rate is multiplied with at ``step`` of ``steps``."""
        rising = self.warmup * steps
        if step < rising:
            return (step + 1) / (rising + 1)
        if self.decay == "constant":
            return 1.0
        done = min(1.0, (step - rising) / max(1.0, steps - rising))
        if self.decay == "cosine":
            left = 0.5 * (1 + math.cos(math.pi * done))
        elif self.decay == "linear":
            left = 1 - done
        else:
            left = min(1.0, max(0.0, (steps - step) / (self.cooldown * steps)))
        return self.floor + (1 - self.floor) * left
