"""Numbers for people: scores, seconds, FLOPs and bytes, as tables and charts show them."""

from __future__ import annotations

import math
from collections.abc import Sequence

#: What stands where a number is not defined.
NOTHING = "–"

_SECONDS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
_THOUSANDS = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_BYTES = ((1024.0**4, "TiB"), (1024.0**3, "GiB"), (1024.0**2, "MiB"), (1024.0, "KiB"), (1.0, "B"))


def is_percent(metric: str) -> bool:
    """Whether scores of this metric are shares, shown in percent: those called ``accuracy…``."""
    return metric.startswith("accuracy")


def factor(metric: str) -> float:
    """What a score is multiplied with to be shown: 100 for percent, else 1."""
    return 100.0 if is_percent(metric) else 1.0


def words(metric: str, unit: bool = False) -> str:
    """A metric's name as words, with its unit if wanted.

    >>> words("word_error_rate"), words("accuracy", unit=True)
    ('word error rate', 'accuracy, %')
    """
    return metric.replace("_", " ") + (", %" if unit and is_percent(metric) else "")


def score(value: float, metric: str) -> str:
    """A score as text: percent with one decimal for ``accuracy…``, otherwise four significant digits.

    >>> score(0.7134, "accuracy"), score(18.4166, "perplexity"), score(float("nan"), "accuracy")
    ('71.3', '18.42', '–')
    """
    return score_parts(value, math.nan, metric)[0]


def score_parts(mean: float, half: float, metric: str) -> tuple[str, str]:
    """A mean and ``± half``, the second empty where there is no interval; both end at the same decimal.

    >>> score_parts(0.7134, 0.0041, "accuracy"), score_parts(18.4166, 0.31, "perplexity")
    (('71.3', '± 0.4'), ('18.42', '± 0.31'))
    """
    if not math.isfinite(mean):
        return NOTHING, ""
    mean, half = mean * factor(metric), half * factor(metric)
    known = math.isfinite(half)
    if not is_percent(metric) and mean != 0 and not 1e-4 <= abs(mean) < 1e6:
        return minus(f"{mean:.3e}"), f"± {half:.1e}" if known else ""
    places = 1 if is_percent(metric) else _places(mean, 4)
    return minus(f"{mean:.{places}f}"), f"± {half:.{places}f}" if known else ""


def short_score(value: float, metric: str) -> str:
    """A score in three significant digits (percent: one decimal, none for 100), as it fits a cell of a heat map."""
    if not math.isfinite(value):
        return ""
    value *= factor(metric)
    if is_percent(metric):
        return minus("100" if value >= 99.95 else f"{value:.1f}")
    return minus(significant(value) if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.0e}")


def seconds(value: float) -> str:
    """A duration in the unit that fits it: ``'4.56 s'``, ``'12.0 min'``, ``'3.10 h'``.

    >>> seconds(4.5602), seconds(720), seconds(0.0123)
    ('4.56 s', '12.0 min', '12.3 ms')
    """
    return _scaled(value, [(f, unit, 2 * f if f > 1 else f) for f, unit in _SECONDS])


def seconds_tick(value: float) -> str:
    """A duration on an axis, where the value is round: ``'10 s'``, ``'5 min'``."""
    size, unit = next(((f, unit) for f, unit in _SECONDS if value >= f * (1 - 1e-9)), _SECONDS[-1])
    return f"{value / size:g} {unit}" if value > 0 else "0 s"


def amount(value: float) -> str:
    """A large number of operations or parameters in three digits: ``'1.23 G'``, ``'45.6 T'``."""
    return _scaled(value, [(f, unit, f) for f, unit in _THOUSANDS])


def size(value: float) -> str:
    """A number of bytes: ``'512 B'``, ``'1.50 KiB'``, ``'23.4 MiB'``."""
    return _scaled(value, [(f, unit, f) for f, unit in _BYTES], zero="0 B")


def count(value: float) -> str:
    """A number of things with its thousands set apart: ``'11,220,132'``."""
    return NOTHING if not math.isfinite(value) else minus(f"{value:,.0f}")


def plural(number: int, noun: str) -> str:
    """A number with its noun: ``'1 seed'``, ``'3 seeds'``."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def significant(value: float, digits: int = 3) -> str:
    """A number rounded to so many significant digits, trailing zeros included.

    >>> significant(9.996), significant(123.4), significant(0.05)
    ('10.0', '123', '0.0500')
    """
    if value == 0:
        return "0"
    value = float(f"{value:.{digits - 1}e}")
    return f"{value:.{_places(value, digits)}f}"


def minus(text: str) -> str:
    """The text of a number with a true minus sign; a zero has none."""
    return text.lstrip("-") if not text.strip("-0.") else text.replace("-", "−")


def listed(values: Sequence[object]) -> str:
    """Values as an enumeration; runs of integers are shortened.

    >>> listed([0, 1, 2, 3, 7]), listed([0, 1]), listed(["a", "b", "c"])
    ('0–3 and 7', '0 and 1', 'a, b and c')
    """
    spans: list[list[object]] = []
    for value in values:
        if spans and isinstance(value, int) and isinstance(spans[-1][-1], int) and value == spans[-1][-1] + 1:
            spans[-1].append(value)
        else:
            spans.append([value])
    parts = [part for span in spans for part in ([f"{span[0]}–{span[-1]}"] if len(span) > 2 else map(str, span))]
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)


def _places(value: float, digits: int) -> int:
    """Decimals that give so many significant digits, at most six."""
    magnitude = math.floor(math.log10(abs(value))) if value else 0
    return min(max(0, digits - 1 - magnitude), 6)


def _scaled(value: float, units: Sequence[tuple[float, str, float]], zero: str = "0") -> str:
    """``value`` in the largest unit ``(size, name, from which value on)`` that it reaches."""
    if not math.isfinite(value):
        return NOTHING
    if value <= 0:
        return zero
    # Rounded first, so that 999.9 G is not shown as 1000 G.
    step, unit = next(((f, name) for f, name, least in units if float(f"{value / f:.2e}") >= least / f), units[-1][:2])
    text = significant(value / step) if unit != "B" else f"{value:.0f}"
    return f"{text} {unit}".rstrip()
