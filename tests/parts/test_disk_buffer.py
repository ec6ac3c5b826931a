"""The buffer on disk: what it holds, what it draws, and that no crash, full disk or damage is ever passed over."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from torch import Tensor

from latewood.core.data import Data
from latewood.core.errors import CheckpointError, ConfigurationError, DataError, StorageError
from latewood.parts import disk_buffer
from latewood.parts.disk_buffer import DiskBuffer
from latewood.parts.memory import Reservoir

SHAPE = (3,)


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def numbered(start: int, stop: int) -> Tensor:
    """Rows that know their number."""
    numbers = torch.arange(start, stop, dtype=torch.int32)
    return torch.stack([numbers, -numbers, numbers * 7], dim=1)


def contents(buffer: DiskBuffer) -> list[int]:
    """The numbers of the rows held, slot by slot; each row must be whole."""
    rows = buffer.read(range(len(buffer)))
    assert torch.equal(rows, torch.stack([rows[:, 0], -rows[:, 0], rows[:, 0] * 7], dim=1))
    return [int(number) for number in rows[:, 0]]


def make(folder: Path, capacity: int | None = None, **options: Any) -> DiskBuffer:
    return DiskBuffer(folder, SHAPE, file_rows=4, capacity=capacity, **{"open_files": 2, **options})


@pytest.fixture
def unflushed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process has handed to the system outlives it; flushing is for power cuts, and takes its time."""

    def flush(handle: int) -> None:
        os.fstat(handle)

    monkeypatch.setattr(os, "fsync", flush)


# What it holds


