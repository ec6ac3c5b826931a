"""Small modules that adapt a frozen network: bottleneck adapters in sets, prompt tokens, scale and shift, batch statistics.

Each is attached by hooks and registered as one child of the network, so the network's own weights keep their names.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError
from latewood.parts.backbone import Backbone
from latewood.parts.growing import Growing

#: What passes between the two hooks of a block, and which stored set each bank is to use. Not attributes of the modules:
#: a service predicts and scores with one network in two threads.
_added: ContextVar[Tensor | None] = ContextVar("latewood_added", default=None)
_chosen: ContextVar[Mapping[int, int | Tensor]] = ContextVar("latewood_chosen", default={})  # noqa: B039
_SCALABLE = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.GroupNorm, _BatchNorm)


def transformer_blocks(network: nn.Module) -> list[nn.Module]:
    """The blocks of a vision transformer with its norms before attention and MLP: ViT, DeiT, DINOv2, CLIP, SigLIP, …

    Errors: :class:`~latewood.core.errors.ConfigurationError` if there are none, or they are not of one width.
    """
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList) and len(module)]
    stages = [list(one) for one in lists if all(len(_layer_norms(block)) >= 2 for block in one)]
    blocks = [block for stage in stages for block in stage]
    if not blocks:
        raise ConfigurationError(
            f"{type(network).__name__} has no transformer blocks, which adapters and prompts need; use ssf, bn or finetune."
        )
    if len({_width(block) for block in blocks}) > 1:
        raise ConfigurationError(
            f"{type(network).__name__} has blocks of several widths, which adapters and prompts can't serve; use ssf."
        )
    return blocks


class Adapters(Growing):
    """AdaptFormer's bottleneck adapters: ``out = x + MLP(LN(x)) + scale * Up(ReLU(Down(x)))`` in every block of a transformer.

    ``x`` is the residual stream after attention, ``width`` the bottleneck, ``dropout`` acts on its hidden units. ``Up`` and
    the biases start at zero, so the network is at first as it was.

    One set is live and trains: the parameters ``down`` (blocks, width, d), ``down_bias``, ``up`` (blocks, d, width) and
    ``up_bias``. :meth:`store` keeps a copy of it; :meth:`using` puts a stored set, or one for each row, in its place;
    :meth:`pull` moves the live set towards others in place.

    >>> from latewood.images.nets.vit import vit
    >>> photos = Data(image=torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    >>> body = vit(photos, width=24, depth=2).eval()
    >>> inputs = body.prepare(photos)
    >>> before = body(inputs)
    >>> adapters = Adapters(body, width=4)
    >>> adapters.store()
    >>> with adapters.using(torch.tensor([0, 0])):
    ...     torch.equal(body(inputs), before)
    True
    """

    down: nn.Parameter
    down_bias: nn.Parameter
    up: nn.Parameter
    up_bias: nn.Parameter

    def __init__(self, network: nn.Module, width: int = 64, scale: float = 0.1, dropout: float = 0.1) -> None:
        super().__init__()
        if width < 1:
            raise ConfigurationError(f"The bottleneck of an adapter must be at least 1, but it is {width}.")
        blocks = transformer_blocks(network)
        count, d = len(blocks), _width(blocks[0])
        self.width, self.scale, self.dropout = width, scale, dropout
        # Kaiming-uniform with a = sqrt(5) is uniform within 1 / sqrt(fan_in).
        self.down = nn.Parameter(torch.empty(count, width, d).uniform_(-1 / math.sqrt(d), 1 / math.sqrt(d)))
        self.down_bias = nn.Parameter(torch.zeros(count, width))
        self.up = nn.Parameter(torch.zeros(count, d, width))
        self.up_bias = nn.Parameter(torch.zeros(count, d))
        for name, value in self.named_parameters():
            self.register_buffer(f"stored_{name}", torch.empty(0, *value.shape))
        _register(network, self)
        for number, block in enumerate(blocks):
            _layer_norms(block)[1].register_forward_pre_hook(partial(self._branch, number))
            block.register_forward_hook(self._join)

    @property
    def live(self) -> list[Tensor]:
        """The four tensors of the set that trains."""
        return [self.down, self.down_bias, self.up, self.up_bias]

    @property
    def stored(self) -> list[Tensor]:
        """The four tensors of the stored sets, each with the number of sets in front."""
        return [getattr(self, f"stored_{name}") for name, _ in self.named_parameters()]

    @property
    def sets(self) -> int:
        """How many sets are stored."""
        return len(self.stored[0])

    @torch.no_grad()
    def store(self) -> None:
        """Keep a copy of the live set, behind those that are stored."""
        for (name, value), kept in zip(self.named_parameters(), self.stored, strict=True):
            setattr(self, f"stored_{name}", torch.cat([kept, value[None]]))

    @torch.no_grad()
    def pull(self, targets: Sequence[Tensor], share: float) -> None:
        """Move the live set in place to ``(1 - share) * live + share * targets``."""
        torch._foreach_lerp_(self.live, list(targets), share)

    @contextmanager
    def using(self, chosen: int | Tensor) -> Iterator[None]:
        """Inside the block the network runs with stored sets: one for all rows, or by a tensor (rows,) one for each."""
        token = _chosen.set({**_chosen.get(), id(self): chosen})
        try:
            yield
        finally:
            _chosen.reset(token)

    def forward(self, number: int, stream: Tensor) -> Tensor:
        """What block ``number`` gets beside its MLP, for the residual stream (rows, tokens, d)."""
        chosen = _chosen.get().get(id(self))
        if isinstance(chosen, Tensor):
            # One product for all rows, each with matrices of its own.
            down, down_bias, up, up_bias = (kept[chosen.to(kept.device), number] for kept in self.stored)
            hidden = self._dropped(torch.baddbmm(down_bias[:, None], stream, down.mT))
            return self.scale * torch.baddbmm(up_bias[:, None], hidden, up.mT)
        tensors = self.live if chosen is None else [kept[chosen] for kept in self.stored]
        down, down_bias, up, up_bias = (tensor[number] for tensor in tensors)
        return self.scale * F.linear(self._dropped(F.linear(stream, down, down_bias)), up, up_bias)

    def _dropped(self, hidden: Tensor) -> Tensor:
        return F.dropout(F.relu(hidden), self.dropout, self.training)

    def _branch(self, number: int, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        _added.set(self(number, inputs[0]))

    def _join(self, block: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        added = _added.get()
        _added.set(None)
        return _on_hidden(output, lambda hidden: hidden + added)


class Prompts(nn.Module):
    """Visual prompt tuning (Jia et al., 2022): ``count`` trained tokens behind the patches, zero at first.

    They enter at the first block (shallow) or anew at every block (``deep``), and are dropped before the network's output,
    which keeps its number of tokens.
    """

    def __init__(self, network: nn.Module, count: int = 5, deep: bool = False) -> None:
        super().__init__()
        if count < 1:
            raise ConfigurationError(f"There must be at least 1 prompt token, but there are {count}.")
        blocks = transformer_blocks(network)
        spans = [(block, block) for block in blocks] if deep else [(blocks[0], blocks[-1])]
        self.tokens = nn.Parameter(torch.zeros(len(spans), count, _width(blocks[0])))
        _register(network, self)
        for number, (first, last) in enumerate(spans):
            first.register_forward_pre_hook(partial(self._enter, number), with_kwargs=True)
            last.register_forward_hook(self._leave)

    def _enter(self, number: int, block: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        named = dict(named)
        hidden, *rest = inputs or (named.pop("hidden_states"),)
        tokens = self.tokens[number].to(hidden.dtype).expand(len(hidden), -1, -1)
        return (torch.cat([hidden, tokens], 1), *rest), named

    def _leave(self, block: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        return _on_hidden(output, lambda hidden: hidden[:, : -self.tokens.shape[1]])


class ScaleShift(nn.Module):
    """A trained factor and offset for each channel behind every one of ``sites``: ``y = x * scale + shift``.

    Factors start around 1 and offsets around 0, with standard deviation ``spread``: at 0 the network is at first as it was.
    """

    def __init__(self, network: nn.Module, sites: Sequence[nn.Module], spread: float = 0.0) -> None:
        super().__init__()
        if not sites:
            raise ConfigurationError(f"{type(network).__name__} has no layers that could be scaled and shifted.")
        channels = [_channels(site) for site in sites]
        self.scale = nn.ParameterList([1 + spread * torch.randn(count) for count in channels])
        self.shift = nn.ParameterList([spread * torch.randn(count) for count in channels])
        _register(network, self)
        for number, site in enumerate(sites):
            site.register_forward_hook(partial(self._change, number))

    def _change(self, number: int, site: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        last = isinstance(site, nn.Linear | nn.LayerNorm)
        shape = (-1,) if last else (-1, *[1] * (output.dim() - 2))
        changed: Tensor = output * self.scale[number].view(shape) + self.shift[number].view(shape)
        return changed


def ssf(network: nn.Module) -> ScaleShift:
    """Scaling and shifting your features (Lian et al., 2022): behind every norm, linear layer and convolution; spread 0.02."""
    return ScaleShift(network, scalable_layers(network), spread=0.02)


def scalable_layers(network: nn.Module) -> list[nn.Module]:
    """Norms, linear layers and convolutions, in the network's order."""
    return [module for module in network.modules() if isinstance(module, _SCALABLE)]


def film(network: nn.Module) -> ScaleShift:
    """FiLM layers as first session adaptation has them (Panos et al., 2023): behind norms, from the identity.

    In a network with depthwise convolutions (EfficientNet) these are the first norm, the last, and that behind each
    depthwise convolution; in others every norm, which for transformers is our choice.

    >>> from latewood.images.nets.vit import vit
    >>> body = vit(Data(image=torch.zeros(2, 3, 32, 32, dtype=torch.uint8)), width=24, depth=2)
    >>> sum(p.numel() for p in film(body).parameters()) == 2 * 24 * (2 * 2 + 1)
    True
    """
    layers = scalable_layers(network)
    norms = [module for module in layers if not isinstance(module, nn.Linear | nn.Conv2d)]
    behind = [b for a, b in pairwise(layers) if _is_depthwise(a) and b in norms]
    return ScaleShift(network, [n for n in norms if n in (norms[0], *behind, norms[-1])] if behind else norms)


def batch_norms(network: nn.Module) -> nn.ModuleList:
    """The layers of a network that keep running statistics. Errors: ConfigurationError if there are none."""
    found = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not found:
        raise ConfigurationError(f"{type(network).__name__} has no batch normalisation, whose statistics bn would renew.")
    return nn.ModuleList(found)


@torch.no_grad()
def renew_statistics(backbone: Backbone, data: Data, epochs: int, batch_size: int, generator: torch.Generator) -> None:
    """Running means and variances from zero, by passes over ``data`` in training mode; no weight changes, no label is read."""
    for norm in batch_norms(backbone):
        assert isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.zero_()
        norm.running_var.zero_()
    backbone.frozen = False
    backbone.train()
    for _ in range(epochs):
        for batch in data.select(backbone.column).batches(batch_size, generator):
            backbone(backbone.prepare(batch))
    backbone.freeze()


def train_part(backbone: Backbone, part: nn.Module, mode: bool) -> None:
    """Put only ``part`` of a backbone into the mode of training. The backbone's own mode says whether images are augmented."""
    for child in backbone.children():
        child.eval()
    part.train(mode)


def _layer_norms(block: nn.Module) -> list[nn.LayerNorm]:
    return [child for child in block.children() if isinstance(child, nn.LayerNorm)]


def _width(block: nn.Module) -> int:
    return _layer_norms(block)[1].normalized_shape[-1]


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1


def _channels(site: nn.Module) -> int:
    if isinstance(site, nn.LayerNorm):
        return site.normalized_shape[-1]
    name = {nn.Linear: "out_features", nn.Conv2d: "out_channels", nn.GroupNorm: "num_channels"}
    found: int = getattr(site, next((name[kind] for kind in name if isinstance(site, kind)), "num_features"))
    return found


def _register(network: nn.Module, module: nn.Module) -> None:
    name = type(module).__name__.lower()
    if hasattr(network, name):
        raise ConfigurationError(f"{type(network).__name__} has {name} already; attach them to a fresh copy.")
    network.add_module(name, module.train(network.training))


def _on_hidden(output: Any, change: Any) -> Any:
    # Blocks of older versions of transformers give a tuple, whose first part is the hidden state.
    return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)
