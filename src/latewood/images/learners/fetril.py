"""FeTrIL (paper 25): features of a new class, moved onto the mean of an old one, stand in for the old one's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from latewood.core.cost import current_meter
from latewood.core.data import Data
from latewood.core.errors import ConfigurationError
from latewood.core.experience import Experience
from latewood.core.preset import Preset
from latewood.core.recipe import Recipe
from latewood.parts.adaptation import Adaptation, AdaptedEncoder
from latewood.parts.backbone import Backbone
from latewood.parts.closed_form import ClosedFormClassifier
from latewood.parts.embedding import Encoder
from latewood.parts.features import Embedded
from latewood.parts.heads import LinearHead
from latewood.parts.statistics import ClassSums

Similarity = Literal["cosine", "euclidean"]

_SOURCE = (
    "Table of average incremental accuracy in the official README, with the first stage of the official code (cross-entropy). "
    "Its second stage (290 epochs of AugMix under Lookahead) is left out, and images come at their own size, where the "
    "official code enlarges them to 224 pixels; padded crops stand in for random resized ones: our choice."
)


def _presets() -> dict[str, Preset]:
    small, large = {"name": "resnet18", "augment": "crop-flip"}, {"stem": "imagenet"}
    halves = {"": (50, 5), "-t5": (50, 10), "-t20": (40, 3), "-t60": (40, 1)}
    tiny = {"": (100, 10), "-t5": (100, 20), "-t20": (100, 5), "-t100": (100, 1)}
    tables: dict[str, tuple[str, dict[str, tuple[int, int]], dict[str, Any], dict[str, Any]]] = {
        "paper-cifar100": ("split-cifar100", halves, small, {}),
        "paper-tiny-imagenet": ("split-tiny-imagenet", tiny, small, {}),
        "paper-imagenet-subset": ("split-clane9/imagenet-100", halves, {**small, **large}, {"size": 224}),
    }
    found = {}
    for name, (dataset, lengths, backbone, stream) in tables.items():
        for suffix, (base, increment) in lengths.items():
            arrivals = {"base": base, "increment": increment, "seed": None, **stream}
            settings = {"backbone": backbone, "stream": arrivals}
            found[f"{name}{suffix}"] = Preset(dataset, settings, _SOURCE)
            if name == "paper-cifar100":
                found[f"{name}{suffix}-fc"] = Preset(dataset, {"classifier": "fc", **settings}, _SOURCE)
    return found


class FeTrIL(ClosedFormClassifier):
    """Feature Translation for Exemplar-Free Class-Incremental Learning (Petit et al., 2023, arXiv 2211.13131).

    The first arrival trains the backbone under a temporary linear head (``first="train"``), or leaves it as it came
    (``keep``: for a pretrained one). It is frozen from then on, and of each class nothing is kept but its mean feature. At
    every arrival each class that is not in it borrows the features of the class of the arrival whose mean is most like its
    own, moved so that their mean is its own (:func:`translated`); on these and the arrival's own features a linear
    classifier over all classes is trained anew.

    ``classifier="svm"`` is scikit-learn's ``LinearSVC`` on features that are brought to length one after they were moved:
    one machine for each class against the rest, squared hinge loss, with ``C`` and ``tolerance`` its own. ``fc`` is a
    softmax layer on features as they are, ``passes`` of SGD in batches of 128 at ``rate`` falling as a cosine; it goes on
    from its old rows. ``similarity`` compares means by ``cosine`` (the paper) or ``euclidean`` distance (the official code).

    The paper's own second stage of the first arrival (AugMix under the Lookahead optimiser) is not here; a ``recipe`` and
    the backbone's ``augment`` say how the backbone is trained. FLOPs of ``LinearSVC`` are not counted, seconds are.

    >>> from latewood.images.nets.mlp import mlp
    >>> from latewood.images.streams.split import split
    >>> stream = split("digits", steps=3, base=6)
    >>> learner = FeTrIL(mlp(stream.example, width=64), recipe=Recipe(epochs=10, lr=0.1))
    >>> for experience in stream:
    ...     learner.learn(experience)
    >>> stream.probes[0].score(learner)["accuracy"] > 0.8
    True
    """

    prefers: ClassVar[tuple[str, ...]] = ("vit-tiny-imagenet",)
    presets: ClassVar[Mapping[str, Preset]] = _presets()
    deployed: ClassVar[tuple[str, ...]] = ("encoder", "classes", "head")
    counts_flops: ClassVar[bool] = True

    def __init__(
        self,
        backbone: Backbone,
        first: Literal["train", "keep"] = "train",
        similarity: Similarity = "cosine",
        classifier: Literal["svm", "fc"] = "svm",
        C: float = 1.0,  # noqa: N803  # everybody calls it so
        tolerance: float = 1e-4,
        passes: int = 50,
        rate: float = 0.05,
        recipe: Recipe = Recipe(epochs=90, batch_size=128, lr=0.1, weight_decay=1e-4, schedule="step", milestones=(30, 60)),
    ) -> None:
        for name, value in (("C", C), ("tolerance", tolerance), ("passes", passes), ("rate", rate)):
            if not value > 0:
                raise ConfigurationError(f"{name} must be above 0, but it is {value}.")
        super().__init__(backbone)
        self.first, self.similarity, self.classifier, self.recipe = first, similarity, classifier, recipe
        self.C, self.tolerance, self.passes, self.rate = C, tolerance, passes, rate
        if first == "train":
            self.encoder: Encoder = AdaptedEncoder(backbone, lambda whole: whole)
        self.means = ClassSums(backbone.width)
        self.head = LinearHead(backbone.width).requires_grad_(False)

    def learn(self, experience: Experience) -> None:
        if isinstance(self.encoder, AdaptedEncoder) and not len(self.classes):
            self.encoder.adapt(experience, LinearHead(self.backbone.width), self.recipe, self.generator)
        with current_meter().counting():
            super().learn(experience)

    def update(self, features: Tensor, columns: Tensor) -> None:
        self.means.update(features, columns, len(self.classes))
        features = features.to(self.means.sums)
        rows, columns = self.training_rows(features, columns.to(features.device))
        self.head.grow(len(self.classes), self.generator)
        if self.classifier == "fc":
            self._train_layer(rows, columns)
        else:
            self._fit_machines(F.normalize(rows), columns)

    def training_rows(self, features: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """The features of an arrival and those that stand in for other classes, with their columns: what is trained on."""
        return translated(features, columns, self.means.means(), self.means.counts > 0, self.similarity)

    def score(self, features: Tensor) -> Tensor:
        scores: Tensor = self.head(F.normalize(features) if self.classifier == "svm" else features)
        return scores.masked_fill(self.means.counts.to(scores.device) == 0, -torch.inf)

    def _fit_machines(self, rows: Tensor, columns: Tensor) -> None:
        from sklearn.svm import LinearSVC

        trained = columns.unique()
        weight, bias = rows.new_zeros(len(trained), rows.shape[1]), rows.new_zeros(len(trained))
        if len(trained) > 1:  # against no other class there is nothing to find
            machines = LinearSVC(C=self.C, tol=self.tolerance, dual=False).fit(rows.cpu().numpy(), columns.cpu().numpy())
            weight, bias = (torch.from_numpy(found).to(rows) for found in (machines.coef_, machines.intercept_))
        if len(trained) == 2:  # of two classes it gives one machine, that of the second
            weight, bias = torch.cat([-weight, weight]), torch.cat([-bias, bias])
        for parameter, values in ((self.head.weight, weight), (self.head.bias, bias)):
            parameter.data[trained.to(parameter.device)] = values.to(parameter)

    def _train_layer(self, rows: Tensor, columns: Tensor) -> None:
        recipe = Recipe(self.passes, 128, lr=self.rate, weight_decay=5e-4, schedule="cosine")
        training = Adaptation(Embedded(self.backbone.width), self.head.requires_grad_(True), self.head, recipe)
        training.generator = self.generator
        data = Data(features=rows.to(self.head.weight), label=columns.to(self.head.weight.device))
        with torch.enable_grad():
            training.learn(Experience(0, data, tuple(range(len(self.classes)))))
        self.head.requires_grad_(False)


def translated(
    features: Tensor, columns: Tensor, means: Tensor, known: Tensor, similarity: Similarity = "cosine"
) -> tuple[Tensor, Tensor]:
    """The features of an arrival, and behind them those that stand in for every class that is not in it.

    ``features`` (n, width) with the class of each in ``columns`` (n,); ``means`` (classes, width) of all classes, of which
    ``known`` (classes,) tells those that have one. A class that is absent gets, for each feature ``f`` of its source ``s``,
    the feature ``f - m_s + m``: the source's scatter around its own mean ``m``. Its source is the class of the arrival
    with the most similar mean. Returns features and their classes.

    >>> old, new = [0.0, 1.0], [[4.0, 3.0], [4.0, 5.0]]
    >>> means = torch.tensor([old, [4.0, 4.0]])
    >>> translated(torch.tensor(new), torch.tensor([1, 1]), means, torch.tensor([True, True]))
    (tensor([[4., 3.],
            [4., 5.],
            [0., 0.],
            [0., 2.]]), tensor([1, 1, 0, 0]))
    """
    present, members, counts = columns.unique(return_inverse=True, return_counts=True)
    centres = F.one_hot(members).to(features).T @ features / counts[:, None]
    absent = known.clone()
    absent[present] = False
    absent = absent.nonzero().flatten()
    source = sources(means[absent], centres, similarity)
    # The rows of each source, one after the other: ranges of unequal length without a loop over classes.
    sizes = counts[source]
    places = torch.arange(int(sizes.sum()), device=features.device) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    begins = (counts.cumsum(0) - counts)[source].repeat_interleave(sizes)
    chosen = members.argsort(stable=True)[begins + places]
    moved = features[chosen] + (means[absent] - centres[source]).repeat_interleave(sizes, 0)
    return torch.cat([features, moved]), torch.cat([columns, absent.repeat_interleave(sizes)])


def sources(old: Tensor, new: Tensor, similarity: Similarity = "cosine") -> Tensor:
    """For each mean in ``old`` (p, width) the row of the most similar one in ``new`` (q, width), shape ``(p,)``."""
    if similarity == "euclidean":
        return torch.cdist(old, new).argmin(1)
    return (F.normalize(old) @ F.normalize(new).T).argmax(1)
