"""Learning rates by unit: what the multipliers are, that they do not compound, and that measuring leaves no trace."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from latewood.core.errors import ConfigurationError, DataError
from latewood.parts.unit_rates import adapt_unit_rates, rate_multipliers, set_unit_rates, unit_groups, unit_importance

Batch = tuple[Tensor, Tensor]


class Block(nn.Module):
    """Norm, two projections, dropout, and a part that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.LayerNorm(6)
        self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 3)
        self.drop = nn.Dropout(0.5)
        self.frozen = nn.Linear(6, 6)
        self.frozen.requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden: Tensor = self.down(self.drop(F.silu(self.up(self.norm(self.frozen(inputs))))))
        return hidden


def batches(count: int, first: int = 0) -> list[Batch]:
    result = []
    for number in range(first, first + count):
        chance = torch.Generator().manual_seed(number)
        result.append((torch.randn(5, 6, generator=chance), torch.randint(3, (5,), generator=chance)))
    return result


def loss_of(block: nn.Module) -> Callable[[Batch], Tensor]:
    return lambda batch: F.cross_entropy(block(batch[0]), batch[1])


def trained(steps: int = 3) -> tuple[Block, torch.optim.Optimizer]:
    block = Block()
    optimizer = torch.optim.AdamW(unit_groups(block), lr=1e-2, weight_decay=0.1)
    for batch in batches(steps):
        train(block, optimizer, batch)
    return block, optimizer


def train(block: Block, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    block.train()
    optimizer.zero_grad()
    loss_of(block)(batch).backward()
    optimizer.step()


# Units


def test_each_trainable_tensor_is_a_group_of_its_own_and_norms_do_not_decay() -> None:
    groups = unit_groups(Block())
    assert [g["unit"] for g in groups] == ["norm.weight", "norm.bias", "up.weight", "up.bias", "down.weight", "down.bias"]
    assert all(len(g["params"]) == 1 for g in groups)
    assert [g["norm"] for g in groups] == [True, True, False, False, False, False]
    assert [g.get("weight_decay") for g in groups] == [0.0, 0.0, None, None, None, None]


def test_importance_is_weight_times_mean_gradient_in_absolute_values() -> None:
    block, _ = trained()
    probe = batches(4, first=50)
    found = unit_importance(block, loss_of(block), probe)
    block.eval()
    for name, parameter in block.named_parameters():
        if not parameter.requires_grad:
            assert name not in found
            continue
        total = torch.zeros_like(parameter)
        for batch in probe:
            block.zero_grad()
            loss_of(block)(batch).backward()
            assert parameter.grad is not None
            total += parameter.grad.abs()
        weights = parameter.detach().abs().flatten().tolist()
        expected = sum(weight * part / 4 for weight, part in zip(weights, total.flatten().tolist(), strict=True))
        assert found[name] == pytest.approx(expected / parameter.numel(), rel=1e-4)
        assert found[name] > 0


def test_a_silent_copy_has_no_importance_before_its_first_step() -> None:
    block = Block()
    nn.init.zeros_(block.down.weight)
    nn.init.zeros_(block.down.bias)
    found = unit_importance(block, loss_of(block), batches(2))
    assert set(found.values()) == {0.0}
    assert set(rate_multipliers(found).values()) == {1.0}


# Multipliers


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=9, unique=True))
@settings(max_examples=60, deadline=None)
def test_the_most_important_unit_rests_and_the_least_important_learns_twice_as_fast(values: list[float]) -> None:
    importance = {str(i): value for i, value in enumerate(values)}
    found = rate_multipliers(importance)
    assert found[max(importance, key=lambda name: importance[name])] == 0
    assert found[min(importance, key=lambda name: importance[name])] == 2
    assert all(0 <= multiplier <= 2 for multiplier in found.values())
    ordered = sorted(importance, key=lambda name: importance[name])
    assert [found[name] for name in ordered] == sorted(found.values(), reverse=True)


@pytest.mark.parametrize("value", [0.0, 3.5])
def test_equal_importances_leave_all_rates_as_they_are(value: float) -> None:
    assert rate_multipliers({"a": value, "b": value, "norm": value}, norms=["norm"]) == {"a": 1.0, "b": 1.0, "norm": 1.0}
    assert rate_multipliers({"a": value}) == {"a": 1.0}


