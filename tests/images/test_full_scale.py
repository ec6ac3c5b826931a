"""What papers are reproduced with, on tiny copies in the hub's format: every preset is loaded, learns and predicts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latewood.core import registry
from latewood.core.configure import merged, settable
from latewood.core.preset import Preset
from latewood.core.seeding import seeded
from latewood.studies.assemble import make_learner, make_stream, stream_entry

NAMES = ("apple", "bear", "chair", "dolphin", "engine", "flute", "guitar", "house")
#: Sizes for a test of the path and not of the method.
SMALL: Mapping[str, Mapping[str, Any]] = {
    "adam": {"bottleneck": 4},
    "coso": {"rank": 2, "sketch": 4},
    "contracon": {"kernel": 3, "views": "none"},
    "dkvb": {"codebooks": 4, "pairs": 8, "key_width": 4, "key_epochs": 1},
    "fetril": {"passes": 1},
    "lingocl": {"targets": "minilm", "host": {"memory": 8}},
    "mos": {"bottleneck": 4, "passes": 1, "samples": 8},
    "prd": {"extra_epochs": 0, "hidden": 8, "projected": 4},
    "slca": {"passes": 1, "samples": 8},
}
NETS: Mapping[str, Mapping[str, Any]] = {"resnet18": {"width": 4}, "cct": {"width": 16, "depth": 1, "heads": 2}}


def every() -> Iterator[Any]:
    """One preset for each way of setting a learner; those that differ in the data alone share it."""
    told = set()
    for entry in registry.entries("learners", "images"):
        for name, preset in entry.load().presets.items():
            rest = {key: value for key, value in preset.settings.items() if key != "stream"}
            way = json.dumps([entry.name, preset.stream.split("-")[0], rest], sort_keys=True)
            if way not in told:
                told.add(way)
                yield pytest.param(entry, preset, id=f"{entry.name}-{name}")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set as parquet with the hub's features, and checkpoints that transformers wrote."""
    import datasets
    from transformers import EfficientNetConfig, EfficientNetModel, ResNetConfig, ResNetModel, ViTConfig, ViTModel

    place = tmp_path_factory.mktemp("shelf")
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list(NAMES)))
    chance = np.random.default_rng(0)
    for part, each in (("train", 6), ("test", 2)):
        labels = list(range(len(NAMES))) * each
        pixels = chance.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
        table = datasets.Dataset.from_dict({"image": list(pixels), "label": labels}, features=features)
        table.to_parquet(place / "data" / "data" / f"{part}-00000-of-00001.parquet")
    vit = ViTConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, patch_size=32)
    resnet = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    efficient = EfficientNetConfig(width_coefficient=0.1, depth_coefficient=0.1, hidden_dim=128)
    with seeded(0):
        for name, model in (
            ("vit", ViTModel(vit)),
            ("resnet", ResNetModel(resnet)),
            ("efficientnet", EfficientNetModel(efficient)),
        ):
            model.save_pretrained(place / name)
            statistics = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": 224}
            steps = {"do_resize": True, "do_normalize": True, "resample": 3}
            (place / name / "preprocessor_config.json").write_text(json.dumps({**steps, **statistics}))
    return place


def locally(entry: registry.Entry, preset: Preset, shelf: Path) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Stream, its settings and those of the learner, with local copies in place of names on the hub and small sizes."""
    scenario, _ = stream_entry(preset.stream)
    asked = dict(preset.settings.get("stream", {}))
    divided = {name: value for name, value in asked.items() if name in ("seed", "shots")}
    stream = {**divided, "steps": 2, **({"size": 32} if "size" in asked else {})}
    settings = {name: value for name, value in preset.settings.items() if name != "stream"}
    backbone = dict(settings["backbone"])
    if "/" in backbone["name"]:
        kind = next(kind for kind in ("vit", "resnet", "efficientnet") if kind in backbone["name"])
        backbone["name"] = str(shelf / kind)
    else:
        backbone |= NETS[backbone["name"]]
    small = dict(SMALL.get(entry.name, {}))
    if "recipe" in settable(entry.load()):
        small["recipe"] = {"epochs": 1, "batch_size": 16, "milestones": []}
    if "keys_from" in settings:
        small["keys_from"] = str(shelf / "data")
    return f"{scenario.name}-{shelf / 'data'}", stream, merged({**settings, "backbone": backbone}, small)


@pytest.mark.parametrize(("entry", "preset"), list(every()))
def test_a_preset_is_loaded_from_the_hubs_format_and_learns(entry: registry.Entry, preset: Preset, shelf: Path) -> None:
    name, stream_settings, settings = locally(entry, preset, shelf)
    stream = make_stream(name, stream_settings)
    learner = make_learner(entry.name, stream, settings)
    for experience in stream:
        learner.learn(experience)
    for probe in stream.probes:
        predicted = learner.predict(probe.data)
        assert len(predicted) == len(probe.data)
        assert set(predicted.tolist()) <= set(range(len(NAMES)))
