"""LwF: keep answering for the old classes as the old model did, on the new data."""

from __future__ import annotations

from torch import Tensor

from latewood.core.data import Data
from latewood.core.experience import Experience
from latewood.core.recipe import Recipe
from latewood.parts.backbone import Backbone
from latewood.parts.distillation import Teacher
from latewood.parts.heads import Candidates, Classifier, ClassifierLearner


class LwF(ClassifierLearner):
    """Learning without Forgetting (Li and Hoiem, 2016) in its class-incremental form (Zhou et al., 2024).

    ``loss = CE + strength * KD``: the distillation, at ``temperature``, holds the logits of the classes known before this
    arrival to those of the model as it was then, on the very images that the student sees. No old sample is kept. With
    ``strength = 0`` it is :class:`~latewood.images.learners.finetune.Finetune`.

    >>> from latewood.images.nets.mlp import mlp
    >>> from latewood.images.streams.split import split
    >>> stream = split("digits", steps=5)
    >>> learner = LwF(mlp(stream.example))
    >>> learner.learn(stream[0]); learner.learn(stream[1])
    >>> len(learner.teacher.snapshot.classes)
    4
    """

    def __init__(
        self,
        backbone: Backbone,
        strength: float = 3.0,
        temperature: float = 2.0,
        candidates: Candidates = "arrival",
        recipe: Recipe = Recipe(epochs=5),
    ) -> None:
        super().__init__(backbone, recipe)
        self.strength, self.temperature, self.candidates = strength, temperature, candidates
        self.teacher: Teacher[Classifier] = Teacher(self.net)

    def loss(self, batch: Data) -> Tensor:
        inputs = self.net.prepare(batch)
        logits = self.net(inputs)
        distillation = self.teacher.distillation(inputs, logits, self.temperature)
        return self.cross_entropy(logits, batch, self.candidates) + self.strength * distillation

    def conclude(self, experience: Experience) -> None:
        self.teacher.take()
