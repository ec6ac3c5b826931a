"""Checkpoints: whole or not at all, whatever happens to the process or the disk; damage is found, told and survived."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latewood.core import checkpoint, files
from latewood.core.checkpoint import Checkpoints, load, save, tensors_of
from latewood.core.errors import CheckpointError, StorageError
from latewood.core.files import cache_folder, sweep_temporaries, write_atomically, write_folder_atomically

FILES = ("state.safetensors", "info.json", "manifest.json")


def state_of(number: int, size: int = 8) -> dict[str, Tensor]:
    return {"weight": torch.full((size,), float(number)), "count": torch.tensor(number)}


@pytest.fixture
def shelf(tmp_path: Path) -> Checkpoints:
    """A shelf with the checkpoints 1 and 2."""
    made = Checkpoints(tmp_path / "checkpoints")
    for number in (1, 2):
        made.add(number, state_of(number), {"number": number})
    return made


def names(shelf: Checkpoints) -> list[str]:
    return sorted(p.name for p in shelf.folder.iterdir())


def newest(shelf: Checkpoints, told: list[str] | None = None) -> int | None:
    """The number of the newest checkpoint, whose contents must be those of that number."""
    found = shelf.newest((told if told is not None else []).append)
    if found is None:
        return None
    number, state, info = found
    assert info == {"number": number}
    wanted = state_of(number, len(state["weight"]))
    assert set(state) == set(wanted)
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)
    return number


# What goes in comes out


SPECIAL = {
    "bfloat16": torch.randn(3, 2).bfloat16(),
    "half": torch.randn(3).half(),
    "double": torch.randn(3, dtype=torch.float64),
    "truth": torch.tensor([True, False]),
    "integers": torch.tensor([-(2**62), 2**62]),
    "bytes": torch.arange(256, dtype=torch.uint8),
    "scalar": torch.tensor(3.5),
    "scalar truth": torch.tensor(True),
    "nothing": torch.empty(0),
    "no rows": torch.empty(0, 4, dtype=torch.int64),
    "not finite": torch.tensor([float("nan"), float("inf"), -0.0]),
}


@pytest.mark.parametrize("name", SPECIAL)
def test_tensors_of_every_kind_come_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    tensor = SPECIAL[name]
    save(tmp_path / "c", {name: tensor}, {})
    found = load(tmp_path / "c")[0][name]
    assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(found.flatten().view(torch.uint8), tensor.flatten().view(torch.uint8))


def test_a_state_without_tensors_comes_back(tmp_path: Path) -> None:
    save(tmp_path / "c", {}, {"text": "é", "list": [1, None, 0.1]})
    assert load(tmp_path / "c") == ({}, {"text": "é", "list": [1, None, 0.1]})


def test_views_and_transposed_tensors_come_back_as_they_look(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    state = {"column": whole[:, 1], "transposed": whole.t(), "row": whole[2], "whole": whole, "expanded": whole[0].expand(5, 4)}
    save(tmp_path / "c", state, {})
    found = load(tmp_path / "c")[0]
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    assert (tmp_path / "c" / "state.safetensors").stat().st_size < 2000  # a row does not bring its whole storage along


def test_tied_weights_come_back_tied(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.out = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.out.weight = self.embed.weight

    first, second = Tied(), Tied()
    save(tmp_path / "c", tensors_of(first), {})
    second.load_state_dict(load(tmp_path / "c")[0])
    assert torch.equal(second.out.weight, first.embed.weight)
    assert second.out.weight is second.embed.weight


def test_state_that_is_no_tensor_is_refused_by_name() -> None:
    class Extra(nn.Module):
        def get_extra_state(self) -> dict[str, int]:
            return {"steps": 3}

    with pytest.raises(CheckpointError, match="Extra keeps '_extra_state' as a dict; state must be tensors"):
        tensors_of(Extra())


def test_extra_state_that_is_a_tensor_is_kept(tmp_path: Path) -> None:
    class Extra(nn.Module):
        steps = 0

        def get_extra_state(self) -> Tensor:
            return torch.tensor(self.steps)

        def set_extra_state(self, state: Tensor) -> None:
            self.steps = int(state)

    first, second = Extra(), Extra()
    first.steps = 7
    save(tmp_path / "c", tensors_of(first), {})
    second.load_state_dict(load(tmp_path / "c")[0])
    assert second.steps == 7


def test_saving_changes_nothing_in_what_is_saved(tmp_path: Path) -> None:
    weight = torch.randn(4, 4, requires_grad=True)
    view = weight.t()
    save(tmp_path / "c", {"weight": view}, {})
    assert not view.is_contiguous()
    assert weight.requires_grad


def test_nothing_on_disk_is_a_pickle(shelf: Checkpoints) -> None:
    import pickle

    for file in (p for p in shelf.folder.rglob("*") if p.is_file()):
        with file.open("rb") as opened, pytest.raises((pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError)):
            pickle.load(opened)


# The shelf


def test_an_empty_or_missing_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert newest(Checkpoints(tmp_path)) is None
    assert newest(Checkpoints(tmp_path / "not there")) is None
    assert not (tmp_path / "not there").exists()


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    shelf = Checkpoints(tmp_path)
    for number in range(12):
        shelf.add(number, state_of(number), {"number": number})
        assert newest(shelf) == number
    assert names(shelf) == ["000010", "000011"]


def test_what_is_not_a_checkpoint_is_left_alone(shelf: Checkpoints) -> None:
    (shelf.folder / "notes").mkdir()
    (shelf.folder / "000009").write_text("a file")
    for number in (3, 4):
        shelf.add(number, state_of(number), {"number": number})
    assert newest(shelf) == 4
    assert names(shelf) == ["000003", "000004", "000009", "notes"]


def test_a_checkpoint_can_be_written_again_in_place_of_a_damaged_one(shelf: Checkpoints) -> None:
    (shelf.folder / "000002" / "info.json").write_text("{}")
    shelf.add(2, state_of(2), {"number": 2})
    assert newest(shelf) == 2


# Damage


def copy_of(shelf: Checkpoints) -> Path:
    return Path(shutil.copytree(shelf.folder, shelf.folder.with_name("pristine")))


def put_back(pristine: Path, shelf: Checkpoints) -> None:
    shutil.rmtree(shelf.folder)
    shutil.copytree(pristine, shelf.folder)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere_is_found_and_the_one_before_is_used(shelf: Checkpoints, name: str) -> None:
    whole = (shelf.folder / "000002" / name).read_bytes()
    pristine = copy_of(shelf)
    for position in range(0, len(whole), 1 + len(whole) // 60):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        put_back(pristine, shelf)
        (shelf.folder / "000002" / name).write_bytes(damaged)
        told: list[str] = []
        assert newest(shelf, told) == 1, f"byte {position} of {name}"
        assert len(told) == 1
        assert "000002" in told[0]
        assert "damaged" in told[0]
        assert told[0].endswith("The one before it is used.")
    put_back(pristine, shelf)
    assert newest(shelf) == 2


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_or_missing_file_is_found_and_the_one_before_is_used(shelf: Checkpoints, name: str) -> None:
    whole = (shelf.folder / "000002" / name).read_bytes()
    pristine = copy_of(shelf)
    for content in (whole[:-1], whole[: len(whole) // 2], b"", None):
        put_back(pristine, shelf)
        (shelf.folder / "000002" / name).unlink()
        if content is not None:
            (shelf.folder / "000002" / name).write_bytes(content)
        told: list[str] = []
        assert newest(shelf, told) == 1
        assert len(told) == 1


def test_a_folder_without_any_file_is_no_checkpoint(shelf: Checkpoints) -> None:
    (shelf.folder / "000003").mkdir()
    told: list[str] = []
    assert newest(shelf, told) == 2
    assert len(told) == 1


def test_files_that_are_whole_but_from_another_checkpoint_are_found(shelf: Checkpoints) -> None:
    shutil.copy(shelf.folder / "000001" / "state.safetensors", shelf.folder / "000002" / "state.safetensors")
    assert newest(shelf) == 1


@pytest.mark.parametrize("manifest", ["[]", "3", '"text"', "{}", '{"blake2b": []}', '{"format": 1, "blake2b": {}}', "[[[["])
def test_a_manifest_that_vouches_for_nothing_is_damage(shelf: Checkpoints, manifest: str) -> None:
    (shelf.folder / "000002" / "manifest.json").write_text(manifest)
    assert newest(shelf) == 1


def test_a_checkpoint_of_a_later_format_is_not_read_as_one_of_this(shelf: Checkpoints) -> None:
    path = shelf.folder / "000002" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(CheckpointError, match="format 2"):
        load(path.parent)


def test_if_all_are_damaged_there_is_none_and_nothing_claims_that_an_earlier_one_is_used(shelf: Checkpoints) -> None:
    for number in ("000001", "000002"):
        (shelf.folder / number / "manifest.json").write_text("")
    told: list[str] = []
    assert newest(shelf, told) is None
    assert [sentence.endswith("The one before it is used.") for sentence in told] == [True, False]


def test_checkpoints_written_after_all_were_damaged_survive(shelf: Checkpoints) -> None:
    """Starting over, the damaged ones have the higher numbers, and must not push out the new ones."""
    for number in ("000001", "000002"):
        (shelf.folder / number / "manifest.json").write_text("")
    assert newest(shelf) is None
    for again in (0, 1):
        shelf.add(again, state_of(again), {"number": again})
        assert newest(shelf) == again
    assert [name for name in names(shelf) if name.isdigit()] == ["000000", "000001"]


def test_the_user_is_told_by_print_if_nobody_else_listens(shelf: Checkpoints, capsys: pytest.CaptureFixture[str]) -> None:
    (shelf.folder / "000002" / "info.json").unlink()
    found = shelf.newest()
    assert found is not None
    assert found[0] == 1
    assert "000002" in capsys.readouterr().out


# Crashes


def test_what_killed_writers_left_is_swept(shelf: Checkpoints) -> None:
    (shelf.folder / ".000003.0123456789ab.tmp").mkdir()
    (shelf.folder / ".000003.0123456789ab.tmp" / "state.safetensors").write_bytes(b"half")
    (shelf.folder / ".record.json.0123456789ab.tmp").write_bytes(b"half")
    assert newest(shelf) == 2
    assert names(shelf) == ["000001", "000002"]


def test_sweeping_a_folder_that_is_not_there_does_nothing(tmp_path: Path) -> None:
    sweep_temporaries(tmp_path / "not there")
    assert not (tmp_path / "not there").exists()


CALLS: list[tuple[Any, str]] = [
    (os, "fsync"),
    (os, "open"),
    (Path, "mkdir"),
    (Path, "replace"),
    (Path, "write_text"),
    (checkpoint, "save_file"),
    (shutil, "rmtree"),
]


def dying(original: Callable[..., Any], count: list[int], nth: int, die: Callable[[], None]) -> Callable[..., Any]:
    """``original``, but at its ``nth`` call the process dies instead."""

    def call(*args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        if count[0] == nth:
            die()
        return original(*args, **kwargs)

    return call


class Killed(BaseException):
    """As sudden as an exception can be."""


@pytest.mark.parametrize(("owner", "name"), CALLS, ids=[name for _, name in CALLS])
def test_a_process_that_dies_at_any_call_leaves_the_old_or_the_new_checkpoint_whole(
    shelf: Checkpoints, owner: Any, name: str
) -> None:
    for nth in range(1, 30):
        expected = newest(shelf)
        assert expected is not None
        child = os.fork()
        if child == 0:
            try:
                setattr(owner, name, dying(getattr(owner, name), [0], nth, lambda: os._exit(9)))
                shelf.add(expected + 1, state_of(expected + 1), {"number": expected + 1})
            finally:
                os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert newest(shelf) in (expected, expected + 1)
        assert not list(shelf.folder.glob(".*.tmp"))
        if status == 0:
            assert nth > 1, f"{name} was never called"
            assert newest(shelf) == expected + 1
            return
        assert status == 9
    raise AssertionError(f"{name} was still called at the 30th time")


@pytest.mark.parametrize(("owner", "name"), CALLS, ids=[name for _, name in CALLS])
def test_an_interruption_at_any_call_leaves_nothing_behind(
    shelf: Checkpoints, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    for nth in range(1, 30):
        expected = newest(shelf)
        assert expected is not None

        def die() -> None:
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, dying(getattr(owner, name), [0], nth, die))
            try:
                shelf.add(expected + 1, state_of(expected + 1), {"number": expected + 1})
            except Killed:
                finished = False
            else:
                finished = True
        assert not list(shelf.folder.glob(".*.tmp"))
        assert newest(shelf) in (expected, expected + 1)
        if finished:
            return
    raise AssertionError(f"{name} was still called at the 30th time")


def test_everything_is_flushed_to_the_disk_before_the_rename_and_the_folder_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the rename could survive a power cut and the contents not."""
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def note_fsync(handle: int) -> None:
        events.append("flush " + Path(f"/proc/self/fd/{handle}").readlink().name)
        fsync(handle)

    def note_replace(self: Path, target: Path) -> Path:
        events.append("rename")
        return replace(self, target)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc to see which file is flushed")
    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_replace)
    save(tmp_path / "shelf" / "000001", state_of(1), {})
    before, after = events[: events.index("rename")], events[events.index("rename") + 1 :]
    assert {f"flush {name}" for name in FILES} <= set(before)
    assert len(before) == len(FILES) + 1  # and the temporary folder itself
    assert after == ["flush shelf"]


