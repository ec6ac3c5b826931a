"""Modules whose tensors grow with what arrives, and take on the size of a larger state when one is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Growing(nn.Module):
    """Before loading, resizes its own parameters and buffers to the shapes in the state, so that a fresh learner can
    take on one that has grown. With ``open_ended`` it also takes on buffers that it does not have yet."""

    open_ended = False

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        for key, value in state_dict.items():
            name = key.removeprefix(prefix)
            if not key.startswith(prefix) or "." in name or not isinstance(value, Tensor):
                continue
            if name in self._parameters:
                self.resize_parameter(name, torch.empty(value.shape, dtype=value.dtype))
            elif name in self._buffers or self.open_ended:
                held = self._buffers.get(name)
                device = self.place if held is None else held.device
                self.register_buffer(name, torch.empty(value.shape, dtype=value.dtype, device=device))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @property
    def place(self) -> torch.device:
        """Where the module's tensors lie (the CPU while it has none)."""
        return next((t.device for t in (*self.parameters(), *self.buffers())), torch.device("cpu"))

    def resize_parameter(self, name: str, values: Tensor) -> None:
        """Replace the parameter ``name`` by one with these values, on its device and as trainable as it was."""
        old: nn.Parameter = getattr(self, name)
        if old.shape != values.shape or old.dtype != values.dtype:
            setattr(self, name, nn.Parameter(values.to(old.device), requires_grad=old.requires_grad))
