"""FSA (paper 45): the body is adapted on the first arrival only, then a linear discriminant is updated exactly from sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latewood.core.cost import current_meter
from latewood.core.errors import ConfigurationError, DataError
from latewood.core.experience import Experience
from latewood.core.preset import Preset
from latewood.core.recipe import Recipe
from latewood.parts.adaptation import AdaptedEncoder
from latewood.parts.adapters import film
from latewood.parts.backbone import Backbone
from latewood.parts.closed_form import ClosedFormClassifier
from latewood.parts.embedding import Encoder
from latewood.parts.gaussians import Gaussians
from latewood.parts.heads import LinearHead
from latewood.parts.lda import LDA, Scatter
from latewood.parts.statistics import ClassSums

#: As the official code prepares images, but for its Lanczos filter.
_EFFICIENTNET = {
    "name": "google/efficientnet-b0",
    "preprocessing": {
        "resize": [224, 224],
        "interpolation": "bicubic",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    },
}
#: Numbers that are kept at once while quadratic discriminants are computed.
_AT_ONCE = 2**24


def _presets() -> dict[str, Preset]:
    streams: dict[str, tuple[str, dict[str, Any], str, str]] = {
        "paper-cifar100": ("split-cifar100", {"steps": 10}, "crop-flip", "high-shot"),
        "paper-cifar100-few-shot": ("split-cifar100", {"steps": 10, "shots": 50}, "crop-flip", "few-shot+"),
        "paper-cars": ("split-tanganke/stanford_cars", {"base": 16, "increment": 20, "size": 224}, "none", "high-shot"),
    }
    # The rate falls sooner and further where there are few images.
    recipes = {"high-shot": {}, "few-shot+": {"recipe": {"milestones": [25, 50, 100], "lr_decay": 0.3}}}
    found = {}
    for name, (stream, settings, augment, setting) in streams.items():
        for adapt in ("full", "film"):
            backbone = {**_EFFICIENTNET, "augment": augment}
            found[name if adapt == "full" else f"{name}-film"] = Preset(
                stream,
                {"adapt": adapt, "backbone": backbone, "stream": settings, **recipes[setting]},
                f"The {setting} class-incremental setting, with the official code's settings. The weights are the hub's of "
                "that name, the order of classes is the run's, and images are resized by bicubic interpolation (the authors': "
                "Lanczos); those of CIFAR-100 are cropped and mirrored, where the authors flip them in both directions.",
            )
    return found


class FSA(ClosedFormClassifier):
    """First Session Adaptation (Panos et al., 2023, arXiv 2303.13199).

    On the first arrival the backbone is trained under a temporary linear head with ``dropout`` before it, which is then
    thrown away: all of it (``adapt="full"``), or only factors and offsets behind norms (``film``, for few images; they
    start at the identity, and the rest stays in evaluation mode). ``none`` leaves it as it is. It is frozen then, and a
    head over the features of plain images is updated at every arrival, the first included:

    ``head="lda"`` is the method: exact linear discriminants from running sums, with ``covariance`` and ``ridge`` as in
    :class:`~latewood.parts.lda.LDA`; ``ncm`` the nearest class mean (Euclidean); ``qda`` a covariance for each class, with
    the same ridge.

    The first arrival shapes the features, so samples can be forgotten exactly only with ``adapt="none"`` (``lda``, ``ncm``).
    The backbone that is given is the one that is adapted.

    >>> from latewood.images.nets.mlp import mlp
    >>> from latewood.images.streams.split import split
    >>> stream = split("digits", steps=3, base=6)
    >>> learner = FSA(mlp(stream.example, width=64), recipe=Recipe(epochs=10, optimizer="adam", lr=0.005), ridge=0.01)
    >>> for experience in stream:
    ...     learner.learn(experience)
    >>> stream.probes[0].score(learner)["accuracy"] > 0.7
    True
    """

    prefers: ClassVar[tuple[str, ...]] = ("vit-tiny-imagenet",)
    presets: ClassVar[Mapping[str, Preset]] = _presets()
    counts_flops: ClassVar[bool] = True

    def __init__(
        self,
        backbone: Backbone,
        adapt: Literal["full", "film", "none"] = "full",
        head: Literal["lda", "ncm", "qda"] = "lda",
        covariance: Scatter = "total",
        ridge: float = 1.0,
        dropout: float = 0.5,
        recipe: Recipe = Recipe(
            epochs=200,
            batch_size=256,
            optimizer="adam",
            lr=5e-3,
            schedule="step",
            milestones=(50, 100, 150),
            lr_decay=0.7,
        ),
    ) -> None:
        if not 0 <= dropout < 1:
            raise ConfigurationError(f"dropout must lie between 0 and below 1, but it is {dropout}.")
        width = backbone.width
        heads: dict[str, Callable[[], LDA | NearestMean | Quadratic]] = {
            "lda": lambda: LDA(width, covariance, ridge),
            "ncm": lambda: NearestMean(width),
            "qda": lambda: Quadratic(width, "full", ridge),
        }
        final = heads[head]()
        super().__init__(backbone)
        self.adapt, self.head, self.covariance, self.ridge = adapt, head, covariance, ridge
        self.dropout, self.recipe = dropout, recipe
        if adapt != "none":
            self.encoder: Encoder = AdaptedEncoder(backbone, film if adapt == "film" else _all)
        self.final: LDA | NearestMean | Quadratic = final

    @property
    def can_forget(self) -> bool:
        return self.adapt == "none" and self.head != "qda"

    def learn(self, experience: Experience) -> None:
        if isinstance(self.encoder, AdaptedEncoder) and not len(self.classes):
            head = DroppedHead(self.backbone.width, self.dropout)
            self.encoder.adapt(experience, head, self.recipe, self.generator)
        with current_meter().counting():
            super().learn(experience)

    def update(self, features: Tensor, columns: Tensor) -> None:
        self.final.update(features, columns, len(self.classes))

    def downdate(self, features: Tensor, columns: Tensor) -> None:
        assert not isinstance(self.final, Quadratic)
        self.final.subtract(features, columns)

    def keep(self, columns: Tensor) -> None:
        assert not isinstance(self.final, Quadratic)
        self.final.keep(columns)

    def score(self, features: Tensor) -> Tensor:
        scores: Tensor = self.final(features)
        return scores


class DroppedHead(LinearHead):
    """A linear head that drops features at random while it trains."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__(width)
        self.dropout = dropout

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(F.dropout(features, self.dropout, self.training))


