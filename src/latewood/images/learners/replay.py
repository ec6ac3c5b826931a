"""Replay: rehearse a small memory of old samples beside the new ones."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from latewood.core.data import Data, concat
from latewood.core.experience import Experience
from latewood.core.recipe import Recipe
from latewood.parts.backbone import Backbone
from latewood.parts.heads import ClassifierLearner
from latewood.parts.memory import ClassBalanced, Exemplars, Reservoir
from latewood.parts.rehearsal import choose_exemplars

POLICIES: dict[str, type[Reservoir | ClassBalanced]] = {"reservoir": Reservoir, "balanced": ClassBalanced}


class Replay(ClassifierLearner):
    """Experience replay (Chaudhry et al., 2019): each batch is joined by as many samples of the memory, drawn uniformly,
    under one cross-entropy over all classes seen.

    ``memory`` is the number of samples kept. What stays in it: a uniform sample of everything that passed
    (``reservoir``), equally many of each class (``balanced``), or, chosen once an arrival is learned, those whose mean
    feature is nearest to their class's mean (``herding``).

    >>> from latewood.images.nets.mlp import mlp
    >>> from latewood.images.streams.split import split
    >>> stream = split("digits", steps=5)
    >>> learner = Replay(mlp(stream.example), memory=50)
    >>> learner.learn(stream[0])
    >>> len(learner.kept)
    50
    """

    kept: Reservoir | ClassBalanced | Exemplars

    def __init__(
        self,
        backbone: Backbone,
        memory: int = 2000,
        policy: Literal["reservoir", "balanced", "herding"] = "reservoir",
        recipe: Recipe = Recipe(epochs=5),
    ) -> None:
        super().__init__(backbone, recipe)
        self.memory, self.policy = memory, policy
        self.kept = Exemplars(memory) if policy == "herding" else POLICIES[policy](memory)

    def loss(self, batch: Data) -> Tensor:
        if len(self.kept):
            batch = concat(batch, self.kept.sample(len(batch), self.generator))
        return self.cross_entropy(self.logits(batch), batch)

    def after_batch(self, batch: Data) -> None:
        if self.epoch == 0 and not isinstance(self.kept, Exemplars):  # a sample passes the memory once
            self.kept.add(batch, self.generator)

    def conclude(self, experience: Experience) -> None:
        if isinstance(self.kept, Exemplars):
            choose_exemplars(self.kept, self.net, experience)
