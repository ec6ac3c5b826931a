"""Revisiting Replay and Gradient Alignment for Continual Pre-Training of Large Language Models"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar, cast

from latewood.papers.ledger import Claim, Paper, Verdict

if TYPE_CHECKING:
    from latewood.core.record import Record
    from latewood.core.stream import Stream
    from latewood.language.learners.mer import MER
    from latewood.language.nets.causal import CausalLM

SEEDS = (0, 1, 2)
NEW_ROWS, STEPS, LENGTH = 12, 300, 128
#: Three corpora of 3,600 rows each, every row of which is read once.
STREAM = ",".join(f"{name}@{NEW_ROWS * STEPS}" for name in ("en", "math", "python"))
RATES = (1e-3, 2e-3, 4e-3, 8e-3)


@dataclass(frozen=True)
class _Arm:
    """One way to learn the stream; new rows and steps are the same for all."""

    share: float = 0.0
    every: int = 5
    eps: float = 1.0
    width: int = 64
    averaged: bool = False

    @property
    def batch_size(self) -> int:
        return round(NEW_ROWS / (1 - self.share))


NOTHING, REPLAY, HALF = _Arm(), _Arm(0.25), _Arm(0.5)
REPTILE, BOTH = _Arm(eps=0.8), _Arm(0.25, eps=0.8)
AVERAGED = _Arm(0.25, averaged=True)


def _stream(corpora: str = STREAM) -> Stream:
    from latewood.language.streams.text import text

    return text(corpora, length=LENGTH, held_out=64)


def _learner(arm: _Arm, lr: float, seed: int, arrivals: int, stream: Stream) -> MER:
    from latewood.core.seeding import seeded
    from latewood.language.learners.mer import MER
    from latewood.language.nets.causal import causal
    from latewood.language.recipe import TextRecipe

    with seeded(seed, "initial weights"):
        net = causal(stream.example, layers=2, width=arm.width, heads=4)
    recipe = TextRecipe(batch_size=arm.batch_size, steps=STEPS, arrivals=arrivals, lr=lr, warmup=0.01)
    made: Callable[..., MER] = _averaging() if arm.averaged else MER
    return made(net, share=arm.share, every=arm.every, eps=arm.eps, recipe=recipe)


def _averaging() -> type[MER]:
    """Training as it is, scored with the running average of the weights: what the pull may not be mistaken for."""
    import torch
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    from latewood.core.data import Data
    from latewood.core.experience import Experience
    from latewood.language.learners.mer import MER
    from latewood.language.mixture import Mixture

    class Averaging(MER):
        # In a list, as what is averaged is no part of the learner's state.
        averages: ClassVar[list[AveragedModel]] = []

        def begin(self, experience: Experience) -> None:
            super().begin(experience)
            if not self.averages:
                self.averages.append(AveragedModel(self.backbone, multi_avg_fn=get_ema_multi_avg_fn(0.99)))

        def after_step(self, step: int, optimizer: torch.optim.Optimizer, mixture: Mixture) -> None:
            super().after_step(step, optimizer, mixture)
            self.averages[0].update_parameters(self.backbone)

        def predict(self, data: Data, batch_size: int = 32) -> torch.Tensor:
            trained = self.backbone
            self.backbone = cast("CausalLM", self.averages[0].module)
            try:
                return super().predict(data, batch_size)
            finally:
                self.backbone = trained

    return Averaging


@cache
def _record(arm: _Arm, seed: int, lr: float) -> Record:
    from latewood.core.run import run

    stream = _stream()
    return run(_learner(arm, lr, seed, len(stream), stream), stream, seed=seed, device="cpu")


@cache
def _tuned(arm: _Arm) -> float:
    """The rate with the lowest loss on the first corpus alone, under a seed of its own."""
    from latewood.core.run import run

    first = _stream(STREAM.split(",")[0])
    losses = {lr: run(_learner(arm, lr, 100, 1, first), first, seed=100, device="cpu").last for lr in RATES}
    return min(losses, key=lambda lr: losses[lr])


def _numbers(arm: _Arm, lr: Callable[[_Arm], float]) -> tuple[dict[str, float], list[Record]]:
    records = [_record(arm, seed, lr(arm)) for seed in SEEDS]
    kinds = {"retained": "last", "learned": "learned", "forgetting": "forgetting"}
    return {kind: _mean([getattr(record, name) for record in records]) for kind, name in kinds.items()}, records


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _replay() -> Verdict:
    """A quarter of each batch replayed against none; the same new rows and steps."""
    numbers: dict[str, float] = {}
    found = {name: _numbers(arm, lambda _: 4e-3)[0] for name, arm in (("none", NOTHING), ("replay 25 %", REPLAY))}
    for name, kinds in found.items():
        numbers |= {f"{name}, {kind}": value for kind, value in kinds.items()}
    none, replay = found["none"], found["replay 25 %"]
    holds = (
        replay["forgetting"] <= 0.4 * none["forgetting"]
        and replay["retained"] < none["retained"]
        and replay["learned"] < none["learned"] + 0.05
    )
    return Verdict(
        holds,
        numbers,
        f"Nats per byte over {STREAM}, means of {len(SEEDS)} seeds at one learning rate; it holds if replay forgets at most "
        "0.4 times as much, retains a lower loss, and its learned loss is at most 0.05 higher.",
    )


def _alignment() -> Verdict:
    """Reptile on top of replay, with controls; the learning rate of each arm chosen on the first corpus alone."""
    arms = {
        "none": NOTHING,
        "Reptile": REPTILE,
        "replay": REPLAY,
        "replay + Reptile": BOTH,
        "replay, averaged weights": AVERAGED,
    }
    numbers: dict[str, float] = {}
    retained: dict[str, list[float]] = {}
    learned: dict[str, float] = {}
    for name, arm in arms.items():
        kinds, records = _numbers(arm, lambda arm: _tuned(REPLAY if arm.averaged else arm))
        numbers |= {f"{name}, {kind}": value for kind, value in kinds.items()}
        numbers[f"{name}, lr"] = _tuned(REPLAY if arm.averaged else arm)
        retained[name], learned[name] = [record.last for record in records], kinds["learned"]
    better = sum(b <= a for a, b in zip(retained["replay"], retained["replay + Reptile"], strict=True))
    numbers["seeds in which Reptile retains more"] = better
    holds = better == len(SEEDS) and learned["replay + Reptile"] <= learned["replay"] + 0.01
    return Verdict(
        holds,
        numbers,
        f"Nats per byte over {STREAM}; the rate of each arm is the best of {', '.join(map(str, RATES))} on the first corpus "
        "alone; it holds if a pull of 0.8 every 5 steps retains at least as much as replay alone in every seed, and the "
        "learned loss is not more than 0.01 higher.",
    )


def _size() -> Verdict:
    """Computation spent on replay against the same spent on a wider model."""
    arms = {
        "width 64, replay 25 %": REPLAY,
        "width 72, none": _Arm(width=72),
        "width 64, replay 50 %": HALF,
        "width 80, replay 25 %": _Arm(0.25, width=80),
    }
    numbers: dict[str, float] = {}
    retained: dict[str, float] = {}
    for name, arm in arms.items():
        kinds, records = _numbers(arm, lambda _: 4e-3)
        retained[name] = kinds["retained"]
        numbers[f"{name}, retained"] = kinds["retained"]
        flops = _mean([record.cost.flops for record in records])
        numbers[f"{name}, GFLOP for a new row"] = flops / (3 * STEPS * NEW_ROWS) / 1e9
    small = retained["width 64, replay 25 %"] < retained["width 72, none"]
    large = retained["width 64, replay 50 %"] < retained["width 80, replay 25 %"]
    return Verdict(
        small and not large,
        numbers,
        "Loss retained in nats per byte at about equal computation for each new row; it holds if 25 % replay beats a model "
        "with a third more computation and no replay, and 50 % does not beat one with half as much again and 25 %.",
    )


PAPER = Paper(
    number=49,
    name="mer-cpt",
    title="Revisiting Replay and Gradient Alignment for Continual Pre-Training of Large Language Models",
    kind="learner + protocol",
    arxiv="2508.01908",
    summary=(
        "Mixes sequences stored on disk into a language model's training, with Reptile steps in between, and weighs the "
        "replay share against a larger model at equal computation."
    ),
    code=(
        "latewood.language.learners.mer:MER",
        "latewood.language.learners.replay:Replay",
        "latewood.parts.disk_buffer:DiskBuffer",
        "latewood.parts.reptile:Anchor",
    ),
    claims=(
        Claim("replay", "A quarter of replay removes most forgetting of a language model.", _replay, needs="text"),
        Claim("alignment", "Reptile's pull on top of replay retains more, at no cost in learning.", _alignment, needs="text"),
        Claim("size", "A little replay is worth more than a larger model; a lot is not.", _size, needs="text"),
    ),
)
