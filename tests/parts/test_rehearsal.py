"""Choosing exemplars: equal shares by herding, on the network as it is, without augmentation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError
from latewood.core.experience import Experience
from latewood.parts.backbone import Backbone
from latewood.parts.heads import Classifier
from latewood.parts.memory import Exemplars, herding
from latewood.parts.rehearsal import choose_exemplars, normalised_features

MakeBackbone = Callable[..., Backbone]
MakeTable = Callable[..., Data]


@pytest.fixture
def net(moody: MakeBackbone) -> Classifier:
    return Classifier(moody())


def arrive(net: Classifier, kept: Exemplars, index: int, data: Data) -> None:
    experience = Experience(index, data)
    net.expose(experience, torch.Generator().manual_seed(0))
    choose_exemplars(kept, net, experience)


def of(kept: Exemplars, label: int) -> torch.Tensor:
    rows: torch.Tensor = kept.data["x"][kept.data["label"] == label]
    return rows


def test_features_have_length_one_and_come_from_the_evaluation_mode(net: Classifier, table: MakeTable) -> None:
    data = table([0] * 10)
    net.train()
    features = normalised_features(net, data, batch_size=3)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(10))
    net.eval()
    with torch.no_grad():
        torch.testing.assert_close(features, F.normalize(net.backbone(data["x"])))
    assert not features.requires_grad


def test_every_class_has_exactly_its_share_after_every_arrival(net: Classifier, table: MakeTable) -> None:
    kept = Exemplars(20)
    for index, labels in enumerate(([0, 1] * 30, [2] * 30, [3, 4, 5] * 30)):
        arrive(net, kept, index, table(labels, seed=index))
        share = 20 // len(net.classes)
        assert kept.data["label"].bincount().tolist() == [share] * len(net.classes)


def test_the_exemplars_are_those_of_herding_in_its_order_and_the_first_stay_when_the_share_shrinks(
    net: Classifier, table: MakeTable
) -> None:
    kept, data = Exemplars(12), table([0, 1] * 20)
    net.train()
    arrive(net, kept, 0, data)
    for label in (0, 1):
        rows = data[data["label"] == label]
        assert torch.equal(of(kept, label), rows["x"][herding(normalised_features(net, rows), 6)])
    before = {label: of(kept, label) for label in (0, 1)}
    arrive(net, kept, 1, table([2] * 20, seed=1))
    assert all(torch.equal(of(kept, label), before[label][:4]) for label in (0, 1))


def test_a_class_that_returns_is_herded_from_its_new_samples_and_old_exemplars_together(
    net: Classifier, table: MakeTable
) -> None:
    kept = Exemplars(8)
    arrive(net, kept, 0, table([0, 1] * 20))
    old, other, new = of(kept, 0), of(kept, 1), table([0] * 3, seed=1)
    arrive(net, kept, 1, new)
    pool = torch.cat([old, new["x"]])
    features = normalised_features(net, Data(x=pool))
    assert torch.equal(of(kept, 0), pool[herding(features, 4)])
    assert torch.equal(of(kept, 1), other)
    assert len(kept) == 8


def test_a_class_with_fewer_samples_than_its_share_keeps_them_all(net: Classifier, table: MakeTable) -> None:
    kept = Exemplars(20)
    arrive(net, kept, 0, table([0] * 3 + [1] * 30))
    assert kept.data["label"].bincount().tolist() == [3, 10]


def test_more_classes_than_slots_are_refused_with_a_sentence_and_change_nothing(net: Classifier, table: MakeTable) -> None:
    kept = Exemplars(2)
    arrive(net, kept, 0, table([0, 1] * 5))
    before = kept.data["x"]
    with pytest.raises(ConfigurationError, match="A memory of 2 has no room for 3 classes"):
        arrive(net, kept, 1, table([2] * 5, seed=1))
    assert torch.equal(kept.data["x"], before)
