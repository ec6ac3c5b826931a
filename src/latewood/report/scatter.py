"""Scatter: what a method costs against what it reaches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from latewood.report import quantities
from latewood.report.marks import Mark
from latewood.report.scale import Scale, durations, scores
from latewood.report.summary import MethodSummary
from latewood.report.svg import Markup, drawing, number, shorten, tag, text, text_width

_TOP, _BOTTOM = 30.0, 44.0
_LARGEST = 20.0


@dataclass(frozen=True)
class Box:
    """A rectangle by its corners."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """The area that two rectangles share."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(width, 0.0) * max(height, 0.0)

    @property
    def area(self) -> float:
        """Its area."""
        return (self.right - self.left) * (self.bottom - self.top)


@dataclass(frozen=True)
class _Point:
    """A method's place in the chart, the radius of its bubble, and what it stands for."""

    summary: MethodSummary
    index: int
    x: float
    y: float
    radius: float


def cost_chart(summaries: Sequence[MethodSummary], metric: str, width: float, height: float) -> Markup:
    """Learning seconds (x) and last score (y) of each method; bubbles have the area of the bytes kept. Sizes in pixels."""
    shown = [(i, s) for i, s in enumerate(summaries) if _known(s, metric)]
    factor = quantities.factor(metric)
    lasts = [summary.scores[metric]["last"].times(factor) for _, summary in shown]
    y = scores(lasts, metric, height - _BOTTOM, _TOP)
    left = max(text_width(label, 11.5) for label in y.labels()) + 12
    x = durations([s.costs["seconds"].mean for _, s in shown], left + 8, width - 12, 6 if width > 450 else 4)
    most = max((s.costs["kept_bytes"].mean for _, s in shown), default=0.0)
    places = [_place(s, i, metric, x, y, most) for i, s in shown]
    unbeaten = [place for summary in front(summaries, metric) for place in places if place.summary is summary]
    parts = [*_axes(x, y, left, width, metric), _steps(unbeaten)]
    parts += [_point(place, metric, y) for place in sorted(places, key=lambda place: -place.radius)]
    parts += _names(places, unbeaten, Box(left + 2, _TOP - 8, width, y.start - 2))
    label = f"Scatter chart: learning time and last {quantities.words(metric)} of each method."
    return drawing(width, height, label, *parts)


def front(summaries: Sequence[MethodSummary], metric: str) -> list[MethodSummary]:
    """The methods that no other beats in both time and last score (the Pareto front), from the fastest to the best."""
    sign = -1.0 if summaries[0].first.higher_is_better[metric] else 1.0
    costs = {s.label: (s.costs["seconds"].mean, sign * s.scores[metric]["last"].mean) for s in summaries if _known(s, metric)}
    best, unbeaten = math.inf, []
    for summary in sorted((s for s in summaries if s.label in costs), key=lambda s: costs[s.label]):
        if costs[summary.label][1] < best:
            best = costs[summary.label][1]
            unbeaten.append(summary)
    return unbeaten


def missing(summaries: Sequence[MethodSummary], metric: str) -> list[str]:
    """Labels of the methods that the chart can't show, as they have no score or no time yet."""
    return [summary.label for summary in summaries if not _known(summary, metric)]


def _known(summary: MethodSummary, metric: str) -> bool:
    return all(math.isfinite(v) for v in (summary.scores[metric]["last"].mean, summary.costs["seconds"].mean))


def _place(summary: MethodSummary, index: int, metric: str, x: Scale, y: Scale, most: float) -> _Point:
    kept = summary.costs["kept_bytes"].mean
    radius = _LARGEST * math.sqrt(kept / most) if most and kept > 0 else 0.0
    last = summary.scores[metric]["last"].mean * quantities.factor(metric)
    return _Point(summary, index, x(summary.costs["seconds"].mean), y(last), radius)


def _axes(x: Scale, y: Scale, left: float, width: float, metric: str) -> list[Markup]:
    parts = [text(0, 12, f"last {quantities.words(metric, unit=True)}", "axis-title")]
    for value, label in zip(y.ticks, y.labels(), strict=True):
        parts.append(tag("line", x1=left, x2=width, y1=y(value), y2=y(value), class_="grid"))
        parts.append(text(left - 8, y(value) + 4, label, "tick", "end"))
    for value in x.ticks:
        label = quantities.seconds_tick(value)
        # The last label must not stick out of the picture.
        centre = min(x(value), width - text_width(label, 11.5) / 2)
        parts.append(tag("line", x1=x(value), x2=x(value), y1=y.start, y2=y.start + 5, class_="tick-line"))
        parts.append(text(centre, y.start + 20, label, "tick", "middle"))
    title = "learning time" + (", logarithmic" if x.logarithmic else "")
    return [*parts, text((left + width) / 2, y.start + 40, title, "axis-title", "middle")]


