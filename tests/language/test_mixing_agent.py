"""The mixing agent: its mixtures are mixtures, it looks back only, and it learns from stored runs what can be learned."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from latewood.core.errors import CheckpointError, ConfigurationError, DataError
from latewood.core.seeding import seeded
from latewood.language.mixing_agent.cql import (
    AgentRecipe,
    actor_loss,
    batch_of,
    bootstrapped,
    conservative_q,
    critic_loss,
    soft_maximum,
    warm_start,
)
from latewood.language.mixing_agent.environment import affordable, traces
from latewood.language.mixing_agent.policy import Actor, Critics, MixingAgent, Shape, history, load_agent
from latewood.language.mixing_agent.simulator import Simulator
from latewood.language.mixing_agent.trajectories import Domains, Trajectories, Trajectory, returns, sample_mixtures

SIX = Simulator().domains
TWO = Domains(("prose", "sums"), (0, 1))
SMALL = {"transformer": Shape(width=16, layers=2, heads=2), "mlp": Shape("mlp", width=32)}

each_size = pytest.mark.parametrize("shape", SMALL.values(), ids=SMALL)


def simulated(count: int = 30, seed: int = 0) -> Trajectories:
    world = Simulator()
    mixtures = sample_mixtures(SIX, world.steps, count, seed=seed)
    return Trajectories.of(SIX, [world.run(lambda actions, _, m=m: m[len(actions)]) for m in mixtures])  # type: ignore[misc]


def untrained(shape: Shape, domains: Domains = SIX, seed: int = 0) -> MixingAgent:
    torch.manual_seed(seed)
    return MixingAgent(Actor(len(domains), shape), domains, torch.tensor([0.1, 0.2]))


def run_of(agent: MixingAgent) -> Trajectory:
    world = Simulator()
    return world.run(lambda actions, feedback: agent.act(actions, feedback, world.steps))


# 1


@each_size
def test_every_action_is_a_mixture_and_masked_domains_get_exactly_nothing(shape: Shape) -> None:
    agent = untrained(shape)
    data = simulated(5)
    mask = torch.tensor([True, False, True, True, False, True])
    for run, steps in product(range(5), range(8)):
        for allowed in (None, mask):
            action = agent.act(data.actions[run, :steps], 100 * data.feedback[run, : steps + 1], 8, allowed)
            assert bool((action >= 0).all()) and abs(float(action.sum()) - 1) < 1e-6
            assert allowed is None or (action[~mask].tolist() == [0, 0] and bool((action[mask] > 0).all()))


def test_sampled_mixtures_are_mixtures_and_cover_the_share_of_the_target_field() -> None:
    mixtures = torch.stack(sample_mixtures(SIX, 8, 64, natural=[0.3, 0.2, 0.2, 0.1, 0.1, 0.1]))
    assert mixtures.shape == (64, 8, 6) and bool((mixtures >= 0).all())
    assert torch.allclose(mixtures.sum(2), torch.ones(64, 8).double())
    target = mixtures[..., 3:].sum(2).flatten()
    assert all(bool(((target >= low) & (target < low + 0.1)).any()) for low in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8))
    assert torch.allclose(mixtures[0, 5], torch.tensor([0.3, 0.2, 0.2, 0.1, 0.1, 0.1]).double())
    changing = (mixtures[:, 0] != mixtures[:, 7]).any(1)
    assert 40 < int(changing.sum()) < 60


# 2


@each_size
def test_an_action_does_not_depend_on_what_comes_at_or_after_its_step(shape: Shape) -> None:
    data = simulated(2)
    torch.manual_seed(0)
    actor, critics = Actor(6, shape), Critics(6, shape)
    for step in range(8):
        actions, feedback = data.actions.clone(), data.feedback.clone()
        actions[:, step:] = actions[:, step:].flip(-1)
        feedback[:, step + 1 :] += 3.0
        for network in (actor, lambda tokens: torch.cat(critics.states(tokens), -1)):
            before = network(history(data.actions, data.feedback, 8))
            after = network(history(actions, feedback, 8))
            assert torch.equal(before[:, : step + 1], after[:, : step + 1])
            assert not torch.equal(before[:, step + 1], after[:, step + 1])


# 3


def test_without_penalty_the_critics_loss_is_the_squared_error_to_one_bootstrapped_step() -> None:
    data, recipe = simulated(), AgentRecipe(SMALL["mlp"], alpha=0.0)
    torch.manual_seed(0)
    actor, critics = Actor(6, recipe.shape), Critics(6, recipe.shape)
    targets = (Actor(6, recipe.shape), Critics(6, recipe.shape))
    batch = batch_of(data, data.scale)
    values = critics(batch.tokens[:, :-1], batch.actions)
    with torch.no_grad():
        expected = batch.rewards.clone()
        expected[:, :-1] += recipe.gamma * targets[1](batch.tokens, targets[0](batch.tokens)).amin(0)[:, 1:-1]
    assert torch.allclose(bootstrapped(targets, batch, recipe.gamma), expected)
    plain = sum(((value - expected) ** 2).mean() / 2 for value in values)
    assert torch.allclose(critic_loss(critics, actor, targets, batch, recipe), torch.as_tensor(plain))
    with seeded("same"):
        penalty = sum(
            (soft_maximum(critics, actor, [s[:, :-1] for s in critics.states(batch.tokens)], batch, recipe) - values).mean(
                (1, 2)
            )
        )
    with seeded("same"):
        whole = critic_loss(critics, actor, targets, batch, replace(recipe, alpha=0.5))
    assert torch.allclose(whole, plain + 0.5 * penalty)


def test_without_penalty_nothing_is_drawn_for_it() -> None:
    data, recipe = simulated(), AgentRecipe(SMALL["mlp"], alpha=0.0, steps=3, warm_steps=20)
    start = warm_start(data, recipe)
    one, other = (conservative_q(data, start, replace(recipe, samples=m, concentration=c)) for m, c in ((1, 5.0), (7, 50.0)))
    for network, same in zip(one, other, strict=True):
        assert all(torch.equal(value, same.state_dict()[name]) for name, value in network.state_dict().items())


def test_each_loss_moves_only_its_own_network() -> None:
    data, recipe = simulated(8), AgentRecipe(SMALL["mlp"])
    torch.manual_seed(0)
    actor, critics = Actor(6, recipe.shape), Critics(6, recipe.shape)
    batch = batch_of(data, data.scale)
    critic_loss(critics, actor, (copy.deepcopy(actor), copy.deepcopy(critics)), batch, recipe).backward()
    assert all(p.grad is None for p in actor.parameters()) and any(p.grad is not None for p in critics.parameters())
    before = copy.deepcopy(critics.state_dict())
    actor_loss(actor, critics, batch, recipe).backward()
    assert any(p.grad is not None for p in actor.parameters())
    assert all(torch.equal(value, before[name]) for name, value in critics.state_dict().items())


def test_the_soft_maximum_is_the_log_of_an_integral_over_all_mixtures() -> None:
    """Where Q does not depend on the action, the integral is that constant times the volume of the simplex, 1 / (K - 1)!."""
    data, recipe = simulated(4), AgentRecipe(SMALL["mlp"], samples=4000, concentration=4.0)
    torch.manual_seed(0)
    actor, critics = Actor(6, recipe.shape), Critics(6, recipe.shape)
    for critic in (critics.one, critics.other):
        torch.nn.init.zeros_(critic.of_action.weight)
    batch = batch_of(data, data.scale)
    states = [state[:, :-1] for state in critics.states(batch.tokens)]
    values = critics.values(states, batch.actions[..., None, :])[..., 0]
    estimate = soft_maximum(critics, actor, states, batch, recipe)
    volume = -torch.lgamma(torch.tensor(6.0))
    assert torch.allclose(estimate.mean(), (values + volume).mean(), atol=0.1)


def noisy(count: int = 24, steps: int = 4) -> Trajectories:
    """Mixtures around a share of 0.3 of the target field; what they bring is chance alone."""
    chance = torch.Generator().manual_seed(5)
    shares = (0.3 + 0.05 * torch.randn(count, steps, generator=chance)).clamp(0.05, 0.95).double()
    feedback = torch.randn(count, steps + 1, 2, generator=chance).double().cumsum(1)
    return Trajectories(TWO, torch.stack([1 - shares, shares], -1), feedback)


def test_the_penalty_keeps_values_of_actions_like_none_in_the_data_below_those_in_it() -> None:
    data = noisy()
    gaps, excess = {}, {}
    for alpha in (0.0, 0.1):
        recipe = AgentRecipe(SMALL["mlp"], alpha=alpha, steps=150, warm_steps=40, batch_size=64, samples=5)
        recipe = replace(recipe, critic_lr=5e-3, actor_lr=2e-3, tau=0.05)
        _, critics = conservative_q(data, warm_start(data, recipe), recipe)
        batch = batch_of(data, data.scale)
        with torch.no_grad(), seeded("uniform"):
            states = [state[:, :-1] for state in critics.states(batch.tokens)]
            uniform = torch.distributions.Dirichlet(torch.ones(2)).sample((24, 4, 64))
            held = critics.values(states, batch.actions[..., None, :])[..., 0].amin(0)
            gaps[alpha] = float(held.mean() - critics.values(states, uniform).amin(0).mean())
            excess[alpha] = float((held - returns(batch.rewards, recipe.gamma)).mean())
    assert gaps[0.1] > 0
    assert gaps[0.1] > gaps[0.0]
    assert excess[0.1] <= excess[0.0]


# 4


def chain(shares: tuple[float, ...]) -> Trajectory:
    """Two skills: the target's share builds up one and wears down the other, so that what is best depends on both."""
    source, target = 0.6, 0.0
    feedback = [[source, target]]
    for share in shares:
        source, target = source + 0.5 * (1 - share) * (1 - source) - 0.5 * share * source, target + 0.6 * share * (1 - target)
        feedback.append([source, target])
    actions = [[1 - share, share] for share in shares]
    return Trajectory(torch.tensor(actions, dtype=torch.float64), torch.tensor(feedback, dtype=torch.float64))


