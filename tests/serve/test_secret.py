"""The token: made once, readable by its owner alone, and never guessed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from latewood.core.errors import ConfigurationError, StorageError
from latewood.serve.secret import matches, token_of


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LATEWOOD_TOKEN", raising=False)


def test_a_token_is_made_once_and_kept_for_the_owner_alone(tmp_path: Path) -> None:
    token = token_of(tmp_path)
    assert len(token) >= 40
    assert token_of(tmp_path) == token
    assert stat.S_IMODE((tmp_path / "serve-token").stat().st_mode) == 0o600
    (tmp_path / "other").mkdir()
    assert token_of(tmp_path / "other") != token


def test_a_generous_umask_opens_it_for_no_one(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        token_of(tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "serve-token").stat().st_mode) == 0o600


def test_a_token_that_others_may_read_is_not_used(tmp_path: Path) -> None:
    token_of(tmp_path)
    (tmp_path / "serve-token").chmod(0o644)
    with pytest.raises(ConfigurationError, match="Other users may read"):
        token_of(tmp_path)


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 40, b"two words of a long sentence", b"x" * 600])
def test_a_damaged_token_is_not_used(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "serve-token").write_bytes(content)
    (tmp_path / "serve-token").chmod(0o600)
    with pytest.raises(ConfigurationError, match="serve-token"):
        token_of(tmp_path)


def test_the_variable_goes_before_the_file_and_makes_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATEWOOD_TOKEN", "a-token-of-my-own-choice")
    assert token_of(tmp_path) == "a-token-of-my-own-choice"
    assert list(tmp_path.iterdir()) == []
    for weak in ("", "short", "with a blank in between it", "é" * 20):
        monkeypatch.setenv("LATEWOOD_TOKEN", weak)
        with pytest.raises(ConfigurationError, match="LATEWOOD_TOKEN"):
            token_of(tmp_path)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="can't be made"):
        token_of(tmp_path / "none")


def test_only_the_whole_token_as_a_bearer_is_right() -> None:
    token = "x" * 20
    assert matches(token, f"Bearer {token}")
    assert matches(token, f"bearer  {token} ")
    for wrong in (
        None,
        "",
        token,
        "Bearer",
        "Bearer ",
        f"Bearer {token[:-1]}",
        f"Bearer {token}x",
        f"Basic {token}",
        "Bearer é",
    ):
        assert not matches(token, wrong)
