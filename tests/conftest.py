"""What all tests share: where real data lies, and a cache of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests neither read nor fill the user's cache."""
    before = os.environ.get("LATEWOOD_CACHE")
    os.environ["LATEWOOD_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["LATEWOOD_CACHE"]
    else:
        os.environ["LATEWOOD_CACHE"] = before


@pytest.fixture(scope="session", autouse=True)
def _one_thread_each() -> None:
    """The tests run in parallel already."""
    torch.set_num_threads(1)


@pytest.fixture
def real_data() -> Path:
    """The folder with the real data sets; the test is skipped where it is absent."""
    place = os.environ.get("LATEWOOD_DATA")
    if not place or not Path(place).is_dir():
        pytest.skip("LATEWOOD_DATA does not name the folder with the real data sets")
    return Path(place)
