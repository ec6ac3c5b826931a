"""What arrives: every form of it is read alike, whatever is wrong with a row is told, and nothing is lost in silence."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError, DataError
from latewood.model._arrow import dataset_table
from latewood.model._cells import Sizing
from latewood.model._table import Kind, content_column
from latewood.model.arrivals import Arrival, Chunk, Inputs, Problem, open_arrival, open_inputs

CLASSES = datasets.ClassLabel(names=["ash", "oak", "yew"])


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory is the test's own; no network."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def picture(seed: int, height: int = 6, width: int = 6, grey: bool = False) -> Any:
    shape = (height, width) if grey else (height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def png(pixels: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **options)
    return buffer.getvalue()


def write(file: str, content: str | bytes) -> Path:
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_photos(*files: str) -> None:
    for number, file in enumerate(files):
        write(file, png(picture(number)))


def write_parquet(file: str, **columns: Any) -> None:
    """Each column is its values, or a type of the hub and its values."""
    kinds = {name: given[0] for name, given in columns.items() if isinstance(given, tuple)}
    values = {name: given[1] if isinstance(given, tuple) else given for name, given in columns.items()}
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    dataset = datasets.Dataset.from_dict(values)
    dataset.cast(datasets.Features({**dataset.features, **kinds})).to_parquet(file)


def images(data: Any, size: int = 6, **options: Any) -> Arrival:
    return open_arrival(data, "images", size=size, **options)


def texts(data: Any, **options: Any) -> Arrival:
    return open_arrival(data, "text", **options)


def everything(rows: Inputs) -> Chunk:
    return rows.read(range(len(rows)))


def pixels(chunk: Chunk, row: int) -> Any:
    """One image as Pillow sees it."""
    assert isinstance(chunk.content, torch.Tensor)
    return chunk.content[row].permute(1, 2, 0).numpy()


def told(problems: Sequence[Problem]) -> list[str]:
    return list(map(str, problems))


def refused(data: Any, kind: Kind = "text", error: type[Exception] = DataError, **options: Any) -> str:
    with pytest.raises(error) as caught:
        open_arrival(data, kind, size=6, **options)
    return str(caught.value)


# -- folders of images


def test_images_take_their_labels_from_their_folders() -> None:
    write_photos("monday/rose/2.png", "monday/rose/1.PNG", "monday/fern/a b.png")
    arrival = images("monday/")
    assert (arrival.source, arrival.kind, len(arrival)) == ("monday", "images", 3)
    assert arrival.labels == ("fern", "rose", "rose") and not arrival.numeric and arrival.problems == ()
    assert arrival.names == ("monday/fern/a b.png", "monday/rose/1.PNG", "monday/rose/2.png")
    chunk = everything(arrival)
    assert chunk.rows == (0, 1, 2) and chunk.problems == ()
    assert all(np.array_equal(pixels(chunk, row), picture(seed)) for row, seed in enumerate((2, 1, 0)))
    expected = hashlib.blake2b(Path("monday/rose/1.PNG").read_bytes(), digest_size=16).digest()
    assert chunk.hashes.dtype == torch.uint8 and bytes(chunk.hashes[1].tolist()) == expected


@pytest.mark.parametrize("place", ["monday", "./monday", "monday//", Path("monday")])
def test_a_source_is_called_the_same_however_it_is_written(place: str | Path) -> None:
    write_photos("monday/rose/1.png")
    assert images(place).source == "monday"
    assert images(place, source="the upload").names == ("the upload/rose/1.png",)


def test_one_class_and_one_sample_are_enough() -> None:
    write_photos("monday/rose/1.png")
    assert images("monday").labels == ("rose",)


def test_folders_with_numbers_for_names_are_numeric() -> None:
    write_photos("monday/7/1.png", "monday/10/1.png")
    assert images("monday").labels == ("10", "7") and images("monday").numeric


def test_the_training_part_is_taken_where_there_are_parts() -> None:
    write_photos("set/train/rose/1.png", "set/test/rose/2.png", "set/test/fern/3.png")
    assert images("set").labels == ("rose",)
    write_photos("bus/bus/1.png", "bus/train/2.png")
    assert images("bus").labels == ("bus", "train"), "a class of trains is a class"


def test_what_is_hidden_or_no_image_by_nature_does_not_count() -> None:
    write_photos("monday/rose/1.png", "monday/.cache/x/2.png", "monday/rose/._1.png", "monday/__MACOSX/rose/1.png")
    write("monday/rose/Thumbs.db", "x")
    write("monday/rose/notes.txt", "x")
    write("monday/README.md", "x")
    arrival = images("monday")
    assert arrival.labels == ("rose",) and arrival.problems == ()


def test_images_without_a_class_and_files_of_no_known_format_are_told() -> None:
    write_photos("monday/rose/1.png", "monday/lost.png")
    write("monday/rose/photo.heic", b"ftypheic")
    write("monday/rose/empty.jpg", b"")
    assert told(images("monday").problems) == [
        "monday/lost.png has no label: it lies in no folder named after a class",
        "monday/rose/empty.jpg is empty",
        "monday/rose/photo.heic is no image of a known format: its name ends on .heic",
    ]


def test_images_deeper_than_their_class_are_refused() -> None:
    write_photos("monday/rose/1.png", "monday/rose/red/2.png")
    assert refused("monday", "images") == (
        "monday/rose/red is a folder within the folder of a class; put images right into the folder of their class, "
        "such as monday/rose/1.jpg."
    )


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "monday is empty: expected images in folders named after their classes, such as monday/rose/1.jpg, or files of"),
        (["monday/docs/readme.txt"], "monday holds nothing of use: expected images in folders"),
        (["monday/train/1.png", "monday/test/2.png"], "monday holds nothing of use: expected images in folders"),
        (["monday/1.png", "monday/2.png"], "monday has no row that can be used: monday/1.png has no label: it lies in no"),
    ],
)
def test_a_folder_without_labelled_images_says_what_is_expected(files: list[str], message: str) -> None:
    Path("monday").mkdir()
    for file in files:
        write(file, png(picture(0)))
    assert message in refused("monday", "images")
    assert refused("monday", "text").endswith("expected files of rows (.parquet, .csv, .tsv, .jsonl, .ndjson).")


def test_links_are_followed_only_within_the_folder() -> None:
    write_photos("monday/rose/1.png", "secret/rose/9.png")
    Path("monday/rose/2.png").symlink_to("1.png")
    Path("monday/fern").symlink_to("rose")
    Path("monday/rose/3.png").symlink_to(Path("secret/rose/9.png").absolute())
    Path("monday/moss").symlink_to(Path("secret/rose").absolute())
    Path("monday/rose/4.png").symlink_to("nowhere.png")
    Path("monday/rose/5.png").symlink_to("5.png")
    Path("alias").symlink_to("monday")
    for place in ("monday", "alias"):
        arrival = images(place)
        assert arrival.names == tuple(f"{place}/{name}.png" for name in ("fern/1", "fern/2", "rose/1", "rose/2"))
        problems = told(arrival.problems)
        assert f"{place}/moss is a link to a place outside the folder" in problems
        assert f"{place}/rose/3.png is a link to a place outside the folder" in problems
        assert {f"{place}/rose/{n}.png is a link to nothing" for n in (4, 5)} <= set(problems)


def test_a_pipe_is_told_and_never_waited_for() -> None:
    write_photos("monday/rose/1.png")
    os.mkfifo("monday/rose/2.png")
    write("monday.csv", "image,label\nmonday/rose/1.png,rose\nmonday/rose/2.png,rose\n")
    assert told(images("monday").problems) == ["monday/rose/2.png is neither a file nor a folder"]
    assert told(everything(images("monday.csv")).problems) == [
        "line 3 of monday.csv names 'monday/rose/2.png', which is not a file"
    ]


def test_names_of_files_cannot_play_tricks_on_the_terminal() -> None:
    write_photos("monday/rose/\x1b[2J.png")
    write("monday/rose/bad\udcff.jpg", b"")
    arrival = images("monday")
    assert arrival.names == ("monday/rose/\N{REPLACEMENT CHARACTER}[2J.png",)
    assert told(arrival.problems) == ["monday/rose/bad\N{REPLACEMENT CHARACTER}.jpg is empty"]
    assert len(arrival.identity) == 32


def test_a_class_folder_with_a_name_that_no_class_may_have_is_told() -> None:
    write_photos("monday/rose/1.png", "monday/a\tb/1.png")
    assert told(images("monday").problems) == [
        "monday/a\N{REPLACEMENT CHARACTER}b/1.png has a label with a control character ('a\\tb'), which no class may have"
    ]


def test_a_hundred_thousand_files_are_listed_in_seconds_without_being_opened() -> None:
    photo = png(picture(0))
    for number in range(100):
        write(f"many/{number}/0.png", photo)
        for copy in range(1, 1000):
            os.link(f"many/{number}/0.png", f"many/{number}/{copy}.png")
    start = time.monotonic()
    arrival = images("many")
    seconds = time.monotonic() - start
    assert len(arrival) == 100_000 and arrival.numeric and len(arrival.identity) == 32
    assert arrival.read(range(50_000, 50_002)).rows == (50_000, 50_001)
    assert seconds < 20


# -- pixels


def test_images_of_any_kind_become_one_size_and_number_of_channels() -> None:
    write("monday/rose/1.png", png(picture(1, 12, 20)))
    write("monday/rose/2.png", png(picture(2, grey=True)))
    write("monday/rose/3.png", png(np.dstack([picture(3), picture(4, grey=True)])))
    colour, grey = everything(images("monday")), everything(images("monday", channels=1))
    assert colour.content.shape == (3, 3, 6, 6) and grey.content.shape == (3, 1, 6, 6)  # type: ignore[union-attr]
    assert all(np.array_equal(pixels(colour, 1)[..., channel], picture(2, grey=True)) for channel in range(3))
    assert np.array_equal(pixels(colour, 2), picture(3)), "transparency is dropped"
    assert np.array_equal(pixels(grey, 2)[..., 0], np.asarray(Image.fromarray(picture(3)).convert("L")))


def test_a_photo_taken_sideways_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    write("monday/rose/1.png", png(picture(0, 6, 6), exif=exif))
    assert np.array_equal(pixels(everything(images("monday")), 0), np.rot90(picture(0), -1))


def test_images_that_cannot_be_decoded_are_told_and_the_others_are_read() -> None:
    whole = png(picture(0, 60, 60))
    write_photos("monday/rose/a.png", "monday/rose/z.png")
    write("monday/rose/b.png", whole[: len(whole) // 2])
    write("monday/rose/c.jpg", "a text file, renamed")
    write("monday/rose/d.png", png(picture(0, grey=True).astype(np.uint16) * 200))
    write("monday/rose/e.png", b"\x89PNG\r\n\x1a\n")
    chunk = everything(images("monday"))
    assert chunk.rows == (0, 5) and len(chunk.content) == len(chunk.hashes) == 2
    cut, text, deep, headless = told(chunk.problems)
    assert cut.startswith("monday/rose/b.png cannot be decoded as an image: ")
    assert text == "monday/rose/c.jpg cannot be decoded as an image: it is damaged or in no known format"
    assert deep.startswith("monday/rose/d.png has more than 8 bits for each pixel")
    assert headless.startswith("monday/rose/e.png cannot be decoded as an image: ")


def header_of(width: int, height: int) -> bytes:
    """The beginning of a PNG file that claims to hold that many pixels."""
    import zlib

    chunk = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n"
        + (13).to_bytes(4, "big")
        + chunk
        + zlib.crc32(chunk).to_bytes(4, "big")
        + b"\0\0\0\0IDAT"
        + bytes(4)
    )


def test_an_image_that_claims_too_many_pixels_is_not_decoded() -> None:
    for name, sides in {"a": (9_000, 9_000), "b": (60_000, 60_000), "c": (1, 60_000)}.items():
        write(f"monday/rose/{name}.png", header_of(*sides))
    write("monday/rose/d.png", png(picture(0, 30, 30)))
    many, bomb, narrow = told(everything(images("monday", size=224)).problems)
    assert many == (
        "monday/rose/a.png has 9000x9000 pixels, more than can be decoded and scaled within 80,000,000 pixels; "
        "crop it or make it smaller"
    )
    assert bomb == "monday/rose/b.png cannot be decoded as an image: its header tells of more pixels than a photo has"
    assert "has 1x60000 pixels" in narrow, "scaled to a width of 224 it would have three thousand million"
    assert len(everything(images("monday", most_pixels=900)).rows) == 1
    assert len(everything(images("monday", most_pixels=899)).rows) == 0


def test_formats_that_run_other_programs_are_not_read() -> None:
    buffer = io.BytesIO()
    Image.fromarray(picture(0)).save(buffer, "EPS")
    write("monday/rose/1.png", buffer.getvalue())
    assert "in no known format" in told(everything(images("monday")).problems)[0]


def test_reading_a_chunk_holds_no_more_than_the_chunk() -> None:
    import tracemalloc

    photo = png(np.zeros((128, 128, 3), np.uint8))
    for number in range(200):
        write(f"monday/rose/{number:03}.png", photo)
    arrival = images("monday", size=128)
    tracemalloc.start()
    for start in range(0, 200, 10):
        assert len(arrival.read(range(start, start + 10)).rows) == 10
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60 * 128 * 128 * 3, "all of them are 200 times 49 kB"


def test_a_file_that_vanished_after_listing_is_told() -> None:
    write_photos("monday/rose/1.png", "monday/rose/2.png")
    arrival = images("monday")
    Path("monday/rose/1.png").unlink()
    chunk = everything(arrival)
    assert chunk.rows == (1,) and told(chunk.problems) == ["monday/rose/1.png cannot be read: No such file or directory"]


def test_rows_can_be_read_in_any_order_and_beyond_the_end() -> None:
    write_photos(*(f"monday/rose/{number}.png" for number in range(6)))
    arrival = images("monday")
    whole = everything(arrival).content
    for rows in (range(4, 6), range(0, 2), range(5, 99), range(0, 6, 2), range(3, 3), range(9, 12)):
        chunk = arrival.read(rows)
        assert chunk.rows == tuple(row for row in rows if row < 6)
        assert torch.equal(torch.as_tensor(chunk.content), torch.as_tensor(whole)[list(chunk.rows)])
        assert chunk.hashes.shape == (len(chunk.rows), 16)


# -- CSV and other lines


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_csv_of_every_flavour_gives_the_same_rows(delimiter: str, end: str, mark: str) -> None:
    rows = ["Text,Label", '"cold, wet; dry\tor ""windy""",weather', '"two', 'lines",sport', "", "ünïcode , \u00a0sport "]
    content = (
        mark
        + end.join(rows[:1]).replace(",", delimiter)
        + end
        + end.join(rows[1:]).replace(",w", delimiter + "w").replace(",s", delimiter + "s").replace(" , ", delimiter + " ")
    )
    write("tickets.csv", content)
    arrival = texts("tickets.csv")
    assert arrival.labels == ("weather", "sport", "sport") and arrival.problems == ()
    assert everything(arrival).content == ['cold, wet; dry\tor "windy"', f"two{end}lines", "ünïcode"]
    assert arrival.names == tuple(f"line {number} of tickets.csv" for number in (2, 3, 6))


