"""Streaming statistics: exact, in float64, whatever the order and the grouping of what arrives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge
from torch import Tensor
from torch.nn import functional as F

from latewood.core.errors import LatewoodError
from latewood.parts.statistics import ClassSums, Float64, RandomExpansion, RecursiveRidge, SharedCovariance, ridge_solution

quick = settings(max_examples=40, deadline=None)
arrivals = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=10), min_size=1, max_size=8)
seeds = st.integers(0, 2**32 - 1)
WIDTH = 5

Batches = list[list[int]]
Pairs = list[tuple[Tensor, Tensor]]


def draw(rows: int, width: int, seed: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def one_hot(batches: Batches, seed: int, width: int = WIDTH) -> tuple[Pairs, dict[int, int]]:
    """Each batch as rows and one-hot targets over the classes that have arrived by then, in order of arrival."""
    columns: dict[int, int] = {}
    features = draw(sum(map(len, batches)), width, seed).split([len(batch) for batch in batches])
    pairs = []
    for labels, rows in zip(batches, features, strict=True):
        for label in labels:
            columns.setdefault(label, len(columns))
        targets = F.one_hot(torch.tensor([columns[label] for label in labels]), len(columns))
        pairs.append((rows, targets.double()))
    return pairs, columns


def together(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """All batches as one, the targets widened with zeros to the last batch's."""
    classes = pairs[-1][1].shape[1]
    targets = [F.pad(targets, (0, classes - targets.shape[1])) for _, targets in pairs]
    return torch.cat([rows for rows, _ in pairs]), torch.cat(targets)


def learned(pairs: Pairs, gamma: float = 1.0) -> RecursiveRidge:
    ridge = RecursiveRidge(pairs[0][0].shape[1], gamma)
    for rows, targets in pairs:
        ridge.update(rows, targets)
    return ridge


def step(inverse: Tensor, weight: Tensor, rows: Tensor, targets: Tensor, label_gain: bool = True) -> tuple[Tensor, Tensor]:
    """Steps 1 to 4 of the G-ACIL paper as they are written: exposed and unexposed columns apart, an explicit inverse."""
    exposed = weight.shape[1]
    core = torch.linalg.inv(torch.eye(len(rows), dtype=torch.float64) + rows @ inverse @ rows.T)
    inverse = inverse - inverse @ rows.T @ core @ rows @ inverse
    old = weight - inverse @ rows.T @ rows @ weight
    if label_gain:
        old = old + inverse @ rows.T @ targets[:, :exposed]
    new = inverse @ rows.T @ targets[:, exposed:]
    return inverse, torch.cat([old, new], dim=1)


def apart(found: Tensor, wanted: Tensor) -> float:
    """The distance relative to the size of what is wanted."""
    return float((found - wanted).norm() / wanted.norm().clamp(min=1e-300))


def recursion(pairs: Pairs, gamma: float, label_gain: bool) -> Tensor:
    width = pairs[0][0].shape[1]
    inverse, weight = torch.eye(width, dtype=torch.float64) / gamma, torch.zeros(width, 0, dtype=torch.float64)
    for rows, targets in pairs:
        inverse, weight = step(inverse, weight, rows, targets, label_gain)
    return weight


# RecursiveRidge


@quick
@given(arrivals, seeds, st.sampled_from([0.01, 1.0, 100.0]))
@example([[0], [0], [1], [0], [2]], 0, 0.01)  # single rows
@example([[0, 1, 2, 3, 4] * 8], 0, 0.01)  # one batch of everything
@example([[0, 0, 0], [1, 1], [2], [3]], 0, 0.01)  # sorted by class
@example([[0, 1], [2], [0, 0], [3, 1]], 0, 0.01)  # classes that are missing for a while and return beside new ones
def test_the_recursion_equals_the_joint_solution_after_every_arrival(batches: Batches, seed: int, gamma: float) -> None:
    pairs, _ = one_hot(batches, seed)
    ridge = RecursiveRidge(WIDTH, gamma)
    for count, (rows, targets) in enumerate(pairs, start=1):
        ridge.update(rows, targets)
        assert apart(ridge.weight, ridge_solution(*together(pairs[:count]), gamma)) < 1e-8


