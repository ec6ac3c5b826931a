"""Progress on long work: one bar that tells the experience, the loss and the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from rich.progress import Progress as RichBar
    from rich.progress import TaskID

_REFRESH_SECONDS = 0.2


class Progress:
    """Receives what happens during a run. This base class shows nothing; :class:`Bar` draws.

    The loss is handed over as a tensor and read a few times a second at the most: reading it makes the processor wait
    for the device.
    """

    #: What else there is to say of the current phase, asked for as rarely as the loss is read.
    aside: Callable[[], str] | None = None

    def start(self, name: str, total: int, done: int = 0) -> None:
        """A run of ``total`` experiences begins, of which ``done`` are done already."""

    def phase(self, text: str, steps: int = 0) -> None:
        """A part of the current experience begins (learning, embedding, probing), of ``steps`` steps if that is known."""

    def step(self, loss: Tensor | None = None) -> None:
        """One step of the current phase is done."""

    def experience_done(self) -> None:
        """The current experience is learned, scored and saved."""

    def tell(self, sentence: str) -> None:
        """Something that the user should know."""
        print(sentence, file=sys.stderr)

    def finish(self) -> None:
        """The run is over, whatever its end."""


class Bar(Progress):
    """A live bar on standard error, drawn with rich: finished experiences, the step within this one, loss, time left."""

    def __init__(self) -> None:
        self._bar: RichBar | None = None
        self._task: TaskID | None = None
        self._steps = self._step = self._done = 0
        self._text = ""
        self._shown = 0.0

    def start(self, name: str, total: int, done: int = 0) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._bar.start()
        self._done = done
        self._task = self._bar.add_task(name, total=total, completed=done, text="")

    def phase(self, text: str, steps: int = 0) -> None:
        self.aside = None
        self._text, self._steps, self._step = text, steps, 0
        self._draw(text)

    def step(self, loss: Tensor | None = None) -> None:
        self._step += 1
        now = time.monotonic()
        if now - self._shown < _REFRESH_SECONDS:
            return
        self._shown = now
        count = f" {self._step}/{self._steps}" if self._steps else ""
        more = self.aside() if self.aside is not None else f"loss {float(loss):.3f}" if loss is not None else ""
        self._draw(f"{self._text}{count}  {more}".rstrip())

    def experience_done(self) -> None:
        self._done += 1
        self._steps = self._step = 0
        self._draw("")

    def tell(self, sentence: str) -> None:
        if self._bar is None:
            super().tell(sentence)
        else:
            self._bar.console.print(sentence)

    def finish(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _draw(self, text: str) -> None:
        if self._bar is not None and self._task is not None:
            part = min(self._step / self._steps, 1.0) if self._steps else 0.0
            self._bar.update(self._task, completed=self._done + 0.99 * part, text=text)


_current: ContextVar[Progress | None] = ContextVar("latewood_progress", default=None)


def current_progress() -> Progress:
    """The progress display of the run around this call; a silent one if there is none."""
    return _current.get() or Progress()


@contextmanager
def showing(progress: Progress) -> Iterator[Progress]:
    """Make ``progress`` current inside the block, and finish it at the end."""
    token = _current.set(progress)
    try:
        yield progress
    finally:
        progress.finish()
        _current.reset(token)


def default_progress() -> Progress:
    """A bar if a person is watching standard error, else silence."""
    return Bar() if sys.stderr.isatty() else Progress()