def test_lines_that_are_no_rows_are_told_by_their_number() -> None:
    lines = [b"text,label", b"one,a", b"two,a,b", b"three", b"caf\xe9,a", b'"open",a', b'"closed"too soon,a', b"four,b"]
    write("tickets.csv", b"\n".join(lines))
    arrival = texts("tickets.csv")
    assert everything(arrival).content == ["one", "open", "four"] and arrival.labels == ("a", "a", "b")
    many, few, latin, quotes = told(arrival.problems)
    assert many == "line 3 of tickets.csv splits into 3, but the header into 2 columns"
    assert few == "line 4 of tickets.csv splits into 1, but the header into 2 columns"
    assert latin == "line 5 of tickets.csv is not UTF-8 (it holds the byte 0xe9); save the file as UTF-8"
    assert quotes.startswith("line 7 of tickets.csv has quotes that do not fit")


def test_a_quote_that_never_ends_does_not_swallow_rows_in_silence() -> None:
    write("tickets.csv", 'text,label\none,a\n"two,a\nthree,b\n')
    arrival = texts("tickets.csv")
    assert len(arrival) == 1 and told(arrival.problems)[0].startswith("line 3 of tickets.csv has quotes that do not fit")


def test_json_lines_are_told_by_their_number() -> None:
    rows = ['{"text": "one", "label": 3}', "", '{"text": "two", "label": "3"', "[1]", '{"text": "three", "label": 3.0}']
    rows += ['{"label": "a"}', '{"text": "four"}', '{"text": "five", "label": NaN}', '{"text": 6, "label": 3}', "[" * 100_000]
    rows += ['{"text": "half \\ud800", "label": 3}', '{"text": "seven", "label": {"a": 1}}']
    write("tickets.jsonl", "\n".join(rows).encode() + b'\n{"text": "caf\xe9", "label": 3}\n')
    arrival = texts("tickets.jsonl")
    assert arrival.labels == ("3", "3") and arrival.numeric and everything(arrival).content == ["one", "three"]
    problems = {
        int(where.split()[1]): reason for problem in arrival.problems for where, reason in [(problem.where, problem.reason)]
    }
    assert problems.pop(3).startswith("is not valid JSON (Expecting ',' delimiter")
    assert problems.pop(10).startswith("is not valid JSON (")
    assert problems == {
        4: 'is not a JSON object, such as {"text": "...", "label": "..."}',
        6: "has no text",
        7: "has no label",
        8: "has no label (it is nan)",
        9: "has a text of type int",
        11: "has a text with half a character (a lone surrogate), which UTF-8 cannot write",
        12: "has a label of type dict, but labels are texts or whole numbers",
        13: "is not UTF-8 (it holds the byte 0xe9); save the file as UTF-8",
    }


