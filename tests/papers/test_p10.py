"""The claims of paper 10: what they compare is what they say."""

from __future__ import annotations

from typing import Any

import pytest

from latewood.core.recipe import Recipe
from latewood.images.datasets import ImageData, load_images
from latewood.images.nets.mlp import mlp
from latewood.papers import p10_rehearsal_free as p10
from latewood.papers.ledger import find
from latewood.parts.backbone import Backbone

RECIPE = Recipe(epochs=1, optimizer="adam", lr=1e-3)


def make() -> Backbone:
    return mlp(load_images("digits").train[:1], width=16)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> ImageData:
    """Digits, a small network and one epoch in place of the encoders."""
    images = load_images("digits")
    monkeypatch.setattr(p10, "_setting", lambda dataset: (make, images, RECIPE))
    monkeypatch.setattr(p10, "SEEDS", (0,))
    return images


@pytest.mark.parametrize(
    ("predkd", "softmax", "with_ewc", "holds"), [(30, 20, 1, True), (25, 20, 1, False), (30, 20, 3, False)]
)
def test_both_halves_of_the_claim_from_scratch_decide(
    monkeypatch: pytest.MonkeyPatch, predkd: float, softmax: float, with_ewc: float, holds: bool
) -> None:
    numbers = {"A PredKD": predkd, "A softmax": softmax, "F^G PredKD": 2.0, "F^G PredKD + EWC": with_ewc}
    monkeypatch.setattr(p10, "_table", lambda *ignored: numbers)
    assert p10._from_scratch().holds == holds


def test_the_same_seed_gives_all_rows_the_same_network_and_order(small: ImageData) -> None:
    rows: dict[str, dict[str, Any]] = {"one": {}, "other": {"l2": 0.0}}
    numbers = p10._table(make, small, rows, RECIPE, (3,))
    assert {name.split()[0] for name in numbers} == {"A", "F^G", "F^L"}
    for score in ("A", "F^G", "F^L"):
        assert numbers[f"{score} one"] == numbers[f"{score} other"]


def test_weights_are_chosen_on_the_first_arrivals_alone(monkeypatch: pytest.MonkeyPatch, small: ImageData) -> None:
    lengths = []
    original = p10._run

    def watched(*given: Any) -> Any:
        record = original(*given)
        lengths.append(len(record.rows))
        return record

    monkeypatch.setattr(p10, "_run", watched)
    chosen = p10._tuned(make, small, RECIPE, "l2", classification="bce")
    assert lengths == [p10.PREFIX] * len(p10.WEIGHTS["l2"])
    assert chosen["l2"] in p10.WEIGHTS["l2"] and chosen["classification"] == "bce"


def test_a_prefix_is_the_beginning_of_the_same_stream(small: ImageData) -> None:
    full, part = (p10._run(make, small, {}, RECIPE, 1, prefix) for prefix in (None, 3))
    assert [row.classes for row in part.rows] == [row.classes for row in full.rows[:3]]


def test_claims_with_pretraining_report_the_weights_that_were_chosen(small: ImageData) -> None:
    numbers = p10._with_pretraining("omniglot-small").numbers
    assert numbers["weight of L2"] in p10.WEIGHTS["l2"] and numbers["weight of EWC"] in p10.WEIGHTS["ewc"]
    assert p10._anchored("omniglot-small").numbers["A from the first arrival"] > 0
    assert find("rehearsal-free").built
