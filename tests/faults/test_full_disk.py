"""On a disk that runs full, or where files may not grow, a change fails with a sentence, all stays as it was, and the same
call succeeds as soon as there is room."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from latewood.core.errors import StorageError
from latewood.model.model import Model

JOBS: dict[str, dict[str, Any]] = {
    "learn": {"verb": "learn", "source": "new", "rows": {"classes": [1, 5], "count": 30, "seed": 5}},
    "learn in pieces": {"verb": "learn", "source": "much", "rows": {"classes": [4, 5, 6], "count": 270, "seed": 6}},
    "forget": {"verb": "forget", "what": {"name": "digit-two"}},
    "roll back": {"verb": "rollback", "number": 2},
}
PAGE = 4096


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of two megabytes."""
    place = tmp_path / "small"
    place.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small disk needs root")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def made(worker: Any, folder: Path) -> Any:
    model = worker.make(folder, limit=0.5)
    for number, classes in enumerate(([0, 1, 2], [2, 3])):
        rows = {"classes": classes, "count": 40, "seed": number}
        worker.perform(model, {"verb": "learn", "source": f"source {number}", "rows": rows})
    return model


def done_elsewhere(worker: Any, model: Any, operation: dict[str, Any], place: Path) -> Any:
    """The same directory after the same call, where there is room."""
    copy = Model.open(shutil.copytree(model.folder, place))
    worker.perform(copy, operation)
    return copy


def is_as_before(worker: Any, model: Any, before: Any) -> None:
    """The model in hand, and whoever opens the directory, see what was there before."""
    assert worker.alike(model, before)
    told: list[str] = []
    found = Model.open(model.folder, tell=told.append)
    assert worker.alike(found, before)
    worker.check_blobs(found)
    assert told == []
    assert [path for path in model.folder.rglob(".*") if "staging" not in path.parts] == []


def was_there(before: Any, after: Any) -> set[Path]:
    """The files of one directory that another has too, unchanged."""
    names = [path.relative_to(before.folder) for path in before.folder.rglob("*.*") if path.is_file()]
    return {after.folder / name for name in names}


@pytest.mark.parametrize("job", JOBS)
def test_a_change_on_a_disk_that_runs_full_at_any_point_fails_with_a_sentence_and_loses_nothing(
    worker: Any, small_disk: Path, tmp_path: Path, job: str
) -> None:
    operation = JOBS[job]
    model = made(worker, small_disk / "model")
    before = Model.open(shutil.copytree(model.folder, tmp_path / "before"))
    after = done_elsewhere(worker, model, operation, tmp_path / "after")
    filler = small_disk / "filler"
    refused = 0
    for pages in (*range(6), *range(6, 100, 5)):
        filler.write_bytes(bytes(max(0, shutil.disk_usage(small_disk).free - pages * PAGE)))
        try:
            worker.perform(model, operation)
            break
        except StorageError as error:
            assert "the disk is full" in str(error)
            assert "\n" not in str(error)
            refused += 1
        finally:
            filler.unlink()
        is_as_before(worker, model, before)
    assert refused >= 2
    assert worker.alike(model, after)
    assert worker.alike(Model.open(model.folder), after)
    assert worker.garbage(model) == []


@pytest.mark.parametrize("job", JOBS)
def test_a_change_where_files_may_not_grow_fails_with_a_sentence_and_succeeds_when_they_may(
    nursery: Any, worker: Any, tmp_path: Path, job: str
) -> None:
    """In one process and with one model, which goes on after each failure."""
    operation = JOBS[job]
    model = made(worker, tmp_path / "model")
    before = Model.open(shutil.copytree(model.folder, tmp_path / "before"))
    after = done_elsewhere(worker, model, operation, tmp_path / "after")
    written = {
        path.stat().st_size for path in after.folder.rglob("*") if path.is_file() and path not in was_there(before, after)
    }
    limits = sorted({0, 1_000_000, *(size - 1 for size in written)})
    refused = 0
    for limit in limits:
        folder = shutil.copytree(model.folder, tmp_path / f"{limit}")
        grow = {"verb": "limit", "bytes": None}
        life, end = nursery.live(folder=str(folder), operations=[{"verb": "limit", "bytes": limit}, operation])
        assert end == 0
        if not life.refused:
            assert life.done == [0, 1]
            continue
        refused += 1
        kind, sentence = life.refused[1]
        assert kind == "StorageError"
        assert "File too large" in sentence and "\n" not in sentence
        is_as_before(worker, Model.open(folder), before)
        operations = [{"verb": "limit", "bytes": limit}, operation, grow, operation]
        life, end = nursery.live(folder=str(folder), operations=operations)
        assert end == 0 and life.done == [0, 2, 3]
        found = Model.open(folder)
        assert worker.alike(found, after)
        assert worker.garbage(found) == []
    assert 2 <= refused < len(limits)


def test_a_directory_that_is_made_on_a_full_disk_does_not_appear(worker: Any, small_disk: Path) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 3 * PAGE))
    with pytest.raises(StorageError, match="the disk is full"):
        worker.make(small_disk / "model")
    assert [path.name for path in small_disk.iterdir()] == ["filler"]
    filler.unlink()
    worker.make(small_disk / "model")
