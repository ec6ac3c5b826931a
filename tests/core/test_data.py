"""Data: views that copy nothing, selections that mean what they mean in Python, fingerprints that tell contents apart."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latewood import Data, concat
from latewood.core.data import check_finite
from latewood.core.errors import DataError

quick = settings(deadline=None, max_examples=60)


@pytest.fixture
def data() -> Data:
    return Data(x=torch.arange(20).view(10, 2), label=torch.arange(10), name=list("abcdefghij"))


def storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


# What a table is


def test_it_is_a_mapping_of_columns_with_a_number_of_rows(data: Data) -> None:
    assert len(data) == 10
    assert list(data) == ["x", "label", "name"]
    assert "x" in data
    assert "y" not in data
    assert dict(data.items())["name"] == list("abcdefghij")


def test_a_column_named_anything_can_be_given_as_a_dictionary() -> None:
    assert list(Data({"input ids": [1, 2]}, label=[0, 1])) == ["input ids", "label"]


def test_columns_of_different_length_are_refused_with_their_lengths() -> None:
    with pytest.raises(DataError, match="equally long, but they have x 3, label 2 rows"):
        Data(x=torch.zeros(3), label=torch.zeros(2))


@pytest.mark.parametrize("values", [7, "text", b"bytes", None, {1, 2}, {"a": 1}])
def test_what_is_no_column_is_refused_by_name(values: Any) -> None:
    with pytest.raises(DataError, match="Column 'x' must be a tensor, an array or a list"):
        Data(x=values)


@pytest.mark.parametrize(
    "values",
    [torch.tensor(1.0), np.array(1.0), np.array(["a", "b"]), np.array([object()])],
    ids=["0-dim tensor", "0-dim array", "text array", "object array"],
)
def test_tensors_and_arrays_that_can_be_no_column_are_refused_in_a_sentence(values: Any) -> None:
    with pytest.raises(DataError, match="Column 'x'"):
        Data(x=values)


def test_an_array_with_negative_strides_becomes_a_column() -> None:
    assert Data(x=np.arange(4)[::-1])["x"].tolist() == [3, 2, 1, 0]


def test_a_missing_column_is_named_with_those_that_exist(data: Data) -> None:
    with pytest.raises(DataError, match="no column 'image' in this data; it has 'x', 'label', 'name'"):
        data["image"]
    with pytest.raises(DataError, match="it has none"):
        Data()["image"]
    with pytest.raises(DataError, match="no column 'image'"):
        data.select("x", "image")
    with pytest.raises(DataError, match="no column 'image'"):
        data.fingerprint("image")


def test_a_list_is_no_tensor(data: Data) -> None:
    assert data.tensor("x").shape == (10, 2)
    with pytest.raises(DataError, match="Column 'name' must be a tensor, but it is a list"):
        data.tensor("name")


def test_its_text_names_rows_columns_and_types(data: Data) -> None:
    assert repr(data[:3]) == "Data(3 rows; x: int64[2], label: int64[], name: list)"


def test_it_can_be_compared_and_hashed_by_identity(data: Data) -> None:
    view = data[:]
    assert data == data  # noqa: PLR0124
    assert data != view
    assert len({data, view}) == 2


# Views


def test_slices_and_nested_slices_share_the_storage(data: Data) -> None:
    for view in (data[2:8], data[::3], data[2:8][1:3], data[range(3, 9)], data.select("x")[1:]):
        assert storage(view.tensor("x")) == storage(data.tensor("x"))


def test_writing_into_the_table_is_seen_through_its_views(data: Data) -> None:
    views = [data[3:5], data[[3, 4]], data[data["label"] == 3]]
    data.tensor("x")[3] = -1
    assert all(view["x"][0].tolist() == [-1, -1] for view in views)


def test_a_view_by_index_copies_no_column_that_is_not_read(data: Data) -> None:
    view = data[[5, 1]]
    assert view._columns is data._columns  # the same columns, other rows


def test_masks_lists_arrays_and_ranges_select_rows(data: Data) -> None:
    odd = data["label"] % 2 == 1
    for key in (odd, odd.tolist(), odd.numpy(), [1, 3, 5, 7, 9], np.array([1, 3, 5, 7, 9]), range(1, 10, 2), slice(1, None, 2)):
        assert data[key]["label"].tolist() == [1, 3, 5, 7, 9]
        assert data[key]["name"] == list("bdfhj")


def test_rows_may_repeat_and_come_in_any_order(data: Data) -> None:
    assert data[[2, 0, 2]]["label"].tolist() == [2, 0, 2]
    assert data[[2, 0, 2]][[2, 1]]["name"] == ["c", "a"]


def test_nothing_can_be_selected(data: Data) -> None:
    keys: list[Any] = [[], slice(3, 3), torch.zeros(10, dtype=torch.bool), range(0), slice(0, 0, -1)]
    for key in keys:
        view = data[key]
        assert len(view) == 0
        assert view["x"].shape == (0, 2)
        assert view["name"] == []


@pytest.mark.parametrize("number", [3, np.int64(3), torch.tensor(3), -7, np.int32(-7), torch.tensor(-7)])
def test_one_row_is_a_table_of_one_row_whatever_kind_of_integer_names_it(data: Data, number: Any) -> None:
    assert data[number]["label"].tolist() == [3]


@pytest.mark.parametrize(
    ("key", "wanted"),
    [
        (slice(None, None, -1), [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
        (range(9, -1, -1), [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
        (slice(8, 1, -3), [8, 5, 2]),
        (range(8, 1, -3), [8, 5, 2]),
    ],
)
def test_rows_can_be_reversed_also_on_a_view_by_index(data: Data, key: Any, wanted: list[int]) -> None:
    assert data[key]["label"].tolist() == wanted
    assert data[list(range(10))][key]["label"].tolist() == wanted


def test_reversing_twice_gives_the_table_back(data: Data) -> None:
    assert data[::-1][::-1]["label"].tolist() == list(range(10))


def _keys(length: int) -> st.SearchStrategy[Any]:
    """Keys that are valid for a table of this length, of every kind."""
    kinds: list[st.SearchStrategy[Any]] = [st.slices(length), st.lists(st.booleans(), min_size=length, max_size=length)]
    if length:
        positions = st.integers(-length, length - 1)
        kinds += [positions, st.lists(positions, max_size=6)]
    return st.one_of(kinds)


def _select(rows: list[int], key: Any) -> list[int]:
    """What the key means in Python's own words."""
    if isinstance(key, int):
        return [rows[key]]
    if isinstance(key, slice):
        return rows[key]
    if key and isinstance(key[0], bool):
        return [row for row, wanted in zip(rows, key, strict=True) if wanted]
    return [rows[i] for i in key]


