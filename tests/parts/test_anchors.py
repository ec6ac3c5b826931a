"""Anchors: the quadratic that holds parameters in place, and the Fisher information that weighs it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latewood.core.data import Data
from latewood.core.errors import DataError
from latewood.core.experience import Experience
from latewood.parts.anchors import Anchors, FixedRows, batch_fisher, empirical_fisher
from latewood.parts.backbone import Backbone
from latewood.parts.heads import Classifier, LinearHead

MakeBackbone = Callable[..., Backbone]
MakeTable = Callable[..., Data]
Values = list[Tensor]


class Net(nn.Module):
    """A layer, a scalar and a head that grows, all in float64."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.layer, self.scale, self.head = nn.Linear(3, 4), nn.Parameter(torch.ones(())), LinearHead(4)
        self.double()
        self.head.grow(2, torch.Generator().manual_seed(0))
        move(self, seed)


def move(module: nn.Module, seed: int) -> None:
    """New random values for all parameters."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)


def importance(module: nn.Module, seed: int) -> Values:
    generator = torch.Generator().manual_seed(100 + seed)
    return [torch.rand(p.shape, generator=generator, dtype=torch.float64) for p in module.parameters()]


def values(module: nn.Module) -> Values:
    return [p.detach().clone() for p in module.parameters()]


def padded(small: Values, like: Values) -> Values:
    """Zeros for the rows that were not there yet."""
    result = [torch.zeros_like(value) for value in like]
    for target, value in zip(result, small, strict=True):
        (target[: len(value)] if value.dim() else target).copy_(value)
    return result


def quadratic(module: nn.Module, tasks: list[tuple[Values, Values]]) -> float:
    """The sum of the tasks' penalties as Kirkpatrick et al. write it; new rows have importance zero."""
    now, total = values(module), 0.0
    for weights, centres in tasks:
        for weight, centre, value in zip(padded(weights, now), padded(centres, now), now, strict=True):
            total += 0.5 * float((weight * (value - centre) ** 2).sum())
    return total


def pulls(module: nn.Module, tasks: list[tuple[Values, Values]]) -> Values:
    """The gradient of that sum: ``sum_t F_t (theta - theta_t)``."""
    now = values(module)
    result = [torch.zeros_like(value) for value in now]
    for weights, centres in tasks:
        for pull, weight, centre, value in zip(result, padded(weights, now), padded(centres, now), now, strict=True):
            pull += weight * (value - centre)
    return result


def penalty(anchors: Anchors) -> float:
    return float(anchors.penalty().detach())


def gradient(anchors: Anchors, module: nn.Module) -> Values:
    return list(torch.autograd.grad(anchors.penalty(), list(module.parameters())))


def assert_same(found: Values, wanted: Values) -> None:
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def anchored(module: nn.Module, anchors: Anchors, seeds: range) -> list[tuple[Values, Values]]:
    """Move the module and anchor it there, once for each seed; returns the tasks' importances and centres."""
    tasks = []
    for seed in seeds:
        move(module, seed)
        weights = importance(module, seed)
        anchors.add(weights)
        tasks.append((weights, values(module)))
    return tasks


def test_without_an_anchor_nothing_is_held() -> None:
    net = Net()
    anchors = Anchors(net)
    assert penalty(anchors) == 0
    loss = sum(p.sum() for p in net.parameters()) + 1000 * anchors.penalty()
    loss.backward()
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in net.parameters() if p.grad is not None)


def test_the_penalty_is_zero_at_the_anchor_and_nowhere_else() -> None:
    net = Net()
    one, online = Anchors(net), Anchors(net)
    one.add(importance(net, 0))
    online.replace(importance(net, 0), decay=0.9)
    assert penalty(one) < 1e-28
    assert penalty(online) == 0
    assert all(float(pull.abs().max()) < 1e-14 for pull in gradient(one, net))
    net.layer.bias.data[1] += 0.5
    weight = importance(net, 0)[[name for name, _ in net.named_parameters()].index("layer.bias")][1]
    assert penalty(one) == pytest.approx(0.125 * float(weight))
    assert penalty(online) == pytest.approx(0.125 * float(weight))


