"""Global and local forgetting: hand-computed records, and probes with three sets of candidates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import pytest
import torch

from latewood.core.cost import Cost
from latewood.core.data import Data
from latewood.core.errors import ConfigurationError
from latewood.core.experience import Experience
from latewood.core.learner import Learner
from latewood.core.probe import Probe
from latewood.core.record import ProbeInfo, Record, Row
from latewood.core.run import run
from latewood.core.stream import Stream
from latewood.parts.classes import ClassRegistry
from latewood.parts.forgetting import global_forgetting, local_forgetting, with_candidates

METRICS = {"accuracy": True, "accuracy_then": True, "accuracy_within": True}


class Plain(Probe):
    metrics: ClassVar[Mapping[str, bool]] = {"accuracy": True}

    def score(self, learner: Learner) -> dict[str, float]:
        return {"accuracy": float((learner.predict(self.data) == self.data["label"]).double().mean())}


class Table(Learner):
    """Its scores are the columns of the data itself: one for each class, in order of labels."""

    def __init__(self) -> None:
        super().__init__()
        self.classes = ClassRegistry()

    def learn(self, experience: Experience) -> None:
        self.classes.expose_all(experience)

    def scores(self, data: Data) -> torch.Tensor:
        return data.tensor("scores")[:, self.classes.labels]

    def predict(self, data: Data) -> torch.Tensor:
        return self.classes.best(self.scores(data))


def rows(label: int, *scores: list[float]) -> Data:
    return Data(scores=torch.tensor(scores), label=torch.full((len(scores),), label))


def record(then: list[list[float | None]], within: list[list[float | None]], sizes: list[int]) -> Record:
    made = Record({}, METRICS, [ProbeInfo(str(n), n) for n in range(len(sizes))], length=len(sizes))
    for index, size in enumerate(sizes):
        scores = {"accuracy": then[index], "accuracy_then": then[index], "accuracy_within": within[index]}
        made.add(Row(index, 10, scores, Cost(), tuple(range(size))))
    return made


def test_three_arrivals_by_hand() -> None:
    then: list[list[float | None]] = [[0.9, None, None], [0.6, 0.8, None], [0.3, 0.5, 0.7]]
    within: list[list[float | None]] = [[0.9, None, None], [0.8, 1.0, None], [0.7, 0.9, 0.9]]
    equal = record(then, within, [2, 2, 2])
    # After the second: 1/2 * 0.3; after the third: 1/3 * (0.6 + 0.3).
    assert global_forgetting(equal) == pytest.approx((0.15 + 0.3) / 2)
    assert local_forgetting(equal) == pytest.approx(((0.7 - 0.9) + (0.9 - 1.0)) / 2)
    unequal = record(then, within, [3, 1, 4])
    assert global_forgetting(unequal) == pytest.approx((3 / 4 * 0.3 + (3 / 8 * 0.6 + 1 / 8 * 0.3)) / 2)


def test_one_arrival_has_no_forgetting() -> None:
    single = record([[0.9]], [[0.9]], [2])
    assert global_forgetting(single) != global_forgetting(single)


def test_candidates_are_all_seen_those_up_to_the_arrival_and_its_own() -> None:
    # The first row's best class arrives last; the second's best is of its own arrival; the third's best came before.
    first = rows(0, [0.5, 0.1, 0.9], [0.9, 0.1, 0.2])
    parts = [first, rows(1, [0.8, 0.5, 0.1]), rows(2, [0.0, 0.1, 0.2])]
    data = [Experience(n, part, classes=(n,)) for n, part in enumerate(parts)]
    stream = with_candidates(Stream("three", 3, data.__getitem__, [Plain(str(n), p, n) for n, p in enumerate(parts)]))
    found = run(Table(), stream, device="cpu")
    assert found.matrix("accuracy")[2].tolist() == [0.5, 0.0, 1.0]
    assert found.matrix("accuracy_then")[2].tolist() == [1.0, 0.0, 1.0]
    assert found.matrix("accuracy_within")[2].tolist() == [1.0, 1.0, 1.0]
    # Scores that never change are no forgetting of either kind, though accuracy over all classes fell.
    assert global_forgetting(found) == local_forgetting(found) == 0
    assert global_forgetting(found, "accuracy") == pytest.approx(1 / 3 * 0.5 / 2)


def test_a_stream_whose_classes_return_is_refused() -> None:
    part = rows(0, [1.0])
    data = [Experience(n, part, classes=(0,)) for n in range(2)]
    with pytest.raises(ConfigurationError, match="disjoint arrivals"):
        with_candidates(Stream("again", 2, data.__getitem__, [Plain(str(n), part, n) for n in range(2)]))
