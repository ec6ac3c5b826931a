"""From small runs to an agent: all begin alike, what they are scored on is in no training text, regression finds its way."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError, DataError
from latewood.language.mixing_agent import AgentRecipe, Shape, Trajectories, sample_mixtures
from latewood.language.mixing_agent.simulator import Simulator, simplex_grid
from latewood.language.nets.causal import CausalLM, causal
from latewood.language.recipe import TextRecipe
from latewood.studies import mixing_agent
from latewood.studies.mixing_agent import Setting, balance, best_constant, collect, fingerprint, scheduled, train_agent

LENGTH = 48
NAMES = ("en", "fr", "sums", "code")


def text(**counts: int) -> Data:
    rows = []
    for name, count in counts.items():
        place = NAMES.index(name)
        chance = torch.Generator().manual_seed(place)
        rows.append(torch.randint(50 * place, 50 * place + 9 + 9 * place, (count, LENGTH), generator=chance).int())
    return Data(tokens=torch.cat(rows), source=[name for name, count in counts.items() for _ in range(count)])


def setting(**changes: Any) -> Setting:
    given: dict[str, Any] = {"steps": 3, "steps_per_action": 3, "held_out": 8, "recipe": TextRecipe(batch_size=8, lr=0.01)}
    return Setting(**{"source": text(en=120, fr=60), "target": text(sums=80, code=60), **given, **changes})


def model(seed: int = 0, width: int = 16) -> CausalLM:
    torch.manual_seed(seed)
    return causal(text(en=1), layers=1, width=width, heads=2)


# 9


def test_all_proxies_begin_from_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    began: list[str] = []
    run = Setting.run

    def noting(self: Setting, model: CausalLM, *rest: Any, **more: Any) -> Any:
        began.append(fingerprint(model))
        learner = run(self, model, *rest, **more)
        assert fingerprint(model) != began[-1]
        return learner

    monkeypatch.setattr(Setting, "run", noting)
    data = collect(setting(), model, 4)
    assert len(began) == 4 and len(set(began)) == 1
    assert bool((data.feedback[:, 0] == data.feedback[0, 0]).all())
    assert len({tuple(run[-1].tolist()) for run in data.feedback}) == 4


def test_a_proxy_with_other_weights_is_refused() -> None:
    seeds = iter(range(10))
    with pytest.raises(DataError, match="other weights"):
        collect(setting(), lambda: model(next(seeds)), 3)


def test_no_text_that_proxies_are_scored_on_occurs_in_any_domain() -> None:
    source, target = text(en=120, fr=60), text(sums=80, code=60)
    tokens = target.tensor("tokens").clone()
    # Half of the rows of code quote others of their own kind, of the sums, and of English.
    tokens[80:95, 3:38] = tokens[100:115, 3:38]
    tokens[95:100, :40] = tokens[:5, 8:]
    tokens[115:130, 2:36] = source.tensor("tokens")[:15, 2:36]
    quoting = setting(source=source, target=Data(tokens=tokens, source=target["source"]), held_out=20)
    learner = quoting.look(model())
    learner.check_apart()
    windows = {
        tuple(row[start : start + 32])
        for domain in learner._tables.values()
        for row in domain.apart.tensor("tokens").tolist()
        for start in range(LENGTH - 31)
    }
    trained = [row for domain in learner._tables.values() for row in domain.train.tensor("tokens").tolist()]
    assert not [row for row in trained for start in range(LENGTH - 31) if tuple(row[start : start + 32]) in windows]
    assert len(trained) < 320 - 4 * 20
    code = learner._tables["code"]
    learner._tables["code"] = code._replace(train=code.apart)
    with pytest.raises(DataError, match="scored on"):
        learner.check_apart()


# Collecting, training, comparing


def test_what_is_collected_is_what_was_sampled_and_the_same_again() -> None:
    data = collect(setting(), model, 5, seed=3)
    assert data.domains.names == NAMES and data.domains.fields == (0, 0, 1, 1)
    assert data.actions.shape == (5, 3, 4) and data.feedback.shape == (5, 4, 2)
    sampled = sample_mixtures(data.domains, 3, 5, natural=setting().look(model()).natural, seed=3)
    assert torch.allclose(data.actions, torch.stack(sampled))
    again = collect(setting(), model, 5, seed=3)
    assert torch.equal(data.feedback, again.feedback)


def test_an_agent_trained_on_proxies_steers_a_larger_model_on_other_text() -> None:
    data = collect(setting(), model, 6)
    trained = train_agent(data, AgentRecipe(Shape("mlp", width=16), warm_steps=40, steps=5))
    other = setting(source=text(fr=100), steps=4, seed=1)
    learner = other.run(model(1, width=32), trained.agent, floor=1e-3)
    run = learner.trajectory
    assert learner.domains is not None and learner.domains.names == ("fr", "sums", "code")
    assert run.actions.shape == (4, 3) and torch.allclose(run.actions.sum(1), torch.ones(4).double())
    assert float(run.feedback[-1].sum()) > float(run.feedback[0].sum())
    assert abs(balance(run, data.scale) - float(((run.feedback[-1] - run.feedback[0]) / data.scale).mean())) < 1e-9


def test_one_and_the_same_source_on_both_sides_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="nothing to mix"):
        collect(setting(source=text(sums=100), target=text(sums=100)), model, 2)


def test_the_regression_finds_a_mixture_near_the_best_constant_one() -> None:
    world = Simulator()
    runs = [world.run(lambda a, e, m=m: m[len(a)]) for m in sample_mixtures(world.domains, world.steps, 300, seed=1)]  # type: ignore[misc]
    data = Trajectories.of(world.domains, runs)

    def final(mixture: Tensor) -> float:
        return balance(world.run(lambda a, e: scheduled(mixture)(a, e, world.steps)), data.scale)  # type: ignore[operator]

    found = best_constant(data)
    assert abs(float(found.sum()) - 1) < 1e-6 and bool((found >= 0).all())
    random = torch.distributions.Dirichlet(torch.ones(6).double()).sample((50,))
    best = balance(world.best_constant(1 / data.scale), data.scale)
    assert max(0.8 * best, sorted(final(m) for m in random)[40]) < final(found) <= best + 1e-3
    assert torch.equal(found, best_constant(data))


def test_the_best_schedule_of_the_simulator_changes_and_no_constant_mixture_or_random_schedule_is_better() -> None:
    world, weights = Simulator(steps=4), torch.ones(2, dtype=torch.float64)
    best = world.best(weights, parts=4)
    constant = world.best_constant(weights, parts=4)
    assert float((best.actions[0] - best.actions[-1]).abs().max()) > 0.9
    assert float(best.feedback[-1].sum()) > float(constant.feedback[-1].sum()) + 0.1
    chance = torch.Generator().manual_seed(0)
    grid = simplex_grid(6, 4)
    for _ in range(300):
        chosen = grid[torch.randint(len(grid), (4,), generator=chance)]
        run = world.run(lambda a, e, chosen=chosen: chosen[len(a)])  # type: ignore[misc]
        assert float(run.feedback[-1].sum()) <= float(best.feedback[-1].sum())


def test_training_is_repeatable_and_leaves_the_supervised_start_as_it_was() -> None:
    world = Simulator()
    runs = [world.run(lambda a, e, m=m: m[len(a)]) for m in sample_mixtures(world.domains, world.steps, 12)]  # type: ignore[misc]
    data = Trajectories.of(world.domains, runs)
    recipe = AgentRecipe(Shape(width=16, layers=1, heads=2), warm_steps=20, steps=3)
    one, other = train_agent(data, recipe, seed=2), train_agent(data, recipe, seed=2)
    assert one.agent.fingerprint() == other.agent.fingerprint() != one.start.fingerprint()
    start = copy.deepcopy(mixing_agent.warm_start(data, recipe, seed=2))
    assert all(torch.equal(value, start.state_dict()[name]) for name, value in one.start.actor.state_dict().items())
