"""The claims of paper 25: what they compare is what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from latewood.images.learners.fetril import FeTrIL
from latewood.images.nets.pixels import pixels
from latewood.images.streams.split import split
from latewood.papers import p25_fetril as p25
from latewood.papers._intents import intents
from latewood.papers.ledger import find

STREAM = split("digits", base=5, increment=1)
ARMS = ("FeTrIL", "repeated mean", "apart", "nearest mean")


def numbers(*averages: float) -> dict[str, float]:
    return {f"{name}, {kind}": value for name, value in zip(ARMS, averages, strict=True) for kind in ("average", "last")}


@pytest.mark.parametrize(
    ("averages", "holds"),
    [((95, 94, 90, 92), True), ((95, 96, 90, 92), False), ((95, 94, 90, 93.5), False), ((95, 94, 93.5, 92), False)],
)
def test_translation_holds_only_if_each_bar_is_met(
    monkeypatch: pytest.MonkeyPatch, averages: tuple[float, ...], holds: bool
) -> None:
    monkeypatch.setattr(p25, "_digits", lambda increment: numbers(*averages))
    assert p25._translation().holds is holds


@pytest.mark.parametrize(("apart_at_once", "holds"), [(90, True), (70, False)])
def test_the_lead_must_shrink_where_more_arrives_at_once(
    monkeypatch: pytest.MonkeyPatch, apart_at_once: float, holds: bool
) -> None:
    tables = {1: numbers(95, 94, 80, 90), 5: numbers(96, 94, apart_at_once, 90)}
    monkeypatch.setattr(p25, "_digits", tables.__getitem__)
    verdict = p25._step_length()
    assert verdict.holds is holds
    assert verdict.numbers["lead over apart, 5 at once"] == 96 - apart_at_once


def test_the_rivals_differ_in_what_stands_for_old_classes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    learners = {"FeTrIL": FeTrIL(pixels(STREAM.example), "keep")}
    learners |= {name: kind(pixels(STREAM.example), "keep") for name, kind in p25._rivals().items()}
    for learner in learners.values():
        learner.learn(STREAM[0])
    weights = learners["FeTrIL"].head.weight.clone()
    assert all(torch.equal(learner.head.weight, weights) for learner in learners.values())
    for learner in learners.values():
        learner.learn(STREAM[1])
    apart, count = learners["apart"], len(STREAM[1].train)
    assert torch.equal(apart.head.weight[:5], weights)
    torch.testing.assert_close(apart.head.weight[5], F.normalize(apart.means.means()[5], dim=0).float())
    repeated = learners["repeated mean"]
    features = repeated.encoder(STREAM[1].train).double()
    rows, columns = repeated.training_rows(features, torch.full((count,), 5))
    assert torch.equal(rows[:count], features) and len(rows) == 6 * count
    assert torch.equal(rows[count:], repeated.means.means()[columns[count:]])


def test_vectors_of_sentences_know_only_the_words_that_they_were_fitted_on(
    real_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATEWOOD_DATA", str(real_data))
    sentences = intents(3)
    assert len(sentences.classes) == 150 and sentences.train["label"].bincount().unique().tolist() == [3]
    vectors = p25._vectors(sentences, ["transfer money to my account", "what is my balance", "play a song"], width=2)
    assert vectors.train["features"].shape == (450, 2)
    known = {"transfer", "money", "to", "my", "account", "what", "is", "balance", "play", "song"}
    for text, row in zip(sentences.train["text"], vectors.train["features"], strict=True):
        assert not row.any() or known & set(re.findall(r"\w\w+", text.lower()))


def test_translation_holds_on_digits_with_two_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(p25, "MORE_SEEDS", (0, 1))
    p25._digits.cache_clear()
    found = p25._translation()
    p25._digits.cache_clear()
    assert found.numbers["FeTrIL, average"] > found.numbers["apart, average"] + 2
    assert find("fetril").built
