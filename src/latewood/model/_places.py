"""What a path or a name means: a folder of images, files of rows, or a data set of the hub."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from latewood.core.errors import DataError
from latewood.images.datasets.decoding import formats
from latewood.images.datasets.sources import HUB_NAMES, one_attempt_at_the_network
from latewood.model._arrow import dataset_table, digest_of_file
from latewood.model._formats import FORMATS, open_table
from latewood.model._table import Holds, Kind, Problem, Table, concatenated, held
from latewood.parts.pretrained import first_line

# What other systems leave in folders.
_LITTER = ("__MACOSX", "Thumbs.db", "desktop.ini")
_PARTS = {"train", "test", "validation", "valid", "val"}
# Others hold notes or settings as often as rows, so they are read only where they are named themselves.
_ROWS = (".parquet", ".csv", ".tsv", ".jsonl", ".ndjson")
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def table_at(place: str | Path, kind: Kind, source: str, labelled: bool) -> Table:
    """The rows at a path, or of the hub's data set of that name; ``labelled`` images lie in folders of their class.

    Errors: :class:`~latewood.core.errors.DataError` if nothing is there, or nothing that holds such rows.
    """
    path = Path(place).expanduser()
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return _on_hub(str(place), path, source)
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror}.") from error
    if stat.S_ISDIR(mode):
        try:
            return _in_folder(path, kind, source, labelled)
        except OSError as error:
            raise DataError(f"{error.filename or source} cannot be read: {error.strerror}.") from error
    suffix = path.suffix.lower()
    image = kind == "images" and suffix in _image_suffixes()
    if not stat.S_ISREG(mode) or not (image or suffix in FORMATS):
        raise DataError(f"{source} cannot be read: give a folder or a file that ends on {', '.join(FORMATS)}.")
    if image and labelled:
        raise DataError(f"{source} is one image without a label; put it into a folder named after its class.")
    if image:
        return held(source, {"image": [path]}, lambda _: source, lambda: digest_of_file(path))
    return open_table(path, source)


@dataclass(frozen=True)
class _Entry:
    """Something in a folder, its ``name`` relative to the root; ``reason``: why it must not be touched."""

    name: str
    is_folder: bool = False
    is_link: bool = False
    size: int = 0
    changed: int = 0
    reason: str | None = None

    @property
    def suffix(self) -> str:
        return os.path.splitext(self.name)[1].lower()  # noqa: PTH122  # there may be a hundred thousand of them


def _entries(root: str, inside: str = "") -> list[_Entry]:
    """What lies in the folder ``inside`` the root, in order; what is hidden does not count. Opens no file."""
    with os.scandir(Path(root, inside)) as found:
        return sorted(
            (_entry(root, inside, entry) for entry in found if not entry.name.startswith(".") and entry.name not in _LITTER),
            key=lambda entry: entry.name,
        )


def _entry(root: str, inside: str, found: os.DirEntry[str]) -> _Entry:
    name = f"{inside}/{found.name}" if inside else found.name
    is_link = found.is_symlink()
    try:
        facts = found.stat()
    except OSError as error:
        return _Entry(name, reason="is a link to nothing" if is_link else f"cannot be read: {error.strerror}")
    if is_link and not Path(found.path).resolve().is_relative_to(root):
        return _Entry(name, reason="is a link to a place outside the folder")
    if not (stat.S_ISDIR(facts.st_mode) or stat.S_ISREG(facts.st_mode)):
        return _Entry(name, reason="is neither a file nor a folder")
    return _Entry(name, stat.S_ISDIR(facts.st_mode), is_link, facts.st_size, facts.st_mtime_ns)


def _in_folder(path: Path, kind: Kind, source: str, labelled: bool) -> Table:
    root = os.path.realpath(path)
    top = _entries(root)
    rows = _row_files(root, top)
    if kind == "images":
        images, problems = _images_by_class(root, top, source) if labelled else _all_images(root, top, source)
        if images and rows and labelled:
            raise DataError(
                f"{source} holds images in folders and also {rows[0].name}; give {source}/{rows[0].name} if the labels are "
                "in it, else move it away."
            )
        if images or (problems and not rows):
            return _image_table(source, images, root, problems, labelled)
    if not rows:
        raise DataError(_nothing(top, kind, source, labelled))
    problems = [Problem(_where(source, entry.name), reason) for entry in rows if (reason := _unfit(entry))]
    tables = [open_table(Path(root, entry.name), _where(source, entry.name)) for entry in rows if not _unfit(entry)]
    if not tables:
        raise DataError(f"{problems[0]}.")
    return concatenated(source, tables, problems)


def _row_files(root: str, top: Sequence[_Entry]) -> list[_Entry]:
    """Files of rows in the folder, or in its folder ``data``; only those of the training part where some are called so."""
    for entries in (top, _entries(root, "data") if any(entry.is_folder and entry.name == "data" for entry in top) else []):
        files = [entry for entry in entries if not entry.is_folder and entry.suffix in _ROWS]
        if files:
            return [entry for entry in files if Path(entry.name).name.startswith("train")] or files
    return []


def _images_by_class(root: str, top: Sequence[_Entry], source: str) -> tuple[list[_Entry], list[Problem]]:
    """Images in folders named after their classes, which may lie in a folder ``train``."""
    if any(entry.is_folder and entry.name == "train" for entry in top):
        inside = _entries(root, "train")
        top = inside if any(entry.is_folder for entry in inside) else top
    files, problems = [], []
    for entry in top:
        if entry.is_folder:
            files += _entries(root, entry.name)
        elif entry.reason:
            problems.append(Problem(_where(source, entry.name), entry.reason))
        elif entry.suffix in _image_suffixes():
            problems.append(Problem(_where(source, entry.name), "has no label: it lies in no folder named after a class"))
    images, unfit = _sorted_out(files, source)
    if {_class_of(image) for image in images} <= _PARTS:
        return [], [*problems, *unfit]
    deeper = next((entry for entry in files if entry.is_folder), None)
    if images and deeper:
        raise DataError(
            f"{_where(source, deeper.name)} is a folder within the folder of a class; put images right into the folder of "
            f"their class, such as {source}/{_class_of(images[0])}/1.jpg."
        )
    return images, [*problems, *unfit]


def _all_images(root: str, top: Sequence[_Entry], source: str) -> tuple[list[_Entry], list[Problem]]:
    """Images however deep. A link to a folder leads to what is found there anyway, or in circles."""
    files, rest = list(top), list(top)
    while rest:
        entry = rest.pop()
        if entry.is_folder and not entry.is_link:
            rest += (inside := _entries(root, entry.name))
            files += inside
    return _sorted_out(sorted(files, key=lambda entry: entry.name), source)


def _sorted_out(entries: Iterable[_Entry], source: str) -> tuple[list[_Entry], list[Problem]]:
    """Which are images by their names, and what is wrong with the others; files of rows or notes are left aside."""
    images, problems = [], []
    for entry in entries:
        reason = _unfit(entry)
        if entry.is_folder or (not entry.reason and entry.suffix in FORMATS):
            continue
        if reason is None and entry.suffix not in _image_suffixes():
            reason = f"is no image of a known format: its name ends on {entry.suffix or 'nothing'}"
        if reason is None:
            images.append(entry)
        else:
            problems.append(Problem(_where(source, entry.name), reason))
    return images, problems


def _unfit(entry: _Entry) -> str | None:
    return entry.reason or ("is empty" if entry.size == 0 and not entry.is_folder else None)


def _image_table(source: str, images: Sequence[_Entry], root: str, problems: Sequence[Problem], labelled: bool) -> Table:
    columns: dict[str, Holds] = {"image": "images", "label": "text"} if labelled else {"image": "images"}

    def read(column: str, rows: range) -> list[Any]:
        chosen = images[rows.start : rows.stop]
        return [Path(root, image.name) if column == "image" else _class_of(image) for image in chosen]

    def identity() -> str:
        facts = "".join(f"{image.name}\0{image.size}\0{image.changed}\0" for image in images)
        return hashlib.blake2b(os.fsencode(facts), digest_size=16).hexdigest()

    def where(row: int) -> str:
        return _where(source, images[row].name)

    return Table(source, columns, len(images), read, where, identity, problems=tuple(problems))


def _class_of(image: _Entry) -> str:
    return image.name.split("/")[-2]


def _where(source: str, name: str) -> str:
    # Names of files may hold anything, also what would move the cursor of whoever reads the message.
    return f"{source}/" + "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name)


@cache
def _image_suffixes() -> frozenset[str]:
    from PIL import Image

    known = formats()
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in known)


def _nothing(top: Sequence[_Entry], kind: Kind, source: str, labelled: bool) -> str:
    files = f"files of rows ({', '.join(_ROWS)})"
    if kind == "images" and labelled:
        expected = f"images in folders named after their classes, such as {source}/rose/1.jpg, or {files}"
    else:
        expected = f"images or {files}" if kind == "images" else files
    return f"{source} {'holds nothing of use' if top else 'is empty'}: expected {expected}."


def _on_hub(name: str, path: Path, source: str) -> Table:
    """The training part of a data set of the hub."""
    if not _HUB_NAME.fullmatch(name) or path.suffix.lower() in (*FORMATS, *_image_suffixes()):
        raise DataError(f"There is no file or folder {source!r}{_hint(path)}.")
    import datasets
    from datasets.exceptions import DatasetsError

    repository = HUB_NAMES.get(name, name)
    try:
        with one_attempt_at_the_network():
            return dataset_table(datasets.load_dataset(repository, split="train"), source)
    except ConnectionError as error:
        reason = "the hub, where a data set may be called so, cannot be reached"
        raise DataError(f"There is no file or folder {source!r}{_hint(path)}, and {reason}.") from error
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        reason = f"as a data set of the hub it cannot be loaded: {first_line(error)}"
        raise DataError(f"There is no file or folder {source!r}{_hint(path)}, and {reason}.") from error


def _hint(path: Path) -> str:
    """Where a path breaks off, or what there has a similar name."""
    parent, missing = path.parent, path
    while not parent.is_dir():
        parent, missing = parent.parent, parent
    similar = difflib.get_close_matches(missing.name, os.listdir(parent), n=1)  # noqa: PTH208
    return f" (did you mean {str(parent / similar[0])!r}?)" if similar else f" (looked for in {parent.resolve()})"
