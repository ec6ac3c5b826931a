"""Marks: how to tell methods apart in every chart: a colour, a marker and a dash pattern for each."""

from __future__ import annotations

import math
from dataclasses import dataclass

from latewood.report.palette import COLOURS
from latewood.report.svg import Markup, polyline, tag

_DASHES = (None, "7 4", "2 3", "9 3 2 3", "12 3", "4 2", "6 3 1 3 1 3")
_SIDES = {"square": 4, "diamond": 4, "up": 3, "down": 3, "star": 5, "pentagon": 5}
_SHAPES = ("circle", "square", "up", "diamond", "down", "star", "pentagon", "cross")


@dataclass(frozen=True)
class Mark:
    """How a method looks wherever it appears; ``index`` is its place in the order of the page."""

    index: int

    @property
    def css(self) -> str:
        """The class that sets the method's colour."""
        return f"m{self.index % COLOURS}"

    @property
    def dash(self) -> str | None:
        """The dash pattern of its lines; of seven, so that it repeats together with the colour only after 56 methods."""
        return _DASHES[self.index % len(_DASHES)]

    def draw(self, x: float, y: float, radius: float = 4.5) -> Markup:
        """Its marker, centred at a point."""
        shape = _SHAPES[(self.index + self.index // COLOURS) % len(_SHAPES)]
        if shape == "circle":
            return tag("circle", cx=x, cy=y, r=radius * 0.92, class_="mark")
        return tag("path", d=polyline(_outline(shape, x, y, radius * 1.12), closed=True), class_="mark")


def _outline(shape: str, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    if shape == "cross":
        arm, half = radius * 1.05, radius * 0.36
        corner = [(half, arm), (half, half), (arm, half)]
        quarter = [(a, b) for a, b in corner] + [(a, -b) for a, b in reversed(corner)]
        return [(x + a, y + b) for a, b in quarter] + [(x - a, y - b) for a, b in quarter]
    sides = _SIDES[shape]
    turn = {"square": math.pi / 4, "down": math.pi / 2}.get(shape, -math.pi / 2)
    inner = 0.46 if shape == "star" else None
    steps = sides * 2 if inner else sides
    radii = [radius * (inner if inner and i % 2 else 1.12 if shape in ("up", "down", "star") else 1.0) for i in range(steps)]
    angles = [turn + 2 * math.pi * i / steps for i in range(steps)]
    return [(x + r * math.cos(a), y + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]
