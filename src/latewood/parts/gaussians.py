"""One Gaussian of features for each class: what is kept of a class's samples, and drawn from in their place."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from latewood.core.errors import ConfigurationError, DataError
from latewood.parts.statistics import Float64

Covariance = Literal["full", "diagonal", "multi-centroid"]


class Gaussians(Float64):
    """Mean and covariance of the features of each class, from which features can be drawn again.

    ``covariance``: ``full`` keeps ``width``² numbers for each class, ``diagonal`` only ``width``; ``multi-centroid`` describes
    a class by ``centres`` k-means clusters, each with a variance for each feature and drawn from in proportion to its
    samples. ``ridge`` is added to every variance, so a class with fewer samples than features can be drawn from too.

    Covariances are unbiased (divided by ``n - 1``). Kept in their place is the Cholesky factor, computed once, in single
    precision: it is the largest thing kept, and serves to draw. ``arrivals`` numbers the call of :meth:`fit` that each class
    came with. Of a class that returns, the estimate from the most samples stays.

    >>> gaussians = Gaussians(width=2, ridge=0.0)
    >>> gaussians.fit(torch.tensor([[0.0, 1.0], [2.0, 1.0], [1.0, 4.0]]), torch.zeros(3, dtype=torch.int64), classes=1)
    >>> gaussians.means[0, 0].tolist()
    [1.0, 2.0]
    >>> [[round(value, 4) for value in row] for row in gaussians.covariances()[0].tolist()]
    [[1.0, 0.0], [0.0, 3.0]]
    >>> features, columns = gaussians.draw(5, torch.Generator().manual_seed(0))
    >>> features.shape, columns.tolist()
    (torch.Size([5, 2]), [0, 0, 0, 0, 0])
    """

    means: Tensor
    factors: Tensor
    shares: Tensor
    counts: Tensor
    arrivals: Tensor

    def __init__(self, width: int, covariance: Covariance = "full", ridge: float = 1e-4, centres: int = 10) -> None:
        super().__init__()
        if not ridge >= 0:
            raise ConfigurationError(f"ridge must be at least 0, but it is {ridge}.")
        if centres < 1:
            raise ConfigurationError(f"centres must be at least 1, but it is {centres}.")
        self.covariance, self.ridge = covariance, ridge
        self.centres = centres if covariance == "multi-centroid" else 1
        spread = (width, width) if covariance == "full" else (self.centres, width)
        self.register_buffer("means", torch.zeros(0, self.centres, width, dtype=torch.float64))
        self.register_buffer("factors", torch.zeros(0, *spread))
        self.register_buffer("shares", torch.zeros(0, self.centres, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("arrivals", torch.zeros(0, dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.counts)

    @torch.no_grad()
    def fit(self, features: Tensor, columns: Tensor, classes: int) -> None:
        """Estimate the classes of one arrival: ``features`` (n, width), the class column of each, how many classes there are.

        Errors: :class:`~latewood.core.errors.DataError` for features that are not finite; nothing has changed then.
        """
        features, columns = features.to(self.means), columns.to(self.means.device)
        if not torch.isfinite(features).all():
            raise DataError("The features of a class hold NaN or infinity, so no Gaussian can be estimated from them.")
        self._make_room(classes)
        for column in columns.unique().tolist():
            own = features[columns == column]
            if len(own) > self.counts[column]:
                self.means[column], self.factors[column], self.shares[column] = self._estimate(own)
                self.counts[column] = len(own)

    def covariances(self) -> Tensor:
        """The covariance of each class with the ridge, shape ``(classes, width, width)``; of clusters, their variances
        ``(classes, centres, width)``, and likewise ``(classes, 1, width)`` where it is diagonal."""
        factors = self.factors.double()
        return factors @ factors.mT if self.covariance == "full" else factors.square()

    def draw(self, samples: int, generator: torch.Generator, shrink: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``samples`` features of each class that had any, with the class column of each, in order of columns.

        ``shrink`` multiplies the mean of each class, shape ``(classes,)``. The result is in single precision and lies where
        the generator does.
        """
        place, known = generator.device, self.counts.nonzero().flatten()
        means = self.means if shrink is None else self.means * shrink.to(self.means)[:, None, None]
        means, factors = means[known].to(place, torch.float32), self.factors[known].to(place)
        noise = torch.randn(len(known), samples, means.shape[2], generator=generator, device=place)
        if self.covariance == "full":
            features = torch.baddbmm(means, noise, factors.mT)
        else:
            clusters = torch.multinomial(self.shares[known].to(place).float(), samples, replacement=True, generator=generator)
            rows = torch.arange(len(known), device=place)[:, None]
            features = means[rows, clusters] + noise * factors[rows, clusters]
        return features.flatten(0, 1), known.to(place).repeat_interleave(samples)

    def _make_room(self, classes: int) -> None:
        more = max(0, classes - len(self))
        arrival = int(self.arrivals.max()) + 1 if len(self) else 0
        self.means, self.factors = (F.pad(kept, (0, 0, 0, 0, 0, more)) for kept in (self.means, self.factors))
        self.shares, self.counts = F.pad(self.shares, (0, 0, 0, more), value=1.0), F.pad(self.counts, (0, more))
        self.arrivals = F.pad(self.arrivals, (0, more), value=arrival)

    def _estimate(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Means (centres, width), factors and shares of one class."""
        if self.covariance == "multi-centroid":
            return self._clusters(features)
        mean = features.mean(0, keepdim=True)
        centred, freedom = features - mean, max(1, len(features) - 1)
        if self.covariance == "diagonal":
            factor = (centred.square().sum(0, keepdim=True) / freedom + self.ridge).sqrt()
        else:
            covariance = centred.T @ centred / freedom
            covariance.diagonal().add_(self.ridge)
            factor, failed = torch.linalg.cholesky_ex(covariance)
            if failed:
                raise DataError(
                    f"The covariance of {len(features)} samples can't be factorised; raise the ridge, now {self.ridge}."
                )
        return mean, factor.float(), self.shares.new_ones(1)

    def _clusters(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        from sklearn.cluster import KMeans

        count = min(self.centres, len(features.unique(dim=0)))
        found = KMeans(count, n_init=1, random_state=0).fit_predict(features.cpu().numpy())
        members = F.one_hot(torch.from_numpy(found).long(), self.centres).to(features)
        sizes = members.sum(0)
        means = members.T @ features / sizes.clamp(min=1)[:, None]
        variances = members.T @ features.square() / sizes.clamp(min=1)[:, None] - means.square()
        return means, (variances.clamp(min=0) + self.ridge).sqrt().float(), sizes / len(features)
