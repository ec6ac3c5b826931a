"""Classes that a backbone has seen: chosen, left out, refused, or allowed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from latewood.core import registry
from latewood.core.errors import ConfigurationError
from latewood.core.progress import Progress
from latewood.core.stream import Stream
from latewood.images.classes import choose, seen_by
from latewood.images.datasets import load_images
from latewood.images.pretraining import pretrain
from latewood.parts.backbone import Seen, build_backbone, read_seen
from latewood.studies.assemble import make_learner, make_stream

NAMES = [f"class {number}" for number in range(12)]
BUILDERS: dict[str, Callable[..., Stream]] = {e.name: e.load() for e in registry.entries("streams", "images")}
each_builder = pytest.mark.parametrize("name", BUILDERS)


class Silent(Progress):
    def tell(self, sentence: str) -> None:
        pass


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small net that has seen the digits 0, 2, 5 and 7."""
    folder = tmp_path_factory.mktemp("nets") / "small"
    net = {"name": "vit", "width": 12, "depth": 1}
    pretrain(net, "digits", folder, classes="0,2,5,7", settings={"epochs": 1}, flip=False, progress=Silent())
    return folder


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        ("0-3", [0, 1, 2, 3]),
        ("7", [7]),
        ("9, 3-4 ,3", [3, 4, 9]),
        ("0-11", list(range(12))),
    ],
)
def test_classes_by_number(wanted: str, numbers: list[int]) -> None:
    assert choose(wanted, NAMES) == numbers


def test_classes_by_chance_depend_on_the_seed_alone() -> None:
    drawn = torch.randperm(12, generator=torch.Generator().manual_seed(0)).tolist()
    assert choose("random:5", NAMES) == choose("random:5:0", NAMES) == sorted(drawn[:5])
    torch.manual_seed(99)
    assert choose("random:5", NAMES) == sorted(drawn[:5])
    assert choose("random:5:1", NAMES) != choose("random:5", NAMES)


def test_classes_by_name(tmp_path: Path) -> None:
    (tmp_path / "some.json").write_text(json.dumps(["class 8", "class 1"]))
    assert choose(str(tmp_path / "some.json"), NAMES) == [1, 8]


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ("3-12", "has the classes 0 to 11, but not 3-12"),
        ("12", "has the classes 0 to 11, but not 12"),
        ("5-3", "has the classes 0 to 11, but not 5-3"),
        ("some", "classes='some' is not understood; right would be 0-99"),
        ("-3", "is not understood"),
        ("", "is not understood"),
        ("random:13", "needs a number from 1 to 12"),
        ("random:0", "needs a number from 1 to 12"),
        ("random:few", "needs a number from 1 to 12"),
        ("unseen:nothing", "'nothing' has no classes.json"),
        ("unseen:pixels", "'pixels' has no classes.json"),
        ("nowhere.json", "nowhere.json can't be read"),
    ],
)
def test_what_names_no_classes_is_told(wanted: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        choose(wanted, NAMES)


@pytest.mark.parametrize(("told", "sentence"), [({"a": 1}, "must hold a JSON list"), (["class 99"], "'class 99', which")])
def test_a_list_that_does_not_fit_is_told(tmp_path: Path, told: object, sentence: str) -> None:
    (tmp_path / "some.json").write_text(json.dumps(told))
    with pytest.raises(ConfigurationError, match=sentence):
        choose(str(tmp_path / "some.json"), NAMES)


def test_what_a_backbone_has_not_seen(seen: Path) -> None:
    assert seen_by(str(seen)) == Seen("digits", ("0", "2", "5", "7"))
    assert choose(f"unseen:{seen}", load_images("digits").classes) == [1, 3, 4, 6, 8, 9]
    with pytest.raises(ConfigurationError, match="leaves none of the 2 classes"):
        choose(f"unseen:{seen}", ["0", "7"])


@pytest.mark.parametrize("damage", ["{", "[]", '{"data": "digits"}', '{"data": "digits", "classes": 3}'])
def test_a_damaged_list_of_seen_classes_is_told_and_never_taken_for_none(tmp_path: Path, damage: str) -> None:
    (tmp_path / "classes.json").write_text(damage)
    with pytest.raises(ConfigurationError, match=r"classes\.json is damaged"):
        read_seen(tmp_path)


def test_a_list_in_the_present_folder_concerns_no_other_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "classes.json").write_text(json.dumps({"data": "digits", "classes": ["1"]}))
    monkeypatch.chdir(tmp_path)
    example = load_images("digits").train[:1]
    assert build_backbone("mlp", "images", example, lambda: "mlp").seen is None


