"""DKVB (paper 40): a bottleneck of discrete keys with values, of which an update touches only those of its own inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latewood.core.cost import current_meter
from latewood.core.data import Data
from latewood.core.errors import ConfigurationError, DataError
from latewood.core.experience import Experience
from latewood.core.loop import fit
from latewood.core.preset import Preset
from latewood.core.recipe import Recipe
from latewood.core.step import Trainable
from latewood.parts.backbone import Backbone
from latewood.parts.closed_form import ClosedFormClassifier
from latewood.parts.growing import Growing
from latewood.parts.quantisation import MovingKeys, nearest_keys

_RECIPE = Recipe(epochs=500, batch_size=256, lr=0.3, momentum=0.0, clip=1.0)
_LEAST = {"codebooks": 1, "pairs": 1, "key_epochs": 0, "dead": 0, "outputs": 0}


def _preset(stream: str, steps: int, keys_from: str, epochs: int, outputs: int) -> Preset:
    settings = {
        "backbone": {"name": "microsoft/resnet-50"},
        **{"keys_from": keys_from, "outputs": outputs},
        "recipe": {"epochs": epochs, "batch_size": 256, "lr": 0.3, "momentum": 0.0, "clip": 1.0},
        "stream": {"steps": steps, "seed": None},
    }
    return Preset(
        stream,
        settings,
        "The paper's class-incremental runs on a ResNet-50, with the official code's settings and its first order of classes. "
        "Ours is the checkpoint: the hub's ResNet-50 of that name, where the authors take torchvision's (ImageNet-V2).",
    )


class DKVB(ClosedFormClassifier):
    """Discrete Key-Value Bottleneck (Träuble et al., 2023, arXiv 2207.11240).

    The features of a frozen backbone are projected to ``codebooks`` heads of ``key_width`` numbers by random directions that
    never change (``None``: cut into as many slices). Each head fetches the value of the nearest of ``pairs`` keys in its own
    codebook, and the mean of the fetched values is the logits. Only fetched values are trained, by plain SGD on a
    cross-entropy with label ``smoothing``; nothing else gets a gradient. So an arrival changes what is near its own
    inputs, and needs no task. At prediction keys that training never fetched are passed over.

    Before the first arrival the keys are placed by ``key_epochs`` passes of :class:`~latewood.parts.quantisation.MovingKeys`
    (``key_decay``; a key with less than ``dead`` of an equal share of the batch is moved) over images without labels, and
    stay there: those of the data set ``keys_from``, by name, or those of the first ``arrival``, which leaves few keys for
    later ones. :meth:`initialise_keys` does it with any images.

    Values have a column for each class that has arrived and a spare one, which stands for what has not: loss and smoothing
    run over all of them, and no label is ever the spare one. A new class begins with a copy of it, so that it is as
    unlikely for old inputs as they made it, and their columns stay as they are. ``outputs`` gives so many columns from the
    start, as in the official code, which knows the number of classes beforehand; those that no class has taken are trained as
    the spare one. Predictions are always classes that have arrived.

    >>> from latewood.images.nets.pixels import pixels
    >>> from latewood.images.streams.split import split
    >>> stream = split("digits", steps=5)
    >>> recipe = Recipe(epochs=20, lr=3.0, momentum=0.0, clip=1.0)
    >>> learner = DKVB(pixels(stream.example), codebooks=16, pairs=64, key_width=8, keys_from="digits", recipe=recipe)
    >>> for experience in stream:
    ...     learner.learn(experience)
    >>> stream.probes[0].score(learner)["accuracy"] > 0.8
    True
    """

    deployed: ClassVar[tuple[str, ...]] = ("encoder", "classes", "bottleneck")
    # Only placing and finding keys takes products; fetching, of which there are many small steps, takes none.
    counts_flops: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper-cifar10": _preset("split-cifar10", 5, "cifar100", epochs=2000, outputs=10),
        "paper-cifar100": _preset("split-cifar100", 50, "cifar10", epochs=500, outputs=100),
    }

    def __init__(
        self,
        backbone: Backbone,
        codebooks: int = 256,
        pairs: int = 4096,
        key_width: int | None = 14,
        keys_from: str = "arrival",
        key_epochs: int = 10,
        key_decay: float = 0.95,
        dead: float = 0.1,
        outputs: int = 0,
        smoothing: float = 0.1,
        recipe: Recipe = _RECIPE,
    ) -> None:
        super().__init__(backbone)
        self.codebooks, self.pairs, self.key_width, self.keys_from = codebooks, pairs, key_width, keys_from
        self.key_epochs, self.key_decay, self.dead = key_epochs, key_decay, dead
        self.outputs, self.smoothing, self.recipe = outputs, smoothing, recipe
        self._check()
        self.bottleneck = Bottleneck(backbone.width, codebooks, pairs, key_width)
        #: The epoch of the current arrival that the loop is in, from 0.
        self.epoch = 0

    def learn(self, experience: Experience) -> None:
        if not self.bottleneck.ready:
            arrival = self.keys_from == "arrival"
            with current_meter().counting():
                self.initialise_keys(experience.train if arrival else self._images(self.keys_from))
        super().learn(experience)

    @torch.no_grad()
    def initialise_keys(self, data: Data) -> None:
        """Place the keys by these rows, whose labels are not looked at, and empty the values.

        Errors: :class:`~latewood.core.errors.ConfigurationError` once values were trained, which belong to their keys.
        """
        if len(self.classes):
            raise ConfigurationError("Keys are placed before the first arrival; the values that were learned belong to them.")
        features = self.encoder(data)
        if not torch.isfinite(features).all():
            raise DataError("The backbone gives NaN or infinity for the images that place the keys; nothing was learned.")
        keys = torch.randn(self.bottleneck.shape, generator=self.generator).to(features)
        size = min(self.recipe.batch_size, len(features))
        moving = MovingKeys(keys, self.key_decay, least=self.dead * size / self.pairs)
        self.follow(moving, features)
        self.bottleneck.place_keys(moving.keys)

    def follow(self, moving: MovingKeys, features: Tensor) -> None:
        """Pass over these features ``key_epochs`` times and let the keys follow them."""
        for _ in range(self.key_epochs):
            for rows in torch.randperm(len(features), generator=self.generator).split(self.recipe.batch_size):
                moving.update(self.bottleneck.heads(features[rows.to(features.device)]), self.generator)

    def update(self, features: Tensor, columns: Tensor) -> None:
        self.bottleneck.grow(self.outputs if len(self.classes) <= self.outputs else len(self.classes) + 1)
        with current_meter().counting():
            rows = Data(row=self.bottleneck.rows(self.bottleneck.heads(features)), column=columns)
        recipe = self.recipe
        # The loop's own clipping can't take sparse gradients.
        self.recipe = replace(recipe, clip=None)
        clipping = self.bottleneck.values.register_post_accumulate_grad_hook(lambda values: _clip(values, recipe.clip))
        try:
            with torch.enable_grad():
                fit(cast("Trainable", self), rows)
        finally:
            clipping.remove()
            self.recipe = recipe

    def loss(self, batch: Data) -> Tensor:
        """The smoothed cross-entropy of rows that were quantised before."""
        logits = self.bottleneck(batch.tensor("row"))
        return F.cross_entropy(logits, batch.tensor("column"), label_smoothing=self.smoothing)

    def after_batch(self, batch: Data) -> None:
        self.bottleneck.count(batch.tensor("row"))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Values alone."""
        return [{"params": [self.bottleneck.values]}]

    def compute_modules(self) -> Sequence[nn.Module]:
        """None: fetching is no network."""
        return ()

    def score(self, features: Tensor) -> Tensor:
        used = self.bottleneck.rows(self.bottleneck.heads(features), self.bottleneck.counts > 0)
        logits: Tensor = self.bottleneck(used)
        return logits[:, : len(self.classes)]

    def _images(self, name: str) -> Data:
        """The training images of a data set, at the size that the backbone was made for."""
        from latewood.images.datasets import load_images

        shape = self.backbone.shape
        images = load_images(name)
        if shape is not None and tuple(images.train.tensor("image").shape[2:]) != shape[1:]:
            images = load_images(name, size=shape[-1])
        return images.train.select("image")

    def _check(self) -> None:
        for name, least in _LEAST.items():
            if not getattr(self, name) >= least:
                raise ConfigurationError(f"{name} must be at least {least}, but it is {getattr(self, name)}.")
        for name in ("key_decay", "smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must lie between 0 and below 1, but it is {getattr(self, name)}.")
        if self.key_width is not None and self.key_width < 1:
            raise ConfigurationError(f"key_width must be at least 1, but it is {self.key_width}.")
        if self.key_width is None and self.backbone.width % self.codebooks:
            raise ConfigurationError(
                f"{self.backbone.width} features can't be cut into {self.codebooks} slices; set key_width to project them."
            )
        if self.recipe.optimizer != "sgd" or self.recipe.momentum or self.recipe.weight_decay:
            raise ConfigurationError(
                "DKVB trains by plain SGD, so that values that were not fetched stay as they are: "
                "set recipe.optimizer to sgd, recipe.momentum to 0 and recipe.weight_decay to 0."
            )