# Disks that do not take it


def _mounted(place: Path, options: str) -> Iterator[Path]:
    place.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small disk needs root")
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"mounting is not permitted here: {made.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    yield from _mounted(tmp_path / "small", "size=1m")


@pytest.fixture
def unwritable(tmp_path: Path) -> Iterator[Path]:
    """A folder in which nothing can be written: by its mode, or, for root whom no mode stops, on a read-only disk."""
    if os.geteuid() == 0:
        yield from _mounted(tmp_path / "locked", "size=1m,ro")
        return
    place = tmp_path / "locked"
    place.mkdir(mode=0o500)
    yield place
    place.chmod(0o700)


def test_a_checkpoint_larger_than_the_disk_is_an_error_that_spares_the_one_before(small_disk: Path) -> None:
    shelf = Checkpoints(small_disk / "run")
    shelf.add(1, state_of(1), {"number": 1})
    with pytest.raises(StorageError, match=r"Could not write .*000002: the disk is full\. What was saved before is untouched"):
        shelf.add(2, state_of(2, 1_000_000), {"number": 2})
    assert names(shelf) == ["000001"]
    assert newest(shelf) == 1
    shelf.add(2, state_of(2), {"number": 2})
    assert newest(shelf) == 2


def test_a_disk_that_runs_full_at_any_point_of_a_save_spares_what_was_there(small_disk: Path) -> None:
    shelf = Checkpoints(small_disk / "run")
    shelf.add(1, state_of(1), {"number": 1})
    filler, outcomes = small_disk / "filler", []
    for pages in range(9):  # what one save needs is a few pages
        with filler.open("wb") as file:
            free = shutil.disk_usage(small_disk).free
            file.write(bytes(max(0, free - pages * 4096)))
        number = newest(shelf)
        assert number is not None
        try:
            shelf.add(number + 1, state_of(number + 1, 1500), {"number": number + 1})
            outcomes.append(True)
        except StorageError as error:
            assert "the disk is full" in str(error)
            outcomes.append(False)
        assert newest(shelf) == number + outcomes[-1]
        assert not list(shelf.folder.glob(".*.tmp"))
        filler.unlink()
    assert outcomes[0] is False
    assert outcomes[-1] is True


