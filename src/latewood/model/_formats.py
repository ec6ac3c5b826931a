"""Files of rows as tables: CSV, JSON lines, lines of text, and parquet."""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latewood.core.errors import DataError
from latewood.model._arrow import parquet_table
from latewood.model._table import Problem, Table, held
from latewood.parts.pretrained import first_line

# What decoding with "surrogateescape" makes of a byte that is not UTF-8.
_NOT_UTF8 = re.compile("[\udc80-\udcff]")


def open_table(path: Path, source: str) -> Table:
    """The file at ``path``, which the user knows as ``source``, read by what its name ends on.

    Errors: :class:`~latewood.core.errors.DataError` if it cannot be read as a whole, is empty or has no usable header.
    """
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{source} is empty: it must hold at least one row.")
        return FORMATS[path.suffix.lower()](path, source)
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror or first_line(error)}.") from error


@dataclass
class _Lines:
    """What the lines of a file come to: cells by column, the line that each row starts on, and the lines that are no rows."""

    source: str
    columns: dict[str, list[Any]]
    numbers: list[int] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def add(self, number: int, cells: Mapping[str, Any]) -> None:
        for name, values in self.columns.items():
            values.append(cells.get(name))
        self.numbers.append(number)

    def refuse(self, number: int, reason: str) -> None:
        self.problems.append(Problem(self._where(number), reason))

    def table(self, path: Path, content: bytes) -> Table:
        identity = hashlib.blake2b(content, digest_size=16).hexdigest()
        return held(
            self.source,
            self.columns,
            lambda row: self._where(self.numbers[row]),
            lambda: identity,
            folder=path.parent,
            problems=self.problems,
        )

    def _where(self, number: int) -> str:
        return f"line {number} of {self.source}"


def _csv(path: Path, source: str) -> Table:
    content = _without_mark(path.read_bytes(), source)
    text = content.decode("utf-8", "surrogateescape")
    delimiter = _delimiter(text, path.suffix.lower())
    rows = _csv_rows(text, delimiter)
    _, header = next(rows, (1, []))
    if isinstance(header, str) or not any(header):
        reason = header if isinstance(header, str) else "is blank"
        raise DataError(f"The first line of {source} {reason}; it must name the columns, for instance text{delimiter}label.")
    names = [name.strip() for name in header]
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{source} has several columns {twice!r}; give each a name of its own.")
    lines = _Lines(source, {name: [] for name in names if name})
    for number, cells in rows:
        if isinstance(cells, str):
            lines.refuse(number, cells)
        elif len(cells) != len(names):
            lines.refuse(number, f"splits into {len(cells)}, but the header into {len(names)} columns")
        else:
            lines.add(number, dict(zip(names, cells, strict=True)))
    return lines.table(path, content)


def _delimiter(text: str, suffix: str) -> str:
    """The one that splits the header most often: texts further down may hold any of them."""
    if suffix == ".tsv":
        return "\t"
    header = io.StringIO(text).readline()
    return max(",;\t", key=lambda delimiter: len(next(csv.reader([header], delimiter=delimiter), [])))


def _csv_rows(text: str, delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    """The line that each row starts on with its cells, or with the reason why they cannot be read."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, f"has quotes that do not fit or a cell that is too long ({error})"
            continue
        if cells:
            wrong = next(filter(None, map(_NOT_UTF8.search, cells)), None)
            yield number, cells if wrong is None else _not_utf8(wrong[0].encode("utf-8", "surrogateescape"))


def _json_lines(path: Path, source: str) -> Table:
    content = _without_mark(path.read_bytes(), source)
    rows: list[tuple[int, dict[str, Any]]] = []
    lines = _Lines(source, {})
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode())
        except UnicodeDecodeError as error:
            lines.refuse(number, _not_utf8(line[error.start : error.start + 1]))
        except (ValueError, RecursionError) as error:
            lines.refuse(number, f"is not valid JSON ({first_line(error)})")
        else:
            if isinstance(row, dict):
                rows.append((number, row))
            else:
                lines.refuse(number, 'is not a JSON object, such as {"text": "...", "label": "..."}')
    lines.columns = {name: [] for _, row in rows for name in row}
    for number, row in rows:
        lines.add(number, row)
    return lines.table(path, content)


def _plain_lines(path: Path, source: str) -> Table:
    content = _without_mark(path.read_bytes(), source)
    lines = _Lines(source, {"text": []})
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            lines.add(number, {"text": line.decode()})
        except UnicodeDecodeError as error:
            lines.refuse(number, _not_utf8(line[error.start : error.start + 1]))
    return lines.table(path, content)


#: How the files are read whose names end so.
FORMATS: Mapping[str, Callable[[Path, str], Table]] = {
    ".parquet": parquet_table,
    ".csv": _csv,
    ".tsv": _csv,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_lines,
    ".txt": _plain_lines,
}


def _without_mark(content: bytes, source: str) -> bytes:
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{source} is written in UTF-16; save it as UTF-8.")
    return content.removeprefix(codecs.BOM_UTF8)


def _not_utf8(byte: bytes) -> str:
    return f"is not UTF-8 (it holds the byte 0x{byte.hex()}); save the file as UTF-8"
