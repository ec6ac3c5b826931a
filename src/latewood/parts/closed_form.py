"""What closed-form classifiers share: a frozen backbone, the classes, and prediction from scores on features."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from latewood.core.data import Data
from latewood.core.errors import DataError
from latewood.core.experience import Experience
from latewood.core.learner import Learner
from latewood.parts.backbone import Backbone
from latewood.parts.classes import ClassRegistry
from latewood.parts.embedding import Encoder


class ClosedFormClassifier(Learner):
    """Learns from features of a frozen backbone without gradients; a subclass says how to update and how to score.

    ``predict`` gives the label of each row among the classes seen so far (among those of the row's task, if the data
    has a ``task`` column); ``scores`` what it compares. Each sample is embedded once, whatever the number of methods and seeds.
    """

    deployed: ClassVar[tuple[str, ...]] = ("encoder", "classes")

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.encoder = Encoder(backbone)
        self.classes = ClassRegistry()

    @property
    def backbone(self) -> Backbone:
        """The frozen network."""
        return self.encoder.backbone

    @abstractmethod
    def update(self, features: Tensor, columns: Tensor) -> None:
        """Learn features (n, width) with the class column of each (n,), all of them in ``classes`` already."""

    @abstractmethod
    def score(self, features: Tensor) -> Tensor:
        """Scores of features, shape ``(n, classes)``; the largest wins."""

    @torch.no_grad()
    def learn(self, experience: Experience) -> None:
        features = self.encoder(experience.train)
        if not torch.isfinite(features).all():
            raise DataError(f"The backbone gives NaN or infinity for experience {experience.index}; nothing was learned.")
        self.classes.expose_all(experience)
        self.update(features, self.classes.columns(experience.train.tensor("label")))

    @torch.no_grad()
    def scores(self, data: Data) -> Tensor:
        """Scores, shape ``(len(data), classes)``, columns as in ``classes.labels``."""
        if not len(self.classes):
            return torch.empty(len(data), 0, device=self.classes.place)
        scores = self.score(self.encoder(data)).to(self.classes.place)
        return self.classes.restrict(scores, data)

    def predict(self, data: Data) -> Tensor:
        return self.classes.best(self.scores(data))
