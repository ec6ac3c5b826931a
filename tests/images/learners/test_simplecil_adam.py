"""The invariants of SimpleCIL and ADAM (paper 42)."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from latewood import Data, Experience, Recipe, run
from latewood.core.checkpoint import tensors_of
from latewood.core.errors import CheckpointError, ConfigurationError
from latewood.core.seeding import seeded
from latewood.images.learners.adam import ADAM
from latewood.images.learners.simplecil import SimpleCIL
from latewood.images.nets import pixels, resnet32, vit
from latewood.images.streams.split import split
from latewood.parts import adapters
from latewood.parts.backbone import Backbone
from latewood.parts.features import Features

STREAM = split("digits", steps=5)
TEST = STREAM.probes[0].data
EVERYTHING = Data(image=torch.cat([e.train["image"] for e in STREAM]), label=torch.cat([e.train["label"] for e in STREAM]))
RECIPE = Recipe(epochs=1, batch_size=64, lr=0.05)
TRANSFORMER = ("adapter", "vpt-shallow", "vpt-deep", "ssf", "finetune")
EACH = [*((module, "vit") for module in TRANSFORMER), ("ssf", "resnet"), ("bn", "resnet"), ("finetune", "resnet")]
each_module = pytest.mark.parametrize(("module", "net"), EACH, ids=lambda value: value)


def body(net: str = "vit", seed: int = 0) -> Backbone:
    with seeded("body", seed):
        if net == "resnet":
            return resnet32(STREAM.example, width=4)
        return vit(STREAM.example, width=16, depth=2, heads=2)


def adam(module: Any = "adapter", net: str = "vit", seed: int = 0, recipe: Recipe = RECIPE) -> ADAM:
    with seeded("initial weights", seed):
        return ADAM(body(net), module, bottleneck=4, tokens=2, recipe=recipe)


def learned(learner: SimpleCIL, *arrivals: int) -> Any:
    for index in arrivals:
        learner.learn(STREAM[index])
    return learner


def bits(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module: torch.nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


# SimpleCIL


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), pieces=st.integers(1, 20))
def test_order_and_grouping_of_arrivals_change_nothing(seed: int, pieces: int) -> None:
    order = torch.randperm(300, generator=torch.Generator().manual_seed(seed))
    grouped, joint = SimpleCIL(pixels(STREAM.example)), SimpleCIL(pixels(STREAM.example))
    for index, rows in enumerate(order.chunk(pieces)):
        grouped.learn(Experience(index, EVERYTHING[rows]))
    joint.learn(Experience(0, EVERYTHING[torch.arange(300)]))
    assert torch.equal(grouped.predict(TEST), joint.predict(TEST))


def test_the_encoder_and_old_prototypes_never_change() -> None:
    encoder = body()
    before = bits(encoder)
    learner = learned(SimpleCIL(encoder), 0, 1)
    old = learner.prototypes.means().clone()
    learned(learner, 2, 3, 4)
    assert not changed(encoder, before)
    assert torch.equal(learner.prototypes.means()[:4], old)


def test_a_common_scale_changes_no_prediction_and_that_of_one_sample_does() -> None:
    class Raw(Features):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs

    def predictions(scale: Tensor) -> Tensor:
        learner = SimpleCIL(Raw(2))
        features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]) * scale
        learner.learn(Experience(0, Data(features=features, label=torch.tensor([0, 0, 1]))))
        return learner.predict(Data(features=torch.tensor([[1.0, 0.9], [0.7, 1.0]])))

    assert predictions(torch.ones(3, 1)).tolist() == predictions(torch.full((3, 1), 9.0)).tolist() == [0, 1]
    assert predictions(torch.tensor([[1.0], [9.0], [1.0]])).tolist() == [1, 1]


def test_a_class_is_forgotten_as_if_it_had_never_come() -> None:
    learner, never = learned(SimpleCIL(body()), 0, 1), learned(SimpleCIL(body()), 0)
    learner.forget(STREAM[1].train, STREAM[1].classes)
    torch.testing.assert_close(learner.scores(TEST), never.scores(TEST))


# ADAM: the two branches


@each_module
def test_features_are_those_of_the_untouched_backbone_beside_the_adapted_ones(module: str, net: str) -> None:
    learner = learned(adam(module, net), 0)
    features = learner.encoder(TEST)
    plain = SimpleCIL(body(net)).encoder(TEST)
    assert features.shape == (len(TEST), 2 * learner.backbone.width)
    assert torch.equal(features[:, : learner.backbone.width], plain)
    assert not torch.allclose(features[:, learner.backbone.width :], plain, atol=1e-3)


@each_module
def test_only_the_module_changes_on_the_first_arrival_and_nothing_later(module: str, net: str) -> None:
    learner = adam(module, net)
    backbone, branch = bits(learner.backbone), bits(learner.encoder.adapted)
    learned(learner, 0)
    assert not changed(learner.backbone, backbone)
    moved = changed(learner.encoder.adapted, branch)
    own = {"adapter": "adapters.", "vpt-shallow": "prompts.", "vpt-deep": "prompts.", "ssf": "scaleshift."}
    assert moved
    assert all(name.startswith(own.get(module, "")) for name in moved)
    if module == "bn":
        assert {name.rsplit(".", 1)[1] for name in moved} == {"running_mean", "running_var", "num_batches_tracked"}
    after, old = bits(learner.encoder), learner.prototypes.means().clone()
    learned(learner, 1, 2)
    assert not changed(learner.encoder, after)
    assert torch.equal(learner.prototypes.means()[:2], old)
    assert not any(value.requires_grad for value in learner.parameters())


def test_an_adapter_that_is_not_trained_makes_it_simplecil() -> None:
    idle = learned(adam(recipe=Recipe(lr=0.0)), 0, 1, 2)
    simple = learned(SimpleCIL(body()), 0, 1, 2)
    assert torch.equal(idle.predict(EVERYTHING), simple.predict(EVERYTHING))


def test_prototypes_are_means_of_joined_features_and_one_norm_spans_both() -> None:
    learner = learned(adam("finetune"), 0, 1)
    first = STREAM[0].train
    features = learner.encoder(first).double()
    for column, label in enumerate(learner.classes.labels[:2].tolist()):
        mean = features[first["label"] == label].mean(0)
        torch.testing.assert_close(learner.prototypes.means()[column], mean)
    joined = learner.encoder(TEST).double()
    expected = torch.nn.functional.cosine_similarity(joined[:, None], learner.prototypes.means()[None], dim=2)
    torch.testing.assert_close(learner.scores(TEST), expected)


def test_later_arrivals_may_come_in_any_order_but_the_first_one_matters() -> None:
    one, other, third = (learned(adam(), *order) for order in ((0, 1, 2, 3, 4), (0, 4, 2, 1, 3), (4, 0, 1, 2, 3)))
    assert torch.equal(one.predict(EVERYTHING), other.predict(EVERYTHING))
    assert not torch.equal(one.encoder(TEST), third.encoder(TEST))


def test_training_mode_reaches_no_feature() -> None:
    learner = learned(adam("adapter"), 0)
    before = learner.encoder(TEST)
    learner.train()
    learner.encoder.branch._tables.clear()
    assert torch.equal(learner.encoder._embed(TEST)[0], learner.encoder._embed(TEST)[0])
    assert torch.equal(learner.encoder.branch._embed(TEST)[0], before[:, 16:])


def test_bn_reads_no_label(monkeypatch: pytest.MonkeyPatch) -> None:
    columns: list[set[str]] = []
    prepare = Backbone.prepare

    def watched(self: Backbone, data: Data) -> Tensor:
        if self.training:
            columns.append(set(data))
        return prepare(self, data)

    monkeypatch.setattr(Backbone, "prepare", watched)
    learned(adam("bn", "resnet"), 0)
    assert columns and all(found == {"image"} for found in columns)


# ADAM: its state


@each_module
def test_a_saved_learner_goes_on_where_it_was(module: str, net: str) -> None:
    first, second = learned(adam(module, net), 0), adam(module, net, seed=7)
    second.load_state_dict(tensors_of(first))
    for learner in (first, second):
        learned(learner, 1)
    assert torch.equal(first.scores(EVERYTHING), second.scores(EVERYTHING))


def test_only_the_parts_are_saved_and_the_weights_are_shared() -> None:
    learner = learned(adam("adapter"), 0)
    saved = {name for name, value in tensors_of(learner).items() if value.is_floating_point()}
    assert saved == {
        *(f"encoder.trained.{kind}{name}" for kind in ("", "stored_") for name in ("down", "down_bias", "up", "up_bias")),
        "prototypes.sums",
    }
    own, copied = (dict(of.named_parameters()) for of in (learner.backbone, learner.encoder.adapted))
    assert all(copied[name] is value for name, value in own.items())
    whole = adam("finetune")
    assert not {id(value) for value in whole.backbone.parameters()} & {
        id(value) for value in whole.encoder.trained.parameters()
    }


def test_a_state_is_refused_on_another_backbone() -> None:
    learner, stranger = learned(adam(), 0), ADAM(body(seed=5), "adapter", bottleneck=4)
    with pytest.raises((CheckpointError, RuntimeError), match="another frozen backbone"):
        stranger.load_state_dict(learner.state_dict())


def test_a_copy_of_a_learner_is_adapted_alone() -> None:
    learner = adam()
    twin = copy.deepcopy(learner)
    learned(twin, 0)
    assert learner.encoder.trained.up.abs().sum() == 0  # type: ignore[operator,union-attr]
    assert twin.encoder.trained.up.abs().sum() > 0


# ADAM: within a run, and what it refuses


def test_the_same_seed_gives_the_same_run_and_both_phases_are_counted() -> None:
    first, second = (run(adam(), STREAM, seed=3, device="cpu") for _ in range(2))
    np.testing.assert_array_equal(first.matrix("accuracy"), second.matrix("accuracy"))
    flops = [row.cost.flops for row in first.rows]
    # Embedding with two branches costs twice a forward pass, and an epoch of training at least one and a part of another.
    assert flops[0] > 1.5 * flops[1] > 0


def test_auto_is_what_suits_the_backbone() -> None:
    assert adam("auto").encoder.kind == "adapter"
    assert adam("auto", "resnet").encoder.kind == "ssf"
    assert isinstance(adam("auto").encoder.trained, adapters.Adapters)


def test_what_can_not_be_adapted_is_told() -> None:
    with pytest.raises(ConfigurationError, match="has no transformer blocks"):
        adam("adapter", "resnet")
    with pytest.raises(ConfigurationError, match="'pixels' has no weights; choose another backbone"):
        learned(ADAM(pixels(STREAM.example)), 0)


def test_samples_of_the_adapted_branch_can_not_be_forgotten() -> None:
    learner = learned(adam(), 0)
    assert not learner.can_forget
    with pytest.raises(ConfigurationError, match="can't forget exactly"):
        learner.forget(STREAM[0].train)
