"""The invariants of CoSO (paper 35)."""

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
from latewood.images.learners.coso import CoSO
from latewood.images.nets import hub, mlp, resnet32, vit
from latewood.images.streams.split import split
from latewood.images.streams.tasks import tasks
from latewood.parts.backbone import Backbone
from latewood.parts.subspaces import SubspaceRecipe, Subspaces

STREAM = split("digits", steps=5)
RECIPE = SubspaceRecipe(epochs=2, batch_size=64, lr=2e-3)


def backbone(width: int = 24, depth: int = 2) -> Backbone:
    with seeded(0):
        return vit(STREAM.example, width=width, depth=depth)


def made(**settings: Any) -> CoSO:
    # Two classes give one dominant direction, whose share reaches the paper's threshold at once.
    small = {"rank": 3, "sketch": 8, "threshold": 0.9999, "matrix_lr": 2e-3, "recipe": RECIPE}
    return CoSO(**{"backbone": backbone(), **small, **settings})


def learned(count: int, **settings: Any) -> CoSO:
    learner = made(**settings)
    for index in range(count):
        learner.learn(STREAM[index])
    return learner


def only(learner: CoSO) -> Subspaces:
    (subspaces,) = learner._each()
    return subspaces


def adapted(learner: CoSO) -> Tensor:
    return torch.stack([weight.detach().clone() for group in learner._weights() for weight in group])


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_projections_of_attention_and_the_head_are_all_that_trains() -> None:
    net = backbone()
    before = state(net)
    learner = made(backbone=net)
    learner.learn(STREAM[0])
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {f"network.layers.{layer}.attention.o_proj.weight" for layer in range(2)}
    for name, parameter in net.named_parameters():
        assert (parameter.grad is None) == (name not in moved)


def test_a_checkpoint_of_transformers_is_adapted_at_the_same_place(tmp_path: Any) -> None:
    from transformers import ViTConfig, ViTModel

    config: Any = ViTConfig
    tiny = config(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=8, image_size=16, patch_size=8)
    with seeded(0):
        ViTModel(tiny).save_pretrained(tmp_path)
    learner = made(backbone=hub(STREAM.example, name=str(tmp_path), preprocessing="unit"))
    assert only(learner).count == 3 and (only(learner).rows, only(learner).columns) == (16, 16)


def test_the_change_of_every_later_arrival_is_orthogonal_to_the_basis() -> None:
    learner = made()
    learner.learn(STREAM[0])
    for index in range(1, 4):
        basis, start = only(learner).bases().clone(), adapted(learner)
        assert basis.shape[-1] > 0
        learner.learn(STREAM[index])
        change = adapted(learner) - start
        assert change.norm() > 1e-4
        assert (basis.mT @ change).abs().max() <= 1e-4 * change.norm()
        for part in only(learner).basis.split(only(learner).kept.tolist(), 1):
            assert torch.allclose(part.T @ part, torch.eye(part.shape[1]), atol=1e-4)


