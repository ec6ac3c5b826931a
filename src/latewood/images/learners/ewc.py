"""EWC: hold each parameter where it was, the more firmly the more it mattered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from latewood.core.data import Data
from latewood.core.experience import Experience
from latewood.core.recipe import Recipe
from latewood.parts.anchors import Anchors, empirical_fisher
from latewood.parts.backbone import Backbone
from latewood.parts.heads import Candidates, ClassifierLearner


class EWC(ClassifierLearner):
    """Elastic Weight Consolidation (Kirkpatrick et al., 2017, eq. 3).

    ``loss = CE + strength * 1/2 sum F (theta - theta*)^2`` with the diagonal of the empirical Fisher information, taken sample
    by sample at the end of each arrival. ``mode``: one quadratic for each arrival (``separate``, kept as the one quadratic
    that their sum is), or a single decaying one around the newest parameters (``online``, Schwarz et al., 2018:
    ``F <- decay * F + F_new``). ``samples`` limits how many samples of an arrival the Fisher information is taken on.
    ``clamp`` is the most that one parameter's information counts for: without it (``None``) a few stiff parameters make
    the descent diverge at strengths that hold the others (1e-4 and strength 1000 are the survey's, Zhou et al., 2024).

    New rows of the head are free. With ``strength = 0`` it is :class:`~latewood.images.learners.finetune.Finetune`.

    >>> from latewood.images.nets.mlp import mlp
    >>> from latewood.images.streams.split import split
    >>> stream = split("digits", steps=5)
    >>> learner = EWC(mlp(stream.example), mode="online")
    >>> learner.learn(stream[0])
    >>> bool((learner.anchors.importance >= 0).all()), learner.anchors.penalty().item()
    (True, 0.0)
    """

    def __init__(
        self,
        backbone: Backbone,
        strength: float = 1000.0,
        mode: Literal["separate", "online"] = "separate",
        decay: float = 1.0,
        samples: int = 1000,
        clamp: float | None = 1e-4,
        candidates: Candidates = "arrival",
        recipe: Recipe = Recipe(epochs=5),
    ) -> None:
        super().__init__(backbone, recipe)
        self.strength, self.mode, self.decay = strength, mode, decay
        self.samples, self.clamp, self.candidates = samples, clamp, candidates
        self.anchors = Anchors(self.net)

    def loss(self, batch: Data) -> Tensor:
        return self.cross_entropy(self.logits(batch), batch, self.candidates) + self.strength * self.anchors.penalty()

    def conclude(self, experience: Experience) -> None:
        chosen = torch.randperm(len(experience.train), generator=self.generator)[: self.samples]
        fisher = empirical_fisher(self.net, F.cross_entropy, self._chunks(experience.train[chosen]))
        if self.clamp is not None:
            fisher = [importance.clamp(max=self.clamp) for importance in fisher]
        if self.mode == "online":
            self.anchors.replace(fisher, self.decay)
        else:
            self.anchors.add(fisher)

    def _chunks(self, data: Data) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in data.batches(32):
            yield self.net.prepare(batch), self.net.targets(batch)
