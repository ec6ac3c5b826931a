"""The versioned directory: a version is there whole or not at all, damage is told and survived, what must go is gone."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from latewood.core.errors import CheckpointError, ConfigurationError, StorageError
from latewood.model import store as module
from latewood.model.store import Draft, Store, Version

fork = multiprocessing.get_context("fork")


def tensors_of(number: float) -> dict[str, Tensor]:
    return {"weight": torch.full((300,), float(number)), "count": torch.tensor(int(number))}


def draft(*blobs: str, **facts: Any) -> Draft:
    return Draft(**{"event": "learn", "about": "", "content": {}, "blobs": blobs, **facts})


def made(folder: Path, tell: Callable[[str], None] = print) -> Store:
    """A directory whose version 1 needs the blobs of 0 (every version's) and of 1 (its own)."""

    def make(store: Store) -> Draft:
        (store.backbone / "deep").mkdir()
        (store.backbone / "config.json").write_text("{}")
        (store.backbone / "deep" / "weights").write_bytes(bytes(range(256)))
        blobs = (store.put(tensors_of(0)), store.put(tensors_of(1)))
        return draft(*blobs, event="init", about="made", content={"number": 1, "sums": store.backbone_sums()})

    return Store.create(folder, make, tell)


def learn(store: Store, **facts: Any) -> Version:
    """Commit the next version: the blob of 0, and that of its own number."""
    number = store.next_number()
    blobs = (store.put(tensors_of(0)), store.put(tensors_of(number)))
    return store.commit(draft(*blobs, content={"number": number}, **{"parent": number - 1, **facts}))


def grown(folder: Path, versions: int = 3) -> Store:
    store = made(folder)
    with store.writing("growing"):
        for _ in range(versions - 1):
            learn(store)
    return store


def check(store: Store, version: Version) -> int:
    """The number that a version's contents belong to, all of which must be whole."""
    number = int(version.content["number"])
    for name, belongs in zip(version.blobs, (0, number), strict=True):
        found = store.get(name)
        assert all(torch.equal(found[key], tensor) for key, tensor in tensors_of(belongs).items())
    return number


def numbers(store: Store) -> list[int]:
    return [version.number for version in store.versions()]


def blobs(store: Store) -> set[str]:
    return {path.stem for path in (store.folder / "blobs").rglob("*") if path.is_file()}


def blob_of(store: Store, name: str) -> Path:
    return store.folder / "blobs" / name[:2] / f"{name}.safetensors"


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flip(path: Path, position: int | None = None) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 if position is None else position] ^= 1
    path.write_bytes(raw)


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, told: list[str]) -> Store:
    """A directory with the versions 1 to 3."""
    grown(tmp_path / "model")
    return Store(tmp_path / "model", told.append)


# Making and opening


def test_a_new_directory_holds_version_1_and_its_backbone(tmp_path: Path) -> None:
    store = made(tmp_path / "model")
    head = store.head()
    assert (head.number, head.parent, head.event, head.about) == (1, None, "init", "made")
    assert (head.candidate, head.removes) == (False, ())
    assert check(store, head) == 1
    assert sorted(p.name for p in store.folder.iterdir()) == ["HEAD", "backbone", "blobs", "lock", "staging", "versions"]
    assert set(head.content["sums"]) == {"config.json", "deep/weights"}
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_the_time_of_a_version_is_now_in_utc(store: Store) -> None:
    written = time.strptime(store.head().time, "%Y-%m-%dT%H:%M:%SZ")
    assert abs(time.mktime(time.gmtime()) - time.mktime(written)) < 60


def test_an_empty_folder_is_taken_and_one_that_is_not_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert made(tmp_path / "empty").head().number == 1
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("precious")
    with pytest.raises(CheckpointError, match=r"full is not empty; choose a new or an empty folder for the model\."):
        made(tmp_path / "full")
    assert contents(tmp_path / "full") == {Path("thesis.tex"): b"precious"}
    with pytest.raises(CheckpointError, match="is a file"):
        made(tmp_path / "full" / "thesis.tex")


def test_a_directory_whose_making_fails_does_not_appear(tmp_path: Path) -> None:
    def make(store: Store) -> Draft:
        store.put(tensors_of(0))
        raise RuntimeError("no network")

    with pytest.raises(RuntimeError, match="no network"):
        Store.create(tmp_path / "model", make)
    with pytest.raises(ConfigurationError, match="can't be a candidate"):
        Store.create(tmp_path / "model", lambda store: draft(candidate=True))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["missing", "empty", "file"])
def test_what_is_no_model_directory_is_refused_in_a_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=f"{name} is no model directory"):
        Store(tmp_path / name)


def test_a_relative_folder_stays_the_same_when_the_process_moves_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made(Path("model"))
    store = Store(Path("model"))
    monkeypatch.chdir("/")
    assert store.head().number == 1


# Versions


def test_what_was_committed_comes_back(store: Store) -> None:
    content = {"classes": ["Föhre", "\ud800"], "share": 0.1, "none": None, "deep": {"list": [1, [2]]}, "tuple": (1, 2)}
    with store.writing("learning"):
        blob = store.put({"x": torch.ones(1)})
        version = store.commit(draft(blob, about="two lines\nof text", content=content, parent=3))
    expected = {**content, "tuple": [1, 2]}
    for reader in (store, Store(store.folder)):
        assert reader.head() == version == reader.version(4)
        assert reader.head().content == expected
        assert reader.head().about == "two lines\nof text"
        assert reader.head().parent == 3
        assert numbers(reader) == [1, 2, 3, 4]


def test_a_version_is_not_changed_by_what_happens_to_its_draft(store: Store) -> None:
    content: dict[str, Any] = {"classes": ["cat"]}
    with store.writing("learning"):
        version = store.commit(draft(content=content))
    content["classes"].append("dog")
    assert version.content == store.head().content == {"classes": ["cat"]}


