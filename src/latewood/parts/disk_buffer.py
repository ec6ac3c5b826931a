"""A replay buffer on disk: every row that passed, or a uniform sample of them, drawn from at random.

Rows lie in files, each with its slot and a checksum, and are read one by one where they lie: memory does not grow with the
buffer. What a saved state refers to is never overwritten before that state is released, so training goes on from a
checkpoint however far it had come since.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latewood.core.errors import CheckpointError, ConfigurationError, DataError, StorageError
from latewood.core.files import is_temporary, lock, remove_files, sweep_temporaries, unlock, write_atomically

FORMAT = 1

_HEADER, _FOLDED = "buffer.json", "folded.json"
_DTYPES = {torch.uint8: "u1", torch.int8: "i1", torch.int16: "<i2", torch.int32: "<i4", torch.int64: "<i8"}
#: Bytes that are copied at once when changes are put in their place.
_CHUNK = 1 << 22

Records = NDArray[Any]


class DiskBuffer:
    """Rows of one shape and integer type, kept in ``folder``.

    Without ``capacity`` every row stays. With it the rows are a uniform sample of all that passed, of at most
    ``capacity`` rows: row number ``n`` replaces a random one with probability ``capacity / n`` (Vitter, 1985, algorithm
    R). A file holds ``file_rows`` rows, and at most ``open_files`` of them are open at once. One process at a time works
    in a folder.

    :meth:`state` makes what was added durable and tells what a checkpoint must hold; :meth:`load_state` goes back to
    it, whatever was added since, and whether or not the process died while it was. Nothing on disk changes until the
    next :meth:`add`. Of a folder that holds rows from before, say which: :meth:`load_state`, or :meth:`clear` to begin anew.
    With ``capacity``, rows that replace others are kept beside them, in a file of changes for each state, until
    :meth:`release` says that an older state is not needed any more; until then memory holds about 200 bytes for each.

    Errors: :class:`~latewood.core.errors.CheckpointError` if the folder holds anything else, or another kind of rows;
    :class:`~latewood.core.errors.StorageError` if another process works in it, or it can't be written.

    >>> import tempfile
    >>> folder, chance = Path(tempfile.mkdtemp()), torch.Generator().manual_seed(0)
    >>> with DiskBuffer(folder, row_shape=(4,)) as buffer:
    ...     buffer.add(torch.arange(12, dtype=torch.int32).view(3, 4))
    ...     state = buffer.state()
    ...     buffer.add(torch.zeros(9, 4, dtype=torch.int32))
    >>> with DiskBuffer(folder, row_shape=(4,)) as buffer:
    ...     buffer.load_state(state)
    ...     len(buffer), buffer.draw(2, chance).shape, buffer.read([2])
    (3, torch.Size([2, 4]), tensor([[ 8,  9, 10, 11]], dtype=torch.int32))
    """

    def __init__(
        self,
        folder: str | Path,
        row_shape: Sequence[int],
        dtype: torch.dtype = torch.int32,
        *,
        file_rows: int = 2000,
        capacity: int | None = None,
        open_files: int = 64,
    ) -> None:
        _check_settings(row_shape, dtype, {"file_rows": file_rows, "capacity": capacity, "open_files": open_files})
        self.folder, self.row_shape, self.dtype = Path(folder), tuple(row_shape), dtype
        self.file_rows, self.capacity = file_rows, capacity
        # The slot is part of what the checksum covers: a row that lies in a wrong place is found as well as a damaged one.
        self._record = np.dtype([("slot", "<i8"), ("row", _DTYPES[dtype], self.row_shape), ("check", "<u4")])
        self._files = _Files(self._record, open_files)
        self._lock = lock(self._header())
        sweep_temporaries(self.folder)
        self._now = _Content()
        self._chosen = not any(self.folder.glob("rows-*.bin"))
        #: Whether nothing lies on disk beyond what belongs to the content.
        self._trimmed = False

    def __len__(self) -> int:
        """The rows held now."""
        return self._now.rows

    @property
    def seen(self) -> int:
        """The rows that passed so far."""
        return self._now.seen

    def add(self, rows: Tensor, generator: torch.Generator | None = None) -> None:
        """Let rows ``(n, *row_shape)`` pass, one after the other; with ``capacity``, ``generator`` decides which stay.

        It happens as a whole or not at all. Errors: :class:`~latewood.core.errors.DataError` for rows of another shape
        or type; :class:`~latewood.core.errors.StorageError` if they can't be written, on a full disk for instance: the
        buffer and the generator are then as before, and the same call may be made again.
        """
        if tuple(rows.shape[1:]) != self.row_shape or rows.dtype != self.dtype or not rows.dim():
            raise DataError(
                f"The buffer {self.folder} takes {_name(self.dtype)} rows of shape {self.row_shape}, but these are "
                f"{_name(rows.dtype)} of shape {tuple(rows.shape[1:])}."
            )
        self._require_choice()
        self._trim()
        before = generator.get_state() if generator is not None else None
        try:
            self._keep(self._slots(len(rows), generator), rows)
        except StorageError:
            if generator is not None and before is not None:
                generator.set_state(before)
            raise
        self._now.seen += len(rows)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """``count`` rows, each drawn uniformly from all, so a row may come twice; ``(count, *row_shape)``.

        Errors: :class:`~latewood.core.errors.DataError` if the buffer is empty.
        """
        self._require_choice()
        if not len(self):
            raise DataError(f"The buffer {self.folder} is empty; add rows before drawing.")
        return self.read(torch.randint(len(self), (count,), generator=generator))

    def read(self, slots: Tensor | Sequence[int]) -> Tensor:
        """The rows in these slots, ``(n, *row_shape)``. Without ``capacity`` the slot of a row is its number, from 0.

        Errors: :class:`~latewood.core.errors.DataError` for a slot that holds no row;
        :class:`~latewood.core.errors.CheckpointError` if a row is not there, or not as it was written.
        """
        self._require_choice()
        wanted = slots.tolist() if isinstance(slots, Tensor) else list(slots)
        if wanted and not (min(wanted) >= 0 and max(wanted) < len(self)):
            raise DataError(f"The slots of the buffer {self.folder} count from 0 to {len(self) - 1}, but one asked for is not.")
        places = sorted((*self._place(slot, self._now), row) for row, slot in enumerate(wanted))
        records = np.empty(len(wanted), self._record)
        for path, index, row in places:
            self._files.read(path, index, records[row : row + 1])
            _verify(records[row : row + 1], path, [wanted[row]])
        return torch.from_numpy(records["row"].astype(self._record["row"].base.newbyteorder("=")))

    def state(self) -> dict[str, Any]:
        """Flush all rows to the disk, and tell what is needed to come back to them, in a form that JSON can hold.

        Errors: :class:`~latewood.core.errors.StorageError` if they can't be flushed.
        """
        self._require_choice()
        now = self._now
        self._files.flush(self.folder)
        if now.fresh:
            now.change += 1
            now.changes[now.change] = len(now.fresh)
            now.moved |= {slot: (now.change, index) for slot, index in now.fresh.items()}
            now.fresh = {}
        now.settled = now.rows
        changes = {str(number): rows for number, rows in now.changes.items()}
        return {"rows": now.rows, "seen": now.seen, "change": now.change, "changes": changes, "last": self._last(now)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go back to where :meth:`state` was taken.

        Errors: :class:`~latewood.core.errors.CheckpointError` if the state is older than one released, or files are
        missing, too short, or not those that it belongs to; the buffer then stays as it is.
        """
        content = _Content.parse(state, self.capacity)
        if content.change < (folded := self._folded()):
            raise CheckpointError(
                f"This state of the buffer {self.folder} is older than one that was released, so rows of it are overwritten; "
                "take a newer one."
            )
        for number in range(math.ceil(content.rows / self.file_rows)):
            needed = min(self.file_rows, content.rows - number * self.file_rows)
            self._files.require(self._rows(number), needed)
        for number, rows in list(content.changes.items()):
            if number <= folded and not self._changes(number).exists():
                del content.changes[number]  # in its place already
                continue
            self._files.require(self._changes(number), rows)
            for start, records in self._files.chunks(self._changes(number), rows):
                _verify(records, self._changes(number))
                content.moved |= {slot: (number, start + i) for i, slot in enumerate(records["slot"].tolist())}
        if self._last(content) != state.get("last"):
            raise CheckpointError(
                f"This state belongs to another buffer than {self.folder}: its last row is not the one there."
            )
        self._now, self._chosen, self._trimmed = content, True, False

    def clear(self) -> None:
        """Begin anew: no row is held any more. What lies on disk goes with the next :meth:`add`."""
        self._now, self._chosen, self._trimmed = _Content(), True, False

    def release(self, state: Mapping[str, Any]) -> None:
        """No state older than ``state`` will be loaded again: what was kept for them goes. Without ``capacity`` there is none.

        Errors: :class:`~latewood.core.errors.CheckpointError` if the state is none of this buffer;
        :class:`~latewood.core.errors.StorageError` if the disk fails; the buffer is whole then, and it may be called again.
        """
        target = _Content.parse(state, self.capacity).change
        if target > self._now.change:
            raise CheckpointError(f"The buffer {self.folder} can't release a state that is newer than its own.")
        due = sorted(number for number in self._now.changes if number <= target)
        if due and target > self._folded():
            # Before any row is overwritten, so that an older state is refused from here on.
            write_atomically(self.folder / _FOLDED, json.dumps({"folded": target}))
        for number in due:
            self._fold(number)

    def close(self) -> None:
        """Let other processes in. What was added since the last :meth:`state` may be lost with a power cut."""
        self._files.close()
        unlock(self._lock)

    def __enter__(self) -> DiskBuffer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # Where things lie

    def _rows(self, number: int) -> Path:
        return self.folder / f"rows-{number:06d}.bin"

    def _changes(self, number: int) -> Path:
        return self.folder / f"changes-{number:06d}.bin"

    def _place(self, slot: int, now: _Content) -> tuple[Path, int]:
        """The file that holds a slot's row, and the number of the record in it."""
        if slot in now.fresh:
            return self._changes(now.change + 1), now.fresh[slot]
        if slot in now.moved:
            number, index = now.moved[slot]
            return self._changes(number), index
        return self._home(slot)

    def _home(self, slot: int) -> tuple[Path, int]:
        return self._rows(slot // self.file_rows), slot % self.file_rows

    def _header(self) -> Path:
        """The file that says what is kept here, written if the folder is new."""
        path = self.folder / _HEADER
        facts = {"format": FORMAT, "dtype": _name(self.dtype), "row_shape": list(self.row_shape)}
        facts |= {"file_rows": self.file_rows, "capacity": self.capacity}
        if not path.exists():
            if self.folder.exists() and (not self.folder.is_dir() or any(not is_temporary(p) for p in self.folder.iterdir())):
                raise CheckpointError(f"{self.folder} holds files that are not a buffer's; choose an empty or a new folder.")
            write_atomically(path, json.dumps(facts, indent=1))
        found = _read_json(path)
        for name, value in facts.items():
            if found.get(name) != value:
                raise CheckpointError(
                    f"{self.folder} holds a buffer whose {name} is {found.get(name)} and not {value}; choose another folder."
                )
        return path

    def _folded(self) -> int:
        """The changes up to this number may be in their place."""
        path = self.folder / _FOLDED
        number = _read_json(path).get("folded") if path.exists() else 0
        if not isinstance(number, int):
            raise CheckpointError(f"{path} is damaged: it holds no number.")
        return number

    # What happens to them

    def _require_choice(self) -> None:
        if not self._chosen:
            raise CheckpointError(f"{self.folder} holds rows from before; load the state they belong to, or clear the buffer.")

    def _slots(self, count: int, generator: torch.Generator | None) -> dict[int, int]:
        """Which of ``count`` new rows goes to which slot."""
        now = self._now
        if self.capacity is None:
            return {now.rows + row: row for row in range(count)}
        if generator is None:
            raise ConfigurationError("A buffer with a capacity needs a generator that decides which rows stay.")
        room = min(count, self.capacity - now.rows)
        slots = {now.rows + row: row for row in range(room)}
        ordinals = torch.arange(now.seen + room + 1, now.seen + count + 1, dtype=torch.float64)
        chances = torch.rand(len(ordinals), generator=generator, dtype=torch.float64)
        drawn = (chances * ordinals).long().tolist()
        return slots | {slot: room + i for i, slot in enumerate(drawn) if slot < self.capacity}  # the last one wins

    def _keep(self, chosen: dict[int, int], rows: Tensor) -> None:
        """Write ``rows`` to their slots, those first that need room on the disk: while they may fail, nothing is lost."""
        now, slots = self._now, sorted(chosen)
        records = np.empty(len(slots), self._record)
        records["slot"] = slots
        records["row"] = rows.detach().cpu().numpy()[[chosen[slot] for slot in slots]]
        _seal(records)
        fresh: dict[int, int] = {}
        places = []
        for i, slot in enumerate(slots):
            # A slot that the newest state refers to keeps its row; a newer one is written beside it.
            if slot < now.settled and slot not in now.fresh:
                fresh[slot] = len(now.fresh) + len(fresh)
                places.append((False, self._changes(now.change + 1), fresh[slot], i))
            elif slot < now.settled:
                places.append((True, *self._place(slot, now), i))
            else:
                places.append((slot < now.rows, *self._home(slot), i))
        for path, index, run in _runs(sorted(places)):
            self._files.write(path, index, records[run])
        now.fresh |= fresh
        now.rows = max(now.rows, slots[-1] + 1) if slots else now.rows

    def _trim(self) -> None:
        """Remove what lies on disk beyond the content."""
        if self._trimmed:
            return
        now = self._now
        if not now.change:
            remove_files([self.folder / _FOLDED])
        for path in self.folder.glob("changes-*.bin"):
            if path not in map(self._changes, now.changes):
                self._files.remove(path)
        full, rest = divmod(now.rows, self.file_rows)
        kept = {self._rows(number): self.file_rows for number in range(full)} | ({self._rows(full): rest} if rest else {})
        for path in self.folder.glob("rows-*.bin"):
            if path not in kept:
                self._files.remove(path)
        for path, rows in kept.items():
            self._files.truncate(path, rows)
        self._trimmed = True

    def _fold(self, number: int) -> None:
        """Put a file of changes in its place. Done twice it does the same, so it may be broken off anywhere."""
        now, path = self._now, self._changes(number)
        for _, records in self._files.chunks(path, now.changes[number]):
            _verify(records, path)
            places = [(True, *self._home(int(slot)), i) for i, slot in enumerate(records["slot"])]
            for home, index, run in _runs(sorted(places)):
                self._files.write(home, index, records[run])
        self._files.flush(self.folder)
        now.moved = {slot: place for slot, place in now.moved.items() if place[0] != number}
        del now.changes[number]
        self._files.remove(path)

    def _last(self, content: _Content) -> int | None:
        """The checksum of the row in the last slot: another buffer's would hardly be the same."""
        if not content.rows:
            return None
        record, slot = np.empty(1, self._record), content.rows - 1
        path, index = self._place(slot, content)
        self._files.read(path, index, record)
        _verify(record, path, [slot])
        return int(record["check"][0])


@dataclass
class _Content:
    """What a buffer holds, and where it does not lie at home."""

    rows: int = 0
    seen: int = 0
    #: The number of the newest closed file of changes, and the records in each that is not in its place yet.
    change: int = 0
    changes: dict[int, int] = field(default_factory=dict)
    #: For each slot in a closed file of changes the numbers of the file and of the record; in the open file, of the record.
    moved: dict[int, tuple[int, int]] = field(default_factory=dict)
    fresh: dict[int, int] = field(default_factory=dict)
    #: The slots below this are what a state refers to.
    settled: int = 0

    @classmethod
    def parse(cls, state: Mapping[str, Any], capacity: int | None) -> _Content:
        try:
            changes = {int(number): int(rows) for number, rows in sorted(state["changes"].items(), key=lambda c: int(c[0]))}
            content = cls(int(state["rows"]), int(state["seen"]), int(state["change"]), changes, settled=int(state["rows"]))
        except (KeyError, TypeError, ValueError, AttributeError):
            raise CheckpointError("This is no state of a buffer; take what state() of a buffer gave.") from None
        held = content.seen if capacity is None else min(content.seen, capacity)
        numbers = (content.rows, content.change, *changes, *changes.values())
        if content.rows != held or min(numbers) < 0 or max(changes, default=0) > content.change:
            raise CheckpointError("The state of the buffer is damaged, or of one with another capacity; take the right one.")
        return content


class _Files:
    """Files of records: the ones used last stay open, and those written to are flushed together."""

    def __init__(self, record: np.dtype[Any], most: int) -> None:
        self._record, self._most = record, most
        self._open: dict[Path, FileIO] = {}
        self._dirty: set[Path] = set()

    def read(self, path: Path, index: int, out: Records) -> None:
        """Fill ``out`` with the records of a file from number ``index`` on."""
        memory = out.view(np.uint8).data
        try:
            handle, done = self._handle(path, "rb+"), 0
            handle.seek(index * self._record.itemsize)
            while done < len(memory):
                count = handle.readinto(memory[done:])
                if not count:
                    raise CheckpointError(f"{path} is damaged: it ends before row {index + len(out) - 1} of it.")
                done += count
        except OSError as error:
            raise CheckpointError(f"{path} can't be read: {error.strerror}.") from error

    def chunks(self, path: Path, count: int) -> Iterator[tuple[int, Records]]:
        """The first ``count`` records in pieces, each with the number of its first."""
        step = max(1, _CHUNK // self._record.itemsize)
        for start in range(0, count, step):
            records = np.empty(min(step, count - start), self._record)
            self.read(path, start, records)
            yield start, records

    def write(self, path: Path, index: int, records: Records) -> None:
        with _writing(path):
            _write(self._handle(path, "rb+" if path.exists() else "xb+"), index * self._record.itemsize, records.tobytes())
            self._dirty.add(path)

    def require(self, path: Path, count: int) -> None:
        """Make sure that a file holds so many records."""
        found = path.stat().st_size // self._record.itemsize if path.exists() else 0
        if found < count:
            raise CheckpointError(f"{path} holds {found} rows, but the state of the buffer needs {count} of it.")

    def truncate(self, path: Path, count: int) -> None:
        with _writing(path):
            handle = self._handle(path, "rb+")
            if os.fstat(handle.fileno()).st_size != count * self._record.itemsize:
                handle.truncate(count * self._record.itemsize)
                self._dirty.add(path)

    def remove(self, path: Path) -> None:
        if path in self._open:
            self._open.pop(path).close()
        self._dirty.discard(path)
        remove_files([path])

    def flush(self, folder: Path) -> None:
        """Write all to the disk itself; names of new files too."""
        for path in sorted(self._dirty):
            with _writing(path):
                os.fsync(self._handle(path, "rb+").fileno())
        if self._dirty:
            with _writing(folder):
                _flush_folder(folder)
        self._dirty.clear()

    def close(self) -> None:
        for handle in self._open.values():
            handle.close()
        self._open.clear()

    def _handle(self, path: Path, mode: str) -> FileIO:
        handle = self._open.pop(path, None)
        if handle is None:
            handle = FileIO(path, mode)
        self._open[path] = handle  # the last is the newest
        while len(self._open) > self._most:
            self._open.pop(next(iter(self._open))).close()
        return handle


def _write(handle: FileIO, position: int, content: bytes) -> None:
    memory = memoryview(content)
    handle.seek(position)
    while memory:  # on a disk that is nearly full a part may be written
        memory = memory[handle.write(memory) :]


def _flush_folder(folder: Path) -> None:
    with suppress(PermissionError):  # Windows opens no folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"Could not write {path}: {error.strerror}. What was saved before is untouched.") from error


def _runs(places: list[tuple[bool, Path, int, int]]) -> Iterator[tuple[Path, int, list[int]]]:
    """Neighbouring records of one file together: the file, the number of the first, and which of the records they are."""
    start = 0
    for end in range(1, len(places) + 1):
        last = places[end - 1]
        if end == len(places) or places[end][:2] != last[:2] or places[end][2] != last[2] + 1:
            _, path, index, _ = places[start]
            yield path, index, [place[3] for place in places[start:end]]
            start = end


def _checks(records: Records) -> list[int]:
    size = records.dtype.itemsize
    content = memoryview(records.tobytes())
    return [zlib.crc32(content[i * size : (i + 1) * size - 4]) for i in range(len(records))]


def _seal(records: Records) -> None:
    records["check"] = _checks(records)


def _verify(records: Records, path: Path, slots: Sequence[int] | None = None) -> None:
    """Make sure that records are as they were written, and in these slots."""
    found, wanted = records["slot"].tolist(), slots if slots is not None else records["slot"].tolist()
    for slot, right, check, computed in zip(found, wanted, records["check"].tolist(), _checks(records), strict=True):
        if check != computed or slot != right:
            raise CheckpointError(f"{path} is damaged: row {right} of the buffer is not what was written there.")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}).") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is damaged: it holds no facts.")
    return found


def _check_settings(row_shape: Sequence[int], dtype: torch.dtype, sizes: Mapping[str, int | None]) -> None:
    if dtype not in _DTYPES:
        raise ConfigurationError(f"A buffer keeps rows of {', '.join(map(_name, _DTYPES))}, but not of {_name(dtype)}.")
    if any(size < 1 for size in row_shape):
        raise ConfigurationError(f"Each size of a row must be at least 1, but its shape is {tuple(row_shape)}.")
    for name, value in sizes.items():
        if value is not None and value < 1:
            raise ConfigurationError(f"The {name} of a buffer must be at least 1, but it is {value}.")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