def test_a_record_that_does_not_fit_leaves_the_old_one(small_disk: Path) -> None:
    path = small_disk / "record.json"
    write_atomically(path, "old")
    with pytest.raises(StorageError, match=r"record\.json: the disk is full"):
        write_atomically(path, "x" * 2_000_000)
    assert path.read_text() == "old"
    assert list(small_disk.iterdir()) == [path]


def test_a_folder_that_is_not_writable_is_an_error_in_a_sentence(unwritable: Path) -> None:
    for place in (unwritable, unwritable / "new"):
        with pytest.raises(StorageError, match=r"Could not write .*000001: .+\. What was saved before is untouched"):
            Checkpoints(place).add(1, state_of(1), {})
    assert list(unwritable.iterdir()) == []


def test_a_file_where_a_folder_should_be_is_an_error_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(StorageError, match="Could not write"):
        Checkpoints(tmp_path / "taken").add(1, state_of(1), {})
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize(("owner", "name"), CALLS[:-1], ids=[name for _, name in CALLS[:-1]])
def test_an_error_of_the_disk_at_any_call_is_a_sentence_and_spares_what_was_there(
    shelf: Checkpoints, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, code: int
) -> None:
    def fail() -> None:
        raise OSError(code, os.strerror(code))

    reason = os.strerror(code) if code == errno.EIO else "the disk is full"
    for nth in range(1, 30):
        expected = newest(shelf)
        assert expected is not None
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, dying(getattr(owner, name), [0], nth, fail))
            try:
                shelf.add(expected + 1, state_of(expected + 1), {"number": expected + 1})
                return
            except StorageError as error:
                assert reason in str(error)
                assert "What was saved before is untouched" in str(error)
        assert not list(shelf.folder.glob(".*.tmp"))
        assert newest(shelf) in (expected, expected + 1)
    raise AssertionError(f"{name} was still called at the 30th time")


