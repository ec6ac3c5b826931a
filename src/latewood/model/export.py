"""Giving a model away: an ONNX file that any runtime computes, a model card, and the way to the Hugging Face hub."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError, StorageError
from latewood.core.files import write_atomically
from latewood.images.nets._image import ImageBackbone
from latewood.language.nets.sentence import SentenceBackbone
from latewood.parts.backbone import Backbone
from latewood.parts.pretrained import first_line

#: Protocol buffers, which ONNX files are, hold no more, with some room for the graph itself.
_MOST_BYTES = (1 << 31) - (1 << 24)
#: What the front of a model card may say beside the tags, in the hub's own words.
_FRONT = ("license", "language", "pipeline_tag", "base_model", "datasets", "metrics")


def write_onnx(
    backbone: Backbone, score: Callable[[Tensor], Tensor], labels: Sequence[str], temperature: float, path: Path
) -> None:
    """Write ``path`` (which ends with ``.onnx``): an ONNX graph from network inputs to the probabilities of classes.

    ``score``, best a module, maps features (n, width) to scores (n, classes), one for each of ``labels``; the
    probabilities are ``softmax(scores / temperature)``, float32. Weights in float64 are written as float32.

    Of images the input is ``pixels``, float32 in [0, 1] of shape (batch, channels, height, width), in the size that the
    network takes: it normalises them itself. Of texts the inputs are ``input_ids`` and ``attention_mask``, int64 of shape
    (batch, length), as ``tokenizer.json``, written beside, makes them with the library tokenizers. The file with the
    suffix ``.json`` beside holds the labels, the temperature, and what goes in and comes out.

    Errors: :class:`~latewood.core.errors.ConfigurationError` if the packages for it are not installed, the labels or the
    temperature do not fit, or the network can't be written; :class:`~latewood.core.errors.StorageError` if writing fails.

    >>> import tempfile
    >>> from latewood.images.nets import pixels
    >>> digit = Data(image=torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    >>> path = Path(tempfile.mkdtemp()) / "digits.onnx"
    >>> write_onnx(pixels(digit), nn.Linear(64, 2), ["even", "odd"], 1.0, path)
    >>> json.loads(path.with_suffix(".json").read_text())["inputs"]
    [{'name': 'pixels', 'dtype': 'float32', 'shape': ['batch', 1, 8, 8]}]
    """
    _check_packages()
    if path.suffix != ".onnx":
        raise ConfigurationError(f"The name of an ONNX file ends with .onnx, but this is {path.name!r}.")
    if not (math.isfinite(temperature) and temperature > 0):
        raise ConfigurationError(f"The temperature must be a number above 0, but it is {temperature}.")
    entrance = _entrance(backbone)
    graph = _lowered(_Graph(entrance.network, score, temperature))
    if (size := sum(tensor.nbytes for tensor in graph.state_dict().values())) > _MOST_BYTES:
        raise ConfigurationError(f"An ONNX file holds at most 2 GB, but the weights of this model take {size / 1e9:.1f} GB.")
    with torch.no_grad():
        classes = graph(*entrance.example).shape[1]
    if classes != len(labels):
        raise ConfigurationError(f"The model has scores for {classes} classes, but there are {len(labels)} labels.")
    content = _graph_bytes(graph, entrance)
    told = {
        "labels": list(labels),
        "temperature": temperature,
        "inputs": entrance.inputs,
        "outputs": [{"name": "probabilities", "dtype": "float32", "shape": ["batch", classes]}],
        "preprocessing": entrance.preprocessing,
    }
    for name, text in entrance.files.items():
        write_atomically(path.with_name(name), text)
    write_atomically(path.with_suffix(".json"), json.dumps(told, indent=2, ensure_ascii=False) + "\n")
    write_atomically(path, content)


def write_card(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write ``folder/README.md``, the model card that the Hugging Face hub shows.

    Of ``facts`` the front matter takes ``license``, ``language``, ``pipeline_tag``, ``base_model``, ``datasets``,
    ``metrics`` and more ``tags``; ``name`` is the title, ``description`` the text, ``labels`` the list of classes. All
    else becomes rows of a table, in the order given. Errors: :class:`~latewood.core.errors.StorageError` if it can't be
    written.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> write_card(folder, {"name": "fruit", "license": "mit", "labels": ["apple", "pear"], "accuracy": 0.93})
    >>> print((folder / "README.md").read_text())
    ---
    library_name: "latewood"
    tags: ["latewood", "continual-learning"]
    license: "mit"
    ---
    <BLANKLINE>
    # fruit
    <BLANKLINE>
    A classifier trained incrementally with Latewood.
    <BLANKLINE>
    | | |
    | --- | --- |
    | accuracy | 0.93 |
    <BLANKLINE>
    ## Classes
    <BLANKLINE>
    - apple
    - pear
    <BLANKLINE>
    """
    front: dict[str, Any] = {"library_name": "latewood", "tags": ["latewood", "continual-learning", *facts.get("tags", ())]}
    front |= {name: facts[name] for name in _FRONT if facts.get(name)}
    # JSON is YAML too, and has no words that YAML would take for something else, such as the language "no".
    lines = ["---", *(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in front.items()), "---", ""]
    lines += [f"# {_line(facts.get('name', folder.resolve().name))}", ""]
    lines += [str(facts.get("description", "A classifier trained incrementally with Latewood.")), ""]
    told = {"name", "description", "labels", "tags", *_FRONT}
    if rows := [f"| {_cell(name)} | {_cell(value)} |" for name, value in facts.items() if name not in told]:
        lines += ["| | |", "| --- | --- |", *rows, ""]
    if labels := [f"- {_line(label)}" for label in facts.get("labels", ())]:
        lines += ["## Classes", "", *labels, ""]
    write_atomically(folder / "README.md", "\n".join(lines))


def push(folder: Path, name: str, token: str | None = None, private: bool = True) -> str:
    """Upload ``folder`` to the Hugging Face hub as the model ``name`` (``owner/model``), made if need be; its address.

    Without ``token`` it is the one of ``hf auth login``. ``private`` is for a model that is made; one that is there already
    stays as visible as it is. Errors: :class:`~latewood.core.errors.ConfigurationError` for a folder without files, a
    name that can't be, or a token that may not; :class:`~latewood.core.errors.StorageError` if the upload fails.
    """
    if not folder.is_dir() or not any(path.is_file() for path in folder.rglob("*")):
        raise ConfigurationError(f"There is nothing to upload in {folder}; right would be a folder with a model in it.")
    import huggingface_hub
    from huggingface_hub import errors

    try:
        api = huggingface_hub.HfApi(token=token)
        model = api.create_repo(name, private=private, repo_type="model", exist_ok=True)
        api.upload_folder(
            repo_id=model.repo_id,
            folder_path=folder,
            repo_type="model",
            commit_message="Upload from Latewood",
            ignore_patterns=[".*.tmp", "**/.*.tmp"],  # of a writer that was killed
        )
        return str(model)
    except errors.HFValidationError as error:
        raise ConfigurationError(f"{name!r} can't be a name on the hub: {first_line(error)}.") from None
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        raise (ConfigurationError(_refusal(name, status)) if status in (401, 403, 404) else _failed(name, error)) from None
    except Exception as error:  # of the network below: its errors have no common class over the versions of the library
        raise _failed(name, error) from None


def _refusal(name: str, status: int) -> str:
    remedy = "log in with `hf auth login`, or give a token that may write"
    if status == 401:
        return f"The hub does not know who uploads {name!r}: {remedy}."
    return f"The hub does not let this account write {name!r}: choose a name of your own, or {remedy}."


def _failed(name: str, error: Exception) -> StorageError:
    return StorageError(f"The upload of {name!r} to the hub failed ({first_line(error)}); the folder here is untouched.")


def _line(value: object) -> str:
    return " ".join(str(value).split())


def _cell(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
    return _line(text).replace("|", "\\|")


@dataclass(frozen=True)
class _Entrance:
    """The lower end of a graph: the network from its inputs on, two rows of these, and what is told of them."""

    network: nn.Module
    example: tuple[Tensor, ...]
    inputs: list[dict[str, Any]]
    axes: dict[int, Any]
    preprocessing: dict[str, Any]
    files: dict[str, str]


def _entrance(backbone: Backbone) -> _Entrance:
    if isinstance(backbone, SentenceBackbone):
        return _text_entrance(backbone)
    if isinstance(backbone, ImageBackbone):
        return _image_entrance(backbone)
    raise ConfigurationError(
        f"A {type(backbone).__name__} can't be written as ONNX; right would be a backbone of images or text."
    )


def _image_entrance(backbone: ImageBackbone) -> _Entrance:
    sized = backbone.resize(torch.zeros(1, *backbone.shape, device=backbone.mean.device))
    shape = tuple(sized.shape[1:])
    how: dict[str, Any] = {
        "scaling": "pixels in [0, 1]: bytes divided by 255",
        "size": list(shape[1:]),
        "normalisation": "in the graph",
    }
    if sizing := getattr(backbone, "sizing", None):
        # In this order, with a filter against aliasing, as the library PIL resizes.
        resizing = {name: value for name, value in sizing.config().items() if name in ("resize", "interpolation", "crop")}
        how["resizing"] = resizing
    inputs = [{"name": "pixels", "dtype": "float32", "shape": ["batch", *shape]}]
    example = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    axes = {0: torch.export.Dim("batch")}
    return _Entrance(_Pixels(backbone), (example,), inputs, axes, how, {})


def _text_entrance(backbone: SentenceBackbone) -> _Entrance:
    from tokenizers import Tokenizer

    tokenizer, most = backbone.tokenizer, backbone.settings["max_length"]
    tokens = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    if tokenizer.pad_token is not None:
        tokens.enable_padding(pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token)
    names = ("input_ids", "attention_mask")
    inputs = [{"name": name, "dtype": "int64", "shape": ["batch", "length"]} for name in names]
    how = {"tokenizer": "tokenizer.json", "max_length": most, "padding": "behind the text, to the longest of the batch"}
    example = backbone.prepare(Data(text=["some words to trace with", "and others"])).cpu()
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=most)}
    return _Entrance(
        _Tokens(backbone), tuple(example.unbind(1)), inputs, axes, how, {"tokenizer.json": tokens.to_str(pretty=True)}
    )