@pytest.mark.parametrize("name", ["rows.ndjson", "rows.json", "ROWS.JSONL"])
def test_json_lines_have_several_names(name: str) -> None:
    write(name, '{"text": "one", "label": "a"}\n')
    assert texts(name).labels == ("a",)


@pytest.mark.parametrize("text", ["", "   ", "\u3000"])
def test_a_text_without_a_word_is_told(text: str) -> None:
    write("tickets.csv", f"text,label\n{text},a\nwords,a\n")
    arrival = texts("tickets.csv")
    assert len(arrival) == 1 and told(arrival.problems) == ["line 2 of tickets.csv has an empty text"]


def test_labels_that_are_none_are_told_and_the_others_tidied() -> None:
    labels = ["", " ", "nan", "NaN", " oak ", "x" * 200, "x" * 201, "a\u2028b", "cafe\u0301", "007"]
    write("tickets.jsonl", "\n".join(json.dumps({"text": "words", "label": label}) for label in labels))
    arrival = texts("tickets.jsonl")
    assert arrival.labels == ("oak", "x" * 200, "café", "007") and not arrival.numeric
    assert [problem.reason for problem in arrival.problems] == [
        "has no label",
        "has no label",
        "has no label (it is nan)",
        "has no label (it is NaN)",
        "has a label of 201 characters, but a class has at most 200",
        "has a label with a control character ('a\\u2028b'), which no class may have",
    ]


