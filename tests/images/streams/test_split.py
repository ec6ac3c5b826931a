"""Split: disjoint groups of classes arrive one after the other, every sample once, the task never revealed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latewood.core.data import Data, concat
from latewood.core.errors import ConfigurationError, DataError
from latewood.core.run import run
from latewood.core.stream import Stream
from latewood.images.datasets import ImageData, load_images
from latewood.images.learners.nmc import NMC
from latewood.images.nets import pixels
from latewood.images.probes import Accuracy
from latewood.images.streams.split import split


def numbered(classes: int, train: int = 4, test: int = 2) -> ImageData:
    """Classes with so many images each, in mixed order; every image holds a number of its own in its two pixels."""

    def part(first: int, each: int) -> Data:
        numbers = torch.arange(first, first + classes * each)
        image = torch.stack([numbers // 256, numbers % 256], dim=1).to(torch.uint8).view(-1, 1, 1, 2)
        return Data(image=image, label=(numbers * 7) % classes if classes % 7 else numbers % classes)

    return ImageData("numbered", part(0, train), part(classes * train, test), tuple(map(str, range(classes))))


def numbers(data: Data) -> list[int]:
    pixels = data.tensor("image").long().flatten(1)
    return (pixels[:, 0] * 256 + pixels[:, 1]).tolist()


def sizes(stream: Stream) -> list[int]:
    return [len(experience.classes) for experience in stream]


def order(stream: Stream) -> list[int]:
    return [c for experience in stream for c in experience.classes]


# Which classes arrive when


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"steps": 5}, [2, 2, 2, 2, 2]),
        ({"steps": 1}, [10]),
        ({"steps": 10}, [1] * 10),
        ({"steps": 3}, [4, 3, 3]),
        ({"steps": 4}, [3, 3, 2, 2]),
        ({"steps": 3, "base": 4}, [4, 3, 3]),
        ({"steps": 4, "base": 3}, [3, 3, 2, 2]),
        ({"steps": 2, "base": 9}, [9, 1]),
        ({"increment": 5}, [5, 5]),
        ({"increment": 3}, [3, 3, 3, 1]),
        ({"base": 5, "increment": 2}, [5, 2, 2, 1]),
        ({"base": 5, "increment": 100}, [5, 5]),
        ({"groups": [[7], [1, 2, 3]]}, [1, 3]),
    ],
)
def test_arrivals_have_the_sizes_that_are_asked_for(settings: dict[str, Any], expected: list[int]) -> None:
    assert sizes(split("digits", **settings)) == expected


def test_seed_1993_gives_the_class_order_of_the_literature() -> None:
    """iCaRL's order of CIFAR-100, as PyCIL and PILOT print it, which is numpy's legacy permutation."""
    hundred = order(split(numbered(100, train=1, test=1), steps=10, seed=1993))
    assert hundred[:10] == [68, 56, 78, 8, 23, 84, 90, 65, 74, 76]
    before = np.random.get_state()
    np.random.seed(1993)
    expected = np.random.permutation(100).tolist()
    np.random.set_state(before)
    assert hundred == expected


def test_making_a_stream_leaves_the_global_generators_alone() -> None:
    def states() -> tuple[int, float]:
        numpy_state, torch_state = np.random.get_state(), torch.random.get_rng_state()
        drawn = int(np.random.randint(2**31)), float(torch.rand(()))
        np.random.set_state(numpy_state)
        torch.random.set_rng_state(torch_state)
        return drawn

    before = states()
    split("digits", seed=1993)
    assert states() == before


def test_without_a_seed_classes_come_in_the_order_of_the_data_set() -> None:
    assert [experience.classes for experience in split("digits", seed=None)] == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]


def test_another_seed_is_another_order_and_the_same_seed_the_same() -> None:
    orders = [order(split("digits", seed=seed)) for seed in (0, 0, 1, 2)]
    assert orders[0] == orders[1]
    assert len({tuple(o) for o in orders}) == 3
    assert all(sorted(o) == list(range(10)) for o in orders)


def test_groups_name_the_classes_outright_and_may_leave_some_out() -> None:
    stream = split("digits", groups=[[9, 0], [4]])
    assert [experience.classes for experience in stream] == [(9, 0), (4,)]
    for experience, probe in zip(stream, stream.probes, strict=True):
        assert set(experience.train["label"].tolist()) == set(probe.data["label"].tolist()) == set(experience.classes)


# What arrives


@given(classes=st.integers(2, 12), data=st.data())
def test_every_sample_arrives_exactly_once_and_with_its_class(classes: int, data: st.DataObject) -> None:
    images = numbered(classes)
    base = data.draw(st.integers(0, classes - 1), "base")
    steps = data.draw(st.integers(1 + (base > 0), classes - base + (base > 0)), "steps")
    stream = split(images, steps=steps, base=base, seed=data.draw(st.none() | st.integers(0, 2**32 - 1), "seed"))
    assert len(stream) == steps
    arrived = [number for experience in stream for number in numbers(experience.train)]
    assert sorted(arrived) == numbers(images.train)
    probed = [number for probe in stream.probes for number in numbers(probe.data)]
    assert sorted(probed) == numbers(images.test)
    label_of = dict(zip(numbers(images.train), images.train["label"].tolist(), strict=True))
    for experience in stream:
        assert set(experience.train["label"].tolist()) == set(experience.classes)
        rows = zip(numbers(experience.train), experience.train["label"].tolist(), strict=True)
        assert all(label_of[number] == label for number, label in rows)


def test_no_class_is_in_two_arrivals_or_two_probes() -> None:
    stream = split("digits", steps=4, base=3, seed=5)
    assert sorted(order(stream)) == list(range(10))
    for step, probe in enumerate(stream.probes):
        assert probe.since == step
        assert set(probe.data["label"].tolist()) == set(stream[step].classes)


def test_the_task_is_not_revealed() -> None:
    stream = split("digits")
    assert all(experience.task is None and "task" not in experience.train for experience in stream)
    assert all("task" not in probe.data for probe in stream.probes)


def test_arrivals_are_views_of_one_table_so_that_its_embeddings_serve_all() -> None:
    images = load_images("digits")
    stream = split(images, steps=3)
    for experience in stream:
        assert len(experience.train.base) == len(images.train)
        assert experience.train.fingerprint("image") == images.train.fingerprint("image")
    for probe in stream.probes:
        assert probe.data.fingerprint("image") == images.test.fingerprint("image")


def test_size_resizes_train_and_test() -> None:
    stream = split("digits", size=12)
    assert tuple(stream[0].train["image"].shape[1:]) == tuple(stream.probes[0].data["image"].shape[1:]) == (1, 12, 12)


def test_a_subset_of_the_classes_is_a_stream_of_its_own() -> None:
    subset = load_images("digits").subset([8, 3, 5])
    stream = split(subset, steps=3, seed=None)
    eights = load_images("digits").train
    assert [experience.classes for experience in stream] == [(0,), (1,), (2,)]
    assert torch.equal(stream[0].train["image"], eights[eights["label"] == 8]["image"])


# Scores


def test_the_average_after_an_arrival_is_the_accuracy_on_all_classes_so_far() -> None:
    stream = split("digits", steps=3, base=5, seed=1)
    assert [probe.weight for probe in stream.probes] == [len(probe.data) for probe in stream.probes]
    record = run(NMC(pixels(stream.example)), stream, device="cpu")
    learner = NMC(pixels(stream.example))
    for step, experience in enumerate(stream):
        learner.learn(experience)
        union = Accuracy("union", concat(*(probe.data for probe in stream.probes[: step + 1])), since=0)
        assert record.curve()[step] == pytest.approx(union.score(learner)["accuracy"], abs=1e-12)
    unweighted = np.nanmean(record.matrix(), axis=1)
    assert not np.allclose(record.curve(), unweighted, atol=1e-5), "the probes are too alike to tell"


# What is refused


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"steps": 0}, "10 classes with a base of 0 can't be divided into 0 arrivals"),
        ({"steps": -2}, "can't be divided into -2 arrivals"),
        ({"steps": 11}, "10 classes with a base of 0 can't be divided into 11 arrivals"),
        ({"steps": 1, "base": 4}, "10 classes with a base of 4 can't be divided into 1 arrivals"),
        ({"steps": 8, "base": 4}, "10 classes with a base of 4 can't be divided into 8 arrivals"),
        ({"base": -1}, r"base must lie between 0 and the number of classes \(10\), but it is -1"),
        ({"base": 11}, "but it is 11"),
        ({"increment": 0}, "increment must be at least 1, but it is 0"),
        ({"increment": -3, "base": 2}, "increment must be at least 1, but it is -3"),
        ({"groups": [[0, 1], [1, 2]]}, "lists class 1 twice"),
        ({"groups": [[3, 3]]}, "lists class 3 twice"),
        ({"groups": [[0], [10]]}, "lists class 10, but the data set has the classes 0 to 9"),
        ({"groups": [[-1]]}, "lists class -1, but the data set has the classes 0 to 9"),
        ({"size": 0}, "size must be at least 1 pixel, but it is 0"),
    ],
)
def test_numbers_that_do_not_fit_get_one_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence) as error:
        split("digits", **settings)
    assert str(error.value).endswith(".")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("groups", [[], [[]], [[0, 1], []]])
def test_a_stream_without_anything_to_learn_gets_a_sentence(groups: list[list[int]]) -> None:
    with pytest.raises((ConfigurationError, DataError), match=r"hold(s no rows| at least one)"):
        split("digits", groups=groups)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_numpy_does_not_take_gets_a_sentence(seed: int) -> None:
    with pytest.raises(ConfigurationError, match=f"seed .*{seed}"):
        split("digits", seed=seed)


# What identifies it


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("change", ["other rows", "another row in the middle", "another order", "fewer rows"])
def test_other_rows_of_the_same_table_are_another_stream(part: str, change: str) -> None:
    """A run on one half of the images must not continue on the other."""
    images = load_images("digits")
    table = getattr(images, part)
    rows = torch.arange(len(table) - 10)
    others = {
        "other rows": rows + 10,
        "another row in the middle": rows.where(rows != 150, torch.tensor(len(table) - 1)),
        "another order": rows.flip(0),
        "fewer rows": rows[:-1],
    }[change]
    configs = [split(replace(images, **{part: table[chosen]})).config for chosen in (rows, rows.clone(), others)]
    assert configs[0] == configs[1]
    assert configs[0] != configs[2]


def test_the_rows_of_a_table_in_another_order_are_another_stream() -> None:
    images = load_images("digits")
    shuffled = replace(images, train=images.train[torch.arange(len(images.train)).flip(0)])
    assert split(shuffled).config != split(images).config


def test_shots_leave_the_first_images_of_each_class_and_all_that_is_tested() -> None:
    images = numbered(4, train=6, test=3)
    stream = split(images, steps=2, seed=None, shots=2)
    kept = [number for experience in stream for number in numbers(experience.train)]
    labels = images.train.tensor("label")
    first = [numbers(images.train[row])[0] for c in range(4) for row in (labels == c).nonzero()[:2]]
    assert sorted(kept) == sorted(first)
    assert sum(len(probe.data) for probe in stream.probes) == 12
    assert stream.config["shots"] == 2
    assert "shots" not in split(images, steps=2).config
    with pytest.raises(ConfigurationError, match="at least one image must be left, not 0"):
        split(images, shots=0)


def test_more_shots_than_there_are_images_leave_all() -> None:
    images = numbered(4, train=6)
    assert len(images.few(100).train) == 24
    assert len(images.few(100, 1).test) == 4
