"""A model directory learns, predicts, remembers, forgets, and never makes worse without saying so."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from latewood.core.errors import CheckpointError, ConfigurationError, DataError
from latewood.images.datasets import ImageData
from latewood.model import intake
from latewood.model.embedder import Embedder
from latewood.model.model import Model

MakeModel = Callable[..., Model]
Rows = Callable[..., dict[str, Any]]
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
Columns = dict[str, Any]


def joined(*parts: Columns) -> Columns:
    labels = [label for part in parts for label in part["label"]]
    return {"image": torch.cat([part["image"] for part in parts]), "label": labels}


def picked(rows: Columns, places: Sequence[int]) -> Columns:
    return {"image": rows["image"][list(places)], "label": [rows["label"][i] for i in places]}


def renamed(rows: Columns, names: Mapping[str, str]) -> Columns:
    return {"image": rows["image"], "label": [names.get(label, label) for label in rows["label"]]}


def scores(model: Model, images: Tensor) -> Tensor:
    """What the model compares, with classes in the order of their names."""
    state = model._state
    found = state.learner.scores(model.embedder.data(model.embedder(images)))
    names = [state.names[number] for number in state.learner.classes.labels.tolist()]
    return found[:, sorted(range(len(names)), key=names.__getitem__)]


def same(one: Model, other: Model, images: Tensor) -> bool:
    assert sorted(one.classes) == sorted(other.classes)
    return torch.allclose(scores(one, images), scores(other, images), rtol=0, atol=1e-8)


def accuracy(model: Model, digits: ImageData, classes: Sequence[int]) -> float:
    part = digits.subset(list(classes)).test
    words = WORDS
    found = model.predict(part["image"])
    return sum(
        guesses[0].label == words[classes[int(label)]] for guesses, label in zip(found, part["label"], strict=True)
    ) / len(found)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# Learning


def test_arrivals_in_any_order_and_grouping_equal_learning_everything_at_once(make: MakeModel, rows: Rows) -> None:
    everything = rows(range(6))
    once = make("once")
    once.learn(everything, source="all")
    order = torch.randperm(len(everything["label"]), generator=torch.Generator().manual_seed(1)).tolist()
    by_class = sorted(order, key=lambda i: everything["label"][i])
    for name, places in (("mixed", order), ("sorted", by_class)):
        model = make(name)
        for part in range(4):
            model.learn(
                picked(everything, places[part::4] if name == "mixed" else places[part * 215 :][:215]), source=str(part)
            )
        model.learn(picked(everything, places[4 * 215 :] or places[:1]), source="rest")
        assert same(model, once, everything["image"])
        assert {(k.name, k.samples, k.canaries) for k in model.known} == {(k.name, k.samples, k.canaries) for k in once.known}


def test_it_recognises_unseen_digits_after_five_arrivals(make: MakeModel, rows: Rows, digits: ImageData) -> None:
    model = make(settings={"expansion": 1000})
    for first in range(0, 10, 2):
        outcome = model.learn(rows([first, first + 1]), source=f"arrival {first}")
        assert not outcome.held
    assert accuracy(model, digits, range(10)) > 0.97


def test_the_outcome_and_the_log_say_what_was_learned(make: MakeModel, rows: Rows) -> None:
    model = make()
    outcome = model.learn(rows([0, 1]), source="monday")
    assert outcome.new_classes == ("zero", "one") and outcome.added == len(rows([0, 1])["label"])
    assert outcome.version.number == 2 and outcome.version.about == "monday" and outcome.version.parent == 1
    first, second = model.log()
    assert (first.event, second.event) == ("init", "learn")
    assert second.content["added"] == second.content["samples"] == outcome.added
    for known in model.known:
        assert known.canaries > 0 and known.score is not None and known.score > 0.5


def test_what_was_learned_from_this_source_before_makes_no_new_version(make: MakeModel, rows: Rows) -> None:
    model = make()
    model.learn(rows([0, 1]), source="monday")
    outcome = model.learn(rows([0, 1]), source="monday")
    assert outcome.version.number == model.version.number == 2
    assert outcome.added == 0 and outcome.duplicates == len(rows([0, 1])["label"])


def test_samples_that_come_again_elsewhere_count_once(make: MakeModel, rows: Rows) -> None:
    once, twice = make("once"), make("twice")
    for model in (once, twice):
        model.learn(rows([0, 1, 2]), source="monday")
    outcome = twice.learn(rows([0, 1, 2], step=2), source="tuesday")
    assert outcome.duplicates == len(rows([0, 1, 2], step=2)["label"]) and outcome.added == 0
    assert same(once, twice, rows([0, 1, 2])["image"])


def test_a_new_label_for_a_known_sample_replaces_the_old_one_as_if_it_had_never_been(make: MakeModel, rows: Rows) -> None:
    right = rows([0, 1, 2])
    wrong = renamed(picked(right, range(30)), {"zero": "one", "one": "zero"})
    corrected, never = make("corrected"), make("never")
    corrected.learn(joined(wrong, picked(right, range(30, len(right["label"])))), source="monday")
    outcome = corrected.learn(picked(right, range(30)), source="correction")
    never.learn(right, source="monday")
    assert outcome.relabelled > 0 and outcome.relabelled + outcome.duplicates == 30
    assert same(corrected, never, right["image"])


def test_a_few_corrections_change_the_prediction_and_can_be_taken_back(make: MakeModel, rows: Rows) -> None:
    model = make()
    model.learn(rows([0, 1]), source="monday")
    before = model.version.number
    odd = rows([5], most=8)
    for place in range(8):
        model.learn(picked(odd, [place]), source=f"correction {place}")
    assert [guesses[0].label for guesses in model.predict(odd["image"])].count("five") >= 6
    model.rollback(before)
    assert "five" not in model.classes


def test_a_class_alone_and_a_class_of_one_sample_are_learned(make: MakeModel, rows: Rows) -> None:
    model = make()
    model.learn(rows([3]), source="only threes")
    assert model.predict(rows([3])["image"][:1]) == [[("three", 1.0)]]
    outcome = model.learn(picked(rows([4]), [0]), source="one four")
    assert outcome.new_classes == ("four",)
    assert next(known for known in model.known if known.name == "four").samples == 1
    assert model.predict(rows([4])["image"][:1], top=2)[0][1].confidence > 0


def test_labels_that_are_numbers_in_one_arrival_and_words_in_the_next_are_refused(make: MakeModel, rows: Rows) -> None:
    model = make()
    model.learn(rows([0, 1]), source="monday")
    images = rows([2])["image"]
    with pytest.raises(DataError, match=r"tuesday are numbers \(2\), but this model's classes are words \(zero, one\)"):
        model.learn({"image": images, "label": [2] * len(images)}, source="tuesday")
    assert model.version.number == 2


def test_one_content_under_two_labels_in_an_arrival_is_told_or_skipped(make: MakeModel, rows: Rows) -> None:
    few = picked(rows([0, 1]), range(20))
    doubtful = joined(few, renamed(picked(few, [3]), {"zero": "one", "one": "zero"}))
    model = make()
    with pytest.raises(DataError, match=r"1 of the samples .* same content as .*--skip-bad"):
        model.learn(doubtful, source="monday")
    assert model.version.number == 1
    outcome = model.learn(doubtful, source="monday", skip_bad=True)
    assert len(outcome.skipped) == 1 and outcome.added == 20


def test_an_interrupted_learning_goes_on_from_what_is_embedded(
    make: MakeModel, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = rows(range(6))
    straight, broken = make("straight"), make("broken")
    straight.learn(everything, source="all")
    embed, calls = Embedder.__call__, []

    def counting(self: Embedder, contents: Any) -> Tensor:
        calls.append(len(contents))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return embed(self, contents)

    monkeypatch.setattr(Embedder, "__call__", counting)
    with pytest.raises(KeyboardInterrupt):
        broken.learn(everything, source="all")
    assert broken.version.number == 1 and len(calls) == 3
    broken.learn(everything, source="all")
    total = -(-len(everything["label"]) // intake.CHUNK)
    assert len(calls) == 3 + total - 2
    assert all(
        torch.equal(value, straight._state.learner.state_dict()[name])
        for name, value in broken._state.learner.state_dict().items()
    )
    assert not any(broken._store.staging.iterdir())


def test_a_damaged_piece_of_an_interrupted_learning_is_embedded_again(make: MakeModel, rows: Rows) -> None:
    everything = rows(range(6))
    model = make()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Model, "_learned", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            model.learn(everything, source="all")
    piece = next(iter(model._store.staging.glob("*/*/state.safetensors")))
    raw = bytearray(piece.read_bytes())
    raw[-5] ^= 1
    piece.write_bytes(raw)
    model.learn(everything, source="all")
    straight = make("straight")
    straight.learn(everything, source="all")
    assert same(model, straight, everything["image"])


# The gate


def spoiled(rows: Rows) -> Columns:
    """Fours and sixes under each other's names, several times as many as there were right ones."""
    wrong = rows([4, 6], start=1, step=2)
    return renamed(wrong, {"four": "six", "six": "four"})


