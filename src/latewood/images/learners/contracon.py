"""ConTraCon (paper 47): a frozen transformer whose attention weights are convolved anew for each task, and task inference."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError, DataError
from latewood.core.experience import Experience
from latewood.core.preset import Preset
from latewood.core.recipe import Optimizer, Recipe
from latewood.images.views import AUTOAUGMENT, SHIFTS, View
from latewood.parts.adapters import transformer_blocks
from latewood.parts.anchors import FixedRows
from latewood.parts.attention import QUERY_KEY_VALUE
from latewood.parts.backbone import Backbone
from latewood.parts.growing import Growing
from latewood.parts.heads import ClassifierLearner
from latewood.parts.view_entropy import view_entropy
from latewood.parts.weight_convolution import WeightConvolution

Reweighting = Literal["convolution", "none", "copy"]
#: So often the image itself is in its bag of views, beside ten others.
CLEAN = 6
_SOURCE = (
    "The official code's settings, the data set's own order of classes, and the last epoch instead of the best one on test "
    "images. Training images are cropped and mirrored, and 10 of 16 become one of the views of task inference, where the "
    "authors rotate by 10 degrees and draw any of AutoAugment's sub-policies: our choice."
)


def _preset(dataset: str, size: int, convolutions: int, kernel: int, scenario: str = "split") -> Preset:
    backbone = {"name": "cct", "convolutions": convolutions, "kernel": kernel, "augment": "crop-flip"}
    stream: dict[str, Any] = {"steps": 10, "seed": None} | ({"size": size} if size > 64 else {})
    return Preset(f"{scenario}-{dataset}", {"backbone": backbone, "recipe": {"epochs": 500}, "stream": stream}, _SOURCE)


@dataclass(frozen=True)
class RestartRecipe(Recipe):
    """A :class:`~latewood.core.recipe.Recipe` whose cosine falls twice, to ``floor``: ``schedule="cosine"`` begins anew in the
    middle of the epochs.

    >>> recipe = RestartRecipe(epochs=4, floor=0.0)
    >>> [round(recipe.rate(step, 4), 2) for step in range(4)]
    [1.0, 0.5, 1.0, 0.5]
    """

    epochs: int = 250
    batch_size: int = 256
    optimizer: Optimizer = "adamw"
    lr: float = 8e-4
    weight_decay: float = 6e-7
    schedule: Literal["constant", "cosine", "step"] = "cosine"
    floor: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.floor >= 0:
            raise ConfigurationError(f"recipe.floor must be at least 0, but it is {self.floor}.")

    def rate(self, step: int, steps: int) -> float:
        """What the learning rate is multiplied with at ``step`` of ``steps``."""
        if self.schedule != "cosine" or step < self.warmup * steps:
            return super().rate(step, steps)
        epoch, period = step * self.epochs // steps, -(-self.epochs // 2)
        least = min(1.0, self.floor / self.lr) if self.lr else 1.0
        return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * (epoch % period) / period))


_RECIPE = RestartRecipe()


class ConTraCon(ClassifierLearner):
    """Continual Transformer with Convolutions (Roy et al., 2023, arXiv 2308.11357).

    The first task trains the whole transformer, which is frozen then (one with ``backbone.frozen`` is taken as it came).
    Every later task has its own convolutions over the frozen weights of queries, keys and values
    (:class:`~latewood.parts.weight_convolution.WeightConvolution`), its own LayerNorms in the blocks, its own pooling layer
    where the backbone has one, and its own rows of the head, all started anew: nothing of an earlier task is ever touched,
    so nothing is forgotten.

    Told the task (a column ``task``), a prediction uses that task's weights. Otherwise the task is inferred for each
    image: that under whose weights a bag of ``views``, 6 times the image itself and 10 changed ones, has the prediction
    (of averaged logits) with the least entropy, divided by the logarithm of the task's number of classes. ``views``:
    ``autoaugment`` (the first ten of AutoAugment's sub-policies for CIFAR), ``shifts`` (shifted, scaled and noisy images),
    ``none``, or ``auto``: the first for colour images, the second for grey ones. In training 10 images of 16 become such a
    view.

    ``reweighting``: ``convolution``, or for comparison ``none`` (the frozen weights) and ``copy`` (weights of its own).
    ``gate`` adds the frozen weights, gated, to the convolved ones. ``smoothing`` is that of labels. The head's rows learn
    by plain gradient descent with ``head_lr``, or with everything else where that is ``None``.

    An arrival is a task: its classes must be new, and at least two.

    >>> from latewood.images.nets.cct import cct
    >>> from latewood.images.streams.split import split
    >>> stream = split("digits", steps=5)
    >>> learner = ConTraCon(cct(stream.example, width=16, depth=1, heads=2), kernel=3, recipe=RestartRecipe(epochs=1))
    >>> learner.learn(stream[0]); learner.learn(stream[1])
    >>> learner.infer_task(stream.probes[0].data[:5]).shape, learner.task_parameters
    (torch.Size([5]), 181)
    """

    prefers: ClassVar[tuple[str, ...]] = ("cct",)
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper-cifar100": _preset("cifar100", 32, 1, 3),
        "paper-cifar100-told": _preset("cifar100", 32, 1, 3, "tasks"),
        "paper-tiny-imagenet": _preset("tiny-imagenet", 64, 2, 5),
        "paper-tiny-imagenet-told": _preset("tiny-imagenet", 64, 2, 5, "tasks"),
        "paper-imagenet-100": _preset("clane9/imagenet-100", 224, 3, 3),
        "paper-imagenet-100-told": _preset("clane9/imagenet-100", 224, 3, 3, "tasks"),
    }

    def __init__(
        self,
        backbone: Backbone,
        kernel: int = 15,
        gate: bool = True,
        reweighting: Reweighting = "convolution",
        views: Literal["auto", "autoaugment", "shifts", "none"] = "auto",
        smoothing: float = 0.1,
        head_lr: float | None = 5e-3,
        recipe: RestartRecipe = _RECIPE,
    ) -> None:
        if not 0 <= smoothing < 1:
            raise ConfigurationError(f"smoothing must lie from 0 to below 1, but it is {smoothing}.")
        if head_lr is not None and not head_lr > 0:
            raise ConfigurationError(f"head_lr must be above 0, or none, but it is {head_lr}.")
        task = TaskWeights(backbone, reweighting, kernel, gate)
        super().__init__(backbone, recipe)
        self.kernel, self.gate, self.reweighting, self.views = kernel, gate, reweighting, views
        self.smoothing, self.head_lr = smoothing, head_lr
        #: What the task that is being learned has of its own, and what all before it had.
        self.task, self.bank = task, TaskBank()

    @property
    def task_parameters(self) -> int:
        """How many parameters the last task added, its rows of the head included."""
        rows = int((self.bank.tasks == self.bank.tasks.max()).sum()) if len(self.bank.tasks) else 0
        return sum(p.numel() for p in self.task.parameters()) + rows * (self.backbone.width + 1)

    def parameter_groups(self) -> list[dict[str, Any]]:
        trained: nn.Module = self.backbone if self._founding else self.task
        groups = [{"params": list(trained.parameters())}]
        return groups if self.head_lr else [*groups, {"params": list(self.net.head.parameters())}]

    def prepare(self, experience: Experience) -> None:
        first, number = len(self.classes), self.bank.count
        self._check(experience)
        super().prepare(experience)
        self.bank.open(len(self.classes) - first)
        self._founding = number == 0 and not self.backbone.frozen
        self.backbone.requires_grad_(self._founding)
        if not self._founding:
            self.task.reset()
        others = torch.ones(len(self.classes), dtype=torch.bool)
        others[first:] = False
        self._rows, self._others = slice(first, None), FixedRows(self.net.head, others)

    def loss(self, batch: Data) -> Tensor:
        pixels = self._seen_somehow(batch)
        logits = self._logits(self.backbone.prepare(pixels), {} if self._founding else self.task(), self._rows)
        targets = self.net.targets(batch) - self._rows.start
        return F.cross_entropy(logits, targets, label_smoothing=self.smoothing)

    def after_batch(self, batch: Data) -> None:
        if self.head_lr:
            with torch.no_grad():
                for parameter in self.net.head.parameters():
                    if parameter.grad is not None:
                        parameter.sub_(parameter.grad, alpha=self.head_lr)
                    parameter.grad = None
        self._others.restore()

    def conclude(self, experience: Experience) -> None:
        if not self._founding:
            self.bank.store(parameters_to_vector(self.task.parameters()))
        self.backbone.requires_grad_(False)
        self.zero_grad()

    @torch.no_grad()
    def scores(self, data: Data, batch_size: int = 128) -> Tensor:
        """Logits (len(data), classes) of the images themselves, minus infinity but for the classes of one task.

        That is the one of the row, if ``data`` has a column ``task``, and the inferred one otherwise.
        """
        self.eval()
        told = "task" in data and len(self.classes.task_ids) > 0
        return self._by_batches(data, batch_size, self._told if told else self._inferred)

    @torch.no_grad()
    def infer_task(self, data: Data, batch_size: int = 128) -> Tensor:
        """The number of the arrival that each image seems to be of, whether the data tells the task or not."""
        self.eval()
        scores = self._by_batches(data, batch_size, self._inferred)
        return self.bank.tasks[scores.argmax(1)] if len(self.bank.tasks) else torch.full((len(data),), -1)

    def _by_batches(self, data: Data, size: int, score: Callable[[Data, Sequence[Mapping[str, Tensor]]], Tensor]) -> Tensor:
        if not len(data) or not len(self.classes):
            return torch.empty(len(data), len(self.classes), device=self.device)
        # A task's weights do not depend on the images, so they are computed once.
        weights = [self._weights(number) for number in range(self.bank.count)]
        return torch.cat([score(batch, weights) for batch in data.batches(size)])

    def _told(self, batch: Data, weights: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Logits under the weights of each row's own task."""
        blank = torch.zeros(len(batch), len(self.classes), device=self.device)
        tasks = self.bank.tasks[self.classes.restrict(blank, batch).argmax(1)]
        scores = torch.full_like(blank, -torch.inf)
        inputs = self.backbone.prepare(batch)
        for number in tasks.unique().tolist():
            rows, columns = (tasks == number).nonzero(), self._columns(number)
            scores[rows, torch.arange(len(blank[0]), device=self.device)[columns]] = self._logits(
                inputs[rows[:, 0]], weights[number], columns
            )
        return scores

    def _inferred(self, batch: Data, weights: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Logits under the weights of the task that is least uncertain of each row."""
        pixels = _pixels(batch)
        bag = [pixels, *(view(pixels) for view in self._views())]
        shares = torch.tensor([float(CLEAN), *[1.0] * (len(bag) - 1)])
        inputs = torch.cat([self.backbone.prepare(Data(image=view)) for view in bag])
        scores = torch.full((len(batch), len(self.classes)), -torch.inf, device=self.device)
        entropies = []
        for number, own in enumerate(weights):
            columns = self._columns(number)
            logits = self._logits(inputs, own, columns).unflatten(0, (len(bag), -1))
            scores[:, columns] = logits[0]
            entropies.append(view_entropy(logits, shares) / math.log(logits.shape[2]))
        best = torch.stack(entropies, 1).argmin(1)
        return scores.masked_fill(self.bank.tasks[None, :] != best[:, None], -torch.inf)

    def _logits(self, inputs: Tensor, weights: Mapping[str, Tensor], columns: slice) -> Tensor:
        """Logits of a task's own classes; those of others are left out, so that their number can't change a last bit."""
        features = functional_call(self.backbone, dict(weights), (inputs,))
        return F.linear(features, self.net.head.weight[columns], self.net.head.bias[columns])

    def _weights(self, number: int) -> Mapping[str, Tensor]:
        """What takes the place of the backbone's weights for a task; nothing for the one that trained them."""
        # A backbone that came frozen was trained by none of them.
        row = number - (not self.backbone.frozen)
        if row < 0:
            return {}
        return self.task() if row == len(self.bank.values) else self.task.restored(self.bank.values[row])

    def _columns(self, number: int) -> slice:
        own = (self.bank.tasks == number).nonzero()
        return slice(int(own[0]), int(own[-1]) + 1)

    def _views(self) -> list[View]:
        kind = self.views
        if kind == "auto":
            kind = "autoaugment" if self.backbone.shape is not None and self.backbone.shape[0] == 3 else "shifts"
        return {"autoaugment": AUTOAUGMENT, "shifts": SHIFTS, "none": []}[kind]

    def _seen_somehow(self, batch: Data) -> Data:
        """Each image, or one of its views, as often as they are in a bag."""
        views = self._views()
        if not views or not self.backbone.training:
            return batch
        pixels = _pixels(batch).clone()
        chosen = torch.randint(CLEAN + len(views), (len(pixels),)) - CLEAN
        for number in chosen[chosen >= 0].unique().tolist():
            rows = (chosen == number).nonzero()[:, 0].to(pixels.device)
            pixels[rows] = views[number](pixels[rows])
        return Data(image=pixels)

    def _check(self, experience: Experience) -> None:
        arriving = set(experience.classes or experience.train.tensor("label").unique().tolist())
        if known := sorted(arriving & set(self.classes.labels.tolist())):
            raise DataError(f"ConTraCon takes each class with one task, but class {known[0]} has arrived before.")
        if experience.task is not None and experience.task in self.classes.task_ids.tolist():
            raise DataError(f"ConTraCon takes each task once, but task {experience.task} has arrived before.")
        if len(arriving) < 2:
            raise DataError(f"A task of ConTraCon needs at least two classes, but experience {experience.index} has one.")


class TaskWeights(nn.Module):
    """What one task has of its own in a frozen transformer; calling it gives those weights by their names there."""

    def __init__(self, backbone: Backbone, reweighting: Reweighting, kernel: int, gate: bool) -> None:
        super().__init__()
        object.__setattr__(self, "_backbone", backbone)
        self.projections, heads = _projections(backbone)
        self.free = _free(backbone)
        self.convolution: WeightConvolution | None = None
        self.copied: nn.Parameter | None = None
        if reweighting == "convolution":
            self.convolution = WeightConvolution(len(self.projections), heads, kernel, gate)
        elif reweighting == "copy":
            self.copied = nn.Parameter(self._base().clone())
        self.own = nn.ParameterList(backbone.get_parameter(name).detach().clone() for name in self.free)

    _backbone: Backbone

    @torch.no_grad()
    def reset(self) -> None:
        """Begin a task: every part as a new one starts, whatever tasks came before."""
        if self.convolution is not None:
            self.convolution.reset_parameters()
        if self.copied is not None:
            self.copied.copy_(self._base())
        for name, parameter in zip(self.free, self.own, strict=True):
            module, _, kind = name.rpartition(".")
            layer = self._backbone.get_submodule(module)
            if isinstance(layer, nn.LayerNorm):
                parameter.fill_(1.0 if kind == "weight" else 0.0)
            else:
                bound = 1 / layer.get_parameter("weight").shape[1] ** 0.5
                parameter.uniform_(-bound, bound)

    def forward(self) -> dict[str, Tensor]:
        found = dict(zip(self.free, self.own, strict=True))
        if self.convolution is not None:
            found |= dict(zip(self.projections, self.convolution(self._base()), strict=True))
        if self.copied is not None:
            found |= dict(zip(self.projections, self.copied, strict=True))
        return found

    def restored(self, values: Tensor) -> dict[str, Tensor]:
        """What it gave when its parameters, one behind the other, had these values."""
        named = dict(self.named_parameters())
        pieces = values.split([p.numel() for p in named.values()])
        shaped = {name: piece.view_as(p) for (name, p), piece in zip(named.items(), pieces, strict=True)}
        found: dict[str, Tensor] = functional_call(self, shaped, ())
        return found

    def _base(self) -> Tensor:
        return torch.stack([self._backbone.get_parameter(name).detach() for name in self.projections])


class TaskBank(Growing):
    """Which class is of which task, and the weights of all tasks that have some of their own, a row for each."""

    tasks: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("tasks", torch.empty(0, dtype=torch.int64))
        self.register_buffer("values", torch.empty(0, 0))

    @property
    def count(self) -> int:
        """The number of tasks."""
        return int(self.tasks.max()) + 1 if len(self.tasks) else 0

    def open(self, classes: int) -> None:
        """A task with so many classes begins."""
        self.tasks = torch.cat([self.tasks, self.tasks.new_full((classes,), self.count)])

    def store(self, values: Tensor) -> None:
        """Keep a task's own weights for good."""
        self.values = torch.cat([self.values.view(-1, len(values)), values.detach()[None]])


def _projections(backbone: Backbone) -> tuple[list[str], int]:
    """The names of the weights of queries, keys and values in all blocks, and the number of heads."""
    names, modules = _inside_blocks(backbone)
    weights = [f"{name}.weight" for name, module in zip(names, modules, strict=True) if isinstance(module, nn.Linear)]
    weights = [weight for weight in weights if weight.split(".")[-2] in QUERY_KEY_VALUE]
    owners = [m for m in modules if any(name in QUERY_KEY_VALUE for name, _ in m.named_children())]
    heads = {next((int(getattr(m, n)) for n in ("num_heads", "num_attention_heads") if hasattr(m, n)), 0) for m in owners}
    shapes = {backbone.get_parameter(weight).shape for weight in weights}
    if len(shapes) != 1 or len(heads) != 1 or 0 in heads:
        raise ConfigurationError(
            "ConTraCon convolves the weights of queries, keys and values, which must be linear layers of one shape; "
            "right would be a backbone such as cct or vit."
        )
    return weights, heads.pop()


def _free(backbone: Backbone) -> list[str]:
    """The names of the parameters that every task has anew: the LayerNorms of the blocks, and the pooling layer."""
    names, modules = _inside_blocks(backbone)
    wanted = [name for name, module in zip(names, modules, strict=True) if isinstance(module, nn.LayerNorm)]
    wanted += ["pool"] if isinstance(getattr(backbone, "pool", None), nn.Linear) else []
    return [f"{name}.{kind}" for name in wanted for kind, _ in backbone.get_submodule(name).named_parameters()]


def _inside_blocks(backbone: Backbone) -> tuple[list[str], list[nn.Module]]:
    inside = {id(module) for block in transformer_blocks(backbone) for module in block.modules()}
    found = [(name, module) for name, module in backbone.named_modules() if id(module) in inside]
    return [name for name, _ in found], [module for _, module in found]


def _pixels(data: Data) -> Tensor:
    """The images in [0, 1]."""
    raw = data.tensor("image")
    return raw if raw.is_floating_point() else raw.float() / 255
