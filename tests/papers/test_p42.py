"""The claims of paper 42: what they measure is what they say."""

from __future__ import annotations

import pytest
import torch

from latewood.core.recipe import Recipe
from latewood.core.seeding import seeded
from latewood.images.datasets import load_images
from latewood.images.learners.adam import ADAM
from latewood.images.learners.simplecil import SimpleCIL
from latewood.images.nets import vit
from latewood.images.streams.split import split
from latewood.papers import p42_simplecil_adam as p42
from latewood.papers._unseen import shifted

DIGITS = load_images("digits")


def numbers(**changes: float) -> dict[str, float]:
    """Accuracies with which the claim of adaptivity holds, but for these changes."""
    found: dict[str, float] = {}
    for shift, plain, joined in (("", 80, 81), (" inverted", 30, 40), (" halves swapped", 40, 50)):
        found[f"SimpleCIL{shift}"] = plain
        for module in ("finetune", "adapter"):
            found[f"ADAM {module}{shift}"] = joined
            found[f"adapted alone {module}{shift}"] = joined - 2
    return found | {name.replace("_", " "): value for name, value in changes.items()}


@pytest.mark.parametrize(
    ("changes", "holds"),
    [
        ({}, True),
        ({"ADAM_adapter_inverted": 29}, False),  # no gain
        ({"ADAM_finetune": 95}, False),  # a larger gain where nothing is shifted
        ({"adapted_alone_adapter": 82}, False),  # joining costs
    ],
)
def test_adaptivity_holds_only_if_each_part_of_it_does(changes: dict[str, float], holds: bool) -> None:
    assert p42._adapts(numbers(**changes), "adapter") is holds


def test_shifts_move_pixels_and_no_label() -> None:
    inverted, swapped = shifted(DIGITS, "inverted"), shifted(DIGITS, "halves swapped")
    image = DIGITS.test["image"]
    assert torch.equal(inverted.test["image"].int() + image.int(), torch.full_like(image, 255).int())
    assert torch.equal(swapped.test["image"], torch.cat([image[..., 4:], image[..., :4]], 3))
    assert torch.equal(swapped.train["label"], DIGITS.train["label"])
    assert shifted(DIGITS, "") is DIGITS


def test_the_adapted_branch_alone_is_simplecil_on_the_adapted_network() -> None:
    stream = split(DIGITS, steps=5)
    with seeded(0):
        learner = ADAM(vit(stream.example, width=16, depth=1, heads=2), "finetune", recipe=Recipe(epochs=1, lr=0.05))
    p42._taught(learner, stream, seed=0)
    alone = p42._taught(SimpleCIL(learner.encoder.adapted), stream, seed=0)
    assert p42._adapted_alone(learner, DIGITS) == pytest.approx(p42._accuracy(alone, DIGITS), abs=1e-9)
    assert p42._adapted_alone(learner, DIGITS) != p42._accuracy(learner, DIGITS)