@pytest.fixture
def guarded(make: MakeModel, rows: Rows) -> Model:
    model = make(canaries=0.3)
    model.learn(rows([4, 6], step=8), source="monday")
    return model


def test_an_update_that_costs_a_class_too_much_is_held_back(guarded: Model, rows: Rows) -> None:
    before = guarded.predict(rows([4])["image"][:20])
    outcome = guarded.learn(spoiled(rows), source="spoiled")
    assert outcome.held and outcome.lost[0].label in ("four", "six")
    assert outcome.lost[0].before - outcome.lost[0].after > 0.2
    assert guarded.version.number == 2 and guarded.candidate == outcome.version
    assert guarded.predict(rows([4])["image"][:20]) == before
    assert Model.open(guarded.folder).version.number == 2


def test_nothing_else_changes_a_model_until_the_held_update_is_decided(guarded: Model, rows: Rows) -> None:
    guarded.learn(spoiled(rows), source="spoiled")
    for change in (
        lambda: guarded.learn(rows([1]), source="tuesday"),
        lambda: guarded.rollback(1),
        lambda: guarded.forget(name="four"),
    ):
        with pytest.raises(ConfigurationError, match=r"holds back version 3 \(spoiled\); accept or reject it"):
            change()


def test_a_held_update_can_be_accepted(guarded: Model, rows: Rows) -> None:
    outcome = guarded.learn(spoiled(rows), source="spoiled")
    version = guarded.accept()
    assert guarded.candidate is None and guarded.version == version and version.event == "accept"
    assert version.content["classes"] == outcome.version.content["classes"]
    guarded.learn(rows([1]), source="tuesday")
    assert "one" in guarded.classes


