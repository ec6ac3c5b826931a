"""What learning costs: seconds, FLOPs, peak memory, parameters, and the bytes kept between experiences."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True)
class Cost:
    """The cost of one experience.

    ``seconds`` of learning and ``probe_seconds`` of scoring, both by the wall clock; ``flops`` of learning, two for each
    multiply-add, as if no embedding had been cached; ``peak_memory`` in bytes (of the device on CUDA, else of the process);
    ``parameters``, trainable or not; ``trained``, how many of them an optimiser stepped at once (0: none, as in closed forms);
    ``state`` bytes that the learner keeps, by the attribute that keeps them;
    ``kept_bytes``, those of them beyond the network and its head: exemplars, statistics, old models.
    """

    seconds: float = 0.0
    probe_seconds: float = 0.0
    flops: int = 0
    peak_memory: int = 0
    parameters: int = 0
    trained: int = 0
    kept_bytes: int = 0
    state: Mapping[str, int] = field(default_factory=dict)

    #: The fields that are the same in every run of one configuration; the others are measured and vary.
    REPEATABLE = ("flops", "parameters", "trained", "kept_bytes", "state")


class _Counter(TorchDispatchMode):
    """Adds up the FLOPs of every operation, by torch's own formulas; torch's ``FlopCounterMode`` also follows which module
    each belongs to, which takes twice as long."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


class Meter:
    """Counts FLOPs and time while it is current; :func:`current_meter` finds it, so that no signature has to carry it."""

    def __init__(self) -> None:
        self.flops = 0
        self.seconds = 0.0
        self.trained = 0
        self._counter: _Counter | None = None

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count every operation in the block. It slows each operation by some microseconds: for blocks of few large ones.

        A block within such a block is counted already.
        """
        if self._counter is not None:
            yield
            return
        with _Counter() as self._counter:
            counter = self._counter
            try:
                yield
            finally:
                self._counter = None
        self.flops += counter.total

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Leave the block out of every count around it; what it is worth is charged with :meth:`charge`."""
        if self._counter is None:
            yield
            return
        counter, before = self._counter, self._counter.total
        # It goes on counting inside, so what it saw is taken off again; for a block within, it is as if there were none.
        self._counter = None
        try:
            yield
        finally:
            self._counter = counter
            self.flops -= counter.total - before

    @property
    def counts(self) -> bool:
        """Whether every operation is being counted now."""
        return self._counter is not None

    def charge(self, flops: int) -> None:
        """Add FLOPs that were measured elsewhere."""
        self.flops += flops

    def trains(self, parameters: Iterable[torch.Tensor]) -> None:
        """Tell which parameters an optimiser steps from now on."""
        self.trained = max(self.trained, sum(p.numel() for p in parameters))

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Add the seconds of the block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start


class _NullMeter(Meter):
    """Measures nothing: what is current outside of a run, so that learning by hand pays nothing."""

    @contextmanager
    def counting(self) -> Iterator[None]:
        yield

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        yield


_current: ContextVar[Meter | None] = ContextVar("latewood_meter", default=None)


def current_meter() -> Meter:
    """The meter of the run around this call; one that measures nothing if there is none."""
    return _current.get() or _NullMeter()


@contextmanager
def metered() -> Iterator[Meter]:
    """Make a new meter current inside the block."""
    meter = Meter()
    token = _current.set(meter)
    try:
        yield meter
    finally:
        _current.reset(token)


class StepCounter:
    """FLOPs of a long row of steps, of which only a few are measured: the 1st, 2nd, 64th, 4096th … of each batch shape.

    The steps between count as the last measured one. Not only the first step, because what a step costs can change while
    a memory fills; not many, because a measured step takes a seventh longer.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._seen: dict[object, int] = {}
        self._flops: dict[object, int] = {}
        self._active = not (isinstance(meter, _NullMeter) or meter.counts)

    @contextmanager
    def step(self, shape: object) -> Iterator[bool]:
        """Account for one step on a batch of this shape; yields whether it is being measured."""
        if not self._active:
            yield False
            return
        seen = self._seen[shape] = self._seen.get(shape, 0) + 1
        if seen == 2 or (seen & (seen - 1) == 0 and (seen.bit_length() - 1) % 6 == 0):
            before = self._meter.flops
            with self._meter.counting():
                yield True
            self._flops[shape] = self._meter.flops - before
        else:
            yield False
            self._meter.charge(self._flops[shape])


class PeakMemory:
    """The largest memory in use since :meth:`reset`, in bytes: of the CUDA device, else resident memory of the process.

    Where the system can't reset the process's mark (anything but Linux) it is the peak since the process began.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.reset()

    def reset(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def read(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        try:
            status = Path("/proc/self/status").read_text()
            return int(status.split("VmHWM:")[1].split()[0]) * 1024
        except (OSError, IndexError):
            if sys.platform == "win32":
                return 0
            import resource  # absent on Windows

            unit = 1 if sys.platform == "darwin" else 1024
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def state_bytes(module: nn.Module) -> dict[str, int]:
    """Bytes of everything in ``module.state_dict()``, by the attribute of ``module`` that it belongs to."""
    sizes: dict[str, int] = {}
    for name, value in module.state_dict().items():
        if isinstance(value, torch.Tensor):
            owner = name.split(".")[0]
            sizes[owner] = sizes.get(owner, 0) + value.numel() * value.element_size()
    return sizes
