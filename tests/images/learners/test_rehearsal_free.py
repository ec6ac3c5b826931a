"""The invariants of the rehearsal-free study (paper 10): each flag is one term, and the terms add up."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latewood import Data, Experience, Recipe, run
from latewood.core.errors import ConfigurationError
from latewood.core.seeding import seeded
from latewood.images.learners.rehearsal_free import Classification, RehearsalFree
from latewood.images.nets import mlp, resnet32, vit
from latewood.images.streams.split import split
from latewood.images.streams.tasks import tasks
from latewood.parts.backbone import Backbone

STREAM = split("digits", steps=5)
RECIPE = Recipe(epochs=2, optimizer="adam", lr=1e-3)
FORMS: tuple[str, ...] = get_args(Classification)
BATCH = STREAM[1].train[:16]


def backbone() -> Backbone:
    with seeded(0):
        return mlp(STREAM.example, width=24)


def made(**settings: Any) -> RehearsalFree:
    return RehearsalFree(**{"backbone": backbone(), "recipe": RECIPE, **settings})


def learned(count: int = 1, **settings: Any) -> RehearsalFree:
    learner = made(**settings)
    for index in range(count):
        learner.learn(STREAM[index])
    return learner


def within(count: int = 1, **settings: Any) -> RehearsalFree:
    """A learner in the middle of its next arrival, its weights moved a little."""
    learner = learned(count, **settings)
    learner.prepare(STREAM[count])
    learner.train()
    generator = torch.Generator().manual_seed(0)
    for parameter in learner.net.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return learner


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def gradients(learner: RehearsalFree, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(learner.net.parameters()), materialize_grads=True))


@pytest.mark.parametrize("form", FORMS)
def test_without_penalties_the_loss_is_the_classification_loss(form: str) -> None:
    learner = within(classification=form)
    logits, old = learner.logits(BATCH), learner._taught(learner.net.prepare(BATCH))
    assert torch.allclose(learner.loss(BATCH), learner.classify(logits, BATCH, old[1] if old else None))


@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_of_the_total_is_the_sum_of_the_gradients(form: str) -> None:
    learner = within(classification=form, featkd=3.0, ewc=7.0, l2=0.5)
    total = gradients(learner, learner.loss(BATCH))
    strengths = {"featkd": learner.featkd, "ewc": learner.ewc, "l2": learner.l2}
    for name in strengths:
        setattr(learner, name, 0.0)
    parts = [bare := gradients(learner, learner.loss(BATCH))]
    for name, strength in strengths.items():
        setattr(learner, name, strength)
        parts.append([one - other for one, other in zip(gradients(learner, learner.loss(BATCH)), bare, strict=True)])
        setattr(learner, name, 0.0)
    assert all(any(value.abs().max() > 1e-7 for value in part) for part in parts)
    for place, value in enumerate(total):
        assert torch.allclose(value, sum(part[place] for part in parts), atol=1e-6)


def test_at_the_anchor_the_penalties_and_their_gradients_are_exactly_zero() -> None:
    learner = learned(ewc=10.0, l2=1.0)
    for term in (learner.anchors.penalty(), learner.anchors.distance()):
        assert term.item() == 0 and not any(g.any() for g in gradients(learner, term))


def test_the_penalties_pull_as_their_formulas_say() -> None:
    learner = within(ewc=10.0, l2=1.0)
    now = torch.cat([p.detach().flatten() for p in learner.backbone.parameters()])
    moved = now - learner.anchors.values
    for term, wanted in (
        (10 * learner.anchors.penalty(), 10 * learner.anchors.importance * moved),
        (0.3 * learner.anchors.distance(), 2 * 0.3 * moved),
    ):
        pulls = torch.autograd.grad(term, list(learner.backbone.parameters()))
        assert torch.allclose(torch.cat([p.flatten() for p in pulls]), wanted, rtol=1e-5, atol=1e-9)


def test_only_the_backbone_is_held_never_the_head() -> None:
    learner = within(ewc=10.0, l2=1.0)
    assert len(learner.anchors.values) == sum(p.numel() for p in learner.backbone.parameters())
    for term in (learner.anchors.penalty(), learner.anchors.distance()):
        assert not any(g.any() for g in gradients(learner, term)[-2:])


def test_the_teachers_own_answers_leave_the_old_columns_where_they_are() -> None:
    learner = learned()
    learner.prepare(STREAM[1])
    logits = learner.logits(BATCH).detach().requires_grad_()
    loss = learner.classify(logits, BATCH, logits[:, :2].detach())
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[:, :2].abs().max() == 0 and gradient[:, 2:].abs().min() > 0


@pytest.mark.parametrize(("form", "coupled"), [("bce+predkd", False), ("bce-zeros", False), ("softmax", True)])
def test_columns_do_not_know_of_each_other_unlike_in_a_softmax(form: str, coupled: bool) -> None:
    learner = within(classification=form)
    old = learner._taught(learner.net.prepare(BATCH))
    logits = learner.logits(BATCH).detach()
    slopes = []
    for shift in (0.0, 3.0):
        moved = (logits + torch.tensor([shift, 0.0, 0.0, 0.0])).requires_grad_()
        slopes.append(torch.autograd.grad(learner.classify(moved, BATCH, old[1] if old else None), moved)[0][:, 1:])
    assert torch.equal(*slopes) != coupled


@pytest.mark.parametrize("form", ["bce", "softmax-local"])
def test_local_losses_have_no_gradient_on_old_rows_and_fixed_rows_do_not_decay(form: str) -> None:
    learner = within(classification=form)
    weight, bias = gradients(learner, learner.loss(BATCH))[-2:]
    assert not weight[:2].any() and not bias[:2].any() and bool(weight[2:].any())
    decaying = Recipe(epochs=1, lr=0.05, weight_decay=0.1)
    for fixed in (True, False):
        learner = learned(classification=form, freeze_old_head=fixed, recipe=decaying)
        before = learner.net.head.weight.detach().clone()
        learner.learn(STREAM[1])
        assert torch.equal(learner.net.head.weight[:2], before) == fixed


def test_every_form_is_its_formula() -> None:
    values = torch.tensor([[1.0, -2.0, 0.5, 2.0], [0.0, 1.0, -1.0, 0.3]])
    old = torch.tensor([[0.7, -1.0], [0.2, 0.4]])
    rows = torch.tensor([0, int((STREAM[1].train["label"] != STREAM[1].train["label"][0]).nonzero()[0])])
    batch = STREAM[1].train[rows]
    learner = learned()
    learner.prepare(STREAM[1])
    columns = learner.net.targets(batch)
    hot = F.one_hot(columns, 4).float()
    bce = F.binary_cross_entropy_with_logits
    wanted = {
        "bce": 5 * bce(values[:, 2:], hot[:, 2:]),
        "bce-zeros": 5 * bce(values, hot),
        "bce+predkd": 5 * bce(values, torch.cat([old.sigmoid(), hot[:, 2:]], 1)),
        "softmax": F.cross_entropy(values, columns),
        "softmax-local": F.cross_entropy(values[:, 2:], columns - 2),
        "softmax+predkd": F.cross_entropy(values, columns) + F.cross_entropy(values[:, :2] / 2, (old / 2).softmax(1)),
        # Two new classes: positives 1, negatives 1/2; new part times 4 / 1.5, both parts by their share of the columns.
        "balanced-bce": 0.5 * bce(values[:, 2:], hot[:, 2:], weight=(1 + hot[:, 2:]) / 2) * 4 / 1.5
        + 0.5 * bce(values[:, :2], old.sigmoid()),
    }
    assert set(wanted) == set(FORMS)
    for form, value in wanted.items():
        learner.classification = form  # type: ignore[assignment]
        assert torch.allclose(learner.classify(values, batch, old), value), form


@pytest.mark.parametrize("initial", [True, False])
def test_l2_holds_the_first_weights_only_if_asked_and_ewc_never_does(initial: bool) -> None:
    learner = made(l2=1.0, ewc=10.0, featkd=1.0, anchor_initial=initial)
    learner.prepare(STREAM[0])
    for parameter in learner.backbone.parameters():
        parameter.data += 0.1
    assert (learner.anchors.distance().item() > 0) == initial == bool(learner.teacher)
    assert learner.anchors.penalty().item() == 0
    assert torch.isfinite(learner.loss(STREAM[0].train[:8]))


def test_l2_ends_after_the_first_arrival_if_asked() -> None:
    for first_only in (True, False):
        learner = within(l2=1.0, l2_first_only=first_only)
        full = learner.loss(BATCH)
        learner.l2 = 0.0
        assert torch.equal(full, learner.loss(BATCH)) == first_only


def test_fisher_information_adds_up_over_arrivals_and_is_of_their_own_classes() -> None:
    learner = learned(ewc=10.0)
    first = learner.anchors.importance.clone()
    assert bool((first >= 0).all()) and bool(first.any())
    learner.learn(STREAM[1])
    own = learner.anchors.importance - first
    data = STREAM[1].train
    targets = F.one_hot(learner.net.targets(data), 4)[:, 2:].float()
    total, batches = torch.zeros_like(own), 0
    for start in range(0, len(data), 32):
        logits = learner.logits(data[start : start + 32])[:, 2:]
        loss = 5 * F.binary_cross_entropy_with_logits(logits, targets[start : start + 32])
        slopes = torch.autograd.grad(loss, list(learner.backbone.parameters()))
        total += torch.cat([g.flatten() for g in slopes]).square() * len(logits)
        batches += 1
    assert torch.allclose(own, total / batches, rtol=1e-3, atol=1e-6 * float(total.max()))


def test_teacher_and_anchors_do_not_change_within_an_arrival_and_get_no_gradient() -> None:
    learner = within(featkd=1.0, ewc=10.0, l2=1.0)
    before = state(learner.teacher), state(learner.anchors)
    learner.loss(BATCH).backward()
    torch.optim.SGD(learner.parameters(), lr=0.1).step()
    assert equal(before[0], state(learner.teacher)) and equal(before[1], state(learner.anchors))
    assert all(p.grad is None for p in learner.teacher.parameters())
    assert not learner.teacher.snapshot.training  # type: ignore[union-attr]


def test_a_stronger_l2_holds_closer_up_to_a_frozen_backbone() -> None:
    moved, last = [], []
    for strength in (0.01, 1.0, 100.0, 1e8):
        learner = made(l2=strength, recipe=Recipe(epochs=4, optimizer="adam", lr=1e-3, schedule="cosine"))
        start = state(learner.backbone)
        learner.learn(STREAM[0])
        moved.append(sum(float((value - start[name]).square().sum()) for name, value in learner.backbone.state_dict().items()))
        last.append(learner)
    assert moved == sorted(moved, reverse=True) and moved[-1] < 1e-3 * moved[0]
    frozen = learned(trained="head", recipe=Recipe(epochs=4, optimizer="adam", lr=1e-3, schedule="cosine"))
    data = STREAM.probes[0].data
    gap = [float((learner.scores(data) - frozen.scores(data)).abs().max()) for learner in last]
    assert gap[-1] < 0.1 * gap[0]


@pytest.mark.parametrize("frozen", [True, False])
def test_running_statistics_stay_only_if_they_are_frozen(frozen: bool) -> None:
    images = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8)
    with seeded(0):
        net = resnet32(Data(image=images[:1]), width=4)
    before = {name: value for name, value in state(net).items() if "running" in name}
    learner = RehearsalFree(net, freeze_bn=frozen)
    learner.learn(Experience(0, Data(image=images, label=torch.arange(20) % 2)))
    after = {name: value for name, value in state(net).items() if "running" in name}
    assert len(before) > 10 and equal(before, after) == frozen
    assert learner.train().backbone.training and isinstance(learner, RehearsalFree)


def test_with_qkv_exactly_the_projections_of_attention_train() -> None:
    with seeded(0):
        net = vit(STREAM.example, width=12, depth=3)
    learner = made(backbone=net, trained="qkv", classification="softmax-local", l2=0.01)
    names = {name for name, p in learner.net.named_parameters() if p.requires_grad}
    wanted = {
        f"backbone.network.layers.{layer}.attention.{kind}_proj.{part}"
        for layer in range(3)
        for kind in "qkv"
        for part in ("weight", "bias")
    }
    assert names == wanted | {"head.weight", "head.bias"}
    before = state(learner.backbone)
    for index in range(2):
        learner.learn(STREAM[index])
    for name, value in learner.backbone.state_dict().items():
        assert torch.equal(value, before[name]) == (f"backbone.{name}" not in wanted), name
    assert len(learner.anchors.values) == sum(before[name.removeprefix("backbone.")].numel() for name in wanted)


def test_what_can_not_be_held_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="needs a backbone with attention"):
        made(trained="qkv")
    with pytest.raises(ConfigurationError, match="none of them is trained"):
        made(trained="head", l2=0.1)
    with pytest.raises(ConfigurationError, match="featkd must be at least 0"):
        made(featkd=-1.0)


def test_teacher_is_kept_only_where_it_is_asked() -> None:
    for form in FORMS:
        learner = learned(classification=form, l2=0.1)
        assert bool(learner.teacher) == (form in ("bce+predkd", "softmax+predkd", "balanced-bce"))


@pytest.mark.parametrize("settings", [{"classification": form} for form in FORMS] + [{"featkd": 1.0, "ewc": 10.0, "l2": 0.1}])
def test_a_saved_learner_goes_on_where_it_was(settings: dict[str, Any]) -> None:
    first, second = learned(2, **settings), made(**settings)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.predict(STREAM.probes[0].data), second.predict(STREAM.probes[0].data))
    for learner in (first, second):
        learner.generator.manual_seed(7)
        learner.learn(STREAM[2])
    assert equal(state(first), state(second))


def test_predictions_of_the_old_model_hold_what_zeros_forget() -> None:
    recipe, stream = Recipe(epochs=8, optimizer="adam", lr=1e-3), split("digits", steps=2)
    kept = {}
    for form in ("bce+predkd", "bce-zeros"):
        with seeded(0):
            learner = made(backbone=mlp(stream.example, width=128), classification=form, recipe=recipe)
        kept[form] = run(learner, stream, device="cpu").matrix()[1, 0]
    assert kept["bce+predkd"] > kept["bce-zeros"] + 0.1


def test_a_revealed_task_is_respected() -> None:
    stream = tasks("digits", steps=5)
    learner = made(classification="softmax-local")
    for index in range(2):
        learner.learn(stream[index])
        assert set(learner.predict(stream.probes[index].data).tolist()) <= set(stream[index].classes)
