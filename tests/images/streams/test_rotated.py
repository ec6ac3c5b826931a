"""Rotated: all classes return, each time turned by a larger angle."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError
from latewood.images.datasets import ImageData, load_images
from latewood.images.streams.rotated import rotated


def white(dtype: torch.dtype = torch.uint8) -> ImageData:
    image = torch.full((4, 3, 9, 9), 255 if dtype == torch.uint8 else 1, dtype=dtype)
    data = Data(image=image, label=torch.tensor([0, 1, 0, 1]))
    return ImageData("white", data, data, ("a", "b"))


def test_zero_degrees_is_the_data_set_as_it_is() -> None:
    images, stream = load_images("digits"), rotated("digits", steps=3)
    assert torch.equal(stream[0].train["image"], images.train["image"])
    assert torch.equal(stream.probes[0].data["image"], images.test["image"])


@pytest.mark.parametrize(("degrees", "quarters"), [(90.0, 1), (180.0, 2), (-90.0, 3), (270.0, 3)])
def test_right_angles_equal_turning_by_quarters_up_to_rounding(degrees: float, quarters: int) -> None:
    stream = rotated("digits", steps=2, degrees=degrees)
    for turned, straight in ((stream[1].train, stream[0].train), (stream.probes[1].data, stream.probes[0].data)):
        expected = torch.rot90(straight["image"], quarters, (2, 3))
        assert (turned["image"].int() - expected.int()).abs().max() <= 1


def test_pixels_stay_of_their_type_and_size() -> None:
    assert all(experience.train["image"].dtype == torch.uint8 for experience in rotated("digits", steps=3))
    floating = rotated(white(torch.float32), steps=3)[1].train["image"]
    assert floating.dtype == torch.float32
    assert floating.shape == (4, 3, 9, 9)


def test_pixels_are_rounded_to_the_nearest_number() -> None:
    images = load_images("digits")
    floating = replace(images, train=images.train.with_columns(image=images.train["image"] / 255))
    exact = 255 * rotated(floating, steps=2, degrees=30)[1].train["image"]
    assert (rotated(images, steps=2, degrees=30)[1].train["image"] - exact).abs().max() <= 0.5 + 1e-3


def test_what_turns_in_from_outside_is_black_and_the_middle_stays() -> None:
    image = rotated(white(), steps=2, degrees=45)[1].train["image"]
    assert (image[:, :, [0, 0, 8, 8], [0, 8, 0, 8]] == 0).all()
    assert (image[:, :, 3:6, 3:6] == 255).all()


def test_labels_and_classes_are_untouched() -> None:
    images, stream = load_images("digits"), rotated("digits", steps=2)
    for experience, probe in zip(stream, stream.probes, strict=True):
        assert experience.classes == tuple(range(10))
        assert torch.equal(experience.train["label"], images.train["label"])
        assert torch.equal(probe.data["label"], images.test["label"])


def test_angles_lie_at_equal_distances_from_zero_to_the_last() -> None:
    stream = rotated("digits", steps=4, degrees=60)
    assert [probe.name for probe in stream.probes] == ["0 degrees", "20 degrees", "40 degrees", "60 degrees"]
    assert [probe.since for probe in stream.probes] == [0, 1, 2, 3]
    # The same angle gives the same images, whatever lies between.
    assert torch.equal(stream[3].train["image"], rotated("digits", steps=2, degrees=60)[1].train["image"])


def test_a_single_arrival_is_not_turned() -> None:
    assert torch.equal(rotated("digits", steps=1)[0].train["image"], load_images("digits").train["image"])


@pytest.mark.parametrize("steps", [0, -1])
def test_a_stream_of_no_arrivals_is_refused(steps: int) -> None:
    with pytest.raises(ConfigurationError, match=f"steps must be at least 1, but it is {steps}"):
        rotated("digits", steps=steps)


@pytest.mark.parametrize("degrees", [math.nan, math.inf, -math.inf])
def test_an_angle_that_is_no_number_is_refused(degrees: float) -> None:
    with pytest.raises(ConfigurationError, match="degrees"):
        rotated("digits", degrees=degrees)