@quick
@given(length=st.integers(0, 9), chooser=st.data())
def test_any_chain_of_selections_means_what_it_means_for_a_list(length: int, chooser: st.DataObject) -> None:
    table = Data(x=torch.arange(length), name=[str(i) for i in range(length)])
    view, wanted = table, list(range(length))
    for _ in range(3):
        key = chooser.draw(_keys(len(wanted)))
        view, wanted = view[key], _select(wanted, key)
        assert len(view) == len(wanted)
        assert view["x"].tolist() == wanted
        assert view["name"] == [str(i) for i in wanted]


@quick
@given(length=st.integers(0, 9), chooser=st.data())
def test_rows_says_where_each_row_of_a_view_lies_in_its_base(length: int, chooser: st.DataObject) -> None:
    table = Data(x=torch.arange(length))
    view = table[chooser.draw(_keys(length))]
    assert view.rows.dtype == torch.int64
    assert view.rows.tolist() == view["x"].tolist()
    assert view.base["x"].tolist() == list(range(length))


def test_the_rows_of_a_slice_with_a_step_are_those_of_the_slice(data: Data) -> None:
    assert data[1::3].rows.tolist() == [1, 4, 7]
    assert data[1::3][::2].rows.tolist() == [1, 7]


@pytest.mark.parametrize(("key", "row"), [(10, 10), (-11, -11), ([2, 10], 10), ([-11, 2], -11), (range(5, 12), 10)])
def test_a_row_that_does_not_exist_is_named(data: Data, key: Any, row: int) -> None:
    with pytest.raises(DataError, match=f"Row {row} does not exist in data with 10 rows"):
        data[key]


