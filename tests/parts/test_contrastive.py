"""The supervised contrastive loss equals its formula, written out."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from latewood.core.errors import DataError
from latewood.parts.contrastive import supervised_contrastive


def written_out(projections: Tensor, labels: list[int], temperature: float) -> float:
    rows = [row / row.norm() for row in projections.double()]
    total = 0.0
    for i, anchor in enumerate(rows):
        others = [j for j in range(len(rows)) if j != i]
        everything = sum(math.exp(float(anchor @ rows[j]) / temperature) for j in others)
        positives = [j for j in others if labels[j] == labels[i]]
        shares = [math.log(math.exp(float(anchor @ rows[j]) / temperature) / everything) for j in positives]
        total -= temperature / 0.07 * sum(shares) / max(1, len(positives))
    return total / len(rows)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000), rows=st.integers(2, 9), classes=st.integers(1, 4), temperature=st.sampled_from([0.1, 0.3, 1.0])
)
def test_it_equals_a_double_loop(seed: int, rows: int, classes: int, temperature: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    projections = 3 * torch.randn(rows, 5, generator=draw, dtype=torch.float64)
    labels = torch.randint(classes, (rows,), generator=draw)
    found = supervised_contrastive(projections, labels, temperature)
    assert float(found) == pytest.approx(written_out(projections, labels.tolist(), temperature), abs=1e-6)


def test_the_length_and_the_order_of_rows_change_nothing() -> None:
    projections, labels = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
    loss = supervised_contrastive(projections, labels)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        supervised_contrastive(projections[order] * torch.arange(1.0, 13.0)[:, None], labels[order]), loss
    )


def test_one_image_of_a_class_has_its_other_view_and_the_gradient_is_finite() -> None:
    projections = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for labels in (torch.arange(3).repeat(2), torch.arange(6)):
        (gradient,) = torch.autograd.grad(supervised_contrastive(projections, labels, 0.01), projections)
        assert bool(torch.isfinite(gradient).all())
    assert supervised_contrastive(projections, torch.arange(6)) == 0


def test_one_row_gets_a_sentence() -> None:
    with pytest.raises(DataError, match="at least two"):
        supervised_contrastive(torch.ones(1, 3), torch.zeros(1, dtype=torch.int64))
