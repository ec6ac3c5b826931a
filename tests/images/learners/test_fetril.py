"""The invariants of FeTrIL (paper 25)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from latewood import Data, Experience, Recipe, run
from latewood.core import checkpoint
from latewood.core.checkpoint import tensors_of
from latewood.core.errors import ConfigurationError
from latewood.core.seeding import seeded
from latewood.images.learners import fetril
from latewood.images.learners.fetril import FeTrIL, sources, translated
from latewood.images.nets import mlp, pixels, resnet32
from latewood.images.streams.split import split
from latewood.parts.backbone import Backbone

STREAM = split("digits", base=5, increment=1)
TEST = STREAM.probes[0].data
EVERYTHING = Data(image=torch.cat([e.train["image"] for e in STREAM]), label=torch.cat([e.train["label"] for e in STREAM]))
RECIPE = Recipe(epochs=3, batch_size=64, lr=0.1)
each_classifier = pytest.mark.parametrize("classifier", ["svm", "fc"])


def body(net: str = "mlp", seed: int = 0) -> Backbone:
    with seeded("body", seed):
        return mlp(STREAM.example, width=24) if net == "mlp" else resnet32(STREAM.example, width=4)


def made(net: str = "mlp", seed: int = 0, **more: Any) -> FeTrIL:
    return FeTrIL(body(net, seed), **{"recipe": RECIPE, "passes": 5, **more})


def learned(learner: FeTrIL, *arrivals: int) -> FeTrIL:
    for index in arrivals:
        learner.learn(STREAM[index])
    return learner


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def arrival(classes: int, seed: int, old: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features of new classes of unequal size, behind ``old`` classes of which only the mean is left."""
    chance = torch.Generator().manual_seed(seed)
    columns = old + torch.cat([torch.arange(classes), torch.randint(classes, (40,), generator=chance)])
    features = torch.randn(len(columns), 3, generator=chance, dtype=torch.float64) + columns[:, None]
    means = torch.randn(old + classes, 3, generator=chance, dtype=torch.float64)
    for column in range(old, old + classes):
        means[column] = features[columns == column].mean(0)
    return features, columns, means, torch.ones(old + classes, dtype=torch.bool)


# Translation


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), classes=st.integers(1, 5), similarity=st.sampled_from(["cosine", "euclidean"]))
def test_moved_features_have_the_old_mean_and_the_scatter_of_their_source(seed: int, classes: int, similarity: Any) -> None:
    features, columns, means, known = arrival(classes, seed)
    rows, targets = translated(features, columns, means, known, similarity)
    assert torch.equal(rows[: len(features)], features) and torch.equal(targets[: len(features)], columns)
    for old in range(4):
        nearest = 4 + int(sources(means[old : old + 1], means[4:], similarity))
        moved, own = rows[targets == old], features[columns == nearest]
        assert len(moved) == len(own) > 0
        torch.testing.assert_close(moved.mean(0), means[old], rtol=0, atol=1e-6)
        torch.testing.assert_close(moved - means[old], own - own.mean(0), rtol=0, atol=1e-6)
    assert len(rows) == len(targets) == len(features) + sum(int((targets == old).sum()) for old in range(4))


def test_a_source_is_the_most_similar_new_mean() -> None:
    old, new = torch.tensor([[1.0, 1.0]]), torch.tensor([[9.0, 9.0], [2.0, 0.0]])
    assert sources(old, new).tolist() == [0]
    assert sources(old, new, "euclidean").tolist() == [1]


def test_moved_onto_its_own_mean_a_class_stays_what_it_is() -> None:
    features, columns, means, known = arrival(1, 0)
    means[0] = means[4]
    rows, targets = translated(features, columns, means, known)
    torch.testing.assert_close(rows[targets == 0], features, rtol=0, atol=1e-12)


def test_a_class_without_a_mean_is_left_out() -> None:
    features, columns, means, known = arrival(2, 0)
    known[1] = False
    assert sorted(translated(features, columns, means, known)[1].unique().tolist()) == [0, 2, 3, 4, 5]


# What is kept


def test_a_mean_and_nothing_of_any_sample_is_kept_of_a_class() -> None:
    learner = learned(made(), 0, 1, 2)
    sizes = {name: value.numel() for name, value in tensors_of(learner).items() if not name.startswith("encoder.")}
    assert sizes == {
        "classes.labels": 7, "classes.task_ids": 0, "classes.task_classes": 0,
        "means.sums": 7 * 24, "means.counts": 7, "head.weight": 7 * 24, "head.bias": 7,
    }  # fmt: skip


def test_means_never_drift() -> None:
    learner = learned(made(), 0)
    before = learner.means.means().clone()
    learned(learner, 1, 2, 3, 4, 5)
    assert torch.equal(learner.means.means()[:5], before)


@pytest.mark.parametrize("net", ["mlp", "resnet"])
def test_the_first_arrival_trains_the_backbone_and_no_later_one_does(net: str) -> None:
    learner = made(net)
    before = state(learner.backbone)
    learned(learner, 0)
    after = state(learner.backbone)
    assert not same(before, after)
    learner.train()
    learned(learner, 1, 2)
    assert same(after, state(learner.backbone))
    assert not any(value.requires_grad for value in learner.parameters())


def test_a_backbone_that_is_kept_stays_as_it_came() -> None:
    learner = made("resnet", first="keep")
    before = state(learner.backbone)
    learned(learner, 0, 1)
    assert same(before, state(learner.backbone))


# What is trained


