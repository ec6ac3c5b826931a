"""Growing a transformer in depth: which layers matter least, and copies of them that at first change nothing
(ADEPT, arXiv 2510.10071; LLaMA Pro, arXiv 2401.02415).

For decoders of the library transformers whose layers add to the residual stream through known projections: Llama, Mistral,
Qwen, GPT-2, GPT-NeoX and their like. Positions of layers count from 0.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from latewood.core.errors import ConfigurationError, LatewoodError
from latewood.core.seeding import seeded

#: Where a model's configuration keeps the positions of the copies.
_KEY = "identity_copies"
#: What the stack of layers is called.
_STACKS = ("layers", "h")
#: The projections through which a layer adds to the residual stream.
_OUTPUTS = {"o_proj", "down_proj", "c_proj", "dense", "dense_4h_to_h"}
#: Lists in a configuration that have an entry for each layer.
_PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")


def layers(network: nn.Module) -> nn.ModuleList:
    """The layers of a decoder, in order. Errors: :class:`~latewood.core.errors.ConfigurationError` if it shows none."""
    decoder = getattr(network, "base_model", network)
    for name in _STACKS:
        stack = getattr(decoder, name, None)
        if isinstance(stack, nn.ModuleList) and len(stack):
            return stack
    raise ConfigurationError(
        f"{type(network).__name__} shows no stack of layers under {' or '.join(_STACKS)}; "
        "right would be a decoder such as Llama, Qwen3, GPT-2 or GPT-NeoX."
    )


def copies(network: nn.Module) -> list[int]:
    """The positions of the layers that :func:`expand` put in, as the model's configuration keeps them."""
    return list(getattr(network.config, _KEY, None) or [])


@contextmanager
def bypassed(network: nn.Module, positions: Sequence[int]) -> Iterator[None]:
    """Inside the block the residual stream passes these layers unchanged. Without its copies a model is what it was."""
    stack = layers(network)
    _check(positions, stack)
    with ExitStack() as hooks:
        for position in set(positions):
            # The layer still computes, so that it fills its place in a cache; it is one of many.
            hooks.enter_context(stack[position].register_forward_hook(_pass_on, with_kwargs=True))
        yield


@torch.no_grad()
def layer_importance(network: nn.Module, loss: Callable[[], float]) -> list[float]:
    """How much the loss rises without each layer, layer by layer; a layer that does nothing gets exactly 0.

    ``loss`` gives the mean loss of ``network`` on a probe of what must be kept, the same at each call. The network
    is evaluated in evaluation mode, once more than it has layers, and is left as it was.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> tiny = {"vocab_size": 32, "hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 4}
    >>> network = LlamaForCausalLM(LlamaConfig(**tiny))
    >>> tokens = torch.arange(24).view(2, 12)
    >>> importance = layer_importance(network, lambda: network(tokens, labels=tokens).loss.item())
    >>> chosen = least_important(importance, 2)
    >>> _ = expand(network, chosen)
    >>> len(layers(network)), len(copies(network))
    (6, 2)
    """
    modes = [(child, child.training) for child in network.modules()]
    try:
        network.eval()
        base = loss()
        rises = []
        for position in range(len(layers(network))):
            with bypassed(network, [position]):
                rises.append(loss() - base)
        return rises
    finally:
        for child, training in modes:
            child.training = training


def least_important(importance: Sequence[float], count: int) -> list[int]:
    """The positions of the ``count`` smallest importances, in order; of equals the deeper.

    >>> least_important([3.0, 0.5, 1.0, 0.5], 1)
    [3]
    """
    if not 0 <= count <= len(importance):
        raise ConfigurationError(f"Of {len(importance)} layers {count} can't be chosen.")
    return sorted(sorted(range(len(importance)), key=lambda position: (importance[position], -position))[:count])


