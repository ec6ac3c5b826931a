"""The invariants of SLCA (paper 13)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latewood import Data, Experience, Recipe, run
from latewood.core.errors import ConfigurationError
from latewood.core.seeding import seeded
from latewood.images.learners.finetune import Finetune
from latewood.images.learners.slca import SLCA
from latewood.images.nets import mlp, pixels, resnet32, vit
from latewood.images.streams.split import split
from latewood.images.streams.tasks import tasks
from latewood.parts.backbone import Backbone

STREAM = split("digits", groups=[[0, 1, 2], [3, 4, 5, 6, 7], [8, 9]])
RECIPE = Recipe(epochs=2, lr=0.05, weight_decay=5e-4)
QUICK = {"passes": 2, "samples": 32}


def backbone() -> Backbone:
    with seeded(0):
        return mlp(STREAM.example, width=24)


def made(**settings: Any) -> SLCA:
    return SLCA(**{"backbone": backbone(), "recipe": RECIPE, **QUICK, **settings})


def learned(count: int = 2, **settings: Any) -> SLCA:
    learner = made(**settings)
    for index in range(count):
        # Alignment draws random numbers; the training of the next arrival must not differ for that.
        learner.generator.manual_seed(index)
        learner.learn(STREAM[index])
    return learner


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_backbone_of_rate_zero_stays_bit_identical_with_its_running_statistics() -> None:
    images = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8)
    with seeded(0):
        net = resnet32(Data(image=images[:1]), width=4, augment="crop-flip")
    before = state(net)
    learner = SLCA(net, slowness=0.0, passes=2, samples=32)
    for index in range(2):
        part = slice(20 * index, 20 * index + 20)
        learner.learn(Experience(index, Data(image=images[part], label=torch.arange(20) % 2 + 2 * index)))
    assert equal(before, state(net))
    assert not equal(before, state(learned(1, backbone=backbone()).backbone))


def test_with_one_rate_and_no_alignment_it_is_fine_tuning_on_each_arrivals_classes() -> None:
    class Modest(Finetune):
        """Fine-tuning whose new rows begin as SLCA's do."""

        def prepare(self, experience: Experience) -> None:
            before = len(self.classes)
            super().prepare(experience)
            fresh = torch.empty(len(self.classes) - before, self.backbone.width)
            self.net.head.weight.data[before:] = nn.init.trunc_normal_(fresh, std=0.02, generator=self.generator)

    recipe = Recipe(epochs=2, lr=0.05)
    plain, learner = Modest(backbone(), recipe=recipe), made(slowness=1.0, aligned=False, recipe=recipe)
    for index in range(2):
        for each in (plain, learner):
            each.learn(STREAM[index])
    assert equal(state(plain.net), state(learner.net))


def test_the_backbone_learns_at_its_share_of_the_heads_rate() -> None:
    learner = made(slowness=0.01)
    learner.prepare(STREAM[0])
    optimizer = RECIPE.make_optimizer(learner.parameter_groups())
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(learner.net.head.weight)] == 0.05
    assert [rates[id(p)] for p in learner.backbone.parameters()] == pytest.approx([0.0005] * 4)
    assert id(learner.raw.weight) not in rates


def test_training_leaves_old_rows_alone_in_spite_of_weight_decay() -> None:
    learner = learned(1)
    old = state(learner.raw)
    learner.learn(STREAM[1])
    assert torch.equal(learner.raw.weight[:3], old["weight"]) and torch.equal(learner.raw.bias[:3], old["bias"])
    learner.prepare(STREAM[2])
    learner.zero_grad()
    learner.loss(STREAM[2].train[:16]).backward()
    gradient = learner.net.head.weight.grad
    assert gradient is not None and not gradient[:8].any() and bool(gradient[8:].any())


def test_alignment_changes_the_served_head_and_nothing_else() -> None:
    learner = learned(2)
    plain = learned(2, aligned=False)
    assert equal(state(learner.backbone), state(plain.backbone))
    assert equal(state(learner.gaussians), state(plain.gaussians))
    assert equal(state(learner.raw), state(plain.raw)) and equal(state(plain.net.head), state(plain.raw))
    assert not torch.equal(learner.net.head.weight[:3], learner.raw.weight[:3])
    assert not torch.equal(learner.net.head.weight[3:], learner.raw.weight[3:])


