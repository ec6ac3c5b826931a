"""Decoded images on disk: a folder of raw bytes with a JSON header, memory-mapped when it is read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from latewood.core.errors import StorageError
from latewood.core.files import write_folder_atomically

#: Part of every key: a change of the layout or of the way in which images are decoded needs a new number.
FORMAT = 1

#: Decoding less than this takes about as long as looking for it.
SMALLEST_BYTES = 16 << 20

Allocate: TypeAlias = Callable[[tuple[int, int, int, int]], NDArray[np.uint8]]
Place: TypeAlias = Path | None

_IMAGES, _LABELS, _HEADER = "images.uint8", "labels.int64", "header.json"


@dataclass(frozen=True)
class Table:
    """Images ``(n, channels, height, width)`` and labels ``(n,)``; the first ``train`` rows are for training, the rest for
    testing."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    train: int
    classes: tuple[str, ...]


def read(place: Path) -> Table | None:
    """The table kept at ``place``; ``None`` if there is none, or only a damaged one. Reads no image before it is used."""
    try:
        header = json.loads((place / _HEADER).read_text())
        rows, *sample = header["shape"]
        labels = np.fromfile(place / _LABELS, np.int64)
        if len(labels) != rows or (place / _IMAGES).stat().st_size != rows * int(np.prod(sample)):
            return None
        # Copy on write: torch wants writable memory, and whoever writes into it must not change the file.
        images = np.memmap(place / _IMAGES, np.uint8, "c", shape=(rows, *sample))
        return Table(images, labels, header["train"], tuple(header["classes"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep(
    place: Path,
    labels: NDArray[np.int64],
    train: int,
    classes: tuple[str, ...],
    fill: Callable[[Allocate], NDArray[np.uint8]],
) -> Table:
    """Let ``fill`` decode into a file, keep it at ``place`` and map it. Any number of processes may do so at once.

    Errors: :class:`~latewood.core.errors.StorageError` if the file cannot be written.
    """

    def write(temporary: Path) -> None:
        images = fill(lambda shape: _mapped_file(temporary / _IMAGES, shape))
        images.flush()  # type: ignore[attr-defined]  # what was allocated is a memmap
        labels.tofile(temporary / _LABELS)
        header = {"format": FORMAT, "shape": images.shape, "train": train, "classes": classes}
        (temporary / _HEADER).write_text(json.dumps(header))

    if place.exists() and read(place) is None:
        shutil.rmtree(place, ignore_errors=True)
    try:
        write_folder_atomically(place, write)
    except StorageError:
        # Another process that decoded the same images may have been faster: then its folder is as good.
        if (table := read(place)) is not None:
            return table
        raise
    if (table := read(place)) is None:
        raise StorageError(f"{place} was removed or damaged while it was in use; load the images again.")
    return table


def _mapped_file(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    with path.open("wb") as file:
        file.truncate(int(np.prod(shape)))
        if hasattr(os, "posix_fallocate"):
            # A full disk is an error here; where a map has no room behind it, writing kills the process.
            os.posix_fallocate(file.fileno(), 0, int(np.prod(shape)))
    return np.memmap(path, np.uint8, "r+", shape=shape)
