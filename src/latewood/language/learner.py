"""What all learners of the language wing share: a causal language model, mixtures, and a loop that can stop anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from latewood.core.checkpoint import current_shelf
from latewood.core.data import Data
from latewood.core.experience import Experience
from latewood.core.learner import Learner
from latewood.core.seeding import seeded
from latewood.language.loop import Work
from latewood.language.mixture import Mixture, by_source
from latewood.language.nets.causal import CausalLM
from latewood.language.recipe import TextRecipe
from latewood.parts.optimizer_state import OptimizerState


class LanguageLearner(Learner):
    """Continual pre-training: the next-token loss on batches that a mixture of domains gives, step by step.

    A subclass says what a step learns from and what else happens, by overriding :meth:`mixture`, :meth:`rows`,
    :meth:`begin`, :meth:`after_step` and :meth:`finish`. Whatever it must remember lies in its state and in
    :meth:`progress_state`.

    The optimiser's moments are part of the state, so that one schedule may span several arrivals. With
    ``recipe.save_every`` the state within an arrival is saved as well; a run that is killed goes on from there, and ends
    with the same bits as one that was not.
    """

    deployed: ClassVar[tuple[str, ...]] = ("backbone",)
    counts_flops: ClassVar[bool] = True

    def __init__(self, backbone: CausalLM, recipe: TextRecipe = TextRecipe()) -> None:
        super().__init__()
        self.backbone, self.recipe = backbone, recipe
        #: Decides in which order blocks come; drawn anew for each arrival.
        self.mixture_seed = 0
        self.optimizer_state = OptimizerState()
        self.register_buffer("steps_done", torch.zeros((), dtype=torch.int64))

    steps_done: Tensor

    # What a method says

    def mixture(self, experience: Experience) -> Mixture:
        """The domains that the new rows of each step come from, and their shares: here the sources of the arrival, by size."""
        return Mixture(by_source(experience.train), batch_size=self.rows(), seed=self.mixture_seed)

    def rows(self) -> int:
        """How many rows of a step are new ones, that come from the mixture."""
        return self.recipe.batch_size

    def batch(self, new: Data) -> Data:
        """What a step learns from, given its new rows, which come first."""
        return new

    def begin(self, experience: Experience) -> None:
        """What happens before the optimiser is built, such as growing the model."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimiser trains; no weight decay on norms and biases."""
        trained = [p for p in self.backbone.parameters() if p.requires_grad]
        plain = [p for p in trained if p.dim() < 2]
        decayed = [p for p in trained if p.dim() >= 2]
        return [group for group in ({"params": decayed}, {"params": plain, "weight_decay": 0.0}) if group["params"]]

    def after_step(self, step: int, optimizer: torch.optim.Optimizer, mixture: Mixture) -> None:
        """What happens after step ``step`` (from 1) of this arrival."""

    def finish(self, experience: Experience) -> None:
        """What happens once the arrival is learned."""

    def progress_state(self) -> dict[str, Any]:
        """What of the work on this arrival lies outside of the state, in a form that JSON can hold."""
        return {}

    def load_progress(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`progress_state` told."""

    def saved(self) -> None:
        """What may go now that :meth:`progress_state` lies on disk."""

    @property
    def looks_at_steps(self) -> bool:
        """Whether it does something after each step, for which it needs the whole model."""
        return type(self).after_step is not LanguageLearner.after_step

    def learn(self, experience: Experience) -> None:
        with seeded(int(torch.randint(2**62, (), generator=self.generator))):
            self.mixture_seed = int(torch.randint(2**62, (), generator=self.generator))
            self.begin(experience)
            Work(self, experience, current_shelf()).run()
            self.finish(experience)
            self.eval()

    @torch.no_grad()
    def predict(self, data: Data, batch_size: int = 32) -> Tensor:
        """For each row the sum of its tokens' negative log-likelihoods, float64 ``(n,)``, in nats.

        Where ``data`` has a column ``targets`` (bool, as ``tokens``), over those positions alone; else over all but the first.
        """
        self.eval()
        sums = [torch.empty(0, dtype=torch.float64)]
        for batch in data.batches(batch_size):
            losses = self.backbone.losses(self.backbone.prepare(batch)).double().cpu()
            if "targets" in batch:
                losses = losses * batch.tensor("targets")[:, 1:].cpu()
            sums.append(losses.sum(1))
        return torch.cat(sums)
