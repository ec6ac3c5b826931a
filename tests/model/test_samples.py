"""Which samples train, which are canaries: decided by contents, whatever the order and grouping of arrivals."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from latewood.model.samples import Samples, Source


class Shelf:
    """Blobs in memory, counting what is read and written."""

    def __init__(self) -> None:
        self.held: dict[str, dict[str, Tensor]] = {}
        self.read: list[str] = []
        self.written = 0

    def put(self, tensors: Mapping[str, Tensor]) -> str:
        name = hashlib.blake2b(repr([(k, v.tolist()) for k, v in sorted(tensors.items())]).encode()).hexdigest()
        self.held[name] = {key: value.clone() for key, value in tensors.items()}
        self.written += sum(len(value) for key, value in tensors.items() if key == "inputs")
        return name

    def get(self, name: str) -> dict[str, Tensor]:
        self.read.append(name)
        return self.held[name]


def hashes_of(contents: list[int]) -> Tensor:
    rows = [list(hashlib.blake2b(str(content).encode(), digest_size=16).digest()) for content in contents]
    return torch.tensor(rows, dtype=torch.uint8).reshape(-1, 16)


def features_of(contents: list[int]) -> Tensor:
    return torch.tensor([[float(content), 1.0] for content in contents]).reshape(-1, 2)


def added(samples: Samples, shelf: Shelf, number: int, rows: list[tuple[int, int]], keep: bool = True) -> Samples:
    contents, labels = [content for content, _ in rows], torch.tensor([label for _, label in rows])
    source = Source(number, f"day {number}", "2026-01-01")
    return samples.add(shelf, source, features_of(contents), hashes_of(contents), labels, keep)


def filled(shelf: Shelf, arrivals: list[list[tuple[int, int]]], share: float = 0.2, cap: int = 3, keep: bool = True) -> Samples:
    samples = Samples(share, cap)
    for number, rows in enumerate(arrivals):
        samples = added(samples, shelf, number, rows, keep)
    return samples


def chosen(samples: Samples, shelf: Shelf, mask: Tensor) -> set[tuple[float, int]]:
    inputs = samples.inputs(shelf, mask)
    return set(zip(inputs[:, 0].tolist() if len(inputs) else [], samples.labels[mask].tolist(), strict=True))


Rows = st.lists(st.integers(0, 300), min_size=1, max_size=60, unique=True)


@settings(max_examples=60, deadline=None)
@given(contents=Rows, cuts=st.lists(st.integers(0, 60), max_size=4), order=st.randoms())
def test_roles_depend_on_contents_and_not_on_order_or_grouping(contents: list[int], cuts: list[int], order: object) -> None:
    rows = [(content, content % 3) for content in contents]
    shuffled = list(rows)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    borders = [0, *sorted({min(cut, len(rows)) for cut in cuts}), len(rows)]
    groups = [shuffled[a:b] for a, b in pairwise(borders) if b > a]
    shelf = Shelf()
    one, many = filled(shelf, [rows]), filled(shelf, groups)
    for mine, theirs in zip(one.roles, many.roles, strict=True):
        assert chosen(one, shelf, mine) == chosen(many, shelf, theirs)


@settings(max_examples=60, deadline=None)
@given(contents=Rows, share=st.floats(0, 0.49), cap=st.integers(1, 5))
def test_every_class_has_something_to_train_on_and_no_more_canaries_than_the_cap(
    contents: list[int], share: float, cap: int
) -> None:
    samples = filled(Shelf(), [[(content, content % 4) for content in contents]], share, cap)
    train, canary = samples.roles
    assert not (train & canary).any() and (train | canary).all()
    for label in samples.labels.unique():
        assert train[samples.labels == label].any()
        assert canary[samples.labels == label].sum() <= cap


def test_about_the_share_of_a_large_class_are_canaries() -> None:
    samples = filled(Shelf(), [[(content, 0) for content in range(4000)]], share=0.05, cap=10_000)
    assert 150 < int(samples.roles.canary.sum()) < 250


def test_a_content_counts_once_with_the_label_that_came_last_and_where_that_came_first() -> None:
    shelf = Shelf()
    samples = filled(shelf, [[(1, 0), (2, 0)], [(1, 1)], [(1, 1), (2, 0)], [(3, 0)]], share=0.0)
    assert samples.roles.train.tolist() == [False, True, True, False, False, True]
    assert samples.repeated(1) == (0, 0)
    back = added(samples, shelf, 4, [(1, 0)])
    assert back.repeated(1) == (0, 1)
    assert back.roles.train.tolist() == [True, True, False, False, False, True, False]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), min_size=1, max_size=8), min_size=1, max_size=12))
def test_segments_merge_without_losing_or_moving_a_sample(arrivals: list[list[tuple[int, int]]]) -> None:
    shelf = Shelf()
    samples = filled(shelf, arrivals)
    rows = [row for arrival in arrivals for row in arrival]
    everything = torch.ones(len(rows), dtype=torch.bool)
    assert samples.inputs(shelf, everything)[:, 0].tolist() == [float(content) for content, _ in rows]
    assert samples.labels.tolist() == [label for _, label in rows]
    assert samples.arrivals.tolist() == [n for n, arrival in enumerate(arrivals) for _ in arrival]
    assert [source.number for source in samples.sources] == list(range(len(arrivals)))
    again = Samples.load(shelf, samples.share, samples.cap, samples.names)
    assert torch.equal(again.hashes, samples.hashes) and torch.equal(again.roles.train, samples.roles.train)


def test_many_arrivals_make_few_segments_and_little_is_written_again() -> None:
    shelf = Shelf()
    samples = filled(shelf, [[(10 * n + k, 0) for k in range(4)] for n in range(256)])
    assert len(samples.segments) <= 9
    assert shelf.written <= 4 * 256 * 10  # each sample about log2(256) times


def test_what_is_left_out_is_in_no_blob_any_more() -> None:
    shelf = Shelf()
    samples = filled(shelf, [[(1, 0), (2, 1)], [(3, 0)], [(4, 1), (5, 2), (6, 2)]])
    left = samples.without(shelf, samples.labels == 1)
    assert left.inputs(shelf, torch.ones(len(left), dtype=torch.bool))[:, 0].tolist() == [1.0, 3.0, 5.0, 6.0]
    contents = torch.cat([value for name in left.blobs for key, value in shelf.held[name].items() if key == "inputs"])
    assert set(contents[:, 0].tolist()) == {1.0, 3.0, 5.0, 6.0}
    none = samples.without(shelf, samples.arrivals == 1)
    assert [source.name for source in none.sources] == ["day 0", "day 2"]
    assert len(samples.without(shelf, torch.ones(len(samples), dtype=torch.bool))) == 0


def test_learning_reads_no_rows_of_earlier_arrivals() -> None:
    shelf = Shelf()
    samples = filled(shelf, [[(10 * n + k, k % 2) for k in range(8)] for n in range(3)], share=0.1)
    others = {segment.others_name for segment in samples.segments}
    shelf.read.clear()
    again = Samples.load(shelf, samples.share, samples.cap, samples.names)
    assert again.roles.canary.any()
    again.inputs(shelf, again.roles.canary)
    assert not others & set(shelf.read)


@pytest.mark.parametrize("keep", [True, False])
def test_without_rows_only_possible_canaries_are_kept(keep: bool) -> None:
    samples = filled(Shelf(), [[(k, 0) for k in range(50)]], share=0.2, keep=keep)
    maybe = samples.segments[0].maybe
    assert torch.equal(samples.kept, maybe | keep)
    assert (samples.segments[0].others_name is None) != keep


def test_an_empty_table_has_no_roles() -> None:
    samples = Samples(0.05, 50)
    assert len(samples.roles.train) == len(samples.kept) == len(samples.hashes) == 0
