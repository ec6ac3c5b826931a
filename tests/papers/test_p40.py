"""The claims of paper 40: what they compare is what they say."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from latewood.core.recipe import Recipe
from latewood.core.seeding import seeded
from latewood.images.datasets import load_images
from latewood.images.streams.split import split
from latewood.papers import p40_dkvb as p40
from latewood.papers.ledger import find

TINY: dict[str, Any] = {
    **{"codebooks": 8, "pairs": 32, "key_epochs": 1},
    "recipe": Recipe(epochs=3, batch_size=32, lr=3.0, momentum=0.0),
}
TEST = load_images("digits").test


def test_the_plane_is_that_of_figure_2() -> None:
    stream = p40._plane(0)
    assert [experience.classes for experience in stream] == [(0, 4), (1, 5), (2, 6), (3, 7)]
    first = stream[0].train
    for label, centre in ((0, (0.25, 0.25)), (4, (0.75, 0.5))):
        own = first["features"][first["label"] == label]
        assert own.mean(0).tolist() == pytest.approx(centre, abs=0.01)
        assert own.std(0).tolist() == pytest.approx([0.035] * 2, abs=0.005)
    assert not torch.equal(stream[0].train["features"], p40._plane(1)[0].train["features"])
    assert not torch.equal(stream[0].train["features"], stream.probes[0].data["features"])


def taught(part: str, arrivals: int = 2) -> Any:
    stream = split("digits", steps=5)
    with seeded(0):
        learner = p40._small(stream, p40._without(part), **TINY)
    for index in range(arrivals):
        learner.generator.manual_seed(index)
        learner.learn(stream[index])
    return learner


def test_each_ablation_takes_away_what_it_says() -> None:
    whole, decoded, moved, unmasked = (taught(part) for part in ("whole", "trained decoder", "moving keys", "no mask"))
    assert torch.equal(unmasked.bottleneck.values, whole.bottleneck.values)
    assert not torch.equal(unmasked.scores(TEST), whole.scores(TEST))
    unmasked.bottleneck.counts += 1
    whole.bottleneck.counts += 1
    assert torch.equal(unmasked.scores(TEST), whole.scores(TEST))
    keys = [taught("moving keys", arrivals).bottleneck.keys for arrivals in (1, 2)]
    assert not torch.equal(*keys) and torch.equal(keys[1], moved.bottleneck.keys)
    assert not torch.equal(decoded.decoder.weight, torch.eye(10))
    assert decoded.scores(TEST).shape == (len(TEST), 4)


def test_the_decoder_begins_as_the_vote() -> None:
    stream = split("digits", steps=5)
    with seeded(0):
        learner: Any = p40._small(stream, p40._without("trained decoder"), **TINY)
    assert torch.equal(learner.decoder.weight, torch.eye(10))


def test_noise_is_as_many_images_as_there_are_digits() -> None:
    assert p40._noise()["image"].shape == load_images("digits").train["image"].shape


def test_figure_2_holds_with_one_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(p40, "SEEDS", (0,))
    monkeypatch.setattr(p40, "POINTS", 40)
    verdict = p40._figure_2()
    assert verdict.numbers["MLP, task 3"] > 95 > verdict.numbers["MLP, task 0"]
    assert len(verdict.numbers) == 16
    assert find("dkvb").built
