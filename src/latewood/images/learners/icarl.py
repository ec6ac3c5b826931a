"""iCaRL: exemplars by herding, distillation, and the nearest mean of exemplars as the classifier."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from latewood.core.data import Data, concat
from latewood.core.experience import Experience
from latewood.core.recipe import Recipe
from latewood.parts.backbone import Backbone
from latewood.parts.distillation import Teacher
from latewood.parts.growing import Growing
from latewood.parts.heads import Classifier, ClassifierLearner
from latewood.parts.memory import Exemplars
from latewood.parts.rehearsal import choose_exemplars, normalised_features


class ICaRL(Growing, ClassifierLearner):
    """Incremental Classifier and Representation Learning (Rebuffi et al., 2017).

    Trains on the arrival and the exemplars together: cross-entropy over all classes seen plus distillation of the old
    classes' logits (softmax, as the survey of Zhou et al., 2024, re-evaluates it; the original has sigmoids). Then shares
    ``memory`` equally among the classes by herding. Predicts by the nearest mean of exemplars under the network as it is
    now (``rule="nme"``, the method) or by the head (``rule="head"``).

    >>> from latewood.images.nets.mlp import mlp
    >>> from latewood.images.streams.split import split
    >>> stream = split("digits", steps=5)
    >>> learner = ICaRL(mlp(stream.example), memory=100)
    >>> learner.learn(stream[0]); learner.learn(stream[1])
    >>> learner.kept.data["label"].unique(return_counts=True)[1]
    tensor([25, 25, 25, 25])
    """

    deployed: ClassVar[tuple[str, ...]] = ("net", "means")

    def __init__(
        self,
        backbone: Backbone,
        memory: int = 2000,
        strength: float = 1.0,
        temperature: float = 2.0,
        rule: Literal["nme", "head"] = "nme",
        recipe: Recipe = Recipe(epochs=5),
    ) -> None:
        super().__init__(backbone, recipe)
        self.memory, self.strength, self.temperature, self.rule = memory, strength, temperature, rule
        self.kept = Exemplars(memory)
        self.teacher: Teacher[Classifier] = Teacher(self.net)
        self.register_buffer("means", torch.zeros(0, backbone.width))

    means: Tensor

    def training_data(self, experience: Experience) -> Data:
        return concat(experience.train, self.kept.data) if len(self.kept) else experience.train

    def loss(self, batch: Data) -> Tensor:
        inputs = self.net.prepare(batch)
        logits = self.net(inputs)
        distillation = self.teacher.distillation(inputs, logits, self.temperature)
        return self.cross_entropy(logits, batch) + self.strength * distillation

    def conclude(self, experience: Experience) -> None:
        choose_exemplars(self.kept, self.net, experience)
        self.teacher.take()
        self.means = self._exemplar_means()

    @torch.no_grad()
    def scores(self, data: Data, batch_size: int = 512) -> Tensor:
        if self.rule == "head":
            return super().scores(data, batch_size)
        self.eval()
        similarity = normalised_features(self.net, data, batch_size) @ self.means.T
        return self.net.classes.restrict(similarity, data)

    @torch.no_grad()
    def _exemplar_means(self) -> Tensor:
        """The renormalised mean of each class's normalised exemplar features, shape ``(classes, width)``."""
        features = normalised_features(self.net, self.kept.data)
        members = F.one_hot(self.net.targets(self.kept.data), len(self.net.classes)).to(features)
        return F.normalize(members.T @ features)
