"""A damaged file is told and never trusted: the newest version that is whole is used, and no prediction is wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from latewood.core.errors import CheckpointError, LatewoodError
from latewood.model.model import Model

ARRIVAL: dict[str, Any] = {"verb": "learn", "source": "next", "rows": {"classes": [1, 5], "count": 30, "seed": 9}}
CHANGES: dict[str, dict[str, Any]] = {
    "learn": ARRIVAL,
    "forget": {"verb": "forget", "what": {"name": "digit-zero"}},
    "roll back": {"verb": "rollback", "number": 2},
    "accept": {"verb": "accept"},
    "reject": {"verb": "reject"},
}


def flip(place: Callable[[int], int]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        raw = bytearray(path.read_bytes())
        if raw:
            raw[place(len(raw))] ^= 4
        path.write_bytes(raw)

    return damage


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def block(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], None]] = {
    "the first byte": flip(lambda _: 0),
    "a byte in the middle": flip(lambda size: size // 2),
    "the last byte": flip(lambda size: size - 1),
    "cut in half": cut,
    "emptied": empty,
    "gone": Path.unlink,
}


class Known(NamedTuple):
    """A directory, what each of its versions predicts, and what each would after one more arrival."""

    folder: Path
    predicts: dict[int, torch.Tensor]
    then: dict[int, torch.Tensor]


@pytest.fixture(scope="module", params=["no update is held back", "an update is held back"])
def known(request: pytest.FixtureRequest, worker: Any, tmp_path_factory: pytest.TempPathFactory) -> Known:
    place = tmp_path_factory.mktemp("damage")
    model = worker.make(place / "model", limit=0.5)
    for number, classes in enumerate(([0, 1, 2], [2, 3], [4])):
        rows = {"classes": classes, "count": 60, "seed": number}
        worker.perform(model, {"verb": "learn", "source": f"source {number}", "rows": rows})
    predicts, then = {}, {}
    for version in model.log():
        copy = Model.open(shutil.copytree(model.folder, place / f"{version.number}"))
        copy.rollback(version.number)
        predicts[version.number] = worker.scores(copy)
        worker.perform(copy, ARRIVAL)
        then[version.number] = worker.scores(copy)
    if request.param == "an update is held back":
        swapped = {"verb": "learn", "source": "swap", "rows": {"classes": [0, 1], "count": 150, "seed": 6, "swap": True}}
        worker.perform(model, swapped)
        assert model.candidate is not None
    assert model.version.number == 4
    return Known(model.folder, predicts, then)


def pieces(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def is_a_sentence(words: str) -> bool:
    return words.endswith(".") and "\n" not in words and words[:1] == words[:1].upper() and len(words) < 400


def near(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=1e-8)


def damaged_copies(known: Known, place: Path, damage: Callable[[Path], None]) -> Iterator[tuple[Path, Path]]:
    """Copies of the directory, in each of which another file is damaged."""
    for number, name in enumerate(pieces(known.folder)):
        folder = shutil.copytree(known.folder, place / f"{number}")
        damage(folder / name)
        yield name, folder
        shutil.rmtree(folder)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_never_makes_a_wrong_prediction_and_is_told(
    worker: Any, known: Known, tmp_path: Path, damage: str
) -> None:
    used: dict[int | None, list[Path]] = {}
    for name, folder in damaged_copies(known, tmp_path, DAMAGES[damage]):
        told: list[str] = []
        number = opened(worker, known, name, folder, told)
        used.setdefault(number, []).append(name)
        if number is not None:
            learns_on(worker, known, folder, number)
    assert {path.parts[0] for path in used[None]} == {"backbone"}
    assert set(used) == {None, 4, 3, 2}, "the newest, the one before, the one before that, none: each happens"


def opened(worker: Any, known: Known, name: Path, folder: Path, told: list[str]) -> int | None:
    """The number of the version that is used; it is whole, and told if it is not the newest."""
    try:
        model = Model.open(folder, tell=told.append)
    except CheckpointError as error:
        assert is_a_sentence(str(error))
        assert name.name in str(error)
        return None
    number = int(model.version.number)
    assert near(worker.scores(model), known.predicts[number])
    assert all(map(is_a_sentence, told))
    if number != 4:
        assert any(name.name in sentence for sentence in told), told
    model.log()
    return number


def learns_on(worker: Any, known: Known, folder: Path, number: int) -> None:
    """What is learned next stands on the version that is used."""
    model = Model.open(folder, tell=lambda _: None)
    if model.candidate is not None:
        model.reject()
    worker.perform(model, ARRIVAL)
    assert near(worker.scores(model), known.then[number])
    again = Model.open(folder, tell=lambda _: None)
    assert again.version.number == model.version.number > 4
    assert near(worker.scores(again), known.then[number])


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_a_damaged_directory_works_or_says_why_not_and_leaves_a_whole_version(
    worker: Any, known: Known, tmp_path: Path, change: str
) -> None:
    for damage in (DAMAGES["a byte in the middle"], Path.unlink, block):
        for _, folder in damaged_copies(known, tmp_path, damage):
            try:
                model = Model.open(folder, tell=lambda _: None)
                worker.perform(model, CHANGES[change])
            except LatewoodError as error:
                assert is_a_sentence(str(error))
                continue
            again = Model.open(folder, tell=lambda _: None)
            assert again.version.number == model.version.number
            assert near(worker.scores(again), worker.scores(model))


@pytest.mark.parametrize("name", ["staging", "lock", "blobs", "versions", "backbone", "HEAD"])
def test_a_directory_that_lost_a_part_opens_and_learns_or_says_what_is_missing(
    worker: Any, known: Known, tmp_path: Path, name: str
) -> None:
    """As a copy may have: many tools leave empty folders behind."""
    folder = shutil.copytree(known.folder, tmp_path / "model")
    place = folder / name
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    number = opened(worker, known, Path(name), folder, []) if name not in ("blobs", "versions") else None
    if number is not None:
        learns_on(worker, known, folder, number)
        return
    assert name in ("blobs", "versions", "backbone")
    with pytest.raises(CheckpointError, match=name):
        Model.open(folder, tell=lambda _: None)


def test_a_foreign_file_in_the_directory_disturbs_nobody_and_stays(worker: Any, known: Known, tmp_path: Path) -> None:
    """Such as file managers and editors leave behind."""
    folder = shutil.copytree(known.folder, tmp_path / "model")
    strangers = [
        folder / name for name in (".DS_Store", "versions/.DS_Store", "blobs/.DS_Store", "staging/.DS_Store", "notes.txt")
    ]
    for stranger in strangers:
        stranger.write_text("mine")
    learns_on(worker, known, folder, 4)
    assert all(stranger.exists() for stranger in strangers if stranger.parent.name != "staging")


def test_damaged_pieces_of_an_interrupted_learning_are_made_again(
    nursery: Any, worker: Any, known: Known, tmp_path: Path
) -> None:
    arrival = {**ARRIVAL, "rows": {"classes": [1, 5], "count": 300, "seed": 9}}
    folder = shutil.copytree(known.folder, tmp_path / "model")
    model = Model.open(folder)
    if model.candidate is not None:
        model.reject()
    life, end = nursery.live(folder=str(folder), operations=[arrival], die=20)
    assert end == worker.DIED and life.in_flight == 0
    left = [path for path in pieces(folder) if path.parts[0] == "staging"]
    assert left
    undisturbed = Model.open(shutil.copytree(folder, tmp_path / "undisturbed"))
    undisturbed._store.staging.rename(tmp_path / "elsewhere")
    worker.perform(undisturbed, arrival)
    for kind, damage in DAMAGES.items():
        for number, name in enumerate(left):
            copy = shutil.copytree(folder, tmp_path / f"{kind} {number}")
            damage(copy / name)
            found = Model.open(copy)
            worker.perform(found, arrival)
            assert worker.alike(found, undisturbed)
            assert worker.garbage(found) == []
            shutil.rmtree(copy)