class Bottleneck(Growing):
    """Keys (codebooks, pairs, width), how often training fetched each, and a row of ``values`` for each, codebook by codebook.

    ``projection`` is drawn from torch's global generator; every column has length one over the features.
    """

    projection: Tensor
    keys: Tensor
    counts: Tensor
    values: nn.Parameter

    def __init__(self, features: int, codebooks: int, pairs: int, width: int | None) -> None:
        super().__init__()
        self.shape = (codebooks, pairs, features // codebooks if width is None else width)
        projection = torch.empty(0) if width is None else F.normalize(torch.randn(features, codebooks * width), dim=0)
        self.register_buffer("projection", projection)
        self.register_buffer("keys", torch.empty(0))
        self.register_buffer("counts", torch.zeros(codebooks, pairs, dtype=torch.int64))
        self.values = nn.Parameter(torch.empty(0, 0))

    @property
    def ready(self) -> bool:
        """Whether the keys were placed."""
        return self.keys.numel() > 0

    def place_keys(self, keys: Tensor) -> None:
        """Keep these keys for good, with empty values that nothing fetched."""
        self.keys = keys
        self.counts.zero_()
        self.resize_parameter("values", torch.empty(self.counts.numel(), 0))

    def grow(self, columns: int) -> None:
        """Have at least so many columns of values; new ones are copies of the last."""
        fresh = columns - self.values.shape[1]
        if fresh > 0:
            values = self.values.detach()
            last = values[:, -1:] if values.shape[1] else values.new_zeros(len(values), 1)
            self.resize_parameter("values", torch.cat([values, last.expand(-1, fresh)], 1))

    def heads(self, features: Tensor) -> Tensor:
        """Features (n, features) as heads, shape ``(n, codebooks, width)``."""
        projected = features @ self.projection if self.projection.numel() else features
        return projected.view(len(features), self.shape[0], self.shape[2])

    def rows(self, heads: Tensor, usable: Tensor | None = None) -> Tensor:
        """The row of ``values`` that each head fetches, shape ``(n, codebooks)``, among ``usable`` pairs if they are told."""
        first = torch.arange(0, self.counts.numel(), self.shape[1], device=heads.device)
        return nearest_keys(heads, self.keys, usable) + first

    def count(self, rows: Tensor) -> None:
        """Remember that these rows were fetched in training."""
        fetched = rows.flatten()
        self.counts.view(-1).index_add_(0, fetched, torch.ones_like(fetched))

    def forward(self, rows: Tensor) -> Tensor:
        """The mean of the fetched values, shape ``(n, columns)``. Its gradient is sparse: it lists fetched rows alone."""
        return F.embedding_bag(rows, self.values, mode="mean", sparse=True)


@torch.no_grad()
def _clip(values: Tensor, largest: float | None) -> None:
    """Add up the sparse gradient, row by row, and bring it to the norm ``largest`` where it is longer."""
    assert values.grad is not None
    gradient = values.grad.coalesce()
    if largest is not None:
        gradient.values().mul_((largest / (gradient.values().norm() + 1e-6)).clamp(max=1.0))
    values.grad = gradient