@each_builder
def test_every_stream_can_have_some_classes_only(name: str) -> None:
    stream = (
        BUILDERS[name]("digits", classes="1,3,4,6,8", steps=2)
        if name != "domains"
        else BUILDERS[name]("digits", classes="1,3,4,6,8")
    )
    labels = {label for experience in stream for label in experience.train.tensor("label").tolist()}
    assert labels <= set(range(5))
    assert {label for probe in stream.probes for label in probe.data.tensor("label").tolist()} <= labels
    assert set(stream.class_names) <= {"1", "3", "4", "6", "8"}  # type: ignore[attr-defined]
    assert len(stream.class_names) == len(labels)  # type: ignore[attr-defined]
    assert stream.config["classes"] == "1,3,4,6,8"
    assert "classes" not in BUILDERS[name]("digits").config, "runs that were begun before must go on"


def test_labels_of_a_restricted_stream_mean_the_classes_that_it_names() -> None:
    digits = load_images("digits")
    stream: Any = make_stream("split-digits", {"classes": "3,8", "steps": 1, "seed": "none"})
    assert stream.class_names == ("3", "8")
    train = stream[0].train
    expected = digits.train.tensor("image")[digits.train.tensor("label") == 8]
    assert torch.equal(train.tensor("image")[train.tensor("label") == 1], expected)


@pytest.mark.parametrize("scenario", ["split", "tasks", "si-blurry", "permuted", "rotated"])
def test_classes_that_the_backbone_has_seen_are_refused(seen: Path, scenario: str) -> None:
    stream = make_stream(f"{scenario}-digits")
    with pytest.raises(ConfigurationError) as error:
        make_learner("nmc", stream, {"backbone": str(seen)})
    assert str(error.value) == (
        f"The backbone {str(seen)!r} was trained on 4 of the 10 classes of {scenario}-digits ('{first_seen(stream)}' is one), "
        f"so its scores there would be too good; set stream.classes=unseen:{seen} to leave them out, or "
        "backbone.allow_seen=true to keep them."
    )


def first_seen(stream: Any) -> str:
    return next(name for name in stream.class_names if name in ("0", "2", "5", "7"))


def test_what_the_refusal_advises_works(seen: Path) -> None:
    unseen = make_stream("split-digits", {"classes": f"unseen:{seen}", "steps": "3"})
    learner = make_learner("nmc", unseen, {"backbone": str(seen)})
    learner.learn(unseen[0])
    everything = make_stream("split-digits")
    allowed = make_learner("nmc", everything, {"backbone": {"name": str(seen), "allow_seen": "true"}})
    config = allowed.config()["backbone"]
    assert config["allow_seen"] is True, "a record must tell it"
    assert "allow_seen" not in learner.config()["backbone"]


def test_one_class_of_many_is_enough_to_refuse(seen: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"1 of the 7 classes of split-digits \('5' is one\)"):
        make_learner("finetune", make_stream("split-digits", {"classes": "1,3-6,8-9"}), {"backbone": str(seen)})


def test_a_net_that_was_not_trained_meets_every_class() -> None:
    stream = make_stream("split-digits")
    assert make_learner("nmc", stream).config()["backbone"] == {"name": "pixels", "frozen": True}