@torch.no_grad()
def expand(network: nn.Module, positions: Sequence[int]) -> list[int]:
    """Put a copy of each of these layers directly after it, with output projections of zero: the model computes what it did.

    Changes ``network`` and its configuration, which keeps where the copies are, also when the model is saved and
    loaded; returns their positions in the deeper stack. An expanded model may be expanded again.
    Errors: :class:`~latewood.core.errors.ConfigurationError` for positions that are not there or twice, or if the copies would
    change what the model computes; it is then as before.

    To take up a saved state, expand a base of the same kind at the same positions, and load it.
    """
    stack, config = layers(network), network.config
    _check(positions, stack)
    if len(set(positions)) < len(positions):
        raise ConfigurationError(f"A layer is copied once at a time, but the positions are {list(positions)}.")
    made = [position + earlier + 1 for earlier, position in enumerate(sorted(positions))]
    said, built, held = _logits(network), _built(network), copies(network)
    for position in made:
        # One configuration for all layers: it is not part of what is copied.
        layer = copy.deepcopy(stack[position - 1], {id(config): config})
        silence(layer)
        stack.insert(position, layer)
        _insert_in_config(config, position)
        built.insert(position, built[position - 1])
        held = [*(earlier + (earlier >= position) for earlier in held), position]
    _renumber(stack)
    close = torch.allclose(said, _logits(network), rtol=1e-4, atol=1e-4 * float(said.abs().max()))
    if not close or _built(network) != built:
        for position in reversed(made):
            del stack[position]
            _remove_from_config(config, position)
        _renumber(stack)
        when = " once it is loaded" if close else ""
        raise ConfigurationError(
            f"Copies of layers of {type(network).__name__} would change what it computes{when}; right would be a decoder whose "
            "layers only add to the residual stream and don't depend on their number: Llama, Qwen3, GPT-2 or GPT-NeoX."
        )
    setattr(config, _KEY, sorted(held))
    return made


@torch.no_grad()
def silence(layer: nn.Module) -> None:
    """Set the output projections of a layer to zero, biases too, so that the residual stream passes it unchanged."""
    for name, parameter in layer.named_parameters():
        if _OUTPUTS & set(name.split(".")):
            parameter.zero_()


def train_only(network: nn.Module, positions: Sequence[int]) -> list[nn.Parameter]:
    """Freeze everything but the layers at these positions; returns what is left to train, each parameter once.

    Errors: :class:`~latewood.core.errors.ConfigurationError` if that is nothing.
    """
    stack = layers(network)
    _check(positions, stack)
    if not positions:
        raise ConfigurationError("Without a copied layer there is nothing to train; expand the model by at least one.")
    network.requires_grad_(False)
    for position in positions:
        stack[position].requires_grad_(True)
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def _pass_on(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
    stream = inputs[0] if inputs else named["hidden_states"]
    return (stream, *output[1:]) if isinstance(output, tuple) else stream


def _check(positions: Sequence[int], stack: nn.ModuleList) -> None:
    if wrong := [position for position in positions if not 0 <= position < len(stack)]:
        raise ConfigurationError(f"There is no layer {wrong[0]}: positions count from 0 to {len(stack) - 1}.")


def _logits(network: nn.Module) -> Tensor:
    """What the network says to a few tokens."""
    modes = [(child, child.training) for child in network.modules()]
    network.eval()
    config: Any = network.config
    tokens = torch.arange(8, device=next(network.parameters()).device)[None] % config.vocab_size
    try:
        logits: Tensor = network(input_ids=tokens, use_cache=False).logits.float()
    finally:
        for child, training in modes:
            child.training = training
    if not torch.isfinite(logits).all():
        raise LatewoodError("The model gives NaN or infinite logits before it is expanded; take one whose weights are whole.")
    return logits


def _built(network: nn.Module) -> list[object]:
    """What each layer is where the model is built from its configuration, as it is when it is loaded, but for its number."""
    build: Any = type(network)
    with seeded("built"), torch.device("meta"):
        stack = layers(build(copy.deepcopy(network.config)))
    return [
        [
            [(name, parameter.shape) for name, parameter in layer.named_parameters()],
            [
                (
                    name,
                    type(module),
                    {k: v for k, v in vars(module).items() if isinstance(v, int | float | str) and k != "layer_idx"},
                )
                for name, module in layer.named_modules()
            ],
        ]
        for layer in stack
    ]


def _renumber(stack: nn.ModuleList) -> None:
    """Each layer's place in a cache."""
    for position, layer in enumerate(stack):
        numbered: Any
        for numbered in layer.modules():
            if hasattr(numbered, "layer_idx"):
                numbered.layer_idx = position


def _insert_in_config(config: Any, position: int) -> None:
    config.num_hidden_layers += 1
    for values in _per_layer(config, config.num_hidden_layers - 1):
        values.insert(position, values[position - 1])


def _remove_from_config(config: Any, position: int) -> None:
    config.num_hidden_layers -= 1
    for values in _per_layer(config, config.num_hidden_layers + 1):
        del values[position]


def _per_layer(config: Any, length: int) -> list[list[Any]]:
    found = [getattr(config, name, None) for name in _PER_LAYER]
    return [values for values in found if isinstance(values, list) and len(values) == length]