def test_a_held_update_can_be_rejected_and_leaves_nothing(guarded: Model, rows: Rows) -> None:
    before = files(guarded.folder)
    guarded.learn(spoiled(rows), source="spoiled")
    guarded.reject()
    after = files(guarded.folder)
    assert {name for name in after if "blobs" in name} == {name for name in before if "blobs" in name}
    assert guarded.candidate is None and guarded.version.number == 2
    with pytest.raises(ConfigurationError, match="holds no update back"):
        guarded.accept()


def test_canaries_are_features_and_no_images(guarded: Model, rows: Rows) -> None:
    raw = {bytes(image.flatten().tolist()) for image in rows([4, 6], step=8)["image"]}
    assert raw
    assert not [name for name, content in files(guarded.folder).items() if any(image in content for image in raw)]


# Versions


def test_rolling_back_gives_the_same_predictions_as_a_new_version_and_stores_no_weights_twice(
    make: MakeModel, rows: Rows
) -> None:
    model = make()
    model.learn(rows([0, 1]), source="monday")
    before = scores(model, rows([0, 1])["image"])
    model.learn(rows([2, 3]), source="tuesday")
    blobs = {name for name in files(model.folder) if name.startswith("blobs")}
    version = model.rollback(2)
    assert version.number == 4 and model.classes == ("zero", "one")
    assert torch.equal(scores(model, rows([0, 1])["image"]), before)
    assert {name for name in files(model.folder) if name.startswith("blobs")} == blobs


