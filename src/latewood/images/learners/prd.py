"""PRD (paper 14): contrastive features, prototypes without contrast, and how old prototypes rank the new samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError
from latewood.core.experience import Experience
from latewood.core.preset import Preset
from latewood.core.recipe import Recipe
from latewood.parts.backbone import Backbone
from latewood.parts.classes import ClassRegistry
from latewood.parts.contrastive import supervised_contrastive
from latewood.parts.distillation import Teacher
from latewood.parts.growing import Growing
from latewood.parts.heads import Classifier, ClassifierLearner
from latewood.parts.prototypes import CosineHead

Relation = Literal["samples", "classes"]
#: With cosines a temperature of 1 would leave the distributions all but uniform.
_TEMPERATURES: Mapping[Relation, float] = {"samples": 0.2, "classes": 1.0}
_LEAST = {"alpha": 0, "beta": 0, "hidden": 1, "projected": 1, "extra_epochs": 0}
_RECIPE = Recipe(epochs=100, batch_size=128, lr=0.01, weight_decay=1e-4, schedule="step", milestones=(120, 160))


def _preset(stream: str, dataset: Mapping[str, Any], source: str, **settings: Any) -> Preset:
    network = {"name": "resnet18", "augment": "contrastive"}
    recipe = {"epochs": 100, "batch_size": 128, "lr": 0.01, "weight_decay": 1e-4}
    decay = {"schedule": "step", "milestones": [120, 160]}
    ours = (
        " Our choice: the relation over samples at temperature 0.2 where the code has the one over classes, and pixels "
        "normalised by the data set's statistics."
    )
    return Preset(stream, {"backbone": network, "recipe": {**recipe, **decay}, "stream": dataset, **settings}, source + ours)


class PRD(ClassifierLearner):
    """Prototype-Sample Relation Distillation (Asadi et al., 2023, arXiv 2303.14771).

    ``loss = SupCon + alpha * L_p + beta * L_d`` on two augmented views of each image of the arrival, with no sample kept:

    - the supervised contrastive loss at ``temperature`` on a projection of the features (two hidden layers of ``hidden``
      units, ``projected`` outputs), which is used for nothing else;
    - ``L_p = 1 - cos(p_y, f(x))`` with the features held fixed: it moves the prototype of the label to its samples and pushes
      no other prototype away;
    - ``L_d``, from the second arrival on: each old prototype is held to rank the views in the batch as it did under the model
      at the end of the arrival before. With ``relation="samples"`` (the paper) the Kullback-Leibler divergence, from
      teacher to student, of the softmax over samples of ``cos(p_k, f(x)) / relation_temperature``, summed over old
      prototypes; with ``"classes"`` (the released code) that of the softmax over the classes of each former arrival of
      ``f(x) p_k / |p_k|``, averaged over samples and summed over arrivals. ``relation_temperature=None`` is 0.2 for the
      first and 1 for the second.

    The views are two draws of the backbone's own ``augment``; without one both are the image itself. The first arrival trains
    ``extra_epochs`` longer. Predicts the prototype of the largest cosine, among the classes of the task where it is told.
    Momentum and weight decay act on the network alone, so that a prototype without a gradient stays where it is.

    >>> from latewood.images.nets.mlp import mlp
    >>> from latewood.images.streams.split import split
    >>> stream = split("digits", steps=5)
    >>> learner = PRD(mlp(stream.example, width=16), extra_epochs=0, recipe=Recipe(epochs=1))
    >>> learner.learn(stream[0]); learner.learn(stream[1])
    >>> learner.net.head.weight.shape, len(learner.teacher.snapshot.classes)
    (torch.Size([4, 16]), 4)
    """

    presets: ClassVar[Mapping[str, Preset]] = {
        "paper-cifar100": _preset(
            "tasks-cifar100", {"steps": 20}, "Figure 2, Split-CIFAR100, task-incremental, with the README's settings."
        ),
        "paper-cifar100-class-incremental": _preset(
            "split-cifar100",
            {"steps": 20},
            "The sweep of the official code for class-incremental runs, within it alpha 4.",
            alpha=4.0,
            extra_epochs=100,
        ),
        "paper-mini-imagenet": _preset(
            "tasks-timm/mini-imagenet",
            {"steps": 20, "size": 84},
            "Figure 2, Split-MiniImageNet, task-incremental, with the README's settings; the hub's name and 84 pixels: ours.",
        ),
    }

    def __init__(
        self,
        backbone: Backbone,
        alpha: float = 2.0,
        beta: float = 4.0,
        temperature: float = 0.1,
        relation: Relation = "samples",
        relation_temperature: float | None = None,
        hidden: int = 512,
        projected: int = 128,
        extra_epochs: int = 120,
        recipe: Recipe = _RECIPE,
    ) -> None:
        super().__init__(backbone, recipe)
        self.alpha, self.beta, self.temperature = alpha, beta, temperature
        self.relation, self.relation_temperature = relation, relation_temperature
        self.hidden, self.projected, self.extra_epochs = hidden, projected, extra_epochs
        self._check()
        self.net = PrototypeClassifier(backbone)
        self.projection = nn.Sequential(
            *(nn.Linear(backbone.width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()), nn.Linear(hidden, projected)
        )
        self.teacher: Teacher[PrototypeClassifier] = Teacher(self.net)

    net: PrototypeClassifier

    def parameter_groups(self) -> list[dict[str, Any]]:
        network = [*self.backbone.parameters(), *self.projection.parameters()]
        prototypes = {"params": [self.net.head.weight], "momentum": 0.0, "weight_decay": 0.0}
        return [{"params": [p for p in network if p.requires_grad]}, prototypes]

    def learn(self, experience: Experience) -> None:
        recipe = self.recipe
        if not len(self.classes):
            self.recipe = replace(recipe, epochs=recipe.epochs + self.extra_epochs)
        try:
            super().learn(experience)
        finally:
            self.recipe = recipe

    def loss(self, batch: Data) -> Tensor:
        inputs = torch.cat([self.net.prepare(batch), self.net.prepare(batch)])
        columns = self.net.targets(batch).repeat(2)
        features = self.backbone(inputs)
        loss = supervised_contrastive(self.projection(features), columns, self.temperature)
        loss = loss + self.alpha * self.attraction(features, columns)
        if self.teacher:
            loss = loss + self.beta * self.distillation(inputs, features)
        return loss

    def attraction(self, features: Tensor, columns: Tensor) -> Tensor:
        """``L_p``: what pulls the prototype of each row's class to the row; the rows themselves get no gradient."""
        return (1 - F.cosine_similarity(self.net.head.weight[columns], features.detach())).mean()

    def distillation(self, inputs: Tensor, features: Tensor) -> Tensor:
        """``L_d``: what holds the relations of old prototypes to ``features`` to those that the teacher sees in ``inputs``."""
        old = self.teacher.snapshot
        assert old is not None
        # Batch norm must see the same batch in both, or the two would differ before anything was learned.
        old.backbone.train(self.backbone.training)
        with torch.no_grad():
            before = self._relations(old.backbone(inputs), old.head.weight)
        now = self._relations(features, self.net.head.weight[: len(before.T)])
        if self.relation == "samples":
            return F.kl_div(now.log_softmax(0), before.log_softmax(0), reduction="sum", log_target=True)
        groups = self.net.arrivals.number[: len(before.T)]
        divergence = F.kl_div(
            grouped_log_softmax(now, groups), grouped_log_softmax(before, groups), reduction="sum", log_target=True
        )
        return divergence / len(features)

    def conclude(self, experience: Experience) -> None:
        if self.beta:
            self.teacher.take()

    def _relations(self, features: Tensor, prototypes: Tensor) -> Tensor:
        """Scores of shape ``(n, prototypes)``."""
        temperature = self.relation_temperature or _TEMPERATURES[self.relation]
        compared = F.normalize(features) if self.relation == "samples" else features
        return compared @ F.normalize(prototypes).T / temperature

    def _check(self) -> None:
        if self.relation not in _TEMPERATURES:
            raise ConfigurationError(f"relation must be 'samples' or 'classes', but it is {self.relation!r}.")
        for name, least in _LEAST.items():
            if not getattr(self, name) >= least:
                raise ConfigurationError(f"{name} must be at least {least}, but it is {getattr(self, name)}.")
        for name in ("temperature", "relation_temperature"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigurationError(f"{name} must be above 0, but it is {value}.")


class PrototypeClassifier(Classifier):
    """A backbone and a prototype for each class, whose cosine with the features is the class's score."""

    head: CosineHead  # type: ignore[assignment]

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        self.head = CosineHead(backbone.width)
        self.head.scale.requires_grad_(False)
        self.arrivals = Arrivals()

    def expose(self, experience: Experience, generator: torch.Generator) -> None:
        super().expose(experience, generator)
        self.arrivals.add(self.classes)


class Arrivals(Growing):
    """With which arrival each class came: ``number``, shape (classes,)."""

    number: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("number", torch.empty(0, dtype=torch.int64))

    def add(self, classes: ClassRegistry) -> None:
        """Give the classes that have no number yet the next one."""
        following = int(self.number.max()) + 1 if len(self.number) else 0
        self.number = F.pad(self.number, (0, len(classes) - len(self.number)), value=following)


def grouped_log_softmax(scores: Tensor, groups: Tensor) -> Tensor:
    """The log-softmax of each row of ``scores`` (n, classes) within each group of columns.

    >>> grouped_log_softmax(torch.zeros(1, 3), torch.tensor([0, 0, 1])).exp()
    tensor([[0.5000, 0.5000, 1.0000]])
    """
    index = groups.expand_as(scores)
    empty = scores.new_zeros(len(scores), int(groups.max()) + 1)
    largest = empty.scatter_reduce(1, index, scores.detach(), "amax", include_self=False)
    centred = scores - largest.gather(1, index)
    totals = empty.scatter_add(1, index, centred.exp())
    return centred - totals.log().gather(1, index)
