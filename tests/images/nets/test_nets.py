"""The networks that start from scratch: sizes, features, preprocessing, seeds, configuration."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError, DataError
from latewood.core.registry import find
from latewood.core.seeding import seeded
from latewood.images.nets import mlp, pixels, resnet18, resnet32
from latewood.images.nets._image import STATISTICS, statistics
from latewood.images.nets.resnet32 import SubsampleShortcut
from latewood.parts.embedding import Encoder

Images = Callable[..., Data]
SHAPES = [(1, 8, 8), (3, 8, 8), (1, 28, 28), (3, 28, 28), (1, 32, 32), (3, 32, 32), (1, 64, 64), (3, 64, 64)]


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_resnet32_has_the_parameters_that_the_survey_counts(images: Images) -> None:
    assert parameters(resnet32(images(1, 3, 32, 32))) == 463_504


def test_resnet18_has_the_parameters_that_the_survey_counts(images: Images) -> None:
    assert parameters(resnet18(images(1, 3, 64, 64), stem="imagenet")) == 11_176_512
    # The small stem has a 3x3 kernel where the other has 7x7.
    assert parameters(resnet18(images(1, 3, 64, 64))) == 11_176_512 - (49 - 9) * 3 * 64


def test_mlp_and_pixels_have_the_parameters_of_their_layers(images: Images) -> None:
    assert parameters(mlp(images(1, 1, 8, 8), width=10, depth=3)) == 64 * 10 + 10 + 2 * (10 * 10 + 10)
    assert parameters(pixels(images(1, 1, 8, 8))) == 0


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_features_of_every_size_of_image(shape: tuple[int, int, int], images: Images) -> None:
    data = images(3, *shape)
    backbones = [
        pixels(data[:1]),
        mlp(data[:1], width=12),
        resnet32(data[:1], width=2),
        resnet18(data[:1], width=2),
        resnet18(data[:1], width=2, stem="imagenet"),
    ]
    for backbone, width in zip(backbones, (shape[0] * shape[1] * shape[2], 12, 8, 16, 16), strict=True):
        features = backbone.eval()(backbone.prepare(data))
        assert backbone.width == width
        assert features.shape == (3, width)
        assert features.isfinite().all()


def test_default_widths(images: Images) -> None:
    assert [build(images(1, 3, 32, 32)).width for build in (pixels, mlp, resnet32, resnet18)] == [3072, 256, 64, 512]


def test_residual_features_end_with_a_relu(images: Images) -> None:
    data = images(4, 3, 32, 32)
    for backbone in (resnet32(data[:1]).eval(), resnet18(data[:1], width=4).eval()):
        assert (backbone.stages(backbone.stem(backbone.prepare(data))) >= 0).all()


def test_option_a_shortcut_keeps_every_other_pixel_and_adds_black_channels() -> None:
    maps = torch.rand(2, 3, 7, 7)
    out = SubsampleShortcut(3, 6, 2)(maps)
    assert out.shape == (2, 6, 4, 4)
    assert torch.equal(out[:, :3], maps[:, :, ::2, ::2])
    assert not out[:, 3:].any()


def test_convolutions_start_kaiming_normal_and_norms_at_one(images: Images) -> None:
    with seeded("kaiming"):
        backbone = resnet18(images(1, 3, 32, 32))
    convolution = backbone.stages[3][1].convolution1.weight
    assert convolution.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)
    norms = [m for m in backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all((n.weight == 1).all() and not n.bias.any() for n in norms)


@pytest.mark.parametrize("build", [mlp, resnet32, resnet18])
def test_the_seed_decides_the_weights(build: Callable[..., torch.nn.Module], images: Images) -> None:
    def weights(*key: object) -> torch.Tensor:
        with seeded(*key):
            return torch.cat([p.detach().flatten() for p in build(images(1, 3, 8, 8), width=4).parameters()])

    assert torch.equal(weights("net", 0), weights("net", 0))
    assert not torch.equal(weights("net", 0), weights("net", 1))


def test_another_size_of_image_gets_a_sentence(images: Images) -> None:
    backbone = resnet32(images(1, 3, 32, 32), width=2)
    with pytest.raises(DataError, match="3x28x28, but this model was made for 3x32x32"):
        backbone.prepare(images(2, 3, 28, 28))


def test_what_is_no_image_gets_a_sentence() -> None:
    with pytest.raises(DataError, match="channels x height x width, but they have 1 dimensions"):
        pixels(Data(image=torch.zeros(2, 64, dtype=torch.uint8)))
    with pytest.raises(DataError, match="the image column holds int64"):
        pixels(Data(image=torch.zeros(2, 1, 8, 8, dtype=torch.int64)))
    with pytest.raises(DataError, match=r"must lie in \[0, 1\], but these reach from 0 to 255"):
        pixels(Data(image=torch.tensor([0.0, 255.0]).view(1, 1, 1, 2)))
    with pytest.raises(DataError, match="There is no column 'image'"):
        pixels(Data(label=torch.zeros(2)))


def test_settings_that_do_not_exist_get_a_sentence(images: Images) -> None:
    example = images(1, 1, 8, 8)
    with pytest.raises(ConfigurationError, match="depth of mlp must be at least 1, but it is 0"):
        mlp(example, depth=0)
    with pytest.raises(ConfigurationError, match="width of resnet32 must be at least 1"):
        resnet32(example, width=0)
    with pytest.raises(ConfigurationError, match=r"no stem 'smal' for resnet18 .did you mean 'small'"):
        resnet18(example, stem="smal")
    with pytest.raises(ConfigurationError, match=r"no normalisation 'cifar' .did you mean 'cifar1"):
        resnet32(example, normalise="cifar")
    with pytest.raises(ConfigurationError, match="'cifar100' is for images of 3 channels, but these have 1"):
        resnet32(example, normalise="cifar100")
    with pytest.raises(ConfigurationError, match=r"no augmentation 'crop-flop' .did you mean 'crop-flip'"):
        mlp(example, augment="crop-flop")


def test_bytes_and_floats_mean_the_same(images: Images) -> None:
    data = images(4, 3, 8, 8)
    floats = data.with_columns(image=data["image"].double() / 255)
    for backbone in (pixels(data[:1]), resnet32(data[:1], width=2)):
        assert backbone.prepare(floats).dtype == torch.float32
        torch.testing.assert_close(backbone.prepare(floats), backbone.prepare(data))


def test_normalisation_is_that_of_the_data_set(images: Images) -> None:
    data = images(4, 3, 32, 32)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in STATISTICS["cifar100"])
    torch.testing.assert_close(resnet32(data[:1], width=2).prepare(data), (data["image"] / 255 - mean) / std)
    torch.testing.assert_close(resnet32(data[:1], width=2, normalise="none").prepare(data), data["image"] / 255)
    assert statistics("dataset", (3, 64, 64)) == STATISTICS["imagenet"]
    assert statistics("dataset", (1, 8, 8)) == ((0.5,), (0.5,))


def test_inputs_stay_in_full_precision_under_autocast(images: Images) -> None:
    data = images(4, 3, 32, 32)
    backbone = resnet32(data[:1], width=2, augment="crop-flip-jitter")
    with torch.autocast("cpu", torch.bfloat16):
        assert backbone.prepare(data).dtype == torch.float32


def test_augmentation_acts_in_training_mode_only(images: Images) -> None:
    data = images(8, 3, 16, 16)
    backbone = mlp(data[:1], augment="crop-flip")
    assert torch.equal(backbone.eval().prepare(data), data["image"] / 255)
    assert not torch.equal(backbone.train().prepare(data), data["image"] / 255)


def test_augmentation_adds_nothing_to_the_state(images: Images) -> None:
    plain, augmented = (mlp(images(1, 3, 16, 16), augment=name) for name in ("none", "crop-flip-jitter"))
    assert plain.state_dict().keys() == augmented.state_dict().keys()


def test_the_state_is_the_weights_and_statistics_of_batches_alone(images: Images) -> None:
    backbone = resnet32(images(1, 3, 32, 32), width=2)
    norms = sum(isinstance(m, torch.nn.BatchNorm2d) for m in backbone.modules())
    assert len(backbone.state_dict()) == len(list(backbone.parameters())) + 3 * norms
    assert not pixels(images(1, 1, 8, 8)).state_dict()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("pixels", {}),
        ("mlp", {"width": 3, "depth": 1, "augment": "crop"}),
        ("resnet32", {"width": 2, "augment": "trivial", "normalise": "none"}),
        ("resnet18", {"width": 2, "stem": "imagenet", "augment": "crop-flip", "normalise": "imagenet"}),
    ],
)
def test_the_configuration_is_json_and_builds_the_same_again(name: str, settings: dict[str, object], images: Images) -> None:
    example = images(1, 3, 32, 32)
    build = find("nets", name, "images").load()
    with seeded("configuration"):
        first = build(example, **settings)
    told = json.loads(json.dumps(first.config()))
    assert told == first.config() == {"name": name, **settings}
    with seeded("configuration"):
        second = find("nets", told.pop("name"), "images").load()(example, **told)
    assert Encoder(first).fingerprint == Encoder(second).fingerprint


def test_a_backbone_without_parameters_follows_its_device(images: Images) -> None:
    assert next(pixels(images(1, 1, 8, 8)).buffers()).device.type == "cpu"


def test_importing_the_nets_imports_nothing_heavy() -> None:
    code = "import sys, latewood.images.nets; print([m for m in ('transformers', 'kornia', 'torchvision') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
