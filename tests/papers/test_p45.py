"""The claims of paper 45: what they compare is what they say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from latewood.core.experience import Experience
from latewood.core.seeding import seeded
from latewood.images.datasets import load_images
from latewood.images.nets.pixels import pixels
from latewood.images.nets.vit import vit
from latewood.papers import p45_fsa as p45
from latewood.papers.ledger import find
from latewood.parts.adaptation import AdaptedEncoder
from latewood.parts.backbone import Backbone

DIGITS = load_images("digits")


def encoder() -> Backbone:
    with seeded(0):
        return vit(DIGITS.train[:1], width=16, depth=1, heads=2)


def numbers(none: tuple[float, ...], full: tuple[float, ...]) -> dict[str, float]:
    shifts = ("", "inverted", "halves swapped")
    found = {f"none {shift}".strip(): value for shift, value in zip(shifts, none, strict=True)}
    found |= {f"full {shift}".strip(): value for shift, value in zip(shifts, full, strict=True)}
    found |= {f"film {shift}".strip(): 99.0 for shift in shifts}
    return found | {f"cosine spread {shift}".strip(): spread for shift, spread in zip(shifts, (0.6, 0.1, 0.5), strict=True)}


@pytest.mark.parametrize(
    ("full", "holds"),
    [((81, 50, 62), True), ((81, 39, 62), False), ((85, 50, 62), False)],
)
def test_adapting_once_must_pay_on_each_shifted_stream_and_more_than_on_the_other(
    monkeypatch: pytest.MonkeyPatch, full: tuple[float, ...], holds: bool
) -> None:
    monkeypatch.setattr(p45, "_adapted", lambda dataset: numbers((80, 40, 58), full))
    assert p45._adaptation("omniglot-small").holds is holds


@pytest.mark.parametrize(("full", "holds"), [((79, 50, 62), True), ((95, 41, 62), False)])
def test_a_small_spread_must_go_with_a_large_gain(
    monkeypatch: pytest.MonkeyPatch, full: tuple[float, ...], holds: bool
) -> None:
    monkeypatch.setattr(p45, "_adapted", lambda dataset: numbers((80, 40, 58), full))
    verdict = p45._spread()
    assert verdict.holds is holds
    assert verdict.numbers["omniglot-small inverted: gain"] == full[1] - 40
    assert "tiny-imagenet-32 halves swapped: gain" not in verdict.numbers


def test_heads_are_compared_on_the_same_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(p45.MOST, "digits", 1000)
    monkeypatch.setattr(p45, "_features", lambda dataset: (pixels(DIGITS.train[:1]), DIGITS))
    verdict = p45._heads("digits")
    assert verdict.holds
    assert verdict.numbers["predictions that differ from all at once"] == 0
    assert set(verdict.numbers) >= {"LDA", "LDA within classes", "nearest mean", "cosine prototypes", "QDA"}


def test_adapting_further_trains_the_body_at_each_arrival(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[int] = []
    adapt = AdaptedEncoder.adapt

    def watched(self: AdaptedEncoder, experience: Experience, *rest: Any) -> None:
        trained.append(experience.index)
        adapt(self, experience, *rest)

    few = replace(DIGITS, train=DIGITS.train[torch.arange(0, len(DIGITS.train), 8)])
    monkeypatch.setattr(AdaptedEncoder, "adapt", watched)
    monkeypatch.setattr(p45, "_few", lambda dataset: (encoder, few))
    monkeypatch.setattr(p45, "SEEDS", (0,))
    monkeypatch.setattr(p45, "FEW", 5)
    monkeypatch.setitem(p45.SIZES, "omniglot-small", p45.SIZES["omniglot-small"]._replace(epochs=1))
    verdict = p45._further()
    assert trained == [0, 0, 0, 1, 0, 1]
    assert len(verdict.numbers) == 4


def test_the_paper_is_built() -> None:
    assert find("fsa").built
