"""Rows that arrived, whatever they came as: named columns, read a few rows at a time."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

from latewood.core.errors import ConfigurationError, DataError

Kind = Literal["images", "text"]
#: What a column holds, as far as its type tells; "bytes" may be images.
Holds = Literal["images", "bytes", "text", "other"]

# The first of each is clear enough to be taken even where others of the list are there too.
_USUAL: dict[str, tuple[str, ...]] = {
    "images": ("image", "img", "picture", "photo", "file", "file_name", "filename", "path", "image_path", "file_path"),
    "text": ("text", "sentence", "utterance", "query", "question", "message", "content", "body", "document", "review"),
    "labels": ("label", "intent", "class", "category", "target", "topic", "fine_label", "wnid"),
}
_OPTIONS = {"images": "image=", "text": "text=", "labels": "label="}


@dataclass(frozen=True)
class Problem:
    """A row that cannot be used: ``where`` it is and the ``reason``, which go together as a sentence.

    >>> print(Problem("line 17 of tickets.csv", "has no label"))
    line 17 of tickets.csv has no label
    """

    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where} {self.reason}"


class UnusableError(Exception):
    """Why a row cannot be used: the ``reason`` of a :class:`Problem`."""


@dataclass(frozen=True)
class Table:
    """``length`` rows that ``read(column, rows)`` gives a few at a time; ``where(row)`` is how a message names one.

    ``names`` has the classes of those columns whose integers stand for classes. Paths in its cells lie in ``folder`` and
    never leave it; without a folder no text is taken for a path. ``identity`` is a hash that changes with the contents.
    ``problems`` are the rows that were no rows at all.
    """

    source: str
    columns: Mapping[str, Holds]
    length: int
    read: Callable[[str, range], Sequence[Any]]
    where: Callable[[int], str]
    identity: Callable[[], str]
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    folder: Path | None = None
    problems: tuple[Problem, ...] = ()


def held(
    source: str,
    columns: Mapping[str, Sequence[Any]],
    where: Callable[[int], str],
    identity: Callable[[], str],
    *,
    folder: Path | None = None,
    problems: Sequence[Problem] = (),
) -> Table:
    """A table whose columns are in memory: lists, tensors or arrays."""

    def read(column: str, rows: range) -> Sequence[Any]:
        cells: Any = columns[column][rows.start : rows.stop]
        return cells.tolist() if getattr(cells, "ndim", 0) == 1 else cells  # type: ignore[no-any-return]

    length = len(next(iter(columns.values()), ()))
    kinds = {name: _holds(values) for name, values in columns.items()}
    return Table(source, kinds, length, read, where, identity, folder=folder, problems=tuple(problems))


def concatenated(source: str, tables: Sequence[Table], problems: Sequence[Problem] = ()) -> Table:
    """The rows of all tables one after another; a column that a table lacks is empty there.

    Errors: :class:`~latewood.core.errors.DataError` if the same column has other classes in another table.
    """
    columns: dict[str, Holds] = {}
    names: dict[str, tuple[str, ...]] = {}
    for table in tables:
        columns = {**table.columns, **columns}
        for name in table.columns:
            if names.setdefault(name, table.names.get(name, ())) != table.names.get(name, ()):
                raise DataError(
                    f"{table.source} names other classes in its column {name!r} than the files before it; all of a folder "
                    "need the same in the same order."
                )
    ends = list(accumulate((table.length for table in tables), initial=0))

    def read(column: str, rows: range) -> list[Any]:
        cells: list[Any] = []
        for start, table in zip(ends, tables, strict=False):
            part = range(max(0, rows.start - start), min(table.length, rows.stop - start))
            if part:
                cells += table.read(column, part) if column in table.columns else [None] * len(part)
        return cells

    def where(row: int) -> str:
        number = bisect_right(ends, row) - 1
        return tables[number].where(row - ends[number])

    def identity() -> str:
        return repr([table.identity() for table in tables])

    return Table(
        source,
        columns,
        ends[-1],
        read,
        where,
        identity,
        names={name: classes for name, classes in names.items() if classes},
        folder=tables[0].folder,
        problems=(*problems, *(problem for table in tables for problem in table.problems)),
    )


def label_column(table: Table, given: str | None, content: str | None) -> str:
    """The column of labels: ``given``, or the one whose integers name classes, or the one with a usual name.

    Errors: :class:`~latewood.core.errors.DataError` if none or several could be it;
    :class:`~latewood.core.errors.ConfigurationError` if there is no column ``given``.
    """
    typed = [name for name in table.columns if name in table.names]
    pool = typed or [name for name, holds in table.columns.items() if holds in ("text", "other") and name != content]
    return _chosen(table, "labels", given, typed if len(typed) == 1 else _usual(pool, "labels") or typed)


def content_column(table: Table, kind: Kind, given: str | None, label: str | None) -> str:
    """The column of images or texts: ``given``, or the only one of that type, or the one with a usual name.

    Errors: as :func:`label_column` has them.
    """
    columns = {name: holds for name, holds in table.columns.items() if name != label}
    texts = [name for name, holds in columns.items() if holds == "text"]
    if kind == "text":
        # Where labels are not asked for, they may still be there.
        others = [name for name in texts if not _usual([name], "labels")]
        return _chosen(table, kind, given, _usual(texts, kind) or others)
    images = [name for name, holds in columns.items() if holds == "images"]
    images = images or [name for name, holds in columns.items() if holds == "bytes"]
    paths = _usual(texts, kind)
    return _chosen(table, kind, given, images if len(images) == 1 else _usual(images, kind) or images or paths)


def _usual(columns: Sequence[str], what: str) -> list[str]:
    found = [name for name in columns if name.casefold() in _USUAL[what]]
    plain = [name for name in found if name.casefold() == _USUAL[what][0]]
    return plain or found


def _chosen(table: Table, what: str, given: str | None, candidates: Sequence[str]) -> str:
    columns = _listed(table.columns)
    if given is not None and given not in table.columns:
        raise ConfigurationError(f"{table.source} has no column {given!r} for {_OPTIONS[what]}; it has {columns}.")
    if given is not None:
        return given
    if len(candidates) == 1:
        return candidates[0]
    noun = what if what != "text" else "texts"
    if candidates:
        found = f"several columns that could hold the {noun}: {_listed(candidates)}"
    else:
        found = f"no column that is known to hold the {noun}, only {columns}"
    raise DataError(f"{table.source} has {found}; name the one to use with {_OPTIONS[what]}.")


def _listed(columns: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(map(repr, columns)) or "none"


def _holds(values: Sequence[Any]) -> Holds:
    """What a column in memory holds, told by its first cell that is not empty."""
    first = next((value for value in values if value is not None), None)
    if isinstance(first, str):
        return "text"
    mapping = isinstance(first, Mapping) and "bytes" in first
    if mapping or isinstance(first, bytes | Path) or hasattr(first, "getexif") or getattr(first, "ndim", 0) > 1:
        return "images"
    return "other"
