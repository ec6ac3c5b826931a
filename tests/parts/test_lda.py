"""Linear discriminants from running sums: exact, whatever the order, the grouping and the merging."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

from latewood.core.errors import ConfigurationError
from latewood.parts.lda import LDA, Scatter

WIDTH, CLASSES = 6, 4
both = pytest.mark.parametrize("covariance", ["total", "within"])


def samples(count: int = 80, seed: int = 0, offset: float = 3.0) -> tuple[Tensor, Tensor]:
    chance = torch.Generator().manual_seed(seed)
    columns = torch.arange(count) % CLASSES
    centres = 2 * torch.randn(CLASSES, WIDTH, generator=chance, dtype=torch.float64) + offset
    mixing = torch.randn(WIDTH, WIDTH, generator=chance, dtype=torch.float64)
    return centres[columns] + torch.randn(count, WIDTH, generator=chance, dtype=torch.float64) @ mixing, columns


def fitted(features: Tensor, columns: Tensor, covariance: Scatter = "total", ridge: float = 1.0) -> LDA:
    lda = LDA(features.shape[1], covariance, ridge)
    lda.update(features, columns, int(columns.max()) + 1)
    return lda


def close(first: LDA, second: LDA, within: float = 1e-8) -> bool:
    return all(torch.allclose(a, b, rtol=within, atol=within) for a, b in zip(first.linear(), second.linear(), strict=True))


@both
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), pieces=st.integers(1, 40))
def test_any_order_and_grouping_gives_the_head_of_all_samples(covariance: Scatter, seed: int, pieces: int) -> None:
    features, columns = samples()
    lda = LDA(WIDTH, covariance)
    order = torch.randperm(len(columns), generator=torch.Generator().manual_seed(seed))
    for rows in order.chunk(pieces):
        lda.update(features[rows], columns[rows], CLASSES)
        lda.linear()  # what was computed on the way must not stay
    assert close(lda, fitted(features, columns, covariance))


def test_the_total_covariance_is_that_of_all_features() -> None:
    features, columns = samples(offset=50.0)
    torch.testing.assert_close(fitted(features, columns).covariance(), features.T.cov(), rtol=1e-10, atol=1e-10)


def test_within_and_between_make_the_total() -> None:
    features, columns = samples()
    total, within = (fitted(features, columns, around).covariance() for around in ("total", "within"))
    means = torch.stack([features[columns == c].mean(0) for c in range(CLASSES)])
    between = (means - features.mean(0)).T @ (means - features.mean(0)) * (columns == 0).sum() / (len(columns) - 1)
    torch.testing.assert_close(total, within + between, rtol=1e-10, atol=1e-10)


def test_scores_are_the_formulas_and_the_ridge_is_added_to_the_covariance() -> None:
    features, columns = samples()
    inverse = (features.T.cov() + 0.5 * torch.eye(WIDTH)).inverse()
    means = torch.stack([features[columns == c].mean(0) for c in range(CLASSES)])
    wanted = features @ inverse @ means.T - 0.5 * (means @ inverse * means).sum(1)
    torch.testing.assert_close(fitted(features, columns, ridge=0.5)(features), wanted, rtol=1e-9, atol=1e-9)


def test_a_new_class_leaves_the_means_of_the_others() -> None:
    features, columns = samples()
    old = columns < 3
    lda = fitted(features[old], columns[old])
    before = lda.classes.means().clone()
    lda.update(features[~old], columns[~old], CLASSES)
    assert torch.equal(lda.classes.means()[:3], before)


@both
def test_two_heads_added_are_the_head_of_all(covariance: Scatter) -> None:
    features, columns = samples()
    first, second = columns < 2, columns >= 1  # class 1 is in both
    lda = fitted(features[first], columns[first], covariance)
    lda.linear()
    other = LDA(WIDTH, covariance)
    other.update(features[second], columns[second] - 1, 3)
    lda.add(other, torch.tensor([1, 2, 3]), CLASSES)
    both_times = torch.cat([first.nonzero(), second.nonzero()]).flatten()
    assert close(lda, fitted(features[both_times], columns[both_times], covariance))


@both
def test_subtracted_samples_were_never_there(covariance: Scatter) -> None:
    features, columns = samples()
    lda = fitted(features, columns, covariance)
    lda.linear()
    gone = columns == 3
    lda.subtract(features[gone], columns[gone])
    assert lda.linear()[1][3] == -torch.inf
    lda.keep(torch.tensor([0, 1, 2]))
    assert close(lda, fitted(features[~gone], columns[~gone], covariance))


def test_within_classes_it_is_the_classical_method() -> None:
    features, columns = samples(200)
    classical = LinearDiscriminantAnalysis(solver="lsqr", priors=[1 / CLASSES] * CLASSES)
    classical.fit(features.numpy(), columns.numpy())
    unseen, _ = samples(500, seed=1)
    found = fitted(features, columns, "within", ridge=0.0)(unseen).argmax(1)
    np.testing.assert_array_equal(found.numpy(), classical.predict(unseen.numpy()))


def test_of_two_equal_classes_both_covariances_tell_the_same_and_of_three_not() -> None:
    features, columns = samples(200, seed=2)
    unseen = torch.cat([samples(500, seed)[0] for seed in (2, 3)])
    for classes, same in ((2, True), (3, False)):
        few = columns < classes
        total, within = (fitted(features[few], columns[few], around, 0.0)(unseen).argmax(1) for around in ("total", "within"))
        assert torch.equal(total, within) is same


@both
def test_a_single_sample_and_a_class_of_one_are_enough(covariance: Scatter) -> None:
    features, columns = samples()
    lda = fitted(features[:1], columns[:1], covariance)
    assert torch.equal(lda.covariance(), torch.zeros(WIDTH, WIDTH))
    assert torch.isfinite(lda(features)).all()
    lda.update(features[1:2], columns[1:2], 2)
    assert lda(features[:2]).argmax(1).tolist() == [0, 1]


def test_a_class_without_samples_never_wins() -> None:
    features, columns = samples()
    lda = LDA(WIDTH)
    lda.update(features - 100, columns, CLASSES + 1)
    assert (lda(features)[:, CLASSES] == -torch.inf).all()


def test_a_saved_and_a_copied_head_are_the_same() -> None:
    features, columns = samples()
    lda, fresh = fitted(features[:40], columns[:40]), fitted(features[40:], columns[40:])
    fresh.linear()
    fresh.load_state_dict(lda.state_dict())
    twin = copy.deepcopy(lda)
    twin.update(features[40:], columns[40:], CLASSES)
    assert torch.equal(fresh(features), lda(features))
    assert not torch.equal(twin(features), lda(features))
    assert lda.half().products.dtype == torch.float64


def test_what_can_not_be_solved_is_told() -> None:
    features, columns = samples()
    with pytest.raises(ConfigurationError, match="2 samples with 6 features can't be inverted; set a ridge above 0"):
        fitted(features[:2], columns[:2], ridge=0.0).linear()
    with pytest.raises(ConfigurationError, match="ridge must be at least 0"):
        LDA(WIDTH, ridge=-1.0)
