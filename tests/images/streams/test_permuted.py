"""Permuted: all classes return, each time with the pixels in another fixed order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError
from latewood.images.datasets import ImageData, load_images
from latewood.images.streams.permuted import permuted


def distinct(channels: int = 1) -> ImageData:
    """Images of 5 by 6 pixels that all differ within an image: three for training, of which two are for testing too."""
    first = torch.stack([torch.arange(30) + 30 * i for i in range(3)]).view(3, 1, 5, 6)
    image = torch.cat([first % 90 + 80 * c for c in range(channels)], dim=1).to(torch.uint8)
    data = Data(image=image, label=torch.tensor([0, 1, 0]))
    return ImageData("distinct", data, data[[1, 2]], ("a", "b"))


def permutation(before: Tensor, after: Tensor) -> list[int]:
    """Where the pixels of one image with distinct pixels went."""
    places = {value: place for place, value in enumerate(before.flatten().tolist())}
    return [places[value] for value in after.flatten().tolist()]


def test_the_first_arrival_is_the_data_set_as_it_is() -> None:
    images, stream = load_images("digits"), permuted("digits", steps=3)
    assert torch.equal(stream[0].train["image"], images.train["image"])
    assert torch.equal(stream.probes[0].data["image"], images.test["image"])


def test_later_arrivals_have_the_same_pixels_in_another_order() -> None:
    stream = permuted(distinct(), steps=4)
    orders = [permutation(stream[0].train["image"][0], experience.train["image"][0]) for experience in stream]
    assert orders[0] == list(range(30))
    assert all(sorted(order) == list(range(30)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4


def test_one_permutation_serves_all_channels_all_images_and_the_test_images() -> None:
    stream = permuted(distinct(channels=3), steps=2)
    before, after = stream[0].train["image"], stream[1].train["image"]
    found = {tuple(permutation(before[row, c], after[row, c])) for row in range(3) for c in range(3)}
    assert len(found) == 1
    assert torch.equal(stream.probes[1].data["image"], after[[1, 2]])
    assert after.dtype == torch.uint8
    assert after.shape == before.shape


def test_labels_and_classes_are_untouched() -> None:
    images, stream = load_images("digits"), permuted("digits", steps=3)
    for experience, probe in zip(stream, stream.probes, strict=True):
        assert experience.classes == tuple(range(10))
        assert torch.equal(experience.train["label"], images.train["label"])
        assert torch.equal(probe.data["label"], images.test["label"])


def test_the_seed_decides_the_permutations() -> None:
    a, b, other = permuted("digits", seed=4), permuted("digits", seed=4), permuted("digits", seed=5)
    assert all(torch.equal(x.train["image"], y.train["image"]) for x, y in zip(a, b, strict=True))
    assert not any(torch.equal(a[step].train["image"], other[step].train["image"]) for step in range(1, 5))


def test_a_shorter_stream_is_the_beginning_of_a_longer_one() -> None:
    short, long = permuted("digits", steps=2), permuted("digits", steps=5)
    assert torch.equal(short[1].train["image"], long[1].train["image"])


def test_there_is_a_probe_for_each_permutation() -> None:
    stream = permuted("digits", steps=3)
    assert [probe.name for probe in stream.probes] == ["permutation 0", "permutation 1", "permutation 2"]
    assert [probe.since for probe in stream.probes] == [0, 1, 2]
    assert all(experience.task is None for experience in stream)


@pytest.mark.parametrize("steps", [0, -3])
def test_a_stream_of_no_arrivals_is_refused(steps: int) -> None:
    with pytest.raises(ConfigurationError, match=f"steps must be at least 1, but it is {steps}"):
        permuted("digits", steps=steps)
