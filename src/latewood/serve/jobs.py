"""What changes the model: one job after the other, in one thread, from a queue of bounded length."""

from __future__ import annotations

import logging
import queue
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from latewood.core.errors import LatewoodError
from latewood.core.progress import Progress
from latewood.serve.limits import BusyError, Limits

if TYPE_CHECKING:
    from latewood.model.facts import Outcome

Kind = Literal["learn", "rollback", "accept", "reject"]
State = Literal["waiting", "running", "done", "failed"]
_KEPT = 256
_log = logging.getLogger(__name__)


@dataclass
class Job(Progress):
    """One change of the model; written by the thread that works on it, read by everyone."""

    kind: Kind
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    state: State = "waiting"
    submitted: datetime = field(default_factory=lambda: datetime.now(UTC))
    finished: datetime | None = None
    doing: str | None = None
    steps: int = 0
    steps_done: int = 0
    error: str | None = None
    version: int | None = None
    outcome: Outcome | None = None

    @property
    def ended(self) -> bool:
        return self.state in ("done", "failed")

    def phase(self, text: str, steps: int = 0) -> None:
        self.doing, self.steps, self.steps_done = text, steps, 0

    def step(self, loss: Tensor | None = None) -> None:
        self.steps_done += 1

    def end(self, error: str | None = None) -> None:
        self.doing, self.error, self.finished = None, error, datetime.now(UTC)
        self.state = "failed" if error else "done"  # last: whoever sees it finds the rest complete


Work = Callable[[Job], None]


class Jobs:
    """The queue of jobs and the thread that works on them in the order in which they came.

    >>> jobs = Jobs(Limits())
    >>> job = jobs.submit("reject", lambda job: None)
    >>> import time
    >>> while not job.ended:
    ...     time.sleep(0.001)
    >>> jobs[job.id].state
    'done'
    >>> jobs.close()
    """

    def __init__(self, limits: Limits, observe: Callable[[Job], None] = lambda job: None) -> None:
        """``observe`` is told every job that has ended."""
        self._limits, self._observe = limits, observe
        self._jobs: dict[str, Job] = {}
        self._queue: queue.Queue[tuple[Job, Work] | None] = queue.Queue()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="latewood-learn", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Jobs that no one works on yet."""
        return sum(job.state == "waiting" for job in list(self._jobs.values()))

    @property
    def unfinished(self) -> int:
        """Jobs waiting or running."""
        return sum(not job.ended for job in list(self._jobs.values()))

    def __getitem__(self, id: str) -> Job:
        """Errors: :class:`KeyError` if there is none of this name, or no longer."""
        return self._jobs[id]

    def submit(self, kind: Kind, work: Work) -> Job:
        """Errors: :class:`BusyError` if as many as may wait do so already."""
        job = Job(kind)
        with self._lock:
            if self._closed:
                raise BusyError("The service is stopping.")
            if self.waiting >= self._limits.waiting_jobs:
                raise BusyError(f"{self.waiting} changes of the model are waiting already; try again when one has ended.")
            self._jobs[job.id] = job
            self._forget()
            self._queue.put((job, work))
        return job

    def close(self) -> None:
        """Refuse what waits; give the running job a few seconds. One that needs longer is left, as by a crash: the folder
        of the model stays whole."""
        with self._lock:
            self._closed = True
            self._queue.put(None)
        self._thread.join(self._limits.stop_seconds)

    def _forget(self) -> None:
        ended = [id for id, job in self._jobs.items() if job.ended]
        for id in ended[: max(0, len(self._jobs) - _KEPT)]:
            del self._jobs[id]

    def _work(self) -> None:
        while (entry := self._queue.get()) is not None:
            self._run(*entry)
            del entry  # or the last job's data would stay in memory until the next comes

    def _run(self, job: Job, work: Work) -> None:
        if self._closed:
            job.end("The service stopped before this job's turn came.")
            return
        job.state = "running"
        try:
            work(job)
            job.end()
        except LatewoodError as error:
            job.end(str(error))
        except Exception:
            _log.exception("The job %s failed on a defect", job.id)
            job.end("It failed on a defect of Latewood, which the service's log describes; the model is as before.")
        self._observe(job)
