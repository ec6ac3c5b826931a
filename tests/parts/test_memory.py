"""Memory: what stays, with which probability, within how many slots, and that it survives being saved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from torch import Tensor
from torch.nn import functional as F

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError, DataError
from latewood.parts.memory import ClassBalanced, Exemplars, Memory, Reservoir, herding

quick = settings(max_examples=40, deadline=None)
#: A right algorithm exceeds the critical value with this probability; the seeds are fixed, so it does or does not for good.
SIGNIFICANCE = 1e-4

Keeps = Reservoir | ClassBalanced


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def numbered(labels: list[int]) -> Data:
    """Rows that know their number: as an image of bytes, as a real number, and beside their label."""
    numbers = torch.arange(len(labels))
    image = torch.stack([numbers // 256, numbers % 256], dim=1).to(torch.uint8)
    return Data(image=image, number=numbers.double(), label=torch.tensor(labels, dtype=torch.int64))


def images(labels: list[int], start: int = 0) -> Data:
    """The image and label columns of numbered rows."""
    return numbered([0] * start + labels)[start:].select("image", "label")


def kept_numbers(memory: Memory) -> list[int]:
    return [int(number) for number in memory.data["number"].tolist()]


def whole_rows(memory: Memory) -> bool:
    """Whether the columns of each row still belong together."""
    image = memory.data["image"].long()
    return torch.equal(image[:, 0] * 256 + image[:, 1], memory.data["number"].long())


# Reservoir


def excess(counts: list[int], expected: float, freedom: int, variance: float) -> float:
    """Pearson's statistic over its critical value: above 1 is a rejection."""
    return sum((count - expected) ** 2 for count in counts) / variance / float(chi2.isf(SIGNIFICANCE, freedom))


def test_every_row_that_passed_is_kept_with_the_same_probability() -> None:
    rows, slots, trials = 40, 10, 1000
    counts, data, generator = Counter[int](), numbered([0] * rows), seed(0)
    for _ in range(trials):
        memory = Reservoir(slots)
        for start, stop in ((0, 7), (7, 11), (11, 12), (12, 40)):
            memory.add(data[start:stop], generator)
        assert whole_rows(memory)
        counts.update(kept_numbers(memory))
    assert sum(counts.values()) == trials * slots
    share = slots / rows
    # Rows without replacement: the variance of a count is that of the binomial times n / (n - 1).
    variance = trials * share * (1 - share) * rows / (rows - 1)
    assert excess([counts[row] for row in range(rows)], trials * share, rows - 1, variance) < 1


def algorithm_r(rows: int, slots: int, generator: torch.Generator, shift: int) -> tuple[int, ...]:
    """Vitter's algorithm R row by row; with a ``shift`` the row number is off by so much."""
    kept = list(range(slots))
    for row in range(slots, rows):
        slot = int(torch.randint(row + 1 + shift, (), generator=generator))
        if slot < slots:
            kept[slot] = row
    return tuple(sorted(kept))


def all_at_once(generator: torch.Generator) -> tuple[int, ...]:
    memory = Reservoir(2)
    memory.add(numbered([0] * 5), generator)
    return tuple(sorted(kept_numbers(memory)))


def one_by_one(generator: torch.Generator) -> tuple[int, ...]:
    memory = Reservoir(2)
    for row in numbered([0] * 5).batches(1):
        memory.add(row, generator)
    return tuple(sorted(kept_numbers(memory)))


def uneven_sets(draw: Callable[[torch.Generator], tuple[int, ...]], trials: int = 1500) -> float:
    """How unevenly the ten pairs of five rows are kept; above 1 is a rejection."""
    generator = seed(1)
    counts = Counter(draw(generator) for _ in range(trials))
    pairs = list(combinations(range(5), 2))
    assert set(counts) <= set(pairs)
    return excess([counts[pair] for pair in pairs], trials / len(pairs), len(pairs) - 1, trials / len(pairs))


@pytest.mark.parametrize("draw", [all_at_once, one_by_one])
def test_every_set_of_rows_is_equally_likely_whether_they_come_at_once_or_one_by_one(
    draw: Callable[[torch.Generator], tuple[int, ...]],
) -> None:
    assert uneven_sets(draw) < 1


