"""The invariants of first session adaptation (paper 45)."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latewood import Data, Experience, Recipe, run
from latewood.core import checkpoint
from latewood.core.checkpoint import tensors_of
from latewood.core.errors import CheckpointError, ConfigurationError, DataError
from latewood.core.seeding import seeded
from latewood.images.learners.fsa import FSA, DroppedHead, cosine_spread
from latewood.images.learners.nmc import NMC
from latewood.images.nets import pixels, resnet32, vit
from latewood.images.streams.split import split
from latewood.parts.adapters import ScaleShift
from latewood.parts.backbone import Backbone

STREAM = split("digits", steps=5)
TEST = STREAM.probes[0].data
EVERYTHING = Data(image=torch.cat([e.train["image"] for e in STREAM]), label=torch.cat([e.train["label"] for e in STREAM]))
RECIPE = Recipe(epochs=2, batch_size=64, optimizer="adam", lr=5e-3)
each_adaptation = pytest.mark.parametrize(
    ("adapt", "net"), [("full", "vit"), ("film", "vit"), ("full", "resnet"), ("film", "resnet")]
)


def body(net: str = "vit", seed: int = 0) -> Backbone:
    with seeded("body", seed):
        if net == "resnet":
            return resnet32(STREAM.example, width=4)
        return vit(STREAM.example, width=16, depth=2, heads=2)


def fsa(adapt: Any = "full", net: str = "vit", seed: int = 0, **settings: Any) -> FSA:
    return FSA(body(net, seed), adapt, **{"recipe": RECIPE, **settings})


def plain(**settings: Any) -> FSA:
    return FSA(pixels(STREAM.example), "none", **settings)


def learned(learner: FSA, *arrivals: int) -> FSA:
    for index in arrivals:
        learner.learn(STREAM[index])
    return learner


def bits(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


@each_adaptation
def test_only_the_first_arrival_adapts_and_later_ones_change_nothing(adapt: str, net: str) -> None:
    learner = fsa(adapt, net)
    before = bits(learner.backbone)
    learned(learner, 0)
    moved = changed(learner.backbone, before)
    assert moved and (adapt == "full" or all(name.startswith("scaleshift.") for name in moved))
    assert (adapt == "full" and net == "resnet") == any("running" in name for name in moved)
    after = bits(learner.backbone)
    learned(learner, 1, 2)
    assert not changed(learner.backbone, after)
    assert not any(value.requires_grad for value in learner.parameters())
    learner.train()
    assert not any(module.training for module in learner.backbone.modules())


def test_factors_and_offsets_start_at_the_identity() -> None:
    adapted, before = fsa("film"), body()
    inputs = before.prepare(TEST)
    torch.testing.assert_close(adapted.backbone(inputs), before(inputs), atol=1e-6, rtol=0)
    assert isinstance(adapted.encoder.trained, ScaleShift)


def test_the_head_is_the_same_for_all_arrivals_together_and_in_any_order() -> None:
    grouped, joint = learned(plain(), 4, 2, 0, 1, 3), plain()
    joint.learn(Experience(0, EVERYTHING))
    columns = joint.classes.columns(grouped.classes.labels)
    for found, wanted in zip(grouped.final.linear(), joint.final.linear(), strict=True):
        torch.testing.assert_close(found, wanted[..., columns], rtol=1e-8, atol=1e-8)
    assert torch.equal(grouped.predict(TEST), joint.predict(TEST))


def test_sums_are_of_plain_images_through_the_adapted_body() -> None:
    with seeded("body"):
        net = vit(STREAM.example, width=16, depth=2, heads=2, augment="crop")
    learner = learned(FSA(net, recipe=RECIPE), 0, 1)
    features = net(net.prepare(STREAM[1].train)).detach().double()
    for label in STREAM[1].classes:
        column = int(learner.classes.columns(torch.tensor([label])))
        wanted = features[STREAM[1].train["label"] == label].mean(0)
        torch.testing.assert_close(learner.final.classes.means()[column], wanted, rtol=0, atol=1e-5)


def test_only_classes_that_came_are_predicted() -> None:
    learner = learned(fsa(), 0, 1)
    assert set(learner.predict(EVERYTHING).tolist()) <= {*STREAM[0].classes, *STREAM[1].classes}
    wider = plain()
    wider.learn(Experience(0, STREAM[0].train, (*STREAM[0].classes, *STREAM[1].classes)))
    assert set(wider.predict(EVERYTHING).tolist()) <= set(STREAM[0].classes)


def test_it_is_the_given_covariance_that_counts() -> None:
    predictions = [learned(plain(covariance=c, ridge=0.01), 0, 1, 2, 3, 4).predict(TEST) for c in ("total", "within")]
    assert not torch.equal(*predictions)


def test_the_nearest_mean_is_a_discriminant_with_the_identity() -> None:
    near, nmc = learned(plain(head="ncm"), 0, 1, 2), NMC(pixels(STREAM.example), normalise=False)
    for index in range(3):
        nmc.learn(STREAM[index])
    assert torch.equal(near.predict(TEST), nmc.predict(TEST))
    lda = learned(plain(), 0, 1, 2).final
    lda.covariance = lambda: torch.zeros(64, 64, dtype=torch.float64)
    lda._solved = None
    features = near.encoder(TEST)
    torch.testing.assert_close(near.final(features), lda(features), rtol=1e-9, atol=1e-9)


def test_quadratic_discriminants_are_densities_of_each_classs_gaussian() -> None:
    learner = learned(plain(head="qda", ridge=0.1), 0, 1)
    features = learner.encoder(TEST).double()
    for column, label in enumerate(learner.classes.labels.tolist()):
        own = EVERYTHING["image"][EVERYTHING["label"] == label].flatten(1).double() / 255
        gaussian = torch.distributions.MultivariateNormal(own.mean(0), own.T.cov() + 0.1 * torch.eye(64))
        constant = -0.5 * 64 * torch.log(torch.tensor(2 * torch.pi, dtype=torch.float64))
        wanted = gaussian.log_prob(features) - constant
        torch.testing.assert_close(learner.final(features)[:, column], wanted, rtol=1e-4, atol=1e-3)


def test_the_temporary_head_drops_features_only_while_it_trains() -> None:
    head = DroppedHead(400, 0.5)
    head.grow(3, torch.Generator().manual_seed(0))
    features = torch.ones(1, 400)
    with seeded(0):
        assert not torch.equal(head(features), F.linear(features, head.weight, head.bias))
    assert torch.equal(head.eval()(features), F.linear(features, head.weight, head.bias))


@each_adaptation
def test_a_saved_learner_goes_on_where_it_was(adapt: str, net: str, tmp_path: Path) -> None:
    first, second = learned(fsa(adapt, net), 0), fsa(adapt, net, seed=0 if adapt == "film" else 7)
    checkpoint.save(tmp_path / "state", tensors_of(first), {})
    second.load_state_dict(checkpoint.load(tmp_path / "state")[0])
    for learner in (first, second):
        learned(learner, 1)
    assert torch.equal(first.scores(EVERYTHING), second.scores(EVERYTHING))
    first.load_state_dict(tensors_of(second))  # a learner that was adapted takes on a state as a fresh one does


def test_only_factors_and_offsets_are_saved_beside_the_sums() -> None:
    saved = {name for name, value in tensors_of(learned(fsa("film"), 0)).items() if value.is_floating_point()}
    assert {name for name in saved if not name.startswith("final.")} == {
        f"encoder.trained.{kind}.{number}" for kind in ("scale", "shift") for number in range(5)
    }


def test_a_state_with_factors_is_refused_on_another_body() -> None:
    with pytest.raises((CheckpointError, RuntimeError), match="another frozen backbone"):
        fsa("film", seed=5).load_state_dict(learned(fsa("film"), 0).state_dict())


def test_a_copy_of_a_learner_is_adapted_alone() -> None:
    learner = fsa("film")
    twin = copy.deepcopy(learner)
    learned(twin, 0)
    assert not any(value.any() for value in learner.encoder.trained.shift)
    assert any(value.any() for value in twin.encoder.trained.shift)
    assert not torch.equal(twin.encoder(TEST), learner.encoder(TEST))


def test_the_same_seed_gives_the_same_run_and_adapting_is_counted() -> None:
    first, second, other = (run(fsa(), STREAM, seed=seed, device="cpu") for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.matrix("accuracy"), second.matrix("accuracy"))
    assert first.last != other.last
    flops = [row.cost.flops for row in first.rows]
    assert flops[0] > 3 * flops[1] > 0
    assert first.rows[0].cost.trained > 0


def test_without_adaptation_samples_are_forgotten_exactly_and_else_not_at_all() -> None:
    for head in ("lda", "ncm"):
        learner, never = learned(plain(head=head), 0, 1), learned(plain(head=head), 0)
        learner.forget(STREAM[1].train, STREAM[1].classes)
        torch.testing.assert_close(learner.scores(TEST), never.scores(TEST))
    assert not fsa().can_forget and not plain(head="qda").can_forget


def test_what_can_not_be_adapted_is_told_before_anything_changes() -> None:
    with pytest.raises(ConfigurationError, match="'pixels' has no weights that could be trained"):
        FSA(pixels(STREAM.example))
    with pytest.raises(ConfigurationError, match="dropout must lie between 0 and below 1"):
        plain(dropout=1.0)
    with pytest.raises(ConfigurationError, match="ridge must be at least 0"):
        plain(ridge=-0.1)


def test_the_spread_is_the_mean_and_least_distance_over_pairs() -> None:
    features = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    pairs = [float(1 - F.cosine_similarity(features[i], features[j], 0)) for i in range(50) for j in range(i)]
    spread = cosine_spread(features)
    assert spread.mean == pytest.approx(sum(pairs) / len(pairs), abs=1e-5)
    assert spread.least == pytest.approx(min(pairs), abs=1e-5)
    assert cosine_spread(features * torch.rand(50, 1).add(0.1)).mean == pytest.approx(spread.mean, abs=1e-5)
    assert cosine_spread(features, most=10) == cosine_spread(features[::5])
    with pytest.raises(DataError, match="at least 2"):
        cosine_spread(features[:1])
