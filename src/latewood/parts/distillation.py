"""The teacher: the model as it was after the last arrival, frozen, and the losses that hold a student to it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latewood.core.errors import LatewoodError

Module = TypeVar("Module", bound=nn.Module)


class Teacher(nn.Module, Generic[Module]):
    """A frozen snapshot of ``student``: evaluation mode whatever happens around it, no gradient; empty until taken.

    Its state is part of ``state_dict()``; a fresh teacher that is loaded makes the snapshot's modules itself.
    """

    snapshot: Module | None

    def __init__(self, student: Module) -> None:
        super().__init__()
        # Not a child of the teacher: its parameters belong to the student.
        object.__setattr__(self, "_student", student)
        self.snapshot = None

    def take(self) -> None:
        """Take a snapshot of the student as it is now, in place of the one before."""
        self.snapshot = copy.deepcopy(self._student)
        self.snapshot.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, inputs: Tensor) -> Tensor:
        """What the snapshot gives for these inputs, without gradient."""
        if self.snapshot is None:
            raise LatewoodError("The teacher is asked before a snapshot was taken.")
        output: Tensor = self.snapshot(inputs)
        return output

    def distillation(self, inputs: Tensor, logits: Tensor, temperature: float) -> Tensor:
        """What holds a student's ``logits`` for these inputs to the snapshot's, on the classes that the snapshot knew.

        Zero while there is no snapshot.
        """
        if self.snapshot is None:
            return logits.new_zeros(())
        old = self(inputs)
        return distillation_loss(logits[:, : old.shape[1]], old, temperature)

    def __bool__(self) -> bool:
        return self.snapshot is not None

    def train(self, mode: bool = True) -> Teacher[Module]:
        return super().train(False)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        if not any(key.startswith(f"{prefix}snapshot.") for key in state_dict):
            self.snapshot = None
        elif self.snapshot is None:
            self.take()
        super()._load_from_state_dict(state_dict, prefix, *rest)

    _student: Module


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float, square: bool = False) -> Tensor:
    """Cross-entropy between the softened distributions of teacher and student, both logits of shape ``(n, classes)``.

    ``square`` multiplies by the temperature squared (Hinton et al., 2015), which keeps the gradient's size; LwF (Li and
    Hoiem, 2016) and iCaRL's common implementations leave it out.
    """
    targets = F.softmax(teacher / temperature, dim=1)
    loss = -(targets * F.log_softmax(student / temperature, dim=1)).sum(1).mean()
    return loss * temperature**2 if square else loss
