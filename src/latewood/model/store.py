"""A versioned directory: immutable versions made of facts and of blobs of tensors, and a HEAD that names the one in use.

::

    HEAD                                   which version is in use; moving it is what commits
    versions/000007.json                   a version: its facts, the blobs that it needs, its own checksum
    blobs/3f/3f0a….safetensors             tensors, under the BLAKE2b hash of the file's bytes
    backbone/                              written once, never changed
    staging/                               unfinished work, the caller's own
    lock                                   held by the one process that writes

Readers take no lock: whatever they may read is written aside and renamed, and never changed afterwards. The lock is an
advisory one of the system (``flock``), which ends with its process; Windows and some network disks have none, and there
only one process at a time may write.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from latewood.core.checkpoint import write_tensors
from latewood.core.errors import CheckpointError, ConfigurationError, StorageError
from latewood.core.files import (
    digest,
    lock,
    remove_files,
    sweep_temporaries,
    unlock,
    write_atomically,
    write_by_checksum,
    write_folder_atomically,
)

FORMAT = 1
_BLOB = re.compile(r"[0-9a-f]{64}")
#: A file may change within one tick of the disk's clock and show the same times, so a checksum is remembered only for
#: files that were left alone for longer, in nanoseconds.
_SETTLED = 100_000_000
_checksums: dict[tuple[int, ...], str] = {}
_parsed: dict[tuple[int, ...], Version] = {}

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Draft:
    """What :meth:`Store.commit` makes a version of.

    ``event`` says in a word what happened (``init``, ``learn``, ``forget``, ``rollback``, ``accept``), ``about`` in one
    line for people. ``content`` is the caller's own and must fit JSON; ``blobs`` names every blob that the version needs.
    ``parent`` is the version that it was made from. A ``candidate`` waits beside the version in use until it is accepted
    or discarded. ``removes`` are the numbers of earlier versions that must not survive this one; there need not be any
    of that number.
    """

    event: str
    about: str
    content: Mapping[str, Any]
    blobs: tuple[str, ...]
    parent: int | None = None
    candidate: bool = False
    removes: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Version(Draft):
    """A committed :class:`Draft`, with its number (never given twice) and its time (UTC, ISO 8601, to the second)."""

    number: int
    time: str


class _Pointer(NamedTuple):
    """What HEAD says: the version in use, the checksum of its file, and the last number ever given."""

    number: int
    checksum: str
    last: int


class _Manifests(NamedTuple):
    """What lies in ``versions``: those that are whole by number, and what is wrong with the others."""

    whole: dict[int, Version]
    damaged: dict[int, str]


class Store:
    """A model directory on disk. It knows versions and blobs, and nothing of what they mean.

    Opening reads nothing but the folder's names. ``tell`` receives one sentence, once, for whatever is damaged and was
    survived. Errors: :class:`~latewood.core.errors.CheckpointError` if ``folder`` is no model directory.

    >>> import tempfile, torch
    >>> def first(store: Store) -> Draft:
    ...     blob = store.put({"weight": torch.zeros(2)})
    ...     return Draft(event="init", about="a new model", content={"classes": []}, blobs=(blob,))
    >>> store = Store.create(Path(tempfile.mkdtemp()) / "model", first)
    >>> with store.writing("learning"):
    ...     blob = store.put({"weight": torch.ones(2)})
    ...     learned = store.commit(Draft(event="learn", about="cats", content={"classes": ["cat"]}, blobs=(blob,), parent=1))
    >>> store.load(lambda version: store.get(version.blobs[0])["weight"].tolist())
    [1.0, 1.0]
    >>> [(version.number, version.about) for version in store.versions()]
    [(1, 'a new model'), (2, 'cats')]
    """

    def __init__(self, folder: Path, tell: Callable[[str], None] = print) -> None:
        if not (folder / "versions").is_dir():
            raise CheckpointError(
                f"{folder} is no model directory (it has no folder 'versions'); name one, or create one there."
            )
        self._set_up(folder, tell)

    def _set_up(self, folder: Path, tell: Callable[[str], None]) -> None:
        self.folder = folder.absolute()  # a process may change its working directory
        self._tell, self._told = tell, set[str]()
        self._held = False
        self._uncommitted: set[str] = set()

    @classmethod
    def create(cls, folder: Path, make: Callable[[Store], Draft], tell: Callable[[str], None] = print) -> Store:
        """Make a new directory, which appears whole or not at all, and open it.

        ``make`` receives a store in a temporary folder, puts the blobs of version 1 there, writes what it likes into
        ``store.backbone``, and returns the version. Errors: :class:`~latewood.core.errors.CheckpointError` if ``folder``
        exists and isn't empty; :class:`~latewood.core.errors.StorageError` if it can't be written.
        """
        folder = folder.absolute()
        if folder.is_symlink():
            folder = folder.resolve()
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            what = "is not empty" if folder.is_dir() else "is a file"
            raise CheckpointError(f"{folder} {what}; choose a new or an empty folder for the model.")

        def fill(temporary: Path) -> None:
            store = cls.__new__(cls)
            store._set_up(temporary, tell)
            store._fill(make)

        write_folder_atomically(folder, fill)
        return cls(folder, tell)

    def _fill(self, make: Callable[[Store], Draft]) -> None:
        for name in ("versions", "blobs", "backbone", "staging"):
            (self.folder / name).mkdir()
        (self.folder / "lock").touch()
        self._held = True
        draft = make(self)
        if draft.candidate:
            raise ConfigurationError("The first version of a model can't be a candidate.")
        self.commit(draft)

    @property
    def backbone(self) -> Path:
        """The folder that is written while the directory is created, and never again."""
        return self.folder / "backbone"

    @property
    def staging(self) -> Path:
        """The folder for unfinished work; what lies there is the caller's to resume and to remove."""
        return self.folder / "staging"

    def clear_staging(self) -> None:
        """Remove all that lies in :attr:`staging`. Only inside :meth:`writing`.

        Errors: :class:`~latewood.core.errors.StorageError` if something can't be removed.
        """
        self._must_hold("clear_staging")
        try:
            for path in self.staging.glob("*"):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        except OSError as error:
            raise StorageError(f"Could not remove {error.filename}: {error.strerror}.") from error

    # The backbone

    def backbone_sums(self) -> dict[str, str]:
        """The checksum of every file of the backbone, by its path in that folder."""
        files = sorted(path for path in self.backbone.rglob("*") if path.is_file())
        return {path.relative_to(self.backbone).as_posix(): _checksum_once(path) for path in files}

    def check_backbone(self, sums: Mapping[str, str]) -> None:
        """Compare the backbone with what :meth:`backbone_sums` said of it; further files are not looked at.

        Errors: :class:`~latewood.core.errors.CheckpointError` names the first file that is missing or damaged.
        """
        for name, wanted in sums.items():
            fault = _fault(self.backbone / name, wanted)
            if fault:
                raise CheckpointError(f"{fault}; restore the backbone from a copy of the model.")

    # Blobs

    def put(self, tensors: Mapping[str, Tensor]) -> str:
        """Write a blob to the disk and return its name, which follows from its contents.

        A whole blob of the same contents is not written again; a damaged one is replaced. Only inside :meth:`writing`;
        what no commit of it names is gone with the next. Errors: :class:`~latewood.core.errors.StorageError`.
        """
        self._must_hold("put")
        name = write_by_checksum(self.folder / "blobs", self._blob, lambda path: write_tensors(path, tensors))
        self._uncommitted.add(name)
        return name

    def get(self, name: str) -> dict[str, Tensor]:
        """The tensors of a blob, on the CPU; its contents are compared with its name each time.

        Errors: :class:`~latewood.core.errors.CheckpointError` if it is missing or damaged. A reader of the version in use
        calls this inside :meth:`load`.
        """
        path = self._blob(name)
        try:
            if _checksum(path) != name:
                raise CheckpointError(f"{path} is damaged: its checksum is not the one that was written.")
            return load_file(path)
        except (OSError, SafetensorError, RuntimeError) as error:  # torch's own, for a file that has just been pruned
            raise CheckpointError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}.") from error

    def holds(self, name: str) -> bool:
        """Whether a blob is there, whole or not."""
        return self._blob(name).is_file()

    def available(self, version: Version) -> bool:
        """Whether every blob of a version is there; :meth:`prune` takes those of old versions."""
        return all(self._blob(name).is_file() for name in version.blobs)

    def _blob(self, name: str) -> Path:
        if not _BLOB.fullmatch(name):
            raise CheckpointError(f"{name!r} is not the name of a blob, which has 64 hexadecimal digits.")
        return self.folder / "blobs" / name[:2] / f"{name}.safetensors"

    def _blobs(self) -> set[str]:
        return {path.stem for path in (self.folder / "blobs").glob("??/*.safetensors") if _BLOB.fullmatch(path.stem)}

    # Reading versions

    def head(self) -> Version:
        """The version in use: HEAD's, if it and its blobs are whole, else the newest before it that is.

        Blobs are hashed once per process as long as their files stay as they are. Errors:
        :class:`~latewood.core.errors.CheckpointError` if no version is whole.
        """
        while True:
            text = self._head_text()
            pointer = _parse_head(text)
            try:
                return self._of(pointer)
            except _OtherFormatError:
                raise
            except CheckpointError as fault:
                found = self._newest_whole()
                if self._head_text() != text:
                    continue  # nothing is damaged: another process moved on and removed what this one was reading
                if found is None:
                    raise CheckpointError(f"{fault} No other version is whole; restore a copy of the model.") from None
                self._tell_once(f"{fault} Version {found.number} is used.")
                return found

    def load(self, reader: Callable[[Version], T]) -> T:
        """What ``reader`` makes of the version in use.

        If ``reader`` meets a :class:`~latewood.core.errors.CheckpointError` because another process moved HEAD and pruned
        meanwhile, or because the version has just turned out to be damaged, it is called again with the one that is in use
        now. Any other such error is raised.
        """
        while True:
            before = self._head_text()
            version = self.head()
            try:
                return reader(version)
            except CheckpointError:
                if self._head_text() == before and self.head() == version:
                    raise

    def versions(self) -> list[Version]:
        """All versions whose file is whole, candidates among them, oldest first; also those whose blobs were pruned.

        A file that is damaged is told.
        """
        whole, damaged = self._committed()
        for fault in damaged.values():
            self._tell_once(fault)
        return [whole[number] for number in sorted(whole)]

    def version(self, number: int) -> Version:
        """Errors: :class:`~latewood.core.errors.CheckpointError` if there is no such version, or its file is damaged."""
        whole, damaged = self._committed()
        if number in whole:
            return whole[number]
        if number in damaged:
            raise CheckpointError(damaged[number])
        for other in whole.values():
            if number in other.removes and not other.candidate:
                raise CheckpointError(f"Version {number} was removed by version {other.number} ({other.about}).")
        there = ", ".join(map(str, sorted(whole)[-5:]))
        raise CheckpointError(f"{self.folder} has no version {number}; the newest are {there}.")

    def candidate(self) -> Version | None:
        """The newest candidate that came after the version in use, or ``None``: a later commit supersedes candidates."""
        whole, damaged = self._committed()
        newest = whole.get(max((*whole, *damaged), default=0))
        return newest if newest and newest.candidate else None

    def _of(self, pointer: _Pointer | None) -> Version:
        """The version that HEAD names, if it is whole with all its blobs."""
        if pointer is None:
            raise CheckpointError(f"{self.folder / 'HEAD'} is missing or damaged.")
        path = self._manifest(pointer.number)
        raw = _read(path)
        version = _parse(path, raw)
        if _sum(raw) != pointer.checksum:
            raise CheckpointError(f"{path} is not the file that HEAD was written for.")
        fault = self._fault(version)
        if fault:
            raise CheckpointError(f"{fault}, and version {version.number} needs it.")
        return version

    def _newest_whole(self) -> Version | None:
        whole = self._committed().whole
        ordinary = [whole[number] for number in sorted(whole, reverse=True) if not whole[number].candidate]
        return next((version for version in ordinary if not self._fault(version)), None)

    def _fault(self, version: Version) -> str | None:
        """What is wrong with the first blob of a version that is not whole."""
        return next((fault for name in version.blobs if (fault := _fault(self._blob(name), name))), None)

    def _committed(self) -> _Manifests:
        """The manifests without those that a later one removes, or that were written and never committed."""
        while True:
            text = self._head_text()
            found = self._manifests()
            if self._head_text() == text:  # else a writer was at work: what it removed is gone, what it added not yet seen
                break
        pointer = _parse_head(text)
        whole = {n: v for n, v in found.whole.items() if v.candidate or pointer is None or n <= pointer.number}
        gone = _removed(whole)
        return _Manifests(
            {number: version for number, version in whole.items() if number not in gone},
            {number: fault for number, fault in found.damaged.items() if number not in gone},
        )

    def _manifests(self) -> _Manifests:
        found = _Manifests({}, {})
        for number in self._numbers():
            path = self._manifest(number)
            try:
                found.whole[number] = _parse_once(path)
            except _OtherFormatError:
                raise
            except CheckpointError as fault:
                if path.exists():  # else another process removed it just now
                    found.damaged[number] = str(fault)
        return found

    def _numbers(self) -> list[int]:
        try:
            names = os.listdir(self.folder / "versions")  # noqa: PTH208 - for thousands, Path objects cost more than reading
        except OSError as error:
            raise CheckpointError(f"{self.folder / 'versions'} can't be read: {error.strerror}.") from error
        return sorted(int(name[:-5]) for name in names if re.fullmatch(r"[0-9]{6,}\.json", name))

    def _manifest(self, number: int) -> Path:
        return self.folder / "versions" / f"{number:06d}.json"

    def _head_text(self) -> str:
        with suppress(OSError, UnicodeDecodeError):
            return (self.folder / "HEAD").read_text("ascii")
        return ""

    def _tell_once(self, sentence: str) -> None:
        if sentence not in self._told:
            self._told.add(sentence)
            self._tell(sentence)

    # Writing

    @contextmanager
    def writing(self, doing: str, wait: float = 0.0) -> Iterator[None]:
        """Be the one writer of this directory, after waiting for another for up to ``wait`` seconds.

        ``doing`` is what others are told who find it taken, such as ``"learning new-photos"``. What a writer that died left
        unfinished is put in order first. Errors: :class:`~latewood.core.errors.StorageError` names who holds it.
        """
        handle = self._take_lock(wait)
        try:
            with suppress(OSError):  # a full disk must not keep anyone from pruning it
                note = {"process": os.getpid(), "since": _now(), "doing": doing}
                (self.folder / "lock").write_text(json.dumps(note))
            self._held = True
            self._uncommitted.clear()
            self._put_in_order()
            yield
        finally:
            self._held = False
            unlock(handle)

    def commit(self, draft: Draft) -> Version:
        """Make a version of ``draft``, and use it from now on unless it is a candidate; then carry out its ``removes``.

        The version is there, or nothing has changed, at whatever moment the process dies. Removing only unlinks files; if
        even that was interrupted, those versions are hidden already, and the next writer finishes. Only inside
        :meth:`writing`. Errors: :class:`~latewood.core.errors.CheckpointError` if a blob is missing or damaged,
        :class:`~latewood.core.errors.ConfigurationError` if the content does not fit JSON or ``removes`` names no earlier
        version, :class:`~latewood.core.errors.StorageError` if writing or removing fails.
        """
        self._must_hold("commit")
        self._drop_uncommitted()
        number = self.next_number()
        version = Version(**{f.name: getattr(draft, f.name) for f in fields(Draft)}, number=number, time=_now())
        wrong = [other for other in version.removes if not 0 < other < number]
        if wrong:
            raise ConfigurationError(f"Version {number} can't remove version {wrong[0]}, only earlier ones.")
        fault = self._fault(version)
        if fault:
            raise CheckpointError(f"{fault}; nothing was committed.")
        raw = _render(version)
        path = self._manifest(number)
        write_atomically(path, raw)
        if not version.candidate:
            self._point(_Pointer(number, _sum(raw), number))
            if version.removes:
                self._finish_removes()
        self._uncommitted.difference_update(version.blobs)
        return _parse(path, raw)

    def accept(self, number: int, about: str = "") -> Version:
        """Commit what a waiting candidate holds as a new version, event ``accept``, and carry out its ``removes``.

        ``parent`` is that of the candidate; the candidate itself stays in the log. Errors: as :meth:`commit`, and
        :class:`~latewood.core.errors.CheckpointError` if version ``number`` is not the waiting candidate.
        """
        found = self._waiting(number)
        return self.commit(replace(found, event="accept", about=about or f"accepted: {found.about}", candidate=False))

    def discard(self, number: int) -> None:
        """Remove a candidate, waiting or superseded, and the blobs that only it needs; its number is not given again.

        Only inside :meth:`writing`. Errors: :class:`~latewood.core.errors.CheckpointError` if version ``number`` is no
        candidate, :class:`~latewood.core.errors.StorageError` if removing fails.
        """
        self._must_hold("discard")
        if not self.version(number).candidate:
            raise CheckpointError(f"Version {number} is no candidate, so it can't be discarded.")
        pointer = _parse_head(self._head_text())
        if pointer and pointer.last < number:
            self._point(pointer._replace(last=self.next_number() - 1))
        remove_files([self._manifest(number)])
        self._drop_unneeded()

    def prune(self, keep: int) -> None:
        """Keep the blobs of the newest ``keep`` versions, of the version in use and of the waiting candidate, and no other.

        The files of all versions stay, so the log stays whole. While a file of a version as new as those is damaged,
        nobody knows which blobs it needs: that is told, and nothing is removed. Only inside :meth:`writing`. Errors:
        :class:`~latewood.core.errors.StorageError` if removing fails.
        """
        self._must_hold("prune")
        if keep < 0:
            raise ConfigurationError(f"The number of versions to keep can't be {keep}.")
        pointer = _parse_head(self._head_text())
        whole, damaged = self._committed()
        ordinary = [number for number in sorted(whole) if not whole[number].candidate]
        candidate = self.candidate()
        kept = {*ordinary[len(ordinary) - min(keep, len(ordinary)) :], self.head().number}
        kept |= {version.number for version in (candidate,) if version}
        kept |= {pointer.number} & whole.keys() if pointer else set()
        in_doubt = [fault for number, fault in damaged.items() if number >= min(kept)]
        if in_doubt:
            self._tell_once(f"{in_doubt[0]} No blob is removed as long as that file is there; restore it from a copy.")
            return
        self._drop_blobs(self._blobs() - _needed(whole[number] for number in kept) - self._uncommitted)

    def next_number(self) -> int:
        """The number that the next commit gives."""
        pointer = _parse_head(self._head_text())
        return max(pointer.last if pointer else 0, *self._numbers(), 0) + 1

    def _waiting(self, number: int) -> Version:
        candidate = self.candidate()
        if candidate is None or candidate.number != number:
            waits = f"version {candidate.number} does" if candidate else "none does"
            raise CheckpointError(f"Version {number} does not wait as a candidate; {waits}.")
        return candidate

    def _must_hold(self, what: str) -> None:
        if not self._held:
            raise StorageError(f"{what}() changes {self.folder}, which is only allowed inside 'with store.writing(...)'.")

    def _take_lock(self, wait: float) -> BinaryIO:
        path = self.folder / "lock"
        deadline = time.monotonic() + wait
        while True:
            try:
                if not path.exists():
                    path.touch()
                return lock(path)
            except OSError as error:
                raise StorageError(f"{path} can't be opened for writing: {error.strerror}.") from error
            except StorageError:
                if time.monotonic() >= deadline:
                    raise StorageError(self._holder(path)) from None
            time.sleep(min(0.02, max(0.0, deadline - time.monotonic())))

    def _holder(self, path: Path) -> str:
        who = "another process"
        with suppress(OSError, ValueError, KeyError, TypeError):
            note = json.loads(path.read_text())
            who = f"process {note['process']} since {note['since']} ({note['doing']})"
        return f"{self.folder} is being changed by {who}; try again when that is done."

    def _point(self, pointer: _Pointer) -> None:
        write_atomically(self.folder / "HEAD", _render_head(pointer))

    # Putting in order what a writer that died left behind

    def _put_in_order(self) -> None:
        blobs = self.folder / "blobs"
        for folder in (self.folder, self.folder / "versions", blobs, *blobs.glob("??")):
            sweep_temporaries(folder)
        if _parse_head(self._head_text()) is None:
            number = self.head().number
            self._point(_Pointer(number, _sum(_read(self._manifest(number))), max(self._numbers())))
        self._drop_uncommitted()
        self._finish_removes()
        self._drop_unneeded()

    def _drop_uncommitted(self) -> None:
        """Remove the manifest that was written when HEAD could not be moved to it any more."""
        pointer = _parse_head(self._head_text())
        newer = [number for number in self._numbers() if pointer and number > pointer.number]
        for path in map(self._manifest, newer):
            try:
                uncommitted = not _parse(path, _read(path)).candidate
            except _OtherFormatError:
                raise
            except CheckpointError:
                continue  # manifests appear whole, so this is damage, not a crash
            if uncommitted:
                remove_files([path])

    def _finish_removes(self) -> None:
        whole, damaged = self._manifests()
        doomed = _removed(whole) & (whole.keys() | damaged.keys())
        if not doomed:
            return
        known = _needed(whole[number] for number in doomed & whole.keys())
        # Which blobs a damaged one needed nobody knows, and what is to be forgotten must go.
        blobs = self._blobs() if doomed & damaged.keys() else known
        self._drop_blobs(blobs - _needed(version for number, version in whole.items() if number not in doomed))
        # Last, and the oldest first: a manifest that is still there is what tells the next writer to go on.
        remove_files(self._manifest(number) for number in sorted(doomed))

    def _drop_unneeded(self) -> None:
        whole, damaged = self._manifests()
        if not damaged:  # else nobody knows what is needed
            self._drop_blobs(self._blobs() - _needed(whole.values()) - self._uncommitted)

    def _drop_blobs(self, names: Iterable[str]) -> None:
        remove_files(self._blob(name) for name in sorted(names))


