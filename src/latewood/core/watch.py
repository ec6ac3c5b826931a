"""Scoring within an arrival: what happens to old and new ability while a model learns, and not only afterwards."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from latewood.core.cost import current_meter
from latewood.core.errors import CheckpointError, ConfigurationError
from latewood.core.seeding import seeded

if TYPE_CHECKING:
    from latewood.core.learner import Learner
    from latewood.core.probe import Probe


class Moment(NamedTuple):
    """The scores after ``step`` steps on an arrival: probe name, then metric."""

    step: int
    scores: dict[str, dict[str, float]]


def log_spaced(step: int) -> bool:
    """Whether to look after ``step`` steps, if two looks for each doubling are wanted: 0, 1, 2, 3, 4, 6, 8, 11, 16, ...

    What a new arrival does at first it does within few steps, so equal distances would miss it.

    >>> [step for step in range(40) if log_spaced(step)]
    [0, 1, 2, 3, 4, 6, 8, 11, 16, 23, 32]
    """
    return step < 1 or step == round(2 ** (round(2 * math.log2(step)) / 2))


class Watch:
    """Scores ``probes`` while a learner is at work on one arrival.

    ``due`` says after which steps (default: :func:`log_spaced`; a number: every so many). A learner that trains in steps
    calls :meth:`after` before its first step, with 0, and after each; :func:`watching` is how it comes to know. Scoring
    leaves the learner, the random generators and the counted cost as they were.

    >>> Watch([], due=10).due(20), Watch([], due=10).due(25)
    (True, False)
    """

    def __init__(self, probes: Sequence[Probe], due: Callable[[int], bool] | int = log_spaced) -> None:
        if isinstance(due, int) and due < 1:
            raise ConfigurationError(f"A watch looks every so many steps, at least every one, but it has {due}.")
        self.probes = tuple(probes)
        self.due: Callable[[int], bool] = due if callable(due) else lambda step: step % due == 0
        #: What was seen so far, in the order of the steps.
        self.moments: list[Moment] = []

    def after(self, step: int, learner: Learner, last: bool = False) -> None:
        """Look, if that is due after ``step`` steps or they were the ``last``."""
        if not (last or self.due(step)) or (self.moments and self.moments[-1].step >= step):
            return
        modes = [(module, module.training) for module in learner.modules()]
        drawn = learner.generator.get_state()
        try:
            learner.eval()
            with torch.no_grad(), seeded("watch"), current_meter().uncounted():
                scores = {probe.name: probe.score(learner) for probe in self.probes}
        finally:
            learner.generator.set_state(drawn)
            for module, training in modes:
                module.training = training
        self.moments.append(Moment(step, scores))

    def curve(self, probe: str, metric: str) -> tuple[list[int], list[float]]:
        """The steps, and the scores of one probe after them."""
        return [m.step for m in self.moments], [m.scores[probe][metric] for m in self.moments]

    def state(self) -> list[Any]:
        """What was seen so far, in a form that JSON can hold."""
        return [[moment.step, moment.scores] for moment in self.moments]

    def load_state(self, state: Sequence[Any]) -> None:
        """Go on from what :meth:`state` told. Errors: :class:`CheckpointError` if it is none."""
        try:
            self.moments = [Moment(int(step), _scores(scores)) for step, scores in state]
        except (TypeError, ValueError, AttributeError):
            raise CheckpointError("This is no state of a watch; take what state() gave.") from None


def _scores(held: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    return {probe: {metric: float(value) for metric, value in scores.items()} for probe, scores in held.items()}


_current: ContextVar[Watch | None] = ContextVar("latewood_watch", default=None)


def current_watch() -> Watch | None:
    """The watch around this call, if there is one."""
    return _current.get()


@contextmanager
def watching(watch: Watch) -> Iterator[Watch]:
    """Let learners inside the block be watched.

    >>> with watching(Watch([])) as watch:
    ...     current_watch() is watch
    True
    """
    token = _current.set(watch)
    try:
        yield watch
    finally:
        _current.reset(token)
