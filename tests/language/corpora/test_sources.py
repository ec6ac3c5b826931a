"""Corpora: where they are found, what a document is, what is held out, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from latewood.core.errors import ConfigurationError, DataError
from latewood.language.corpora import HUB_NAMES, load_corpus
from latewood.language.corpora.sources import LONGEST, Layout


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_parquet(path: Path, **columns: list[Any]) -> Path:
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path)
    return path


def numbered(count: int, size: int = 300) -> list[str]:
    return [f"{number:05d} ".ljust(size, "x") for number in range(count)]


def every_document(path: Path, **options: Any) -> list[str]:
    corpus = load_corpus(str(path), **options)
    return list(corpus.documents("train")) + list(corpus.documents("held_out"))


# What a document is


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        (None, ["one\ntwo", "three", "four"]),
        ("paragraphs", ["one\ntwo", "three", "four"]),
        ("lines", ["one", "two", "three", "four"]),
        ("files", ["one\ntwo\n\n \n\nthree\n\nfour"]),
    ],
)
def test_a_text_file_is_read_in_the_layout_that_is_asked_for(
    tmp_path: Path, layout: Layout | None, expected: list[str]
) -> None:
    assert every_document(write(tmp_path / "a.txt", "one\ntwo\n\n \n\nthree\n\nfour"), documents=layout) == expected


def test_windows_line_ends_and_a_byte_order_mark_are_no_text_of_documents(tmp_path: Path) -> None:
    assert every_document(write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\n\r\ntwo\r\n")) == ["one", "two"]


def test_source_code_is_a_document_for_each_file_in_the_order_of_their_paths(tmp_path: Path) -> None:
    write(tmp_path / "code" / "b.py", "b = 1\n\nc = 2\n")
    write(tmp_path / "code" / "a" / "z.py", "z = 1\n")
    write(tmp_path / "code" / ".git" / "hidden.py", "no")
    write(tmp_path / "code" / "picture.png", b"\x89PNG\xff")
    assert every_document(tmp_path / "code") == ["z = 1\n", "b = 1\n\nc = 2\n"]


def test_a_long_document_arrives_in_pieces_that_together_are_the_document(tmp_path: Path) -> None:
    lines = "".join(f"line {number}\n" for number in range(30_000))
    endless = "é" * (2 * LONGEST + 7)
    for text in (lines, endless, lines + endless):
        from_file = every_document(write(tmp_path / "a.py", text))
        from_row = every_document(write_rows(tmp_path / "a.jsonl", [{"text": text}]))
        for pieces in (from_file, from_row):
            assert len(pieces) > 2
            assert sorted("".join(pieces)) == sorted(text)
            assert max(map(len, pieces)) <= LONGEST
    assert all(piece.endswith("\n") for piece in every_document(write(tmp_path / "a.py", lines)))


@pytest.mark.parametrize(
    ("row", "options", "expected"),
    [
        ({"text": "a", "url": "b"}, {}, "a"),
        ({"content": "a", "url": "b"}, {}, "a"),
        ({"question": "How many?", "answer": "7"}, {}, "How many?\n7"),
        ({"story": "a", "year": 1}, {}, "a"),
        ({"text": "a", "url": "b"}, {"text": "url"}, "b"),
    ],
)
def test_the_column_of_text_is_found_or_named(
    tmp_path: Path, row: dict[str, Any], options: dict[str, str], expected: str
) -> None:
    assert every_document(write_rows(tmp_path / "a.jsonl", [row, row]), **options) == [expected] * 2
    columns = {name: [value] * 2 for name, value in row.items()}
    assert every_document(write_parquet(tmp_path / "a.parquet", **columns), **options) == [expected] * 2


def test_rows_without_text_and_empty_documents_are_left_out(tmp_path: Path) -> None:
    assert every_document(write_rows(tmp_path / "a.jsonl", [{"text": "a"}, {"text": None}, {"text": " "}])) == ["a"]
    assert every_document(write_parquet(tmp_path / "a.parquet", text=["a", None, ""])) == ["a"]


# What is held out


def test_the_parts_of_a_source_are_its_own_where_names_tell_them(tmp_path: Path) -> None:
    for part, texts in {"train": ["a", "b"], "test": ["c"], "validation": ["d"]}.items():
        write_rows(tmp_path / "names" / f"gsm-{part}.jsonl", [{"text": text} for text in texts])
        write(tmp_path / "folders" / part / "x.txt", "\n\n".join(texts))
    for name in ("names", "folders"):
        corpus = load_corpus(str(tmp_path / name))
        assert (list(corpus.documents()), list(corpus.documents("held_out"))) == (["a", "b"], ["c"])


def test_without_parts_every_twentieth_stretch_is_held_out_and_no_document_is_in_both_or_lost(tmp_path: Path) -> None:
    documents = numbered(1000)  # seven of them make a stretch
    corpus = load_corpus(str(write(tmp_path / "a.txt", "\n".join(documents))), documents="lines")
    train, held_out = list(corpus.documents("train")), list(corpus.documents("held_out"))
    assert sorted(train + held_out) == documents
    assert held_out[:8] == [*documents[70:77], documents[210]]
    assert list(corpus.documents("held_out")) == held_out
    assert len(held_out) == 49


def test_a_test_folder_of_source_code_is_no_held_out_part_without_a_training_one(tmp_path: Path) -> None:
    write(tmp_path / "project" / "tests" / "test_a.py", "assert True")
    write(tmp_path / "project" / "a.py", "a = 1")
    assert every_document(tmp_path / "project") == ["a = 1", "assert True"]


# The fingerprint


def test_the_fingerprint_follows_contents_names_and_options_but_not_the_place(tmp_path: Path) -> None:
    for place in ("one", "two"):
        write(tmp_path / place / "a.txt", "a")
        write(tmp_path / place / "b.txt", "b")

    def of(place: str, **options: Any) -> str:
        return load_corpus(str(tmp_path / place), **options).fingerprint

    before = of("one")
    assert before == of("two") != of("one", documents="lines")
    write(tmp_path / "one" / "b.txt", "c")
    assert of("one") != before
    (tmp_path / "two" / "b.txt").rename(tmp_path / "two" / "c.txt")
    assert of("two") != before


# Where it is found


def test_the_shelf_of_real_data_has_short_names(real_data: Path) -> None:
    english, math = load_corpus("en"), load_corpus("math")
    assert next(english.documents()).startswith("First Citizen:\nBefore we proceed")
    assert next(load_corpus("fr").documents()) == "Aviator, un film sur la vie de Hughes."
    assert next(load_corpus("de").documents("held_out"))
    train, held_out = list(math.documents()), list(math.documents("held_out"))
    assert (len(train), len(held_out)) == (7473, 1319)
    assert train[0].endswith("#### 72")
    assert load_corpus("text").where == str(real_data / "text")


def test_the_standard_library_is_code_that_every_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LATEWOOD_DATA", raising=False)
    corpus = load_corpus("python")
    assert corpus.size is not None and corpus.size > 2_000_000
    train, held_out = list(corpus.documents()), list(corpus.documents("held_out"))
    assert 0.02 < len("".join(held_out)) / len("".join(train)) < 0.1
    assert any("def abstractmethod(" in document for document in train + held_out)


def test_a_short_name_without_the_shelf_gets_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LATEWOOD_DATA", raising=False)
    with pytest.raises(ConfigurationError, match=r"tinyshakespeare\.txt in the folder that LATEWOOD_DATA names \(not set\)"):
        load_corpus("en")


def test_a_data_set_of_the_hub_is_read_as_a_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in the hub's format goes through the same code as a repository."""
    for place, text in (("hub", "a"), ("changed", "A")):
        write_parquet(tmp_path / place / "data" / "train-00000-of-00001.parquet", text=[text, "b"], url=["x", "y"])
        write_parquet(tmp_path / place / "data" / "validation-00000-of-00001.parquet", text=["c"], url=["z"])
        monkeypatch.setitem(HUB_NAMES, place, str(tmp_path / place))
    corpus = load_corpus("hub")
    assert (list(corpus.documents()), list(corpus.documents("held_out"))) == (["a", "b"], ["c"])
    assert corpus.size is None
    assert corpus.fingerprint == load_corpus("hub").fingerprint
    assert corpus.fingerprint not in (load_corpus("hub", text="url").fingerprint, load_corpus("changed").fingerprint)
    with pytest.raises(ConfigurationError, match="no column 'body' of text; it has 'text', 'url'"):
        list(load_corpus("hub", text="body").documents())


