"""A model at work: predictions in batches, changes in turn, and numbers for a monitor."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException

from latewood.core.errors import ConfigurationError, DataError
from latewood.serve import schema
from latewood.serve.batching import Batcher
from latewood.serve.jobs import Job, Jobs
from latewood.serve.limits import Limits
from latewood.serve.metrics import Metrics

if TYPE_CHECKING:
    from latewood.model.model import Model

_WAIT_SECONDS = 30.0  # for another process that is changing the same model


class Service:
    """Owns the two threads beside the event loop: one predicts, one changes the model. :meth:`close` ends both."""

    def __init__(self, model: Model, limits: Limits) -> None:
        self.model, self.limits, self.metrics = model, limits, Metrics()
        self._batcher = Batcher(model, limits, self.metrics.batch)
        self._jobs = Jobs(limits, self.metrics.job)
        self.metrics.watch("waiting_inputs", "Inputs that wait for a batch.", lambda: self._batcher.waiting)
        self.metrics.watch(
            "unfinished_jobs", "Changes of the model that wait or are being made.", lambda: self._jobs.unfinished
        )
        self.metrics.watch("version", "Number of the current version.", lambda: model.version.number)
        self.metrics.watch("classes", "Classes that the model knows.", lambda: len(model.classes))

    async def predict(self, inputs: Sequence[str] | Sequence[bytes], top: int) -> schema.Predictions:
        answer = await self._batcher.predict(inputs, top)
        guesses = [[schema.Guess.model_validate(guess) for guess in found] for found in answer.guesses]
        return schema.Predictions(version=answer.version, predictions=guesses)

    def learn(self, inputs: Sequence[str] | Sequence[bytes], labels: Sequence[str]) -> schema.Job:
        if len(inputs) != len(labels):
            raise DataError(f"There are {len(inputs)} inputs but {len(labels)} labels; give one label for each input.")
        data = list(zip(inputs, labels, strict=True))
        source = f"upload {datetime.now(UTC):%Y-%m-%d %H:%M:%S}"

        def work(job: Job) -> None:
            job.outcome = self.model.learn(data, source=source, wait=_WAIT_SECONDS, progress=job)
            job.version = job.outcome.version.number

        return schema.Job.of(self._jobs.submit("learn", work))

    def rollback(self, number: int) -> schema.Job:
        if all(version.number != number for version in self.model.log()):
            raise HTTPException(404, f"There is no version {number}; GET /versions lists those that there are.")

        def work(job: Job) -> None:
            job.version = self.model.rollback(number, wait=_WAIT_SECONDS).number

        return schema.Job.of(self._jobs.submit("rollback", work))

    def accept(self) -> schema.Job:
        self._need_candidate()

        def work(job: Job) -> None:
            job.version = self.model.accept(wait=_WAIT_SECONDS).number

        return schema.Job.of(self._jobs.submit("accept", work))

    def reject(self) -> schema.Job:
        self._need_candidate()
        return schema.Job.of(self._jobs.submit("reject", lambda job: self.model.reject(wait=_WAIT_SECONDS)))

    def job(self, id: str) -> schema.Job:
        try:
            return schema.Job.of(self._jobs[id])
        except KeyError:
            raise HTTPException(404, "There is no such job, or it ended long ago.") from None

    def state(self) -> schema.Model:
        return schema.Model.of(self.model, self._jobs.unfinished)

    def versions(self, limit: int) -> schema.Versions:
        newest = self.model.log()[-limit:]
        versions = [schema.Version.of(version, self.model.available(version)) for version in newest]
        return schema.Versions(current=self.model.version.number, versions=versions)

    async def close(self) -> None:
        await asyncio.gather(asyncio.to_thread(self._batcher.close), asyncio.to_thread(self._jobs.close))

    def _need_candidate(self) -> None:
        if self.model.candidate is None:
            raise ConfigurationError("No version is held back; there is nothing to accept or reject.")
