"""The loop of the language wing: steps on one arrival that can stop anywhere, on one device or in several processes."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from latewood.core.checkpoint import Shelf, tensors_of
from latewood.core.cost import current_meter
from latewood.core.data import Data
from latewood.core.errors import CheckpointError, ConfigurationError, LatewoodError
from latewood.core.experience import Experience
from latewood.core.progress import current_progress
from latewood.core.speed import decide
from latewood.core.step import accelerated
from latewood.core.watch import current_watch
from latewood.language.expansion import layers
from latewood.language.nets.causal import CausalLM
from latewood.language.recipe import TextRecipe
from latewood.language.sharding import Sharded
from latewood.language.sharding import asked_for as sharding_asked_for

if TYPE_CHECKING:
    from latewood.language.learner import LanguageLearner

#: How often the loss is looked at for NaN, in steps: looking makes the processor wait for the device.
_LOOK = 50
#: What rows are called that don't come from the mixture.
_REPLAYED = "replayed"


class Work:
    """The steps on one arrival."""

    def __init__(self, learner: LanguageLearner, experience: Experience, shelf: Shelf | None) -> None:
        from accelerate import PartialState

        self.learner, self.shelf, self.device = learner, shelf, learner.device
        self.mixture = learner.mixture(experience)
        recipe = learner.recipe
        self.steps = recipe.steps or math.ceil(recipe.epochs * len(experience.train) / learner.rows())
        groups = learner.parameter_groups()
        self.optimizer = recipe.make_optimizer(groups)
        spans = recipe.arrivals > 1
        self.first = int(learner.steps_done) if spans else 0
        self.total = self.steps * recipe.arrivals if spans else self.steps
        if spans:
            learner.optimizer_state.give(self.optimizer)
        self.processes = PartialState(cpu=self.device.type == "cpu")
        self.loss = Loss(learner.backbone, groups)
        self.recipe = self._decided(recipe)
        self.sharded: Sharded | None = None
        self.flops_per_step = 0

    def run(self) -> None:
        learner, recipe, progress, meter = self.learner, self.recipe, current_progress(), current_meter()
        meter.trains(p for group in self.optimizer.param_groups for p in group["params"])
        watch = current_watch()
        done = self._resume()
        network = self._prepared()
        learner.train()
        progress.phase("learning", self.steps)
        told = _Told(self.mixture.names, self.device, self.processes.num_processes, self.processes.process_index)
        progress.aside = told
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        if watch and not done:
            watch.after(0, learner)
        with accelerated(cast(Any, self.loss), recipe) as plain:
            for step in range(done, self.steps):
                rates = recipe.rate(self.first + step, self.total)
                for group in self.optimizer.param_groups:
                    group["lr"] = group.setdefault("initial_lr", group["lr"]) * rates
                new = self.mixture.draw()
                batch = learner.batch(new)
                measured = self.flops_per_step == 0
                before = meter.flops
                with meter.counting() if measured else nullcontext(), plain(meter.counts):
                    loss, by_row = self._step(network, batch, parameters)
                if measured:
                    self.flops_per_step = meter.flops - before
                else:
                    meter.charge(self.flops_per_step)
                learner.steps_done += 1
                learner.after_step(step + 1, self.optimizer, self.mixture)
                told.add(new, batch, by_row)
                progress.step(loss)
                if (step + 1) % _LOOK == 0 or step + 1 == self.steps:
                    self._check(loss, step)
                if watch:
                    if self.sharded and (watch.due(step + 1) or step + 1 == self.steps):
                        self.sharded.gather()
                    watch.after(step + 1, learner, last=step + 1 == self.steps)
                if self.shelf and recipe.save_every and (step + 1) % recipe.save_every == 0 and step + 1 < self.steps:
                    self._save(step + 1)
        self._take() if recipe.arrivals > 1 else self._forget()

    def _step(self, network: nn.Module, batch: Data, parameters: list[nn.Parameter]) -> tuple[Tensor, Tensor]:
        """The loss, and that of each row of this process."""
        self.optimizer.zero_grad(set_to_none=True)
        by_row = []
        total = torch.zeros((), device=self.device)
        inputs = self.learner.backbone.prepare(self._share(batch))
        # Gradients are averaged over the processes, whose shares may differ by a row.
        rows = len(batch) / self.processes.num_processes
        for part in inputs.chunk(self.recipe.accumulation):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bfloat16"):
                mean, each = network(part)
                loss = mean * (len(part) / rows)
            loss.backward()
            by_row.append(each)
            total += loss.detach()
        if self.recipe.clip is not None:
            nn.utils.clip_grad_norm_(parameters, self.recipe.clip)
        self.optimizer.step()
        return total, torch.cat(by_row)

    @property
    def _distributed(self) -> bool:
        return bool(self.processes.num_processes > 1)

    def _prepared(self) -> nn.Module:
        """The loss as a module that averages gradients over all processes, if there are several."""
        if not self._distributed:
            return self.loss
        if sharding_asked_for():
            return self._shard()
        from accelerate import Accelerator

        # Precision is the recipe's: accelerate takes one for all that a process ever does.
        prepared: nn.Module = Accelerator(cpu=self.device.type == "cpu", mixed_precision="no").prepare_model(self.loss)
        return prepared

    def _shard(self) -> nn.Module:
        if self.learner.looks_at_steps:
            raise ConfigurationError(
                f"{type(self.learner).__name__} looks at the whole model after each step, so it can't be sharded; "
                "launch it without FSDP."
            )
        network = Loss(copy.deepcopy(self.learner.backbone), [])
        blocks = list(layers(network.backbone.network))
        self.sharded = Sharded(self.loss, network, blocks, self.optimizer)
        self.loss = network.train()
        return network

    def _take(self) -> None:
        """Let the learner's state hold what is trained, and what the optimiser remembers."""
        held = self.learner.optimizer_state
        held.take(self.optimizer)
        if self.sharded:
            self.sharded.gather()
            self.sharded.gather_moments(held)

    def _forget(self) -> None:
        """Let the learner's state hold what is trained, and nothing of the optimiser."""
        self.learner.optimizer_state.clear()
        if self.sharded:
            self.sharded.gather()

    def _decided(self, recipe: TextRecipe) -> TextRecipe:
        """The recipe with each ``auto`` replaced, for all processes by what the main one measures."""
        recipe = replace(recipe, channels_last="off")  # a layout of images
        if not recipe.undecided:
            return recipe
        # How long a step takes does not depend on which tokens it sees.
        rows = max(1, recipe.batch_size // recipe.accumulation // self.processes.num_processes)
        batch = Data(tokens=torch.zeros(rows, self.mixture.length, dtype=torch.int32))
        fast = torch.zeros(2, dtype=torch.int64, device=self.device)
        if self.processes.is_main_process:
            decided = decide(cast(Any, self.loss), batch, recipe)
            fast += torch.tensor([decided.precision == "bfloat16", decided.compile == "on"], device=fast.device)
        if self._distributed:
            torch.distributed.broadcast(fast, 0)
        low, compiled = fast.tolist()
        return replace(recipe, precision="bfloat16" if low else "float32", compile="on" if compiled else "off")

    def _share(self, batch: Data) -> Data:
        """The rows of this process, of a batch that all processes draw alike."""
        if not self._distributed:
            return batch
        return batch[self.processes.process_index :: self.processes.num_processes]

    def _check(self, loss: Tensor, step: int) -> None:
        if not torch.isfinite(loss):
            raise LatewoodError(
                f"The loss became NaN or infinite by step {step + 1} of {self.steps}; "
                f"lower recipe.lr (now {self.recipe.lr}) or set recipe.clip."
            )

    def _save(self, step: int) -> None:
        assert self.shelf is not None
        learner = self.learner
        self._take()
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


class Loss(nn.Module):
    """The mean loss, and that of each row, as a module's forward, which is what is compiled, and what several processes wrap.

    It is made anew for each arrival, so that nothing of either stays with the model.
    """

    def __init__(self, backbone: CausalLM, groups: list[dict[str, Any]]) -> None:
        super().__init__()
        self.backbone, self._groups = backbone, groups

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        losses = self.backbone.losses(inputs)
        return losses.mean(), losses.detach().mean(1)

    # What a measurement of the fast path asks of a learner

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def loss(self, batch: Data) -> Tensor:
        mean: Tensor = self(self.backbone.prepare(batch))[0]
        return mean

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [dict(group) for group in self._groups]

    def compute_modules(self) -> list[nn.Module]:
        return [self]


class _Told:
    """What the progress display tells beside the bar: tokens in a second, and the loss of each domain since it last did."""

    def __init__(self, names: Sequence[str], device: torch.device, every: int, offset: int) -> None:
        self.names = (*names, _REPLAYED)
        self.every, self.offset = every, offset
        self.tokens, self.since = 0, time.perf_counter()
        self.sums = torch.zeros(len(self.names), device=device)
        self.counts = torch.zeros(len(self.names), device=device)

    def add(self, new: Data, batch: Data, by_row: Tensor) -> None:
        """The losses of this process's rows of a batch, of which the ``new`` ones come first."""
        domain = torch.full((len(batch),), len(self.names) - 1)
        domain[: len(new)] = new.tensor("domain")
        mine = domain[self.offset :: self.every].to(self.sums.device)
        self.sums.index_add_(0, mine, by_row)
        self.counts.index_add_(0, mine, torch.ones_like(by_row))
        self.tokens += len(batch) * int(new.tensor("tokens").shape[1])

    def __call__(self) -> str:
        now = time.perf_counter()
        rate = self.tokens / max(now - self.since, 1e-9)
        losses = zip(self.names, (self.sums / self.counts).tolist(), strict=True)
        shown = "  ".join(f"{name} {loss:.3f}" for name, loss in losses if not math.isnan(loss))
        self.tokens, self.since = 0, now
        self.sums.zero_()
        self.counts.zero_()
        return f"{rate:,.0f} tokens/s  loss {shown}"
