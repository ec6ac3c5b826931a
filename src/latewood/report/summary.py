"""Summary: the runs of one method over several seeds, and what they amount to."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latewood.core.errors import CheckpointError, ConfigurationError
from latewood.core.record import SUMMARY, Matrix, Record, mean_and_interval
from latewood.report.comparable import check_comparable, check_seeds, label_of, seed_order

#: What a run costs, by the names of :class:`~latewood.core.cost.Cost`, in the order in which tables show it.
COSTS = ("seconds", "flops", "peak_memory", "kept_bytes", "parameters", "trained")


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and the half-width of its 95% confidence interval, which is NaN for a single seed."""

    mean: float
    half: float = math.nan

    @classmethod
    def of(cls, values: Iterable[float]) -> Estimate:
        """The estimate from one value for each seed; NaN values are left out."""
        return cls(*mean_and_interval(list(values)))

    def times(self, factor: float) -> Estimate:
        """The same in another unit."""
        return Estimate(self.mean * factor, self.half * factor)

    @property
    def ends(self) -> tuple[float, float]:
        """The lower and the upper end of the interval; twice the mean where there is none."""
        half = 0.0 if math.isnan(self.half) else self.half
        return self.mean - half, self.mean + half


@dataclass(frozen=True)
class MethodSummary:
    """One method on one stream: its runs, sorted by seed, and the mean and interval over them.

    ``scores[metric][name]`` for every metric and every name in :data:`~latewood.core.record.SUMMARY`;
    ``costs[name]`` of whole runs for every name in :data:`COSTS` (seconds, FLOPs, bytes, number of parameters).
    """

    label: str
    records: tuple[Record, ...]
    scores: Mapping[str, Mapping[str, Estimate]]
    costs: Mapping[str, Estimate]

    @property
    def first(self) -> Record:
        """One of the runs, for what all of them share: the stream, the metrics, the number of experiences."""
        return self.records[0]

    @property
    def length(self) -> int:
        """The number of experiences, the largest of all seeds."""
        return max(record.length for record in self.records)

    @property
    def seeds(self) -> list[Any]:
        """The seeds of the runs."""
        return [record.config.get("seed") for record in self.records]

    @property
    def unfinished(self) -> list[Record]:
        """The runs that have not learned every experience yet."""
        return [record for record in self.records if not record.complete]

    def curve(self, metric: str) -> list[Estimate]:
        """The average score after each experience, over the seeds that have one; a stream may be longer with one seed."""
        curves = [_padded(record.curve(metric), (self.length,)) for record in self.records]
        return [Estimate.of(values) for values in zip(*curves, strict=True)]

    def matrix(self, metric: str) -> Matrix:
        """The score matrix, mean over seeds, shape ``(experiences, probes)``; NaN where no seed has a score."""
        shape = self.length, max(len(record.probes) for record in self.records)
        stack = np.stack([_padded(record.matrix(metric), shape) for record in self.records])
        known = ~np.isnan(stack)
        total = known.sum(0)
        return np.asarray(np.where(total > 0, np.where(known, stack, 0.0).sum(0) / np.maximum(total, 1), math.nan))


def load_records(folders: Iterable[str | Path]) -> list[Record]:
    """Every ``record.json`` at or below the folders, each once, in the order of their paths.

    Errors: :class:`CheckpointError` if a folder does not exist, holds none, or one is damaged.

    >>> load_records([])
    Traceback (most recent call last):
    latewood.core.errors.CheckpointError: No folder was named; name at least one that holds a record.json.
    """
    places = [Path(folder) for folder in folders]
    if not places:
        raise CheckpointError("No folder was named; name at least one that holds a record.json.")
    found: dict[Path, None] = {}
    for folder in places:
        paths = _record_paths(folder)
        if not paths:
            what = "there" if folder.exists() else "because it does not exist"
            raise CheckpointError(f"No record.json was found in {folder} or below it {what}; name the folder of a run.")
        found |= dict.fromkeys(paths)
    return [Record.load(path) for path in found]


def group(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records by method, each method's sorted by seed.

    The label is ``config["method"]`` if it is there, else the name of the learner's class. Errors:
    :class:`ConfigurationError` for records that can't stand in one report: none at all, two streams (the stream's seed
    may differ), other metrics or probes, two runs of one method with one seed.
    """
    records = list(records)
    if not records:
        raise ConfigurationError("There are no records to report on; give at least one.")
    check_comparable(records)
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(label_of(record), []).append(record)
    for label, runs in groups.items():
        runs.sort(key=seed_order)
        check_seeds(label, runs)
    return groups


def summarise(records: Iterable[Record], metric: str | None = None) -> list[MethodSummary]:
    """One summary for each method, the best first: by ``last`` of ``metric`` (default: the main metric).

    >>> from latewood.core.record import ProbeInfo
    >>> def run_of(method, seed): return Record({"method": method, "seed": seed}, {"accuracy": True}, [ProbeInfo("a", 0)], 1)
    >>> [(s.label, s.seeds) for s in summarise([run_of("er", 1), run_of("er", 0), run_of("lwf", 0)])]
    [('er', [0, 1]), ('lwf', [0])]
    """
    return sort([_summary(label, runs) for label, runs in group(records).items()], metric)


def sort(summaries: Iterable[MethodSummary], metric: str | None = None) -> list[MethodSummary]:
    """The best first, by ``last`` of ``metric`` (default: the main metric); without a score at the end."""

    def rank(summary: MethodSummary) -> tuple[bool, float, str]:
        name = known_metric([summary], metric)
        last = summary.scores[name]["last"].mean
        sign = -1.0 if summary.first.higher_is_better[name] else 1.0
        return math.isnan(last), 0.0 if math.isnan(last) else sign * last, summary.label

    return sorted(summaries, key=rank)


def known_metric(summaries: Sequence[MethodSummary], metric: str | None) -> str:
    """``metric``, or the main one for ``None``. Errors: :class:`ConfigurationError` if the records don't have it."""
    if not summaries:
        raise ConfigurationError("There are no methods to show; give at least one.")
    record = summaries[0].first
    if metric is not None and metric not in record.higher_is_better:
        raise ConfigurationError(f"These records have no metric {metric!r}; they have {', '.join(record.higher_is_better)}.")
    return metric or record.main


def _summary(label: str, runs: Sequence[Record]) -> MethodSummary:
    scores = {
        metric: {name: Estimate.of(getattr(run, f"{name}_of")(metric) for run in runs) for name in SUMMARY}
        for metric in runs[0].higher_is_better
    }
    # A run that learned nothing yet has no cost; zeros would count as measured.
    spent = [run.cost for run in runs if run.rows]
    costs = {name: Estimate.of(float(getattr(cost, name)) for cost in spent) for name in COSTS}
    return MethodSummary(label, tuple(runs), scores, costs)


def _record_paths(folder: Path) -> list[Path]:
    if folder.is_file():
        return [folder.resolve()]
    paths = []
    for place, below, files in os.walk(folder):
        below[:] = sorted(name for name in below if name != "checkpoints")
        if "record.json" in files:
            paths.append((Path(place) / "record.json").resolve())
    return paths


def _padded(values: Matrix, shape: tuple[int, ...]) -> Matrix:
    """``values`` with NaN for the experiences that are not learned yet, and for those and the probes that this seed lacks."""
    padded = np.full(shape, math.nan)
    padded[tuple(slice(0, size) for size in values.shape)] = values
    return padded
