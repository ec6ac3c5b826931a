"""For claims that train a pretrained encoder on: fresh copies of it, and a few images of classes that it never saw."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

from latewood.core.data import Data
from latewood.images.classes import choose
from latewood.images.datasets import ImageData, load_images
from latewood.images.nets.vit_tiny_imagenet import vit_tiny_imagenet
from latewood.papers import _encoders as encoders
from latewood.parts.backbone import Backbone

#: What the encoders are, for the sentences of claims.
ENCODERS = {
    "omniglot-small": f"a ResNet-32 trained on {encoders.OMNIGLOT.base} others",
    "tiny-imagenet-32": "a small transformer trained on the 100 others",
}


#: Test images of each class of Tiny ImageNet where an encoder is trained on: no cache helps to score it after each arrival.
TESTED = 10


def encoder_and_unseen(dataset: str, most: int | None = None) -> tuple[Callable[[], Backbone], ImageData]:
    """A maker of equal encoders, and 100 unseen classes with at ``most`` so many training images each.

    With ``most``, at most :data:`TESTED` test images of each class are left too.

    ``omniglot-small``: a ResNet-32 of the other 142 characters. ``tiny-imagenet-32``: the backbone that comes with Latewood.
    """
    if dataset == "omniglot-small":
        encoder, images = encoders.trained(encoders.OMNIGLOT), encoders.OMNIGLOT.unseen_images(most)
        return lambda: copy.deepcopy(encoder), images
    everything = load_images(dataset)
    unseen = everything.subset(choose("unseen", everything.classes))
    few = unseen if most is None else unseen.few(most, TESTED)
    return lambda: vit_tiny_imagenet(few.train[:1], augment="crop-flip"), few


def shifted(images: ImageData, shift: str) -> ImageData:
    """The images with pixels inverted, or with their left and right halves swapped."""

    def moved(part: Data) -> Data:
        pixels = part.tensor("image")
        changed = 255 - pixels if shift == "inverted" else pixels.roll(pixels.shape[3] // 2, 3)
        return Data(image=changed, label=part["label"])

    return replace(images, train=moved(images.train), test=moved(images.test)) if shift else images