@quick
@given(arrivals, seeds, st.sampled_from([0.01, 1.0, 100.0]))
def test_the_kept_matrix_is_the_inverse_of_the_regularised_autocorrelation(batches: Batches, seed: int, gamma: float) -> None:
    pairs, _ = one_hot(batches, seed)
    ridge = learned(pairs, gamma)
    ridge.symmetrise()
    rows, _ = together(pairs)
    wanted = torch.linalg.inv(rows.T @ rows + gamma * torch.eye(WIDTH, dtype=torch.float64))
    assert apart(ridge.inverse, wanted) < 1e-6
    assert torch.equal(ridge.inverse, ridge.inverse.T)
    assert float(torch.linalg.eigvalsh(ridge.inverse).min()) > 0


def test_the_kept_matrix_stays_symmetric_and_positive_definite_over_many_small_updates() -> None:
    ridge = RecursiveRidge(8, gamma=0.01)
    for rows in draw(1000, 8, 3).split(2):
        ridge.update(rows, rows[:, :2])
    assert float((ridge.inverse - ridge.inverse.T).abs().max()) < 1e-12 * float(ridge.inverse.abs().max())
    assert float(torch.linalg.eigvalsh((ridge.inverse + ridge.inverse.T) / 2).min()) > 0


@quick
@given(arrivals, seeds, st.randoms(use_true_random=False))
def test_the_order_of_the_samples_leaves_no_trace_in_weights_and_predictions(
    batches: Batches, seed: int, random: Random
) -> None:
    pairs, _ = one_hot(batches, seed)
    rows, targets = together(pairs)
    order = list(range(len(rows)))
    random.shuffle(order)
    # Columns in the order in which the shuffled labels arrive.
    arrived = list(dict.fromkeys(targets[order].argmax(1).tolist()))
    shuffled = learned([(rows[[i]], targets[[i]][:, arrived]) for i in order])
    first = learned(pairs)
    assert apart(shuffled.weight, first.weight[:, arrived]) < 1e-8
    probe = draw(20, WIDTH, seed + 1)
    assert torch.equal(torch.tensor(arrived)[shuffled(probe).argmax(1)], first(probe).argmax(1))


@quick
@given(arrivals, seeds)
def test_an_update_equals_the_papers_formulas_for_exposed_and_unexposed_columns(batches: Batches, seed: int) -> None:
    pairs, _ = one_hot(batches, seed)
    ridge = RecursiveRidge(WIDTH, gamma=1.0)
    inverse, weight = torch.eye(WIDTH, dtype=torch.float64), torch.zeros(WIDTH, 0, dtype=torch.float64)
    for rows, targets in pairs:
        inverse, weight = step(inverse, weight, rows, targets)
        ridge.update(rows, targets)
        assert apart(ridge.inverse, inverse) < 1e-12
        assert apart(ridge.weight, weight) < 1e-12
        inverse, weight = ridge.inverse.clone(), ridge.weight.clone()


def test_without_the_label_gain_the_recursion_is_wrong_when_classes_return() -> None:
    pairs, _ = one_hot([[0, 1] * 10, [1, 2] * 10, [0, 2, 3] * 10], seed=0)
    joint = ridge_solution(*together(pairs), 1.0)
    assert apart(recursion(pairs, 1.0, label_gain=True), joint) < 1e-10
    assert apart(learned(pairs).weight, joint) < 1e-10
    assert apart(recursion(pairs, 1.0, label_gain=False), joint) > 0.1


def test_without_the_label_gain_the_recursion_is_right_when_tasks_are_disjoint() -> None:
    pairs, _ = one_hot([[0, 1] * 10, [2] * 10, [3, 4] * 10], seed=0)
    assert torch.equal(recursion(pairs, 1.0, label_gain=False), recursion(pairs, 1.0, label_gain=True))
    assert apart(learned(pairs).weight, recursion(pairs, 1.0, label_gain=False)) < 1e-12


def test_a_late_class_starts_from_zero_and_changes_no_other_column() -> None:
    pairs, _ = one_hot([[0, 1] * 10, [0, 1, 2] * 5], seed=1)
    grown, old = learned(pairs), learned([(rows, targets[:, :2]) for rows, targets in pairs])
    torch.testing.assert_close(grown.weight[:, :2], old.weight, rtol=1e-12, atol=1e-14)
    alone = learned([(pairs[0][0], torch.zeros(20, 1)), (pairs[1][0], pairs[1][1][:, 2:])])
    torch.testing.assert_close(grown.weight[:, 2:], alone.weight, rtol=1e-12, atol=1e-14)