def test_the_next_arrival_begins_with_the_head_before_alignment() -> None:
    learner = learned(2)
    raw = state(learner.raw)
    learner.prepare(STREAM[2])
    assert torch.equal(learner.net.head.weight[:8], raw["weight"]) and torch.equal(learner.net.head.bias[:8], raw["bias"])
    assert learned(3, aligned=False).raw.weight.equal(learned(3).raw.weight)


def test_the_first_arrival_is_not_aligned() -> None:
    learner = learned(1)
    assert equal(state(learner.net.head), state(learner.raw))


def test_statistics_are_those_of_plain_images_and_never_change_again() -> None:
    learner = learned(1)
    first = STREAM[0].train
    features = learner.backbone(learner.backbone.prepare(first)).detach()
    for column in range(3):
        own = features[first["label"] == learner.classes.labels[column]].double()
        assert torch.allclose(learner.gaussians.means[column, 0], own.mean(0), atol=1e-6)
        wanted = own.T.cov() + 1e-4 * torch.eye(24)
        assert torch.allclose(learner.gaussians.covariances()[column], wanted, atol=1e-6)
    before = state(learner.gaussians)
    for index in (1, 2):
        learner.learn(STREAM[index])
        after = state(learner.gaussians)
        assert all(torch.equal(after[name][:3], value) for name, value in before.items())


def test_unequal_arrivals_get_their_true_numbers() -> None:
    assert learned(3).gaussians.arrivals.tolist() == [0] * 3 + [1] * 5 + [2] * 2


def test_predictions_are_of_plain_logits() -> None:
    learner = learned(2)
    data = STREAM.probes[0].data
    logits = F.linear(learner.backbone(learner.backbone.prepare(data)), learner.net.head.weight, learner.net.head.bias)
    assert torch.allclose(learner.scores(data), logits.detach())


def test_heads_that_were_trained_apart_are_better_aligned() -> None:
    stream, last = split("digits", steps=5), {}
    for aligned in (True, False):
        settings: dict[str, Any] = {"slowness": 0.0, "aligned": aligned, "recipe": Recipe(epochs=5, lr=0.05)}
        learner = SLCA(pixels(stream.example), **settings)
        last[aligned] = run(learner, stream, device="cpu").last
    assert last[True] > last[False] + 0.1
    assert last[True] > 0.7


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
        learner = made()
        run(learner, STREAM, seed=seed, device="cpu")
        states.append(state(learner))
    assert equal(states[0], states[1]) and not equal(states[0], states[2])


def test_a_revealed_task_is_respected() -> None:
    stream = tasks("digits", steps=5)
    learner = made()
    for index in range(2):
        learner.learn(stream[index])
        assert set(learner.predict(stream.probes[index].data).tolist()) <= set(stream[index].classes)


def test_a_fresh_norm_takes_the_place_of_the_last_one_alone() -> None:
    with seeded(0):
        net = vit(STREAM.example, width=12, depth=2)
    norms = [module for module in net.modules() if isinstance(module, nn.LayerNorm)]
    for norm in norms:
        nn.init.constant_(norm.weight, 2.0)
    learner = made(backbone=net, fresh_norm=True)
    now = [module for module in learner.backbone.modules() if isinstance(module, nn.LayerNorm)]
    assert [a is b for a, b in zip(norms, now, strict=True)] == [True] * 4 + [False]
    assert bool((now[-1].weight == 1).all()) and now[-1].weight.requires_grad
    assert net.network.layernorm is now[-1]  # the one behind all layers
    with pytest.raises(ConfigurationError, match="has none"):
        made(fresh_norm=True)


def test_a_negative_share_of_the_rate_gets_a_sentence() -> None:
    with pytest.raises(ConfigurationError, match="slowness must be at least 0"):
        made(slowness=-1.0)
