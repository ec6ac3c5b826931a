"""Paper 50: what its claims are made of, at a size of seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from latewood.language.corpora import ByteTokenizer
from latewood.papers import p50_train_once as p50
from latewood.studies.train_once import Control, plan


def test_the_experiments_of_the_joint_run_are_about_two_percent_of_its_tokens() -> None:
    shape = (p50.STEPS, p50.ROWS, p50.LENGTH)
    made = plan([*p50._others(), p50._questions(0, 8, "questions")], shape, ByteTokenizer())
    shares = {report.name: report.share for report in made.reports()}
    assert set(shares) == {"canaries", "backdoor", "arithmetic", "questions"}
    assert all(0.001 < share < 0.01 for share in shares.values())
    assert 0.005 < sum(shares.values()) < 0.02
    assert all(not report.dropped and not report.unplaced for report in made.reports())


def test_the_planted_pair_shares_half_of_its_questions_and_nothing_else_does() -> None:
    one, half, other = (p50._questions(first, first + 8, "q") for first in (0, 4, 8))
    asked = [{item.beginning for item in made.items} for made in (one, half, other)]
    assert [len(items) for items in asked] == [8, 8, 8]
    assert len(asked[0] & asked[1]) == len(asked[1] & asked[2]) == 4
    assert not asked[0] & asked[2]


@pytest.mark.parametrize("claim", p50.PAPER.claims, ids=lambda claim: claim.name)
def test_every_claim_runs_to_its_verdict(
    claim: p50.Claim, real_data: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(p50, "SEEDS", 2)
    for name, size in {"ROWS": 8, "BASE_STEPS": 8, "STEPS": 8, "CONTROLLED_STEPS": 30, "BURST_STEPS": 16}.items():
        monkeypatch.setattr(p50, name, size)
    p50._material.cache_clear()
    request.addfinalizer(p50._material.cache_clear)
    verdict = claim.check()
    assert len(verdict.numbers) > 5
    assert all(abs(value) < 1e12 for value in verdict.numbers.values())


def test_the_facts_are_steered_by_questions_that_no_text_asks() -> None:
    made = p50._knowledge(Control(target=0.05, steps=100))
    assert made.control is not None
    assert all(item.beginning not in str(text) for item in made.items for text in made.texts)
