"""The claims of paper 14: what they compare is what they say."""

from __future__ import annotations

import pytest
import torch

from latewood.images.streams.split import split
from latewood.papers import p14_prd as p14
from latewood.papers.ledger import find

NAMES = ("PRD", "no distillation", "PRD over classes", "LwF", "fine-tuning")


def numbers(til: tuple[float, ...], cil: tuple[float, ...]) -> dict[str, float]:
    told = {f"TIL {name}": value for name, value in zip(NAMES, til, strict=True)}
    return told | {f"CIL {name}": value for name, value in zip(NAMES, cil, strict=True)}


@pytest.mark.parametrize(
    ("til", "cil", "alive", "replay_free", "poor"),
    [
        ((98, 64, 90, 97, 85), (83, 26, 51, 61, 20), True, True, False),
        ((98, 90, 90, 97, 85), (83, 26, 51, 61, 20), False, True, False),
        ((98, 64, 90, 97, 85), (83, 60, 51, 85, 20), False, False, False),
        ((90, 64, 90, 97, 85), (38, 26, 30, 36, 39), False, False, True),
        ((72, 64, 90, 97, 85), (38, 26, 30, 36, 39), False, False, False),
    ],
)
def test_each_claim_is_decided_by_its_own_numbers(
    monkeypatch: pytest.MonkeyPatch, til: tuple[float, ...], cil: tuple[float, ...], alive: bool, replay_free: bool, poor: bool
) -> None:
    monkeypatch.setattr(p14, "_measured", lambda base: numbers(til, cil))
    assert (p14._alive().holds, p14._replay_free().holds, p14._poor_base().holds) == (alive, replay_free, poor)


def test_the_first_arrival_is_trained_longer_whatever_the_method(monkeypatch: pytest.MonkeyPatch) -> None:
    from latewood.core.data import Data
    from latewood.core.learner import GradientLearner
    from latewood.images.learners.prd import PRD

    epochs: list[int] = []

    class Counting(PRD):
        def after_batch(self, batch: Data) -> None:
            epochs.append(self.epoch + 1)

    def made(name: str, stream: object) -> GradientLearner:
        return Counting(p14._encoder(split("digits")), hidden=4, projected=2, extra_epochs=0)

    monkeypatch.setattr(p14, "FIRST", 2)
    monkeypatch.setattr(p14, "EPOCHS", 1)
    monkeypatch.setattr(p14, "_made", made)
    p14._taught("PRD", split("digits", steps=2), seed=0)
    assert [later for later, earlier in zip(epochs[1:], epochs, strict=False) if later < earlier] == [1]
    assert max(epochs) == 2 and epochs[-1] == 1


def test_its_encoder_augments_in_training_alone() -> None:
    stream = split("digits")
    encoder = p14._encoder(stream)
    data = stream[0].train[:20]
    assert not torch.equal(encoder.train().prepare(data), encoder.prepare(data))
    assert torch.equal(encoder.eval().prepare(data), encoder.prepare(data))


def test_the_paper_is_built() -> None:
    assert find("prd").built