def test_with_every_sequence_in_the_data_the_greedy_choice_is_the_best_of_all() -> None:
    grid = (0.0, 0.25, 0.5, 0.75, 1.0)
    data = Trajectories.of(TWO, [chain(shares) for shares in product(grid, repeat=3)])
    recipe = AgentRecipe(SMALL["mlp"], gamma=1.0, alpha=0.0, anchor=0.0, steps=600, warm_steps=40, batch_size=96)
    recipe = replace(recipe, actor_lr=3e-3, critic_lr=3e-3, tau=0.05)
    actor, critics = conservative_q(data, warm_start(data, recipe), recipe)
    improved = data.rewards(scale=data.scale).sum(1)
    best = tuple(product(grid, repeat=3))[int(improved.argmax())]
    assert len(set(best)) > 1
    choices = torch.tensor([[1 - share, share] for share in grid])
    greedy: tuple[float, ...] = ()
    for _ in range(3):
        so_far = chain(greedy) if greedy else None
        actions = so_far.actions if so_far else torch.empty(0, 2)
        feedback = so_far.feedback if so_far else torch.tensor([[0.6, 0.0]], dtype=torch.float64)
        tokens = history(actions, (feedback - feedback[:1]) / data.scale, 3)[None]
        with torch.no_grad():
            values = critics.values([s[:, -1:] for s in critics.states(tokens)], choices[None, None]).amin(0)[0, 0]
        greedy = (*greedy, grid[int(values.argmax())])
    assert greedy == best
    agent = MixingAgent(actor, TWO, data.scale)
    shares: tuple[float, ...] = ()
    for _ in range(3):
        so_far = chain(shares) if shares else None
        actions = so_far.actions if so_far else torch.empty(0, 2)
        feedback = so_far.feedback if so_far else torch.tensor([[0.6, 0.0]])
        shares = (*shares, float(agent.act(actions, feedback, 3)[1]))
    assert [round(4 * share) / 4 for share in shares] == list(best)


