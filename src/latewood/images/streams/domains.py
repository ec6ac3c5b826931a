"""Domain-incremental over several data sets: the same classes, each time from another source."""

from __future__ import annotations

from functools import cache

from latewood.core.errors import ConfigurationError
from latewood.core.stream import Stream
from latewood.images.datasets import ImageData
from latewood.images.streams._common import choice, chosen_images, contents, domain_incremental


def domains(dataset: str, *, size: int | None = None, classes: str | None = None) -> Stream:
    """One arrival for each of the data sets that ``dataset`` names, separated by commas: ``domains-mnist,fashion-mnist``.

    Label ``i`` must mean the same in all of them, so they must have the same number of classes; images must have one
    size (``size`` resizes them). ``classes`` leaves only some of them, as in :func:`~latewood.images.streams.split.split`.
    Errors: :class:`~latewood.core.errors.ConfigurationError` if they differ.

    >>> len(domains("digits,digits")[1].train) == len(domains("digits")[0].train)
    True
    """
    names = [name.strip() for name in dataset.split(",") if name.strip()]
    if not names:
        raise ConfigurationError("A domains stream needs the names of its data sets, separated by commas.")

    @cache
    def load(step: int) -> ImageData:
        return chosen_images(names[step], size, classes)

    first = load(0)
    for step in range(1, len(names)):
        other = load(step)
        if len(other.classes) != len(first.classes):
            raise ConfigurationError(
                f"{names[0]} has {len(first.classes)} classes and {names[step]} {len(other.classes)}; domains must share them."
            )
        if other.train.tensor("image").shape[1:] != first.train.tensor("image").shape[1:]:
            raise ConfigurationError(f"Images of {names[0]} and {names[step]} differ in size or channels; set size.")
    config = {
        "datasets": names,
        "size": size,
        **choice(classes),
        "contents": [contents(load(step)) for step in range(len(names))],
    }
    labels = [f"{step} {name}" for step, name in enumerate(names)]
    return domain_incremental(f"domains-{dataset}", labels, load, config, lambda part, _: part)
