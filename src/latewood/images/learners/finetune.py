"""Finetune: train on each arrival as if nothing had come before; the lower bound."""

from __future__ import annotations

from torch import Tensor

from latewood.core.data import Data
from latewood.core.recipe import Recipe
from latewood.parts.backbone import Backbone
from latewood.parts.heads import Candidates, ClassifierLearner


class Finetune(ClassifierLearner):
    """Sequential fine-tuning, which forgets: every method must beat it.

    ``candidates``: the cross-entropy runs over the classes of the ``arrival`` only (the class-incremental convention, Zhou
    et al., 2024) or over all ``seen``, which pushes the old classes' logits down and forgets faster.

    >>> from latewood.images.nets.mlp import mlp
    >>> from latewood.images.streams.split import split
    >>> stream = split("digits", steps=5)
    >>> learner = Finetune(mlp(stream.example))
    >>> learner.learn(stream[0])
    >>> learner.predict(stream.probes[0].data).shape == (len(stream.probes[0].data),)
    True
    """

    def __init__(self, backbone: Backbone, candidates: Candidates = "arrival", recipe: Recipe = Recipe(epochs=5)) -> None:
        super().__init__(backbone, recipe)
        self.candidates = candidates

    def loss(self, batch: Data) -> Tensor:
        return self.cross_entropy(self.logits(batch), batch, self.candidates)
