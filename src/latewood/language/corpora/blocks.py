"""Blocks: documents packed one after another into rows of equally many tokens, tokenized once and memory-mapped."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError, DataError, StorageError
from latewood.core.files import cache_folder, write_folder_atomically
from latewood.core.progress import current_progress
from latewood.language.corpora.sources import Corpus, Part, load_corpus
from latewood.language.corpora.tokenizers import Tokenizer, load_tokenizer

#: Part of every key: a change of the layout or of the way in which text is divided and packed needs a new number.
FORMAT = 1

#: Rows that are copied together.
_ROWS_AT_ONCE = 4096
#: Characters that are tokenized together.
_BATCH = 1 << 18
#: In the order in which they are made, with the words for them.
_PARTS: dict[Part, str] = {
    "held_out": "held-out part (its own split, or else one in twenty stretches of 2,048 characters)",
    "train": "training part",
}
_HEADER = "header.json"


@dataclass(frozen=True)
class TokenBlocks:
    """A corpus as rows of tokens, in two parts.

    ``train`` and ``held_out`` have the columns ``tokens`` (int32, ``(n, length)``) and ``bytes`` (int32, ``(n,)``: how
    many UTF-8 bytes of text the row stands for, so that a loss can be told in bits per byte).
    """

    name: str
    train: Data
    held_out: Data
    tokenizer: Tokenizer

    @property
    def length(self) -> int:
        """The tokens in a row; a row gives ``length - 1`` predictions, each token but the first from those before it."""
        return int(self.train.tensor("tokens").shape[1])


class _Rows(NamedTuple):
    tokens: NDArray[np.int32]
    bytes: NDArray[np.int32]


def load_blocks(
    corpus: str | Corpus,
    *,
    tokenizer: str | Tokenizer = "bytes",
    length: int = 256,
    blocks: int | None = None,
    held_out: int | None = None,
) -> TokenBlocks:
    """Tokenize a corpus and pack its documents into rows of ``length`` tokens.

    Each document is followed by the token that ends a text, and then by the next one; what does not fill a last row is
    dropped. ``blocks`` and ``held_out`` are the most rows of the two parts (default: all); no more text is read than
    they need. Text is held out as :func:`~latewood.language.corpora.sources.load_corpus` says. In addition, a document
    of the training part that equals one in the held-out rows, word for word, is left out: held-out text never trains.

    The rows are kept as files in ``LATEWOOD_CACHE`` and memory-mapped, however large they are; the next call with the
    same text, tokenizer and numbers only hashes the source (about a second for each GB). With ``LATEWOOD_CACHE=off``
    they are made again, in memory. Tokenizers of checkpoints work with all cores.

    Errors: :class:`~latewood.core.errors.ConfigurationError` for an unknown name or a number that makes no sense;
    :class:`~latewood.core.errors.DataError` if the text can't be read, or a part of it does not fill one row.

    >>> code = load_blocks("python", length=64, blocks=100, held_out=10)
    >>> code.train
    Data(100 rows; tokens: int32[64], bytes: int32[])
    >>> len(code.held_out), code.tokenizer.size
    (10, 257)
    """
    if length < 2:
        raise ConfigurationError(
            f"length must be at least 2 tokens, one to predict from and one to predict, but it is {length}."
        )
    most: dict[Part, int | None] = {"train": blocks, "held_out": held_out}
    for name, limit in (("blocks", blocks), ("held_out", held_out)):
        if limit is not None and limit < 1:
            raise ConfigurationError(f"{name} must be at least 1, but it is {limit}.")
    corpus, tokenizer = load_corpus(corpus), load_tokenizer(tokenizer)
    facts = (FORMAT, corpus.fingerprint, tokenizer.fingerprint, length, blocks, held_out)
    key = hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()
    folder = cache_folder("tokens")
    make = partial(_packed_parts, corpus, tokenizer, length, most)
    parts = _kept(folder / key, length, make) if folder else {part: _joined(rows) for part, rows in make()}
    data = {part: Data(tokens=rows.tokens, bytes=rows.bytes).named(f"{key}/{part}") for part, rows in parts.items()}
    return TokenBlocks(corpus.name, data["train"], data["held_out"], tokenizer)


def pack(documents: Iterable[str], tokenizer: str | Tokenizer = "bytes", length: int = 256) -> Data:
    """Documents as rows of ``length`` tokens, in memory; for text that is no corpus.

    Errors: :class:`~latewood.core.errors.DataError` if they don't fill one row.

    >>> pack(["To be, or not to be", "that is the question"], length=8)["tokens"][2]
    tensor([ 32,  98, 101, 256, 116, 104,  97, 116], dtype=torch.int32)
    """
    rows = _joined(_filled(_packed(documents, load_tokenizer(tokenizer), length), None, length, "The text"))
    return Data(tokens=rows.tokens, bytes=rows.bytes)


def join(parts: Mapping[str, Data]) -> Data:
    """The rows of several corpora below one another, with a column ``source`` that names the corpus of each.

    ``parts`` maps names to training or held-out parts of :class:`TokenBlocks`. As there, rows lie on disk and are
    memory-mapped; of one part alone they are its own.

    >>> both = join({"a": pack(["To be, or not to be"], length=8), "b": pack(["that is the question"], length=8)})
    >>> both["source"]
    ['a', 'a', 'b', 'b']
    """
    lengths = {name: int(data.tensor("tokens").shape[1]) for name, data in parts.items()}
    if len(set(lengths.values())) != 1:
        raise ConfigurationError(f"Corpora that arrive together need rows of one length, but they have {lengths or 'none'}.")
    source = [name for name, data in parts.items() for _ in range(len(data))]
    # A fingerprint is that of a whole table, so which of its rows these are is told beside it.
    facts = [(name, data.fingerprint(), Data(rows=data.rows).fingerprint()) for name, data in parts.items()]
    key = hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()
    if len(parts) == 1:
        (data,) = parts.values()
        return Data(tokens=data.tensor("tokens"), bytes=data.tensor("bytes"), source=source).named(key)
    folder, length = cache_folder("tokens"), next(iter(lengths.values()))

    def make() -> Iterator[tuple[Part, Iterator[_Rows]]]:
        batches = (batch for data in parts.values() for batch in data.batches(_ROWS_AT_ONCE))
        yield "train", (_Rows(b.tensor("tokens").numpy(), b.tensor("bytes").numpy()) for b in batches)

    rows = _kept(folder / key, length, make)["train"] if folder else _joined(batch for _, part in make() for batch in part)
    return Data(tokens=rows.tokens, bytes=rows.bytes, source=source).named(key)


def _packed_parts(
    corpus: Corpus, tokenizer: Tokenizer, length: int, most: dict[Part, int | None]
) -> Iterator[tuple[Part, Iterator[_Rows]]]:
    """The rows of both parts, a few at a time; the held-out part must be taken first."""
    seen: set[bytes] = set()

    def marked(documents: Iterable[str]) -> Iterator[str]:
        for document in documents:
            seen.add(_mark(document))
            yield document

    chosen: dict[Part, Callable[[], Iterator[str]]] = {
        "held_out": lambda: marked(corpus.documents("held_out")),
        "train": lambda: (document for document in corpus.documents("train") if _mark(document) not in seen),
    }
    for part, words in _PARTS.items():
        rows = _packed(_watched(chosen[part](), corpus, part), tokenizer, length)
        yield part, _filled(rows, most[part], length, f"Of the corpus {corpus.name!r} the {words}")


def _mark(document: str) -> bytes:
    return hashlib.blake2b(document.encode(), digest_size=12).digest()


def _watched(documents: Iterable[str], corpus: Corpus, part: Part) -> Iterator[str]:
    progress = current_progress()
    progress.phase(f"tokenizing {corpus.name}", math.ceil((corpus.size or 0) / _BATCH) if part == "train" else 0)
    characters = 0
    for document in documents:
        yield document
        characters += len(document)
        while characters >= _BATCH:
            progress.step()
            characters -= _BATCH


def _packed(documents: Iterable[str], tokenizer: Tokenizer, length: int) -> Iterator[_Rows]:
    """The full rows of each batch of documents, none perhaps."""
    end = np.array([tokenizer.end], np.int32)
    rest, rest_bytes = np.empty(0, np.int32), 0
    for texts in _batches(documents):
        pieces, position, total = [rest], len(rest), rest_bytes
        edges = [0]  # the bytes of text before the end of each row
        for encoded in tokenizer.encode_batch(texts):
            tokens = len(encoded.tokens)
            ends = range((position // length + 1) * length, position + tokens + 2, length)
            edges += [total + encoded.bytes_before(min(row_end - position, tokens)) for row_end in ends]
            pieces += [encoded.tokens, end]
            position += tokens + 1
            total += encoded.bytes_before(tokens)
        stream, full = np.concatenate(pieces), len(edges) - 1
        yield _Rows(stream[: full * length].reshape(full, length), np.diff(edges).astype(np.int32))
        rest, rest_bytes = stream[full * length :], total - edges[-1]


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    held: list[str] = []
    characters = 0
    for document in documents:
        held.append(document)
        characters += len(document)
        if characters >= _BATCH:
            yield held
            held, characters = [], 0
    if held:
        yield held


def _filled(batches: Iterator[_Rows], most: int | None, length: int, where: str) -> Iterator[_Rows]:
    """At most ``most`` rows. Errors: DataError if there is none."""
    count, any_text = 0, False
    for rows in batches:
        any_text = True
        left = len(rows.bytes) if most is None else most - count
        if len(rows.bytes):
            yield _Rows(rows.tokens[:left], rows.bytes[:left])
        count += min(left, len(rows.bytes))
        if count == most:
            return
    if not any_text:
        raise DataError(f"{where} is empty; add text.")
    if count == 0:
        raise DataError(f"{where} is shorter than one block of {length} tokens; choose a smaller length or add text.")


def _joined(batches: Iterable[_Rows]) -> _Rows:
    held = list(batches)
    return _Rows(np.concatenate([rows.tokens for rows in held]), np.concatenate([rows.bytes for rows in held]))


# On disk


def _kept(place: Path, length: int, make: Callable[[], Iterator[tuple[Part, Iterator[_Rows]]]]) -> dict[Part, _Rows]:
    """The rows kept at ``place``; what is not there yet is made. Any number of processes may do so at once."""
    if (found := _read(place)) is not None:
        return found
    if place.exists():
        shutil.rmtree(place, ignore_errors=True)
    try:
        write_folder_atomically(place, partial(_write, length=length, make=make))
    except StorageError:
        # Another process that tokenized the same text may have been faster: then its folder is as good.
        if (found := _read(place)) is not None:
            return found
        raise
    if (found := _read(place)) is None:
        raise StorageError(f"{place} was removed or damaged while it was in use; load the corpus again.")
    return found


def _write(folder: Path, length: int, make: Callable[[], Iterator[tuple[Part, Iterator[_Rows]]]]) -> None:
    counts: dict[str, int] = {}
    for part, batches in make():
        counts[part] = 0
        with _file(folder, part, "tokens").open("wb") as tokens, _file(folder, part, "bytes").open("wb") as sizes:
            for rows in batches:
                tokens.write(np.ascontiguousarray(rows.tokens).data)
                sizes.write(np.ascontiguousarray(rows.bytes).data)
                counts[part] += len(rows.bytes)
    (folder / _HEADER).write_text(json.dumps({"format": FORMAT, "length": length, "rows": counts}))


def _read(place: Path) -> dict[Part, _Rows] | None:
    """What is kept at ``place``; ``None`` if there is nothing, or only something damaged."""
    try:
        header = json.loads((place / _HEADER).read_text())
        if "train" not in header["rows"]:
            return None
        return {part: _mapped(place, part, rows, header["length"]) for part, rows in header["rows"].items()}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _mapped(place: Path, part: Part, rows: int, length: int) -> _Rows:
    sizes = np.fromfile(_file(place, part, "bytes"), np.int32)
    if len(sizes) != rows or _file(place, part, "tokens").stat().st_size != 4 * rows * length:
        raise ValueError("the files have other sizes than their header says")
    # Copy on write: torch wants writable memory, and whoever writes into it must not change the file.
    return _Rows(np.memmap(_file(place, part, "tokens"), np.int32, "c", shape=(rows, length)), sizes)


def _file(folder: Path, part: Part, column: str) -> Path:
    return folder / f"{part}.{column}.int32"
