"""What the proofs against faults share: processes that may be killed, and what must be true of a directory afterwards."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

_PROGRAM = Path(__file__).with_name("worker.py")


@pytest.fixture(scope="session")
def worker() -> ModuleType:
    """The program of the processes that are killed, to do the same work here."""
    spec = importlib.util.spec_from_file_location("faults_worker", _PROGRAM)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Life:
    """One process that works on a directory, and what it said so far."""

    def __init__(self, nursery: Nursery, pid: int, out: int) -> None:
        self.pid, self.said = pid, list[dict[str, Any]]()
        self._nursery, self._out = nursery, os.fdopen(out)

    def hear(self) -> dict[str, Any] | None:
        """The next thing that it says; nothing once it is dead."""
        line = self._out.readline()
        if not line:
            return None
        self.said.append(json.loads(line))
        assert "defect" not in self.said[-1], self.said[-1]
        return self.said[-1]

    def hear_until(self, **facts: Any) -> bool:
        """Listen until it says this; whether it lived to say so."""
        while (said := self.hear()) is not None:
            if facts.items() <= said.items():
                return True
        return False

    def send(self, number: int) -> None:
        """Send it a signal."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> int:
        """End it by the signal that nobody can catch."""
        self.send(signal.SIGKILL)
        return self.end()

    def end(self) -> int:
        """Wait for its end: 0 if it finished, else what ended it."""
        while self.hear() is not None:
            pass
        self._out.close()
        return self._nursery.ask(wait=self.pid)

    @property
    def done(self) -> list[int]:
        """The operations that it said were done."""
        return [said["done"] for said in self.said if "done" in said]

    @property
    def refused(self) -> dict[int, tuple[str, str]]:
        """The operations that were refused: the kind of error and its sentence."""
        return {said["refused"]: (said["kind"], said["sentence"]) for said in self.said if "refused" in said}

    @property
    def told(self) -> list[str]:
        """What its model had to tell of damage."""
        return [said["told"] for said in self.said if "told" in said]

    @property
    def in_flight(self) -> int | None:
        """The operation that had begun and not ended."""
        begun = [said["begun"] for said in self.said if "begun" in said]
        return begun[-1] if begun and begun[-1] not in {*self.done, *self.refused} else None


class Nursery:
    """Starts the program once, and has it fork as many lives as are wanted."""

    def __init__(self, place: Path) -> None:
        self._place, self._count = place, 0
        environment = {**os.environ, "LATEWOOD_CACHE": "off", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen([sys.executable, _PROGRAM], stdin=pipe, stdout=pipe, text=True, env=environment)
        assert self._read() == "ready"

    def start(self, **order: Any) -> Life:
        """Fork a process that carries out an order."""
        self._count += 1
        path = self._place / f"life {self._count}"
        os.mkfifo(path)
        out = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # for there is nobody yet who writes
        pid = self.ask(**order, out=str(path))
        os.set_blocking(out, True)
        path.unlink()
        return Life(self, pid, out)

    def live(self, **order: Any) -> tuple[Life, int]:
        """Let a process carry out an order, and wait for its end."""
        life = self.start(**order)
        return life, life.end()

    def ask(self, **request: Any) -> int:
        """Send the program a request."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._read())

    def close(self) -> None:
        """End the program."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Processes that work on model directories."""
    made = Nursery(tmp_path_factory.mktemp("lives"))
    yield made
    made.close()