def test_norms_of_great_importance_press_the_others_together_only_if_all_share_one_range() -> None:
    importance = {"q": 1.0, "up": 2.0, "down": 3.0, "norm": 1001.0}
    joint = rate_multipliers(importance, ["norm"], "joint")
    split = rate_multipliers(importance, ["norm"], "split")
    assert joint == pytest.approx({"q": 2.0, "up": 1.998, "down": 1.996, "norm": 0.0})
    assert split == {"q": 2.0, "up": 1.0, "down": 0.0, "norm": 0.0}


def test_a_norm_is_rated_by_the_range_of_all_units() -> None:
    importance = {"q": 0.0, "down": 8.0, "norm": 4.0, "other norm": 16.0}
    assert rate_multipliers(importance, ["norm", "other norm"]) == {"q": 2.0, "down": 0.0, "norm": 1.5, "other norm": 0.0}


def test_an_unknown_normalisation_is_told() -> None:
    with pytest.raises(ConfigurationError, match="'joint' or 'split', but it is 'none'"):
        rate_multipliers({"a": 1.0}, normalisation="none")  # type: ignore[arg-type]


# Rates


def rates(optimizer: torch.optim.Optimizer, key: str = "lr") -> list[float]:
    return [group[key] for group in optimizer.param_groups]


MULTIPLIERS = {
    "norm.weight": 0.0, "norm.bias": 0.5, "up.weight": 1.0, "up.bias": 1.25, "down.weight": 1.5, "down.bias": 2.0,
}  # fmt: skip


def test_multipliers_do_not_compound_and_the_schedule_multiplies_on_top() -> None:
    _, optimizer = trained(0)

    def schedule(step: int) -> float:
        return 0.9**step

    scheduler = LambdaLR(optimizer, schedule)
    for step in range(1, 9):
        optimizer.step()
        scheduler.step()
        if step in (3, 5):
            set_unit_rates(optimizer, MULTIPLIERS, scheduler)
        wanted = [1e-2 * (m if step >= 3 else 1) * schedule(step) for m in MULTIPLIERS.values()]
        assert rates(optimizer) == pytest.approx(wanted, abs=1e-15)
    set_unit_rates(optimizer, dict.fromkeys(MULTIPLIERS, 1.0), scheduler)
    assert rates(optimizer) == pytest.approx([1e-2 * schedule(8)] * 6)


def test_without_a_scheduler_the_base_rate_is_what_changes() -> None:
    _, optimizer = trained(0)
    for _ in range(2):
        set_unit_rates(optimizer, MULTIPLIERS)
        assert rates(optimizer, "initial_lr") == pytest.approx([1e-2 * m for m in MULTIPLIERS.values()])
    assert rates(optimizer) == [1e-2] * 6  # the loop's own, until it sets the next


def test_rates_do_not_compound_over_a_checkpoint_either() -> None:
    _, optimizer = trained(2)
    scheduler = LambdaLR(optimizer, lambda step: 0.9**step)
    set_unit_rates(optimizer, MULTIPLIERS, scheduler)
    saved = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
    _, resumed = trained(0)
    again = LambdaLR(resumed, lambda step: 0.9**step)
    resumed.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    for some in (scheduler, again):
        some.optimizer.step()
        some.step()
    assert rates(resumed) == rates(optimizer)
    set_unit_rates(resumed, MULTIPLIERS, again)
    assert rates(resumed) == rates(optimizer)


def test_a_unit_at_rate_zero_stays_bit_by_bit_while_the_others_learn() -> None:
    block, optimizer = trained(1)
    scheduler = LambdaLR(optimizer, lambda step: 1.0)
    set_unit_rates(optimizer, MULTIPLIERS, scheduler)
    before = {name: p.detach().clone() for name, p in block.named_parameters()}
    for batch in batches(3):
        train(block, optimizer, batch)
    assert [name for name, p in block.named_parameters() if torch.equal(p, before[name])] == [
        "norm.weight", "frozen.weight", "frozen.bias",
    ]  # fmt: skip


