"""The small vision transformer that comes with Latewood, trained."""

from __future__ import annotations

import hashlib
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError
from latewood.images import nets
from latewood.images.classes import choose
from latewood.images.datasets import load_images
from latewood.images.nets import pixels, vit_tiny_imagenet
from latewood.parts.backbone import Backbone, build_backbone
from latewood.parts.embedding import Encoder
from latewood.studies.assemble import make_learner, make_stream

EMBEDDED = Path(nets.__file__).parent / "vit_tiny_imagenet"


def photos(count: int = 4, channels: int = 3, side: int = 32) -> Data:
    chance = torch.Generator().manual_seed(0)
    return Data(image=torch.randint(256, (count, channels, side, side), dtype=torch.uint8, generator=chance))


@torch.no_grad()
def features(backbone: Backbone, data: Data) -> torch.Tensor:
    result: torch.Tensor = backbone.eval()(backbone.prepare(data))
    return result


def test_the_embedded_net_is_small_on_disk_and_whole_in_memory() -> None:
    assert (EMBEDDED / "model.safetensors").stat().st_size < 6_000_000
    assert {value.dtype for value in load_file(EMBEDDED / "model.safetensors").values()} == {torch.float16}
    assert {p.dtype for p in vit_tiny_imagenet(photos(1)).parameters()} == {torch.float32}


def test_the_embedded_net_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert build_backbone("vit-tiny-imagenet", "images", photos(1), lambda: "mlp").width == 192


def test_the_embedded_net_gives_the_same_bits_every_time() -> None:
    script = (
        "import torch, hashlib; torch.set_num_threads(1)\n"
        "from latewood.core.data import Data\n"
        "from latewood.images.nets import vit_tiny_imagenet\n"
        "data = Data(image=torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)))\n"
        "backbone = vit_tiny_imagenet(data[:1])\n"
        "print(hashlib.blake2b(backbone(backbone.prepare(data)).detach().numpy().tobytes()).hexdigest())"
    )
    here = features(vit_tiny_imagenet(photos(1)), photos())
    assert torch.equal(here, features(vit_tiny_imagenet(photos(1)), photos()))
    there = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    assert there == hashlib.blake2b(here.numpy().tobytes()).hexdigest()


def test_where_the_embedded_net_lies_is_no_part_of_what_it_is() -> None:
    backbone = vit_tiny_imagenet(photos(1))
    assert backbone.config() == {"name": "vit-tiny-imagenet", "pooling": "cls", "augment": "none"}
    again = build_backbone(backbone.config(), "images", photos(1), lambda: "mlp")
    assert Encoder(again).fingerprint == Encoder(backbone).fingerprint


def test_the_embedded_net_takes_grey_and_larger_images() -> None:
    grey = photos(2, channels=1, side=28)
    assert features(vit_tiny_imagenet(grey[:1]), grey).shape == (2, 192)
    large = photos(2, side=64)
    assert features(vit_tiny_imagenet(large[:1]), large).shape == (2, 192)
    mean = vit_tiny_imagenet(large[:1], pooling="mean")
    assert not torch.allclose(features(mean, large), features(vit_tiny_imagenet(large[:1]), large))


def test_the_embedded_net_tells_what_it_has_seen_and_how_good_it_is(real_data: Path) -> None:
    seen = vit_tiny_imagenet(photos(1)).seen
    names = load_images("tiny-imagenet-32").classes
    assert seen is not None
    assert seen.data == "tiny-imagenet-32"
    assert list(seen.classes) == [names[number] for number in choose("random:100", names)]
    card = (EMBEDDED / "README.md").read_text()
    assert "latewood pretrain vit --data tiny-imagenet-32 --classes random:100 --to vit-tiny-imagenet\n" in card
    stated = re.search(r"test images of its classes: \*\*(\d+\.\d)%\*\* \(chance: 1\.0%\)", card)
    assert stated is not None
    assert float(stated[1]) > 10


def test_the_embedded_net_tells_classes_apart_that_it_never_saw(real_data: Path) -> None:
    images = load_images("tiny-imagenet-32")
    unseen = images.subset(choose("unseen", images.classes)[:20])
    scores = {}
    for build in (pixels, vit_tiny_imagenet):
        train, test = unseen.train[::5], unseen.test[::4]
        backbone = build(train[:1])
        means = torch.stack([features(backbone, train[train.tensor("label") == label]).mean(0) for label in range(20)])
        found = torch.cdist(features(backbone, test), means).argmin(1)
        scores[build.__name__] = (found == test.tensor("label")).float().mean().item()
    assert scores["vit_tiny_imagenet"] > scores["pixels"] + 0.1


def test_the_embedded_net_is_refused_on_its_own_classes_and_taken_on_the_others(real_data: Path) -> None:
    everything = make_stream("split-tiny-imagenet-32")
    with pytest.raises(ConfigurationError, match="'vit-tiny-imagenet' was trained on 100 of the 200 classes"):
        make_learner("nmc", everything)
    unseen: Any = make_stream("split-tiny-imagenet-32", {"classes": "unseen"})
    assert len(unseen.class_names) == 100
    assert make_learner("nmc", unseen).config()["backbone"]["name"] == "vit-tiny-imagenet"


def test_a_small_colour_image_gets_the_embedded_net_where_it_stays_frozen() -> None:
    from latewood.images.learners.finetune import Finetune
    from latewood.images.learners.nmc import NMC
    from latewood.images.nets import default_backbone

    def photo(channels: int, side: int) -> Data:
        return Data(image=torch.zeros(1, channels, side, side, dtype=torch.uint8))

    assert default_backbone(NMC, photo(3, 32)) == default_backbone(NMC, photo(3, 64)) == "vit-tiny-imagenet"
    assert default_backbone(NMC, photo(1, 28)) == default_backbone(NMC, photo(3, 8)) == "pixels"
    assert default_backbone(NMC, photo(3, 224)) == "pixels"
    assert default_backbone(Finetune, photo(3, 32)) == "resnet32"


def test_methods_for_trained_backbones_get_one_where_there_is_one_and_weights_to_train_elsewhere() -> None:
    from latewood.images.learners.adam import ADAM
    from latewood.images.learners.slca import SLCA
    from latewood.images.nets import default_backbone

    small, digit = (Data(image=torch.zeros(1, *shape, dtype=torch.uint8)) for shape in ((3, 32, 32), (1, 8, 8)))
    for learner in (SLCA, ADAM):
        assert default_backbone(learner, small) == "vit-tiny-imagenet"
        assert default_backbone(learner, digit) == "mlp"
