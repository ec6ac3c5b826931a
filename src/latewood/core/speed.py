"""Decide the ``auto`` switches of a recipe by a short measurement, and remember the decision on this machine."""

from __future__ import annotations

import copy
import hashlib
import json
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latewood.core.data import Data
from latewood.core.files import cache_folder, write_atomically
from latewood.core.progress import current_progress
from latewood.core.recipe import Recipe
from latewood.core.seeding import seeded
from latewood.core.step import Trainable, accelerated, train_step

_FAST = {"precision": "bfloat16", "channels_last": "on", "compile": "on"}
_SLOW = {"precision": "float32", "channels_last": "off", "compile": "off"}
#: A switch is taken only where it saves at least this share: less is within the noise of a short measurement.
_WORTHWHILE = 0.05
_STEPS = 7


def decide(learner: Trainable, batch: Data, recipe: Recipe) -> Recipe:
    """``recipe`` with every ``auto`` replaced: on where that is measurably faster for this learner and batch here.

    The measurement runs on a copy of the learner, so nothing of it stays. It is made once for a machine, a torch
    version, an architecture and a batch shape: the remembered decision keeps later runs repeatable.
    """
    undecided = [name for name in _FAST if getattr(recipe, name) == "auto"]
    key = _key(learner, batch, recipe)
    folder = cache_folder("speed")
    remembered = folder / f"{key}.json" if folder else None
    decision = _read(remembered, undecided) if remembered else None
    if decision is not None:
        return replace(recipe, **decision)
    current_progress().phase("measuring the fast path")
    chosen: dict[str, Any] = {name: _SLOW[name] for name in undecided}
    best = seconds_per_step(learner, batch, replace(recipe, **chosen))
    for name in undecided:
        trial = {**chosen, name: _FAST[name]}
        seconds = seconds_per_step(learner, batch, replace(recipe, **trial))
        if seconds < best * (1 - _WORTHWHILE):
            chosen, best = trial, seconds
    if remembered:
        write_atomically(remembered, json.dumps(chosen))
    return replace(recipe, **chosen)


def seconds_per_step(learner: Trainable, batch: Data, recipe: Recipe) -> float:
    """The median time of a training step on this batch, measured on a copy of the learner after a warm-up."""
    trial, device = copy.deepcopy(learner).train(), learner.device
    groups = trial.parameter_groups()
    optimizer = recipe.make_optimizer(groups)
    parameters = [p for group in groups for p in group["params"]]
    times = []
    # Whatever the steps draw from the global generators must not be missing from the training that follows.
    with seeded("speed"), accelerated(trial, recipe):
        for _ in range(3 + _STEPS):
            start = time.perf_counter()
            train_step(trial, batch, optimizer, parameters, recipe, device)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - start)
    return sorted(times[3:])[_STEPS // 2]


def _read(remembered: Path, undecided: list[str]) -> dict[str, Any] | None:
    """The decision that was remembered; ``None`` if there is none, or none that makes sense."""
    try:
        decision = json.loads(remembered.read_text())
        sound = set(decision) == set(undecided) and all(v in (_FAST[n], _SLOW[n]) for n, v in decision.items())
        return dict(decision) if sound else None
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _key(learner: Trainable, batch: Data, recipe: Recipe) -> str:
    shapes = [tuple(p.shape) for p in learner.parameters()]
    rows = {name: tuple(c.shape) if isinstance(c, Tensor) else "list" for name, c in batch.items()}
    device = torch.cuda.get_device_name(learner.device) if learner.device.type == "cuda" else platform.processor()
    switches = [getattr(recipe, name) for name in _FAST]
    facts = (torch.__version__, torch.get_num_threads(), str(learner.device), device, type(learner).__name__)
    return hashlib.blake2b(repr((facts, shapes, rows, switches)).encode(), digest_size=12).hexdigest()