def test_with_all_multipliers_one_training_is_as_without_bit_by_bit() -> None:
    results = []
    for adapted in (False, True):
        block, optimizer = trained(0)
        scheduler = LambdaLR(optimizer, lambda step: 0.9**step)
        torch.manual_seed(1)
        for batch in batches(4):
            train(block, optimizer, batch)
            scheduler.step()
            if adapted:
                set_unit_rates(optimizer, dict.fromkeys(MULTIPLIERS, 1.0), scheduler)
        results.append([p.detach().clone() for p in block.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_groups_of_several_tensors_are_refused_and_no_rate_changes() -> None:
    block = Block()
    for groups in ([{"params": list(block.parameters())}], [{"params": list(block.parameters()), "unit": "all"}]):
        optimizer = torch.optim.AdamW(groups, lr=0.1)
        with pytest.raises(ConfigurationError, match="not one unit"):
            set_unit_rates(optimizer, {"all": 1.0})
        assert "initial_lr" not in optimizer.param_groups[0]
    optimizer = torch.optim.AdamW(unit_groups(block), lr=0.1)
    with pytest.raises(ConfigurationError, match=r"no multiplier for the unit 'down\.bias'"):
        set_unit_rates(optimizer, {name: 1.0 for name in MULTIPLIERS if name != "down.bias"})
    assert all("initial_lr" not in group for group in optimizer.param_groups)


# Measuring leaves no trace


def snapshot(block: Block, optimizer: torch.optim.Optimizer) -> list[Any]:
    state = [value.clone() for held in optimizer.state.values() for value in held.values()]
    gradients = [None if p.grad is None else p.grad.clone() for p in block.parameters()]
    numpy_state = np.random.get_state(legacy=True)
    generators = [torch.get_rng_state(), torch.tensor(np.asarray(numpy_state[1]).astype(np.int64)), random.getstate()]
    modes = [module.training for module in block.modules()]
    return [*(p.detach().clone() for p in block.parameters()), *state, *gradients, *generators, modes]


def equal(left: list[Any], right: list[Any]) -> bool:
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("gradients", [True, False])
def test_measuring_changes_neither_weights_nor_optimizer_nor_gradients_nor_chance(gradients: bool) -> None:
    block, optimizer = trained()
    if not gradients:
        optimizer.zero_grad()
    block.up.eval()  # one part in another mode than the rest

    def noisy(batch: Batch) -> Tensor:
        _ = torch.rand(3), np.random.rand(), random.random()  # a loss that draws from global generators
        return loss_of(block)(batch)

    before = snapshot(block, optimizer)
    multipliers = adapt_unit_rates(block, optimizer, noisy, batches(3, first=9))
    assert equal(before, snapshot(block, optimizer))
    assert min(multipliers.values()) == 0
    assert max(multipliers.values()) == 2
    assert rates(optimizer, "initial_lr") == pytest.approx([1e-2 * multipliers[g["unit"]] for g in optimizer.param_groups])


def test_a_loss_that_fails_leaves_everything_as_it_was() -> None:
    block, optimizer = trained()

    def failing(batch: Batch) -> Tensor:
        torch.rand(3)
        raise RuntimeError("no such file")

    before = snapshot(block, optimizer)
    with pytest.raises(RuntimeError, match="no such file"):
        adapt_unit_rates(block, optimizer, failing, batches(1))
    assert equal(before, snapshot(block, optimizer))


def test_it_measures_inside_no_grad_and_the_same_each_time() -> None:
    block, _ = trained()
    with torch.no_grad():
        first = unit_importance(block, loss_of(block), batches(3))
    assert first == unit_importance(block, loss_of(block), batches(3))


def test_an_empty_or_broken_probe_and_a_frozen_module_are_told_and_no_rate_changes() -> None:
    block, optimizer = trained()
    with pytest.raises(DataError, match="holds no batch"):
        adapt_unit_rates(block, optimizer, loss_of(block), [])
    inputs, labels = batches(1)[0]
    with pytest.raises(DataError, match="is not finite"):
        adapt_unit_rates(block, optimizer, loss_of(block), [(inputs * float("nan"), labels)])
    assert all("initial_lr" not in group for group in optimizer.param_groups)
    with pytest.raises(ConfigurationError, match="No parameter is trainable"):
        unit_importance(block.frozen, lambda batch: batch, [torch.zeros(())])
