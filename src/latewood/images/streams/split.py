"""Class-incremental: disjoint groups of classes arrive one after the other; the task is never revealed."""

from __future__ import annotations

from collections.abc import Sequence

from latewood.core.stream import Stream
from latewood.images.datasets import ImageData
from latewood.images.streams._common import Division, in_steps


def split(
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
    """The classes of a data set in ``steps`` arrivals of equal size (the first ones are larger by one if they must be).

    With ``base`` the first arrival has that many classes, and the others share the rest. ``increment`` gives the classes
    of each later arrival instead of ``steps`` ("Base m, Inc n" of Zhou et al., 2024; the last takes what remains). ``seed``
    decides the order of classes (``None``: the data set's own), ``groups`` names them outright. ``size`` resizes images.
    ``classes`` leaves only some of the data set's classes, in the words of :func:`latewood.images.classes.choose`
    (``0-99``, ``unseen``); they are numbered anew from 0. ``shots`` leaves only the first so many training images of each.

    One probe for each arrival, weighted by its samples, so that averages equal the accuracy on all classes seen.
    Errors: :class:`~latewood.core.errors.ConfigurationError` for numbers that don't fit or a class that is listed twice.

    >>> stream = split("digits", steps=3, base=4)
    >>> [len(experience.classes) for experience in stream]
    [4, 3, 3]
    """
    return in_steps("split", dataset, size, classes, shots, Division(steps, base, increment, seed, groups), reveal_task=False)