class NearestMean(ClassSums):
    """The nearest class mean by Euclidean distance: a linear discriminant whose covariance is the identity."""

    def forward(self, features: Tensor) -> Tensor:
        """Scores ``h' m_c - 1/2 |m_c|^2``, shape ``(n, classes)``."""
        means = self.means()
        scores: Tensor = features.to(means) @ means.T - 0.5 * means.square().sum(1)
        return scores.masked_fill(self.counts == 0, -torch.inf)


class Quadratic(Gaussians):
    """Quadratic discriminants: the log-density of each class's own Gaussian, without a prior."""

    def update(self, features: Tensor, columns: Tensor, classes: int) -> None:
        """Estimate the classes of one arrival; of a class that returns, the estimate from the most samples stays."""
        self.fit(features, columns, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Scores ``-1/2 (h - m_c)' S_c^-1 (h - m_c) - 1/2 log |S_c|``, shape ``(n, classes)``."""
        factors = self.factors[self.counts > 0].double()
        means = self.means[self.counts > 0]
        scores = torch.full((len(features), len(self)), -torch.inf, dtype=means.dtype, device=means.device)
        logarithms = factors.diagonal(dim1=1, dim2=2).log().sum(1)
        rows = max(1, _AT_ONCE // max(1, means.numel()))
        found = [
            -0.5 * torch.linalg.solve_triangular(factors, (part - means).mT, upper=False).square().sum(1).T - logarithms
            for part in features.to(means).split(rows)
        ]
        scores[:, self.counts > 0] = torch.cat(found)
        return scores


class Spread(NamedTuple):
    """Cosine distances over pairs of features: their mean, and the smallest."""

    mean: float
    least: float


def cosine_spread(features: Tensor, most: int = 2000) -> Spread:
    """``1 - cos`` over all pairs of features (n, width), of at most ``most`` evenly spaced rows; no label is read.

    Of the features of a backbone as it came. Where it is small, images look alike to the backbone, and the paper finds
    that adapting it pays. Errors: :class:`~latewood.core.errors.DataError` for less than two rows.

    >>> spread = cosine_spread(torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 3.0]]))
    >>> round(spread.mean, 4), round(spread.least, 4)
    (0.6667, 0.0)
    """
    if len(features) < 2:
        raise DataError(f"Distances between features need at least 2 of them, but there are {len(features)}.")
    if len(features) > most:
        features = features[torch.arange(most, device=features.device) * len(features) // most]
    rows = F.normalize(features.double())
    count = len(rows)
    cosines = rows @ rows.T
    cosines.fill_diagonal_(0)
    mean = 1 - float(cosines.sum()) / (count * (count - 1))
    return Spread(mean, 1 - float(cosines.fill_diagonal_(-torch.inf).max()))


def _all(backbone: Backbone) -> nn.Module:
    return backbone
