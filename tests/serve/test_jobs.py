"""Changes of the model: one after the other, not too many, and every one comes to an end that can be read."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from latewood.core.errors import StorageError
from latewood.serve.jobs import Job, Jobs
from latewood.serve.limits import BusyError, Limits


@pytest.fixture
def jobs() -> Iterator[Jobs]:
    made = Jobs(Limits(waiting_jobs=3, stop_seconds=0.5))
    yield made
    made.close()


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def held_by(gate: threading.Event) -> Callable[[Job], None]:
    def work(job: Job) -> None:
        gate.wait(20)

    return work


def test_jobs_are_done_one_by_one_in_their_order(jobs: Jobs) -> None:
    at_work, order = threading.Semaphore(1), []

    def work(job: Job) -> None:
        assert at_work.acquire(blocking=False)
        time.sleep(0.01)
        order.append(job.id)
        at_work.release()

    made = [jobs.submit("learn", work) for _ in range(3)]
    until(lambda: all(job.ended for job in made))
    assert order == [job.id for job in made]
    assert all(job.state == "done" and job.finished is not None for job in made)


def test_only_so_many_may_wait(jobs: Jobs) -> None:
    gate = threading.Event()
    running = jobs.submit("learn", held_by(gate))
    until(lambda: running.state == "running")
    waiting = [jobs.submit("learn", lambda job: None) for _ in range(3)]
    assert (jobs.waiting, jobs.unfinished) == (3, 4)
    with pytest.raises(BusyError, match="3 changes"):
        jobs.submit("learn", lambda job: None)
    gate.set()
    until(lambda: all(job.ended for job in waiting))
    assert jobs.submit("learn", lambda job: None).kind == "learn"


def test_a_job_that_fails_says_why_and_the_next_goes_on(jobs: Jobs, caplog: pytest.LogCaptureFixture) -> None:
    def full(job: Job) -> None:
        raise StorageError("The disk is full.")

    def defect(job: Job) -> None:
        raise KeyError("a detail that is nobody's business")

    first, second, third = jobs.submit("learn", full), jobs.submit("learn", defect), jobs.submit("reject", lambda job: None)
    until(lambda: third.ended)
    assert (first.state, first.error) == ("failed", "The disk is full.")
    assert second.state == "failed"
    assert "nobody" not in str(second.error)
    assert "nobody" in caplog.text
    assert third.state == "done"


def test_progress_is_seen_while_it_runs(jobs: Jobs) -> None:
    seen, go = threading.Event(), threading.Event()

    def work(job: Job) -> None:
        job.phase("embedding", 5)
        job.step()
        job.step()
        seen.set()
        go.wait(10)

    job = jobs.submit("learn", work)
    seen.wait(10)
    assert (job.doing, job.steps_done, job.steps) == ("embedding", 2, 5)
    go.set()
    until(lambda: job.ended)
    assert job.doing is None


def test_old_jobs_are_forgotten_and_unfinished_ones_never(jobs: Jobs) -> None:
    gate = threading.Event()
    oldest = jobs.submit("reject", lambda job: None)
    for _ in range(300):
        job = jobs.submit("reject", lambda job: None)
        until(lambda job=job: job.ended)
    running = jobs.submit("learn", held_by(gate))
    assert jobs[running.id] is running
    with pytest.raises(KeyError):
        jobs[oldest.id]
    gate.set()


def test_stopping_waits_for_the_running_job_and_refuses_the_others(jobs: Jobs) -> None:
    gate = threading.Event()
    running = jobs.submit("learn", held_by(gate))
    waiting = jobs.submit("learn", lambda job: None)
    until(lambda: running.state == "running")
    threading.Timer(0.2, gate.set).start()
    jobs.close()
    assert running.state == "done"
    assert (waiting.state, "stopped" in str(waiting.error)) == ("failed", True)
    with pytest.raises(BusyError):
        jobs.submit("learn", lambda job: None)


def test_stopping_does_not_wait_for_ever(jobs: Jobs) -> None:
    gate = threading.Event()
    jobs.submit("learn", held_by(gate))
    began = time.monotonic()
    jobs.close()
    assert time.monotonic() - began < 2
    gate.set()