class _Pixels(nn.Module):
    def __init__(self, backbone: ImageBackbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.backbone((pixels - self.backbone.mean) / self.backbone.std)
        return features


class _Tokens(nn.Module):
    def __init__(self, backbone: SentenceBackbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.backbone.encode(input_ids, attention_mask)


class _Graph(nn.Module):
    def __init__(self, network: nn.Module, score: Callable[[Tensor], Tensor], temperature: float) -> None:
        super().__init__()
        self.network, self.score, self.temperature = network, score, temperature

    def forward(self, *inputs: Tensor) -> Tensor:
        return (self.score(self.network(*inputs)).float() / self.temperature).softmax(1)


def _lowered(graph: nn.Module) -> nn.Module:
    """A copy in float32 on the processor, in evaluation mode, that shares the tensors which are so already."""
    # Given to deepcopy as copies that are made already: `.float()` is what statistics in float64 do not listen to.
    ready: dict[int, Any] = {}
    for tensor in (*graph.parameters(), *graph.buffers()):
        lower = tensor.detach().cpu()
        lower = lower.float() if lower.is_floating_point() else lower
        ready[id(tensor)] = nn.Parameter(lower, requires_grad=False) if isinstance(tensor, nn.Parameter) else lower
    for module in graph.modules():
        if isinstance(module, SentenceBackbone):  # large, and no part of the graph
            ready |= {id(part): part for part in (module.tokenizer, module.tokenizer.backend_tokenizer)}
    return copy.deepcopy(graph, ready).eval()


def _graph_bytes(graph: nn.Module, entrance: _Entrance) -> bytes:
    try:
        with _quiet():
            program = torch.onnx.export(
                graph,
                entrance.example,
                dynamo=True,
                input_names=[told["name"] for told in entrance.inputs],
                output_names=["probabilities"],
                dynamic_shapes=(tuple(entrance.axes for _ in entrance.example),),
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # whatever the network does that ONNX has no word for
        raise ConfigurationError(f"This network can't be written as ONNX: {first_line(_root(error))}.") from None
    assert program is not None
    # Where a loop or a split runs over rows, tracing fixes their number without a word.
    shapes = [
        [axis.dim_param or axis.dim_value for axis in put.type.tensor_type.shape.dim] for put in program.model_proto.graph.input
    ]
    if shapes != [told["shape"] for told in entrance.inputs]:
        raise ConfigurationError(
            f"This network can't be written as ONNX: it takes inputs of {shapes[0]} and not {entrance.inputs[0]['shape']}, "
            "since what it computes depends on the number of rows; right would be one step for all of them."
        )
    content: bytes = program.model_proto.SerializeToString()
    return content


def _root(error: BaseException) -> BaseException:
    """The first cause: what comes after it says only in which step of the export it happened."""
    return _root(error.__cause__) if error.__cause__ else error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _check_packages() -> None:
    if absent := [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]:
        raise ConfigurationError(f"Writing ONNX needs the package {absent[0]}: `pip install latewood[onnx]` brings it.")
