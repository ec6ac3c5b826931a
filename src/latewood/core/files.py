"""Writing so that a crash at any moment leaves the old file or the new one, never half of one."""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from latewood.core.errors import StorageError


def cache_folder(kind: str) -> Path | None:
    """Where to keep what can be computed again, such as embeddings: a folder for each kind, made on demand.

    ``LATEWOOD_CACHE`` names the place (default ``~/.cache/latewood``); ``LATEWOOD_CACHE=off`` gives ``None``. Errors:
    :class:`StorageError` if the folder can't be made.
    """
    place = os.environ.get("LATEWOOD_CACHE", "")
    if place == "off":
        return None
    folder = Path(place).expanduser() if place else Path.home() / ".cache" / "latewood"
    folder = folder / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"The cache {folder} can't be made: {error.strerror}; LATEWOOD_CACHE names its place.") from error
    return folder


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name, flush it to the disk, and rename it into place."""

    def fill(temporary: Path) -> None:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)

    _replace(path, fill)


def write_folder_atomically(path: Path, fill: Callable[[Path], None]) -> None:
    """Let ``fill`` write into a temporary folder beside ``path``, flush every file to the disk, and rename it into place.

    ``path`` must not exist yet. Errors: :class:`StorageError` if writing fails; the temporary folder is then gone.
    """

    def make(temporary: Path) -> None:
        temporary.mkdir()
        fill(temporary)

    _replace(path, make)


def _replace(path: Path, make: Callable[[Path], None]) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        make(temporary)
        for file in [temporary, *temporary.rglob("*")] if temporary.is_dir() else [temporary]:
            _flush(file)
        temporary.replace(path)
        _flush(path.parent)
    except BaseException as error:
        _remove(temporary)
        if _is_write_failure(error):
            raise StorageError(f"Could not write {path}: {_reason(error)}. What was saved before is untouched.") from error
        raise


def lock(path: Path) -> BinaryIO:
    """Open a file and hold it for this process alone until it is closed, or the process dies.

    Errors: :class:`StorageError` if another process holds it. Where the system has no such locks, nothing is held.
    """
    handle = path.open("rb")
    try:
        import fcntl  # absent on Windows

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise StorageError(f"Another process is working in {path.parent}; wait for it, or choose another folder.") from None
    except (ImportError, OSError):
        pass  # Windows, or a network disk without locks
    return handle


def sweep_temporaries(folder: Path) -> None:
    """Remove what killed writers left behind in ``folder``."""
    for leftover in folder.glob(".*.tmp"):
        if is_temporary(leftover):
            _remove(leftover)


def is_temporary(path: Path) -> bool:
    """Whether a file or folder has a name as the writers here give to what is not finished."""
    return re.fullmatch(r"\..+\.[0-9a-f]{12}\.tmp", path.name) is not None


def _is_write_failure(error: BaseException) -> bool:
    # safetensors reports a failed write as its own exception, with the system's words in it.
    return isinstance(error, OSError) or type(error).__name__ == "SafetensorError"


def _reason(error: BaseException) -> str:
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
        return "the disk is full"
    return getattr(error, "strerror", None) or str(error)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
