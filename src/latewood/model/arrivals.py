"""What arrives: photos in folders, tables of texts, data sets, rows in memory; all read the same way, a chunk at a time."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latewood.core.errors import ConfigurationError, DataError
from latewood.model._cells import Sizing, hash_of, image_content, label_of, text_of
from latewood.model._memory import table_of
from latewood.model._places import table_at
from latewood.model._table import Kind, Problem, Table, UnusableError, content_column, label_column

__all__ = ["MOST_PIXELS", "Arrival", "Chunk", "Inputs", "Kind", "Problem", "open_arrival", "open_inputs"]

#: Images with more are not decoded unless that is asked for: few cameras take photos of more than 80 megapixels.
MOST_PIXELS = 80_000_000

_WHOLE_NUMBER = re.compile("0|-?[1-9][0-9]*")
#: Rows that are listed at once.
_LISTED = 4096
_MOST_THREADS = 8
_PIECES_PER_THREAD = 4


@dataclass(frozen=True)
class Chunk:
    """What was read of some rows: those that are whole, and what is wrong with the others.

    ``rows`` are the whole ones' numbers in the arrival. ``content`` is uint8 ``(n, channels, size, size)`` for images, a list
    for texts. ``hashes``, uint8 ``(n, 16)``, are BLAKE2b of the image's file or of the text in UTF-8 (of the pixels where an
    image came without a file).
    """

    rows: tuple[int, ...]
    content: Tensor | list[str]
    hashes: Tensor
    problems: tuple[Problem, ...]


class Inputs:
    """Rows to predict: ``kind`` is what they hold, ``source`` how the user named them.

    Rows that were found unusable when they were listed are told in ``problems`` and are no rows any more.
    """

    def __init__(self, table: Table, kind: Kind, sizing: Sizing, content: str, label: str | None = None) -> None:
        self.source, self.kind = table.source, kind
        self._table, self._sizing, self._content = table, sizing, content
        rows, self._labels, problems = _listed(table, kind, content, label)
        self._rows = np.array(rows, np.int64)
        self.problems: tuple[Problem, ...] = (*table.problems, *problems)
        if not rows:
            raise DataError(_no_row(self.source, self.problems))

    def __len__(self) -> int:
        return len(self._rows)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The file or the line of each row, as messages name it."""
        return tuple(self._table.where(int(row)) for row in self._rows)

    def read(self, rows: range) -> Chunk:
        """Read these rows, which does not depend on what was read before; images are decoded by several threads.

        Rows that turn out to be unusable are told in the chunk. Errors: :class:`~latewood.core.errors.DataError` if the file
        that holds all of them is damaged, or was changed since it was listed.
        """
        numbers = range(len(self))[rows.start : rows.stop : rows.step]
        places = self._rows[np.array(numbers, np.int64)].tolist()
        results = self._results(places)
        whole = [(number, result) for number, result in zip(numbers, results, strict=True) if not isinstance(result, str)]
        contents = [content for _, (content, _) in whole]
        hashes = np.frombuffer(b"".join(digest for _, (_, digest) in whole), np.uint8).reshape(-1, 16)
        problems = (
            Problem(self._table.where(place), reason)
            for place, reason in zip(places, results, strict=True)
            if isinstance(reason, str)
        )
        return Chunk(
            tuple(number for number, _ in whole),
            contents if self.kind == "text" else self._sizing.stacked(contents),
            torch.from_numpy(hashes.copy()),
            tuple(problems),
        )

    def _results(self, places: Sequence[int]) -> list[tuple[Any, bytes] | str]:
        """The content and the hash of each row of the table, or the reason why it has none."""
        if not places:
            return []
        first = min(places)
        cells = self._table.read(self._content, range(first, max(places) + 1))
        wanted = [cells[place - first] for place in places]
        if self.kind == "text":
            return [_attempt(_text, cell) for cell in wanted]
        threads = min(_MOST_THREADS, os.cpu_count() or 1)
        # To hand images over one by one takes longer than to decode small ones.
        length = -(-len(wanted) // (threads * _PIECES_PER_THREAD))
        pieces = (wanted[start : start + length] for start in range(0, len(wanted), length))
        with ThreadPoolExecutor(threads) as pool:
            done = pool.map(lambda piece: [_attempt(self._image, cell) for cell in piece], pieces)
            return [result for piece in done for result in piece]

    def _image(self, cell: Any) -> tuple[Any, bytes]:
        content = image_content(cell, self._table.folder)
        return self._sizing.image(content), hash_of(content)


class Arrival(Inputs):
    """Rows to learn from: each has one of the ``labels``, always a string.

    ``numeric``: whether all labels are whole numbers. ``identity`` is a hash that changes with what arrived (of folders the
    names, sizes and times of the files; of other files their bytes; in memory the contents), so that learning that was
    interrupted goes on with this very arrival only.
    """

    def __init__(self, table: Table, kind: Kind, sizing: Sizing, content: str, label: str) -> None:
        super().__init__(table, kind, sizing, content, label)
        self.labels = tuple(self._labels)
        self.numeric = all(_WHOLE_NUMBER.fullmatch(label) for label in set(self.labels))
        self._label = label

    @cached_property
    def identity(self) -> str:
        facts = (self.kind, self._content, self._label, self._table.identity())
        return hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()


def open_arrival(
    data: Any,
    kind: Kind,
    *,
    size: int = 224,
    channels: int = 3,
    source: str | None = None,
    image: str | None = None,
    text: str | None = None,
    label: str | None = None,
    most_pixels: int = MOST_PIXELS,
) -> Arrival:
    """List labelled images or texts; their content is read later, by :meth:`Arrival.read`. ``data`` is one of these:

    1. A folder of images in folders named after their classes: ``monday/rose/1.jpg``, no deeper, or all of this within
       ``monday/train``. Hidden files, notes and files of rows in it do not count. Links are followed within the folder.
    2. A file of rows, named ``.parquet``, ``.csv``, ``.tsv``, ``.jsonl``, ``.ndjson`` or ``.json`` (an object a line), or a
       folder of such files; of these, if some are called ``train…``, only they. Text is UTF-8; the first line of CSV names
       its columns, split by whichever of comma, semicolon and tab splits this line most often. Images are the bytes of files
       or paths within the folder of the file.
    3. The name of a data set on the Hugging Face hub, of which the part ``train`` is taken.
    4. In memory: columns by name (a mapping, a :class:`~latewood.core.data.Data`), or a sequence of pairs of content and
       label. Images are the bytes of files, paths (``Path``), Pillow images, or uint8 pixels: arrays
       ``(height, width, channels)``, tensors ``(channels, height, width)``, or ``(height, width)``.

    ``image``, ``text`` and ``label`` name the columns where types and usual names leave the choice open. Labels are trimmed;
    whole numbers are labels as well, and the number 3 is the class ``"3"``. Images become ``channels`` (1 or 3) times
    ``size`` times ``size``: turned as the camera was held, the shorter side scaled, the centre cut out. One with more than
    ``most_pixels``, by its header or while it is scaled, is not decoded. ``source`` is what messages call the data (default:
    its path).

    Errors: :class:`~latewood.core.errors.DataError` if nothing of it can be used, such as a path that does not exist or a
    table without labels; single rows that cannot be used are told in ``problems``.
    :class:`~latewood.core.errors.ConfigurationError` if a setting makes no sense or a column does not exist.

    >>> arrival = open_arrival([("where is my parcel", "delivery"), ("charged twice", "payment"), ("", "payment")], "text")
    >>> arrival.labels, arrival.numeric, str(arrival.problems[0])
    (('delivery', 'payment'), False, 'row 2 of the data has an empty text')
    >>> arrival.read(range(1, 2)).content
    ['charged twice']
    """
    sizing, given = _checked(kind, size, channels, most_pixels, image, text)
    table = _table(data, kind, source, labelled=True)
    chosen = label_column(table, label, given)
    return Arrival(table, kind, sizing, content_column(table, kind, given, chosen), chosen)


def open_inputs(
    data: Any,
    kind: Kind,
    *,
    size: int = 224,
    channels: int = 3,
    source: str | None = None,
    image: str | None = None,
    text: str | None = None,
    most_pixels: int = MOST_PIXELS,
) -> Inputs:
    """List images or texts to predict. As :func:`open_arrival`, but no labels are needed: ``data`` may also be one image, a
    folder with images at any depth, a file ``.txt`` with a text on each line, or a list of texts or images in memory.

    >>> open_inputs(["where is my parcel", "charged twice"], "text").names
    ('row 0 of the data', 'row 1 of the data')
    """
    sizing, given = _checked(kind, size, channels, most_pixels, image, text)
    table = _table(data, kind, source, labelled=False)
    return Inputs(table, kind, sizing, content_column(table, kind, given, None))


def _checked(
    kind: Kind, size: int, channels: int, most_pixels: int, image: str | None, text: str | None
) -> tuple[Sizing, str | None]:
    """How images are sized, and the column of content that was asked for."""
    if min(size, most_pixels) < 1 or channels not in (1, 3):
        raise ConfigurationError(
            f"size and most_pixels must be at least 1 and channels 1 or 3, but they are {size}, {most_pixels} and {channels}."
        )
    given, other = (image, text) if kind == "images" else (text, image)
    if other is not None:
        noun = "text" if kind == "images" else "image"
        raise ConfigurationError(f"{noun}={other!r} names a column of {noun}s, but this is about {kind}; leave it out.")
    return Sizing(size, channels, most_pixels), given


def _table(data: Any, kind: Kind, source: str | None, labelled: bool) -> Table:
    if not isinstance(data, str | Path):
        table = table_of(data, kind, source or "the data", labelled)
    elif str(data).strip():
        table = table_at(data, kind, source or str(Path(data)), labelled)
    else:
        raise DataError("The path of the data is empty; name a file or a folder.")
    if not table.length:
        raise DataError(_no_row(table.source, table.problems))
    return table


def _listed(table: Table, kind: Kind, content: str, label: str | None) -> tuple[list[int], list[str], list[Problem]]:
    """The rows that have a label and, if it is text, a content; their labels; and what is wrong with the others."""
    rows, labels, problems = [], [], []
    name = _labeller(table.names.get(label or "", ()))
    for start in range(0, table.length, _LISTED):
        some = range(start, min(start + _LISTED, table.length))
        texts = table.read(content, some) if kind == "text" else [None] * len(some)
        values = table.read(label, some) if label is not None else [None] * len(some)
        for row, text, value in zip(some, texts, values, strict=True):
            try:
                if kind == "text":
                    text_of(text)
                if label is not None:
                    labels.append(name(value))
                rows.append(row)
            except UnusableError as error:
                problems.append(Problem(table.where(row), str(error)))
    return rows, labels, problems


def _labeller(names: tuple[str, ...]) -> Callable[[Any], str]:
    """:func:`label_of`, which looks closely at each different label only once: a million rows have few."""
    known: dict[str | int, str] = {}

    def name(value: Any) -> str:
        if type(value) not in (str, int):
            return label_of(value, names)
        if value not in known:
            known[value] = label_of(value, names)
        return known[value]

    return name


def _attempt(make: Callable[[Any], tuple[Any, bytes]], cell: Any) -> tuple[Any, bytes] | str:
    try:
        return make(cell)
    except UnusableError as error:
        return str(error)


def _text(cell: Any) -> tuple[Any, bytes]:
    text = text_of(cell)
    return text, hash_of(text)


def _no_row(source: str, problems: Sequence[Problem]) -> str:
    if not problems:
        return f"{source} holds no rows."
    more = f", and so on: {len(problems)} problems in all" if len(problems) > 1 else ""
    return f"{source} has no row that can be used: {problems[0]}{more}."
