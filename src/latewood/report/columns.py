"""Columns: what a comparison shows of each method, in which form, and which value is the best."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from latewood.report import quantities
from latewood.report.summary import COSTS, Estimate, MethodSummary

Severity = Literal["mild", "marked", "severe"]


@dataclass(frozen=True)
class Column:
    """One column: its title (in lines, where it is long), the name of what it shows, and how to show it.

    ``higher_is_better`` is ``None`` where the metric decides.
    """

    name: str
    title: str
    higher_is_better: bool | None
    show: Callable[[float], str] | None = None

    def estimate(self, summary: MethodSummary, metric: str) -> Estimate:
        """What the column shows of one method."""
        return summary.costs[self.name] if self.name in COSTS else summary.scores[metric][self.name]

    def parts(self, summary: MethodSummary, metric: str) -> tuple[str, str]:
        """The mean and ``± half`` as text. Costs show their mean only: where they vary, the machine is the reason."""
        estimate = self.estimate(summary, metric)
        if self.show:
            return self.show(estimate.mean), ""
        return quantities.score_parts(estimate.mean, estimate.half, metric)

    def best(self, summaries: Sequence[MethodSummary], metric: str) -> set[str]:
        """Labels of the methods with the best mean, more than one if they look the same; none if all do."""
        higher = summaries[0].first.higher_is_better[metric] if self.higher_is_better is None else self.higher_is_better
        means = [self.estimate(summary, metric).mean for summary in summaries]
        known = [mean for mean in means if not math.isnan(mean)]
        texts = [self.parts(summary, metric)[0] for summary in summaries]
        if len(set(texts)) < 2 or len(known) < 2:
            return set()
        winner = texts[means.index(max(known) if higher else min(known))]
        return {summary.label for summary, text in zip(summaries, texts, strict=True) if text == winner}


COLUMNS = (
    Column("last", "last", None),
    Column("average", "average", None),
    Column("forgetting", "forgetting", False),
    Column("backward_transfer", "backward\ntransfer", True),
    Column("seconds", "time", False, quantities.seconds),
    Column("flops", "FLOPs", False, quantities.amount),
    Column("trained", "trained\nparams", False, quantities.amount),
    Column("kept_bytes", "kept\nbytes", False, quantities.size),
)


def severity(summary: MethodSummary, metric: str) -> Severity | None:
    """How bad the forgetting is: under 2 points of accuracy it is mild, from 10 on severe; ``None`` if not defined.

    Of other metrics the same shares of the last score count, since their scale is not known.
    """
    scores = summary.scores[metric]
    scale = 1.0 if quantities.is_percent(metric) else abs(scores["last"].mean)
    share = scores["forgetting"].mean / scale if scale else math.nan
    if math.isnan(share):
        return None
    return "mild" if share < 0.02 else "marked" if share < 0.10 else "severe"
