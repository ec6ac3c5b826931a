"""A pretrained network that was saved is the same network again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from latewood.core.data import Data
from latewood.core.errors import StorageError
from latewood.images.nets import hub
from latewood.images.nets.hub import HubBackbone

Images = Callable[..., Data]


def features(backbone: HubBackbone, data: Data) -> Tensor:
    with torch.no_grad():
        return backbone(backbone.prepare(data))


def built(data: Data, **settings: Any) -> HubBackbone:
    backbone = hub(data[:1], **settings)
    assert isinstance(backbone, HubBackbone)
    return backbone


@pytest.mark.parametrize("pooling", ["auto", "mean", "pooler"])
@pytest.mark.parametrize("kind", ["vit", "dinov2", "clip", "resnet"])
def test_a_saved_folder_gives_the_same_bits_after_training(
    kind: str, pooling: str, checkpoints: Path, tmp_path: Path, images: Images, capfd: pytest.CaptureFixture[str]
) -> None:
    data = images(3, 3, 40, 32)
    first = built(data, name=str(checkpoints / kind), pooling=pooling)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.mul_(1.01)
    capfd.readouterr()
    first.save(tmp_path / "saved")
    assert capfd.readouterr() == ("", "")
    assert [file.name for file in tmp_path.iterdir()] == ["saved"]
    assert not torch.equal(features(first, data), features(built(data, name=str(checkpoints / kind), pooling=pooling), data))
    rest = first.config() | {"name": str(tmp_path / "saved"), "revision": None}
    assert torch.equal(features(first, data), features(built(data, **json.loads(json.dumps(rest))), data))


@pytest.mark.parametrize(
    "preprocessing",
    [
        "checkpoint",
        "unit",
        {"resize": 230, "crop": [224, 224], "interpolation": "bilinear", "mean": [0.4] * 3, "std": [0.3] * 3},
        {"resize": [224, 224], "interpolation": "nearest-exact", "scale": 255.0},
        {"crop": [224, 224], "scale": 2.0},
    ],
    ids=str,
)
def test_a_saved_folder_knows_its_preprocessing(
    preprocessing: str | Mapping[str, Any], checkpoints: Path, tmp_path: Path, images: Images
) -> None:
    data = images(2, 3, 40, 32)
    for kind in ("vit", "dinov2", "resnet"):
        first = built(data, name=str(checkpoints / kind), preprocessing=preprocessing)
        first.save(tmp_path / kind)
        second = built(data, name=str(tmp_path / kind))
        assert first.sizing == second.sizing
        assert torch.equal(features(first, data), features(second, data))


def test_transformers_reads_the_saved_image_processor(checkpoints: Path, tmp_path: Path, images: Images) -> None:
    """Its sizes, that is: how it resizes is its own affair."""
    image_processors = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    data = images(2, 3, 40, 32)
    backbone = built(data, name=str(checkpoints / "dinov2"))
    backbone.save(tmp_path / "saved")
    theirs = image_processors.CLIPImageProcessorPil.from_pretrained(tmp_path / "saved")
    expected = torch.stack([torch.tensor(theirs(image.permute(1, 2, 0).numpy())["pixel_values"][0]) for image in data["image"]])
    difference = (backbone.prepare(data) - expected).abs()
    assert expected.shape == (2, 3, 224, 224)
    assert difference.mean() < 0.4 / 255 / 0.22


def test_a_network_from_the_hub_s_cache_is_built_again_from_its_folder(
    checkpoints: Path, tmp_path: Path, images: Images
) -> None:
    data = images(2, 1, 28, 28)
    first = built(data, name=str(checkpoints / "vit"), augment="crop")
    first.settings["revision"] = "0123456789abcdef0123456789abcdef01234567"
    first.save(tmp_path / "saved")
    second = built(data, **(first.config() | {"name": str(tmp_path / "saved"), "revision": None}))
    assert torch.equal(features(first, data), features(second, data))


def test_saving_over_something_is_refused(checkpoints: Path, tmp_path: Path, images: Images) -> None:
    backbone = built(images(1, 3, 32, 32), name=str(checkpoints / "vit"))
    (tmp_path / "file").write_text("keep")
    with pytest.raises(StorageError, match="file exists already; name a new folder"):
        backbone.save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "keep"


def test_a_write_that_fails_leaves_nothing(
    checkpoints: Path, tmp_path: Path, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = built(images(1, 3, 32, 32), name=str(checkpoints / "vit"))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(backbone.network), "save_pretrained", full)
    with pytest.raises(StorageError, match="the disk is full"):
        backbone.save(tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []
