"""The claims of paper 18: what they compare is what they say."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from latewood.images.datasets import ImageData, load_images
from latewood.papers import p18_lingocl as p18
from latewood.papers.ledger import find
from latewood.parts.features import Embedded


@pytest.fixture
def case(monkeypatch: pytest.MonkeyPatch) -> p18._Case:
    """Digits, whose class means are the language that their names are written in."""
    from dataclasses import replace

    from latewood.core.data import Data

    images: ImageData = load_images("digits").few(30)
    middle = images.train.tensor("image").flatten(1).float().mean(0)
    train, test = (
        Data(features=part.tensor("image").flatten(1).float() - middle, label=part["label"])
        for part in (images.train, images.test)
    )
    members = F.one_hot(train.tensor("label")).float()
    directions = F.normalize(members.T @ train.tensor("features"))
    made = p18._Case(replace(images, train=train, test=test), directions, "digits")
    monkeypatch.setattr(p18, "_case", lambda dataset: made)
    monkeypatch.setattr(p18, "STEPS", 5)
    monkeypatch.setattr(p18, "SEEDS", (0, 1))
    monkeypatch.setattr(p18, "EPOCHS", 3)
    p18._measured.cache_clear()
    return made


def numbers(**changes: float) -> dict[str, dict[str, float]]:
    found = {
        "learned": {"average": 50.0, "forgetting": 30.0, "cosine": 0.6, "zero-shot": 10.5},
        "random": {"average": 52.0, "forgetting": 25.0, "cosine": 0.7, "zero-shot": 9.0},
        "semantic": {"average": 54.0, "forgetting": 20.0, "cosine": 0.8, "zero-shot": 20.0},
    }
    for name, value in changes.items():
        head, metric = name.split("_", 1)
        found[head][metric.replace("_", "-")] = value
    return found


@pytest.mark.parametrize(
    ("changes", "verdicts"),
    [
        ({}, (True, True, True)),
        ({"learned_average": 55.0}, (False, True, True)),
        ({"random_average": 55.0}, (False, True, True)),
        ({"semantic_forgetting": 31.0}, (False, True, True)),
        ({"semantic_cosine": 0.5}, (True, False, True)),
        ({"semantic_zero_shot": 12.9}, (True, True, False)),
        ({"random_zero_shot": 14.0}, (True, True, False)),
    ],
)
def test_each_claim_is_decided_by_its_own_numbers(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, float], verdicts: tuple[bool, ...]
) -> None:
    rows = load_images("digits").train
    samples = ImageData("x", rows, rows, tuple(map(str, range(100))))
    monkeypatch.setattr(p18, "_case", lambda dataset: p18._Case(samples, torch.empty(0), "somewhere"))
    monkeypatch.setattr(p18, "_measured", lambda dataset: numbers(**changes))
    checks = (p18._accuracy, p18._drift, p18._ahead)
    assert tuple(check("clinc150").holds for check in checks) == verdicts
    assert p18._ahead("clinc150").numbers["chance"] == 10


def test_related_names_come_in_different_arrivals() -> None:
    middles = torch.eye(6)
    noise = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
    directions = middles.repeat(10, 1) + 0.01 * noise
    groups = p18._apart(directions, 10, seed=0)
    assert sorted(label for group in groups for label in group) == list(range(60))
    assert all(sorted(label % 6 for label in group) == list(range(6)) for group in groups)
    assert groups == p18._apart(directions, 10, seed=0) != p18._apart(directions, 10, seed=1)


def test_a_summary_is_of_the_accuracies_on_what_was_seen() -> None:
    accuracy = np.array([[0.8, np.nan, np.nan], [0.4, 0.9, np.nan], [0.5, 0.3, 0.7]])
    found = p18._summary(accuracy)
    assert found["average"] == pytest.approx(100 * (0.8 + 0.65 + 0.5) / 3)
    assert found["forgetting"] == pytest.approx(100 * (0.3 + 0.6) / 2)


def test_heads_differ_in_their_rows_alone(case: p18._Case) -> None:
    learners = [p18._learner(case, head, seed=0) for head in p18.HEADS]
    stream = p18._stream(case, 0)
    for learner in learners:
        learner.prepare(stream[0])
    shapes = {learner.semantic.weight.shape for learner in learners}
    assert shapes == {(2, 64)}
    assert all(
        torch.equal(one, other)
        for learner in learners[1:]
        for one, other in zip(learners[0].backbone.parameters(), learner.backbone.parameters(), strict=True)
    )
    assert [learner.semantic.weight.requires_grad for learner in learners] == [True, False, False]


def test_names_that_tell_of_the_samples_are_recognised_before_they_arrive(
    case: p18._Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where features and names lie in one space from the start, nothing need be learned for it.
    monkeypatch.setattr(p18, "_encoder", Embedded)
    stream, right = p18._stream(case, 0), {}
    for head in p18.HEADS:
        learner = p18._learner(case, head, 0)
        learner.prepare(stream[0])
        right[head] = sum(p18._zero_shot(learner, stream, step, 0) for step in range(1, 5)) / 4
    assert right["semantic"] > 0.9
    assert 0.2 < right["random"] < 0.8 and 0.2 < right["learned"] < 0.8


def test_every_head_is_measured_in_the_same_ways(case: p18._Case) -> None:
    found = p18._measured("digits")
    for head in p18.HEADS:
        assert 0 < found[head]["cosine"] < 1 and 30 < found[head]["average"] < 100
        assert 0 <= found[head]["zero-shot"] <= 100 and found[head]["forgetting"] > 0
    assert found["semantic"] != found["random"] != found["learned"]
    p18._measured.cache_clear()


def test_drift_is_that_of_the_projected_features(case: p18._Case) -> None:
    learner, stream = p18._learner(case, "semantic", 0), p18._stream(case, 0)
    learner.learn(stream[0])
    data, twin = stream.probes[0].data, copy.deepcopy(learner)
    assert p18._cosine(p18._features(learner, data), p18._features(twin, data)) == pytest.approx(1.0)
    twin.semantic.projection.data *= -1
    assert p18._cosine(p18._features(learner, data), p18._features(twin, data)) == pytest.approx(-1.0)


def test_names_are_freed_of_wordnet_numbers() -> None:
    assert p18._plain("golden retriever (n02099601)") == "golden retriever"
    assert p18._plain("card_declined") == "card declined"
    assert find("lingocl").built
