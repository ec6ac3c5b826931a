"""Example records with realistic numbers: seven methods, three seeds, five experiences of two classes each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from latewood.core.cost import Cost
from latewood.core.record import ProbeInfo, Record, Row

LENGTH = 5
SAMPLES = (2874, 2781, 2690, 2815, 2840)
MIB = 1024**2

MakeRecord = Callable[..., Record]


@dataclass(frozen=True)
class Method:
    """How a pretended method behaves: what it reaches, what it loses with each later experience, what it costs."""

    learner: str
    reach: float
    decay: float
    seconds: float
    tera_flops: float
    memory: int
    kept: int
    hyper_parameters: dict[str, object]
    trained: int = 11_220_132


METHODS = {
    "slca": Method("SLCA", 0.962, 0.018, 41.0, 38.0, 2140 * MIB, 11 * MIB, {"lr": 0.01, "backbone_lr": 1e-4, "epochs": 20}),
    "fetril": Method("FeTrIL", 0.915, 0.021, 2.9, 1.4, 610 * MIB, MIB // 5, {"epochs": 30, "lr": 0.1}, 5130),
    "g-acil": Method("GACIL", 0.938, 0.009, 1.1, 0.9, 790 * MIB, 33 * MIB, {"buffer": 2048, "gamma": 100.0}, 0),
    "replay": Method("ExperienceReplay", 0.955, 0.052, 33.0, 27.0, 1480 * MIB, 6 * MIB, {"memory": 2000, "lr": 0.03}),
    "lwf": Method("LwF", 0.93, 0.115, 36.5, 31.0, 1620 * MIB, 4 * MIB, {"alpha": 1.0, "temperature": 2.0}),
    "ewc": Method("EWC", 0.925, 0.16, 29.0, 22.0, 1390 * MIB, 9 * MIB, {"strength": 5000.0, "lr": 0.03}),
    "finetuning": Method("Finetuning", 0.968, 0.21, 21.5, 18.0, 1310 * MIB, 0, {"lr": 0.03, "epochs": 10}),
}


def make_record(
    name: str = "replay", seed: int = 0, *, label: str | None = None, length: int = LENGTH, done: int = LENGTH
) -> Record:
    """The record of one pretended run; ``done`` experiences of ``length`` are learned."""
    method = METHODS[name]
    rng = np.random.default_rng([seed, sum(map(ord, name))])
    config: dict[str, object] = {
        "learner": {
            "class": f"latewood.images.learners.{name}.{method.learner}",
            "net": {"name": "resnet18", "width": 32},
            **method.hyper_parameters,
        },
        "stream": {"name": "split-digits", "dataset": "digits", "steps": length, "classes": 2 * length, "seed": seed},
        "seed": seed,
        "device": "cuda",
        "transfer": False,
    }
    if label is not None:
        config["method"] = label
    environment = {"latewood": "0.1.0", "torch": "2.6.0", "python": "3.11.7", "machine": "Linux x86_64", "threads": "8"}
    probes = [ProbeInfo(f"classes {2 * j}, {2 * j + 1}", j) for j in range(length)]
    record = Record(config, {"accuracy": True, "loss": False}, probes, length, environment=environment)
    for index in range(done):
        record.add(_row(method, index, length, rng))
    return record


def _row(method: Method, index: int, length: int, rng: np.random.Generator) -> Row:
    accuracy: list[float | None] = [_accuracy(method, index - j, rng) if j <= index else None for j in range(length)]
    loss = [None if a is None else -math.log(a) * 1.1 for a in accuracy]
    cost = Cost(
        seconds=method.seconds / LENGTH * rng.normal(1, 0.04),
        probe_seconds=0.4 * (index + 1) * rng.normal(1, 0.1),
        flops=int(method.tera_flops * 1e12 / LENGTH),
        peak_memory=int(method.memory * (1 + 0.01 * index)),
        parameters=11_220_132 + 1026 * index,
        trained=method.trained,
        kept_bytes=method.kept * (index + 1) // LENGTH,
        state={"net": 44_880_528 + 4104 * index, "memory": method.kept * (index + 1) // LENGTH},
    )
    return Row(index, SAMPLES[index % 5], {"accuracy": accuracy, "loss": loss}, cost, (2 * index, 2 * index + 1))


def _accuracy(method: Method, age: int, rng: np.random.Generator) -> float:
    lost = method.decay * (1 - 0.72**age) / (1 - 0.72) * rng.normal(1, 0.12)
    return float(np.clip(method.reach - lost + rng.normal(0, 0.008), 0.02, 0.999))


@pytest.fixture(name="make_record")
def _make_record() -> MakeRecord:
    return make_record


@pytest.fixture
def records() -> Iterator[list[Record]]:
    """Seven methods with three seeds each."""
    yield [make_record(name, seed) for name in METHODS for seed in range(3)]


@pytest.fixture
def method_names() -> list[str]:
    """What :func:`make_record` knows."""
    return list(METHODS)
