"""The claims of paper 13: what they compare is what they say."""

from __future__ import annotations

import pytest
import torch

from latewood.images.datasets import load_images
from latewood.images.learners.slca import SLCA
from latewood.images.nets.pixels import pixels
from latewood.images.streams.split import split
from latewood.papers import p13_slca as p13
from latewood.papers.ledger import find

ORDER = ("100x slower, aligned", "100x slower, not aligned", "one rate, aligned", "one rate, not aligned")


@pytest.mark.parametrize(
    ("values", "slow", "aligned"),
    [((80, 70, 60, 50), True, True), ((80, 40, 60, 50), False, True), ((80, 70, 85, 50), True, False)],
)
def test_each_claim_is_decided_by_its_own_numbers(
    monkeypatch: pytest.MonkeyPatch, values: tuple[float, ...], slow: bool, aligned: bool
) -> None:
    numbers = dict(zip(ORDER, values, strict=True)) | {"frozen, aligned": 99.0}
    monkeypatch.setattr(p13, "_measured", lambda dataset: numbers)
    assert p13._slow("omniglot-small").holds == slow
    assert p13._aligned("omniglot-small").holds == aligned
    assert set(p13._slow("omniglot-small").numbers) == {name for name in numbers if name.endswith("not aligned")}


def test_one_run_gives_the_accuracy_that_a_run_without_alignment_has() -> None:
    images = load_images("digits")
    stream = split(images, steps=5)
    plain, learner = (SLCA(pixels(stream.example), 0.0, aligned=aligned) for aligned in (False, True))
    for index, experience in enumerate(stream):
        for each in (plain, learner):
            each.generator.manual_seed(index)
            each.learn(experience)
    wanted = float((plain.predict(images.test) == images.test["label"]).double().mean())
    raw = learner.raw.weight.clone()
    found = p13._other_heads(learner, images, seed=0)
    assert found["not aligned"] == wanted < found["aligned on plain logits"]
    assert torch.equal(learner.raw.weight, raw)


def test_alignment_holds_on_digits_with_one_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(p13, "SEEDS", (0,))
    assert p13._digits().holds
    assert find("slca").built
