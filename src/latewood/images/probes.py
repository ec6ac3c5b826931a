"""How this wing scores a learner: the share of held-out images that it labels right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from latewood.core.learner import Learner
from latewood.core.probe import Probe


class Accuracy(Probe):
    """Top-1 accuracy in [0, 1] over the rows of a held-out set with columns ``image`` and ``label``.

    The learner chooses among all classes it has seen; only where the data has a ``task`` column is it told the task.

    >>> import torch
    >>> from latewood.core.data import Data
    >>> class Constant(Learner):
    ...     def learn(self, experience): ...
    ...     def predict(self, data): return torch.ones(len(data), dtype=torch.int64)
    >>> Accuracy("all", Data(image=torch.zeros(4, 1, 8, 8), label=torch.tensor([1, 1, 1, 0])), since=0).score(Constant())
    {'accuracy': 0.75}
    """

    metrics: ClassVar[Mapping[str, bool]] = {"accuracy": True}

    def score(self, learner: Learner) -> dict[str, float]:
        right = learner.predict(self.data).cpu() == self.data.tensor("label").cpu()
        return {"accuracy": right.double().mean().item()}