def test_a_batch_with_fewer_targets_forgets_no_class() -> None:
    rows = draw(10, WIDTH, 0)
    targets = F.one_hot(torch.arange(10) % 4, 4).double()
    ridge = learned([(rows, targets)])
    more = draw(3, WIDTH, 1)
    ridge.update(more, torch.eye(2, dtype=torch.float64)[[0, 1, 1]])
    padded = torch.cat([targets, F.one_hot(torch.tensor([0, 1, 1]), 4)])
    assert ridge.weight.shape == (WIDTH, 4)
    assert apart(ridge.weight, ridge_solution(torch.cat([rows, more]), padded, 1.0)) < 1e-10


@pytest.mark.parametrize("passes", [2, 3])
def test_fitting_a_batch_several_times_weights_its_rows_as_often(passes: int) -> None:
    pairs, _ = one_hot([[0, 1] * 6, [1, 2] * 6], seed=2)
    ridge = learned([pairs[0], *[pairs[1]] * passes])
    rows, targets = together(pairs)
    weights = torch.cat([torch.ones(12), torch.full((12,), float(passes))]).double().sqrt()[:, None]
    assert apart(ridge.weight, ridge_solution(weights * rows, weights * targets, 1.0)) < 1e-10
    assert apart(ridge.weight, ridge_solution(rows, targets, 1.0)) > 1e-3


def test_fitting_everything_three_times_divides_gamma_by_three() -> None:
    pairs, _ = one_hot([[0, 1, 2] * 6], seed=2)
    assert apart(learned(pairs * 3, gamma=3.0).weight, learned(pairs, gamma=1.0).weight) < 1e-10


def test_the_oracle_equals_sklearns_ridge_and_plain_least_squares() -> None:
    rows, targets = draw(30, WIDTH, 0), draw(30, 2, 1)
    found = ridge_solution(rows, targets, 0.7)
    sklearns = Ridge(alpha=0.7, fit_intercept=False).fit(rows.numpy(), targets.numpy()).coef_.T
    np.testing.assert_allclose(found.numpy(), sklearns, rtol=1e-9)
    assert apart(found, least_squares([(rows, targets)], 0.7)) < 1e-12


def ill_conditioned(largest: float, smallest: float) -> Pairs:
    """Rows whose singular values reach from ``largest`` to ``smallest``."""
    left, right = torch.linalg.qr(draw(200, 20, 1))[0], torch.linalg.qr(draw(20, 20, 2))[0]
    values = torch.logspace(np.log10(largest), np.log10(smallest), 20, dtype=torch.float64)
    return list(zip(((left * values) @ right.T).split(10), draw(200, 3, 3).split(10), strict=True))


def least_squares(pairs: Pairs, gamma: float) -> Tensor:
    """The joint solution from the rows themselves, which are never squared: right where the normal equations are not."""
    rows, targets = together(pairs)
    penalty = np.sqrt(gamma) * np.eye(rows.shape[1])
    stacked = np.vstack([rows.numpy(), penalty]), np.vstack([targets.numpy(), np.zeros((rows.shape[1], targets.shape[1]))])
    return torch.from_numpy(np.linalg.lstsq(*stacked, rcond=None)[0])


def test_a_condition_number_of_ten_billion_leaves_six_digits() -> None:
    pairs = ill_conditioned(1e3, 1e-3)
    assert apart(learned(pairs, gamma=1e-4).weight, least_squares(pairs, 1e-4)) < 1e-6


def test_float64_holds_where_float32_would_not() -> None:
    pairs, gamma = ill_conditioned(300, 1e-3), 1e-3
    single = RecursiveRidge(20, gamma)
    single.weight, single.inverse = single.weight.float(), torch.eye(20) / gamma
    for rows, targets in pairs:
        single.update(rows, targets)
    wanted = least_squares(pairs, gamma)
    assert apart(learned(pairs, gamma).weight, wanted) < 1e-7
    assert apart(single.weight.double(), wanted) > 1e-2


def test_an_update_that_cannot_be_solved_is_refused_with_a_sentence_and_changes_nothing() -> None:
    ridge = RecursiveRidge(20, gamma=1e-10)
    with pytest.raises(LatewoodError, match="gamma"):
        for rows, targets in ill_conditioned(1e5, 1.0):
            before = ridge.weight.clone(), ridge.inverse.clone()
            ridge.update(rows, targets)
    assert torch.equal(ridge.weight, before[0])
    assert torch.equal(ridge.inverse, before[1])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["rows", "targets"])
