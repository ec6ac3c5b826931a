"""The claims of paper 47: what they measure is what they say."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from latewood.papers import p47_contracon as p47
from latewood.papers.ledger import find


@pytest.mark.parametrize(
    ("forgetting", "share", "lost", "holds"),
    [(0.0, 3.0, 25.0, True), (0.01, 3.0, 25.0, False), (0.0, 6.0, 25.0, False), (0.0, 3.0, 15.0, False)],
)
def test_zero_forgetting_needs_all_three(
    monkeypatch: pytest.MonkeyPatch, forgetting: float, share: float, lost: float, holds: bool
) -> None:
    found = {"accuracy": 90.0, "forgetting": forgetting, "parameters": share}
    monkeypatch.setattr(p47, "_run", lambda *_: (None, found))
    monkeypatch.setattr(p47, "_finetuned", lambda *_: {"accuracy": 60.0, "forgetting": lost})
    assert p47._forgets_nothing().holds is holds


@pytest.mark.parametrize(("plain", "holds"), [(80.0, True), (82.5, False)])
def test_convolutions_must_add_two_points_to_the_mean(monkeypatch: pytest.MonkeyPatch, plain: float, holds: bool) -> None:
    def run(dataset: str, row: str, seed: int) -> Any:
        return None, {"accuracy": plain if row.startswith("norms") else 84.0 + seed - 2, "forgetting": 0.0}

    monkeypatch.setattr(p47, "_run", run)
    assert p47._convolutions_matter().holds is holds


@pytest.mark.parametrize(
    ("changes", "holds"),
    [
        ({}, True),
        ({"task, 16 views": 25.0}, False),
        ({"accuracy, the image alone": 60.0}, False),
        ({"forgetting, told": 1.0}, False),
    ],
)
def test_inference_must_beat_chance_and_the_image_alone(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, float], holds: bool
) -> None:
    found = {"task, 16 views": 50.0, "accuracy, 16 views": 45.0, "accuracy, the image alone": 30.0, "forgetting, told": 0.0}
    monkeypatch.setattr(p47, "_inference", lambda dataset: found | changes)
    assert p47._infers("digits", "Digits").holds is holds


def test_what_is_measured_on_a_learner_is_what_it_predicts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(p47.SIZES, "digits", (1, 1))
    learner, told = p47._run("digits", "convolutions", 99)
    images = p47._images("digits")
    labels = images.test.tensor("label")
    numbers = p47._inferred(learner, images, "auto", "x") | p47._inferred(learner, images, "none", "y")
    assert numbers["accuracy, x"] == pytest.approx(100 * float((learner.predict(images.test) == labels).double().mean()))
    tasks = learner.infer_task(images.test)
    own = learner.bank.tasks[learner.classes.columns(labels)]
    assert numbers["task, x"] == pytest.approx(100 * float((tasks == own).double().mean()))
    assert learner.views == "auto" and numbers["accuracy, y"] <= numbers["task, y"]
    assert told["forgetting"] == 0 and told["accuracy"] >= numbers["accuracy, x"]
    assert told["parameters"] == pytest.approx(100 * 1931 / 67201)
    assert torch.equal(tasks.unique(), tasks.unique().clamp(0, 4)) and find("contracon").built
