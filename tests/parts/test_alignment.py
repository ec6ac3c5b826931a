"""Alignment: what it does to a head, and the normalisation of its logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from latewood.core.errors import ConfigurationError
from latewood.parts.alignment import Alignment, align, mean_shrink, normalised
from latewood.parts.gaussians import Gaussians
from latewood.parts.heads import LinearHead

TASKS = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 2, 2])
QUICK = Alignment(passes=3, samples=32, rate=0.1)


def logits(seed: int = 0, rows: int = 6) -> Tensor:
    return torch.randn(rows, 10, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def setting() -> tuple[LinearHead, Gaussians, Tensor, Tensor]:
    """Two arrivals of two classes; the head thinks the newer ones are always right."""
    generator = torch.Generator().manual_seed(0)
    columns = torch.arange(200) % 4
    features = 4 * torch.eye(4)[columns] + torch.randn(200, 4, generator=generator)
    gaussians, old = Gaussians(4), columns < 2
    gaussians.fit(features[old], columns[old], 2)
    gaussians.fit(features[~old], columns[~old], 4)
    head = LinearHead(4)
    head.grow(4, generator)
    with torch.no_grad():
        head.weight.copy_(0.2 * torch.eye(4))
        head.bias[2:] = 5.0
    return head, gaussians, features, columns


def test_the_norms_are_those_of_each_tasks_logits() -> None:
    values = logits()
    norms = torch.stack([values[:, task == TASKS].norm(dim=1) for task in range(3)]).mean(0)
    assert torch.allclose(normalised(values, TASKS, 0.1), values / (0.1 * norms[:, None]), rtol=1e-6)


def test_a_positive_factor_on_all_logits_changes_nothing_and_the_order_never_changes() -> None:
    values = logits()
    assert torch.allclose(normalised(values, TASKS, 0.1), normalised(1000 * values, TASKS, 0.1), rtol=1e-6)
    assert torch.equal(normalised(values, TASKS, 0.1).argsort(1), values.argsort(1))
    ratio = normalised(values, TASKS, 0.1) / values
    assert torch.allclose(ratio, ratio[:, :1].expand_as(ratio))


def test_the_gradient_flows_through_the_norms() -> None:
    values = logits().requires_grad_()
    loss = F.cross_entropy(normalised(values, TASKS, 0.1), torch.arange(6))
    (gradient,) = torch.autograd.grad(loss, values)
    # Invariance to scale means that the gradient is orthogonal to the logits; with the norms detached it is not.
    assert (gradient * values).sum(1).abs().max() < 1e-5 * gradient.norm()
    assert torch.autograd.gradcheck(lambda v: normalised(v, TASKS, 0.1), (values,))


def test_logits_of_zero_have_finite_gradients() -> None:
    values = torch.zeros(2, 10, requires_grad=True)
    normalised(values, TASKS, 0.1).sum().backward()
    assert values.grad is not None and bool(torch.isfinite(values.grad).all())


def test_means_shrink_by_age_and_not_at_all_for_the_newest() -> None:
    factors = mean_shrink(TASKS, 0.9)
    assert torch.allclose(factors, (0.9 + 0.1 * (TASKS + 1) / 3))
    assert factors[-2:].tolist() == [1, 1] and bool(((factors > 0.9) & (factors <= 1)).all())
    assert mean_shrink(TASKS, 1.0).tolist() == [1.0] * 10


@pytest.mark.parametrize("temperature", [0.1, None])
def test_a_head_that_prefers_the_newest_classes_is_balanced(temperature: float | None) -> None:
    head, gaussians, features, columns = setting()
    before = (head(features).argmax(1) == columns).double().mean()
    align(head, gaussians, Alignment(passes=5, samples=32, rate=0.1, temperature=temperature), torch.Generator())
    after = (head(features).argmax(1) == columns).double().mean()
    assert float(before) < 0.6 and float(after) > 0.9


def test_the_gaussians_stay_as_they_are_and_the_same_seed_gives_the_same_bits() -> None:
    heads = []
    for seed in (0, 0, 1):
        head, gaussians, _, _ = setting()
        before = {name: value.clone() for name, value in gaussians.state_dict().items()}
        align(head, gaussians, QUICK, torch.Generator().manual_seed(seed))
        assert all(torch.equal(value, before[name]) for name, value in gaussians.state_dict().items())
        heads.append(head.weight.detach().clone())
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_batches_are_not_in_order_of_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    head, gaussians, _, _ = setting()
    seen: list[Tensor] = []

    def watched(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(targets)
        return outputs.sum() * 0

    monkeypatch.setattr("latewood.parts.alignment.F.cross_entropy", watched)
    align(head, gaussians, QUICK, torch.Generator())
    assert len(seen) == 3 * 4 and all(len(batch) == 32 for batch in seen)
    assert all(len(batch.unique()) == 4 for batch in seen)
    assert torch.cat(seen[:4]).bincount().tolist() == [32] * 4


def test_impossible_settings_get_a_sentence() -> None:
    for settings, message in (
        ({"passes": 0}, "passes must be at least 1"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"shrink": 0.0}, "shrink must lie above 0"),
        ({"temperature": 0.0}, "temperature must be above 0"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            Alignment(**settings)  # type: ignore[arg-type]