def test_numbers_that_are_not_finite_are_refused_and_change_nothing(where: str, bad: float) -> None:
    ridge = learned([(draw(4, 3, 0), draw(4, 2, 1))])
    before = {name: value.clone() for name, value in ridge.state_dict().items()}
    rows, targets = draw(2, 3, 2), torch.zeros(2, 3)
    (rows if where == "rows" else targets)[1, 1] = bad
    with pytest.raises(LatewoodError):
        ridge.update(rows, targets)
    assert all(torch.equal(value, before[name]) for name, value in ridge.state_dict().items())


def test_the_state_does_not_grow_with_the_rows() -> None:
    def size(rows: int) -> int:
        ridge = learned([(draw(rows, WIDTH, 0), draw(rows, 3, 1))])
        return sum(value.numel() * value.element_size() for value in ridge.state_dict().values())

    assert size(3) == size(500) == 8 * (WIDTH * WIDTH + 3 * WIDTH)


def test_a_restored_ridge_goes_on_as_if_nothing_had_happened() -> None:
    pairs, _ = one_hot([[0, 1] * 5, [1, 2] * 5, [3] * 5], seed=4)
    whole, fresh = learned(pairs), RecursiveRidge(WIDTH, 1.0)
    fresh.load_state_dict(learned(pairs[:2]).state_dict())
    fresh.update(*pairs[2])
    assert torch.equal(fresh.weight, whole.weight)
    assert torch.equal(fresh.inverse, whole.inverse)


def test_learning_builds_no_graph_and_takes_float32_rows_and_integer_targets() -> None:
    rows = draw(6, WIDTH, 0).float()
    ridge = learned([(rows, torch.eye(6, dtype=torch.int64)[:, :2])])
    assert ridge.weight.dtype == ridge.inverse.dtype == torch.float64
    assert not ridge.weight.requires_grad
    assert apart(ridge.weight, ridge_solution(rows, torch.eye(6)[:, :2], 1.0)) < 1e-12
    assert ridge(rows).dtype == torch.float64
    assert ridge(rows).shape == (6, 2)


# ClassSums and SharedCovariance


def grouped(batches: Batches) -> Sequence[tuple[Tensor, int]]:
    """The columns of each batch, and the number of classes there are by then."""
    highest, result = 0, []
    for labels in batches:
        highest = max(highest, max(labels) + 1)
        result.append((torch.tensor(labels), highest))
    return result


def filled(kind: type[ClassSums] | type[SharedCovariance], batches: Batches, features: Tensor) -> ClassSums | SharedCovariance:
    statistics = kind(features.shape[1])
    for rows, (columns, classes) in zip(features.split([len(b) for b in batches]), grouped(batches), strict=True):
        statistics.update(rows, columns, classes)
    return statistics


@quick
@given(arrivals, seeds)
def test_class_sums_equal_numpys_to_the_last_bit_under_any_grouping(batches: Batches, seed: int) -> None:
    labels = np.array([label for batch in batches for label in batch])
    # Whole numbers, whose sums are exact: nothing is left to rounding.
    features = torch.randint(-1000, 1000, (len(labels), 3), generator=torch.Generator().manual_seed(seed)).float()
    sums = filled(ClassSums, batches, features)
    assert isinstance(sums, ClassSums)
    for column in range(labels.max() + 1):
        mine = features.numpy().astype(np.float64)[labels == column]
        assert np.array_equal(sums.sums[column].numpy(), mine.sum(0))
        assert int(sums.counts[column]) == len(mine)
        mean = mine.mean(0) if len(mine) else np.zeros(3)
        np.testing.assert_allclose(sums.means()[column].numpy(), mean, rtol=1e-15)


def test_class_sums_of_real_numbers_agree_under_any_order_to_twelve_digits() -> None:
    features, labels = draw(300, 3, 0), torch.randint(4, (300,), generator=torch.Generator().manual_seed(0))
    one, other = ClassSums(3), ClassSums(3)
    one.update(features, labels, 4)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    for rows, columns in zip(features[order].split(7), labels[order].split(7), strict=True):
        other.update(rows, columns, 4)
    torch.testing.assert_close(other.means(), one.means(), rtol=1e-12, atol=1e-14)
    assert torch.equal(other.counts, one.counts)


def test_learning_new_classes_moves_no_bit_of_old_ones() -> None:
    sums = ClassSums(3)
    sums.update(draw(9, 3, 0), torch.arange(9) % 3, 3)
    old = sums.sums.clone(), sums.counts.clone()
    sums.update(draw(8, 3, 1), 3 + torch.arange(8) % 2, 5)
    assert torch.equal(sums.sums[:3], old[0])
    assert torch.equal(sums.counts[:3], old[1])