def test_separate_quadratics_pull_like_the_explicit_sum_over_tasks() -> None:
    net = Net()
    anchors = Anchors(net)
    tasks = anchored(net, anchors, range(3))
    move(net, 7)
    assert_same(gradient(anchors, net), pulls(net, tasks))


def test_separate_quadratics_differ_from_their_explicit_sum_by_a_constant_only() -> None:
    net = Net()
    anchors = Anchors(net)
    tasks = anchored(net, anchors, range(3))
    gaps = []
    for seed in (7, 8, 9):
        move(net, seed)
        gaps.append(quadratic(net, tasks) - penalty(anchors))
    assert gaps[0] == pytest.approx(gaps[1], rel=1e-10) == pytest.approx(gaps[2], rel=1e-10)
    assert gaps[0] > 0.1  # the tasks contradict each other


def test_the_online_quadratic_decays_and_is_centred_at_the_newest_parameters() -> None:
    net = Net()
    anchors, total = Anchors(net), [torch.zeros_like(p) for p in net.parameters()]
    for seed in range(3):
        move(net, seed)
        weights = importance(net, seed)
        anchors.replace(weights, decay=0.5)
        total = [0.5 * old + new for old, new in zip(total, weights, strict=True)]
    centre = values(net)
    move(net, 7)
    assert_same(gradient(anchors, net), pulls(net, [(total, centre)]))
    assert penalty(anchors) == pytest.approx(quadratic(net, [(total, centre)]), rel=1e-12)


def test_new_rows_of_a_head_are_free_and_old_ones_are_held_as_before() -> None:
    net = Net()
    anchors = Anchors(net)
    tasks = anchored(net, anchors, range(2))
    before = penalty(anchors)
    net.head.grow(5, torch.Generator().manual_seed(1))
    assert penalty(anchors) == before
    move(net, 7)
    found = gradient(anchors, net)
    assert_same(found, pulls(net, tasks))
    weight, bias = found[-2:]
    assert not weight[2:].any()
    assert not bias[2:].any()
    assert bool(weight[:2].all())


@pytest.mark.parametrize("mode", ["separate", "online"])
def test_anchoring_a_grown_head_starts_its_new_rows_from_zero_importance(mode: str) -> None:
    net = Net()
    anchors = Anchors(net)
    first = importance(net, 0), values(net)
    (anchors.add(first[0]) if mode == "separate" else anchors.replace(first[0], 1.0))
    net.head.grow(5, torch.Generator().manual_seed(1))
    move(net, 1)
    second = importance(net, 1), values(net)
    (anchors.add(second[0]) if mode == "separate" else anchors.replace(second[0], 1.0))
    move(net, 7)
    if mode == "separate":
        assert_same(gradient(anchors, net), pulls(net, [first, second]))
    else:
        total = [old + new for old, new in zip(padded(first[0], second[0]), second[0], strict=True)]
        assert_same(gradient(anchors, net), pulls(net, [(total, second[1])]))


def test_parameters_without_importance_are_free_and_parameters_that_do_not_train_are_ignored() -> None:
    net = Net()
    net.scale.requires_grad_(False)
    anchors = Anchors(net)
    trained = [p for p in net.parameters() if p.requires_grad]
    anchors.add([torch.zeros_like(p) for p in trained])
    anchors.add([torch.zeros_like(p) for p in trained])
    move(net, 7)
    assert penalty(anchors) == 0
    assert len(anchors.values) == sum(p.numel() for p in trained)


