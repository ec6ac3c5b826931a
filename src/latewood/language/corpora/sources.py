"""Where text comes from: files, folders, JSON lines, parquet, the hub. Each is read as documents, a few at a time."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

from latewood.core.errors import ConfigurationError, DataError
from latewood.parts.pretrained import first_line

Part = Literal["train", "held_out"]
Layout = Literal["paragraphs", "lines", "files"]
Documents: TypeAlias = Callable[[], Iterator[str]]

#: Short names of data sets on the hub, some with the configuration to take behind a colon.
HUB_NAMES = {
    "c4": "allenai/c4:en",
    "dclm": "mlfoundations/dclm-baseline-1.0",
    "fineweb-edu": "HuggingFaceFW/fineweb-edu:sample-10BT",
    "gsm8k": "openai/gsm8k:main",
    "wikitext": "Salesforce/wikitext:wikitext-103-raw-v1",
}

#: A document of more characters arrives as several; a paragraph does so much earlier, for what is so long is none.
LONGEST, LONGEST_PARAGRAPH = 1 << 16, 1 << 12
#: The characters of the stretches of documents that are held out or trained on as one, and how many there are to each
#: that is held out: the eleventh, the thirty-first, ...
STRETCH = 2048
EVERY, FIRST = 20, 10

_SHELF_NAMES: dict[str, tuple[str, Layout]] = {
    "en": ("text/tinyshakespeare.txt", "paragraphs"),
    "fr": ("text/fr.txt", "lines"),
    "de": ("text/de.txt", "lines"),
    "math": ("math", "paragraphs"),
}
_TEST_NAMES = ("test", "validation", "valid", "val", "dev")
_PROSE = {".markdown", ".md", ".rst", ".text", ".txt"}
_CODE = {
    *(".c", ".cc", ".cpp", ".cs", ".css", ".cu", ".go", ".h", ".hpp", ".html", ".java", ".jl", ".js", ".kt", ".lua", ".php"),
    *(".pl", ".py", ".pyi", ".r", ".rb", ".rs", ".scala", ".sh", ".sql", ".swift", ".tex", ".ts", ".tsx", ".xml", ".yaml"),
}
_LINES_OF_JSON = {".jsonl", ".ndjson"}
_READABLE = _PROSE | _CODE | _LINES_OF_JSON | {".parquet"}
#: What lies in the folder of the standard library but is not of it.
_NOT_LIBRARY = frozenset({"dist-packages", "idle_test", "site-packages", "test", "tests"})
_ROWS = 256


@dataclass(frozen=True)
class Corpus:
    """Text that was found but not yet read. ``fingerprint`` changes with its contents, not with its place; ``size`` is its
    bytes on disk, if it lies there.

    >>> corpus = load_corpus("python")
    >>> "import" in next(corpus.documents("held_out"))
    True
    """

    name: str
    where: str
    fingerprint: str
    size: int | None
    parts: Mapping[Part, Documents]

    def documents(self, part: Part = "train") -> Iterator[str]:
        """The documents of a part, in the source's own order; none is empty, and all are read anew with every call.

        Errors: :class:`~latewood.core.errors.DataError` names the file and the place of what can't be read.
        """
        if "held_out" in self.parts:
            return _cut(self.parts[part]())
        return _stretches(_cut(self.parts["train"]()), part)


def load_corpus(name: str | Corpus, *, text: str | None = None, documents: Layout | None = None) -> Corpus:
    """Find the text called ``name``, which is the first of these that exists (a corpus that is loaded stays as it is):

    1. ``en`` (Shakespeare), ``fr``, ``de`` (sentences), ``math`` (GSM8K) in the folder that the environment variable
       ``LATEWOOD_DATA`` names; ``python``: the source of Python's standard library, without its tests.
    2. A file, or a folder with any number of files at any depth: text (``.txt``, ``.md``, ...), source code (``.py``,
       ``.c``, ...), JSON lines (``.jsonl``) or ``.parquet``. What is hidden, and files of other kinds, count for nothing.
    3. Such a file or folder of that name under ``LATEWOOD_DATA``.
    4. A data set of the Hugging Face hub, read as a stream: by its short name (:data:`HUB_NAMES`) or its full one,
       with the configuration behind a colon where it has several (``allenai/c4:en``).

    ``documents`` says what is a document in files of text and code: ``paragraphs`` between blank lines (default for
    text), ``lines``, or whole ``files`` (default for code). In JSON lines, parquet and data sets each row is one:
    ``text`` names its column; without it that is ``text`` or ``content``, else ``question`` and ``answer`` below one
    another, else the only column of text. A paragraph of more than 4,096 characters, or another document of more than
    65,536, arrives as several, cut at the ends of lines where there are any.

    The held-out part is the source's own test or validation split: that of a data set, or files with such a word in
    their name or folder, where others have the word ``train``. Without one it is decided by position: documents are
    gathered into stretches of at least 2,048 characters, and of each twenty stretches the eleventh is held out, the
    same ones every time.

    Nothing but the names (and, for the fingerprint, the bytes) is read here. Errors:
    :class:`~latewood.core.errors.ConfigurationError` if nothing of that name is found;
    :class:`~latewood.core.errors.DataError` if it holds no text.

    >>> load_corpus("./nowhere")
    Traceback (most recent call last):
    latewood.core.errors.ConfigurationError: There is no file or folder './nowhere' with text.
    """
    if isinstance(name, Corpus):
        return name
    shelf = os.environ.get("LATEWOOD_DATA")
    try:
        if name == "python":
            return _library(documents or "files")
        if name in _SHELF_NAMES and shelf and (path := Path(shelf).expanduser() / _SHELF_NAMES[name][0]).exists():
            return _local(name, path, text, documents or _SHELF_NAMES[name][1])
        for path in (Path(name).expanduser(), *([Path(shelf).expanduser() / name] if shelf else [])):
            if path.exists():
                return _local(name, path, text, documents)
    except OSError as error:
        raise DataError(f"{error.filename or name} can't be read: {error.strerror}.") from error
    if name in _SHELF_NAMES:
        raise ConfigurationError(
            f"The corpus {name!r} is {_SHELF_NAMES[name][0]} in the folder that LATEWOOD_DATA names ({shelf or 'not set'}), "
            "but it is not there; set LATEWOOD_DATA, or name a file of your own."
        )
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not name.strip():
        raise ConfigurationError(f"There is no file or folder {name!r} with text.")
    return _on_hub(name, text)


# Files


def _local(name: str, path: Path, text: str | None, layout: Layout | None) -> Corpus:
    found = [path] if path.is_file() else _in_folder(path)
    if not found:
        kinds = "*.txt, *.py, *.jsonl or *.parquet"
        raise DataError(f"{path} holds no text: a corpus is a file, or a folder with files such as {kinds}.")
    root = path.parent if path.is_file() else path
    return _of_files(name, root, _split(root, found), text, layout)


def _library(layout: Layout) -> Corpus:
    root = Path(sysconfig.get_path("stdlib"))
    own = [file for file in _in_folder(root, _NOT_LIBRARY) if file.suffix == ".py"]
    if not own:
        raise DataError(f"{root} holds no source of Python's standard library; name a folder of source code instead.")
    return _of_files("python", root, {"train": own}, None, layout)


def _of_files(name: str, root: Path, files: Mapping[Part, list[Path]], text: str | None, layout: Layout | None) -> Corpus:
    every = [file for of_part in files.values() for file in of_part]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = list(pool.map(_digest, every))
    names = [(part, file.relative_to(root).as_posix()) for part, of_part in files.items() for file in of_part]
    fingerprint = _hash(text, layout, *zip(names, digests, strict=True))
    parts: dict[Part, Documents] = {part: partial(_read_all, of_part, text, layout) for part, of_part in files.items()}
    return Corpus(name, str(root), fingerprint, sum(file.stat().st_size for file in every), parts)


def _in_folder(folder: Path, without: frozenset[str] = frozenset()) -> list[Path]:
    files: list[Path] = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in without]
        readable = (name for name in names if not name.startswith(".") and Path(name).suffix.lower() in _READABLE)
        files += (Path(place, name) for name in readable)
    return sorted(files, key=lambda file: file.relative_to(folder).as_posix())


def _split(root: Path, files: list[Path]) -> dict[Part, list[Path]]:
    """The source's own parts, if names of files or folders tell them; else all files as one."""
    of_word: dict[str, list[Path]] = {}
    for file in files:
        words = re.split(r"[^a-z]+", file.relative_to(root).as_posix().lower())
        for word in ("train", *_TEST_NAMES):
            if word in words:
                of_word.setdefault(word, []).append(file)
                break
    test = next((word for word in _TEST_NAMES if word in of_word), None)
    parts: dict[Part, list[Path]] = {"train": of_word.get("train", files)}
    if test and "train" in of_word:
        parts["held_out"] = of_word[test]
    return parts


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _hash(*facts: object) -> str:
    return hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()


