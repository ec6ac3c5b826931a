"""Probe: a held-out set and how to score a learner on it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from latewood.core.data import Data, check_finite
from latewood.core.errors import DataError

if TYPE_CHECKING:
    from latewood.core.learner import Learner


class Probe(ABC):
    """A held-out set, the experience from which on it counts as seen, and a way to score a learner on it.

    ``metrics`` names what :meth:`score` returns and says for each whether higher is better; the first is the main one.
    ``weight`` is the probe's share when the scores of several probes are averaged (the number of samples where the
    average is to equal the score on the union).
    """

    metrics: ClassVar[Mapping[str, bool]]

    def __init__(self, name: str, data: Data, since: int, weight: float = 1.0) -> None:
        if len(data) == 0:
            raise DataError(f"Probe {name!r} holds no rows; a score needs at least one.")
        if since < 0:
            raise DataError(f"Probe {name!r} is seen from experience {since} on, but the first is number 0.")
        if not 0 < weight < math.inf:
            raise DataError(f"The weight of probe {name!r} must be above 0 and finite, but it is {weight}.")
        check_finite(data, f"probe {name!r}")
        self.name, self.data, self.since, self.weight = name, data, since, weight

    @abstractmethod
    def score(self, learner: Learner) -> dict[str, float]:
        """One number for each metric. Must change nothing in the learner."""