def test_after_a_rollback_learning_goes_on_from_there(make: MakeModel, rows: Rows) -> None:
    model, never = make(), make("never")
    model.learn(rows([0, 1]), source="monday")
    model.learn(rows([2, 3]), source="mistake")
    model.rollback(2)
    model.learn(rows([4]), source="wednesday")
    never.learn(rows([0, 1]), source="monday")
    never.learn(rows([4]), source="wednesday")
    assert same(model, never, rows([0, 1, 4])["image"])
    assert [source.name for source in model._state.samples.sources] == ["monday", "wednesday"]
    assert len({source.number for source in model._state.samples.sources}) == 2


def test_old_versions_are_in_the_log_but_can_not_be_rolled_back_to(make: MakeModel, rows: Rows) -> None:
    model = make(keep=2)
    for day in range(5):
        model.learn(rows([day]), source=f"day {day}")
    assert len(model.log()) == 6
    assert [model.available(version) for version in model.log()] == [False] * 4 + [True] * 2
    with pytest.raises(CheckpointError, match="too old"):
        model.rollback(2)
    model.rollback(5)


def test_another_process_sees_a_new_version_on_refresh(make: MakeModel, rows: Rows) -> None:
    writer = make()
    reader = Model.open(writer.folder)
    writer.learn(rows([0, 1]), source="monday")
    assert reader.classes == () and reader.refresh() and reader.classes == ("zero", "one")
    assert not reader.refresh()
    reader.learn(rows([2]), source="tuesday")
    writer.learn(rows([3]), source="wednesday")
    assert writer.classes == ("zero", "one", "two", "three")


def test_a_difference_names_classes_scores_and_flipped_canaries(guarded: Model, rows: Rows) -> None:
    guarded.learn(rows([1, 2]), source="tuesday")
    guarded.learn(spoiled(rows), source="spoiled")
    guarded.accept() if guarded.candidate else None
    last = guarded.version.number
    first = guarded.diff(2, 3)
    assert first.gained == ("one", "two") and first.gone == ()
    found = guarded.diff(3, last)
    assert {loss.label for loss in found.scores} == {"four", "six", "one", "two"}
    assert any(loss.after != loss.before for loss in found.scores)
    assert any(flip.label in ("four", "six") and flip.before != flip.after for flip in found.flips)
    back = guarded.diff(last, 3)
    assert sum(flip.count for flip in back.flips) == sum(flip.count for flip in found.flips)
    assert guarded.diff(3, 2).gone == ("one", "two")


def test_a_class_that_falls_is_listed_as_lost_in_the_log(guarded: Model, rows: Rows) -> None:
    outcome = guarded.learn(spoiled(rows), source="spoiled")
    lost = guarded.log()[-1].content["lost"]
    assert [loss["label"] for loss in lost] == [loss.label for loss in outcome.lost]


# Forgetting


@pytest.mark.parametrize("method", ["g-acil", "nmc", "slda"])
def test_forgetting_a_class_equals_never_having_seen_it(make: MakeModel, rows: Rows, method: str) -> None:
    options: dict[str, Any] = {"method": method, "most_canaries": 3} if False else {"method": method}
    model, never = make("model", **options), make("never", **options)
    for source, arrival in (("monday", rows([0, 1, 2], step=2)), ("tuesday", rows([1, 2, 3], start=1, step=2))):
        model.learn(arrival, source=source)
        never.learn(picked(arrival, [i for i, label in enumerate(arrival["label"]) if label != "one"]), source=source)
    version = model.forget(name="one")
    assert version.event == "forget" and "one" not in model.classes
    assert {(k.name, k.samples, k.canaries) for k in model.known} == {(k.name, k.samples, k.canaries) for k in never.known}
    assert _same_rows(model, never) and same(model, never, rows([0, 1, 2, 3])["image"])