def test_a_slice_beyond_the_end_is_cut_as_in_python(data: Data) -> None:
    assert data[8:20]["label"].tolist() == [8, 9]
    assert len(data[20:30]) == 0


def test_a_mask_must_have_an_entry_for_each_row(data: Data) -> None:
    with pytest.raises(DataError, match=r"A mask over 10 rows must have 10 entries, but .*3"):
        data[[True, False, True]]
    with pytest.raises(DataError, match=r"A mask over 2 rows must have 2 entries, but .*10"):
        data[:2][data["label"] > 4]


@pytest.mark.parametrize(
    "key",
    [[0.5, 1.0], torch.ones(10, 2, dtype=torch.bool), torch.zeros(2, 2, dtype=torch.int64)],
    ids=["fractions", "a mask of two dimensions", "indices of two dimensions"],
)
def test_what_can_name_no_rows_is_refused(data: Data, key: Any) -> None:
    with pytest.raises(DataError):
        data[key]


# New tables


def test_select_keeps_the_rows_of_a_view_and_copies_nothing(data: Data) -> None:
    chosen = data[2:4].select("label", "x")
    assert list(chosen) == ["label", "x"]
    assert chosen["label"].tolist() == [2, 3]
    assert storage(chosen.tensor("x")) == storage(data.tensor("x"))
    assert list(data) == ["x", "label", "name"]


def test_with_columns_adds_and_replaces_on_the_rows_of_a_view(data: Data) -> None:
    table = data[[1, 0]].with_columns(label=[5, 6], extra=torch.zeros(2))
    assert table["label"] == [5, 6]
    assert table["name"] == ["b", "a"]
    assert set(table) == {"x", "label", "name", "extra"}
    assert data["label"].tolist() == list(range(10))
    with pytest.raises(DataError, match="equally long"):
        data.with_columns(extra=[1])


def test_to_makes_a_table_of_its_own(data: Data) -> None:
    moved = data[4:6].to("cpu")
    assert len(moved.base) == 2
    assert moved.rows.tolist() == [0, 1]
    assert moved["name"] == ["e", "f"]
    assert moved.to("meta").tensor("x").device.type == "meta"


@quick
@given(rows=st.integers(0, 40), size=st.integers(1, 15), seed=st.none() | st.integers(0, 5))
def test_batches_hold_each_row_once(rows: int, size: int, seed: int | None) -> None:
    table = Data(x=torch.arange(rows + 3))[3:]
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    batches = list(table.batches(size, generator))
    assert all(len(batch) == size for batch in batches[:-1])
    held = [value for batch in batches for value in batch["x"].tolist()]
    assert sorted(held) == list(range(3, rows + 3))
    if seed is None:
        assert held == sorted(held)


def test_shuffled_batches_depend_on_the_generator_alone(data: Data) -> None:
    def order(seed: int) -> list[int]:
        return [i for batch in data.batches(3, torch.Generator().manual_seed(seed)) for i in batch["label"].tolist()]

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert order(1) != list(range(10))


# Concatenation


def test_concat_puts_tensors_and_lists_below_one_another(data: Data) -> None:
    both = concat(data[:2], data[[9, 9]], data[:0])
    assert both["label"].tolist() == [0, 1, 9, 9]
    assert both["name"] == ["a", "b", "j", "j"]
    assert both["x"].shape == (4, 2)


def test_concat_takes_the_columns_of_the_first_and_drops_others() -> None:
    assert list(concat(Data(x=[1]), Data(y=[2], x=[3]))) == ["x"]
    with pytest.raises(DataError, match="no column 'y'"):
        concat(Data(x=[1], y=[2]), Data(x=[3]))


def test_concat_of_a_list_and_a_tensor_is_a_list() -> None:
    assert concat(Data(x=[1, 2]), Data(x=torch.tensor([3])))["x"] == [1, 2, 3]


