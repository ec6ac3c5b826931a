"""SLDA: streaming linear discriminant analysis on frozen features."""

from __future__ import annotations

import torch
from torch import Tensor

from latewood.core.errors import ConfigurationError
from latewood.parts.backbone import Backbone
from latewood.parts.closed_form import ClosedFormClassifier
from latewood.parts.statistics import SharedCovariance


class SLDA(ClosedFormClassifier):
    """Deep streaming linear discriminant analysis (Hayes and Kanan, 2020).

    Class means and one covariance shared by all classes, updated as samples arrive; with the precision
    ``P = ((1 - shrinkage) Sigma + shrinkage I)^-1`` the score of class ``c`` is ``m_c' P z - 1/2 m_c' P m_c``.

    The paper updates Sigma sample by sample around the running means, so its Sigma depends on the order; ours is the exact
    within-class covariance of all samples so far, the same for every order and grouping.

    >>> from latewood.images.nets.pixels import pixels
    >>> from latewood.images.streams.split import split
    >>> stream = split("digits", steps=5)
    >>> learner = SLDA(pixels(stream.example), shrinkage=0.01)
    >>> for experience in stream:
    ...     learner.learn(experience)
    >>> stream.probes[0].score(learner)["accuracy"] > 0.9
    True
    """

    def __init__(self, backbone: Backbone, shrinkage: float = 1e-4) -> None:
        super().__init__(backbone)
        if not 0 <= shrinkage <= 1:
            raise ConfigurationError(f"shrinkage must lie between 0 and 1, but it is {shrinkage}.")
        self.shrinkage = shrinkage
        self.statistics = SharedCovariance(backbone.width)

    def update(self, features: Tensor, columns: Tensor) -> None:
        self.statistics.update(features, columns, len(self.classes))

    def downdate(self, features: Tensor, columns: Tensor) -> None:
        self.statistics.subtract(features, columns)

    def keep(self, columns: Tensor) -> None:
        self.statistics.classes.keep(columns)

    def linear(self) -> tuple[Tensor, Tensor]:
        """Weight (width, classes) and bias (classes,) of the scores, which are linear in the features."""
        covariance, means = self.statistics.covariance(), self.statistics.classes.means()
        eye = torch.eye(len(covariance)).to(covariance)
        weight = torch.linalg.solve((1 - self.shrinkage) * covariance + self.shrinkage * eye, means.T)
        bias = -0.5 * (weight.T * means).sum(1)
        return weight, bias.masked_fill(self.statistics.classes.counts == 0, -torch.inf)

    def score(self, features: Tensor) -> Tensor:
        weight, bias = self.linear()
        return features.to(weight) @ weight + bias
