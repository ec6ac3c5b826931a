"""Experience and Stream: a bad arrival is refused before anyone learns from it; any arrival can be had at any time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from latewood import Data, Experience, Learner, Probe, Stream
from latewood.core.errors import DataError, LatewoodError


class Rows(Probe):
    metrics: ClassVar[Mapping[str, bool]] = {"rows": True}

    def score(self, learner: Learner) -> dict[str, float]:
        return {"rows": float(len(self.data))}


def arrival(index: int, rows: int = 6) -> Experience:
    labels = torch.arange(rows) % 2 + 2 * index
    return Experience(index, Data(image=torch.full((rows, 1, 2, 2), float(index)), label=labels), (2 * index, 2 * index + 1))


def stream(length: int = 4, **more: Any) -> Stream:
    return Stream("counting", length, arrival, [Rows(f"part {i}", arrival(i).train, i) for i in range(length)], **more)


# One arrival


def test_an_arrival_holds_what_it_was_given_and_can_not_be_changed() -> None:
    experience = arrival(3)
    assert (experience.index, experience.classes, experience.task, len(experience.train)) == (3, (6, 7), None, 6)
    with pytest.raises(AttributeError):
        experience.index = 4  # type: ignore[misc]


def test_an_arrival_without_rows_is_refused() -> None:
    with pytest.raises(DataError, match="Experience 2 is empty; an arrival must hold at least one row"):
        Experience(2, Data(image=torch.zeros(0, 3)))
    with pytest.raises(DataError, match="empty"):
        Experience(0, Data())


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (torch.tensor([0.0, 1.0]), "torch.float32"),
        (torch.tensor([True, False]), "torch.bool"),
        (torch.tensor([1j, 0]), "torch.complex64"),
        (torch.tensor([0.0, float("nan")]), "torch.float32"),
        (["cat", "dog"], "a list"),
    ],
)
def test_labels_that_are_not_integers_are_refused_with_what_they_are(labels: Any, kind: str) -> None:
    with pytest.raises(DataError, match=f"Labels must be integers, but the label column of experience 5 is {kind}"):
        Experience(5, Data(label=labels))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_labels_of_any_integer_type_are_taken(dtype: torch.dtype) -> None:
    assert Experience(0, Data(label=torch.tensor([1, 0], dtype=dtype)), (0, 1)).classes == (0, 1)


def test_a_label_that_the_classes_do_not_list_is_named() -> None:
    with pytest.raises(DataError, match="Experience 1 holds the label 7, which its classes do not list"):
        Experience(1, Data(label=torch.tensor([4, 9, 7])), (4, 5))


def test_classes_without_a_row_and_labels_without_listed_classes_are_taken() -> None:
    assert len(Experience(0, Data(label=torch.tensor([4])), (4, 5)).train) == 1
    assert len(Experience(0, Data(label=torch.tensor([4]))).train) == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_pixels_that_are_not_finite_are_refused_with_their_row(bad: float) -> None:
    pixels = torch.zeros(5, 1, 2, 2)
    pixels[3, 0, 1, 0] = bad
    with pytest.raises(DataError, match="Column 'image' of experience 1 holds NaN or infinity in row 3"):
        Experience(1, Data(image=pixels))
    with pytest.raises(DataError, match="Column 'image' of probe 'held out' holds NaN or infinity in row 3"):
        Rows("held out", Data(image=pixels), since=0)


def test_a_probe_needs_rows() -> None:
    with pytest.raises(DataError, match="Probe 'held out' holds no rows; a score needs at least one"):
        Rows("held out", Data(image=torch.zeros(0, 3)), since=0)


def test_a_probe_can_not_have_been_seen_before_the_beginning() -> None:
    with pytest.raises(LatewoodError, match="Probe 'held out'"):
        Rows("held out", Data(x=torch.zeros(1)), since=-1)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_probe_has_a_weight_that_an_average_can_use(weight: float) -> None:
    with pytest.raises(LatewoodError, match="weight"):
        Rows("held out", Data(x=torch.zeros(1)), since=0, weight=weight)


# A row of arrivals


def test_a_stream_gives_its_arrivals_in_order_and_by_number() -> None:
    counting = stream()
    assert len(counting) == 4
    assert [e.index for e in counting] == [0, 1, 2, 3]
    assert counting[2].classes == (4, 5)
    assert counting[-1].index == 3
    assert counting[-4].index == 0
    assert [e.index for e in reversed(counting)] == [3, 2, 1, 0]


def test_a_slice_of_a_stream_is_a_list_of_arrivals() -> None:
    assert [e.index for e in stream()[1:3]] == [1, 2]
    assert [e.index for e in stream()[::-2]] == [3, 1]
    assert stream()[4:] == []


@pytest.mark.parametrize("number", [4, -5, 100])
def test_an_arrival_that_does_not_exist_is_an_index_error(number: int) -> None:
    with pytest.raises(IndexError, match=f"'counting' has 4 experiences; there is no number {number}"):
        stream()[number]


def test_arrivals_are_built_when_asked_for_and_only_those() -> None:
    built: list[int] = []

    def build(index: int) -> Experience:
        built.append(index)
        return arrival(index)

    lazy = Stream("lazy", 1000, build, ())
    assert built == []
    assert lazy[700].index == 700
    assert built == [700]


def test_a_stream_of_no_arrivals_is_refused() -> None:
    with pytest.raises(DataError, match="Stream 'nothing' must hold at least one experience"):
        Stream("nothing", 0, arrival, ())


def test_its_configuration_names_it() -> None:
    assert stream(config={"seed": 3}).config == {"name": "counting", "seed": 3}
    assert stream(wing="images").wing == "images"
    assert isinstance(stream().probes, tuple)


def test_its_example_is_one_row_with_every_column() -> None:
    example = stream().example
    assert len(example) == 1
    assert isinstance(example["image"], Tensor)
    assert example["image"].shape == (1, 1, 2, 2)
    assert example["label"].tolist() == [0]


def test_its_summary_has_a_line_for_each_arrival_and_probe() -> None:
    def build(index: int) -> Experience:
        labels = torch.arange(1200)
        return Experience(index, Data(label=labels), tuple(range(1200)), task="flowers" if index else None)

    lines = Stream("big", 2, build, [Rows("all", Data(label=torch.arange(2500)), since=1)]).summary().splitlines()
    assert lines[0] == "big: 2 experiences, 1 probes"
    assert "1,200 samples" in lines[1]
    assert "1200 classes (0, 1, 2, 3, 4, 5, 6, 7, …)" in lines[1]
    assert "task" not in lines[1]
    assert lines[2].endswith("task flowers")
    assert lines[3].strip() == "probe all: 2,500 samples, seen from experience 1 on"
    assert len(lines) == 4


def test_its_text_is_short() -> None:
    assert repr(stream()) == "Stream('counting', 4 experiences)"
