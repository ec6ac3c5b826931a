"""Loading labelled images: where they are found, what they become, what is refused, and what is kept on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError, DataError, StorageError
from latewood.core.progress import Progress, showing
from latewood.images.datasets import ImageData, cache, load_images
from latewood.images.datasets.decoding import fitted

REAL_DATA = os.environ.get("LATEWOOD_DATA")
needs_real_data = pytest.mark.skipif(not REAL_DATA, reason="LATEWOOD_DATA does not name the folder of real data")
CLASSES = datasets.ClassLabel(names=["cat", "dog", "owl"])


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cache, and the working directory, in a folder of this test; no network."""
    monkeypatch.setenv("LATEWOOD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LATEWOOD_DATA", raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even the smallest images are kept on disk."""
    monkeypatch.setattr(cache, "SMALLEST_BYTES", 0)


def picture(seed: int, height: int = 6, width: int = 6, grey: bool = False) -> Any:
    shape = (height, width) if grey else (height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def pictures(count: int, first: int = 0, **kind: Any) -> list[Any]:
    return [picture(first + k, **kind) for k in range(count)]


def write_parquet(file: Path, **columns: tuple[Any, Sequence[Any]]) -> None:
    """One parquet file in the hub's form; each column is its type and its values."""
    features = datasets.Features({name: kind for name, (kind, _) in columns.items()})
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = {name: [png(v) if isinstance(kind, datasets.Image) else v for v in vs] for name, (kind, vs) in columns.items()}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(file)


def png(value: Any) -> Any:
    return Image.fromarray(value) if isinstance(value, np.ndarray) else value


def write_split(file: Path, images: Sequence[Any], labels: Sequence[Any], kind: Any = CLASSES, name: str = "label") -> None:
    write_parquet(file, image=(datasets.Image(), images), **{name: (kind, labels)})


def write_folder(folder: Path, count: int = 6) -> Path:
    """A small data set in the hub's form: ``count`` images for training and 3 for testing."""
    write_split(folder / "train.parquet", pictures(count), [k % 3 for k in range(count)])
    write_split(folder / "test.parquet", pictures(3, first=100), [0, 1, 2])
    return folder


def write_image(file: Path, pixels: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


def image(data: Data, row: int) -> Any:
    """One image as Pillow sees it: (height, width) or (height, width, 3)."""
    return data.tensor("image")[row].permute(1, 2, 0).squeeze(2).numpy()


def labels(data: Data) -> list[int]:
    return data.tensor("label").tolist()


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "images").iterdir())


def same(a: ImageData, b: ImageData) -> bool:
    pairs = ((a.train, b.train), (a.test, b.test))
    return a.classes == b.classes and all(torch.equal(x[c], y[c]) for x, y in pairs for c in ("image", "label"))


# -- the embedded digits


def test_digits_are_scaled_to_bytes() -> None:
    from sklearn.datasets import load_digits

    data = load_images("digits")
    assert data.train["image"].dtype == torch.uint8 and data.train["image"].shape[1:] == (1, 8, 8)
    assert data.train["label"].dtype == torch.int64
    assert data.classes == tuple("0123456789")
    source = load_digits()
    first = np.flatnonzero(source.target == source.target[0])[0]
    assert np.array_equal(image(data.train, 0), np.round(source.images[first] * 255 / 16).astype(np.uint8))
    assert int(data.train["image"].max()) == 255 and int(data.train["image"].min()) == 0


def test_the_split_of_digits_is_stratified_disjoint_and_complete() -> None:
    from sklearn.datasets import load_digits

    source, data = load_digits(), load_images("digits")
    expected_test = np.zeros(len(source.target), bool)
    for digit in range(10):
        expected_test[np.flatnonzero(source.target == digit)[1::5]] = True
        share = (data.test["label"] == digit).sum() / (source.target == digit).sum()
        assert 0.19 < share < 0.21
    pixels = torch.from_numpy(np.round(source.images * 255 / 16).astype(np.uint8))[:, None]
    assert torch.equal(data.test["image"], pixels[expected_test])
    assert torch.equal(data.train["image"], pixels[~expected_test])
    assert labels(data.test) == source.target[expected_test].tolist()


def test_digits_are_the_same_every_time_and_can_be_resized() -> None:
    assert same(load_images("digits"), load_images("digits"))
    larger = load_images("digits", size=16)
    assert larger.train["image"].shape == (1435, 1, 16, 16)


