"""A learner's state on disk: safetensors and JSON, a checksum for each file, written aside and renamed. Never pickle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from latewood.core.errors import CheckpointError
from latewood.core.files import checksum, sweep_temporaries, write_folder_atomically

FORMAT = 1
_TENSORS, _INFO, _MANIFEST = "state.safetensors", "info.json", "manifest.json"


def save(folder: Path, state: Mapping[str, Tensor], info: Mapping[str, Any]) -> None:
    """Write a checkpoint as the new folder ``folder``: after a crash it is there whole or not at all.

    Errors: :class:`~latewood.core.errors.StorageError` if it can't be written, a full disk for instance.
    """

    def fill(temporary: Path) -> None:
        write_tensors(temporary / _TENSORS, state)
        (temporary / _INFO).write_text(json.dumps(info))
        sums = {name: checksum(temporary / name) for name in (_TENSORS, _INFO)}
        (temporary / _MANIFEST).write_text(json.dumps({"format": FORMAT, "blake2b": sums}))

    write_folder_atomically(folder, fill)


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint, on the CPU. Errors: :class:`CheckpointError` if a file is missing or not what was written."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            raise _OtherFormatError(
                f"{folder} has format {manifest['format']}, and this version of Latewood reads format {FORMAT}; "
                "use the version that wrote it, or choose another folder."
            )
        for name in (_TENSORS, _INFO):
            if checksum(folder / name) != manifest["blake2b"][name]:
                raise CheckpointError(f"{folder / name} is damaged: its checksum is not the one that was written.")
        return load_file(folder / _TENSORS), json.loads((folder / _INFO).read_text())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"The checkpoint {folder} is incomplete or damaged ({error}).") from error


class _OtherFormatError(CheckpointError):
    """What another version wrote: not damaged, but not for us to read."""


class Checkpoints:
    """The numbered checkpoints of one run in one folder; the newest two are kept, so that one damaged loses little.

    >>> import tempfile
    >>> shelf = Checkpoints(Path(tempfile.mkdtemp()))
    >>> shelf.add(0, {"weight": torch.ones(2)}, {"note": "first"})
    >>> number, state, info = shelf.newest()
    >>> number, state["weight"].tolist(), info["note"]
    (0, [1.0, 1.0], 'first')
    """

    keep = 2

    def __init__(self, folder: Path, reads_only: bool = False) -> None:
        self.folder, self.reads_only = folder, reads_only

    def add(self, number: int, state: Mapping[str, Tensor], info: Mapping[str, Any]) -> None:
        """Save checkpoint ``number``, then remove what is older than the newest :attr:`keep`; nothing if it ``reads_only``."""
        if self.reads_only:
            return
        for damaged in self._numbered():
            if int(damaged.name) >= number:  # or it would have been resumed from
                shutil.rmtree(damaged)
        save(self.folder / f"{number:06d}", state, info)
        for old in self._numbered()[self.keep :]:
            shutil.rmtree(old, ignore_errors=True)

    def newest(self, tell: Callable[[str], None] = print) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """The newest checkpoint that is whole, or ``None``. ``tell`` receives a sentence for each that is not."""
        if not self.reads_only:
            sweep_temporaries(self.folder)
        numbered = self._numbered()
        for folder in numbered:
            try:
                return int(folder.name), *load(folder)
            except _OtherFormatError:
                raise  # it is whole, and nothing may take its place
            except CheckpointError as error:
                tell(f"{error} {'There is none before it' if folder == numbered[-1] else 'The one before it is used'}.")
        return None

    def _numbered(self) -> list[Path]:
        """Newest first."""
        if not self.folder.is_dir():
            return []
        return sorted((p for p in self.folder.iterdir() if p.is_dir() and p.name.isdigit()), reverse=True)


def _untied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors of which no two share memory, as safetensors demands; loading writes both ends of a tie."""
    seen: set[int] = set()
    result = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().contiguous()
        pointer = tensor.untyped_storage().data_ptr()
        whole = tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
        result[name] = tensor.clone() if pointer in seen or not whole else tensor
        seen.add(pointer)
    return result


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write one safetensors file. Its bytes depend only on names, shapes, types and values, not on order or device."""
    save_file(_untied(tensors), path)


def tensors_of(module: torch.nn.Module) -> dict[str, Tensor]:
    """``module.state_dict()``, which must hold nothing but tensors."""
    state = module.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{type(module).__name__} keeps {name!r} as a {type(value).__name__}; state must be tensors.")
    return state


class Shelf(Checkpoints):
    """Where a learner may keep unfinished work on the experience that it is learning.

    What it adds lies on disk until the experience is learned and saved. If the run is killed before that, the learner
    finds it there when it is given the same experience again, and can go on instead of beginning anew. ``files`` is a
    folder of the run for what is too large for a checkpoint, such as a replay buffer on disk; it stays with the run, and
    a checkpoint says what of it counts.
    """

    def __init__(self, folder: Path, files: Path, reads_only: bool = False) -> None:
        super().__init__(folder, reads_only)
        self.files = files


_shelf: ContextVar[Shelf | None] = ContextVar("latewood_shelf", default=None)


def current_shelf() -> Shelf | None:
    """The shelf of the experience that is being learned; ``None`` outside of a run that is saved."""
    return _shelf.get()


@contextmanager
def shelving(shelf: Shelf | None) -> Iterator[None]:
    """Make ``shelf`` current inside the block."""
    token = _shelf.set(shelf)
    try:
        yield
    finally:
        _shelf.reset(token)
