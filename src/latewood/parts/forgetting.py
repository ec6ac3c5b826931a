"""Forgetting told apart by its cause: that of the features (local) and that of the head as well (global)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError
from latewood.core.learner import Learner
from latewood.core.probe import Probe
from latewood.core.record import Record
from latewood.core.stream import Stream
from latewood.parts.classes import ClassRegistry


class Scoring(Protocol):
    """A classifier that shows the scores behind its predictions."""

    @property
    def classes(self) -> ClassRegistry: ...
    def scores(self, data: Data) -> Tensor: ...


class CandidateAccuracy(Probe):
    """Accuracy on the test rows of arrival ``n`` with three sets of candidates.

    ``accuracy``: all classes seen by now; ``accuracy_then``: those of arrivals up to ``n`` (``R`` of Smith et al., 2022);
    ``accuracy_within``: those of arrival ``n`` (their ``A``).
    """

    metrics: ClassVar[Mapping[str, bool]] = {"accuracy": True, "accuracy_then": True, "accuracy_within": True}

    def __init__(self, probe: Probe, then: Collection[int], within: Collection[int]) -> None:
        super().__init__(probe.name, probe.data, probe.since, probe.weight)
        self.candidates = {"accuracy": None, "accuracy_then": sorted(then), "accuracy_within": sorted(within)}

    def score(self, learner: Learner) -> dict[str, float]:
        classifier = cast("Scoring", learner)
        scores, labels = classifier.scores(self.data), self.data.tensor("label").cpu()
        found = {}
        for metric, candidates in self.candidates.items():
            allowed = scores
            if candidates is not None:
                known = torch.isin(classifier.classes.labels, torch.tensor(candidates, device=scores.device))
                allowed = scores.masked_fill(~known, -torch.inf)
            found[metric] = (classifier.classes.best(allowed).cpu() == labels).double().mean().item()
        return found


def with_candidates(stream: Stream) -> Stream:
    """The same stream, of disjoint classes and one probe for each arrival, scored by :class:`CandidateAccuracy`.

    Errors: :class:`~latewood.core.errors.ConfigurationError` for a stream of another kind.
    """
    classes = [set(experience.classes) for experience in stream]
    if [probe.since for probe in stream.probes] != list(range(len(stream))) or len(set[int]().union(*classes)) < sum(
        map(len, classes)
    ):
        raise ConfigurationError(f"Forgetting by candidates needs disjoint arrivals with a probe each, unlike {stream.name!r}.")
    probes = [
        CandidateAccuracy(probe, set[int]().union(*classes[: n + 1]), classes[n]) for n, probe in enumerate(stream.probes)
    ]
    config: dict[str, Any] = {**stream.config, "scored": "by candidates"}
    return Stream(stream.name, len(stream), stream.__getitem__, probes, config=config, wing=stream.wing)


def global_forgetting(record: Record, metric: str = "accuracy_then") -> float:
    """``F^G`` (Smith et al., 2022): what arrivals lose among the classes that were there with them; lower is better.

    ``1/(N-1) sum_{i=2..N} sum_{n<i} |T_n| / |T_{1:i}| (R[n, n] - R[i, n])``, sizes in classes. With
    ``metric="accuracy"`` the candidates are all classes seen at ``i``, as in the official script.
    """
    scores = record.matrix(metric)
    sizes = np.array([len(row.classes) for row in record.rows], dtype=np.float64)
    lost = np.diag(scores)[None, :] - scores
    steps = [float((sizes[:i] * lost[i, :i]).sum() / sizes[: i + 1].sum()) for i in range(1, len(sizes))]
    return sum(steps) / len(steps) if steps else float("nan")


def local_forgetting(record: Record) -> float:
    """``F^L`` (Smith et al., 2022): ``mean_{n<N} (A[N, n] - A[n, n])`` among each arrival's own classes; negative is forgotten.

    It is the backward transfer where the task is told, so it sees the features and not the head's bias between tasks.
    """
    return record.backward_transfer_of("accuracy_within")
