"""Fixtures: small images, and tiny checkpoints written by transformers itself in the format of the hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from latewood.core.data import Data
from latewood.core.seeding import seeded

#: What the published checkpoints hold as preprocessor_config.json, in the format that each was published with.
PROCESSORS: dict[str, dict[str, Any]] = {
    "vit": {  # google/vit-base-patch16-224-in21k
        "do_normalize": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "size": 224,
    },
    "dinov2": {  # facebook/dinov2-small
        "crop_size": {"height": 224, "width": 224},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_processor_type": "BitImageProcessor",
        "image_std": [0.229, 0.224, 0.225],
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": 256},
    },
    "clip": {  # openai/clip-vit-base-patch32
        "crop_size": 224,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": 224,
    },
    "resnet": {  # microsoft/resnet-18
        "crop_pct": 0.875,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "ConvNextFeatureExtractor",
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 3,
        "size": 224,
    },
}


def make_images(n: int, *shape: int) -> Data:
    """Random uint8 images."""
    return Data(image=torch.randint(256, (n, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8))


@pytest.fixture
def images() -> Callable[..., Data]:
    return make_images


def _model(kind: str) -> Any:
    from transformers import (
        CLIPConfig,
        CLIPModel,
        Dinov2Config,
        Dinov2Model,
        ResNetConfig,
        ResNetModel,
        ViTConfig,
        ViTModel,
    )

    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    # Patches of 56 pixels: the published size of images, and few tokens.
    vision = {**small, "intermediate_size": 32, "image_size": 224, "patch_size": 56}
    text = {
        **small,
        "intermediate_size": 32,
        "vocab_size": 9,
        "max_position_embeddings": 4,
        "bos_token_id": 7,
        "eos_token_id": 8,
    }
    match kind:
        case "vit":
            return ViTModel(ViTConfig(**vision))
        case "dinov2":
            return Dinov2Model(Dinov2Config(**small, mlp_ratio=2, image_size=224, patch_size=56))
        case "clip":
            return CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=8))
        case _:
            return ResNetModel(
                ResNetConfig(
                    embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic", downsample_in_first_stage=False
                )
            )


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one checkpoint of each kind: ``vit``, ``dinov2``, ``clip`` (images and text) and ``resnet``."""
    root = tmp_path_factory.mktemp("checkpoints")
    for kind, processor in PROCESSORS.items():
        with seeded("tiny checkpoint", kind):
            model = _model(kind)
            # Fresh models are too regular to tell one token or one statistic from another.
            for tensor in (*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())):
                tensor.data.add_(torch.rand_like(tensor) * 0.2)
        model.save_pretrained(root / kind)
        (root / kind / "preprocessor_config.json").write_text(json.dumps(processor))
    return root
