"""How a published network wants its images: size, crop, interpolation and statistics, as plain numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from latewood.core.errors import ConfigurationError
from latewood.core.registry import nearest

#: The interpolations of a checkpoint's image processor, which are numbered as in the library PIL, by torch's names.
_INTERPOLATIONS = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}
#: Image processors for which a single number as size means the shorter edge; for all others it means a square.
_BY_SHORTER_EDGE = ("CLIP", "ChineseCLIP", "ConvNext", "Bit")
#: Settings of rare image processors whose effect can't be had from size, crop, scale and statistics alone.
_UNKNOWN = ("rescale_offset", "include_top", "do_thumbnail", "do_align_long_axis")


@dataclass(frozen=True)
class Sizing:
    """The way from pixels in [0, 1] to a network's input, on whole batches and any device.

    ``resize``: the new (height, width), or one number for the shorter edge, or ``None``. ``crop``: the (height, width) of
    the centre that is kept. ``interpolation``: ``bilinear``, ``bicubic`` (both with a filter against aliasing, as PIL
    does it) or ``nearest-exact``. The input is then ``(pixels * scale - mean) / std``.

    >>> import torch
    >>> Sizing(resize=256, crop=(224, 224)).apply(torch.rand(2, 3, 64, 32)).shape
    torch.Size([2, 3, 224, 224])
    """

    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    interpolation: str = "bicubic"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    def config(self) -> dict[str, Any]:
        """These numbers, in a form that JSON can hold."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Sizing:
        """What :meth:`config` described. Errors: ConfigurationError for other names, or values that do not fit."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(config) - known):
            raise ConfigurationError(f"Preprocessing has no number {unknown[0]!r} (there are: {', '.join(sorted(known))}).")
        numbers: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}
        sizing = cls(**numbers)
        if sizing.interpolation not in _INTERPOLATIONS.values():
            hint = nearest(str(sizing.interpolation), _INTERPOLATIONS.values())
            raise ConfigurationError(f"There is no interpolation {sizing.interpolation!r}{hint}.")
        if len(sizing.mean) != len(sizing.std):
            raise ConfigurationError(f"Preprocessing needs as many std as mean, not {len(sizing.std)} and {len(sizing.mean)}.")
        return sizing

    def apply(self, pixels: Tensor) -> Tensor:
        """Resized and cropped pixels, still in [0, 1]."""
        height, width = self._new_size(pixels.shape[2], pixels.shape[3])
        # First the width, then the height, as PIL does it: bicubic interpolation overshoots at edges, and bytes saturate
        # after each direction. In one go, sharp edges would come out up to a tenth of the range away from PIL's.
        for size in ((pixels.shape[2], width), (height, width)):
            if size != tuple(pixels.shape[2:]):
                smooth = self.interpolation != "nearest-exact"
                pixels = F.interpolate(pixels, size, mode=self.interpolation, antialias=smooth).clamp(0, 1)
        return _centre(pixels, self.crop) if self.crop else pixels

    def _new_size(self, height: int, width: int) -> tuple[int, int]:
        if self.resize is None:
            return height, width
        if isinstance(self.resize, tuple):
            return self.resize
        longer = int(self.resize * max(height, width) / min(height, width))
        return (longer, self.resize) if height > width else (self.resize, longer)


def read_sizing(folder: Path) -> Sizing | None:
    """What a checkpoint's ``preprocessor_config.json`` (or ``processor_config.json``) says; ``None`` without such a file.

    The file is read as numbers, in its old form (size 224) and its new one (size {"shortest_edge": 224}), without making
    the image processor that it describes, which may need torchvision. Errors: ConfigurationError if it asks for what
    :class:`Sizing` can't do.
    """
    told = _read_processor(folder)
    if told is None:
        return None
    if odd := next((name for name in _UNKNOWN if told.get(name)), None):
        raise ConfigurationError(f"The image processor in {folder} uses {odd!r}, which is not supported; {_REMEDY}.")
    resize, crop = _sizes(told, folder)
    resample = told.get("resample", 2 if _kind(told).startswith("ViT") else 3)
    if resize is not None and resample not in _INTERPOLATIONS:
        raise ConfigurationError(f"The image processor in {folder} resizes with PIL's filter {resample}; {_REMEDY}.")
    numbers: dict[str, Any] = {"resize": resize, "crop": crop, "interpolation": _INTERPOLATIONS.get(resample, "bicubic")}
    if told.get("do_normalize", True):
        if "image_mean" not in told or "image_std" not in told:
            raise ConfigurationError(f"The image processor in {folder} does not name image_mean and image_std; {_REMEDY}.")
        numbers |= {"mean": tuple(told["image_mean"]), "std": tuple(told["image_std"])}
    factor = told.get("rescale_factor", 1 / 255) if told.get("do_rescale", True) else 1.0
    # Written with 17 digits or fewer, the factor times 255 may miss 1 by a last bit that means nothing.
    return Sizing(**numbers, scale=round(factor * 255, 12))


_REMEDY = (
    "give the numbers yourself, for instance preprocessing={'resize': 256, 'crop': [224, 224], "
    "'mean': [0.5, 0.5, 0.5], 'std': [0.5, 0.5, 0.5]}"
)


def _read_processor(folder: Path) -> dict[str, Any] | None:
    for name in ("processor_config.json", "preprocessor_config.json"):
        try:
            told = json.loads((folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except ValueError as error:
            raise ConfigurationError(f"{folder / name} is not valid JSON ({error}).") from error
        # The newer file may hold the image processor as a part, or only what concerns text.
        told = told.get("image_processor") if name == "processor_config.json" else told
        if isinstance(told, dict):
            return {setting: value for setting, value in told.items() if value is not None}
    return None


def _sizes(told: Mapping[str, Any], folder: Path) -> tuple[int | tuple[int, int] | None, tuple[int, int] | None]:
    """The values of ``resize`` and ``crop``."""
    size = told.get("size", 224)
    kind = _kind(told)
    cropping = told.get("do_center_crop", False)
    crop = _pair(told.get("crop_size", size)) if cropping else None
    if cropping and crop is None:
        raise ConfigurationError(f"The image processor in {folder} has an unknown crop_size {told['crop_size']!r}; {_REMEDY}.")
    if not told.get("do_resize", True):
        return None, crop
    edge = size.get("shortest_edge") if isinstance(size, dict) and "longest_edge" not in size else None
    if isinstance(size, int) and kind.startswith(_BY_SHORTER_EDGE):
        edge = size
    share = told.get("crop_pct") or (224 / 256 if kind.startswith("ConvNext") else None)
    if edge and share:
        # ConvNeXt's rule (ResNet checkpoints use it too): small inputs are cut out of a larger image, large ones squeezed.
        return (int(edge / share), (edge, edge)) if edge < 384 else ((edge, edge), None)
    resize = edge or _pair(size)
    if resize is None:
        raise ConfigurationError(f"The image processor in {folder} has an unknown size {size!r}; {_REMEDY}.")
    return resize, crop


def _kind(told: Mapping[str, Any]) -> str:
    return str(told.get("image_processor_type") or told.get("feature_extractor_type") or "ViT")


def _pair(size: object) -> tuple[int, int] | None:
    if isinstance(size, int):
        return size, size
    if isinstance(size, dict) and size.keys() >= {"height", "width"}:
        return size["height"], size["width"]
    return None


def _centre(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """The centre of this size; an image that is smaller gets a black frame."""
    (height, width), (new_height, new_width) = pixels.shape[2:], size
    left, top = (width - new_width) // 2, (height - new_height) // 2
    return F.pad(pixels, (-left, new_width - width + left, -top, new_height - height + top))