class _OtherFormatError(CheckpointError):
    """What another version of Latewood wrote: not damaged, but not for this one to read, pass over or remove."""


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _needed(versions: Iterable[Version]) -> set[str]:
    return {name for version in versions for name in version.blobs}


def _removed(whole: Mapping[int, Version]) -> set[int]:
    """The numbers that committed versions remove; a candidate removes nothing before it is accepted."""
    return {number for version in whole.values() if not version.candidate for number in version.removes}


# Manifests: one JSON object whose last entry is the checksum of all bytes before it.


def _sum(raw: bytes) -> str:
    return blake2b(raw, digest_size=32).hexdigest()


def _seal(body: bytes) -> bytes:
    return f', "blake2b": "{_sum(body)}"}}\n'.encode()


def _render(version: Version) -> bytes:
    try:
        text = json.dumps({"format": FORMAT, **asdict(version), "content": dict(version.content)}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"The content of a version can't be kept as JSON: {error}.") from error
    body = text[:-1].encode()
    return body + _seal(body)


def _parse(path: Path, raw: bytes) -> Version:
    end = len(raw) - len(_seal(b""))
    if end < 0 or raw[end:] != _seal(raw[:end]):
        raise CheckpointError(f"{path} is damaged: its checksum is not the one that was written.")
    try:
        facts = json.loads(raw)
        if facts["format"] != FORMAT:
            raise _OtherFormatError(
                f"{path} has format {facts['format']}, and this version of Latewood reads format {FORMAT}; "
                "use the version that wrote it."
            )
        facts["blobs"], facts["removes"] = tuple(map(str, facts["blobs"])), tuple(map(int, facts["removes"]))
        version = Version(**{field.name: facts[field.name] for field in fields(Version)})
        if int(path.stem) != version.number:
            raise CheckpointError(f"{path} is damaged: it holds version {version.number}.")
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: it does not describe a version ({error}).") from error
    return version