def test_an_update_that_knows_fewer_classes_forgets_none() -> None:
    sums = ClassSums(2)
    sums.update(torch.ones(4, 2), torch.arange(4), 4)
    sums.update(torch.ones(1, 2), torch.tensor([0]), 1)
    assert sums.counts.tolist() == [2, 1, 1, 1]
    assert sums.sums[:, 0].tolist() == [2, 1, 1, 1]


def test_merging_sums_equals_learning_both_streams() -> None:
    ours, theirs, both = ClassSums(2), ClassSums(2), ClassSums(2)
    first, second = draw(6, 2, 0), draw(4, 2, 1)
    ours.update(first, torch.tensor([0, 1, 2, 0, 1, 2]), 3)
    theirs.update(second, torch.tensor([0, 1, 1, 0]), 2)  # its classes are our 1 and a new one
    both.update(first, torch.tensor([0, 1, 2, 0, 1, 2]), 3)
    both.update(second, torch.tensor([1, 3, 3, 1]), 4)
    ours.add(theirs, torch.tensor([1, 3]), 4)
    torch.testing.assert_close(ours.sums, both.sums, rtol=1e-14, atol=1e-14)
    assert torch.equal(ours.counts, both.counts)


def test_fading_multiplies_the_weight_of_all_old_samples() -> None:
    sums = ClassSums(1)
    sums.update(torch.tensor([[2.0], [4.0], [8.0]]), torch.tensor([0, 0, 1]), 2)
    sums.fade(0.5)
    assert sums.means().flatten().tolist() == [3.0, 8.0]
    sums.update(torch.tensor([[9.0]]), torch.tensor([0]), 2)
    assert sums.means().flatten().tolist() == [(0.5 * 6 + 9) / 2, 8.0]
    sums.fade(0.5)
    assert sums.means()[0, 0] == 6  # all weights of a class faded alike: its mean stays
    fresh = ClassSums(1)
    fresh.load_state_dict(sums.state_dict())
    assert torch.equal(fresh.means(), sums.means())


def test_faded_sums_can_be_merged() -> None:
    ours, theirs = ClassSums(1), ClassSums(1)
    for sums in (ours, theirs):
        sums.update(torch.tensor([[2.0], [4.0]]), torch.tensor([0, 0]), 1)
    theirs.fade(0.25)
    ours.add(theirs, torch.tensor([0]), 1)
    assert ours.counts.tolist() == [2.5]
    assert ours.means().flatten().tolist() == [3.0]


def within_class_covariance(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    centred = np.concatenate([features[labels == c] - features[labels == c].mean(0) for c in np.unique(labels)])
    scatter: np.ndarray = centred.T @ centred / len(features)
    return scatter


@quick
@given(arrivals, seeds)
def test_the_shared_covariance_is_the_pooled_one_under_any_grouping_and_positive_semi_definite(
    batches: Batches, seed: int
) -> None:
    labels = np.array([label for batch in batches for label in batch])
    features = draw(len(labels), 3, seed) + 5
    statistics = filled(SharedCovariance, batches, features)
    assert isinstance(statistics, SharedCovariance)
    covariance = statistics.covariance()
    np.testing.assert_allclose(covariance.numpy(), within_class_covariance(features.numpy(), labels), rtol=1e-10, atol=1e-12)
    assert float(torch.linalg.eigvalsh(covariance).min()) > -1e-12
    means = statistics.classes.means()
    for column in np.unique(labels):
        np.testing.assert_allclose(means[column].numpy(), features.numpy()[labels == column].mean(0), rtol=1e-13)


def test_the_shared_covariance_is_sklearns() -> None:
    labels = np.arange(60) % 3
    features = draw(60, 4, 0) + 3 * draw(3, 4, 1)[labels]
    statistics = SharedCovariance(4)
    for rows, columns in zip(features.split(7), torch.from_numpy(labels).split(7), strict=True):
        statistics.update(rows, columns, 3)
    sklearns = LinearDiscriminantAnalysis(solver="lsqr", store_covariance=True).fit(features.numpy(), labels)
    np.testing.assert_allclose(statistics.covariance().numpy(), sklearns.covariance_, rtol=1e-10, atol=1e-12)


def test_a_mean_a_million_times_the_spread_leaves_digits_of_the_covariance() -> None:
    features, labels = 1e4 + 1e-2 * draw(200, 3, 0), np.arange(200) % 2
    statistics = SharedCovariance(3)
    for rows, columns in zip(features.split(20), torch.from_numpy(labels).split(20), strict=True):
        statistics.update(rows, columns, 2)
    wanted = within_class_covariance(features.numpy(), labels)
    assert np.linalg.norm(statistics.covariance().numpy() - wanted) < 1e-2 * np.linalg.norm(wanted)


def test_a_covariance_without_samples_is_zero_and_not_nan() -> None:
    assert torch.equal(SharedCovariance(2).covariance(), torch.zeros(2, 2, dtype=torch.float64))


def test_restored_statistics_go_on_as_if_nothing_had_happened() -> None:
    first, second = (draw(6, 3, 0), torch.arange(6) % 2, 2), (draw(6, 3, 1), torch.arange(6) % 4, 4)
    whole, half, fresh = SharedCovariance(3), SharedCovariance(3), SharedCovariance(3)
    for statistics in (whole, half):
        statistics.update(*first)
    fresh.load_state_dict(half.state_dict())
    whole.update(*second)
    fresh.update(*second)
    assert torch.equal(fresh.covariance(), whole.covariance())
    assert torch.equal(fresh.classes.counts, whole.classes.counts)


# RandomExpansion


def test_the_random_expansion_is_drawn_once() -> None:
    expansion = RandomExpansion(4, 10)
    expansion.draw(torch.Generator().manual_seed(0))
    first = expansion.weight.clone()
    expansion.draw(torch.Generator().manual_seed(1))
    assert torch.equal(expansion.weight, first)
    assert not list(expansion.parameters())
    assert not expansion.weight.requires_grad


def test_the_same_generator_draws_the_same_expansion_and_another_one_another() -> None:
    def drawn(seed: int) -> Tensor:
        expansion = RandomExpansion(4, 10)
        expansion.draw(torch.Generator().manual_seed(seed))
        return expansion.weight

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))


