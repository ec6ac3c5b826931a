"""The small vision transformer."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError, DataError
from latewood.images.nets import vit
from latewood.parts.backbone import Backbone, build_backbone


def photos(count: int = 4, channels: int = 3, side: int = 32) -> Data:
    chance = torch.Generator().manual_seed(0)
    return Data(image=torch.randint(256, (count, channels, side, side), dtype=torch.uint8, generator=chance))


@torch.no_grad()
def features(backbone: Backbone, data: Data) -> torch.Tensor:
    result: torch.Tensor = backbone.eval()(backbone.prepare(data))
    return result


def test_its_weights_are_as_many_as_it_says() -> None:
    assert sum(p.numel() for p in vit(photos(1)).parameters()) == 2_691_648


@pytest.mark.parametrize(("channels", "side", "patch"), [(1, 8, 4), (3, 32, 4), (1, 28, 7), (3, 64, 8)])
def test_features_of_images_of_many_sizes(channels: int, side: int, patch: int) -> None:
    data = photos(3, channels, side)
    backbone = vit(data[:1], width=12, depth=1, patch=patch)
    found = features(backbone, data)
    assert found.shape == (3, 12)
    assert found.isfinite().all()
    assert found.mean(1).abs().max() < 1e-4, "they come from behind a LayerNorm"


def test_it_takes_smaller_images_with_its_positions_interpolated() -> None:
    backbone = vit(photos(1), width=12, depth=1).eval()
    small = backbone.prepare(photos(2))[..., ::2, ::2]
    assert backbone(small).shape == (2, 12)
    positions = backbone.network.embeddings.position_embeddings
    backbone(small)[:, 0].sum().backward()
    assert positions.grad.abs().sum(-1)[0, 1:].min() > 0, "every position is trained by small images too"


def test_where_patches_are_matters() -> None:
    data = photos(1)
    backbone = vit(data, width=12, depth=1)
    moved = Data(image=data.tensor("image").roll(8, 3))
    assert not torch.allclose(features(backbone, data), features(backbone, moved), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "data", "error", "sentence"),
    [
        ({"patch": 5}, photos(1), DataError, "patches of 5x5 pixels, which images of 32x32 are not made of"),
        ({}, Data(image=torch.zeros(1, 3, 32, 16, dtype=torch.uint8)), DataError, "images of 32x16 are not made of"),
        ({"heads": 5}, photos(1), ConfigurationError, "5 does not divide 192"),
        ({"depth": 0}, photos(1), ConfigurationError, "depth of vit must be at least 1"),
        ({"normalise": "cifar11"}, photos(1), ConfigurationError, "did you mean 'cifar10'"),
        ({"augment": "turn"}, photos(1), ConfigurationError, "no augmentation 'turn'"),
    ],
)
def test_what_does_not_fit_gets_a_sentence(options: dict[str, Any], data: Data, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        vit(data, **options)


def test_its_configuration_builds_it_again() -> None:
    backbone = vit(photos(1), width=24, depth=1, heads=2, patch=8, augment="crop")
    settings = json.loads(json.dumps(backbone.config()))
    again = build_backbone(settings, "images", photos(1), lambda: "vit")
    again.load_state_dict(backbone.state_dict())
    assert torch.equal(features(again, photos()), features(backbone, photos()))
