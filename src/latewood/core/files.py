"""Writing so that a crash at any moment leaves the old file or the new one, never half of one."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
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


def write_by_checksum(folder: Path, place: Callable[[str], Path], fill: Callable[[Path], None]) -> str:
    """Let ``fill`` write a file, and rename it to ``place(checksum)``, somewhere in ``folder``; returns the checksum.

    A whole file that is there already stays as it is; a damaged one is replaced. Errors: :class:`StorageError` if writing
    fails.
    """
    with _temporary(_beside(folder / "new"), folder) as temporary:
        # A folder of its own, since libraries write temporary files beside the one that they are asked for: whoever is
        # killed meanwhile leaves them here, where they are swept.
        temporary.mkdir()
        fill(temporary / "new")
        name = checksum(temporary / "new")
        path = place(name)
        if not _holds(path, name):
            if not path.parent.is_dir():
                path.parent.mkdir(parents=True)
                _flush(path.parent.parent)
            _settle(temporary / "new", path)
        _remove(temporary)
    return name


def _replace(path: Path, make: Callable[[Path], None]) -> None:
    with _temporary(_beside(path), path) as temporary:
        make(temporary)
        _settle(temporary, path)


@contextmanager
def _temporary(temporary: Path, path: Path) -> Iterator[Path]:
    """A place for what becomes ``path`` or a file in it; nothing stays there if finishing fails."""
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
    except BaseException as error:
        _remove(temporary)
        if _is_write_failure(error):
            raise StorageError(f"Could not write {path}: {_reason(error)}. What was saved before is untouched.") from error
        raise


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")


def _settle(temporary: Path, path: Path) -> None:
    for file in [temporary, *temporary.rglob("*")] if temporary.is_dir() else [temporary]:
        _flush(file)
    temporary.replace(path)
    _flush(path.parent)


def checksum(path: Path) -> str:
    """The BLAKE2b hash of a file's contents, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return digest(file)


def digest(file: BufferedReader) -> str:
    """The :func:`checksum` of what is left to read of an open file."""
    return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()


def remove_files(paths: Iterable[Path]) -> None:
    """Remove files in this order, and flush their folders: a power cut does not bring them back.

    One that is not there is no error. Errors: :class:`StorageError` names the first that can't be removed.
    """
    folders: dict[Path, None] = {}
    for path in paths:
        with _removing(path):
            path.unlink(missing_ok=True)
        folders[path.parent] = None
    for folder in folders:
        with _removing(folder):
            _flush(folder)


@contextmanager
def _removing(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        pass  # its folder is gone as well
    except OSError as error:
        raise StorageError(f"Could not remove {path}: {_reason(error)}.") from error


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


def unlock(handle: BinaryIO) -> None:
    """Give back what :func:`lock` holds, even where a forked child still has the file open."""
    with suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_UN)
    handle.close()


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


def _holds(path: Path, wanted: str) -> bool:
    with suppress(OSError):
        return checksum(path) == wanted
    return False


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
