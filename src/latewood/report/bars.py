"""Bar chart: how much each method forgot."""

from __future__ import annotations

import math
from collections.abc import Sequence

from latewood.report import quantities
from latewood.report.marks import Mark
from latewood.report.scale import Scale, snug
from latewood.report.summary import MethodSummary
from latewood.report.svg import Markup, drawing, number, shorten, tag, text, text_width

_ROW, _THICKNESS, _TOP, _BOTTOM = 30.0, 14.0, 26.0, 22.0


def forgetting_chart(summaries: Sequence[MethodSummary], metric: str, width: float) -> Markup:
    """A bar for each method from zero to its forgetting, with its interval; ``width`` in pixels. Shorter is better."""
    factor = quantities.factor(metric)
    estimates = [summary.scores[metric]["forgetting"].times(factor) for summary in summaries]
    height = _TOP + _ROW * len(summaries) + _BOTTOM
    names = min(max(text_width(summary.label, 12.5) for summary in summaries), width * 0.3)
    texts = [quantities.score_parts(e.mean / factor, e.half / factor, metric) for e in estimates]
    values = max(text_width(f"{mean} {half}", 12.5) for mean, half in texts)
    ends = [end for e in estimates for end in e.ends if not math.isnan(end)]
    x = snug([0.0, *ends], names + 32, width - values - 18)
    title = text(0, 12, f"forgetting of {quantities.words(metric, unit=True)}", "axis-title")
    parts = [title, *_axis(x, height)]
    for i, summary in enumerate(summaries):
        parts.append(_bar(summary, i, texts[i], metric, x, width, names))
    return drawing(width, height, f"Bar chart: how much {quantities.words(metric)} each method forgot.", *parts)


def _axis(x: Scale, height: float) -> list[Markup]:
    bottom = height - _BOTTOM
    parts = []
    for value, label in zip(x.ticks, x.labels(), strict=True):
        parts.append(tag("line", x1=x(value), x2=x(value), y1=_TOP, y2=bottom, class_="zero" if value == 0 else "grid"))
        parts.append(text(x(value), bottom + 17, label, "tick", "middle"))
    return parts


def _bar(
    summary: MethodSummary, index: int, shown: tuple[str, str], metric: str, x: Scale, width: float, names: float
) -> Markup:
    mark, middle = Mark(index), _TOP + _ROW * (index + 0.5)
    estimate = summary.scores[metric]["forgetting"].times(quantities.factor(metric))
    mean, half = shown
    parts = [mark.draw(6, middle, 4.5), text(18, middle + 4, shorten(summary.label, names + 4, 12.5), "name")]
    value = [tag("tspan", mean, class_="value"), tag("tspan", f" {half}", class_="half") if half else None]
    parts.append(tag("text", *value, x=width, y=middle + 4, text_anchor="end"))
    if not math.isnan(estimate.mean):
        start, end = sorted((x(0), x(estimate.mean)))
        top = middle - _THICKNESS / 2
        parts.append(tag("rect", x=start, y=top, width=max(end - start, 1.0), height=_THICKNESS, rx=1.5, class_="bar"))
    if not math.isnan(estimate.half):
        low, high = (x(end) for end in estimate.ends)
        caps = "".join(f"M{number(place)} {number(middle - 4)}v8" for place in (low, high))
        parts.append(tag("path", d=f"M{number(low)} {number(middle)}H{number(high)}{caps}", class_="whisker"))
    tip = tag("title", f"{summary.label} forgot {mean} {half}".rstrip())
    return tag("g", tip, *parts, class_=f"series {mark.css}", data_method=index)
