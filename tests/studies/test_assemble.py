"""Assembly: a name and settings become a stream, a learner or a backbone, or one sentence that says what would be right."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from latewood import Learner, Stream
from latewood.core import registry
from latewood.core.errors import ConfigurationError
from latewood.studies.assemble import make_learner, make_stream, stream_entry


@pytest.fixture(scope="module")
def digits() -> Stream:
    return make_stream("split-digits", {"steps": 2})


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    """The backbone's weights, which are there before anything is learned."""
    backbone = learner.backbone
    assert isinstance(backbone, nn.Module)
    return backbone.state_dict()


def states() -> tuple[bytes, str, object]:
    """Where the global generators of torch, numpy and Python are."""
    return torch.random.get_rng_state().numpy().tobytes(), repr(np.random.get_state()), random.getstate()


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


# Streams


def test_a_streams_name_is_its_scenario_and_its_data_set() -> None:
    stream = make_stream("split-digits", {"steps": 2})
    assert (stream.name, len(stream), stream.wing) == ("split-digits", 2, "images")


@pytest.mark.parametrize(
    ("name", "scenario", "dataset"),
    [
        ("split-digits", "split", "digits"),
        ("si-blurry-digits", "si-blurry", "digits"),
        ("split-tiny-imagenet-32", "split", "tiny-imagenet-32"),
        ("domains-mnist,usps", "domains", "mnist,usps"),
        ("split:digits", "split", "digits"),
        ("split-/data/my images", "split", "/data/my images"),
    ],
)
def test_the_scenario_is_told_from_the_data_set(name: str, scenario: str, dataset: str) -> None:
    entry, rest = stream_entry(name)
    assert (entry.name, rest) == (scenario, dataset)


def test_settings_of_a_stream_are_read_from_text() -> None:
    text = {"steps": "3", "base": "4", "seed": "1993", "size": "none"}
    assert make_stream("split-digits", text).config == make_stream("split-digits", {"steps": 3, "base": 4, "seed": 1993}).config
    assert [e.classes for e in make_stream("split-digits", {"groups": "[[1, 2], [7]]"})] == [(1, 2), (7,)]


def test_the_seed_is_the_streams_unless_its_settings_name_one() -> None:
    assert make_stream("split-digits", {}, seed=5).config == make_stream("split-digits", {"seed": 5}, seed=8).config
    assert make_stream("split-digits", {}, seed=5).config != make_stream("split-digits", {}, seed=6).config
    assert make_stream("split-digits", {"seed": "none"}, seed=3)[0].classes == (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)[:2]


def test_a_stream_without_chance_is_the_same_for_every_seed() -> None:
    assert make_stream("rotated-digits", {}, seed=1).config == make_stream("rotated-digits", {}, seed=2).config


def test_the_settings_that_were_given_are_left_as_they_are() -> None:
    settings: dict[str, Any] = {"steps": "2"}
    stream = make_stream("split-digits", settings, seed=1)
    own: dict[str, Any] = {"backbone": {"name": "mlp", "frozen": True, "width": 8}}
    make_learner("finetune", stream, own)
    assert settings == {"steps": "2"}
    assert own == {"backbone": {"name": "mlp", "frozen": True, "width": 8}}


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("splt-digits", "did you mean 'split'?"),
        ("permutated-digits", "did you mean 'permuted'?"),
        ("task-digits", "did you mean 'tasks'?"),
        ("nonsense", "there are: domains, permuted, rotated, si-blurry, split, tasks"),
        ("digits", "a name is <scenario>-<data set>, such as split-digits"),
        ("", "a name is <scenario>-<data set>"),
    ],
)
def test_an_unknown_scenario_gets_the_nearest_one(name: str, hint: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        make_stream(name)
    assert hint in str(error.value)
    assert f"no stream {name!r}" in str(error.value)


@pytest.mark.parametrize("name", ["split", "split-", "split: "])
def test_a_scenario_without_a_data_set_is_told_so(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match="data set") as error:
        make_stream(name)
    assert "did you mean 'split'" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"stepz": 3}, "stream has no parameter 'stepz' (did you mean 'steps'?)"),
        ({"dataset": "mnist"}, "stream has no parameter 'dataset'"),
        ({"steps": "many"}, "stream.steps can't be 'many': input should be a valid integer"),
        ({"steps": 2.5}, "stream.steps can't be 2.5"),
        ({"groups": "7"}, "stream.groups can't be '7'"),
        ({"steps": "11"}, "10 classes with a base of 0 can't be divided into 11 arrivals"),
    ],
)
def test_a_setting_that_does_not_fit_a_stream_gets_a_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        make_stream("split-digits", settings)
    assert sentence in str(error.value)


# Learners


@pytest.mark.parametrize("name", [entry.name for entry in registry.entries("learners", "images")])
def test_every_method_can_be_made_by_its_name_alone(name: str, digits: Stream) -> None:
    learner = make_learner(name, digits)
    assert isinstance(learner, Learner)
    assert type(learner).__name__.lower() == name.replace("-", "").replace("++", "pp")
    assert learner.predict(digits.probes[0].data[:3]).shape == (3,)


@pytest.mark.parametrize("spelling", ["g-acil", "G-ACIL", "g_acil", "G_ACIL"])
def test_a_method_is_found_in_any_spelling(spelling: str, digits: Stream) -> None:
    assert type(make_learner(spelling, digits)).__name__ == "GACIL"


