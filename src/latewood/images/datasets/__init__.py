"""Labelled images by name: the embedded digits, a folder on disk, or a data set of the hub, decoded once.

``sources`` finds them, ``parts`` reads their labels, ``decoding`` makes pixels of them, ``cache`` keeps the pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError, DataError
from latewood.core.files import cache_folder
from latewood.images.datasets import cache
from latewood.images.datasets.cache import Table
from latewood.images.datasets.decoding import decode, fitted, shape_of_first
from latewood.images.datasets.parts import held_out, opened, read_labels
from latewood.images.datasets.sources import HUB_NAMES, Source, find

__all__ = ["HUB_NAMES", "ImageData", "load_images"]

_Number = TypeVar("_Number", bound=np.generic)

#: The share of a table that a subset must have to stay a view of it.
_SHARED = 0.25


@dataclass(frozen=True)
class ImageData:
    """Labelled images in two parts with the same classes.

    ``train`` and ``test`` have the columns ``image`` (uint8, ``(n, channels, height, width)``, one channel if every
    image is grey, else three) and ``label`` (int64, ``(n,)``); label ``i`` is the class ``classes[i]``.
    """

    name: str
    train: Data
    test: Data
    classes: tuple[str, ...]

    def subset(self, classes: Sequence[int]) -> ImageData:
        """Only these classes, numbered anew from 0 in the order given.

        >>> load_images("digits").subset([7, 3]).classes
        ('7', '3')
        """
        parts = {}
        for name, part in (("train", self.train), ("test", self.test)):
            number = torch.full((len(self.classes),), -1)
            number[torch.tensor(classes)] = torch.arange(len(classes))
            labels = number[part.tensor("label")]
            chosen = part.with_columns(label=labels)[labels >= 0]
            # A view on the whole table, so that its embeddings serve every subset; but a few rows would not be worth them.
            parts[name] = chosen if len(chosen) > _SHARED * len(part.base) else Data(dict(chosen))
        return ImageData(self.name, classes=tuple(self.classes[c] for c in classes), **parts)

    def few(self, train: int, test: int | None = None) -> ImageData:
        """At most so many images of each class, the first ones; all test images if their number is not given.

        Errors: :class:`~latewood.core.errors.ConfigurationError` for less than one.

        >>> digits = load_images("digits").few(5)
        >>> len(digits.train), len(digits.test) == len(load_images("digits").test)
        (50, True)
        """
        if train < 1 or (test is not None and test < 1):
            raise ConfigurationError(f"Of each class at least one image must be left, not {min(train, test or train)}.")
        return replace(self, train=_first(self.train, train), test=self.test if test is None else _first(self.test, test))


def _first(part: Data, count: int) -> Data:
    """The first ``count`` rows of each class, in a table of their own: embedding must not pass over all the others."""
    labels = part.tensor("label")
    order = labels.argsort(stable=True)
    _, sizes = labels.unique(return_counts=True)
    place = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return Data(dict(part[order[place < count].sort().values]))


def load_images(name: str | ImageData, *, size: int | None = None, label: str | None = None) -> ImageData:
    """Load the images called ``name``, which is the first of these that exists (images that are loaded stay as they are):

    1. ``digits``: scikit-learn's 1,797 handwritten digits, 8x8, grey.
    2. A folder. Either parquet files in the hub's form, ``train*.parquet`` and ``test*.parquet`` (or ``val*.parquet``),
       in it or in its ``data`` folder; or files of images in folders named after their classes: ``train/<class>/*.png``
       and ``test/<class>/*.png`` (or ``validation``, ``valid``, ``val``), or just ``<class>/*.png``.
    3. Such a folder of that name under the environment variable ``LATEWOOD_DATA``.
    4. A data set of the Hugging Face hub, by its short name (:data:`HUB_NAMES`: ``cifar100``, ``imagenet-r``, ...) or its
       full one; what was downloaded before is found without a network.

    Where there is only one part, and for the digits, every fifth image of each class (the second, the seventh, ... in
    the data's own order) is for testing and the others are for training: about 80 to 20, the same split every time.

    ``size`` brings every image to ``size`` by ``size`` pixels: its shorter side is scaled (bilinear, antialiased), then
    its centre is cut out. Without it all images must have one size. ``label`` names the column of labels. By default
    it is the one of type ``ClassLabel``; where that leaves the choice open, the one called ``label``, ``fine_label``
    (CIFAR-100) or ``wnid`` (ImageNet-R). Strings become classes in sorted order, plain integers in numeric order.

    Decoded images of 16 MiB or more are kept as a file in ``LATEWOOD_CACHE`` and memory-mapped from then on: the first
    load decodes, the next only hashes the source files (about a second for each GB) and maps the result. With
    ``LATEWOOD_CACHE=off`` everything is decoded again, into memory.

    Errors: :class:`~latewood.core.errors.ConfigurationError` if nothing of that name is found or ``size`` or ``label``
    make no sense; :class:`~latewood.core.errors.DataError` if what is found is not labelled images: a file, a folder
    without a data set, an image that cannot be read, images of several sizes, missing, unlabelled, fractional or
    ambiguous labels, an empty part.

    >>> digits = load_images("digits")
    >>> digits.train
    Data(1435 rows; image: uint8[1, 8, 8], label: int64[])
    >>> len(digits.test), digits.classes[:3]
    (362, ('0', '1', '2'))
    """
    if isinstance(name, ImageData):
        return name
    if size is not None and size < 1:
        raise ConfigurationError(f"size must be at least 1 pixel, but it is {size}.")
    if name == "digits":
        if label is not None:
            raise ConfigurationError(f"The embedded digits have no columns, so label={label!r} cannot be chosen; leave it out.")
        return _image_data(name, _digits(size), fingerprint=None)
    source = find(name)
    key = hashlib.blake2b(repr((cache.FORMAT, source.identity, size, label)).encode(), digest_size=16).hexdigest()
    folder = cache_folder("images")
    place = folder / key if folder else None
    table = cache.read(place) if place else None
    return _image_data(name, table or _decoded(source, size, label, place), fingerprint=key)


def _image_data(name: str, table: Table, fingerprint: str | None) -> ImageData:
    parts = {}
    for part, rows in {"train": slice(None, table.train), "test": slice(table.train, None)}.items():
        parts[part] = Data(image=torch.from_numpy(table.images[rows]), label=torch.from_numpy(table.labels[rows]))
        if fingerprint:
            parts[part].named(f"{fingerprint}/{part}")
    return ImageData(name, classes=table.classes, **parts)


def _digits(size: int | None) -> Table:
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    if size is not None:
        images = np.stack([np.asarray(fitted(Image.fromarray(image), size)) for image in images])
    labels = digits.target.astype(np.int64)
    places, train = _arrangement([labels], "The digits")
    return Table(_moved(images[:, None], places), _moved(labels, places), train, tuple(map(str, digits.target_names)))


def _decoded(source: Source, size: int | None, label: str | None, place: cache.Place) -> Table:
    parts = opened(source.tables(), source.where, label)
    labels, classes = read_labels(parts)
    places, train = _arrangement(labels, source.where)
    moved = _moved(np.concatenate(labels), places)

    def fill(allocate: cache.Allocate) -> NDArray[np.uint8]:
        return decode(parts, places, size, allocate)

    # A grey first image may turn out to be the exception; then this is a third of the bytes, which does no harm.
    expected_bytes = len(places) * int(np.prod(shape_of_first(parts, size)))
    if place is None or expected_bytes < cache.SMALLEST_BYTES:
        return Table(fill(lambda shape: np.empty(shape, np.uint8)), moved, train, classes)
    return cache.keep(place, moved, train, classes, fill)


def _arrangement(labels: list[NDArray[np.int64]], where: str) -> tuple[NDArray[np.int64], int]:
    """Which row of the table each image goes to, so that training images come first, and how many those are."""
    if len(labels) == 2:
        return np.arange(sum(map(len, labels))), len(labels[0])
    test = held_out(labels[0])
    if not test.any():
        raise DataError(f"{where} has no test part and only one image of each class, so none can be set aside; add images.")
    places = np.empty(len(test), np.int64)
    order = np.argsort(test, kind="stable")
    places[order] = np.arange(len(test))
    return places, int((~test).sum())


def _moved(values: NDArray[_Number], places: NDArray[np.int64]) -> NDArray[_Number]:
    result = np.empty_like(values)
    result[places] = values
    return result
