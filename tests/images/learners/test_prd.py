"""The invariants of PRD (paper 14)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latewood import Data, Experience, Recipe, run
from latewood.core.errors import ConfigurationError
from latewood.core.seeding import seeded
from latewood.images.learners.prd import PRD, grouped_log_softmax
from latewood.images.nets import mlp, resnet32
from latewood.images.streams.split import split
from latewood.images.streams.tasks import tasks
from latewood.parts.backbone import Backbone
from latewood.parts.contrastive import supervised_contrastive

STREAM = split("digits", groups=[[0, 1, 2], [3, 4], [5, 6]])
RECIPE = Recipe(epochs=2, lr=0.02, weight_decay=1e-2)
BOTH = pytest.mark.parametrize("relation", ["samples", "classes"])


def backbone(augment: str = "none") -> Backbone:
    with seeded(0):
        return mlp(STREAM.example, width=24, augment=augment)


def made(**settings: Any) -> PRD:
    small = {"hidden": 16, "projected": 8, "extra_epochs": 0, "recipe": RECIPE}
    with seeded(1):
        return PRD(**{"backbone": backbone(), **small, **settings})


def learned(count: int = 2, **settings: Any) -> PRD:
    learner = made(**settings)
    for index in range(count):
        learner.generator.manual_seed(index)
        learner.learn(STREAM[index])
    return learner


def begun(**settings: Any) -> PRD:
    """One that has learned the first arrival and has room for the second."""
    learner = learned(1, **settings)
    learner.prepare(STREAM[1])
    learner.zero_grad()
    return learner.train()


def relations(learner: PRD) -> Tensor:
    inputs = learner.net.prepare(STREAM[1].train[:20])
    return learner.distillation(inputs, learner.backbone(inputs))


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def moved(learner: PRD) -> PRD:
    """Network and prototypes at other places than the teacher's."""
    with torch.no_grad(), seeded(3):
        for parameter in (*learner.backbone.parameters(), learner.net.head.weight):
            parameter.add_(0.1 * torch.randn_like(parameter))
    return learner


# L_p


def test_prototypes_are_pulled_without_a_trace_in_the_network_or_in_other_prototypes() -> None:
    learner = begun()
    batch = STREAM[1].train[:20]
    batch = batch[batch["label"] == 3]
    features = learner.backbone(learner.net.prepare(batch))
    learner.attraction(features, learner.net.targets(batch)).backward()
    assert all(parameter.grad is None for parameter in learner.backbone.parameters())
    gradient = learner.net.head.weight.grad
    own = learner.classes.columns(torch.tensor([3]))
    assert gradient is not None and bool(gradient[own].any())
    gradient[own] = 0
    assert not gradient.any()


def test_it_is_zero_just_where_each_prototype_is_parallel_to_its_samples() -> None:
    learner = begun()
    columns = torch.arange(5)
    features = learner.net.head.weight.detach() * torch.arange(1.0, 6.0)[:, None]
    assert learner.attraction(features, columns).item() == pytest.approx(0, abs=1e-6)
    features[2] = -features[2]
    assert learner.attraction(features, columns).item() == pytest.approx(2 / 5, abs=1e-6)


# L_d


@BOTH
@pytest.mark.parametrize("net", ["mlp", "resnet"])
def test_relations_begin_at_the_teachers_and_move_network_and_old_prototypes_alone(relation: Any, net: str) -> None:
    if net == "resnet":  # whose batch norms must see the same batch in teacher and student
        with seeded(0):
            learner = begun(relation=relation, backbone=resnet32(STREAM.example, width=4), recipe=Recipe(epochs=1))
    else:
        learner = begun(relation=relation)
    assert relations(learner).item() == pytest.approx(0, abs=1e-6)
    relations(moved(learner)).backward()
    gradient = learner.net.head.weight.grad
    assert gradient is not None and bool((gradient[:3] != 0).any(1).all()) and not gradient[3:].any()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in learner.backbone.parameters())
    assert all(parameter.grad is None for parameter in learner.teacher.parameters())


def test_samples_are_compared_by_a_softmax_over_the_batch_that_no_order_and_no_length_changes() -> None:
    learner = moved(begun())
    old = learner.teacher.snapshot
    assert old is not None
    inputs = learner.net.prepare(STREAM[1].train[:20])
    features = learner.backbone(inputs).detach()
    loss = learner.distillation(inputs, features)
    wanted = torch.zeros(())
    for prototype, former in zip(learner.net.head.weight[:3], old.head.weight, strict=True):
        now = F.cosine_similarity(features, prototype[None]) / 0.2
        before = F.cosine_similarity(old.backbone(inputs), former[None]) / 0.2
        assert before.softmax(0).sum() == pytest.approx(1)
        wanted = wanted + (before.softmax(0) * (before.log_softmax(0) - now.log_softmax(0))).sum()
    torch.testing.assert_close(loss, wanted)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(learner.distillation(inputs[order], features[order]), loss)
    learner.net.head.weight.data *= torch.arange(1.0, 6.0)[:, None]
    torch.testing.assert_close(learner.distillation(inputs, features * torch.arange(1.0, 21.0)[:, None]), loss)


def test_classes_are_compared_arrival_by_arrival_as_the_released_code_does() -> None:
    learner = learned(2, relation="classes")
    learner.prepare(STREAM[2])
    moved(learner)
    old = learner.teacher.snapshot
    assert old is not None
    assert learner.net.arrivals.number.tolist() == [0, 0, 0, 1, 1, 2, 2]
    inputs = learner.net.prepare(STREAM[2].train[:20])
    features = learner.backbone(inputs)
    wanted = torch.zeros(())
    for part in (slice(0, 3), slice(3, 5)):
        now = features @ F.normalize(learner.net.head.weight[part]).T
        before = old.backbone(inputs) @ F.normalize(old.head.weight[part]).T
        wanted = wanted + F.kl_div(now.log_softmax(1), before.softmax(1), reduction="batchmean")
    torch.testing.assert_close(learner.distillation(inputs, features), wanted)


