"""Pretrained networks, read from tiny folders in the hub's own format."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError, DataError
from latewood.core.registry import find
from latewood.images.nets import hub
from latewood.images.nets._sizing import Sizing, read_sizing
from latewood.parts.embedding import Encoder

Images = Callable[..., Data]
#: For each checkpoint: size after resizing a square image, size of the crop, PIL's filter, features.
EXPECTED = {
    "vit": ((224, 224), 224, Image.Resampling.BILINEAR, 16),
    "dinov2": ((256, 256), 224, Image.Resampling.BICUBIC, 16),
    "clip": ((224, 224), 224, Image.Resampling.BICUBIC, 16),
    "resnet": ((256, 256), 224, Image.Resampling.BICUBIC, 12),
}


def reference(kind: str, folder: Path, inputs: Tensor) -> Tensor:
    """The features as transformers itself gives them."""
    from transformers import AutoModel, CLIPVisionModel

    with torch.no_grad():
        if kind == "clip":
            output: Tensor = CLIPVisionModel.from_pretrained(folder)(inputs).pooler_output
            return output
        output = AutoModel.from_pretrained(folder)(inputs)
        return output.pooler_output.flatten(1) if kind == "resnet" else output.last_hidden_state[:, 0]


@pytest.mark.parametrize("kind", EXPECTED)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28)], ids=str)
def test_features_are_those_of_transformers(kind: str, shape: tuple[int, ...], checkpoints: Path, images: Images) -> None:
    data = images(3, *shape)
    backbone = hub(data[:1], name=str(checkpoints / kind))
    inputs = backbone.prepare(data)
    assert inputs.shape == (3, 3, 224, 224)
    features = backbone(inputs)
    assert features.shape == (3, backbone.width) == (3, EXPECTED[kind][3])
    torch.testing.assert_close(features, reference(kind, checkpoints / kind, inputs), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(features[0], features[1])


@pytest.mark.parametrize("kind", EXPECTED)
@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 48, 48), (3, 300, 300)], ids=str)
def test_inputs_are_those_of_the_image_processor(kind: str, shape: tuple[int, ...], checkpoints: Path, images: Images) -> None:
    data = images(2, *shape)
    told = json.loads((checkpoints / kind / "preprocessor_config.json").read_text())
    size, crop, resample, _ = EXPECTED[kind]
    expected = []
    for image in data["image"]:
        resized = np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size, resample))
        edge = (size[0] - crop) // 2
        cropped = torch.tensor(resized[edge : edge + crop, edge : edge + crop]).permute(2, 0, 1) / 255
        mean, std = (torch.tensor(told[name]).view(3, 1, 1) for name in ("image_mean", "image_std"))
        expected.append((cropped - mean) / std)
    difference = (hub(data[:1], name=str(checkpoints / kind)).prepare(data) - torch.stack(expected)).abs()
    # PIL rounds to whole levels (twice, once for each direction), and the division by the deviation magnifies it.
    assert difference.max() < 1.1 / 255 / 0.22
    assert difference.mean() < 0.4 / 255 / 0.22


def test_unit_keeps_the_size_and_leaves_pixels_in_the_unit_range(checkpoints: Path, images: Images) -> None:
    data = images(3, 3, 32, 32)
    inputs = hub(data[:1], name=str(checkpoints / "dinov2"), preprocessing="unit").prepare(data)
    assert inputs.shape == (3, 3, 224, 224)
    assert 0 <= inputs.min() < 0.05
    assert 0.95 < inputs.max() <= 1


def test_unit_needs_no_image_processor(checkpoints: Path, tmp_path: Path, images: Images) -> None:
    folder = shutil.copytree(checkpoints / "vit", tmp_path / "vit")
    (folder / "preprocessor_config.json").unlink()
    data = images(2, 3, 32, 32)
    assert hub(data[:1], name=str(folder), preprocessing="unit").prepare(data).shape == (2, 3, 224, 224)
    with pytest.raises(ConfigurationError, match=r"no preprocessor_config\.json .* use preprocessing='unit'"):
        hub(data[:1], name=str(folder))


def test_the_poolings_are_what_they_are_called(checkpoints: Path, images: Images) -> None:
    from transformers import AutoModel

    data = images(2, 3, 32, 32)
    for kind in ("vit", "dinov2"):
        folder = checkpoints / kind
        features = {}
        for pooling in ("auto", "cls", "mean", "pooler"):
            backbone = hub(data[:1], name=str(folder), pooling=pooling)
            inputs = backbone.prepare(data)
            features[pooling] = backbone(inputs)
        with torch.no_grad():
            output = AutoModel.from_pretrained(folder)(inputs)
        assert torch.equal(features["auto"], features["cls"])
        torch.testing.assert_close(features["cls"], output.last_hidden_state[:, 0])
        torch.testing.assert_close(features["mean"], output.last_hidden_state[:, 1:].mean(1))
        torch.testing.assert_close(features["pooler"], output.pooler_output)
        assert torch.equal(features["cls"], features["pooler"]) == (kind == "dinov2")


def test_vit_is_loaded_without_its_pooler_unless_that_is_wanted(checkpoints: Path, images: Images) -> None:
    names = {
        pooling: dict(hub(images(1, 3, 32, 32), name=str(checkpoints / "vit"), pooling=pooling).named_parameters())
        for pooling in ("cls", "pooler")
    }
    assert names["pooler"].keys() - names["cls"].keys() == {"network.pooler.dense.weight", "network.pooler.dense.bias"}


def test_clip_and_resnet_have_no_class_token_to_take(checkpoints: Path, images: Images) -> None:
    for kind in ("clip", "resnet"):
        with pytest.raises(ConfigurationError, match="no class token behind its last layer; use pooling='pooler' or 'mean'"):
            hub(images(1, 3, 32, 32), name=str(checkpoints / kind), pooling="cls")


def test_mean_pooling_of_maps_and_of_clip(checkpoints: Path, images: Images) -> None:
    data = images(2, 3, 32, 32)
    for kind in ("clip", "resnet"):
        backbone = hub(data[:1], name=str(checkpoints / kind), pooling="mean")
        inputs = backbone.prepare(data)
        states = backbone.network(pixel_values=inputs).last_hidden_state
        expected = states[:, 1:].mean(1) if kind == "clip" else states.mean((2, 3))
        torch.testing.assert_close(backbone(inputs), expected)


def test_only_safetensors_are_loaded(checkpoints: Path, tmp_path: Path, images: Images) -> None:
    folder = shutil.copytree(checkpoints / "vit", tmp_path / "vit")
    (folder / "model.safetensors").unlink()
    torch.save({"weight": torch.zeros(1)}, folder / "pytorch_model.bin")
    with pytest.raises(ConfigurationError, match=r"no weights as model\.safetensors, only as pytorch_model\.bin") as caught:
        hub(images(1, 3, 32, 32), name=str(folder))
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_sharded_checkpoint_is_read(checkpoints: Path, tmp_path: Path, images: Images) -> None:
    from transformers import ViTModel

    ViTModel.from_pretrained(checkpoints / "vit").save_pretrained(tmp_path, max_shard_size="20KB")
    shutil.copy(checkpoints / "vit" / "preprocessor_config.json", tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    data = images(2, 3, 32, 32)
    backbones = [hub(data[:1], name=str(folder)) for folder in (tmp_path, checkpoints / "vit")]
    assert torch.equal(*(backbone(backbone.prepare(data)) for backbone in backbones))


def test_a_damaged_checkpoint_gets_a_sentence(checkpoints: Path, tmp_path: Path, images: Images) -> None:
    folder = shutil.copytree(checkpoints / "vit", tmp_path / "vit")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    for pooling, words in (("auto", "model.safetensors is damaged"), ("cls", "transformers can't load")):
        with pytest.raises(ConfigurationError, match=words):
            hub(images(1, 3, 32, 32), name=str(folder), pooling=pooling)


def test_missing_weights_are_never_left_random(checkpoints: Path, tmp_path: Path, images: Images) -> None:
    from transformers import ViTModel

    ViTModel.from_pretrained(checkpoints / "vit", add_pooling_layer=False).save_pretrained(tmp_path)
    shutil.copy(checkpoints / "vit" / "preprocessor_config.json", tmp_path)
    hub(images(1, 3, 32, 32), name=str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"lacks 2 weights of the network, pooler\.dense\.bias for one"):
        hub(images(1, 3, 32, 32), name=str(tmp_path), pooling="pooler")


@pytest.mark.parametrize("place", ["/no/such/folder", "./missing", "~/no-such-folder", "a/b/c"])
def test_a_missing_folder_gets_a_sentence(place: str, images: Images) -> None:
    with pytest.raises(
        ConfigurationError, match=r"There is no folder .*; right would be a name such as 'google/vit-"
    ) as caught:
        hub(images(1, 3, 32, 32), name=place)
    assert "\n" not in str(caught.value)


def test_a_name_that_is_not_in_the_cache_gets_a_sentence(
    images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigurationError, match="not in the hub's local cache and local_only forbids to download it"):
        hub(images(1, 3, 32, 32), name="google/vit-base-patch16-224-in21k", local_only=True)
    with pytest.raises(ConfigurationError, match="that can't be a name on the hub"):
        hub(images(1, 3, 32, 32), name="no name", local_only=True)


def test_what_the_hub_answers_becomes_a_sentence(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import errors

    def answer(error: type[Exception]) -> str:
        def download(*_: object, **__: object) -> str:
            raise error.__new__(error)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        with pytest.raises(ConfigurationError) as caught:
            hub(images(1, 3, 32, 32), name="someone/network", revision="v2")
        return str(caught.value)

    assert "its owner must grant access" in answer(errors.GatedRepoError)
    assert "no public checkpoint of that name" in answer(errors.RepositoryNotFoundError)
    assert "it has no revision 'v2'" in answer(errors.RevisionNotFoundError)
    assert "the hub can't be reached from here" in answer(errors.LocalEntryNotFoundError)


def test_a_name_is_read_from_the_hub_s_cache(
    checkpoints: Path, tmp_path: Path, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--network"
    shutil.copytree(checkpoints / "vit", repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    data = images(2, 3, 32, 32)
    named = hub(data[:1], name="someone/network", local_only=True)
    local = hub(data[:1], name=str(checkpoints / "vit"))
    assert named.config()["revision"] == commit
    assert torch.equal(named(named.prepare(data)), local(local.prepare(data)))


def test_a_revision_is_for_names_only(checkpoints: Path, images: Images) -> None:
    with pytest.raises(ConfigurationError, match="'v2' is for names on the hub"):
        hub(images(1, 3, 32, 32), name=str(checkpoints / "vit"), revision="v2")


def test_what_is_no_vision_network_gets_a_sentence(tmp_path: Path, images: Images) -> None:
    from transformers import BertConfig, BertModel

    small = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=9)
    BertModel(small).save_pretrained(tmp_path / "text")
    with pytest.raises(ConfigurationError, match="is no vision network: it takes input_ids"):
        hub(images(1, 3, 32, 32), name=str(tmp_path / "text"), preprocessing="unit")
    shutil.copytree(tmp_path / "text", tmp_path / "odd")
    (tmp_path / "odd" / "config.json").write_text('{"model_type": "nobody-knows-this"}')
    with pytest.raises(ConfigurationError, match="transformers can't load"):
        hub(images(1, 3, 32, 32), name=str(tmp_path / "odd"))


def test_images_that_the_network_can_not_take_get_a_sentence(checkpoints: Path, images: Images) -> None:
    with pytest.raises(DataError, match="takes images of 3 channels or grey ones, but these have 4"):
        hub(images(1, 4, 32, 32), name=str(checkpoints / "vit"))
    with pytest.raises(ConfigurationError, match=r"gives no features .* that preprocessing made 3x64x64"):
        hub(images(1, 3, 32, 32), name=str(checkpoints / "vit"), preprocessing={"resize": 64})
    backbone = hub(images(1, 3, 32, 32), name=str(checkpoints / "resnet"))
    with pytest.raises(DataError, match="3x28x28, but this model was made for 3x32x32"):
        backbone.prepare(images(1, 3, 28, 28))


def test_settings_that_do_not_exist_get_a_sentence(checkpoints: Path, images: Images) -> None:
    example, folder = images(1, 3, 32, 32), str(checkpoints / "vit")
    with pytest.raises(ConfigurationError, match=r"no pooling 'clss' .did you mean 'cls'"):
        hub(example, name=folder, pooling="clss")
    with pytest.raises(ConfigurationError, match=r"no preprocessing 'units' .did you mean 'unit'"):
        hub(example, name=folder, preprocessing="units")
    with pytest.raises(ConfigurationError, match="Preprocessing has no number 'size'"):
        hub(example, name=folder, preprocessing={"size": 224})
    with pytest.raises(ConfigurationError, match=r"no interpolation 'cubic' .did you mean 'bicubic'"):
        hub(example, name=folder, preprocessing={"resize": 224, "interpolation": "cubic"})
    with pytest.raises(ConfigurationError, match="as many std as mean, not 3 and 1"):
        hub(example, name=folder, preprocessing={"resize": 224, "mean": [0.5]})


@pytest.mark.parametrize("kind", EXPECTED)
def test_the_configuration_is_json_and_builds_the_same_again(kind: str, checkpoints: Path, images: Images) -> None:
    example = images(1, 3, 32, 32)
    first = hub(example, name=str(checkpoints / kind), augment="crop")
    told = json.loads(json.dumps(first.config()))
    assert told == first.config()
    second = find("nets", "hub", "images").load()(example, **told)
    assert Encoder(first).fingerprint == Encoder(second).fingerprint


def test_another_preprocessing_or_pooling_is_another_entry_of_the_cache(checkpoints: Path, images: Images) -> None:
    example, folder = images(1, 3, 32, 32), str(checkpoints / "dinov2")
    settings: list[dict[str, Any]] = [
        {},
        {"preprocessing": "unit"},
        {"preprocessing": {"resize": 256, "crop": [224, 224], "interpolation": "bilinear"}},
        {"pooling": "mean"},
    ]
    prints = [Encoder(hub(example, name=folder, **chosen)).fingerprint for chosen in settings]
    assert len(set(prints)) == len(prints)
    assert Encoder(hub(example, name=folder)).fingerprint == prints[0]


def test_augmentation_acts_in_training_mode_only(checkpoints: Path, images: Images) -> None:
    data = images(4, 3, 32, 32)
    backbone = hub(data[:1], name=str(checkpoints / "vit"), augment="crop-flip")
    plain = hub(data[:1], name=str(checkpoints / "vit")).prepare(data)
    assert torch.equal(backbone.prepare(data), plain)
    torch.manual_seed(0)
    first = backbone.train().prepare(data)
    torch.manual_seed(0)
    assert torch.equal(first, backbone.prepare(data))
    assert not torch.equal(first, plain)


def test_loading_says_nothing(checkpoints: Path, images: Images, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    capfd.readouterr()
    hub(images(1, 3, 32, 32), name=str(checkpoints / "clip"))
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_half_precision_checkpoints_become_float32(checkpoints: Path, tmp_path: Path, images: Images) -> None:
    from transformers import ViTModel

    ViTModel.from_pretrained(checkpoints / "vit").half().save_pretrained(tmp_path)
    backbone = hub(images(1, 3, 32, 32), name=str(tmp_path), preprocessing="unit")
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}


def written(folder: Path, name: str = "preprocessor_config.json", **told: Any) -> Path:
    (folder / name).write_text(json.dumps(told))
    return folder


STATISTICS = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


def test_forms_of_size(tmp_path: Path) -> None:
    def sizes(**told: Any) -> tuple[object, object]:
        sizing = read_sizing(written(tmp_path, **STATISTICS, **told))
        assert sizing is not None
        return sizing.resize, sizing.crop

    assert sizes(size={"height": 32, "width": 16}) == ((32, 16), None)
    assert sizes(size=256, crop_size=224, do_center_crop=True, feature_extractor_type="DeiTFeatureExtractor") == (
        (256, 256),
        (224, 224),
    )
    assert sizes(size=224, image_processor_type="CLIPImageProcessor") == (224, None)
    assert sizes(size={"shortest_edge": 224}, image_processor_type="ConvNextImageProcessor") == (256, (224, 224))
    assert sizes(size={"shortest_edge": 384}, image_processor_type="ConvNextImageProcessor") == ((384, 384), None)
    assert sizes(do_resize=False) == (None, None)


def test_statistics_and_scale(tmp_path: Path) -> None:
    plain = read_sizing(written(tmp_path, do_normalize=False, do_rescale=False, size=32))
    assert plain == Sizing((32, 32), None, "bilinear", scale=255.0)
    scaled = read_sizing(written(tmp_path, size=32, rescale_factor=0.00392156862745098, **STATISTICS))
    assert scaled is not None
    assert scaled.scale == 1.0


def test_the_newer_file_holds_the_image_processor_as_a_part(tmp_path: Path) -> None:
    assert read_sizing(tmp_path) is None
    written(tmp_path, "processor_config.json", tokenizer="something")
    written(tmp_path, size=16, **STATISTICS)
    assert read_sizing(tmp_path) == Sizing((16, 16), None, "bilinear", 1.0, (0.5,) * 3, (0.5,) * 3)
    written(tmp_path, "processor_config.json", image_processor={"size": 8, **STATISTICS})
    assert read_sizing(tmp_path) == Sizing((8, 8), None, "bilinear", 1.0, (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"size": {"shortest_edge": 8, "longest_edge": 9}}, "unknown size"),
        ({"size": 8, "do_center_crop": True, "crop_size": {"width": 3}}, "unknown crop_size"),
        ({"size": 8, "resample": 1}, "PIL's filter 1"),
        ({"size": 8, "rescale_offset": True}, "uses 'rescale_offset'"),
        ({"size": 8, "image_mean": None}, "does not name image_mean"),
    ],
)
def test_what_can_not_be_done_gets_a_sentence(told: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        read_sizing(written(tmp_path, **{**STATISTICS, **told}))
    assert "preprocessing={'resize'" in str(caught.value)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ConfigurationError, match="is not valid JSON"):
        read_sizing(tmp_path)


def test_sizing_of_oblong_images() -> None:
    assert Sizing(resize=8).apply(torch.rand(1, 3, 4, 6)).shape == (1, 3, 8, 12)
    assert Sizing(resize=8).apply(torch.rand(1, 3, 6, 4)).shape == (1, 3, 12, 8)
    assert Sizing(resize=(5, 7)).apply(torch.rand(1, 3, 6, 4)).shape == (1, 3, 5, 7)
    assert Sizing(resize=(5, 7), interpolation="nearest-exact").apply(torch.rand(1, 3, 6, 4)).shape == (1, 3, 5, 7)


def test_the_crop_is_the_centre_and_small_images_get_a_frame() -> None:
    pixels = torch.arange(25.0).view(1, 1, 5, 5) / 25
    assert torch.equal(Sizing(crop=(3, 1)).apply(pixels), pixels[:, :, 1:4, 2:3])
    framed = Sizing(crop=(7, 7)).apply(pixels)
    assert torch.equal(framed[:, :, 1:6, 1:6], pixels)
    assert framed.sum() == pixels.sum()