# -- parquet in the hub's form


@pytest.mark.parametrize("place", ["", "data"])
def test_parquet_keeps_pixels_labels_order_and_names(tmp_path: Path, place: str) -> None:
    write_folder(tmp_path / "set" / place)
    data = load_images(str(tmp_path / "set"))
    assert data.classes == ("cat", "dog", "owl")
    assert labels(data.train) == [0, 1, 2, 0, 1, 2] and labels(data.test) == [0, 1, 2]
    assert all(np.array_equal(image(data.train, k), picture(k)) for k in range(6))
    assert np.array_equal(image(data.test, 2), picture(102))


def test_several_files_follow_one_another_by_name(tmp_path: Path) -> None:
    for number in (1, 0):
        write_split(tmp_path / "set" / f"train-0000{number}-of-00002.parquet", pictures(2, first=10 * number), [number] * 2)
    write_split(tmp_path / "set" / "validation-00000.parquet", pictures(1), [2])
    data = load_images(str(tmp_path / "set"))
    assert labels(data.train) == [0, 0, 1, 1] and labels(data.test) == [2]
    assert np.array_equal(image(data.train, 3), picture(11))


def test_a_folder_with_any_name_can_be_read(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a [1] *b, ünïcode")
    assert len(load_images(str(folder)).train) == 6


def test_one_part_alone_is_split_the_same_way_every_time(tmp_path: Path) -> None:
    write_split(tmp_path / "set" / "train.parquet", pictures(20), [k % 2 for k in range(20)])
    data = load_images(str(tmp_path / "set"))
    held_out = [2, 3, 12, 13]
    assert all(np.array_equal(image(data.test, i), picture(k)) for i, k in enumerate(held_out))
    assert labels(data.test) == [0, 1, 0, 1] and len(data.train) == 16
    assert np.array_equal(image(data.train, 2), picture(4)) and np.array_equal(image(data.train, 15), picture(19))


def test_cifar100_is_read_with_its_fine_labels(tmp_path: Path) -> None:
    fine, coarse = datasets.ClassLabel(names=["rose", "oak", "bee"]), datasets.ClassLabel(names=["plant", "insect"])
    for part in ("train", "test"):
        write_parquet(
            tmp_path / "cifar100" / "cifar100" / f"{part}-00000-of-00001.parquet",
            img=(datasets.Image(), pictures(3)),
            fine_label=(fine, [2, 1, 0]),
            coarse_label=(coarse, [1, 0, 0]),
        )
    folder = str(tmp_path / "cifar100" / "cifar100")
    assert load_images(folder).classes == ("rose", "oak", "bee")
    assert labels(load_images(folder).train) == [2, 1, 0]
    assert load_images(folder, label="coarse_label").classes == ("plant", "insect")


def test_images_written_without_the_hub_s_metadata_are_found(tmp_path: Path) -> None:
    import io

    def encoded(seed: int) -> dict[str, Any]:
        buffer = io.BytesIO()
        Image.fromarray(picture(seed)).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": f"{seed}.png"}

    kind = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    for part in ("train", "test"):
        columns: dict[str, Any] = {
            "picture": (kind, [encoded(k) for k in range(2)]),
            "label": (datasets.Value("int64"), [0, 1]),
        }
        write_parquet(tmp_path / "set" / f"{part}.parquet", **columns)
    assert np.array_equal(image(load_images(str(tmp_path / "set")).train, 1), picture(1))


@pytest.mark.parametrize(
    ("kind", "given", "expected", "classes"),
    [
        ("string", ["owl", "ant", "owl"], [1, 0, 1], ("ant", "owl")),
        ("int32", [10, 9, 10], [1, 0, 1], ("9", "10")),
        ("uint8", [0, 1, 2], [0, 1, 2], ("0", "1", "2")),
    ],
)
def test_labels_without_names_become_classes_in_sorted_order(
    tmp_path: Path, kind: str, given: list[Any], expected: list[int], classes: tuple[str, ...]
) -> None:
    write_split(tmp_path / "set" / "train.parquet", pictures(3), given, datasets.Value(kind))
    write_split(tmp_path / "set" / "test.parquet", pictures(1), given[:1], datasets.Value(kind))
    data = load_images(str(tmp_path / "set"))
    assert labels(data.train) == expected and labels(data.test) == expected[:1] and data.classes == classes


def test_imagenet_r_has_one_part_and_its_wordnet_numbers_for_labels(tmp_path: Path) -> None:
    write_parquet(
        tmp_path / "set" / "test-00000-of-00001.parquet",
        image=(datasets.Image(), pictures(4)),
        wnid=(datasets.Value("string"), ["n02", "n01", "n02", "n01"]),
        class_name=(datasets.Value("string"), ["b", "a", "b", "a"]),
    )
    data = load_images(str(tmp_path / "set"))
    assert data.classes == ("n01", "n02") and labels(data.train) == [1, 0] and labels(data.test) == [1, 0]


# -- folders of images


def test_an_image_folder_takes_its_classes_from_its_folders(tmp_path: Path) -> None:
    for number, file in enumerate(
        ("train/owl/1.png", "train/ant/b.png", "train/ant/a.PNG", "test/ant/1.png", "test/zebu/1.png")
    ):
        write_image(tmp_path / "set" / file, picture(number))
    (tmp_path / "set" / "train" / "ant" / "notes.txt").write_text("not an image")
    (tmp_path / "set" / "train" / ".hidden").mkdir()
    data = load_images(str(tmp_path / "set"))
    assert data.classes == ("ant", "owl", "zebu")
    assert labels(data.train) == [0, 0, 1] and labels(data.test) == [0, 2]
    assert np.array_equal(image(data.train, 0), picture(2)) and np.array_equal(image(data.test, 1), picture(4))


@pytest.mark.parametrize("part", ["", "train", "val"])
def test_an_image_folder_with_one_part_is_split(tmp_path: Path, part: str) -> None:
    for number in range(10):
        write_image(tmp_path / "set" / part / ("bus", "train")[number % 2] / f"{number}.png", picture(number))
    data = load_images(str(tmp_path / "set"))
    assert data.classes == ("bus", "train") and len(data.train) == 8
    assert np.array_equal(image(data.test, 0), picture(2)) and np.array_equal(image(data.test, 1), picture(3))


def test_an_image_folder_can_be_named_from_the_shelf_and_lies_before_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "shelf" / "cifar10")
    monkeypatch.setenv("LATEWOOD_DATA", str(tmp_path / "shelf"))
    assert load_images("cifar10").name == "cifar10"
    write_folder(Path("cifar10"), count=9)
    assert len(load_images("cifar10").train) == 9, "a folder here comes before one on the shelf"


