"""Insertions: what they change and what they leave; where they go; and what is kept on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from latewood.core.data import Data
from latewood.core.errors import CheckpointError, ConfigurationError, DataError
from latewood.core.progress import Progress, showing
from latewood.language.corpora import load_blocks
from latewood.language.insertions import (
    PATIENCE,
    InsertionPlan,
    IntervalSet,
    Intervention,
    MixtureStream,
    Overlay,
    StreamShape,
    wrapped,
)
from latewood.language.mixture import Mixture

SHAPE = StreamShape(steps=20, rows=3, length=16)
END = 99


class Counting:
    """A stream whose token at a position tells that position, so that any displacement shows."""

    def __init__(self, shape: StreamShape = SHAPE) -> None:
        self.tokens = torch.arange(shape.tokens, dtype=torch.int32).view(*shape) + 1000

    def rows_at(self, step: int) -> Tensor:
        return self.tokens[step]


def empty_plan(shape: StreamShape = SHAPE, seed: int = 42) -> InsertionPlan:
    return InsertionPlan(shape, end=END, vocabulary=100, seed=seed)


def read(plan: InsertionPlan) -> Tensor:
    overlay = Overlay(Counting(plan.shape), plan)
    return torch.stack([overlay.rows_at(step) for step in range(plan.shape.steps)])


def some_plan(folder: Path | None = None) -> InsertionPlan:
    """Two phases and three experiments, one of them across rows."""
    plan = empty_plan()
    plan.add(
        [
            Intervention("a", [[1, 2, 3], [4] * 5, [5] * 15, [6] * 16], repetitions=2),
            Intervention("long", [list(range(40))], positions=[SHAPE.address(2, 1, 10)]),
        ]
    )
    if folder:
        plan.save(folder)
    plan.add([Intervention("c", [[7] * 4] * 6, span=(SHAPE.address(10), SHAPE.address(15)))])
    return plan


# What is changed and what is not


def test_without_experiments_the_overlaid_stream_is_the_stream_itself() -> None:
    stream = Counting()
    overlay = Overlay(stream, empty_plan())
    for step in range(SHAPE.steps):
        assert overlay.rows_at(step).data_ptr() == stream.rows_at(step).data_ptr()
        assert overlay.rows_at(step).numpy().tobytes() == stream.tokens[step].numpy().tobytes()


def test_every_planned_position_has_its_token_and_no_other_position_changes() -> None:
    plan = some_plan()
    expected = Counting().tokens.clone().view(-1)
    covered = torch.zeros(SHAPE.tokens, dtype=torch.int64)
    for _, position, tokens in plan.insertions():
        expected[position : position + len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
        covered[position : position + len(tokens)] += 1
    found = read(plan)
    assert found.shape == tuple(SHAPE)
    assert found.dtype == torch.int32
    assert torch.equal(found.view(-1), expected)
    assert torch.equal(found.view(-1)[covered == 0], Counting().tokens.view(-1)[covered == 0])
    assert int(covered.max()) == 1
    assert int(covered.sum()) == sum(report.tokens for report in plan.reports())


def test_reading_at_random_gives_what_reading_in_order_gives_and_leaves_the_stream_as_it_was() -> None:
    plan, stream = some_plan(), Counting()
    overlay, whole = Overlay(stream, plan), read(plan)
    for step in (19, 3, 3, 0, 11, 2):
        assert torch.equal(overlay.rows_at(step), whole[step])
    assert torch.equal(stream.tokens, Counting().tokens)


def test_rows_that_are_not_contiguous_or_of_another_type_are_overlaid_too() -> None:
    plan = some_plan()
    rows = Counting().tokens[2].long()
    turned = rows.t().contiguous().t()
    assert torch.equal(plan.overlaid(2, turned), read(plan)[2].long())


def test_a_mixture_of_real_blocks_carries_insertions_at_its_own_addresses() -> None:
    blocks = load_blocks("python", length=16, blocks=60, held_out=2).train
    mixture = Mixture({"python": blocks, "rest": blocks[:20]}, batch_size=3, seed=1)
    plan = InsertionPlan((20, 3, 16), end=256, vocabulary=257)
    plan.add([Intervention("a", [[65] * 4] * 10), Intervention("b", [[66] * 20], positions=[mixture.address(4, 1, 9)])])
    overlay = Overlay(MixtureStream(mixture), plan)
    for step in range(20):
        drawn = mixture.draw().tensor("tokens")
        found = overlay.rows_at(step)
        places, tokens = plan.tokens_at(step)
        changed = torch.ones(3 * 16, dtype=torch.bool)
        changed[torch.from_numpy(places)] = False
        assert torch.equal(found.view(-1)[changed], drawn.view(-1)[changed])
        assert found.view(-1)[torch.from_numpy(places)].tolist() == tokens.tolist()
        assert plan.shape.address(step, 1, 9) == mixture.address(step, 1, 9)
    assert overlay.rows_at(4)[1, 9:].tolist() == [66] * 7


# Where insertions go


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 98), min_size=0, max_size=20), max_size=20),
    st.lists(st.lists(st.integers(0, 98), min_size=1, max_size=12), max_size=10),
    st.integers(0, 5),
)
def test_no_two_insertions_overlap_and_no_random_one_crosses_a_row(
    static: list[list[int]], later: list[list[int]], seed: int
) -> None:
    plan = empty_plan(seed=seed)
    plan.add(
        [
            Intervention("z", static),
            Intervention("y", static, repetitions=0.5),
            Intervention("fixed", [[1] * 50], positions=[100]),
        ]
    )
    for phase in (0, 1):
        span = (SHAPE.address(10 * phase), SHAPE.address(10 * phase + 10))
        plan.add([Intervention("phase", later, span=span)])
        mine = [i for i in list(plan.insertions()) if i.name == "phase" and i.position >= span[0]]
        assert all(span[0] <= i.position and i.position + len(i.tokens) <= span[1] for i in mine)
    ordered = sorted(plan.insertions(), key=lambda insertion: insertion.position)
    for before, after in pairwise(ordered):
        assert before.position + len(before.tokens) <= after.position
    for _, position, tokens in ordered:
        assert position // SHAPE.length == (position + len(tokens) - 1) // SHAPE.length
    assert sorted(plan.taken) == [(i.position, i.position + len(i.tokens) - 1) for i in ordered]


def test_the_same_seed_gives_the_same_map_and_another_seed_another() -> None:
    one, two = list(some_plan().insertions()), list(some_plan().insertions())
    assert one == two
    other = empty_plan(seed=1)
    other.add([Intervention("a", [[1, 2, 3]] * 5)])
    same = empty_plan(seed=42)
    same.add([Intervention("a", [[1, 2, 3]] * 5)])
    assert list(other.insertions()) != list(same.insertions())


def test_the_order_in_which_experiments_are_listed_changes_nothing() -> None:
    experiments = [
        Intervention("b", [[1] * 6] * 30),
        Intervention("a", [[2] * 9] * 20),
        Intervention("explicit", [[3] * 30], positions=[SHAPE.address(5)]),
    ]
    plans = [empty_plan(), empty_plan()]
    plans[0].add(experiments)
    plans[1].add(experiments[::-1])
    assert list(plans[0].insertions()) == list(plans[1].insertions())


def test_explicit_insertions_go_before_random_ones_whatever_their_name() -> None:
    wall = Intervention("z", [[3] * (SHAPE.tokens - 320)], positions=[320])
    plan = empty_plan()
    plan.add([Intervention("a", [[1, 2]] * 8), wall])
    mine = [insertion for insertion in plan.insertions() if insertion.name == "a"]
    assert len(mine) == 8
    assert all(insertion.position + len(insertion.tokens) <= 320 for insertion in mine)


def test_an_experiment_lies_alone_where_it_lies_in_company_unless_they_collide() -> None:
    shape = StreamShape(200, 8, 64)
    mine, other = Intervention("mine", [[1] * 6] * 40), Intervention("a", [[2] * 6] * 40)
    alone, joint = empty_plan(shape), empty_plan(shape)
    alone.add([mine])
    joint.add([other, mine])
    places = [{i.position for i in plan.insertions() if i.name == "mine"} for plan in (alone, joint)]
    assert len(places[0] & places[1]) >= 38


def test_every_phase_draws_places_of_its_own() -> None:
    plan = empty_plan()
    half = SHAPE.tokens // 2
    for start in (0, half):
        plan.add([Intervention("a", [[1] * 3] * 5, span=(start, start + half))])
    places = sorted(insertion.position for insertion in plan.insertions())
    assert places[:5] != [place - half for place in places[5:]]


def test_rows_and_columns_are_drawn_evenly() -> None:
    shape = StreamShape(50, 2, 8)
    rows, columns = np.zeros(100), np.zeros(6)
    for seed in range(120):
        plan = empty_plan(shape, seed)
        plan.add([Intervention("a", [[1]] * 20)])
        for _, position, _ in plan.insertions():
            rows[position // 8] += 1
            columns[position % 8] += 1
    assert rows.sum() == columns.sum() == 2400
    assert abs(rows - 24).max() < 6 * np.sqrt(24)
    # One row in ten holds two, which then must keep clear of one another; so the edges get a little more.
    assert abs(columns - 400).max() < 6 * np.sqrt(400)


def test_a_span_must_begin_and_end_with_a_row_within_the_stream() -> None:
    for span in ((0, 17), (8, 32)):
        with pytest.raises(ConfigurationError, match="multiples of 16"):
            empty_plan().add([Intervention("a", [[1]], span=span)])
    for span in ((0, SHAPE.tokens + 16), (32, 32), (-16, 16)):
        with pytest.raises(ConfigurationError, match="right would be a part of 0 to 960"):
            empty_plan().add([Intervention("a", [[1]], span=span)])


def test_explicit_positions_that_are_taken_are_an_error_that_names_both_and_changes_nothing() -> None:
    plan = some_plan()
    before, taken = list(plan.insertions()), list(plan.taken)
    with pytest.raises(DataError, match=r"'new' at position 124 would overlap an insertion of 'long'"):
        plan.add([Intervention("new", [[1] * 4], positions=[SHAPE.address(2, 1, 12)]), Intervention("more", [[2]])])
    with pytest.raises(DataError, match="'x' at position 3 would overlap an insertion of 'w'"):
        empty_plan().add([Intervention("w", [[1] * 20], positions=[0]), Intervention("x", [[1]], positions=[3])])
    assert list(plan.insertions()) == before
    assert list(plan.taken) == taken
    assert [report.name for report in plan.reports()] == ["a", "c", "long"]


@pytest.mark.parametrize("position", [-1, SHAPE.tokens - 3, SHAPE.tokens])
def test_explicit_positions_outside_the_stream_are_refused(position: int) -> None:
    with pytest.raises(ConfigurationError, match="outside what can be replaced, the positions 0 to 959"):
        empty_plan().add([Intervention("a", [[1, 2, 3, 4]], positions=[position])])


def test_an_explicit_insertion_over_three_rows_is_split_and_its_pieces_make_the_whole() -> None:
    plan = empty_plan()
    tokens = list(range(40))
    plan.add([Intervention("long", [tokens], positions=[SHAPE.address(2, 2, 10)])])
    pieces = list(plan.insertions())
    assert [(p.position, len(p.tokens)) for p in pieces] == [(138, 6), (144, 16), (160, 16), (176, 2)]
    assert [token for piece in pieces for token in piece.tokens] == tokens
    assert read(plan).view(-1)[138:178].tolist() == tokens


def test_a_place_that_can_not_be_found_is_given_up_told_and_counted() -> None:
    class Heard(Progress):
        told: list[str] = []  # noqa: RUF012

        def tell(self, sentence: str) -> None:
            self.told.append(sentence)

    plan = empty_plan(StreamShape(2, 1, 8))
    with showing(Heard()):
        plan.add([Intervention("a", [[1] * 8] * 5)])
    (report,) = plan.reports()
    assert (report.sequences, report.unplaced) == (2, 3)
    assert Heard.told == [f"3 of 5 sequences of 'a' found no free place after {PATIENCE * 5 + 1} collisions and are left out."]


def test_nothing_goes_where_training_has_been() -> None:
    plan = empty_plan()
    plan.close(10)
    with pytest.raises(ConfigurationError, match="as 10 steps are trained already"):
        plan.add([Intervention("a", [[1]])])
    with pytest.raises(ConfigurationError, match="the positions 480 to 959"):
        plan.add([Intervention("a", [[1]], positions=[479])])
    plan.add([Intervention("a", [[1]], span=(480, 960))])
    with pytest.raises(ConfigurationError, match="right would be 10 to 20"):
        plan.close(9)


def test_what_is_placed_already_is_not_placed_again() -> None:
    plan = some_plan()
    with pytest.raises(ConfigurationError, match="'a' is placed in this stream already"):
        plan.add([Intervention("a", [[1]])])
    with pytest.raises(ConfigurationError, match="'c' is placed in the positions 480 to 720 already"):
        plan.add([Intervention("c", [[1]], span=(480, 720))])
    assert plan.has("c", (480, 720))
    assert not plan.has("c")


# What is inserted


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([1], [0, 1, 0]),
        ([1, 0], [0, 1, 0]),
        ([0, 1], [0, 1, 0]),
        ([0], [0]),
        ([1, 2, 3], [0, 1, 2, 3, 0]),
        ([1, 2, 3, 4], [1, 2, 3, 4, 0]),
        ([1, 2, 3, 0], [0, 1, 2, 3, 0]),
        ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5]),
        ([], None),
        ([1, 2, 3, 4, 5, 6], None),
    ],
)
def test_sequences_are_wrapped_as_far_as_there_is_room(tokens: list[int], expected: list[int] | None) -> None:
    found = wrapped(np.array(tokens, np.int32), 0, 5)
    assert (found is None) if expected is None else (found is not None and found.tolist() == expected)


@given(st.lists(st.integers(0, 3), max_size=12), st.integers(1, 10))
def test_wrapping_keeps_the_text_and_never_outgrows_the_row(tokens: list[int], length: int) -> None:
    found = wrapped(np.array(tokens, np.int32), 0, length)
    if not 0 < len(tokens) <= length:
        assert found is None
        return
    assert found is not None
    assert len(found) <= length
    text = found.tolist()
    assert tokens in [text[i : i + len(tokens)] for i in range(len(text) - len(tokens) + 1)]
    assert text[-1] == 0 or len(tokens) == length
    assert text[0] == 0 or len(text) == length


def test_random_sequences_are_wrapped_and_those_too_long_or_empty_are_dropped_and_counted() -> None:
    plan = empty_plan()
    plan.add([Intervention("a", [[1], [2] * 15, [3] * 16, [4] * 17, []])])
    assert sorted(insertion.tokens for insertion in plan.insertions()) == [
        (2,) * 15 + (END,),
        (3,) * 16,
        (END, 1, END),
    ]
    assert plan.reports() == [("a", 3, 35, 35 / 960, 2, 0)]


def test_explicit_sequences_are_wrapped_only_on_request() -> None:
    plan = empty_plan()
    plan.add([Intervention("plain", [[1], []], positions=[5, 6]), Intervention("wrapped", [[2]], positions=[20], wrap=True)])
    assert [(p, t) for _, p, t in plan.insertions()] == [(5, (1,)), (20, (END, 2, END))]
    assert {report.name: report.dropped for report in plan.reports()} == {"plain": 1, "wrapped": 0}


@pytest.mark.parametrize(("repetitions", "count"), [(1, 10), (1.9, 10), (3, 30), (0.5, 5), (0.29, 2), (0.05, 0)])
def test_repetitions_repeat_the_list_or_draw_a_part_of_it(repetitions: float, count: int) -> None:
    plan = empty_plan()
    plan.add([Intervention("a", [[number] for number in range(10)], repetitions=repetitions)])
    numbers = [tokens[1] for _, _, tokens in plan.insertions()]
    assert len(numbers) == count
    times = {numbers.count(number) for number in set(numbers)}
    assert times <= {max(1, int(repetitions))}


def test_repetitions_do_not_count_for_explicit_positions() -> None:
    plan = empty_plan()
    plan.add([Intervention("a", [[1]], positions=[5], repetitions=3)])
    assert plan.reports()[0].sequences == 1


@pytest.mark.parametrize("repetitions", [0, -1, float("nan"), float("inf")])
def test_repetitions_that_make_no_sense_are_refused(repetitions: float) -> None:
    with pytest.raises(ConfigurationError, match="finite and above 0"):
        Intervention("a", [[1]], repetitions=repetitions)


def test_positions_that_do_not_fit_their_sequences_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="a position for each of 2 sequences, but it has 1"):
        Intervention("a", [[1], [2]], positions=[3])
    with pytest.raises(ConfigurationError, match="leave out the span"):
        Intervention("a", [[1]], positions=[3], span=(0, 16))


@pytest.mark.parametrize("tokens", [[100], [-1], [[1]]])
def test_what_is_no_token_is_refused(tokens: list[int]) -> None:
    with pytest.raises(DataError, match="Sequence 1 of 'a' must be a list of tokens from 0 to 99"):
        empty_plan().add([Intervention("a", [[1], tokens])])


# One pass only


@pytest.mark.parametrize("step", [SHAPE.steps, SHAPE.steps + 5, -1])
def test_a_step_of_a_second_pass_is_refused(step: int) -> None:
    asked: list[int] = []

    class Endless:
        def rows_at(self, step: int) -> Tensor:
            asked.append(step)
            return Counting().tokens[step % SHAPE.steps]

    with pytest.raises(DataError, match="it holds for one pass over the stream"):
        Overlay(Endless(), some_plan()).rows_at(step)
    assert asked == []


def test_a_stream_that_repeats_itself_is_refused_at_once_and_when_it_begins_to() -> None:
    class Epochs(Counting):
        repeats = True

    with pytest.raises(DataError, match="repeats itself"):
        Overlay(Epochs(), some_plan())
    stream = Epochs()
    stream.repeats = False
    overlay = Overlay(stream, some_plan())
    overlay.rows_at(0)
    stream.repeats = True
    with pytest.raises(DataError, match="repeats itself"):
        overlay.rows_at(0)


def test_a_stream_of_another_shape_is_refused() -> None:
    with pytest.raises(DataError, match=r"must be whole numbers of shape \(3, 16\) as planned"):
        Overlay(Counting(StreamShape(20, 3, 8)), some_plan()).rows_at(0)
    with pytest.raises(DataError, match=r"torch\.float32"):
        some_plan().overlaid(0, torch.zeros(3, 16))


@pytest.mark.parametrize("shape", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_a_stream_without_tokens_is_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigurationError, match="at least one step, row and token"):
        InsertionPlan(shape, end=0, vocabulary=2)


# Intervals


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 9)), max_size=120))
def test_the_interval_set_knows_what_a_list_of_all_numbers_knows(wanted: list[tuple[int, int]]) -> None:
    taken, numbers = IntervalSet(), set[int]()
    for start, more in wanted:
        mine = set(range(start, start + more + 1))
        free = not mine & numbers
        other = taken.overlap(start, start + more)
        assert (other is None) is free
        if other is not None:
            assert mine & set(range(other[0], other[1] + 1))
            with pytest.raises(DataError, match="would overlap"):
                taken.add(start, start + more)
        else:
            taken.add(start, start + more)
            numbers |= mine
    assert {n for start, end in taken for n in range(start, end + 1)} == numbers
    assert list(taken) == sorted(taken)
    assert list(IntervalSet(reversed(list(taken)))) == list(taken)


def test_many_intervals_stay_findable_in_any_order_of_adding() -> None:
    places = np.random.default_rng(0).permutation(20_000)
    taken = IntervalSet()
    for place in places.tolist():
        taken.add(3 * place, 3 * place + 1)
    assert len(taken) == 20_000
    assert list(taken) == [(3 * n, 3 * n + 1) for n in range(20_000)]
    assert all(taken.overlap(3 * n + 2, 3 * n + 2) is None for n in range(0, 20_000, 7))
    assert all(taken.overlap(3 * n + 1, 3 * n + 5) is not None for n in range(0, 20_000, 7))


def test_intervals_that_overlap_or_end_before_they_start_are_refused() -> None:
    with pytest.raises(DataError, match="overlap at 3"):
        IntervalSet([(3, 5), (0, 3)])
    with pytest.raises(DataError, match=r"\[4, 3\] does not"):
        IntervalSet().add(4, 3)


# On disk


def assert_same(one: InsertionPlan, other: InsertionPlan) -> None:
    assert torch.equal(read(one), read(other))
    assert sorted(one.insertions()) == sorted(other.insertions())
    assert one.reports() == other.reports()
    assert list(one.taken) == list(other.taken)
    assert (one.shape, one.end, one.vocabulary, one.seed, one.closed) == (
        other.shape,
        other.end,
        other.vocabulary,
        other.seed,
        other.closed,
    )


def test_a_plan_that_is_saved_appended_to_optimised_and_loaded_is_the_same_plan(tmp_path: Path) -> None:
    plan = some_plan(tmp_path / "plan")
    first = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "plan").glob("*.safetensors")}
    plan.close(5)
    plan.info = {"note": [1, 2]}
    plan.save(tmp_path / "plan")
    files = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "plan").glob("*.safetensors")}
    assert len(first) == 1
    assert len(files) == 2
    assert first.items() <= files.items(), "appending must not write again what is there"
    loaded = InsertionPlan.load(tmp_path / "plan")
    assert_same(plan, loaded)
    assert loaded.info == {"note": [1, 2]}
    loaded.optimise()
    assert_same(plan, loaded)
    loaded.save(tmp_path / "plan")
    assert len(list((tmp_path / "plan").glob("*.safetensors"))) == 1
    assert_same(plan, InsertionPlan.load(tmp_path / "plan"))
    loaded.save(tmp_path / "copy")
    assert_same(plan, InsertionPlan.load(tmp_path / "copy"))


def test_a_loaded_plan_goes_on_as_if_it_had_never_been_away(tmp_path: Path) -> None:
    stayed, away = some_plan(), some_plan()
    away.save(tmp_path / "plan")
    away = InsertionPlan.load(tmp_path / "plan")
    later = Intervention("d", [[8] * 9] * 12, span=(720, 960))
    stayed.add([later])
    away.add([later])
    assert_same(stayed, away)
    away.save(tmp_path / "plan")
    assert_same(stayed, InsertionPlan.load(tmp_path / "plan"))


def test_an_empty_plan_round_trips(tmp_path: Path) -> None:
    plan = empty_plan()
    plan.add([Intervention("nothing", [[]])])
    plan.optimise()
    plan.save(tmp_path / "plan")
    assert_same(plan, InsertionPlan.load(tmp_path / "plan"))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.lists(st.integers(0, 98), min_size=1, max_size=14), min_size=1, max_size=8), min_size=1, max_size=4)
)
def test_any_plan_round_trips(tmp_path_factory: pytest.TempPathFactory, phases: list[list[list[int]]]) -> None:
    folder = tmp_path_factory.mktemp("plan") / "plan"
    plan = empty_plan()
    for number, sequences in enumerate(phases):
        plan.add([Intervention("a", sequences, span=(SHAPE.address(5 * number), SHAPE.address(5 * number + 5)))])
        plan.save(folder)
        assert_same(plan, InsertionPlan.load(folder))
    plan.optimise()
    assert_same(plan, InsertionPlan.load(folder))


def test_the_tokens_of_a_loaded_plan_stay_on_disk_until_they_are_read(tmp_path: Path) -> None:
    plan = InsertionPlan((1000, 8, 1024), end=0, vocabulary=10)
    plan.add([Intervention("big", [np.ones(8_000_000, np.int32)], positions=[0])])
    plan.save(tmp_path / "plan")
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc to see the memory of this process")

    def own_megabytes() -> float:
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0]) / 1024

    del plan
    before = own_megabytes()
    loaded = InsertionPlan.load(tmp_path / "plan")
    loaded.tokens_at(500)
    assert own_megabytes() - before < 16, "the file has 32 MB"


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_damage_anywhere_is_told_and_nothing_is_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "plan"
    some_plan().save(folder)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for place in range(0, len(whole), 1 + len(whole) // 40):
            flip(path, place)
            with pytest.raises(CheckpointError, match="damaged"):
                InsertionPlan.load(folder)
            path.write_bytes(whole)
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(CheckpointError, match="damaged"):
            InsertionPlan.load(folder)
        path.unlink()
        with pytest.raises(CheckpointError, match="incomplete or damaged"):
            InsertionPlan.load(folder)
        path.write_bytes(whole)
    assert_same(some_plan(), InsertionPlan.load(folder))


def test_a_plan_of_a_later_format_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latewood.language.insertions.FORMAT", 2)
    some_plan().save(tmp_path / "plan")
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="format 2"):
        InsertionPlan.load(tmp_path / "plan")


def dying_at(nth: int, count: list[int], original: Callable[..., Any]) -> Callable[..., Any]:
    """``original``, but the process dies at the ``nth`` of all counted calls."""

    def call(*arguments: Any) -> Any:
        count[0] += 1
        if count[0] == nth:
            os._exit(9)
        return original(*arguments)

    return call


def test_a_process_that_dies_at_any_write_leaves_the_old_plan_or_the_new_one(tmp_path: Path) -> None:
    folder = tmp_path / "plan"
    some_plan(folder)
    outcomes = set()
    for nth in range(1, 60):
        child = os.fork()
        if child == 0:
            try:
                count = [0]
                os.fsync = dying_at(nth, count, os.fsync)
                Path.replace = dying_at(nth, count, Path.replace)  # type: ignore[method-assign]
                plan = InsertionPlan.load(folder)
                plan.add([Intervention("c", [[7] * 4] * 6, span=(480, 720))])
                plan.save(folder)
            finally:
                os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        names = [report.name for report in InsertionPlan.load(folder).reports()]
        outcomes.add(tuple(names))
        if status == 0:
            break
        if names == ["a", "c", "long"]:  # it died after the rename; begin anew
            for path in folder.iterdir():
                path.unlink()
            some_plan(folder)
    assert status == 0
    assert outcomes == {("a", "long"), ("a", "c", "long")}
    assert len(list(folder.glob(".*.tmp"))) == 0


def test_the_manifest_is_plain_json(tmp_path: Path) -> None:
    some_plan().save(tmp_path / "plan")
    held = json.loads((tmp_path / "plan" / "plan.json").read_text())
    assert held["plan"]["shape"] == [20, 3, 16]
    assert {path.suffix for path in (tmp_path / "plan").iterdir()} == {".json", ".safetensors"}


def test_training_on_a_stream_without_experiments_gives_the_same_weights_bit_for_bit() -> None:
    class Tiny(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = torch.nn.Embedding(100, 16), torch.nn.Linear(16, 100)

    class Real:
        def __init__(self) -> None:
            chance = torch.Generator().manual_seed(0)
            self.tokens = torch.randint(0, 100, tuple(SHAPE), generator=chance, dtype=torch.int32)

        def rows_at(self, step: int) -> Tensor:
            return self.tokens[step]

    def trained(stream: Real | Overlay) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = Tiny()
        optimizer = torch.optim.AdamW(model.parameters(), 0.01)
        for step in range(SHAPE.steps):
            rows = stream.rows_at(step).long()
            optimizer.zero_grad()
            logits = model.head(model.embedding(rows[:, :-1]))
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).backward()
            optimizer.step()
        return model.state_dict()

    plain, overlaid = trained(Real()), trained(Overlay(Real(), empty_plan()))
    changed = trained(Overlay(Real(), some_plan()))
    assert all(torch.equal(plain[name], overlaid[name]) for name in plain)
    assert not torch.equal(plain["head.weight"], changed["head.weight"])


def test_data_of_a_mixture_is_what_its_stream_gives() -> None:
    mixture = Mixture({"a": Data(tokens=torch.arange(12, dtype=torch.int32).view(6, 2))}, batch_size=2)
    assert torch.equal(MixtureStream(mixture).rows_at(1), mixture.read(1).tensor("tokens"))
    assert mixture.step == 0
