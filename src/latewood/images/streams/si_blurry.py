"""Si-Blurry: classes come, leak into other arrivals and return; sizes of arrivals are random (papers 23 and 28)."""

from __future__ import annotations

import torch
from torch import Tensor

from latewood.core.errors import ConfigurationError
from latewood.core.experience import Experience
from latewood.core.seeding import generator
from latewood.core.stream import Stream
from latewood.images.datasets import ImageData
from latewood.images.probes import Accuracy
from latewood.images.streams._common import ImageStream, choice, chosen_images, contents


def si_blurry(
    dataset: str | ImageData,
    *,
    steps: int = 5,
    disjoint: float = 50.0,
    blurry: float = 10.0,
    every: int | None = None,
    seed: int = 0,
    size: int | None = None,
    classes: str | None = None,
) -> Stream:
    """The stochastic blurry stream of Moon et al., 2023 (arXiv 2308.09303): generalized class-incremental learning.

    ``disjoint`` percent of the classes live in one of the ``steps`` tasks each; the others are blurry: ``blurry`` percent of
    their samples leave their home task and are dealt out again, some of them to where they came from. How many classes and
    how many strangers a task gets is random. Classes beyond a multiple of ``steps`` are dropped, as in the authors'
    sampler; unlike there the samples that leave a task are drawn at random and are not the first of the data set.

    ``every`` cuts tasks into arrivals of that many samples, which gives the any-time curve of the paper (1000 there);
    without it each task is one arrival. A task that chance leaves empty makes no arrival. The task is never revealed.
    ``classes`` leaves only some classes, as in :func:`~latewood.images.streams.split.split`.

    Each probe holds the test images of the classes that one arrival is the first to bring, so that the average after an
    arrival is the accuracy on all classes exposed so far.

    >>> stream = si_blurry("digits", steps=5, seed=1)
    >>> sum(len(experience.train) for experience in stream) <= 1500
    True
    """
    if every is not None and every < 1:
        raise ConfigurationError(f"every must be at least 1 sample, but it is {every}.")
    images = chosen_images(dataset, size, classes)
    tasks = si_blurry_tasks(images.train.tensor("label"), len(images.classes), steps, disjoint, blurry, seed)
    arrivals = [part for task in tasks for part in (task.split(every) if every else (task,)) if len(part)]
    labels = [images.train.tensor("label")[part].unique().tolist() for part in arrivals]

    def build(step: int) -> Experience:
        return Experience(step, images.train[arrivals[step]], tuple(labels[step]))

    test, probes, exposed = images.test.tensor("label"), [], set[int]()
    for step, present in enumerate(labels):
        new = sorted(set(present) - exposed)
        exposed |= set(new)
        rows = torch.isin(test, torch.tensor(new, dtype=test.dtype)).nonzero().flatten()
        if len(rows):
            probes.append(Accuracy(f"first in {step}", images.test[rows], since=step, weight=len(rows)))
    settings = {
        "size": size,
        **choice(classes),
        "steps": steps,
        "disjoint": disjoint,
        "blurry": blurry,
        "every": every,
        "seed": seed,
    }
    config = {"dataset": images.name, **settings, **contents(images)}
    arriving = {label: images.classes[label] for label in sorted(exposed)}
    return ImageStream(f"si-blurry-{images.name}", len(arrivals), build, probes, config=config, names=arriving)


def si_blurry_tasks(labels: Tensor, classes: int, steps: int, disjoint: float, blurry: float, seed: int) -> list[Tensor]:
    """The row numbers of each task, given the label of each row; no row twice, every row of the kept classes once."""
    for name, share in (("disjoint", disjoint), ("blurry", blurry)):
        if not 0 <= share <= 100:
            raise ConfigurationError(f"{name} is a share in percent, from 0 to 100, but it is {share}.")
    if not 1 <= steps <= classes:
        raise ConfigurationError(f"{classes} classes can't be divided into {steps} tasks.")
    chance = generator(seed, "si-blurry")
    order = torch.randperm(classes, generator=chance)
    n_disjoint = int(classes * disjoint / 100) // steps * steps
    n_blurry = (classes - n_disjoint) // steps * steps
    home = _cut(order[:n_disjoint], _random_sizes(n_disjoint, steps, chance))
    leaking = _cut(order[n_disjoint : n_disjoint + n_blurry], _random_sizes(n_blurry, steps, chance))
    fixed = [_rows_of(labels, group) for group in home]
    loose = [_shuffled(_rows_of(labels, group), chance) for group in leaking]
    sizes = _random_sizes(int(blurry / 100 * sum(map(len, loose))), steps, chance)
    pool = _shuffled(torch.cat([rows[:count] for rows, count in zip(loose, sizes, strict=True)]), chance)
    # A task with fewer rows than its size gives what it has, so the pool can fall short and late tasks receive less.
    received = _cut(pool, sizes)
    stayed = [rows[count:] for rows, count in zip(loose, sizes, strict=True)]
    return [_shuffled(torch.cat(parts), chance) for parts in zip(fixed, stayed, received, strict=True)]


def _random_sizes(total: int, parts: int, chance: torch.Generator) -> list[int]:
    """``parts`` sizes that add up to ``total``, between sorted random cuts."""
    cuts = torch.randint(0, max(1, total), (parts - 1,), generator=chance).sort().values
    edges = torch.cat([torch.tensor([0]), cuts, torch.tensor([total])])
    return edges.diff().tolist()


def _cut(values: Tensor, sizes: list[int]) -> list[Tensor]:
    pieces, start = [], 0
    for size in sizes:
        pieces.append(values[start : start + size])
        start += size
    return pieces


def _rows_of(labels: Tensor, group: Tensor) -> Tensor:
    return torch.isin(labels, group.to(labels.dtype)).nonzero().flatten()


def _shuffled(values: Tensor, chance: torch.Generator) -> Tensor:
    return values[torch.randperm(len(values), generator=chance)]
