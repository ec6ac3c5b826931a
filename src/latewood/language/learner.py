"""What all learners of the language wing share: a causal language model, mixtures, and a loop that can stop anywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from latewood.core.checkpoint import Shelf, current_shelf, tensors_of
from latewood.core.cost import current_meter
from latewood.core.data import Data
from latewood.core.errors import CheckpointError, LatewoodError
from latewood.core.experience import Experience
from latewood.core.learner import Learner
from latewood.core.progress import current_progress
from latewood.core.seeding import seeded
from latewood.core.watch import current_watch
from latewood.language.mixture import Mixture, by_source
from latewood.language.nets.causal import CausalLM
from latewood.language.recipe import TextRecipe
from latewood.parts.optimizer_state import OptimizerState

#: How often the loss is looked at for NaN, in steps: looking makes the processor wait for the device.
_LOOK = 50


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
        """What a step learns from, given its new rows."""
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

    # The loop

    def learn(self, experience: Experience) -> None:
        with seeded(int(torch.randint(2**62, (), generator=self.generator))):
            self.mixture_seed = int(torch.randint(2**62, (), generator=self.generator))
            self.begin(experience)
            _Work(self, experience, current_shelf()).run()
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


class _Work:
    """The steps on one arrival."""

    def __init__(self, learner: LanguageLearner, experience: Experience, shelf: Shelf | None) -> None:
        from accelerate import Accelerator

        self.learner, self.recipe, self.shelf = learner, learner.recipe, shelf
        self.mixture = learner.mixture(experience)
        recipe = self.recipe
        self.steps = recipe.steps or math.ceil(recipe.epochs * len(experience.train) / learner.rows())
        self.optimizer = recipe.make_optimizer(learner.parameter_groups())
        spans = recipe.arrivals > 1
        self.first = int(learner.steps_done) if spans else 0
        self.total = self.steps * recipe.arrivals if spans else self.steps
        if spans:
            learner.optimizer_state.give(self.optimizer)
        self.accelerator = Accelerator(
            cpu=learner.device.type == "cpu", mixed_precision="bf16" if recipe.precision == "bfloat16" else "no"
        )
        self.flops_per_step = 0

    def run(self) -> None:
        learner, recipe, progress, meter = self.learner, self.recipe, current_progress(), current_meter()
        watch = current_watch()
        done = self._resume()
        network = self.accelerator.prepare_model(_Losses(learner.backbone)) if self._distributed else _Losses(learner.backbone)
        learner.train()
        progress.phase("learning", self.steps)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        if watch and not done:
            watch.after(0, learner)
        for step in range(done, self.steps):
            rates = recipe.rate(self.first + step, self.total)
            for group in self.optimizer.param_groups:
                group["lr"] = group.setdefault("initial_lr", group["lr"]) * rates
            batch = learner.batch(self.mixture.draw())
            measured = self.flops_per_step == 0
            before = meter.flops
            with meter.counting() if measured else nullcontext():
                loss = self._step(network, batch, parameters)
            if measured:
                self.flops_per_step = meter.flops - before
            else:
                meter.charge(self.flops_per_step)
            learner.steps_done += 1
            learner.after_step(step + 1, self.optimizer, self.mixture)
            progress.step(loss)
            if (step + 1) % _LOOK == 0 or step + 1 == self.steps:
                self._check(loss, step)
            if watch:
                watch.after(step + 1, learner, last=step + 1 == self.steps)
            if self.shelf and recipe.save_every and (step + 1) % recipe.save_every == 0 and step + 1 < self.steps:
                self._save(step + 1)
        learner.optimizer_state.take(self.optimizer) if recipe.arrivals > 1 else learner.optimizer_state.clear()

    def _step(self, network: nn.Module, batch: Data, parameters: list[nn.Parameter]) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.learner.device)
        inputs = self.learner.backbone.prepare(self._share(batch))
        for part in inputs.chunk(self.recipe.accumulation):
            with self.accelerator.autocast():
                loss = network(part).mean() * (len(part) / len(inputs))
            self.accelerator.backward(loss)
            total += loss.detach()
        if self.recipe.clip is not None:
            nn.utils.clip_grad_norm_(parameters, self.recipe.clip)
        self.optimizer.step()
        return total

    @property
    def _distributed(self) -> bool:
        return bool(self.accelerator.num_processes > 1)

    def _share(self, batch: Data) -> Data:
        """The rows of this process, of a batch that all processes draw alike."""
        if not self._distributed:
            return batch
        return batch[self.accelerator.process_index :: self.accelerator.num_processes]

    def _check(self, loss: Tensor, step: int) -> None:
        if not torch.isfinite(loss):
            raise LatewoodError(
                f"The loss became NaN or infinite by step {step + 1} of {self.steps}; "
                f"lower recipe.lr (now {self.recipe.lr}) or set recipe.clip."
            )

    def _save(self, step: int) -> None:
        assert self.shelf is not None
        learner = self.learner
        learner.optimizer_state.take(self.optimizer)
        state = {f"learner.{name}": value for name, value in tensors_of(learner).items()}
        state |= {"generator": learner.generator.get_state(), "rng": torch.get_rng_state()}
        watch = current_watch()
        told = {"mixture": self.mixture.state(), "method": learner.progress_state(), "flops": current_meter().flops}
        told["watch"] = watch.state() if watch else []
        groups = [{"initial_lr": group["initial_lr"]} for group in self.optimizer.param_groups]
        self.shelf.add(step, state, {**told, "flops_per_step": self.flops_per_step, "groups": groups})
        learner.saved()

    def _resume(self) -> int:
        """Take up what a killed run left of this arrival; the number of steps that are done."""
        found = self.shelf.newest(current_progress().tell) if self.shelf else None
        if found is None:
            return 0
        step, state, told = found
        learner = self.learner
        try:
            learner.load_state_dict({n.removeprefix("learner."): v for n, v in state.items() if n.startswith("learner.")})
        except RuntimeError as error:
            raise CheckpointError(f"What is left of this arrival does not fit this learner: {error}") from error
        learner.optimizer_state.give(self.optimizer)
        for group, kept in zip(self.optimizer.param_groups, told["groups"], strict=True):
            group.update(kept)
        learner.generator.set_state(state["generator"])
        torch.set_rng_state(state["rng"])
        self.mixture.load_state(told["mixture"])
        learner.load_progress(told["method"])
        if (watch := current_watch()) is not None:
            watch.load_state(told["watch"])
        current_meter().charge(told["flops"] - current_meter().flops)
        self.flops_per_step = told["flops_per_step"]
        current_progress().tell(f"Continuing within the arrival after {step} of {self.steps} steps.")
        return step


class _Losses(nn.Module):
    """The loss of each token as a module's forward, which is what wrappers for several processes wrap."""

    def __init__(self, backbone: CausalLM) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, inputs: Tensor) -> Tensor:
        return self.backbone.losses(inputs)
