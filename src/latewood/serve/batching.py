"""Many requests, one call of the model: what arrives within a few milliseconds is predicted together."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from latewood.core.errors import DataError, LatewoodError
from latewood.serve.limits import BusyError, Limits

if TYPE_CHECKING:
    from latewood.model.facts import Guess
    from latewood.model.model import Model

_REFRESH_SECONDS = 1.0
_log = logging.getLogger(__name__)


class Answer(NamedTuple):
    """The guesses for each input, best first, and the number of the version that made them."""

    version: int
    guesses: list[list[Guess]]


@dataclass(frozen=True)
class _Request:
    inputs: Sequence[str] | Sequence[bytes]
    top: int
    future: asyncio.Future[Answer]

    def deliver(self, result: Answer | Exception) -> None:
        with suppress(RuntimeError):  # the loop has ended, and with it whoever waited
            self.future.get_loop().call_soon_threadsafe(self._set, result)

    def _set(self, result: Answer | Exception) -> None:
        if self.future.done():  # whoever waited gave up
            return
        if isinstance(result, Exception):
            self.future.set_exception(result)
        else:
            self.future.set_result(result)


class Batcher:
    """Predicts for many requests at once in a thread of its own, which also takes up other processes' versions.

    A request whose inputs are bad fails alone: a batch that fails is halved until the culprit is found.
    """

    def __init__(self, model: Model, limits: Limits, observe: Callable[[int], None] = lambda inputs: None) -> None:
        """``observe`` is told the number of inputs of every batch."""
        self._model, self._limits, self._observe = model, limits, observe
        self._requests: deque[_Request] = deque()
        self._inputs = 0
        self._closed = False
        self._refreshed = time.monotonic()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="latewood-predict", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Inputs that no batch has taken yet."""
        return self._inputs

    async def predict(self, inputs: Sequence[str] | Sequence[bytes], top: int) -> Answer:
        """Errors: :class:`BusyError` if too much is waiting already; :class:`TimeoutError`; whatever the model raises."""
        request = _Request(inputs, top, asyncio.get_running_loop().create_future())
        with self._changed:
            if self._closed:
                raise BusyError("The service is stopping.")
            if self._inputs + len(inputs) > self._limits.waiting_inputs:
                raise BusyError(f"{self._inputs} inputs are waiting already; try again in a moment.")
            self._requests.append(request)
            self._inputs += len(inputs)
            self._changed.notify()
        async with asyncio.timeout(self._limits.answer_seconds):
            return await request.future

    def close(self) -> None:
        """Refuse what waits and let the thread end after the batch at hand."""
        with self._changed:
            self._closed = True
            left, self._inputs = list(self._requests), 0
            self._requests.clear()
            self._changed.notify()
        for request in left:
            request.deliver(BusyError("The service is stopping."))
        self._thread.join(self._limits.stop_seconds)

    def _work(self) -> None:
        while not self._closed:
            batch = self._next()
            self._refresh()
            if batch:
                self._observe(sum(len(request.inputs) for request in batch))
                self._answer(batch)

    def _next(self) -> list[_Request]:
        """The next batch; empty if nothing came for a while."""
        with self._changed:
            self._changed.wait_for(lambda: self._requests or self._closed, _REFRESH_SECONDS)
            if self._requests:
                self._changed.wait_for(lambda: self._inputs >= self._limits.batch_inputs, self._limits.batch_seconds)
            batch: list[_Request] = []
            size = 0
            while self._requests and (not batch or size + len(self._requests[0].inputs) <= self._limits.batch_inputs):
                request = self._requests.popleft()
                self._inputs -= len(request.inputs)
                if not request.future.done():
                    batch.append(request)
                    size += len(request.inputs)
            return batch

    def _refresh(self) -> None:
        if time.monotonic() - self._refreshed < _REFRESH_SECONDS:
            return
        try:
            self._model.refresh()
        except (LatewoodError, OSError) as error:
            _log.warning("The newest version can't be taken up, and the one before goes on: %s", error)
        self._refreshed = time.monotonic()

    def _answer(self, batch: Sequence[_Request]) -> None:
        try:
            version, guesses = self._predict([one for request in batch for one in request.inputs], max(r.top for r in batch))
        except Exception as error:  # any error belongs to the request that caused it, and must not end the thread
            if len(batch) == 1:
                batch[0].deliver(error)
                return
            half = len(batch) // 2
            self._answer(batch[:half])
            self._answer(batch[half:])
            return
        start = 0
        for request in batch:
            end = start + len(request.inputs)
            request.deliver(Answer(version, [found[: request.top] for found in guesses[start:end]]))
            start = end

    def _predict(self, inputs: Sequence[str | bytes], top: int) -> Answer:
        while True:
            version = self._model.version
            guesses = self._model.predict(inputs, top=top)
            if len(guesses) != len(inputs):  # dealt out, they would reach the wrong requests
                raise DataError("An input holds nothing that can be predicted.")
            if self._model.version.number == version.number:  # else it switched meanwhile: which one answered is unknown
                return Answer(version.number, guesses)