def _parse_once(path: Path) -> Version:
    """A whole manifest, parsed once per process as long as its file stays as it is: logs grow long."""
    try:
        facts = path.stat()
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}.") from error
    if (known := _parsed.get(_key(facts))) is not None:
        return known
    version = _parse(path, _read(path))
    if _is_settled(facts):
        _parsed[_key(facts)] = version
    return version


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}.") from error


# HEAD: the pointer in one line, and a short checksum of it.


def _render_head(pointer: _Pointer) -> str:
    line = " ".join(map(str, pointer))
    return f"{line} {blake2b(line.encode(), digest_size=8).hexdigest()}\n"


def _parse_head(text: str) -> _Pointer | None:
    with suppress(ValueError):
        number, manifest, last, _ = text.split()
        pointer = _Pointer(int(number), manifest, int(last))
        return pointer if _render_head(pointer) == text else None
    return None


# Files that are told by their checksum


def _fault(path: Path, wanted: str) -> str | None:
    try:
        return None if _checksum_once(path) == wanted else f"{path} is damaged"
    except FileNotFoundError:
        return f"{path} is missing"
    except OSError as error:
        return f"{path} can't be read ({error.strerror})"


def _checksum_once(path: Path) -> str:
    """A file's checksum, computed once per process as long as the file stays as it is."""
    facts = path.stat()
    return _checksums.get(_key(facts)) or _checksum(path)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        facts = os.fstat(file.fileno())
        found = digest(file)
    if _is_settled(facts):
        _checksums[_key(facts)] = found
    return found


def _is_settled(facts: os.stat_result) -> bool:
    return time.time_ns() - max(facts.st_mtime_ns, facts.st_ctime_ns) > _SETTLED


def _key(facts: os.stat_result) -> tuple[int, ...]:
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns
