"""Curves of continual pre-training at one domain share, and the power laws that are fitted to them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from latewood.core.errors import DataError

Vector = npt.NDArray[np.float64]

#: The length of a whole run in the units of a curve: raw token counts would make the exponents ill-conditioned.
UNITS = 100.0
#: Exponents are sought between minus and plus this.
STEEPEST = 2.0
STARTS = 20
#: A fit needs a point more than the five parameters of the two-term law.
FEWEST_POINTS = 6
#: Below this an exponent is taken for this: the law then equals a logarithm up to rounding.
_FLATTEST = 1e-4


@dataclass(frozen=True, eq=False)
class Curve:
    """What one run at a constant learning rate measured: how far both losses are from where they began.

    ``ratio`` is the domain's share of the tokens. ``times``, ``domain`` and ``general`` are vectors of equal length: the
    tokens trained on, in units of which the whole run has 100, and the increments of the two held-out losses (nats per
    token) over ``domain_base`` and ``general_base``, the losses before the run. The first point is time 0, where both
    increments are exactly 0. Points up to ``warmup`` are not fitted. Errors: :class:`~latewood.core.errors.DataError`.

    >>> curve = Curve.measured(0.25, [0, 50, 100, 200], domain=[3.9, 2.2, 2.1, 2.0], general=[1.8, 1.9, 1.85, 1.79], warmup=10)
    >>> curve.times.tolist(), curve.warmup, curve.domain.round(2).tolist()
    ([0.0, 25.0, 50.0, 100.0], 5.0, [0.0, -1.7, -1.8, -1.9])
    """

    ratio: float
    times: Vector
    domain: Vector
    general: Vector
    domain_base: float
    general_base: float
    warmup: float = 0.0

    def __post_init__(self) -> None:
        for name in ("times", "domain", "general"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float64))
        object.__setattr__(self, "ratio", float(self.ratio))
        if not 0 <= self.ratio <= 1:
            raise DataError(f"A domain share lies between 0 and 1, but this curve has {self.ratio:g}.")
        where = f"The curve of the domain share {self.ratio:g}"
        if not len(self.times) == len(self.domain) == len(self.general) or len(self.times) < 2:
            sizes = f"{len(self.times)}, {len(self.domain)} and {len(self.general)}"
            raise DataError(f"{where} needs as many times as losses, at least two of each, but it has {sizes}.")
        bases = [self.domain_base, self.general_base, self.warmup]
        if not all(np.isfinite(values).all() for values in (self.times, self.domain, self.general, bases)):
            raise DataError(f"{where} holds a number that is not finite; leave out what diverged.")
        if self.times[0] != 0 or self.domain[0] != 0 or self.general[0] != 0:
            raise DataError(f"{where} must begin at time 0 with both increments exactly 0: measure before the first step.")
        if not (np.diff(self.times) > 0).all():
            raise DataError(f"{where} has times that do not increase; give each evaluation once, in order.")

    @classmethod
    def measured(
        cls,
        ratio: float,
        steps: Sequence[float],
        domain: Sequence[float],
        general: Sequence[float],
        *,
        horizon: float | None = None,
        warmup: float = 0.0,
    ) -> Curve:
        """The curve of losses as they were measured after ``steps`` (or tokens), the first before training, at 0.

        ``horizon`` is what becomes 100 units (default: the last step) and must be the same for all curves; ``warmup`` is
        the step at which the learning rate stopped rising.
        """
        if not len(domain) or not len(general) or not len(steps):
            raise DataError(f"The curve of the domain share {ratio:g} has no evaluations.")
        unit = (steps[-1] if horizon is None else horizon) / UNITS
        if not unit > 0:
            raise DataError(f"The curve of the domain share {ratio:g} needs a horizon above 0.")
        times, domain_losses, general_losses = (np.asarray(v, dtype=np.float64) for v in (steps, domain, general))
        return cls(
            ratio,
            times / unit,
            domain_losses - domain_losses[0],
            general_losses - general_losses[0],
            float(domain_losses[0]),
            float(general_losses[0]),
            warmup / unit,
        )

    def to_json(self) -> str:
        """The curve as JSON text, of which every number comes back as it was."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return json.dumps({name: v.tolist() if isinstance(v, np.ndarray) else v for name, v in values.items()}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Curve:
        """The curve that :meth:`to_json` wrote. Errors: :class:`~latewood.core.errors.DataError` for any other text."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise DataError(f"This is not the JSON of a curve: {error}") from error

    @property
    def end(self) -> float:
        """The time of the last evaluation."""
        return float(self.times[-1])

    @property
    def fitted(self) -> npt.NDArray[np.bool_]:
        """Which points the laws are fitted to: those after the warm-up."""
        return np.asarray((self.times > 0) & (self.times >= self.warmup))

    def until(self, time: float) -> Curve:
        """The part of the curve up to a time: that of a shorter run, as the learning rate is constant."""
        kept = self.times <= time
        parts = (self.times[kept], self.domain[kept], self.general[kept])
        return Curve(self.ratio, *parts, self.domain_base, self.general_base, self.warmup)


@dataclass(frozen=True)
class PowerLaw:
    """``sum_i coefficients[i] x^exponents[i] + offset``, with the mean squared error and R² of its fit.

    >>> law = PowerLaw((2.0,), (0.5,), 1.0)
    >>> float(law(9.0)), float(law.slope(4.0))
    (7.0, 0.5)
    """

    coefficients: tuple[float, ...]
    exponents: tuple[float, ...]
    offset: float
    mse: float = math.nan
    r2: float = math.nan

    def __call__(self, x: float | Vector) -> Vector:
        """The value at ``x > 0``."""
        terms = zip(self.coefficients, self.exponents, strict=True)
        return np.asarray(sum((a * np.power(x, s) for a, s in terms), start=np.asarray(self.offset)))

    def slope(self, x: float | Vector) -> Vector:
        """The derivative at ``x > 0``."""
        terms = zip(self.coefficients, self.exponents, strict=True)
        return np.asarray(sum((a * s * np.power(x, s - 1) for a, s in terms), start=np.asarray(0.0)))

    @property
    def formula(self) -> str:
        """The law as text in ``x``."""
        terms = [f"{a:.4g}·x^{s:.4g}" for a, s in zip(self.coefficients, self.exponents, strict=True)]
        return " + ".join([*terms, f"{self.offset:.4g}"]).replace("+ -", "− ").replace("-", "−")


def fit(x: Vector, y: Vector, terms: int = 1, *, seed: int = 0, begin: Sequence[float] | None = None) -> PowerLaw:
    """The power law of ``terms`` terms that is nearest to the points in the least-squares sense, ``x > 0``.

    Only the exponents are sought (from 20 random starts, or from ``begin`` alone); given these, coefficients and offset are
    a linear problem with one solution. Same seed, same law. Errors: :class:`~latewood.core.errors.DataError` for fewer
    points than parameters, or an ``x`` that is not above 0.

    >>> x = np.array([0.25, 0.33, 0.5, 0.75])
    >>> law = fit(x, 3 - 0.5 * x**0.4)
    >>> round(law.exponents[0], 3), round(law.offset, 3)
    (0.4, 3.0)
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(x) < 2 * terms + 1 or not (x > 0).all():
        raise DataError(f"A power law of {terms} terms needs {2 * terms + 1} points above 0, but it was given {len(x)}.")
    centre = float(np.exp(np.log(x).mean()))
    problem = _Projection(np.log(x / centre), y)
    starts = [begin] if begin is not None else np.random.default_rng(seed).uniform(-STEEPEST, STEEPEST, (STARTS, terms))
    exponents = problem.best(starts)
    weights = problem.weights(exponents)
    coefficients = weights[1:] / exponents
    offset = weights[0] - coefficients.sum()
    mse = float(np.square(problem.residuals(exponents)).mean())
    spread = float(y.var())
    r2 = 1 - mse / spread if spread > 0 else 1.0
    scaled = coefficients * centre**-exponents
    return PowerLaw(tuple(map(float, scaled)), tuple(map(float, exponents)), float(offset), mse, r2)


