"""The claims of paper 26: what they measure is what they say, on text that is what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from latewood.core.data import Data
from latewood.language.corpora import load_corpus
from latewood.language.learners.continue_ import Continue
from latewood.language.learners.stability_gap import split_documents
from latewood.language.nets import causal
from latewood.papers import _language as language
from latewood.papers import p26_stability_gap as p26
from latewood.papers.ledger import find

CURVES: dict[str, Any] = {"sources": {"en": 1.0, "math": 1.0}, "drift": 1.0}


def curves(general: list[float], domain: list[float], foretold: list[float] | None = None) -> p26._Curves:
    steps = [0, 1, 4, 16, 50, 100] if len(general) == 6 else [0, 1, 16]
    return p26._Curves(steps, general, foretold or [0.5] * len(general), domain, **CURVES)


def documents(data: Data) -> list[bytes]:
    return [bytes(document.astype("uint8")) for document in split_documents(data, 256)]


def test_a_quarter_of_the_noisy_pool_is_domain_text_and_none_of_it_is_trusted_or_held_out(real_data: Path) -> None:
    pool, trusted = p26._noisy_pool()
    found = documents(pool)
    topical = {text.encode() for text in p26._documents(p26.DOMAIN)}
    share = sum(len(text) for text in found if text in topical) / sum(map(len, found))
    assert share == pytest.approx(0.25, abs=0.02)
    assert not set(found) & {text.encode() for text in trusted}
    assert sum(len(text.encode()) for text in trusted) >= p26.TOPICAL
    held = "\n".join(load_corpus(p26.DOMAIN).documents("held_out"))
    assert sum(text.decode() in held for text in found if text in topical) == 0


def test_the_documents_nearest_to_the_trusted_text_are_those_of_the_domain(real_data: Path) -> None:
    from latewood.language.quality import QualityScorer

    pool, trusted = p26._noisy_pool()
    topical = {text.encode() for text in p26._documents(p26.DOMAIN)}
    scorer = QualityScorer()
    scorer.train(trusted)
    split = split_documents(pool, 256)[:-1]
    best = scorer.rank(split)[: len(split) // 5]
    assert all(documents(pool)[place] in topical for place in best)


def test_bytes_are_foretold_as_often_as_the_likeliest_is_right(real_data: Path) -> None:
    def always_a_space(inputs: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.full_like(inputs, 32), 257).float()

    probe = p26._foretold("en")
    learner: Any = Continue(causal(probe.data[:1], layers=1, width=16, heads=2))
    learner.backbone.forward = always_a_space
    spaces = (probe.data.tensor("tokens")[:, 1:] == 32).double().mean()
    assert probe.score(learner)["accuracy"] == pytest.approx(float(spaces))
    assert 0.1 < float(spaces) < 0.3


def test_the_gap_claim_asks_for_an_early_peak_a_return_and_a_domain_that_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    dip, falling = [1.0, 1.2, 1.5, 1.3, 1.3, 1.4], [3.0, 2.5, 2.0, 1.8, 1.5, 1.2]
    cases = [
        (curves(dip, falling), True),
        (curves([1.0, 0.9, 0.9, 0.9, 0.9, 0.9], falling), False),  # no rise
        (curves([1.0, 1.2, 1.5, 1.5, 1.6, 1.7], falling), False),  # no return
        (curves(dip, [3.0, 2.5, 2.6, 1.8, 1.5, 1.2]), False),  # the domain rises in between
    ]
    for run, holds in cases:
        monkeypatch.setattr(p26, "_continued", lambda seed, kept, run=run: run)
        assert p26._exists().holds == holds


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Any], int]]:
    """Runs that only remember what they were asked for; those with four epochs go better."""
    asked: list[tuple[dict[str, Any], int]] = []

    def run(seed: int, corpus: Data, settings: dict[str, Any], **_: Any) -> p26._Curves:
        asked.append((settings, len(corpus)))
        better = settings["epochs"] == 4 and set(settings["rates"]) >= set(p26.GENERAL)
        rise = 0.1 if better else 0.5
        foretold = [0.5, 0.5 - rise, 0.5]
        return curves([1.0, 1.0 + rise, 1.0 + rise], [3.0, 2.0, 1.0 if better else 1.5], foretold)

    monkeypatch.setattr(p26, "_run", run)
    monkeypatch.setattr(p26, "SEEDS", (0,))
    return asked


def test_all_arms_on_the_noisy_pool_have_the_same_budget(real_data: Path, tiny: list[tuple[dict[str, Any], int]]) -> None:
    assert p26._three_strategies().holds
    assert len(tiny) == 4
    assert {settings["subset"] * settings["epochs"] for settings, _ in tiny} == {1}
    assert len({rows for _, rows in tiny}) == 1


def test_replay_at_the_rates_and_from_one_source_is_equally_much(
    real_data: Path, tiny: list[tuple[dict[str, Any], int]]
) -> None:
    assert p26._rates().holds
    assert len(tiny) == 3
    replayed = [{name: share for name, share in settings["rates"].items() if name != "web"} for settings, _ in tiny]
    assert all(sum(shares.values()) == pytest.approx(0.5) for shares in replayed)
    assert replayed[0] == {"en": 0.3, "math": 0.2}


def test_a_short_run_gives_whole_curves(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = language.base_model
    monkeypatch.setattr(language, "base_model", lambda *rest, **more: base(*rest, **more, steps=3, width=16, heads=2, layers=1))
    corpus = language.rows(p26.DOMAIN, length=p26.LENGTH, most=160)
    run = p26._run(0, corpus, {"subset": 0.5, "epochs": 2, "rates": p26.GENERAL, "web": ("en",)})
    assert run.steps == [0, 1, 2, 3, 4, 6, 8, 10]
    assert len(run.general) == len(run.foretold) == len(run.domain) == 8
    assert set(run.sources) == set(p26.GENERAL)
    assert run.domain[-1] < run.domain[0]


def test_the_paper_is_built() -> None:
    assert find("stability-gap").built
