"""The invariants of DKVB (paper 40)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latewood import Data, Experience, Recipe, run
from latewood.core.errors import ConfigurationError, DataError
from latewood.core.seeding import seeded
from latewood.images.datasets import load_images
from latewood.images.learners import dkvb
from latewood.images.learners.dkvb import DKVB, Bottleneck
from latewood.images.nets import mlp, pixels
from latewood.images.streams.split import split
from latewood.images.streams.tasks import tasks
from latewood.parts.backbone import Backbone
from latewood.parts.features import Features

STREAM = split("digits", groups=[[0, 1], [2, 3, 4], [5, 6]])
DIGITS = load_images("digits")
RECIPE = Recipe(epochs=3, batch_size=32, lr=3.0, momentum=0.0, clip=1.0)


class Raw(Features):
    """Features as they are."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs


def made(**settings: Any) -> DKVB:
    small = {"codebooks": 12, "pairs": 32, "key_width": 6, "keys_from": "digits", "key_epochs": 2, "recipe": RECIPE}
    with seeded(1):
        return DKVB(**{"backbone": pixels(STREAM.example), **small, **settings})


def learned(count: int = 2, **settings: Any) -> DKVB:
    learner = made(**settings)
    for index in range(count):
        learner.generator.manual_seed(index)
        learner.learn(STREAM[index])
    return learner


def rows_of(learner: DKVB, data: Data) -> Tensor:
    return learner.bottleneck.rows(learner.bottleneck.heads(learner.encoder(data)))


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# what is trained


def test_only_fetched_values_get_a_gradient_and_keys_projection_and_encoder_none() -> None:
    with seeded(0):
        learner = learned(1, backbone=mlp(STREAM.example, width=16))
    before = state(learner.bottleneck) | state(learner.backbone)
    fetched = rows_of(learner, STREAM[0].train[:20])
    learner.zero_grad()
    assert [name for name, p in learner.named_parameters() if p.requires_grad] == ["bottleneck.values"]
    learner.loss(Data(row=fetched, column=torch.zeros(20, dtype=torch.int64))).backward()
    gradient = learner.bottleneck.values.grad
    assert gradient is not None
    touched = torch.zeros(len(learner.bottleneck.values), dtype=torch.bool)
    touched[fetched.flatten()] = True
    assert not gradient.to_dense()[~touched].any() and bool(gradient.to_dense()[touched].any(1).all())
    learner.learn(STREAM[1])
    after = state(learner.bottleneck) | state(learner.backbone)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"values", "counts"}


def test_a_step_is_that_of_a_dense_sgd_with_clipping() -> None:
    recipe = Recipe(epochs=1, batch_size=1000, lr=0.5, momentum=0.0, clip=1e-3)
    learner = learned(1)
    learner.recipe = recipe
    learner.bottleneck.grow(6)
    rows = rows_of(learner, STREAM[1].train)
    values = learner.bottleneck.values.detach().clone().requires_grad_()
    columns = STREAM[1].train.tensor("label")
    F.cross_entropy(values[rows].mean(1), columns, label_smoothing=0.1).backward()
    nn.utils.clip_grad_norm_([values], 1e-3)
    assert values.grad is not None
    wanted = values.detach() - 0.5 * values.grad
    learner.learn(STREAM[1])
    torch.testing.assert_close(learner.bottleneck.values.detach(), wanted)
    assert learner.recipe == recipe


def test_what_is_learned_far_away_leaves_an_answer_bit_identical() -> None:
    """Two clouds that share no key: one is learned, then the other for long."""
    draw = torch.Generator().manual_seed(0)
    near, far = (torch.randn(40, 8, generator=draw) + shift for shift in (0.0, 50.0))
    learner = made(backbone=Raw(8), codebooks=4, key_width=None, keys_from="arrival", outputs=4)
    learner.initialise_keys(Data(features=torch.cat([near, far])))
    learner.learn(Experience(0, Data(features=near, label=torch.arange(40) % 2)))
    before = learner.scores(Data(features=near))
    learner.learn(Experience(1, Data(features=far, label=torch.arange(40) % 2 + 2)))
    after = learner.scores(Data(features=near))
    assert torch.equal(after[:, :2], before)
    assert bool((learner.predict(Data(features=near)) < 2).all())