# -- pixels


def test_grey_images_keep_one_channel(tmp_path: Path) -> None:
    write_split(tmp_path / "set" / "train.parquet", pictures(5, grey=True), [0, 0, 1, 1, 2])
    write_split(tmp_path / "set" / "test.parquet", [picture(9, grey=True) > 99], [0])
    data = load_images(str(tmp_path / "set"))
    assert data.train["image"].shape == (5, 1, 6, 6) and np.array_equal(image(data.train, 4), picture(4, grey=True))
    assert set(data.test["image"].unique().tolist()) == {0, 255}, "black and white are the ends of the scale"


@pytest.mark.parametrize("limit", [0, cache.SMALLEST_BYTES])
def test_one_image_in_colour_makes_all_of_them_three_channels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(cache, "SMALLEST_BYTES", limit)
    write_split(tmp_path / "set" / "train.parquet", pictures(5, grey=True), [0, 0, 1, 1, 2])
    write_split(tmp_path / "set" / "test.parquet", [picture(9)], [0])
    data = load_images(str(tmp_path / "set"))
    assert data.train["image"].shape == (5, 3, 6, 6) and np.array_equal(image(data.test, 0), picture(9))
    assert all(np.array_equal(data.train["image"][4, channel], picture(4, grey=True)) for channel in range(3))


def test_transparency_is_dropped_and_palettes_become_colours(tmp_path: Path) -> None:
    clear = np.dstack([picture(1), np.full((6, 6), 255, np.uint8)])
    write_image(tmp_path / "set" / "train" / "a" / "1.png", clear)
    palette = Image.fromarray(picture(2)).quantize(4)
    palette.save(tmp_path / "set" / "train" / "a" / "2.png")
    write_image(tmp_path / "set" / "test" / "a" / "1.png", picture(3))
    data = load_images(str(tmp_path / "set"))
    assert np.array_equal(image(data.train, 0), picture(1))
    assert np.array_equal(image(data.train, 1), np.asarray(palette.convert("RGB")))


