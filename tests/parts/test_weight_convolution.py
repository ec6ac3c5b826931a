"""Convolutions over weight matrices, and the entropy over views."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latewood.core.errors import ConfigurationError
from latewood.core.seeding import seeded
from latewood.parts.view_entropy import view_entropy
from latewood.parts.weight_convolution import WeightConvolution

MATRICES, HEADS, WIDTH = 3, 4, 16


def made(kernel: int = 5, gate: bool = True) -> WeightConvolution:
    with seeded(0):
        return WeightConvolution(MATRICES, HEADS, kernel, gate)


def base() -> Tensor:
    return torch.randn(MATRICES, WIDTH, 24, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kernel", [1, 3, 7, 15])
def test_the_shape_stays_for_every_odd_kernel(kernel: int) -> None:
    assert made(kernel)(base()).shape == base().shape


def test_it_is_one_convolution_of_one_channel_for_each_head_of_each_matrix() -> None:
    convolution, weights = made(), base()
    found, rows = convolution(weights), WIDTH // HEADS
    for matrix in range(MATRICES):
        for head in range(HEADS):
            number = matrix * HEADS + head
            single = nn.Conv2d(1, 1, 5, padding="same")
            single.weight.data.copy_(convolution.weight[number : number + 1])
            single.bias.data.copy_(convolution.bias[number : number + 1])  # type: ignore[union-attr]
            part = weights[matrix, head * rows : (head + 1) * rows]
            wanted = single(part[None, None])[0, 0] + torch.tensor(1.0).sigmoid() * part
            assert torch.allclose(found[matrix, head * rows : (head + 1) * rows], wanted, atol=1e-6)


def test_a_scaled_delta_beside_the_gate_gives_the_weight_back() -> None:
    convolution = made()
    with torch.no_grad():
        convolution.weight.zero_()
        convolution.bias.zero_()
        assert torch.allclose(convolution(base()), torch.tensor(1.0).sigmoid() * base(), atol=1e-6)
        convolution.weight[:, 0, 2, 2] = 1 - torch.tensor(1.0).sigmoid()
    assert torch.allclose(convolution(base()), base(), atol=1e-6)


def test_without_a_gate_there_is_the_convolution_alone() -> None:
    convolution = made(gate=False)
    with torch.no_grad():
        convolution.weight.zero_()
        convolution.bias.fill_(0.25)
    assert torch.equal(convolution(base()), torch.full_like(base(), 0.25))
    assert {name for name, _ in convolution.named_parameters()} == {"weight", "bias"}


def test_a_heads_kernel_changes_its_own_rows_alone() -> None:
    convolution = made()
    before = convolution(base())
    with torch.no_grad():
        convolution.weight[HEADS + 2] += 1
    changed = (convolution(base()) != before).any(2)
    assert changed.nonzero().tolist() == [[1, row] for row in range(8, 12)]


def test_gradients_reach_kernel_bias_and_gate() -> None:
    convolution, weights = made(), base().requires_grad_()
    convolution(weights.detach()).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in convolution.parameters())
    assert weights.grad is None


def test_it_starts_as_torchs_convolution_does_with_an_open_gate() -> None:
    convolution = made(15)
    assert convolution.gate is not None and bool((convolution.gate == 1).all())
    assert 0.9 / 15 < convolution.weight.abs().max() <= 1 / 15
    assert 0 < convolution.bias.abs().max() <= 1 / 15


@pytest.mark.parametrize("kernel", [0, 2, -3])
def test_a_kernel_that_has_no_middle_is_refused(kernel: int) -> None:
    with pytest.raises(ConfigurationError, match="kernel must be odd"):
        made(kernel)


def test_heads_that_do_not_divide_the_rows_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="divided among 4 heads"):
        made()(torch.randn(MATRICES, 10, 10))


def test_equal_views_have_the_plain_entropy() -> None:
    logits = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    chances = logits.softmax(1)
    wanted = -(chances * (chances + 1e-4).log()).sum(1)
    assert torch.allclose(view_entropy(logits.expand(16, -1, -1)), wanted, atol=1e-6)
    assert torch.allclose(view_entropy(logits[None]), wanted)


def test_it_is_the_entropy_of_the_averaged_logits_and_counts_views_as_often_as_told() -> None:
    logits = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(1))
    repeated = torch.cat([logits[:1].expand(6, -1, -1), logits[1:]])
    assert torch.allclose(view_entropy(logits, torch.tensor([6.0, 1.0, 1.0])), view_entropy(repeated), atol=1e-6)
    each = torch.stack([view_entropy(view[None]) for view in logits]).mean(0)
    assert not torch.allclose(view_entropy(logits), each, atol=1e-2)
    assert torch.allclose(view_entropy(logits), torch.distributions.Categorical(logits=logits.mean(0)).entropy(), atol=2e-3)


def test_certain_predictions_have_the_least_entropy() -> None:
    sure, unsure = F.one_hot(torch.tensor([2]), 5) * 9.0, torch.zeros(1, 5)
    assert view_entropy(sure[None]) < view_entropy(unsure[None])
