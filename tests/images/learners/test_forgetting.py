"""Closed-form learners forget exactly: what stays equals a learner that never saw what is gone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError, DataError
from latewood.core.experience import Experience
from latewood.images.learners.g_acil import GACIL
from latewood.images.learners.nmc import NMC
from latewood.images.learners.slda import SLDA
from latewood.parts.closed_form import ClosedFormClassifier
from latewood.parts.features import Features

WIDTH = 6
Make = Callable[[], ClosedFormClassifier]
LEARNERS: dict[str, Make] = {
    "g-acil": lambda: GACIL(Features(WIDTH), expansion=20, gamma=1.0),
    "g-acil three passes": lambda: GACIL(Features(WIDTH), expansion=20, gamma=1.0, passes=3),
    "nmc": lambda: NMC(Features(WIDTH)),
    "slda": lambda: SLDA(Features(WIDTH), shrinkage=0.01),
}


def table(labels: list[int], seed: int) -> Data:
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(10, WIDTH, generator=generator)
    noise = torch.randn(len(labels), WIDTH, generator=generator)
    return Data(features=centres[torch.tensor(labels)] + noise, label=torch.tensor(labels))


def taught(make: Make, *arrivals: Data) -> ClosedFormClassifier:
    learner = make()
    for index, arrival in enumerate(arrivals):
        learner.learn(Experience(index, arrival))
    return learner


def scores(learner: ClosedFormClassifier, data: Data) -> Tensor:
    order = learner.classes.labels.argsort()
    return learner.scores(data)[:, order]


@pytest.mark.parametrize("name", LEARNERS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), counts=st.lists(st.integers(1, 30), min_size=3, max_size=5))
def test_forgetting_a_class_gives_the_learner_that_never_saw_it(name: str, seed: int, counts: list[int]) -> None:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    everything = table(labels, seed)
    shuffled = everything[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    half = len(labels) // 2
    gone = everything["label"] == 1
    learner = taught(LEARNERS[name], shuffled[:half], shuffled[half:])
    learner.forget(everything[gone], classes=[1])
    never = taught(LEARNERS[name], everything[~gone])
    assert sorted(learner.classes.labels.tolist()) == sorted(never.classes.labels.tolist())
    assert torch.allclose(scores(learner, everything), scores(never, everything), rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", LEARNERS)
def test_forgetting_an_arrival_whose_classes_came_elsewhere_too_leaves_these_classes(name: str) -> None:
    monday, tuesday = table([0, 1, 2] * 20, seed=1), table([0, 1, 3] * 15, seed=1)
    learner = taught(LEARNERS[name], monday, tuesday)
    learner.forget(monday, classes=[2])
    never = taught(LEARNERS[name], tuesday)
    assert torch.allclose(scores(learner, monday), scores(never, monday), rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", LEARNERS)
def test_whoever_forgot_learns_on_as_if_nothing_had_been(name: str) -> None:
    first, secret, later = table([0, 1] * 20, seed=2), table([2] * 10, seed=2), table([1, 4] * 20, seed=2)
    learner = taught(LEARNERS[name], first, secret)
    learner.forget(secret, classes=[2])
    learner.learn(Experience(2, later))
    never = taught(LEARNERS[name], first, later)
    assert torch.allclose(scores(learner, first), scores(never, first), rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", LEARNERS)
def test_a_learner_that_forgets_everything_knows_no_class(name: str) -> None:
    data = table([0, 1] * 10, seed=3)
    learner = taught(LEARNERS[name], data)
    learner.forget(data, classes=[0, 1])
    assert learner.predict(data).tolist() == [-1] * len(data)


def test_a_class_can_be_forgotten_where_the_ridge_is_badly_conditioned() -> None:
    """Features of one sample in one direction a thousand times: the autocorrelation's condition number is 1e5."""
    data = table([0] * 1000 + [1] * 1000, seed=4)
    make: Make = lambda: GACIL(Features(WIDTH), expansion=50, gamma=0.1)  # noqa: E731
    learner = taught(make, data)
    learner.forget(data[1000:], classes=[1])
    assert torch.allclose(scores(learner, data), scores(taught(make, data[:1000]), data), rtol=0, atol=1e-8)


def test_samples_that_were_never_learned_are_told_and_nothing_changes() -> None:
    learner = taught(LEARNERS["g-acil"], table([0, 1] * 10, seed=5))
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    with pytest.raises(DataError, match="never learned"):
        learner.forget(Data(features=table([0] * 300, seed=6)["features"], label=torch.zeros(300, dtype=torch.int64)))
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())


def test_a_label_that_never_arrived_can_not_be_forgotten() -> None:
    learner = taught(LEARNERS["nmc"], table([0, 1] * 10, seed=5))
    with pytest.raises(DataError, match="label 7 never arrived"):
        learner.forget(table([7], seed=5))


def test_a_mean_that_fades_can_not_forget_and_says_so() -> None:
    learner = NMC(Features(WIDTH), decay=0.9)
    data = table([0, 1] * 10, seed=5)
    learner.learn(Experience(0, data))
    assert not learner.can_forget
    with pytest.raises(ConfigurationError, match="can't forget exactly"):
        learner.forget(data)


def test_a_method_without_subtraction_refuses() -> None:
    class Stubborn(NMC):
        downdate = ClosedFormClassifier.downdate
        can_forget = ClosedFormClassifier.can_forget  # type: ignore[assignment]

    learner = Stubborn(Features(WIDTH))
    data = table([0, 1] * 10, seed=5)
    learner.learn(Experience(0, data))
    with pytest.raises(ConfigurationError, match="can't forget exactly"):
        learner.forget(data)
