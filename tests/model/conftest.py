"""What tests of model directories share: small models on real digits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from latewood.images.datasets import ImageData, load_images
from latewood.model.model import Model

MakeModel = Callable[..., Model]
Rows = Callable[..., dict[str, Any]]
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(scope="session")
def digits() -> ImageData:
    return load_images("digits")


@pytest.fixture
def make(tmp_path: Path) -> MakeModel:
    """A model of 8x8 digits on their pixels, small enough to learn in a moment."""

    def made(name: str = "model", **options: Any) -> Model:
        wanted: dict[str, Any] = {"backbone": "pixels", "size": 8, "channels": 1, "tell": lambda _: None}
        if options.get("method", "g-acil") == "g-acil":
            wanted["settings"] = {"expansion": 100}
        return Model.init(tmp_path / name, **{**wanted, **options})

    return made


@pytest.fixture(scope="session")
def rows(digits: ImageData) -> Rows:
    """Digits of some classes as columns, every ``step``-th from ``start`` on; named after their numbers in words."""
    words = WORDS

    def chosen(classes: Sequence[int], start: int = 0, step: int = 1, most: int | None = None) -> dict[str, Any]:
        part = digits.subset(list(classes)).train
        keep = range(start, len(part), step)[:most]
        return {"image": part["image"][list(keep)], "label": [words[classes[int(part["label"][i])]] for i in keep]}

    return chosen