def test_a_photo_taken_sideways_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees
    (tmp_path / "set" / "a").mkdir(parents=True)
    for number in range(2):
        Image.fromarray(picture(number, height=4, width=8)).save(tmp_path / "set" / "a" / f"{number}.png", exif=exif)
    data = load_images(str(tmp_path / "set"))
    assert np.array_equal(image(data.train, 0), np.rot90(picture(0, height=4, width=8), -1))


@pytest.mark.parametrize(("height", "width"), [(20, 20), (20, 31), (31, 20), (4, 6), (8, 8)])
def test_size_scales_the_shorter_side_and_cuts_out_the_centre(height: int, width: int) -> None:
    stripes = np.zeros((height, width), np.uint8)
    stripes[:, width // 2 :] = 255
    result = np.asarray(fitted(Image.fromarray(stripes), 8))
    assert result.shape == (8, 8)
    assert result[:, 0].max() <= 1 and result[:, -1].min() >= 254
    assert abs(float(result.mean()) - 127.5) < 20


def test_size_brings_images_of_any_shape_together(tmp_path: Path) -> None:
    write_split(tmp_path / "set" / "train.parquet", [picture(0, 12, 6), picture(1, 6, 12)], [0, 1])
    write_split(tmp_path / "set" / "test.parquet", [picture(2, 30, 30)], [2])
    data = load_images(str(tmp_path / "set"), size=4)
    assert data.train["image"].shape == (2, 3, 4, 4) and data.test["image"].shape == (1, 3, 4, 4)
    assert np.array_equal(image(data.train, 0), np.asarray(fitted(Image.fromarray(picture(0, 12, 6)), 4)))


def test_progress_tells_what_is_decoded(tmp_path: Path) -> None:
    class Spy(Progress):
        told: list[str]

        def __init__(self) -> None:
            self.told = []

        def phase(self, text: str, steps: int = 0) -> None:
            self.told.append(f"{text} in {steps}")

        def step(self, loss: object = None) -> None:
            self.told.append("step")

    spy = Spy()
    folder = write_folder(tmp_path / "set")
    with showing(spy):
        load_images(str(folder))
    assert spy.told == ["decoding images in 9", *["step"] * 9]


# -- what is kept on disk


@pytest.mark.usefixtures("mapped")
def test_the_second_load_maps_what_the_first_one_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "set")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns about memory that it may not write to
        first = load_images(str(folder))
        monkeypatch.setattr("latewood.images.datasets._decoded", lambda *_: pytest.fail("it decoded again"))
        second = load_images(str(folder))
    assert same(first, second) and np.array_equal(image(second.test, 2), picture(102))
    assert first.train.fingerprint() == second.train.fingerprint() != second.test.fingerprint()


@pytest.mark.usefixtures("mapped")
def test_what_is_kept_on_disk_equals_what_is_decoded_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "set")
    on_disk = load_images(str(folder))
    monkeypatch.setenv("LATEWOOD_CACHE", "off")
    in_memory = load_images(str(folder))
    assert same(on_disk, in_memory) and len(kept(tmp_path)) == 1
    assert on_disk.train.fingerprint() == in_memory.train.fingerprint()


def test_small_data_and_no_cache_leave_nothing_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "set")
    load_images(str(folder))
    assert kept(tmp_path) == []
    monkeypatch.setattr(cache, "SMALLEST_BYTES", 0)
    monkeypatch.setenv("LATEWOOD_CACHE", "off")
    load_images(str(folder))
    assert kept(tmp_path) == []


@pytest.mark.usefixtures("mapped")
def test_the_key_follows_contents_and_settings_but_not_the_place(tmp_path: Path) -> None:
    first = load_images(str(write_folder(tmp_path / "set")))
    (tmp_path / "set").rename(tmp_path / "moved")
    moved = load_images(str(tmp_path / "moved"))
    assert moved.train.fingerprint() == first.train.fingerprint() and len(kept(tmp_path)) == 1
    resized = load_images(str(tmp_path / "moved"), size=6)
    assert resized.train.fingerprint() != first.train.fingerprint() and len(kept(tmp_path)) == 2
    write_split(tmp_path / "moved" / "test.parquet", pictures(3, first=200), [0, 1, 2])
    changed = load_images(str(tmp_path / "moved"))
    assert np.array_equal(image(changed.test, 0), picture(200)) and len(kept(tmp_path)) == 3


