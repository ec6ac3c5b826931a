"""CLINC150 for claims: sentences with the intent of each, in the form that streams of images are made from."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow.parquet
import torch

from latewood.core.data import Data
from latewood.images.datasets import ImageData
from latewood.papers.ledger import DATA


def intents(most: int) -> ImageData:
    """Columns ``text`` and ``label`` with at ``most`` so many sentences of each intent to train on, and all to test with."""
    parts = {}
    for name in ("train", "test"):
        table = pyarrow.parquet.read_table(Path(os.environ[DATA], "clinc150", f"{name}.parquet"))
        parts[name] = Data(text=table["text"].to_pylist(), label=torch.tensor(table["label"].to_pylist()))
    names = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    return ImageData("clinc150", classes=tuple(names), **parts).few(most)