@pytest.mark.parametrize("content", [{"x": object()}, {"x": float("nan")}, {"x": {1, 2}}])
def test_content_that_json_can_not_hold_is_refused_and_nothing_changes(store: Store, content: dict[str, Any]) -> None:
    with store.writing("learning"):
        before = contents(store.folder)
        with pytest.raises(ConfigurationError, match="can't be kept as JSON"):
            store.commit(draft(content=content))
        assert contents(store.folder) == before


def test_a_blob_that_is_missing_or_damaged_can_not_be_committed(store: Store) -> None:
    own = store.head().blobs[1]
    flip(blob_of(store, own))
    with store.writing("learning"):
        before = contents(store.folder)
        with pytest.raises(CheckpointError, match=r"is damaged; nothing was committed\."):
            store.commit(draft(own))
        with pytest.raises(CheckpointError, match=r"is missing; nothing was committed\."):
            store.commit(draft("0" * 64))
        with pytest.raises(CheckpointError, match="not the name of a blob"):
            store.commit(draft("../../secret"))
        assert contents(store.folder) == before


@pytest.mark.parametrize("number", [0, -1, 4, 9])
def test_only_earlier_versions_can_be_removed(store: Store, number: int) -> None:
    with store.writing("forgetting"):
        with pytest.raises(ConfigurationError, match=f"Version 4 can't remove version {number}, only earlier ones"):
            learn(store, removes=(number,))
        assert store.head().number == 3


def test_every_change_needs_to_be_the_writer(store: Store) -> None:
    before = contents(store.folder)
    changes: dict[str, Callable[[], object]] = {
        "put": lambda: store.put({}),
        "commit": lambda: store.commit(draft()),
        "prune": lambda: store.prune(1),
        "discard": lambda: store.discard(3),
        "clear_staging": store.clear_staging,
    }
    for name, change in changes.items():
        with pytest.raises(StorageError, match=rf"{name}\(\) changes .*model, which is only allowed inside"):
            change()
    assert contents(store.folder) == before


def test_a_version_that_is_not_there_is_told_with_those_that_are(store: Store) -> None:
    with pytest.raises(CheckpointError, match=r"model has no version 7; the newest are 1, 2, 3\."):
        store.version(7)


# Blobs


def test_a_blob_has_the_same_name_and_bytes_whatever_the_order_or_memory_of_its_tensors(store: Store) -> None:
    whole = torch.arange(12.0).view(3, 4)
    with store.writing("learning"):
        first = store.put({"b": whole.t(), "a": whole[1], "half": whole.bfloat16()})
        raw = blob_of(store, first).read_bytes()
        again = {"half": whole.bfloat16(), "a": whole[1].clone(), "b": whole.t().contiguous()}
        assert store.put(again) == first
        assert blob_of(store, first).read_bytes() == raw
        assert store.put({"a": whole[2]}) != first


def test_a_whole_blob_is_not_written_again_and_a_damaged_one_is_replaced(store: Store) -> None:
    name = store.head().blobs[0]
    before = blob_of(store, name).stat()
    with store.writing("learning"):
        assert store.put(tensors_of(0)) == name
        assert blob_of(store, name).stat() == before
        flip(blob_of(store, name))
        assert store.put(tensors_of(0)) == name
    assert check(store, store.head()) == 3
    assert not list(store.folder.rglob("*.tmp"))


def test_a_blob_that_is_not_whole_is_never_loaded(store: Store) -> None:
    path = blob_of(store, store.head().blobs[1])
    whole = path.read_bytes()
    for position in range(0, len(whole), 37):
        flip(path, position)
        with pytest.raises(CheckpointError, match=r"safetensors is damaged"):
            store.get(path.stem)
        path.write_bytes(whole)
    for part in (b"", whole[:-1], whole + b"x"):
        path.write_bytes(part)
        with pytest.raises(CheckpointError, match="is damaged"):
            store.get(path.stem)
    path.unlink()
    with pytest.raises(CheckpointError, match="can't be read: No such file"):
        store.get(path.stem)
    with pytest.raises(CheckpointError, match="64 hexadecimal digits"):
        store.get("../../../etc/passwd")


def test_what_is_loaded_stays_whole_when_its_blob_is_pruned(store: Store) -> None:
    found = store.get(store.version(1).blobs[1])
    with store.writing("pruning"):
        store.prune(0)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors_of(1).items())


