"""The stream of texts: a corpus for each arrival, a probe for each corpus, and a name for everything that decides them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from latewood.core import registry
from latewood.core.data import Data
from latewood.core.errors import CheckpointError, ConfigurationError
from latewood.core.experience import Experience
from latewood.core.learner import Learner
from latewood.core.run import run
from latewood.core.stream import Stream
from latewood.language.corpora import load_blocks
from latewood.language.probes import HeldOutLoss
from latewood.language.streams.text import text


class Frequencies(Learner):
    """Counts tokens of the newest arrival, so that it forgets."""

    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("counts", torch.ones(257, dtype=torch.float64))

    def learn(self, experience: Experience) -> None:
        tokens = experience.train.tensor("tokens").flatten().long()
        self.counts = torch.bincount(tokens, minlength=257).double() + 0.01

    def predict(self, data: Data) -> Tensor:
        return -(self.counts / self.counts.sum()).log()[data.tensor("tokens").long()[:, 1:]].sum(1)


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two small corpora of different letters."""
    for name, letters in (("low", "abc"), ("high", "XYZ")):
        rows = [f"{letters * 60} {number}" for number in range(400)]
        (tmp_path / f"{name}.txt").write_text("\n\n".join(rows))
    monkeypatch.setenv("LATEWOOD_DATA", str(tmp_path))
    return tmp_path


def same(a: Data, b: Data) -> bool:
    return all(torch.equal(a.tensor(column), b.tensor(column)) for column in ("tokens", "bytes"))


def test_the_stream_is_found_by_its_name() -> None:
    entry = registry.find("streams", "text")
    assert (entry.wing, entry.load()) == ("language", text)


def test_every_corpus_arrives_once_in_the_order_of_its_name_and_is_probed_from_then_on(real_data: Path) -> None:
    stream = text("en, fr,de", length=128)
    assert (stream.wing, stream.name, len(stream)) == ("language", "text-en, fr,de", 3)
    for step, name in enumerate(("en", "fr", "de")):
        blocks = load_blocks(name, length=128)
        assert same(stream[step].train, blocks.train)
        assert stream[step].task is None and stream[step].classes == ()
        probe = stream.probes[step]
        assert isinstance(probe, HeldOutLoss)
        assert (probe.name, probe.since) == (name, step)
        assert same(probe.data, blocks.held_out)


def test_a_run_over_it_fills_the_matrix_and_sees_what_is_forgotten(shelf: Path) -> None:
    record = run(Frequencies(), text("low.txt,high.txt", length=32), device="cpu")
    assert record.main == "loss"
    matrix = record.matrix()
    assert math.isnan(matrix[0, 1])
    assert matrix[0, 0] < 1.6
    assert matrix[1, 0] > 4
    assert record.forgetting > 3


def test_blocks_limit_an_arrival_and_a_corpus_can_have_a_limit_of_its_own(shelf: Path) -> None:
    stream = text("low.txt@7,high.txt", length=32, blocks=50, held_out=4)
    assert [len(experience.train) for experience in stream] == [7, 50]
    assert [len(probe.data) for probe in stream.probes] == [4, 4]
    assert stream.probes[0].name == "low.txt"


def test_a_corpus_that_is_named_twice_arrives_twice_and_has_one_probe(shelf: Path) -> None:
    stream = text("low.txt,high.txt,low.txt", length=32)
    assert same(stream[0].train, stream[2].train)
    assert [(probe.name, probe.since) for probe in stream.probes] == [("low.txt", 0), ("high.txt", 1)]


def test_the_order_is_shuffled_by_the_seed_only_if_that_is_asked_for(shelf: Path) -> None:
    def order(**options: object) -> list[object]:
        arrivals = text("low.txt,high.txt,low.txt@3,high.txt@3", length=32, **options).config["arrivals"]  # type: ignore[arg-type]
        return [most for ((_, most),) in arrivals]

    assert order(seed=1) == order(seed=2) == [None, None, 3, 3]
    orders = {tuple(order(seed=seed, shuffle=True)) for seed in range(12)}
    assert len(orders) > 2
    assert order(seed=5, shuffle=True) == order(seed=5, shuffle=True)


def test_the_configuration_names_all_that_decides_the_contents(shelf: Path) -> None:
    def config(dataset: str = "low.txt,high.txt", **options: int | bool) -> str:
        return json.dumps(text(dataset, **{"length": 32, **options}).config)  # type: ignore[arg-type]

    first = config()
    assert config() == first
    others = [config("high.txt,low.txt"), config(length=16), config(blocks=9), config(held_out=3), config(seed=1)]
    (shelf / "high.txt").write_text((shelf / "high.txt").read_text() + "\n\nmore")
    others.append(config())
    assert first not in others and len(set(others)) == len(others)
    assert json.loads(first)["tokenizer"] == {"name": "bytes", "size": 257, "end": 256, "fingerprint": "bytes"}


def test_any_arrival_can_be_had_at_any_time(shelf: Path) -> None:
    stream: Stream = text("low.txt,high.txt", length=32)
    assert same(stream[1].train, list(stream)[1].train)
    assert list(stream.example) == ["tokens", "bytes", "source"]


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (" , ", "needs the names of its corpora, separated by commas"),
        ("low.txt@many", "the most rows of that corpus, such as en@500"),
        ("low.txt@0", "the most rows of that corpus"),
        ("@5", "the most rows of that corpus"),
        ("./nowhere", "There is no file or folder './nowhere'"),
    ],
)
def test_names_that_make_no_stream_get_a_sentence(shelf: Path, dataset: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        text(dataset)


@pytest.mark.parametrize("cache", ["on", "off"])
def test_corpora_that_are_joined_arrive_together_and_each_row_names_its_own(
    shelf: Path, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATEWOOD_CACHE", str(shelf / "cache") if cache == "on" else "off")
    stream = text("low.txt@5+high.txt,low.txt", length=32)
    both = stream[0].train
    low, high = load_blocks("low.txt", length=32, blocks=5), load_blocks("high.txt", length=32)
    assert both["source"] == ["low.txt"] * 5 + ["high.txt"] * len(high.train)
    assert same(both[:5], low.train) and same(both[5:], high.train)
    assert [(probe.name, probe.since) for probe in stream.probes] == [("low.txt", 0), ("high.txt", 0)]
    assert same(text("low.txt@5+high.txt,low.txt", length=32)[0].train, both)


@pytest.mark.parametrize("name", ["low.txt+low.txt@3", "low.txt+", "+"])
def test_corpora_that_arrive_together_need_names_that_differ(shelf: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="need different names"):
        text(name, length=32)


def test_a_run_is_not_continued_with_text_that_has_changed(shelf: Path, tmp_path: Path) -> None:
    run(Frequencies(), text("low.txt,high.txt", length=32), to=tmp_path / "run", device="cpu")
    (shelf / "high.txt").write_text((shelf / "high.txt").read_text() + "\n\nmore of it, enough to change a block or two")
    with pytest.raises(CheckpointError, match=r"holds another run: stream\.contents\.high\.txt is .* there and .* here"):
        run(Frequencies(), text("low.txt,high.txt", length=32), to=tmp_path / "run", device="cpu")