def test_a_changed_value_changes_only_the_inputs_that_fetch_it() -> None:
    learner = learned(2)
    data = STREAM.probes[0].data
    before = learner.scores(data)
    fetched = learner.bottleneck.rows(learner.bottleneck.heads(learner.encoder(data)), learner.bottleneck.counts > 0)
    row = int(fetched[0, 3])
    with torch.no_grad():
        learner.bottleneck.values[row] += 1
    changed = (learner.scores(data) != before).any(1)
    assert torch.equal(changed, (fetched == row).any(1)) and bool(changed.any()) and not changed.all()


def test_with_keys_at_the_training_points_it_is_a_table() -> None:
    points = torch.rand(30, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(30) % 3
    recipe = Recipe(epochs=40, batch_size=5, lr=3.0, momentum=0.0)
    learner = made(backbone=Raw(4), codebooks=1, pairs=30, key_width=None, recipe=recipe)
    learner.bottleneck.place_keys(points[None].clone())
    for index, label in enumerate((2, 0, 1)):
        own = labels == label
        learner.learn(Experience(index, Data(features=points[own], label=labels[own])))
    assert torch.equal(learner.predict(Data(features=points)), labels)


# keys


def test_keys_are_placed_without_labels_or_values_and_the_same_by_the_same_seed() -> None:
    states = []
    for data, seed in ((DIGITS.train, 0), (DIGITS.train.select("image"), 0), (DIGITS.train, 1)):
        learner = made()
        learner.generator.manual_seed(seed)
        learner.initialise_keys(data)
        assert learner.bottleneck.values.numel() == 0 and not learner.bottleneck.counts.any()
        states.append(learner.bottleneck.keys)
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_keys_are_placed_by_the_first_arrival_or_a_data_set_and_then_stay() -> None:
    for name in ("arrival", "digits"):
        learner, by_hand = made(keys_from=name), made()
        for each in (learner, by_hand):
            each.generator.manual_seed(0)
        by_hand.initialise_keys(STREAM[0].train if name == "arrival" else DIGITS.train)
        learner.learn(STREAM[0])
        assert torch.equal(learner.bottleneck.keys, by_hand.bottleneck.keys)
        learner.learn(STREAM[1])
        assert torch.equal(learner.bottleneck.keys, by_hand.bottleneck.keys)
    with pytest.raises(ConfigurationError, match="before the first arrival"):
        learner.initialise_keys(DIGITS.train)


def test_images_of_another_size_that_place_the_keys_are_resized() -> None:
    large = Data(image=torch.zeros(1, 1, 16, 16, dtype=torch.uint8))
    learner = made(backbone=pixels(large))
    assert learner._images("digits")["image"].shape == (len(DIGITS.train), 1, 16, 16)


def test_directions_have_length_one_over_the_features() -> None:
    projection = Bottleneck(20, 3, 4, 5).projection
    torch.testing.assert_close(projection.norm(dim=0), torch.ones(15))


def test_without_a_projection_each_codebook_sees_its_slice() -> None:
    bottleneck = Bottleneck(6, 3, 4, None)
    assert bottleneck.heads(torch.arange(6.0)[None]).tolist() == [[[0, 1], [2, 3], [4, 5]]]


# prediction


def test_keys_that_training_never_fetched_are_passed_over_and_scoring_counts_nothing() -> None:
    learner = learned(2)
    counts = learner.bottleneck.counts.clone()
    assert int(counts.sum()) == 12 * 3 * (len(STREAM[0].train) + len(STREAM[1].train))
    assert bool((counts == 0).any())
    everything = DIGITS.test
    seen: list[Tensor] = []
    plain = Bottleneck.forward

    def spied(self: Bottleneck, rows: Tensor) -> Tensor:
        seen.append(rows)
        return plain(self, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bottleneck, "forward", spied)
        learner.predict(everything)
    assert bool((counts.flatten()[seen[0]] > 0).all())
    assert not torch.equal(seen[0], rows_of(learner, everything))
    assert torch.equal(learner.bottleneck.counts, counts)


def test_the_order_of_codebooks_changes_nothing_and_empty_values_answer_zero() -> None:
    learner, other = learned(2), learned(2)
    before = learner.scores(DIGITS.test)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    mine, its = learner.bottleneck, other.bottleneck
    its.projection = mine.projection.view(64, 12, 6)[:, order].flatten(1)
    its.keys, its.counts = mine.keys[order], mine.counts[order]
    its.values.data = mine.values.data.view(12, 32, -1)[order].flatten(0, 1)
    torch.testing.assert_close(other.scores(DIGITS.test), before)
    its.values.data.zero_()
    assert not other.scores(DIGITS.test).any()


def test_a_new_class_begins_as_the_spare_column_and_old_columns_stay() -> None:
    learner = learned(1)
    before, values = learner.scores(DIGITS.test), learner.bottleneck.values.detach().clone()
    assert values.shape[1] == 3 and bool((values[:, 2] < 0).any())
    learner.classes.expose([2, 3, 4])
    learner.bottleneck.grow(6)
    assert torch.equal(learner.scores(DIGITS.test)[:, :2], before)
    assert torch.equal(learner.bottleneck.values[:, :3], values)
    assert torch.equal(learner.bottleneck.values[:, 3:], values[:, 2:].expand(-1, 3))


def test_a_known_number_of_classes_gives_that_many_columns_all_of_which_the_loss_sees() -> None:
    sizes = []
    learner = made(outputs=7)
    for index in range(3):
        learner.learn(STREAM[index])
        sizes.append(tuple(learner.bottleneck.values.shape))
        assert learner.scores(DIGITS.test).shape[1] == len(learner.classes)
        assert set(learner.predict(DIGITS.test).tolist()) <= set(learner.classes.labels.tolist())
    assert set(sizes) == {(12 * 32, 7)}
    learner = learned(1, outputs=7)
    spare = learner.bottleneck.values[:, 2:]
    assert bool((spare < 0).any()) and torch.equal(spare, spare[:, :1].expand(-1, 5))


def test_a_revealed_task_is_respected() -> None:
    stream, learner = tasks("digits", steps=5), made()
    for index in range(2):
        learner.learn(stream[index])
        assert set(learner.predict(stream.probes[index].data).tolist()) <= set(stream[index].classes)


# the whole


def test_a_stream_ends_near_where_shuffled_training_ends() -> None:
    last = []
    for steps in (5, 1):
        stream = split("digits", steps=steps)
        learner = made(codebooks=32, pairs=64, recipe=Recipe(epochs=20, batch_size=32, lr=5.0, momentum=0.0, clip=1.0))
        last.append(run(learner, stream, device="cpu").last)
    assert last[0] > 0.85 and abs(last[0] - last[1]) < 0.06


def test_a_saved_learner_goes_on_where_it_was() -> None:
    first, second = learned(2), made()
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.predict(DIGITS.test), second.predict(DIGITS.test))
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