def _same_rows(one: Model, other: Model) -> bool:
    def trained(model: Model) -> set[bytes]:
        samples = model._state.samples
        return {bytes(key) for key in samples.hashes[samples.roles.train].numpy()}

    return trained(one) == trained(other)


@pytest.mark.parametrize("method", ["g-acil", "nmc", "slda"])
def test_forgetting_a_source_equals_never_having_learned_it_even_where_sources_overlap(
    make: MakeModel, rows: Rows, method: str
) -> None:
    model, never = make("model", method=method), make("never", method=method)
    shared, own, later = rows([0, 1], step=2), rows([2], step=2), rows([3, 4], step=2)
    relabelled = renamed(picked(later, range(5)), {"three": "seven", "four": "seven"})
    for source, arrival in (("monday", joined(shared, own)), ("tuesday", joined(shared, later)), ("monday", relabelled)):
        model.learn(arrival, source=source)
    never.learn(joined(shared, later), source="tuesday")
    model.forget(source="monday")
    assert sorted(model.classes) == ["four", "one", "three", "zero"]
    assert _same_rows(model, never) and same(model, never, later["image"])


def test_canaries_that_had_made_room_are_unlearned_when_the_room_is_free_again(make: MakeModel, rows: Rows) -> None:
    """With few canaries allowed, those of the forgotten source had pushed others into training."""
    model, never = make("model", canaries=0.4, most_canaries=4), make("never", canaries=0.4, most_canaries=4)
    model.learn(rows([0, 1], step=2), source="monday")
    model.learn(rows([0, 1], start=1, step=2), source="tuesday")
    never.learn(rows([0, 1], step=2), source="monday")
    model.forget(source="tuesday")
    assert _same_rows(model, never) and same(model, never, rows([0, 1])["image"])


def test_no_byte_of_what_was_forgotten_stays_in_the_directory(make: MakeModel, rows: Rows) -> None:
    model = make()
    secret = renamed(rows([5]), {"five": "Rosalind"})
    model.learn(rows([0, 1]), source="monday")
    model.learn(secret, source="tuesday")
    model.learn(joined(rows([2]), renamed(rows([6]), {"six": "Franklin"})), source="the archive")
    features = {feature.numpy().tobytes() for feature in model.embedder(secret["image"])}
    hashes = {bytes(key) for key in model._state.samples.hashes[model._state.samples.arrivals == 1].numpy()}
    assert any(feature in content for content in files(model.folder).values() for feature in features)
    model.forget(name="Rosalind")
    for name, content in files(model.folder).items():
        assert b"Rosalind" not in content, name
        assert not any(found in content for found in features | hashes), name
    assert any(b"Franklin" in content for content in files(model.folder).values())
    model.forget(source="the archive")
    for name, content in files(model.folder).items():
        assert b"Franklin" not in content and b"the archive" not in content, name
    assert [version.event for version in model.log()] == ["init", "learn", "forget"]
    assert Model.open(model.folder).classes == ("zero", "one")


def test_versions_from_before_what_was_forgotten_arrived_can_still_be_rolled_back_to(make: MakeModel, rows: Rows) -> None:
    model = make()
    model.learn(rows([0, 1]), source="monday")
    model.learn(rows([5]), source="tuesday")
    version = model.forget(name="five")
    assert version.removes == (3,)
    model.rollback(2)
    with pytest.raises(CheckpointError, match="removed by version 4"):
        model.rollback(3)


def test_forgetting_what_was_interrupted_leaves_no_embeddings_of_it(make: MakeModel, rows: Rows) -> None:
    model = make()
    model.learn(rows([0, 1]), source="monday")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Model, "_learned", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            model.learn(rows([1, 2, 3]), source="tuesday")
    assert any(model._store.staging.iterdir())
    model.forget(name="one")
    assert not any(model._store.staging.iterdir())


