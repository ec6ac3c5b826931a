"""Line chart: the average score after each experience."""

from __future__ import annotations

import math
from collections.abc import Sequence

from latewood.report import quantities
from latewood.report.marks import Mark
from latewood.report.scale import Scale, scores, whole
from latewood.report.summary import Estimate, MethodSummary
from latewood.report.svg import Markup, drawing, polyline, shorten, spread, tag, text, text_width

_TOP, _BOTTOM, _GAP = 30.0, 42.0, 17.0
_MARKER_GAP = 16.0


def line_chart(summaries: Sequence[MethodSummary], metric: str, width: float, height: float) -> Markup:
    """A line for each method with its interval shaded, named at its end; ``width`` and ``height`` in pixels."""
    factor = quantities.factor(metric)
    curves = [[estimate.times(factor) for estimate in summary.curve(metric)] for summary in summaries]
    height = max(height, _GAP * len(summaries) + _TOP + _BOTTOM)
    labels = _labels(summaries, curves, metric, width * 0.34)
    room = max(text_width(f"{name} {score}", 12.5) for name, score in labels)
    y = scores([e for curve in curves for e in curve], metric, height - _BOTTOM, _TOP)
    left = max(text_width(label, 11.5) for label in y.labels()) + 12
    x = whole(1, max(s.length for s in summaries), left + 10, width - room - 24, 10 if width > 500 else 6)
    lines = [_series(s, i, curves[i], metric, x, y) for i, s in enumerate(summaries)]
    names = _names(labels, curves, x, y, width - room)
    label = f"Line chart: {quantities.words(metric)}, averaged over the probes seen so far, after each experience."
    # The first method is the best: drawn last, it lies on top.
    return drawing(width, height, label, _axes(x, y, left, metric), lines[::-1], names)


def _axes(x: Scale, y: Scale, left: float, metric: str) -> list[Markup]:
    right = x.end + 10
    parts = [text(0, 12, quantities.words(metric, unit=True), "axis-title")]
    for value, label in zip(y.ticks, y.labels(), strict=True):
        parts.append(tag("line", x1=left, x2=right, y1=y(value), y2=y(value), class_="grid"))
        parts.append(text(left - 8, y(value) + 4, label, "tick", "end"))
    parts += [text(x(value), y.start + 20, f"{value:.0f}", "tick", "middle") for value in x.ticks]
    parts.append(text((x.start + x.end) / 2, y.start + 38, "experiences learned", "axis-title", "middle"))
    return parts


def _series(summary: MethodSummary, index: int, curve: Sequence[Estimate], metric: str, x: Scale, y: Scale) -> Markup:
    mark, places = Mark(index), [x(i + 1) for i in range(len(curve))]
    points = [(p, e) for p, e in zip(places, curve, strict=True) if not math.isnan(e.mean)]
    # A score that is not known leaves a gap: lines and bands are drawn in pieces.
    pieces = _pieces(list(zip(places, curve, strict=True)))
    bands = [_band(piece, y) for piece in pieces if len(piece) > 1 and not all(math.isnan(e.half) for _, e in piece)]
    parts = [tag("path", d=polyline(band, closed=True), class_="band") for band in bands]
    paths = [polyline((p, y(e.mean)) for p, e in piece) for piece in pieces if len(piece) > 1]
    parts += [tag("path", d=path, class_="stroke", stroke_dasharray=mark.dash) for path in paths]
    # Counted from the end, so that the last point always has its marker.
    every = math.ceil(_MARKER_GAP * len(curve) / (x.end - x.start))
    parts += [mark.draw(p, y(e.mean)) for p, e in points[::-1][::every]]
    for p, e in points:
        mean, half = quantities.score_parts(e.mean / quantities.factor(metric), e.half / quantities.factor(metric), metric)
        tip = f"{summary.label} after experience {places.index(p) + 1}: {mean} {half}".rstrip()
        parts.append(tag("circle", tag("title", tip), cx=p, cy=y(e.mean), r=8, class_="target"))
    return tag("g", *parts, class_=f"series {mark.css}", data_method=index)


def _pieces(points: Sequence[tuple[float, Estimate]]) -> list[list[tuple[float, Estimate]]]:
    """Runs of neighbouring points whose mean is known."""
    pieces: list[list[tuple[float, Estimate]]] = [[]]
    for point in points:
        if math.isnan(point[1].mean):
            pieces.append([])
        else:
            pieces[-1].append(point)
    return [piece for piece in pieces if piece]


def _band(piece: Sequence[tuple[float, Estimate]], y: Scale) -> list[tuple[float, float]]:
    """Around the intervals: along their upper ends and back along the lower."""
    upper = [(p, y.within(e.ends[1])) for p, e in piece]
    return upper + [(p, y.within(e.ends[0])) for p, e in reversed(piece)]


def _labels(
    summaries: Sequence[MethodSummary], curves: Sequence[Sequence[Estimate]], metric: str, width: float
) -> list[tuple[str, str]]:
    """Each method's name, short enough for ``width`` pixels together with what follows it: the last known score."""
    factor = quantities.factor(metric)
    lasts = [next((e.mean for e in reversed(curve) if not math.isnan(e.mean)), math.nan) for curve in curves]
    texts = [quantities.score(last / factor, metric) for last in lasts]
    room = width - max(text_width(f" {score}", 12.5) for score in texts)
    return [(shorten(summary.label, room, 12.5), score) for summary, score in zip(summaries, texts, strict=True)]


def _names(
    labels: Sequence[tuple[str, str]], curves: Sequence[Sequence[Estimate]], x: Scale, y: Scale, start: float
) -> list[Markup]:
    """The labels to the right of the lines, apart from each other."""
    ends = {i: k for i, curve in enumerate(curves) for k, e in enumerate(curve) if not math.isnan(e.mean)}
    places = {i: y(curves[i][k].mean) for i, k in ends.items()}
    heights = spread(list(places.values()), _GAP, _TOP + 2, y.start - 2)
    parts = []
    for (i, place), height in zip(places.items(), heights, strict=True):
        leader = polyline([(x(ends[i] + 1) + 8, place), (start - 6, height)])
        name, score = labels[i]
        words = [tag("tspan", name, class_="name"), tag("tspan", score, dx=5, class_="value")]
        label = tag("text", *words, x=start, y=height + 4)
        parts.append(tag("g", tag("path", d=leader, class_="leader"), label, class_=Mark(i).css, data_method=i))
    return parts
