"""The data mixing agent, from small training runs to a trained policy: collect trajectories, learn from them, compare."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import Tensor

from latewood.core.checkpoint import tensors_of
from latewood.core.data import Data, concat
from latewood.core.errors import ConfigurationError, DataError
from latewood.core.experience import Experience
from latewood.core.seeding import derive_seed, seeded
from latewood.language.learners.data_mixing_agent import DataMixingAgent
from latewood.language.mixing_agent.cql import AgentRecipe, conservative_q, warm_start
from latewood.language.mixing_agent.environment import traces
from latewood.language.mixing_agent.policy import Critics, MixingAgent, history
from latewood.language.mixing_agent.trajectories import (
    FIELDS,
    Trajectories,
    Trajectory,
    normalised,
    returns,
    sample_mixtures,
)
from latewood.language.nets.causal import CausalLM
from latewood.language.recipe import TextRecipe

#: The next shares (K,), given those so far (t, K), the scores (t + 1, fields), and how many steps there will be.
Policy: TypeAlias = Callable[[Tensor, Tensor, int], Tensor] | MixingAgent

_RIDGE = 1e-3
_CANDIDATES, _AVERAGED = 20_000, 100


class Steered(DataMixingAgent):
    """The same loop under a ``policy`` that is no file: a function of the shares so far, the scores, and the number of steps,
    as :meth:`~latewood.language.learners.data_mixing_agent.DataMixingAgent.choose` has them."""

    def __init__(
        self,
        backbone: CausalLM,
        policy: Policy,
        steps_per_action: int = 20,
        floor: float = 1e-3,
        held_out: int = 64,
        recipe: TextRecipe = TextRecipe(),
    ) -> None:
        super().__init__(backbone, "", (), steps_per_action, floor, held_out=held_out, recipe=recipe)
        self.policy = policy

    def mixer(self) -> MixingAgent | None:
        return self.policy if isinstance(self.policy, MixingAgent) else None

    def gather(self, experience: Experience) -> None:
        """Take in an arrival's domains without training on it."""
        self._gather(experience)

    def choose(self, actions: Tensor, feedback: Tensor, steps: int) -> Tensor:
        if isinstance(self.policy, MixingAgent):
            return super().choose(actions, feedback, steps)
        return self.policy(actions, feedback, steps)

    def check_apart(self) -> None:
        """Raise :class:`~latewood.core.errors.DataError` if text that is kept apart occurs in any domain's training rows."""
        apart = concat(*(domain.apart for domain in self._tables.values()))
        for name, domain in self._tables.items():
            if count := int(traces(domain.train, apart).sum()):
                raise DataError(f"{count} training rows of {name!r} hold text that the model is scored on.")

    @property
    def natural(self) -> list[float]:
        """The share of each domain if all text were mixed by its size."""
        sizes = self._sizes()
        return (sizes / sizes.sum()).tolist()


@dataclass(frozen=True)
class Setting:
    """One task of continual pre-training: text of the ``source`` field and of the ``target`` field (columns ``tokens`` and
    ``source``), and how it goes on. ``seed`` decides the order of the rows and which are kept apart."""

    source: Data
    target: Data
    steps: int = 8
    steps_per_action: int = 20
    held_out: int = 64
    recipe: TextRecipe = field(default_factory=TextRecipe)
    seed: int = 0

    def run(self, model: CausalLM, policy: Policy, *, floor: float = 0.0) -> Steered:
        """Train ``model`` under a policy; the learner, which knows the trajectory."""
        learner = self._began(model, policy, floor)
        learner.learn(Experience(1, self.target))
        return learner

    def look(self, model: CausalLM) -> Steered:
        """The learner that :meth:`run` would train, with all domains and rows, but without a step."""
        learner = self._began(model, _no_policy, 0.0)
        learner.gather(Experience(1, self.target))
        return learner

    def _began(self, model: CausalLM, policy: Policy, floor: float) -> Steered:
        recipe = replace(self.recipe, steps=self.steps * self.steps_per_action)
        learner = Steered(model, policy, self.steps_per_action, floor, self.held_out, recipe)
        learner.generator.manual_seed(derive_seed(self.seed, "mixing"))
        learner.learn(Experience(0, self.source))
        return learner


def collect(setting: Setting, proxy: Callable[[], CausalLM], count: int = 64, *, seed: int = 0) -> Trajectories:
    """Train ``count`` proxies, each under another random sequence of mixtures, and keep what came of it.

    ``proxy`` gives a fresh copy of one and the same small model with each call. Errors:
    :class:`~latewood.core.errors.DataError` if two proxies begin from different weights, or text that they are scored on
    occurs in any domain.
    """
    first = setting.look(proxy())
    first.check_apart()
    if first.domains is None:
        raise ConfigurationError("The source text and the target text are of the same sources, so there is nothing to mix.")
    mixtures = sample_mixtures(first.domains, setting.steps, count, natural=first.natural, seed=seed)
    began = fingerprint(first.backbone)
    runs = []
    for number, mixture in enumerate(mixtures):
        model = proxy()
        if fingerprint(model) != began:
            raise DataError(f"Proxy {number} begins from other weights than the first; all must be copies of one model.")
        runs.append(setting.run(model, scheduled(mixture)).trajectory)
    return Trajectories.of(first.domains, runs)


