"""Si-Blurry: some classes live in one task, others leak into several; sizes are random, and no sample is lost or doubled.

The invariants are those under "Must hold" in the sheets of papers 23 and 28; the names N, D, Bc, T, n and m are theirs.
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from latewood.core.data import Data, concat
from latewood.core.errors import ConfigurationError
from latewood.core.run import run
from latewood.core.stream import Stream
from latewood.images.datasets import ImageData, load_images
from latewood.images.learners.nmc import NMC
from latewood.images.nets import pixels
from latewood.images.probes import Accuracy
from latewood.images.streams.si_blurry import si_blurry, si_blurry_tasks

SEEDS = range(20)
SHARES = st.sampled_from([0.0, 100.0]) | st.floats(0, 100)


def labels_of(counts: list[int]) -> Tensor:
    """``counts[c]`` labels ``c``, in an order in which they are mixed."""
    labels = torch.tensor([label for label, count in enumerate(counts) for _ in range(count)])
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(len(labels)))]


DIGITS = load_images("digits").train.tensor("label")


def kept(classes: int, steps: int, disjoint: float) -> tuple[int, int]:
    """D and Bc, as the papers define them."""
    d = math.floor(math.floor(classes * disjoint / 100) / steps) * steps
    return d, math.floor((classes - d) / steps) * steps


def homes(labels: Tensor, tasks: list[Tensor]) -> dict[int, set[int]]:
    """The tasks in which each class occurs."""
    found: dict[int, set[int]] = {}
    for step, rows in enumerate(tasks):
        for label in labels[rows].unique().tolist():
            found.setdefault(label, set()).add(step)
    return found


def tasks_of_digits(steps: int = 5, disjoint: float = 50, blurry: float = 10, seed: int = 0) -> list[Tensor]:
    return si_blurry_tasks(DIGITS, 10, steps, disjoint, blurry, seed)


# The generator


@given(counts=st.lists(st.integers(1, 9), min_size=1, max_size=12), disjoint=SHARES, blurry=SHARES, data=st.data())
def test_every_sample_of_the_kept_classes_is_in_exactly_one_task(
    counts: list[int], disjoint: float, blurry: float, data: st.DataObject
) -> None:
    classes = len(counts)
    steps = data.draw(st.just(classes) | st.integers(1, classes), "steps")
    labels = labels_of(counts)
    tasks = si_blurry_tasks(labels, classes, steps, disjoint, blurry, data.draw(st.integers(0, 10**6), "seed"))
    assert len(tasks) == steps
    rows = torch.cat(tasks).tolist()
    assert len(set(rows)) == len(rows)
    present = set(labels[rows].tolist())
    assert len(present) == sum(kept(classes, steps, disjoint))
    assert sorted(rows) == torch.isin(labels, torch.tensor(sorted(present))).nonzero().flatten().tolist()


@given(counts=st.lists(st.integers(1, 9), min_size=1, max_size=12), disjoint=SHARES, blurry=SHARES, data=st.data())
def test_disjoint_classes_live_in_one_task_each_however_much_blur_there_is(
    counts: list[int], disjoint: float, blurry: float, data: st.DataObject
) -> None:
    classes, labels = len(counts), labels_of(counts)
    steps = data.draw(st.just(classes) | st.integers(1, classes), "steps")
    seed = data.draw(st.integers(0, 10**6), "seed")
    sharp = homes(labels, si_blurry_tasks(labels, classes, steps, disjoint, 0, seed))
    blurred = homes(labels, si_blurry_tasks(labels, classes, steps, disjoint, blurry, seed))
    assert all(len(where) == 1 for where in sharp.values())
    assert set(sharp) == set(blurred)
    settled = sum(sharp[label] == blurred[label] for label in sharp)
    assert settled >= kept(classes, steps, disjoint)[0]


@pytest.mark.parametrize(
    ("classes", "steps", "disjoint", "expected"),
    [(10, 5, 50, 10), (10, 3, 50, 9), (10, 4, 50, 8), (10, 10, 50, 10), (10, 7, 100, 7), (10, 7, 0, 7), (100, 5, 50, 100)],
)
def test_classes_beyond_a_multiple_of_the_steps_are_dropped(classes: int, steps: int, disjoint: int, expected: int) -> None:
    labels = labels_of([6] * classes)
    present = homes(labels, si_blurry_tasks(labels, classes, steps, disjoint, 10, 0))
    d, bc = kept(classes, steps, disjoint)
    assert (d % steps, bc % steps) == (0, 0)
    assert len(present) == d + bc == expected


def test_all_classes_disjoint_gives_disjoint_tasks_of_random_size() -> None:
    tasks = tasks_of_digits(disjoint=100, blurry=90, seed=3)
    assert all(len(where) == 1 for where in homes(DIGITS, tasks).values())
    sharp = tasks_of_digits(disjoint=100, blurry=0, seed=3)
    assert [set(rows.tolist()) for rows in tasks] == [set(rows.tolist()) for rows in sharp]
    sizes = {tuple(map(len, tasks_of_digits(disjoint=100, seed=seed))) for seed in SEEDS}
    assert len(sizes) == len(SEEDS)


def test_without_blur_no_class_is_in_two_tasks() -> None:
    for seed in SEEDS:
        assert all(len(where) == 1 for where in homes(DIGITS, tasks_of_digits(blurry=0, disjoint=0, seed=seed)).values())


@pytest.mark.parametrize("blurry", [5, 10, 50, 100])
def test_with_blur_some_classes_span_several_tasks(blurry: int) -> None:
    for seed in SEEDS:
        where = homes(DIGITS, tasks_of_digits(blurry=blurry, seed=seed))
        assert sum(len(tasks) > 1 for tasks in where.values()) >= 1
        assert sum(len(tasks) == 1 for tasks in where.values()) >= 5


def test_the_number_of_classes_in_a_task_varies_over_seeds() -> None:
    counts = torch.tensor([[len(DIGITS[rows].unique()) for rows in tasks_of_digits(blurry=0, seed=s)] for s in SEEDS]).double()
    assert (counts.var(dim=0) > 0).all()
    assert counts.sum(1).tolist() == [10.0] * len(SEEDS)


@pytest.mark.parametrize("blurry", [1, 10, 50, 100])
def test_at_most_the_share_of_blur_leaves_its_home(blurry: float) -> None:
    """Less leaves where a task has fewer samples than its portion, and where a portion is dealt back to its own task."""
    home_shares = []
    for seed in SEEDS:
        home = homes(DIGITS, tasks_of_digits(disjoint=0, blurry=0, seed=seed))
        tasks = tasks_of_digits(disjoint=0, blurry=blurry, seed=seed)
        at_home = sum(step in home[label] for step, rows in enumerate(tasks) for label in DIGITS[rows].tolist())
        home_shares.append(at_home / len(DIGITS))
    assert min(home_shares) >= 1 - blurry / 100
    assert 1 - blurry / 100 < sum(home_shares) / len(home_shares) < 1 - 0.4 * blurry / 100


def test_a_task_receives_as_many_samples_as_leave_it() -> None:
    compared = 0
    for seed in range(30):
        before = [len(rows) for rows in tasks_of_digits(steps=2, disjoint=0, blurry=0, seed=seed)]
        if min(before) >= 0.1 * len(DIGITS):  # otherwise a task may have fewer samples than its portion
            assert [len(rows) for rows in tasks_of_digits(steps=2, disjoint=0, blurry=10, seed=seed)] == before
            compared += 1
    assert compared >= 10


def test_the_samples_that_leave_are_drawn_at_random_and_are_not_the_first() -> None:
    """Our deviation from the authors' code, which takes the first in the order of the data set."""
    rank = {row: place for c in range(10) for place, row in enumerate(torch.eq(DIGITS, c).nonzero().flatten().tolist())}
    places = []
    for seed in SEEDS:
        home = homes(DIGITS, tasks_of_digits(disjoint=0, blurry=0, seed=seed))
        tasks = tasks_of_digits(disjoint=0, blurry=10, seed=seed)
        places += [rank[row] for step, rows in enumerate(tasks) for row in rows.tolist() if step not in home[int(DIGITS[row])]]
    # Each class has about 143 images.
    assert len(places) > 500
    assert 65 < sum(places) / len(places) < 78


