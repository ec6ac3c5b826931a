"""The one training loop: epochs, batches, device, precision, progress."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from latewood.core.cost import StepCounter, current_meter
from latewood.core.data import Data
from latewood.core.errors import ConfigurationError, LatewoodError
from latewood.core.progress import current_progress
from latewood.core.speed import decide
from latewood.core.step import Trainable, accelerated, train_step
from latewood.core.watch import current_watch

if TYPE_CHECKING:
    from latewood.core.learner import Learner


def fit(learner: Trainable, data: Data) -> None:
    """Train ``learner`` on ``data`` as its recipe says. Errors: :class:`LatewoodError` once the loss is NaN or infinite."""
    recipe, device = learner.recipe, learner.device
    data = _resident(data, device)
    if recipe.undecided:
        recipe = decide(learner, data[: recipe.batch_size].to(device), recipe)
    groups = learner.parameter_groups()
    optimizer = recipe.make_optimizer(groups)
    steps = recipe.epochs * math.ceil(len(data) / recipe.batch_size)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: recipe.rate(step, steps))
    parameters = [p for group in groups for p in group["params"]]
    meter, progress = current_meter(), current_progress()
    meter.trains(parameters)
    counter = StepCounter(meter)
    progress.phase("learning", steps)
    watch, watched, step = current_watch(), cast("Learner", learner), 0
    if watch:
        watch.after(0, watched)
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
                if learner.after_batch is not None:
                    learner.after_batch(batch)
                progress.step(loss)
                step += 1
                if watch:
                    watch.after(step, watched, last=step == steps)
            # One look an epoch: more would make the processor wait for the device.
            if not torch.isfinite(total):
                raise LatewoodError(
                    f"The loss became NaN or infinite in epoch {epoch + 1} of {recipe.epochs}; "
                    f"lower recipe.lr (now {recipe.lr}) or set recipe.clip."
                )


def resolve_device(name: str) -> torch.device:
    """The device called ``auto`` (the fastest there is), ``cpu``, ``cuda`` (or ``cuda:1``) or ``mps``.

    >>> resolve_device("cpu")
    device(type='cpu')
    """
    kind = name.split(":", maxsplit=1)[0]
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(k for k in ("cuda", "mps", "cpu") if available[k]))
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or kind not in available:
        raise ConfigurationError(f"There is no device {name!r}; choose auto, cpu, cuda or mps.")
    if not available[kind] or (kind == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        raise ConfigurationError(f"Device {name!r} was asked for, but torch finds none on this machine.")
    return device


def _resident(data: Data, device: torch.device) -> Data:
    """The data on the device, once, where it fits into half of the free memory there; otherwise as it is."""
    if device.type != "cuda":
        return data
    size = sum(c.numel() * c.element_size() for c in data[:1].values() if isinstance(c, Tensor)) * len(data)
    return data.to(device) if size < torch.cuda.mem_get_info(device)[0] / 2 else data


def _shape(batch: Data) -> tuple[object, ...]:
    return tuple(tuple(c.shape) if isinstance(c, Tensor) else len(c) for c in batch.values())