def test_with_strength_zero_the_gradient_is_the_losss_own_to_the_last_bit() -> None:
    net = Net()
    anchors = Anchors(net)
    anchored(net, anchors, range(2))
    move(net, 7)

    def loss() -> Tensor:
        logits: Tensor = net.head(net.layer(torch.ones(1, 3, dtype=torch.float64))) * net.scale
        return logits.square().sum()

    plain = torch.autograd.grad(loss(), list(net.parameters()))
    held = torch.autograd.grad(loss() + 0.0 * anchors.penalty(), list(net.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(plain, held, strict=True))


def test_the_memory_of_anchors_does_not_grow_with_the_tasks() -> None:
    net = Net()
    anchors = Anchors(net)
    anchored(net, anchors, range(1))
    before = {name: value.shape for name, value in anchors.state_dict().items()}
    anchored(net, anchors, range(1, 6))
    assert {name: value.shape for name, value in anchors.state_dict().items()} == before
    assert set(before) == {"values", "importance", "rows"}  # and none of the module's own parameters
    assert not list(anchors.parameters())


def test_a_fresh_module_takes_on_anchors_and_grown_head_and_is_held_alike() -> None:
    net = Net()
    anchors = Anchors(net)
    anchored(net, anchors, range(2))
    net.head.grow(5, torch.Generator().manual_seed(1))
    move(net, 7)
    whole = nn.ModuleDict({"net": net, "anchors": anchors})
    other = Net(seed=3)
    fresh = Anchors(other)
    nn.ModuleDict({"net": other, "anchors": fresh}).load_state_dict(whole.state_dict())
    assert torch.equal(fresh.penalty(), anchors.penalty())
    assert_same(gradient(fresh, other), gradient(anchors, net))
    for each, module in ((anchors, net), (fresh, other)):
        each.add(importance(module, 4))
    assert torch.equal(fresh.values, anchors.values)
    assert torch.equal(fresh.importance, anchors.importance)


def test_the_anchors_of_a_copied_learner_watch_the_copy() -> None:
    net = Net()
    learner = nn.ModuleDict({"net": net, "anchors": Anchors(net)})
    twin = copy.deepcopy(learner)
    own, copied = learner["anchors"], twin["anchors"]
    assert isinstance(own, Anchors)
    assert isinstance(copied, Anchors)
    for anchors in (own, copied):
        anchors.replace(importance(net, 0), 1.0)
    move(twin["net"], 7)
    assert penalty(own) == 0
    assert penalty(copied) > 0.1


# Fisher information


@pytest.fixture
def net(moody: MakeBackbone, table: MakeTable) -> Classifier:
    """A classifier with batch normalisation and dropout."""
    net = Classifier(moody(width=5))
    net.expose(Experience(0, table([0, 1, 2])), torch.Generator().manual_seed(0))
    net.backbone.train()
    net(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)))
    return net


