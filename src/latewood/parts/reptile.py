"""Reptile: every so many steps, weights are pulled back towards where they were."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from latewood.core.errors import ConfigurationError
from latewood.parts.growing import Growing


class Anchor(Growing):
    """The trainable weights of ``module`` as they were after the last pull, and the pull itself: ``w <- a + eps (w - a)``,
    ``a <- w``.

    After ``k`` steps of SGD with rate ``beta`` this goes down the gradient of the loss of all ``k`` batches less ``beta``
    times the inner products of their gradients (Nichol et al., 2018), so batches come to help one another; with replay in
    them, old and new ones (Riemer et al., 2019; Abbes et al., 2025, arXiv 2508.01908). The optimiser is not touched.

    Where a network in half precision is trained through ``masters``, one float32 tensor for each trainable parameter,
    those are pulled and the parameters follow. Anchor and count of steps are state: a run that is interrupted between
    two pulls goes on as if it had not been. Where parameters have come, gone or grown, :meth:`reset` is called for.

    Errors: :class:`~latewood.core.errors.ConfigurationError` for weights of half precision without masters: the next step
    would round the pull away.

    >>> layer = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.zeros_(layer.weight)
    >>> anchor = Anchor(layer)
    >>> for _ in range(4):
    ...     with torch.no_grad():
    ...         layer.weight += 1.0  # a step
    ...     pulled = anchor.step(every=2, eps=0.5)
    >>> layer.weight.item(), pulled, anchor.steps
    (2.0, True, 0)
    """

    def __init__(self, module: nn.Module, masters: Sequence[Tensor] = ()) -> None:
        super().__init__()
        # Not registered: the weights are another's state.
        object.__setattr__(self, "_module", module)
        object.__setattr__(self, "_masters", list(masters))
        self._count = 0
        #: The steps since the last pull.
        self.steps = 0
        self.reset()

    _module: nn.Module
    _masters: list[Tensor]

    @torch.no_grad()
    def reset(self) -> None:
        """Anchor the weights as they are now."""
        weights = self._weights()
        for i in range(len(weights), self._count):
            delattr(self, f"anchor_{i}")
        self._count, self.steps = len(weights), 0
        for i, weight in enumerate(weights):
            self.register_buffer(f"anchor_{i}", weight.detach().clone())

    def step(self, every: int, eps: float) -> bool:
        """Count a step of the optimiser, and pull if it is the last of ``every``; whether it did."""
        if every < 1:
            raise ConfigurationError(f"A pull after every {every} steps makes no sense; it takes at least 1.")
        self.steps += 1
        if self.steps < every:
            return False
        self.pull(eps)
        return True

    @torch.no_grad()
    def pull(self, eps: float) -> None:
        """Leave ``eps`` of the way from the anchor to the weights, and anchor them there: 1 keeps, 0 takes back the steps."""
        if not 0 <= eps <= 1:
            raise ConfigurationError(f"eps is the part of the way that is kept, from 0 to 1, but it is {eps}.")
        weights, anchors = self._weights(), self._anchors()
        if [w.shape for w in weights] != [a.shape for a in anchors]:
            raise ConfigurationError("The weights are no longer those that were anchored; reset the anchor when they change.")
        torch._foreach_lerp_(anchors, weights, eps)
        torch._foreach_copy_(weights, anchors)
        if self._masters:
            torch._foreach_copy_(self._trained(), weights)
        self.steps = 0

    def get_extra_state(self) -> Tensor:
        """The count of steps, as a tensor."""
        return torch.tensor(self.steps)

    def set_extra_state(self, state: Tensor) -> None:
        """Take on a count of steps."""
        self.steps = int(state)

    def _trained(self) -> list[Tensor]:
        return [parameter.detach() for parameter in self._module.parameters() if parameter.requires_grad]

    def _anchors(self) -> list[Tensor]:
        return [self.get_buffer(f"anchor_{i}") for i in range(self._count)]

    def _weights(self) -> list[Tensor]:
        """What the optimiser writes to."""
        trained = self._trained()
        weights = [master.detach() for master in self._masters] or trained
        if self._masters and [w.shape for w in weights] != [p.shape for p in trained]:
            raise ConfigurationError("There must be one master for each trainable parameter, of its shape and in its order.")
        if (low := next((w for w in weights if w.dtype not in (torch.float32, torch.float64)), None)) is not None:
            raise ConfigurationError(
                f"A weight is of {str(low.dtype).removeprefix('torch.')}, in which the pull would be rounded away; "
                "keep weights in float32 and compute in half precision, or give float32 masters."
            )
        return weights
