"""NMC (paper 29): the nearest mean of frozen features, a floor that every other method must beat."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from latewood.core.errors import ConfigurationError
from latewood.parts.backbone import Backbone
from latewood.parts.closed_form import ClosedFormClassifier
from latewood.parts.statistics import ClassSums


class NMC(ClosedFormClassifier):
    """Nearest mean classifier on a frozen pretrained encoder (Janson et al., 2022, arXiv 2210.04428).

    Keeps for each class the sum of its samples' features, each normalised to length one, and their number. The mean is not
    renormalised; the class of the nearest mean by Euclidean distance wins. Nothing else is learned, so the result is the
    same for every order and grouping of arrivals, and nothing is forgotten by construction.

    ``normalise=False`` takes the features as they are. ``decay`` multiplies all sums and counts before each arrival, so
    that old samples fade in a drifting stream; it is ours and not the paper's.

    >>> from latewood.images.nets.pixels import pixels
    >>> from latewood.images.streams.split import split
    >>> stream = split("digits", steps=5)
    >>> learner = NMC(pixels(stream.example))
    >>> for experience in stream:
    ...     learner.learn(experience)
    >>> stream.probes[0].score(learner)["accuracy"] > 0.8
    True
    """

    def __init__(self, backbone: Backbone, normalise: bool = True, decay: float | None = None) -> None:
        super().__init__(backbone)
        if decay is not None and not 0 < decay <= 1:
            raise ConfigurationError(f"decay must lie above 0 and at most at 1, but it is {decay}.")
        self.normalise, self.decay = normalise, decay
        self.means = ClassSums(backbone.width)

    def update(self, features: Tensor, columns: Tensor) -> None:
        if self.decay is not None:
            self.means.fade(self.decay)
        self.means.update(self._scaled(features), columns, len(self.classes))

    @property
    def can_forget(self) -> bool:
        return self.decay is None  # otherwise nobody knows how much of a sample is left

    def downdate(self, features: Tensor, columns: Tensor) -> None:
        self.means.subtract(self._scaled(features), columns)

    def keep(self, columns: Tensor) -> None:
        self.means.keep(columns)

    def score(self, features: Tensor) -> Tensor:
        # |z - m|^2 = |z|^2 - (2 z m - |m|^2), and |z|^2 is the same for every class.
        means = self.means.means()
        scores: Tensor = 2 * self._scaled(features) @ means.T - means.square().sum(1)
        return scores.masked_fill(self.means.counts == 0, -torch.inf)

    def _scaled(self, features: Tensor) -> Tensor:
        features = features.to(self.means.sums)
        return F.normalize(features) if self.normalise else features


def merged(first: NMC, second: NMC) -> NMC:
    """The learner that would have learned what both did, for streams learned apart: sums and counts add up."""
    if first.encoder.fingerprint != second.encoder.fingerprint or first.config() != second.config():
        raise ConfigurationError("Only learners with the same encoder and settings can be merged.")
    result = NMC(first.backbone, first.normalise, first.decay)
    for part in (first, second):
        result.classes.expose(part.classes.labels.tolist())
        columns = result.classes.columns(part.classes.labels)
        result.means.add(part.means, columns, len(result.classes))
    return result
