"""Training augmentation of whole batches, on the device that holds them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latewood.core.errors import ConfigurationError
from latewood.core.registry import nearest

#: Each name, and the steps that it stands for in their order.
_STEPS = {
    "none": (),
    "crop": ("crop",),
    "crop-flip": ("crop", "flip"),
    "crop-flip-jitter": ("crop", "flip", "jitter"),
    "resized-crop-flip": ("resized-crop", "flip"),
    "resized-crop-flip-jitter": ("resized-crop", "flip", "jitter"),
    "contrastive": ("crop", "flip", "strong-jitter", "grey"),
    "trivial": ("crop", "flip", "trivial"),
}
_PADDING = 4
_JITTER = 63 / 255
#: Share of the area that a resized crop keeps, and its width against its height.
_AREA, _RATIO = (0.05, 1.0), (3 / 4, 4 / 3)


def augmentation(name: str, shape: tuple[int, ...]) -> nn.Module | None:
    """The augmentation called ``name`` for images of ``shape`` = (channels, height, width); ``None`` for ``"none"``.

    ``crop``: a random crop of the image padded by 4 black pixels (digits, characters). ``crop-flip``: that and a
    horizontal flip of every other image, the standard for CIFAR (He et al. 2016, section 4.2). ``crop-flip-jitter``: that
    and a brightness between 1 - 63/255 and 1 + 63/255, as in PyCIL (Zhou et al. 2023). ``resized-crop-flip`` and
    ``resized-crop-flip-jitter``: the same with a window of 5 to 100 % of the area instead, brought back to the image's size,
    as in PILOT (Sun et al. 2025) for pretrained backbones. ``contrastive``: crop, flip, in 4 of 5 images a jitter of
    brightness, contrast and saturation by 0.4, and every fifth colour image in grey (Asadi et al. 2023). ``trivial``: crop,
    flip and :class:`TrivialAugment`.

    The module maps float images in [0, 1], shape ``(n, channels, height, width)``, to the same shape and range. Every
    image gets its own draw, from torch's global CPU generator and nothing else: the same seed gives the same batch on
    every device. It holds no state, and it augments whenever it is called: whoever calls it decides when that is right.

    Errors: :class:`~latewood.core.errors.ConfigurationError` if there is no augmentation of that name.

    >>> crop = augmentation("crop", (1, 8, 8))
    >>> crop(torch.rand(5, 1, 8, 8)).shape
    torch.Size([5, 1, 8, 8])
    >>> augmentation("none", (1, 8, 8)) is None
    True
    """
    if name not in _STEPS:
        raise ConfigurationError(f"There is no augmentation {name!r}{nearest(name, _STEPS)}.")
    steps = [_step(step, shape) for step in _STEPS[name]]
    return nn.Sequential(*steps) if steps else None


def _step(name: str, shape: tuple[int, ...]) -> nn.Module:
    # Importing kornia takes over a second, which only those who augment should wait.
    from kornia.augmentation import ColorJitter, RandomCrop, RandomGrayscale, RandomHorizontalFlip, RandomResizedCrop

    made: dict[str, Callable[[], nn.Module]] = {
        "crop": lambda: RandomCrop((shape[1], shape[2]), padding=_PADDING),
        "resized-crop": lambda: RandomResizedCrop((shape[1], shape[2]), scale=_AREA, ratio=_RATIO),
        "flip": RandomHorizontalFlip,
        "jitter": lambda: ColorJitter(brightness=_JITTER),
        # What has one channel is grey and has no saturation.
        "strong-jitter": lambda: ColorJitter(0.4, 0.4, 0.4 if shape[0] == 3 else 0.0, p=0.8),
        "grey": lambda: RandomGrayscale(p=0.2) if shape[0] == 3 else nn.Identity(),
        "trivial": TrivialAugment,
    }
    return made[name]()


class TrivialAugment(nn.Module):
    """One random operation of random strength for each image (Müller & Hutter 2021, their "wide" space).

    Written here on kornia's functions, because kornia's own class of this name draws one operation for a whole batch
    and from a narrower space. Float images in [0, 1] of shape ``(n, 1 or 3, h, w)`` at least 3 pixels wide; shifts go up
    to 32 pixels, or to the size of a smaller image.

    >>> TrivialAugment()(torch.rand(5, 3, 16, 16)).shape
    torch.Size([5, 3, 16, 16])
    """

    operations = (
        *("identity", "auto-contrast", "equalize", "solarize", "posterize"),
        *("brightness", "colour", "contrast", "sharpness"),
        *("rotate", "shear-x", "shear-y", "shift-x", "shift-y"),
    )
    levels = 31

    def forward(self, images: Tensor) -> Tensor:
        chosen = torch.randint(len(self.operations), (len(images),))
        strength = torch.randint(self.levels, (len(images),)) / (self.levels - 1)
        sign = torch.randint(2, (len(images),)) * 2.0 - 1
        result = images.clone()
        for number in chosen.unique().tolist():
            rows = (chosen == number).nonzero().flatten()
            drawn = strength[rows].to(images), sign[rows].to(images)
            rows = rows.to(images.device)
            result[rows] = operate(self.operations[number], images[rows], *drawn)
        return result


def operate(operation: str, images: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    """One operation on each of these images; ``strength`` lies in [0, 1], ``sign`` is its direction."""
    from kornia import enhance

    factor = 1 + 0.99 * strength * sign
    match operation:
        case "identity":
            changed = images
        case "auto-contrast":
            low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
            changed = torch.where(high > low, (images - low) / (high - low).clamp_min(1e-6), images)
        case "equalize":
            changed = enhance.equalize(images)
        case "solarize":
            changed = enhance.solarize(images, 1 - strength)
        case "posterize":
            changed = enhance.posterize(images, (8 - 6 * strength).round().int())
        case "brightness":
            changed = enhance.adjust_brightness_accumulative(images, factor)
        case "colour":
            changed = enhance.adjust_saturation_with_gray_subtraction(images, factor)
        case "contrast":
            changed = enhance.adjust_contrast_with_mean_subtraction(images, factor)
        case "sharpness":
            changed = enhance.sharpness(images, factor)
        case _:
            changed = _warp(operation, images, strength * sign)
    return changed


def _warp(operation: str, images: Tensor, amount: Tensor) -> Tensor:
    """Rotate, shear or shift each image by its ``amount`` in [-1, 1] of the largest change; what comes in is black."""
    height, width = images.shape[2:]
    matrix = torch.eye(2, 3).to(images).repeat(len(images), 1, 1)
    match operation:
        case "rotate":
            angle = torch.deg2rad(135 * amount)
            matrix[:, 0, 0] = matrix[:, 1, 1] = angle.cos()
            # Coordinates run from -1 to 1 along both sides, so a rotation of an oblong image must be stretched back.
            matrix[:, 0, 1], matrix[:, 1, 0] = -angle.sin() * height / width, angle.sin() * width / height
        case "shear-x":
            matrix[:, 0, 1] = 0.99 * amount * height / width
        case "shear-y":
            matrix[:, 1, 0] = 0.99 * amount * width / height
        case "shift-x":
            matrix[:, 0, 2] = amount * min(32, width) * 2 / width
        case "shift-y":
            matrix[:, 1, 2] = amount * min(32, height) * 2 / height
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="nearest", align_corners=False)
