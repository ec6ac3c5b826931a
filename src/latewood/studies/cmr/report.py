"""What a study of mixture ratios found: as values, as JSON, in sentences, and as a picture."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from latewood.core.errors import ConfigurationError, DataError
from latewood.core.files import write_atomically
from latewood.studies.cmr.laws import Curve, PowerLaw

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Turn = Literal["feasible", "critical", "infeasible within budget", "infeasible within horizon"]
Binding = Literal["turning point", "tolerance", "domain", "neither"]
FORMAT = 1

#: Halfway between light and dark, so that they show on either; the ratios have markers of their own besides.
INK = "#7d7d7d"
COLOURS = ("#3f7fd0", "#1c8c8c", "#3d8f45", "#7f8726", "#b3761a", "#d0592e", "#cc4f90", "#8f6bcb")
_MARKERS = "osv^p*X"


@dataclass(frozen=True)
class RatioResult:
    """One run: the laws over time of its increments, and what they say about its domain share.

    ``turning_point`` is the time T0 from which the objective keeps falling (``None``: there is none within the horizon);
    ``at_once`` tells that it fell from the first fitted point on, so that T0 is not known but only bounded. ``crossing``
    is the time from which the general loss stays within the tolerance.
    """

    ratio: float
    domain: PowerLaw
    general: PowerLaw
    turning_point: float | None
    at_once: bool
    turn: Turn
    crossing: float | None
    tolerable: bool
    improves: bool

    @property
    def feasible(self) -> bool:
        """Whether the share meets all conditions at the budget."""
        return self.turn in ("feasible", "critical") and self.tolerable and self.improves


@dataclass(frozen=True)
class Sensitivity:
    """What the critical ratio would be with another tolerance."""

    eps: float
    ratio: float | None
    binding: Binding


@dataclass(frozen=True)
class Plan:
    """The critical mixture ratio for one model and one budget, and what it rests on.

    ``ratio`` is the largest domain share for which, at ``budget``, the general loss has turned round and is at most ``eps``
    above its start while the domain loss is below it (``None``: there is no such share); ``interval`` holds 95 % of what
    resampled evaluation noise gives. ``budget_law`` is share over budget through the turning points; ``crossing_law`` and
    ``crossing_ratio`` are the variant through the times at which the general loss came within ``eps``. ``general_law`` and
    ``domain_law`` are the losses at the budget over the share. Valid for the model size that was run, for no other.
    """

    ratio: float | None
    interval: tuple[float, float] | None
    binding: Binding
    extrapolated: bool
    budget: float
    eps: float
    lam: float
    budget_law: PowerLaw | None
    crossing_law: PowerLaw | None
    crossing_ratio: float | None
    general_law: PowerLaw
    domain_law: PowerLaw
    tolerable_up_to: float | None
    general_base: float
    domain_base: float
    ratios: tuple[RatioResult, ...]
    sensitivity: tuple[Sensitivity, ...]
    notes: tuple[str, ...] = ()

    @property
    def replay_share(self) -> float | None:
        """The share of general tokens to mix in: one minus the ratio."""
        return None if self.ratio is None else 1 - self.ratio

    def to_json(self) -> str:
        """The whole plan as JSON text."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that :meth:`to_json` wrote. Errors: :class:`~latewood.core.errors.DataError` for any other text."""
        try:
            values = json.loads(text)
            if values.pop("format") != FORMAT:
                raise DataError(f"This plan was written by another version of Latewood; this one reads format {FORMAT}.")
            for name in ("budget_law", "crossing_law", "general_law", "domain_law"):
                values[name] = _law(values[name])
            values["interval"] = tuple(values["interval"]) if values["interval"] else None
            values["ratios"] = tuple(
                RatioResult(**{**row, "domain": _law(row["domain"]), "general": _law(row["general"])})
                for row in values["ratios"]
            )
            values["sensitivity"] = tuple(Sensitivity(**row) for row in values["sensitivity"])
            return cls(**{**values, "notes": tuple(values["notes"])})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"This is not the JSON of a plan ({error}).") from error

    def describe(self) -> str:
        """The plan in sentences."""
        lines = [*self._headline(), "", *(_sentence(row) for row in self.ratios), "", *self._background(), *self.notes]
        return "\n".join(lines)

    def _headline(self) -> list[str]:
        if self.ratio is None:
            why = {"turning point": "the general loss does not turn round", "tolerance": "the general loss stays too high"}
            reason = why.get(self.binding, "the domain loss does not fall")
            return [f"No domain share is feasible at a budget of {self.budget:g} units: {reason}."]
        span = f" ({self.interval[0]:.1%} to {self.interval[1]:.1%} under evaluation noise)" if self.interval else ""
        lines = [f"Train on {self.ratio:.1%} domain text{span} and {1 - self.ratio:.1%} replay, at {self.budget:g} units."]
        if self.binding == "neither":
            lines.append("No condition binds: even pure domain text is borne.")
        else:
            what = {"turning point": "where the general loss turns round", "tolerance": f"the tolerance of {self.eps:g}"}
            lines.append(f"What binds is {what[self.binding]}.")
        if self.extrapolated:
            lines.append("This is an extrapolation beyond what was run.")
        return lines

    def _background(self) -> list[str]:
        lines = [f"Law over budgets: share = {self.budget_law.formula}."] if self.budget_law else []
        if self.crossing_ratio is not None:
            lines.append(
                f"By the times at which the loss came within {self.eps:g}, the share would be {self.crossing_ratio:.1%}."
            )
        for row in self.sensitivity:
            share = "no share is feasible" if row.ratio is None else f"the share is {row.ratio:.1%} (binding: {row.binding})"
            lines.append(f"With a tolerance of {row.eps:g}, {share}.")
        return lines