def test_the_order_within_a_task_is_shuffled() -> None:
    for rows in tasks_of_digits(disjoint=100, blurry=0):
        if len(rows) > 100:
            falls = sum(later < earlier for earlier, later in pairwise(rows.tolist()))
            assert 0.4 < falls / len(rows) < 0.6


def test_the_same_seed_gives_the_same_tasks_and_another_seed_others() -> None:
    first, again, other = tasks_of_digits(seed=1), tasks_of_digits(seed=1), tasks_of_digits(seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert [rows.tolist() for rows in first] != [rows.tolist() for rows in other]


# The stream


def numbered(counts: list[int]) -> ImageData:
    """Images that each hold a number of their own in their two pixels; two test images for each class."""

    def part(labels: Tensor, first: int) -> Data:
        numbers = torch.arange(first, first + len(labels))
        return Data(image=torch.stack([numbers // 256, numbers % 256], 1).to(torch.uint8).view(-1, 1, 1, 2), label=labels)

    train, test = labels_of(counts), torch.arange(len(counts)).repeat(2)
    return ImageData("numbered", part(train, 0), part(test, len(train)), tuple(map(str, range(len(counts)))))


def numbers(data: Data) -> list[int]:
    image = data.tensor("image").long().flatten(1)
    return (image[:, 0] * 256 + image[:, 1]).tolist()


def arrived(stream: Stream) -> list[int]:
    return [number for experience in stream for number in numbers(experience.train)]


@given(
    counts=st.lists(st.integers(1, 20), min_size=1, max_size=10),
    disjoint=SHARES,
    blurry=SHARES,
    every=st.none() | st.integers(1, 30),
    data=st.data(),
)
def test_a_stream_holds_each_sample_once_and_its_probes_exactly_what_was_exposed(
    counts: list[int], disjoint: float, blurry: float, every: int | None, data: st.DataObject
) -> None:
    steps = data.draw(st.just(len(counts)) | st.integers(1, len(counts)), "steps")
    stream = si_blurry(numbered(counts), steps=steps, disjoint=disjoint, blurry=blurry, every=every, seed=len(counts))
    assert max(Counter(arrived(stream)).values()) == 1
    exposed: set[int] = set()
    for experience in stream:
        assert len(experience.train) > 0
        assert every is None or len(experience.train) <= every
        assert list(experience.classes) == sorted(set(experience.train["label"].tolist()))
        exposed |= set(experience.classes)
        seen = [probe.data for probe in stream.probes if probe.since <= experience.index]
        tested = [label for probe in seen for label in probe["label"].tolist()]
        assert Counter(tested) == Counter(dict.fromkeys(exposed, 2))
    assert len(arrived(stream)) == sum(counts[label] for label in exposed)


def test_cutting_tasks_changes_no_order() -> None:
    whole = si_blurry("digits", seed=2)
    for every in (1, 64, 100, 10**6):
        cut = si_blurry("digits", seed=2, every=every)
        assert torch.equal(concat(*(e.train for e in cut))["image"], concat(*(e.train for e in whole))["image"])
        assert len(cut) == sum(math.ceil(len(e.train) / every) for e in whole)


def test_a_task_that_chance_leaves_empty_makes_no_arrival() -> None:
    lengths = {seed: len(si_blurry("digits", steps=10, disjoint=100, seed=seed)) for seed in range(3)}
    assert min(lengths.values()) < 10
    for seed, length in lengths.items():
        stream = si_blurry("digits", steps=10, disjoint=100, seed=seed)
        assert [experience.index for experience in stream] == list(range(length))


def test_the_task_is_never_revealed() -> None:
    for experience in si_blurry("digits"):
        assert experience.task is None
        assert "task" not in experience.train


def test_the_same_seed_is_the_same_stream() -> None:
    first, again, other = (si_blurry("digits", seed=seed, every=50) for seed in (3, 3, 4))
    assert all(torch.equal(a.train["image"], b.train["image"]) for a, b in zip(first, again, strict=True))
    assert first.config == again.config != other.config
    assert not torch.equal(first[0].train["image"], other[0].train["image"])


def test_the_average_after_an_arrival_is_the_accuracy_on_all_classes_exposed_so_far() -> None:
    stream, images = si_blurry("digits", seed=1, every=200), load_images("digits")
    record, learner = run(NMC(pixels(stream.example)), stream, device="cpu"), NMC(pixels(stream.example))
    exposed: set[int] = set()
    for step, experience in enumerate(stream):
        learner.learn(experience)
        exposed |= set(experience.classes)
        rows = torch.isin(images.test["label"], torch.tensor(sorted(exposed)))
        expected = Accuracy("exposed", images.test[rows], since=0).score(learner)["accuracy"]
        assert record.curve()[step] == pytest.approx(expected, abs=1e-12)


def test_a_class_without_test_images_is_learned_and_not_probed() -> None:
    images = numbered([5, 5, 5, 5])
    fewer = ImageData("fewer", images.train, images.test[images.test["label"] != 2], images.classes)
    stream = si_blurry(fewer, steps=2)
    assert {c for experience in stream for c in experience.classes} == {0, 1, 2, 3}
    assert {label for probe in stream.probes for label in probe.data["label"].tolist()} == {0, 1, 3}


# What is refused


@pytest.mark.parametrize("name", ["disjoint", "blurry"])
@pytest.mark.parametrize("share", [-0.1, 100.1, math.nan, math.inf])
def test_a_share_beyond_a_percentage_gets_a_sentence(name: str, share: float) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} is a share in percent, from 0 to 100, but it is {share}"):
        si_blurry_tasks(DIGITS, 10, 5, *((share, 10.0) if name == "disjoint" else (50.0, share)), seed=0)


@pytest.mark.parametrize("steps", [0, -1, 11])
def test_more_tasks_than_classes_or_none_get_a_sentence(steps: int) -> None:
    with pytest.raises(ConfigurationError, match=f"10 classes can't be divided into {steps} tasks"):
        si_blurry("digits", steps=steps)


@pytest.mark.parametrize("every", [0, -5])
def test_arrivals_of_no_samples_get_a_sentence(every: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"every .*{every}"):
        si_blurry("digits", every=every)
