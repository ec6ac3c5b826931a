"""Subspaces: the sketch's bound, the basis that grows, and the projected Adam, which never enters it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from latewood.core.errors import ConfigurationError
from latewood.parts.subspaces import (
    SubspaceAdam,
    SubspaceRecipe,
    Subspaces,
    SubspaceSettings,
    frequent_directions,
    leading,
)

COUNT, ROWS, COLUMNS = 3, 24, 32


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(
    rank: int = 4, sketch: int = 8, count: int = COUNT, shape: tuple[int, int] = (ROWS, COLUMNS), **more: Any
) -> Subspaces:
    return Subspaces(count, *shape, SubspaceSettings(rank, sketch, **more))


def weights(count: int = COUNT, shape: tuple[int, int] = (ROWS, COLUMNS), seed: int = 0) -> list[nn.Parameter]:
    return [nn.Parameter(values) for values in torch.randn(count, *shape, generator=chance(seed))]


def gradients(seed: int, rank: int = 6, count: int = COUNT, shape: tuple[int, int] = (ROWS, COLUMNS)) -> Tensor:
    left, right = (torch.randn(count, size, rank, generator=chance(10 * seed + n)) for n, size in enumerate(shape))
    return left * torch.arange(rank, 0, -1) @ right.mT


def steps(subspaces: Subspaces, matrices: list[nn.Parameter], *seeds: int, **more: Any) -> None:
    for seed in seeds:
        for matrix, gradient in zip(matrices, gradients(seed, count=len(matrices)), strict=True):
            matrix.grad = gradient
        subspaces.step(matrices, lr=0.01, **more)


def stacked(matrices: list[nn.Parameter]) -> Tensor:
    return torch.stack([m.detach().clone() for m in matrices])


def bits(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (30, 30)], ids=str)
def test_leading_directions_are_those_of_the_svd(shape: tuple[int, int]) -> None:
    matrices = torch.randn(2, *shape, generator=chance())
    vectors, values = leading(matrices, 10)
    wanted, sizes, _ = torch.linalg.svd(matrices, full_matrices=False)
    assert torch.allclose(values, sizes[:, :10], rtol=1e-5)
    assert torch.allclose((vectors * wanted[..., :10]).sum(1).abs(), torch.ones(2, 10), atol=1e-4)
    assert torch.allclose(vectors.mT @ vectors, torch.eye(10).expand(2, -1, -1), atol=1e-5)


def test_squaring_costs_no_small_singular_value() -> None:
    wanted = torch.tensor([1.0, 1e-2, 1e-5])
    left, right = (torch.linalg.qr(torch.randn(20, 3, generator=chance(n)))[0] for n in (0, 1))
    _, values = leading(left * wanted @ right.T, 3)
    assert torch.allclose(values, wanted, rtol=0.02)


def test_the_approximate_decomposition_is_close_where_the_spectrum_falls() -> None:
    left, right = (torch.linalg.qr(torch.randn(2, 96, 96, generator=chance(n)))[0] for n in (0, 1))
    spectrum = 0.9 ** torch.arange(96)
    matrices = left * spectrum @ right.mT
    exact, sizes = leading(matrices, 12)
    vectors, values = leading(matrices, 12, exact=False)
    assert torch.allclose(vectors.mT @ vectors, torch.eye(12).expand(2, -1, -1), atol=1e-5)
    assert torch.allclose(values, sizes, rtol=0.02)
    # How much of the energy that the best directions catch is caught.
    caught = [(part.mT @ matrices).square().sum() for part in (vectors, exact)]
    assert 0.99 * caught[1] < caught[0] <= 1.0001 * caught[1]
    assert not torch.equal(vectors, exact)
    assert torch.equal(vectors, leading(matrices, 12, exact=False)[0]), "it draws nothing from outside"


def test_a_matrix_of_low_rank_is_found_exactly_by_the_approximation() -> None:
    matrices = gradients(0, rank=6, shape=(40, 50))
    (vectors, values), (_, wanted) = leading(matrices, 12, exact=False), leading(matrices, 12)
    assert torch.allclose(values, wanted, atol=1e-3)
    assert torch.allclose(vectors[..., :6] @ (vectors[..., :6].mT @ matrices), matrices, atol=1e-3)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(1, 8), size=st.integers(1, 10))
def test_a_sketch_is_below_the_sum_by_at_most_its_bound(seed: int, count: int, size: int) -> None:
    subspaces = made(rank=1, sketch=size, count=1, shape=(12, 12))
    parts = [gradients(seed + n, rank=12, count=1, shape=(12, 12)) for n in range(count)]
    matrices = weights(1, (12, 12))
    for part in parts:
        matrices[0].grad = part[0]
        subspaces.step(matrices, lr=0.0)
    whole = torch.cat([part[0] for part in parts], 1).double()
    sketch = subspaces.sketch[0].double()
    spectrum = torch.linalg.eigvalsh(whole @ whole.T - sketch @ sketch.T)
    energy = float(whole.square().sum())
    assert spectrum.min() > -1e-5 * energy
    assert spectrum.max() <= energy / (size + 1) * (1 + 1e-5)


def test_a_sketch_of_what_has_no_more_directions_than_it_is_exact() -> None:
    base = torch.linalg.qr(torch.randn(ROWS, 5, generator=chance()))[0]
    subspaces, matrices, total = made(sketch=6, count=1), weights(1), torch.zeros(ROWS, ROWS)
    for seed in range(4):
        gradient = base @ torch.randn(5, COLUMNS, generator=chance(seed))
        total += gradient @ gradient.T
        matrices[0].grad = gradient
        subspaces.step(matrices, lr=0.0)
    assert torch.allclose(subspaces.sketch[0] @ subspaces.sketch[0].T, total, atol=1e-4 * float(total.norm()))


def test_a_sketch_takes_the_next_squared_value_off_all_before_it() -> None:
    sketch = frequent_directions(torch.eye(4)[:, :3], torch.tensor([5.0, 4.0, 3.0]))
    assert torch.allclose(sketch.norm(dim=0), torch.tensor([4.0, 7.0**0.5]))


def test_the_basis_stays_orthonormal_and_is_never_entered() -> None:
    subspaces, matrices = made(threshold=0.8), weights()
    for task in range(4):
        start, before = stacked(matrices), subspaces.bases()
        for step in range(5):
            steps(subspaces, matrices, 100 * task + step)
            each = subspaces.projection.mT @ subspaces.projection
            assert torch.allclose(each, torch.eye(4).expand(COUNT, -1, -1), atol=1e-5)
            if task:
                assert (before.mT @ subspaces.projection).abs().max() < 1e-4
        change = stacked(matrices) - start
        if task:
            assert before.shape[-1] > 0
            assert (before.mT @ change).abs().max() <= 1e-4 * change.norm()
        subspaces.conclude()
        for part in subspaces.basis.split(subspaces.kept.tolist(), 1):
            assert torch.allclose(part.T @ part, torch.eye(part.shape[1]), atol=1e-4)
        assert not subspaces.mean.numel() and not subspaces.projection.numel() and int(subspaces.steps) == 0


def test_without_orthogonality_the_basis_is_entered() -> None:
    subspaces, matrices = made(orthogonal=False), weights()
    steps(subspaces, matrices, 0)
    subspaces.conclude()
    start = stacked(matrices)
    steps(subspaces, matrices, 0)
    assert (subspaces.bases().mT @ (stacked(matrices) - start)).abs().max() > 1e-3


def test_old_gradients_have_no_slope_along_the_new_change() -> None:
    subspaces, matrices = made(rank=4, sketch=12, threshold=1.0), weights()
    old = gradients(0)
    steps(subspaces, matrices, 0)
    subspaces.conclude()
    assert set(subspaces.kept.tolist()) <= {5, 6}, "those of a gradient of rank 6, up to the rounding of the last one"
    held = subspaces.bases() @ (subspaces.bases().mT @ old)
    start = stacked(matrices)
    steps(subspaces, matrices, 1, 2, 3)
    change = stacked(matrices) - start
    assert (held * change).sum((1, 2)).abs().max() < 1e-4 * float(old.norm() * change.norm())


@pytest.mark.parametrize("gap", [1, 10])
def test_one_step_has_the_rank_and_many_more_of_it_only_as_the_subspace_moves(gap: int) -> None:
    subspaces, matrices = made(gap=gap), weights()
    start = stacked(matrices)
    steps(subspaces, matrices, 0)
    first = torch.linalg.matrix_rank(stacked(matrices) - start, rtol=1e-3)
    assert first.max() <= 4
    steps(subspaces, matrices, *range(1, 6))
    rank = torch.linalg.matrix_rank(stacked(matrices) - start, rtol=1e-3)
    assert bool((rank > 4).all()) == (gap == 1)


@pytest.mark.parametrize("gap", [1, 3])
def test_the_sketch_sees_the_gradients_of_refreshes_alone(gap: int) -> None:
    both = []
    for second in (1, 2):
        subspaces, matrices = made(gap=gap), weights()
        steps(subspaces, matrices, 0, second)
        both.append(subspaces.sketch)
    assert torch.equal(*both) == (gap == 3)


def test_a_gradient_of_low_rank_moves_nothing_outside_of_it() -> None:
    subspaces, matrices = made(rank=8), weights()
    start = stacked(matrices)
    for seed in range(2):
        for matrix, gradient in zip(matrices, gradients(seed, rank=2), strict=True):
            matrix.grad = gradient
        subspaces.step(matrices, lr=0.01)
        assert (subspaces.projection.norm(dim=1) > 0.5).sum(1).tolist() == [2] * COUNT
    assert stacked(matrices).isfinite().all()
    assert torch.linalg.matrix_rank(stacked(matrices) - start, rtol=1e-3).max() <= 4


def test_a_gradient_inside_the_basis_moves_nothing() -> None:
    subspaces, matrices = made(rank=6, sketch=12, threshold=1.0), weights()
    steps(subspaces, matrices, 0)
    subspaces.conclude()
    start, basis = stacked(matrices), subspaces.bases()
    inside = basis @ torch.randn(COUNT, basis.shape[-1], COLUMNS, generator=chance())
    for matrix, gradient in zip(matrices, inside, strict=True):
        matrix.grad = gradient
    subspaces.step(matrices, lr=0.01)
    assert torch.equal(stacked(matrices), start)
    for matrix in matrices:
        matrix.grad = None
    subspaces.step(matrices, lr=0.01)
    assert torch.equal(stacked(matrices), start)


def test_in_the_whole_space_it_is_adam_in_other_coordinates() -> None:
    subspaces, matrices = made(rank=ROWS, gap=1000), weights(1)
    subspaces = made(rank=ROWS, gap=1000, count=1)
    plain = nn.Parameter(matrices[0].detach().clone())
    optimizer, turn = SubspaceAdam([{"params": [plain]}], lr=0.01), torch.empty(0)
    start = matrices[0].detach().clone()
    for seed in range(6):
        gradient = gradients(seed, rank=ROWS, count=1)[0]
        matrices[0].grad = gradient
        subspaces.step(matrices, lr=0.01)
        if seed == 0:
            turn = subspaces.projection[0].clone()
            assert torch.allclose(turn @ turn.T, torch.eye(ROWS), atol=1e-5)
            plain.data = turn.T @ start
        plain.grad = turn.T @ gradient
        optimizer.step()
    assert torch.allclose(turn @ plain, matrices[0], atol=1e-5)


def test_with_the_identity_as_projection_it_is_this_adam() -> None:
    subspaces, matrices = made(rank=ROWS, gap=1000), weights()
    plain = [nn.Parameter(m.detach().clone()) for m in matrices]
    optimizer = SubspaceAdam([{"params": plain}], lr=0.01)
    for seed in range(5):
        for matrix, other, gradient in zip(matrices, plain, gradients(seed), strict=True):
            matrix.grad, other.grad = gradient, gradient.clone()
        if seed == 0:
            optimizer.zero_grad()
            subspaces.step(matrices, lr=0.0)  # a refresh, which the identity replaces
            subspaces.projection = torch.eye(ROWS).repeat(COUNT, 1, 1)
            subspaces.mean.zero_()
            subspaces.square.zero_()
            subspaces.steps.fill_(0)
            subspaces.settings = SubspaceSettings(ROWS, 8, 1000)
            subspaces._refresh = lambda *_: None  # type: ignore[method-assign]
            continue
        optimizer.step()
        subspaces.step(matrices, lr=0.01)
    for matrix, other in zip(matrices, plain, strict=True):
        assert torch.allclose(matrix, other, atol=1e-6) and not torch.equal(matrix, weights()[0])


def test_plain_parameters_follow_adam_with_the_correction_outside() -> None:
    ours, theirs = (nn.Parameter(torch.zeros(5)) for _ in range(2))
    optimizer, adam = SubspaceAdam([{"params": [ours]}], lr=0.1, eps=1e-12), torch.optim.Adam([theirs], lr=0.1, eps=1e-12)
    for seed in range(4):
        ours.grad = theirs.grad = torch.randn(5, generator=chance(seed))
        optimizer.step()
        adam.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "threshold", "least", "kept"),
    [
        ((3.0, 2.0, 1.0), 0.98, False, 2),  # shares 9/14, 13/14, 1
        ((3.0, 2.0, 1.0), 0.9, False, 1),
        ((10.0, 1.0, 0.1), 0.98, False, 0),  # one dominant direction: none
        ((10.0, 1.0, 0.1), 0.98, True, 1),
        ((0.0, 0.0, 0.0), 0.98, True, 0),
    ],
)
def test_directions_are_kept_strictly_below_the_threshold(
    values: tuple[float, ...], threshold: float, least: bool, kept: int
) -> None:
    subspaces = made(sketch=3, count=1, threshold=threshold, at_least_one=least)
    subspaces.sketch = (torch.eye(ROWS)[:, :3] * torch.tensor(values))[None]
    subspaces.conclude()
    assert subspaces.kept.tolist() == [kept]


def test_a_full_basis_stops_growing_and_says_so() -> None:
    subspaces, matrices = made(rank=4, sketch=10, threshold=1.0, count=1, shape=(12, 12)), weights(1, (12, 12))
    with pytest.warns(UserWarning, match="fewer than the rank of 4"):
        for task in range(6):
            for step in range(3):
                matrices[0].grad = gradients(10 * task + step, rank=12, count=1, shape=(12, 12))[0]
                subspaces.step(matrices, lr=0.01)
            subspaces.conclude()
    assert int(subspaces.kept) <= 12
    assert torch.allclose(subspaces.basis.T @ subspaces.basis, torch.eye(int(subspaces.kept)), atol=1e-4)


def test_its_state_is_as_large_as_the_formula_says() -> None:
    subspaces, matrices = made(rank=5, sketch=9), weights()
    for task in range(2):
        steps(subspaces, matrices, task)
        floats = sum(value.numel() for value in subspaces.state_dict().values() if value.is_floating_point())
        basis = ROWS * int(subspaces.kept.sum())
        assert floats == COUNT * (2 * 5 * COLUMNS + ROWS * 5 + ROWS * 9) + basis
        subspaces.conclude()
    assert int(subspaces.kept.sum()) > 0


@pytest.mark.parametrize("exact", [True, False])
def test_a_state_saved_in_the_middle_of_a_task_goes_on_bit_for_bit(exact: bool) -> None:
    subspaces, matrices = made(gap=2, exact=exact, threshold=0.9), weights()
    steps(subspaces, matrices, 0, 1)
    subspaces.conclude()
    steps(subspaces, matrices, 2, 3, 4)
    other, copies = made(gap=2, exact=exact, threshold=0.9), copy.deepcopy(matrices)
    other.load_state_dict(bits(subspaces))
    for one, own in ((subspaces, matrices), (other, copies)):
        steps(one, own, 5, 6, 7)
        one.conclude()
        steps(one, own, 8)
    assert torch.equal(stacked(matrices), stacked(copies))
    before, after = bits(subspaces), bits(other)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_aligned_directions_never_point_against_those_before() -> None:
    subspaces, matrices = made(align_sign=True), weights()
    steps(subspaces, matrices, 0)
    for seed in range(1, 6):
        before = subspaces.projection
        steps(subspaces, matrices, seed)
        assert (subspaces.projection * before).sum(1).min() >= 0


def test_only_the_last_gradient_is_remembered_if_that_is_asked() -> None:
    subspaces, matrices = made(rank=2, sketch=10, memory="last"), weights()
    steps(subspaces, matrices, 0, 1)
    wanted = gradients(1)
    held = subspaces.sketch @ subspaces.sketch.mT
    assert torch.allclose(held, wanted @ wanted.mT, rtol=1e-3, atol=1e-3 * float(wanted.norm()))


def test_a_weight_of_four_dimensions_is_a_matrix_with_a_row_for_each_output() -> None:
    flat, whole = weights(1, (24, 36)), [nn.Parameter(weights(1, (24, 36))[0].detach().reshape(24, 4, 3, 3))]
    for matrices in (flat, whole):
        matrices[0].grad = gradients(0, count=1, shape=(24, 36))[0].reshape(matrices[0].shape)
        made(count=1, shape=(24, 36)).step(matrices, lr=0.01)
    assert torch.equal(flat[0], whole[0].flatten(1))


def test_weight_decay_is_apart_from_the_gradient() -> None:
    subspaces, matrices = made(), weights()
    start = stacked(matrices)
    for matrix in matrices:
        matrix.grad = torch.zeros_like(matrix)
    subspaces.step(matrices, lr=0.1, weight_decay=0.5)
    assert torch.allclose(stacked(matrices), start * 0.95)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rank": 0}, "rank must be at least 1"),
        ({"gap": 0}, "gap must be at least 1"),
        ({"threshold": 0.0}, "threshold is a share"),
        ({"decay": 1.5}, "decay must lie"),
        ({"rank": 25}, "rank of at most 24"),
        ({"sketch": 24}, "sketch below 24"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        made(**change)


def test_the_recipe_refuses_another_optimiser_and_falls_once_an_epoch() -> None:
    with pytest.raises(ConfigurationError, match="must stay 'adam'"):
        SubspaceRecipe(optimizer="sgd")  # type: ignore[arg-type]
    rates = [SubspaceRecipe(epochs=5).rate(step, 50) for step in range(50)]
    assert len(set(rates)) == 5 and rates[0] == 1 and 0 < rates[-1] < 0.02
    assert SubspaceRecipe(epochs=5, schedule="constant").rate(40, 50) == 1
