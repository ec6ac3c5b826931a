"""How far each layer's weights have moved since training began, relative to their size."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import torch
from torch import Tensor, nn

from latewood.core.errors import ConfigurationError, DataError

Layer = int | str
LayerOf = Callable[[str], Layer | None]

_NUMBERED = re.compile(r"(?:^|\.)(?:layers?|blocks?|h)\.(\d+)\.")


def transformer_layer(name: str) -> int | None:
    """The number of the layer that a transformer's parameter belongs to; ``None`` for embeddings, heads and the like.

    >>> transformer_layer("model.layers.11.mlp.up_proj.weight"), transformer_layer("transformer.h.0.ln_1.bias")
    (11, 0)
    >>> transformer_layer("model.embed_tokens.weight") is None
    True
    """
    found = _NUMBERED.search(name)
    return int(found[1]) if found else None


class Drift:
    """Remembers a module's weights and measures how far each layer moves from them.

    The drift of a layer is the mean over its weights of ``|w - w0| / (|w0| + eps)``. A weight that began at exactly zero has
    no relative change and is left out. The weights are copied once, to the CPU, and compared one tensor at a time where
    the module lies. ``layer_of`` gives a parameter's layer (a number or a name, low ones first), or ``None`` for those
    that don't count. Errors: :class:`~latewood.core.errors.ConfigurationError` if no parameter has a layer.

    >>> net = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(2))})
    >>> drift = Drift(net)
    >>> with torch.no_grad():
    ...     _ = net["layers"][0].weight.mul_(1.1)
    >>> {layer: round(moved, 3) for layer, moved in drift.by_layer().items()}
    {0: 0.1, 1: 0.0}
    """

    def __init__(self, module: nn.Module, layer_of: LayerOf = transformer_layer, eps: float = 1e-8) -> None:
        if not eps > 0:
            raise ConfigurationError(f"eps must be above 0, but it is {eps}.")
        self.module, self.eps = module, eps
        named = [(name, parameter, layer_of(name)) for name, parameter in module.named_parameters()]
        self._layers: dict[str, Layer] = {name: layer for name, _, layer in named if layer is not None}
        #: The weights as they were, by name, on the CPU.
        self.start: dict[str, Tensor] = {
            name: parameter.detach().to("cpu", copy=True) for name, parameter, layer in named if layer is not None
        }
        if not self.start:
            raise ConfigurationError("No parameter of this module belongs to a layer; pass a layer_of that knows its names.")

    @torch.no_grad()
    def by_layer(self) -> dict[Layer, float]:
        """The drift of each layer, lowest first; exactly 0 where nothing changed.

        Errors: :class:`~latewood.core.errors.DataError` if a parameter is gone or has another shape.
        """
        now = dict(self.module.named_parameters())
        sums: dict[Layer, float] = {}
        weights: dict[Layer, int] = {}
        for name, start in self.start.items():
            if name not in now or now[name].shape != start.shape:
                raise DataError(f"The drift of {name} can't be measured: it has another shape than at the start, or is gone.")
            layer = self._layers[name]
            total, count = self._changes(now[name], start)
            sums[layer] = sums.get(layer, 0.0) + total
            weights[layer] = weights.get(layer, 0) + count
        layers = sorted(sums, key=_place)
        return {layer: sums[layer] / weights[layer] if weights[layer] else 0.0 for layer in layers}

    def ratio(self, layers: int | None = None) -> float:
        """The mean drift of the bottom ``layers`` layers over that of the top ones.

        Default: a fifth of all, at least one and at most five. 1 is even; NaN while nothing has moved, infinite where only
        the bottom has.
        """
        drifts = list(self.by_layer().values())
        count = min(5, max(1, len(drifts) // 5)) if layers is None else layers
        if not 1 <= count <= len(drifts):
            raise ConfigurationError(
                f"The ratio needs between 1 and {len(drifts)} layers at either end, but {count} were asked for."
            )
        bottom, top = sum(drifts[:count]), sum(drifts[-count:])
        if top == 0:
            return math.inf if bottom > 0 else math.nan
        return bottom / top

    def _changes(self, now: Tensor, start: Tensor) -> tuple[float, int]:
        """The sum of the relative changes of one tensor, and how many weights it is over."""
        start = start.to(now.device).float()
        size = start.abs()
        changes = (now.detach().float() - start).abs_().div_(size + self.eps)
        counted = size > 0
        return float(changes[counted].sum()), int(counted.sum())


def _place(layer: Layer) -> tuple[bool, Layer]:
    return isinstance(layer, str), layer
