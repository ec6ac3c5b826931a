"""Task-incremental: disjoint groups of classes arrive, and learner and probes are told which task each sample is of."""

from __future__ import annotations

from collections.abc import Sequence

from latewood.core.stream import Stream
from latewood.images.datasets import ImageData
from latewood.images.streams._common import Division, in_steps


def tasks(
    dataset: str | ImageData,
    *,
    steps: int = 5,
    base: int = 0,
    increment: int | None = None,
    seed: int | None = 0,
    groups: Sequence[Sequence[int]] | None = None,
    size: int | None = None,
    classes: str | None = None,
    shots: int | None = None,
) -> Stream:
    """The arrivals of :func:`~latewood.images.streams.split.split`, with the task revealed in training and at test.

    Experiences carry ``task``, and all data has a column ``task``: a learner chooses among that task's classes only.

    >>> stream = tasks("digits", steps=5)
    >>> stream[2].task, stream.probes[2].data["task"].unique()
    (2, tensor([2]))
    """
    return in_steps("tasks", dataset, size, classes, shots, Division(steps, base, increment, seed, groups), reveal_task=True)
