"""One cell of a row: the name of a class, a text, or an image, whatever type it came as."""

from __future__ import annotations

import hashlib
import math
import stat
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latewood.core.errors import DataError
from latewood.images.datasets.decoding import pixels_of, pixels_of_image
from latewood.model._table import UnusableError
from latewood.parts.pretrained import first_line

if TYPE_CHECKING:
    from PIL.Image import Image

_LONGEST_LABEL = 200


def label_of(value: Any, names: tuple[str, ...] = ()) -> str:
    """The class that a cell names: trimmed, composed (NFC), whole numbers as such; ``names`` are those of integers.

    Errors: :class:`~latewood.model._table.UnusableError` if it names none.

    >>> label_of(" oak "), label_of(3), label_of(3.0), label_of(1, ("ash", "oak"))
    ('oak', '3', '3', 'oak')
    """
    if getattr(value, "ndim", None) == 0:  # one number of an array or tensor
        value = value.item()
    if names and isinstance(value, Integral):
        # The hub's convention for labels that are kept secret is -1.
        number = int(value)
        if number == -1:
            raise UnusableError("has no label (it is -1)")
        if not 0 <= number < len(names):
            raise UnusableError(f"has the label {number}, but the classes are numbered from 0 to {len(names) - 1}")
        value = names[number]
    text = unicodedata.normalize("NFC", _label_text(value)).strip()
    if not text or text.casefold() == "nan":
        raise UnusableError("has no label" + (f" (it is {text})" if text else ""))
    if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in text):
        raise UnusableError(f"has a label with a control character ({text[:40]!a}), which no class may have")
    if len(text) > _LONGEST_LABEL:
        raise UnusableError(f"has a label of {len(text)} characters, but a class has at most {_LONGEST_LABEL}")
    return text


def _label_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, Integral):
        return str(value)
    if not isinstance(value, Real):
        raise UnusableError(f"has a label of type {type(value).__name__}, but labels are texts or whole numbers")
    number = float(value)
    if not math.isnan(number) and not number.is_integer():
        raise UnusableError(f"has the label {number}, but labels are texts or whole numbers")
    return "nan" if math.isnan(number) else str(int(number))


def text_of(cell: Any) -> str:
    """The text in a cell, as it is.

    Errors: :class:`~latewood.model._table.UnusableError` if there is none.
    """
    if not isinstance(cell, str):
        raise UnusableError("has no text" if cell is None else f"has a text of type {type(cell).__name__}")
    if not cell.strip():
        raise UnusableError("has an empty text")
    try:
        cell.encode()
    except UnicodeEncodeError:
        raise UnusableError("has a text with half a character (a lone surrogate), which UTF-8 cannot write") from None
    return cell


@dataclass(frozen=True)
class Sizing:
    """What images are brought to: ``channels`` x ``size`` x ``size``, and with how many pixels they are not even decoded."""

    size: int
    channels: int
    most_pixels: int

    def image(self, content: bytes | Image) -> NDArray[np.uint8]:
        """The pixels ``(channels, size, size)`` of a file's bytes or of an image in memory.

        Errors: :class:`~latewood.model._table.UnusableError` if it cannot be decoded.
        """
        try:
            if isinstance(content, bytes):
                pixels = pixels_of({"bytes": content}, self.size, "", self.most_pixels)
            else:
                pixels = pixels_of_image(content, self.size, "", self.most_pixels)
        except DataError as error:
            raise UnusableError(str(error).strip().rstrip(".")) from error
        if pixels.ndim == 3 and self.channels == 1:
            from PIL import Image

            pixels = np.asarray(Image.fromarray(pixels).convert("L"))
        return np.repeat(pixels[None], self.channels, 0) if pixels.ndim == 2 else pixels.transpose(2, 0, 1)

    def stacked(self, images: list[NDArray[np.uint8]]) -> Tensor:
        """Uint8 ``(n, channels, size, size)``, also of no images."""
        empty = np.empty((0, self.channels, self.size, self.size), np.uint8)
        return torch.from_numpy(np.stack(images) if images else empty)


def image_content(cell: Any, folder: Path | None) -> bytes | Image:
    """The bytes of the file that a cell holds or names, or the image that it is; paths in texts lie within ``folder``.

    Errors: :class:`~latewood.model._table.UnusableError` if there is no image.
    """
    if isinstance(cell, Mapping):
        cell = cell.get("path") if cell.get("bytes") is None else cell["bytes"]
    if isinstance(cell, str) and cell and folder is not None:
        cell = _bytes_of(_within(folder, cell), f"names {cell!r}, which ")
    if isinstance(cell, Path):
        cell = _bytes_of(cell)
    if isinstance(cell, bytes | bytearray | memoryview):
        if not cell:
            raise UnusableError("is empty")
        return bytes(cell)
    if cell is None or (isinstance(cell, str) and not cell):
        raise UnusableError("has no image")
    return _in_memory(cell)


def hash_of(content: str | bytes | Image) -> bytes:
    """16 bytes that tell contents apart: of a text in UTF-8, a file, or pixels with their mode and size."""
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(content, str | bytes):
        digest.update(content.encode() if isinstance(content, str) else content)
    else:
        digest.update(f"{content.mode} {content.size};".encode() + content.tobytes())
    return digest.digest()


def _within(folder: Path, name: str) -> Path:
    try:
        path = (folder / name).resolve()
    except (OSError, ValueError, RuntimeError):
        raise UnusableError(f"names {name[:200]!a}, which is no path") from None
    if not path.is_relative_to(folder.resolve()):
        raise UnusableError(f"names {name!r}, which lies outside the folder of the file")
    return path


def _bytes_of(path: Path, named: str = "") -> bytes:
    try:
        # Opening a pipe would wait for ever.
        if stat.S_ISREG(path.stat().st_mode):
            return path.read_bytes()
    except OSError as error:
        raise UnusableError(f"{named}cannot be read: {error.strerror}") from error
    raise UnusableError(f"{named}is not a file")


def _in_memory(value: Any) -> Image:
    from PIL import Image

    if isinstance(value, Image.Image):
        try:
            return value.copy()
        except Exception as error:  # of a file that is only decoded now, as many types as there are decoders
            raise UnusableError(f"cannot be decoded as an image: {first_line(error)}") from error
    if not isinstance(value, np.ndarray | Tensor):
        raise UnusableError(f"has an image of type {type(value).__name__}")
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
    if array.dtype != np.uint8:
        raise UnusableError(f"has pixels of type {array.dtype}, but they must be uint8, from 0 to 255")
    if array.ndim == 3:
        # (channels, height, width) is the custom of tensors, (height, width, channels) that of arrays.
        first, last = array.shape[0] in (1, 3), array.shape[2] in (1, 3, 4)
        if first and (isinstance(value, Tensor) or not last):
            array = array.transpose(1, 2, 0)
        array = array[:, :, 0] if array.shape[2] == 1 else array
    if (array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (3, 4))) or array.size == 0:
        raise UnusableError(f"has the shape {tuple(value.shape)}, which no image has")
    return Image.fromarray(np.ascontiguousarray(array))
