"""Scales: from values to places in a chart, with ticks at round values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from latewood.report import quantities
from latewood.report.summary import Estimate

#: Round durations in seconds for a logarithmic axis: 1, 3, 10, 30 of each unit, as far as the next unit.
_DURATIONS = (
    *(m * 10.0**e for e in range(-6, 1) for m in (1, 3)),
    *(10.0, 30.0, 60.0, 180.0, 600.0, 1800.0, 3600.0, 10800.0, 36000.0, 86400.0, 259200.0, 864000.0, 2592000.0),
)


@dataclass(frozen=True)
class Scale:
    """Maps ``[low, high]`` to ``[start, end]`` in pixels, linearly or by the logarithm; ``ticks`` are values on it."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def within(self, value: float) -> float:
        """The place of a value, or of the end of the scale that it lies beyond."""
        return self(min(max(value, self.low), self.high))

    def labels(self) -> list[str]:
        """The ticks as text, with as many decimals as they need."""
        step = min((abs(b - a) for a, b in zip(self.ticks, self.ticks[1:], strict=False)), default=1.0)
        if step < 1e-6 or step >= 1e6:
            return [f"{tick:.4g}".replace("-", "−") for tick in self.ticks]
        places = max(0, -math.floor(math.log10(step) + 1e-9))
        if round(step * 10**places, 6) % 1:
            places += 1
        return [f"{tick:.{places}f}".replace("-", "−") for tick in self.ticks]


def linear(
    values: Iterable[float], start: float, end: float, count: int = 5, limits: tuple[float, float] | None = None
) -> Scale:
    """A scale from the round value below all values to the one above; never beyond ``limits`` if the values are not."""
    known = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(known), max(known)
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-9):
        low, high = low - (abs(low) * 0.05 or 0.5), high + (abs(high) * 0.05 or 0.5)
    step = round_step((high - low) / count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if limits:
        first = max(first, math.ceil(min(limits[0], low) / step - 1e-9))
        last = min(last, math.floor(max(limits[1], high) / step + 1e-9))
    ticks = tuple(i * step for i in range(first, last + 1))
    return Scale(min(ticks[0], low), max(ticks[-1], high), start, end, ticks)


def scores(estimates: Iterable[Estimate], metric: str, start: float, end: float) -> Scale:
    """A scale for scores as they are shown: shares stay within 0 to 100%.

    Intervals over two seeds can be many times as long as all that is to be compared, so they widen the scale by half of
    the range of the means at the most on either side.
    """
    known = [estimate for estimate in estimates if math.isfinite(estimate.mean)]
    means = [estimate.mean for estimate in known] or [0.0, 1.0]
    room = (max(means) - min(means)) / 2 or math.inf
    low = max(min((e.ends[0] for e in known), default=0.0), min(means) - room)
    high = min(max((e.ends[1] for e in known), default=1.0), max(means) + room)
    if quantities.is_percent(metric):
        low, high = max(low, min(0.0, *means)), min(high, max(100.0, *means))
    return linear([low, high], start, end, limits=(0.0, 100.0) if quantities.is_percent(metric) else None)


def snug(values: Iterable[float], start: float, end: float, count: int = 5) -> Scale:
    """A scale that ends at the least and the largest value, with ticks at round values in between."""
    known = [value for value in values if math.isfinite(value)]
    rounded = linear(known, start, end, count)
    if not known or min(known) == max(known):
        return rounded
    low, high = min(known), max(known)
    return Scale(low, high, start, end, tuple(tick for tick in rounded.ticks if low <= tick <= high))


def durations(values: Sequence[float], start: float, end: float, count: int = 5) -> Scale:
    """A scale for seconds: logarithmic if the longest is more than eight times the shortest, else from zero."""
    known = [value for value in values if math.isfinite(value)]
    if not known or min(known) <= 0 or max(known) <= 8 * min(known):
        most = max(known, default=1.0) or 1.0
        unit = next((unit for unit in (86400.0, 3600.0, 60.0) if most >= 2 * unit), 1.0)
        scaled = linear([0.0, most * 1.06 / unit], start, end, count)
        return Scale(0.0, scaled.high * unit, start, end, tuple(tick * unit for tick in scaled.ticks))
    low, high = min(known) / 1.5, max(known) * 1.5
    ticks = [value for value in _DURATIONS if low <= value <= high]
    while len(ticks) > count:
        ticks = ticks[::2]
    return Scale(low, high, start, end, tuple(ticks), logarithmic=True)


def whole(first: int, last: int, start: float, end: float, count: int = 10) -> Scale:
    """A scale for numbers of experiences, with ticks at whole numbers only."""
    step = max(1, round(round_step(max(1, last - first) / count)))
    ticks = tuple(float(i) for i in range(first, last + 1) if i == first or (i - first >= step / 2 and i % step == 0))
    return Scale(first, last, start, end, ticks) if last > first else Scale(first - 1, last + 1, start, end, (float(first),))


def round_step(step: float) -> float:
    """The least of 1, 2, 2.5, 5, 10 times a power of ten that is not below ``step``."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(m * power for m in (1.0, 2.0, 2.5, 5.0, 10.0) if m * power >= step * (1 - 1e-9))
