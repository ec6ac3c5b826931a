"""Backbones for images: each maps the column ``image`` to features, with the preprocessing that belongs to it."""

from latewood.core.data import Data
from latewood.core.learner import Learner
from latewood.images.nets.cct import cct
from latewood.images.nets.hub import hub
from latewood.images.nets.mlp import mlp
from latewood.images.nets.pixels import pixels
from latewood.images.nets.resnet18 import resnet18
from latewood.images.nets.resnet32 import resnet32
from latewood.images.nets.trained import trained
from latewood.images.nets.vit import vit
from latewood.images.nets.vit_tiny_imagenet import vit_tiny_imagenet

__all__ = [
    "cct",
    "default_backbone",
    "hub",
    "mlp",
    "pixels",
    "pretrained",
    "resnet18",
    "resnet32",
    "trained",
    "vit",
    "vit_tiny_imagenet",
]


def pretrained(example: Data) -> str:
    """The net that takes the name of a checkpoint on a hub, or a folder in a hub's form."""
    return "hub"


def default_backbone(learner: type[Learner], example: Data) -> str:
    """The net for a learner that is not told which: the first that it ``prefers`` and that suits the images.

    Of these the trained transformer suits small colour images, the others all. A learner that prefers none, or none that
    suits, gets one for the images' size with random weights.
    """
    channels, *sides = example.tensor("image").shape[1:]
    side = max(sides)
    preferred: tuple[str, ...] = getattr(learner, "prefers", ())
    for name in preferred:
        if name != "vit-tiny-imagenet" or (channels == 3 and 16 < side <= 64):
            return name
    return "mlp" if side <= 16 else "resnet32" if side <= 48 else "resnet18"
