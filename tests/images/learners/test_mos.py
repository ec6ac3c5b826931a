"""The invariants of MOS (paper 44)."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latewood import Data, Experience, Recipe, run
from latewood.core.errors import ConfigurationError
from latewood.core.seeding import seeded
from latewood.images.learners.mos import MOS
from latewood.images.nets import mlp, vit
from latewood.images.streams.split import split
from latewood.images.streams.tasks import tasks
from latewood.parts.adapters import Adapters
from latewood.parts.backbone import Backbone

STREAM = split("digits", groups=[[0, 1, 2], [3, 4], [5, 6]])
#: Few images, since what must hold does not depend on their number.
ARRIVALS = [Experience(e.index, e.train[:60], e.classes) for e in STREAM]
TEST = STREAM.probes[0].data[:40]
RECIPE = Recipe(epochs=1, batch_size=16, lr=0.5, weight_decay=5e-4, schedule="cosine")


def backbone(augment: str = "none") -> Backbone:
    with seeded(0):
        return vit(STREAM.example, width=16, depth=2, heads=2, augment=augment)


def made(**settings: Any) -> MOS:
    with seeded(1):
        return MOS(**{"backbone": backbone(), "bottleneck": 4, "passes": 2, "samples": 16, "recipe": RECIPE, **settings})


def learned(count: int = 2, **settings: Any) -> MOS:
    learner = made(**settings)
    for index in range(count):
        learner.generator.manual_seed(index)
        learner.learn(ARRIVALS[index])
    return learner


def within(count: int = 1, **settings: Any) -> MOS:
    """A learner in the middle of its next arrival."""
    learner = learned(count, **settings)
    learner.prepare(ARRIVALS[count])
    return learner


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def stored(learner: MOS, number: int) -> list[Tensor]:
    return [tensor[number].clone() for tensor in learner.adapters.stored]


# Training


def test_one_merge_moves_each_tensor_to_nine_tenths_of_itself_and_a_tenth_of_the_mean() -> None:
    learner = within(2)
    means = [(one + other) / 2 for one, other in zip(stored(learner, 0), stored(learner, 1), strict=True)]
    for tensor in learner.adapters.live:
        tensor.data += 1.0
    before = [tensor.detach().clone() for tensor in learner.adapters.live]
    learner.after_batch(TEST)
    for now, old, mean in zip(learner.adapters.live, before, means, strict=True):
        torch.testing.assert_close(now.detach(), 0.9 * old + 0.1 * mean, atol=1e-6, rtol=0)
    assert any(mean.abs().max() > 0.01 for mean in means)


@pytest.mark.parametrize("kept", [0.9**13, 0.9])
def test_more_merges_in_a_step_keep_less_of_what_was_learned(kept: float) -> None:
    learner = within(1, merges_per_step=13 if kept < 0.5 else 1)
    for tensor in learner.adapters.live:
        tensor.data += 1.0
    learner.after_batch(TEST)
    for now, mean in zip(learner.adapters.live, stored(learner, 0), strict=True):
        torch.testing.assert_close(now.detach() - mean, torch.full_like(mean, kept), atol=1e-5, rtol=0)


def test_without_alpha_the_set_is_simply_trained_on_and_the_first_arrival_never_merges() -> None:
    class Never(MOS):
        def after_batch(self, batch: Data) -> None:
            raise AssertionError("merged")

    def trained(kind: type[MOS], count: int, alpha: float) -> MOS:
        with seeded(1):
            learner = kind(backbone(), 4, alpha=alpha, passes=2, samples=16, recipe=RECIPE)
        if kind is Never:
            learner.after_batch = None  # type: ignore[method-assign,assignment]
        for index in range(count):
            learner.generator.manual_seed(index)
            learner.learn(ARRIVALS[index])
        return learner

    for count, alpha in ((2, 0.0), (1, 0.1)):
        assert equal(state(trained(MOS, count, alpha)), state(trained(Never, count, alpha)))
    assert not equal(state(trained(MOS, 2, 0.1)), state(trained(Never, 2, 0.1)))


def test_with_alpha_one_the_set_is_the_mean_of_those_before_it_after_every_step() -> None:
    learner = learned(3, alpha=1.0)
    for first, second, third in zip(*(stored(learner, number) for number in range(3)), strict=True):
        assert torch.equal(second, first)
        torch.testing.assert_close(third, first)


def test_each_arrival_begins_with_the_set_of_the_one_before() -> None:
    learner = learned(1)
    assert all(torch.equal(now, kept) for now, kept in zip(learner.adapters.live, stored(learner, 0), strict=True))
    learner.prepare(ARRIVALS[1])
    assert all(torch.equal(now, kept) for now, kept in zip(learner.adapters.live, stored(learner, 0), strict=True))


def test_what_merges_pull_to_is_the_mean_of_the_stored_copies() -> None:
    learner = learned(3)
    for mean, sets in zip(learner.trained.means(), learner.adapters.stored, strict=True):
        torch.testing.assert_close(mean, sets.mean(0), atol=1e-6, rtol=0)


def test_only_adapters_and_head_learn_the_head_more_slowly() -> None:
    learner = made()
    learner.prepare(ARRIVALS[0])
    optimizer = RECIPE.make_optimizer(learner.parameter_groups())
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    trainable = {id(p) for p in learner.parameters() if p.requires_grad}
    assert set(rates) == trainable
    assert rates[id(learner.net.head.weight)] == pytest.approx(0.05) and rates[id(learner.adapters.up)] == 0.5
    before = state(learner.backbone.get_submodule("network"))
    learner.learn(ARRIVALS[0])
    assert equal(before, state(learner.backbone.get_submodule("network")))
    assert bool(learner.adapters.up.any())


def test_in_training_units_are_dropped_and_images_augmented_while_the_network_stays_as_it_is() -> None:
    learner = made(backbone=backbone("crop-flip"))
    learner.train()
    assert learner.backbone.training and learner.adapters.training
    assert not learner.backbone.get_submodule("network").training
    learner.eval()
    assert not any(module.training for module in learner.backbone.modules())


def test_old_rows_get_no_gradient_from_the_cross_entropy() -> None:
    learner = within(1)
    learner.loss(ARRIVALS[1].train[:16]).backward()
    gradient = learner.net.head.weight.grad
    assert gradient is not None and not gradient[:3].any() and bool(gradient[3:].any())


def test_the_contrast_is_its_formula_and_reaches_the_batch_alone() -> None:
    learner = within(1)
    features = torch.randn(5, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    means = learner.gaussians.means[:, 0].float()
    rows = torch.cat([means, features])
    wanted = torch.stack([-(rows @ row / 0.8).log_softmax(0)[place] for place, row in enumerate(rows)]).mean()
    found = learner.contrastive(features)
    torch.testing.assert_close(found, wanted)
    (slope,) = torch.autograd.grad(found, features)
    assert bool(slope.any()) and not means.requires_grad
    batch = ARRIVALS[1].train[:16]
    plain = copy.deepcopy(learner)
    plain.contrast = 0.0
    made_of = learner.contrastive(learner.backbone(learner.net.prepare(batch)))
    torch.testing.assert_close(learner.loss(batch), plain.loss(batch) + 0.1 * made_of)


def test_in_the_first_arrival_the_contrast_is_within_the_batch() -> None:
    learner = made()
    learner.prepare(ARRIVALS[0])
    features = torch.eye(3, 16) * 2
    torch.testing.assert_close(learner.contrastive(features), F.cross_entropy(torch.eye(3) * 5, torch.arange(3)))


def test_what_belongs_to_older_arrivals_stays_bit_for_bit() -> None:
    learner = learned(2)
    sets = [stored(learner, number) for number in range(2)]
    sums, gaussians, owners = learner.prototypes.sums.clone(), state(learner.gaussians), learner.owners.clone()
    learner.learn(ARRIVALS[2])
    for number, kept in enumerate(sets):
        assert all(torch.equal(a, b) for a, b in zip(stored(learner, number), kept, strict=True))
    assert torch.equal(learner.prototypes.sums[:5], sums) and torch.equal(learner.owners[:5], owners)
    assert all(torch.equal(value[:5], gaussians[name]) for name, value in state(learner.gaussians).items())


def test_gaussians_are_under_the_own_set_and_prototypes_under_the_first() -> None:
    learner = learned(2)
    data = ARRIVALS[1].train
    for number, means in ((1, learner.gaussians.means[:, 0]), (0, learner.prototypes.means())):
        with learner.adapters.using(number):
            features = learner.backbone(learner.net.prepare(data)).double()
        for column in (3, 4):
            own = features[data["label"] == learner.classes.labels[column]]
            torch.testing.assert_close(means[column], own.mean(0).detach())
    assert not torch.allclose(learner.gaussians.means[3, 0], learner.prototypes.means()[3], atol=1e-4)


def test_alignment_trains_the_whole_head_from_the_second_arrival_on_and_it_stays() -> None:
    learner = learned(1)
    settings = learner.alignment
    assert (settings.passes, settings.samples, settings.rate, settings.decay) == (2, 16, 0.005, 5e-4)
    assert settings.temperature is None and settings.shrink == 1
    assert made(samples=None).alignment.samples == 80
    old = learner.net.head.weight.detach().clone()
    learner.learn(ARRIVALS[1])
    aligned = learner.net.head.weight.detach().clone()
    assert not torch.allclose(aligned[:3], old, atol=1e-3)
    learner.prepare(ARRIVALS[2])
    assert torch.equal(learner.net.head.weight[:5], aligned)


def test_a_class_that_returns_keeps_the_set_and_the_gaussian_that_it_came_with() -> None:
    learner = learned(2)
    gaussians = state(learner.gaussians)
    learner.learn(Experience(2, ARRIVALS[0].train[:30], (0, 1, 2)))
    assert learner.owners.tolist() == [0, 0, 0, 1, 1] and learner.adapters.sets == 3
    assert equal(gaussians, state(learner.gaussians))
    learner.predict(TEST)


# What the authors' code does


def test_under_predecessor_mean_a_stored_set_is_the_mean_of_what_earlier_training_gave() -> None:
    class Watched(MOS):
        trained_sets: list[list[Tensor]]

        def conclude(self, experience: Experience) -> None:
            self.trained_sets.append([tensor.detach().clone() for tensor in self.adapters.live])
            super().conclude(experience)

    with seeded(1):
        learner = Watched(backbone(), 4, eval_adapter="predecessor-mean", passes=2, samples=16, recipe=RECIPE)
    learner.trained_sets = []
    for arrival in ARRIVALS:
        learner.learn(arrival)
    for number in (1, 2):
        for place, kept in enumerate(stored(learner, number)):
            wanted = torch.stack([tensors[place] for tensors in learner.trained_sets[:number]]).mean(0)
            torch.testing.assert_close(kept, wanted)
    assert not torch.allclose(learner.trained_sets[1][2], learner.trained_sets[0][2], atol=1e-4)
    assert all(torch.equal(now, kept) for now, kept in zip(learner.adapters.live, stored(learner, 2), strict=True))


# Prediction


def test_before_training_the_features_are_those_of_the_plain_network() -> None:
    plain = backbone().eval()
    learner = made().eval()
    inputs = plain.prepare(TEST)
    torch.testing.assert_close(learner.backbone(inputs), plain(inputs), atol=1e-5, rtol=0)


def test_predicting_changes_nothing() -> None:
    learner = learned(3)
    before = state(learner)
    predictions = [learner.predict(TEST) for _ in range(3)]
    assert equal(before, state(learner))
    assert torch.equal(predictions[0], predictions[2])


def test_with_one_arrival_the_answer_is_the_sum_of_two_softmaxes() -> None:
    learner = learned(1)
    features = learner.backbone(learner.net.prepare(TEST)).detach()
    cosines = F.cosine_similarity(features[:, None].double(), learner.prototypes.means()[None], dim=2)
    wanted = learner.net.head(features).softmax(1) + cosines.softmax(1).float()
    torch.testing.assert_close(learner.scores(TEST), wanted.detach())


def slowly(learner: MOS, row: Data) -> tuple[int, int, int, Tensor]:
    """The retrieval as the paper tells it, for one row: first set, last set, evaluations of the head, scores."""
    inputs = learner.net.prepare(row)
    with torch.no_grad():
        with learner.adapters.using(0):
            cosines = learner.prototypes(learner.backbone(inputs))
        first = number = int(learner.owners[cosines.argmax()])
        evaluations, used = 0, number
        while evaluations < learner.refinements:
            with learner.adapters.using(number):
                logits = learner.net.head(learner.backbone(inputs))
            evaluations, used = evaluations + 1, number
            wanted = int(learner.owners[logits.argmax()])
            if wanted == number:
                break
            number = wanted
        return first, used, evaluations, logits.softmax(1) + (learner.adapters.sets * cosines).softmax(1).float()


def torn() -> tuple[MOS, Data]:
    """A learner whose sets and head disagree, so that rows go back and forth."""
    learner = learned(3)
    generator = torch.Generator().manual_seed(4)
    for tensor in learner.adapters.stored:
        tensor += 0.05 * torch.randn(tensor.shape, generator=generator)
    data = Data(image=torch.cat([p.data["image"] for p in STREAM.probes])[::6])
    with torch.no_grad():
        every = torch.cat([learner._features(data, number) for number in range(3)])
        head = learner.net.head
        head.weight.copy_(torch.randn(7, 16, generator=generator))
        # What all features share must not decide, or all rows go the same way.
        head.bias.copy_(-head.weight @ every.mean(0))
    return learner, data


def test_the_batched_retrieval_is_that_of_each_row_alone() -> None:
    learner, data = torn()
    first, last = learner.chosen(data)
    scores, rounds = learner.scores(data), []
    for place in range(len(data)):
        alone = slowly(learner, data[place : place + 1])
        assert (int(first[place]), int(last[place])) == alone[:2]
        torch.testing.assert_close(scores[place : place + 1], alone[3], atol=1e-4, rtol=1e-4)
        rounds.append(alone[2])
    assert max(rounds) == 4 and min(rounds) == 1


@pytest.mark.parametrize("most", [1, 2, 4])
def test_no_row_is_evaluated_more_often_than_allowed_and_one_that_agrees_but_once(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, data = torn()
    learner.refinements = most
    seen: list[int] = []
    under = MOS._head_under

    def counted(self: MOS, inputs: Tensor, sets: Tensor) -> Tensor:
        seen.append(len(inputs))
        return under(self, inputs, sets)

    monkeypatch.setattr(MOS, "_head_under", counted)
    learner.chosen(data)
    assert len(seen) <= most
    alone = [slowly(learner, data[place : place + 1]) for place in range(len(data))]
    # Under the first set the features were there already.
    assert sum(seen) == sum(evaluations for _, _, evaluations, _ in alone) - sum(first == 0 for first, *_ in alone)


def test_the_length_of_prototypes_changes_nothing() -> None:
    learner = learned(2)
    before = learner.scores(TEST)
    learner.prototypes.sums *= torch.tensor([1.0, 5.0, 0.1, 2.0, 9.0])[:, None]
    torch.testing.assert_close(learner.scores(TEST), before)


def test_a_learner_can_be_asked_in_the_middle_of_an_arrival() -> None:
    for count in (0, 1):
        learner = within(count)
        scores = learner.eval().scores(TEST)
        assert torch.isfinite(scores).all() and scores.shape == (40, len(learner.classes))
    assert made().predict(TEST[:3]).tolist() == [-1, -1, -1]
    assert learned(1).predict(TEST[:0]).shape == (0,)


def test_a_revealed_task_is_respected() -> None:
    stream = tasks("digits", steps=5)
    learner = made()
    for index in range(2):
        learner.learn(stream[index])
    for index in range(2):
        data = stream.probes[index].data[:20]
        assert set(learner.predict(data).tolist()) <= set(stream[index].classes)
        assert learner.chosen(data)[1].tolist() == [index] * 20


# State


@pytest.mark.parametrize("settings", [{}, {"eval_adapter": "predecessor-mean", "covariance": "multi-centroid"}])
def test_a_saved_learner_goes_on_where_it_was(settings: dict[str, Any]) -> None:
    first, second = learned(2, **settings), made(**settings)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.scores(TEST), second.scores(TEST))
    for learner in (first, second):
        learner.generator.manual_seed(7)
        learner.learn(ARRIVALS[2])
    assert equal(state(first), state(second))


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    stream = split("digits", groups=[[0, 1], [2, 3]])
    states = []
    for seed in (0, 0, 1):
        learner = made()
        run(learner, stream, seed=seed, device="cpu")
        states.append(state(learner))
    assert equal(states[0], states[1]) and not equal(states[0], states[2])


def test_a_copy_learns_alone() -> None:
    learner = learned(1)
    before, twin = state(learner), copy.deepcopy(learner)
    twin.learn(ARRIVALS[1])
    assert equal(before, state(learner)) and twin.adapters.sets == 2
    assert isinstance(twin.adapters, Adapters) and twin.adapters is not learner.adapters


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"alpha": 1.5}, "alpha is a share, from 0 to 1, but it is 1.5"),
        ({"alpha": -0.1}, "alpha must be at least 0"),
        ({"merges_per_step": 0}, "merges_per_step must be at least 1"),
        ({"refinements": 0}, "refinements must be at least 1"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"samples": 0}, "samples must be at least 1"),
    ],
)
def test_a_setting_out_of_range_gets_a_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        made(**settings)


def test_a_network_without_blocks_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no transformer blocks"):
        made(backbone=mlp(STREAM.example, width=16))
