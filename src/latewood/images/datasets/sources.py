"""Where images come from: parquet files, folders of images, the hub. Each opens as tables of the ``datasets`` library."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from latewood.core.errors import ConfigurationError, DataError

#: Short names of data sets on the hub.
HUB_NAMES = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "cub200": "Donghyun99/CUB-200-2011",
    "fashion-mnist": "zalando-datasets/fashion_mnist",
    "food101": "ethz/food101",
    "imagenet-a": "barkermrl/imagenet-a",
    "imagenet-r": "axiong/imagenet-r",
    "mnist": "ylecun/mnist",
    "tiny-imagenet": "zh-plus/tiny-imagenet",
}

Tables: TypeAlias = dict[str, Any]  # "train", "test" or both; a Dataset or an IterableDataset each
Files: TypeAlias = dict[str, list[Path]]

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_TEST_NAMES = ("test", "validation", "valid", "val")
_SECONDS_FOR_THE_HUB = 5.0


@dataclass(frozen=True)
class Source:
    """A data set that was found but not yet read. ``identity`` changes with its contents, not with its place."""

    where: str
    identity: str
    tables: Callable[[], Tables]


def find(name: str) -> Source:
    """The folder, the folder under ``LATEWOOD_DATA`` or the data set of the hub that ``name`` means.

    Errors: :class:`~latewood.core.errors.ConfigurationError` if there is none;
    :class:`~latewood.core.errors.DataError` if it is a file, a folder that holds no data set, or cannot be read.
    """
    shelf = os.environ.get("LATEWOOD_DATA")
    for path in (Path(name).expanduser(), *([Path(shelf).expanduser() / name] if shelf else [])):
        try:
            if path.is_dir():
                return _in_folder(path)
            if path.exists():
                raise DataError(f"{path} is a file, but a data set is a folder: of parquet files, or of images by class.")
        except OSError as error:
            raise DataError(f"{error.filename or path} cannot be read: {error.strerror}.") from error
    return _on_hub(name, f"LATEWOOD_DATA ({shelf or 'not set'})")


def _in_folder(folder: Path) -> Source:
    for place in (folder, folder / "data"):
        if files := _parquet_files(place):
            layout = {part: len(of_part) for part, of_part in files.items()}
            return Source(str(folder), _identity(layout, files), lambda: _parquet_tables(files, folder))
    if files := _image_files(folder):
        paths = {part: [path.relative_to(folder).as_posix() for path in of_part] for part, of_part in files.items()}
        return Source(str(folder), _identity(paths, files), lambda: _image_tables(files))
    raise DataError(
        f"{folder} holds no image data set: expected train*.parquet in it or in its data folder, "
        "or images in folders named after their classes, such as train/cat/1.png or cat/1.png."
    )


def _identity(layout: object, files: Files) -> str:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return repr((layout, list(pool.map(_digest, (file for of_part in files.values() for file in of_part)))))


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _parquet_files(folder: Path) -> Files:
    files = {part: sorted(folder.glob(f"{part}*.parquet")) for part in ("train", "test")}
    files["test"] = files["test"] or sorted(folder.glob("val*.parquet"))
    return {part: found for part, found in files.items() if found}


def _parquet_tables(files: Files, folder: Path) -> Tables:
    import datasets

    tables = {}
    for part, of_part in files.items():
        paths = [glob.escape(str(file.absolute())) for file in of_part]
        try:
            # Streaming reads the files where they lie; otherwise the library would first copy them into its own cache.
            tables[part] = datasets.load_dataset("parquet", data_files={part: paths}, streaming=True)[part]
        except (OSError, ValueError) as error:
            raise DataError(f"The {part} part of {folder} cannot be read: {error}") from error
    return tables


def _image_files(folder: Path) -> Files:
    parts = {"train": folder / "train", "test": next((p for n in _TEST_NAMES if _is_part(p := folder / n)), folder / "test")}
    if files := {part: _in_class_folders(place) for part, place in parts.items() if _is_part(place)}:
        return files if any(files.values()) else {}
    files = {"train": _in_class_folders(folder)}
    # Images right in train/ and test/ have no class; but a folder by class may well have a class of trains.
    return files if {file.parent.name for file in files["train"]} - {"train", *_TEST_NAMES} else {}


def _is_part(place: Path) -> bool:
    return place.is_dir() and any(inner.is_dir() for inner in place.iterdir())


def _in_class_folders(place: Path) -> list[Path]:
    folders = [folder for folder in place.iterdir() if folder.is_dir() and not folder.name.startswith(".")]
    files = (file for folder in folders for file in folder.iterdir() if not file.name.startswith("."))
    return sorted(file for file in files if file.suffix.lower() in _SUFFIXES)


def _image_tables(files: Files) -> Tables:
    import datasets

    classes = sorted({file.parent.name for of_part in files.values() for file in of_part})
    numbers = {name: number for number, name in enumerate(classes)}
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=classes))
    tables = {}
    for part, of_part in files.items():
        rows = {"image": [str(file) for file in of_part], "label": [numbers[file.parent.name] for file in of_part]}
        tables[part] = datasets.Dataset.from_dict(rows, features=features)
    return tables


def _on_hub(name: str, shelf: str) -> Source:
    import datasets
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HFValidationError

    repository = HUB_NAMES.get(name, name)
    try:
        with one_attempt_at_the_network():
            loaded = datasets.load_dataset(repository)
    except HFValidationError:
        raise _not_found(name, shelf, "the hub has no such names") from None
    except ConnectionError as error:
        raise _not_found(name, shelf, "the hub cannot be reached") from error
    except FileNotFoundError as error:
        raise _not_found(name, shelf, f"the hub says: {_line(error)}") from error
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise ConfigurationError(f"The hub's data set {repository} cannot be loaded: {_line(error)}.") from error
    tables = _train_and_test(loaded, repository)
    identity = repr({part: table._fingerprint for part, table in tables.items()})
    return Source(repository, identity, lambda: tables)


def _train_and_test(splits: Mapping[str, Any], repository: str) -> Tables:
    test = next((name for name in _TEST_NAMES if name in splits), None)
    chosen = {"train": "train" if "train" in splits else None, "test": test}
    if tables := {part: splits[split] for part, split in chosen.items() if split is not None}:
        return tables
    raise DataError(f"The hub's data set {repository} has the splits {', '.join(splits)}, but none called train or test.")


@contextmanager
def one_attempt_at_the_network() -> Iterator[None]:
    """Lets ``datasets`` look only at what was downloaded before if the hub does not answer; alone it would retry for long."""
    import datasets
    from huggingface_hub import constants, get_session

    offline = datasets.config.HF_HUB_OFFLINE
    try:
        if not offline:
            get_session().head(constants.ENDPOINT, timeout=_SECONDS_FOR_THE_HUB)
    except Exception:  # of whichever HTTP library the hub's client uses at present
        datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = offline


def _not_found(name: str, shelf: str, hub: str) -> ConfigurationError:
    return ConfigurationError(
        f"There is no image data set {name!r}: it is not embedded (digits), not a folder here or under {shelf}, "
        f"not one of {', '.join(HUB_NAMES)}, and {hub}."
    )


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")
