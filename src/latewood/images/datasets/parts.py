"""The parts of a data set before decoding: which columns hold images and labels, and what the labels are called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latewood.core.errors import ConfigurationError, DataError

_USUAL_LABELS = ("label", "fine_label", "wnid")
_LABEL_TYPES = ("int", "uint", "string", "large_string")
_BATCH = 256


@dataclass(frozen=True)
class Part:
    """The training or the test part of a data set: a table of the ``datasets`` library and the two columns that count."""

    name: str
    table: Any
    image: str
    label: str

    def row(self, number: int) -> str:
        """How a message names one image."""
        return f"Row {number} of the {self.name}"

    def labels(self) -> list[Any]:
        """Integers or strings; ``None`` where a label is missing."""
        return [value for batch in self._batches(self.label) for value in batch]

    def cells(self) -> Iterator[list[Any]]:
        """The images in batches: each a mapping with the ``bytes`` of a file or the ``path`` to one, or ``None``."""
        return self._batches(self.image)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names that come with the type ``ClassLabel``; ``None`` for plain integers and strings."""
        names = getattr(self.table.features[self.label], "names", None)
        return None if names is None else tuple(names)

    def _batches(self, column: str) -> Iterator[list[Any]]:
        try:
            for batch in self.table.select_columns([column]).with_format("arrow").iter(_BATCH):
                yield batch.column(column).to_pylist()
        except (OSError, ValueError) as error:
            raise DataError(f"The {self.name} cannot be read: {error}") from error


def opened(tables: Mapping[str, Any], where: str, label: str | None) -> list[Part]:
    """The parts in ``tables``, with their columns found by type.

    Errors: :class:`~latewood.core.errors.DataError` if there is no column of images or of labels, or several that could
    be it; :class:`~latewood.core.errors.ConfigurationError` if there is no column ``label``.
    """
    import datasets

    parts = []
    for part, table in tables.items():
        name = f"{part} part of {where}"
        image, chosen = _image_column(table.features, name), _label_column(table.features, name, label)
        if isinstance(table.features[image], datasets.Image):
            table = table.cast_column(image, datasets.Image(decode=False))
        parts.append(Part(name, table, image, chosen))
    return parts


def read_labels(parts: Sequence[Part]) -> tuple[list[NDArray[np.int64]], tuple[str, ...]]:
    """The labels of each part, int64 ``(n,)``, and the name of each class.

    Errors: :class:`~latewood.core.errors.DataError` if a part is empty, a label is missing or the parts name other classes.
    """
    columns = [part.labels() for part in parts]
    names = parts[0].class_names
    for part, column in zip(parts, columns, strict=True):
        if not column:
            raise DataError(f"The {part.name} is empty; it must hold at least one image.")
        if part.class_names != names:
            raise DataError(
                f"The {part.name} names other classes than the {parts[0].name}; both need the same in the same order."
            )
        # The hub's convention for a test part whose labels are kept secret is -1.
        unlabelled = (row for row, value in enumerate(column) if value is None or (names and not 0 <= value < len(names)))
        if (row := next(unlabelled, None)) is not None:
            raise DataError(f"{part.row(row)} has no label ({part.label} is {column[row]}); label it or remove it.")
    if names is None:
        values = sorted({value for column in columns for value in column})
        numbers = {value: number for number, value in enumerate(values)}
        columns, names = [[numbers[value] for value in column] for column in columns], tuple(map(str, values))
    return [np.array(column, np.int64) for column in columns], names


def held_out(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Every fifth image of each class, starting with the second: a class of two or more is in both parts.

    >>> held_out(np.zeros(8, np.int64)).astype(int)
    array([0, 1, 0, 0, 0, 0, 1, 0])
    """
    chosen = np.zeros(len(labels), bool)
    for number in np.unique(labels):
        chosen[np.flatnonzero(labels == number)[1::5]] = True
    return chosen


def _image_column(features: Mapping[str, Any], name: str) -> str:
    import datasets

    # Without the hub's metadata, as pandas writes it, an image is a plain mapping with the bytes of its file.
    images = [
        column
        for column, feature in features.items()
        if isinstance(feature, datasets.Image) or (isinstance(feature, Mapping) and "bytes" in feature)
    ]
    if len(images) != 1:
        problem = (
            f"several columns of images ({_listed(images)})" if images else f"no column of images, only {_listed(features)}"
        )
        raise DataError(f"The {name} has {problem}; it needs exactly one.")
    return images[0]


def _label_column(features: Mapping[str, Any], name: str, label: str | None) -> str:
    import datasets

    if label is not None and label not in features:
        raise ConfigurationError(f"The {name} has no column {label!r} for label=; it has {_listed(features)}.")
    usual = [column for column in _USUAL_LABELS if column in features]
    typed = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    choices = typed if len(typed) == 1 else [column for column in usual if not typed or column in typed]
    if label is None and not choices:
        problem = f"several columns of labels ({_listed(typed)})" if typed else f"no column of labels, only {_listed(features)}"
        raise DataError(f"The {name} has {problem}; name the one to use with label=.")
    chosen = choices[0] if label is None else label
    dtype = str(getattr(features[chosen], "dtype", "a structure"))
    if not dtype.startswith(_LABEL_TYPES):
        raise DataError(f"Column {chosen!r} of the {name} holds {dtype}, but labels must be integers, strings or ClassLabel.")
    return chosen


def _listed(columns: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(map(repr, columns)) or "none"
