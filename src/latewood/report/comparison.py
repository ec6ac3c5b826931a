"""The comparison of methods as a table of the page."""

from __future__ import annotations

from collections.abc import Sequence

from latewood.report import quantities
from latewood.report.columns import COLUMNS, Column, severity
from latewood.report.marks import Mark
from latewood.report.summary import MethodSummary
from latewood.report.svg import Markup, tag


def comparison(summaries: Sequence[MethodSummary], metric: str) -> Markup:
    """A row for each method, the best value of each column in bold."""
    table = _table(summaries, [(column, metric) for column in COLUMNS], "comparison")
    return scrolling(table, "Comparison of the methods")


def other_metrics(summaries: Sequence[MethodSummary], main: str) -> Markup | None:
    """The last score of every further metric, a column for each; nothing if there is only one metric."""
    directions = summaries[0].first.higher_is_better
    columns = [
        (Column("last", quantities.words(name, unit=True), higher), name) for name, higher in directions.items() if name != main
    ]
    return scrolling(_table(summaries, columns, "comparison short"), "Last scores of the other metrics") if columns else None


def _table(summaries: Sequence[MethodSummary], columns: Sequence[tuple[Column, str]], class_: str) -> Markup:
    """Columns, each with its metric, of all methods."""
    winners = [column.best(summaries, metric) for column, metric in columns]
    head = [
        tag("th", "method", scope="col", class_="method"),
        *(_head(column, summaries, metric) for column, metric in columns),
    ]
    rows = []
    for index, summary in enumerate(summaries):
        method = tag("th", swatch(index), tag("span", summary.label), scope="row", class_="method")
        several = zip(columns, winners, strict=True)
        cells = [_cell(column, summary, metric, summary.label in best) for (column, metric), best in several]
        rows.append(tag("tr", method, *cells, data_method=index))
    return tag("table", tag("thead", tag("tr", *head)), tag("tbody", *rows), class_=class_)


def swatch(index: int) -> Markup:
    """A method's line and marker, as in the charts."""
    mark = Mark(index)
    stroke = tag("line", x1=1, x2=27, y1=7, y2=7, class_="stroke", stroke_dasharray=mark.dash)
    return tag(
        "svg",
        stroke,
        mark.draw(14, 7, 4.5),
        class_=f"swatch {mark.css}",
        viewBox="0 0 28 14",
        width=28,
        height=14,
        aria_hidden="true",
    )


def scrolling(content: Markup, label: str) -> Markup:
    """What may be wider than a phone: it scrolls within its own frame, with the keyboard too."""
    return tag("div", content, class_="scroll", tabindex=0, role="region", aria_label=label)


def _head(column: Column, summaries: Sequence[MethodSummary], metric: str) -> Markup:
    higher = summaries[0].first.higher_is_better[metric] if column.higher_is_better is None else column.higher_is_better
    direction = "higher is better" if higher else "lower is better"
    arrow = tag("span", "↑" if higher else "↓", class_="direction", role="img", aria_label=direction, title=direction)
    return tag("th", column.title.replace("\n", " "), "\u00a0", arrow, scope="col")


def _cell(column: Column, summary: MethodSummary, metric: str, best: bool) -> Markup:
    mean, half = column.parts(summary, metric)
    level = severity(summary, metric) if column.name == "forgetting" else None
    value = tag("span", mean, class_=" ".join(filter(None, ("best" if best else "", level or ""))) or None)
    # The interval has its place in every row of a score, or the means of methods with one seed would not line up.
    interval = None if column.show else tag("span", half, class_="half")
    return tag("td", value, interval, class_="score" if interval is not None else "cost")