@pytest.mark.parametrize("shift", [-1, 1])
def test_these_trials_would_notice_an_ordinal_that_is_off_by_one(shift: int) -> None:
    assert uneven_sets(lambda generator: algorithm_r(5, 2, generator, 0)) < 1
    assert uneven_sets(lambda generator: algorithm_r(5, 2, generator, shift)) > 2


@quick
@given(st.integers(1, 12), st.lists(st.integers(0, 9), max_size=8), st.integers(0, 2**32 - 1))
def test_a_reservoir_counts_what_passed_and_never_holds_more_than_its_capacity(
    capacity: int, sizes: list[int], number: int
) -> None:
    memory, generator, data, passed = Reservoir(capacity), seed(number), numbered([0] * 100), 0
    for size in sizes:
        memory.add(data[passed : passed + size], generator)
        passed += size
        assert int(memory.seen) == passed
        assert len(memory) == min(capacity, passed)
        if passed:
            assert whole_rows(memory)
            kept = kept_numbers(memory)
            assert len(set(kept)) == len(kept)
            assert max(kept) < passed


def test_a_reservoir_with_one_slot_holds_one_of_the_rows() -> None:
    memory = Reservoir(1)
    memory.add(numbered([0] * 50), seed(0))
    assert len(memory) == 1
    assert int(memory.seen) == 50


@pytest.mark.parametrize("kind", [Reservoir, ClassBalanced])
def test_what_arrives_is_copied_and_never_written_to(kind: type[Keeps]) -> None:
    data, memory, generator = numbered([0, 1] * 30), kind(5), seed(0)
    before = {name: data[name].clone() for name in data}
    for batch in data.batches(5):
        memory.add(batch, generator)
    assert all(torch.equal(data[name], before[name]) for name in data)


# ClassBalanced


@pytest.mark.parametrize("order", ["shuffled", "sorted", "rare first", "rare last"])
def test_every_row_of_rare_classes_stays_beside_a_hundred_times_larger_one(order: str) -> None:
    labels = [0] * 1000 + [1] * 10 + [2] * 10
    arranged = {
        "shuffled": np.random.RandomState(0).permutation(labels).tolist(),
        "sorted": labels,
        "rare first": labels[::-1],
        "rare last": [1] * 5 + [0] * 1000 + [2] * 10 + [1] * 5,
    }[order]
    memory, generator = ClassBalanced(30), seed(0)
    for batch in numbered(arranged).batches(17):
        memory.add(batch, generator)
    assert memory.data["label"].bincount().tolist() == [10, 10, 10]
    assert whole_rows(memory)
    assert len(set(kept_numbers(memory))) == 30


def test_classes_are_equally_many_where_each_has_enough() -> None:
    labels = np.random.RandomState(1).permutation([0] * 500 + [1] * 50 + [2] * 25 + [3] * 12).tolist()
    memory, generator = ClassBalanced(30), seed(0)
    for batch in numbered(labels).batches(32):
        memory.add(batch, generator)
    counts = memory.data["label"].bincount()
    assert len(memory) == 30
    assert counts.min() >= 7
    assert counts.max() <= 8


@quick
@given(st.integers(1, 8), st.lists(st.lists(st.integers(0, 6), max_size=6), max_size=10), st.integers(0, 2**32 - 1))
def test_a_balanced_memory_gives_every_new_class_room_and_never_exceeds_its_capacity(
    capacity: int, batches: list[list[int]], number: int
) -> None:
    stream = numbered([label for batch in batches for label in batch])
    memory, generator, passed, seen = ClassBalanced(capacity), seed(number), 0, set[int]()
    for batch in batches:
        memory.add(stream[passed : passed + len(batch)], generator)
        passed += len(batch)
        assert len(memory) == min(capacity, passed)
        if passed:
            assert whole_rows(memory)
            held = memory.data["label"].tolist()
            assert held == [stream["label"][row] for row in kept_numbers(memory)]
            assert len(set(kept_numbers(memory))) == len(held)
            if batch and batch[-1] not in seen:
                assert batch[-1] in held or batch.count(batch[-1]) > 1  # a second row may compete with the first
        seen |= set(batch)


def test_the_first_row_of_a_class_is_always_kept_even_with_more_classes_than_slots() -> None:
    memory, generator = ClassBalanced(3), seed(0)
    for row in numbered(list(range(20))).batches(1):
        memory.add(row, generator)
        assert int(row["label"][0]) in memory.data["label"].tolist()
        assert len(memory) <= 3


