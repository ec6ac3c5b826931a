"""What holds for every stream of this wing, whichever there are: the command line, resuming and reports rely on it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from latewood.core import configure, registry
from latewood.core.data import Data
from latewood.core.stream import Stream
from latewood.images.datasets import load_images

BUILDERS: dict[str, Callable[..., Stream]] = {e.name: e.load() for e in registry.entries("streams", "images")}
#: Another value than the default for every setting that a builder may have.
OTHER: dict[str, Any] = {
    "steps": 3,
    "base": 4,
    "increment": 4,
    "groups": [[0, 1], [2, 3]],
    "classes": "0-3,5,7",
    "seed": 7,
    "size": 10,
    "shots": 5,
    "degrees": 45.0,
    "disjoint": 0.0,
    "blurry": 40.0,
    "every": 100,
}

each_builder = pytest.mark.parametrize("name", BUILDERS)
each_setting = pytest.mark.parametrize(
    ("name", "setting"),
    [(name, s) for name, builder in BUILDERS.items() for s in configure.parameters_of(builder) if s != "dataset"],
)


def same(a: Data, b: Data) -> bool:
    return list(a) == list(b) and len(a) == len(b) and all(torch.equal(a.tensor(c), b.tensor(c)) for c in a)


def same_stream(a: Stream, b: Stream) -> bool:
    arrivals = len(a) == len(b) and all(x.classes == y.classes and same(x.train, y.train) for x, y in zip(a, b, strict=True))
    return arrivals and all(p.name == q.name and same(p.data, q.data) for p, q in zip(a.probes, b.probes, strict=True))


@each_builder
def test_the_same_call_is_the_same_stream(name: str) -> None:
    a, b = BUILDERS[name]("digits"), BUILDERS[name]("digits")
    assert a.config == b.config
    assert same_stream(a, b)


@each_builder
def test_any_arrival_can_be_had_at_any_time(name: str) -> None:
    forwards, backwards = BUILDERS[name]("digits"), BUILDERS[name]("digits")
    later = [backwards[index] for index in reversed(range(len(backwards)))]
    for experience, other in zip(forwards, reversed(later), strict=True):
        assert experience.index == other.index
        assert same(experience.train, other.train)


@each_setting
def test_a_setting_that_changes_the_contents_changes_the_configuration(name: str, setting: str) -> None:
    """Otherwise a run could be continued on another stream."""
    before, after = BUILDERS[name]("digits"), BUILDERS[name]("digits", **{setting: OTHER[setting]})
    assert not same_stream(before, after), "choose another value: this one changes nothing"
    assert before.config != after.config


@each_builder
def test_the_configuration_survives_json_and_names_stream_and_data(name: str) -> None:
    config = BUILDERS[name]("digits").config
    plain = json.loads(json.dumps(config, allow_nan=False))
    assert plain == json.loads(json.dumps(plain))
    assert plain["name"] == f"{name}-digits"


# domains takes the names of data sets; its own test changes their contents.
@pytest.mark.parametrize("name", sorted(set(BUILDERS) - {"domains"}))
def test_the_configuration_changes_with_the_images(name: str) -> None:
    images = load_images("digits")
    fewer = type(images)(
        images.name, images.train, images.test.with_columns(label=images.test["label"].roll(1)), images.classes
    )
    dimmed = images.train.with_columns(image=images.train["image"] // 2)
    darker = type(images)(images.name, dimmed, images.test, images.classes)
    configs = [BUILDERS[name](each).config for each in (images, fewer, darker)]
    assert configs[0] != configs[1]
    assert configs[0] != configs[2]


@each_builder
def test_probes_are_held_out_named_apart_and_seen_at_some_time(name: str) -> None:
    stream, images = BUILDERS[name]("digits"), load_images("digits")
    assert stream.wing == "images"
    names = [probe.name for probe in stream.probes]
    assert len(set(names)) == len(names) > 0
    for probe in stream.probes:
        assert 0 <= probe.since < len(stream)
        assert len(probe.data.base) == len(images.test)
        classes = {c for experience in stream[: probe.since + 1] for c in experience.classes}
        assert set(probe.data["label"].tolist()) <= classes


@each_builder
def test_the_summary_tells_what_arrives_in_lines_that_fit_a_terminal(name: str) -> None:
    stream = BUILDERS[name]("digits")
    lines = stream.summary().splitlines()
    assert lines[0] == f"{name}-digits: {len(stream)} experiences, {len(stream.probes)} probes"
    assert len(lines) == 1 + len(stream) + len(stream.probes)
    assert max(map(len, lines)) <= 100
    for line, experience in zip(lines[1:], stream, strict=False):
        assert line.split()[:3] == [str(experience.index), f"{len(experience.train):,}", "samples"]
        assert f"{len(experience.classes)} classes ({experience.classes[0]}" in line
        assert ("task" in line) == (experience.task is not None)
    for line, probe in zip(lines[1 + len(stream) :], stream.probes, strict=True):
        assert line.strip() == f"probe {probe.name}: {len(probe.data):,} samples, seen from experience {probe.since} on"
