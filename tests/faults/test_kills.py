"""A model directory whose processes are killed at random moments, or die at any call, holds a whole version each time and
all that was acknowledged; and what was forgotten is gone."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from latewood.core.errors import LatewoodError
from latewood.model.model import Model

VERBS = ("learn", "forget", "rollback")
#: Kills that must land inside each of the three in one history. With eight histories there are 216 of them at least.
EACH = 9


class Forgotten:
    """What must be found in no byte any more: names, and samples with the bytes of their hashes and features."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.samples: dict[str, set[bytes]] = {}

    def learned_again(self, operation: dict[str, Any], classes: set[str]) -> None:
        self.names -= {operation["source"], *classes}
        self.samples.pop(operation["source"], None)

    def check(self, folder: Path, sources: set[str] | None = None) -> None:
        chosen = self.samples.keys() if sources is None else sources
        wanted = [sample for source in chosen for sample in self.samples[source]]
        for path in folder.rglob("*"):
            if path.is_file():
                content = path.read_bytes()
                assert not [name for name in self.names if name.encode() in content], path
                assert not any(sample in content for sample in wanted), path


class History:
    """A directory that is worked on by processes that are killed, beside one that has done the same undisturbed."""

    def __init__(self, nursery: Any, worker: Any, place: Path, seed: int) -> None:
        self.nursery, self.worker, self.chance = nursery, worker, random.Random(seed)
        self.never_killed = worker.make(place / "never killed", limit=0.5)
        self.folder = place / "killed"
        shutil.copytree(self.never_killed.folder, self.folder)
        self.landed: Counter[str] = Counter()
        self.kills = 0
        self.learned: list[dict[str, Any]] = []
        self.forgotten = Forgotten()
        self.seconds = {"learn": 0.08, "learn much": 0.2, "forget": 0.08, "rollback": 0.03, "accept": 0.03, "reject": 0.01}
        self.retry: dict[str, Any] | None = None

    # What may come next

    def next(self) -> dict[str, Any]:
        model, chance = self.never_killed, self.chance
        retry, self.retry = self.retry, None
        if model.candidate is not None:
            return {"verb": chance.choice(["accept", "reject"])}
        if retry is not None and chance.random() < 0.5:
            return retry
        verb = min(VERBS, key=lambda verb: self.landed[verb] + chance.random() * 2)
        if verb == "forget" and len(model.classes) > 2:
            sources = sorted({source.name for source in model._state.samples.sources})
            if chance.random() < 0.5:
                return {"verb": "forget", "what": {"name": chance.choice(model.classes)}}
            return {"verb": "forget", "what": {"source": chance.choice(sources)}}
        if verb == "rollback":
            known = [v.number for v in model.log() if model.available(v) and not v.candidate and len(v.content["classes"]) > 1]
            if known:
                return {"verb": "rollback", "number": chance.choice(known)}
        return self.arrival()

    def arrival(self) -> dict[str, Any]:
        chance, classes = self.chance, self.never_killed.classes
        kind = chance.random()
        if kind < 0.15 and len(classes) > 2:
            known = sorted(self.worker.NAMES.index(name) for name in chance.sample(classes, 2))
            return self._arrival(known, 150, swap=True)
        if kind < 0.3 and self.learned:
            return chance.choice(self.learned)
        if kind < 0.5:
            return self._arrival(chance.sample(range(10), 4), 300)
        return self._arrival(chance.sample(range(10), 2), chance.randint(6, 40))

    def _arrival(self, classes: list[int], count: int, swap: bool = False) -> dict[str, Any]:
        seed = self.chance.getrandbits(40)
        rows = {"classes": classes, "count": count, "seed": seed, "swap": swap}
        return {"verb": "learn", "source": f"camera-{seed:012x}", "rows": rows}

    # One life and its end

    def live(self) -> None:
        """Let a process begin one operation or two, kill it at a random moment of the last, and look at what it left."""
        operations = [self.next()]
        if self.chance.random() < 0.3:
            operations.insert(0, self._arrival(self.chance.sample(range(10), 2), 20))
            if operations[1]["verb"] in ("accept", "reject"):
                del operations[0]
        target = len(operations) - 1
        life = self.nursery.start(folder=str(self.folder), operations=operations, stay=True)
        if life.hear_until(begun=target):
            time.sleep(self.chance.uniform(0, 1.1 * self.seconds[self._size(operations[target])]))
        end = life.kill()
        assert end == -signal.SIGKILL, life.said
        assert life.told == []
        self.kills += 1
        self._measure(life, operations)
        self._compare(life, operations)

    def _size(self, operation: dict[str, Any]) -> str:
        much = operation["verb"] == "learn" and operation["rows"]["count"] > 100
        return "learn much" if much else str(operation["verb"])

    def _measure(self, life: Any, operations: list[dict[str, Any]]) -> None:
        for said in life.said:
            if "done" in said:
                size = self._size(operations[said["done"]])
                self.seconds[size] += 0.3 * (min(said["seconds"], 2.0) - self.seconds[size])
        if life.in_flight is not None:  # or where all die early nobody would learn how long it takes
            self.seconds[self._size(operations[life.in_flight])] *= 1.05

    def _compare(self, life: Any, operations: list[dict[str, Any]]) -> None:
        worker, told = self.worker, list[str]()
        for number, operation in enumerate(operations):
            if number in life.done or number in life.refused:
                assert self._undisturbed(operation) == life.refused.get(number, ("", ""))[0]
        found = Model.open(self.folder, tell=told.append)
        if life.in_flight is not None:
            operation = operations[life.in_flight]
            self.landed[operation["verb"]] += 1
            if worker.history(found) != worker.history(self.never_killed):
                assert self._undisturbed(operation) == ""
            else:
                self.retry = operation
        assert worker.alike(found, self.never_killed)
        worker.check_blobs(found)
        assert self._available(self.never_killed) <= self._available(found)
        assert told == []
        if self.chance.random() < 0.5 or self._forgot(operations):
            self._tidy(found, operations)

    def _available(self, model: Any) -> set[int]:
        return {version.number for version in model.log() if model.available(version)}

    def _tidy(self, found: Any, operations: list[dict[str, Any]]) -> None:
        """The next writer removes what was left, and all that is to be forgotten."""
        with found._store.writing("looking"):
            pass
        assert [name for name in self.worker.garbage(found) if not name.startswith("staging")] == []
        if self._forgot(operations):
            self.forgotten.check(self.folder, set(list(self.forgotten.samples)[-2:]))

    def _forgot(self, operations: list[dict[str, Any]]) -> bool:
        return any(operation["verb"] == "forget" for operation in operations)

    def _undisturbed(self, operation: dict[str, Any]) -> str:
        """Do the same where nobody is killed; the kind of error, if it was refused."""
        model = self.never_killed
        if operation["verb"] == "forget":
            leaving = self._leaving(operation["what"])
        try:
            self.worker.perform(model, operation)
        except LatewoodError as error:
            return type(error).__name__
        if operation["verb"] == "forget":
            self.forgotten.names.update(operation["what"].values())
            for source, samples in leaving.items():
                self.forgotten.samples.setdefault(source, set()).update(samples)
        if operation["verb"] == "learn":
            self.learned.append(operation)
            classes = {self.worker.NAMES[number] for number in operation["rows"]["classes"]}
            self.forgotten.learned_again(operation, classes)
        return ""

    def _leaving(self, what: dict[str, str]) -> dict[str, set[bytes]]:
        """The bytes of what is to be forgotten, by the source that it came from."""
        model = self.never_killed
        samples, names = model._state.samples, model._state.names
        sources = {source.number: source.name for source in samples.sources}
        rows = samples.inputs(model._store, samples.kept)
        told = zip(samples.arrivals.tolist(), samples.labels.tolist(), samples.hashes, rows, strict=True)
        gone: dict[str, set[bytes]] = {}
        for arrival, label, key, row in told:
            if what.get("name") == names[label] or what.get("source") == sources[arrival]:
                gone.setdefault(sources[arrival], set()).update({bytes(key.numpy()), row.numpy().tobytes()})
        return gone

    def finish(self) -> None:
        """One more life, which nobody kills: it does its work, and all that the others left is gone."""
        operations = [{"verb": "reject"}] if self.never_killed.candidate else []
        operations += [self._arrival([0, 1, 2], 30), {"verb": "forget", "what": {"name": self.worker.NAMES[1]}}]
        operations.append(self._arrival([0, 3], 20))
        life, end = self.nursery.live(folder=str(self.folder), operations=operations)
        assert end == 0
        for number, operation in enumerate(operations):
            assert self._undisturbed(operation) == life.refused.get(number, ("", ""))[0]
        found = Model.open(self.folder)
        assert self.worker.alike(found, self.never_killed)
        assert self.worker.garbage(found) == []
        assert self._available(found) == self._available(self.never_killed)
        assert len(self.worker.blobs(self.folder)) == len(self.worker.blobs(self.never_killed.folder))
        self.forgotten.check(self.folder)


@pytest.mark.parametrize("seed", range(8))
def test_a_directory_whose_writers_are_killed_at_random_moments_holds_all_that_was_acknowledged(
    nursery: Any, worker: Any, tmp_path: Path, seed: int
) -> None:
    history = History(nursery, worker, tmp_path, seed)
    while min(history.landed[verb] for verb in VERBS) < EACH:
        history.live()
        assert history.kills < 12 * EACH, f"too few kills hit: {history.landed}"
    history.finish()
    assert history.kills >= 3 * EACH