def test_what_is_not_known_can_not_be_forgotten(make: MakeModel, rows: Rows) -> None:
    model = make()
    model.learn(rows([0, 1]), source="monday")
    with pytest.raises(DataError, match=r"no class 'zebra'.*did you mean 'zero'"):
        model.forget(name="zebra")
    with pytest.raises(DataError, match=r"from a source 'mondays'.*did you mean 'monday'"):
        model.forget(source="mondays")
    with pytest.raises(ConfigurationError, match="either a class"):
        model.forget()


def test_learners_that_can_not_forget_say_so(make: MakeModel, rows: Rows) -> None:
    model = make("finetune", method="finetune")
    model.learn(rows([0, 1]), source="monday")
    with pytest.raises(ConfigurationError, match="its method, finetune, can't subtract samples"):
        model.forget(name="one")
    model = make("lean", forgettable=False)
    model.learn(rows([0, 1]), source="monday")
    with pytest.raises(ConfigurationError, match="without keeping the samples' features"):
        model.forget(name="one")


def test_a_directory_that_need_not_forget_keeps_no_features_but_canaries(make: MakeModel, rows: Rows) -> None:
    model = make(forgettable=False)
    few = rows([0, 1])
    model.learn(few, source="monday")
    features = model.embedder(few["image"])
    kept = [f for f in features if any(f.numpy().tobytes() in content for content in files(model.folder).values())]
    assert len(kept) < 0.15 * len(features)


def test_what_was_forgotten_can_be_learned_again(make: MakeModel, rows: Rows) -> None:
    model, never = make(), make("never")
    for one in (model, never):
        one.learn(rows([0, 1]), source="monday")
        one.learn(rows([2]), source="tuesday")
    model.forget(name="two")
    model.learn(rows([2]), source="tuesday")
    assert same(model, never, rows([0, 1, 2])["image"])


# Other learners


@pytest.mark.parametrize("method", ["finetune", "joint", "replay", "der++", "ewc", "lwf", "icarl"])
def test_any_learner_of_the_images_wing_can_be_chosen(make: MakeModel, rows: Rows, method: str) -> None:
    model = make(method=method, settings={"lr": "0.1", "epochs": "20"}, limit=1.0)
    model.learn(rows([0, 1]), source="monday")
    model.learn(rows([2, 3]), source="tuesday")
    again = Model.open(model.folder)
    images = rows([0, 1, 2, 3])["image"]
    assert again.predict(images) == model.predict(images)
    labels = rows([2, 3])["label"]
    found = model.predict(rows([2, 3])["image"])
    assert sum(guess[0].label == label for guess, label in zip(found, labels, strict=True)) > 0.7 * len(labels)


def test_a_backbone_can_be_trained_too_and_its_versions_differ(make: MakeModel, rows: Rows) -> None:
    model = make(method="replay", backbone="mlp", train_backbone=True, settings={"lr": "0.1"})
    model.learn(rows([0, 1]), source="monday")
    before = model._state.learner.backbone.state_dict()
    model.learn(rows([2, 3]), source="tuesday")
    after = model._state.learner.backbone.state_dict()
    assert any(not torch.equal(before[name], value) for name, value in after.items())
    images = rows([0, 1, 2, 3])["image"]
    assert Model.open(model.folder).predict(images) == model.predict(images)


