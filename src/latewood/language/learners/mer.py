"""MER (paper 49): replay from a buffer on disk, and Reptile's pull for gradients that agree."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from latewood.core.checkpoint import current_shelf
from latewood.core.data import Data, concat
from latewood.core.errors import ConfigurationError
from latewood.core.experience import Experience
from latewood.language.learner import LanguageLearner
from latewood.language.learners.replay import old_rows
from latewood.language.mixture import Mixture
from latewood.language.nets.causal import CausalLM
from latewood.language.recipe import TextRecipe
from latewood.parts.disk_buffer import DiskBuffer
from latewood.parts.reptile import Anchor


class MER(LanguageLearner):
    """Meta-experience replay for continual pre-training (Abbes et al., 2025, arXiv 2508.01908).

    ``share`` of each batch are rows that passed before, drawn uniformly from a buffer on disk that keeps every row (or, with
    ``capacity``, a uniform sample); new rows are stored before the draw, and replay starts once the buffer holds
    ``warm_fill`` of them. After ``every`` steps the weights go back to ``eps`` of the way from where they were after the last
    pull, and training goes on from there; the optimiser does not notice. ``eps=1`` is plain replay, ``share=0``
    Reptile alone. For the paper's setting, one schedule over the whole stream, set ``recipe.arrivals`` and ``recipe.steps``.

    The paper's ``every=500, eps=0.1`` is for thousands of pulls; the defaults here suit runs of a few thousand steps.
    The buffer lies with the run's files, or in ``folder``; without either, in a temporary folder that ends with the learner.

    >>> from latewood.language.nets import causal
    >>> text = Data(tokens=torch.tensor(list(b"late wood, early wood, " * 40)).reshape(-1, 23).int())
    >>> learner = MER(causal(text[:1], layers=1, width=16, heads=2), share=0.25, recipe=TextRecipe(steps=8))
    >>> learner.learn(Experience(0, text))
    >>> len(learner.buffer)  # 12 new rows a step
    96
    """

    deployed: ClassVar[tuple[str, ...]] = ("backbone",)

    def __init__(
        self,
        backbone: CausalLM,
        share: float = 0.25,
        every: int = 5,
        eps: float = 0.8,
        capacity: int | None = None,
        warm_fill: int = 0,
        folder: str | None = None,
        recipe: TextRecipe = TextRecipe(),
    ) -> None:
        super().__init__(backbone, recipe)
        if every < 1 or not 0 <= eps <= 1:
            raise ConfigurationError(f"every must be at least 1 and eps lie from 0 to 1, but they are {every} and {eps}.")
        self.share, self.every, self.eps = share, every, eps
        self.capacity, self.warm_fill, self.folder = capacity, warm_fill, folder
        self.old_rows = old_rows(share, recipe.batch_size)
        self.anchor = Anchor(backbone)
        self._buffer: DiskBuffer | None = None
        self._buffer_state: dict[str, Any] | None = None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    @property
    def buffer(self) -> DiskBuffer:
        """The rows that passed; there once something was learned."""
        if self._buffer is None:
            raise ConfigurationError("The buffer is made when the first arrival comes.")
        return self._buffer

    def rows(self) -> int:
        return self.recipe.batch_size - self.old_rows

    def begin(self, experience: Experience) -> None:
        if self._buffer is None:
            width = experience.train.tensor("tokens").shape[1]
            self._buffer = DiskBuffer(self._place(), (width,), capacity=self.capacity)
        if self._buffer_state is None:
            self._buffer.clear()
        else:
            self._buffer.load_state(self._buffer_state)

    def batch(self, new: Data) -> Data:
        new = new.select("tokens")
        self.buffer.add(new.tensor("tokens"), self.generator)
        if not self.old_rows or len(self.buffer) < self.warm_fill:
            return new
        return concat(new, Data(tokens=self.buffer.draw(self.old_rows, self.generator)))

    def after_step(self, step: int, optimizer: torch.optim.Optimizer, mixture: Mixture) -> None:
        self.anchor.step(self.every, self.eps)

    def finish(self, experience: Experience) -> None:
        self._buffer_state = self.buffer.state()

    def progress_state(self) -> dict[str, Any]:
        return {"buffer": self.buffer.state()}

    def load_progress(self, state: Mapping[str, Any]) -> None:
        self.buffer.load_state(state["buffer"])

    def get_extra_state(self) -> Tensor:
        """What of the buffer's files counts, as bytes of JSON in a tensor."""
        return torch.tensor(list(json.dumps(self._buffer_state).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Take on what another learner's buffer held; the files must be the same."""
        self._buffer_state = json.loads(bytes(state.tolist()))

    def _place(self) -> Path:
        shelf = current_shelf()
        if self.folder is None and shelf is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="latewood-buffer-")
        place = Path(self.folder or (self._temporary.name if self._temporary else "") or shelf.files / "buffer")  # type: ignore[union-attr]
        place.mkdir(parents=True, exist_ok=True)
        return place
