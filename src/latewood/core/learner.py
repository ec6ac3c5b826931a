"""Learner: two verbs, learn and predict. GradientLearner: those that train by gradient."""

from __future__ import annotations

import dataclasses
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from latewood.core.cost import current_meter
from latewood.core.data import Data
from latewood.core.experience import Experience
from latewood.core.loop import fit
from latewood.core.preset import Preset
from latewood.core.recipe import Recipe
from latewood.core.seeding import seeded


class Learner(nn.Module, ABC):
    """Learns from one experience at a time and predicts at any time.

    The constructor's arguments are the hyper-parameters, each kept as an attribute of the same name. Whatever must be
    remembered between experiences lives in parameters and buffers, so ``state_dict()`` is the whole learner.
    Randomness comes from :attr:`generator`, which :func:`latewood.run` seeds anew before each experience.

    >>> class Mean(Learner):
    ...     def __init__(self) -> None:
    ...         super().__init__()
    ...         self.register_buffer("total", torch.zeros(()))
    ...         self.register_buffer("count", torch.zeros(()))
    ...     def learn(self, experience):
    ...         self.total += experience.train["x"].sum()
    ...         self.count += len(experience.train)
    ...     def predict(self, data):
    ...         return (self.total / self.count).expand(len(data))
    >>> mean = Mean()
    >>> mean.learn(Experience(0, Data(x=torch.tensor([1.0, 3.0]))))
    >>> mean.predict(Data(x=torch.zeros(2)))
    tensor([2., 2.])
    """

    #: The attributes that are the network and its head; all other state counts as kept between experiences.
    deployed: ClassVar[tuple[str, ...]] = ("net",)
    #: Whether the learner counts its own FLOPs; otherwise every operation of ``learn`` is counted.
    counts_flops: ClassVar[bool] = False
    #: Settings of papers, by name.
    presets: ClassVar[Mapping[str, Preset]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    @abstractmethod
    def learn(self, experience: Experience) -> None:
        """Update from one arrival."""

    @abstractmethod
    def predict(self, data: Data) -> Tensor:
        """One prediction for each row of ``data``, in the form that the wing's probes expect."""

    @property
    def device(self) -> torch.device:
        """Where the learner computes."""
        for tensor in chain(self.parameters(), self.buffers()):
            return tensor.device
        return torch.device("cpu")

    def config(self) -> dict[str, Any]:
        """The hyper-parameters by name, in a form that JSON can hold."""
        names = [name for name in inspect.signature(type(self).__init__).parameters if name != "self"]
        return {name: _plain(getattr(self, name)) for name in names}


class GradientLearner(Learner):
    """A learner that trains by gradient: a subclass says what the loss is, the core runs the one loop.

    The hooks: ``prepare`` before training on an arrival and ``conclude`` when it is learned, both in evaluation mode, and
    ``after_batch``, a method that takes the batch, after each step: there is none unless a subclass defines one, so who
    needs none pays nothing.
    """

    counts_flops: ClassVar[bool] = True
    after_batch: Callable[[Data], None] | None = None

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        #: The epoch of the current experience that the loop is in, from 0.
        self.epoch = 0

    @abstractmethod
    def loss(self, batch: Data) -> Tensor:
        """The scalar to minimise on this batch."""

    def training_data(self, experience: Experience) -> Data:
        """The rows to train on: those of the arrival, unless a method mixes in others."""
        return experience.train

    def prepare(self, experience: Experience) -> None:
        """What must happen before the optimiser is built, such as growing a head."""

    def conclude(self, experience: Experience) -> None:
        """What must happen once the arrival is learned, such as choosing exemplars."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimiser trains: groups as torch's optimisers take them."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def compute_modules(self) -> Sequence[nn.Module]:
        """The modules in which the time is spent: what compilation and the memory format apply to."""
        return [child for child in self.children() if any(p.requires_grad for p in child.parameters())]

    def learn(self, experience: Experience) -> None:
        meter = current_meter()
        # Layers that draw from the global generator (dropout, augmentation) are repeatable inside, unnoticed outside.
        with seeded(int(torch.randint(2**62, (), generator=self.generator))):
            with meter.counting():
                self.eval()
                self.prepare(experience)
                data = self.training_data(experience)
            self.train()
            fit(self, data)
            self.eval()
            with meter.counting():
                self.conclude(experience)


def _plain(value: Any) -> Any:
    if isinstance(value, nn.Module):
        describe = getattr(value, "config", None)
        return describe() if callable(describe) else type(value).__name__
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return value if isinstance(value, str | int | float | bool | None) else repr(value)
