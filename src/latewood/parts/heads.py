"""Classification heads that grow as classes arrive, and the classifier made of a backbone and such a head."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latewood.core.data import Data
from latewood.core.experience import Experience
from latewood.core.learner import GradientLearner
from latewood.core.recipe import Recipe
from latewood.parts.backbone import Backbone
from latewood.parts.classes import ClassRegistry
from latewood.parts.growing import Growing

Candidates = Literal["seen", "arrival"]


class LinearHead(Growing):
    """A linear layer from features to classes; new rows start Kaiming-uniform with zero bias, old rows stay as they are."""

    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(0, width))
        self.bias = nn.Parameter(torch.empty(0))

    def grow(self, classes: int, generator: torch.Generator) -> None:
        """Have at least ``classes`` rows."""
        old, width = self.weight.shape
        if classes > old:
            # The bound of nn.Linear: Kaiming-uniform with a = sqrt(5) is uniform within 1 / sqrt(fan_in).
            bound = 1 / math.sqrt(width)
            fresh = torch.rand(classes - old, width, generator=generator) * 2 * bound - bound
            self.resize_parameter("weight", torch.cat([self.weight.detach(), fresh.to(self.weight)]))
            self.resize_parameter("bias", F.pad(self.bias.detach(), (0, classes - old)))

    def forward(self, features: Tensor) -> Tensor:
        """Logits of shape ``(n, classes)``."""
        return F.linear(features, self.weight, self.bias)


class Classifier(nn.Module):
    """A backbone and a growing head over the classes that have arrived.

    >>> from latewood.images.nets.mlp import mlp
    >>> data = Data(image=torch.zeros(2, 1, 8, 8, dtype=torch.uint8), label=torch.tensor([4, 2]))
    >>> net = Classifier(mlp(data))
    >>> net.expose(Experience(0, data, classes=(2, 4)), torch.Generator())
    >>> net(net.prepare(data)).shape
    torch.Size([2, 2])
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = LinearHead(backbone.width)
        self.classes = ClassRegistry()

    def expose(self, experience: Experience, generator: torch.Generator) -> None:
        """Make room for the classes of an experience."""
        self.classes.expose_all(experience)
        self.head.grow(len(self.classes), generator)

    def prepare(self, data: Data) -> Tensor:
        """Network inputs of raw rows, augmented in training mode."""
        return self.backbone.prepare(data)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits of prepared inputs, one column for each class in order of arrival."""
        logits: Tensor = self.head(self.backbone(inputs))
        return logits

    def targets(self, data: Data) -> Tensor:
        """The column of each row's label."""
        return self.classes.columns(data.tensor("label"))


class ClassifierLearner(GradientLearner):
    """What gradient learners of classification share: the classifier, its growth, and prediction.

    ``predict`` gives the label of each row among the classes seen so far (among those of the row's task, if the data
    has a ``task`` column); ``scores`` the logits behind it.
    """

    #: Nets for a learner that is not told which, the first that suits the data; else one of the data's size.
    prefers: ClassVar[tuple[str, ...]] = ()

    def __init__(self, backbone: Backbone, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.net = Classifier(backbone)

    @property
    def backbone(self) -> Backbone:
        """The network below the head."""
        return self.net.backbone

    @property
    def classes(self) -> ClassRegistry:
        """The classes that have arrived."""
        return self.net.classes

    def compute_modules(self) -> list[nn.Module]:
        return [self.net.backbone]

    def prepare(self, experience: Experience) -> None:
        self.net.expose(experience, self.generator)
        labels = experience.train.tensor("label").unique()
        self._arrival = self.net.classes.columns(labels)

    def logits(self, batch: Data) -> Tensor:
        """Logits of raw rows, augmented in training mode."""
        logits: Tensor = self.net(self.net.prepare(batch))
        return logits

    def cross_entropy(self, logits: Tensor, batch: Data, candidates: Candidates = "seen") -> Tensor:
        """Cross-entropy of logits against the labels of the rows behind them.

        The ``candidates`` are all classes ``seen`` or only those of the present ``arrival``, which leaves the rows of the
        head for older classes alone; where the scenario reveals tasks, those of each row's task.
        """
        if candidates == "arrival":
            others = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
            others[self._arrival] = False
            logits = logits.masked_fill(others, -torch.inf)
        return F.cross_entropy(self.net.classes.restrict(logits, batch), self.net.targets(batch))

    @torch.no_grad()
    def scores(self, data: Data, batch_size: int = 512) -> Tensor:
        """Logits, shape ``(len(data), classes)``, columns as in ``net.classes.labels``."""
        self.eval()
        if not len(data):
            return torch.empty(0, len(self.net.classes), device=self.device)
        return torch.cat([self.net.classes.restrict(self.logits(batch), batch) for batch in data.batches(batch_size)])

    def predict(self, data: Data) -> Tensor:
        return self.net.classes.best(self.scores(data))
