"""The words of a page: its title, what was compared, and on what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from latewood.report import quantities
from latewood.report.comparable import flatten, printable, stream_of
from latewood.report.summary import MethodSummary
from latewood.report.svg import Markup, join, tag
from latewood.report.table import same_seeds, seeds_text, unfinished_text

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
#: What of a run's configuration is said elsewhere on the page.
_KNOWN = ("learner", "stream", "seed", "method")


def stream_name(summaries: Sequence[MethodSummary]) -> str:
    """The name of the stream that all runs share."""
    return printable(str(stream_of(summaries[0].first).get("name", "one stream")))


def default_title(summaries: Sequence[MethodSummary]) -> str:
    """A title for the page: ``'Seven methods on split-cifar100'``."""
    count = len(summaries)
    who = summaries[0].label if count == 1 else f"{_in_words(count).capitalize()} methods"
    return f"{who} on {stream_name(summaries)}"


def lead(summaries: Sequence[MethodSummary], metric: str) -> Markup:
    """The paragraph that says what was done and how to read the numbers."""
    first, count = summaries[0].first, len(summaries)
    who = summaries[0].label if count == 1 else f"{_in_words(count).capitalize()} methods"
    samples = {sum(row.samples for row in r.rows) for s in summaries for r in s.records if r.complete}
    size = f" ({quantities.count(samples.pop())} samples)" if len(samples) == 1 else ""
    seeds = seeds_text(summaries)
    each = f", {'each ' if count > 1 else ''}with {seeds}" if seeds and same_seeds(summaries) else ""
    better = "higher" if first.higher_is_better[metric] else "lower"
    unit = " in percent" if quantities.is_percent(metric) else ""
    return tag(
        "p",
        f"{who} learned the stream ",
        tag("strong", stream_name(summaries)),
        f" in {_in_words(first.length)} experience{'' if first.length == 1 else 's'}{size}{each}. ",
        f"After every experience, {'it' if count == 1 else 'each'} was scored on every probe seen by then. ",
        f"The score is {quantities.words(metric)}{unit}; {better} is better.",
        class_="lead",
    )


def notices(summaries: Sequence[MethodSummary]) -> Markup | None:
    """What a reader must know before comparing: runs that are not finished, methods with other seeds."""
    sentences = []
    if unfinished_text(summaries):
        sentences.append(
            f"Not finished: {unfinished_text(summaries)}. Scores of these runs are not yet those of the whole stream."
        )
    if not same_seeds(summaries):
        sentences.append(f"The methods were not run with the same seeds: {seeds_text(summaries)}.")
    return join(tag("p", sentence, class_="notice") for sentence in sentences) if sentences else None


def facts(summaries: Sequence[MethodSummary]) -> Markup:
    """The configuration that all runs share: the stream's, and how it was run."""
    records = [record for summary in summaries for record in summary.records]
    found: dict[str, list[str]] = {}
    for record in records:
        rest = {key: value for key, value in record.config.items() if key not in _KNOWN}
        for key, value in {**stream_of(record), **flatten(rest)}.items():
            values = found.setdefault(key, [])
            if plain(value) not in values:
                values.append(plain(value))
    found.pop("name", None)
    return definitions({key: ", ".join(values) for key, values in found.items()}, "facts")


def definitions(pairs: dict[str, str], class_: str) -> Markup:
    """Names with their values."""
    rows = [tag("div", tag("dt", name.replace("_", " ")), tag("dd", value)) for name, value in pairs.items()]
    return tag("dl", *rows, class_=class_)


def plain(value: Any) -> str:
    """A value of a configuration as a reader expects it.

    >>> plain(True), plain(0.0001), plain([1, 2]), plain(None)
    ('yes', '0.0001', '1, 2', 'none')
    """
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int) and abs(value) >= 10_000:
        return quantities.count(value)
    return ", ".join(map(plain, value)) if isinstance(value, list | tuple) else str(value)


def _in_words(count: int) -> str:
    return _NUMBERS[count] if count < len(_NUMBERS) else quantities.count(count)
