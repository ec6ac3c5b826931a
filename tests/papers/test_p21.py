"""What the claims of the data mixing agent are made of, at a scale of seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from latewood.language.mixing_agent import Domains, Trajectories, Trajectory
from latewood.papers import p21_data_mixing_agent as p21
from latewood.papers.ledger import Claim


def run(source: float, target: float) -> Trajectory:
    """A run that improved both fields by so much."""
    feedback = torch.tensor([[-3.0, -4.0], [-3.0 + source, -4.0 + target]], dtype=torch.float64)
    return Trajectory(torch.tensor([[0.5, 0.5]], dtype=torch.float64), feedback)


def claim(name: str) -> Claim:
    return next(claim for claim in p21.PAPER.claims if claim.name == name)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[float, float]]:
    """The improvements by policy, in place of those of real runs; change them to see what the verdicts say."""
    runs = {
        "agent": (0.2, 1.0),
        "best constant mixture": (0.1, 1.0),
        "natural proportions": (0.3, 0.5),
        "target only": (-1.5, 1.2),
    }
    data = Trajectories.of(Domains(("en", "math"), (0, 1)), [run(-1.0, -1.0), run(0.0, 0.0), run(1.0, 1.0)])
    monkeypatch.setattr(p21, "_collected", lambda: data)
    monkeypatch.setattr(p21, "_deployed", lambda policy, seed, *source: run(*(v + 0.01 * seed**2 for v in runs[policy])))
    return runs


def test_the_order_that_is_expected_holds_and_no_other(measured: dict[str, tuple[float, float]]) -> None:
    verdict = claim("larger-model").check()
    assert verdict.holds
    assert verdict.numbers["agent, source"] == pytest.approx(0.2 + 0.05 / 3)
    assert verdict.numbers["agent, balanced"] == pytest.approx(0.6 + 0.05 / 3)
    for policy, improvement in {
        "agent": (0.2, 0.7),
        "natural proportions": (0.3, 1.1),
        "target only": (0.5, 1.2),
    }.items():
        before = measured[policy]
        measured[policy] = improvement
        assert not claim("larger-model").check().holds
        measured[policy] = before
    assert claim("larger-model").check().holds


def test_transfer_holds_only_above_natural_proportions(measured: dict[str, tuple[float, float]]) -> None:
    assert claim("unseen-source").check().holds
    measured["agent"] = (0.2, 0.5)
    assert not claim("unseen-source").check().holds


def test_the_claims_on_language_models_need_the_text_and_the_simulator_needs_nothing() -> None:
    assert {c.name: c.needs for c in p21.PAPER.claims} == {
        "simulator": "",
        "larger-model": "text",
        "unseen-source": "text",
        "ablation": "text",
    }


def test_the_larger_model_is_four_times_the_proxy_and_natural_proportions_are_mostly_source(
    real_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from latewood.papers import _language

    monkeypatch.setattr(_language, "base_model", _untrained)
    small, large = (p21._model("de", seed=0, large=each) for each in (False, True))
    weights = [sum(p.numel() for p in model.parameters()) for model in (small, large)]
    assert 4 <= weights[1] / weights[0] < 6
    setting = replace(p21._setting("de", seed=0), steps=1, steps_per_action=2)
    constants = p21._constants(setting, small)
    assert float(constants["natural proportions"][0]) > 0.4
    assert constants["target only"][0] == 0 and float(constants["target only"].sum()) == pytest.approx(1)
    learner = setting.run(small, lambda actions, feedback, steps: constants["target only"])
    assert learner.domains is not None and learner.domains.names == ("de", "math", "python")
    assert learner.trajectory.feedback.shape == (2, 2)


def _untrained(data: object, *, seed: int, steps: int, layers: int, width: int, heads: int) -> object:
    from latewood.language.nets.causal import causal

    return causal(data[:1], layers=layers, width=width, heads=heads)  # type: ignore[index]