@pytest.mark.parametrize(
    ("labels", "numeric"),
    [(["3", "-12", "0"], True), (["3", "four"], False), (["3.5"], False), (["03"], False), (["+3"], False)],
)
def test_labels_are_numeric_if_all_are_whole_numbers_as_they_are_written(labels: list[str], numeric: bool) -> None:
    write("tickets.csv", "text,label\n" + "".join(f"words,{label}\n" for label in labels))
    assert texts("tickets.csv").labels == tuple(labels) and texts("tickets.csv").numeric is numeric


def test_a_text_longer_than_the_csv_module_reads_is_told() -> None:
    write("tickets.csv", f"text,label\n{'x' * 200_000},a\nwords,a\n")
    assert "a cell that is too long" in told(texts("tickets.csv").problems)[0] and len(texts("tickets.csv")) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "a.csv is empty: it must hold at least one row."),
        ("a.parquet", "", "a.parquet is empty: it must hold at least one row."),
        ("a.csv", "text,label\n", "a.csv holds no rows."),
        ("a.csv", "\n\n", "The first line of a.csv is blank; it must name the columns, for instance text,label."),
        ("a.csv", b"caf\xe9;label\n", "The first line of a.csv is not UTF-8 (it holds the byte 0xe9); save"),
        ("a.csv", "text,label,label\n", "a.csv has several columns 'label'; give each a name of its own."),
        ("a.csv", "text,label\n".encode("utf-16"), "a.csv is written in UTF-16; save it as UTF-8."),
        ("a.jsonl", "\n\n", "a.jsonl holds no rows."),
        ("a.jsonl", "[{}]", "a.jsonl has no row that can be used: line 1 of a.jsonl is not a JSON object"),
        ("a.csv", "text,label\n,a\n,b\n", "a.csv has no row that can be used: line 2 of a.csv has an empty text, and so on: 2"),
        ("a.parquet", "PAR1 and then nothing of use", "a.parquet cannot be read as a parquet file: "),
        ("a.zip", "PK", "a.zip cannot be read: give a folder or a file that ends on .parquet, .csv, .tsv, .jsonl"),
        ("a.png", "text", "a.png cannot be read: give a folder or a file that ends on .parquet"),
        (
            "a.txt",
            "words",
            "a.txt has no column that is known to hold the labels, only 'text'; name the one to use with label=.",
        ),
    ],
)
def test_a_file_that_cannot_be_used_at_all_is_refused(name: str, content: str | bytes, message: str) -> None:
    write(name, content)
    assert message in refused(name)