def test_the_expansion_is_a_random_linear_layer_with_relu() -> None:
    expansion = RandomExpansion(16, 5000)
    expansion.draw(torch.Generator().manual_seed(0))
    weight = expansion.weight
    assert float(weight.abs().max()) <= 0.25  # uniform within 1 / sqrt(16), as torch.nn.Linear(16, 5000) begins
    assert abs(float(weight.std()) - 0.25 / 3**0.5) < 0.001
    assert abs(float(weight.mean())) < 0.002
    features = draw(3, 16, 0)
    assert torch.equal(expansion(features), (features @ weight).clamp(min=0))


def test_a_fresh_expansion_takes_on_the_drawn_one_and_draws_no_more() -> None:
    drawn, fresh = RandomExpansion(4, 10), RandomExpansion(4, 10)
    drawn.draw(torch.Generator().manual_seed(0))
    fresh.load_state_dict(drawn.state_dict())
    fresh.draw(torch.Generator().manual_seed(1))
    assert torch.equal(fresh.weight, drawn.weight)


# Float64


def everything() -> list[Float64]:
    expansion = RandomExpansion(WIDTH, 7)
    expansion.draw(torch.Generator().manual_seed(0))
    covariance = SharedCovariance(WIDTH)
    covariance.update(draw(4, WIDTH, 0), torch.arange(4) % 2, 2)
    return [expansion, covariance, learned([(draw(4, WIDTH, 0), draw(4, 2, 1))])]


@pytest.mark.parametrize(
    "move",
    [
        lambda module: module.to("cpu"),
        lambda module: module.to(torch.float32),
        lambda module: module.float(),
        lambda module: module.half(),
        lambda module: module.to(torch.bfloat16),
    ],
    ids=["to-cpu", "to-float32", "float", "half", "to-bfloat16"],
)
def test_statistics_stay_in_float64_whatever_is_done_to_the_learner_around_them(
    move: Callable[[torch.nn.Module], torch.nn.Module],
) -> None:
    for module in everything():
        before = {name: value.clone() for name, value in module.state_dict().items()}
        learner = torch.nn.ModuleDict({"part": module, "net": torch.nn.Linear(2, 2)})
        move(learner)
        for name, value in module.state_dict().items():
            assert value.dtype == before[name].dtype, (type(module).__name__, name)
            assert torch.equal(value, before[name])


def test_statistics_follow_the_learner_to_another_device() -> None:
    for module in everything():
        learner = torch.nn.ModuleDict({"part": module}).to("meta")
        assert {value.device.type for value in learner.state_dict().values()} == {"meta"}
