"""The watermark: Gaussian noise on the input embeddings of a few rows, found again in a later model's gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from latewood.core.errors import ConfigurationError, DataError
from latewood.core.seeding import generator


@dataclass(frozen=True)
class Watermark:
    """Noise ``N(0, sigma^2)`` on the input embeddings of ``rows`` random rows of every ``every``-th step, from step 0 on.

    Which rows, and the noise of each, follow from ``seed`` and the step, so nothing has to be kept; they are drawn on the
    CPU and are the same on every device. Another seed gives fresh noise: the control. Errors:
    :class:`~latewood.core.errors.ConfigurationError`.

    >>> mark = Watermark(every=2, rows=1)
    >>> mark.rows_of(0, 4).shape, mark.rows_of(1, 4).shape, mark.noise(0, 3, 8, 16).shape
    (torch.Size([1]), torch.Size([0]), torch.Size([8, 16]))
    """

    name: str = "watermark"
    sigma: float = 0.075
    every: int = 1000
    rows: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.sigma > 0 or min(self.every, self.rows) < 1:
            raise ConfigurationError(
                f"A watermark needs a sigma above 0, and at least 1 for every and rows, not {self.sigma}, {self.every} and "
                f"{self.rows}."
            )

    def rows_of(self, step: int, size: int) -> Tensor:
        """The rows that are marked of the ``size`` rows of a step, in ascending order; none in most steps."""
        if step % self.every:
            return torch.zeros(0, dtype=torch.int64)
        if self.rows > size:
            raise ConfigurationError(f"The watermark marks {self.rows} rows of a step, but a step has only {size}.")
        return torch.randperm(size, generator=generator(self.seed, "marked rows", step))[: self.rows].sort().values

    def noise(self, step: int, row: int, length: int, width: int) -> Tensor:
        """What is added to the embeddings of a row, float32 ``(length, width)``, on the CPU."""
        return self.sigma * torch.randn(length, width, generator=generator(self.seed, "noise", step, row))

    def added(self, embedded: Tensor, step: int, first_row: int = 0, size: int | None = None, stride: int = 1) -> Tensor:
        """The embeddings of a step's rows with the noise on those that are marked: a copy, or the same if none is.

        ``embedded`` is ``(n, length, width)``, every ``stride``-th row from ``first_row`` on of a step of ``size`` rows
        (default: all), as several processes share them; gradients flow through.
        """
        rows = range(first_row, first_row + stride * len(embedded), stride)
        marked = [row for row in self.rows_of(step, rows.stop if size is None else size).tolist() if row in rows]
        if not marked:
            return embedded
        noise = torch.zeros_like(embedded, requires_grad=False)
        for row in marked:
            noise[rows.index(row)] = self.noise(step, row, *embedded.shape[1:]).to(noise)
        return embedded + noise

    @contextmanager
    def marking(self, embedding: nn.Module, step: int, first_row: int = 0, size: int | None = None) -> Iterator[None]:
        """Within the block, what the input embedding of a model puts out is marked; for one forward pass over a step."""

        def mark(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            return self.added(output, step, first_row, size)

        handle = embedding.register_forward_hook(mark)
        try:
            yield
        finally:
            handle.remove()


def statistic(gradients: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """How far the way downhill of each row's loss points along its noise: ``-<gradient, noise> / (sigma |gradient|)``.

    ``gradients``, of the loss with respect to clean embeddings, and ``noise`` are ``(n, length, width)``; the values are
    float64 ``(n,)``. If the model never saw the noise they are standard normal, whatever the gradients are. A model that
    fits the noisy row finds its loss falling towards it, and gives values above 0; hence the minus, without which a
    test on the upper tail would never find anything. Errors: :class:`~latewood.core.errors.DataError` for another
    shape, or a gradient without length.

    >>> statistic(torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[0.1, 0.0]]]), sigma=0.1)
    tensor([-0.6000], dtype=torch.float64)
    """
    if gradients.shape != noise.shape or gradients.dim() < 2:
        raise DataError(
            f"Gradients and noise must have the same shape, a row for each, but they have {tuple(gradients.shape)} and "
            f"{tuple(noise.shape)}."
        )
    flat, along = gradients.double().flatten(1), noise.to(gradients.device).double().flatten(1)
    lengths = flat.norm(dim=1)
    if not bool((lengths > 0).all() and lengths.isfinite().all()):
        row = int((~((lengths > 0) & lengths.isfinite())).nonzero()[0])
        raise DataError(f"The gradient of row {row} is zero or not finite, so it has no direction to compare with the noise.")
    result: Tensor = -(flat * along).sum(1) / (sigma * lengths)
    return result


def influence(losses: Callable[[Tensor], Tensor], embedded: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """:func:`statistic` of a model: ``losses`` maps embeddings ``(n, length, width)`` to the loss of each row, ``(n,)``.

    The losses of rows must not depend on each other. Nothing in the model changes, nor do the gradients of its weights.
    """
    clean = embedded.detach().requires_grad_()
    with torch.enable_grad():
        (gradients,) = torch.autograd.grad(losses(clean).sum(), clean)
    return statistic(gradients, noise, sigma)


@dataclass(frozen=True)
class Detection:
    """What statistics say: their ``mean``; ``p_values`` of single rows and ``p_value`` of the mean, both one-sided; the
    share of rows found at a false positive rate of ``rate``, and of the control that is found wrongly."""

    mean: float
    p_values: NDArray[np.float64]
    p_value: float
    found: float
    found_in_control: float
    rate: float


def detect(statistics: ArrayLike, control: ArrayLike, rate: float = 0.01) -> Detection:
    """Is the watermark there? ``control`` are the same statistics for fresh noise of the same sigma.

    >>> detect([3.0, 2.5, 1.0, 2.6], [0.1, -0.3, 1.2, 0.4]).found
    0.75
    """
    from scipy.stats import norm

    values, others = np.asarray(statistics, np.float64), np.asarray(control, np.float64)
    if not len(values) or not len(others):
        raise DataError(f"A detection needs statistics of both noises, but there are {len(values)} and {len(others)}.")
    threshold = norm.isf(rate)
    return Detection(
        mean=float(values.mean()),
        p_values=norm.sf(values),
        p_value=float(norm.sf(values.mean() * np.sqrt(len(values)))),
        found=float((values > threshold).mean()),
        found_in_control=float((others > threshold).mean()),
        rate=rate,
    )


def missed(shift: float, rate: float = 0.01) -> float:
    """The false negative rate at a false positive rate, if the watermark moves the mean of the statistic by ``shift``.

    >>> round(missed(0.0), 2), round(missed(2.33), 2)
    (0.99, 0.5)
    """
    from scipy.stats import norm

    return float(norm.cdf(norm.isf(rate) - shift))