@pytest.mark.usefixtures("mapped")
def test_writing_into_a_mapped_image_changes_no_file(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set")
    load_images(str(folder)).train["image"].zero_()
    assert np.array_equal(image(load_images(str(folder)).train, 0), picture(0))


@pytest.mark.usefixtures("mapped")
@pytest.mark.parametrize(
    ("file", "harm"),
    [
        ("images.uint8", lambda path: path.write_bytes(path.read_bytes()[:-1])),
        ("images.uint8", lambda path: path.unlink()),
        ("labels.int64", lambda path: path.write_bytes(b"")),
        ("header.json", lambda path: path.write_text("{")),
        ("header.json", lambda path: path.write_text("[]")),
        ("header.json", lambda path: path.write_text(json.dumps({"shape": "x", "train": 1, "classes": []}))),
    ],
)
def test_a_damaged_copy_is_made_again(tmp_path: Path, file: str, harm: Any) -> None:
    folder = write_folder(tmp_path / "set")
    first = load_images(str(folder))
    (place,) = kept(tmp_path)
    in_use = image(first.train, 5).copy()
    harm(place / file)
    assert cache.read(place) is None
    again = load_images(str(folder))
    assert cache.read(place) is not None and np.array_equal(image(again.train, 5), in_use)


def test_whoever_is_slower_takes_the_copy_of_the_faster(tmp_path: Path) -> None:
    place, numbers = tmp_path / "key", np.arange(2)

    def fill(allocate: cache.Allocate) -> Any:
        images = allocate((2, 1, 3, 3))
        images[:] = 7
        return images

    def overtaken(allocate: cache.Allocate) -> Any:
        cache.keep(place, numbers, 1, ("a", "b"), fill)
        return fill(allocate)

    table = cache.keep(place, numbers, 1, ("a", "b"), overtaken)
    assert table.images.min() == table.images.max() == 7
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith((".", "key"))] == ["key"]


FILL = """
import sys, time, pathlib
from latewood.images.datasets import cache, load_images
cache.SMALLEST_BYTES = 0
pathlib.Path(sys.argv[2]).touch()
while not pathlib.Path(sys.argv[3]).exists(): time.sleep(0.01)
data = load_images(sys.argv[1])
print(int(data.train["image"].long().sum()), data.train.fingerprint(), len(data.test))
"""


def test_two_processes_may_fill_the_cache_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write_split(folder / "train.parquet", pictures(150, height=96, width=96), [k % 3 for k in range(150)])
    ready, go = [tmp_path / f"ready{k}" for k in range(2)], tmp_path / "go"
    runs = [
        subprocess.Popen([sys.executable, "-c", FILL, str(folder), str(mine), str(go)], stdout=subprocess.PIPE, text=True)
        for mine in ready
    ]
    deadline = time.monotonic() + 120
    while not all(mine.exists() for mine in ready) and time.monotonic() < deadline:
        time.sleep(0.02)
    go.touch()
    printed = [run.communicate(timeout=120)[0] for run in runs]
    assert all(run.returncode == 0 for run in runs) and printed[0] == printed[1] != ""
    assert [path.name.startswith(".") for path in kept(tmp_path)] == [False], "one copy, and nothing half written"


@pytest.mark.usefixtures("mapped")
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = write_folder(tmp_path / "set")
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(StorageError, match="the disk is full"):
        load_images(str(folder))
    assert kept(tmp_path) == []


# -- the hub


def write_to_hub_cache(place: Path, repository: str, files: dict[str, Path]) -> None:
    """What ``datasets`` leaves in its cache after downloading ``repository``."""
    from datasets.packaged_modules.parquet.parquet import Parquet

    name = repository.rpartition("/")[2]
    patterns = {split: [str(file)] for split, file in files.items()}
    builder = Parquet(cache_dir=str(place / "building"), dataset_name=name, hash="0123456789abcdef", data_files=patterns)
    builder.download_and_prepare()
    target = place / repository.replace("/", "___") / "default" / "0.0.0" / "0123456789abcdef"
    target.parent.mkdir(parents=True)
    Path(builder.cache_dir).rename(target)