# -- which columns


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            "text,kind",
            "a.csv has no column that is known to hold the labels, only 'text', 'kind'; name the one to use with label=.",
        ),
        (
            "text,intent,topic",
            "a.csv has several columns that could hold the labels: 'intent', 'topic'; name the one to use with",
        ),
        (
            "id,title,label",
            "a.csv has several columns that could hold the texts: 'id', 'title'; name the one to use with text=.",
        ),
        ("label", "a.csv has no column that is known to hold the texts, only 'label'; name the one to use with text=."),
        ("query,message,label", "a.csv has several columns that could hold the texts: 'query', 'message'; name the one"),
    ],
)
def test_columns_that_leave_the_choice_open_are_told_with_what_there_is(header: str, message: str) -> None:
    write("a.csv", f"{header}\n{','.join('xyz'[: header.count(',') + 1])}\n")
    assert refused("a.csv").startswith(message)


@pytest.mark.parametrize("header", ["TEXT,Label,note", "utterance,intent,note", "text,label,intent", "sentence,category,note"])
def test_columns_are_found_by_usual_names(header: str) -> None:
    write("a.csv", f"{header}\nwords,oak,x\n")
    assert texts("a.csv").labels == ("oak",) and everything(texts("a.csv")).content == ["words"]


def test_columns_can_be_named() -> None:
    write("a.csv", "q,a,label\nwords,oak,1\n")
    arrival = texts("a.csv", text="q", label="a")
    assert arrival.labels == ("oak",) and everything(arrival).content == ["words"]
    assert texts("a.csv", text="a").labels == ("1",)
    wrong = "a.csv has no column 'b' for {}; it has 'q', 'a', 'label'."
    assert refused("a.csv", error=ConfigurationError, label="b", text="q") == wrong.format("label=")
    assert refused("a.csv", error=ConfigurationError, text="b") == wrong.format("text=")
    assert "image='q' names a column of images, but this is about text" in refused("a.csv", error=ConfigurationError, image="q")


def test_images_of_a_table_are_paths_within_its_folder() -> None:
    write_photos("set/photos/1.png", "outside.png")
    paths = ["photos/1.png", "./photos/../photos/1.png", "../outside.png", "/etc/passwd", "photos/2.png", "", "a\0b", "photos"]
    write("set/table.csv", "file_name,label\n" + "".join(f"{path},oak\n" for path in paths))
    chunk = everything(images("set/table.csv"))
    assert chunk.rows == (0, 1) and np.array_equal(pixels(chunk, 1), picture(0))
    assert told(chunk.problems) == [
        "line 4 of set/table.csv names '../outside.png', which lies outside the folder of the file",
        "line 5 of set/table.csv names '/etc/passwd', which lies outside the folder of the file",
        "line 6 of set/table.csv names 'photos/2.png', which cannot be read: No such file or directory",
        "line 7 of set/table.csv has no image",
        "line 8 of set/table.csv names 'a\\x00b', which is no path",
        "line 9 of set/table.csv names 'photos', which is not a file",
    ]
    Path("set/photos/link.png").symlink_to(Path("outside.png").absolute())
    write("set/table.csv", "file_name,label\nphotos/link.png,oak\n")
    assert "lies outside" in told(everything(images("set/table.csv")).problems)[0]


def test_images_beside_a_table_are_not_taken_for_classes_in_silence() -> None:
    write_photos("set/photos/1.png")
    write("set/labels.csv", "file_name,label\nphotos/1.png,oak\n")
    assert refused("set", "images") == (
        "set holds images in folders and also labels.csv; give set/labels.csv if the labels are in it, else move it away."
    )
    assert images("set/labels.csv").labels == ("oak",)


# -- parquet


def test_parquet_of_the_hub_gives_names_to_its_labels() -> None:
    photos = [png(picture(k)) for k in range(4)]
    cells = [{"bytes": photo, "path": None} for photo in photos]
    write_parquet(
        "set/data/train-00000.parquet", image=(datasets.Image(), cells[:3]), label=(CLASSES, [1, 0, -1]), id=[7, 8, 9]
    )
    write_parquet("set/data/train-00001.parquet", image=(datasets.Image(), cells[3:]), label=(CLASSES, [2]), id=[7])
    write_parquet("set/data/test-00000.parquet", image=(datasets.Image(), cells[:1]), label=(CLASSES, [0]), id=[7])
    arrival = images("set")
    assert arrival.labels == ("oak", "ash", "yew")
    assert told(arrival.problems) == ["row 2 of set/data/train-00000.parquet has no label (it is -1)"]
    chunk = everything(arrival)
    assert np.array_equal(pixels(chunk, 2), picture(3)) and arrival.names[2] == "row 0 of set/data/train-00001.parquet"
    assert bytes(chunk.hashes[0].tolist()) == hashlib.blake2b(photos[0], digest_size=16).digest()


def test_files_of_one_folder_must_name_the_same_classes() -> None:
    write_parquet("set/a.parquet", text=["one"], label=(CLASSES, [0]))
    write_parquet("set/b.parquet", text=["two"], label=(datasets.ClassLabel(names=["oak", "ash"]), [0]))
    assert "set/b.parquet names other classes in its column 'label' than the files before it" in refused("set")