def test_the_rows_of_large_classes_are_kept_with_the_same_probability_within_their_class() -> None:
    labels = [0, 1] * 15 + [2] * 3 + [0, 1] * 15
    data, generator, counts, trials = numbered(labels), seed(0), Counter[int](), 300
    for _ in range(trials):
        memory = ClassBalanced(9)
        for batch in data.batches(16):
            memory.add(batch, generator)
        assert memory.data["label"].bincount().tolist() == [3, 3, 3]
        counts.update(kept_numbers(memory))
    for large in (0, 1):
        rows = [row for row, label in enumerate(labels) if label == large]
        share = 3 / len(rows)
        variance = trials * share * (1 - share) * len(rows) / (len(rows) - 1)
        assert excess([counts[row] for row in rows], trials * share, len(rows) - 1, variance) < 1


# Herding


def brute_force(features: np.ndarray, count: int) -> list[int]:
    """Algorithm 4 of iCaRL as it is written: each step tries every free row."""
    mean, chosen = features.mean(0), list[int]()
    for _ in range(min(count, len(features))):
        free = [row for row in range(len(features)) if row not in chosen]
        distances = [np.linalg.norm(mean - features[[*chosen, row]].mean(0)) for row in free]
        chosen.append(free[int(np.argmin(distances))])
    return chosen


def unit_rows(rows: int, width: int, number: int) -> Tensor:
    return F.normalize(torch.randn(rows, width, generator=seed(number), dtype=torch.float64) + 1)


@quick
@given(st.integers(1, 15), st.integers(1, 5), st.integers(0, 20), st.integers(0, 2**32 - 1))
def test_herding_chooses_what_trying_every_row_chooses(rows: int, width: int, count: int, number: int) -> None:
    features = torch.randn(rows, width, generator=seed(number), dtype=torch.float64)
    assert herding(features, count).tolist() == brute_force(features.numpy(), count)


@quick
@given(st.integers(1, 30), st.integers(0, 35), st.integers(0, 2**32 - 1))
def test_a_smaller_herd_is_the_beginning_of_a_larger_one(rows: int, count: int, number: int) -> None:
    features = unit_rows(rows, 4, number)
    assert herding(features, count).tolist() == herding(features, rows).tolist()[:count]


@quick
@given(st.lists(st.tuples(st.integers(-1, 1), st.integers(-1, 1)), min_size=1, max_size=15))
def test_herding_chooses_no_row_twice_even_among_equal_ones(rows: list[tuple[int, int]]) -> None:
    chosen = herding(torch.tensor(rows).float(), len(rows) + 3).tolist()
    assert sorted(chosen) == list(range(len(rows)))


def test_the_mean_of_a_herd_comes_nearer_to_the_mean_of_all_than_any_of_fifty_random_choices() -> None:
    features = unit_rows(300, 8, 0)
    mean, order = features.mean(0), herding(features, 100)
    for count in (20, 40, 100):
        herd = float((features[order[:count]].mean(0) - mean).norm())
        random = [features[torch.randperm(300, generator=seed(i))[:count]].mean(0) for i in range(50)]
        assert herd < min(float((choice - mean).norm()) for choice in random) / 2
        assert herd < 1 / count  # like 1 / count, and not like 1 / sqrt(count)


# Exemplars


def test_a_smaller_share_keeps_the_first_of_each_class_in_their_order() -> None:
    kept = Exemplars(12)
    kept.add_class(numbered([5] * 6)[[3, 1, 5, 0, 2, 4]])
    kept.add_class(numbered([0] * 6 + [2] * 6)[[11, 7, 9]])
    kept.reduce(4)
    assert kept_numbers(kept) == [3, 1, 5, 0, 11, 7, 9]
    kept.reduce(2)
    assert kept_numbers(kept) == [3, 1, 11, 7]
    assert kept.data["label"].tolist() == [5, 5, 2, 2]
    assert whole_rows(kept)


def test_a_class_can_be_taken_out_and_put_back() -> None:
    kept = Exemplars(6)
    kept.add_class(numbered([1] * 3))
    kept.add_class(numbered([0] * 3 + [2] * 3)[3:])
    taken = kept.take_class(1)
    assert taken["number"].tolist() == [0, 1, 2]
    assert kept_numbers(kept) == [3, 4, 5]
    assert len(kept.take_class(1)) == 0
    assert len(kept.take_class(2)) == 3
    assert len(kept) == 0
    kept.add_class(taken)
    assert kept_numbers(kept) == [0, 1, 2]


def test_an_empty_memory_of_exemplars_can_be_reduced_and_gives_no_rows() -> None:
    kept = Exemplars(3)
    kept.reduce(1)
    assert len(kept.take_class(0)) == 0
    assert len(kept) == 0


def test_exemplars_beyond_the_capacity_are_refused_and_change_nothing() -> None:
    kept = Exemplars(4)
    kept.add_class(numbered([1] * 3))
    with pytest.raises(DataError, match="5 exemplars do not fit into a memory of 4"):
        kept.add_class(numbered([2] * 2))
    assert kept_numbers(kept) == [0, 1, 2]


# All memories


def test_a_sample_holds_different_rows_and_at_most_all_of_them() -> None:
    memory = Memory(10)
    memory.replace(numbered([0] * 6))
    assert len(set(memory.sample(4, seed(0))["number"].tolist())) == 4
    assert sorted(memory.sample(50, seed(0))["number"].tolist()) == [0, 1, 2, 3, 4, 5]
    assert torch.equal(memory.sample(4, seed(3))["number"], memory.sample(4, seed(3))["number"])


def test_every_row_is_sampled_equally_often() -> None:
    memory, generator, trials = Memory(10), seed(0), 3000
    memory.replace(numbered([0] * 8))
    counts = Counter(row for _ in range(trials) for row in memory.sample(2, generator)["number"].tolist())
    variance = trials * 0.25 * 0.75 * 8 / 7
    assert excess([counts[row] for row in range(8)], trials * 0.25, 7, variance) < 1


@pytest.mark.parametrize("kind", [Memory, Reservoir, ClassBalanced, Exemplars])
@pytest.mark.parametrize("capacity", [0, -3])
def test_a_memory_without_room_is_refused(kind: type[Memory], capacity: int) -> None:
    with pytest.raises(ConfigurationError, match=f"its capacity is {capacity}"):
        kind(capacity)


def put(memory: Memory, data: Data) -> None:
    if isinstance(memory, Reservoir | ClassBalanced):
        memory.add(data, seed(0))
    elif isinstance(memory, Exemplars):
        memory.add_class(data)
    else:
        memory.replace(data)


@pytest.mark.parametrize("kind", [Memory, Reservoir, ClassBalanced, Exemplars])
def test_a_column_that_is_a_list_is_refused_by_name_and_nothing_is_kept(kind: type[Memory]) -> None:
    memory = kind(3)
    with pytest.raises(DataError, match="'text' is a list"):
        put(memory, Data(label=torch.tensor([0]), text=["a"]))
    assert len(memory) == 0
    assert all(value.sum() == 0 for value in memory.state_dict().values())


@pytest.mark.parametrize("kind", [Memory, Reservoir, ClassBalanced, Exemplars])
def test_a_column_that_is_refused_leaves_a_filled_memory_as_it_was(kind: type[Memory]) -> None:
    memory = kind(3)
    put(memory, Data(label=torch.tensor([0, 1]), text=torch.tensor([5, 6])))
    before = {name: value.clone() for name, value in memory.state_dict().items()}
    for bad in (["a"], ["a", "b"], ["a"] * 50):
        with pytest.raises(DataError):
            put(memory, Data(label=torch.zeros(len(bad), dtype=torch.int64), text=bad))
        assert memory.state_dict().keys() == before.keys()
        assert all(torch.equal(value, before[name]) for name, value in memory.state_dict().items())


def test_a_full_reservoir_that_refuses_rows_does_not_count_them() -> None:
    memory = Reservoir(3)
    memory.add(Data(text=torch.tensor([5, 6, 7])), seed(0))
    with pytest.raises(DataError):
        memory.add(Data(text=["a"] * 50), seed(0))
    assert int(memory.seen) == 3


@pytest.mark.parametrize("name", ["data", "capacity", "train", "type", "seen", "seen_labels", "column_x", ""])
@pytest.mark.parametrize("kind", [Memory, Reservoir, ClassBalanced, Exemplars])
def test_a_column_may_have_any_name_and_hides_nothing(kind: type[Memory], name: str) -> None:
    memory, fresh = kind(3), kind(3)
    rows = Data({"label": torch.tensor([0, 1]), name: torch.tensor([70, 71])})
    put(memory, rows)
    fresh.load_state_dict(memory.state_dict())
    for each in (memory, fresh):
        assert sorted(each.data) == sorted(["label", name])
        assert each.data[name].tolist() == [70, 71]
        assert each.train() is each
        if isinstance(each, Reservoir):
            assert int(each.seen) == 2


