"""The claims of paper 35: what they measure is what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from latewood.papers import p35_coso as p35
from latewood.papers.ledger import find


def numbers(row: str, arrivals: int, **values: float) -> dict[str, float]:
    """Accuracies with which the claims hold, but for these."""
    wanted = {"CoSO": 40.0, "without orthogonality": 36.0, "last gradient": 38.0, "frozen": 20.0}
    accuracy = wanted[row] + (6.0 if arrivals == 20 and row == "CoSO" else 0.0)
    return {f"{row}, {arrivals} arrivals": values.get(f"{row}{arrivals}".replace(" ", "_"), accuracy)}


@pytest.mark.parametrize(
    ("change", "orthogonal", "sketch"),
    [
        ({}, True, True),
        ({"CoSO10": 35.0}, False, False),  # no gain in 10 arrivals
        ({"CoSO20": 39.0}, False, True),  # a smaller gain in 20
        ({"last_gradient20": 50.0}, True, False),
        ({"frozen20": 90.0}, True, True),  # decides nothing
    ],
)
def test_each_claim_is_decided_by_its_own_numbers(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, float], orthogonal: bool, sketch: bool
) -> None:
    monkeypatch.setattr(p35, "_characters", lambda: (None, None, 50.0))
    monkeypatch.setattr(p35, "_on_characters", lambda row, arrivals: numbers(row, arrivals, **change))
    assert p35._orthogonal().holds is orthogonal
    assert p35._sketched().holds is sketch


@pytest.mark.parametrize("gap", [1, 20])
def test_the_state_that_is_measured_is_that_of_the_formula(gap: int) -> None:
    size, seconds = p35._optimiser_step(2, 32, rank=3, sketch=5, exact=True, gap=gap)
    assert size == 4 * 2 * (2 * 3 * 32 + 32 * 3 + 32 * 5) and seconds > 0


def test_heads_on_a_frozen_encoder_leave_it_as_it_was_and_the_characters_are_moved(
    real_data: Path,
) -> None:
    from latewood.core.seeding import seeded
    from latewood.images.streams.split import split
    from latewood.papers._encoders import OMNIGLOT
    from latewood.parts.subspaces import SubspaceRecipe

    plain = OMNIGLOT.unseen_images()
    with seeded(0):
        encoder = p35.residual_perceptron(plain.train[:1], width=48, hidden=40)
    images = p35._drawn(plain, swapped=True)
    ink = 255 - plain.test.tensor("image")
    assert torch.equal(images.test.tensor("image"), torch.cat([ink[..., 16:], ink[..., :16]], 3))
    assert torch.equal(p35._drawn(plain, swapped=False).test.tensor("image"), ink)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    recipe = SubspaceRecipe(epochs=1, batch_size=64, lr=3e-3)
    for row in p35.ROWS:
        learner = p35._made(lambda: encoder, 0, {**p35.CHARACTERS, **p35.ROWS[row]}, recipe)
        assert learner._each()[0].count == 4
        learner.learn(split(images, steps=20)[0])
        same = all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
        assert same == (row == "frozen")
        encoder.load_state_dict(before)
    assert find("coso").built