def test_files_of_one_folder_follow_one_another_and_unusable_ones_are_told() -> None:
    write("set/a.csv", "text,label\none,oak\n")
    write("set/b.jsonl", '{"text": "two", "label": "ash"}\n{"note": "x", "label": "ash"}\n')
    write("set/c.csv", "")
    arrival = texts("set")
    assert arrival.labels == ("oak", "ash") and everything(arrival).content == ["one", "two"]
    assert told(arrival.problems) == ["set/c.csv is empty", "line 2 of set/b.jsonl has no text"]
    Path("set/a.csv").unlink()
    Path("set/b.jsonl").unlink()
    assert refused("set") == "set/c.csv is empty."


@pytest.mark.parametrize(
    ("values", "labels", "reasons"),
    [
        (pa.array([3, None, 4]), ("3", "4"), ["has no label"]),
        (pa.array([3.0, float("nan"), 3.5, float("inf"), None]), ("3",), ["nan", "3.5", "inf", "has no label"]),
        (pa.array(["oak", "ash"]).dictionary_encode(), ("oak", "ash"), []),
        (pa.array([True, False]), ("True", "False"), []),
        (pa.array([3, 200], pa.uint8()), ("3", "200"), []),
        (pa.array(["oak", "ash"], pa.large_string()), ("oak", "ash"), []),
    ],
)
def test_labels_of_every_type_become_strings(values: Any, labels: tuple[str, ...], reasons: list[str]) -> None:
    parquet.write_table(pa.table({"text": ["words"] * len(values), "label": values}), "a.parquet")
    arrival = texts("a.parquet")
    assert arrival.labels == labels and arrival.numeric == labels[0].isdigit()
    assert all(reason in problem.reason for reason, problem in zip(reasons, arrival.problems, strict=True))


def test_a_label_beyond_the_named_classes_is_told() -> None:
    write_parquet("a.parquet", text=["one", "two"], label=(CLASSES, [0, 1]))
    table = parquet.read_table("a.parquet")
    parquet.write_table(table.set_column(1, table.schema.field("label"), pa.array([0, 3])), "a.parquet")
    assert told(texts("a.parquet").problems) == ["row 1 of a.parquet has the label 3, but the classes are numbered from 0 to 2"]


def test_two_named_columns_of_labels_need_a_choice() -> None:
    write_parquet("a.parquet", text=["one"], tree=(CLASSES, [0]), mood=(datasets.ClassLabel(names=["calm"]), [0]))
    assert "several columns that could hold the labels: 'tree', 'mood'; name the one" in refused("a.parquet")
    assert texts("a.parquet", label="mood").labels == ("calm",)


def test_plain_bytes_and_structures_without_metadata_are_images() -> None:
    photo = png(picture(5))
    for column in ([photo], [{"bytes": photo, "path": "x.png"}]):
        parquet.write_table(pa.table({"scan": column, "label": ["oak"]}), "a.parquet")
        assert np.array_equal(pixels(everything(images("a.parquet")), 0), picture(5))
    parquet.write_table(pa.table({"left": [photo], "right": [photo], "label": ["oak"]}), "a.parquet")
    assert "several columns that could hold the images: 'left', 'right'; name the one to use with image=" in refused(
        "a.parquet", "images"
    )
    assert len(images("a.parquet", image="left")) == 1
    assert "no column that is known to hold the texts, only 'left', 'right', 'label'" in refused("a.parquet", "text")


@pytest.mark.parametrize("group", [100, 1000, 5000])
def test_any_rows_of_a_large_parquet_file_are_read_alike(group: int) -> None:
    count = 5000
    parquet.write_table(
        pa.table({"text": [f"text {n}" if n % 7 else "" for n in range(count)], "label": list(range(count))}),
        "a.parquet",
        row_group_size=group,
    )
    arrival = texts("a.parquet")
    expected = [n for n in range(count) if n % 7]
    assert arrival.labels == tuple(map(str, expected))
    for rows in (range(4000, 4100), range(10), range(5, 700), range(690, 1900), range(len(expected))):
        assert arrival.read(rows).content == [f"text {expected[row]}" for row in rows]


def test_texts_of_a_large_file_are_not_all_in_memory() -> None:
    import tracemalloc

    count = 400_000
    parquet.write_table(
        pa.table({"text": pa.array(["x" * 40]).take(pa.array(np.zeros(count, np.int64))), "label": np.arange(count) % 10}),
        "a.parquet",
    )
    tracemalloc.start()
    start = time.monotonic()
    arrival = texts("a.parquet")
    assert len(arrival.read(range(300_000, 300_100)).content) == 100
    seconds = time.monotonic() - start
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(arrival) == count and len(set(arrival.labels)) == 10
    assert peak < 30e6, "as Python's strings, the texts alone are 36 MB"
    assert seconds < 60


def test_a_parquet_file_that_is_damaged_further_down_is_told() -> None:
    rng = np.random.default_rng(0)
    table = pa.table({"image": [rng.bytes(2000) for _ in range(2000)], "label": ["oak"] * 2000})
    parquet.write_table(table, "a.parquet", row_group_size=500, write_page_checksum=True, use_dictionary=False)
    content = bytearray(Path("a.parquet").read_bytes())
    content[2_400_000:2_410_000] = bytes(10_000)
    write("a.parquet", bytes(content))
    arrival = images("a.parquet")
    for _ in range(2):
        assert len(arrival.read(range(0, 400)).problems) == 400, "noise is no image, but it can be read"
        with pytest.raises(DataError, match=r"a\.parquet cannot be read from row 900 on"):
            arrival.read(range(900, 2000))


# -- the hub


