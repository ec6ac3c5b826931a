"""The table for the terminal, the numbers in it, and its plain form."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from latewood.core.cost import Cost
from latewood.core.errors import ConfigurationError
from latewood.core.record import ProbeInfo, Record, Row
from latewood.report import quantities
from latewood.report.summary import summarise
from latewood.report.table import as_json, comparison_table

MakeRecord = Callable[..., Record]


def tiny(method: str, seed: int, scores: list[float | None], metric: str = "accuracy", higher: bool = True) -> Record:
    """A run of two experiences: probe ``a`` after each, and probe ``b`` after the second."""
    first, later, new = scores
    record = Record({"method": method, "seed": seed}, {metric: higher}, [ProbeInfo("a", 0), ProbeInfo("b", 1)], 2)
    record.add(Row(0, 100, {metric: [first, None]}, Cost(seconds=30.0, flops=10**9, trained=2048, kept_bytes=1536)))
    record.add(Row(1, 100, {metric: [later, new]}, Cost(seconds=45.0, flops=2 * 10**12, trained=4096, kept_bytes=1536)))
    return record


def row(table: Table, index: int) -> list[Text]:
    """The cells of a row."""
    return [list(column.cells)[index] for column in table.columns]  # type: ignore[misc]


def plain(table: Table, index: int) -> list[str]:
    return [cell.plain for cell in row(table, index)]


def shown(table: Table, width: int) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_numbers_of_accuracy_are_percent_with_intervals() -> None:
    table = comparison_table(summarise([tiny("er", 0, [0.9, 0.6, 0.8]), tiny("er", 1, [0.9, 0.62, 0.8])]))
    # last: 70 and 71, so 70.5 ± t(0.975, 1) · 0.5 = 6.4; average (90 + last) / 2; forgetting 30 and 28.
    assert plain(table, 0) == [
        *("er", "70.5 ± 6.4", "80.2 ± 3.2", "29.0 ± 12.7", "−29.0 ± 12.7"),
        *("75.0 s", "2.00 T", "4.10 k", "1.50 KiB"),
    ]


def test_one_seed_has_no_interval() -> None:
    table = comparison_table(summarise([tiny("er", 0, [0.9, 0.6, 0.8])]))
    assert plain(table, 0)[1:5] == ["70.0", "80.0", "30.0", "−30.0"]
    assert "±" not in shown(table, 120)


def test_lower_is_better_where_the_metric_says_so() -> None:
    records = [
        tiny("worse", 0, [12.0, 22.5, 14.0], "perplexity", False),
        tiny("better", 0, [12.0, 13.0, 14.0], "perplexity", False),
    ]
    table = comparison_table(summarise(records))
    assert plain(table, 0)[:5] == ["better", "13.50", "12.75", "1.000", "−1.000"]
    assert plain(table, 1)[:5] == ["worse", "18.25", "15.12", "10.50", "−10.50"]
    assert [["bold" in str(cell.spans) for cell in row(table, i)[1:5]] for i in (0, 1)] == [[True] * 4, [False] * 4]


def test_the_best_of_each_column_is_bold_and_ties_are_shared(records: list[Record]) -> None:
    table = comparison_table(summarise(records))
    for index, column in enumerate(table.columns[1:], 1):
        bold = [str(cell) for cell in column.cells if "bold" in str(cell.spans)]  # type: ignore[union-attr]
        assert len(bold) == 1, table.columns[index].header
    same = comparison_table(summarise([tiny("a", 0, [0.9, 0.6, 0.8]), tiny("b", 0, [0.9, 0.6, 0.8])]))
    assert "bold" not in str([cell.spans for i in (0, 1) for cell in row(same, i)])


@pytest.mark.parametrize(("later", "colour"), [(0.89, "green"), (0.85, "yellow"), (0.6, "red"), (None, "")])
def test_forgetting_is_coloured_by_how_bad_it_is(later: float | None, colour: str) -> None:
    cell = row(comparison_table(summarise([tiny("er", 0, [0.9, later, 0.8])])), 0)[3]
    assert [str(span.style) for span in cell.spans] == ([colour] if colour else [])


def test_what_is_not_defined_is_a_dash(make_record: MakeRecord) -> None:
    table = comparison_table(summarise([make_record("slca", 0, done=0), make_record("replay", 0, done=1)]))
    assert plain(table, 0)[3:5] == ["–", "–"]
    assert plain(table, 1)[1:] == ["–"] * 8


def test_a_label_is_not_read_as_markup(make_record: MakeRecord) -> None:
    table = comparison_table(summarise([make_record("replay", label="[red]er[/red] [/]")]))
    assert "[red]er[/red] [/]" in shown(table, 140)


def test_the_table_fits_an_ordinary_terminal(records: list[Record]) -> None:
    table = comparison_table(summarise(records))
    wide, narrow = shown(table, 110), shown(table, 80)
    assert "93.8 ± 0.7" in wide
    assert "…" not in wide
    assert max(map(len, narrow.splitlines())) <= 80
    # Only the long label is cut.
    assert narrow.count("…") == narrow.count("ExperienceR…") == 1
    assert "± 0.7" in narrow


def test_the_caption_says_what_was_run(records: list[Record], make_record: MakeRecord) -> None:
    caption = str(comparison_table(summarise(records)).caption)
    assert caption == "split-digits, 5 experiences, seeds 0–2. Mean ± 95% confidence interval over seeds."
    mixed = summarise([make_record("replay", 3), make_record("lwf", 0, done=2)])
    assert str(comparison_table(mixed).caption) == (
        "split-digits, 5 experiences, LwF: seed 0, ExperienceReplay: seed 3. Unfinished: LwF (seed 0, 2 of 5)."
    )


def test_a_metric_that_is_not_there_is_refused(records: list[Record]) -> None:
    with pytest.raises(ConfigurationError, match="no metric 'f1'"):
        comparison_table(summarise(records), "f1")
    with pytest.raises(ConfigurationError, match="no methods"):
        comparison_table([])


def test_the_plain_form_is_json_with_null_for_what_is_not_defined(records: list[Record], make_record: MakeRecord) -> None:
    plain_form = as_json(summarise([*records, make_record("replay", 0, label="begun", done=1)]))
    again = json.loads(json.dumps(plain_form, allow_nan=False))
    assert again == plain_form
    best, begun = (next(m for m in again["methods"] if m["method"] == name) for name in ("SLCA", "begun"))
    runs = [record for record in records if record.config["learner"]["class"].endswith("SLCA")]
    assert best["seeds"] == [0, 1, 2]
    assert best["scores"]["accuracy"]["last"]["mean"] == pytest.approx(sum(run.last for run in runs) / 3)
    assert begun["scores"]["accuracy"]["forgetting"] == {"mean": None, "interval": None}
    assert begun["learned"] == [1]
    assert as_json([])["methods"] == []


@pytest.mark.parametrize(
    ("show", "value", "text"),
    [
        (quantities.size, 0, "0 B"),
        (quantities.size, 1023, "1023 B"),
        (quantities.size, 1024, "1.00 KiB"),
        (quantities.size, 1023.99 * 1024, "1.00 MiB"),
        (quantities.size, 5.5 * 2**20, "5.50 MiB"),
        (quantities.amount, 0, "0"),
        (quantities.amount, 999.9e9, "1.00 T"),
        (quantities.amount, 4.56e10, "45.6 G"),
        (quantities.seconds, 0.0042, "4.20 ms"),
        (quantities.seconds, 119, "119 s"),
        (quantities.seconds, 120, "2.00 min"),
        (quantities.seconds, 7300, "2.03 h"),
        (quantities.seconds, math.nan, "–"),
        (quantities.count, 11220132, "11,220,132"),
        (quantities.count, -3, "−3"),
    ],
)
def test_units(show: object, value: float, text: str) -> None:
    assert show(value) == text  # type: ignore[operator]


@pytest.mark.parametrize(
    ("mean", "half", "metric", "parts"),
    [
        (0.71349, 0.0041, "accuracy", ("71.3", "± 0.4")),
        (0.71349, math.nan, "accuracy_top5", ("71.3", "")),
        (-0.0001, 0.0, "accuracy", ("0.0", "± 0.0")),
        (18.41664, 0.3, "perplexity", ("18.42", "± 0.30")),
        (1234.56, 7.0, "perplexity", ("1235", "± 7")),
        (2.5e7, 1e5, "perplexity", ("2.500e+07", "± 1.0e+05")),
        (0.0, 0.0, "loss", ("0.000", "± 0.000")),
        (math.nan, math.nan, "accuracy", ("–", "")),
    ],
)
def test_scores(mean: float, half: float, metric: str, parts: tuple[str, str]) -> None:
    assert quantities.score_parts(mean, half, metric) == parts


def test_forgetting_of_scores_that_became_unknown_is_not_defined() -> None:
    record = tiny("er", 0, [0.9, 0.6, 0.8])
    record.rows[1] = dataclasses.replace(record.rows[1], scores={"accuracy": [None, None]})
    assert plain(comparison_table(summarise([record])), 0)[1:5] == ["–", "–", "–", "–"]
