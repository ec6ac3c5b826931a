"""LingoCL (paper 18): any learner with a head, whose head is replaced by fixed vectors of a language model for the names."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latewood.core import configure, registry
from latewood.core.data import Data
from latewood.core.errors import ConfigurationError
from latewood.core.experience import Experience
from latewood.core.preset import Preset
from latewood.core.recipe import Recipe
from latewood.parts.backbone import Backbone
from latewood.parts.heads import ClassifierLearner, LinearHead
from latewood.parts.targets import SemanticHead, Targets, TextTargets, orthonormal

_NUMBER = r"n\d{8}"  # a WordNet number
#: The attributes that must not be the host's too.
_OWN = ("host", "targets", "head", "prompt", "cosine", "logit_scale", "class_names")


def _preset(stream: str, settings: Mapping[str, Any], backbone: Mapping[str, Any]) -> Preset:
    recipe = {"epochs": 160, "batch_size": 128, "lr": 0.1, "weight_decay": 5e-4, "schedule": "step", "milestones": [80, 120]}
    return Preset(
        stream,
        {"host": {"name": "icarl", "memory": 2000}, "recipe": recipe, "backbone": backbone, "stream": settings},
        "The class-incremental protocol of the abstract. CLIP's text encoder, 20 exemplars a class and the schedule are those "
        "of a re-implementation on LUCIR; iCaRL in its place, weight decay and the learned scale from 16 are our choice.",
    )


class LingoCL(ClassifierLearner):
    """Language-guided supervision (Ni et al., 2024, arXiv 2403.16124).

    ``host`` is any gradient learner of this wing, by its name or with settings (``{"name": "icarl", "memory": 500}``), and
    ``recipe`` becomes its recipe. All of it stays as it is but the head, whose rows are vectors of length one that a
    language model gives the names of the classes, fixed from the moment that a class arrives. Logits are the cosines with
    features times a learned scale that begins at ``logit_scale``; without ``cosine`` they are inner products. Where
    features are not as wide as the vectors, a linear layer between them trains with the backbone.

    ``targets`` names the text model, as in :class:`~latewood.parts.targets.TextTargets`, or is any object with its
    ``encode``. It is read when classes arrive and is not needed to predict. Each name stands where ``prompt`` has ``{}``,
    without the WordNet number behind it, with spaces for underscores. ``class_names`` says how each label is called.

    ``head`` has two controls, of the same width and scale: ``random`` fixes random directions at right angles to one
    another, ``learned`` begins with random directions and trains them.

    >>> from latewood.images.nets.mlp import mlp
    >>> from latewood.images.streams.split import split
    >>> class Counted:
    ...     def encode(self, texts):
    ...         return torch.stack([torch.eye(6)[int(text)] for text in texts])
    >>> stream = split("digits", steps=5, seed=None)
    >>> learner = LingoCL(mlp(stream.example), {"name": "icarl", "memory": 50}, Counted(), class_names="0 1 2 3 4 5".split())
    >>> learner.learn(stream[0]); learner.learn(stream[1])
    >>> learner.net.head.weight.argmax(1), isinstance(learner, ClassifierLearner), learner.memory
    (tensor([0, 1, 2, 3]), True, 50)
    """

    presets: ClassVar[Mapping[str, Preset]] = {
        "paper-imagenet100": _preset(
            "split-clane9/imagenet-100",
            {"steps": 10, "seed": 1993, "size": 224},
            {"name": "resnet18", "stem": "imagenet", "augment": "crop-flip"},
        ),
        "paper-cifar100": _preset("split-cifar100", {"steps": 10, "seed": 1993}, {"name": "resnet18", "augment": "crop-flip"}),
    }

    def __init__(
        self,
        backbone: Backbone,
        host: str | Mapping[str, Any] = "replay",
        targets: str | Targets = "openai/clip-vit-base-patch32",
        head: Literal["semantic", "random", "learned"] = "semantic",
        prompt: str = "{}",
        cosine: bool = True,
        logit_scale: float = 16.0,
        class_names: Mapping[int, str] | Sequence[str] | None = None,
        recipe: Recipe = Recipe(epochs=5),
    ) -> None:
        if "{}" not in prompt:
            raise ConfigurationError(f"prompt must have {{}} where the name of a class goes, but it is {prompt!r}.")
        kind, settings = _host(host)
        # Whatever a host does, it does in its own methods: the learner becomes a host that differs in what is below.
        self.__class__ = _joined(type(self), kind)
        configure.build(kind.__init__.__get__(self), settings, "lingocl.host", backbone=backbone, recipe=recipe)
        if any(isinstance(part, LinearHead) and part is not self.net.head for part in self.modules()):
            raise ConfigurationError(
                f"{kind.__name__} keeps heads of its own, so its head can't be replaced; use another host."
            )
        if taken := [name for name in _OWN if hasattr(self, name)]:
            raise ConfigurationError(f"{kind.__name__} has {taken[0]!r} of its own, which lingocl has too; use another host.")
        self.host, self.targets, self.head, self.prompt = host, targets, head, prompt
        self.cosine, self.logit_scale, self.class_names = cosine, logit_scale, class_names
        semantic = SemanticHead(backbone.width, cosine=cosine, logit_scale=logit_scale, trained=head == "learned")
        self.net.head = semantic  # type: ignore[assignment]  # it does what that one does

    @property
    def semantic(self) -> SemanticHead:
        """The head."""
        found: nn.Module = self.net.head
        assert isinstance(found, SemanticHead)
        return found

    def prepare(self, experience: Experience) -> None:
        ahead = copy.deepcopy(self.net.classes)
        if ahead.expose_all(experience):
            self.semantic.expect(self._rows(ahead.labels.tolist()))
        super().prepare(experience)

    def loss(self, batch: Data) -> Tensor:
        return super().loss(batch)  # type: ignore[safe-super]  # that of the host, which comes next

    def directions(self, labels: Sequence[int]) -> Tensor:
        """What the language model gives the names of classes, whether they have arrived or not: ``(len(labels), d)``."""
        encoder = TextTargets(self.targets) if isinstance(self.targets, str) else self.targets
        return F.normalize(encoder.encode([self.prompt.replace("{}", self._name(label)) for label in labels]).float().cpu())

    @torch.no_grad()
    def similarity(self, data: Data, directions: Tensor, batch_size: int = 512) -> Tensor:
        """The cosines of rows with any directions in the head's space, such as those of classes still to come."""
        self.eval()
        batches = data.batches(batch_size)
        return torch.cat([self.semantic.cosines(self.backbone(self.net.prepare(batch)), directions) for batch in batches])

    def _rows(self, labels: list[int]) -> Tensor:
        """The rows of the head for those labels, all that are known after an arrival, that are new in it."""
        known, new = labels[: len(self.classes)], labels[len(self.classes) :]
        called = [self._name(label) for label in labels]
        if twice := [name for place, name in enumerate(called) if place >= len(known) and name in called[:place]]:
            told = f"Two classes are called {twice[0]!r}, so they have one target and can't be told apart."
            warnings.warn(told, stacklevel=2)
        rows = self.directions(new)
        if self.head == "semantic":
            return rows
        if self.head == "random":
            before = self.semantic.weight if known else rows[:0]
            return orthonormal(len(new), before, self.generator)
        return F.normalize(torch.randn(rows.shape, generator=self.generator))

    def _name(self, label: int) -> str:
        """What a class is called, without a WordNet number behind it."""
        names = self.class_names
        if names is None or (label not in names if isinstance(names, Mapping) else not 0 <= label < len(names)):
            raise ConfigurationError(
                f"lingocl needs the names of the classes, but nobody says how class {label} is called; "
                "give class_names, a name for each label."
            )
        name = re.sub(rf"\s*\({_NUMBER}\)$", "", names[label]).replace("_", " ").strip()
        if not name or re.fullmatch(_NUMBER, name):
            raise ConfigurationError(
                f"Class {label} is called {names[label]!r}, which says nothing to a language model; right would be a word."
            )
        return name


@cache
def _joined(kind: type[LingoCL], host: type[ClassifierLearner]) -> type[LingoCL]:
    """A class that is ``kind`` and, behind it, ``host``."""
    return type(kind.__name__, (kind, host), {"__module__": kind.__module__, "__doc__": kind.__doc__})


def _host(wanted: str | Mapping[str, Any]) -> tuple[type[ClassifierLearner], dict[str, Any]]:
    """The class of the host and what is set on it."""
    settings = {"name": wanted} if isinstance(wanted, str) else dict(wanted)
    name = settings.pop("name", "replay")
    kind = registry.find("learners", str(name), "images").load()
    if not (isinstance(kind, type) and issubclass(kind, ClassifierLearner)) or issubclass(kind, LingoCL):
        raise ConfigurationError(f"{name!r} has no head that could be replaced; a host is a gradient learner, such as replay.")
    return kind, settings