def _law(values: Mapping[str, Any] | None) -> Any:
    if values is None:
        return None
    return PowerLaw(**{**values, "coefficients": tuple(values["coefficients"]), "exponents": tuple(values["exponents"])})


def _sentence(row: RatioResult) -> str:
    if row.turning_point is None:
        when = "the general loss does not turn for good within the horizon"
    elif row.at_once:
        when = f"the general loss falls from the first fitted point at {row.turning_point:.3g} on"
    else:
        when = f"the general loss turns at {row.turning_point:.3g}"
    others = "" if row.tolerable else ", it is above the tolerance"
    others += "" if row.improves else ", the domain loss does not fall"
    fits = f"R² {row.general.r2:.4f} general, {row.domain.r2:.4f} domain"
    return f"{row.ratio:.1%} domain: {row.turn if others == '' else 'infeasible'}; {when}{others} ({fits})."


def plot(plan: Plan, curves: Sequence[Curve], path: str | Path) -> Path:
    """Draw the curves, their laws, the turning points and the critical ratio to an SVG or PNG without a ground of its own.

    Readable on light and dark. Errors: :class:`~latewood.core.errors.ConfigurationError` for another kind of file.
    """
    path = Path(path)
    kind = path.suffix.lower().lstrip(".")
    if kind not in ("svg", "png"):
        raise ConfigurationError(f"A plot is written as .svg or .png, but the file is called {path.name}.")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    inks: dict[Any, Any] = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    with rc_context({**inks, "svg.hashsalt": "latewood", "font.size": 10, "axes.facecolor": "none"}):
        figure = Figure(figsize=(15, 4.6), layout="constrained")
        figure.patch.set_alpha(0.0)
        general, domain, law = figure.subplots(1, 3)
        _draw_increments(general, plan, curves, "general")
        _draw_increments(domain, plan, curves, "domain")
        _draw_law(law, plan)
        picture = io.BytesIO()
        figure.savefig(picture, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    write_atomically(path, picture.getvalue())
    return path


def _draw_increments(axes: Axes, plan: Plan, curves: Sequence[Curve], which: Literal["general", "domain"]) -> None:
    laws = {row.ratio: row for row in plan.ratios}
    for number, curve in enumerate(sorted(curves, key=lambda curve: curve.ratio)):
        style: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)]}
        seen, values = curve.times > 0, getattr(curve, which)
        marker = _MARKERS[number % len(_MARKERS)]
        axes.plot(curve.times[seen], values[seen], marker, ms=3.5, alpha=0.7, label=f"{100 * curve.ratio:.3g}%", **style)
        row = laws.get(curve.ratio)
        if row is None:
            continue
        times = np.geomspace(curve.times[curve.fitted][0], max(curve.end, plan.budget), 200)
        axes.plot(times, getattr(row, which)(times), lw=1.5, **style)
        turn = row.turning_point
        if which == "general" and turn is not None and not row.at_once and turn <= times[-1]:
            axes.plot([turn], row.general(np.array([turn])), "D", ms=9, mfc="none", mew=2, **style)
    if which == "general" and plan.eps <= 1.5 * max(float(curve.general.max()) for curve in curves):
        axes.axhline(plan.eps, color=INK, ls="--", lw=1)
        axes.annotate(f"tolerance {plan.eps:g}", (0.01, plan.eps), xycoords=("axes fraction", "data"), va="bottom")
    axes.axvline(plan.budget, color=INK, ls=":", lw=1)
    axes.set(xscale="log", xlabel="tokens (the whole run is 100)", title=f"{which} loss, change since the start (nats)")
    axes.legend(title="domain share", frameon=False, fontsize=8)


def _draw_law(axes: Axes, plan: Plan) -> None:
    points = [(row.turning_point, row) for row in plan.ratios if row.turning_point is not None]
    for time, row in points:
        axes.plot([time], [row.ratio], "<" if row.at_once else "D", ms=8, mfc="none", mew=2, color=COLOURS[0])
    if plan.budget_law:
        ends = [plan.budget, *(time for time, row in points if not row.at_once)]
        times = np.geomspace(min(ends) / 1.5, max(ends) * 1.5, 200)
        axes.plot(times, plan.budget_law(times), lw=1.5, color=COLOURS[0], label="through the turning points")
    if plan.crossing_law:
        times = np.geomspace(plan.budget / 20, plan.budget * 1.5, 200)
        axes.plot(times, plan.crossing_law(times), lw=1.5, ls="-.", color=COLOURS[4], label="through the tolerance (variant)")
    if plan.tolerable_up_to is not None:
        axes.axhline(plan.tolerable_up_to, color=INK, ls="--", lw=1, label="tolerable up to here")
    axes.axvline(plan.budget, color=INK, ls=":", lw=1, label="budget")
    if plan.ratio is not None:
        low, high = plan.interval or (plan.ratio, plan.ratio)
        spread = [[max(0.0, plan.ratio - low)], [max(0.0, high - plan.ratio)]]
        label = f"critical ratio {plan.ratio:.1%}"
        axes.errorbar([plan.budget], [plan.ratio], yerr=spread, fmt="*", ms=14, capsize=5, color=COLOURS[5], label=label)
    title = "critical domain share over the budget"
    axes.set(xscale="log", ylim=(0, 1.02), xlabel="budget (the whole run is 100)", title=title)
    axes.legend(frameon=False, fontsize=8)
