"""Which classes are known, in the order in which they arrived, and which task each belongs to."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from latewood.core.data import Data
from latewood.core.errors import DataError
from latewood.core.experience import Experience
from latewood.parts.growing import Growing


class ClassRegistry(Growing):
    """Labels in order of arrival: label ``labels[c]`` owns column ``c`` of every head, and unseen labels own none.

    Where the scenario reveals tasks it also remembers which classes belong to which, so that a prediction that is told
    its task chooses among that task's classes only.

    >>> registry = ClassRegistry()
    >>> registry.expose([7, 3]), registry.expose([3, 9])
    (2, 1)
    >>> registry.columns(torch.tensor([9, 7]))
    tensor([2, 0])
    """

    labels: Tensor
    task_ids: Tensor
    task_classes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("labels", torch.empty(0, dtype=torch.int64))
        self.register_buffer("task_ids", torch.empty(0, dtype=torch.int64))
        self.register_buffer("task_classes", torch.empty(0, 0, dtype=torch.bool))

    def __len__(self) -> int:
        return len(self.labels)

    def expose(self, labels: Iterable[int], task: int | None = None) -> int:
        """Make room for labels, new ones in the order given; returns how many are new."""
        labels = list(labels)
        known = set(self.labels.tolist())
        new = [label for label in dict.fromkeys(labels) if label not in known]
        if new:
            self.labels = torch.cat([self.labels, torch.tensor(new, device=self.place)])
        if task is not None or len(self.task_ids):
            self._assign(labels, task)
        return len(new)

    def expose_all(self, experience: Experience) -> int:
        """Make room for the classes of an experience; returns how many are new."""
        labels = experience.classes or experience.train.tensor("label").unique().tolist()
        task = experience.task
        if task is not None and not isinstance(task, int):
            raise DataError(f"A task that is revealed to a classifier must be a number, but it is {task!r}.")
        return self.expose(labels, task)

    def drop(self, labels: Iterable[int]) -> Tensor:
        """Forget labels; returns the former columns of those that stay, in order."""
        gone = torch.tensor(sorted(set(labels)), dtype=self.labels.dtype, device=self.place)
        kept = (~torch.isin(self.labels, gone)).nonzero().flatten()
        self.labels = self.labels[kept]
        if len(self.task_ids):
            self.task_classes = self.task_classes[:, kept]
        return kept

    def columns(self, labels: Tensor) -> Tensor:
        """The column of each label. Errors: :class:`DataError` for a label that never arrived."""
        order = self.labels.argsort()
        labels = labels.to(self.labels.device)
        if not len(self):
            raise DataError("No class has arrived yet.")
        places = torch.searchsorted(self.labels[order], labels).clamp(max=len(self) - 1)
        found = order[places]
        strangers = self.labels[found] != labels
        if strangers.any():
            raise DataError(f"The label {int(labels[strangers][0])} never arrived; known are {len(self)} classes.")
        return found

    def best(self, scores: Tensor) -> Tensor:
        """The label of the largest score of each row; -1, which is no label, while no class has arrived."""
        if not len(self):
            return torch.full((len(scores),), -1, device=scores.device)
        return self.labels[scores.argmax(1)]

    def restrict(self, scores: Tensor, data: Data) -> Tensor:
        """``scores`` (rows by classes) with minus infinity where a class is not of the row's task, if ``data`` tells it."""
        if "task" not in data or not len(self.task_ids):
            return scores
        tasks = data.tensor("task").to(scores.device)
        hit = tasks[:, None] == self.task_ids[None, :]
        if not hit.any(1).all():
            raise DataError(f"Task {int(tasks[~hit.any(1)][0])} never arrived.")
        return scores.masked_fill(~self.task_classes[hit.int().argmax(1)], -torch.inf)

    def _assign(self, labels: list[int], task: int | None) -> None:
        ids = self.task_ids.tolist()
        rows = max(1, len(ids)) if task is None or task in ids else len(ids) + 1
        grown = torch.zeros(rows, len(self), dtype=torch.bool, device=self.place)
        grown[: self.task_classes.shape[0], : self.task_classes.shape[1]] = self.task_classes
        if task is not None:
            if task not in ids:
                self.task_ids = torch.cat([self.task_ids, torch.tensor([task], device=self.place)])
            row = self.task_ids.tolist().index(task)
            grown[row, self.columns(torch.tensor(labels, device=self.place))] = True
        self.task_classes = grown
