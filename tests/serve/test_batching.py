"""Many requests, one call of the model: together when they can, alone when they must."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from latewood.core.errors import DataError
from latewood.serve.batching import Answer, Batcher
from latewood.serve.limits import BusyError, Limits


@pytest.fixture
def batcher(fake: Any) -> Iterator[Batcher]:
    made = Batcher(fake, Limits(batch_inputs=8, batch_seconds=0.05, waiting_inputs=20, answer_seconds=5))
    yield made
    fake.gate.set()
    made.close()


def gathered(*requests: Any) -> list[Any]:
    async def run() -> list[Any]:
        return await asyncio.gather(*requests, return_exceptions=True)

    return asyncio.run(run())


def labels(answer: Answer) -> list[str]:
    return [found[0].label for found in answer.guesses]


def test_requests_that_come_together_are_predicted_together(batcher: Batcher, fake: Any) -> None:
    answers = gathered(*(batcher.predict([f"a{n}", f"b{n}"], 1) for n in range(4)))
    assert [labels(answer) for answer in answers] == [[f"a{n}@1", f"b{n}@1"] for n in range(4)]
    assert fake.calls == [8]


def test_a_batch_takes_no_more_than_its_share(batcher: Batcher, fake: Any) -> None:
    answers = gathered(*(batcher.predict([str(n)] * 3, 1) for n in range(6)))
    assert [labels(answer) for answer in answers] == [[f"{n}@1"] * 3 for n in range(6)]
    assert fake.calls == [6, 6, 6]


def test_a_request_larger_than_a_batch_goes_alone_and_whole(batcher: Batcher, fake: Any) -> None:
    (answer,) = gathered(batcher.predict([str(n) for n in range(20)], 1))
    assert labels(answer) == [f"{n}@1" for n in range(20)]
    assert fake.calls == [20]


@pytest.mark.parametrize(("culprit", "error"), [("bad", DataError), ("broken", RuntimeError), ("nothing", DataError)])
def test_a_bad_input_fails_its_own_request_alone(batcher: Batcher, culprit: str, error: type[Exception]) -> None:
    answers = gathered(*(batcher.predict([culprit if n == 5 else str(n)], 1) for n in range(8)))
    assert isinstance(answers.pop(5), error)
    assert [labels(answer) for answer in answers] == [[f"{n}@1"] for n in range(8) if n != 5]
    assert labels(gathered(batcher.predict(["after"], 1))[0]) == ["after@1"]


def test_what_has_no_room_is_refused_at_once(batcher: Batcher, fake: Any) -> None:
    fake.gate.clear()

    async def run() -> list[Any]:
        first = asyncio.create_task(batcher.predict(["first"] * 8, 1))
        while not fake.calls:
            await asyncio.sleep(0.01)
        waiting = [asyncio.create_task(batcher.predict([str(n)] * 5, 1)) for n in range(4)]
        await asyncio.sleep(0.01)
        assert batcher.waiting == 20
        began = time.monotonic()
        with pytest.raises(BusyError, match="20 inputs are waiting"):
            await batcher.predict(["more"], 1)
        assert time.monotonic() - began < 0.1
        fake.gate.set()
        return await asyncio.gather(first, *waiting)

    assert len(asyncio.run(run())) == 5
    assert batcher.waiting == 0


def test_who_waits_too_long_is_told_and_costs_nothing_more(fake: Any) -> None:
    batcher = Batcher(fake, Limits(answer_seconds=0.1))
    fake.gate.clear()

    async def run() -> None:
        first = asyncio.create_task(batcher.predict(["first"], 1))
        while not fake.calls:
            await asyncio.sleep(0.01)
        with pytest.raises(TimeoutError):
            await batcher.predict(["second"], 1)
        with pytest.raises(TimeoutError):
            await first

    asyncio.run(run())
    fake.gate.set()
    assert labels(gathered(batcher.predict(["third"], 1))[0]) == ["third@1"]
    assert fake.calls == [1, 1]  # the second was never predicted
    batcher.close()


def test_each_request_gets_as_many_guesses_as_it_asked_for(text_model: Any) -> None:
    batcher = Batcher(text_model, Limits(batch_seconds=0.05))
    answers = gathered(*(batcher.predict(["pay my bill"], top) for top in (1, 2, 100)))
    assert [len(answer.guesses[0]) for answer in answers] == [1, 2, 2]
    batcher.close()


def test_an_answer_names_the_version_that_made_it_though_it_switches_meanwhile(batcher: Batcher, fake: Any) -> None:
    fake.gate.clear()

    async def run() -> Answer:
        asked = asyncio.create_task(batcher.predict(["a"], 1))
        while not fake.calls:
            await asyncio.sleep(0.01)
        fake.version = fake.version._replace(number=2)
        fake.gate.set()
        return await asked

    answer = asyncio.run(run())
    assert (answer.version, labels(answer)) == (2, ["a@2"])


def test_other_processes_versions_are_looked_for_about_once_a_second(batcher: Batcher, fake: Any) -> None:
    for _ in range(14):
        gathered(batcher.predict(["a"], 1))
        time.sleep(0.05)
    assert 1 <= fake.refreshed <= 2


def test_a_version_that_can_not_be_read_stops_nothing(batcher: Batcher, fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> bool:
        raise DataError("damaged")

    monkeypatch.setattr(fake, "refresh", fail)
    time.sleep(1.2)
    assert labels(gathered(batcher.predict(["a"], 1))[0]) == ["a@1"]


def test_what_waits_when_it_closes_is_refused(batcher: Batcher, fake: Any) -> None:
    fake.gate.clear()

    async def run() -> list[Any]:
        first = asyncio.create_task(batcher.predict(["first"], 1))
        while not fake.calls:
            await asyncio.sleep(0.01)
        second = asyncio.create_task(batcher.predict(["second"], 1))
        await asyncio.sleep(0.01)
        closing = asyncio.create_task(asyncio.to_thread(batcher.close))
        with pytest.raises(BusyError, match="stopping"):
            await second
        with pytest.raises(BusyError, match="stopping"):
            await batcher.predict(["third"], 1)
        fake.gate.set()
        await closing
        return [await first]

    assert labels(asyncio.run(run())[0]) == ["first@1"]