def test_concat_names_the_column_whose_rows_have_different_shapes() -> None:
    with pytest.raises(DataError, match=r"Column 'x' cannot be concatenated: its rows have the shapes \(2,\), \(3,\)"):
        concat(Data(x=torch.zeros(1, 2)), Data(x=torch.zeros(1, 3)))


def test_concat_needs_something() -> None:
    with pytest.raises(DataError, match="at least one Data"):
        concat()


# Memory-mapped columns


@pytest.fixture
def big_file(tmp_path: Path) -> Path:
    path = tmp_path / "images.bin"
    np.arange(60, dtype=np.float32).tofile(path)
    return path


def test_a_memmap_becomes_a_column_over_the_pages_of_the_file(big_file: Path) -> None:
    pages = np.memmap(big_file, dtype=np.float32, mode="r+", shape=(20, 3))
    table = Data(image=pages, label=torch.arange(20))
    view = table[5:7]
    pages[5, 0] = -7
    assert view["image"][0].tolist() == [-7, 16, 17]
    assert table[[19]]["image"].tolist() == [[57, 58, 59]]


def test_a_read_only_memmap_is_taken_without_a_warning(big_file: Path) -> None:
    pages = np.memmap(big_file, dtype=np.float32, mode="r", shape=(20, 3))
    torch.set_warn_always(True)  # otherwise torch says it once in a process, and another test may have heard it
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert Data(image=pages)[1]["image"].tolist() == [[3, 4, 5]]
    finally:
        torch.set_warn_always(False)


def test_a_memmap_has_the_fingerprint_of_its_contents(big_file: Path) -> None:
    pages = np.memmap(big_file, dtype=np.float32, mode="r+", shape=(20, 3))
    assert Data(x=pages).fingerprint() == Data(x=torch.arange(60.0).view(20, 3)).fingerprint()


# Fingerprints


def test_equal_contents_have_one_fingerprint_whatever_the_view_or_the_layout() -> None:
    table = Data(x=torch.arange(6).view(3, 2), name=["a", "b", "c"])
    again = Data(x=torch.arange(6).view(3, 2), name=["a", "b", "c"])
    transposed = torch.arange(6).view(3, 2).t().contiguous().t()
    assert table.fingerprint() == again.fingerprint() == table[1:].fingerprint() == table[[2, 0]].fingerprint()
    assert table.fingerprint("x") == Data(x=transposed).fingerprint("x") == table.select("x").fingerprint()
    assert table.fingerprint() != table.fingerprint("x")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.bfloat16, torch.int64, torch.float32, torch.complex64])
@pytest.mark.parametrize("shape", [(4,), (4, 3), (2, 2, 2), (0,), (3, 0)])
def test_every_type_and_shape_has_a_fingerprint_of_its_own(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    column = torch.ones(shape, dtype=dtype)
    others = [torch.ones(shape, dtype=torch.int16), torch.ones((*shape, 1), dtype=dtype), torch.ones(1, *shape, dtype=dtype)]
    prints = {Data(x=c).fingerprint() for c in (column, column.clone(), *others)}
    assert len(prints) == 4


@quick
@given(row=st.integers(0, 7), byte=st.integers(0, 11), flip=st.integers(1, 255))
def test_a_changed_byte_changes_the_fingerprint(row: int, byte: int, flip: int) -> None:
    column = torch.arange(24, dtype=torch.float32).view(8, 3)
    changed = column.clone()
    changed.view(torch.uint8)[row, byte] ^= flip
    assert Data(x=column).fingerprint() != Data(x=changed).fingerprint()


def test_the_name_of_a_column_belongs_to_the_fingerprint() -> None:
    assert Data(x=[1]).fingerprint() != Data(y=[1]).fingerprint()


def test_a_column_of_several_chunks_is_hashed_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latewood.core.data._HASH_CHUNK_BYTES", 16)
    column = torch.arange(100)
    changed = column.clone()
    changed[-1] = -1
    assert Data(x=column).fingerprint() == Data(x=column.clone()).fingerprint() != Data(x=changed).fingerprint()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["a", "b"], ["ab"]),
        ([1, 2], ["1", "2"]),
        ([b"a\0b"], [b"a", b"b"]),
        ([b"1"], [1]),
        ([b"'a'"], ["a"]),
        ([None], ["None"]),
        ([["a", "b"]], [["ab"]]),
        ([["a"], ["b"]], [["a", "b"]]),
        ([{"a": 1}], [[["a", 1]]]),
        ([{"a": 1}], [{"a": 2}]),
        ([1], [1.0]),
        ([1], [True]),
    ],
)
def test_lists_with_different_values_have_different_fingerprints(first: list[Any], second: list[Any]) -> None:
    assert Data(x=first).fingerprint() == Data(x=list(first)).fingerprint()
    assert Data(x=first).fingerprint() != Data(x=second).fingerprint()