def test_a_name_that_nobody_knows_gets_a_sentence_that_lists_those_that_are() -> None:
    with pytest.raises(ConfigurationError, match=r"There is no corpus 'not there': .* not one of python, en, fr, .* c4"):
        load_corpus("not there")
    with pytest.raises(ConfigurationError, match="There is no corpus 'nobody/nothing'"):
        load_corpus("nobody/nothing")


# What is refused


@pytest.mark.parametrize("before", [b"", b"gut\n", b"x" * (LONGEST - 1) + "ü".encode() + b"\n", "ü".encode() * 70_000])
@pytest.mark.parametrize("name", ["a.txt", "a.py", "a.jsonl"])
def test_what_is_no_utf8_is_told_with_file_and_byte(tmp_path: Path, before: bytes, name: str) -> None:
    file = write(tmp_path / name, before + b"sch\xf6n\n")
    with pytest.raises(DataError) as error:
        every_document(file)
    if name == "a.jsonl" and b"\n" in before:
        assert "Line 1" in str(error.value)
    else:
        assert str(error.value) == (
            f"{file} is no UTF-8 text: byte {len(before) + 3:,} (counted from 0) is 0xf6; convert the file to UTF-8 or "
            "leave it out."
        )


def test_half_a_character_at_the_end_of_a_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"byte 2 \(counted from 0\) is 0xc3"):
        every_document(write(tmp_path / "a.txt", b"ab\xc3"))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"text": "a"}\n{"text": \n', r"Line 2 of .*a\.jsonl is no JSON"),
        ("[1]\n", r"Line 1 of .*a\.jsonl holds no JSON object but a list"),
        ('{"text": "a"}\n{"title": "b"}\n', r"Line 2 of .*a\.jsonl has no 'text', only 'title'"),
        ('{"text": "a"}\n{"text": 7}\n', r"Line 2 of .*a\.jsonl holds int where text is expected"),
        ('{"text": "\\ud83c"}\n', r"Line 1 of .* holds half of a surrogate pair"),
        ('{"a": "x", "b": "y"}\n', r"no column that is clearly its text, only 'a', 'b'"),
    ],
)
def test_rows_that_are_no_text_are_told_with_their_line(tmp_path: Path, lines: str, message: str) -> None:
    with pytest.raises((DataError, ConfigurationError), match=message):
        every_document(write(tmp_path / "a.jsonl", lines))


def test_a_damaged_parquet_file_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.parquet can't be read as parquet"):
        every_document(write(tmp_path / "a.parquet", b"PAR1 is not enough"))


def test_a_folder_without_text_and_a_missing_file_get_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no text: a corpus is a file, or a folder"):
        load_corpus(str(tmp_path / "empty"))
    with pytest.raises(ConfigurationError, match="There is no file or folder"):
        load_corpus(str(tmp_path / "absent.txt"))
