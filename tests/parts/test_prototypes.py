"""Prototypes are means of raw features whatever the order; the cosine head grows and leaves what it has."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from latewood.parts.prototypes import CosineHead, Prototypes

FEATURES = torch.randn(60, 5, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 61)[:, None]
COLUMNS = torch.arange(60) % 4


def taught(order: torch.Tensor, pieces: int) -> Prototypes:
    made = Prototypes(5)
    for rows in order.chunk(pieces):
        made.update(FEATURES[rows], COLUMNS[rows], classes=4)
    return made


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), pieces=st.integers(1, 60))
def test_order_and_batches_change_nothing(seed: int, pieces: int) -> None:
    order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    difference = taught(order, pieces)(FEATURES) - taught(torch.arange(60), 1)(FEATURES)
    assert difference.abs().max() < 1e-12


def test_scores_are_cosines_with_the_means_of_raw_features() -> None:
    means = torch.stack([FEATURES[column == COLUMNS].double().mean(0) for column in range(4)])
    expected = F.cosine_similarity(FEATURES.double()[:, None], means[None], dim=2)
    torch.testing.assert_close(taught(torch.arange(60), 7)(FEATURES), expected)


def test_a_class_without_samples_never_wins() -> None:
    made = Prototypes(5)
    made.update(FEATURES[:1], torch.tensor([0]), classes=2)
    assert made(-FEATURES[:1])[0].tolist()[1] == -torch.inf


def test_new_rows_leave_the_old_ones_and_a_larger_state_is_taken_on() -> None:
    head, generator = CosineHead(16), torch.Generator().manual_seed(0)
    head.grow(3, generator)
    old = head.weight.detach().clone()
    head.grow(5, generator)
    assert torch.equal(head.weight[:3], old)
    assert head.weight.abs().max() <= 1 / 4
    fresh = CosineHead(16)
    fresh.load_state_dict(head.state_dict())
    features = torch.randn(2, 16)
    assert torch.equal(fresh(features), head(features))


def test_the_scale_is_learned_and_lengths_do_not_matter() -> None:
    head = CosineHead(16)
    head.grow(3, torch.Generator().manual_seed(0))
    features = torch.randn(4, 16)
    assert head.scale.detach() == 1
    torch.testing.assert_close(head(features), head(7 * features))
    F.cross_entropy(head(features), torch.tensor([0, 1, 2, 0])).backward()
    assert head.scale.grad is not None and head.scale.grad != 0
