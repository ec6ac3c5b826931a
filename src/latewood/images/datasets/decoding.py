"""From encoded images to pixels: each decoded once, with all cores, straight to where it stays."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latewood.core.errors import DataError
from latewood.core.progress import current_progress
from latewood.images.datasets.parts import Part

if TYPE_CHECKING:
    from PIL.Image import Image

#: What is decoded, of all that Pillow knows: EPS, for instance, would start Ghostscript on whatever arrives.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_GREY_MODES = ("1", "L", "LA", "La")
_PIECES_PER_CORE = 4


def decode(
    parts: Sequence[Part],
    places: NDArray[np.int64],
    size: int | None,
    allocate: Callable[[tuple[int, int, int, int]], NDArray[np.uint8]],
) -> NDArray[np.uint8]:
    """All images of ``parts`` as uint8 ``(n, channels, height, width)`` in memory given by ``allocate``; the ``k``-th image
    becomes row ``places[k]``. One channel if every image is grey, else three.

    Errors: :class:`~latewood.core.errors.DataError` for an image that cannot be decoded or has another size.
    """
    first, height, width = shape_of_first(parts, size)
    for channels in range(first, 4, 2):
        images = allocate((len(places), channels, height, width))
        if _fill(images, parts, places, size):
            break
    return images


def shape_of_first(parts: Sequence[Part], size: int | None) -> tuple[int, int, int]:
    """Channels, height and width of the first image."""
    pixels = pixels_of(next(parts[0].cells())[0], size, parts[0].row(0))
    return (3 if pixels.ndim == 3 else 1), *pixels.shape[:2]


@cache
def formats() -> tuple[str, ...]:
    """The formats that are decoded, by Pillow's names; the newest only where Pillow was built with them."""
    from PIL import Image

    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def pixels_of(
    cell: Mapping[str, Any] | None, size: int | None, where: str, most_pixels: int | None = None
) -> NDArray[np.uint8]:
    """One image, ``(height, width)`` if it is grey, ``(height, width, 3)`` in colour, brought to ``size`` if that is given.

    ``cell`` has the ``bytes`` of a file or the ``path`` to one. Errors: :class:`~latewood.core.errors.DataError`, a sentence
    about ``where``, if there is no image, it cannot be decoded, or (told by its header alone, before anything is decoded)
    it has more than ``most_pixels``, or would have while it is scaled.
    """
    from PIL import Image

    encoded, path = (cell.get("bytes"), cell.get("path")) if cell else (None, None)
    source = path or "" if encoded is None else BytesIO(encoded)
    where = f"{where} ({path})" if path else where
    if not source:
        raise DataError(f"{where} holds no image; remove that row.")
    try:
        with Image.open(source, formats=formats()) as image:
            return pixels_of_image(image, size, where, most_pixels)
    except DataError:
        raise
    except Exception as error:  # damaged bytes make Pillow's decoders raise exceptions of many types
        raise DataError(f"{where} cannot be decoded as an image: {_reason(error)}.") from error


def pixels_of_image(image: Image, size: int | None, where: str, most_pixels: int | None = None) -> NDArray[np.uint8]:
    """:func:`pixels_of` an image that Pillow has opened; it is turned upright in place."""
    from PIL import ImageOps

    if image.mode.startswith(("I", "F")):
        raise DataError(f"{where} has more than 8 bits for each pixel (mode {image.mode}); save it with 8 bits.")
    if most_pixels is not None:
        _check_pixels(image.size, size, where, most_pixels)
    grey = image.mode in _GREY_MODES
    ImageOps.exif_transpose(image, in_place=True)
    pixels = image.convert("L" if grey else "RGB")
    return np.asarray(pixels if size is None else fitted(pixels, size))


def fitted(image: Image, size: int) -> Image:
    """The image scaled (bilinear, antialiased) until its shorter side has ``size`` pixels, and its centre cut out."""
    from PIL.Image import Resampling

    width, height = (max(size, round(side * size / min(image.size))) for side in image.size)
    image = image.resize((width, height), Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _fill(images: NDArray[np.uint8], parts: Sequence[Part], places: NDArray[np.int64], size: int | None) -> bool:
    """Whether the channels were enough: false as soon as an image in colour meets room for a grey one."""

    def put(piece: list[tuple[int, str, Mapping[str, Any]]]) -> bool:
        for place, where, cell in piece:
            pixels = pixels_of(cell, size, where)
            if pixels.shape[:2] != images.shape[2:]:
                raise DataError(_two_sizes(where, pixels.shape, images.shape[2:]))
            if pixels.ndim == 3 and images.shape[1] == 1:
                return False
            images[place] = pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        return True

    progress, done = current_progress(), 0
    progress.phase("decoding images", len(places))
    cores = os.cpu_count() or 1
    with ThreadPoolExecutor(cores) as pool:
        for part in parts:
            row = 0
            for cells in part.cells():
                jobs = [(int(places[done + k]), part.row(row + k), cell) for k, cell in enumerate(cells)]
                length = -(-len(jobs) // (cores * _PIECES_PER_CORE))
                if not all(pool.map(put, [jobs[start : start + length] for start in range(0, len(jobs), length)])):
                    return False
                row, done = row + len(cells), done + len(cells)
                for _ in cells:
                    progress.step()
    return True


def _check_pixels(sides: tuple[int, int], size: int | None, where: str, most: int) -> None:
    """A narrow image has few pixels, but many more once its shorter side is ``size``: both are counted."""
    short, long = sorted(sides)
    scaled = size * size * long // max(1, short) if size else 0
    if max(short * long, scaled) > most:
        raise DataError(
            f"{where} has {sides[0]}x{sides[1]} pixels, more than can be decoded and scaled within {most:,} pixels; "
            "crop it or make it smaller."
        )


def _reason(error: Exception) -> str:
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, Image.DecompressionBombError):
        return "its header tells of more pixels than a photo has"
    return "it is damaged or in no known format" if isinstance(error, UnidentifiedImageError) else str(error).rstrip(".")


def _two_sizes(where: str, shape: Sequence[int], expected: Sequence[int]) -> str:
    return (
        f"{where} has {shape[1]}x{shape[0]} pixels but the first image has {expected[1]}x{expected[0]}; "
        f"give size=, for instance size={min(expected)}, to bring all images to one size."
    )
