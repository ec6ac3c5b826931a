"""What one arrival costs with each learner of images, and how that grows over twenty arrivals.

Every learner that is registered for images learns the same kind of stream: 20 arrivals of 2 classes, 15 coloured images of
32x32 each, on the backbone that comes with Latewood (``vit-tiny-imagenet``), one epoch where it trains by gradient. The
images are coloured noise around a mean for each class: what they show does not change the cost. Each learner gets images
of its own, so that none finds the features that another has left in the embedding cache. Times are of the processor.

The first arrival is left out of the growth, since some learners adapt or train their backbone on it and never again.

    OMP_NUM_THREADS=1 python benchmarks/image_methods.py [--arrivals 20] [--methods nmc,slca] [--json FILE]

Writes the table of the documentation, and leaves with 1 if a learner that promises arrivals of equal cost grows by more
than ``--bar`` (1.25).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latewood.core import configure, registry
from latewood.core.cost import metered, state_bytes
from latewood.core.data import Data
from latewood.images.datasets import ImageData
from latewood.images.streams.split import split
from latewood.report import quantities
from latewood.studies.assemble import make_learner

CLASSES, EACH = 2, 15
#: Learners whose arrivals cost the same whatever came before: no term of theirs grows with the classes, or only their head.
FLAT = (
    *("adam", "coso", "dkvb", "finetune", "fsa", "g-acil", "lingocl", "nmc", "prd", "simplecil", "slda"),
    *("contracon", "ewc", "lwf", "rehearsal-free"),
)

#: What a method needs to be set beyond that: a text model that needs no hub, and one epoch in the first arrival too.
SPECIAL: dict[str, dict[str, Any]] = {
    "lingocl": {"targets": "minilm", "host": "finetune"},
    "prd": {"extra_epochs": 0},
    "dkvb": {"recipe": {"epochs": 1, "batch_size": 10, "momentum": 0.0}},
    "coso": {"rank": 12, "sketch": 48},
}


def images(classes: int, seed: int) -> ImageData:
    chance = torch.Generator().manual_seed(seed)
    means = torch.rand(classes, 3, 8, 8, generator=chance).repeat_interleave(4, 2).repeat_interleave(4, 3)

    def some(each: int) -> Data:
        labels = torch.arange(classes).repeat_interleave(each)
        noise = torch.rand(len(labels), 3, 32, 32, generator=chance)
        return Data(image=((means[labels] + noise) * 127).to(torch.uint8), label=labels)

    return ImageData("noise", some(EACH), some(2), tuple(f"class {number}" for number in range(classes)))


def cost_of(method: str, arrivals: int, seed: int) -> dict[str, Any]:
    """Seconds of every arrival and of a prediction, parameters trained and bytes kept."""
    data = images(CLASSES * arrivals, seed)
    stream = split(data, steps=arrivals)
    learner = make_learner(method, stream, settings(method))
    seconds, trained, kept = [], [], []
    for experience in stream:
        # Rows of its own: of a view, the whole table would be embedded with the first arrival.
        experience = replace(experience, train=Data(dict(experience.train)))
        with metered() as meter:
            start = time.process_time()
            learner.learn(experience)
            seconds.append(time.process_time() - start)
        trained.append(meter.trained)
        kept.append(sum(size for owner, size in state_bytes(learner).items() if owner not in learner.deployed))
    start = time.process_time()
    learner.predict(data.test)
    predicting = (time.process_time() - start) / len(data.test)
    quarter = max(1, arrivals // 4)
    early, late = statistics.median(seconds[1 : 1 + quarter]), statistics.median(seconds[-quarter:])
    return {
        "method": method,
        "first": seconds[0],
        "one": statistics.median(seconds[1:]),
        "growth": late / early,
        "predicting": predicting,
        "trained": max(trained),
        "kept once": kept[0],
        "kept": kept[-1],
        "seconds": seconds,
    }


def settings(method: str) -> dict[str, Any]:
    known = configure.settable(registry.find("learners", method, "images").load())
    recipe = {"epochs": 1, "batch_size": 10}
    wanted: dict[str, Any] = {"backbone": {"name": "vit-tiny-imagenet", "augment": "none"}, "recipe": recipe}
    chosen = {name: value for name, value in wanted.items() if name in known}
    return {**chosen, **SPECIAL.get(method, {})}


def table(rows: list[dict[str, Any]]) -> str:
    head = "| learner | first arrival | one arrival | late / early | predicting an image | trained parameters | kept after {} |"
    lines = [head.format(len(rows[0]["seconds"])), "|---" * 7 + "|"]
    for row in rows:
        flat = f"{row['growth']:.2f}" + (" (flat)" if row["method"] in FLAT else "")
        times = [quantities.seconds(row[name]) for name in ("first", "one")]
        cells = [f"`{row['method']}`", *times, flat, quantities.seconds(row["predicting"])]
        cells += [quantities.amount(row["trained"]), quantities.size(row["kept"])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def milliseconds(work: Callable[[], object], rounds: int = 5) -> float:
    """The median time of the processor, after one round that does not count."""
    found = []
    for _ in range(rounds + 1):
        start = time.process_time()
        work()
        found.append(1000 * (time.process_time() - start))
    return statistics.median(found[1:])


def step_of(net: nn.Module, inputs: Tensor) -> Callable[[], None]:
    def step() -> None:
        net.zero_grad()
        net(inputs).square().mean().backward()

    return step


def pieces() -> dict[str, float]:
    """The parts that are fused or batched: the penalty of EWC and L2, and drawing from the Gaussians of 100 classes."""
    from latewood.images.nets.vit_tiny_imagenet import vit_tiny_imagenet
    from latewood.parts.anchors import Anchors
    from latewood.parts.gaussians import Gaussians

    few = images(2, 0).train
    net = vit_tiny_imagenet(few).freeze(False)
    step = milliseconds(step_of(net, net.prepare(few)))
    weights = [p for p in net.parameters() if p.requires_grad]
    centres, importance = [p.detach().clone() for p in weights], [torch.ones_like(p) for p in weights]
    anchors = Anchors(net)
    anchors.move()
    anchors.replace(importance, decay=1.0)

    def one_by_one() -> None:
        total = torch.zeros(())
        for weight, anchor, value in zip(weights, centres, importance, strict=True):
            total = total + (value * (weight - anchor).square()).sum()
        total.backward()

    gaussians = Gaussians(192)
    labels = torch.arange(100).repeat_interleave(30)
    chance = torch.Generator().manual_seed(0)
    gaussians.fit(torch.randn(len(labels), 192, generator=chance), labels, 100)
    return {
        "milliseconds of a step of 30 images": step,
        "penalty with importances, share of a step": milliseconds(lambda: anchors.penalty().backward()) / step,
        "penalty, parameter by parameter, share of a step": milliseconds(one_by_one) / step,
        "256 features for each of 100 classes of width 192, ms": milliseconds(lambda: gaussians.draw(256, chance)),
    }


def projection(images_at_once: int = 4) -> dict[str, float]:
    """What the steps of CoSO add to forward and backward at the size of a ViT-B/16 with the ranks of its paper.

    Forward and backward are timed with few images, as their time grows with their number and that of the projection does
    not; the share at a batch of 128, the paper's, follows from both.
    """
    from latewood.images.nets.vit import vit
    from latewood.parts.subspaces import Subspaces, SubspaceSettings

    photos = Data(image=torch.zeros(images_at_once, 3, 224, 224, dtype=torch.uint8))
    net = vit(photos, width=768, depth=12, heads=12, patch=16).requires_grad_(False)
    weights = [p for name, p in net.named_parameters() if p.shape == (768, 768)][:12]
    for weight in weights:
        weight.requires_grad_(True)
    image = milliseconds(step_of(net, net.prepare(photos)), rounds=1) / images_at_once
    chance = torch.Generator().manual_seed(0)
    for weight in weights:
        weight.grad = torch.randn(768, 768, generator=chance)
    found = {"milliseconds of forward and backward an image": image}
    for name, exact in (("exact", True), ("approximate", False)):
        subspaces = Subspaces(12, 768, 768, SubspaceSettings(rank=50, sketch=120, exact=exact))
        spent = milliseconds(partial(subspaces.step, weights, lr=1e-4), rounds=2)
        found[f"milliseconds of a step of the optimiser, {name}"] = spent
        found[f"share of a step with 128 images, {name}"] = spent / (spent + 128 * image)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arrivals", type=int, default=20)
    parser.add_argument("--methods", default="", help="some of the learners, parted by commas")
    parser.add_argument("--bar", type=float, default=1.25)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    methods = arguments.methods.split(",") if arguments.methods else [e.name for e in registry.entries("learners", "images")]
    rows = []
    for number, method in enumerate(methods):
        rows.append(cost_of(method, arguments.arrivals, number))
        print(f"{method}: {rows[-1]['one']:.2f} s, growth {rows[-1]['growth']:.2f}", flush=True)
    result = {"methods": rows, "pieces": pieces(), "projection of CoSO": projection()}
    print(table(rows), json.dumps({name: result[name] for name in list(result)[1:]}, indent=1), sep="\n\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1))
    if grown := [row["method"] for row in rows if row["method"] in FLAT and row["growth"] > arguments.bar]:
        raise SystemExit(f"Not flat: {', '.join(grown)}.")


if __name__ == "__main__":
    main()
