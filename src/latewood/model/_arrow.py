"""Arrow's tables: parquet files, and data sets of the ``datasets`` library."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from latewood.core.errors import DataError
from latewood.model._table import Holds, Table
from latewood.parts.pretrained import first_line

#: Rows of a parquet file that are decoded at once: of images, some megabytes.
_BATCH = 256
#: The width of the window through which a column of a parquet file is read, in bytes.
_WINDOW = 1 << 20


def dataset_table(dataset: Any, source: str) -> Table:
    """A ``Dataset`` of the ``datasets`` library. Its images may be files outside the rows, which the library put there."""

    def read(column: str, rows: range) -> list[Any]:
        table = dataset.select_columns([column]).with_format("arrow")[rows.start : rows.stop]
        return [_place(cell) for cell in table.column(column).to_pylist()]

    columns, names = _described(dataset.features.arrow_schema)
    return Table(source, columns, len(dataset), read, _rows_of(source), lambda: str(dataset._fingerprint), names)


def _rows_of(source: str) -> Callable[[int], str]:
    return lambda row: f"row {row} of {source}"


def _place(cell: Any) -> Any:
    encoded = cell.get("bytes") if isinstance(cell, Mapping) else None
    return Path(cell["path"]) if isinstance(cell, Mapping) and encoded is None and cell.get("path") else cell


def parquet_table(path: Path, source: str) -> Table:
    """A parquet file, of which never more than some rows are in memory.

    Errors: :class:`~latewood.core.errors.DataError` if it is none.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            schema, length = file.schema_arrow, file.metadata.num_rows
    except pa.ArrowException as error:
        raise DataError(f"{source} cannot be read as a parquet file: {first_line(error)}.") from error
    columns, names = _described(schema)
    cells = {name: _ParquetColumn(path, name, source) for name in columns}
    return Table(
        source,
        columns,
        length,
        lambda column, rows: cells[column].read(rows),
        _rows_of(source),
        lambda: digest_of_file(path),
        names,
        path.parent,
    )


class _Piece(NamedTuple):
    """Neighbouring cells as an Arrow array, and the row at which their row group ends."""

    rows: range
    end_of_group: int
    cells: Any


class _ParquetColumn:
    """Cells of one column, decoded as they are asked for. Going on is cheap; going back starts again at a row group."""

    def __init__(self, path: Path, column: str, source: str) -> None:
        self._path, self._column, self._source = path, column, source
        self._lock = Lock()
        self._pieces: Iterator[_Piece] = iter(())
        self._piece = _Piece(range(0), 0, None)

    def read(self, rows: range) -> list[Any]:
        import pyarrow as pa

        cells: list[Any] = []
        try:
            with self._lock:
                while row := range(rows.start + len(cells), rows.stop):
                    piece = self._with(row.start)
                    cells += piece.cells.slice(row.start - piece.rows.start, len(row)).to_pylist()
        except (OSError, pa.ArrowException) as error:
            self._piece = _Piece(range(0), 0, None)
            raise DataError(f"{self._source} cannot be read from row {rows.start} on: {first_line(error)}.") from error
        except StopIteration:
            raise DataError(f"{self._source} was changed while it was read; start again.") from None
        return cells

    def _with(self, row: int) -> _Piece:
        if not self._piece.rows.start <= row < self._piece.end_of_group:
            self._pieces = self._decoded(row)
            self._piece = next(self._pieces)
        while row not in self._piece.rows:
            self._piece = next(self._pieces)
        return self._piece

    def _decoded(self, row: int) -> Iterator[_Piece]:
        """All pieces from the row group on that holds ``row``."""
        from pyarrow import parquet

        with parquet.ParquetFile(self._path, buffer_size=_WINDOW, page_checksum_verification=True) as file:
            start = 0
            for group in range(file.num_row_groups):
                end = start + file.metadata.row_group(group).num_rows
                if row < end:
                    for batch in file.iter_batches(_BATCH, row_groups=[group], columns=[self._column]):
                        yield _Piece(range(start, start + len(batch)), end, batch.column(self._column))
                        start += len(batch)
                start = end


def _described(schema: Any) -> tuple[dict[str, Holds], dict[str, tuple[str, ...]]]:
    """What each column holds, and the names of classes that the hub's metadata gives to integers."""
    told = _features(schema)
    columns = {column.name: _holds(column.type, told.get(column.name, {}).get("_type")) for column in schema}
    names = {name: feature.get("names") for name, feature in told.items() if name in columns}
    return columns, {name: tuple(map(str, classes)) for name, classes in names.items() if isinstance(classes, list)}


def _features(schema: Any) -> dict[str, Any]:
    try:
        told = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in told.items() if isinstance(feature, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _holds(kind: Any, feature: str | None) -> Holds:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return "text"
    if types.is_binary(kind) or types.is_large_binary(kind):
        return "bytes"
    image = types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and feature in (None, "Image")
    return "images" if image else "other"


def digest_of_file(path: Path) -> str:
    """A hash of the bytes of a file."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
