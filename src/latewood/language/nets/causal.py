"""Causal language models: any of the Hugging Face hub or from a folder, or a small one from random weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError, DataError
from latewood.parts.backbone import Backbone
from latewood.parts.pretrained import find_checkpoint, first_line, quiet, save_checkpoint

_EXAMPLE = "HuggingFaceTB/SmolLM2-135M"
#: Stands for no target.
_NONE = -100


def causal(
    example: Data,
    *,
    name: str | None = None,
    layers: int = 2,
    width: int = 64,
    heads: int = 4,
    ffn: int | None = None,
    vocabulary: int = 257,
    context: int = 4096,
    revision: str | None = None,
    local_only: bool = False,
) -> CausalLM:
    """A causal language model.

    ``name`` is a checkpoint on the hub (``EleutherAI/pythia-70m``) or a folder in the hub's format, loaded with every
    weight, in float32, from safetensors and by the library transformers alone. Without a name it is a Llama of these
    ``layers``, ``width``, ``heads``, ``ffn`` (default ``8 / 3 width``, rounded up to a multiple of 8), ``vocabulary`` (257:
    bytes and an end of text) and largest ``context``, untied, from random weights.

    Errors: :class:`~latewood.core.errors.ConfigurationError` if the checkpoint is not there, damaged, or no causal language
    model, or if the sizes don't fit one another.

    >>> tokens = Data(tokens=torch.tensor([[72, 101, 108, 108, 111]]))
    >>> net = causal(tokens[:1], layers=1, width=16, heads=2)
    >>> net(net.prepare(tokens)).shape
    torch.Size([1, 5, 257])
    """
    if name is not None:
        folder = find_checkpoint(name, revision, local_only, ["generation_config.json"], _EXAMPLE)
        settings = {"name": name, "revision": None if Path(name).expanduser().is_dir() else folder.name}
        return CausalLM(_loaded(name, folder), settings)
    for setting, value in {
        "layers": layers,
        "width": width,
        "heads": heads,
        "vocabulary": vocabulary,
        "context": context,
    }.items():
        if value < 1:
            raise ConfigurationError(f"The {setting} of a language model must be at least 1, but it is {value}.")
    if width % (2 * heads):
        raise ConfigurationError(
            f"The width {width} must be an even multiple of the {heads} heads: each turns pairs of features."
        )
    from transformers import LlamaConfig, LlamaForCausalLM

    inner = ffn or -(-8 * width // 24) * 8
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=context,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=vocabulary - 1,
        pad_token_id=None,
    )
    sizes = {"layers": layers, "width": width, "heads": heads, "ffn": inner, "vocabulary": vocabulary, "context": context}
    return CausalLM(LlamaForCausalLM(config), sizes)


class CausalLM(Backbone):
    """What :func:`causal` builds; ``network`` is the model of transformers.

    It reads the column ``tokens`` (n, length). Unlike a backbone of features, it carries its head: :meth:`forward` gives
    logits.
    """

    def __init__(self, network: nn.Module, settings: Mapping[str, Any]) -> None:
        super().__init__("tokens", None, settings)
        self.network = network
        config: Any = network.config
        self.width, self.vocabulary = int(config.hidden_size), int(config.vocab_size)
        config.use_cache = False  # for training; generation switches it on itself

    def prepare(self, data: Data) -> Tensor:
        """Tokens as int64 on the model's device. Errors: DataError for tokens that the model does not have."""
        tokens = self._raw(data)
        if tokens.dim() != 2 or tokens.shape[1] < 2:
            raise DataError(f"Tokens come as rows of at least 2, but these have the shape {tuple(tokens.shape)}.")
        # On an accelerator a look at the values would make the processor wait; there the lookup itself fails.
        if tokens.device.type == "cpu" and len(tokens) and (most := int(tokens.max())) >= self.vocabulary:
            raise DataError(
                f"There is a token {most}, but this model knows {self.vocabulary}: it belongs to another tokenizer."
            )
        return tokens.long()

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits of the next token after each, shape ``(n, length, vocabulary)``."""
        logits: Tensor = self.network(input_ids=inputs).logits
        return logits

    def losses(self, inputs: Tensor) -> Tensor:
        """The negative log-likelihood of each token but the first, in nats, float32 ``(n, length - 1)``."""
        # All positions at once, the last without a target: logits without it would be a copy, the largest tensor there is.
        targets = F.pad(inputs[:, 1:], (0, 1), value=_NONE)
        losses = F.cross_entropy(self(inputs).float().flatten(0, 1), targets.flatten(), reduction="none", ignore_index=_NONE)
        return losses.view(targets.shape)[:, :-1]

    def save(self, folder: Path) -> None:
        """Write a folder in the hub's format, from which :func:`causal` builds the same model again."""
        save_checkpoint(folder, [self.network], {})


def _loaded(name: str, folder: Path) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            found: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                dtype=torch.float32,
            )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
        raise ConfigurationError(f"transformers can't load {name!r} as a causal language model: {first_line(error)}.") from None
    network: nn.Module = found[0]
    if missing := sorted(found[1]["missing_keys"]):
        raise ConfigurationError(
            f"The checkpoint {name!r} lacks {len(missing)} weights of the network, {missing[0]} for one, which would be random."
        )
    return network