class Broken(Raw):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * torch.nan


def test_bad_input_gets_a_sentence_and_leaves_everything_as_it_was() -> None:
    learner = made(backbone=Broken(8), codebooks=4, key_width=None, keys_from="arrival")
    before = state(learner)
    with pytest.raises(DataError, match="NaN or infinity"):
        learner.learn(Experience(0, Data(features=torch.ones(4, 8), label=torch.arange(4))))
    nowhere = made(keys_from="nowhere")
    with pytest.raises(ConfigurationError):
        nowhere.learn(STREAM[0])
    assert equal(state(learner), before) and not len(nowhere.classes) and not nowhere.bottleneck.ready


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"codebooks": 0}, "codebooks must be at least 1"),
        ({"key_decay": 1.0}, "key_decay must lie between 0 and below 1"),
        ({"key_width": 0}, "key_width must be at least 1"),
        ({"key_width": None}, "64 features can't be cut into 12"),
        ({"recipe": Recipe(lr=1.0)}, "plain SGD"),
        ({"recipe": Recipe(optimizer="adam", momentum=0.0)}, "plain SGD"),
        ({"recipe": Recipe(momentum=0.0, weight_decay=0.1)}, "plain SGD"),
    ],
)
def test_settings_that_make_no_sense_get_a_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        made(**settings)


def test_presets_are_of_plain_sgd() -> None:
    net: Backbone = pixels(STREAM.example)
    for preset in DKVB.presets.values():
        recipe = Recipe(**preset.settings["recipe"])
        assert DKVB(net, recipe=recipe, pairs=2).recipe.clip == dkvb._RECIPE.clip
