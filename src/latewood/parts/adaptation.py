"""Adapting a backbone once, on the first arrival, and never again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from latewood.core.data import Data
from latewood.core.errors import CheckpointError, ConfigurationError
from latewood.core.experience import Experience
from latewood.core.recipe import Recipe
from latewood.parts.adapters import train_part
from latewood.parts.backbone import Backbone
from latewood.parts.embedding import Encoder
from latewood.parts.heads import ClassifierLearner


class Adaptation(ClassifierLearner):
    """Adapts a backbone once: trains ``trained``, a part of it (or all), under a temporary ``head`` by cross-entropy.

    ``head`` grows and maps features to logits as :class:`~latewood.parts.heads.LinearHead` does. Nothing else of the
    backbone changes: where only a part is trained, the rest stays in evaluation mode, while images are augmented. Once an
    arrival is learned the backbone is frozen.
    """

    def __init__(self, backbone: Backbone, trained: nn.Module, head: nn.Module, recipe: Recipe) -> None:
        super().__init__(backbone, recipe)
        self.net.head = head  # type: ignore[assignment]  # it does what that one does
        self.trained = trained
        backbone.requires_grad_(False)
        backbone.frozen = False
        trained.requires_grad_(True)

    def loss(self, batch: Data) -> Tensor:
        return self.cross_entropy(self.logits(batch), batch)

    def conclude(self, experience: Experience) -> None:
        self.backbone.freeze()

    def train(self, mode: bool = True) -> Adaptation:
        super().train(mode)
        if self.trained is not self.backbone:
            train_part(self.backbone, self.trained, mode)
        return self


class AdaptedEncoder(Encoder):
    """A backbone that is trained once, by :meth:`adapt`, and frozen before and after.

    ``attach`` gives what of it is trained: a part that it adds, or the whole backbone. That belongs to the state; of a
    backbone that gets a part the rest does not change, and a state that was saved with another one is refused.
    Errors: :class:`~latewood.core.errors.ConfigurationError` if there is nothing to train.
    """

    trained: nn.Module

    def __init__(self, backbone: Backbone, attach: Callable[[Backbone], nn.Module]) -> None:
        super().__init__(backbone)
        if not any(True for _ in backbone.parameters()):
            name = backbone.settings.get("name", type(backbone).__name__)
            raise ConfigurationError(f"{name!r} has no weights that could be trained; choose another backbone.")
        origin = self.fingerprint
        self.trained = attach(backbone)
        backbone.freeze()
        self._origin = "" if self.trained is backbone else origin

    def adapt(self, experience: Experience, head: nn.Module, recipe: Recipe, generator: torch.Generator) -> None:
        """Train on one arrival by cross-entropy under a temporary ``head``, as :class:`Adaptation`."""
        adaptation = Adaptation(self.backbone, self.trained, head, recipe).to(self._device)
        adaptation.generator = generator
        adaptation.learn(experience)

    def train(self, mode: bool = True) -> AdaptedEncoder:
        return super().train(False)

    def get_extra_state(self) -> Tensor:
        return (
            torch.frombuffer(bytearray(bytes.fromhex(self._origin)), dtype=torch.uint8)
            if self._origin
            else torch.empty(0, dtype=torch.uint8)
        )

    def set_extra_state(self, state: Tensor) -> None:
        if bytes(state.tolist()).hex() != self._origin:
            raise CheckpointError("This state was saved with another frozen backbone; give the learner the same one again.")