@pytest.mark.usefixtures("mapped")
@pytest.mark.parametrize("name", ["tiny-imagenet", "zh-plus/tiny-imagenet"])
def test_a_data_set_of_the_hub_is_found_by_its_short_and_its_full_name(tmp_path: Path, name: str) -> None:
    write_folder(tmp_path / "source")
    files = {"train": tmp_path / "source" / "train.parquet", "valid": tmp_path / "source" / "test.parquet"}
    write_to_hub_cache(tmp_path / "hf", "zh-plus/tiny-imagenet", files)
    data = load_images(name)
    assert data.name == name and data.classes == ("cat", "dog", "owl")
    assert labels(data.train) == [0, 1, 2, 0, 1, 2] and np.array_equal(image(data.test, 1), picture(101))
    again = load_images(name)
    assert same(data, again) and again.train.fingerprint() == data.train.fingerprint() and len(kept(tmp_path)) == 1


def test_a_hub_data_set_without_a_train_or_test_split_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "source")
    files = {"left": tmp_path / "source" / "train.parquet", "right": tmp_path / "source" / "test.parquet"}
    write_to_hub_cache(tmp_path / "hf", "someone/odd", files)
    with pytest.raises(DataError, match="has the splits left, right, but none called train or test"):
        load_images("someone/odd")


