"""Watching: scores within an arrival, of which neither the learner nor its result notices anything."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
import torch

from latewood.core.errors import CheckpointError, ConfigurationError
from latewood.core.learner import Learner
from latewood.core.probe import Probe
from latewood.core.record import Record
from latewood.core.run import run
from latewood.core.stream import Stream
from latewood.core.watch import Watch, watching
from latewood.images.learners.finetune import Finetune
from latewood.images.nets import mlp
from latewood.images.streams.split import split


def digits() -> Stream:
    return split("digits", steps=5)


def learner() -> Finetune:
    torch.manual_seed(0)
    return Finetune(mlp(digits().example, width=16))


def test_a_watched_learner_ends_with_the_same_bits_and_the_same_counted_cost() -> None:
    stream = digits()
    plain = run(learner(), stream, device="cpu")
    watch = Watch(stream.probes[:1])
    watched_learner = learner()
    with watching(watch):
        watched = run(watched_learner, stream, device="cpu")
    assert watched.repeatable() == plain.repeatable()
    assert len(watch.moments) > 3


def test_it_looks_before_the_first_step_and_after_the_last_and_where_it_is_due() -> None:
    stream = digits()
    one = learner()
    with watching(Watch(stream.probes[:1], due=7)) as watch:
        one.learn(stream[0])
    steps, accuracy = watch.curve(stream.probes[0].name, "accuracy")
    assert steps[:3] == [0, 7, 14]
    assert accuracy[-1] == stream.probes[0].score(one)["accuracy"]
    assert accuracy[-1] > accuracy[0]


def test_looking_restores_modes_and_generators() -> None:
    class Nosy(Probe):
        metrics: ClassVar = {"x": True}

        def score(self, learner: Learner) -> dict[str, float]:
            assert not learner.training
            torch.rand(3)
            torch.rand(3, generator=learner.generator)
            return {"x": 0.0}

    one = learner().train()
    before, drawn = torch.get_rng_state(), one.generator.get_state()
    Watch([Nosy("nosy", digits().probes[0].data, 0)]).after(0, one)
    assert one.training and torch.equal(before, torch.get_rng_state()) and torch.equal(drawn, one.generator.get_state())


def test_what_was_seen_survives_a_state_and_nothing_else_is_taken_for_one() -> None:
    stream = digits()
    with watching(Watch(stream.probes[:1], due=50)) as watch:
        learner().learn(stream[0])
    again = Watch(stream.probes[:1])
    again.load_state(watch.state())
    assert again.moments == watch.moments
    with pytest.raises(CheckpointError, match="no state of a watch"):
        again.load_state([3])


def test_a_watch_that_never_looks_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least every one"):
        Watch([], due=0)


def test_learned_is_the_mean_score_right_after_each_probe_was_first_seen(tmp_path: Path) -> None:
    record: Record = run(learner(), digits(), device="cpu")
    matrix = record.matrix()
    assert record.learned == pytest.approx(sum(matrix[j, j] for j in range(5)) / 5)
