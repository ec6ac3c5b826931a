"""What the builders of this wing share: how classes are divided into arrivals, and how arrivals become a stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError
from latewood.core.experience import Experience
from latewood.core.stream import Stream
from latewood.images.classes import choose
from latewood.images.datasets import ImageData, load_images
from latewood.images.probes import Accuracy

#: From (train or test, number of the arrival) to what the learner or the probe sees of it.
Transform = Callable[[Data, int], Data]


class ImageStream(Stream):
    """A stream of labelled images that knows how the arriving classes are called: ``names``, by label."""

    def __init__(self, *args: Any, names: Mapping[int, str], **options: Any) -> None:
        super().__init__(*args, **options, wing="images")
        self.names = dict(names)

    @property
    def class_names(self) -> tuple[str, ...]:
        """How the arriving classes are called."""
        return tuple(self.names.values())


class Division(NamedTuple):
    """How classes are divided into arrivals: the settings of the builders that do so."""

    steps: int
    base: int
    increment: int | None
    seed: int | None
    groups: Sequence[Sequence[int]] | None


def class_groups(count: int, division: Division) -> list[tuple[int, ...]]:
    """Which of ``count`` classes arrive when.

    The order is that of the data set if ``seed`` is ``None``, else a permutation by numpy's legacy generator, so that seed
    1993 gives the order that most class-incremental papers use. Errors: :class:`ConfigurationError` for numbers that don't
    fit, and for ``groups`` that list a class twice or one that does not exist.
    """
    steps, base, increment, seed, groups = division
    if groups is not None:
        return _checked_groups(count, groups)
    if seed is not None and not 0 <= seed < 2**32:
        raise ConfigurationError(f"seed must lie between 0 and 2**32 - 1, but it is {seed}.")
    order = np.arange(count) if seed is None else np.random.RandomState(seed).permutation(count)
    if not 0 <= base <= count:
        raise ConfigurationError(f"base must lie between 0 and the number of classes ({count}), but it is {base}.")
    rest = order[base:]
    if increment is not None:
        if increment < 1:
            raise ConfigurationError(f"increment must be at least 1, but it is {increment}.")
        parts = [rest[start : start + increment] for start in range(0, len(rest), increment)]
    else:
        later = steps - (base > 0)
        if later == 0 and not len(rest):
            return [tuple(order.tolist())]
        if not 1 <= later <= len(rest):
            raise ConfigurationError(f"{count} classes with a base of {base} can't be divided into {steps} arrivals.")
        parts = np.array_split(rest, later)
    parts = [order[:base], *parts] if base else parts
    return [tuple(int(c) for c in part) for part in parts]


def _checked_groups(count: int, groups: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    seen: set[int] = set()
    for group in groups:
        for label in group:
            if label in seen:
                raise ConfigurationError(f"The stream lists class {label} twice; each class arrives once.")
            if not 0 <= label < count:
                raise ConfigurationError(f"The stream lists class {label}, but the data set has the classes 0 to {count - 1}.")
            seen.add(label)
    return [tuple(group) for group in groups]


def chosen_images(dataset: str | ImageData, size: int | None, classes: str | None, shots: int | None = None) -> ImageData:
    """The images of those classes of a data set that :func:`~latewood.images.classes.choose` finds, numbered from 0.

    With ``shots`` only the first so many training images of each class.
    """
    images = load_images(dataset, size=size)
    chosen = images if classes is None else images.subset(choose(classes, images.classes))
    return chosen if shots is None else chosen.few(shots)


def choice(classes: str | None, shots: int | None = None) -> dict[str, str | int]:
    """The settings ``classes`` and ``shots`` as a part of a stream's configuration: only where they are made."""
    return {name: value for name, value in (("classes", classes), ("shots", shots)) if value is not None}


def in_steps(
    scenario: str,
    dataset: str | ImageData,
    size: int | None,
    classes: str | None,
    shots: int | None,
    division: Division,
    reveal_task: bool,
) -> Stream:
    """A stream in which each group of classes arrives at once, and one probe for each group."""
    images = chosen_images(dataset, size, classes, shots)
    groups = class_groups(len(images.classes), division)
    config = {"dataset": images.name, "size": size, **choice(classes, shots), **division._asdict(), **contents(images)}
    step_of = torch.full((len(images.classes),), -1)
    for step, group in enumerate(groups):
        step_of[list(group)] = step

    def rows(part: Data, step: int) -> Data:
        chosen = part.rows[step_of[part.tensor("label")] == step]
        if not reveal_task:
            return part.base[chosen]
        # The column is added to the whole table, which copies nothing and keeps its embeddings; labels below 0 are left out.
        labels = part.base.tensor("label")
        return part.base.with_columns(task=torch.where(labels >= 0, step_of[labels], -1))[chosen]

    def build(step: int) -> Experience:
        return Experience(step, rows(images.train, step), groups[step], step if reveal_task else None)

    probes = []
    for step in range(len(groups)):
        data = rows(images.test, step)
        probes.append(Accuracy(f"step {step}", data, since=step, weight=len(data)))
    name = f"{scenario}-{images.name}"
    arriving = {label: images.classes[label] for group in groups for label in group}
    return ImageStream(name, len(groups), build, probes, config=config, names=arriving)


def domain_incremental(
    name: str, domains: Sequence[str], load: Callable[[int], ImageData], config: dict[str, Any], transform: Transform
) -> Stream:
    """A stream in which the same classes arrive from one domain after the other, and one probe for each domain."""
    first = load(0)

    def build(step: int) -> Experience:
        train = transform(load(step).train, step)
        return Experience(step, train, tuple(range(len(first.classes))))

    probes = [Accuracy(domain, transform(load(step).test, step), since=step) for step, domain in enumerate(domains)]
    return ImageStream(name, len(domains), build, probes, config=config | contents(first), names=dict(enumerate(first.classes)))


def contents(images: ImageData) -> dict[str, str]:
    """What identifies the images in a stream's configuration: a changed data set must not continue an old run."""
    return {name: _identity(part) for name, part in (("train", images.train), ("test", images.test))}


def _identity(part: Data) -> str:
    """The contents of the table, and which of its rows these are."""
    whole = torch.equal(part.rows, torch.arange(len(part.base)))
    return part.fingerprint() if whole else Data(table=[part.fingerprint()], rows=[part.rows]).fingerprint()
