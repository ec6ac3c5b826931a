"""What an optimiser remembers, as part of a learner's state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from latewood.core.errors import CheckpointError
from latewood.parts.growing import Growing


class OptimizerState(Growing):
    """Holds the tensors of an optimiser (moments, step counts) between experiences, or in a checkpoint within one.

    >>> weight = torch.nn.Parameter(torch.ones(2))
    >>> optimizer = torch.optim.AdamW([weight])
    >>> weight.sum().backward(); optimizer.step()
    >>> held = OptimizerState()
    >>> held.take(optimizer)
    >>> sorted(held.state_dict())
    ['0_exp_avg', '0_exp_avg_sq', '0_step']
    """

    open_ended = True

    def take(self, optimizer: torch.optim.Optimizer) -> None:
        """Hold the optimiser's own tensors, not copies of them."""
        self.clear()
        for number, values in optimizer.state_dict()["state"].items():
            for name, value in values.items():
                held = value if isinstance(value, Tensor) else torch.tensor(value)
                # A buffer of no dimension would lose its kind to those who cast floating-point buffers.
                self.register_buffer(f"{number}_{name}", held)

    def give(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the optimiser go on from what is held, if anything is. Errors: CheckpointError if it has other parameters."""
        state: dict[int, dict[str, Any]] = {}
        for key, value in self._buffers.items():
            number, _, name = key.partition("_")
            state.setdefault(int(number), {})[name] = value
        if not state:
            return
        told: Mapping[str, Any] = optimizer.state_dict()
        count = sum(len(group["params"]) for group in told["param_groups"])
        if set(state) - set(range(count)):
            raise CheckpointError(f"The optimiser's state is of {max(state) + 1} parameters, but there are {count}.")
        optimizer.load_state_dict({"state": state, "param_groups": told["param_groups"]})

    def clear(self) -> None:
        """Hold nothing."""
        self._buffers.clear()