def test_a_data_set_of_the_hub_is_read_like_a_file() -> None:
    write_photos("x.png")
    features = datasets.Features(image=datasets.Image(), label=CLASSES)
    of_files = datasets.Dataset.from_dict({"image": [str(Path("x.png").absolute())], "label": [1]}, features=features)
    cells = [{"bytes": png(picture(1)), "path": None}]
    write_parquet("hub/train.parquet", image=(datasets.Image(), cells), label=(CLASSES, [2]))
    of_bytes = datasets.load_dataset("./hub", split="train", cache_dir="cache")
    identities = set()
    for dataset, label, seed in ((of_files, "oak", 0), (of_bytes, "yew", 1)):
        table = dataset_table(dataset, "someone/trees")
        arrival = Arrival(table, "images", Sizing(6, 3, 1000), content_column(table, "images", None, None), "label")
        assert arrival.labels == (label,) and arrival.names == ("row 0 of someone/trees",)
        assert np.array_equal(pixels(everything(arrival), 0), picture(seed))
        identities.add(arrival.identity)
    assert len(identities) == 2


def test_a_path_that_does_not_exist_is_told_with_what_is_near() -> None:
    write_photos("plants/monday/rose/1.png")
    assert refused("plants/mondya/") == "There is no file or folder 'plants/mondya' (did you mean 'plants/monday'?)."
    assert refused("plant.csv").startswith("There is no file or folder 'plant.csv' (")
    assert refused("plnats/monday/rose") == "There is no file or folder 'plnats/monday/rose' (did you mean 'plants'?)."
    assert refused(" ") == "The path of the data is empty; name a file or a folder."
    assert "a\\x00b" in refused("a\0b")
    assert "File name too long" in refused("x" * 5000)


def test_without_a_network_an_unknown_name_is_told_at_once() -> None:
    start = time.monotonic()
    message = refused("someone/trees")
    assert message.startswith("There is no file or folder 'someone/trees' (looked for in ") and time.monotonic() - start < 15
    assert message.endswith("and the hub, where a data set may be called so, cannot be reached.")


# -- in memory


def test_pairs_of_text_and_label() -> None:
    arrival = texts(
        [("one", "oak"), ("two", 3), ["three", np.int64(3)], ("four", torch.tensor(4)), "no pair", ("", "ash"), ("x", None)]
    )
    assert arrival.labels == ("oak", "3", "3", "4") and arrival.source == "the data"
    assert everything(arrival).content == ["one", "two", "three", "four"]
    assert told(arrival.problems) == [
        "row 4 of the data is no pair of text and label",
        "row 5 of the data has an empty text",
        "row 6 of the data has no label",
    ]


def test_images_in_memory_come_in_many_types() -> None:
    array = picture(1)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    write_photos("x.png")
    given = [png(array), Image.fromarray(array), array, tensor, {"bytes": png(array), "path": None}, bytearray(png(array))]
    chunk = everything(images([(image, "oak") for image in given]))
    assert len(chunk.rows) == len(given) and chunk.problems == ()
    assert all(np.array_equal(pixels(chunk, row), array) for row in range(len(given)))
    assert torch.equal(chunk.hashes[0], chunk.hashes[4]) and torch.equal(chunk.hashes[1], chunk.hashes[2])
    assert torch.equal(chunk.hashes[2], chunk.hashes[3])
    more = [picture(2, grey=True), torch.from_numpy(picture(2, grey=True))[None], picture(2, grey=True)[:, :, None]]
    grey = everything(images([*((image, "oak") for image in more), (Path("x.png"), "oak")], channels=1))
    assert all(np.array_equal(pixels(grey, row)[..., 0], picture(2, grey=True)) for row in range(3)) and len(grey.rows) == 4


def test_an_image_in_memory_is_left_as_it_was() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(io.BytesIO(png(picture(0, 4, 8), exif=exif)))
    everything(images([(image, "oak")]))
    assert image.size == (8, 4)


def test_what_is_no_image_in_memory_is_told() -> None:
    bad = [
        None,
        "/etc/passwd",
        3,
        b"",
        picture(0).astype(np.float32),
        np.zeros((2, 5, 5), np.uint8),
        np.zeros((0, 0, 3), np.uint8),
    ]
    bad += [{"bytes": None, "path": "/etc/passwd"}, Image.open(io.BytesIO(png(picture(0, 60, 60))[:-200]))]
    chunk = everything(images([(picture(0), "oak"), *((image, "oak") for image in bad)]))
    assert chunk.rows == (0,)
    assert [problem.reason for problem in chunk.problems][:-1] == [
        "has no image",
        "has an image of type str",
        "has an image of type int",
        "is empty",
        "has pixels of type float32, but they must be uint8, from 0 to 255",
        "has the shape (2, 5, 5), which no image has",
        "has the shape (0, 0, 3), which no image has",
        "has an image of type str",
    ]
    assert chunk.problems[-1].reason.startswith("cannot be decoded as an image: ")