@pytest.mark.parametrize(
    "error", [ValueError("Config name is missing.\nMore."), RuntimeError("Dataset scripts are no longer supported")]
)
def test_a_hub_data_set_that_cannot_be_loaded_says_why(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(ConfigurationError, match=r"someone/odd cannot be loaded: .*(missing|supported)\.$"):
        load_images("someone/odd")


@pytest.mark.parametrize("settings", [{"HF_HUB_OFFLINE": "1"}, {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_an_unknown_name_without_a_network_is_one_sentence_at_once(tmp_path: Path, settings: dict[str, str]) -> None:
    script = """
import time
from latewood.core.errors import ConfigurationError
from latewood.images.datasets import load_images
import datasets, huggingface_hub
start = time.monotonic()
for name in ("no-such-images", "cifar10"):
    try:
        load_images(name)
    except ConfigurationError as error:
        print(error)
print(time.monotonic() - start)
"""
    write_folder(tmp_path / "source")
    environment = os.environ | settings | {"HF_HOME": str(tmp_path / "home"), "HF_DATASETS_CACHE": str(tmp_path / "hf")}
    environment.pop("HF_DATASETS_OFFLINE", None)
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, env=environment, check=True
    )
    unknown, known, seconds = run.stdout.splitlines()
    assert unknown == (
        "There is no image data set 'no-such-images': it is not embedded (digits), not a folder here or under LATEWOOD_DATA "
        "(not set), not one of cifar10, cifar100, cub200, fashion-mnist, food101, imagenet-a, imagenet-r, mnist, "
        "tiny-imagenet, and the hub cannot be reached."
    )
    assert known.endswith("the hub cannot be reached.")
    assert float(seconds) < 15, "the hub's own client would try for 23 seconds for each name"


@pytest.mark.parametrize("name", ["no such name", "/no/such/folder", "~/no-such-folder"])
def test_what_cannot_be_a_name_on_the_hub_is_not_found_either(name: str) -> None:
    with pytest.raises(ConfigurationError, match="There is no image data set"):
        load_images(name)


# -- what is refused


def test_a_file_is_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "photos.zip").write_bytes(b"")
    with pytest.raises(DataError, match=r"photos\.zip is a file, but a data set is a folder"):
        load_images(str(tmp_path / "photos.zip"))


@pytest.mark.parametrize("files", [[], ["notes.txt"], ["1.png"], ["train/1.png", "test/2.png"], ["docs/readme.md"]])
def test_a_folder_without_a_data_set_says_what_is_expected(tmp_path: Path, files: list[str]) -> None:
    (tmp_path / "photos").mkdir()
    for file in files:
        if file.endswith("png"):
            write_image(tmp_path / "photos" / file, picture(0))
        else:
            (tmp_path / "photos" / file).parent.mkdir(exist_ok=True)
            (tmp_path / "photos" / file).write_text("text")
    with pytest.raises(
        DataError, match=r"photos holds no image data set: expected train\*\.parquet .* such as train/cat/1\.png"
    ):
        load_images(str(tmp_path / "photos"))


@pytest.mark.parametrize("contents", [b"", b"PAR1 and then nothing of use", "half"])
def test_a_damaged_parquet_file_is_refused(tmp_path: Path, contents: bytes | str) -> None:
    folder = write_folder(tmp_path / "set")
    whole = (folder / "test.parquet").read_bytes()
    (folder / "test.parquet").write_bytes(whole[: len(whole) // 2] if contents == "half" else contents)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"The test part of .*set cannot be read"):
        load_images(str(folder))


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "set" / "train.parquet").mkdir(parents=True)
    with pytest.raises(DataError, match=r"train\.parquet cannot be read: Is a directory\."):
        load_images(str(tmp_path / "set"))
    with pytest.raises(DataError, match="cannot be read: File name too long"):
        load_images("x" * 5000)


@pytest.mark.usefixtures("mapped")
@pytest.mark.parametrize("harm", ["cut short", "no image at all", "empty", "missing"])
def test_an_image_that_cannot_be_decoded_is_named_by_its_row(tmp_path: Path, harm: str) -> None:
    import io

    buffer = io.BytesIO()
    Image.fromarray(picture(0, 40, 40)).save(buffer, "PNG")
    whole = {"bytes": buffer.getvalue(), "path": "good.png"}
    bad = {"cut short": whole["bytes"][:-300], "no image at all": b"hello", "empty": b""}.get(harm)
    cell = None if bad is None else {"bytes": bad, "path": "bad.png"}
    folder = write_folder(tmp_path / "set")
    write_split(folder / "train.parquet", [whole, whole, cell], [0, 1, 2])
    named = r"Row 2 of the train part of .*set" + (" holds no image" if cell is None else r" \(bad.png\) cannot be decoded")
    with pytest.raises(DataError, match=named):
        load_images(str(folder))
    assert kept(tmp_path) == []


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    for name in ("1.png", "2.png"):
        write_image(tmp_path / "set" / "cat" / name, picture(0))
    (tmp_path / "set" / "cat" / "2.png").write_text("no image")
    with pytest.raises(DataError, match=r"2\.png\) cannot be decoded as an image: it is damaged or in no known format\."):
        load_images(str(tmp_path / "set"))


def test_deep_images_are_refused_rather_than_clipped(tmp_path: Path) -> None:
    for number in (1, 2):
        write_image(tmp_path / "set" / "scan" / f"{number}.png", picture(0, grey=True).astype(np.uint16) * 200)
    with pytest.raises(DataError, match=r"1\.png\) has more than 8 bits for each pixel \(mode I;16\)"):
        load_images(str(tmp_path / "set"), size=4)


@pytest.mark.usefixtures("mapped")
def test_images_of_two_sizes_are_refused_with_the_remedy(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set")
    write_split(folder / "test.parquet", [picture(0), picture(1, height=9, width=7)], [0, 1])
    expected = r"Row 1 of the test part of .*set.* has 7x9 pixels but the first image has 6x6; give size=, for instance size=6"
    with pytest.raises(DataError, match=expected):
        load_images(str(folder))
    assert kept(tmp_path) == []
    assert load_images(str(folder), size=6).test["image"].shape == (2, 3, 6, 6)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (
            datasets.Value("float32"),
            [0.5, 1.0],
            "Column 'label' of the train part of .* holds float32, but labels must be integers",
        ),
        (datasets.List(datasets.Value("int64")), [[0], [1]], "holds .*, but labels must be integers, strings or ClassLabel"),
        (datasets.Value("string"), ["cat", None], "Row 1 of the train part of .* has no label"),
        (CLASSES, [0, -1], r"Row 1 of the train part of .* has no label \(label is -1\)"),
    ],
)
def test_labels_that_are_none_are_refused(tmp_path: Path, kind: Any, values: list[Any], message: str) -> None:
    write_split(tmp_path / "set" / "train.parquet", pictures(2), values, kind)
    write_split(tmp_path / "set" / "test.parquet", pictures(2), values, kind)
    with pytest.raises(DataError, match=message):
        load_images(str(tmp_path / "set"))


def test_a_missing_column_of_labels_is_told_with_what_there_is(tmp_path: Path) -> None:
    write_split(tmp_path / "set" / "train.parquet", pictures(2), ["a cat", "a dog"], datasets.Value("string"), name="caption")
    with pytest.raises(DataError, match="has no column of labels, only 'image', 'caption'; name the one to use with label="):
        load_images(str(tmp_path / "set"))
    write_split(tmp_path / "set" / "train.parquet", pictures(2), ["dog", "dog"], datasets.Value("string"), name="caption")
    assert load_images(str(tmp_path / "set"), label="caption").classes == ("dog",)


def test_several_columns_of_labels_need_a_choice(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_parquet(
            tmp_path / "set" / f"{part}.parquet",
            image=(datasets.Image(), pictures(2)),
            species=(CLASSES, [0, 1]),
            mood=(datasets.ClassLabel(names=["calm", "wild"]), [1, 0]),
        )
    with pytest.raises(
        DataError, match=r"has several columns of labels \('species', 'mood'\); name the one to use with label="
    ):
        load_images(str(tmp_path / "set"))
    assert load_images(str(tmp_path / "set"), label="mood").classes == ("calm", "wild")
    with pytest.raises(ConfigurationError, match="has no column 'moods' for label=; it has 'image', 'species', 'mood'"):
        load_images(str(tmp_path / "set"), label="moods")


def test_exactly_one_column_of_images_is_needed(tmp_path: Path) -> None:
    write_parquet(tmp_path / "set" / "train.parquet", text=(datasets.Value("string"), ["a"]), label=(CLASSES, [0]))
    with pytest.raises(DataError, match="has no column of images, only 'text', 'label'"):
        load_images(str(tmp_path / "set"))
    two = {"left": (datasets.Image(), pictures(1)), "right": (datasets.Image(), pictures(1))}
    write_parquet(tmp_path / "set" / "train.parquet", **two, label=(CLASSES, [0]))
    with pytest.raises(DataError, match=r"has several columns of images \('left', 'right'\)"):
        load_images(str(tmp_path / "set"))


def test_parts_that_name_other_classes_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set")
    write_split(folder / "test.parquet", pictures(1), [0], datasets.ClassLabel(names=["dog", "cat", "owl"]))
    with pytest.raises(DataError, match=r"The test part of .* names other classes than the train part"):
        load_images(str(folder))


def test_an_empty_part_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set")
    write_split(folder / "test.parquet", [], [])
    with pytest.raises(DataError, match=r"The test part of .*set is empty; it must hold at least one image"):
        load_images(str(folder))
    write_image(tmp_path / "photos" / "train" / "cat" / "1.png", picture(0))
    (tmp_path / "photos" / "test" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match=r"The test part of .*photos is empty"):
        load_images(str(tmp_path / "photos"))


def test_one_image_of_each_class_cannot_be_split(tmp_path: Path) -> None:
    write_split(tmp_path / "set" / "train.parquet", pictures(3), [0, 1, 2])
    with pytest.raises(DataError, match="has no test part and only one image of each class"):
        load_images(str(tmp_path / "set"))


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="size must be at least 1 pixel, but it is 0"):
        load_images("digits", size=0)
    with pytest.raises(ConfigurationError, match="digits have no columns"):
        load_images("digits", label="digit")


# -- real data


@needs_real_data
def test_omniglot_is_grey_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATEWOOD_DATA", str(REAL_DATA))
    data = load_images("omniglot-small")
    assert data.train["image"].shape == (3630, 1, 105, 105) and len(data.test) == 1210 and len(data.classes) == 242
    assert torch.bincount(data.train["label"]).tolist() == [15] * 242
    assert len(kept(tmp_path)) == 1, "53 MB are worth keeping"
    small = load_images("omniglot-small", size=28)
    assert small.train["image"].shape == (3630, 1, 28, 28)


@needs_real_data
def test_tiny_imagenet_loads_at_once_the_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATEWOOD_DATA", str(REAL_DATA))
    first = load_images("tiny-imagenet-32")
    start = time.monotonic()
    second = load_images("tiny-imagenet-32")
    seconds = time.monotonic() - start
    assert first.train["image"].shape == (60000, 3, 32, 32) and len(first.test) == 10000 and len(first.classes) == 200
    assert torch.bincount(second.train["label"]).tolist() == [300] * 200
    assert same(first, second) and seconds < 1.0


@needs_real_data
@pytest.mark.parametrize("name", ["clinc150", "spoken-digits"])
def test_real_data_that_is_not_images_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("LATEWOOD_DATA", str(REAL_DATA))
    with pytest.raises(DataError, match="has no column of images, only"):
        load_images(name)
