"""Rehearsal-free (paper 10): hand over the old model's weights, features or predictions, under one loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError
from latewood.core.experience import Experience
from latewood.core.preset import Preset
from latewood.core.recipe import Recipe
from latewood.parts.anchors import Anchors, FixedRows, batch_fisher
from latewood.parts.attention import QUERY_KEY_VALUE
from latewood.parts.backbone import Backbone
from latewood.parts.distillation import Teacher, distillation_loss
from latewood.parts.heads import Classifier, ClassifierLearner

Classification = Literal["bce+predkd", "bce", "bce-zeros", "softmax", "softmax+predkd", "balanced-bce", "softmax-local"]
_PREDKD = ("bce+predkd", "softmax+predkd", "balanced-bce")
_QKV = ("qkv", *QUERY_KEY_VALUE)
_RESNET_RECIPE = {
    **{"epochs": 250, "milestones": [100, 150, 200], "schedule": "step", "batch_size": 128},
    **{"optimizer": "adam", "lr": 1e-3, "weight_decay": 2e-4},
}
_CIFAR_PIXELS = {"mean": [0.5071, 0.4865, 0.4409], "std": [0.2673, 0.2564, 0.2762]}


class RehearsalFree(ClassifierLearner):
    """The learners of "A Closer Look at Rehearsal-Free Continual Learning" (Smith et al., 2022, arXiv 2203.17269).

    ``loss = classification + featkd * FeatKD + ewc * EWC + l2 * L2``, with no sample kept. ``classification``, on the logits
    ``z`` of the new classes and the old ones:

    - ``bce+predkd``: binary cross-entropy times ``scale`` over all classes; the target of an old class is the sigmoid that the
      model of the arrival before gives for this image (LwF.MC);
    - ``bce``: over the new classes only; ``bce-zeros``: over all, with target 0 for the old ones;
    - ``balanced-bce``: as ``bce+predkd``, with the one positive of a row weighed like all its negatives together;
    - ``softmax``: cross-entropy over all classes; ``softmax+predkd``: that and distillation at ``temperature``;
      ``softmax-local``: over the new classes only.

    ``featkd`` weighs the mean squared distance to the old model's features, ``ewc`` the quadratic
    ``1/2 sum F (theta - theta*)^2`` with the Fisher information of batch means, summed over arrivals, and ``l2`` the
    quadratic ``sum (theta - theta*)^2``; both hold the trained weights of the backbone, never the head, to the end of the
    arrival before. With ``anchor_initial``, L2 and FeatKD act from the first arrival on, where they hold what pretraining
    gave; ``l2_first_only`` ends L2 there (EWC with L2 start).

    ``freeze_bn`` leaves the running statistics of batch norms as they are. ``trained``: the whole backbone, the projections of
    queries, keys and values of its attention alone, or only the head. ``freeze_old_head`` keeps the head's rows of old
    classes as they are, also from weight decay.

    >>> from latewood.images.nets.mlp import mlp
    >>> from latewood.images.streams.split import split
    >>> stream = split("digits", steps=5)
    >>> learner = RehearsalFree(mlp(stream.example, width=16), l2=0.05)
    >>> learner.learn(stream[0]); learner.learn(stream[1])
    >>> len(learner.teacher.snapshot.classes), learner.anchors.distance().item()
    (4, 0.0)
    """

    presets: ClassVar[Mapping[str, Preset]] = {
        "paper-cifar100": Preset(
            "split-cifar100",
            {
                "backbone": {"name": "resnet18", "stem": "imagenet", "augment": "crop-flip"},
                "recipe": _RESNET_RECIPE,
                "stream": {"steps": 10},
            },
            "The table from scratch, its best row (PredKD); set ewc=10, l2=0.05, featkd=5 or classification for the others. "
            "Optimiser as the paper has it; the authors' stored scripts differ (SGD 0.01, batch 256).",
        ),
        "paper-cifar100-pretrained": Preset(
            "split-cifar100",
            {
                "backbone": {"name": "microsoft/resnet-18", "preprocessing": _CIFAR_PIXELS, "augment": "crop-flip"},
                "l2": 0.05,
                "recipe": _RESNET_RECIPE,
                "stream": {"steps": 10},
            },
            "The pretrained table, its best row (PredKD + L2); the checkpoint on the hub is our choice.",
        ),
        "paper-imagenet-r": Preset(
            "split-imagenet-r",
            {
                "backbone": {"name": "google/vit-base-patch16-224", "augment": "crop-flip"},
                **{"classification": "softmax-local", "l2": 0.005, "trained": "qkv", "freeze_old_head": True},
                "recipe": {"epochs": 15, "batch_size": 64, "optimizer": "adam", "lr": 1e-4, "schedule": "cosine"},
                "stream": {"steps": 10, "size": 256},
            },
            "The table of prompting methods, row L2 on QKV. Adam, rate, epochs and batch are those of the authors' sweep on "
            "CIFAR-100; the weight of L2 within that sweep and the form of the cross-entropy are our choice.",
        ),
    }

    def __init__(
        self,
        backbone: Backbone,
        classification: Classification = "bce+predkd",
        featkd: float = 0.0,
        ewc: float = 0.0,
        l2: float = 0.0,
        anchor_initial: bool = True,
        l2_first_only: bool = False,
        freeze_bn: bool = True,
        trained: Literal["all", "qkv", "head"] = "all",
        freeze_old_head: bool = False,
        scale: float = 5.0,
        temperature: float = 2.0,
        recipe: Recipe = Recipe(epochs=5, optimizer="adam", lr=1e-3),
    ) -> None:
        for name, value in (("featkd", featkd), ("ewc", ewc), ("l2", l2)):
            if not value >= 0:
                raise ConfigurationError(f"{name} must be at least 0, but it is {value}.")
        super().__init__(_train_only(backbone, trained), recipe)
        self.classification, self.featkd, self.ewc, self.l2 = classification, featkd, ewc, l2
        self.anchor_initial, self.l2_first_only, self.freeze_bn = anchor_initial, l2_first_only, freeze_bn
        self.trained, self.freeze_old_head = trained, freeze_old_head
        self.scale, self.temperature = scale, temperature
        if (ewc or l2) and not self._held():
            raise ConfigurationError("ewc and l2 hold the trained weights of the backbone, but none of them is trained.")
        self.anchors = Anchors(backbone)
        self.teacher: Teacher[Classifier] = Teacher(self.net)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self.backbone.modules() if self.freeze_bn else ():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def prepare(self, experience: Experience) -> None:
        known = len(self.classes)
        self._first = known == 0
        if self._first and self.anchor_initial and self.l2:
            self.anchors.move()
        if self._first and self.anchor_initial and self.featkd:
            self.teacher.take()
        super().prepare(experience)
        #: Which columns get labels as targets: new classes, and those of the arrival.
        self._new = torch.arange(len(self.classes), device=self.device) >= known
        self._new[self._arrival] = True
        self._fixed = FixedRows(self.net.head, ~self._new) if self.freeze_old_head else None

    def loss(self, batch: Data) -> Tensor:
        inputs = self.net.prepare(batch)
        features = self.backbone(inputs)
        old = self._taught(inputs)
        loss = self.classify(self.net.head(features), batch, old[1] if old else None)
        if self.featkd and old:
            loss = loss + self.featkd * F.mse_loss(features, old[0])
        if self.ewc:
            loss = loss + self.ewc * self.anchors.penalty()
        if self.l2 and (self._first or not self.l2_first_only):
            loss = loss + self.l2 * self.anchors.distance()
        return loss

    def classify(self, logits: Tensor, batch: Data, old: Tensor | None) -> Tensor:
        """The classification loss; ``old`` are the teacher's logits for the classes that it knew, ``None`` without one."""
        if self.classification == "softmax-local":
            return self.cross_entropy(logits, batch, "arrival")
        if self.classification.startswith("softmax"):
            loss = self.cross_entropy(logits, batch)
            if self.classification == "softmax" or old is None or not old.shape[1]:
                return loss
            return loss + distillation_loss(logits[:, : old.shape[1]], old, self.temperature)
        targets = F.one_hot(self.net.targets(batch), logits.shape[1]).to(logits)
        if self.classification == "bce":
            return self.scale * F.binary_cross_entropy_with_logits(logits[:, self._new], targets[:, self._new])
        if self.classification in _PREDKD and old is not None:
            answers = F.pad(old.sigmoid(), (0, logits.shape[1] - old.shape[1]))
            targets = torch.where(self._new, targets, answers)
        if self.classification == "balanced-bce":
            return self._balanced(logits, targets)
        return self.scale * F.binary_cross_entropy_with_logits(logits, targets)

    def after_batch(self, batch: Data) -> None:
        if self._fixed:
            self._fixed.restore()

    def conclude(self, experience: Experience) -> None:
        if self.ewc:
            self.anchors.replace(batch_fisher(self._held(), self._fisher_losses(experience.train)), decay=1.0)
        elif self.l2:
            self.anchors.move()
        if self.featkd or self.classification in _PREDKD:
            self.teacher.take()

    def _balanced(self, logits: Tensor, targets: Tensor) -> Tensor:
        each = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        count, total = int(self._new.sum()), logits.shape[1]
        positive = targets[:, self._new]
        new = ((positive + (1 - positive) / count) * each[:, self._new]).mean() * 2 * count / (1 + 1 / count)
        if count == total:
            return new
        return new * count / total + each[:, ~self._new].mean() * (total - count) / total

    @torch.no_grad()
    def _taught(self, inputs: Tensor) -> tuple[Tensor, Tensor] | None:
        """The teacher's features and logits."""
        old = self.teacher.snapshot
        if old is None:
            return None
        features = old.backbone(inputs)
        return features, old.head(features)

    def _held(self) -> list[nn.Parameter]:
        return [p for p in self.backbone.parameters() if p.requires_grad]

    def _fisher_losses(self, data: Data) -> Iterator[tuple[Tensor, int]]:
        for batch in data.batches(self.recipe.batch_size):
            logits = self.logits(batch)[:, self._new]
            targets = F.one_hot(self.net.targets(batch), len(self.classes)).to(logits)[:, self._new]
            yield self.scale * F.binary_cross_entropy_with_logits(logits, targets), len(batch)


def _train_only(backbone: Backbone, trained: str) -> Backbone:
    if trained == "head":
        return backbone.freeze()
    if trained == "qkv":
        backbone.requires_grad_(False)
        projections = [
            module
            for name, module in backbone.named_modules()
            if isinstance(module, nn.Linear) and name.rpartition(".")[2] in _QKV
        ]
        if not projections:
            raise ConfigurationError("trained='qkv' needs a backbone with attention, such as vit; this one has none.")
        for module in projections:
            module.requires_grad_(True)
    return backbone