def test_rows_have_length_one_and_none_is_an_old_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    fit = FeTrIL._fit_machines

    def watched(self: FeTrIL, rows: Tensor, columns: Tensor) -> None:
        seen.append((rows, columns))
        fit(self, rows, columns)

    monkeypatch.setattr(FeTrIL, "_fit_machines", watched)
    learner = learned(made(), 0, 1, 2)
    old = F.normalize(learner.encoder(STREAM[0].train).double())
    for rows, _ in seen:
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows), dtype=rows.dtype), rtol=0, atol=1e-9)
    rows, columns = seen[-1]
    assert columns.unique().tolist() == list(range(7))
    assert columns.bincount().unique().tolist() == [len(STREAM[2].train)]
    assert float(torch.cdist(rows, old).min()) > 1e-6
    assert len(seen[0][0]) == len(STREAM[0].train)


def test_the_machines_are_those_of_scikit_learn() -> None:
    from sklearn.svm import LinearSVC

    learner = learned(made(), 0)
    rows = F.normalize(learner.encoder(STREAM[0].train).double())
    svm = LinearSVC(dual=False).fit(rows.numpy(), STREAM[0].train["label"].numpy())
    features = F.normalize(learner.encoder(EVERYTHING).double())
    assert (learner.predict(EVERYTHING).numpy() == svm.predict(features.numpy())).mean() > 0.999


def test_the_order_of_samples_changes_next_to_nothing() -> None:
    first, second = made(first="keep"), made(first="keep")
    for index in range(3):
        first.learn(STREAM[index])
        rows = torch.randperm(len(STREAM[index].train), generator=torch.Generator().manual_seed(index))
        second.learn(Experience(index, STREAM[index].train[rows], STREAM[index].classes))
    torch.testing.assert_close(first.means.means(), second.means.means(), rtol=0, atol=1e-9)
    assert (first.predict(EVERYTHING) == second.predict(EVERYTHING)).double().mean() > 0.99


def test_one_and_two_classes_are_enough() -> None:
    stream = split("digits", increment=1, base=1)
    learner = made(first="keep")
    learner.learn(stream[0])
    assert learner.predict(TEST).unique().tolist() == list(stream[0].classes)
    learner.learn(stream[1])
    both = torch.isin(EVERYTHING["label"], learner.classes.labels)
    assert (learner.predict(EVERYTHING[both]) == EVERYTHING["label"][both]).double().mean() > 0.8


def test_the_layer_goes_on_from_its_old_rows() -> None:
    learner = learned(made(classifier="fc", rate=1e-9, passes=1), 0)
    before = learner.head.weight.clone()
    learned(learner, 1)
    assert learner.head.weight.shape == (6, 24)
    torch.testing.assert_close(learner.head.weight[:5], before, rtol=0, atol=1e-5)


@each_classifier
def test_old_classes_are_still_known_at_the_end(classifier: str) -> None:
    learner = made(classifier=classifier, recipe=Recipe(epochs=20, batch_size=64, lr=0.1), passes=50)
    record = run(learner, STREAM, device="cpu")
    assert record.last > 0.7
    assert record.matrix("accuracy")[-1, 0] > 0.75


def test_a_class_that_returns_has_its_own_samples_again() -> None:
    learner = learned(made(first="keep"), 0, 1)
    learner.learn(STREAM[0])
    own = learner.encoder(STREAM[0].train).double()
    for column, label in enumerate(STREAM[0].classes):
        wanted = own[STREAM[0].train["label"] == label].mean(0)
        torch.testing.assert_close(learner.means.means()[column], wanted, rtol=0, atol=1e-9)


@each_classifier
def test_only_classes_with_samples_are_predicted(classifier: str) -> None:
    learner = made(classifier=classifier, first="keep")
    learner.learn(Experience(0, STREAM[0].train, tuple(range(10))))
    assert set(learner.predict(EVERYTHING).tolist()) <= set(STREAM[0].classes)
    learned(learner, 1)
    assert set(learner.predict(EVERYTHING).tolist()) <= {*STREAM[0].classes, *STREAM[1].classes}


# Its state and its runs


@each_classifier
def test_a_saved_learner_goes_on_where_it_was(classifier: str, tmp_path: Path) -> None:
    first, second = learned(made(classifier=classifier), 0, 1), made(classifier=classifier, seed=7)
    checkpoint.save(tmp_path / "state", tensors_of(first), {})
    second.load_state_dict(checkpoint.load(tmp_path / "state")[0])
    for learner in (first, second):
        learner.generator.manual_seed(5)
        learned(learner, 2)
    assert same(state(first), state(second))
    assert torch.equal(first.scores(EVERYTHING), second.scores(EVERYTHING))


@each_classifier
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(classifier: str) -> None:
    stream, states = split("digits", base=5, increment=5), []
    for seed in (0, 0, 1):
        learner = made(classifier=classifier)
        record = run(learner, stream, seed=seed, device="cpu")
        states.append(state(learner))
    assert same(states[0], states[1]) and not same(states[0], states[2])
    assert record.rows[0].cost.flops > 2 * record.rows[1].cost.flops > 0


def test_what_makes_no_sense_is_told() -> None:
    for name in ("C", "tolerance", "passes", "rate"):
        with pytest.raises(ConfigurationError, match=f"{name} must be above 0"):
            made(**{name: 0})
    with pytest.raises(ConfigurationError, match="has no weights that could be trained"):
        FeTrIL(pixels(STREAM.example))
    assert fetril.FeTrIL(pixels(STREAM.example), "keep").can_forget is False