def _steps(unbeaten: Sequence[_Point]) -> Markup | None:
    if len(unbeaten) < 2:
        return None
    steps = "".join(f"H{number(place.x)}V{number(place.y)}" for place in unbeaten[1:])
    return tag("path", d=f"M{number(unbeaten[0].x)} {number(unbeaten[0].y)}{steps}", class_="front")


def _point(place: _Point, metric: str, y: Scale) -> Markup:
    summary, mark = place.summary, Mark(place.index)
    last = summary.scores[metric]["last"]
    mean, half = quantities.score_parts(last.mean, last.half, metric)
    time, kept = quantities.seconds(summary.costs["seconds"].mean), quantities.size(summary.costs["kept_bytes"].mean)
    parts = [tag("title", f"{summary.label}: {mean} {half}".rstrip() + f" in {time}, {kept} kept")]
    if place.radius:
        parts.append(tag("circle", cx=place.x, cy=place.y, r=place.radius, class_="bubble"))
    if not math.isnan(last.half):
        low, high = (number(y.within(end)) for end in last.times(quantities.factor(metric)).ends)
        parts.append(tag("path", d=f"M{number(place.x)} {low}V{high}", class_="whisker"))
    parts += [mark.draw(place.x, place.y, 5.0), tag("circle", cx=place.x, cy=place.y, r=12, class_="target")]
    return tag("g", *parts, class_=f"series {mark.css}", data_method=place.index)


def _names(places: Sequence[_Point], unbeaten: Sequence[_Point], frame: Box) -> list[Markup]:
    """A name beside each point, where it covers the least of what is drawn already."""
    bubbles = [_around(place, place.radius) for place in places]
    treads = [Box(a.x, a.y - 3, b.x, a.y + 3) for a, b in pairwise(unbeaten)]
    taken = [*(_around(place, 7.0) for place in places), *treads]
    parts = []
    for place in places:
        name = shorten(place.summary.label, 120, 12.5)
        priced = [(_price(box, cost, frame, taken, bubbles), box) for cost, box in _candidates(place, text_width(name, 12.5))]
        box = min(priced, key=lambda pair: pair[0])[1]
        taken.append(box)
        parts.append(_name(place, name, box))
    return parts


def _around(place: _Point, radius: float) -> Box:
    return Box(place.x - radius, place.y - radius, place.x + radius, place.y + radius)


def _price(box: Box, cost: float, frame: Box, taken: Sequence[Box], bubbles: Sequence[Box]) -> float:
    """How bad it is to put a name there: to cover a mark or another name is far worse than to be far away."""
    hidden = sum(box.overlap(other) for other in taken) + box.area - box.overlap(frame)
    return cost + 3.0 * hidden + 0.04 * sum(box.overlap(other) for other in bubbles)


def _candidates(place: _Point, width: float) -> Iterator[tuple[float, Box]]:
    """Places for a name around a point and how undesirable each is: near is good, and right better than left."""
    for ring, distance in enumerate((8.0, 16.0, 26.0, 40.0, 58.0)):
        for turn in range(16):
            angle = turn * math.pi / 8
            distance = max(distance, place.radius + 3)
            x, y = place.x + distance * math.cos(angle), place.y + distance * math.sin(angle)
            # The text lies beyond the point: to the right of it, to the left of it, or centred above and below.
            left = x - width * (1 - math.cos(angle)) / 2
            top = y - 7 + 7 * math.sin(angle)
            yield ring * 14 + min(turn, 16 - turn) * 0.8, Box(left, top - 1, left + width, top + 15)


def _name(place: _Point, name: str, box: Box) -> Markup:
    x, y = (box.left + box.right) / 2, (box.top + box.bottom) / 2
    nearest = (min(max(place.x, box.left), box.right), min(max(place.y, box.top), box.bottom))
    # A leader is needed only where the name is not beside the point or its bubble.
    far = math.hypot(nearest[0] - place.x, nearest[1] - place.y) > max(14.0, place.radius + 6)
    start, end = (f"{number(a)} {number(b)}" for a, b in ((place.x, place.y), nearest))
    leader = tag("path", d=f"M{start}L{end}", class_="leader") if far else None
    label = text(x, y + 4.5, name, "name haloed", "middle")
    return tag("g", leader, label, class_=Mark(place.index).css, data_method=place.index)
