"""Any pretrained vision network of the Hugging Face hub, by name or from a folder."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError
from latewood.core.registry import nearest
from latewood.images.nets._image import ImageBackbone
from latewood.images.nets._sizing import Sizing, read_sizing

_POOLINGS = ("auto", "cls", "mean", "pooler")
#: All that is ever read of a checkpoint. Other formats of weights can hold code, so they are not even downloaded.
_FILES = [
    *("config.json", "preprocessor_config.json", "processor_config.json"),
    *("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"),
]


def hub(
    example: Data,
    *,
    name: str,
    pooling: str = "auto",
    preprocessing: str | Mapping[str, Any] = "checkpoint",
    revision: str | None = None,
    local_only: bool = False,
    augment: str = "none",
) -> ImageBackbone:
    """A pretrained vision network: ViT, DINOv2, the image tower of CLIP or SigLIP, ResNet, ConvNeXt, Swin, …

    ``name`` is a name on the hub (``google/vit-base-patch16-224-in21k``) or a folder in the hub's format;
    ``revision`` a branch, tag or commit of it. ``local_only`` forbids to download what is not in the hub's local cache.
    Only weights as safetensors are loaded, in float32, by the library transformers; no code of a checkpoint is ever run.

    ``pooling`` makes features of shape ``(n, width)`` of the network's output: ``cls`` is the class token behind the last
    LayerNorm (not ViT's ``pooler_output``, which adds a tanh layer), ``mean`` the mean over patches or positions,
    ``pooler`` the network's own pooled output. ``auto`` is ``cls`` for networks with such a token (ViT, DINOv2, DeiT)
    and ``pooler`` for the others (CLIP: the class token behind its last LayerNorm, before the projection; ResNet,
    ConvNeXt, Swin: the average over positions).

    ``preprocessing`` is ``checkpoint`` (size, crop, interpolation and statistics of the checkpoint's image processor),
    ``unit`` (the same size and crop, but pixels stay in [0, 1], as several papers have it), or the numbers themselves,
    named as in :class:`~latewood.images.nets._sizing.Sizing`. Images are resized in whole batches on the device. Grey
    images become three equal channels. ``augment``, a name of :func:`latewood.images.augment.augmentation`, acts on the
    images as they arrive, before they are resized.

    The backbone comes in evaluation mode. Its ``config()`` holds the numbers of preprocessing and, from the hub, the
    commit that was loaded: given back to this function, it builds the same again even where the name has moved on.

    Errors: :class:`~latewood.core.errors.ConfigurationError` with one sentence if the checkpoint is not there, has no
    weights as safetensors, lacks weights of the network, is no vision network, or does not fit the settings.

    >>> import tempfile
    >>> from transformers import ViTConfig, ViTModel
    >>> folder = tempfile.mkdtemp()
    >>> tiny = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16)
    >>> ViTModel(tiny).save_pretrained(folder)
    >>> digits = Data(image=torch.zeros(5, 1, 8, 8, dtype=torch.uint8))
    >>> backbone = hub(digits[:1], name=folder, preprocessing="unit")
    >>> backbone(backbone.prepare(digits)).shape
    torch.Size([5, 8])
    >>> backbone.config()["pooling"], backbone.config()["preprocessing"]["resize"]
    ('cls', [16, 16])
    """
    if pooling not in _POOLINGS:
        raise ConfigurationError(f"There is no pooling {pooling!r}{nearest(pooling, _POOLINGS)}.")
    folder = _find(name, revision, local_only)
    _check_weights(name, folder)
    if pooling == "auto":
        pooling = "cls" if any(weight.endswith("cls_token") for weight in _weight_names(folder)) else "pooler"
    network = _load(name, folder, pooling)
    sizing = _sizing(name, folder, preprocessing, network.config)
    settings = {
        "name": name,
        "pooling": pooling,
        "preprocessing": sizing.config(),
        "revision": None if Path(name).expanduser().is_dir() else folder.name,
        "augment": augment,
    }
    return HubBackbone(example, settings, network, sizing)


class HubBackbone(ImageBackbone):
    """What :func:`hub` builds; ``network`` is the model of transformers."""

    def __init__(self, example: Data, settings: Mapping[str, Any], network: nn.Module, sizing: Sizing) -> None:
        # Folded, so that (pixels * scale - mean) / std costs no third pass over the images.
        mean, std = ([value / sizing.scale for value in values] for values in (sizing.mean, sizing.std))
        super().__init__(example, settings, augment=settings["augment"], mean=mean, std=std)
        self.network, self.sizing, self.pooling = network, sizing, settings["pooling"]
        self.extra_tokens = _extra_tokens(network)
        self.eval()
        self.width = self._probe(settings["name"])

    def resize(self, pixels: Tensor) -> Tensor:
        return self.sizing.apply(pixels)

    def forward(self, inputs: Tensor) -> Tensor:
        output = self.network(pixel_values=inputs)
        pooled: Tensor
        if self.pooling == "pooler":
            pooled = output.pooler_output.flatten(1)
        elif self.pooling == "cls":
            pooled = output.last_hidden_state[:, 0]
        else:
            states = output.last_hidden_state
            pooled = states.mean((2, 3)) if states.dim() == 4 else states[:, self.extra_tokens :].mean(1)
        return pooled

    @torch.no_grad()
    def _probe(self, name: str) -> int:
        """The number of features, found by one image; what the network can't do with it becomes one sentence."""
        inputs = self.preprocess(torch.zeros(1, *self.shape))
        try:
            return int(self(inputs).shape[1])
        except (ValueError, RuntimeError, AttributeError, IndexError) as error:
            size = "x".join(map(str, inputs.shape[1:]))
            reason = _first_line(error) if isinstance(error, ValueError | RuntimeError) else "it has no such output"
            raise ConfigurationError(
                f"The network {name!r} gives no features with pooling={self.pooling!r} of images that preprocessing "
                f"made {size}: {reason}."
            ) from None


def _find(name: str, revision: str | None, local_only: bool) -> Path:
    """The folder with the files of a checkpoint, downloaded into the hub's cache if need be."""
    path = Path(name).expanduser()
    if path.is_dir():
        if revision is not None:
            raise ConfigurationError(f"revision={revision!r} is for names on the hub, but {name!r} is a folder.")
        return path
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ConfigurationError(f"There is no folder {name!r}; {_EXPECTED}.")
    from huggingface_hub import errors, snapshot_download

    reasons = {
        errors.GatedRepoError: "its owner must grant access first: ask for it on its page and log in with `hf auth login`",
        errors.RepositoryNotFoundError: "the hub has no public checkpoint of that name",
        errors.RevisionNotFoundError: f"it has no revision {revision!r}",
        errors.HFValidationError: "that can't be a name on the hub",
    }
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_FILES, local_files_only=local_only))
    except (OSError, ValueError) as error:
        why = "local_only forbids to download it" if local_only else "the hub can't be reached from here"
        absent = f"it is not in the hub's local cache and {why}"
        reason = next((text for kind, text in reasons.items() if isinstance(error, kind)), absent)
        raise ConfigurationError(f"There is no folder {name!r}; taken as a name, {reason}; {_EXPECTED}.") from None