def test_at_every_step_the_projection_avoids_the_basis() -> None:
    seen = []

    class Watched(CoSO):
        def after_batch(self, batch: Data) -> None:
            super().after_batch(batch)
            if only(self).basis.shape[1]:
                seen.append(float((only(self).bases().mT @ only(self).projection).abs().max()))

    learner = Watched(backbone(), rank=3, sketch=8, threshold=0.9999, recipe=RECIPE)
    for index in range(2):
        learner.learn(STREAM[index])
    assert len(seen) == 2 * -(-len(STREAM[1].train) // 64) and max(seen) < 1e-4


def test_between_arrivals_there_is_only_the_basis() -> None:
    learner = learned(1)
    kept = {name for name, value in only(learner).state_dict().items() if value.numel()}
    assert kept == {"basis", "kept", "steps"} and int(only(learner).steps) == 0


def test_the_loss_is_local_and_has_a_temperature() -> None:
    learner = learned(1, temperature=2.0)
    learner.prepare(STREAM[1])
    batch = STREAM[1].train[:16]
    logits = learner.logits(batch)
    wanted = F.cross_entropy(logits[:, 2:] / 2, learner.net.targets(batch) - 2)
    assert torch.allclose(learner.loss(batch), wanted)
    assert torch.allclose(learner.scores(batch), logits, atol=1e-5), "there is none at prediction"


def test_old_rows_of_the_head_stay_as_they_are_in_spite_of_weight_decay() -> None:
    learner = learned(1, recipe=SubspaceRecipe(epochs=1, batch_size=64, weight_decay=0.5))
    old = learner.net.head.weight.detach().clone()
    learner.learn(STREAM[1])
    assert torch.equal(learner.net.head.weight[:2], old)


def test_what_the_first_arrival_learned_moves_less_where_gradients_are_kept_out() -> None:
    """The slope of the old loss along the new change, as a share of its size."""
    stream, slopes = split("digits", steps=2), {}
    for orthogonal in (True, False):
        learner = made(orthogonal=orthogonal, sketch=20, rank=3, threshold=0.999)
        learner.learn(stream[0])
        learner.prepare(stream[0])
        learner.zero_grad()
        learner.loss(stream[0].train).backward()
        old = torch.stack([w.grad.clone() for group in learner._weights() for w in group if w.grad is not None])
        start = adapted(learner)
        learner.learn(stream[1])
        change = adapted(learner) - start
        slopes[orthogonal] = float((old * change).sum().abs() / (old.norm() * change.norm()))
    assert slopes[True] < 0.2 * slopes[False]


def test_the_mode_while_training_is_that_of_training() -> None:
    modes = []

    class Watched(CoSO):
        def after_batch(self, batch: Data) -> None:
            super().after_batch(batch)
            modes.append(self.backbone.training)

    Watched(backbone(), rank=3, sketch=8, threshold=0.9999, recipe=RECIPE).learn(STREAM[0])
    assert all(modes) and modes


def test_matrices_of_several_shapes_and_convolutions_are_trained_together() -> None:
    learner = made(matrices=r"attention\.o_proj|mlp\.fc1")
    assert [(one.rows, one.columns, one.count) for one in learner._each()] == [(24, 24, 2), (96, 24, 2)]
    learner.learn(STREAM[0])
    with seeded(0):
        net = resnet32(STREAM.example, width=12)
    learner = made(backbone=net, matrices=r"stages\.2\..*convolution2")
    assert [(one.rows, one.columns, one.count) for one in learner._each()] == [(48, 48 * 9, 5)]
    start = adapted(learner)
    learner.learn(STREAM[0])
    assert bool((adapted(learner) != start).flatten(1).any(1).all())


def test_a_saved_learner_goes_on_where_it_was() -> None:
    first, second = learned(2), made()
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.predict(STREAM.probes[0].data), second.predict(STREAM.probes[0].data))
    for learner in (first, second):
        learner.generator.manual_seed(7)
        learner.learn(STREAM[2])
    assert equal(state(first), state(second))


def test_a_state_saved_in_the_middle_of_an_arrival_goes_on_bit_for_bit() -> None:
    def step(learner: CoSO, optimizer: torch.optim.Optimizer, batch: Data) -> None:
        optimizer.zero_grad()
        learner.loss(batch).backward()
        optimizer.step()
        learner.after_batch(batch)

    first = learned(1)
    first.prepare(STREAM[1])
    optimizer = RECIPE.make_optimizer(first.parameter_groups())
    batches = list(STREAM[1].train.batches(64))
    for batch in batches[:2]:
        step(first, optimizer, batch)
    second = learned(1)
    second.prepare(STREAM[1])
    second.load_state_dict(first.state_dict())
    second._others = copy.copy(first._others)
    second._others._head = second.net.head
    other = RECIPE.make_optimizer(second.parameter_groups())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for batch in batches[2:]:
        step(first, optimizer, batch)
        step(second, other, batch)
    for learner in (first, second):
        learner.conclude(STREAM[1])
    assert only(first).basis.shape[1] > 0 and equal(state(first), state(second))


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    states = []
    for seed in (0, 0, 1):
        learner = made()
        run(learner, split("digits", groups=[[0, 1], [2, 3]]), seed=seed, device="cpu")
        states.append(state(learner))
    assert equal(states[0], states[1]) and not equal(states[0], states[2])


def test_a_revealed_task_is_respected() -> None:
    stream = tasks("digits", steps=5)
    learner = made()
    for index in range(2):
        learner.learn(stream[index])
        assert set(learner.predict(stream.probes[index].data).tolist()) <= set(stream[index].classes)


def test_the_fast_path_is_measured_on_a_copy_and_leaves_no_trace() -> None:
    learner = made(recipe=SubspaceRecipe(epochs=1, batch_size=64, precision="auto"))
    learner.learn(Experience(0, STREAM[0].train[:64], STREAM[0].classes))
    assert int(only(learner).steps) == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"matrices": "nowhere"}, "fits no weight"),
        ({"matrices": "("}, "no regular expression"),
        ({"rank": 25}, "rank of at most 24"),
        ({"sketch": 24}, "sketch below 24"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"matrix_lr": -1.0}, "matrix_lr must be at least 0"),
        ({"recipe": Recipe(epochs=1)}, "must be a SubspaceRecipe"),
    ],
)
def test_what_does_not_fit_gets_a_sentence_and_changes_nothing(settings: dict[str, Any], words: str) -> None:
    net = backbone()
    with pytest.raises(ConfigurationError, match=words):
        made(backbone=net, **settings)
    assert all(p.requires_grad for p in net.parameters())
    with seeded(0), pytest.raises(ConfigurationError, match="such as 'layers"):
        made(backbone=mlp(STREAM.example, width=8))
