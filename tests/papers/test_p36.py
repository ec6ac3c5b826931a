"""The claims about mixture ratios can hold and can fail, and their general text is none of pre-training's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latewood.core.data import Data
from latewood.language.nets.causal import causal
from latewood.papers import _language, p36_cmr
from latewood.studies.cmr import Curve

TIMES = np.linspace(0, 100, 51)


def curve(ratio: float, seed: int = 0) -> Curve:
    """What the paper describes: a shock that small shares win back, and a domain loss that is a law over shares."""
    t = TIMES[1:]
    general = 0.5 * ratio * (1 + t) ** -0.3 - 0.03 * (1 - ratio) + 0.2 * ratio**3 * np.sqrt(t / 100)
    domain = (-2.2 + 0.15 * ratio**-0.4 if ratio else 0.05) * (1 - np.exp(-t / 5))
    noise = np.random.default_rng(seed).normal(scale=1e-4, size=len(t))
    general, domain = (np.concatenate([[0.0], values + noise]) for values in (general, domain))
    return Curve(ratio, TIMES, domain, general, domain_base=3.9, general_base=1.8, warmup=2.0)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Sequence[float]]]:
    """In place of training; what was asked for beside the curves that all claims share."""
    asked: list[tuple[int, Sequence[float]]] = []

    def other(seed: int, ratios: Sequence[float]) -> list[Curve]:
        asked.append((seed, ratios))
        return [curve(ratio, seed) for ratio in ratios]

    monkeypatch.setattr(p36_cmr, "SEEDS", (0, 1))
    monkeypatch.setattr(p36_cmr, "_measured", other)
    monkeypatch.setattr(p36_cmr, "_curves", lambda seed: tuple(curve(ratio, seed) for ratio in p36_cmr.RATIOS))
    return asked


@pytest.mark.parametrize("claim", p36_cmr.PAPER.claims, ids=lambda claim: claim.name)
def test_a_claim_holds_on_curves_as_the_paper_describes_them(measured: object, claim: Any) -> None:
    verdict = claim.check()
    assert verdict.holds, verdict
    assert all(np.isfinite(value) for value in verdict.numbers.values())


def test_the_forecast_is_tried_on_either_side_with_every_seed(measured: list[tuple[int, Sequence[float]]]) -> None:
    verdict = p36_cmr._forward()
    assert [seed for seed, _ in measured] == [0, 1]
    for seed, (low, high) in measured:
        assert high - low == pytest.approx(0.2)
        assert 100 * (low + high) / 2 == pytest.approx(verdict.numbers[f"seed {seed}: foretold"])
        assert verdict.numbers[f"seed {seed}: general below"] == pytest.approx(curve(low).general[-5:].mean(), abs=1e-3)
    assert "What binds in the forecasts: tolerance in 2 of 2" in verdict.sentence


def test_without_a_trade_off_the_claims_about_it_fail(measured: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def harmless(ratio: float, seed: int) -> Curve:
        return replace(curve(ratio, seed), general=-np.abs(curve(ratio, seed).general))

    monkeypatch.setattr(p36_cmr, "_curves", lambda seed: tuple(harmless(ratio, seed) for ratio in p36_cmr.RATIOS))
    assert not p36_cmr._trade_off().holds
    assert not p36_cmr._forward().holds


def test_losses_that_are_no_law_over_shares_are_not_foretold(measured: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def jagged(ratio: float, seed: int) -> Curve:
        up = 0.1 * (p36_cmr.RATIOS.index(ratio) % 2)
        return replace(curve(ratio, seed), domain=curve(ratio, seed).domain + up * (TIMES > 0))

    monkeypatch.setattr(p36_cmr, "_curves", lambda seed: tuple(jagged(ratio, seed) for ratio in p36_cmr.RATIOS))
    verdict = p36_cmr._left_out()
    assert not verdict.holds
    assert verdict.numbers["domain, law: largest"] > 1


def test_the_general_text_is_none_of_what_the_model_was_pre_trained_on(
    real_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Data] = []

    def untrained(data: Data, **how: Any) -> Any:
        taken.append(data)
        return causal(data[:1], layers=1, width=16, heads=2)

    monkeypatch.setattr(_language, "base_model", untrained)
    p36_cmr._setting.cache_clear()
    _, general, domain = p36_cmr._setting(0)
    p36_cmr._setting.cache_clear()
    known = {row.numpy().tobytes() for row in taken[0].tensor("tokens")}
    for text in (general, domain):
        assert not known & {row.numpy().tobytes() for row in text.train.tensor("tokens")}
        assert not known & {row.numpy().tobytes() for row in text.held_out.tensor("tokens")}
        assert len(text.held_out) == 64
    assert abs(len(general.train) - len(taken[0])) <= 1
    assert general.train.fingerprint() != taken[0].fingerprint()
