"""The controller: what it does for every value of the probe, at its limits, and across a restart."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latewood.core.errors import CheckpointError, ConfigurationError, DataError
from latewood.studies.train_once.controller import Control, ControlState

FREE = Control(target=0.1, steps=10_000, limits=())


def before(texts: int, step: int, following: int = 0) -> ControlState:
    return ControlState(step, texts, 0, following, 0.0, 0.0)


@pytest.mark.parametrize(
    ("value", "texts", "expected"),
    [
        (0.0506, 100, 100),  # the line is at 0.05 at step 5000
        (0.0524, 100, 100),
        (0.0526, 100, 50),
        (0.9, 100, 50),
        (0.9, 101, 50),
        (0.0476, 100, 100),
        (0.0474, 100, 200),
        (0.0, 100, 200),
        (0.9, 1, 1),
        (0.0, 8192, 8192),
        (0.0, 5000, 8192),
        (0.05, 8192, 8192),
    ],
)
def test_texts_are_halved_above_the_band_doubled_below_and_kept_inside(value: float, texts: int, expected: int) -> None:
    state = FREE.decide(before(texts, 4000), 5000, value)
    assert state.texts == expected
    assert state.aim == pytest.approx(0.05)
    assert state.value == value


@pytest.mark.parametrize("value", [0.0, 0.05, 1.0])
def test_at_the_start_the_first_number_stands_whatever_the_value(value: float) -> None:
    state = Control(target=0.1, steps=100, first=77).decide(None, 0, value)
    assert (state.texts, state.aim, state.offset) == (77, 0.0, 0)


@pytest.mark.parametrize(
    ("since", "texts", "value", "expected"),
    [
        (18_000, 1000, 0.0, 2000),  # before the first limit nothing limits
        (19_000, 1000, 0.0, 1256),
        (19_000, 1000, 1.0, 744),
        (19_000, 100, 1.0, 50),
        (58_000, 200, 0.0, 400),
        (59_000, 200, 0.0, 264),
        (59_000, 1000, 1.0, 936),
        (59_000, 8190, 0.0, 8192),
    ],
)
def test_the_number_changes_by_no_more_than_the_limit_in_force(since: int, texts: int, value: float, expected: int) -> None:
    control = Control(target=0.08, steps=100_000, start=500, limits=((59_000, 64), (19_000, 256)))
    assert control.decide(before(texts, 500 + since - 1000), 500 + since, value).texts == expected


def test_the_line_is_counted_from_the_start_of_the_experiment() -> None:
    control = Control(target=0.08, steps=4000, start=2000)
    state = control.decide(before(10, 3000), 4000, 0.0)
    assert state.aim == pytest.approx(0.04)
    assert [step for step in range(0, 9000, 500) if control.due(step)] == [2000, 3000, 4000, 5000]


def test_the_last_phase_ends_with_the_experiment() -> None:
    control = Control(target=0.1, steps=2500)
    assert [control.end(step) for step in (0, 1000, 2000)] == [1000, 2000, 2500]


def test_texts_are_taken_one_stretch_after_another_and_from_the_beginning_once_used_up() -> None:
    pool = list(range(10))
    control = Control(target=0.1, steps=100, every=10, first=4)
    state, taken = None, []
    for step in range(0, 50, 10):
        decided = control.decide(state, step, 0.1 * step / 100)
        texts, state = decided.take(pool)
        taken.append(list(texts))
    assert taken == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_pool_that_is_used_up_exactly_begins_anew() -> None:
    _, state = ControlState(0, 5, 5, 5, 0.0, 0.0).take(list(range(10)))
    assert state.following == 0


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12), st.integers(1, 11))
def test_a_controller_that_is_restarted_goes_on_as_if_it_had_not_been(values: list[float], stop: int) -> None:
    control = Control(target=0.1, steps=12_000, first=3)
    pool = list(range(50))

    def run(restart: int | None) -> list[tuple[list[int], dict[str, float]]]:
        state, history = None, []
        for number, value in enumerate(values):
            if number == restart and state is not None:
                state = ControlState.from_json(json.loads(json.dumps(state.to_json())))
            decided = control.decide(state, 1000 * number, value)
            texts, state = decided.take(pool)
            history.append((list(texts), state.to_json()))
        return history

    assert run(None) == run(stop)


@given(st.integers(1, 8192), st.floats(0, 10), st.integers(1, 9))
def test_the_number_of_texts_never_leaves_its_bounds(texts: int, value: float, phase: int) -> None:
    state = Control(target=0.1, steps=10_000).decide(before(texts, 1000 * phase - 1000), 1000 * phase, value)
    assert 1 <= state.texts <= 8192
    assert abs(state.texts - texts) <= 256


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_probe_that_gives_no_number_is_an_error(value: float) -> None:
    with pytest.raises(DataError, match="at step 1000 it gave"):
        FREE.decide(before(1, 0), 1000, value)


@pytest.mark.parametrize(("state", "step"), [(None, 1000), (before(1, 0), 0), (before(1, 0), 2000), (before(1, 0), 500)])
def test_a_phase_is_neither_left_out_nor_begun_twice(state: ControlState | None, step: int) -> None:
    with pytest.raises(ConfigurationError, match=f"No phase begins at step {step}"):
        FREE.decide(state, step, 0.0)


@pytest.mark.parametrize(
    "wrong",
    [{"target": 0.0}, {"target": float("nan")}, {"steps": 0}, {"every": 0}, {"first": 0}, {"start": -1}, {"limits": ((0, 0),)}],
)
def test_a_controller_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    settings: dict[str, float] = {"target": 0.1, "steps": 10, **wrong}
    with pytest.raises(ConfigurationError):
        Control(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("held", [None, {}, {"step": "x"}, []])
def test_what_is_no_state_is_told(held: object) -> None:
    with pytest.raises(CheckpointError, match="no state of a controller"):
        ControlState.from_json(held)
