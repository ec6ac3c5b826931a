"""Record: every score after every experience, and what it cost. Continual metrics are read off it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from latewood.core.cost import Cost
from latewood.core.errors import CheckpointError, ConfigurationError
from latewood.core.files import write_atomically

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ProbeInfo:
    """What the record keeps of a probe: its name, the experience from which on it counts as seen, and its weight."""

    name: str
    since: int
    weight: float = 1.0


@dataclass(frozen=True)
class Row:
    """What happened with one experience: its size, the score of each probe by metric (``None``: not scored), the cost."""

    index: int
    samples: int
    scores: Mapping[str, Sequence[float | None]]
    cost: Cost
    classes: tuple[int, ...] = ()


@dataclass
class Record:
    """The score matrix of a run for every metric, the cost of each experience, and the configuration behind them.

    Write ``a[k, j]`` for the score of probe ``j`` after experience ``k``, and say that ``j`` is *seen* at ``k`` if
    ``k >= since_j``. All metrics below are computed from it, for the main metric unless another is named, with one
    sign convention: **forgetting is bad when positive, transfer good when positive**, also where lower scores are better.
    They are NaN where they are not defined, and where a score they need is not a number. The score after an experience,
    and what is computed from it (last, average, any-time), weighs probes by their weights: 1 each, or the number of samples
    where a stream wants the score on the union of what was seen. Forgetting and transfer weigh every probe alike.

    >>> record = Record({}, {"accuracy": True}, [ProbeInfo("a", 0), ProbeInfo("b", 1)], length=2)
    >>> record.add(Row(0, 100, {"accuracy": [0.9, None]}, Cost()))
    >>> record.add(Row(1, 100, {"accuracy": [0.6, 0.8]}, Cost()))
    >>> record.matrix()
    array([[0.9, nan],
           [0.6, 0.8]])
    >>> round(record.last, 2), round(record.average, 2), round(record.forgetting, 2), round(record.backward_transfer, 2)
    (0.7, 0.8, 0.3, -0.3)
    """

    config: dict[str, Any]
    higher_is_better: dict[str, bool]
    probes: list[ProbeInfo]
    length: int
    rows: list[Row] = field(default_factory=list)
    baseline: dict[str, list[float | None]] | None = None
    environment: dict[str, str] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        """Append what happened with the next experience."""
        self.rows.append(row)

    @property
    def main(self) -> str:
        """The metric that is meant where none is named: the first of the probes' metrics."""
        return next(iter(self.higher_is_better), "")

    @property
    def complete(self) -> bool:
        """Whether every experience of the stream was learned and scored."""
        return len(self.rows) == self.length

    def matrix(self, metric: str | None = None, unseen: bool = False) -> Matrix:
        """``a[k, j]``, shape ``(experiences, probes)``; NaN where probe ``j`` is not yet seen, unless ``unseen`` is set."""
        metric = self._known(metric)
        full = np.array(
            [[math.nan if v is None else v for v in row.scores.get(metric, ())] for row in self.rows], dtype=np.float64
        )
        full = full.reshape(len(self.rows), len(self.probes))
        return full if unseen else np.where(self._seen(), full, math.nan)

    def curve(self, metric: str | None = None) -> npt.NDArray[np.float64]:
        """``AA_k``, the weighted mean score of the probes seen after each experience, shape ``(experiences,)``.

        NaN where none is seen, and where the score of a seen probe is not a number: a learner that diverged is not
        averaged over what is left.
        """
        seen = self._seen()
        weights = np.where(seen, np.array([p.weight for p in self.probes], dtype=np.float64), 0.0)
        total = weights.sum(1)
        sums = (np.where(seen, self.matrix(metric), 0.0) * weights).sum(1)
        return np.asarray(sums / np.where(total > 0, total, math.nan))

    def last_of(self, metric: str | None = None) -> float:
        """Average score after the last experience, ``AA_T``: "average accuracy" of Lopez-Paz and Ranzato, 2017 (ACC)."""
        curve = self.curve(metric)
        return float(curve[-1]) if len(curve) else math.nan

    def average_of(self, metric: str | None = None) -> float:
        """Average incremental score: the mean of ``AA_k`` over all experiences ``k`` (Rebuffi et al., 2017)."""
        return _mean(self.curve(metric)[self._seen().any(1)])

    def anytime_of(self, metric: str | None = None) -> float:
        """Area under the curve of ``AA`` over the samples that arrived, divided by their number: ``A_AUC`` of Koh et al., 2022.

        Each ``AA_k`` stands for the samples of its experience, so it equals :meth:`average_of` for equal arrivals.
        """
        curve, samples = self.curve(metric), np.array([row.samples for row in self.rows], dtype=np.float64)
        seen = self._seen().any(1)
        return float(np.average(curve[seen], weights=samples[seen])) if seen.any() else math.nan

    def forgetting_of(self, metric: str | None = None) -> float:
        """``FM_T``, how far each probe fell from the best it ever was, averaged (Chaudhry et al., 2018, eq. 3).

        ``mean_j max_{k < T} (a[k, j] - a[T, j])`` over the probes seen before the last experience ``T``.
        """
        matrix = self._signed(metric)
        old = self._old_probes()
        if not old:
            return math.nan
        best = np.where(np.isnan(matrix), -math.inf, matrix)[:-1, old].max(axis=0)
        return _mean(np.where(np.isinf(best), math.nan, best) - matrix[-1, old])

    def backward_transfer_of(self, metric: str | None = None) -> float:
        """BWT: what later experiences did to each probe since it was first seen (Lopez-Paz and Ranzato, 2017, eq. 3).

        ``mean_j (a[T, j] - a[since_j, j])`` over the probes seen before the last experience ``T``.
        """
        matrix = self._signed(metric)
        old = self._old_probes()
        return _mean(np.array([matrix[-1, j] - matrix[self.probes[j].since, j] for j in old]))

    def learned_of(self, metric: str | None = None) -> float:
        """Learning accuracy, or learned loss: the mean score of each probe right after it was first seen, ``a[since_j, j]``
        (Riemer et al., 2019): what a learner can take in, whatever it keeps of it."""
        matrix = self.matrix(metric)
        return _mean(np.array([matrix[p.since, j] for j, p in enumerate(self.probes) if p.since < len(self.rows)]))

    def forward_transfer_of(self, metric: str | None = None) -> float:
        """FWT: what earlier experiences did to each probe before it was seen (Lopez-Paz and Ranzato, 2017, eq. 4).

        ``mean_j (a[since_j - 1, j] - b_j)``, ``b_j`` the score before any learning. Only defined if the run scored
        unseen probes (``run(..., transfer=True)``).
        """
        metric = self._known(metric)
        if self.baseline is None:
            return math.nan
        matrix, sign = self.matrix(metric, unseen=True), self._sign(metric)
        before = [math.nan if b is None else b for b in self.baseline[metric]]
        later = [j for j, p in enumerate(self.probes) if 0 < p.since <= len(self.rows)]
        return _mean(np.array([sign * (matrix[self.probes[j].since - 1, j] - before[j]) for j in later]))

    @property
    def last(self) -> float:
        """:meth:`last_of` the main metric."""
        return self.last_of()

    @property
    def average(self) -> float:
        """:meth:`average_of` the main metric."""
        return self.average_of()

    @property
    def anytime(self) -> float:
        """:meth:`anytime_of` the main metric."""
        return self.anytime_of()

    @property
    def forgetting(self) -> float:
        """:meth:`forgetting_of` the main metric."""
        return self.forgetting_of()

    @property
    def backward_transfer(self) -> float:
        """:meth:`backward_transfer_of` the main metric."""
        return self.backward_transfer_of()

    @property
    def learned(self) -> float:
        """:meth:`learned_of` the main metric."""
        return self.learned_of()

    @property
    def forward_transfer(self) -> float:
        """:meth:`forward_transfer_of` the main metric."""
        return self.forward_transfer_of()

    @property
    def cost(self) -> Cost:
        """The cost of the whole run: sums of seconds and FLOPs, the largest of the others."""
        costs = [row.cost for row in self.rows]
        if not costs:
            return Cost()
        return Cost(
            seconds=sum(c.seconds for c in costs),
            probe_seconds=sum(c.probe_seconds for c in costs),
            flops=sum(c.flops for c in costs),
            peak_memory=max(c.peak_memory for c in costs),
            parameters=max(c.parameters for c in costs),
            trained=max(c.trained for c in costs),
            kept_bytes=max(c.kept_bytes for c in costs),
            state=max((c.state for c in costs), key=lambda state: sum(state.values())),
        )

    def repeatable(self) -> dict[str, Any]:
        """All that is the same bit for bit whenever the run is repeated on one machine: not the measured times and peaks."""
        plain = self.to_json()
        del plain["environment"]
        for row in plain["rows"]:
            row["cost"] = {name: row["cost"][name] for name in Cost.REPEATABLE}
        return plain

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries, lists, numbers and strings; scores that are not numbers become ``null``."""
        plain = dataclasses.asdict(self)
        plain["summary"] = {
            metric: {name: _null(getattr(self, f"{name}_of")(metric)) for name in SUMMARY} for metric in self.higher_is_better
        }
        return {"format": 1, **plain}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Record:
        """The inverse of :meth:`to_json`. Errors: :class:`CheckpointError` if it is not a record of this format."""
        try:
            if plain["format"] != 1:
                raise CheckpointError(f"This record has format {plain['format']}; this version of Latewood reads format 1.")
            rows = [Row(**{**r, "cost": Cost(**r["cost"]), "classes": tuple(r["classes"])}) for r in plain["rows"]]
            probes = [ProbeInfo(**probe) for probe in plain["probes"]]
            names = ("config", "higher_is_better", "length", "baseline", "environment")
            record = cls(probes=probes, rows=rows, **{name: plain[name] for name in names})
            for metric in dict(record.higher_is_better):
                if any(len(row.scores[metric]) != len(probes) for row in rows):
                    raise CheckpointError(f"This record is damaged: a row of {metric} has not one score for each probe.")
            return record
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"This is not a record of Latewood: {type(error).__name__} {error}.") from error

    def save(self, path: str | Path) -> None:
        """Write the record as JSON."""
        write_atomically(Path(path), json.dumps(self.to_json(), indent=1, allow_nan=False))

    @classmethod
    def load(cls, path: str | Path) -> Record:
        """Read a record that :meth:`save` wrote, or the one in a run's folder."""
        path = Path(path)
        path = path / "record.json" if path.is_dir() else path
        try:
            return cls.from_json(json.loads(path.read_text()))
        except OSError as error:
            raise CheckpointError(f"There is no record at {path} that can be read: {error.strerror}.") from error
        except ValueError as error:
            raise CheckpointError(f"{path} is not JSON: {error}.") from error

    def _known(self, metric: str | None) -> str:
        if metric and metric not in self.higher_is_better:
            names = ", ".join(self.higher_is_better)
            raise ConfigurationError(f"This record has no metric {metric!r}; it has {names}.")
        return metric or self.main

    def _sign(self, metric: str | None) -> float:
        return 1.0 if self.higher_is_better.get(self._known(metric), True) else -1.0

    def _signed(self, metric: str | None) -> Matrix:
        return self._sign(metric) * self.matrix(metric)

    def _seen(self) -> npt.NDArray[np.bool_]:
        since = np.array([p.since for p in self.probes], dtype=np.int64)
        return np.arange(len(self.rows))[:, None] >= since[None, :]

    def _old_probes(self) -> list[int]:
        return [j for j, probe in enumerate(self.probes) if probe.since < len(self.rows) - 1]


#: The metrics that are read off the matrix, in the order in which tables show them.
SUMMARY = ("last", "average", "anytime", "learned", "forgetting", "backward_transfer", "forward_transfer")


def mean_and_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Mean over seeds and the half-width of its confidence interval (Student's t); NaN half-width for one value.

    >>> mean, half = mean_and_interval([0.70, 0.72, 0.74])
    >>> round(mean, 3), round(half, 3)
    (0.72, 0.05)
    """
    known = [v for v in values if not math.isnan(v)]
    if len(known) < 2:
        return (known[0] if known else math.nan), math.nan
    from scipy.stats import t  # not at the top: importing the core needs only torch, numpy and safetensors

    spread = float(np.std(known, ddof=1)) / math.sqrt(len(known))
    return float(np.mean(known)), float(t.ppf((1 + level) / 2, len(known) - 1)) * spread


def _mean(values: npt.NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else math.nan


def _null(value: float) -> float | None:
    return None if math.isnan(value) else value
