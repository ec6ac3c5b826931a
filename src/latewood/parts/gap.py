"""The stability gap: how far a score falls when something new is learned, and when it is back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from latewood.core.errors import ConfigurationError, DataError


class Gap(NamedTuple):
    """What :func:`gap` measures; all 0 where the score did not fall.

    ``depth`` is in the score's unit, ``recovery`` in steps (infinite: it never came back), ``area`` in their product.
    """

    depth: float
    recovery: float
    area: float


def gap(steps: Sequence[int], scores: Sequence[float], *, higher_is_better: bool = True, early: float = 0.1) -> Gap:
    """The dip in a curve of scores, as :meth:`~latewood.core.watch.Watch.curve` gives it.

    ``depth`` is how much worse than at the start the score is at its worst within the ``early`` share of the steps;
    ``recovery`` the first step after the worst one at which it is as good as at the start; ``area`` what lies between the
    score at the start and the curve, where that is worse, until then. Between two looks the curve is taken to be straight.

    Errors: :class:`~latewood.core.errors.DataError` for a curve that does not begin at step 0, goes back, holds a score
    that is no number, or has no look within the early part, where a dip would be missed.

    >>> gap([0, 1, 2, 10], [0.75, 0.25, 0.5, 0.75], early=0.2)
    Gap(depth=0.5, recovery=10.0, area=1.625)
    >>> gap([0, 1, 10], [2.0, 1.9, 1.5], higher_is_better=False)
    Gap(depth=0.0, recovery=0.0, area=0.0)
    """
    if not 0 < early <= 1:
        raise ConfigurationError(f"early is a share of the steps, above 0 and at most 1, but it is {early}.")
    _check(steps, scores)
    sign = 1 if higher_is_better else -1
    missing = [sign * (scores[0] - score) for score in scores]
    window = sum(step <= early * steps[-1] for step in steps)
    if window < 2:
        raise DataError(
            f"Between the start and {early:.3g} of the {steps[-1]} steps the score was never looked at, so a dip would be "
            "missed; look more often."
        )
    worst = max(range(window), key=lambda place: missing[place])
    if missing[worst] <= 0:
        return Gap(0.0, 0.0, 0.0)
    back = next((place for place in range(worst + 1, len(steps)) if missing[place] <= 0), None)
    until = len(steps) if back is None else back + 1
    area = math.fsum(
        _below(steps[right] - steps[left], missing[left], missing[right]) for left, right in pairwise(range(until))
    )
    return Gap(missing[worst], math.inf if back is None else float(steps[back]), area)


def _below(width: int, left: float, right: float) -> float:
    """The part above zero of the area under a line from ``left`` to ``right``."""
    if left >= 0 and right >= 0:
        return width * (left + right) / 2
    top = max(left, right)
    return width * top**2 / (2 * abs(left - right)) if top > 0 else 0.0


def _check(steps: Sequence[int], scores: Sequence[float]) -> None:
    if len(steps) != len(scores):
        raise DataError(f"A curve has a score for each step, but there are {len(steps)} steps and {len(scores)} scores.")
    if len(steps) < 2 or steps[0] != 0 or any(later <= before for before, later in pairwise(steps)):
        raise DataError("A curve begins with step 0, goes on to later ones and never back; watch the learner from its start.")
    if not all(map(math.isfinite, scores)):
        raise DataError(f"The curve holds {next(score for score in scores if not math.isfinite(score))}, which is no score.")