def scheduled(mixtures: Tensor) -> Policy:
    """A policy that knows beforehand what it will say: ``mixtures`` (steps, K), or one for all steps, ``(K,)``."""

    def policy(actions: Tensor, feedback: Tensor, steps: int) -> Tensor:
        return mixtures.double() if mixtures.dim() == 1 else mixtures[len(actions)].double()

    return policy


def fingerprint(model: CausalLM) -> str:
    """A hash of a model's weights."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in tensors_of(model).items():
        digest.update(f"{name} {tuple(value.shape)};".encode() + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Trained:
    """An agent with what it was made from: the actor of the supervised start, and the critics."""

    agent: MixingAgent
    start: MixingAgent
    critics: Critics

    @torch.no_grad()
    def expected(self, steps: int) -> float:
        """The discounted return that the critics expect of the agent at the beginning of a run of ``steps`` steps."""
        tokens = history(torch.empty(0, len(self.agent.domains)), torch.zeros(1, len(FIELDS)), steps)[None]
        return float(self.critics(tokens, self.agent.actor(tokens)).amin(0))

    def realised(self, run: Trajectory, recipe: AgentRecipe) -> float:
        """The discounted return of a run, in the same units."""
        rewards = Trajectories.of(self.agent.domains, [run]).rewards(recipe.weights, self.agent.scale)
        return float(returns(rewards, recipe.gamma)[0, 0])


def train_agent(trajectories: Trajectories, recipe: AgentRecipe | None = None, *, seed: int = 0) -> Trained:
    """A policy from stored trajectories alone: the supervised start, then conservative Q-learning.

    >>> from latewood.language.mixing_agent import Shape
    >>> from latewood.language.mixing_agent.simulator import Simulator
    >>> world = Simulator()
    >>> runs = [world.run(lambda a, e: m[len(a)]) for m in sample_mixtures(world.domains, world.steps, 20)]
    >>> recipe = AgentRecipe(Shape(size="mlp", width=8), warm_steps=20, steps=5)
    >>> trained = train_agent(Trajectories.of(world.domains, runs), recipe)
    >>> len(trained.agent.act(runs[0].actions[:3], runs[0].feedback[:4], steps=8))
    6
    """
    recipe = recipe or AgentRecipe()
    start = warm_start(trajectories, recipe, seed=seed)
    actor, critics = conservative_q(trajectories, start, recipe, seed=seed)
    domains, scale = trajectories.domains, trajectories.scale
    return Trained(MixingAgent(actor, domains, scale), MixingAgent(start, domains, scale), critics)


def balance(run: Trajectory, scale: Tensor) -> float:
    """The mean over fields of what a run improved from its beginning to its end, in units of ``scale`` (fields,)."""
    return float(normalised(run.feedback, scale)[-1].mean())


def best_constant(trajectories: Trajectories, weights: tuple[float, float] = (1.0, 1.0), *, seed: int = 0) -> Tensor:
    """The best constant mixture by a regression on the same runs, in the manner of RegMix (arXiv 2407.01492), ``(K,)``.

    Ridge regression of the improvement at the end on the mean mixture of each run, its squares and products; of random
    mixtures, those that it holds the best are averaged.

    >>> from latewood.language.mixing_agent.simulator import Simulator
    >>> world = Simulator()
    >>> runs = [world.run(lambda a, e: m[len(a)]) for m in sample_mixtures(world.domains, world.steps, 100)]
    >>> found = best_constant(Trajectories.of(world.domains, runs))
    >>> bool(found[:3].sum() > found[3:].sum())
    True
    """
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import PolynomialFeatures

    improvement = normalised(trajectories.feedback, trajectories.scale)[:, -1] @ torch.tensor(weights, dtype=torch.float64)
    terms = PolynomialFeatures(degree=2)
    model = Ridge(_RIDGE).fit(terms.fit_transform(trajectories.actions.mean(1).numpy()), improvement.numpy())
    with seeded("candidates", seed):
        uniform = torch.distributions.Dirichlet(torch.ones(len(trajectories.domains), dtype=torch.float64))
        candidates = uniform.sample((_CANDIDATES,))
    foretold = torch.from_numpy(model.predict(terms.transform(candidates.numpy())))
    return candidates[foretold.topk(_AVERAGED).indices].mean(0)


def _no_policy(actions: Tensor, feedback: Tensor, steps: int) -> Tensor:
    raise ConfigurationError("This learner is only looked at.")
