"""ADEPT (paper 46): identity copies of the layers that matter least, trained at rates that spare general ability."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from latewood.core.cost import current_meter
from latewood.core.errors import ConfigurationError
from latewood.core.experience import Experience
from latewood.core.preset import Preset
from latewood.language.expansion import expand, layer_importance, least_important, train_only
from latewood.language.learner import LanguageLearner
from latewood.language.mixture import Mixture
from latewood.language.nets.causal import CausalLM
from latewood.language.recipe import TextRecipe
from latewood.parts.memory import Exemplars
from latewood.parts.unit_rates import adapt_unit_rates, unit_groups


class ADEPT(LanguageLearner):
    """Adaptive expansion and dynamic decoupled tuning (arXiv 2510.10071).

    The first arrival is general text. With ``first="train"`` the model is trained on it as a whole; with ``first="keep"``,
    for a model that is trained already, it only gives the probe: ``probe`` rows, drawn at random, that stand for
    general ability from then on. For each later arrival the ``layers`` that matter least on the probe get a copy behind
    them that adds nothing at first; all else is frozen, and the copies are trained. Every ``every`` steps the units of the
    copies get new rates: the more a unit matters on the probe, the lower, from 0 to twice the base rate.

    ``choice`` (``least``, ``most``, ``uniform``) and ``decoupled`` are the paper's ablations; ``normalisation`` is as in
    :func:`~latewood.parts.unit_rates.rate_multipliers`. Copies of earlier arrivals stay and are frozen with the rest: the
    paper has one domain.
    """

    presets: ClassVar[Mapping[str, Preset]] = {
        "paper-qwen3-1.7b": Preset(
            "text-HuggingFaceFW/fineweb-edu:sample-10BT@2000,open-web-math/open-web-math",
            {
                "backbone": "Qwen/Qwen3-1.7B-Base",
                "stream": {"tokenizer": "Qwen/Qwen3-1.7B-Base", "length": 2048, "held_out": 512},
                **{"layers": 4, "every": 500, "probe": 128, "first": "keep"},
                "recipe": {"lr": 3e-5, "batch_size": 64, "accumulation": 16, "warmup": 0.03, "precision": "bfloat16"},
            },
            "Copies, interval and mathematics corpus of the paper; general text in place of MMLU as the probe, learning rate, "
            "batch and schedule are our choice.",
        ),
    }

    def __init__(
        self,
        backbone: CausalLM,
        layers: int = 2,
        every: int = 500,
        probe: int = 128,
        first: Literal["train", "keep"] = "train",
        choice: Literal["least", "most", "uniform"] = "least",
        decoupled: bool = True,
        normalisation: Literal["split", "joint"] = "split",
        recipe: TextRecipe = TextRecipe(),
    ) -> None:
        super().__init__(backbone, recipe)
        if layers < 1 or every < 1 or probe < 1:
            raise ConfigurationError("layers, every and probe must be at least 1.")
        self.layers, self.every, self.probe, self.first = layers, every, probe, first
        self.choice, self.decoupled, self.normalisation = choice, decoupled, normalisation
        self.kept = Exemplars(probe)
        #: What the rates of the units were multiplied with at each recomputation of this arrival.
        self.multipliers: list[dict[str, float]] = []
        self.register_buffer("expansions", torch.zeros(0, layers, dtype=torch.int64))
        self.register_load_state_dict_pre_hook(_grow)  # type: ignore[no-untyped-call]

    expansions: Tensor

    def learn(self, experience: Experience) -> None:
        if len(self.kept) or self.first == "train":
            super().learn(experience)
        if not len(self.kept):
            rows = torch.randperm(len(experience.train), generator=self.generator)[: self.probe]
            self.kept.replace(experience.train[rows].select("tokens"))

    def begin(self, experience: Experience) -> None:
        self.multipliers = []
        if not len(self.kept):
            return
        with current_meter().counting():
            self._expand(self._chosen())
        train_only(self.backbone.network, self._newest())

    def parameter_groups(self) -> list[dict[str, Any]]:
        return unit_groups(self.backbone) if len(self.expansions) else super().parameter_groups()

    def after_step(self, step: int, optimizer: torch.optim.Optimizer, mixture: Mixture) -> None:
        if self.decoupled and len(self.expansions) and step % self.every == 0:
            with current_meter().counting():
                found = adapt_unit_rates(self.backbone, optimizer, self._loss, self._probe(), self.normalisation)
            self.multipliers.append(found)

    def progress_state(self) -> dict[str, Any]:
        return {"multipliers": self.multipliers}

    def load_progress(self, state: Mapping[str, Any]) -> None:
        self.multipliers = list(state["multipliers"])

    def importance(self) -> list[float]:
        """How much the loss on the probe rises without each layer."""
        return layer_importance(self.backbone.network, self._probe_loss)

    def _chosen(self) -> list[int]:
        importance = self.importance()
        count = len(importance)
        if self.layers > count:
            raise ConfigurationError(f"The model has {count} layers, so {self.layers} can't be copied.")
        if self.choice == "uniform":
            return [(2 * i + 1) * count // (2 * self.layers) for i in range(self.layers)]
        return least_important(importance if self.choice == "least" else [-value for value in importance], self.layers)

    def _expand(self, positions: list[int]) -> None:
        expand(self.backbone.network, positions)
        self.expansions = torch.cat([self.expansions, torch.tensor([sorted(positions)], device=self.expansions.device)])

    def _newest(self) -> list[int]:
        """Where the copies of the last expansion lie."""
        return [position + earlier + 1 for earlier, position in enumerate(self.expansions[-1].tolist())]

    def _probe(self) -> list[Tensor]:
        return [self.backbone.prepare(batch) for batch in self.kept.data.batches(self.recipe.batch_size)]

    def _loss(self, tokens: Tensor) -> Tensor:
        return self.backbone.losses(tokens).mean()

    @torch.no_grad()
    def _probe_loss(self) -> float:
        parts = self._probe()
        return sum(float(self._loss(part)) * len(part) for part in parts) / len(self.kept)


def _grow(learner: ADEPT, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    """Before a state is loaded: have as many layers as the model that it was saved from."""
    for positions in state.get(f"{prefix}expansions", learner.expansions)[len(learner.expansions) :].tolist():
        learner._expand(positions)