def _read_all(files: Iterable[Path], text: str | None, layout: Layout | None) -> Iterator[str]:
    for file in files:
        kind = file.suffix.lower()
        try:
            if kind == ".parquet":
                yield from _texts(_parquet_rows(file), text)
            elif kind in _LINES_OF_JSON:
                yield from _texts(_json_rows(file), text)
            else:
                yield from _READERS[layout or ("files" if kind in _CODE else "paragraphs")](_lines(file))
        except OSError as error:
            raise DataError(f"{file} can't be read: {error.strerror or error}.") from error


def _lines(file: Path) -> Iterator[str]:
    """The lines of a file with their ends; of a very long one, pieces."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    position = 0
    with file.open("rb") as content:
        while True:
            raw = content.readline(LONGEST)
            pending = len(decoder.getstate()[0])
            try:
                line = decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                where = position - pending + error.start
                raise DataError(
                    f"{file} is no UTF-8 text: byte {where:,} (counted from 0) is 0x{error.object[error.start]:02x}; "
                    "convert the file to UTF-8 or leave it out."
                ) from None
            if not raw:
                return
            yield line if position else line.removeprefix("\ufeff")
            position += len(raw)


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    return (paragraph.rstrip("\r\n") for paragraph in _gathered(lines, LONGEST_PARAGRAPH, until_blank=True))


def _single_lines(lines: Iterable[str]) -> Iterator[str]:
    return (line.rstrip("\r\n") for line in lines)


def _whole(lines: Iterable[str]) -> Iterator[str]:
    return _gathered(lines, LONGEST, until_blank=False)


def _gathered(lines: Iterable[str], most: int, until_blank: bool) -> Iterator[str]:
    held: list[str] = []
    characters = 0
    for line in lines:
        blank = until_blank and line.isspace()
        if blank or characters + len(line) > most:
            yield "".join(held)
            held, characters = [], 0
        if not blank:
            held.append(line)
            characters += len(line)
    yield "".join(held)


_READERS: dict[Layout, Callable[[Iterable[str]], Iterator[str]]] = {
    "paragraphs": _paragraphs,
    "lines": _single_lines,
    "files": _whole,
}


# Rows


def _json_rows(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    buffered = ""
    number = 0
    for piece in _lines(file):
        buffered += piece
        if not piece.endswith("\n"):
            continue  # a piece of a very long line
        number += 1
        yield from _json_row(buffered, f"Line {number} of {file}")
        buffered = ""
    yield from _json_row(buffered, f"Line {number + 1} of {file}")


def _json_row(line: str, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not line or line.isspace():
        return
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where} is no JSON ({error}); each line must hold one object.") from None
    if not isinstance(row, dict):
        raise DataError(f"{where} holds no JSON object but a {type(row).__name__}; each line must hold one object.")
    yield where, row


def _parquet_rows(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import pyarrow
    from pyarrow import parquet

    row = 0
    try:
        with parquet.ParquetFile(file) as table:
            usable = [field.name for field in table.schema_arrow if _is_text(field.type)]
            for batch in table.iter_batches(_ROWS, columns=usable):
                for values in batch.to_pylist():
                    yield f"Row {row} of {file}", values
                    row += 1
    except UnicodeDecodeError:
        raise DataError(
            f"{file} holds text that is no UTF-8 in rows {row} to {row + _ROWS - 1}; write the file anew."
        ) from None
    except pyarrow.ArrowException as error:
        raise DataError(f"{file} can't be read as parquet: {first_line(error)}.") from None


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _texts(rows: Iterable[tuple[str, Mapping[str, Any]]], text: str | None) -> Iterator[str]:
    """The text of each row; rows that have none, only a null, are left out."""
    columns: tuple[str, ...] = ()
    for where, row in rows:
        columns = columns or _columns(row, text, where)
        if absent := next((column for column in columns if column not in row), None):
            raise DataError(f"{where} has no {absent!r}, only {_listed(row)}; every row must have it.")
        values = [row[column] for column in columns]
        if None in values:
            continue
        if not all(isinstance(value, str) for value in values):
            wrong = next(value for value in values if not isinstance(value, str))
            raise DataError(f"{where} holds {type(wrong).__name__} where text is expected; name the column of text with text=.")
        yield _whole_characters("\n".join(values), where)


def _columns(row: Mapping[str, Any], text: str | None, where: str) -> tuple[str, ...]:
    if text is not None:
        if text not in row:
            raise ConfigurationError(f"{where} has no column {text!r} of text; it has {_listed(row)}.")
        return (text,)
    for usual in (("text",), ("content",), ("question", "answer")):
        if all(isinstance(row.get(column), str | None) and column in row for column in usual):
            return usual
    written = [column for column, value in row.items() if isinstance(value, str)]
    if len(written) != 1:
        raise ConfigurationError(f"{where} has no column that is clearly its text, only {_listed(row)}; name one with text=.")
    return (written[0],)


def _listed(row: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, row)) or "none"


def _whole_characters(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where} holds half of a surrogate pair (character {error.start}), which is no character; write the row anew."
        ) from None
    return text


# Documents


def _cut(documents: Iterable[str]) -> Iterator[str]:
    """The documents that hold anything, those that are too long in pieces."""
    for document in documents:
        if len(document) > LONGEST:
            for piece in _whole(document.splitlines(keepends=True)):
                yield from (piece[start : start + LONGEST] for start in range(0, len(piece), LONGEST))
        elif document and not document.isspace():
            yield document


def _stretches(documents: Iterable[str], part: Part) -> Iterator[str]:
    stretch = characters = 0
    for document in documents:
        if (stretch % EVERY == FIRST) == (part == "held_out"):
            yield document
        characters += len(document)
        if characters >= STRETCH:
            stretch, characters = stretch + 1, 0


# The hub


def _on_hub(name: str, text: str | None) -> Corpus:
    import datasets
    from datasets.exceptions import DatasetsError

    repository, _, configuration = HUB_NAMES.get(name, name).partition(":")
    try:
        builder = datasets.load_dataset_builder(repository, configuration or None)
        tables = builder.as_streaming_dataset()
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise ConfigurationError(
            f"There is no corpus {name!r}: it is no file or folder, here or under LATEWOOD_DATA, not one of "
            f"{', '.join(('python', *_SHELF_NAMES, *HUB_NAMES))}, and the hub says: {first_line(error)}."
        ) from error
    test = next((split for split in _TEST_NAMES if split in tables), None)
    chosen: dict[Part, str] = {"train": "train"} if "train" in tables else {}
    if not chosen:
        raise DataError(f"The hub's data set {repository} has the splits {', '.join(tables)}, but none called train.")
    if test:
        chosen["held_out"] = test
    parts: dict[Part, Documents] = {
        part: partial(_hub_documents, tables[split], text, f"the {split} split of {repository}")
        for part, split in chosen.items()
    }
    fingerprint = _hash(repository, builder.config_id, builder.hash, text)
    return Corpus(name, repository, fingerprint, None, parts)


def _hub_documents(table: Any, text: str | None, where: str) -> Iterator[str]:
    from datasets.exceptions import DatasetsError

    rows = ((f"Row {number} of {where}", row) for number, row in enumerate(table))
    try:
        yield from _texts(rows, text)
    except (ConfigurationError, DataError):
        raise
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise DataError(f"{where[0].upper()}{where[1:]} can't be read: {first_line(error)}.") from error
