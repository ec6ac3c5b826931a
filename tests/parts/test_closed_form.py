"""What closed-form classifiers share, shown on the simplest: the nearest mean, as a sum of features and a count."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from latewood.core.cost import metered
from latewood.core.data import Data
from latewood.core.errors import DataError
from latewood.core.experience import Experience
from latewood.parts.backbone import Backbone
from latewood.parts.closed_form import ClosedFormClassifier
from latewood.parts.statistics import ClassSums

MakeBackbone = Callable[..., Backbone]
MakeTable = Callable[..., Data]


class NearestMean(ClosedFormClassifier):
    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        self.means = ClassSums(backbone.width)

    def update(self, features: Tensor, columns: Tensor) -> None:
        self.means.update(features, columns, len(self.classes))

    def score(self, features: Tensor) -> Tensor:
        return -torch.cdist(features.double(), self.means.means())


class Fragile(Backbone):
    """Gives ``value`` for rows whose first number is above 100."""

    def __init__(self, value: float) -> None:
        super().__init__("x", (4,), {"value": value})
        self.width, self.value = 4, value

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.where(inputs[:, :1] > 100, self.value, inputs)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATEWOOD_CACHE", str(tmp_path))


def bits(learner: ClosedFormClassifier) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in learner.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("first", [True, False], ids=["at once", "later"])
def test_features_that_are_not_finite_are_refused_before_anything_changes(value: float, first: bool, table: MakeTable) -> None:
    learner = NearestMean(Fragile(value))
    if not first:
        learner.learn(Experience(0, table([0, 1] * 5)))
    before, chance = bits(learner), learner.generator.get_state()
    bad = table([1, 2, 3], seed=1).with_columns(x=torch.tensor([[1.0] * 4, [500.0] * 4, [2.0] * 4]))
    with pytest.raises(DataError, match="NaN or infinity for experience 1; nothing was learned"):
        learner.learn(Experience(1, bad))
    assert same(bits(learner), before)
    assert torch.equal(learner.generator.get_state(), chance)
    learner.learn(Experience(1, table([2, 3])))
    assert len(learner.classes) > 1


def test_a_task_with_a_name_is_refused_before_anything_changes(linear: MakeBackbone, table: MakeTable) -> None:
    learner = NearestMean(linear())
    learner.learn(Experience(0, table([0, 1] * 5), task=0))
    before = bits(learner)
    with pytest.raises(DataError, match="must be a number"):
        learner.learn(Experience(1, table([2, 3]), task="second"))
    assert same(bits(learner), before)


def test_it_predicts_the_labels_of_the_nearest_means_among_all_classes_seen(linear: MakeBackbone, table: MakeTable) -> None:
    backbone = linear()
    learner, arrivals = NearestMean(backbone), [table([7, 3] * 10), table([9, 3] * 10, seed=1)]
    for index, data in enumerate(arrivals):
        learner.learn(Experience(index, data))
    features = torch.cat([backbone(data["x"]) for data in arrivals]).double()
    labels = torch.cat([data["label"] for data in arrivals])
    means = torch.stack([features[labels == label].mean(0) for label in (3, 7, 9)])
    probe = table([0] * 40, seed=9)
    wanted = torch.tensor([3, 7, 9])[torch.cdist(backbone(probe["x"]).double(), means).argmin(1)]
    assert learner.classes.labels.tolist() == [3, 7, 9]
    assert torch.equal(learner.predict(probe), wanted)
    assert learner.scores(probe).shape == (40, 3)
    assert len(set(wanted.tolist())) == 3


def test_a_prediction_that_is_told_the_task_stays_within_it(linear: MakeBackbone, table: MakeTable) -> None:
    learner, tasks = NearestMean(linear()), torch.arange(40) % 2
    learner.learn(Experience(0, table([0, 1] * 10), task=0))
    learner.learn(Experience(1, table([2, 3] * 10, seed=1), task=1))
    probe = table([0] * 40, seed=9)
    assert torch.equal(learner.predict(probe.with_columns(task=tasks)) // 2, tasks)
    assert not torch.equal(learner.predict(probe) // 2, tasks)


def test_before_anything_was_learned_every_prediction_is_no_label(linear: MakeBackbone, table: MakeTable) -> None:
    learner = NearestMean(linear())
    assert learner.scores(table([0, 1])).shape == (2, 0)
    assert learner.predict(table([0, 1])).tolist() == [-1, -1]


def test_no_rows_get_no_predictions(linear: MakeBackbone, table: MakeTable) -> None:
    learner = NearestMean(linear())
    learner.learn(Experience(0, table([0, 1])))
    assert learner.predict(table([0])[:0]).shape == (0,)


def test_the_order_of_arrivals_leaves_no_trace(linear: MakeBackbone, table: MakeTable) -> None:
    data, probe = table([0, 1, 2, 3] * 10), table([0] * 40, seed=9)
    one, other = NearestMean(linear()), NearestMean(linear())
    one.learn(Experience(0, data))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    for index, part in enumerate(data[order].batches(7)):
        other.learn(Experience(index, part))
    assert torch.equal(one.predict(probe), other.predict(probe))
    columns = other.classes.columns(one.classes.labels)
    torch.testing.assert_close(other.means.means()[columns], one.means.means(), rtol=1e-12, atol=1e-14)


def test_learning_and_predicting_build_no_graph_and_leave_every_bit_of_the_backbone(
    moody: MakeBackbone, table: MakeTable
) -> None:
    backbone = moody()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    learner = NearestMean(backbone).train()
    assert learner.backbone is backbone
    learner.learn(Experience(0, table([0, 1] * 10)))
    assert not learner.scores(table([0])).requires_grad
    assert not any(p.requires_grad for p in learner.parameters())
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_the_state_loads_into_a_fresh_learner_that_predicts_identically(linear: MakeBackbone, table: MakeTable) -> None:
    learner, fresh, probe = NearestMean(linear()), NearestMean(linear()), table([0] * 40, seed=9)
    learner.learn(Experience(0, table([5, 1] * 10), task=0))
    learner.learn(Experience(1, table([4, 1] * 10, seed=1), task=1))
    fresh.load_state_dict(learner.state_dict())
    assert torch.equal(fresh.scores(probe), learner.scores(probe))
    assert torch.equal(fresh.predict(probe), learner.predict(probe))
    assert not any(name.startswith("encoder.backbone") for name in learner.state_dict())


def test_learning_costs_the_same_flops_whether_the_features_were_cached_or_not(linear: MakeBackbone, table: MakeTable) -> None:
    def flops() -> int:
        learner = NearestMean(linear())
        with metered() as meter, meter.counting():
            learner.learn(Experience(0, table([0, 1] * 10)))
        return meter.flops

    assert flops() == flops() == 20 * 2 * 4 * 3 + 20 * 2 * 2 * 3  # the backbone, and the product that sums the features


def test_labels_that_are_missing_get_a_sentence(linear: MakeBackbone, table: MakeTable) -> None:
    with pytest.raises(DataError, match="no column 'label'"):
        NearestMean(linear()).learn(Experience(0, table([0]).select("x")))
