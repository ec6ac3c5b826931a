"""Joint: train on all data so far at every arrival; the upper bound."""

from __future__ import annotations

from torch import Tensor

from latewood.core.data import Data, concat
from latewood.core.experience import Experience
from latewood.core.recipe import Recipe
from latewood.parts.backbone import Backbone
from latewood.parts.heads import ClassifierLearner
from latewood.parts.memory import Memory


class Joint(ClassifierLearner):
    """Keeps every sample that ever arrived and trains on all of them each time: what incremental learning saves, and the
    accuracy that it is measured against. Its cost grows with everything that came before.

    Training continues from the weights of the last arrival; the head grows with the classes.

    >>> from latewood.images.nets.mlp import mlp
    >>> from latewood.images.streams.split import split
    >>> stream = split("digits", steps=5)
    >>> learner = Joint(mlp(stream.example))
    >>> learner.learn(stream[0]); learner.learn(stream[1])
    >>> len(learner.kept) == len(stream[0].train) + len(stream[1].train)
    True
    """

    def __init__(self, backbone: Backbone, recipe: Recipe = Recipe(epochs=5)) -> None:
        super().__init__(backbone, recipe)
        self.kept = Memory(capacity=2**62)

    def training_data(self, experience: Experience) -> Data:
        self.kept.replace(concat(self.kept.data, experience.train) if len(self.kept) else experience.train)
        return self.kept.data

    def loss(self, batch: Data) -> Tensor:
        return self.cross_entropy(self.logits(batch), batch)
