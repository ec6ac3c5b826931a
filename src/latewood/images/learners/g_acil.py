"""G-ACIL (paper 23): analytic learning, exactly the joint ridge solution whatever the order of arrivals."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from latewood.core.errors import ConfigurationError
from latewood.parts.backbone import Backbone
from latewood.parts.closed_form import ClosedFormClassifier
from latewood.parts.statistics import RandomExpansion, RecursiveRidge


class GACIL(ClosedFormClassifier):
    """Analytic exemplar-free learning for generalized class-incremental streams (Zhuang et al., 2024, arXiv 2403.15706).

    A frozen backbone, a fixed random expansion with ReLU (the "buffer layer") to ``expansion`` features, and ridge
    regression onto one-hot labels with regularisation ``gamma``, updated recursively batch by batch. Exposed classes (seen
    before) and unexposed ones go through one code: new columns of the weights start at zero, and the residual
    ``Y - X W`` holds the paper's label gain of exposed classes (eq. 15) and the new columns alike. After any arrivals in any
    order the weights equal the joint solution on all samples, and nothing of any sample is kept.

    ``passes`` fits each batch several times, as the authors' online script does (3); that equals weighting every sample so.
    Everything after the backbone is float64; the memory is ``8 * expansion^2`` bytes. ``learn`` takes any number of samples;
    they enter in batches of ``batch_size``, which changes the speed and not the result.

    >>> from latewood.images.nets.pixels import pixels
    >>> from latewood.images.streams.split import split
    >>> stream = split("digits", steps=5)
    >>> learner = GACIL(pixels(stream.example), expansion=300, gamma=1.0)
    >>> for experience in stream:
    ...     learner.learn(experience)
    >>> stream.probes[0].score(learner)["accuracy"] > 0.9
    True
    """

    def __init__(
        self, backbone: Backbone, expansion: int = 5000, gamma: float = 100.0, passes: int = 1, batch_size: int = 256
    ) -> None:
        super().__init__(backbone)
        for name, value in (("expansion", expansion), ("passes", passes), ("batch_size", batch_size)):
            if value < 1:
                raise ConfigurationError(f"{name} must be at least 1, but it is {value}.")
        if not gamma > 0:
            raise ConfigurationError(f"gamma must be above 0, or the solution is not unique; it is {gamma}.")
        self.expansion, self.gamma, self.passes, self.batch_size = expansion, gamma, passes, batch_size
        self.ridge = RecursiveRidge(expansion, gamma)
        self.projection = RandomExpansion(backbone.width, expansion)

    def update(self, features: Tensor, columns: Tensor) -> None:
        self.projection.draw(self.generator)
        self._pass(self.ridge.update, features, columns)

    def downdate(self, features: Tensor, columns: Tensor) -> None:
        self._pass(self.ridge.downdate, features, columns)

    def keep(self, columns: Tensor) -> None:
        self.ridge.keep(columns)

    def _pass(self, change: Callable[[Tensor, Tensor], None], features: Tensor, columns: Tensor) -> None:
        labels = F.one_hot(columns, len(self.classes))
        for rows, targets in zip(features.split(self.batch_size), labels.split(self.batch_size), strict=True):
            expanded = self.projection(rows)
            for _ in range(self.passes):
                change(expanded, targets)
        self.ridge.symmetrise()
        if not torch.isfinite(self.ridge.weight).all():
            raise ConfigurationError(f"The solution is no longer finite; a gamma above {self.gamma} makes it stable.")

    def score(self, features: Tensor) -> Tensor:
        scores: Tensor = self.ridge(self.projection(features))
        return scores