def chunks(net: Classifier, data: Data, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in data.batches(size):
        yield net.prepare(batch), net.targets(batch)


def one_by_one(net: Classifier, data: Data) -> Values:
    """The mean over samples of the squared gradient of each sample's loss, by plain autograd."""
    net.eval()
    total = [torch.zeros_like(p) for p in net.parameters()]
    for row in data.batches(1):
        loss = F.cross_entropy(net(net.prepare(row)), net.targets(row))
        for value, gradient in zip(total, torch.autograd.grad(loss, list(net.parameters())), strict=True):
            value += gradient.square() / len(data)
    return total


@pytest.mark.parametrize("size", [1, 5, 100])
def test_the_fisher_information_is_that_of_the_samples_one_by_one_however_they_are_grouped(
    net: Classifier, table: MakeTable, size: int
) -> None:
    data = table([0, 1, 2, 1] * 5)
    net.eval()
    found = empirical_fisher(net, F.cross_entropy, chunks(net, data, size))
    assert len(found) == len(list(net.parameters()))
    for one, wanted in zip(found, one_by_one(net, data), strict=True):
        assert one.shape == wanted.shape
        assert float((one - wanted).norm()) <= 1e-6 * float(wanted.norm())


def test_the_square_of_a_batchs_mean_gradient_is_far_smaller(net: Classifier, table: MakeTable) -> None:
    data = table([0, 1, 2, 1] * 5)
    net.eval()
    found = empirical_fisher(net, F.cross_entropy, chunks(net, data, 20))
    loss = F.cross_entropy(net(net.prepare(data)), net.targets(data))
    means = [g.square() for g in torch.autograd.grad(loss, list(net.parameters()))]
    assert sum(float(value.sum()) for value in found) > 5 * sum(float(value.sum()) for value in means)


def test_taking_the_fisher_information_changes_no_bit_of_the_network_and_leaves_no_gradient(
    net: Classifier, table: MakeTable
) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.train()
    rows = table([0, 1, 2] * 4)
    found = empirical_fisher(net, F.cross_entropy, [(rows["x"], rows["label"])])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert all(not value.requires_grad and bool((value >= 0).all()) for value in found)


def test_the_fisher_information_has_one_tensor_for_each_parameter_that_trains(net: Classifier, table: MakeTable) -> None:
    net.backbone.requires_grad_(False)
    rows = table([0, 1, 2] * 4)
    found = empirical_fisher(net, F.cross_entropy, [(rows["x"], rows["label"])])
    assert [value.shape for value in found] == [net.head.weight.shape, net.head.bias.shape]
    Anchors(net).add(found)


# Distance, batches, fixed rows


def test_the_distance_pulls_by_twice_the_way_and_equals_importance_one_at_twice_the_weight() -> None:
    net = Net()
    anchors, ones = Anchors(net), Anchors(net)
    anchors.move()
    ones.replace([torch.ones_like(p) for p in net.parameters()], 1.0)
    centre = values(net)
    assert float(anchors.distance().detach()) == 0.0
    assert not any(pull.any() for pull in torch.autograd.grad(anchors.distance(), list(net.parameters())))
    move(net, 7)
    found = list(torch.autograd.grad(0.3 * anchors.distance(), list(net.parameters())))
    assert_same(found, [0.6 * (p.detach() - c) for p, c in zip(net.parameters(), centre, strict=True)])
    assert 0.6 * penalty(ones) == pytest.approx(0.3 * float(anchors.distance().detach()), rel=1e-12)
    assert penalty(anchors) == 0  # nothing is known of importance


def test_moving_an_anchor_keeps_the_importance() -> None:
    net = Net()
    anchors = Anchors(net)
    anchors.replace(importance(net, 0), 1.0)
    net.head.grow(3, torch.Generator().manual_seed(1))
    before = anchors.importance.sum()
    move(net, 3)
    anchors.move()
    assert anchors.importance.sum() == before and penalty(anchors) == 0
    assert len(anchors.importance) == len(anchors.values) == sum(p.numel() for p in net.parameters())
    move(net, 7)
    anchors.replace(importance(net, 1), 1.0)
    assert penalty(anchors) == 0


def test_the_gradient_of_the_penalty_is_that_of_its_numbers() -> None:
    net = Net()
    anchors = Anchors(net)
    anchors.replace(importance(net, 0), 1.0)
    move(net, 7)
    parameter = net.layer.bias
    found = gradient(anchors, net)[[p is parameter for p in net.parameters()].index(True)]
    for place in range(len(parameter)):
        losses = []
        for step in (1e-4, -1e-4):
            parameter.data[place] += step
            losses.append(penalty(anchors))
            parameter.data[place] -= step
        assert (losses[0] - losses[1]) / 2e-4 == pytest.approx(float(found[place]), rel=1e-6, abs=1e-8)


def test_batches_of_one_give_the_fisher_information_of_samples(net: Classifier, table: MakeTable) -> None:
    data = table([0, 1, 2, 1] * 5)
    net.eval()
    parameters = list(net.parameters())

    def losses(size: int) -> Iterator[tuple[Tensor, int]]:
        for batch in data.batches(size):
            yield F.cross_entropy(net(net.prepare(batch)), net.targets(batch)), len(batch)

    for one, wanted in zip(batch_fisher(parameters, losses(1)), one_by_one(net, data), strict=True):
        assert torch.allclose(one, wanted, rtol=1e-5, atol=1e-9)
    whole = batch_fisher(parameters, losses(20))
    mean = torch.autograd.grad(next(losses(20))[0], parameters)
    for value, slope in zip(whole, mean, strict=True):
        assert torch.allclose(value, 20 * slope.square(), rtol=1e-5)


def test_no_batch_has_no_fisher_information(net: Classifier) -> None:
    with pytest.raises(DataError, match="at least one sample"):
        batch_fisher(list(net.parameters()), [])


def test_fixed_rows_come_back_and_the_others_do_not() -> None:
    net = Net()
    fixed = FixedRows(net.head, torch.tensor([True, False]))
    before = values(net.head)
    move(net, 7)
    moved = values(net.head)
    fixed.restore()
    for now, old, other in zip(values(net.head), before, moved, strict=True):
        assert torch.equal(now[0], old[0]) and torch.equal(now[1], other[1])
