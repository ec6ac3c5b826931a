"""Pre-training: a folder that transformers reads, made once, and finished where it was interrupted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from latewood.core.data import Data
from latewood.core.errors import StorageError
from latewood.language import loop
from latewood.language.corpora import load_tokenizer
from latewood.language.nets.causal import CausalLM, causal
from latewood.language.pretraining import pretrain_text
from latewood.language.recipe import TextRecipe

SMALL = {"layers": 1, "width": 16, "heads": 2}
RECIPE = TextRecipe(steps=6, batch_size=4, save_every=2)


def made(to: Path) -> None:
    pretrain_text("python", to, length=32, blocks=40, held_out=4, backbone=SMALL, recipe=RECIPE, device="cpu")


def test_a_model_is_written_as_a_folder_from_which_the_same_model_loads(tmp_path: Path) -> None:
    made(tmp_path / "model")
    card = json.loads((tmp_path / "model" / "latewood.json").read_text())
    again = causal_of(tmp_path / "model")
    assert again.network.config.num_hidden_layers == 1 and again.vocabulary == 257
    assert card["config"]["learner"]["recipe"]["steps"] == 6
    assert not (tmp_path / "model.run").exists()


def causal_of(folder: Path) -> CausalLM:
    return causal(Data(tokens=torch.zeros(1, 8, dtype=torch.int32)), name=str(folder))


def test_it_goes_on_where_it_was_interrupted_and_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path / "whole")
    step = loop.Work._step
    calls = []

    def dying(self: loop.Work, *arguments: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return step(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loop.Work, "_step", dying)
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "cut")
    assert not (tmp_path / "cut").exists()
    monkeypatch.setattr(loop.Work, "_step", step)
    made(tmp_path / "cut")
    one, other = (causal_of(tmp_path / name).state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_folder_that_is_there_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(StorageError, match="exists already"):
        made(tmp_path / "model")


def test_a_tokenizer_of_a_checkpoint_is_kept_beside_the_model(tmp_path: Path, words: Path) -> None:
    pretrain_text(
        "python", tmp_path / "model", tokenizer=str(words), length=32, blocks=40, held_out=4, backbone=SMALL, recipe=RECIPE
    )
    before, after = load_tokenizer(str(words)), load_tokenizer(str(tmp_path / "model"))
    assert before.encode("import torch") == after.encode("import torch") and before.end == after.end
    assert causal_of(tmp_path / "model").vocabulary == before.size


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """A folder with a tokenizer of bytes in pairs, trained on a few lines."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(["import os", "import sys", "def main():"], vocab_size=280, special_tokens=["<end>"])
    PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token="<end>").save_pretrained(tmp_path / "words")
    return tmp_path / "words"


def test_the_command_makes_a_model_that_another_command_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from latewood.cli import main

    small = [f"backbone.{name}={value}" for name, value in SMALL.items()]
    settings = [*small, "steps=4", "batch_size=4", "length=32", "blocks=40", "held_out=4"]
    words = [word for setting in settings for word in ("--set", setting)]
    main.app(["pretrain-text", "python", "--to", str(tmp_path / "model"), *words, "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["config"]["learner"]["recipe"]["steps"] == 4
    stream = ["--set", "stream.length=32", "--set", "stream.blocks=40", "--set", "stream.held_out=4", "--set", "steps=2"]
    run = ["run", "replay", "--stream", "text:python", *stream, "--set", f"backbone={tmp_path / 'model'}", "--json"]
    main.app(run, standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["rows"][0]["scores"]["loss"][0] < 6
