"""Domains: the same classes, each time from another data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from latewood.core.errors import ConfigurationError
from latewood.images.datasets import load_images
from latewood.images.streams.domains import domains


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of data sets."""
    monkeypatch.setenv("LATEWOOD_DATA", str(tmp_path))
    monkeypatch.setenv("LATEWOOD_CACHE", "off")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, classes: str = "ab", side: int = 4, channels: int = 1, seed: int = 0) -> None:
    """Three images for training and one for testing of each class."""
    chance = np.random.default_rng(seed)
    for part, count in (("train", 3), ("test", 1)):
        for name in classes:
            place = folder / part / name
            place.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = chance.integers(0, 256, (side, side, 3)[: 2 + (channels > 1)], np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")


def test_each_data_set_is_an_arrival_and_a_probe_in_the_order_of_their_names(shelf: Path) -> None:
    for number, name in enumerate(("ink", "chalk")):
        write(shelf / name, seed=number)
    stream = domains("ink, chalk ,ink")
    assert len(stream) == 3
    assert [probe.name for probe in stream.probes] == ["0 ink", "1 chalk", "2 ink"]
    assert [probe.since for probe in stream.probes] == [0, 1, 2]
    for step, name in enumerate(("ink", "chalk", "ink")):
        images = load_images(name)
        assert torch.equal(stream[step].train["image"], images.train["image"])
        assert torch.equal(stream.probes[step].data["image"], images.test["image"])
        assert stream[step].classes == (0, 1)
    assert not torch.equal(stream[0].train["image"], stream[1].train["image"])


def test_one_data_set_makes_one_arrival() -> None:
    stream = domains("digits")
    assert len(stream) == len(stream.probes) == 1
    assert torch.equal(stream[0].train["label"], load_images("digits").train["label"])


def test_images_of_several_sizes_are_refused_unless_size_makes_them_equal(shelf: Path) -> None:
    write(shelf / "small", side=4)
    write(shelf / "large", side=6)
    with pytest.raises(ConfigurationError, match="Images of small and large differ in size or channels; set size"):
        domains("small,large")
    stream = domains("small,large", size=5)
    assert {tuple(experience.train["image"].shape[1:]) for experience in stream} == {(1, 5, 5)}


def test_grey_and_coloured_images_are_refused(shelf: Path) -> None:
    write(shelf / "grey")
    write(shelf / "coloured", channels=3)
    with pytest.raises(ConfigurationError, match="Images of grey and coloured differ in size or channels"):
        domains("grey,coloured", size=4)


def test_other_numbers_of_classes_are_refused(shelf: Path) -> None:
    write(shelf / "two")
    write(shelf / "three", classes="abc")
    with pytest.raises(ConfigurationError, match="two has 2 classes and three 3; domains must share them"):
        domains("two,three")


@pytest.mark.parametrize("name", ["", ",", " , "])
def test_no_name_at_all_gets_a_sentence(name: str) -> None:
    with pytest.raises(ConfigurationError, match="needs the names of its data sets, separated by commas"):
        domains(name)


def test_an_unknown_data_set_gets_a_sentence(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigurationError, match="There is no image data set 'not there'"):
        domains("digits,not there")


def test_a_change_in_any_of_the_data_sets_is_another_stream(shelf: Path) -> None:
    for number, name in enumerate(("ink", "chalk")):
        write(shelf / name, seed=number)
    before = domains("ink,chalk").config
    assert domains("ink,chalk").config == before
    assert domains("chalk,ink").config != before
    write(shelf / "chalk", seed=2)
    assert domains("ink,chalk").config != before
