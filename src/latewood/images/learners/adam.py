"""ADAM (paper 42, later APER): adapt once on the first arrival, then prototypes on pretrained and adapted features together."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from latewood.core.cost import current_meter
from latewood.core.data import Data
from latewood.core.errors import ConfigurationError
from latewood.core.experience import Experience
from latewood.core.preset import Preset
from latewood.core.recipe import Recipe
from latewood.images.benchmarks import BENCHMARKS, VIT
from latewood.images.learners.simplecil import SOURCE, SimpleCIL
from latewood.parts.adaptation import Adaptation
from latewood.parts.adapters import (
    Adapters,
    Prompts,
    batch_norms,
    renew_statistics,
    scalable_layers,
    ssf,
    transformer_blocks,
)
from latewood.parts.backbone import Backbone
from latewood.parts.embedding import Encoder
from latewood.parts.prototypes import CosineHead, Prototypes

Module = Literal["auto", "adapter", "vpt-shallow", "vpt-deep", "ssf", "bn", "finetune"]

#: How each module is trained in the authors' code, where it differs from the defaults.
_RECIPES: Mapping[str, Mapping[str, Any]] = {
    "adapter": {},
    "ssf": {},
    "vpt-deep": {"epochs": 5, "lr": 0.05, "batch_size": 16},
    "finetune": {"epochs": 5, "batch_size": 128},
}
_RENDITIONS = {"lr": 0.05, "weight_decay": 5e-3, "batch_size": 24}


def _presets() -> dict[str, Preset]:
    found = {}
    for name, (dataset, stream) in BENCHMARKS.items():
        for module, recipe in _RECIPES.items():
            special = _RENDITIONS if (name, module) == ("paper-imagenet-r", "adapter") else {}
            settings = {
                "module": module,
                "recipe": {**recipe, **special},
                "backbone": {**VIT, "augment": "resized-crop-flip"},
                "stream": stream,
            }
            found[name if module == "adapter" else f"{name}-{module}"] = Preset(f"split-{dataset}", settings, SOURCE)
    return found


class ADAM(SimpleCIL):
    """ADapt And Merge, renamed APER (Zhou et al., 2024, arXiv 2303.07338).

    On the first arrival a copy of the backbone is adapted, by a ``module`` that is trained under a cosine head with SGD. Both
    are frozen then, and each class of every arrival, the first included, gets as its prototype the mean of the features
    of the two, joined and not normalised: the cosine is one of the whole, so the branch with longer features weighs more.
    Nothing is trained later.

    ``module``: ``adapter`` (AdaptFormer, with ``bottleneck`` units), ``vpt-shallow`` and ``vpt-deep`` (prompts of ``tokens``),
    ``ssf`` (scale and shift), ``bn`` (only running statistics, by ``recipe.epochs`` passes without labels), ``finetune``
    (everything); ``auto`` is ``adapter`` for transformers, and for others ``ssf``, or ``finetune`` where there is no layer
    for it. Those of parts leave the backbone's weights to be shared by both branches, and only the parts are saved.

    The first arrival shapes the adapted branch, so no sample can be forgotten exactly. The cosine schedule falls with
    each step, the authors' with each epoch.

    >>> from latewood.images.nets.vit import vit
    >>> from latewood.images.streams.split import split
    >>> stream = split("digits", steps=2)
    >>> learner = ADAM(vit(stream.example, width=24, depth=1, heads=2), bottleneck=4, recipe=Recipe(epochs=1))
    >>> learner.learn(stream[0])
    >>> learner.encoder(stream[0].train[:3]).shape
    torch.Size([3, 48])
    """

    prefers: ClassVar[tuple[str, ...]] = ("vit-tiny-imagenet",)
    presets: ClassVar[Mapping[str, Preset]] = _presets()
    counts_flops: ClassVar[bool] = True

    def __init__(
        self,
        backbone: Backbone,
        module: Module = "auto",
        bottleneck: int = 64,
        tokens: int = 5,
        recipe: Recipe = Recipe(epochs=20, batch_size=48, lr=0.01, weight_decay=5e-4, schedule="cosine"),
    ) -> None:
        super().__init__(backbone)
        self.module, self.bottleneck, self.tokens, self.recipe = module, bottleneck, tokens, recipe
        self.encoder: TwoBranches = TwoBranches(backbone, module, bottleneck, tokens)
        self.prototypes = Prototypes(2 * backbone.width)

    @property
    def can_forget(self) -> bool:
        return False

    def learn(self, experience: Experience) -> None:
        if not len(self.classes):
            self._adapt(experience)
        with current_meter().counting():
            super().learn(experience)

    def _adapt(self, experience: Experience) -> None:
        adapted, trained = self.encoder.adapted, self.encoder.trained
        if not trained.state_dict():
            name = self.backbone.settings.get("name", type(self.backbone).__name__)
            raise ConfigurationError(f"ADAM adapts a network, but {name!r} has no weights; choose another backbone.")
        if self.encoder.kind == "bn":
            with current_meter().counting():
                renew_statistics(adapted, experience.train, self.recipe.epochs, self.recipe.batch_size, self.generator)
            return
        adaptation = Adaptation(adapted, trained, CosineHead(adapted.width), self.recipe).to(self.device)
        adaptation.generator = self.generator
        adaptation.learn(experience)


class TwoBranches(Encoder):
    """A frozen backbone and an adapted copy of it; the features of both, joined.

    ``trained`` is what the copy has of its own, and with the fingerprint of the backbone it is the whole state: all other
    weights are shared.
    """

    def __init__(self, backbone: Backbone, module: Module, bottleneck: int, tokens: int) -> None:
        super().__init__(backbone)
        self.kind = _suitable(backbone) if module == "auto" else module
        shared = [] if self.kind == "finetune" else [*backbone.parameters(), *backbone.buffers()]
        if self.kind == "bn":
            statistics = {id(buffer) for buffer in batch_norms(backbone).buffers()}
            shared = [tensor for tensor in shared if id(tensor) not in statistics]
        adapted = copy.deepcopy(backbone, {id(tensor): tensor for tensor in shared})
        adapted.settings = {**backbone.settings, "adapted": self.kind}
        self.trained = _attached(adapted, self.kind, bottleneck, tokens)
        object.__setattr__(self, "branch", Encoder(adapted))

    branch: Encoder
    trained: nn.Module

    @property
    def adapted(self) -> Backbone:
        """The adapted copy."""
        return self.branch.backbone

    def forward(self, data: Data) -> Tensor:
        return torch.cat([super().forward(data), self.branch(data)], 1)

    def train(self, mode: bool = True) -> TwoBranches:
        # What was trained is as frozen as the rest: dropout of adapters must not reach any feature.
        return super().train(False)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.branch._apply(fn, recurse)
        return super()._apply(fn, recurse)


def _suitable(backbone: Backbone) -> Module:
    with suppress(ConfigurationError):
        transformer_blocks(backbone)
        return "adapter"
    return "ssf" if scalable_layers(backbone) else "finetune"


def _attached(backbone: Backbone, kind: Module, bottleneck: int, tokens: int) -> nn.Module:
    match kind:
        case "adapter":
            return Adapters(backbone, bottleneck)
        case "vpt-shallow" | "vpt-deep":
            return Prompts(backbone, tokens, deep=kind == "vpt-deep")
        case "ssf":
            return ssf(backbone)
        case "bn":
            return batch_norms(backbone)
        case _:
            return backbone
