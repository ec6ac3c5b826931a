"""The benchmarks of class-incremental learning on pretrained transformers, as most of its papers have them since PILOT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: The benchmarks of the paper that the hub has under a name: the data set, and what is set on the stream.
BENCHMARKS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "paper-cifar100": ("cifar100", {"increment": 5, "seed": 1993}),
    "paper-cub200": ("cub200", {"increment": 10, "seed": 1993, "size": 224}),
    "paper-imagenet-r": ("imagenet-r", {"increment": 20, "seed": 1993, "size": 224}),
    "paper-imagenet-a": ("imagenet-a", {"increment": 20, "seed": 1993, "size": 224}),
}
#: The paper's weights are timm's of the same architecture on the same data; pixels stay in [0, 1], as in its code.
VIT = {
    "name": "google/vit-base-patch16-224-in21k",
    "preprocessing": {"resize": 256, "crop": [224, 224], "interpolation": "bicubic"},
}
