"""A process that dies at any call to the system, or half way through any file, leaves the version before or after, and
nothing that stays for ever."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from latewood.model.model import Model

JOBS: dict[str, dict[str, Any]] = {
    "learn": {"verb": "learn", "source": "new", "rows": {"classes": list(range(9)), "count": 270, "seed": 5}},
    "hold back": {"verb": "learn", "source": "swapped", "rows": {"classes": [0, 1], "count": 150, "seed": 6, "swap": True}},
    "forget a class": {"verb": "forget", "what": {"name": "digit-two"}},
    "forget a source": {"verb": "forget", "what": {"source": "second"}},
    "roll back": {"verb": "rollback", "number": 3},
    "accept": {"verb": "accept"},
    "reject": {"verb": "reject"},
}


class Job(NamedTuple):
    """Something to do to a directory, and models of what it is before and after."""

    operation: dict[str, Any]
    before: Any
    after: Any


@pytest.fixture(autouse=True)
def _no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process has written survives its death; only a power cut takes what was not flushed."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(scope="module")
def bases(worker: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """A directory with five versions, of which one is pruned; and one in which a sixth waits to be accepted."""
    place = tmp_path_factory.mktemp("bases")
    model = worker.make(place / "free", keep=4, limit=0.5)
    for source, classes in (("first", [0, 1, 2]), ("second", [2, 3]), ("third", [4, 5]), ("fourth", [5, 6])):
        worker.perform(
            model, {"verb": "learn", "source": source, "rows": {"classes": classes, "count": 60, "seed": len(source)}}
        )
    assert model.version.number == 5
    shutil.copytree(model.folder, place / "waiting")
    worker.perform(Model.open(place / "waiting"), JOBS["hold back"])
    return {False: place / "free", True: place / "waiting"}


@pytest.fixture(params=JOBS)
def job(request: pytest.FixtureRequest, worker: Any, bases: dict[bool, Path], tmp_path: Path) -> Job:
    operation, base = JOBS[request.param], bases[request.param in ("accept", "reject")]
    before, after = (Model.open(shutil.copytree(base, tmp_path / name)) for name in ("before", "after"))
    worker.perform(after, operation)
    assert (after.candidate is not None) == (request.param == "hold back")
    assert worker.history(before) != worker.history(after)
    return Job(operation, before, after)


def check_what_is_left(worker: Any, job: Job, place: Path) -> bool:
    """What a process left that died over the job; whether the job was done. Then it is done, and nothing else is left."""
    told: list[str] = []
    found = Model.open(place, tell=told.append)
    done = bool(worker.history(found) == worker.history(job.after))
    assert worker.alike(found, job.after if done else job.before)
    worker.check_blobs(found)
    if done:
        with found._store.writing("looking"):
            assert [name for name in worker.garbage(found) if not name.startswith("staging")] == []
    else:
        worker.perform(found, job.operation)
        assert worker.alike(found, job.after)
        assert worker.garbage(found) == []
        assert len(worker.blobs(place)) == len(worker.blobs(job.after.folder))
    assert told == []
    return done


def places(job: Job, place: Path) -> Iterator[Path]:
    """Copies of the directory as it is before the job, one after the other."""
    for number in range(1, 200):
        folder = place / f"{number}"
        shutil.copytree(job.before.folder, folder)
        yield folder
        shutil.rmtree(folder)


def test_a_process_that_dies_at_any_call_leaves_the_version_before_or_after(
    nursery: Any, worker: Any, job: Job, tmp_path: Path
) -> None:
    done = []
    for nth, place in enumerate(places(job, tmp_path), 1):
        life, end = nursery.live(folder=str(place), operations=[job.operation], die=nth)
        assert end in (0, worker.DIED), life.said
        if end == 0:
            break
        assert life.in_flight == 0
        done.append(check_what_is_left(worker, job, place))
    assert end == 0
    assert done == sorted(done), "what was done was not done any more at a later moment"
    assert done[0] is False


def test_a_process_that_dies_half_way_through_a_file_leaves_the_version_before_or_after_and_no_part_of_the_file(
    nursery: Any, worker: Any, job: Job, tmp_path: Path
) -> None:
    sizes = {path.stat().st_size for path in job.after.folder.rglob("*") if path.is_file()}
    for size, place in zip(sorted({*sizes, 0}), places(job, tmp_path), strict=False):
        life, end = nursery.live(folder=str(place), operations=[job.operation], die_in_file=size // 2)
        assert end in (0, -signal.SIGXFSZ), life.said
        if end != 0:
            check_what_is_left(worker, job, place)