@pytest.mark.parametrize("make", [torch.as_tensor, np.asarray], ids=["tensors", "arrays"])
def test_a_list_of_long_waveforms_is_hashed_by_every_sample(make: Callable[[Any], Any]) -> None:
    silence, click = np.zeros(20_000, dtype=np.float32), np.zeros(20_000, dtype=np.float32)
    click[10_000] = 1
    assert Data(x=[make(silence)]).fingerprint() == Data(x=[make(silence.copy())]).fingerprint()
    assert Data(x=[make(silence)]).fingerprint() != Data(x=[make(click)]).fingerprint()


def test_objects_without_a_text_of_their_own_have_no_fingerprint_instead_of_a_wrong_one() -> None:
    class Scene:
        pass

    with pytest.raises(DataError, match="named"):
        Data(x=[Scene()]).fingerprint()


def test_a_named_table_takes_its_fingerprint_from_the_name_and_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*column: object) -> str:
        raise AssertionError("the column was read")

    monkeypatch.setattr("latewood.core.data._hash_column", forbidden)
    named = Data(x=torch.zeros(2), y=torch.ones(2)).named("cifar10/train")
    assert named.fingerprint() == Data(x=torch.ones(2), y=torch.ones(2)).named("cifar10/train").fingerprint()
    assert named.fingerprint() != Data(x=torch.zeros(2), y=torch.ones(2)).named("cifar10/test").fingerprint()
    assert named.fingerprint("x") != named.fingerprint("y")
    assert named[1:].fingerprint() == named.fingerprint()


def test_a_fingerprint_is_computed_once_and_shared_with_views(monkeypatch: pytest.MonkeyPatch) -> None:
    from latewood.core import data as module

    calls, original = [], module._hash_column

    def counted(*column: Any) -> str:
        calls.append(1)
        return original(*column)

    monkeypatch.setattr(module, "_hash_column", counted)
    table = Data(x=torch.zeros(3))
    view = table[1:]
    assert view.fingerprint() == table.fingerprint() == table.base.fingerprint()
    assert len(calls) == 1


# Finite numbers


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("shape", [(), (2,), (2, 2)])
def test_the_first_row_that_is_not_finite_is_named(bad: float, shape: tuple[int, ...]) -> None:
    column = torch.zeros(9000, *shape)
    rows = sorted(random.Random(0).sample(range(4096, 9000), 2))
    column[rows] = bad
    with pytest.raises(DataError, match=f"Column 'x' of experience 3 holds NaN or infinity in row {rows[0]};"):
        check_finite(Data(label=torch.zeros(9000, dtype=torch.int64), x=column), "experience 3")


def test_the_row_is_counted_within_the_view_and_other_rows_do_not_matter() -> None:
    column = torch.zeros(10)
    column[4] = float("nan")
    check_finite(Data(x=column)[5:], "here")
    with pytest.raises(DataError, match="row 2"):
        check_finite(Data(x=column)[2:], "here")


def test_columns_that_can_hold_no_nan_pass() -> None:
    check_finite(Data(a=torch.zeros(3, dtype=torch.uint8), b=["x", "y", "z"], c=torch.zeros(3, dtype=torch.bfloat16)), "here")
