"""Rows in memory as a table: columns by name, pairs of content and label, or contents alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from latewood.core.errors import DataError
from latewood.model._cells import hash_of, image_content
from latewood.model._table import Kind, Problem, Table, UnusableError, held

_COLUMNS: dict[Kind, str] = {"images": "image", "text": "text"}


def table_of(data: Any, kind: Kind, source: str, labelled: bool) -> Table:
    """The rows of ``data``; ``labelled`` sequences hold pairs.

    Errors: :class:`~latewood.core.errors.DataError` if it is neither columns of equal length nor a sequence.
    """
    content = _COLUMNS[kind]
    if isinstance(data, Mapping):
        return _held(_columns(data, source), range(len(next(iter(data.values()), ()))), source, [])
    if isinstance(data, Tensor | np.ndarray) and not labelled:
        return _held({content: data}, range(len(data)), source, [])
    if not isinstance(data, Sequence) or isinstance(data, bytes | bytearray | memoryview):
        expected = f"pairs of {content} and label" if labelled else f"a list of {kind if kind == 'images' else 'texts'}"
        raise DataError(f"{source} is of type {type(data).__name__}; give {expected}, columns by name, or a path.")
    if not labelled:
        return _held({content: data}, range(len(data)), source, [])
    numbers = [number for number, pair in enumerate(data) if isinstance(pair, tuple | list) and len(pair) == 2]
    columns = {content: [data[number][0] for number in numbers], "label": [data[number][1] for number in numbers]}
    wrong = sorted(set(range(len(data))) - set(numbers))
    return _held(columns, numbers, source, [Problem(_where(n, source), f"is no pair of {content} and label") for n in wrong])


def _held(columns: Mapping[str, Any], numbers: Sequence[int], source: str, problems: Sequence[Problem]) -> Table:
    def identity() -> str:
        digest = hashlib.blake2b(digest_size=16)
        for name, holds in table.columns.items():
            for row in range(table.length):
                digest.update(_fingerprint(table.read(name, range(row, row + 1))[0], holds == "images"))
        return digest.hexdigest()

    table = held(source, columns, lambda row: _where(numbers[row], source), identity, problems=problems)
    return table


def _where(number: int, source: str) -> str:
    return f"row {number} of {source}"


def _fingerprint(cell: Any, image: bool) -> bytes:
    try:
        return hash_of(image_content(cell, None)) if image else hash_of(repr(cell))
    except UnusableError as error:
        return hash_of(str(error))


def _columns(data: Mapping[str, Any], source: str) -> dict[str, Any]:
    columns = {}
    for name, values in data.items():
        try:
            columns[name] = values if isinstance(values, list | Tensor | np.ndarray) else [*values]
        except TypeError:
            values = ""
        if isinstance(values, str) or getattr(values, "ndim", 1) == 0:
            raise DataError(f"Column {name!r} of {source} must be a list, an array or a tensor with one value for each row.")
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{length} in {name!r}" for name, length in lengths.items())
        raise DataError(f"The columns of {source} must be equally long, but there are {told}.")
    return columns
