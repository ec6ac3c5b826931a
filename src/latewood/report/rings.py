"""The emblem of a page: the cross-section of a trunk with one ring for each experience."""

from __future__ import annotations

import math

from latewood.report.svg import Markup, polyline, tag

_SIZE = 64.0
_MOST = 9
_POINTS = 60


def emblem(experiences: int) -> Markup:
    """Growth rings, at most nine; the outermost is the bark."""
    count = max(2, min(experiences, _MOST))
    rings = [_ring(index, count) for index in range(1, count + 1)]
    pith = tag("circle", cx=_SIZE / 2 - 1, cy=_SIZE / 2 + 1, r=1.3, class_="pith")
    return tag(
        "svg", *rings, pith, class_="emblem", viewBox=f"0 0 {_SIZE:g} {_SIZE:g}", width=64, height=64, aria_hidden="true"
    )


def _ring(index: int, count: int) -> Markup:
    """One ring: nearly a circle, and less so towards the bark, as wood grows faster on one side."""
    share = index / count
    radius = (_SIZE / 2 - 3) * share**0.92
    points = []
    for step in range(_POINTS):
        angle = 2 * math.pi * step / _POINTS
        bumps = 0.035 * math.sin(2 * angle + 0.4 * index) + 0.022 * math.sin(3 * angle - 0.5 * index)
        reach = radius * (1 + bumps * share)
        shift = 1.0 - share
        points.append((_SIZE / 2 - shift + reach * math.cos(angle), _SIZE / 2 + shift + reach * math.sin(angle)))
    # Latewood is denser: every ring ends in a dark line, the bark in the thickest.
    width = 2.6 if index == count else 1.0 + 0.5 * (index % 2)
    return tag("path", d=polyline(points, closed=True), stroke_width=width, opacity=1 if index == count else 0.45 + 0.4 * share)
