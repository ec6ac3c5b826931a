"""Data Mixing Agent: Learning to Re-weight Domains for Continual Pre-training"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from statistics import mean, stdev
from typing import TYPE_CHECKING

from latewood.papers.ledger import Claim, Paper, Verdict

if TYPE_CHECKING:
    from torch import Tensor

    from latewood.core.data import Data
    from latewood.language.mixing_agent import AgentRecipe, Trajectories, Trajectory
    from latewood.language.nets.causal import CausalLM
    from latewood.studies.mixing_agent import Setting, Trained

SEEDS = (0, 1, 2)
LENGTH = 64
#: Text of the source field is more plentiful than that of the target field, as it is for a general model.
SOURCE_ROWS, TARGET_ROWS = 6000, 1500
PROXIES = 48


def _recipe(alpha: float | None = None) -> AgentRecipe:
    """Smaller and with higher rates than by default, so that an agent takes half a minute."""
    from latewood.language.mixing_agent import AgentRecipe, Shape

    recipe = AgentRecipe(
        Shape("mlp", width=64), steps=1000, warm_steps=600, batch_size=128, actor_lr=1e-3, critic_lr=1e-3, tau=0.01
    )
    return recipe if alpha is None else replace(recipe, alpha=alpha)


# A world in which the best schedule is known


def _simulator() -> Verdict:
    import torch

    from latewood.language.mixing_agent import Trajectories, sample_mixtures
    from latewood.language.mixing_agent.simulator import Simulator
    from latewood.studies.mixing_agent import scheduled, train_agent

    world = Simulator()
    found: dict[str, list[float]] = {}
    changes = []
    for seed in SEEDS:
        policies = [scheduled(m) for m in sample_mixtures(world.domains, world.steps, 200, seed=seed)]
        runs = [world.run(lambda a, e, policy=policy: policy(a, e, world.steps)) for policy in policies]  # type: ignore[misc]
        data = Trajectories.of(world.domains, runs)
        trained = train_agent(data, _recipe(), seed=seed)
        best = world.best(1 / data.scale)
        compared = {
            "agent": world.run(lambda a, e, agent=trained.agent: agent.act(a, e, world.steps)),  # type: ignore[misc]
            "supervised start": world.run(lambda a, e, agent=trained.start: agent.act(a, e, world.steps)),  # type: ignore[misc]
            "best constant mixture": world.best_constant(1 / data.scale),
            "best schedule": best,
        }
        for name, run in compared.items():
            found.setdefault(name, []).append(_total(run, data.scale))
        found.setdefault("best in the data", []).append(max(_total(run, data.scale) for run in runs))
        changes.append(float((best.actions.amax(0) - best.actions.amin(0)).max()))
    numbers = {name: mean(values) for name, values in found.items()}
    numbers["agent / best schedule"] = numbers["agent"] / numbers["best schedule"]
    numbers["largest change of a share in the best schedule"] = min(changes)
    holds = (
        numbers["agent"] > max(numbers["best constant mixture"], numbers["best in the data"])
        and numbers["agent / best schedule"] >= 0.9
        and bool(torch.tensor(changes).min() > 0.5)
    )
    return Verdict(
        holds,
        numbers,
        f"Improvement of source and target skill in units of the data's deviations, mean of {len(SEEDS)} seeds, 200 random "
        "runs each; it holds if the agent beats the best constant mixture and the best run in the data, and reaches 90 % of "
        "what dynamic programming finds, which changes its shares.",
    )


def _total(run: Trajectory, scale: Tensor) -> float:
    from latewood.studies.mixing_agent import balance

    return 2 * balance(run, scale)


# Language models


def _source(*corpora: str) -> Data:
    from latewood.papers._language import rows

    return rows(*corpora, length=LENGTH, most=SOURCE_ROWS)


def _setting(*source: str, seed: int) -> Setting:
    """Continual pre-training on mathematics and code, of a model that knows ``source``."""
    from latewood.language.recipe import TextRecipe
    from latewood.papers._language import rows
    from latewood.studies.mixing_agent import Setting

    target = rows("math", "python", length=LENGTH, most=TARGET_ROWS)
    return Setting(_source(*source), target, steps=8, steps_per_action=20, recipe=TextRecipe(lr=2e-3), seed=seed)


def _model(*source: str, seed: int, large: bool) -> CausalLM:
    """Trained on the source field alone: a proxy, or one of four times its weights."""
    from latewood.papers._language import base_model

    layers, width, heads = (2, 64, 4) if large else (1, 32, 2)
    return base_model(_source(*source), seed=seed, steps=600, layers=layers, width=width, heads=heads)


@cache
def _collected() -> Trajectories:
    """What the proxies left behind: collected once, and used by every claim on language models."""
    import copy

    from latewood.studies.mixing_agent import collect

    proxy = _model("en", "fr", seed=100, large=False)
    return collect(_setting("en", "fr", seed=100), lambda: copy.deepcopy(proxy), PROXIES)


@cache
def _trained(seed: int, alpha: float | None = None) -> Trained:
    from latewood.studies.mixing_agent import train_agent

    return train_agent(_collected(), _recipe(alpha), seed=seed)


@cache
def _deployed(policy: str, seed: int, *source: str) -> Trajectory:
    """A run of a larger model with another seed under one of the policies compared here."""
    from latewood.studies.mixing_agent import best_constant, scheduled

    setting, model = _setting(*source, seed=seed), _model(*source, seed=seed, large=True)
    if policy in ("agent", "supervised start", "no penalty"):
        trained = _trained(seed, 0.0 if policy == "no penalty" else None)
        return setting.run(model, trained.start if policy == "supervised start" else trained.agent, floor=1e-3).trajectory
    if policy == "best constant mixture":
        return setting.run(model, scheduled(best_constant(_collected(), seed=seed)), floor=1e-3).trajectory
    return setting.run(model, scheduled(_constants(setting, model)[policy])).trajectory


def _constants(setting: Setting, model: CausalLM) -> Mapping[str, Tensor]:
    import torch

    looked = setting.look(model)
    assert looked.domains is not None
    natural = torch.tensor(looked.natural, dtype=torch.float64)
    target = natural * torch.tensor(looked.domains.fields)
    return {"natural proportions": natural, "target only": target / target.sum()}


def _scores(policies: tuple[str, ...], *source: str) -> dict[str, dict[str, list[float]]]:
    """For each policy the balanced score, and the improvement of both fields, by seed."""
    from latewood.language.mixing_agent.trajectories import FIELDS, normalised
    from latewood.studies.mixing_agent import balance

    scale = _collected().scale
    result: dict[str, dict[str, list[float]]] = {}
    for policy in policies:
        runs = [_deployed(policy, seed, *source) for seed in SEEDS]
        fields = [normalised(run.feedback, scale)[-1].tolist() for run in runs]
        result[policy] = {"balanced": [balance(run, scale) for run in runs]}
        result[policy] |= {name: [each[place] for each in fields] for place, name in enumerate(FIELDS)}
    return result


def _flat(scores: Mapping[str, Mapping[str, list[float]]]) -> dict[str, float]:
    return {f"{policy}, {what}": mean(values) for policy, parts in scores.items() for what, values in parts.items()}


_UNITS = "Improvement in units of the proxies' deviations (balanced: the mean of both fields)"


def _larger_model() -> Verdict:
    scores = _scores(("agent", "best constant mixture", "natural proportions", "target only"), "en", "fr")
    numbers = _flat(scores)
    agent, constant, natural, target = (numbers[f"{policy}, balanced"] for policy in scores)
    pairs = zip(scores["agent"]["balanced"], scores["best constant mixture"]["balanced"], strict=True)
    numbers["tie"] = stdev(one - other for one, other in pairs)
    others = [policy for policy in scores if policy != "target only"]
    extremes = all(
        numbers["target only, target"] > numbers[f"{policy}, target"]
        and numbers["target only, source"] < numbers[f"{policy}, source"]
        for policy in others
    )
    return Verdict(
        agent >= constant - numbers["tie"] and constant > natural > target and agent > natural and extremes,
        numbers,
        f"{_UNITS}, {len(SEEDS)} seeds, {PROXIES} proxies of 30,000 weights, deployed on models of four times as many (English "
        "and French, then mathematics and code); it holds if agent >= best constant mixture (a tie within one deviation of "
        "the difference) > natural proportions > target only, which is best in the target and worst in the source field.",
    )


def _transfer() -> Verdict:
    scores = _scores(("agent", "natural proportions"), "de")
    numbers = _flat(scores)
    return Verdict(
        numbers["agent, balanced"] > numbers["natural proportions, balanced"],
        numbers,
        f"{_UNITS}, {len(SEEDS)} seeds, the same agents with German, which no proxy saw, in place of English and French; it "
        "holds if the agent's balanced score is above that of natural proportions.",
    )


def _ablation() -> Verdict:
    policies = ("agent", "supervised start", "no penalty")
    scores = {policy: {"balanced": parts["balanced"]} for policy, parts in _scores(policies, "en", "fr").items()}
    numbers = _flat(scores)
    numbers |= {f"{policy}, deviation": stdev(parts["balanced"]) for policy, parts in scores.items()}
    for policy, alpha in (("agent", None), ("no penalty", 0.0)):
        excess = []
        for seed in SEEDS:
            trained, run = _trained(seed, alpha), _deployed(policy, seed, "en", "fr")
            excess.append(trained.expected(run.steps) - trained.realised(run, _recipe(alpha)))
        numbers[f"{policy}, expected beyond realised"] = mean(excess)
    inflated = numbers["no penalty, expected beyond realised"] > numbers["agent, expected beyond realised"]
    worse = numbers["no penalty, balanced"] < numbers["agent, balanced"]
    return Verdict(
        inflated
        and (worse or numbers["no penalty, deviation"] > numbers["agent, deviation"])
        and numbers["agent, balanced"] >= numbers["supervised start, balanced"],
        numbers,
        f"{_UNITS}, {len(SEEDS)} seeds; it holds if conservative Q-learning does not lose against its supervised start, and "
        "without the penalty the critics expect more beyond what is realised, and runs are worse or vary more.",
    )


PAPER = Paper(
    number=21,
    name="data-mixing-agent",
    title="Data Mixing Agent: Learning to Re-weight Domains for Continual Pre-training",
    kind="learner + system",
    arxiv="2507.15640",
    summary=(
        "Learns a policy for the share of each text domain offline, from many small training runs, and tries it on a "
        "larger model and on text it has not met."
    ),
    code=(
        "latewood.language.learners.data_mixing_agent:DataMixingAgent",
        "latewood.language.mixing_agent:MixingAgent",
        "latewood.studies.mixing_agent:train_agent",
    ),
    claims=(
        Claim(
            "simulator",
            "An agent learned from random runs alone beats every constant mixture and every run that it learned from.",
            _simulator,
        ),
        Claim(
            "larger-model",
            "Learned on small proxies, it mixes for a larger model at least as well as the best constant mixture.",
            _larger_model,
            needs="text",
        ),
        Claim("unseen-source", "It works unchanged where the source text is one that no proxy saw.", _transfer, needs="text"),
        Claim(
            "ablation",
            "The penalty keeps values from being inflated, and what they say is worth more than imitation.",
            _ablation,
            needs="text",
        ),
    ),
)
