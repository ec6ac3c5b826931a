"""The closed loop: how many texts the next phase inserts, so that a probe follows a line up to its target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from latewood.core.errors import CheckpointError, ConfigurationError, DataError

Text = TypeVar("Text")

#: Within this share of the line on either side nothing changes.
DEAD_BAND = 0.05
SMALLEST, LARGEST = 1, 8192


@dataclass(frozen=True)
class Control:
    """What a controller aims at: the probe value ``target`` after ``steps`` steps, on a straight line from 0.

    It decides ``every`` so many steps, first at step ``start``, where it inserts ``first`` texts. ``limits`` says by how
    many texts two phases may differ at most, from which step (counted from ``start``) on; before the first of them
    nothing limits. The paper's own run: ``limits=((19_000, 256), (59_000, 64))``; without them, doubling and
    halving made the probe jump. Errors: :class:`~latewood.core.errors.ConfigurationError`.

    >>> control = Control(target=0.08, steps=100_000)
    >>> state = control.decide(None, step=0, value=0.0)
    >>> state = control.decide(state, step=1000, value=0.0002)
    >>> state.texts, round(state.aim, 6)
    (128, 0.0008)
    """

    target: float
    steps: int
    every: int = 1000
    first: int = 64
    start: int = 0
    limits: tuple[tuple[int, int], ...] = ((0, 256),)

    def __post_init__(self) -> None:
        if not 0 < self.target < math.inf:
            raise ConfigurationError(f"The target of a controller must be finite and above 0, but it is {self.target}.")
        if min(self.steps, self.every) < 1 or self.start < 0:
            raise ConfigurationError(
                f"A controller needs at least one step in all and between decisions, and a start from 0 on, but it has "
                f"{self.steps}, {self.every} and {self.start}."
            )
        if not SMALLEST <= self.first <= LARGEST:
            raise ConfigurationError(f"A controller begins with {SMALLEST} to {LARGEST} texts, not with {self.first}.")
        if any(limit < 1 for _, limit in self.limits):
            raise ConfigurationError(f"The number of texts must be free to change by at least 1, but limits is {self.limits}.")

    def due(self, step: int) -> bool:
        """Whether a phase begins at ``step``, a step of the whole run."""
        since = step - self.start
        return 0 <= since < self.steps and since % self.every == 0

    def end(self, step: int) -> int:
        """Where the phase that begins at ``step`` ends."""
        return min(step + self.every, self.start + self.steps)

    def decide(self, state: ControlState | None, step: int, value: float) -> ControlState:
        """The state for the phase that begins at ``step``, given that of the phase before and the probe's value now.

        Errors: :class:`~latewood.core.errors.DataError` for a value that is not finite;
        :class:`~latewood.core.errors.ConfigurationError` for a step that begins no phase, or not the next one.
        """
        if not self.due(step) or (step > self.start) != (state is not None) or (state and state.step + self.every != step):
            which = f"after the one at {state.step}" if state else "as the first one"
            raise ConfigurationError(
                f"No phase begins at step {step} {which}; phases begin every {self.every} from {self.start}."
            )
        if not math.isfinite(value):
            raise DataError(f"The probe of a controller must give a finite number, but at step {step} it gave {value}.")
        since = step - self.start
        aim = self.target * since / self.steps
        texts = before = state.texts if state else self.first
        if since > 0 and value > (1 + DEAD_BAND) * aim:
            texts = texts // 2
        if since > 0 and value < (1 - DEAD_BAND) * aim:
            texts = 2 * texts
        limit = self._limit(since)
        if limit is not None:
            texts = max(before - limit, min(texts, before + limit))
        texts = max(SMALLEST, min(texts, LARGEST))
        return ControlState(step, texts, state.following if state else 0, state.following if state else 0, value, aim)

    def _limit(self, since: int) -> int | None:
        return next((limit for first, limit in sorted(self.limits, reverse=True) if since >= first), None)


@dataclass(frozen=True)
class ControlState:
    """What a controller decided for the phase from ``step`` on, and all that it must remember for the next one.

    ``texts`` of the pool from place ``offset`` on are inserted, as far as it reaches; the next phase begins at
    ``following``, which is 0 again once the pool is used up. ``value`` and ``aim`` are the probe's value and where the line
    was.
    """

    step: int
    texts: int
    offset: int
    following: int
    value: float
    aim: float

    def take(self, pool: Sequence[Text]) -> tuple[Sequence[Text], ControlState]:
        """The texts of this phase, and the state that goes on behind them. Near the end of the pool they are fewer."""
        following = self.offset + self.texts
        return pool[self.offset : following], replace(self, following=0 if following >= len(pool) else following)

    def to_json(self) -> dict[str, Any]:
        """What :meth:`from_json` reads."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, held: Any) -> ControlState:
        """Errors: :class:`~latewood.core.errors.CheckpointError` if this is no state of a controller."""
        try:
            numbers = {name: int(held[name]) for name in ("step", "texts", "offset", "following")}
            return cls(**numbers, value=float(held["value"]), aim=float(held["aim"]))
        except (KeyError, TypeError, ValueError):
            raise CheckpointError("This is no state of a controller; take what to_json() gave.") from None
