"""The card of a pretrained backbone: what it is, how it was made, how good it is, and where it misleads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from latewood.core.version import __version__


@dataclass(frozen=True)
class Facts:
    """What a card tells. ``accuracy`` is top-1 in [0, 1], ``seconds`` are the processor's, ``history`` has the epochs done,
    the side of the images and the accuracy at that time."""

    name: str
    command: str
    net: Mapping[str, Any]
    weights: int
    width: int
    shape: tuple[int, ...]
    data: str
    contents: str
    classes: int
    classes_of_data: int
    rows: tuple[int, int]
    recipe: Mapping[str, Any]
    method: str
    accuracy: float
    history: Sequence[tuple[int, int, float]]
    seconds: float
    device: str


def card(facts: Facts) -> str:
    """The card in Markdown, with the front matter that the Hugging Face hub reads."""
    parts = [_front(facts), f"# {facts.name}", _what(facts), *_how(facts), *_how_good(facts), *_limits(facts)]
    return "\n\n".join(parts) + "\n"


def _front(facts: Facts) -> str:
    library = "transformers" if facts.net["name"] == "vit" else "latewood"
    tags = ["latewood", "continual-learning"]
    # JSON is YAML too, and has no words that YAML would take for something else.
    told = {"library_name": library, "tags": tags, "pipeline_tag": "image-feature-extraction", "datasets": [facts.data]}
    return "\n".join(["---", *(f"{name}: {json.dumps(value)}" for name, value in told.items()), "---"])


def _what(facts: Facts) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in facts.net.items() if name not in ("name", "augment"))
    return (
        f"A backbone of the kind `{facts.net['name']}` ({settings}): {facts.weights:,} weights, float16 on disk, that make "
        f"{facts.width} features of an image of {'x'.join(map(str, facts.shape))}. It was trained on "
        f"{facts.classes} of the {facts.classes_of_data} classes of `{facts.data}`, which `classes.json` lists."
    )


def _how(facts: Facts) -> list[str]:
    command = f"```bash\n{facts.command}\n```"
    told = (
        f"From random weights, with labels, on {facts.rows[0]:,} training images of these classes; nothing of the other "
        f"classes was read in training. {facts.method} Made by Latewood {__version__} with torch {torch.__version__} on "
        f"{facts.device}, in {facts.seconds / 60:.0f} minutes of processor time. Contents of the data: `{facts.contents}`."
    )
    return ["## How it was made", command, told, _table(("setting", "value"), facts.recipe.items())]


def _how_good(facts: Facts) -> list[str]:
    told = (
        f"Top-1 accuracy on the {facts.rows[1]:,} test images of its classes: **{facts.accuracy:.1%}** (chance: "
        f"{1 / facts.classes:.1%}), with the weights as they lie here, by the linear layer of the training, which is not "
        "part of this folder. On the way there, at the size that images had at that time:"
    )
    rows = [(epoch, side, f"{accuracy:.1%}") for epoch, side, accuracy in facts.history]
    return ["## How good it is", told, _table(("epochs", "pixels a side", "top-1"), rows)]


def _limits(facts: Facts) -> list[str]:
    told = (
        "Scores on streams of classes that it has seen would be too good: Latewood refuses them unless `allow_seen` is set. "
        f"It knows small images only, of {facts.classes} kinds of things, and has been tested on nothing else. The terms of "
        f"`{facts.data}` may bind its use."
    )
    return ["## Limits", told]


def _table(head: Sequence[str], rows: Any) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
