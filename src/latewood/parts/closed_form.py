"""What closed-form classifiers share: a frozen backbone, the classes, and prediction from scores on features."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError, DataError
from latewood.core.experience import Experience
from latewood.core.learner import Learner
from latewood.parts.backbone import Backbone
from latewood.parts.classes import ClassRegistry
from latewood.parts.embedding import Encoder

#: Rows that are scored at once: random expansions of more would take gigabytes.
_ROWS = 4096


class ClosedFormClassifier(Learner):
    """Learns from features of a frozen backbone without gradients; a subclass says how to update and how to score.

    ``predict`` gives the label of each row among the classes seen so far (among those of the row's task, if the data
    has a ``task`` column); ``scores`` what it compares. Each sample is embedded once, whatever the number of methods and seeds.

    Where statistics can be subtracted as they were added, it also forgets exactly: see :meth:`forget`.
    """

    deployed: ClassVar[tuple[str, ...]] = ("encoder", "classes")
    #: Nets for a learner that is not told which, the first that suits the data: random weights would be no better than none.
    prefers: ClassVar[tuple[str, ...]] = ("vit-tiny-imagenet", "pixels")

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

    def downdate(self, features: Tensor, columns: Tensor) -> None:
        """Take out again what :meth:`update` added for these samples, where a subclass can."""
        raise ConfigurationError(f"{type(self).__name__} can't subtract samples, so it can't forget them exactly.")

    def keep(self, columns: Tensor) -> None:
        """Drop every class but those with these columns, where a subclass can."""
        raise ConfigurationError(f"{type(self).__name__} can't drop classes.")

    @property
    def can_forget(self) -> bool:
        """Whether :meth:`forget` works."""
        return type(self).downdate is not ClosedFormClassifier.downdate

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
    def forget(self, data: Data, classes: Iterable[int] = ()) -> None:
        """Unlearn samples that were learned before: what stays equals, up to rounding, a learner that never saw them.

        ``data`` has the columns of an arrival. ``classes`` are labels of which no sample is left; they are no longer known
        afterwards. Errors: :class:`~latewood.core.errors.DataError` for a label that never arrived, or samples that can't
        have been learned; :class:`~latewood.core.errors.ConfigurationError` if this learner can't.
        """
        if not self.can_forget:
            raise ConfigurationError(f"{type(self).__name__} with these settings can't forget exactly.")
        if len(data):
            self.downdate(self.encoder(data), self.classes.columns(data.tensor("label")))
        self.keep(self.classes.drop(classes))

    @torch.no_grad()
    def scores(self, data: Data) -> Tensor:
        """Scores, shape ``(len(data), classes)``, columns as in ``classes.labels``."""
        if not len(self.classes):
            return torch.empty(len(data), 0, device=self.classes.place)
        features = self.encoder(data)
        scores = torch.cat([self.score(rows) for rows in features.split(_ROWS)]).to(self.classes.place)
        return self.classes.restrict(scores, data)

    def predict(self, data: Data) -> Tensor:
        return self.classes.best(self.scores(data))
