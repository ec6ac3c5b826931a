"""Encoders for claim checks: a small net trained on base classes, frozen, met by a stream of classes that it never saw."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from latewood.core import checkpoint
from latewood.core.data import Data
from latewood.core.errors import CheckpointError
from latewood.core.experience import Experience
from latewood.core.files import cache_folder
from latewood.core.recipe import Recipe
from latewood.core.seeding import seeded
from latewood.images.datasets import ImageData, load_images
from latewood.images.learners.finetune import Finetune
from latewood.images.nets.resnet32 import resnet32
from latewood.parts.backbone import Backbone
from latewood.parts.embedding import Encoder
from latewood.parts.features import Embedded


@dataclass(frozen=True)
class Setting:
    """A data set cut in two: base classes for the encoder, the others for streams."""

    dataset: str
    base: int
    epochs: int
    size: int | None = None

    def base_images(self) -> ImageData:
        """The first ``base`` classes of a fixed permutation."""
        return self._part(slice(None, self.base))

    def unseen_images(self, most: int | None = None) -> ImageData:
        """The classes that the encoder never saw, numbered from 0; at ``most`` so many training images of each.

        Fewer images are for methods that train the encoder on, which would otherwise take hours on a processor.
        """
        images = self._part(slice(self.base, None))
        return images if most is None else images.few(most)

    def _part(self, part: slice) -> ImageData:
        images = load_images(self.dataset, size=self.size)
        order = torch.randperm(len(images.classes), generator=torch.Generator().manual_seed(0))
        return images.subset(sorted(order[part].tolist()))


#: Characters of 8 alphabets: an encoder trained on 142 of them, 100 unseen ones with 15 training drawings each.
OMNIGLOT = Setting("omniglot-small", base=142, epochs=30, size=32)


def untrained(setting: Setting, seed: int) -> Backbone:
    """The encoder's architecture with random weights."""
    with seeded(seed, "encoder"):
        return resnet32(setting.unseen_images().train[:1], augment="crop")


def trained(setting: Setting) -> Backbone:
    """The encoder trained on the base classes by cross-entropy (bfloat16, SGD, cosine); minutes the first time, then kept.

    Its weights lie in ``LATEWOOD_CACHE`` under a name made of the setting, so that all checks share one training.
    """
    backbone = untrained(setting, seed=0)
    base = setting.base_images()
    facts = (setting, base.train.fingerprint(), torch.__version__)
    name = hashlib.blake2b(repr(facts).encode(), digest_size=12).hexdigest()
    folder = cache_folder("encoders")
    if folder:
        try:
            backbone.load_state_dict(checkpoint.load(folder / name)[0])
            return backbone.eval()
        except CheckpointError:
            pass  # not trained yet
    recipe = Recipe(
        epochs=setting.epochs,
        batch_size=64,
        lr=0.1,
        weight_decay=5e-4,
        schedule="cosine",
        warmup=0.05,
        precision="bfloat16",
    )
    Finetune(backbone, recipe=recipe).learn(Experience(0, base.train, tuple(range(setting.base))))
    if folder and not (folder / name).exists():
        checkpoint.save(folder / name, checkpoint.tensors_of(backbone), {"setting": repr(setting)})
    return backbone.eval()


def embedded(backbone: Backbone, images: ImageData) -> tuple[Embedded, ImageData]:
    """The features of a frozen backbone in place of the images: what trains a head on them need not compute them again."""
    encoder = Encoder(backbone)
    train, test = (Data(features=encoder(part), label=part["label"]) for part in (images.train, images.test))
    return Embedded(backbone.width), replace(images, train=train, test=test)


def percent(values: Sequence[float]) -> float:
    """The mean of accuracies, in percent."""
    return 100 * sum(values) / len(values)