def test_an_error_that_is_not_of_the_disk_stays_what_it_is(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        write_folder_atomically(tmp_path / "new", fill)
    assert list(tmp_path.iterdir()) == []


def test_info_that_json_can_not_hold_leaves_nothing_behind(shelf: Checkpoints) -> None:
    with pytest.raises(TypeError):
        shelf.add(3, state_of(3), {"number": object()})
    assert names(shelf) == ["000001", "000002"]


# Single files and the cache


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "down" / "note.txt"
    write_atomically(path, "first")
    write_atomically(path, b"\xffsecond")
    assert path.read_bytes() == b"\xffsecond"
    assert [p.name for p in path.parent.iterdir()] == ["note.txt"]


def test_text_is_written_as_utf_8(tmp_path: Path) -> None:
    write_atomically(tmp_path / "note", "θ – é")
    assert (tmp_path / "note").read_bytes() == "θ – é".encode()


def test_the_cache_lies_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATEWOOD_CACHE", str(tmp_path / "cache"))
    assert cache_folder("speed") == tmp_path / "cache" / "speed"
    assert (tmp_path / "cache" / "speed").is_dir()
    monkeypatch.setenv("LATEWOOD_CACHE", "off")
    assert cache_folder("speed") is None
    monkeypatch.delenv("LATEWOOD_CACHE")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    assert cache_folder("speed") == tmp_path / "home" / ".cache" / "latewood" / "speed"


def test_a_cache_that_can_not_be_made_is_an_error_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("LATEWOOD_CACHE", str(tmp_path / "taken"))
    with pytest.raises(StorageError, match="LATEWOOD_CACHE"):
        files.cache_folder("speed")