_EXPECTED = (
    "right would be a name such as 'google/vit-base-patch16-224-in21k', or a folder with config.json and model.safetensors"
)


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


def _weight_names(folder: Path) -> Iterator[str]:
    for file in _weight_files(folder):
        try:
            with safe_open(file, framework="pt") as weights:
                yield from weights.keys()
        except (OSError, SafetensorError) as error:
            raise ConfigurationError(f"{file} is damaged ({_first_line(error)}); download or copy it again.") from None


def _load(name: str, folder: Path, pooling: str) -> nn.Module:
    """The vision network of a checkpoint, in float32, with every weight read from it."""
    from transformers import MODEL_MAPPING, AutoConfig, AutoModel

    try:
        with _quiet():
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            # A model of images and text (CLIP, SigLIP) has a tower for images, with weights under the same names.
            config = getattr(config, "vision_config", config)
            kind: Any = MODEL_MAPPING.get(type(config), nn.Module)
            options: dict[str, Any] = {}
            if pooling != "pooler" and "add_pooling_layer" in inspect.signature(kind).parameters:
                options["add_pooling_layer"] = False
            network, report = AutoModel.from_pretrained(
                folder, config=config, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **options
            )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise ConfigurationError(f"transformers can't load {name!r}: {_first_line(error)}.") from None
    if network.main_input_name != "pixel_values":
        raise ConfigurationError(f"{name!r} is no vision network: it takes {network.main_input_name}, not images.")
    if missing := sorted(report["missing_keys"]):
        raise ConfigurationError(
            f"The checkpoint {name!r} lacks {len(missing)} weights of the network, {missing[0]} for one, which would "
            f"stay random; it can't be used{' with this pooling' if pooling == 'pooler' else ''}."
        )
    if network.config.model_type == "vit_mae":
        raise ConfigurationError(
            f"{name!r} is a masked autoencoder, which hides most of each image at random; "
            "right would be a network fine-tuned from it."
        )
    result: nn.Module = network.float()
    if pooling == "cls" and not any(weight.endswith("cls_token") for weight, _ in result.named_parameters()):
        raise ConfigurationError(f"{name!r} has no class token behind its last layer; use pooling='pooler' or 'mean'.")
    return result


def _sizing(name: str, folder: Path, preprocessing: str | Mapping[str, Any], config: Any) -> Sizing:
    if not isinstance(preprocessing, str):
        return Sizing.from_config(preprocessing)
    if preprocessing not in ("checkpoint", "unit"):
        hint = nearest(preprocessing, ("checkpoint", "unit"))
        raise ConfigurationError(f"There is no preprocessing {preprocessing!r}{hint}.")
    told = read_sizing(folder)
    if preprocessing == "checkpoint":
        if told is None:
            raise ConfigurationError(
                f"The checkpoint {name!r} has no preprocessor_config.json that says how to prepare images; "
                "use preprocessing='unit', or give the numbers yourself."
            )
        return told
    channels = getattr(config, "num_channels", 3)
    plain = Sizing(mean=(0.0,) * channels, std=(1.0,) * channels)
    if told is not None:
        return replace(plain, resize=told.resize, crop=told.crop, interpolation=told.interpolation)
    size = getattr(config, "image_size", 224)
    return replace(plain, resize=(size, size) if isinstance(size, int) else tuple(size))


def _extra_tokens(network: nn.Module) -> int:
    """How many tokens come before those of the patches."""
    single = ("cls_token", "class_embedding", "distillation_token")
    count = 0
    for weight, value in network.named_parameters():
        last = weight.rsplit(".", 1)[-1]
        count += 1 if last in single else value.shape[1] if last == "register_tokens" else 0
    return count


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
