"""SimpleCIL (paper 42): class means of raw frozen features, compared by cosine; what a pretrained model can do untrained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from latewood.core.preset import Preset
from latewood.images.benchmarks import BENCHMARKS, VIT
from latewood.parts.backbone import Backbone
from latewood.parts.closed_form import ClosedFormClassifier
from latewood.parts.prototypes import Prototypes

SOURCE = (
    "Table of ViT-B/16 on ImageNet-21k and the authors' code. The weights are the hub's of that name and not timm's, the split "
    "into training and test images is the hub's, and images come at 224 pixels where their sizes differ: our choice."
)


class SimpleCIL(ClosedFormClassifier):
    """SimpleCIL (Zhou et al., 2024, arXiv 2303.07338): each class's row of a cosine classifier is its mean feature.

    The features of a frozen backbone are averaged as they are and then compared by cosine, so a training sample with a
    longer feature weighs more: that is the difference to :class:`~latewood.images.learners.nmc.NMC`. No gradient, and
    the same result for every order and grouping of arrivals.

    >>> from latewood.images.nets.pixels import pixels
    >>> from latewood.images.streams.split import split
    >>> stream = split("digits", steps=5)
    >>> learner = SimpleCIL(pixels(stream.example))
    >>> for experience in stream:
    ...     learner.learn(experience)
    >>> stream.probes[0].score(learner)["accuracy"] > 0.8
    True
    """

    presets: ClassVar[Mapping[str, Preset]] = {
        name: Preset(f"split-{dataset}", {"backbone": VIT, "stream": stream}, SOURCE)
        for name, (dataset, stream) in BENCHMARKS.items()
    }

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        self.prototypes = Prototypes(self.encoder.width)

    def update(self, features: Tensor, columns: Tensor) -> None:
        self.prototypes.update(features, columns, len(self.classes))

    def downdate(self, features: Tensor, columns: Tensor) -> None:
        self.prototypes.subtract(features, columns)

    def keep(self, columns: Tensor) -> None:
        self.prototypes.keep(columns)

    def score(self, features: Tensor) -> Tensor:
        scores: Tensor = self.prototypes(features)
        return scores
