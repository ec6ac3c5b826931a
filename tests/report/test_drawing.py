"""The geometry behind the charts: scales, labels, marks and colours."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latewood.core.record import Record
from latewood.report.colour import contrast
from latewood.report.heatmap import HeatScale
from latewood.report.marks import Mark
from latewood.report.palette import COLOURS, HEAT_STEPS, THEME, heat_colours
from latewood.report.scale import durations, linear, scores, snug, whole
from latewood.report.scatter import cost_chart, front
from latewood.report.summary import Estimate, summarise
from latewood.report.svg import escape, number, shorten, spread, tag, text_width

MakeRecord = Callable[..., Record]

numbers = st.floats(-1e6, 1e6, allow_nan=False)


@given(st.lists(numbers, min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_a_scale_holds_all_values_and_has_round_ticks(values: list[float]) -> None:
    scale = linear(values, 0, 100)
    assert all(-1e-6 <= scale(value) <= 100 + 1e-6 for value in values)
    assert 2 <= len(scale.ticks) <= 9
    assert len(set(scale.labels())) == len(scale.ticks)


def test_scales() -> None:
    assert linear([63, 98], 0, 1).labels() == ["60", "70", "80", "90", "100"]
    assert linear([0.031, 0.068], 0, 1).ticks[0] == pytest.approx(0.03)
    assert linear([2, 4.4], 0, 1, 5).labels()[:3] == ["2.0", "2.5", "3.0"]
    assert linear([math.nan], 0, 1).low < linear([math.nan], 0, 1).high
    assert snug([0, 41.2], 0, 1).high == 41.2
    assert whole(1, 100, 0, 1).ticks[:3] == (1.0, 10.0, 20.0)
    assert whole(1, 1, 0, 10)(1) == 5
    assert whole(1, 2, 0, 1).ticks == (1.0, 2.0)


def test_shares_stay_between_0_and_100_and_long_intervals_do_not_rule() -> None:
    scale = scores([Estimate(95, 30), Estimate(90, 80)], "accuracy", 100, 0)
    assert scale.high <= 100
    assert scale.low >= 80
    assert scale.within(-500) == scale.start


def test_seconds_are_on_a_logarithmic_axis_when_their_range_is_wide() -> None:
    wide, near = durations([1.0, 4000.0], 0, 100), durations([100.0, 200.0], 0, 100)
    assert wide.logarithmic
    assert not near.logarithmic
    assert near.low == 0
    assert 2 <= len(wide.ticks) <= 5
    assert not durations([0.0, 4000.0], 0, 100).logarithmic
    assert durations([], 0, 100).ticks


@given(st.lists(st.floats(0, 300), max_size=12), st.floats(1, 20))
@settings(max_examples=60, deadline=None)
def test_labels_are_spread_apart_in_their_order(wanted: list[float], gap: float) -> None:
    placed = spread(wanted, gap, 0, 300)
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    assert all(placed[b] - placed[a] >= gap - 1e-6 for a, b in pairwise(order))
    if wanted and gap * (len(wanted) - 1) <= 300:
        assert min(placed) >= -1e-6
        assert max(placed) <= 300 + 1e-6


def test_tags_escape_and_numbers_are_short() -> None:
    assert tag("p", "<", ["&", None], class_='"') == '<p class="&quot;">&lt;&amp;</p>'
    assert escape("a\x00\ud800") == "a\ufffd\ufffd"
    assert [number(v) for v in (1.0, -0.001, 2.346, -3.5, 100.0, 0.0)] == ["1", "0", "2.35", "-3.5", "100", "0"]
    assert shorten("finetuning", 1000) == "finetuning"
    assert text_width(shorten("a-very-long-name-of-a-method", 60)) <= 60


def test_every_method_looks_different_without_colour() -> None:
    looks = {(mark.dash, re.sub(r"[\d. -]+", "", mark.draw(0, 0)), mark.draw(0, 0)) for mark in map(Mark, range(COLOURS))}
    assert len({(dash, drawn) for dash, _, drawn in looks}) == COLOURS
    assert len({(mark.css, mark.dash) for mark in map(Mark, range(56))}) == 56


@pytest.mark.parametrize(("theme", "index"), [("light", 0), ("dark", 1)])
def test_colours_can_be_seen_and_text_can_be_read(theme: str, index: int) -> None:
    paper = THEME["paper"][index]
    assert all(contrast(THEME[f"m{i}"][index], paper) >= 3 for i in range(COLOURS))
    assert all(
        contrast(THEME[name][index], paper) >= 4.5 for name in ("ink", "soft", "faint", "accent", "mild", "marked", "severe")
    )
    assert all(contrast(colour, ink) >= 4.5 for colour, ink in heat_colours(theme))
    # Stronger is farther from the paper, step by step.
    distance = [contrast(colour, paper) for colour, _ in heat_colours(theme)]
    assert distance == sorted(distance)


def test_the_heat_scale_runs_from_the_worst_to_the_best(records: list[Record]) -> None:
    matrices = [summary.matrix("loss") for summary in summarise(records)]
    scale = HeatScale.of(matrices, higher_is_better=False)
    assert scale.step(scale.best) == HEAT_STEPS - 1
    assert scale.step(scale.worst) == 0
    assert HeatScale(0.5, 0.5).step(0.5) == HEAT_STEPS - 1


def test_names_in_the_cost_chart_do_not_overlap(make_record: MakeRecord, method_names: list[str]) -> None:
    records = [make_record(name, seed, label=f"{name} {kind}") for name in method_names for kind in "ab" for seed in (0, 1)]
    chart = cost_chart(summarise(records), "accuracy", 480, 400)
    found = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" class="name haloed" text-anchor="middle">(.*?)<', chart)
    boxes = [(float(x) - text_width(name, 12.5) / 2, float(x) + text_width(name, 12.5) / 2, float(y)) for x, y, name in found]
    assert len(boxes) == 14
    for i, a in enumerate(boxes):
        assert a[0] >= 0
        assert a[1] <= 481
        assert not [b for b in boxes[i + 1 :] if a[0] < b[1] - 1 and b[0] < a[1] - 1 and abs(a[2] - b[2]) < 12]


def test_the_front_holds_the_methods_that_no_other_beats(make_record: MakeRecord) -> None:
    summaries = summarise([make_record(name) for name in ("slca", "g-acil", "fetril", "replay")])
    assert [summary.label for summary in front(summaries, "accuracy")] == ["GACIL", "SLCA"]
    assert [summary.label for summary in front(summarise([make_record("ewc", done=0)]), "accuracy")] == []
