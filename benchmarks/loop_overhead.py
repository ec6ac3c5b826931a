"""What the training loop costs: experience replay through Latewood against the same steps written by hand.

Both train a CIFAR ResNet-32 on 32x32 images with a reservoir, in one process, in turn, from the same seeds; in exact
arithmetic they must end with bit-identical weights, so that the comparison is of the same work. Then each switch of the
fast path is measured against exact arithmetic, with the accuracy on held-out images beside it.

    python benchmarks/loop_overhead.py [--rounds 7] [--json FILE] [--device auto]

Real images (Tiny ImageNet at 32x32) if LATEWOOD_DATA names the folder with them, random ones otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latewood import Data, Experience, Recipe
from latewood.core.cost import metered
from latewood.core.loop import resolve_device
from latewood.core.seeding import seeded
from latewood.core.speed import decide
from latewood.images.learners.replay import Replay
from latewood.images.nets.resnet32 import resnet32

BATCH, STEPS, CLASSES, MEMORY, HELD_OUT = 32, 20, 20, 500, 500


def images(count: int) -> Data:
    """Images and labels of the first classes."""
    place = os.environ.get("LATEWOOD_DATA")
    if place and (Path(place) / "tiny-imagenet-32").is_dir():
        from latewood.images.datasets import load_images

        train = load_images("tiny-imagenet-32").train
        few = train[train.tensor("label") < CLASSES]
        order = torch.randperm(len(few), generator=torch.Generator().manual_seed(0))
        train, held_out = order[:-HELD_OUT], order[-HELD_OUT:]
        # Many rounds see images again, but none that accuracy is measured on.
        return few[torch.cat([train.repeat(count // len(train) + 1)[: count - HELD_OUT], held_out])].to("cpu")
    chance = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=chance, dtype=torch.uint8)
    return Data(image=pixels, label=torch.randint(0, CLASSES, (count,), generator=chance))


def learner(example: Data, recipe: Recipe, device: torch.device) -> Replay:
    with seeded(0):
        return Replay(resnet32(example), memory=MEMORY, recipe=recipe).to(device)


class ByHand:
    """Experience replay as one would write it without a library."""

    def __init__(self, example: Data, device: torch.device, recipe: Recipe) -> None:
        with seeded(0):
            self.backbone = resnet32(example).to(device)
        self.weight = nn.Parameter(torch.empty(0))
        self.bias = nn.Parameter(torch.empty(0))
        self.images = torch.empty(0, dtype=torch.uint8)
        self.labels = torch.empty(0, dtype=torch.int64)
        self.generator = torch.Generator().manual_seed(0)
        self.recipe, self.device, self.seen = recipe, device, 0

    def train(self, images: Tensor, labels: Tensor) -> None:
        torch.randint(2**62, (), generator=self.generator)  # the draw that seeds the library's scope
        if not len(self.weight):
            bound = 1 / self.backbone.width**0.5
            fresh = torch.rand(CLASSES, self.backbone.width, generator=self.generator) * 2 * bound - bound
            self.weight = nn.Parameter(fresh.to(self.device))
            self.bias = nn.Parameter(torch.zeros(CLASSES, device=self.device))
        self.backbone.train()
        parameters = [*self.backbone.parameters(), self.weight, self.bias]
        optimizer = torch.optim.SGD(parameters, lr=self.recipe.lr, momentum=self.recipe.momentum)
        order = torch.randperm(len(images), generator=self.generator)
        for start in range(0, len(images), BATCH):
            rows = order[start : start + BATCH]
            new, target = images[rows], labels[rows]
            x, y = new, target
            if len(self.images):
                old = torch.randperm(len(self.images), generator=self.generator)[: len(rows)]
                x, y = torch.cat([new, self.images[old]]), torch.cat([target, self.labels[old]])
            x, y = x.to(self.device), y.to(self.device)
            optimizer.zero_grad(set_to_none=True)
            features = self.backbone((x.float() / 255 - self.backbone.mean) / self.backbone.std)
            F.cross_entropy(F.linear(features, self.weight, self.bias), y).backward()
            optimizer.step()
            self.remember(new, target)

    def remember(self, images: Tensor, labels: Tensor) -> None:
        room = max(0, MEMORY - len(self.images))
        if room:
            self.images = torch.cat([self.images, images[:room]]) if len(self.images) else images[:room].clone()
            self.labels = torch.cat([self.labels, labels[:room]]) if len(self.labels) else labels[:room].clone()
            self.seen += min(room, len(images))
            images, labels = images[room:], labels[room:]
        if len(images):
            ordinals = torch.arange(self.seen + 1, self.seen + 1 + len(images), dtype=torch.float64)
            slots = (torch.rand(len(images), generator=self.generator, dtype=torch.float64) * ordinals).long().tolist()
            self.seen += len(images)
            for row, slot in enumerate(slots):
                if slot < MEMORY:
                    self.images[slot], self.labels[slot] = images[row], labels[row]


def timed(call: object, *arguments: object) -> float:
    start = time.perf_counter()
    call(*arguments)  # type: ignore[operator]
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def overhead(data: Data, rounds: int, device: torch.device) -> dict[str, float]:
    """The ratio of Latewood's time to that of the loop by hand, round by round, and whether the weights are equal."""
    recipe = Recipe(batch_size=BATCH, lr=0.03)
    ours, plain = learner(data[:1], recipe, device), ByHand(data[:1], device, recipe)
    part = BATCH * STEPS
    ratios = []
    labels = data.tensor("label")
    # The head must know all classes from the start, for equal widths; the arrival says so.
    classes = tuple(range(CLASSES))
    for number in range(rounds + 1):
        rows = range(number * part, (number + 1) * part)
        experience = Experience(number, data[rows], classes)
        with metered():
            first = timed(ours.learn, experience)
        second = timed(plain.train, data[rows].tensor("image"), labels[rows.start : rows.stop])
        if number:  # the first round warms up
            ratios.append(first / second)
    mine, theirs = ours.backbone.state_dict(), plain.backbone.state_dict()
    equal = all(torch.equal(mine[name], theirs[name]) for name in theirs)
    return {"ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios), "equal_weights": float(equal)}


def fast_path(data: Data, rounds: int, device: torch.device) -> dict[str, dict[str, float]]:
    """Each way of computing against exact arithmetic: time ratio in turn, and accuracy after the same training."""
    ways = {
        "exact": Recipe(batch_size=BATCH, lr=0.03),
        "channels-last": Recipe(batch_size=BATCH, lr=0.03, channels_last="on"),
        "bfloat16": Recipe(batch_size=BATCH, lr=0.03, precision="bfloat16"),
        "compile": Recipe(batch_size=BATCH, lr=0.03, compile="on"),
        "all": Recipe(batch_size=BATCH, lr=0.03, channels_last="on", precision="bfloat16", compile="on"),
        "auto": Recipe(batch_size=BATCH, lr=0.03, channels_last="auto", precision="auto", compile="auto"),
    }
    learners = {name: learner(data[:1], recipe, device) for name, recipe in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    part, classes = BATCH * STEPS, tuple(range(CLASSES))
    for number in range(rounds + 1):
        experience = Experience(number, data[range(number * part, (number + 1) * part)], classes)
        for name, one in learners.items():
            seconds = timed(one.learn, experience)
            if number:
                times[name].append(seconds)
    held_out = data[(rounds + 1) * part :]
    result = {}
    for name, one in learners.items():
        ratio = statistics.median(a / b for a, b in zip(times[name], times["exact"], strict=True))
        right = (one.predict(held_out).cpu() == held_out.tensor("label")).double().mean().item()
        result[name] = {"time against exact": ratio, "accuracy": right}
    decided = decide(learners["auto"], data[:BATCH].to(device), ways["auto"])
    print(f"auto chose precision={decided.precision} channels_last={decided.channels_last} compile={decided.compile}")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--skip-fast-path", action="store_true")
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    data = images((arguments.rounds + 1) * BATCH * STEPS + HELD_OUT)
    result: dict[str, object] = {"overhead": overhead(data, arguments.rounds, device)}
    print(json.dumps(result, indent=1))
    if not arguments.skip_fast_path:
        result["fast path"] = fast_path(data, arguments.rounds, device)
        print(json.dumps(result["fast path"], indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