@given(st.lists(st.integers(0, 11), max_size=8), st.integers(1, 9), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_without_a_capacity_it_holds_the_stream(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], file_rows: int, open_files: int
) -> None:
    with DiskBuffer(tmp_path_factory.mktemp("b") / "x", SHAPE, file_rows=file_rows, open_files=open_files) as buffer:
        total = 0
        for count in counts:
            buffer.add(numbered(total, total + count))
            total += count
            assert len(buffer) == buffer.seen == total
            assert contents(buffer) == list(range(total))


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [(torch.uint8, (2, 4, 4)), (torch.int8, (5,)), (torch.int16, ()), (torch.int32, (2048,)), (torch.int64, (1, 3))],
)
def test_rows_of_every_integer_type_and_shape_come_back(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    limits = torch.iinfo(dtype)
    rows = torch.randint(limits.min, limits.max, (7, *shape), generator=seed(0), dtype=dtype)
    rows[0], rows[1] = limits.min, limits.max
    with DiskBuffer(tmp_path / "b", shape, dtype, file_rows=3) as buffer:
        buffer.add(rows)
        found = buffer.read(torch.tensor([6, 0, 1, 3, 3]))
    assert found.dtype == dtype
    assert found.is_contiguous()
    assert torch.equal(found, rows[[6, 0, 1, 3, 3]])


def test_a_view_with_strides_is_stored_as_what_it_shows(tmp_path: Path) -> None:
    rows = numbered(0, 12)
    with make(tmp_path / "b") as buffer:
        buffer.add(rows[::3])
        assert torch.equal(buffer.read(range(4)), rows[::3])


def test_rows_of_another_shape_or_type_are_refused_and_nothing_is_added(tmp_path: Path) -> None:
    with make(tmp_path / "b") as buffer:
        for rows in (
            torch.zeros(2, 4, dtype=torch.int32),
            torch.zeros(2, 3, dtype=torch.int64),
            torch.zeros(3, dtype=torch.int32),
        ):
            with pytest.raises(DataError, match=r"takes int32 rows of shape \(3,\)"):
                buffer.add(rows)
        assert len(buffer) == 0


# What it draws


def test_draws_are_uniform_and_every_file_is_drawn_from(tmp_path: Path) -> None:
    with make(tmp_path / "b") as buffer:
        buffer.add(numbered(0, 30))
        counts = Counter(buffer.draw(6000, seed(1))[:, 0].tolist())
    assert set(counts) == set(range(30))
    statistic = sum((counts[row] - 200) ** 2 / 200 for row in range(30))
    assert statistic < chi2.isf(0.01, 29)


def test_a_batch_comes_from_several_files(tmp_path: Path) -> None:
    with make(tmp_path / "b") as buffer:
        buffer.add(numbered(0, 400))
        files = {int(row) // 4 for row in buffer.draw(16, seed(0))[:, 0]}
    assert len(files) > 10


@pytest.mark.parametrize("capacity", [None, 9])
def test_draws_are_the_same_after_saving_and_loading(tmp_path: Path, capacity: int | None) -> None:
    with make(tmp_path / "b", capacity) as buffer:
        for start in range(0, 60, 5):
            buffer.add(numbered(start, start + 5), seed(start))
            if start % 20 == 0:
                buffer.state()
        state = json.loads(json.dumps(buffer.state()))
        drawn = buffer.draw(50, seed(3))
    with make(tmp_path / "b", capacity) as buffer:
        buffer.load_state(state)
        assert torch.equal(buffer.draw(50, seed(3)), drawn)


def test_slots_that_hold_no_row_are_never_read(tmp_path: Path) -> None:
    with make(tmp_path / "b") as buffer:
        with pytest.raises(DataError, match="is empty"):
            buffer.draw(1, seed(0))
        buffer.add(numbered(0, 2))
        state = buffer.state()
        buffer.add(numbered(2, 100))
        buffer.load_state(state)
        assert set(buffer.draw(200, seed(0))[:, 0].tolist()) == {0, 1}
        for slot in (2, -1):
            with pytest.raises(DataError, match="count from 0 to 1"):
                buffer.read([slot])


def test_memory_and_open_files_do_not_grow_with_the_buffer(tmp_path: Path) -> None:
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc to see the memory of this process")

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    with DiskBuffer(tmp_path / "b", (2048,), file_rows=100, open_files=4) as buffer:
        rows = torch.randint(32000, (100, 2048), generator=seed(0), dtype=torch.int32)
        buffer.add(rows)
        buffer.draw(16, seed(0))
        before = resident()
        for _ in range(79):  # 64 MB
            buffer.add(rows)
        buffer.state()
        for number in range(300):
            buffer.draw(16, seed(number))
        assert resident() - before < 6_000_000
        names = [str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.exists()]
        assert len([name for name in names if str(tmp_path) in name and name.endswith(".bin")]) <= 4


# A uniform sample


@pytest.mark.usefixtures("unflushed")
def test_with_a_capacity_it_holds_what_a_reservoir_in_memory_holds(tmp_path: Path) -> None:
    memory, ours, theirs, total = Reservoir(9), seed(5), seed(5), 0
    with make(tmp_path / "b", 9) as buffer:
        for number, count in enumerate([4, 1, 7, 3, 0, 12, 1, 1, 30, 2, 40]):
            rows = numbered(total, total + count)
            total += count
            buffer.add(rows, ours)
            if count:
                memory.add(Data(row=rows), theirs)
            if number % 3 == 2:
                buffer.state()
            assert torch.equal(buffer.read(range(len(buffer))), memory.data["row"])
            assert buffer.seen == total


@pytest.mark.usefixtures("unflushed")
def test_every_row_is_kept_with_the_same_probability(tmp_path: Path) -> None:
    rows, slots, trials = 20, 5, 1000
    counts, chance, stream = Counter[int](), seed(0), numbered(0, rows)
    with make(tmp_path / "b", slots) as buffer:
        for _ in range(trials):
            buffer.clear()
            for start, stop in ((0, 3), (3, 8), (8, 9), (9, 20)):
                buffer.add(stream[start:stop], chance)
            counts.update(contents(buffer))
    assert sum(counts.values()) == trials * slots
    share = slots / rows
    variance = trials * share * (1 - share) * rows / (rows - 1)
    statistic = sum((counts[row] - trials * share) ** 2 for row in range(rows)) / variance
    assert statistic < chi2.isf(0.01, rows - 1)


def test_a_capacity_needs_a_generator(tmp_path: Path) -> None:
    with make(tmp_path / "b", 9) as buffer, pytest.raises(ConfigurationError, match="needs a generator"):
        buffer.add(numbered(0, 1))


@pytest.mark.usefixtures("unflushed")
def test_disk_use_stays_within_bounds_where_states_are_released(tmp_path: Path) -> None:
    chance, states = seed(0), list[dict[str, Any]]()
    with make(tmp_path / "b", 20) as buffer:
        for start in range(0, 4000, 20):
            buffer.add(numbered(start, start + 20), chance)
            states.append(buffer.state())
            buffer.release(states[max(0, len(states) - 2)])
            assert len(list(buffer.folder.glob("changes-*"))) <= 1
    assert sum(file.stat().st_size for file in (tmp_path / "b").iterdir()) < 2 * 20 * 24 + 2000


# States and crashes

STEPS, BATCH, EVERY = 16, 4, 3


def live(folder: Path, saved: Path, capacity: int | None, first: int, release: bool) -> list[int]:
    """A run that saves its state every few steps, and goes on from ``first``; what the buffer holds after each step."""
    history = []
    with make(folder, capacity) as buffer:
        states = json.loads(saved.read_text()) if saved.exists() else []
        states = states[: first // EVERY]
        if states:
            buffer.load_state(states[-1])
        else:
            buffer.clear()
        for step in range(first, STEPS):
            buffer.add(numbered(step * BATCH, (step + 1) * BATCH), seed(step))
            history.append(hash(tuple(contents(buffer))))
            if (step + 1) % EVERY == 0:
                states.append(buffer.state())
                temporary = saved.with_suffix(".new")
                temporary.write_text(json.dumps(states))
                temporary.replace(saved)
                if release and len(states) >= 2:
                    buffer.release(states[-2])
        history.append(hash(tuple(buffer.draw(40, seed(9))[:, 0].tolist())))
    return history


def whole(tmp_path: Path, capacity: int | None) -> list[int]:
    return live(tmp_path / "whole", tmp_path / "whole.json", capacity, 0, False)


CAPACITIES = pytest.mark.parametrize("capacity", [None, 10, 31])
DEATHS: list[tuple[Any, str]] = [
    (disk_buffer, "_write"),
    (disk_buffer._Files, "truncate"),
    (disk_buffer._Files, "flush"),
    (disk_buffer, "remove_files"),
    (disk_buffer, "write_atomically"),
    (os, "fsync"),
]


def half_written(handle: Any, position: int, content: bytes) -> None:
    handle.seek(position)
    handle.write(content[: len(content) // 2])


def dying(original: Callable[..., Any], nth: int) -> Callable[..., Any]:
    """``original``, but at its ``nth`` call the process dies in the midst of it."""
    count = [0]

    def call(*arguments: Any, **named: Any) -> Any:
        count[0] += 1
        if count[0] == nth:
            if original.__name__ == "_write":
                half_written(*arguments)
            os._exit(9)
        return original(*arguments, **named)

    return call


@pytest.mark.usefixtures("unflushed")
@CAPACITIES
@pytest.mark.parametrize("release", [False, True])
@pytest.mark.parametrize(("owner", "name"), DEATHS, ids=[name for _, name in DEATHS])
def test_a_process_that_dies_at_any_call_goes_on_as_if_it_had_not(
    tmp_path: Path, capacity: int | None, release: bool, owner: Any, name: str
) -> None:
    expected, saved = whole(tmp_path, capacity), tmp_path / "saved.json"
    for nth in (1, 2, 3, 4, 6, 9, 13, 18, 26, 38, 55, 80, 120, 200):
        shutil.rmtree(tmp_path / "b", ignore_errors=True)
        saved.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            try:
                setattr(owner, name, dying(getattr(owner, name), nth))
                live(tmp_path / "b", saved, capacity, 0, release)
            finally:
                os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        first = len(json.loads(saved.read_text())) * EVERY if saved.exists() else 0
        assert live(tmp_path / "b", saved, capacity, first, release) == expected[first:]
        if status == 0:
            return
        assert status == 9
    raise AssertionError(f"{name} was still called at the 200th time")


@pytest.mark.usefixtures("unflushed")
@CAPACITIES
def test_a_process_killed_again_and_again_at_any_moment_ends_as_if_it_had_not_been(
    tmp_path: Path, capacity: int | None
) -> None:
    expected, saved = whole(tmp_path, capacity), tmp_path / "saved.json"
    delays = torch.rand(12, generator=seed(0)).mul(0.05).tolist()
    first = 0
    for delay in delays:
        child = os.fork()
        if child == 0:
            try:
                live(tmp_path / "b", saved, capacity, first, release=True)
            finally:
                os._exit(0)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        first = len(json.loads(saved.read_text())) * EVERY if saved.exists() else 0
    assert live(tmp_path / "b", saved, capacity, first, release=True) == expected[first:]


@pytest.mark.usefixtures("unflushed")
@CAPACITIES
def test_every_state_that_was_not_released_can_be_gone_back_to(tmp_path: Path, capacity: int | None) -> None:
    expected, saved = whole(tmp_path, capacity), tmp_path / "saved.json"
    for back in range(STEPS // EVERY):
        shutil.rmtree(tmp_path / "b", ignore_errors=True)
        saved.unlink(missing_ok=True)
        assert live(tmp_path / "b", saved, capacity, 0, release=False) == expected
        assert live(tmp_path / "b", saved, capacity, back * EVERY, release=False) == expected[back * EVERY :]


@pytest.mark.usefixtures("unflushed")
@CAPACITIES
def test_looking_at_an_old_state_changes_nothing_on_disk(tmp_path: Path, capacity: int | None) -> None:
    live(tmp_path / "b", tmp_path / "saved.json", capacity, 0, release=False)
    before = {file.name: file.read_bytes() for file in (tmp_path / "b").iterdir()}
    states = json.loads((tmp_path / "saved.json").read_text())
    with make(tmp_path / "b", capacity) as buffer:
        buffer.clear()
        for state in (*states, *reversed(states)):
            buffer.load_state(state)
            assert buffer.state() == state
            buffer.draw(5, seed(0))
    assert {file.name: file.read_bytes() for file in (tmp_path / "b").iterdir()} == before


def test_a_state_older_than_one_released_is_refused(tmp_path: Path) -> None:
    live(tmp_path / "b", tmp_path / "saved.json", 10, 0, release=True)
    states = json.loads((tmp_path / "saved.json").read_text())
    with make(tmp_path / "b", 10) as buffer:
        with pytest.raises(CheckpointError, match="older than one that was released"):
            buffer.load_state(states[-3])
        buffer.load_state(states[-2])
        with pytest.raises(CheckpointError, match="newer than its own"):
            buffer.release(states[-1])
        buffer.load_state(states[-1])
        kept = contents(buffer)
        buffer.release(states[-1])
        assert contents(buffer) == kept
        buffer.clear()
        buffer.add(numbered(0, 50), seed(0))
        assert len(buffer) == 10
        assert {file.name for file in buffer.folder.iterdir()} == {"buffer.json", *(f"rows-00000{n}.bin" for n in range(3))}
        buffer.load_state(buffer.state())  # a new beginning has states of its own


def test_what_lies_beyond_a_state_goes_with_the_first_row_that_is_added_to_it(tmp_path: Path) -> None:
    states, chance = [], seed(0)
    with make(tmp_path / "b", 10) as buffer:
        for start in range(0, 120, 20):
            buffer.add(numbered(start, start + 20), chance)
            states.append(buffer.state())
        buffer.load_state(states[2])
        assert len(list(buffer.folder.glob("changes-*"))) == states[-1]["change"] == 5
        buffer.add(numbered(0, 1), chance)
        assert len(list(buffer.folder.glob("changes-*"))) - len(states[2]["changes"]) in (0, 1)  # it may have been kept


def test_rows_from_before_are_neither_used_nor_lost_unless_one_says_so(tmp_path: Path) -> None:
    with make(tmp_path / "b") as buffer:
        buffer.add(numbered(0, 10))
        state = buffer.state()
    with make(tmp_path / "b") as buffer:
        for call in (
            lambda: buffer.add(numbered(0, 1)),
            lambda: buffer.draw(1, seed(0)),
            buffer.state,
            lambda: buffer.read([0]),
        ):
            with pytest.raises(CheckpointError, match="load the state they belong to, or clear"):
                call()
        buffer.clear()
        assert len(buffer) == 0
    with make(tmp_path / "b") as buffer:  # cleared, but nothing was added
        buffer.load_state(state)
        assert contents(buffer) == list(range(10))
        buffer.clear()
        buffer.add(numbered(70, 71))
        assert contents(buffer) == [70]
        assert sorted(file.name for file in buffer.folder.iterdir()) == ["buffer.json", "rows-000000.bin"]


@pytest.mark.parametrize("capacity", [None, 6])
def test_a_state_is_told_only_once_all_it_refers_to_is_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capacity: int | None
) -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc to see which file is flushed")
    flushed: set[str] = set()
    fsync = os.fsync

    def note(handle: int) -> None:
        flushed.add(Path(f"/proc/self/fd/{handle}").readlink().name)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", note)
    with make(tmp_path / "b", capacity) as buffer:
        for step in range(4):
            buffer.add(numbered(step * 5, step * 5 + 5), seed(step))
        flushed.clear()
        buffer.state()
        assert flushed == {"b", "rows-000000.bin", "rows-000001.bin"} | (
            {f"rows-00000{n}.bin" for n in range(5)} if not capacity else set()
        )
        flushed.clear()
        buffer.state()
        assert flushed == set()
        buffer.add(numbered(20, 60), seed(9))
        buffer.state()
        assert flushed >= ({"changes-000001.bin", "b"} if capacity else {"rows-000014.bin", "b"})


# Disks that do not take it


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KB."""
    place = tmp_path / "small"
    place.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small disk needs root")
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"mounting is not permitted here: {made.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("capacity", [None, 20_000])
def test_on_a_full_disk_nothing_is_lost_and_one_goes_on_once_there_is_room(small_disk: Path, capacity: int | None) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(bytes(150_000))
    chance, total, full = seed(0), 0, 0
    with DiskBuffer(small_disk / "b", SHAPE, file_rows=500, capacity=capacity) as buffer:
        state = buffer.state()
        while total < 20_000:
            rows = numbered(total, total + 300)
            try:
                buffer.add(rows, chance)
                total += 300
            except StorageError as error:
                assert "No space left on device" in str(error)
                assert "What was saved before is untouched" in str(error)
                full += 1
                assert len(buffer) == total
                assert contents(buffer) == list(range(total))
                state = buffer.state()
                if full > 1:
                    break
                filler.unlink()
    assert full == 2
    assert total > 6000
    with DiskBuffer(small_disk / "b", SHAPE, file_rows=500, capacity=capacity) as buffer:
        buffer.load_state(state)
        assert contents(buffer) == list(range(total))


@pytest.mark.parametrize("capacity", [None, 8])
@pytest.mark.parametrize(("code", "first"), [(errno.ENOSPC, 0), (errno.EDQUOT, 100), (errno.ENOSPC, 200), (errno.ENOSPC, 300)])
def test_a_disk_that_runs_full_at_any_write_changes_nothing_and_the_same_call_then_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capacity: int | None, code: int, first: int
) -> None:
    """Where there was a file already, no room is needed, so only what is appended can fail in this way."""
    written = disk_buffer._write

    def failing(handle: Any, position: int, content: bytes) -> None:
        if position + len(content) > os.fstat(handle.fileno()).st_size:
            half_written(handle, position, content)
            raise OSError(code, os.strerror(code))
        written(handle, position, content)

    chance, failures = seed(first), 0
    with make(tmp_path / "b", capacity) as buffer, make(tmp_path / "whole", capacity) as undisturbed:
        other = seed(first)
        for step in range(14):
            rows = numbered(step * 5, step * 5 + 5)
            before, state_before = contents(buffer), (len(buffer), buffer.seen)
            with monkeypatch.context() as patch:
                patch.setattr(disk_buffer, "_write", failing)
                try:
                    buffer.add(rows, chance)
                    failed = False
                except StorageError as error:
                    assert os.strerror(code) in str(error)
                    failed = True
            if failed:
                failures += 1
                assert contents(buffer) == before
                assert (len(buffer), buffer.seen) == state_before
                if step % 5 == 3:
                    buffer.load_state(buffer.state())
                buffer.add(rows, chance)
            undisturbed.add(rows, other)
            assert contents(buffer) == contents(undisturbed)
            if step % 2:
                buffer.state()
    assert failures > 3


def test_a_disk_that_cannot_flush_gives_no_state_until_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with make(tmp_path / "b", 6) as buffer:
        buffer.add(numbered(0, 20), seed(0))
        buffer.state()
        buffer.add(numbered(20, 60), seed(1))
        kept = contents(buffer)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(StorageError, match=r"Could not write .*: Input/output error"):
                buffer.state()
        state = buffer.state()
        assert contents(buffer) == kept
        buffer.load_state(state)
        assert contents(buffer) == kept


# Who works there


def test_a_second_process_is_kept_out_until_the_first_is_gone(tmp_path: Path) -> None:
    with make(tmp_path / "b") as buffer:
        buffer.add(numbered(0, 3))
        with pytest.raises(StorageError, match="Another process is working in"):
            make(tmp_path / "b")
    make(tmp_path / "b").close()


def test_a_process_that_died_keeps_nobody_out(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        make(tmp_path / "b").add(numbered(0, 3))
        os._exit(9)
    os.waitpid(child, 0)
    make(tmp_path / "b").close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"row_shape": (4,)}, r"row_shape is \[3\] and not \[4\]"),
        ({"dtype": torch.int64}, "dtype is int32 and not int64"),
        ({"capacity": 5}, "capacity is None and not 5"),
        ({"file_rows": 5}, "file_rows is 4 and not 5"),
    ],
)
def test_a_folder_of_another_buffer_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    make(tmp_path / "b").close()
    with pytest.raises(CheckpointError, match=words):
        DiskBuffer(tmp_path / "b", **{"row_shape": SHAPE, "file_rows": 4, **change})


def test_a_folder_with_other_files_and_a_file_are_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for place in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(CheckpointError, match="not a buffer's"):
            make(place)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"capacity": 0}, "capacity of a buffer must be at least 1"),
        ({"file_rows": 0}, "file_rows of a buffer"),
        ({"row_shape": (0,)}, "Each size of a row"),
        ({"dtype": torch.float32}, "but not of float32"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_a_folder_is_made(
    tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        DiskBuffer(tmp_path / "b", **{"row_shape": SHAPE, **options})
    assert not (tmp_path / "b").exists()


# Damage


@pytest.fixture
def filled(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A buffer of 9 of 60 rows, in its files and in two files of changes."""
    with make(tmp_path / "b", 9) as buffer:
        for start in range(0, 60, 20):
            buffer.add(numbered(start, start + 20), seed(start))
            state = buffer.state()
    assert len(state["changes"]) == 2
    return tmp_path / "b", state


@pytest.mark.usefixtures("unflushed")
def test_a_flipped_bit_anywhere_is_told_and_never_drawn(filled: tuple[Path, dict[str, Any]]) -> None:
    folder, state = filled
    found = 0
    for path in sorted(folder.glob("*.bin")):
        original = path.read_bytes()
        for position in range(0, len(original), 5):
            damaged = bytearray(original)
            damaged[position] ^= 1 << (position % 8)
            path.write_bytes(damaged)
            with make(folder, 9) as buffer:
                try:
                    buffer.load_state(state)
                    rows = buffer.read(range(9))
                except CheckpointError as error:
                    assert path.name in str(error)
                    assert "is damaged: row" in str(error)
                    found += 1
                else:  # a row that a change has replaced is read no more
                    assert path.name.startswith("rows")
                    assert torch.equal(rows[:, 1], -rows[:, 0])
        path.write_bytes(original)
    assert found > 20


def test_rows_that_lie_in_a_wrong_place_are_told(tmp_path: Path) -> None:
    with make(tmp_path / "b") as buffer:
        buffer.add(numbered(0, 8))
        state = buffer.state()
        path = tmp_path / "b" / "rows-000000.bin"
        content = path.read_bytes()
        path.write_bytes(content[24:48] + content[:24] + content[48:])
        buffer.load_state(state)
        with pytest.raises(CheckpointError, match=r"rows-000000\.bin is damaged: row [01] "):
            buffer.draw(50, seed(0))


@pytest.mark.parametrize("name", ["rows-000000.bin", "rows-000002.bin", "changes-000001.bin", "changes-000002.bin"])
def test_short_and_missing_files_are_told_and_the_buffer_stays_as_it_was(
    filled: tuple[Path, dict[str, Any]], name: str
) -> None:
    folder, state = filled
    original = (folder / name).read_bytes()
    for content in (original[:-1], b"", None):
        (folder / name).unlink(missing_ok=True)
        if content is not None:
            (folder / name).write_bytes(content)
        with make(folder, 9) as buffer:
            with pytest.raises(CheckpointError, match=rf"{name} holds \d rows, but the state of the buffer needs"):
                buffer.load_state(state)
            with pytest.raises(CheckpointError, match="load the state they belong to"):
                buffer.draw(1, seed(0))


def test_a_file_that_becomes_short_while_it_is_used_is_told(tmp_path: Path) -> None:
    with make(tmp_path / "b") as buffer:
        buffer.add(numbered(0, 8))
        os.truncate(tmp_path / "b" / "rows-000001.bin", 30)
        with pytest.raises(CheckpointError, match="it ends before row"):
            buffer.read([6])


def test_the_state_of_another_buffer_and_what_is_no_state_are_told(filled: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, state = filled
    with make(tmp_path / "other", 9) as other:
        for start in range(0, 60, 20):
            other.add(numbered(start + 1, start + 21), seed(start))
            foreign = other.state()
    with make(folder, 9) as buffer:
        with pytest.raises(CheckpointError, match="belongs to another buffer"):
            buffer.load_state(foreign)
        for wrong in ({}, {**state, "rows": None}, {**state, "changes": 3}, {**state, "changes": {"x": 1}}):
            with pytest.raises(CheckpointError, match="is no state of a buffer"):
                buffer.load_state(wrong)
        for wrong in ({**state, "rows": 8}, {**state, "change": 1}, {**state, "seen": -1, "rows": -1}):
            with pytest.raises(CheckpointError, match="is damaged, or of one with another capacity"):
                buffer.load_state(wrong)
        buffer.load_state(state)
        assert len(contents(buffer)) == 9


@pytest.mark.parametrize("name", ["buffer.json", "folded.json"])
@pytest.mark.parametrize("content", ["[]", "", "3", '{"folded": "x"}', '{"format": 9}'])
def test_a_damaged_header_is_told(filled: tuple[Path, dict[str, Any]], name: str, content: str) -> None:
    folder, state = filled
    (folder / name).write_text(content)
    with pytest.raises(CheckpointError, match=rf"{name} is damaged|format is (9|None) and not 1"):
        make(folder, 9).load_state(state)
