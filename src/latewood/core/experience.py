"""Experience: one arrival, all that a learner may train on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latewood.core.data import Data, check_finite
from latewood.core.errors import DataError


@dataclass(frozen=True)
class Experience:
    """One arrival: all that a learner may train on.

    ``index`` counts arrivals from 0; ``train`` holds the rows; ``classes`` are the labels in this arrival
    (classification only); ``task`` names the task, only where the scenario reveals it to the learner.

    It is checked when it is made, before any learner sees it. Errors: :class:`DataError` for an arrival without rows,
    NaN or infinity in a floating-point column, labels that are not integers, and labels that ``classes`` does not list.

    >>> Experience(0, Data(image=torch.rand(2, 3), label=torch.tensor([4, 5])), classes=(4, 5)).classes
    (4, 5)
    """

    index: int
    train: Data
    classes: tuple[int, ...] = ()
    task: str | int | None = None

    def __post_init__(self) -> None:
        where = f"experience {self.index}"
        if len(self.train) == 0:
            raise DataError(f"{where.capitalize()} is empty; an arrival must hold at least one row.")
        if "label" in self.train:
            self._check_labels(self.train["label"], where)
        check_finite(self.train, where)

    def _check_labels(self, labels: object, where: str) -> None:
        if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            kind = str(labels.dtype) if isinstance(labels, Tensor) else "a list"
            raise DataError(f"Labels must be integers, but the label column of {where} is {kind}.")
        if self.classes:
            strangers = sorted(set(labels.flatten().tolist()) - set(self.classes))
            if strangers:
                raise DataError(f"{where.capitalize()} holds the label {strangers[0]}, which its classes do not list.")
