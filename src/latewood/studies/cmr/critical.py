"""The critical mixture ratio: the largest domain share that meets both conditions, predicted from a few runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from latewood.core.errors import ConfigurationError, DataError
from latewood.core.seeding import derive_seed
from latewood.studies.cmr.conditions import REACH, Tolerance, last_fall, turning_point
from latewood.studies.cmr.laws import FEWEST_POINTS, UNITS, Curve, PowerLaw, fit, turns
from latewood.studies.cmr.report import Binding, Plan, RatioResult, Sensitivity, Turn

#: The law over shares has three parameters.
FEWEST_RATIOS = 3
#: What the paper's procedure asks for; a plan from less says so.
_ENOUGH_RATIOS, _ENOUGH_EVALUATIONS = 5, 20


@dataclass(frozen=True)
class _Run:
    """A run with its two laws over time."""

    ratio: float
    first: float
    domain: PowerLaw
    general: PowerLaw


@dataclass(frozen=True)
class _Question:
    """What is asked of the runs."""

    budget: float
    eps: float
    lam: float
    horizon: float
    general_base: float
    domain_base: float
    control: float | None


@dataclass(frozen=True)
class _Answer:
    """Everything that follows from the laws over time."""

    rows: tuple[RatioResult, ...]
    tolerance: Tolerance
    domain_law: PowerLaw
    domain_base: float
    budget_law: PowerLaw | None
    crossing_law: PowerLaw | None
    turned_up_to: float | None

    def critical(self, eps: float) -> tuple[float | None, Binding]:
        """The largest share that has turned, is tolerable and improves the domain; and what keeps it from being larger."""
        if self.turned_up_to is None:
            return None, "turning point"
        share = self.tolerance.largest(eps, self.turned_up_to)
        if not share:
            return None, "tolerance"
        if float(self.domain_law(share)) >= self.domain_base:
            return None, "domain"
        if share >= 1:
            return share, "neither"
        return share, "turning point" if share == self.turned_up_to else "tolerance"


def plan(
    curves: Sequence[Curve], budget: float = UNITS, eps: float = 0.05, lam: float = 1000.0, *, draws: int = 100, seed: int = 0
) -> Plan:
    """Predict the critical mixture ratio at ``budget`` (in the curves' units, of which the whole run has 100).

    ``eps`` is the rise of the general loss that is tolerated, in nats per token; ``lam`` what a nat of it weighs against
    one of the domain loss. The interval comes from ``draws`` resamplings of the residuals (none: no interval). Needs runs
    at three shares between 0 and 1 at least, better five, and may have the end points. Same curves and seed, same plan.

    Errors: :class:`~latewood.core.errors.DataError` for curves that can't be compared or fitted,
    :class:`~latewood.core.errors.ConfigurationError` for a budget, tolerance or weight that makes no sense.
    """
    check_question(budget, eps, lam)
    curves = sorted(curves, key=lambda curve: curve.ratio)
    _check_comparable(curves)
    _check_enough(curves)
    control = next((float(np.interp(budget, c.times, c.general)) for c in curves if c.ratio == 0), None)
    longest = max(curve.end for curve in curves)
    bases = (curves[0].general_base, curves[0].domain_base)
    question = _Question(budget, eps, lam, REACH * max(longest, budget), *bases, control)
    trained = [curve for curve in curves if curve.ratio > 0]
    runs = [_fit_run(curve, seed) for curve in trained]
    answer = _answer(runs, question, seed)
    ratio, binding = answer.critical(eps)
    drawn = [_redrawn(trained, runs, question, answer, derive_seed(seed, "residuals", i)) for i in range(draws)]
    known = [share for share in drawn if share is not None]
    crossing = None if answer.crossing_law is None else float(np.clip(answer.crossing_law(budget), 0, 1))
    return Plan(
        ratio=ratio,
        interval=(float(np.quantile(known, 0.025)), float(np.quantile(known, 0.975))) if known and ratio is not None else None,
        binding=binding,
        extrapolated=budget > min(curve.end for curve in trained)
        or (ratio is not None and not trained[0].ratio <= ratio <= trained[-1].ratio),
        budget=budget,
        eps=eps,
        lam=lam,
        budget_law=answer.budget_law,
        crossing_law=answer.crossing_law,
        crossing_ratio=crossing,
        general_law=answer.tolerance.law,
        domain_law=answer.domain_law,
        tolerable_up_to=answer.tolerance.largest(eps),
        general_base=bases[0],
        domain_base=bases[1],
        ratios=answer.rows,
        sensitivity=tuple(Sensitivity(eps * factor, *answer.critical(eps * factor)) for factor in (0.5, 1.0, 2.0)),
        notes=tuple(_notes(trained, answer, budget, draws - len(known))),
    )


def collect(run_one: Callable[[float], Curve], ratios: Sequence[float]) -> list[Curve]:
    """Run continual pre-training at each domain share and check that the curves can be compared.

    ``run_one`` trains a fresh copy of one and the same model at the share it is given, with the learning rate warmed up
    and then constant, and returns the :class:`Curve`. Errors: :class:`~latewood.core.errors.DataError` as soon as a run
    began from other losses than the first (other weights, or other evaluation tokens) or is of another share.
    """
    check_ratios(ratios)
    curves: list[Curve] = []
    for ratio in ratios:
        curves.append(run_one(ratio))
        if curves[-1].ratio != ratio:
            raise DataError(f"The run at a domain share of {ratio:g} returned the curve of {curves[-1].ratio:g}.")
        _check_comparable(curves)
    return curves


def check_question(budget: float, eps: float, lam: float) -> None:
    """Refuse a budget, a tolerance or a weight that makes no sense.

    >>> check_question(100.0, 0.05, 1000.0)
    """
    for name, value, least in (("budget", budget, "above 0"), ("lam", lam, "above 0"), ("eps", eps, "at least 0")):
        if not math.isfinite(value) or value < 0 or (value == 0 and least == "above 0"):
            raise ConfigurationError(f"{name} must be a number {least}, but it is {value:g}.")


def check_ratios(ratios: Sequence[float], inside: int = 0) -> None:
    """Refuse ratios that are no shares, or twice the same, or fewer than ``inside`` between 0 and 1.

    >>> check_ratios((0.25, 0.5, 1.0), inside=2)
    """
    if len(set(ratios)) != len(ratios) or not all(0 <= ratio <= 1 for ratio in ratios):
        raise ConfigurationError(f"The ratios must be different numbers from 0 to 1, but they are {list(ratios)}.")
    if (count := sum(0 < ratio < 1 for ratio in ratios)) < inside:
        raise ConfigurationError(f"A plan needs runs at {inside} ratios between 0 and 1 at least, but there are {count}.")


def _check_comparable(curves: Sequence[Curve]) -> None:
    for one, other in pairwise(curves):
        if one.ratio == other.ratio:
            raise DataError(f"There are two curves of the domain share {one.ratio:g}; give one for each.")
        for what in ("general", "domain"):
            began = (getattr(one, f"{what}_base"), getattr(other, f"{what}_base"))
            if began[0] != began[1]:
                raise DataError(
                    f"The {what} losses of the runs at {one.ratio:g} and {other.ratio:g} began at {began[0]:.6g} and "
                    f"{began[1]:.6g}; all must start from the same weights and see the same evaluation tokens."
                )


def _check_enough(curves: Sequence[Curve]) -> None:
    inside = [curve.ratio for curve in curves if 0 < curve.ratio < 1]
    if len(inside) < FEWEST_RATIOS:
        raise DataError(f"The law over shares needs runs at three shares between 0 and 1, but there are {len(inside)}.")
    for curve in curves:
        if curve.ratio > 0 and curve.fitted.sum() < FEWEST_POINTS:
            raise DataError(
                f"The curve of the domain share {curve.ratio:g} has {int(curve.fitted.sum())} evaluations after the warm-up; "
                f"the laws need {FEWEST_POINTS}."
            )


def _fit_run(curve: Curve, seed: int) -> _Run:
    times, rising = curve.times[curve.fitted], curve.general[curve.fitted]
    plain, general = fit(times, rising, 1, seed=seed), fit(times, rising, 2, seed=seed)
    law = general if turns(general, plain, len(times), float(rising.var())) else plain
    return _Run(curve.ratio, float(times[0]), fit(times, curve.domain[curve.fitted], 1, seed=seed), law)


def _answer(runs: Sequence[_Run], question: _Question, seed: int, like: _Answer | None = None) -> _Answer:
    """What follows from the laws over time; with ``like``, fits begin at its exponents."""
    budget = question.budget
    inside = [run for run in runs if run.ratio < 1]
    shares = np.array([run.ratio for run in inside])
    general = np.array([float(run.general(budget)) for run in inside]) + question.general_base
    domain = np.array([float(run.domain(budget)) for run in inside]) + question.domain_base
    pure = next((float(run.general(budget)) for run in runs if run.ratio == 1), None)
    law = fit(shares, general, seed=seed, begin=like.tolerance.law.exponents if like else None)
    tolerance = Tolerance(law, question.general_base, float(shares[-1]), question.control, pure)
    rows = tuple(_row(run, question, tolerance) for run in runs)
    turned = [(row.turning_point, row.ratio) for row in rows if row.turning_point is not None and not row.at_once]
    crossings = [(row.crossing, row.ratio, run.first) for row, run in zip(rows, runs, strict=True) if row.crossing is not None]
    crossed = [(time, ratio) for time, ratio, first in crossings if time > first]
    budget_law = _law_over_budgets(turned, seed, like.budget_law if like else None, again=like is not None)
    crossing_law = None if like else _law_over_budgets(crossed, seed, None)
    return _Answer(
        rows=rows,
        tolerance=tolerance,
        domain_law=fit(shares, domain, seed=seed, begin=like.domain_law.exponents if like else None),
        domain_base=question.domain_base,
        budget_law=budget_law,
        crossing_law=crossing_law,
        turned_up_to=_turned_up_to(rows, budget_law, budget),
    )


def _row(run: _Run, question: _Question, tolerance: Tolerance) -> RatioResult:
    window = {"first": run.first, "budget": question.budget, "horizon": question.horizon}
    time = turning_point(run.domain, run.general, question.lam, **window)
    return RatioResult(
        ratio=run.ratio,
        domain=run.domain,
        general=run.general,
        turning_point=time,
        at_once=time == run.first,
        turn=_turn(time, question.budget),
        crossing=last_fall(lambda t: run.general(t) - question.eps, **window),
        tolerable=tolerance.contains(run.ratio, question.eps),
        improves=float(run.domain(question.budget)) < 0,
    )


def _turn(time: float | None, budget: float) -> Turn:
    if time is None:
        return "infeasible within horizon"
    if math.isclose(time, budget, rel_tol=1e-9):
        return "critical"
    return "feasible" if time < budget else "infeasible within budget"


def _law_over_budgets(
    points: Sequence[tuple[float, float]], seed: int, like: PowerLaw | None, again: bool = False
) -> PowerLaw | None:
    """The share over the budget for which it is critical, through (time, share); ``None`` with fewer than three points."""
    if len({time for time, _ in points}) < 3:
        return None
    times, shares = np.array(points).T
    begin = like.exponents if like else (0.5,) if again else None
    return fit(times, shares, seed=seed, begin=begin)


def _turned_up_to(rows: Sequence[RatioResult], law: PowerLaw | None, budget: float) -> float | None:
    """The largest share that has turned by the budget: by the law, unless a run contradicts it; then by the runs."""
    turned = [row.ratio for row in rows if row.turn in ("feasible", "critical")]
    low = max(turned, default=0.0)
    high = min((row.ratio for row in rows if row.ratio > low), default=math.inf)
    if law is not None and law.slope(budget) > 0 and low <= law(budget) < high and law(budget) > 0:
        return min(float(law(budget)), 1.0)
    return low or None


def _redrawn(curves: Sequence[Curve], runs: Sequence[_Run], question: _Question, like: _Answer, seed: int) -> float | None:
    """The critical ratio of curves whose evaluation noise is drawn anew from the residuals of the fits."""
    generator = np.random.default_rng(seed)
    again = [_refitted(curve, run, generator) for curve, run in zip(curves, runs, strict=True)]
    return _answer(again, question, seed, like).critical(question.eps)[0]


def _refitted(curve: Curve, run: _Run, generator: np.random.Generator) -> _Run:
    times = curve.times[curve.fitted]
    laws = []
    for law, values in ((run.domain, curve.domain), (run.general, curve.general)):
        residuals = values[curve.fitted] - law(times)
        terms = len(law.exponents)
        widened = residuals * math.sqrt(len(times) / (len(times) - 2 * terms - 1))  # a fit takes some of the noise with it
        noisy = law(times) + generator.choice(widened, len(times))
        laws.append(fit(times, noisy, terms, begin=law.exponents))
    return _Run(run.ratio, run.first, *laws)


def _notes(curves: Sequence[Curve], answer: _Answer, budget: float, lost: int) -> list[str]:
    notes = []
    if len(curves) < _ENOUGH_RATIOS:
        notes.append(f"Only {len(curves)} shares were run; the procedure asks for {_ENOUGH_RATIOS}.")
    if (fewest := min(int(curve.fitted.sum()) for curve in curves)) < _ENOUGH_EVALUATIONS:
        notes.append(f"A run has only {fewest} evaluations after its warm-up; the procedure asks for {_ENOUGH_EVALUATIONS}.")
    if any(row.at_once for row in answer.rows):
        notes.append("Some runs turned during the warm-up; their turning points are not fitted.")
    if answer.budget_law is None:
        notes.append("Fewer than three turning points are known, so the share that has turned is that of the largest such run.")
    elif answer.budget_law.slope(budget) <= 0:
        notes.append("The law over budgets does not rise at this budget, so it is not used.")
    if lost:
        notes.append(f"{lost} of the resamplings gave no feasible share.")
    return notes