def turns(law: PowerLaw, plain: PowerLaw, points: int, spread: float) -> bool:
    """Whether the two-term law is worth its two more parameters over ``plain``, a one-term law, by Bayes' criterion.

    A one-term law is monotone, so where it does as well, the turn of the other one is noise.
    """
    errors = [max(fitted.mse, 1e-12 * spread, 1e-300) for fitted in (law, plain)]
    return points * math.log(errors[0] / errors[1]) + 2 * math.log(points) < 0


class _Projection:
    """Least squares over the exponents alone, on the terms ``(x^s - 1) / s``, which stay apart from the offset at ``s = 0``."""

    def __init__(self, logarithms: Vector, values: Vector) -> None:
        self.logarithms, self.values = logarithms, values

    def terms(self, exponents: Vector) -> Vector:
        steep = _steep(exponents)
        columns = np.expm1(np.multiply.outer(self.logarithms, steep)) / steep
        return np.concatenate([np.ones((len(columns), 1)), columns], axis=1)

    def weights(self, exponents: Vector) -> Vector:
        solution = np.linalg.lstsq(self.terms(exponents), self.values, rcond=None)[0]
        return np.asarray(solution)

    def residuals(self, exponents: Vector) -> Vector:
        terms = self.terms(exponents)
        return np.asarray(terms @ np.linalg.lstsq(terms, self.values, rcond=None)[0] - self.values)

    def best(self, starts: Sequence[Sequence[float]] | Vector) -> Vector:
        """The exponents with the least squared error; each is ``STEEPEST * sin(angle)``, which keeps it within its bounds."""
        from scipy.optimize import leastsq

        # A start exactly on a bound would stay there, as the sine is flat.
        angles = [np.arcsin(np.clip(np.asarray(start) / STEEPEST, -0.999, 0.999)) for start in starts]
        ends = [leastsq(self._at, angle, full_output=True, xtol=1e-10, ftol=1e-10)[0] for angle in angles]
        return _steep(STEEPEST * np.sin(min(ends, key=lambda angle: float(np.square(self._at(angle)).sum()))))

    def _at(self, angles: Vector) -> Vector:
        return self.residuals(STEEPEST * np.sin(angles))


def _steep(exponents: Vector) -> Vector:
    return np.where(np.abs(exponents) < _FLATTEST, np.copysign(_FLATTEST, exponents), exponents)
