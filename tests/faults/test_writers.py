"""Two processes that change one directory: one after the other, and nothing of either is lost."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from latewood.core.errors import StorageError
from latewood.model.model import Model

MUCH: dict[str, Any] = {"verb": "learn", "source": "holiday", "rows": {"classes": [0, 1, 2], "count": 2000, "seed": 5}}
LITTLE: dict[str, Any] = {"verb": "learn", "source": "mail", "rows": {"classes": [3, 4], "count": 30, "seed": 6}}


def frozen_writer(nursery: Any, folder: Path) -> Any:
    """A process that is stopped while it learns and holds the lock."""
    life = nursery.start(folder=str(folder), operations=[MUCH])
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        note = (folder / "lock").read_text()
        if note.endswith("}") and json.loads(note)["process"] == life.pid:
            break
        time.sleep(0.001)
    life.send(signal.SIGSTOP)
    return life


def test_the_second_writer_is_told_who_holds_the_directory_and_for_what(nursery: Any, worker: Any, tmp_path: Path) -> None:
    model = worker.make(tmp_path / "model")
    life = frozen_writer(nursery, model.folder)
    for operation in (LITTLE, {"verb": "rollback", "number": 1}, {"verb": "forget", "what": {"name": "digit-one"}}):
        with pytest.raises(StorageError, match=rf"by process {life.pid} since \S+Z \(learning holiday\); try again"):
            worker.perform(model, operation)
    start = time.monotonic()
    with pytest.raises(StorageError, match=rf"process {life.pid} "):
        worker.perform(model, {**LITTLE, "wait": 0.5})
    assert 0.5 <= time.monotonic() - start < 10
    assert model.version.number == Model.open(model.folder).version.number == 1
    life.send(signal.SIGCONT)
    assert life.end() == 0
    assert Model.open(model.folder).version.about == "holiday"


def test_the_second_writer_that_waits_stands_on_what_the_first_has_learned(nursery: Any, worker: Any, tmp_path: Path) -> None:
    model, alone = worker.make(tmp_path / "model"), worker.make(tmp_path / "alone")
    life = frozen_writer(nursery, model.folder)
    waker = threading.Timer(0.3, life.send, [signal.SIGCONT])
    waker.start()
    worker.perform(model, {**LITTLE, "wait": 60})
    waker.join()
    assert life.end() == 0
    for operation in (MUCH, LITTLE):
        worker.perform(alone, operation)
    assert worker.alike(model, alone)


def test_the_lock_of_a_killed_writer_is_free_at_once(nursery: Any, worker: Any, tmp_path: Path) -> None:
    model, alone = worker.make(tmp_path / "model"), worker.make(tmp_path / "alone")
    life = frozen_writer(nursery, model.folder)
    assert life.kill() == -signal.SIGKILL
    assert life.in_flight == 0
    for one in (model, alone):
        worker.perform(one, LITTLE)
    assert worker.alike(model, alone)
    assert worker.garbage(model) == []


def test_all_that_two_processes_learn_at_the_same_time_is_learned(nursery: Any, worker: Any, tmp_path: Path) -> None:
    options = {"limit": 1.0, "keep": 30}
    model, alone = worker.make(tmp_path / "model", **options), worker.make(tmp_path / "alone", **options)
    arrivals = [
        {
            "verb": "learn",
            "source": f"{who} {day}",
            "rows": {"classes": [day % 10, (day + 3) % 10], "count": 20, "seed": 100 * number + day},
            "wait": 30,
        }
        for number, who in enumerate(("anna", "bert"))
        for day in range(10)
    ]
    lives = [nursery.start(folder=str(model.folder), operations=part) for part in (arrivals[:10], arrivals[10:])]
    assert [life.end() for life in lives] == [0, 0]
    assert [life.refused for life in lives] == [{}, {}]
    for operation in arrivals:
        worker.perform(alone, operation)
    assert model.version.number == 1
    assert model.refresh()
    log = model.log()
    assert [(version.number, version.parent) for version in log[1:]] == [(n, n - 1) for n in range(2, 22)]
    assert sorted(version.about for version in log[1:]) == sorted(arrival["source"] for arrival in arrivals)
    facts = [{known.name: (known.samples, known.canaries) for known in one.known} for one in (model, alone)]
    assert facts[0] == facts[1]
    assert torch.allclose(worker.scores(model), worker.scores(alone), rtol=0, atol=1e-8)
    assert worker.garbage(model) == []
    assert os.getpid() not in [life.pid for life in lives]
