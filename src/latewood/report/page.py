"""One self-contained HTML page about a set of runs: it needs no network, no library and no script to be read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template

from latewood.core.files import write_atomically
from latewood.core.record import Record
from latewood.report import quantities
from latewood.report.bars import forgetting_chart
from latewood.report.comparison import comparison, other_metrics, scrolling, swatch
from latewood.report.details import method_details, reproduction
from latewood.report.heatmap import HeatMap, HeatScale, heat_legend
from latewood.report.lines import line_chart
from latewood.report.palette import stylesheet
from latewood.report.prose import default_title, facts, lead, notices
from latewood.report.rings import emblem
from latewood.report.scatter import cost_chart, front, missing
from latewood.report.summary import MethodSummary, known_metric, summarise
from latewood.report.svg import Markup, join, tag

# Widths of the drawings, in pixels. Text in a drawing that is scaled down can't be read, so each chart is drawn for
# every kind of screen, and the style sheet shows the one that fits.
_PHONE, _TABLET, _DESKTOP, _HALF = 344.0, 640.0, 1000.0, 480.0


def write_page(records: Iterable[Record], path: str | Path, title: str | None = None) -> None:
    """Write a page that compares the methods behind ``records``, all of one stream, on their main metric.

    Errors: :class:`~latewood.core.errors.ConfigurationError` for records that can't stand in one report (see
    :func:`~latewood.report.summary.group`); :class:`~latewood.core.errors.StorageError` if writing fails.
    """
    write_atomically(Path(path), render(summarise(records), title))


def render(summaries: Sequence[MethodSummary], title: str | None = None) -> str:
    """The page as text."""
    metric = known_metric(summaries, None)
    title = title or default_title(summaries)
    body = join(
        [
            _header(summaries, metric, title),
            _legend(summaries),
            _comparison(summaries, metric),
            _charts(summaries, metric),
            _heat_maps(summaries, metric),
            _details(summaries, metric),
            _footer(summaries),
        ]
    )
    assets = files("latewood.report")
    style = stylesheet() + (assets / "page.css").read_text("utf-8")
    script = (assets / "page.js").read_text("utf-8")
    page = Template((assets / "page.html").read_text("utf-8"))
    return page.substitute(title=join([title]), style=style, script=script, body=body)


def _header(summaries: Sequence[MethodSummary], metric: str, title: str) -> Markup:
    toggle = tag("button", _half_moon(), type="button", class_="toggle", hidden="", aria_label="Switch between light and dark")
    words = tag("div", tag("p", "Latewood report", class_="eyebrow"), tag("h1", title), class_="title")
    top = tag("div", emblem(max(s.length for s in summaries)), words, toggle, class_="top")
    return tag("header", top, lead(summaries, metric), notices(summaries), facts(summaries))


def _legend(summaries: Sequence[MethodSummary]) -> Markup | None:
    """The methods with their marks; a script makes it highlight one of them everywhere. A single one needs none."""
    if len(summaries) < 2:
        return None
    buttons = [
        tag("button", swatch(index), tag("span", summary.label), type="button", data_pick=index, aria_pressed="false")
        for index, summary in enumerate(summaries)
    ]
    return tag("nav", tag("div", *buttons, class_="chips"), class_="legend", aria_label="Methods: highlight one in all charts")


def _comparison(summaries: Sequence[MethodSummary], metric: str) -> Markup:
    several = any(len(summary.records) > 1 for summary in summaries)
    interval = "± is the half-width of the 95% confidence interval over seeds (Student’s t). " if several else ""
    best = "Bold is the best in its column. " if len(summaries) > 1 else ""
    note = (
        f"{interval}{best}Forgetting is how far each probe fell from the best it ever was; backward transfer is what "
        "later experiences did to it since it was first seen. Time is spent on learning, without scoring."
    )
    return _section("Comparison", quantities.words(metric, unit=True), comparison(summaries, metric), _note(note))


def _charts(summaries: Sequence[MethodSummary], metric: str) -> Markup:
    lines = [
        _drawn("phone", line_chart(summaries, metric, _PHONE, 300)),
        _drawn("tablet", line_chart(summaries, metric, _TABLET, 360)),
        _drawn("desktop", line_chart(summaries, metric, _DESKTOP, 420)),
    ]
    bars = [
        _drawn("phone", forgetting_chart(summaries, metric, _PHONE)),
        _drawn("larger", forgetting_chart(summaries, metric, _HALF)),
    ]
    height = 60.0 + 34.0 * len(summaries)
    costs = [
        _drawn("phone", cost_chart(summaries, metric, _PHONE, 320)),
        _drawn("larger", cost_chart(summaries, metric, _HALF, min(max(height, 320.0), 420.0))),
    ]
    several = any(len(summary.records) > 1 for summary in summaries)
    whiskers = " Whiskers: 95% interval over seeds." if several else ""
    pair = [
        _section("Forgetting", None, tag("figure", *bars), _note(f"Shorter bars are better.{whiskers}")),
        _section("Cost and score", None, tag("figure", *costs), _note(_cost_note(summaries, metric))),
    ]
    shaded = " Shaded: 95% interval over seeds." if several else ""
    note = _note(f"Mean over the probes seen so far, after each experience.{shaded}")
    return join([_section("Score over experiences", None, tag("figure", *lines), note), tag("div", *pair, class_="pair")])


def _cost_note(summaries: Sequence[MethodSummary], metric: str) -> str:
    corner = "top" if summaries[0].first.higher_is_better[metric] else "bottom"
    note = f"Best is at the {corner} left"
    unbeaten = front(summaries, metric)
    if len(unbeaten) > 1:
        note += "; no method beats those on the dotted line in both time and score."
    else:
        note += f": {unbeaten[0].label} beats all others in both time and score." if len(summaries) > 1 and unbeaten else "."
    most = max((s.costs["kept_bytes"].mean for s in summaries), default=0.0)
    if most > 0:
        note += f" The area of a bubble is the bytes kept, at most {quantities.size(most)}."
    absent = missing(summaries, metric)
    return note + (f" Not shown, without a score: {quantities.listed(absent)}." if absent else "")


def _heat_maps(summaries: Sequence[MethodSummary], metric: str) -> Markup:
    matrices = [summary.matrix(metric) for summary in summaries]
    scale = HeatScale.of(matrices, summaries[0].first.higher_is_better[metric])
    maps = [HeatMap(summary, matrix, metric, scale) for summary, matrix in zip(summaries, matrices, strict=True)]
    figures = []
    for index, heat_map in enumerate(maps):
        label = heat_map.summary.label
        caption = tag("figcaption", swatch(index), tag("span", label))
        figures.append(tag("figure", caption, scrolling(heat_map.draw(), f"Score matrix of {label}"), data_method=index))
    note = "Rows: after each experience. Columns: the probe, from the one seen first. Stronger colour is better."
    widest = max(270, round(max(heat_map.width for heat_map in maps)))
    grid = tag("div", *figures, class_="maps", style=f"--map:{widest}px")
    parts = [_note(note), heat_legend(metric, scale), grid]
    return _section("Score matrices", quantities.words(metric, unit=True), *parts)


def _details(summaries: Sequence[MethodSummary], metric: str) -> Markup:
    others = other_metrics(summaries, metric)
    parts = [_section("Other metrics", "after the last experience", others)] if others else []
    several = [method_details(summary, index, metric) for index, summary in enumerate(summaries)]
    return join([*parts, _section("Details", None, tag("div", *several, class_="details"))])


def _footer(summaries: Sequence[MethodSummary]) -> Markup:
    from latewood.core.version import __version__

    words = f"Written by Latewood {__version__}. The records hold every number of this page and the configuration behind it."
    return tag("footer", tag("h2", "To reproduce this"), reproduction(summaries), tag("p", words, class_="note"))


def _section(title: str, unit: str | None, *content: object) -> Markup:
    heading = tag("h2", title, tag("small", unit) if unit else None)
    return tag("section", heading, *content)


def _note(words: str) -> Markup:
    return tag("p", words, class_="note")


def _drawn(screen: str, picture: Markup) -> Markup:
    return tag("div", picture, class_=f"on-{screen}")


def _half_moon() -> Markup:
    outline = tag("circle", cx=10, cy=10, r=7.2)
    half = tag("path", d="M10 2.8a7.2 7.2 0 0 1 0 14.4z")
    return tag("svg", outline, half, viewBox="0 0 20 20", width=20, height=20, aria_hidden="true")