def test_settings_of_a_method_are_read_from_text_and_reach_its_recipe(digits: Stream) -> None:
    learner = make_learner("replay", digits, {"memory": "77", "lr": "0.5", "recipe": {"epochs": "3", "schedule": "cosine"}})
    config = learner.config()
    assert config["memory"] == 77
    assert (config["recipe"]["lr"], config["recipe"]["epochs"], config["recipe"]["schedule"]) == (0.5, 3, "cosine")


@pytest.mark.parametrize(
    ("method", "settings", "sentence"),
    [
        ("fintune", {}, "There is no learner 'fintune' for images (did you mean 'finetune'?)."),
        ("xyz", {}, "There is no learner 'xyz' for images (there are: "),
        ("replay", {"memroy": 5}, "replay has no parameter 'memroy' (did you mean 'memory'?)."),
        ("nmc", {"lr": 0.1}, "nmc has no parameter 'lr' (there are: "),
        ("replay", {"memory": "much"}, "replay.memory can't be 'much': input should be a valid integer"),
        ("replay", {"memory": 0}, "room for at least one sample"),
        ("replay", {"policy": "newest"}, "replay.policy can't be 'newest'"),
        ("replay", {"recipe": 3}, "replay.recipe has several fields; set one of them"),
        ("replay", {"recipe": {"rl": 3}}, "replay.recipe has no field 'rl' (did you mean 'lr'?)."),
        ("replay", {"epochs": "0"}, "recipe.epochs must be at least 1, but it is 0"),
        ("nmc", {"backbone": "mlpp"}, "There is no net 'mlpp' for images (did you mean 'mlp'?)."),
        ("nmc", {"backbone": {"name": "mlp", "widht": 3}}, "backbone has no parameter 'widht' (did you mean 'width'?)."),
        ("nmc", {"backbone": {"name": "mlp", "width": "wide"}}, "backbone.width can't be 'wide'"),
        ("nmc", {"backbone": {"name": "mlp", "example": 1}}, "backbone has no parameter 'example'"),
        ("finetune", {"backbone": {"frozen": "perhaps"}}, "backbone.frozen can't be 'perhaps'"),
        ("nmc", {"backbone": "./not/there"}, "There is no folder './not/there'"),
        ("nmc", {"backbone": 3}, "backbone"),
    ],
)
def test_what_does_not_fit_a_method_gets_a_sentence_with_the_nearest_name(
    digits: Stream, method: str, settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigurationError) as error:
        make_learner(method, digits, settings)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_the_seed_decides_the_initial_weights_and_nobody_else_notices(digits: Stream) -> None:
    before = states()
    one, again, two = (weights(make_learner("finetune", digits, seed=seed)) for seed in (1, 1, 2))
    assert equal(one, again)
    assert not equal(one, two)
    assert states() == before


def test_methods_on_one_net_start_from_the_same_weights(digits: Stream) -> None:
    first, *others = (make_learner(m, digits, {"backbone": "mlp"}, seed=4) for m in ("finetune", "replay", "lwf", "nmc"))
    assert all(equal(weights(first), weights(other)) for other in others)


# Backbones


def test_a_backbone_is_named_alone_or_with_settings_of_its_own(digits: Stream) -> None:
    plain = make_learner("nmc", digits, {"backbone": "mlp"}).config()["backbone"]
    assert (plain["name"], plain["width"]) == ("mlp", 256)
    nested = make_learner("nmc", digits, {"backbone": {"name": "mlp", "width": "16", "depth": 1}}).config()["backbone"]
    assert (nested["name"], nested["width"], nested["depth"]) == ("mlp", 16, 1)


def test_settings_without_a_name_are_those_of_the_net_that_the_wing_chooses(digits: Stream) -> None:
    config = make_learner("finetune", digits, {"backbone": {"width": 24}}).config()["backbone"]
    assert (config["name"], config["width"]) == ("mlp", 24)


def test_a_frozen_backbone_stays_as_it_is_while_the_head_learns(digits: Stream) -> None:
    frozen = make_learner("finetune", digits, {"backbone": {"frozen": "true"}, "epochs": 1})
    free = make_learner("finetune", digits, {"epochs": 1})
    for learner, stays in ((frozen, True), (free, False)):
        before = {name: value.clone() for name, value in weights(learner).items()}
        learner.learn(digits[0])
        assert equal(before, weights(learner)) == stays
    assert frozen.config()["backbone"]["frozen"] is True
    assert frozen.config() != free.config(), "a run of one could be continued as the other"
    assert all(parameter.requires_grad for parameter in free.parameters())


@pytest.mark.parametrize(
    ("method", "size", "net"),
    [
        ("nmc", 8, "pixels"),
        ("g-acil", 40, "pixels"),
        ("finetune", 16, "mlp"),
        ("replay", 17, "resnet32"),
        ("lwf", 48, "resnet32"),
    ],
)
def test_without_a_word_the_wing_chooses_a_net_that_suits_method_and_images(method: str, size: int, net: str) -> None:
    stream = make_stream("split-digits", {"size": size, "steps": 2})
    assert make_learner(method, stream).config()["backbone"]["name"] == net


def test_a_folder_that_is_named_like_a_net_does_not_hide_it(
    digits: Stream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mlp").mkdir()
    monkeypatch.chdir(tmp_path)
    assert make_learner("finetune", digits).config()["backbone"]["name"] == "mlp"
    assert make_learner("finetune", digits, {"backbone": "mlp"}).config()["backbone"]["name"] == "mlp"
