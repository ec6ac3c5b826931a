"""Blocks: packed without loss, kept on disk once, never more in memory than a batch, and never trained on what is held out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError, DataError, StorageError
from latewood.core.progress import Progress, showing
from latewood.language.corpora import ByteTokenizer, Encoded, TokenBlocks, join, load_blocks, load_corpus, load_tokenizer, pack
from latewood.language.corpora import blocks as module


class Counting(ByteTokenizer):
    """Notes what it is asked to tokenize."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def encode_batch(self, texts: Sequence[str]) -> list[Encoded]:
        self.texts += texts
        return super().encode_batch(texts)


def documents_file(path: Path, count: int = 400) -> Path:
    path.write_text("\n".join(f"{number:04d} ".ljust(200, "x") for number in range(count)))
    return path


def words(data: Data) -> str:
    """The text of blocks, a bar at the end of each document."""
    tokens = data.tensor("tokens").flatten().tolist()
    return bytes(token if token < 256 else ord("|") for token in tokens).decode()


def same(a: TokenBlocks, b: TokenBlocks) -> bool:
    pairs = ((a.train, b.train), (a.held_out, b.held_out))
    return all(torch.equal(x.tensor(c), y.tensor(c)) for x, y in pairs for c in ("tokens", "bytes"))


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCH", 500)


# Packing


def test_documents_follow_one_another_with_an_end_after_each_and_the_remainder_is_dropped() -> None:
    data = pack(["abc", "defgh", "ij"], length=4)
    assert words(data) == "abc|defgh|ij"
    assert data["bytes"].tolist() == [3, 4, 3]
    assert words(pack(["abc", "defgh", "ijk"], length=4)) == "abc|defgh|ij"


@settings(deadline=None, max_examples=60)
@given(
    texts=st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=20),
    length=st.integers(2, 9),
    batch=st.integers(1, 60),
)
def test_packing_loses_nothing_and_knows_its_bytes_however_documents_fall(texts: list[str], length: int, batch: int) -> None:
    stream = [token for text in texts for token in [*text.encode(), 256]]
    if len(stream) < length:
        return
    before = module._BATCH
    module._BATCH = batch
    try:
        data = pack(texts, length=length)
    finally:
        module._BATCH = before
    rows = data.tensor("tokens")
    assert rows.dtype == torch.int32
    assert rows.flatten().tolist() == stream[: len(stream) // length * length]
    assert data["bytes"].tolist() == (rows != 256).sum(1).tolist()


def test_the_bytes_of_blocks_of_a_pretrained_tokenizer_add_up_to_the_text(bpe: Path, small_batches: None) -> None:
    texts = ["def école():\n    return 'naïve'\n", "class Tree: ...\n", "x = '🌲' * 3\n"] * 20
    tokenizer = load_tokenizer(str(bpe))
    tokens = sum(len(tokenizer.encode(text)) + 1 for text in texts)
    length = next(size for size in range(5, 60) if tokens % size == 0)
    data = pack(texts, tokenizer, length)
    assert data.tensor("tokens").numel() == tokens
    assert int(data["bytes"].sum()) == sum(len(text.encode()) for text in texts)
    for row, size in zip(data["tokens"].tolist(), data["bytes"].tolist(), strict=True):
        text = tokenizer.decode(row)
        if "\ufffd" not in text:
            assert size == len(text.encode())


# Corpora


def test_real_text_becomes_blocks_and_its_held_out_part_never_trains(real_data: Path) -> None:
    for name in ("en", "fr", "de"):
        blocks, corpus = load_blocks(name), load_corpus(name)
        assert blocks.length == 256
        sizes = [sum(len(text.encode()) for text in corpus.documents(part)) for part in ("train", "held_out")]
        for data, size in zip((blocks.train, blocks.held_out), sizes, strict=True):
            assert data.tensor("tokens").shape == (len(data), 256)
            assert 0.97 * size < int(data["bytes"].sum()) <= size
        assert 0.03 < sizes[1] / sum(sizes) < 0.07
        trained = set(words_of(blocks.train))
        held = [document for document in words_of(blocks.held_out)[1:-1] if len(document) > 20]
        assert len(held) > 40
        assert not trained & set(held)


def words_of(data: Data) -> list[str]:
    tokens = data.tensor("tokens").flatten().tolist()
    return bytes(token if token < 256 else 0 for token in tokens).decode(errors="replace").split("\0")


def test_a_document_that_is_held_out_does_not_train_where_it_occurs_again(tmp_path: Path) -> None:
    lines = [f"{number % 210:04d} ".ljust(200, "x") for number in range(630)]  # each line three times
    (tmp_path / "a.txt").write_text("\n".join(lines))
    corpus = load_corpus(str(tmp_path / "a.txt"), documents="lines")
    held = set(corpus.documents("held_out"))
    assert held & set(corpus.documents("train"))
    blocks = load_blocks(corpus, length=201)
    assert {f"{line}|" for line in held} == {words(blocks.held_out[i]) for i in range(len(blocks.held_out))}
    assert not held & {words(blocks.train[i])[:-1] for i in range(len(blocks.train))}
    assert len(blocks.train) == sum(line not in held for line in lines)


def test_a_limit_reads_no_more_text_than_it_needs(tmp_path: Path, small_batches: None) -> None:
    corpus = load_corpus(str(documents_file(tmp_path / "a.txt", 4000)), documents="lines")
    tokenizer = Counting()
    blocks = load_blocks(corpus, tokenizer=tokenizer, length=100, blocks=7, held_out=3)
    assert (len(blocks.train), len(blocks.held_out)) == (7, 3)
    assert len(tokenizer.texts) < 12
    whole = load_blocks(corpus, length=100)
    assert torch.equal(whole.train["tokens"][:7], blocks.train["tokens"])
    assert torch.equal(whole.train["bytes"][:7], blocks.train["bytes"])
    assert len(whole.train) > 7000


def test_the_reading_is_a_stream_that_never_holds_the_corpus(tmp_path: Path, small_batches: None) -> None:
    read = written = most = 0

    def endless(part: str) -> Iterator[str]:
        nonlocal read, most
        for number in range(2000):
            read += 1
            most = max(most, read - written)
            yield f"{part} {number} ".ljust(200, "x")

    corpus = load_corpus(str(documents_file(tmp_path / "a.txt")))
    corpus = replace(corpus, parts={"train": lambda: endless("train"), "held_out": lambda: endless("held out")})

    class Watching(ByteTokenizer):
        def encode_batch(self, texts: Sequence[str]) -> list[Encoded]:
            nonlocal written
            written += len(texts)
            return super().encode_batch(texts)

    assert len(load_blocks(corpus, tokenizer=Watching(), length=100).train) > 4000
    assert most <= 4


# On disk


def test_the_second_time_nothing_is_tokenized_and_rows_are_mapped_from_the_file(tmp_path: Path) -> None:
    file = documents_file(tmp_path / "a.txt")
    first, again = Counting(), Counting()
    one = load_blocks(str(file), tokenizer=first, length=64)
    two = load_blocks(str(file), tokenizer=again, length=64)
    assert first.texts and not again.texts
    assert same(one, two)
    assert one.train.fingerprint() == two.train.fingerprint() != one.held_out.fingerprint()
    folder = next((tmp_path / "cache" / "tokens").iterdir())
    assert isinstance(np.memmap(folder / "train.tokens.int32", np.int32, "r"), np.memmap)
    two.train.tensor("tokens")[0, 0] = 7  # whoever writes into the rows does not change the file
    assert same(load_blocks(str(file), length=64), load_blocks(str(file), length=64))
    assert int(load_blocks(str(file), length=64).train.tensor("tokens")[0, 0]) != 7


def test_without_a_cache_the_blocks_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = documents_file(tmp_path / "a.txt")
    kept = load_blocks(str(file), length=64)
    monkeypatch.setenv("LATEWOOD_CACHE", "off")
    assert same(kept, load_blocks(str(file), length=64))


def test_other_text_tokens_or_numbers_are_other_blocks(tmp_path: Path, bpe: Path) -> None:
    file = documents_file(tmp_path / "a.txt")
    made = [
        load_blocks(str(file), length=64),
        load_blocks(str(file), length=32),
        load_blocks(str(file), length=64, blocks=5),
        load_blocks(str(file), length=64, held_out=5),
        load_blocks(str(file), length=64, tokenizer=str(bpe)),
        load_blocks(load_corpus(str(file), documents="lines"), length=64),
    ]
    documents_file(file, 401)
    made.append(load_blocks(str(file), length=64))
    assert len({blocks.train.fingerprint() for blocks in made}) == len(made)
    assert made[4].tokenizer.size > 500


@pytest.mark.parametrize("damage", ["cut", "no header", "bad header"])
def test_damaged_files_are_made_again(tmp_path: Path, damage: str) -> None:
    file = documents_file(tmp_path / "a.txt")
    whole = load_blocks(str(file), length=64).train["tokens"].clone()
    folder = next((tmp_path / "cache" / "tokens").iterdir())
    if damage == "cut":
        os.truncate(folder / "train.tokens.int32", 100)
    elif damage == "no header":
        (folder / "header.json").unlink()
    else:
        (folder / "header.json").write_text('{"rows": 3}')
    assert torch.equal(load_blocks(str(file), length=64).train["tokens"], whole)


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    file = documents_file(tmp_path / "a.txt")
    with file.open("ab") as content:
        content.write(b"\n\xff")
    with pytest.raises(DataError, match="is no UTF-8 text"):
        load_blocks(str(file), length=64)
    assert list((tmp_path / "cache" / "tokens").iterdir()) == []


def test_a_full_disk_gets_a_sentence(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no device that is always full")
    file = documents_file(tmp_path / "a.txt")
    original = module._file
    module._file = lambda folder, part, column: Path("/dev/full")
    try:
        with pytest.raises(StorageError, match="the disk is full"):
            load_blocks(str(file), length=64)
    finally:
        module._file = original
    assert list((tmp_path / "cache" / "tokens").iterdir()) == []


def test_another_process_may_make_the_same_blocks_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = documents_file(tmp_path / "a.txt")
    original = module.write_folder_atomically

    def beaten(place: Path, fill: Callable[[Path], None]) -> None:
        original(place, fill)  # the other process
        original(place, fill)

    monkeypatch.setattr(module, "write_folder_atomically", beaten)
    first = load_blocks(str(file), length=64)
    assert same(first, load_blocks(str(file), length=64))
    assert len(list((tmp_path / "cache" / "tokens").iterdir())) == 1


def test_progress_is_told_while_a_corpus_is_tokenized(tmp_path: Path, small_batches: None) -> None:
    class Listening(Progress):
        phases: list[tuple[str, int]]
        steps: int

        def __init__(self) -> None:
            self.phases, self.steps = [], 0

        def phase(self, text: str, steps: int = 0) -> None:
            self.phases.append((text, steps))

        def step(self, loss: torch.Tensor | None = None) -> None:
            self.steps += 1

    file = documents_file(tmp_path / "a.txt")
    with showing(Listening()) as progress:
        load_blocks(str(file), length=64)
    assert isinstance(progress, Listening)
    assert progress.phases[-1] == (f"tokenizing {file}", 161)
    assert progress.steps > 100


# What is refused


def test_a_part_without_text_or_shorter_than_a_block_gets_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("one two three")
    (tmp_path / "test.txt").write_text("four")
    with pytest.raises(DataError, match=r"Of the corpus .* the held-out part .* is shorter than one block of 8 tokens"):
        load_blocks(str(tmp_path), length=8)
    (tmp_path / "test.txt").write_text("\n\n")
    with pytest.raises(DataError, match=r"Of the corpus .* the held-out part .* is empty; add text"):
        load_blocks(str(tmp_path), length=8)
    (tmp_path / "test.txt").write_text("four five six")
    (tmp_path / "train.txt").write_text("one")
    with pytest.raises(DataError, match=r"Of the corpus .* the training part is shorter than one block of 8 tokens"):
        load_blocks(str(tmp_path), length=8)
    with pytest.raises(DataError, match="The text is shorter than one block of 256 tokens"):
        pack(["one"])
    with pytest.raises(DataError, match="The text is empty"):
        pack([])


@pytest.mark.parametrize("options", [{"length": 1}, {"blocks": 0}, {"held_out": 0}])
def test_numbers_that_make_no_sense_are_refused_before_anything_is_read(options: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match=f"{next(iter(options))} must be at least"):
        load_blocks("not there", **options)


def test_views_of_one_table_are_not_taken_for_one_another_when_they_are_joined() -> None:
    table = pack(["To be, or not to be, that is the question"], length=8)
    other = pack(["whether it is nobler in the mind"], length=8)
    first = join({"a": table[:2], "b": other})["tokens"]
    second = join({"a": table[2:4], "b": other})["tokens"]
    assert torch.equal(first[:2], table["tokens"][:2]) and torch.equal(second[:2], table["tokens"][2:4])
