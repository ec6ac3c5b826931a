"""The two conditions on a domain share: its general loss has turned round by the budget, and is tolerable there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from latewood.studies.cmr.laws import UNITS, PowerLaw, Vector

#: Turning points are sought up to this many times the longest run or the budget.
REACH = 10.0
_GRID = 2000
_SHARE_GRID = 2001


def turning_point(
    domain: PowerLaw, general: PowerLaw, lam: float, *, first: float, budget: float = UNITS, horizon: float = REACH * UNITS
) -> float | None:
    """The time T0 from which ``domain + lam * general`` keeps falling, or ``None`` if it does not within ``horizon``.

    That is the last turn to falling before ``budget``, or if it rises there, the next one after; ``first`` if it falls
    from there on. While the general law rises all the way to the horizon there is none, however large the fall in
    the domain that ``lam`` weighs against it.

    >>> domain, general = PowerLaw((-0.5,), (0.2,), 0.0), PowerLaw((0.05, -0.01), (0.3, 0.8), 0.0)
    >>> round(turning_point(domain, general, 1000.0, first=0.1), 2), round(peak(general), 2)
    (3.47, 3.52)
    """
    slopes = general.slope(np.geomspace(first, horizon, _GRID))
    if (slopes >= 0).all() and (slopes > 0).any():
        return None
    return last_fall(lambda t: domain.slope(t) + lam * general.slope(t), first, budget, horizon)


def peak(general: PowerLaw) -> float | None:
    """Where a law has its maximum, which :func:`turning_point` tends to as ``lam`` grows; ``None`` if it has none."""
    if len(general.exponents) != 2:
        return None
    (a2, a3), (s2, s3) = general.coefficients, general.exponents
    if s2 == s3 or a2 * s2 * a3 * s3 >= 0:
        return None
    time = (-(a3 * s3) / (a2 * s2)) ** (1 / (s2 - s3))
    rises_before = general.slope(time * 0.99) > 0
    return float(time) if rises_before else None


def last_fall(function: Callable[[Vector | float], Vector], first: float, budget: float, horizon: float) -> float | None:
    """Where a function was last above zero before ``budget``, or if it is above zero there, where it next falls below."""
    from scipy.optimize import brentq

    before = np.geomspace(first, max(budget, first), _GRID)
    above = np.flatnonzero(function(before) >= 0)
    if not len(above):
        return first
    if above[-1] < _GRID - 1:
        low, high = before[above[-1]], before[above[-1] + 1]
    else:
        after = np.geomspace(before[-1], max(horizon, before[-1]), _GRID)
        below = np.flatnonzero(function(after) < 0)
        if not len(below) or not below[0]:
            return None
        low, high = after[below[0] - 1], after[below[0]]
    return float(brentq(lambda time: float(function(time)), low, high, xtol=1e-13 * low, rtol=1e-15))


@dataclass(frozen=True)
class Tolerance:
    """The general loss at the budget over the share: which shares are tolerable.

    Inside (0, 1) it is ``law``; the end points do not lie on it and count by what was measured there (``control`` at 0,
    ``pure`` at 1, as increments), with a straight line from the largest share inside, ``top``, up to ``pure`` where that
    is above the law.
    """

    law: PowerLaw
    base: float
    top: float
    control: float | None = None
    pure: float | None = None

    def increments(self, shares: Vector) -> Vector:
        """The increment of the general loss at shares above 0."""
        inside = self.law(shares) - self.base
        if self.pure is None:
            return inside
        at_top = float(self.law(self.top)) - self.base
        line = at_top + (self.pure - at_top) * (shares - self.top) / (1 - self.top)
        return np.where(shares > self.top, np.maximum(inside, line), inside)

    def contains(self, share: float, eps: float) -> bool:
        """Whether the general loss at a share is at most ``eps`` above its start."""
        if share == 0:
            return self.control is not None and self.control <= eps
        return bool(self.increments(np.array([share]))[0] <= eps)

    def largest(self, eps: float, below: float = 1.0) -> float | None:
        """The largest tolerable share that is at most ``below``, or ``None``."""
        shares = np.linspace(0, below, _SHARE_GRID)[1:]
        tolerable = np.flatnonzero(self.increments(shares) <= eps) if below > 0 else np.array([])
        if not len(tolerable):
            return 0.0 if self.contains(0, eps) else None
        last = int(tolerable[-1])
        if last == len(shares) - 1:
            return below
        low, high = float(shares[last]), float(shares[last + 1])
        while math.nextafter(low, high) < high:  # halving, unlike a root finder, ends on the tolerable side
            middle = (low + high) / 2
            low, high = (middle, high) if self.contains(middle, eps) else (low, middle)
        return low
