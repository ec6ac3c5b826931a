"""Learning a policy from stored trajectories alone: a supervised start, then conservative Q-learning (Kumar et al., 2020)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Dirichlet

from latewood.core.errors import ConfigurationError
from latewood.core.seeding import seeded
from latewood.language.mixing_agent.policy import Actor, Critics, Shape, history
from latewood.language.mixing_agent.trajectories import Trajectories, normalised, returns

#: After so many steps of the supervised start the loss on the trajectories kept apart is looked at, and so often in vain
#: before it ends.
_LOOK, _PATIENCE = 20, 10
#: How large a part of the trajectories is kept apart.
_KEPT_APART = 0.1
_SMALLEST = 1e-6


@dataclass(frozen=True)
class AgentRecipe:
    """How an agent is trained.

    ``weights`` are those of the fields in the reward; ``best`` is the part of trajectories, by return, that the supervised
    start imitates for at most ``warm_steps``. ``steps`` of conservative Q-learning follow, on ``batch_size`` transitions
    each: ``alpha`` weighs the penalty (0: plain actor-critic), for which ``samples`` actions are drawn from each of three
    distributions, those around the policy with ``concentration``; ``anchor`` weighs imitation of the data in the actor's
    loss; ``tau`` is how fast the target networks follow.

    ``alpha`` is in units of the reward: the penalty may lift the value of every step by as much. Mixtures of a stored run
    resemble each other, so that its next one is nearly known and the penalty seldom satisfied; with 1, on the simulator,
    the critics expected 14 of a run that brought 2.

    >>> AgentRecipe(alpha=0.0).gamma
    0.99
    """

    shape: Shape = field(default_factory=Shape)
    weights: tuple[float, float] = (1.0, 1.0)
    gamma: float = 0.99
    best: float = 0.3
    warm_steps: int = 2000
    warm_lr: float = 1e-3
    steps: int = 2000
    batch_size: int = 256
    actor_lr: float = 1e-4
    critic_lr: float = 3e-4
    alpha: float = 0.01
    samples: int = 10
    concentration: float = 30.0
    anchor: float = 0.1
    tau: float = 0.005

    def __post_init__(self) -> None:
        if not (0 < self.gamma <= 1 and 0 < self.best <= 1 and 0 < self.tau <= 1):
            raise ConfigurationError("gamma, best and tau must lie above 0 and at most at 1.")
        if min(self.alpha, self.anchor, self.concentration) < 0 or min(self.samples, self.batch_size) < 1:
            raise ConfigurationError("alpha, anchor and concentration must be at least 0, samples and batch_size at least 1.")


class Batch(NamedTuple):
    """Whole trajectories: ``tokens`` (n, T + 1, ...) before each action and after the last, ``actions`` (n, T, K) and
    ``rewards`` (n, T). Each gives T transitions, the last of which ends."""

    tokens: Tensor
    actions: Tensor
    rewards: Tensor


def batch_of(data: Trajectories, scale: Tensor, weights: tuple[float, float] = (1.0, 1.0)) -> Batch:
    """Trajectories in the form that the networks read, float32."""
    tokens = history(data.actions, normalised(data.feedback, scale), data.steps)
    return Batch(tokens, data.actions.float(), data.rewards(weights, scale).float())


def warm_start(data: Trajectories, recipe: AgentRecipe, *, seed: int = 0) -> Actor:
    """An actor that imitates the trajectories with the highest returns, until those kept apart are foretold no better."""
    with seeded("warm start", seed):
        actor = Actor(len(data.domains), recipe.shape)
        batch = batch_of(data, data.scale, recipe.weights)
        order = returns(batch.rewards, recipe.gamma)[:, 0].argsort(descending=True)
        chosen = order[: max(1, round(recipe.best * len(data)))]
        chosen = chosen[torch.randperm(len(chosen))]
        apart = round(_KEPT_APART * len(chosen)) or min(1, len(chosen) - 1)
        _imitate(actor, _rows(batch, chosen[apart:]), _rows(batch, chosen[:apart] if apart else chosen), recipe)
    return actor


def _imitate(actor: Actor, train: Batch, apart: Batch, recipe: AgentRecipe) -> None:
    optimizer = torch.optim.Adam(actor.parameters(), recipe.warm_lr, foreach=True)
    least, best, vain = math.inf, copy.deepcopy(actor.state_dict()), 0
    for step in range(recipe.warm_steps):
        rows = torch.randint(len(train.actions), (_runs_in_a_batch(train, recipe),))
        _descend(optimizer, imitation(actor, _rows(train, rows)))
        if (step + 1) % _LOOK == 0:
            with torch.no_grad():
                loss = float(imitation(actor, apart))
            vain = 0 if loss < least else vain + 1
            if loss < least:
                least, best = loss, copy.deepcopy(actor.state_dict())
            if vain == _PATIENCE:
                break
    actor.load_state_dict(best)


def imitation(actor: Actor, batch: Batch) -> Tensor:
    """The cross-entropy of the stored mixtures and those of the actor, a scalar."""
    return _cross_entropy(batch.actions, actor.logits(batch.tokens[:, :-1]))


def _cross_entropy(shares: Tensor, logits: Tensor) -> Tensor:
    return -(shares * logits.log_softmax(-1)).sum(-1).mean()


def conservative_q(data: Trajectories, start: Actor, recipe: AgentRecipe, *, seed: int = 0) -> tuple[Actor, Critics]:
    """Go on from ``start`` (which stays as it is) by conservative Q-learning; the actor and its critics."""
    with seeded("conservative Q-learning", seed):
        actor, critics = copy.deepcopy(start).requires_grad_(True).train(), Critics(len(data.domains), recipe.shape)
        targets = (copy.deepcopy(actor), copy.deepcopy(critics))
        of_actor = torch.optim.Adam(actor.parameters(), recipe.actor_lr, foreach=True)
        of_critics = torch.optim.Adam(critics.parameters(), recipe.critic_lr, foreach=True)
        everything = batch_of(data, data.scale, recipe.weights)
        for _ in range(recipe.steps):
            batch = _rows(everything, torch.randint(len(data), (_runs_in_a_batch(everything, recipe),)))
            _descend(of_critics, critic_loss(critics, actor, targets, batch, recipe))
            with _constant(critics):
                _descend(of_actor, actor_loss(actor, critics, batch, recipe))
            for kept, moving in zip(targets, (actor, critics), strict=True):
                _follow(kept, moving, recipe.tau)
    return actor.eval(), critics.eval()


def critic_loss(critics: Critics, actor: Actor, targets: tuple[Actor, Critics], batch: Batch, recipe: AgentRecipe) -> Tensor:
    """Half the squared error to one step of bootstrapping, and ``alpha`` times the penalty; summed over both critics."""
    states = [state[:, :-1] for state in critics.states(batch.tokens)]
    values = critics.values(states, batch.actions[..., None, :])[..., 0]
    error = (values - bootstrapped(targets, batch, recipe.gamma)).square().mean((1, 2)).sum() / 2
    if recipe.alpha == 0:
        return error
    return error + recipe.alpha * (soft_maximum(critics, actor, states, batch, recipe) - values).mean((1, 2)).sum()


@torch.no_grad()
def bootstrapped(targets: tuple[Actor, Critics], batch: Batch, gamma: float) -> Tensor:
    """The reward and, unless it was the last step, what the target networks hold possible from there on: ``(n, T)``."""
    actor, critics = targets
    following: Tensor = critics(batch.tokens, actor(batch.tokens)).amin(0)[:, 1:]
    goes_on = torch.ones(following.shape[1])
    goes_on[-1] = 0
    return batch.rewards + gamma * goes_on * following


def soft_maximum(critics: Critics, actor: Actor, states: list[Tensor], batch: Batch, recipe: AgentRecipe) -> Tensor:
    """The log of the integral of exp Q over all mixtures, ``(2, n, T)``, estimated by importance sampling: from the uniform
    distribution, from around the policy here, and from around the policy in the next state."""
    with torch.no_grad():
        policy = actor(batch.tokens)
        drawn = [_draw(torch.ones_like(batch.actions), recipe.samples)]
        drawn += [_draw(1 + recipe.concentration * at, recipe.samples) for at in (policy[:, :-1], policy[:, 1:])]
        actions = torch.cat([mixtures for mixtures, _ in drawn], -2)
        densities = torch.cat([density for _, density in drawn], -1)
    weighted: Tensor = critics.values(states, actions) - densities
    return weighted.logsumexp(-1) - math.log(actions.shape[-2])


def _draw(parameters: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mixtures ``(n, T, count, K)`` and the logarithms of their densities ``(n, T, count)``."""
    # Its own check of a mixture's sum is finer than the rounding of float32.
    around = Dirichlet(parameters.unsqueeze(-2).expand(*parameters.shape[:-1], count, -1), validate_args=False)
    drawn = around.sample().clamp_min(_SMALLEST)
    drawn = drawn / drawn.sum(-1, keepdim=True)
    return drawn, around.log_prob(drawn)


def actor_loss(actor: Actor, critics: Critics, batch: Batch, recipe: AgentRecipe) -> Tensor:
    """Against the lower critic, with an anchor to the data."""
    tokens = batch.tokens[:, :-1]
    logits = actor.logits(tokens)
    value: Tensor = critics(tokens, logits.softmax(-1)).amin(0).mean()
    return recipe.anchor * _cross_entropy(batch.actions, logits) - value


@contextmanager
def _constant(module: nn.Module) -> Iterator[None]:
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


@torch.no_grad()
def _follow(kept: nn.Module, moving: nn.Module, tau: float) -> None:
    torch._foreach_lerp_(list(kept.parameters()), list(moving.parameters()), tau)


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def _rows(batch: Batch, rows: Tensor) -> Batch:
    return Batch(*(part[rows] for part in batch))


def _runs_in_a_batch(batch: Batch, recipe: AgentRecipe) -> int:
    return max(1, round(recipe.batch_size / batch.actions.shape[1]))
