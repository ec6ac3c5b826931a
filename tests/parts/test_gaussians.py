"""Gaussians: what is kept of a class's features, and what is drawn from it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from latewood.core.errors import ConfigurationError, DataError
from latewood.parts.gaussians import Covariance, Gaussians


def normal(rows: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(rows, width, generator=generator, dtype=torch.float64) @ mixing + 3


def fitted(features: Tensor, columns: Tensor | None = None, covariance: Covariance = "full", **more: float) -> Gaussians:
    columns = torch.zeros(len(features), dtype=torch.int64) if columns is None else columns
    gaussians = Gaussians(features.shape[1], covariance, **more)  # type: ignore[arg-type]
    gaussians.fit(features, columns, int(columns.max()) + 1)
    return gaussians


def test_mean_and_covariance_are_numpys_with_the_ridge_on_the_diagonal() -> None:
    features, columns = normal(200, 5), torch.arange(200) % 3
    gaussians = fitted(features, columns)
    for column in range(3):
        own = features[columns == column].numpy()
        assert np.abs(gaussians.means[column, 0].numpy() - own.mean(0)).max() < 1e-6
        wanted = np.cov(own, rowvar=False, ddof=1) + 1e-4 * np.eye(5)
        assert np.abs(gaussians.covariances()[column].numpy() - wanted).max() < 1e-6 * np.abs(wanted).max()


def test_the_diagonal_form_keeps_the_variances_alone() -> None:
    features = normal(200, 5)
    gaussians = fitted(features, covariance="diagonal")
    wanted = features.var(0) + 1e-4
    assert torch.allclose(gaussians.covariances()[0, 0], wanted, rtol=1e-6)
    assert gaussians.factors.numel() == 5


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("covariance", ["full", "diagonal", "multi-centroid"])
def test_fewer_samples_than_features_are_enough(covariance: Covariance, samples: int) -> None:
    gaussians = fitted(normal(samples, 768), covariance=covariance)
    if covariance == "full":
        assert float(torch.linalg.eigvalsh(gaussians.covariances()[0]).min()) > 0
    features, _ = gaussians.draw(3, torch.Generator().manual_seed(0))
    assert bool(torch.isfinite(features).all())


def test_what_is_drawn_has_the_mean_and_covariance_and_is_normal() -> None:
    gaussians = fitted(normal(50, 2))
    drawn, _ = gaussians.draw(100_000, torch.Generator().manual_seed(1))
    drawn, mean, covariance = drawn.double(), gaussians.means[0, 0], gaussians.covariances()[0]
    scale = covariance.diagonal().max()
    assert (drawn.mean(0) - mean).abs().max() < 5 * (scale / 100_000).sqrt()
    assert (drawn.T.cov() - covariance).abs().max() < 0.02 * scale
    distances = ((drawn - mean) @ torch.linalg.inv(covariance) * (drawn - mean)).sum(1)
    assert stats.kstest(distances.numpy(), stats.chi2(2).cdf).pvalue > 1e-3


def test_clusters_are_drawn_from_as_often_as_they_have_samples() -> None:
    near, far = normal(300, 2, seed=1) * 0.01, normal(100, 2, seed=2) * 0.01 + 50
    gaussians = fitted(torch.cat([near, far]), covariance="multi-centroid", centres=2)
    assert sorted(gaussians.shares[0].tolist()) == [0.25, 0.75]
    drawn, _ = gaussians.draw(4000, torch.Generator().manual_seed(0))
    share = (drawn[:, 0] > 25).double().mean()
    assert abs(float(share) - 0.25) < 0.03
    one_gaussian = fitted(torch.cat([near, far])).draw(4000, torch.Generator().manual_seed(0))[0]
    between = ((drawn > 5) & (drawn < 45)).double().mean(), ((one_gaussian > 5) & (one_gaussian < 45)).double().mean()
    assert between[0] == 0 < between[1]


def test_shrinking_multiplies_the_means_and_nothing_else() -> None:
    columns = torch.arange(40) % 2
    gaussians = fitted(normal(40, 3), columns)
    plain, _ = gaussians.draw(7, torch.Generator().manual_seed(0))
    shrunk, _ = gaussians.draw(7, torch.Generator().manual_seed(0), torch.tensor([0.5, 1.0]))
    assert torch.allclose(plain[:7] - shrunk[:7], 0.5 * gaussians.means[0].float(), atol=1e-5)
    assert torch.equal(plain[7:], shrunk[7:])


def test_later_arrivals_never_touch_the_statistics_of_older_classes() -> None:
    gaussians = Gaussians(4)
    sizes = (3, 5, 2)
    kept: list[Tensor] = []
    start = 0
    for seed, size in enumerate(sizes):
        columns = torch.arange(20 * size) % size + start
        gaussians.fit(normal(20 * size, 4, seed), columns, start + size)
        start += size
        for old in kept:
            assert torch.equal(gaussians.factors[: len(old)], old)
        kept.append(gaussians.factors.clone())
    assert gaussians.arrivals.tolist() == [0] * 3 + [1] * 5 + [2] * 2


def test_of_a_class_that_returns_the_estimate_from_most_samples_stays() -> None:
    gaussians, first = Gaussians(3), normal(20, 3)
    zero = torch.zeros(20, dtype=torch.int64)
    gaussians.fit(first, zero, 1)
    gaussians.fit(normal(5, 3, seed=1), zero[:5], 1)
    assert torch.equal(gaussians.means[0, 0], first.mean(0))
    later = normal(30, 3, seed=2)
    gaussians.fit(later, torch.zeros(30, dtype=torch.int64), 1)
    assert torch.equal(gaussians.means[0, 0], later.mean(0))
    assert gaussians.arrivals.tolist() == [0]


def test_a_class_without_samples_is_not_drawn() -> None:
    gaussians = Gaussians(3)
    gaussians.fit(normal(10, 3), torch.full((10,), 2), classes=3)
    features, columns = gaussians.draw(4, torch.Generator().manual_seed(0))
    assert features.shape == (4, 3) and columns.tolist() == [2] * 4


def test_features_that_are_not_finite_are_refused_and_nothing_changes() -> None:
    gaussians = fitted(normal(10, 3))
    with pytest.raises(DataError, match="NaN or infinity"):
        gaussians.fit(torch.full((2, 3), torch.nan), torch.ones(2, dtype=torch.int64), 2)
    assert len(gaussians) == 1


@pytest.mark.parametrize("covariance", ["full", "diagonal", "multi-centroid"])
def test_a_fresh_one_takes_on_the_state_and_draws_the_same(covariance: Covariance) -> None:
    gaussians = fitted(normal(40, 3), torch.arange(40) % 2, covariance)
    fresh = Gaussians(3, covariance)
    fresh.load_state_dict(gaussians.state_dict())
    drawn = [each.draw(5, torch.Generator().manual_seed(0))[0] for each in (gaussians, fresh)]
    assert torch.equal(*drawn)


def test_impossible_settings_get_a_sentence() -> None:
    with pytest.raises(ConfigurationError, match="ridge must be at least 0"):
        Gaussians(3, ridge=-1.0)
    with pytest.raises(ConfigurationError, match="centres must be at least 1"):
        Gaussians(3, centres=0)
