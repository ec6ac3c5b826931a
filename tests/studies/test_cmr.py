"""The critical mixture ratio: laws, turning points, tolerable shares, and the plan made of them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError, DataError
from latewood.language.mixture import Mixture
from latewood.report.colour import contrast
from latewood.report.palette import THEME
from latewood.studies.cmr import Curve, Plan, PowerLaw, collect, plan, plot
from latewood.studies.cmr.conditions import Tolerance, peak, turning_point
from latewood.studies.cmr.laws import Vector, fit
from latewood.studies.cmr.report import COLOURS, INK

RATIOS = (1 / 8, 1 / 4, 1 / 3, 1 / 2, 3 / 4, 1.0)
LAM = 1000.0

# Table 2 of the paper: the domain loss at the end, by size of the model, for these shares.
SHARES = (1.0, 3 / 4, 1 / 2, 1 / 3, 1 / 4)
PUBLISHED = {
    "460M": (1.4628, 1.4844, 1.5122, 1.5387, 1.5561),
    "940M": (1.3723, 1.3910, 1.4155, 1.4385, 1.4538),
    "1.6B": (1.3242, 1.3416, 1.3643, 1.3854, 1.3994),
    "3.1B": (1.2585, 1.2750, 1.2965, 1.3170, 1.3305),
}

# A family of curves whose laws are known: the general loss turns the later, the larger the share.


def domain_of(ratio: float) -> PowerLaw:
    return PowerLaw((-0.3 * ratio**0.3,), (0.25,), 0.0)


def general_of(ratio: float, scale: float = 0.05) -> PowerLaw:
    return PowerLaw((scale * 0.4 * ratio**0.6, scale * -0.012), (0.3, 0.8), 0.0)


def true_turn(ratio: float, lam: float = LAM) -> float:
    domain, general = domain_of(ratio), general_of(ratio)
    return float(brentq(lambda t: float(domain.slope(t) + lam * general.slope(t)), 1e-3, 1e4, xtol=1e-12))


def curve_of(
    ratio: float, noise: float = 0.0, end: float = 100.0, scale: float = 0.05, general: Callable[[Vector], Vector] | None = None
) -> Curve:
    times = np.linspace(0, 100, 51)
    times = times[times <= end]
    draws = np.random.default_rng(round(ratio * 1e6)).normal(scale=noise, size=(2, len(times)))
    rising = (general or general_of(ratio, scale))(times[1:])
    falling = domain_of(ratio)(times[1:]) if ratio else 0.02 + 0 * times[1:]
    parts = [np.concatenate([[0.0], values + draw[1:]]) for values, draw in zip((falling, rising), draws, strict=True)]
    return Curve(ratio, times, *parts, domain_base=3.9, general_base=1.8)


def family(ratios: Sequence[float] = RATIOS, **how: float) -> list[Curve]:
    return [curve_of(ratio, **how) for ratio in ratios]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def known() -> Plan:
    return plan(family(noise=1e-5), draws=4)


# 1: the published numbers


@pytest.mark.parametrize("first", [0, 1], ids=["all other shares", "without the end point"])
@pytest.mark.parametrize("size", PUBLISHED)
def test_the_law_over_shares_predicts_the_published_loss_at_a_quarter(size: str, first: int) -> None:
    losses = np.array(PUBLISHED[size])
    law = fit(np.array(SHARES[first:4]), losses[first:4])
    assert float(law(0.25)) == pytest.approx(losses[4], rel=1e-3)
    known = {0: (1.5561, 1.4538, 1.3993, 1.3306), 1: (1.5567, 1.4540, 1.3995, 1.3310)}[first]
    assert float(law(0.25)) == pytest.approx(known[list(PUBLISHED).index(size)], abs=6e-5)


def test_a_straight_line_over_shares_is_clearly_worse_on_the_published_numbers() -> None:
    for losses in PUBLISHED.values():
        law = fit(np.array(SHARES[:4]), np.array(losses[:4]))
        line = np.polyval(np.polyfit(SHARES[:4], losses[:4], 1), 0.25)
        assert abs(line - losses[4]) > 5 * abs(float(law(0.25)) - losses[4])


# 2: what is known is found again


@pytest.mark.parametrize("ratio", RATIOS)
def test_turning_points_of_known_laws_are_found_within_a_hundredth(known: Plan, ratio: float) -> None:
    row = next(row for row in known.ratios if row.ratio == ratio)
    assert row.turning_point == pytest.approx(true_turn(ratio), rel=0.01)


def test_the_critical_ratio_of_known_laws_is_found_within_a_hundredth(known: Plan) -> None:
    truth = float(brentq(lambda ratio: true_turn(ratio) - 100, 0.1, 1.0))
    assert known.ratio == pytest.approx(truth, abs=0.01)
    assert known.replay_share == pytest.approx(1 - truth, abs=0.01)
    assert known.binding == "turning point"
    assert not known.extrapolated


def test_a_fit_gives_back_the_law_that_made_the_points() -> None:
    x = np.geomspace(1, 100, 30)
    one, two = PowerLaw((-0.4,), (-0.7,), 0.3), PowerLaw((0.05, -0.01), (0.3, 0.8), -0.1)
    for law, terms in ((one, 1), (two, 2)):
        found = fit(x, law(x), terms)
        assert sorted(found.exponents) == pytest.approx(sorted(law.exponents), abs=1e-3)
        assert found.r2 == pytest.approx(1, abs=1e-9)
        assert found(x) == pytest.approx(law(x), abs=1e-7)


def test_a_logarithm_is_fitted_as_the_limit_of_power_laws() -> None:
    x = np.geomspace(1, 100, 30)
    assert fit(x, 2 + 0.5 * np.log(x))(x) == pytest.approx(2 + 0.5 * np.log(x), abs=1e-3)


def test_no_single_start_does_better_than_the_fit() -> None:
    generator = np.random.default_rng(0)
    x = np.linspace(2, 100, 40)
    y = general_of(0.5)(x) + generator.normal(scale=1e-3, size=40)
    best = fit(x, y, 2)
    singles = [fit(x, y, 2, begin=generator.uniform(-2, 2, 2)).mse for _ in range(20)]
    assert best.mse <= min(singles) * (1 + 1e-6)
    assert all(-2 <= exponent <= 2 for exponent in best.exponents)


def test_the_reported_quality_of_a_fit_is_that_of_its_residuals() -> None:
    x = np.linspace(2, 100, 40)
    y = domain_of(0.5)(x) + np.random.default_rng(1).normal(scale=1e-2, size=40)
    law = fit(x, y)
    assert law.mse == pytest.approx(float(np.square(law(x) - y).mean()))
    assert law.r2 == pytest.approx(1 - law.mse / y.var())


def test_the_slope_is_the_derivative() -> None:
    law, x = general_of(0.5), np.array([3.0, 30.0])
    assert law.slope(x) == pytest.approx((law(x * (1 + 1e-6)) - law(x * (1 - 1e-6))) / (2e-6 * x), rel=1e-6)


# 3: the implicit equation and its limit


def implicit(time: float, domain: PowerLaw, general: PowerLaw, lam: float) -> float:
    (a1,), (s1,) = domain.coefficients, domain.exponents
    (a2, a3), (s2, s3) = general.coefficients, general.exponents
    inner = 1 + (a3 * s3) / (a2 * s2) * time ** (s3 - s2)
    return float((-(a1 * s1) / (lam * a2 * s2) / inner) ** (1 / (s2 - s1)))


@pytest.mark.parametrize("lam", [100.0, 1000.0, 7000.0])
@pytest.mark.parametrize("ratio", RATIOS)
def test_a_turning_point_satisfies_the_implicit_equation(ratio: float, lam: float) -> None:
    time = turning_point(domain_of(ratio), general_of(ratio), lam, first=0.01)
    assert time is not None
    assert implicit(time, domain_of(ratio), general_of(ratio), lam) == pytest.approx(time, rel=1e-8)


def test_the_turning_point_tends_to_the_peak_of_the_general_loss_as_its_weight_grows() -> None:
    general = general_of(0.5)
    summit = peak(general)
    assert summit is not None
    assert float(general.slope(summit)) == pytest.approx(0, abs=1e-12)
    apart = [summit - (turning_point(domain_of(0.5), general, lam, first=0.01) or math.nan) for lam in (1e2, 1e3, 1e4, 1e8)]
    assert apart == sorted(apart, reverse=True)
    assert 0 < apart[-1] < 1e-4 * summit


def test_a_law_without_a_maximum_has_no_peak() -> None:
    assert peak(PowerLaw((0.1, 0.2), (0.3, 0.8), 0.0)) is None
    assert peak(PowerLaw((-0.05, 0.01), (0.3, 0.8), 0.0)) is None  # a minimum
    assert peak(PowerLaw((0.1,), (0.3,), 0.0)) is None


# 4: more domain text turns later, and a larger budget bears more


def test_turning_points_increase_with_the_share_and_the_law_with_the_budget(known: Plan) -> None:
    times = [row.turning_point or math.nan for row in known.ratios]
    assert times == sorted(times)
    assert known.budget_law is not None
    assert (known.budget_law.slope(np.geomspace(1, 1000, 50)) > 0).all()
    small, large = (plan(family(), budget=budget, draws=0).ratio for budget in (50.0, 100.0))
    assert small is not None
    assert large is not None
    assert small < large


# 5: what is feasible is tolerable


laws = st.tuples(st.floats(-0.5, 0.5), st.floats(-2, 2), st.floats(1.5, 2.1)).map(lambda v: PowerLaw((v[0],), (v[1],), v[2]))
maybe = st.none() | st.floats(-0.2, 0.5)
tolerances = st.builds(Tolerance, law=laws, base=st.just(1.8), top=st.sampled_from([0.5, 0.75]), control=maybe, pure=maybe)


@settings(max_examples=60, deadline=None)
@given(tolerances, st.floats(0, 0.5), st.floats(0, 0.5))
def test_enlarging_the_tolerance_never_shrinks_what_is_tolerable(tolerance: Tolerance, eps: float, more: float) -> None:
    for share in (0.0, 0.1, 0.5, 0.8, 1.0):
        assert tolerance.contains(share, eps + more) or not tolerance.contains(share, eps)
    before, after = tolerance.largest(eps), tolerance.largest(eps + more)
    assert before is None or (after is not None and after >= before - 1e-9)


@settings(max_examples=60, deadline=None)
@given(tolerances, st.floats(0, 0.5), st.floats(0.01, 1))
def test_the_largest_tolerable_share_is_tolerable_and_none_above_it_is(tolerance: Tolerance, eps: float, below: float) -> None:
    share = tolerance.largest(eps, below)
    assert share is None or (share <= below and tolerance.contains(share, eps + 1e-12))
    beyond = np.linspace(0 if share is None else share, below, 102)[1:-1] + 1e-3
    assert not any(tolerance.contains(float(other), eps) for other in beyond if other < below)


@pytest.mark.parametrize("scale", [0.05, 0.2, 1.0])
def test_every_feasible_share_is_tolerable_and_the_critical_one_too(scale: float) -> None:
    found = plan(family(scale=scale), draws=0)
    assert all(row.tolerable for row in found.ratios if row.feasible)
    assert found.ratio is not None
    assert found.tolerable_up_to is not None
    assert found.ratio <= found.tolerable_up_to
    assert float(found.general_law(found.ratio)) - found.general_base <= found.eps + 1e-9
    assert not any(row.feasible for row in found.ratios if row.ratio > found.ratio + 0.01)


@pytest.mark.parametrize("eps", [0.0, 0.05])
@pytest.mark.parametrize("end", [-0.01, 0.0])
def test_pure_replay_that_ends_at_or_below_its_start_is_tolerable(end: float, eps: float) -> None:
    dip = curve_of(0.0, general=lambda t: np.asarray(end + 0.02 * np.exp(-t / 5) * (t < 100)))
    high = [curve_of(r, general=lambda t, r=r: np.asarray(general_of(r)(t) + 0.3)) for r in RATIOS]  # type: ignore[misc]
    assert plan([dip, *high], eps=eps, draws=0).tolerable_up_to == 0.0
    assert plan(high, eps=eps, draws=0).tolerable_up_to is None
    assert plan([replace(dip, general=dip.general + (dip.times > 0)), *high], eps=eps, draws=0).tolerable_up_to is None


def test_without_a_tolerable_share_above_zero_nothing_is_feasible() -> None:
    high = [curve_of(r, general=lambda t, r=r: np.asarray(general_of(r)(t) + 0.3)) for r in RATIOS]  # type: ignore[misc]
    found = plan(high, draws=0)
    assert found.ratio is None
    assert found.replay_share is None
    assert found.interval is None
    assert found.binding == "tolerance"
    assert not any(row.feasible for row in found.ratios)


# 6: the sampler, and what the runs share


@pytest.mark.parametrize("ratio", [0.0, 1 / 8, 1 / 3, 1 / 2, 1.0])
def test_the_mixture_of_the_wing_draws_the_share_that_is_asked_for(ratio: float) -> None:
    texts = {name: Data(tokens=torch.full((64, 2), i, dtype=torch.int32)) for i, name in enumerate(("general", "domain"))}
    mixture = Mixture(texts, {"general": 1 - ratio, "domain": ratio}, batch_size=16)
    rows = torch.cat([mixture.draw()["tokens"][:, 0] for _ in range(625)])  # type: ignore[index,misc]
    share = float(rows.double().mean())
    assert abs(share - ratio) <= 3 * math.sqrt(ratio * (1 - ratio) / len(rows))


def test_runs_are_collected_in_order_when_they_start_alike() -> None:
    assert [curve.ratio for curve in collect(curve_of, (0.5, 0.25))] == [0.5, 0.25]


@pytest.mark.parametrize("what", ["general", "domain"])
def test_a_run_that_began_from_other_losses_is_told_at_once(what: str) -> None:
    ran = []

    def other(ratio: float) -> Curve:
        ran.append(ratio)
        return replace(curve_of(ratio), **{f"{what}_base": 1.8 + (ratio == 0.5) * 1e-9})

    with pytest.raises(DataError, match=rf"The {what} losses of the runs at 0.25 and 0.5 .* same weights and see the same"):
        collect(other, (0.25, 0.5, 0.75))
    assert ran == [0.25, 0.5]


def test_a_run_of_another_share_than_asked_for_is_told() -> None:
    with pytest.raises(DataError, match=r"The run at a domain share of 0.5 returned the curve of 0.25"):
        collect(lambda ratio: curve_of(0.25), (0.5,))


@pytest.mark.parametrize("ratios", [(0.5, 0.5), (0.5, 1.5), (-0.1,)])
def test_ratios_that_make_no_sense_are_refused_before_anything_runs(ratios: tuple[float, ...]) -> None:
    with pytest.raises(ConfigurationError, match="different numbers from 0 to 1"):
        collect(lambda ratio: pytest.fail("it ran"), ratios)


# 7: increments begin at zero


def test_measured_losses_become_increments_that_are_exactly_zero_at_the_start() -> None:
    curve = Curve.measured(0.5, [0, 10, 20], [3.9, 3.1, 3.0], [1.7, 1.9, 1.8], horizon=40, warmup=10)
    assert curve.domain[0] == 0.0
    assert curve.general[0] == 0.0
    assert curve.times.tolist() == [0, 25, 50]
    assert (curve.domain_base, curve.general_base, curve.warmup) == (3.9, 1.7, 25)
    assert curve.fitted.tolist() == [False, True, True]
    assert curve.until(30).times.tolist() == [0, 25]


BAD: dict[str, tuple[dict[str, object], str]] = {
    "starts above zero": ({"general": [0.1, 0.2, 0.3]}, "exactly 0"),
    "no start": ({"times": [1, 2, 3]}, "begin at time 0"),
    "not in order": ({"times": [0, 2, 1]}, "do not increase"),
    "not finite": ({"domain": [0, math.nan, 0]}, "not finite"),
    "of other lengths": ({"domain": [0, 1]}, "as many times as losses"),
    "no share": ({"ratio": 1.2}, "between 0 and 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_curve_that_can_not_be_is_refused_in_one_sentence(name: str) -> None:
    good: dict[str, object] = {"ratio": 0.5, "times": [0, 1, 2], "domain": [0, -1, -2], "general": [0, 1, 2]}
    changed, message = BAD[name]
    with pytest.raises(DataError, match=message):
        Curve(**{**good, **changed}, domain_base=1.0, general_base=1.0)  # type: ignore[arg-type]


# 8: a loss that never turns


def rising(times: Vector) -> Vector:
    return np.asarray(0.01 * times**0.3)


@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_a_general_loss_that_only_rises_is_infeasible_within_the_horizon_and_no_number(noise: float) -> None:
    curves = [curve_of(ratio, noise=noise, general=rising) for ratio in RATIOS]
    for lam in (1.0, LAM):
        found = plan(curves, lam=lam, draws=0)
        assert {row.turn for row in found.ratios} == {"infeasible within horizon"}
        assert all(row.turning_point is None for row in found.ratios)
        assert (found.ratio, found.binding, found.budget_law) == (None, "turning point", None)
        assert "No domain share is feasible" in found.describe()


def test_one_share_that_never_turns_bounds_the_critical_ratio_whatever_the_law_says() -> None:
    curves = [curve_of(ratio, general=rising if ratio >= 0.5 else None) for ratio in RATIOS]
    found = plan(curves, draws=0)
    assert [row.turn for row in found.ratios[3:]] == ["infeasible within horizon"] * 3
    assert found.ratio == pytest.approx(1 / 3)


def test_a_general_loss_that_only_falls_has_turned_at_once() -> None:
    curves = [curve_of(ratio, general=lambda t: np.asarray(-0.01 * t**0.5)) for ratio in RATIOS]
    found = plan(curves, draws=0)
    assert all(row.at_once and row.feasible for row in found.ratios)
    assert (found.ratio, found.binding) == (1.0, "neither")
    assert any("during the warm-up" in note for note in found.notes)


def test_a_share_that_turns_after_the_budget_is_infeasible_within_it(known: Plan) -> None:
    assert [row.turn for row in known.ratios] == ["feasible"] * 4 + ["infeasible within budget"] * 2


# What binds


def test_the_tolerance_binds_where_the_general_loss_stays_high() -> None:
    found = plan(family(scale=1.0), draws=0)
    assert found.binding == "tolerance"
    assert found.ratio is not None
    assert float(general_of(found.ratio, 1.0)(100.0)) == pytest.approx(found.eps, abs=0.01)
    rows = found.sensitivity
    assert [row.eps for row in rows] == [0.025, 0.05, 0.1]
    assert rows[1].ratio == found.ratio
    shares = [row.ratio or math.nan for row in rows]
    assert shares == sorted(set(shares))


def test_a_domain_that_does_not_improve_is_no_reason_to_train() -> None:
    worse = [replace(curve, domain=-curve.domain) for curve in family(scale=0.02)]
    found = plan(worse, lam=1e6, draws=0)
    assert (found.ratio, found.binding) == (None, "domain")
    assert not any(row.improves or row.feasible for row in found.ratios)


def test_the_end_points_are_left_out_of_the_laws_over_shares() -> None:
    inside = family(RATIOS[:5], scale=0.02)
    ends = [curve_of(0.0, general=lambda t: 0 * t), curve_of(1.0, general=lambda t: np.asarray(0.5 * t**0.1))]
    with_ends, without = plan([*inside, *ends], draws=0), plan(inside, draws=0)
    assert with_ends.general_law == without.general_law
    assert with_ends.domain_law == without.domain_law
    assert without.tolerable_up_to == 1.0
    assert with_ends.tolerable_up_to is not None
    assert 0.75 < with_ends.tolerable_up_to < 1  # the run at 1 was far above the tolerance


def test_the_variant_by_the_tolerance_gives_the_share_whose_loss_comes_within_it_at_the_budget() -> None:
    found = plan(family((0.05, 0.1, 0.15, 0.2, 0.25), scale=1.0), draws=0)
    assert found.crossing_ratio is not None
    assert float(general_of(found.crossing_ratio, 1.0)(100.0)) == pytest.approx(found.eps, abs=0.02)
    for row in found.ratios:
        assert row.crossing is None or float(row.general(row.crossing)) == pytest.approx(found.eps, abs=1e-6)


def test_points_of_the_warm_up_are_not_fitted() -> None:
    spoiled = []
    for curve in family():
        general = np.where((curve.times > 0) & (curve.times < 10), 5.0, curve.general)
        spoiled.append(replace(curve, general=general, warmup=10.0))
    found = plan(spoiled, draws=0)
    assert found.ratio == pytest.approx(0.69, abs=0.02)


# What is said beyond the number


def test_a_law_over_budgets_that_falls_is_not_used_and_that_is_told(known: Plan) -> None:
    turning = {0.25: 8.0, 0.5: 6.0, 0.75: 4.0}
    curves = [curve_of(r, general=lambda t, r=r: np.asarray(-1e-3 * np.log(t / turning[r]) ** 2)) for r in turning]  # type: ignore[misc]
    found = plan(curves, draws=0)
    assert [row.turning_point for row in found.ratios] == pytest.approx([8, 6, 4], rel=0.1)
    assert found.ratio == 0.75
    assert any("does not rise at this budget" in note for note in found.notes)
    assert not any("does not rise" in note for note in known.notes)


def test_half_of_the_curves_predicts_the_whole_and_says_that_it_extrapolates() -> None:
    truth = float(brentq(lambda ratio: true_turn(ratio) - 100, 0.1, 1.0))
    found = plan(family(noise=1e-5, end=50), draws=0)
    assert found.extrapolated
    assert found.ratio == pytest.approx(truth, abs=0.03)
    assert "extrapolation" in found.describe()


def test_a_ratio_beyond_the_shares_that_were_run_is_an_extrapolation() -> None:
    found = plan(family(RATIOS[:4]), draws=0)
    assert found.ratio is not None
    assert found.ratio > 0.5
    assert found.extrapolated


def test_the_interval_holds_the_truth_and_widens_with_the_noise() -> None:
    truth = float(brentq(lambda ratio: true_turn(ratio) - 100, 0.1, 1.0))
    widths = []
    for noise in (1e-5, 1e-3):
        found = plan(family(noise=noise), draws=20)
        assert found.interval is not None
        low, high = found.interval
        assert low - 0.01 <= truth <= high + 0.01
        widths.append(high - low)
    assert widths[0] < 0.01 < widths[1]


def test_the_same_curves_give_the_same_plan_in_any_order(known: Plan) -> None:
    assert plan(family(noise=1e-5)[::-1], draws=4) == known


def test_a_plan_comes_back_from_json_as_it_was(known: Plan) -> None:
    assert Plan.from_json(known.to_json()) == known
    nothing = replace(known, ratio=None, interval=None, budget_law=None)
    assert Plan.from_json(nothing.to_json()) == nothing


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', "null"])
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="not the JSON of a plan"):
        Plan.from_json(text)


def test_a_plan_of_another_version_is_refused(known: Plan) -> None:
    with pytest.raises(DataError, match="another version"):
        Plan.from_json(json.dumps({**json.loads(known.to_json()), "format": 99}))


def test_the_description_says_the_shares_what_binds_and_how_it_depends_on_the_tolerance(known: Plan) -> None:
    text = known.describe()
    assert known.ratio is not None
    assert f"Train on {known.ratio:.1%} domain text" in text
    assert f"{1 - known.ratio:.1%} replay" in text
    assert "What binds is where the general loss turns round" in text
    assert "With a tolerance of 0.025" in text
    assert "With a tolerance of 0.1" in text
    assert "25.0% domain: feasible; the general loss turns at" in text


def test_few_runs_and_few_evaluations_are_told() -> None:
    found = plan([curve_of(ratio, end=26) for ratio in (0.25, 0.5, 0.75)], budget=26, draws=0)
    assert any(note.startswith("Only 3 shares") for note in found.notes)
    assert any("only 13 evaluations" in note for note in found.notes)


def test_curves_too_few_or_too_short_are_refused() -> None:
    with pytest.raises(DataError, match="three shares between 0 and 1, but there are 2"):
        plan(family((0.0, 0.25, 0.5, 1.0)))
    with pytest.raises(DataError, match=r"0\.25 has 5 evaluations after the warm-up"):
        plan([curve_of(0.25, end=10), *family((0.5, 0.75))])
    with pytest.raises(DataError, match=r"two curves of the domain share 0\.5"):
        plan(family((0.25, 0.5, 0.5, 0.75)))


@pytest.mark.parametrize("wrong", [{"budget": 0}, {"budget": math.inf}, {"eps": -0.1}, {"lam": 0}, {"eps": math.nan}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=f"{next(iter(wrong))} must be a number"):
        plan(family(), **wrong)  # type: ignore[arg-type]


# The picture


@pytest.mark.parametrize("name", ["plan.svg", "plan.png"])
def test_the_picture_is_drawn_twice_alike(known: Plan, tmp_path: Path, name: str) -> None:
    curves = [curve_of(0.0, general=lambda t: 0 * t), *family(noise=1e-5)]
    first, second = (plot(known, curves, tmp_path / folder / name).read_bytes() for folder in ("a", "b"))
    assert first == second
    assert first.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")


def test_a_plan_without_a_ratio_is_drawn_too(tmp_path: Path) -> None:
    curves = [curve_of(ratio, general=rising) for ratio in RATIOS]
    assert plot(plan(curves, draws=0), curves, tmp_path / "none.svg").stat().st_size > 1000


def test_a_picture_of_another_kind_is_refused(known: Plan, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"\.svg or \.png, but the file is called plan\.docx"):
        plot(known, [], tmp_path / "plan.docx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ground", ["#ffffff", *THEME["paper"], "#000000"])
def test_all_colours_of_the_picture_can_be_read_on_light_and_on_dark(ground: str) -> None:
    assert min(contrast(colour, ground) for colour in (INK, *COLOURS)) >= 3


def test_the_ground_of_the_picture_is_transparent(known: Plan, tmp_path: Path) -> None:
    from PIL import Image

    picture = Image.open(plot(known, family(), tmp_path / "plan.png")).convert("RGBA")
    assert picture.getpixel((1, 1)) == (255, 255, 255, 0)


def test_importing_the_study_imports_nothing_heavy() -> None:
    program = "import sys, latewood.studies.cmr; print([m for m in ('scipy', 'matplotlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "[]"
