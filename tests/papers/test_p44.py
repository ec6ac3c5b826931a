"""The claims of paper 44: what they compare is what they say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from latewood.core.recipe import Recipe
from latewood.core.run import run
from latewood.core.seeding import seeded
from latewood.images.datasets import ImageData, load_images
from latewood.images.learners.mos import MOS
from latewood.images.nets import vit
from latewood.images.streams.split import split
from latewood.papers import p44_mos as p44
from latewood.papers.ledger import find
from latewood.parts.backbone import Backbone


def few() -> ImageData:
    images = load_images("digits").few(10).subset([0, 1, 2, 3])
    return replace(images, test=images.test[:60])


def learned() -> tuple[MOS, ImageData]:
    images = few()
    with seeded(0):
        body = vit(images.train[:1], width=16, depth=1, heads=2)
        learner = MOS(body, 4, passes=2, samples=16, recipe=Recipe(epochs=2, batch_size=8, lr=0.5))
    p44._taught(learner, split(images, steps=2, seed=0), 0)
    return learner, images


def numbers(**changes: float) -> dict[str, float]:
    found = {
        **{"accuracy": 60.0, "accuracy, newest": 59.0, "accuracy, oracle": 70.0, "distance": 0.1},
        **{"accuracy, prototypes": 58.0, "accuracy, refined": 58.5},
        **{"right set, prototypes": 50.0, "right set, refined": 55.0},
    }
    return found | {name.replace("__", ", ").replace("_", " "): value for name, value in changes.items()}


@pytest.mark.parametrize(
    ("changes", "holds"),
    [({}, True), ({"accuracy": 49.0}, False), ({"accuracy__newest": 17.0}, False), ({"distance": 9.0}, False)],
)
def test_merging_holds_only_if_each_part_of_it_does(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, float], holds: bool
) -> None:
    apart = numbers(accuracy=50.0, accuracy__newest=18.0, distance=7.0)
    monkeypatch.setattr(p44, "_merged", lambda alpha: numbers(**changes) if alpha else apart)
    assert p44._merging().holds is holds


@pytest.mark.parametrize(
    ("changes", "holds"),
    [
        ({}, True),
        ({"right_set__refined": 49.0}, False),
        ({"accuracy__refined": 56.0}, False),
        ({"accuracy__refined": 57.5}, True),
    ],
)
def test_refinement_holds_only_if_each_part_of_it_does(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, float], holds: bool
) -> None:
    monkeypatch.setattr(p44, "_merged", lambda alpha: numbers(**changes))
    assert p44._refinement().holds is holds


def test_what_is_measured_is_what_its_name_says() -> None:
    learner, images = learned()
    found = p44._looked_at(learner, images)
    labels = images.test.tensor("label")
    own = torch.stack([torch.isin(labels, torch.tensor(e.classes)) for e in split(images, steps=2, seed=0)]).int().argmax(0)
    right = []
    for place in range(len(labels)):
        with learner.adapters.using(int(own[place])), torch.no_grad():
            logits = learner.net(learner.net.prepare(images.test[place : place + 1]))
        right.append(float(learner.classes.best(logits)[0] == labels[place]))
    assert found["accuracy, oracle"] == pytest.approx(100 * sum(right) / len(right))
    assert found["accuracy"] == pytest.approx(100 * float((learner.predict(images.test) == labels).double().mean()))
    assert found["right set, refined"] == pytest.approx(100 * float((learner.chosen(images.test)[1] == own).double().mean()))
    gap = sum(float((tensor[1] - tensor[0]).square().sum()) for tensor in learner.adapters.stored) ** 0.5
    assert found["distance"] == pytest.approx(gap, rel=1e-4)


def test_teaching_is_what_a_run_does() -> None:
    learner, images = learned()
    with seeded(0):
        body = vit(images.train[:1], width=16, depth=1, heads=2)
        other = MOS(body, 4, passes=2, samples=16, recipe=Recipe(epochs=2, batch_size=8, lr=0.5))
    run(other, split(images, steps=2, seed=0), seed=0, device="cpu")
    assert torch.equal(other.scores(images.test), learner.scores(images.test))


def test_the_family_is_compared_on_equal_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    images = few()

    def make() -> Backbone:
        with seeded(0):
            return vit(images.train[:1], width=24, depth=1)

    setting: Callable[[], tuple[Callable[[], Backbone], ImageData]] = lambda: (make, images)  # noqa: E731
    monkeypatch.setattr(p44, "_setting", setting)
    monkeypatch.setattr(p44, "SEEDS", (0,))
    monkeypatch.setattr(p44, "STEPS", 2)
    monkeypatch.setattr(p44, "EPOCHS", 1)
    monkeypatch.setattr(p44, "_merged", lambda alpha: {"accuracy": 101.0})
    verdict = p44._family()
    shown = verdict.numbers
    assert list(shown) == ["MOS", "ADAM", "sequential", "frozen prototypes"]
    assert verdict.holds == (shown["ADAM"] > shown["sequential"])
    assert all(0 <= value <= 100 for name, value in shown.items() if name != "MOS")
    assert find("mos").built
