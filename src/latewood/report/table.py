"""The comparison of methods for the terminal, and as plain dictionaries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from latewood.report import quantities
from latewood.report.columns import COLUMNS, Column, severity
from latewood.report.comparable import printable, stream_of
from latewood.report.summary import Estimate, MethodSummary, known_metric

_NARROW_TITLES = {"forgetting": "forget-\nting"}
_COLOURS = {"mild": "green", "marked": "yellow", "severe": "red"}


class ComparisonTable(Table):
    """A table that knows a narrower form of itself, and is drawn as that where the terminal is too small for it."""

    narrow: Table | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wanted = Measurement.get(console, options.update(max_width=10_000), self).maximum
        fits = self.narrow is None or wanted <= options.max_width
        return super().__rich_console__(console, options) if fits or not self.narrow else iter([self.narrow])


def comparison_table(summaries: Sequence[MethodSummary], metric: str | None = None) -> Table:
    """A table with a row for each method, in the given order; the best value of each column is bold.

    Scores are means with the 95% confidence interval over seeds, in percent if the metric is called ``accuracy…``. Where
    the terminal is narrow, the intervals stand below the means, and 80 columns are enough for percent. Errors:
    :class:`~latewood.core.errors.ConfigurationError` for no method or a metric that the records don't have.
    """
    metric = known_metric(summaries, metric)
    table = _build(summaries, metric, " ", label_width=32)
    table.narrow = _build(summaries, metric, "\n", label_width=12)
    return table


def _build(summaries: Sequence[MethodSummary], metric: str, gap: str, label_width: int) -> ComparisonTable:
    """The table with ``gap`` between mean and interval."""
    padding = (0, 0, 0, 0) if gap == "\n" else (0, 1, 0, 0)
    table = ComparisonTable(box=box.SIMPLE_HEAD, padding=padding, header_style="dim", pad_edge=False)
    table.title, table.title_justify = Text(quantities.words(metric, unit=True), style="bold"), "left"
    table.caption, table.caption_justify = Text(caption(summaries), style="dim"), "left"
    table.add_column("\nmethod", no_wrap=True, overflow="ellipsis", max_width=label_width)
    for column in COLUMNS:
        # Titles of one line stand on the second, beside the numbers.
        title = column.title if gap == " " else _NARROW_TITLES.get(column.title, column.title)
        title = title if "\n" in title else f"\n{title}"
        table.add_column(title, justify="right", no_wrap=True)
    winners = {column.name: column.best(summaries, metric) for column in COLUMNS}
    for summary in summaries:
        cells = [_cell(column, summary, metric, summary.label in winners[column.name], gap) for column in COLUMNS]
        # Text, not str: a label with square brackets must not be read as markup.
        table.add_row(Text(summary.label), *cells)
    return table


def caption(summaries: Sequence[MethodSummary]) -> str:
    """Where the numbers come from: the stream, the seeds, and runs that are not finished.

    >>> from latewood.core.record import ProbeInfo, Record
    >>> from latewood.report.summary import summarise
    >>> config = {"method": "er", "seed": 0, "stream": {"name": "digits"}}
    >>> caption(summarise([Record(config, {"accuracy": True}, [ProbeInfo("a", 0)], 5)]))
    'digits, 5 experiences, seed 0. Unfinished: er (seed 0, 0 of 5).'
    """
    first = summaries[0].first
    name = printable(str(stream_of(first).get("name", "stream without a name")))
    parts = [name, quantities.plural(first.length, "experience"), seeds_text(summaries)]
    text = ", ".join(part for part in parts if part) + "."
    if any(len(summary.records) > 1 for summary in summaries):
        text += " Mean ± 95% confidence interval over seeds."
    return text + (f" Unfinished: {unfinished_text(summaries)}." if unfinished_text(summaries) else "")


def seeds_text(summaries: Sequence[MethodSummary]) -> str:
    """The seeds of all methods: ``'seeds 0–2'``; each method's own where they differ."""
    if same_seeds(summaries):
        return _seeds_of(summaries[0])
    return ", ".join(f"{summary.label}: {_seeds_of(summary) or 'no seed'}" for summary in summaries)


def same_seeds(summaries: Sequence[MethodSummary]) -> bool:
    """Whether all methods were run with the same seeds."""
    return len({_seeds_of(summary) for summary in summaries}) == 1


def unfinished_text(summaries: Sequence[MethodSummary]) -> str:
    """The runs that have not learned every experience, or an empty string."""
    parts = []
    for summary in summaries:
        for run in summary.unfinished:
            seed = run.config.get("seed")
            parts.append(f"{summary.label} ({'' if seed is None else f'seed {seed}, '}{len(run.rows)} of {run.length})")
    return ", ".join(parts)


def as_json(summaries: Sequence[MethodSummary]) -> dict[str, Any]:
    """The comparison as plain dictionaries, lists, numbers and strings; what is not defined is ``None``.

    Scores are as measured, not in percent; ``interval`` is the half-width of the 95% confidence interval over seeds.
    """
    first = summaries[0].first if summaries else None
    return {
        "stream": first.config.get("stream") if first else None,
        "experiences": first.length if first else 0,
        "higher_is_better": dict(first.higher_is_better) if first else {},
        "methods": [_method_json(summary) for summary in summaries],
    }


def _method_json(summary: MethodSummary) -> dict[str, Any]:
    return {
        "method": summary.label,
        "seeds": summary.seeds,
        "learned": [len(record.rows) for record in summary.records],
        "scores": {m: {name: _plain(e) for name, e in scores.items()} for m, scores in summary.scores.items()},
        "costs": {name: _plain(estimate) for name, estimate in summary.costs.items()},
    }


def _plain(estimate: Estimate) -> dict[str, float | None]:
    values = {"mean": estimate.mean, "interval": estimate.half}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _cell(column: Column, summary: MethodSummary, metric: str, best: bool, gap: str) -> Text:
    level = severity(summary, metric) if column.name == "forgetting" else None
    mean, half = column.parts(summary, metric)
    # The base style would reach the interval too, which stays regular.
    cell = Text().append(mean, style=f"{'bold ' if best else ''}{_COLOURS.get(level or '', '')}".strip())
    return cell.append(f"{gap}{half}", style="dim") if half else cell


def _seeds_of(summary: MethodSummary) -> str:
    known = sorted({seed for seed in summary.seeds if seed is not None}, key=lambda seed: (isinstance(seed, str), seed))
    return f"seed{'s' if len(known) > 1 else ''} {quantities.listed(known)}" if known else ""
