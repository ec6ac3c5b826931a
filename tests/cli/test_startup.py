"""The installed script answers at once: help and tab completion must not wait for torch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import pytest

SCRIPT = shutil.which("latewood", path=str(Path(sys.executable).parent))
#: What takes long to import; numpy alone would take a tenth of a second. (typer itself may import pydantic.)
HEAVY = {"torch", "numpy", "transformers", "datasets", "sklearn", "scipy", "kornia", "matplotlib", "safetensors"}

pytestmark = pytest.mark.skipif(SCRIPT is None, reason="the script latewood is not installed beside this Python")


def script(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    assert SCRIPT is not None
    return subprocess.run(
        [SCRIPT, *arguments], capture_output=True, text=True, env={**os.environ, **environment}, check=False, timeout=60
    )


def completed(line: str, **environment: str) -> tuple[list[str], str]:
    """What bash is offered for the last word of a line, and standard error."""
    words = str(len(line.split(" ")) - 1)
    result = script(_LATEWOOD_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=words, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.split(), result.stderr


def imported(profile: str) -> set[str]:
    """The packages in what Python prints about imports with PYTHONPROFILEIMPORTTIME."""
    return {name.split(".")[0] for name in re.findall(r"^import time:.*\|\s+(\S+)$", profile, re.MULTILINE)}


def test_help_comes_in_under_a_second() -> None:
    """The target is half a second on a quiet machine; the bound leaves room for a busy one."""
    seconds = []
    for _ in range(3):
        began = time.monotonic()
        result = script("--help")
        seconds.append(time.monotonic() - began)
        assert result.returncode == 0
        assert "compare" in result.stdout
    assert median(seconds) < 1.0, f"latewood --help took {seconds} seconds"


@pytest.mark.parametrize("command", ["--help", "compare --help", "methods", "streams --json", "papers"])
def test_what_only_tells_what_there_is_imports_nothing_heavy(command: str) -> None:
    result = script(*command.split(), PYTHONPROFILEIMPORTTIME="1")
    assert result.returncode == 0
    packages = imported(result.stderr)
    assert {"typer", "latewood"} <= packages
    assert not packages & HEAVY


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("latewood run g", {"g-acil"}),
        ("latewood compare nmc r", {"rehearsal-free", "replay"}),
        ("latewood run nmc --stream s", {"si-blurry-", "split-"}),
        ("latewood streams ro", {"rotated-"}),
        ("latewood check g-", {"g-acil"}),
        ("latewood comp", {"compare"}),
        ("latewood run zzz", set()),
    ],
)
def test_tab_offers_what_begins_with_the_word_and_imports_nothing_heavy(line: str, offered: set[str]) -> None:
    began = time.monotonic()
    words, profile = completed(line, PYTHONPROFILEIMPORTTIME="1")
    seconds = time.monotonic() - began
    assert set(words) == offered
    assert not imported(profile) & HEAVY
    assert seconds < 2.0, "a person would have typed the rest by now"
