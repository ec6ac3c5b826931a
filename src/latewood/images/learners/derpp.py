"""DER++ (der++): replay the logits that old samples had, beside their labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from latewood.core.data import Data
from latewood.core.experience import Experience
from latewood.core.recipe import Recipe
from latewood.parts.backbone import Backbone
from latewood.parts.heads import ClassifierLearner
from latewood.parts.memory import Reservoir


class DERpp(ClassifierLearner):
    """Dark Experience Replay++ (Buzzega et al., 2020, eq. 6).

    ``loss = CE(x) + alpha * MSE(logits(x'), z') + beta * CE(x'', y'')`` with two independent draws from a reservoir that holds
    raw images, labels, and the logits ``z`` that each had when it was stored (as the training step computed them).

    The paper's head has its final width from the start; ours grows. A stored logit vector is widened with zeros as the
    head grows and compared only on the classes that existed when it was stored, whose number the row remembers.

    >>> from latewood.images.nets.mlp import mlp
    >>> from latewood.images.streams.split import split
    >>> stream = split("digits", steps=5)
    >>> learner = DERpp(mlp(stream.example), memory=50)
    >>> learner.learn(stream[0])
    >>> sorted(learner.kept.data)
    ['image', 'label', 'logits', 'width']
    """

    def __init__(
        self,
        backbone: Backbone,
        memory: int = 2000,
        alpha: float = 0.3,
        beta: float = 0.5,
        recipe: Recipe = Recipe(epochs=5),
    ) -> None:
        super().__init__(backbone, recipe)
        self.memory, self.alpha, self.beta = memory, alpha, beta
        self.kept = Reservoir(memory)

    def prepare(self, experience: Experience) -> None:
        super().prepare(experience)
        self.kept.widen("logits", len(self.net.classes))

    def loss(self, batch: Data) -> Tensor:
        logits = self.logits(batch)
        self._batch_logits = logits.detach().float()
        loss = self.cross_entropy(logits, batch)
        if len(self.kept):
            dark, labelled = (self.kept.sample(len(batch), self.generator) for _ in range(2))
            loss = loss + self.alpha * self.dark_loss(self.logits(dark), dark)
            loss = loss + self.beta * self.cross_entropy(self.logits(labelled), labelled)
        return loss

    @staticmethod
    def dark_loss(logits: Tensor, dark: Data) -> Tensor:
        """Mean squared distance to the stored logits over the classes that each row knew when it was stored."""
        known = torch.arange(logits.shape[1], device=logits.device) < dark.tensor("width")[:, None]
        return F.mse_loss(logits[known], dark.tensor("logits")[known])

    def after_batch(self, batch: Data) -> None:
        if self.epoch == 0:  # a sample passes the memory once, however often it is trained on
            width = torch.full((len(batch),), self._batch_logits.shape[1], device=self._batch_logits.device)
            self.kept.add(batch.with_columns(logits=self._batch_logits, width=width), self.generator)