@pytest.mark.parametrize("kind", [Memory, Reservoir, ClassBalanced, Exemplars])
def test_a_column_with_a_dot_in_its_name_is_refused_with_a_sentence(kind: type[Memory]) -> None:
    memory = kind(3)
    with pytest.raises(DataError, match=r"'image\.bytes'.* has a dot; rename it"):
        put(memory, Data({"label": torch.tensor([0]), "image.bytes": torch.tensor([0])}))
    assert len(memory) == 0


@pytest.mark.parametrize("kind", [Memory, Reservoir, ClassBalanced, Exemplars])
def test_a_filled_memory_loads_into_a_fresh_one_bit_for_bit(kind: type[Memory]) -> None:
    filled, fresh = kind(8), kind(8)
    put(filled, images([0, 1, 2, 0, 1, 2]))
    fresh.load_state_dict(filled.state_dict())
    assert fresh.data["image"].dtype == torch.uint8
    assert fresh.state_dict().keys() == filled.state_dict().keys()
    for name, value in filled.state_dict().items():
        assert fresh.state_dict()[name].dtype == value.dtype
        assert torch.equal(fresh.state_dict()[name], value)
    assert sorted(fresh.data) == ["image", "label"]


@pytest.mark.parametrize("kind", [Reservoir, ClassBalanced])
def test_a_restored_memory_goes_on_as_if_nothing_had_happened(kind: type[Keeps]) -> None:
    labels = np.random.RandomState(0).randint(0, 4, 60).tolist()
    whole = kind(9)
    whole.add(images(labels), seed(0))
    fresh = torch.nn.ModuleDict({"kept": kind(9)})
    fresh.load_state_dict(torch.nn.ModuleDict({"kept": whole}).state_dict())
    restored = fresh["kept"]
    assert isinstance(restored, Reservoir | ClassBalanced)
    for memory in (whole, restored):
        memory.add(images([3, 4, 4, 0, 5] * 8, start=60), seed(7))
    assert all(torch.equal(restored.data[name], whole.data[name]) for name in whole.data)


@pytest.mark.parametrize("kind", [Memory, Reservoir, ClassBalanced, Exemplars])
def test_a_filled_memory_goes_back_to_a_smaller_state_and_to_an_empty_one(kind: type[Memory]) -> None:
    memory, small = kind(8), kind(8)
    put(small, images([1, 1]))
    put(memory, numbered([0, 1, 2, 0, 1, 2]))
    memory.load_state_dict(small.state_dict())
    assert torch.equal(memory.data["image"], small.data["image"])
    assert len(memory) == 2
    memory.load_state_dict(kind(8).state_dict())
    assert len(memory) == 0


def test_replacing_holds_exactly_the_new_rows_and_columns() -> None:
    memory = Memory(10)
    memory.replace(numbered([0, 1, 2]))
    memory.replace(numbered([4, 5]).select("label"))
    assert list(memory.data) == ["label"]
    assert memory.data["label"].tolist() == [4, 5]


def test_widening_pads_a_column_with_zeros_and_leaves_the_others() -> None:
    memory = Reservoir(4)
    memory.widen("logits", 3)  # nothing there yet
    memory.add(Data(logits=torch.tensor([[1.0, 2.0], [3.0, 4.0]]), label=torch.tensor([0, 1])), seed(0))
    memory.widen("logits", 4)
    memory.widen("absent", 4)
    assert memory.data["logits"].tolist() == [[1, 2, 0, 0], [3, 4, 0, 0]]
    assert memory.data["label"].tolist() == [0, 1]
    memory.add(Data(logits=torch.ones(1, 4), label=torch.tensor([2])), seed(0))
    assert memory.data["logits"].shape == (3, 4)


def test_widening_never_cuts() -> None:
    memory = Reservoir(4)
    memory.add(Data(logits=torch.ones(1, 4)), seed(0))
    memory.widen("logits", 2)
    assert memory.data["logits"].shape == (1, 4)