@pytest.mark.parametrize(("relation", "blind"), [("samples", "prototype"), ("classes", "sample")])
def test_a_constant_for_each_prototype_or_each_sample_tells_the_two_relations_apart(
    monkeypatch: pytest.MonkeyPatch, relation: Any, blind: str
) -> None:
    learner, plain = moved(begun(relation=relation)), PRD._relations
    loss = relations(learner)
    for each, constant in (("prototype", torch.arange(3.0)[None]), ("sample", torch.arange(20.0)[:, None])):

        def shifted(self: PRD, features: Tensor, prototypes: Tensor, constant: Tensor = constant) -> Tensor:
            student = features.requires_grad
            return plain(self, features, prototypes) + (constant if student else 0)

        monkeypatch.setattr(PRD, "_relations", shifted)
        assert torch.allclose(relations(learner), loss, atol=1e-5) == (each == blind)


def test_softmax_in_groups_is_finite_where_groups_lie_far_apart() -> None:
    scores = torch.tensor([[0.0, 1.0, 900.0, -900.0]])
    found = grouped_log_softmax(scores, torch.tensor([0, 0, 1, 2]))
    torch.testing.assert_close(found, torch.cat([scores[:, :2].log_softmax(1), torch.zeros(1, 2)], 1))


# the whole


def test_the_loss_is_the_sum_of_its_terms_on_two_views() -> None:
    learner = moved(begun(backbone=backbone("crop"), alpha=3.0, beta=5.0))
    batch = STREAM[1].train[:16]
    with seeded(0):
        loss = learner.loss(batch)
    with seeded(0):
        views = [learner.net.prepare(batch) for _ in range(2)]
    assert not torch.equal(views[0], views[1])
    inputs, columns = torch.cat(views), learner.net.targets(batch).repeat(2)
    features = learner.backbone(inputs)
    wanted = supervised_contrastive(learner.projection(features), columns, 0.1)
    wanted = wanted + 3 * learner.attraction(features, columns) + 5 * learner.distillation(inputs, features)
    torch.testing.assert_close(loss, wanted)


def test_without_distillation_old_prototypes_stay_where_they_are_and_with_it_they_move() -> None:
    for beta, still in ((0.0, True), (4.0, False)):
        learner = learned(1, beta=beta)
        before = learner.net.head.weight.detach().clone()
        learner.learn(STREAM[1])
        assert torch.equal(learner.net.head.weight[:3], before) == still
        assert (learner.teacher.snapshot is None) == still


def test_the_first_arrival_trains_longer() -> None:
    epochs = []

    class Counting(PRD):
        def after_batch(self, batch: Data) -> None:
            epochs.append(self.epoch)

    learner = Counting(backbone(), hidden=16, projected=8, extra_epochs=3, recipe=RECIPE)
    for index in range(2):
        epochs.clear()
        learner.learn(STREAM[index])
        assert max(epochs) + 1 == (5 if index == 0 else 2)
    assert learner.recipe == RECIPE


def test_predictions_are_seen_classes_by_cosine_and_those_of_a_told_task() -> None:
    learner = learned(2)
    data = STREAM.probes[2].data
    assert set(learner.predict(data).tolist()) <= {0, 1, 2, 3, 4}
    features = learner.backbone(learner.backbone.prepare(data))
    wanted = F.normalize(features) @ F.normalize(learner.net.head.weight).T
    torch.testing.assert_close(learner.scores(data), wanted.detach())
    stream, told = tasks("digits", steps=5), made()
    for index in range(2):
        told.learn(stream[index])
        assert set(told.predict(stream.probes[index].data).tolist()) <= set(stream[index].classes)


def test_memory_grows_by_prototypes_alone_and_holds_no_images() -> None:
    sizes = []
    learner = made()
    for index in range(3):
        learner.learn(STREAM[index])
        tensors = {name: value for name, value in state(learner).items() if name.rpartition(".")[2] not in ("labels", "number")}
        sizes.append(sum(value.numel() for value in tensors.values()) - 2 * len(learner.classes) * 24)
    assert len(set(sizes)) == 1


def test_a_saved_learner_goes_on_where_it_was() -> None:
    first, second = learned(2), made()
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.predict(STREAM.probes[0].data), second.predict(STREAM.probes[0].data))
    for learner in (first, second):
        learner.generator.manual_seed(7)
        learner.learn(STREAM[2])
    assert equal(state(first), state(second))


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    states = []
    for seed in (0, 0, 1):
        learner = made(backbone=backbone("crop"))
        run(learner, STREAM, seed=seed, device="cpu")
        states.append(state(learner))
    assert equal(states[0], states[1]) and not equal(states[0], states[2])


def test_one_image_of_a_class_is_enough() -> None:
    learner = made()
    rows = torch.tensor([int((STREAM[0].train["label"] == label).nonzero()[0]) for label in (0, 1, 2)])
    learner.learn(Experience(0, STREAM[0].train[rows]))
    assert all(bool(torch.isfinite(value).all()) for value in state(learner).values())


def test_settings_that_make_no_sense_get_a_sentence() -> None:
    for settings, sentence in (
        ({"relation": "features"}, "relation must be 'samples' or 'classes'"),
        ({"beta": -1.0}, "beta must be at least 0"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"relation_temperature": -1.0}, "relation_temperature must be above 0"),
        ({"projected": 0}, "projected must be at least 1"),
    ):
        with pytest.raises(ConfigurationError, match=sentence):
            made(**settings)
