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
from latewood.core.preset import Preset
from latewood.language.learner import LanguageLearner
from latewood.language.learners.replay import old_rows
from latewood.language.mixture import Mixture
from latewood.language.nets.causal import CausalLM
from latewood.language.recipe import TextRecipe
from latewood.parts.disk_buffer import DiskBuffer
from latewood.parts.reptile import Anchor


def _paper(layers: int, width: int, ffn: int, heads: int, lr: float) -> Preset:
    """The paper's stream of three languages for one of its model sizes."""
    corpora = ("mlfoundations/dclm-baseline-1.0", "oscar-corpus/OSCAR-2301:fr", "oscar-corpus/OSCAR-2301:de")
    sizes = {"layers": layers, "width": width, "ffn": ffn, "heads": heads, "vocabulary": 128_256, "context": 2048}
    recipe: dict[str, Any] = {"lr": lr, "floor": round(5e-5 / lr, 3), "warmup": 0.01, "weight_decay": 0.1, "clip": 1.0}
    # A quarter of each batch is replayed, so there are a third more steps than the 11,921 of 4,096 new rows.
    recipe |= {"batch_size": 4096, "accumulation": 64, "steps": 15_895, "arrivals": 3, "save_every": 500}
    return Preset(
        f"text-{','.join(corpora)}",
        {
            "backbone": sizes,
            "stream": {"tokenizer": "meta-llama/Meta-Llama-3-8B", "length": 2048, "held_out": 2048},
            **{"share": 0.25, "every": 500, "eps": 0.1, "warm_fill": 50 * 3072},
            "recipe": recipe | {"precision": "bfloat16"},
        },
        "Sizes, rates and schedule of the authors' configurations, replay and pull of the paper; rotary embeddings here turn "
        "all features and not a quarter of them, and new tokens are held fixed.",
    )


class MER(LanguageLearner):
    """Meta-experience replay for continual pre-training (Abbes et al., 2025, arXiv 2508.01908).

    ``share`` of each batch are rows that passed before, drawn uniformly from a buffer on disk that keeps every row (or, with
    ``capacity``, a uniform sample); new rows are stored before the draw, and replay starts once the buffer holds
    ``warm_fill`` of them. After ``every`` steps the weights go back to ``eps`` of the way from where they were after the last
    pull, and training goes on from there; the optimiser does not notice. ``eps=1`` is plain replay, ``share=0``
    Reptile alone. For the paper's setting, one schedule over the whole stream, set ``recipe.arrivals`` and ``recipe.steps``.

    The paper's ``every=500, eps=0.1`` is for thousands of pulls; the defaults here suit runs of a few thousand steps.
    The buffer lies with the run's files, or in ``folder``; without either, in a temporary folder that ends with the learner.
    It can be taken back to where it was after the newest two arrivals, as far as a run's checkpoints reach; with ``capacity``
    what was kept for older ones goes when an arrival begins.

    >>> from latewood.language.nets import causal
    >>> text = Data(tokens=torch.tensor(list(b"late wood, early wood, " * 40)).reshape(-1, 23).int())
    >>> learner = MER(causal(text[:1], layers=1, width=16, heads=2), share=0.25, recipe=TextRecipe(steps=8))
    >>> learner.learn(Experience(0, text))
    >>> len(learner.buffer)  # 12 new rows a step
    96
    """

    deployed: ClassVar[tuple[str, ...]] = ("backbone",)
    presets: ClassVar[Mapping[str, Preset]] = {
        f"paper-{name}": _paper(*sizes)
        for name, sizes in {
            "99m": (16, 512, 1280, 8, 4e-4),
            "560m": (24, 1024, 2560, 16, 2.8e-4),
            "1b": (24, 1792, 5120, 28, 2.2e-4),
            "6b": (30, 3072, 9216, 24, 1.5e-4),
        }.items()
    }

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
        #: What of the buffer counted after each of the newest two arrivals: those a run can be resumed from.
        self._buffer_states: list[dict[str, Any]] = []
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
            width = experience.train[:1].tensor("tokens").shape[1]
            self._buffer = DiskBuffer(self._place(), (width,), capacity=self.capacity)
        if not self._buffer_states:
            self._buffer.clear()
            return
        self._buffer.load_state(self._buffer_states[-1])
        # Nothing more may go within the arrival: until its end, and if its checkpoint is damaged even then, both are needed.
        if len(self._buffer_states) > 1:
            self._buffer.release(self._buffer_states[0])

    def batch(self, new: Data) -> Data:
        new = new.select("tokens")
        self.buffer.add(new.tensor("tokens"), self.generator)
        if not self.old_rows or len(self.buffer) < self.warm_fill:
            return new
        return concat(new, Data(tokens=self.buffer.draw(self.old_rows, self.generator)))

    def after_step(self, step: int, optimizer: torch.optim.Optimizer, mixture: Mixture) -> None:
        self.anchor.step(self.every, self.eps)

    def finish(self, experience: Experience) -> None:
        self._buffer_states = [*self._buffer_states[-1:], self.buffer.state()]

    def progress_state(self) -> dict[str, Any]:
        return {"buffer": self.buffer.state()}

    def load_progress(self, state: Mapping[str, Any]) -> None:
        self.buffer.load_state(state["buffer"])

    def get_extra_state(self) -> Tensor:
        """What of the buffer's files counts, as bytes of JSON in a tensor."""
        return torch.tensor(list(json.dumps(self._buffer_states).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Take on what another learner's buffer held; the files must be the same."""
        self._buffer_states = json.loads(bytes(state.tolist()))

    def _place(self) -> Path:
        shelf = current_shelf()
        if self.folder is None and shelf is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="latewood-buffer-")
        place = Path(self.folder or (self._temporary.name if self._temporary else "") or shelf.files / "buffer")  # type: ignore[union-attr]
        place.mkdir(parents=True, exist_ok=True)
        return place
