"""Heat map: the score matrix of one method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from latewood.core.record import Matrix
from latewood.report import quantities
from latewood.report.palette import HEAT_STEPS
from latewood.report.summary import MethodSummary
from latewood.report.svg import Markup, drawing, tag, text

_LEFT, _TOP = 26.0, 36.0
#: Larger matrices are drawn without numbers, which would not be readable, and without tips, which would make a huge page.
_MOST_NUMBERED = 20


@dataclass(frozen=True)
class HeatScale:
    """The scores from the worst to the best of all methods, so that one colour means one score on the whole page."""

    worst: float
    best: float

    @classmethod
    def of(cls, matrices: Sequence[Matrix], higher_is_better: bool) -> HeatScale:
        """The scale that holds every known score."""
        known = np.concatenate([matrix[np.isfinite(matrix)] for matrix in matrices])
        low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
        return cls(low, high) if higher_is_better else cls(high, low)

    def step(self, value: float) -> int:
        """The step of the palette for a score."""
        span = self.best - self.worst
        share = (value - self.worst) / span if span else 1.0
        return min(HEAT_STEPS - 1, int(share * HEAT_STEPS))


@dataclass(frozen=True)
class HeatMap:
    """The mean score of each probe (columns) after each experience (rows); cells are empty where a probe is not yet seen."""

    summary: MethodSummary
    matrix: Matrix
    metric: str
    scale: HeatScale

    def draw(self) -> Markup:
        """The picture."""
        rows, columns = self.matrix.shape
        # Over the part of a wide matrix that is seen before it is scrolled.
        title = text(_LEFT + min(columns * self.wide, 270) / 2, 11, "probe", "axis-title", "middle")
        parts = [title, *self._labels()]
        parts += [self._cell(int(k), int(j)) for k, j in np.argwhere(np.isfinite(self.matrix))]
        what = f"{quantities.words(self.metric)} of {self.summary.label}"
        label = f"Heat map: {what} on each probe (columns) after each experience (rows)."
        return drawing(self.width, _TOP + rows * self.high + 6, label, *parts, class_="heat")

    @property
    def width(self) -> float:
        """The width of the picture; its margin holds the half of the last label that sticks out beside a small cell."""
        return _LEFT + int(self.matrix.shape[1]) * self.wide + 8

    @property
    def numbered(self) -> bool:
        """Whether the cells show their scores."""
        return int(max(self.matrix.shape)) <= _MOST_NUMBERED

    @property
    def wide(self) -> float:
        """The width of a cell: what the longest number needs, more where there are few columns."""
        if not self.numbered:
            # Whole pixels, or fine lines would show between the cells.
            return float(min(9, max(4, 270 // int(max(self.matrix.shape)))))
        longest = max((len(quantities.short_score(float(v), self.metric)) for v in self.matrix.flat), default=1)
        return max(longest * 7.0 + 6, min(46.0, 280.0 / int(max(self.matrix.shape))))

    @property
    def high(self) -> float:
        """The height of a cell."""
        return self.wide * 0.82 if self.numbered else self.wide

    def _cell(self, row: int, column: int) -> Markup:
        value = float(self.matrix[row, column])
        x, y, css = _LEFT + column * self.wide, _TOP + row * self.high, f"h{self.scale.step(value)}"
        if not self.numbered:
            return tag("rect", x=x, y=y, width=self.wide, height=self.high, class_=f"{css} cell")
        score = quantities.score(value, self.metric)
        tip = f"{self.summary.label} after experience {row + 1} on probe {self._probe(column)}: {score}"
        box = tag("rect", x=x + 1, y=y + 1, width=self.wide - 2, height=self.high - 2, rx=2.5, class_="cell")
        shown = text(x + self.wide / 2, y + self.high / 2 + 4, quantities.short_score(value, self.metric))
        return tag("g", tag("title", tip), box, shown, class_=css)

    def _labels(self) -> list[Markup]:
        """The numbers of probes above and of experiences at the left, not all of them where cells are small."""
        rows, columns = ([i for i in range(n) if self.numbered or i == 0 or (i + 1) % 10 == 0] for n in self.matrix.shape)
        above = [text(_LEFT + (j + 0.5) * self.wide, _TOP - 6, str(j + 1), "tick", "middle") for j in columns]
        return above + [text(_LEFT - 7, _TOP + (k + 0.5) * self.high + 4, str(k + 1), "tick", "end") for k in rows]

    def _probe(self, column: int) -> str:
        """The name of a probe; its number if seeds differ in it, as with another order of classes for each."""
        names = {r.probes[column].name for r in self.summary.records if column < len(r.probes)}
        return names.pop() if len(names) == 1 else str(column + 1)


def heat_legend(metric: str, scale: HeatScale) -> Markup:
    """The scale of the heat maps as a strip, with the scores at its ends."""
    width, height, step = 132.0, 10.0, 132.0 / HEAT_STEPS
    strip = [tag("rect", x=i * step, y=0, width=step + 0.3, height=height, class_=f"h{i} cell") for i in range(HEAT_STEPS)]
    label = "Colour scale of the heat maps, from the worst to the best score."
    worst, best = (quantities.score(value, metric) for value in (scale.worst, scale.best))
    picture = drawing(width, height, label, *strip, class_="strip")
    return tag("span", tag("span", worst), picture, tag("span", best), class_="scale")
