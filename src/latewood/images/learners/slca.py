"""SLCA (paper 13): a backbone that learns slowly, and heads that are balanced on features drawn from Gaussians."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError
from latewood.core.experience import Experience
from latewood.core.preset import Preset
from latewood.core.recipe import Recipe
from latewood.parts.alignment import Alignment, align
from latewood.parts.anchors import FixedRows
from latewood.parts.backbone import Backbone
from latewood.parts.gaussians import Covariance, Gaussians
from latewood.parts.heads import ClassifierLearner, LinearHead


def _preset(stream: Mapping[str, Any], augment: str = "resized-crop-flip", temperature: float = 0.1, **epochs: Any) -> Preset:
    recipe = {"epochs": 50, "milestones": [40], "schedule": "step", "batch_size": 128, "lr": 0.01, "weight_decay": 5e-4}
    settings: dict[str, Any] = {
        "backbone": {"name": "google/vit-base-patch16-224-in21k", "augment": augment},
        "fresh_norm": True,
        "temperature": temperature,
        "recipe": {**recipe, **epochs},
        "stream": {"seed": 1993, **stream},
    }
    name = settings["stream"].pop("name")
    return Preset(
        name,
        settings,
        "The README's table for the ViT-B/16 trained on ImageNet-21k, with the official code's settings. Ours are pixels "
        "normalised as the checkpoint says.",
    )


class SLCA(ClassifierLearner):
    """Slow Learner with Classifier Alignment (Zhang et al., 2023, arXiv 2303.05118).

    Each arrival trains the rows of the head for its own classes, by the cross-entropy among them, and the whole backbone at
    ``slowness`` times the head's learning rate (``recipe.lr``); 0 freezes the backbone, which then sees no augmentation
    either. Then mean and covariance of each new class's features are kept, never to be touched again, and from the second
    arrival on all rows of the head are trained on features drawn from them
    (:func:`latewood.parts.alignment.align`; ``aligned=False`` leaves that out). What predicts is the aligned head; the
    next arrival goes on from the head before alignment, so that its errors do not add up.

    ``passes``, ``samples``, ``rate``, ``temperature`` and ``shrink`` are those of
    :class:`~latewood.parts.alignment.Alignment`, ``covariance`` and ``ridge`` those of
    :class:`~latewood.parts.gaussians.Gaussians`; the paper's is ``full``. ``fresh_norm`` replaces the backbone's last
    LayerNorm by a new one, as the official code does with its ViT.

    >>> from latewood.images.nets.mlp import mlp
    >>> from latewood.images.streams.split import split
    >>> stream = split("digits", steps=5)
    >>> learner = SLCA(mlp(stream.example, width=16), recipe=Recipe(epochs=1))
    >>> learner.learn(stream[0]); learner.learn(stream[1])
    >>> len(learner.gaussians), learner.gaussians.arrivals.tolist()
    (4, [0, 0, 1, 1])
    """

    prefers: ClassVar[tuple[str, ...]] = ("vit-tiny-imagenet",)
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper-cifar100": _preset(
            {"name": "split-cifar100", "steps": 10}, augment="resized-crop-flip-jitter", epochs=20, milestones=[18]
        ),
        "paper-imagenet-r": _preset({"name": "split-imagenet-r", "steps": 10, "size": 256}),
        "paper-cub200": _preset({"name": "split-cub200", "steps": 10, "size": 256}),
        "paper-cars": _preset({"name": "split-tanganke/stanford_cars", "increment": 20, "size": 256}, temperature=0.05),
    }

    def __init__(
        self,
        backbone: Backbone,
        slowness: float = 0.01,
        aligned: bool = True,
        passes: int = 5,
        samples: int = 256,
        rate: float = 0.01,
        temperature: float | None = 0.1,
        shrink: float = 0.9,
        covariance: Covariance = "full",
        ridge: float = 1e-4,
        fresh_norm: bool = False,
        recipe: Recipe = Recipe(epochs=20, batch_size=32, lr=0.01, weight_decay=5e-4, schedule="step", milestones=(18,)),
    ) -> None:
        if not slowness >= 0:
            raise ConfigurationError(f"slowness must be at least 0, but it is {slowness}.")
        if fresh_norm:
            _renew_last_norm(backbone)
        super().__init__(backbone.freeze() if slowness == 0 else backbone, recipe)
        self.slowness, self.aligned, self.passes, self.samples, self.rate = slowness, aligned, passes, samples, rate
        self.temperature, self.shrink, self.covariance, self.ridge = temperature, shrink, covariance, ridge
        self.fresh_norm = fresh_norm
        self.alignment = Alignment(passes, samples, rate, temperature=temperature, shrink=shrink)
        self.gaussians = Gaussians(backbone.width, covariance, ridge)
        #: The head before alignment, with which the next arrival goes on.
        self.raw = LinearHead(backbone.width).requires_grad_(False)

    def parameter_groups(self) -> list[dict[str, Any]]:
        slow = [p for p in self.backbone.parameters() if p.requires_grad]
        head = {"params": list(self.net.head.parameters())}
        return [head, {"params": slow, "lr": self.recipe.lr * self.slowness}] if slow else [head]

    def prepare(self, experience: Experience) -> None:
        _copy(self.raw, self.net.head)
        before = len(self.classes)
        super().prepare(experience)
        fresh = torch.empty(len(self.classes) - before, self.backbone.width)
        nn.init.trunc_normal_(fresh, std=0.02, generator=self.generator)
        self.net.head.weight.data[before:] = fresh.to(self.device)
        others = torch.ones(len(self.classes), dtype=torch.bool)
        others[self._arrival] = False
        self._others = FixedRows(self.net.head, others)

    def loss(self, batch: Data) -> Tensor:
        return self.cross_entropy(self.logits(batch), batch, "arrival")

    def after_batch(self, batch: Data) -> None:
        self._others.restore()

    def conclude(self, experience: Experience) -> None:
        self.gaussians.fit(self._features(experience.train), self.net.targets(experience.train), len(self.classes))
        _copy(self.net.head, self.raw)
        if self.aligned and int(self.gaussians.arrivals.max()) > 0:
            align(self.net.head, self.gaussians, self.alignment, self.generator)

    @torch.no_grad()
    def _features(self, data: Data, batch_size: int = 512) -> Tensor:
        return torch.cat([self.backbone(self.net.prepare(batch)) for batch in data.batches(batch_size)])


def _copy(source: LinearHead, target: LinearHead) -> None:
    """Give ``target`` the rows of ``source``, and no others."""
    for name, values in source.named_parameters():
        target.resize_parameter(name, torch.empty_like(values))
        getattr(target, name).data.copy_(values)


def _renew_last_norm(backbone: Backbone) -> None:
    norms = [name for name, module in backbone.named_modules() if isinstance(module, nn.LayerNorm)]
    if not norms:
        raise ConfigurationError("fresh_norm renews a backbone's last LayerNorm, but this backbone has none; leave it off.")
    parent, _, name = norms[-1].rpartition(".")
    old = backbone.get_submodule(norms[-1])
    assert isinstance(old, nn.LayerNorm)
    setattr(backbone.get_submodule(parent), name, nn.LayerNorm(old.normalized_shape).to(old.weight.device))