def test_columns_in_memory() -> None:
    stack = torch.from_numpy(np.stack([picture(k).transpose(2, 0, 1) for k in range(3)]))
    for data in (Data(image=stack, label=torch.tensor([4, 5, 4])), {"image": stack, "label": np.array([4, 5, 4])}):
        arrival = images(data)
        assert arrival.labels == ("4", "5", "4") and arrival.numeric
        assert np.array_equal(pixels(everything(arrival), 2), picture(2))
    assert texts({"text": ("a", "b"), "intent": iter(["x", "y"])}).labels == ("x", "y")
    assert images(Data(image=stack, label=torch.tensor([4, 5, 4]))[[2, 1]]).labels == ("4", "5")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "the data holds no rows."),
        ({}, "the data holds no rows."),
        (
            {"text": ["a", "b"], "label": ["x"]},
            "The columns of the data must be equally long, but there are 2 in 'text', 1 in 'label'.",
        ),
        ({"text": "abc", "label": ["x"]}, "Column 'text' of the data must be a list, an array or a tensor"),
        ({"text": 3, "label": ["x"]}, "Column 'text' of the data must be a list"),
        ({"text": ["a"], "label": np.array(3)}, "Column 'label' of the data must be a list"),
        (3, "the data is of type int; give pairs of text and label, columns by name, or a path."),
        (b"abc", "the data is of type bytes; give pairs of text and label"),
        (["a", "b"], "the data has no row that can be used: row 0 of the data is no pair of text and label"),
    ],
)
def test_what_is_no_data_in_memory_is_refused(data: Any, message: str) -> None:
    assert message in refused(data)


# -- identity


def test_the_identity_follows_what_arrived() -> None:
    def identities() -> tuple[str, ...]:
        pairs = [(Image.fromarray(picture(1)), "oak"), (png(picture(2)), 3)]
        return images("monday").identity, texts("a.csv").identity, texts("a.parquet").identity, images(pairs).identity

    write_photos("monday/rose/1.png", "monday/rose/2.png")
    write("a.csv", "text,label,other\none,oak,ash\n")
    write_parquet("a.parquet", text=["one"], label=["oak"])
    before = identities()
    assert identities() == before and len(set(before)) == 4
    assert texts("a.csv", label="other").identity != before[1]
    os.utime("monday/rose/1.png", ns=(1, 1))
    write("a.csv", "text,label,other\none,oak,yew\n")
    write_parquet("a.parquet", text=["one"], label=["ash"])
    assert not {*identities()[:3]} & {*before}
    Path("monday").rename("tuesday")
    Path("tuesday/rose").rename("tuesday/fern")
    moved = images("tuesday").identity
    assert moved not in before
    Path("tuesday").rename("monday")
    assert images("monday").identity == moved, "the place of the folder does not matter"
    assert (
        images([(picture(1), "oak")]).identity
        != images([(picture(1), "ash")]).identity
        != images([(picture(2), "ash")]).identity
    )


# -- inputs


def test_inputs_are_one_image_or_images_at_any_depth() -> None:
    write_photos("in/1.png", "in/a/2.png", "in/a/b/3.png", "in/.hidden/4.png")
    Path("in/a/loop").symlink_to(Path("in").absolute())
    write("in/a/notes.txt", "x")
    write("in/a/x.heic", "x")
    inputs = open_inputs("in", "images", size=6)
    assert inputs.names == ("in/1.png", "in/a/2.png", "in/a/b/3.png") and not hasattr(inputs, "labels")
    assert told(inputs.problems) == ["in/a/x.heic is no image of a known format: its name ends on .heic"]
    assert np.array_equal(pixels(everything(inputs), 2), picture(2))
    one = open_inputs("in/a/2.png", "images", size=6)
    assert one.names == ("in/a/2.png",) and np.array_equal(pixels(everything(one), 0), picture(1))
    assert "in/a/2.png is one image without a label" in refused("in/a/2.png", "images")


def test_inputs_need_no_labels_and_may_have_them() -> None:
    write("a.csv", "text\none\n\ntwo\n")
    write("b.csv", "phrase,label\none,oak\ntwo,\n")
    write("c.txt", "one\r\n\r\ntwo\n")
    for data in ("a.csv", "b.csv", "c.txt", ["one", "two"], {"text": ["one", "two"]}):
        assert everything(open_inputs(data, "text")).content == ["one", "two"]
    assert open_inputs("c.txt", "text").names == ("line 1 of c.txt", "line 3 of c.txt")
    assert open_inputs(["one"], "text", source="the request").names == ("row 0 of the request",)
    write("d.csv", "q,a\none,two\n")
    assert everything(open_inputs("d.csv", "text", text="a")).content == ["two"]


def test_images_to_predict_may_be_in_memory() -> None:
    stack = np.stack([picture(k) for k in range(2)])
    for data in (stack, list(stack), [png(image) for image in stack], torch.from_numpy(stack).permute(0, 3, 1, 2)):
        chunk = everything(open_inputs(data, "images", size=6))
        assert np.array_equal(pixels(chunk, 1), stack[1])


# -- settings, start, real data


@pytest.mark.parametrize("options", [{"size": 0}, {"channels": 2}, {"most_pixels": 0}])
def test_settings_that_make_no_sense_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match="size and most_pixels must be at least 1 and channels 1 or 3"):
        open_arrival([], "images", **options)  # type: ignore[arg-type]


def test_importing_it_is_light() -> None:
    heavy = ("datasets", "pyarrow", "PIL", "transformers")
    code = f"import sys, latewood.model.arrivals; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_real_intents_and_drawings_are_read_whole(real_data: Path) -> None:
    intents = texts(real_data / "clinc150")
    assert len(intents) == 15_000 and len(set(intents.labels)) == 150 and intents.problems == ()
    assert len(intents.read(range(14_000, 99_999)).content) == 1_000
    drawings = images(real_data / "omniglot-small", size=28, channels=1)
    assert len(drawings) == 3_630 and len(set(drawings.labels)) == 242
    chunk = drawings.read(range(3_600, 3_630))
    assert isinstance(chunk.content, torch.Tensor) and chunk.content.shape == (30, 1, 28, 28) and chunk.problems == ()
    assert len(set(map(bytes, chunk.hashes.tolist()))) == 30
