"""A run of many experiments without its training: phases, resuming, and the table at the end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from latewood.core.errors import CheckpointError, ConfigurationError, DataError
from latewood.language.corpora import ByteTokenizer
from latewood.language.insertions import InsertionPlan, Overlay, StreamShape
from latewood.studies.train_once import Control, Experiment, Item, TrainOnce, effects, plan, table

SHAPE = StreamShape(steps=40, rows=4, length=64)
TOKENIZER = ByteTokenizer()


def experiments() -> list[Experiment]:
    item = [Item("a", " b")]
    return [
        Experiment("fixed", ["a fixed text"], item, positions=[SHAPE.address(3, 1, 60)]),
        Experiment("static", [f"static text {n}" for n in range(20)], item, repetitions=2),
        Experiment("steered", [f"steered {n}" for n in range(30)], item, control=Control(0.1, 40, every=10, first=4)),
        Experiment("late", [f"late {n}" for n in range(9)], item, control=Control(0.5, 16, every=8, first=2, start=20)),
    ]


def values(study: TrainOnce, step: int) -> dict[str, float]:
    """What probes would say: some function of the step."""
    return {experiment.name: 0.002 * step for experiment in study.due(step)}


def run(study: TrainOnce, folder: Path | None = None, first: int = 0, last: int = 40) -> None:
    for step in study.stops(first):
        if step >= last:
            return
        study.steer(step, values(study, step))
        if folder:
            study.save(folder)


class Zeros:
    def rows_at(self, step: int) -> Tensor:
        return torch.zeros(SHAPE.rows, SHAPE.length, dtype=torch.int32)


def stream(found: InsertionPlan) -> Tensor:
    overlay = Overlay(Zeros(), found)
    return torch.stack([overlay.rows_at(step) for step in range(SHAPE.steps)])


def test_the_plan_holds_what_is_known_before_training_and_nothing_else() -> None:
    found = plan(experiments(), SHAPE, TOKENIZER)
    assert [(report.name, report.sequences) for report in found.reports()] == [("fixed", 1), ("static", 40)]
    text = bytes(token for token in stream(found).view(-1).tolist() if token < 256).decode()
    assert text.count("static text 7") == 2
    assert "a fixed text" in text
    assert "steered" not in text


def test_each_phase_puts_its_texts_into_the_steps_that_are_yet_to_come() -> None:
    study = TrainOnce(experiments(), SHAPE, TOKENIZER)
    assert list(study.stops()) == [0, 10, 20, 28, 30]
    for step in study.stops():
        before = stream(study.plan)
        study.steer(step, values(study, step))
        assert torch.equal(stream(study.plan)[:step], before[:step])
        assert study.plan.closed == step, "nothing may be put where training has been"
        for name, every, end in (("steered", 10, 40), ("late", 8, 36)):
            state = study.history[name][-1] if study.history[name] else None
            if state and state.step == step:
                mine = [i for i in study.plan.insertions() if i.name == name and i.position >= SHAPE.address(step)]
                assert mine
                assert all(i.position < SHAPE.address(min(step + every, end)) for i in mine)
    assert [state.texts for state in study.history["steered"]] == [4, 8, 16, 32]
    assert [state.aim for state in study.history["late"]] == [0.0, 0.25]


@pytest.mark.parametrize("stop", [5, 10, 11, 20, 25, 28, 30, 39])
def test_a_run_that_is_interrupted_and_resumed_places_the_same_texts(tmp_path: Path, stop: int) -> None:
    whole = TrainOnce(experiments(), SHAPE, TOKENIZER)
    run(whole)
    first = TrainOnce(experiments(), SHAPE, TOKENIZER)
    run(first, tmp_path / "study", last=stop)
    second = TrainOnce(experiments(), SHAPE, TOKENIZER)
    second.resume(tmp_path / "study")
    run(second, tmp_path / "study", first=stop)
    assert torch.equal(stream(second.plan), stream(whole.plan))
    assert second.history == whole.history
    assert second.reports() == whole.reports()


def test_going_back_to_an_earlier_checkpoint_keeps_what_later_phases_were_given(tmp_path: Path) -> None:
    study = TrainOnce(experiments(), SHAPE, TOKENIZER)
    run(study, tmp_path / "study", last=25)
    again = TrainOnce(experiments(), SHAPE, TOKENIZER)
    again.resume(tmp_path / "study")
    assert [again.due(step) for step in (0, 10, 20)] == [[], [], []]
    assert [experiment.name for experiment in again.due(28)] == ["late"]
    run(again, first=10)
    whole = TrainOnce(experiments(), SHAPE, TOKENIZER)
    run(whole)
    assert torch.equal(stream(again.plan), stream(whole.plan))


def test_a_decision_that_was_not_saved_is_taken_again(tmp_path: Path) -> None:
    study = TrainOnce(experiments(), SHAPE, TOKENIZER)
    run(study, tmp_path / "study", last=10)
    study.steer(10, values(study, 10))
    again = TrainOnce(experiments(), SHAPE, TOKENIZER)
    again.resume(tmp_path / "study")
    assert [experiment.name for experiment in again.due(10)] == ["steered"]


def test_a_study_of_other_experiments_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    study = TrainOnce(experiments(), SHAPE, TOKENIZER)
    study.save(tmp_path / "study")
    changed = experiments()
    changed[1] = Experiment("static", ["other"], [Item("a", " b")])
    for other in (
        TrainOnce(changed, SHAPE, TOKENIZER),
        TrainOnce(experiments()[:3], SHAPE, TOKENIZER),
        TrainOnce(experiments(), SHAPE, TOKENIZER, seed=1),
        TrainOnce(experiments(), StreamShape(40, 4, 128), TOKENIZER),
    ):
        before = list(other.plan.insertions())
        with pytest.raises(CheckpointError, match="was made for"):
            other.resume(tmp_path / "study")
        assert list(other.plan.insertions()) == before


def test_values_that_are_missing_not_asked_for_or_no_number_change_nothing() -> None:
    study = TrainOnce(experiments(), SHAPE, TOKENIZER)
    for wrong in ({}, {"steered": 0.1, "late": 0.1}, {"static": 0.1}):
        with pytest.raises(ConfigurationError, match="At step 0 the values of steered are due"):
            study.steer(0, wrong)
    with pytest.raises(DataError, match="finite number"):
        study.steer(0, {"steered": float("nan")})
    assert study.history["steered"] == []
    assert len(list(study.plan.insertions())) == len(list(plan(experiments(), SHAPE, TOKENIZER).insertions()))


def test_experiments_that_do_not_fit_together_are_refused() -> None:
    mine = experiments()
    with pytest.raises(ConfigurationError, match="Two experiments are called 'static'"):
        TrainOnce([*mine, mine[1]], SHAPE, TOKENIZER)
    with pytest.raises(ConfigurationError, match="'steered' goes on to step 40, but the stream ends at 30"):
        TrainOnce(mine[2:], StreamShape(30, 4, 64), TOKENIZER)


def test_effects_are_told_with_what_was_inserted_and_what_solo_runs_gave() -> None:
    study = TrainOnce(experiments()[:2], SHAPE, TOKENIZER)
    found = effects({"static": 0.01, "fixed": 0.0}, {"static": 0.5, "fixed": 0.2}, {"static": [0.4, 0.6]})
    assert [(e.effect, e.as_solo) for e in found] == [(pytest.approx(0.49), True), (0.2, None)]
    lines = table(found, study.reports()).splitlines()
    assert lines[2].startswith("| static | 40 | ")
    assert lines[2].endswith(" | 0.01 | 0.5 | +0.49 | 0.4 to 0.6 |")
    assert len({line.count("|") for line in lines}) == 1
    assert effects({"a": 0.0}, {"a": 1.0}, {"a": [0.2, 0.4]})[0].as_solo is False
    with pytest.raises(DataError, match="b is in one only"):
        effects({"a": 0.0}, {"a": 0.0, "b": 0.0})