def test_blobs_are_hashed_once_as_long_as_they_stay_as_they_are(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    original = module._checksum

    def count(path: Path) -> str:
        hashed.append(path)
        return original(path)

    for path in (store.folder / "blobs").rglob("*.safetensors"):
        os.utime(path, (1e9, 1e9))
    monkeypatch.setattr(module, "_SETTLED", 1e11)
    monkeypatch.setattr(module, "_checksum", count)
    store.head()
    store.head()
    assert len(hashed) == 4, "files so young may change again without a trace"
    monkeypatch.setattr(module, "_SETTLED", 1e8)
    time.sleep(0.15)
    for _ in range(3):
        store.head()
    assert len(hashed) == 6
    store.get(store.head().blobs[0])
    assert len(hashed) == 7
    flip(blob_of(store, store.head().blobs[1]))
    assert store.head().number == 2


# The backbone


def test_a_backbone_that_changed_is_told_by_its_file(store: Store) -> None:
    sums = store.version(1).content["sums"]
    assert store.backbone_sums() == sums
    store.check_backbone(sums)
    (store.backbone / ".DS_Store").write_text("no matter")
    store.check_backbone(sums)
    flip(store.backbone / "deep" / "weights")
    with pytest.raises(CheckpointError, match=r"deep/weights is damaged; restore the backbone from a copy of the model\."):
        store.check_backbone(sums)
    (store.backbone / "deep" / "weights").unlink()
    with pytest.raises(CheckpointError, match="weights is missing"):
        store.check_backbone(sums)


# Damage


def damaged(store: Store, told: list[str]) -> int:
    """The version that a new process would use; one sentence must have told why."""
    told.clear()
    found = Store(store.folder, told.append)
    number = check(found, found.head())
    assert found.head().number == number
    assert len(told) == 1
    assert told[0].endswith(f"Version {number} is used.")
    return number


def test_a_flipped_bit_in_any_file_of_a_version_is_told_and_the_one_before_is_used(store: Store, told: list[str]) -> None:
    own = blob_of(store, store.head().blobs[1])
    for path in (store.folder / "versions" / "000003.json", own):
        whole = path.read_bytes()
        for position in {*range(0, len(whole), 1 + len(whole) // 60), len(whole) - 1}:
            flip(path, position)
            before = contents(store.folder)
            assert damaged(store, told) == 2, f"byte {position} of {path.name}"
            assert path.name in told[0]
            assert contents(store.folder) == before
            path.write_bytes(whole)
        for part in (whole[:-1], whole + b" ", b"", None):
            path.unlink()
            if part is not None:
                path.write_bytes(part)
            assert damaged(store, told) == 2
        path.write_bytes(whole)
    assert store.head().number == 3


def test_a_flipped_bit_anywhere_in_head_is_told_and_the_newest_version_is_used(store: Store, told: list[str]) -> None:
    path = store.folder / "HEAD"
    whole = path.read_bytes()
    for position in range(len(whole)):
        flip(path, position)
        assert damaged(store, told) == 3
        assert "HEAD is missing or damaged" in told[0]
    enter(store.folder)
    assert path.read_bytes() == whole
    for part in (b"", b"3\n", b"1 2 3 4", b"\xff\xfe", None):
        path.unlink()
        if part is not None:
            path.write_bytes(part)
        assert damaged(store, told) == 3
    with store.writing("learning"):
        learn(store)
    told.clear()
    assert Store(store.folder, told.append).head().number == 4
    assert told == []


def test_a_version_that_head_was_not_written_for_is_told(store: Store, told: list[str]) -> None:
    other = grown(store.folder.with_name("other"), 2)
    with other.writing("learning"):
        learn(other, about="another third")
    shutil.copy(other.folder / "versions" / "000003.json", store.folder / "versions")
    assert damaged(store, told) == 3
    assert "000003.json is not the file that HEAD was written for" in told[0]


def test_a_damaged_version_in_use_does_not_make_an_old_candidate_wait_again(store: Store) -> None:
    with store.writing("learning"):
        learn(store, candidate=True)
        learn(store)
    flip(store.folder / "versions" / "000005.json")
    assert store.head().number == 3
    assert store.candidate() is None


def test_a_damaged_head_never_makes_a_candidate_or_a_removed_version_the_one_in_use(store: Store, told: list[str]) -> None:
    with store.writing("learning"):
        learn(store, removes=(1, 2, 3))
        learn(store, candidate=True)
    (store.folder / "HEAD").write_text("")
    assert damaged(store, told) == 4


def test_versions_older_than_a_pruned_one_are_passed_over(store: Store, told: list[str]) -> None:
    with store.writing("learning"):
        store.prune(1)
        learn(store)
    flip(blob_of(store, store.head().blobs[1]))
    assert damaged(store, told) == 3
    flip(blob_of(store, store.version(3).blobs[1]))
    with pytest.raises(CheckpointError, match=r"version 4 needs it\. No other version is whole; restore a copy"):
        Store(store.folder).head()


def test_damage_is_told_once_not_at_each_look(store: Store, told: list[str]) -> None:
    flip(store.folder / "versions" / "000003.json")
    for _ in range(3):
        assert store.head().number == 2
        assert numbers(store) == [1, 2]
    assert len(told) == 2  # that it is damaged, and what is used instead


def test_nothing_is_removed_because_it_is_damaged(store: Store, told: list[str]) -> None:
    flip(store.folder / "versions" / "000002.json")
    before = blobs(store)
    with store.writing("learning"):
        learn(store)
        store.prune(3)
    assert (store.folder / "versions" / "000002.json").exists()
    assert before <= blobs(store)
    assert [s for s in told if "No blob is removed as long as that file is there" in s]
    flip(store.folder / "versions" / "000002.json")  # restored
    with store.writing("pruning"):
        store.prune(1)
    assert numbers(store) == [1, 2, 3, 4]
    assert [store.available(version) for version in store.versions()] == [False, False, False, True]


def test_a_version_that_is_not_whole_can_be_repaired_by_putting_its_blob_again(store: Store, told: list[str]) -> None:
    flip(blob_of(store, store.head().blobs[1]))
    with store.writing("repairing"):
        store.put(tensors_of(3))
    assert check(store, store.head()) == 3


def test_a_manifest_under_another_number_or_that_says_nothing_is_damage(store: Store, told: list[str]) -> None:
    shutil.copy(store.folder / "versions" / "000002.json", store.folder / "versions" / "000003.json")
    assert damaged(store, told) == 2
    assert numbers(store) == [1, 2]
    body = b'{"format": 1'
    (store.folder / "versions" / "000003.json").write_bytes(body + module._seal(body))
    assert damaged(store, told) == 2
    body = b"[1"
    (store.folder / "versions" / "000003.json").write_bytes(body + module._seal(body))
    assert damaged(store, told) == 2


def test_what_a_later_format_wrote_is_neither_read_nor_passed_over_nor_removed(store: Store) -> None:
    for name in ("000003.json", "000004.json"):
        body = b'{"format": 2'
        (store.folder / "versions" / name).write_bytes(body + module._seal(body))
        before = contents(store.folder)
        with pytest.raises(CheckpointError, match="format 2, and this version of Latewood reads format 1"):
            store.versions()
        with pytest.raises(CheckpointError, match="format 2"), store.writing("learning"):
            pass
        after = contents(store.folder)
        assert {path: after[path] for path in before if path.name != "lock"} == {
            p: c for p, c in before.items() if p.name != "lock"
        }
        (store.folder / "versions" / name).unlink()
        learned = grown(store.folder.with_name(name))
        shutil.copy(learned.folder / "versions" / "000003.json", store.folder / "versions")


def test_manifests_are_json_that_other_tools_can_read(store: Store) -> None:
    facts = json.loads((store.folder / "versions" / "000003.json").read_text())
    assert facts["number"] == 3
    assert facts["blobs"] == list(store.head().blobs)


def test_the_format_on_disk_is_the_one_that_was_decided(tmp_path: Path) -> None:
    """Directories of an older release must stay readable: whoever changes this changes FORMAT too."""
    store = Store.create(tmp_path / "model", lambda store: draft(store.put({"x": torch.ones(1)}), event="init"))
    path = store.folder / "versions" / "000001.json"
    facts = json.loads(path.read_text())
    assert list(facts) == [
        *("format", "event", "about", "content", "blobs", "parent", "candidate", "removes", "number", "time", "blake2b")
    ]
    assert facts["blobs"] == ["b5aa33b4ceedd0dc25915890dbea2ae90a82739fbb87a28ba08fef2c78c3b877"]
    number, checksum, last, _ = (store.folder / "HEAD").read_text().split()
    assert (number, last, len(checksum)) == ("1", "1", 64)


# Candidates


def test_a_candidate_waits_beside_the_version_in_use(store: Store) -> None:
    assert store.candidate() is None
    with store.writing("learning"):
        held = learn(store, candidate=True)
    assert store.head().number == 3
    assert store.candidate() == held
    assert numbers(store) == [1, 2, 3, 4]
    with store.writing("accepting"):
        accepted = store.accept(4)
    assert (accepted.number, accepted.event, accepted.parent, accepted.candidate) == (5, "accept", 3, False)
    assert (accepted.content, accepted.blobs) == (held.content, held.blobs)
    assert store.head() == accepted
    assert store.candidate() is None
    assert numbers(store) == [1, 2, 3, 4, 5]


def test_a_discarded_candidate_is_gone_and_its_number_is_not_given_again(store: Store) -> None:
    before = blobs(store)
    with store.writing("learning"):
        learn(store, candidate=True)
        assert blobs(store) > before
        store.discard(4)
        assert blobs(store) == before
    assert store.candidate() is None
    assert numbers(store) == [1, 2, 3]
    with store.writing("learning"):
        assert learn(store).number == 5
        with pytest.raises(CheckpointError, match="Version 5 is no candidate"):
            store.discard(5)
        with pytest.raises(CheckpointError, match="no version 4"):
            store.discard(4)
    assert numbers(store) == [1, 2, 3, 5]


def test_a_later_version_supersedes_a_candidate(store: Store) -> None:
    with store.writing("learning"):
        learn(store, candidate=True)
        learn(store, candidate=True)
        with pytest.raises(CheckpointError, match=r"Version 4 does not wait as a candidate; version 5 does\."):
            store.accept(4)
        learn(store)
        with pytest.raises(CheckpointError, match=r"Version 5 does not wait as a candidate; none does\."):
            store.accept(5)
        store.discard(4)
    assert numbers(store) == [1, 2, 3, 5, 6]
    assert store.head().number == 6
    assert store.candidate() is None


def test_what_a_candidate_removes_stays_until_it_is_accepted(store: Store) -> None:
    with store.writing("forgetting"):
        learn(store, candidate=True, removes=(1, 2))
    assert numbers(store) == [1, 2, 3, 4]
    with store.writing("accepting"):
        store.accept(4)
    assert numbers(store) == [3, 4, 5]


# Removing


def test_no_byte_of_a_removed_version_stays_and_shared_blobs_do(store: Store) -> None:
    shared = store.head().blobs[0]
    own = {number: store.version(number).blobs[1] for number in (1, 2, 3)}
    secrets = [blob_of(store, name).read_bytes() for name in own.values()]
    manifests = [(store.folder / "versions" / f"00000{number}.json").read_bytes() for number in own]
    with store.writing("forgetting"):
        version = learn(store, event="forget", about="forgot one", removes=(1, 2, 3))
    assert numbers(store) == [4]
    assert version.parent == 3
    left = contents(store.folder)
    assert not [path for path, content in left.items() if content in secrets or content in manifests]
    assert not [name for name in own.values() for content in left.values() if name.encode() in content]
    assert blobs(store) == {shared, version.blobs[1]}
    with pytest.raises(CheckpointError, match=r"Version 2 was removed by version 4 \(forgot one\)"):
        store.version(2)
    with store.writing("learning"):
        assert learn(store).number == 5


def test_blobs_that_a_kept_version_needs_survive_the_removal_of_another(store: Store) -> None:
    with store.writing("forgetting"):
        store.commit(draft(*store.version(2).blobs, content={"number": 2}, removes=(2, 1)))
    assert numbers(store) == [3, 4]
    assert [check(store, version) for version in store.versions()] == [3, 2]


def test_a_damaged_version_can_be_removed_with_its_blobs(store: Store, told: list[str]) -> None:
    own = store.version(2).blobs[1]
    flip(store.folder / "versions" / "000002.json")
    with store.writing("forgetting"):
        learn(store, removes=(2,))
    assert own not in blobs(store)
    assert not (store.folder / "versions" / "000002.json").exists()
    assert [check(store, version) for version in store.versions()] == [1, 3, 4]
    assert told == []


def test_a_removal_that_was_not_permitted_is_told_hidden_and_finished_later(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = store.version(2).blobs[1]
    unlink = Path.unlink

    def refuse(self: Path, missing_ok: bool = False) -> None:
        if self.stem == own:
            raise PermissionError(errno.EACCES, "Permission denied")
        unlink(self, missing_ok)

    with monkeypatch.context() as patch, store.writing("forgetting"):
        patch.setattr(Path, "unlink", refuse)
        with pytest.raises(StorageError, match=rf"Could not remove .*{own}.safetensors: Permission denied"):
            learn(store, removes=(1, 2))
        patch.undo()
    assert numbers(store) == [3, 4]
    assert own in blobs(store)
    with store.writing("anything"):
        pass
    assert own not in blobs(store)
    assert sorted(p.name for p in (store.folder / "versions").iterdir()) == ["000003.json", "000004.json"]


# Pruning


def test_pruning_keeps_the_newest_the_one_in_use_and_the_candidate_and_the_whole_log(store: Store) -> None:
    with store.writing("learning"):
        learn(store)
        learn(store, candidate=True)
        learn(store, candidate=True)
        store.prune(2)
        available = [version.number for version in store.versions() if store.available(version)]
        assert available == [3, 4, 6]
        assert numbers(store) == [1, 2, 3, 4, 5, 6]
        store.prune(0)
        assert [v.number for v in store.versions() if store.available(v)] == [4, 6]
        store.prune(100)
        with pytest.raises(ConfigurationError, match="can't be -1"):
            store.prune(-1)
    assert check(store, store.head()) == 4
    with pytest.raises(CheckpointError, match="No such file"):
        check(store, store.version(1))


def test_pruning_keeps_a_blob_that_waits_for_its_commit(store: Store) -> None:
    with store.writing("learning"):
        name = store.put(tensors_of(9))
        learn(store, candidate=True)
        store.discard(4)
        store.prune(1)
        store.commit(draft(store.head().blobs[0], name, content={"number": 9}))
    assert check(store, store.head()) == 9


def test_rolling_back_is_a_version_with_the_blobs_of_an_older_one(store: Store) -> None:
    old = store.version(1)
    with store.writing("rolling back"):
        store.commit(draft(*old.blobs, event="rollback", content=old.content, parent=3))
        store.prune(1)
    assert check(store, store.head()) == 1
    assert [store.available(version) for version in store.versions()] == [True, False, False, True]


# What a writer leaves behind


def test_entering_sweeps_what_killed_writers_left(store: Store) -> None:
    before = contents(store.folder)
    name = "f" * 64
    for place in ("", "versions", "blobs", "blobs/" + store.head().blobs[0][:2]):
        (store.folder / place / ".something.0123456789ab.tmp").write_bytes(b"half")
    (store.folder / "blobs" / "ff").mkdir(exist_ok=True)
    blob_of(store, name).write_bytes(b"never committed")
    (store.folder / "staging" / "mine").write_bytes(b"to be resumed")
    with store.writing("anything"):
        pass
    after = contents(store.folder)
    assert after.pop(Path("staging/mine")) == b"to be resumed"
    assert {p: c for p, c in after.items() if p.name != "lock"} == {p: c for p, c in before.items() if p.name != "lock"}


def test_what_is_not_the_stores_own_is_left_alone(store: Store) -> None:
    names = ("notes.txt", "versions/notes.txt", "versions/7.json", "blobs/00/mine.safetensors", "blobs/mine.safetensors")
    (store.folder / "blobs" / "00").mkdir(exist_ok=True)
    for name in names:
        (store.folder / name).write_text("mine")
    with store.writing("forgetting"):
        learn(store, removes=(1, 2, 3))
        store.prune(0)
    assert [(store.folder / name).read_text() for name in names] == ["mine"] * len(names)
    assert numbers(store) == [4]


def test_staging_is_cleared_on_request(store: Store) -> None:
    (store.staging / "deep" / "down").mkdir(parents=True)
    (store.staging / "deep" / "down" / "file").write_text("x")
    (store.staging / "file").write_text("x")
    (store.staging / "link").symlink_to(store.backbone)
    with store.writing("learning"):
        store.clear_staging()
    assert list(store.staging.iterdir()) == []
    store.check_backbone(store.version(1).content["sums"])


def test_a_version_that_was_written_and_never_committed_is_not_shown_and_its_number_is_free(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Store, pointer: object) -> None:
        raise StorageError("the disk is full")

    with store.writing("learning"):
        with monkeypatch.context() as patch:
            patch.setattr(Store, "_point", full)
            with pytest.raises(StorageError, match="full"):
                learn(store)
        assert (store.folder / "versions" / "000004.json").exists()
        assert numbers(store) == [1, 2, 3]
        assert store.head().number == 3
        again = store.commit(draft(*store.head().blobs, about="again", content={"number": 3}))
    assert again.number == 4
    assert store.version(4).about == "again"
    assert numbers(store) == [1, 2, 3, 4]


# Crashes


def dying(original: Callable[..., Any], nth: int, die: Callable[[], None]) -> Callable[..., Any]:
    count = [0]

    def call(*args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        if count[0] == nth:
            die()
        return original(*args, **kwargs)

    return call


CALLS: list[tuple[Any, str]] = [(os, "fsync"), (Path, "replace"), (Path, "unlink")]


def lives(job: Callable[[], object], owner: Any, name: str, nth: int) -> bool:
    """Run ``job`` in a process that dies at the ``nth`` call of a function; whether it came to its end."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            setattr(owner, name, dying(getattr(owner, name), nth, lambda: os._exit(9)))
            job()
            code = 0
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9), f"{name} {nth} ended with {status}"
    return status == 0


def commits(store: Store) -> None:
    with store.writing("learning"):
        learn(store)


def forgets(store: Store) -> None:
    with store.writing("forgetting"):
        learn(store, removes=(1, 2, 3))


def prunes(store: Store) -> None:
    with store.writing("pruning"):
        learn(store)
        store.prune(1)


def discards(store: Store) -> None:
    with store.writing("discarding"):
        learn(store, candidate=True)
        store.discard(4)


def accepts(store: Store) -> None:
    with store.writing("accepting"):
        learn(store, candidate=True, removes=(1, 2))
        store.accept(4)


OWN = {"commits": set[int](), "forgets": {1, 2, 3}, "prunes": set[int](), "discards": set[int](), "accepts": {1, 2}}


def in_order(store: Store, removed: set[int], names: dict[int, str]) -> None:
    """What every writer must find, or make, when it enters."""
    with store.writing("anything"):
        head = store.head()
        assert check(store, head) in (3, 4)
        expected = {name for version in store.versions() for name in version.blobs}
        assert blobs(store) <= expected
        if head.removes:
            assert not removed & set(numbers(store))
            assert not {names[number] for number in removed} & blobs(store)
            assert not [number for number in removed if (store.folder / "versions" / f"{number:06d}.json").exists()]
        assert not list(store.folder.rglob("*.tmp"))
    assert learned_after(store) > head.number


def learned_after(store: Store) -> int:
    with store.writing("learning"):
        return learn(store).number


@pytest.mark.parametrize(("owner", "name"), CALLS, ids=[name for _, name in CALLS])
@pytest.mark.parametrize("job", [commits, forgets, prunes, discards, accepts], ids=lambda job: job.__name__)
def test_a_writer_that_dies_at_any_call_leaves_the_version_before_or_after_whole(
    store: Store, told: list[str], owner: Any, name: str, job: Callable[[Store], None]
) -> None:
    removed = OWN[job.__name__]
    names = {version.number: version.blobs[1] for version in store.versions()}
    for nth in range(1, 60):
        place = store.folder.with_name(f"{nth}")
        shutil.copytree(store.folder, place)
        finished = lives(lambda place=place: job(Store(place)), owner, name, nth)  # type: ignore[misc]
        found = Store(place, told.append)
        head = found.head()
        check(found, head)
        assert head.number in (3, 4, 5)
        if head.removes:
            assert not removed & set(numbers(found)), "a removed version shows"
        candidate = found.candidate()
        assert candidate is None or check(found, candidate) == 4
        in_order(found, removed, names)
        assert told == []
        if finished:
            assert nth > 1 or name == "unlink"
            return
        shutil.rmtree(place)
    raise AssertionError(f"{name} was still called at the 59th time")


@pytest.mark.parametrize(("owner", "name"), CALLS[::2], ids=["fsync", "unlink"])
def test_a_writer_that_dies_while_it_finishes_what_another_left_is_finished_by_the_next(
    store: Store, told: list[str], owner: Any, name: str
) -> None:
    names = {version.number: version.blobs[1] for version in store.versions()}
    half = store.folder.with_name("half")
    for first in range(1, 60):  # until it dies with HEAD moved and nothing removed yet
        shutil.copytree(store.folder, half)
        assert not lives(lambda: forgets(Store(half)), Path, "unlink", first)
        if Store(half).head().number == 4:
            break
        shutil.rmtree(half)
    for nth in range(1, 60):
        place = store.folder.with_name(f"{nth}")
        shutil.copytree(half, place)
        finished = lives(lambda place=place: enter(place), owner, name, nth)  # type: ignore[misc]
        found = Store(place, told.append)
        assert numbers(found) == [4]
        in_order(found, {1, 2, 3}, names)
        shutil.rmtree(place)
        if finished:
            assert nth > 3
            return
    raise AssertionError(f"{name} was still called at the 59th time")


def test_removing_is_finished_even_beside_a_damaged_version_whose_blobs_nobody_knows(store: Store) -> None:
    """There a blob of no known version must stay, so the removed manifests go last."""
    names = {version.number: version.blobs[1] for version in store.versions()}
    flip(store.folder / "versions" / "000001.json")
    for nth in range(1, 20):
        place = store.folder.with_name(f"{nth}")
        shutil.copytree(store.folder, place)
        finished = lives(lambda place=place: forgets_two(Store(place)), Path, "unlink", nth)  # type: ignore[misc]
        enter(place)
        found = Store(place)
        assert names[1] in blobs(found)
        assert bool({names[2], names[3]} & blobs(found)) == (found.head().number == 3)
        if finished:
            assert nth > 4
            return
    raise AssertionError("unlink was still called at the 19th time")


def forgets_two(store: Store) -> None:
    with store.writing("forgetting"):
        learn(store, removes=(2, 3))


def enter(place: Path) -> None:
    with Store(place).writing("anything"):
        pass


@pytest.mark.parametrize(("owner", "name"), CALLS[:2], ids=["fsync", "replace"])
def test_a_directory_whose_maker_dies_is_there_whole_or_not_at_all(tmp_path: Path, owner: Any, name: str) -> None:
    for nth in range(1, 60):
        place = tmp_path / f"{nth}"
        finished = lives(lambda place=place: made(place), owner, name, nth)  # type: ignore[misc]
        assert not place.exists() or check(Store(place), Store(place).head()) == 1
        if finished:
            assert nth > 3
            return
    raise AssertionError(f"{name} was still called at the 59th time")


class Killed(BaseException):
    """As sudden as an exception can be."""


@pytest.mark.parametrize(("owner", "name"), CALLS[:2], ids=["fsync", "replace"])
def test_an_interrupted_commit_frees_the_directory_and_leaves_the_version_before_or_after(
    store: Store, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    def die() -> None:
        raise Killed

    for nth in range(1, 30):
        before = store.head().number
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, dying(getattr(owner, name), nth, die))
            try:
                commits(store)
                return
            except Killed:
                pass
        assert store.head().number in (before, before + 1)
        assert check(store, store.head()) == store.head().number
        assert not list(store.folder.rglob("*.tmp"))
    raise AssertionError(f"{name} was still called at the 29th time")


def test_a_version_is_flushed_before_head_moves_to_it_and_removals_are_flushed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a power cut could leave a HEAD without its version, or bring back what was to be forgotten."""
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc to see which file is flushed")
    events: list[tuple[str, str]] = []
    fsync, replace, unlink = os.fsync, Path.replace, Path.unlink

    def note_fsync(handle: int) -> None:
        events.append(("flush", Path(f"/proc/self/fd/{handle}").readlink().name))
        fsync(handle)

    def note_replace(self: Path, target: Path) -> Path:
        events.append(("rename", Path(target).name))
        return replace(self, target)

    def note_unlink(self: Path, missing_ok: bool = False) -> None:
        events.append(("unlink", self.name))
        unlink(self, missing_ok)

    own = store.version(1).blobs[1]
    with store.writing("forgetting"):
        monkeypatch.setattr(os, "fsync", note_fsync)
        monkeypatch.setattr(Path, "replace", note_replace)
        monkeypatch.setattr(Path, "unlink", note_unlink)
        version = learn(store, removes=(2, 1))
    new = version.blobs[1]
    order = [
        ("flush", "blobs"),  # where the folder of the blob is new
        ("rename", f"{new}.safetensors"),
        ("flush", new[:2]),
        ("rename", "000004.json"),
        ("flush", "versions"),
        ("rename", "HEAD"),
        ("flush", "model"),
        ("unlink", f"{own}.safetensors"),
        ("flush", own[:2]),
        ("unlink", "000001.json"),
        ("unlink", "000002.json"),  # the newer later: it could itself have removed the older
        ("flush", "versions"),
    ]
    position = -1
    for event in order:
        position = events.index(event, position + 1)
    before = events[: events.index(("rename", "HEAD"))]
    flushed = [what for what, name in before if what == "flush" and (name.endswith(".tmp") or name == "new")]
    assert len(flushed) == 3  # the blob, the manifest and HEAD, before each was renamed


# Two writers


@contextmanager
def elsewhere(job: Callable[..., None], *arguments: Any) -> Iterator[Any]:
    """Run ``job`` in a forked process, and wait until it says that it is under way."""
    ready = fork.Event()
    process = fork.Process(target=job, args=(ready, *arguments), daemon=True)
    process.start()
    try:
        assert ready.wait(20)
        yield process
    finally:
        process.kill()
        process.join(20)


def hold(ready: Any, folder: Path, seconds: float) -> None:
    store = Store(folder)
    with store.writing("learning holiday photos"):
        ready.set()
        time.sleep(seconds)
        learn(store)


def test_a_second_writer_is_told_who_holds_the_directory(store: Store) -> None:
    with elsewhere(hold, store.folder, 30.0) as process:
        sentence = rf"model is being changed by process {process.pid} since \S+Z \(learning holiday photos\); try again"
        with pytest.raises(StorageError, match=sentence), store.writing("pruning"):
            pass
        start = time.monotonic()
        with pytest.raises(StorageError, match=sentence), store.writing("pruning", wait=0.3):
            pass
        assert 0.3 <= time.monotonic() - start < 5
        assert store.head().number == 3  # readers need no lock


def test_a_second_writer_that_waits_goes_on_from_what_the_first_committed(store: Store) -> None:
    with elsewhere(hold, store.folder, 0.3), store.writing("learning", wait=20):
        assert store.head().number == 4
        learn(store)
    assert numbers(store) == [1, 2, 3, 4, 5]


def test_the_lock_of_a_killed_writer_is_free_at_once(store: Store) -> None:
    with elsewhere(hold, store.folder, 30.0) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.join(20)
        with store.writing("learning"):
            learn(store)
    assert store.head().number == 4


def test_a_writer_does_not_enter_twice_and_may_enter_again(store: Store) -> None:
    with store.writing("learning"):
        with pytest.raises(StorageError, match=rf"process {os.getpid()} since"), store.writing("pruning"):
            pass
        learn(store)
    with pytest.raises(RuntimeError), store.writing("failing"):
        raise RuntimeError
    with store.writing("learning"):
        learn(store)
    assert store.head().number == 5


def test_a_forked_child_that_lives_on_does_not_keep_the_lock(store: Store) -> None:
    with store.writing("learning"):
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
    try:
        with store.writing("learning"):
            learn(store)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_directory_that_was_copied_without_its_lock_or_empty_folders_can_be_changed(store: Store) -> None:
    (store.folder / "lock").unlink()
    (store.folder / "staging").rmdir()
    with store.writing("learning"):
        store.clear_staging()
        learn(store)
    assert store.head().number == 4


def write_away(ready: Any, folder: Path, count: int) -> None:
    store = Store(folder)
    ready.set()
    for number in range(count):
        with store.writing("learning"):
            head = store.head().number
            learn(store, removes=(head,) if number % 10 == 9 else ())
            store.prune(0)


def test_readers_in_another_process_never_fail_while_versions_come_and_go(store: Store, told: list[str]) -> None:
    """With every commit the blobs of the version that they may be reading go."""
    seen: list[int] = []
    with elsewhere(write_away, store.folder, 100) as process:
        while process.is_alive():
            number = store.load(lambda version: check(store, version))
            assert not seen or number >= seen[-1]
            seen.append(number)
            found = numbers(store)
            assert found == sorted(set(found))
            assert found[-1] >= number
        assert process.exitcode == 0
    assert told == []
    assert store.load(lambda version: check(store, version)) == 103
    assert len(set(seen)) > 10, "the two were hardly ever at work together"


def test_a_reader_whose_version_was_pruned_meanwhile_gets_the_new_one(store: Store) -> None:
    seen: list[int] = []

    def read(version: Version) -> int:
        seen.append(version.number)
        if len(seen) == 1:
            with Store(store.folder).writing("learning"):
                learn(other := _writer(store))
                other.prune(0)
        return check(store, version)

    assert store.load(read) == 4
    assert seen == [3, 4]


def _writer(store: Store) -> Store:
    """A store that takes itself for the writer, where the test holds the lock for it."""
    other = Store(store.folder)
    other._held = True
    return other


def test_a_reader_that_finds_damage_is_given_the_version_before(store: Store, told: list[str]) -> None:
    path = blob_of(store, store.head().blobs[1])
    seen: list[int] = []

    def read(version: Version) -> int:
        if not seen:
            flip(path)
        seen.append(version.number)
        return check(store, version)

    assert store.load(read) == 2
    assert seen == [3, 2]
    assert len(told) == 1


def test_a_look_at_head_while_another_commits_and_prunes_is_no_damage(
    store: Store, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, reads = module._read, list[Path]()

    def read(path: Path) -> bytes:
        raw = original(path)
        if not reads:
            reads.append(path)
            commits(Store(store.folder))
            prunes(Store(store.folder))
        return raw

    monkeypatch.setattr(module, "_read", read)
    assert store.head().number == 5
    assert told == []


def test_a_log_that_is_read_while_another_forgets_shows_what_came_instead(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, reads = module._read, list[Path]()

    def read(path: Path) -> bytes:
        raw = original(path)
        if not reads:
            reads.append(path)
            forgets(Store(store.folder))
        return raw

    monkeypatch.setattr(module, "_read", read)
    assert numbers(store) == [4]


def test_a_blob_that_vanishes_between_two_looks_is_told_as_missing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    original = module._checksum

    def vanish(path: Path) -> str:
        found = original(path)
        path.unlink()
        return found

    monkeypatch.setattr(module, "_checksum", vanish)
    with pytest.raises(CheckpointError, match="No such file"):
        store.get(store.version(1).blobs[1])


def test_an_error_of_the_reader_itself_is_raised(store: Store) -> None:
    def read(version: Version) -> None:
        raise CheckpointError("made by another backbone")

    with pytest.raises(CheckpointError, match="made by another backbone"):
        store.load(read)


# Disks that do not take it


def mounted(place: Path, options: str) -> Iterator[Path]:
    place.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small disk needs root")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    yield from mounted(tmp_path / "small", "size=1m")


def test_a_disk_that_runs_full_at_any_point_of_a_commit_loses_nothing(small_disk: Path, told: list[str]) -> None:
    store = Store(grown(small_disk / "model").folder, told.append)
    filler, outcomes = small_disk / "filler", []
    for pages in range(10):
        filler.write_bytes(bytes(max(0, shutil.disk_usage(small_disk).free - pages * 4096)))
        before = store.head().number
        try:
            commits(store)
            outcomes.append(True)
        except StorageError as error:
            assert "the disk is full" in str(error)
            outcomes.append(False)
        assert store.head().number == before + outcomes[-1]
        assert check(store, store.head()) == store.head().number
        assert not list(store.folder.rglob("*.tmp"))
        filler.unlink()
    assert outcomes[0] is False
    assert outcomes[-1] is True
    assert told == []


def test_a_full_disk_can_be_pruned(small_disk: Path) -> None:
    store = grown(small_disk / "model")
    (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free))
    with store.writing("pruning"):
        store.prune(1)
    assert [store.available(version) for version in store.versions()] == [False, False, True]


def test_a_directory_that_may_only_be_read_is_read_and_a_writer_is_told(tmp_path: Path) -> None:
    place = tmp_path / "disk"
    for _ in mounted(place, "size=1m"):
        store = grown(place / "model")
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        assert check(store, Store(store.folder).head()) == 3
        assert numbers(store) == [1, 2, 3]
        with pytest.raises(StorageError, match="Could not write"):
            commits(store)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize(("owner", "name"), CALLS, ids=[name for _, name in CALLS])
def test_an_error_of_the_disk_at_any_call_is_a_sentence_and_loses_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, code: int
) -> None:
    def fail() -> None:
        raise OSError(code, os.strerror(code))

    reason = "the disk is full" if code == errno.ENOSPC else os.strerror(code)
    for nth in range(1, 40):
        before = store.head().number
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, dying(getattr(owner, name), nth, fail))
            try:
                with store.writing("forgetting"):
                    learn(store, removes=(before,))
                return
            except StorageError as error:
                assert reason in str(error)
        assert store.head().number in (before, before + 1)
        assert check(store, store.head()) == store.head().number
    raise AssertionError(f"{name} was still called at the 39th time")


# Many versions


def test_a_thousand_versions_open_and_change_within_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loose bound, the best of three: other work may slow one of them."""
    store = made(tmp_path / "model")
    content = {"number": 1, "classes": [f"class {i}" for i in range(100)]}
    with monkeypatch.context() as patch, store.writing("growing"):
        patch.setattr(os, "fsync", lambda handle: None)
        known = store.head().blobs
        for _ in range(999):
            store.commit(draft(*known, content=content))
    seconds = []
    for _ in range(3):
        start = time.monotonic()
        opened = Store(tmp_path / "model")
        assert opened.head().number == 1000
        assert len(opened.versions()) == 1000
        seconds.append(time.monotonic() - start)
        start = time.monotonic()
        enter(tmp_path / "model")
        seconds[-1] = max(seconds[-1], time.monotonic() - start)
    assert min(seconds) < 1