# 5


@each_size
def test_the_supervised_start_alone_reproduces_a_constant_mixture(shape: Shape) -> None:
    mixture = torch.tensor([0.05, 0.3, 0.1, 0.25, 0.1, 0.2], dtype=torch.float64)
    chance = torch.Generator().manual_seed(0)
    feedback = torch.randn(20, 9, 2, generator=chance).double().cumsum(1)
    data = Trajectories(SIX, mixture.expand(20, 8, 6), feedback)
    agent = MixingAgent(warm_start(data, AgentRecipe(shape, warm_steps=300)), SIX, data.scale)
    for step in range(8):
        action = agent.act(data.actions[0, :step], feedback[0, : step + 1], 8)
        assert float((mixture * (mixture / action).log()).sum()) < 1e-2


# 8


@each_size
def test_a_constant_added_to_the_feedback_or_a_field_in_other_units_changes_no_action(shape: Shape) -> None:
    data = simulated(20)
    recipe = AgentRecipe(shape, warm_steps=40, steps=5)
    shift, units = torch.tensor([-3.0, 7.0]).double(), torch.tensor([4.0, 0.125]).double()
    other = Trajectories(SIX, data.actions, data.feedback * units + shift)
    actions = []
    for given in (data, other):
        actor, _ = conservative_q(given, warm_start(given, recipe), recipe)
        agent = MixingAgent(actor, SIX, given.scale)
        actions.append(torch.stack([agent.act(given.actions[0, :t], given.feedback[0, : t + 1], 8) for t in range(8)]))
    assert torch.allclose(*actions, atol=1e-4)
    agent = MixingAgent(actor, SIX, data.scale)
    shifted = torch.stack([agent.act(data.actions[0, :t], data.feedback[0, : t + 1] - 9.0, 8) for t in range(8)])
    plain = torch.stack([agent.act(data.actions[0, :t], data.feedback[0, : t + 1], 8) for t in range(8)])
    assert torch.allclose(shifted, plain, atol=1e-6)