def test_the_same_arrivals_give_the_same_bits(make: MakeModel, rows: Rows) -> None:
    states = []
    for name in ("one", "two"):
        model = make(name, method="replay")
        for day in range(2):
            model.learn(rows([2 * day, 2 * day + 1]), source=f"day {day}")
        states.append(model._state.learner.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


# Predicting


def test_a_model_that_knows_nothing_says_so(make: MakeModel, rows: Rows) -> None:
    with pytest.raises(DataError, match="knows no class yet"):
        make().predict(rows([0])["image"][:1])


def test_the_top_guesses_are_sorted_and_no_more_than_there_are_classes(make: MakeModel, rows: Rows) -> None:
    model = make()
    model.learn(rows([0, 1, 2]), source="monday")
    for guesses in model.predict(rows([0])["image"][:5], top=10):
        confidences = [guess.confidence for guess in guesses]
        assert len(guesses) == 3 and confidences == sorted(confidences, reverse=True)
        assert sum(confidences) == pytest.approx(1)
    with pytest.raises(ConfigurationError, match="top must be at least 1"):
        model.predict(rows([0])["image"][:1], top=0)


def test_a_blank_among_the_inputs_is_told_and_not_passed_over(make: MakeModel, tmp_path: Path, rows: Rows) -> None:
    model = make()
    model.learn(rows([0, 1]), source="monday")
    (tmp_path / "blank.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"blank\.png is empty"):
        model.predict(tmp_path / "blank.png")


def test_confidence_is_about_the_share_of_right_answers(make: MakeModel, rows: Rows, digits: ImageData) -> None:
    model = make(canaries=0.2, settings={"expansion": 60})
    model.learn(rows(range(10)), source="all")
    words = WORDS
    found = model.predict(digits.test["image"])
    sure = sum(guesses[0].confidence for guesses in found) / len(found)
    right = sum(g[0].label == words[int(label)] for g, label in zip(found, digits.test["label"], strict=True)) / len(found)
    assert abs(sure - right) < 0.05


def test_predictions_go_on_while_another_thread_learns_and_each_is_of_one_version(make: MakeModel, rows: Rows) -> None:
    model = make(settings={"expansion": 300})
    model.learn(rows([0, 1]), source="monday")
    images = rows([0, 1])["image"][:10]
    allowed = [model.predict(images)]
    found, stop = [], threading.Event()

    def ask() -> None:
        while not stop.is_set():
            found.append(model.predict(images))

    thread = threading.Thread(target=ask)
    thread.start()
    for day in range(2, 6):
        model.learn(rows([day]), source=f"day {day}")
        allowed.append(model.predict(images))
    stop.set()
    thread.join()
    assert len(found) > 5 and all(guesses in allowed for guesses in found)


# Opening, exporting


def test_a_folder_that_is_no_model_or_not_empty_is_refused(make: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no model directory"):
        Model.open(tmp_path)
    make()
    with pytest.raises(CheckpointError, match="not empty"):
        make()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"method": "telepathy"}, "telepathy"),
        ({"settings": {"colour": 1}}, "has no parameter 'colour'"),
        ({"backbone": "no/such/folder/here"}, "There is no folder"),
        ({"canaries": 0.9}, "share from 0 to 0.5"),
        ({"limit": 0.0}, "above 0"),
        ({"keep": 0}, "at least 1"),
        ({"channels": 2}, "1 channel"),
        ({"size": 0}, "at least 1 pixel"),
        ({"method": "g-acil", "train_backbone": True}, "frozen"),
    ],
)
def test_settings_that_make_no_sense_are_refused_and_no_folder_is_made(
    make: MakeModel, tmp_path: Path, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        make(**options)
    assert list(tmp_path.iterdir()) == []


def test_an_exported_folder_predicts_the_same_holds_no_sample_and_learns_on(
    make: MakeModel, rows: Rows, tmp_path: Path
) -> None:
    model = make()
    few = rows([0, 1, 2])
    model.learn(few, source="monday")
    model.export_folder(tmp_path / "elsewhere")
    copy = Model.open(tmp_path / "elsewhere")
    assert copy.predict(few["image"]) == model.predict(few["image"])
    features = {feature.numpy().tobytes() for feature in model.embedder(few["image"])}
    assert not any(feature in content for content in files(copy.folder).values() for feature in features)
    copy.learn(rows([3]), source="tuesday")
    model.learn(rows([3]), source="tuesday")
    assert same(copy, model, few["image"])
    with pytest.raises(ConfigurationError, match="can't forget exactly"):
        copy.forget(name="three")


def test_the_log_is_json_that_other_programs_can_read(make: MakeModel, rows: Rows) -> None:
    model = make()
    model.learn(rows([0, 1]), source="monday")
    for version in model.log():
        json.dumps(dict(version.content), allow_nan=False)
