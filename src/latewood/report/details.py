"""Details of each method: hyper-parameters, what it keeps, the cost of each experience; and how to reproduce it all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from latewood.core.record import Record, Row
from latewood.report import quantities
from latewood.report.comparable import flatten
from latewood.report.comparison import scrolling, swatch
from latewood.report.prose import definitions, plain
from latewood.report.summary import Estimate, MethodSummary
from latewood.report.svg import Markup, tag
from latewood.report.table import seeds_text

#: Columns of the table of experiences: title, how to read the value of a row, how to show the mean over seeds.
_COLUMNS: tuple[tuple[str, Callable[[Row], float], Callable[[float], str]], ...] = (
    ("samples", lambda row: row.samples, quantities.count),
    ("classes", lambda row: len(row.classes) or math.nan, quantities.count),
    ("learning", lambda row: row.cost.seconds, quantities.seconds),
    ("scoring", lambda row: row.cost.probe_seconds, quantities.seconds),
    ("FLOPs", lambda row: row.cost.flops, quantities.amount),
    ("peak memory", lambda row: row.cost.peak_memory, quantities.size),
    ("parameters", lambda row: row.cost.parameters, quantities.count),
    ("trained parameters", lambda row: row.cost.trained, quantities.count),
    ("kept bytes", lambda row: row.cost.kept_bytes, quantities.size),
)


def method_details(summary: MethodSummary, index: int, metric: str) -> Markup:
    """A part of the page that opens on demand, with everything that was measured of one method."""
    last = " ".join(quantities.score_parts(*_pair(summary.scores[metric]["last"]), metric)).strip()
    aside = tag("span", last, class_="aside")
    parameters = definitions(hyper_parameters(summary.records), "parameters")
    parts = [tag("h4", "Hyper-parameters"), parameters]
    state = _state(summary)
    if state:
        parts += [tag("h4", "State after the last experience"), definitions(state, "parameters")]
    table = scrolling(_experiences(summary, metric), f"Costs of {summary.label} by experience")
    parts += [tag("h4", "Experience by experience, mean over seeds"), table]
    head = tag("summary", swatch(index), tag("span", summary.label, class_="name"), aside)
    return tag("details", head, tag("div", *parts, class_="inside"))


def hyper_parameters(records: Sequence[Record]) -> dict[str, str]:
    """The learner's configuration by dotted name; where seeds differ, every value."""
    found: dict[str, list[str]] = {}
    for record in records:
        learner = record.config.get("learner")
        for key, value in flatten(learner if isinstance(learner, Mapping) else {"class": learner}).items():
            values = found.setdefault(key, [])
            if plain(value) not in values:
                values.append(plain(value))
    return {key: " or ".join(values) for key, values in found.items()}


def reproduction(summaries: Sequence[MethodSummary]) -> Markup:
    """Versions, seeds and the format of the records."""
    records = [record for summary in summaries for record in summary.records]
    versions: dict[str, list[str]] = {}
    for record in records:
        for name, value in record.environment.items():
            values = versions.setdefault(name, [])
            if value not in values:
                values.append(value)
    pairs = {name: ", ".join(values) for name, values in versions.items()}
    pairs |= {"seeds": seeds_text(summaries).removeprefix("seeds ").removeprefix("seed ") or "not recorded"}
    pairs |= {"records": f"{len(records)}, format {records[0].to_json()['format']}"}
    return definitions(pairs, "facts")


def _experiences(summary: MethodSummary, metric: str) -> Markup:
    heads = ["experience", f"{quantities.words(metric, unit=True)}", *(title for title, _, _ in _COLUMNS)]
    curve = summary.curve(metric)
    rows = []
    for index, estimate in enumerate(curve):
        known = [record.rows[index] for record in summary.records if index < len(record.rows)]
        mean, half = quantities.score_parts(*_pair(estimate), metric)
        score = tag("td", tag("span", mean), tag("span", half, class_="half"), class_="score")
        cells = [tag("td", show(Estimate.of(read(row) for row in known).mean)) for _, read, show in _COLUMNS]
        rows.append(tag("tr", tag("th", index + 1, scope="row"), score, *cells))
    head = tag("thead", tag("tr", *(tag("th", title, scope="col") for title in heads)))
    return tag("table", head, tag("tbody", *rows), class_="experiences")


def _state(summary: MethodSummary) -> dict[str, str]:
    """Bytes of the learner's state after the last experience by the attribute that keeps it, mean over seeds."""
    last = [record.rows[-1].cost.state for record in summary.records if record.rows]
    owners: dict[str, Any] = {owner: None for state in last for owner in state}
    return {owner: quantities.size(Estimate.of(float(state.get(owner, 0)) for state in last).mean) for owner in owners}


def _pair(estimate: Estimate) -> tuple[float, float]:
    return estimate.mean, estimate.half