def test_rewards_are_the_weighted_improvement_of_each_step() -> None:
    data = simulated(3)
    rewards = data.rewards((2.0, 0.5), data.scale)
    whole = ((data.feedback[:, -1] - data.feedback[:, 0]) / data.scale) @ torch.tensor([2.0, 0.5]).double()
    assert torch.allclose(rewards.sum(1), whole)
    assert torch.allclose(returns(rewards, 1.0)[:, 0], whole)


def test_feedback_in_which_nothing_changes_is_refused() -> None:
    data = simulated(3)
    still = Trajectories(SIX, data.actions, data.feedback * torch.tensor([1.0, 0.0]).double())
    with pytest.raises(DataError, match="nothing to learn"):
        _ = still.scale


# On disk, and among other domains


def test_trajectories_come_back_from_disk_as_they_were(tmp_path: Path) -> None:
    data = simulated(3)
    data.save(tmp_path / "runs")
    back = Trajectories.load(tmp_path / "runs")
    assert torch.equal(back.actions, data.actions) and torch.equal(back.feedback, data.feedback) and back.domains == SIX
    assert not list((tmp_path / "runs").glob("*.p*"))
    with pytest.raises(CheckpointError, match="no mixing agent"):
        load_agent(tmp_path / "runs")


@each_size
def test_a_saved_agent_acts_the_same_and_a_damaged_one_is_told(tmp_path: Path, shape: Shape) -> None:
    agent = untrained(shape, replace(SIX, centroids=torch.rand(6, 9)))
    agent.save(tmp_path / "agent")
    back = load_agent(tmp_path / "agent")
    assert back.fingerprint() == agent.fingerprint()
    assert torch.equal(run_of(agent).actions, run_of(back).actions)
    assert back.domains.centroids is not None and agent.domains.centroids is not None
    assert torch.equal(back.domains.centroids, agent.domains.centroids)
    blob = tmp_path / "agent" / "state.safetensors"
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="damaged"):
        load_agent(tmp_path / "agent")


def test_strange_domains_take_the_nearest_slots_of_their_own_field() -> None:
    slots = Domains(("a", "b", "c", "d"), (0, 0, 1, 1), torch.eye(4).double())
    agent = untrained(SMALL["mlp"], slots)
    near_b = Domains(("x", "y"), (0, 1), torch.tensor([[0.1, 0.9, 0, 0], [0.9, 0, 0.1, 0]]).double())
    assert agent.slots(near_b).tolist() == [1, 2]
    both_near_b = Domains(("x", "y", "z"), (0, 0, 1), torch.tensor([[0, 1, 0, 0], [0.2, 0.8, 0, 0], [0, 0, 0, 1]]).double())
    assert agent.slots(both_near_b).tolist() == [1, 0, 3]
    three = Domains(
        ("x", "y", "w", "z"), (0, 0, 0, 1), torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]).double()
    )
    assert agent.slots(three).tolist() == [0, 1, 1, 3]
    assert agent.slots(Domains(("d", "b"), (1, 0))).tolist() == [3, 1]
    with pytest.raises(ConfigurationError, match="frequencies"):
        agent.slots(Domains(("x", "y"), (0, 1)))


def test_what_a_domain_lacks_goes_to_the_others_and_an_empty_one_gets_nothing() -> None:
    shares = torch.tensor([0.9, 0.05, 0.05], dtype=torch.float64)
    assert affordable(shares, torch.tensor([0.0, 500, 500]), 100).tolist() == [0, 0.5, 0.5]
    found = affordable(shares, torch.tensor([21.0, 31.0, 500.0]), 100)
    assert torch.allclose(found, torch.tensor([0.2, 0.3, 0.5]).double())
    only = affordable(torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64), torch.tensor([51.0, 26.0, 76.0]), 100)
    assert torch.allclose(only, torch.tensor([0.5, 0.125, 0.375]).double())


def test_text_that_is_shared_with_rows_kept_apart_is_found() -> None:
    from latewood.core.data import Data

    chance = torch.Generator().manual_seed(0)
    rows = torch.randint(256, (50, 64), generator=chance, dtype=torch.int32)
    held = torch.randint(256, (5, 64), generator=chance, dtype=torch.int32)
    rows[7, 10:42] = held[3, 30:62]
    rows[9, 10:41] = held[3, 30:61]
    found: Tensor = traces(Data(tokens=rows), Data(tokens=held))
    assert found.nonzero().flatten().tolist() == [7]
