"""Heads that grow, and the classifier: what is old stays bit for bit, what is new is seeded."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latewood.core.data import Data
from latewood.core.errors import DataError
from latewood.core.experience import Experience
from latewood.core.recipe import Recipe
from latewood.parts.backbone import Backbone
from latewood.parts.heads import Candidates, Classifier, ClassifierLearner, LinearHead

MakeBackbone = Callable[..., Backbone]
MakeTable = Callable[..., Data]


class Plain(ClassifierLearner):
    """Cross-entropy and nothing else."""

    def __init__(self, backbone: Backbone, candidates: Candidates = "seen", recipe: Recipe = Recipe(lr=0.1)) -> None:
        super().__init__(backbone, recipe)
        self.candidates = candidates

    def loss(self, batch: Data) -> Tensor:
        return self.cross_entropy(self.logits(batch), batch, self.candidates)


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def grown(*sizes: int, width: int = 6) -> LinearHead:
    head, generator = LinearHead(width), seed(0)
    for size in sizes:
        head.grow(size, generator)
    return head


# LinearHead


def test_old_rows_stay_bit_for_bit_while_a_head_grows() -> None:
    head = grown(3)
    nn.init.normal_(head.bias)
    weight, bias = head.weight.detach().clone(), head.bias.detach().clone()
    head.grow(7, seed(1))
    assert head.weight.shape == (7, 6)
    assert torch.equal(head.weight[:3], weight)
    assert torch.equal(head.bias[:3], bias)
    assert head.bias[3:].tolist() == [0, 0, 0, 0]
    features = torch.randn(5, 6)
    torch.testing.assert_close(head(features)[:, :3], F.linear(features, weight, bias))


def test_new_rows_come_from_the_generator_and_start_as_those_of_a_linear_layer() -> None:
    assert torch.equal(grown(3, 5).weight, grown(3, 5).weight)
    assert not torch.equal(grown(3).weight[:2], grown(3, 5).weight[3:])
    wide = grown(2000, width=16).weight
    assert float(wide.detach().abs().max()) <= 0.25  # 1 / sqrt(16)
    assert abs(float(wide.detach().std()) - 0.25 / 3**0.5) < 0.002
    assert wide.requires_grad


def test_growing_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    grown(3, 9)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_head_grows_in_the_precision_it_is_in(dtype: torch.dtype) -> None:
    head = grown(2).to(dtype)
    head.grow(5, seed(1))
    assert head.weight.dtype == head.bias.dtype == dtype
    assert head(torch.zeros(1, 6, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("size", [0, 2, 4])
def test_a_head_that_is_large_enough_keeps_its_very_parameters_so_an_optimiser_goes_on_training_them(size: int) -> None:
    head = grown(4)
    weight, bias = head.weight, head.bias
    head.grow(size, seed(1))
    head.load_state_dict({name: value.clone() for name, value in head.state_dict().items()})
    assert head.weight is weight
    assert head.bias is bias


def test_growing_leaves_what_an_optimiser_knows_of_other_parameters(linear: MakeBackbone, table: MakeTable) -> None:
    net, data = Classifier(linear()), table([0, 1, 2, 3])
    net.expose(Experience(0, data), seed(0))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    F.cross_entropy(net(net.prepare(data)), net.targets(data)).backward()
    optimizer.step()
    weight = next(net.backbone.parameters())
    momentum = optimizer.state[weight]["momentum_buffer"].clone()
    net.expose(Experience(1, table([4, 5])), seed(0))
    assert next(net.backbone.parameters()) is weight
    assert torch.equal(optimizer.state[weight]["momentum_buffer"], momentum)
    assert momentum.any()


def test_a_frozen_head_stays_frozen_when_it_grows_and_when_a_larger_state_is_loaded() -> None:
    head, other = grown(2), grown(2)
    for frozen in (head, other):
        frozen.requires_grad_(False)
    head.grow(5, seed(1))
    other.load_state_dict(head.state_dict())
    assert not any(p.requires_grad for frozen in (head, other) for p in frozen.parameters())
    assert torch.equal(other.weight, head.weight)


# Classifier


def test_the_state_of_a_grown_classifier_loads_into_a_fresh_one_that_predicts_identically(
    moody: MakeBackbone, table: MakeTable
) -> None:
    learner, fresh = Plain(moody(seed=0)), Plain(moody(seed=1))
    for index, labels in enumerate(([7, 3] * 8, [3, 9, 4, 9] * 4)):
        learner.learn(Experience(index, table(labels, seed=index)))
    fresh.load_state_dict(learner.state_dict())
    probe = table([0] * 50, seed=9)
    assert torch.equal(fresh.scores(probe), learner.scores(probe))
    assert torch.equal(fresh.predict(probe), learner.predict(probe))
    assert fresh.net.classes.labels.tolist() == [3, 7, 4, 9]
    assert len(set(fresh.predict(probe).tolist())) > 1


def test_a_restored_learner_goes_on_learning_as_if_nothing_had_happened(moody: MakeBackbone, table: MakeTable) -> None:
    first, second = (Experience(i, table(labels, seed=i)) for i, labels in enumerate(([0, 1] * 8, [1, 2, 3, 2] * 4)))
    whole, fresh = Plain(moody(seed=0)), Plain(moody(seed=1))
    whole.learn(first)
    fresh.load_state_dict(whole.state_dict())
    for learner in (whole, fresh):
        learner.generator.manual_seed(5)
        learner.learn(second)
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in fresh.state_dict().items())


def test_a_used_classifier_goes_back_to_a_smaller_state(linear: MakeBackbone, table: MakeTable) -> None:
    learner, probe = Plain(linear()), table([0] * 20, seed=9)
    learner.learn(Experience(0, table([0, 1] * 8)))
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    scores = learner.scores(probe)
    learner.learn(Experience(1, table([2, 3] * 8)))
    learner.load_state_dict(before)
    assert torch.equal(learner.scores(probe), scores)


def test_logits_have_one_column_for_each_class_that_arrived_and_targets_are_their_columns(
    linear: MakeBackbone, table: MakeTable
) -> None:
    net = Classifier(linear())
    net.expose(Experience(0, table([8, 5])), seed(0))
    net.expose(Experience(1, table([5, 6, 8])), seed(0))
    data = table([6, 8, 5])
    assert net(net.prepare(data)).shape == (3, 3)
    assert net.targets(data).tolist() == [2, 1, 0]
    with pytest.raises(DataError, match="label 1 never arrived"):
        net.targets(table([1]))


def test_predictions_are_labels_and_do_not_depend_on_the_batch_size(moody: MakeBackbone, table: MakeTable) -> None:
    learner, probe = Plain(moody(), recipe=Recipe(epochs=3)), table([0] * 33, seed=9)
    learner.learn(Experience(0, table([40, 70, 90] * 6)))
    assert set(learner.predict(probe).tolist()) <= {40, 70, 90}
    learner.train()  # predicting must see to the mode itself
    torch.testing.assert_close(learner.scores(probe, batch_size=4), learner.scores(probe, batch_size=512))


def test_before_anything_was_learned_every_prediction_is_no_label(linear: MakeBackbone, table: MakeTable) -> None:
    learner = Plain(linear())
    assert learner.scores(table([0, 1])).shape == (2, 0)
    assert learner.predict(table([0, 1])).tolist() == [-1, -1]


def test_no_rows_get_no_predictions(linear: MakeBackbone, table: MakeTable) -> None:
    learner = Plain(linear())
    learner.learn(Experience(0, table([0, 1])))
    assert learner.scores(table([0])[:0]).shape == (0, 2)
    assert learner.predict(table([0])[:0]).shape == (0,)


def test_a_frozen_backbone_keeps_every_bit_while_the_head_learns(moody: MakeBackbone, table: MakeTable) -> None:
    backbone = moody()
    learner = Plain(backbone.freeze())
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    learner.learn(Experience(0, table([0, 1] * 8)))
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert bool(learner.net.head.bias.any())


# Cross-entropy


def two_arrivals(linear: MakeBackbone, table: MakeTable) -> tuple[Plain, Data]:
    """A learner that knows the columns 0 to 2 and is about to learn rows of the columns 3 and 4."""
    learner = Plain(linear())
    learner.prepare(Experience(0, table([7, 3, 1])))
    data = table([12, 11, 11, 12, 12], seed=1)
    learner.prepare(Experience(1, data))
    return learner, data


def test_candidates_of_the_arrival_give_old_rows_no_gradient_at_all(linear: MakeBackbone, table: MakeTable) -> None:
    learner, data = two_arrivals(linear, table)
    learner.cross_entropy(learner.logits(data), data, "arrival").backward()
    weight, bias = learner.net.head.weight.grad, learner.net.head.bias.grad
    assert weight is not None
    assert bias is not None
    assert torch.equal(weight[:3], torch.zeros(3, 3))
    assert torch.equal(bias[:3], torch.zeros(3))
    assert bool((weight[3:] != 0).all())


def test_candidates_of_the_arrival_are_cross_entropy_on_shifted_targets(linear: MakeBackbone, table: MakeTable) -> None:
    learner, data = two_arrivals(linear, table)
    logits = learner.logits(data).detach().requires_grad_()
    wanted = F.cross_entropy(logits[:, 3:], learner.net.targets(data) - 3)
    found = learner.cross_entropy(logits, data, "arrival")
    torch.testing.assert_close(found, wanted)
    (gradient,) = torch.autograd.grad(found, logits)
    (shifted,) = torch.autograd.grad(wanted, logits)
    torch.testing.assert_close(gradient, shifted)


def test_candidates_seen_push_old_classes_down(linear: MakeBackbone, table: MakeTable) -> None:
    learner, data = two_arrivals(linear, table)
    logits = learner.logits(data).detach().requires_grad_()
    loss = learner.cross_entropy(logits, data, "seen")
    torch.testing.assert_close(loss, F.cross_entropy(logits, learner.net.targets(data)))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert bool((gradient[:, :3] > 0).all())


def test_candidates_of_an_arrival_in_which_an_old_class_returns_include_it(linear: MakeBackbone, table: MakeTable) -> None:
    learner = Plain(linear())
    learner.prepare(Experience(0, table([7, 3, 1])))
    data = table([3, 9])
    learner.prepare(Experience(1, data))
    logits = learner.logits(data).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(learner.cross_entropy(logits, data, "arrival"), logits)
    returning, new = learner.net.classes.columns(torch.tensor([3, 9])).tolist()
    assert gradient.abs().sum(0).nonzero().flatten().tolist() == sorted([returning, new])


def test_training_on_an_arrival_moves_no_old_row_of_the_head(linear: MakeBackbone, table: MakeTable) -> None:
    learner = Plain(linear(), "arrival")
    learner.learn(Experience(0, table([0, 1] * 8)))
    old = learner.net.head.weight.detach().clone()
    learner.learn(Experience(1, table([2, 3] * 8, seed=1)))
    assert torch.equal(learner.net.head.weight[:2], old)
    forgetful = Plain(linear(), "seen")
    forgetful.learn(Experience(0, table([0, 1] * 8)))
    forgetful.learn(Experience(1, table([2, 3] * 8, seed=1)))
    assert not torch.equal(forgetful.net.head.weight[:2], old)


def test_where_tasks_are_told_cross_entropy_runs_over_those_of_each_rows_task(linear: MakeBackbone, table: MakeTable) -> None:
    learner = Plain(linear())
    learner.prepare(Experience(0, table([0, 1]), task=5))
    learner.prepare(Experience(1, table([2, 3]), task=6))
    data = table([1, 2, 3, 0], task=torch.tensor([5, 6, 6, 5]))
    logits = learner.logits(data).detach()
    first, second = logits[[0, 3], :2], logits[[1, 2], 2:]
    wanted = torch.cat(
        [
            F.cross_entropy(first, torch.tensor([1, 0]), reduction="none"),
            F.cross_entropy(second, torch.tensor([0, 1]), reduction="none"),
        ]
    ).mean()
    torch.testing.assert_close(learner.cross_entropy(logits, data), wanted)


def test_a_prediction_that_is_told_the_task_stays_within_it(linear: MakeBackbone, table: MakeTable) -> None:
    learner, probe = Plain(linear()), table([0] * 40, seed=9)
    learner.learn(Experience(0, table([0, 1] * 8), task=0))
    learner.learn(Experience(1, table([2, 3] * 8, seed=1), task=1))
    tasks = torch.arange(40) % 2
    told = learner.predict(probe.with_columns(task=tasks))
    assert torch.equal(told // 2, tasks)
    free = learner.scores(probe)
    pairs = free.view(40, 2, 2)[torch.arange(40), tasks].argmax(1)
    assert torch.equal(told, 2 * tasks + pairs)
    assert not torch.equal(free.argmax(1), told)
