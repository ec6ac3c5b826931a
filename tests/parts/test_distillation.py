"""The teacher: frozen whatever happens around it; and the loss that holds a student to it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch import Tensor

from latewood.core.data import Data
from latewood.core.errors import LatewoodError
from latewood.core.experience import Experience
from latewood.core.recipe import Recipe
from latewood.parts.backbone import Backbone
from latewood.parts.distillation import Teacher, distillation_loss
from latewood.parts.heads import Classifier, ClassifierLearner

MakeBackbone = Callable[..., Backbone]
MakeTable = Callable[..., Data]


class Distilled(ClassifierLearner):
    """Cross-entropy, and distillation from the model as it was after the last arrival."""

    def __init__(self, backbone: Backbone, recipe: Recipe = Recipe(lr=0.1, batch_size=4)) -> None:
        super().__init__(backbone, recipe)
        self.teacher: Teacher[Classifier] = Teacher(self.net)
        self.states: list[dict[str, Tensor]] = []

    def loss(self, batch: Data) -> Tensor:
        inputs = self.net.prepare(batch)
        logits = self.net(inputs)
        loss = self.cross_entropy(logits, batch)
        if self.teacher:
            old = self.teacher(inputs)
            assert not old.requires_grad
            loss = loss + distillation_loss(logits[:, : old.shape[1]], old, 2.0)
        return loss

    def after_batch(self, batch: Data) -> None:
        self.states.append(bits(self.teacher))

    def conclude(self, experience: Experience) -> None:
        self.teacher.take()


def bits(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture
def learner(moody: MakeBackbone, table: MakeTable) -> Distilled:
    """One that has learned the classes 0 and 1, and whose backbone has batch normalisation and dropout."""
    learner = Distilled(moody())
    learner.learn(Experience(0, table([0, 1] * 10)))
    return learner


def test_the_teacher_is_bit_for_bit_the_same_while_the_student_trains(learner: Distilled, table: MakeTable) -> None:
    before, student, running = bits(learner.teacher), bits(learner.net), learner.net.state_dict()
    learner.states.clear()
    learner.learn(Experience(1, table([2, 3] * 10, seed=1)))
    assert len(learner.states) == 5
    assert all(same(state, before) for state in learner.states)
    name = "backbone.layers.1.running_mean"
    assert not torch.equal(running[name], student[name])  # the student's batch normalisation did go on
    assert f"snapshot.{name}" in before


def test_taking_a_snapshot_takes_the_student_as_it_is_now_and_shares_nothing_with_it(
    learner: Distilled, table: MakeTable
) -> None:
    snapshot = learner.teacher.snapshot
    assert snapshot is not None
    assert same(bits(snapshot), bits(learner.net))
    theirs = {value.data_ptr() for value in learner.net.state_dict().values() if value.numel()}
    assert theirs.isdisjoint(value.data_ptr() for value in snapshot.state_dict().values())
    learner.learn(Experience(1, table([2, 3] * 10, seed=1)))
    assert learner.teacher.snapshot is not None
    assert same(bits(learner.teacher.snapshot), bits(learner.net))
    assert len(learner.teacher.snapshot.classes) == 4


def test_the_teacher_stays_in_evaluation_mode_whatever_mode_the_learner_is_in(learner: Distilled, table: MakeTable) -> None:
    inputs = learner.net.prepare(table([0] * 8))
    before, wanted = bits(learner.teacher), learner.teacher(inputs)
    learner.train()
    assert learner.net.training
    assert not any(module.training for module in learner.teacher.modules())
    assert torch.equal(learner.teacher(inputs), wanted)  # no dropout, no statistics of the batch
    assert same(bits(learner.teacher), before)


def test_the_teacher_gives_and_receives_no_gradient(learner: Distilled, table: MakeTable) -> None:
    parameters = list(learner.teacher.parameters())
    assert parameters
    assert not any(p.requires_grad for p in parameters)
    trained = {id(p) for group in learner.parameter_groups() for p in group["params"]}
    assert trained == {id(p) for p in learner.net.parameters()}
    inputs = table([0] * 4)["x"].requires_grad_()
    assert not learner.teacher(inputs).requires_grad
    learner.train()
    learner.loss(table([0, 1])).backward()
    assert all(p.grad is None for p in parameters)


def test_a_fresh_learner_that_is_loaded_makes_the_snapshot_itself(
    learner: Distilled, moody: MakeBackbone, table: MakeTable
) -> None:
    learner.net.head.weight.data += 1  # the student has moved on since the snapshot
    fresh = Distilled(moody(seed=1))
    assert not fresh.teacher
    fresh.load_state_dict(learner.state_dict())
    assert fresh.teacher
    inputs = table([0] * 8)["x"]
    assert torch.equal(fresh.teacher(inputs), learner.teacher(inputs))
    assert not torch.equal(fresh.teacher(inputs), fresh.net(inputs))
    fresh.train()
    assert not any(module.training for module in fresh.teacher.modules())
    assert not any(p.requires_grad for p in fresh.teacher.parameters())


def test_a_restored_learner_goes_on_as_if_nothing_had_happened(
    learner: Distilled, moody: MakeBackbone, table: MakeTable
) -> None:
    fresh = Distilled(moody(seed=1))
    fresh.load_state_dict(learner.state_dict())
    for each in (learner, fresh):
        each.generator.manual_seed(3)
        each.learn(Experience(1, table([2, 3] * 10, seed=1)))
    assert same(bits(fresh), bits(learner))


def test_a_learner_goes_back_to_a_smaller_snapshot_and_to_none(
    learner: Distilled, moody: MakeBackbone, table: MakeTable
) -> None:
    first = bits(learner)
    learner.learn(Experience(1, table([2, 3] * 10, seed=1)))
    learner.load_state_dict(first)
    assert same(bits(learner), first)
    nothing = Distilled(moody())
    learner.load_state_dict(nothing.state_dict())
    assert not learner.teacher


def test_the_teacher_of_a_copied_learner_watches_the_copy(learner: Distilled, table: MakeTable) -> None:
    before, twin = bits(learner.teacher), copy.deepcopy(learner)
    twin.learn(Experience(1, table([2, 3] * 10, seed=1)))
    assert twin.teacher.snapshot is not None
    assert same(bits(twin.teacher.snapshot), bits(twin.net))
    assert same(bits(learner.teacher), before)


def test_a_teacher_without_a_snapshot_is_empty_and_says_so(moody: MakeBackbone) -> None:
    teacher = Teacher(moody())
    assert not teacher
    assert not teacher.state_dict()
    assert not list(teacher.parameters())  # the student's are the student's
    with pytest.raises(LatewoodError, match="before a snapshot was taken"):
        teacher(torch.zeros(1, 4))


def test_the_teacher_holds_a_student_on_the_classes_that_it_knew_and_on_no_other(learner: Distilled, table: MakeTable) -> None:
    inputs = table([0] * 8)["x"]
    old = learner.teacher(inputs)
    logits = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = learner.teacher.distillation(inputs, logits, 2.0)
    assert torch.equal(loss, distillation_loss(logits[:, :2], old, 2.0))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert bool(gradient[:, :2].all())
    assert not gradient[:, 2:].any()


def test_a_teacher_without_a_snapshot_holds_nothing(moody: MakeBackbone) -> None:
    logits = torch.randn(8, 4).requires_grad_()
    loss = logits.sum() + 1000 * Teacher(moody()).distillation(torch.zeros(8, 4), logits, 2.0)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.equal(gradient, torch.ones(8, 4))


# The loss


def logits(number: int) -> Tensor:
    return 3 * torch.randn(6, 4, generator=torch.Generator().manual_seed(number), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 20.0])
def test_the_loss_is_the_cross_entropy_of_softened_distributions(temperature: float) -> None:
    student, teacher = logits(0), logits(1)
    targets = softmax(teacher.numpy() / temperature, axis=1)
    wanted = -np.mean(np.sum(targets * log_softmax(student.numpy() / temperature, axis=1), axis=1))
    assert float(distillation_loss(student, teacher, temperature)) == pytest.approx(wanted, rel=1e-12)
    squared = distillation_loss(student, teacher, temperature, square=True)
    assert float(squared) == pytest.approx(wanted * temperature**2, rel=1e-12)


@pytest.mark.parametrize("square", [False, True])
def test_the_gradient_is_the_difference_of_the_softened_distributions(square: bool) -> None:
    student, teacher, temperature = logits(0).requires_grad_(), logits(1), 2.0
    (gradient,) = torch.autograd.grad(distillation_loss(student, teacher, temperature, square), student)
    scale = temperature if square else 1 / temperature
    wanted = scale * (softmax(student.detach().numpy() / 2, axis=1) - softmax(teacher.numpy() / 2, axis=1)) / 6
    np.testing.assert_allclose(gradient.numpy(), wanted, atol=1e-14)


def test_a_student_that_equals_its_teacher_gets_no_gradient_and_no_other_has_a_smaller_loss() -> None:
    teacher = logits(1)
    student = (teacher + 7).requires_grad_()  # a constant changes no distribution
    loss = distillation_loss(student, teacher, 2.0)
    (gradient,) = torch.autograd.grad(loss, student)
    assert float(gradient.abs().max()) < 1e-15
    assert all(float(distillation_loss(logits(i), teacher, 2.0)) > float(loss.detach()) for i in range(2, 12))
