"""Data: named columns of equal length. Whatever arrives, images, tokens or waveforms, arrives as columns."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias, overload

import numpy as np
import torch
from torch import Tensor

from latewood.core.errors import DataError

Column: TypeAlias = Tensor | list[Any]
Index: TypeAlias = "int | slice | range | list[int] | Tensor | np.ndarray[Any, Any]"
Rows: TypeAlias = "range | Tensor"

_HASH_CHUNK_BYTES = 1 << 26


class Data(Mapping[str, Column]):
    """An immutable table of named columns: tensors (in memory or memory-mapped) or lists.

    ``len(data)`` is the number of rows. ``data["image"]`` is a column, ``data[rows]`` (an index, a slice, a list of
    indices, or a boolean mask) a view on those rows that copies nothing until one of its columns is read. A
    ``numpy.memmap`` becomes a tensor over the same pages of the file.

    Errors: :class:`DataError` if the columns differ in length or a column does not exist.

    >>> data = Data(image=torch.zeros(4, 1, 8, 8), label=torch.tensor([0, 1, 0, 1]))
    >>> len(data), list(data)
    (4, ['image', 'label'])
    >>> data[data["label"] == 1]["label"]
    tensor([1, 1])
    """

    __slots__ = ("_columns", "_fingerprints", "_rows")

    def __init__(self, columns: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        given = {**(columns or {}), **more}
        self._columns: dict[str, Column] = {name: _as_column(name, values) for name, values in given.items()}
        lengths = {name: len(column) for name, column in self._columns.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"All columns of a Data must be equally long, but they have {_listing(lengths)} rows.")
        self._rows: Rows = range(next(iter(lengths.values()), 0))
        self._fingerprints: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    @overload
    def __getitem__(self, key: str) -> Any: ...
    @overload
    def __getitem__(self, key: Index) -> Data: ...
    def __getitem__(self, key: str | Index) -> Any:
        if isinstance(key, str):
            return self._column(key)
        return self._view(_select(self._rows, key))

    def tensor(self, name: str) -> Tensor:
        """The column ``name``, which must be a tensor."""
        column = self._column(name)
        if not isinstance(column, Tensor):
            raise DataError(f"Column {name!r} must be a tensor, but it is a list.")
        return column

    @property
    def rows(self) -> Tensor:
        """Where each row lies in :attr:`base`, shape ``(len(data),)``."""
        return _as_index(self._rows, len(self)) if isinstance(self._rows, range) else self._rows

    @property
    def base(self) -> Data:
        """The whole table that this is a view on."""
        length = len(next(iter(self._columns.values()), []))
        return self._view(range(length))

    def select(self, *names: str) -> Data:
        """Only the named columns, of the same rows."""
        for name in names:
            self._check_name(name)
        view = self._view(self._rows)
        view._columns = {name: self._columns[name] for name in names}
        return view

    def with_columns(self, **columns: Any) -> Data:
        """A new table with these columns added or replaced, one value for each row; of a view it copies the others."""
        kept = [name for name in self if name not in columns]
        table = Data({name: self._column(name) for name in kept} | columns)
        if all(table._columns[name] is self._columns[name] for name in kept):
            table._fingerprints = {name: value for name, value in self._fingerprints.items() if name in kept}
        return table

    def to(self, device: torch.device | str) -> Data:
        """These rows as a table of its own, with every tensor on ``device``."""
        columns = {name: self._column(name) for name in self}
        return Data({name: c.to(device) if isinstance(c, Tensor) else c for name, c in columns.items()})

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Data]:
        """Views of at most ``size`` rows that together hold each row once; shuffled if a generator is given."""
        order = range(len(self)) if generator is None else torch.randperm(len(self), generator=generator)
        for start in range(0, len(self), size):
            yield self[order[start : start + size]]

    def fingerprint(self, *names: str) -> str:
        """A hash of the contents of the named columns (default: all) over all rows of :attr:`base`.

        Computed once for a table and shared by its views; where reading all of a large file only to hash it would
        take too long, whoever built the table names its contents with :meth:`named`.
        """
        digest = hashlib.blake2b(digest_size=16)
        for name in names or tuple(self):
            self._check_name(name)
            if name not in self._fingerprints:
                self._fingerprints[name] = _hash_column(self._columns[name])
            digest.update(f"{name}={self._fingerprints[name]};".encode())
        return digest.hexdigest()

    def named(self, fingerprint: str) -> Data:
        """The same table, whose columns take their fingerprints from ``fingerprint`` and not from their contents."""
        self._fingerprints.update({name: f"{fingerprint}/{name}" for name in self})
        return self

    def __repr__(self) -> str:
        kinds = (f"{n}: {_kind(c)}" for n, c in self._columns.items())
        return f"Data({len(self)} rows; {', '.join(kinds)})"

    def _check_name(self, name: str) -> None:
        if name not in self._columns:
            raise DataError(f"There is no column {name!r} in this data; it has {', '.join(map(repr, self)) or 'none'}.")

    def _column(self, name: str) -> Column:
        self._check_name(name)
        return _take(self._columns[name], self._rows)

    def _view(self, rows: Rows) -> Data:
        view = object.__new__(Data)
        view._columns, view._rows, view._fingerprints = self._columns, rows, self._fingerprints
        return view


def concat(*parts: Data) -> Data:
    """The rows of all parts below one another, on the device of the first; all must have its columns (others are dropped).

    >>> concat(Data(x=torch.zeros(2, 3)), Data(x=torch.ones(1, 3), y=[7]))["x"].shape
    torch.Size([3, 3])
    """
    if not parts:
        raise DataError("concat() needs at least one Data.")
    columns: dict[str, Column] = {}
    for name in parts[0]:
        pieces = [part[name] for part in parts]
        if all(isinstance(piece, Tensor) for piece in pieces):
            shapes = {tuple(piece.shape[1:]) for piece in pieces}
            if len(shapes) > 1:
                raise DataError(f"Column {name!r} cannot be concatenated: its rows have the shapes {_listing(shapes)}.")
            columns[name] = torch.cat([piece.to(pieces[0].device) for piece in pieces])
        else:
            columns[name] = [value for piece in pieces for value in piece]
    return Data(columns)


def check_finite(data: Data, where: str) -> None:
    """Raise :class:`DataError` naming the first row of ``data`` that holds NaN or infinity in a floating-point column."""
    for name in data:
        for start in range(0, len(data), 4096):
            column = data[start : start + 4096][name]
            if not isinstance(column, Tensor) or not column.is_floating_point():
                break
            bad = ~torch.isfinite(column).flatten(1).all(1) if column.dim() > 1 else ~torch.isfinite(column)
            if bad.any():
                row = start + int(bad.nonzero()[0])
                raise DataError(f"Column {name!r} of {where} holds NaN or infinity in row {row}; remove or repair that row.")


def _as_column(name: str, values: Any) -> Column:
    if isinstance(values, np.ndarray):
        values = _as_tensor(name, values)
    if isinstance(values, Tensor):
        if values.dim() == 0:
            raise DataError(f"Column {name!r} must hold one value for each row, but it is a single number.")
        return values
    if isinstance(values, Sequence) and not isinstance(values, str | bytes):
        return list(values)
    raise DataError(f"Column {name!r} must be a tensor, an array or a list, but it is a {type(values).__name__}.")


def _as_tensor(name: str, values: np.ndarray[Any, Any]) -> Tensor:
    if any(stride < 0 for stride in values.strides):
        values = np.ascontiguousarray(values)
    try:
        with warnings.catch_warnings():
            # Of an array that can't be written to; columns never are.
            warnings.simplefilter("ignore", UserWarning)
            return torch.from_numpy(values)
    except TypeError:
        raise DataError(f"Column {name!r} is an array of {values.dtype}, which no tensor can hold; give a list.") from None


def _take(column: Column, rows: Rows) -> Column:
    if isinstance(rows, range):
        whole = rows.start == 0 and len(rows) == len(column) and rows.step == 1
        return column if whole else column[rows.start : rows.stop : rows.step]
    if isinstance(column, Tensor):
        return column[rows.to(column.device)]
    return [column[i] for i in rows.tolist()]


def _select(rows: Rows, key: Any) -> Rows:
    """The rows of the base that ``key`` names in a view on ``rows``: a range with a positive step, or int64 indices."""
    count = len(rows)
    if isinstance(key, Tensor | np.ndarray | np.generic) and key.ndim == 0 and not isinstance(key.item(), bool | float):
        key = int(key)
    if isinstance(key, int) and not isinstance(key, bool) and -count <= key < count:
        key = slice(key, key + 1 or None)
    if isinstance(key, range) and key.step > 0 and key.start >= 0 and key.stop <= count:
        key = slice(key.start, key.stop, key.step)
    if isinstance(key, slice):
        places = range(count)[key]
        if places.step > 0:
            return rows[places.start : places.stop : places.step]
        key = list(places)
    index = _as_index(key, count)
    outside = (index < -count) | (index >= count)
    if outside.any():
        raise DataError(f"Row {int(index[outside][0])} does not exist in data with {count} rows.")
    index = torch.where(index < 0, index + count, index)
    return index * rows.step + rows.start if isinstance(rows, range) else rows[index]


def _as_index(key: Any, count: int) -> Tensor:
    if isinstance(key, range):
        return torch.arange(len(key)) * key.step + key.start
    try:
        index = torch.as_tensor(key).cpu()
    except (TypeError, ValueError, RuntimeError):
        raise DataError(f"Rows are named by an index, a slice, indices or a mask, but not by a {type(key).__name__}.") from None
    if index.numel() == 0 and index.dim() == 1 and index.dtype != torch.bool:
        return index.long()
    if index.dtype == torch.bool:
        if index.shape != (count,):
            raise DataError(f"A mask over {count} rows must have {count} entries, but it has {index.numel()}.")
        return index.nonzero().flatten()
    if index.dim() > 1 or index.is_floating_point() or index.is_complex():
        raise DataError(f"Rows are named by whole numbers in one row, but not by {index.dtype} of shape {tuple(index.shape)}.")
    return index.long().reshape(-1)


def _hash_column(column: Column) -> str:
    digest = hashlib.blake2b(digest_size=16)
    _feed(digest, column)
    return digest.hexdigest()


def _feed(digest: hashlib.blake2b, value: Any) -> None:
    """Hash a value so that no two different ones look alike: kind and size come before the contents."""
    if isinstance(value, Tensor | np.ndarray):
        array = _as_tensor("of arrays", value) if isinstance(value, np.ndarray) else value.detach()
        digest.update(f"tensor {array.dtype} {tuple(array.shape)};".encode())
        pieces = array.reshape(1) if array.dim() == 0 else array
        step = max(1, _HASH_CHUNK_BYTES // max(1, pieces[:1].numel() * pieces.element_size()))
        for start in range(0, len(pieces), step):
            digest.update(pieces[start : start + step].cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    elif isinstance(value, str | bytes):
        raw = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
        digest.update(f"{type(value).__name__} {len(raw)};".encode() + raw)
    elif isinstance(value, list | tuple):
        digest.update(f"{type(value).__name__} {len(value)};".encode())
        for item in value:
            _feed(digest, item)
    elif isinstance(value, Mapping):
        digest.update(b"mapping ")
        _feed(digest, [[key, value[key]] for key in value])
    elif value is None or isinstance(value, bool | int | float | complex | np.generic):
        digest.update(f"{type(value).__name__} {value!r};".encode())
    else:
        raise DataError(f"A column of {type(value).__name__} objects has no fingerprint; give it one with named().")


def _kind(column: Column) -> str:
    if isinstance(column, Tensor):
        return f"{str(column.dtype).removeprefix('torch.')}{list(column.shape[1:])}"
    return "list"


def _listing(things: Any) -> str:
    return (
        ", ".join(f"{k} {v}" for k, v in things.items()) if isinstance(things, Mapping) else ", ".join(map(str, sorted(things)))
    )
