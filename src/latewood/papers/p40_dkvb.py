"""Discrete Key-Value Bottleneck"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from latewood.papers.ledger import Claim, Paper, Verdict

if TYPE_CHECKING:
    from torch import Tensor

    from latewood.core.data import Data
    from latewood.core.learner import Learner
    from latewood.core.stream import Stream
    from latewood.images.datasets import ImageData
    from latewood.images.learners.dkvb import DKVB
    from latewood.parts.backbone import Backbone

SEEDS = (0, 1, 2)
#: Figure 2: where each task's two classes lie in the plane, and how far they spread.
PLANE = (((0.25, 0.25), (0.75, 0.5)), ((0.75, 0.25), (0.5, 0.75)), ((0.75, 0.75), (0.25, 0.5)), ((0.25, 0.75), (0.5, 0.25)))
SPREAD = 0.035
#: Points of each class, for training and for testing.
POINTS = 100
#: Of the bottleneck on digits; small ones are touched more often, so the rate is ten times the paper's.
SMALL: dict[str, Any] = {"codebooks": 64, "pairs": 128, "key_width": 8, "keys_from": "digits"}
#: Training images of each class of Tiny ImageNet.
MOST = 30


def _plane(seed: int) -> Stream:
    """Eight clouds in the plane, two at a time."""
    import torch

    from latewood.core.data import Data
    from latewood.core.experience import Experience
    from latewood.core.seeding import generator
    from latewood.core.stream import Stream
    from latewood.images.probes import Accuracy

    def clouds(task: int, part: str) -> Data:
        centres = torch.tensor(PLANE[task]).repeat_interleave(POINTS, 0)
        noise = torch.randn(2 * POINTS, 2, generator=generator(seed, task, part))
        labels = torch.tensor([task, task + 4]).repeat_interleave(POINTS)
        return Data(features=centres + SPREAD * noise, label=labels)

    probes = [Accuracy(f"task {task}", clouds(task, "test"), since=task) for task in range(4)]
    return Stream("figure-2", 4, lambda task: Experience(task, clouds(task, "train"), (task, task + 4)), probes, wing="images")


def _layer() -> Backbone:
    """One hidden layer of 32 units on points in the plane."""
    from torch import nn

    from latewood.parts.backbone import Backbone

    class Layer(Backbone):
        def __init__(self) -> None:
            super().__init__("features", (2,), {"name": "layer"})
            self.width, self.hidden = 32, nn.Linear(2, 32)

        def forward(self, inputs: Tensor) -> Tensor:
            features: Tensor = self.hidden(inputs).relu()
            return features

    return Layer()


def _figure_2() -> Verdict:
    """The bottleneck, a linear layer and a small perceptron on the plane."""
    from latewood.core.data import concat
    from latewood.core.recipe import Recipe
    from latewood.core.run import run
    from latewood.core.seeding import seeded
    from latewood.images.learners.dkvb import DKVB
    from latewood.images.learners.finetune import Finetune
    from latewood.parts.features import Embedded

    values = Recipe(epochs=60, batch_size=32, lr=3.0, momentum=0.0, clip=1.0)
    usual = Recipe(epochs=60, batch_size=32, lr=0.1)
    found: dict[str, list[list[float]]] = {}
    for seed in SEEDS:
        stream = _plane(seed)
        with seeded(seed, "initial weights"):
            learners: dict[str, Learner] = {
                "DKVB 1 x 400": DKVB(Embedded(2), 1, 400, key_width=None, recipe=values),
                "DKVB 20 x 20": DKVB(Embedded(2), 20, 20, key_width=2, recipe=values),
                "linear probe": Finetune(Embedded(2), candidates="seen", recipe=usual),
                "MLP": Finetune(_layer(), candidates="seen", recipe=usual),
            }
        for name, learner in learners.items():
            if isinstance(learner, DKVB):
                _place(learner, concat(*(experience.train for experience in stream)), seed)
            found.setdefault(name, []).append(run(learner, stream, seed=seed, device="cpu").matrix()[-1].tolist())
    numbers = {
        f"{name}, task {task}": 100 * sum(run[task] for run in runs) / len(runs)
        for name, runs in found.items()
        for task in range(4)
    }
    kept = min(min(scores) for name, runs in found.items() for scores in runs if name.startswith("DKVB"))
    lost = max(max(scores[:3]) for name, runs in found.items() for scores in runs if not name.startswith("DKVB"))
    return Verdict(
        kept >= 0.95 and lost <= 0.1,
        numbers,
        f"Eight clouds of {POINTS} points in the plane, two at a time (Figure 2), means over {len(SEEDS)} seeds, accuracy in % "
        "after the last task, keys placed by the unlabelled points of all. It holds if in every seed DKVB keeps 95 % of "
        "each task, and the linear probe and the perceptron at most 10 % of each task but the last.",
    )


def _small(stream: Stream, kind: Callable[..., DKVB], **settings: Any) -> DKVB:
    from latewood.core.recipe import Recipe
    from latewood.images.nets.pixels import pixels

    recipe = Recipe(epochs=60, batch_size=32, lr=3.0, momentum=0.0, clip=1.0)
    return kind(pixels(stream.example), **{**SMALL, "recipe": recipe, **settings})


def _place(learner: DKVB, images: Data, seed: int) -> None:
    learner.generator.manual_seed(seed)
    learner.initialise_keys(images)


def _noise() -> Data:
    """As many images of noise as there are digits for training."""
    import torch

    from latewood.core.data import Data
    from latewood.core.seeding import generator
    from latewood.images.datasets import load_images

    like = load_images("digits").train.tensor("image")
    return Data(image=torch.randint(0, 256, like.shape, generator=generator("noise"), dtype=torch.uint8))


def _as_shuffled() -> Verdict:
    """Digits, two classes at a time and all at once; keys on noise, and few keys."""
    from latewood.core.recipe import Recipe
    from latewood.core.run import run
    from latewood.core.seeding import seeded
    from latewood.images.learners.dkvb import DKVB
    from latewood.images.learners.finetune import Finetune
    from latewood.images.nets.mlp import mlp
    from latewood.images.nets.pixels import pixels
    from latewood.images.streams.split import split
    from latewood.papers._encoders import percent

    usual = Recipe(epochs=60, batch_size=32, lr=0.03)
    found: dict[str, list[float]] = {}
    for seed in SEEDS:
        for steps, order in ((5, "stream"), (1, "shuffled")):
            stream = split("digits", steps=steps, seed=seed)
            with seeded(seed, "initial weights"):
                learners: dict[str, Learner] = {
                    "DKVB": _small(stream, DKVB),
                    "linear probe": Finetune(pixels(stream.example), candidates="seen", recipe=usual),
                    "MLP": Finetune(mlp(stream.example, width=128, depth=1), candidates="seen", recipe=usual),
                }
                if order == "stream":
                    learners["DKVB, keys on noise"] = noisy = _small(stream, DKVB)
                    _place(noisy, _noise(), seed)
                    learners["DKVB, 16 pairs"] = _small(stream, DKVB, pairs=16)
            for name, learner in learners.items():
                last = run(learner, stream, seed=seed, device="cpu").last
                found.setdefault(f"{name}, {order}", []).append(last)
    numbers = {name: percent(values) for name, values in sorted(found.items())}
    ours, probes = numbers["DKVB, stream"], max(numbers["linear probe, stream"], numbers["MLP, stream"])
    between = all(probes < numbers[f"DKVB, {name}, stream"] < ours for name in ("keys on noise", "16 pairs"))
    return Verdict(
        abs(ours - numbers["DKVB, shuffled"]) < 2 and probes < 25 and between,
        numbers,
        f"Final accuracy in % on the pixels of digits, two classes at a time or all at once, {len(SEEDS)} class orders, 60 "
        "epochs an arrival, keys placed by unlabelled digits. It holds if DKVB's stream is within 2 points of its shuffled "
        "training, the sequential probe and perceptron stay under 25, and keys on noise and few keys lie in between.",
    )


def _setting(dataset: str) -> tuple[Backbone, ImageData, Data, int]:
    """An encoder, classes that it never saw, images of the classes that it saw, and how many epochs the values train."""
    from latewood.images.classes import choose
    from latewood.images.datasets import load_images
    from latewood.papers import _encoders as encoders
    from latewood.papers._unseen import encoder_and_unseen

    if dataset == "omniglot-small":
        setting = encoders.OMNIGLOT
        return encoders.trained(setting), setting.unseen_images(), setting.base_images().train, 50
    make, unseen = encoder_and_unseen(dataset, MOST)
    everything = load_images(dataset)
    others = choose("unseen", everything.classes)
    base = everything.subset([label for label in range(len(everything.classes)) if label not in set(others)])
    return make(), unseen, base.few(MOST).train, 30


def _features(dataset: str) -> Verdict:
    """A stream of unseen classes on frozen features, keys placed by images of other classes."""
    from latewood.core.recipe import Recipe
    from latewood.core.run import run
    from latewood.core.seeding import seeded
    from latewood.images.learners.dkvb import DKVB
    from latewood.images.learners.finetune import Finetune
    from latewood.images.streams.split import split
    from latewood.papers._encoders import embedded, percent

    encoder, unseen, others, epochs = _setting(dataset)
    features, embeddings = embedded(encoder, unseen)
    values = Recipe(epochs=epochs, batch_size=64, lr=10.0, momentum=0.0, clip=1.0)
    usual = Recipe(epochs=epochs, batch_size=64, lr=0.01)
    found: dict[str, list[float]] = {}
    for seed in SEEDS:
        for steps, order in ((10, "stream"), (1, "shuffled")):
            images, rows = split(unseen, steps=steps, seed=seed), split(embeddings, steps=steps, seed=seed)
            with seeded(seed, "initial weights"):
                learner = DKVB(encoder, 64, 512, key_width=14, recipe=values)
                _place(learner, others, seed)
                probe = Finetune(features, candidates="seen", recipe=usual)
            for name, each, arrivals in (("DKVB", learner, images), ("linear probe", probe, rows)):
                found.setdefault(f"{name}, {order}", []).append(run(each, arrivals, seed=seed, device="cpu").last)
    numbers = {name: percent(values) for name, values in sorted(found.items())}
    ours = numbers["DKVB, stream"]
    return Verdict(
        numbers["DKVB, shuffled"] - ours < 5 and ours >= 2 * numbers["linear probe, stream"],
        numbers,
        f"Final accuracy in % over {len(SEEDS)} orders of 100 unseen classes of {dataset} ({len(unseen.train)} images), ten at "
        f"a time or all at once, {epochs} epochs an arrival, on a frozen encoder; 64 codebooks of 512 keys, placed by images "
        "of the classes that it saw. It holds if DKVB's stream is within 5 points of its shuffled training and twice the "
        "sequential linear probe.",
    )


def _without(part: str) -> Callable[..., DKVB]:
    """DKVB without one of the parts that make an update local, or whole where ``part`` is none of them."""
    from latewood.images.learners.dkvb import DKVB
    from latewood.parts.quantisation import MovingKeys

    class MovingOn(DKVB):
        """Keys that go on following the inputs of each arrival."""

        def follow(self, moving: MovingKeys, features: Tensor) -> None:
            super().follow(moving, features)
            self.moving = moving

        def update(self, features: Tensor, columns: Tensor) -> None:
            self.follow(self.moving, features)
            self.bottleneck.keys = self.moving.keys
            super().update(features, columns)

    class Unmasked(DKVB):
        """Keys answer that training never fetched."""

        def score(self, features: Tensor) -> Tensor:
            votes: Tensor = self.bottleneck(self.bottleneck.rows(self.bottleneck.heads(features)))
            return votes[:, : len(self.classes)]

    kinds: dict[str, Callable[..., DKVB]] = {"trained decoder": _decoded, "moving keys": MovingOn, "no mask": Unmasked}
    return kinds.get(part, DKVB)


def _decoded(backbone: Backbone, **settings: Any) -> DKVB:
    """DKVB with a linear layer behind the votes, which begins as the identity and trains on."""
    from torch import nn
    from torch.nn import functional as F

    from latewood.images.learners.dkvb import DKVB

    class Decoded(DKVB):
        decoder: nn.Linear

        def parameter_groups(self) -> list[dict[str, Any]]:
            return [*super().parameter_groups(), {"params": [self.decoder.weight], "lr": 0.03}]

        def loss(self, batch: Data) -> Tensor:
            logits = self.decoder(self.bottleneck(batch.tensor("row")))
            return F.cross_entropy(logits, batch.tensor("column"), label_smoothing=self.smoothing)

        def score(self, features: Tensor) -> Tensor:
            used = self.bottleneck.rows(self.bottleneck.heads(features), self.bottleneck.counts > 0)
            decoded: Tensor = self.decoder(self.bottleneck(used))
            return decoded[:, : len(self.classes)]

    learner = Decoded(backbone, **{**settings, "outputs": 10})
    learner.decoder = nn.Linear(10, 10, bias=False)
    nn.init.eye_(learner.decoder.weight)
    return learner


def _ablation() -> Verdict:
    """Each part taken away, on digits; what counts are the classes of all arrivals but the last."""
    from latewood.core.run import run
    from latewood.core.seeding import seeded
    from latewood.images.streams.split import split

    found: dict[str, list[float]] = {}
    for seed in SEEDS:
        stream = split("digits", steps=5, seed=seed)
        for name in ("whole", "trained decoder", "moving keys", "no mask"):
            with seeded(seed, "initial weights"):
                learner = _small(stream, _without(name))
            scores = run(learner, stream, seed=seed, device="cpu").matrix()[-1, :-1]
            found.setdefault(name, []).append(float(scores.mean()))
    numbers = {name: 100 * sum(values) / len(values) for name, values in found.items()}
    return Verdict(
        all(value < numbers["whole"] for name, value in numbers.items() if name != "whole"),
        numbers,
        f"Accuracy in % at the end on the classes of the first four of five arrivals, digits, {len(SEEDS)} class orders. It "
        "holds if each loses: a decoder (from the identity, rate 0.03) that trains on, keys that go on following the "
        "inputs of each arrival, and prediction without the mask of unused keys.",
    )


PAPER = Paper(
    number=40,
    name="dkvb",
    title="Discrete Key-Value Bottleneck",
    kind="learner",
    arxiv="2207.11240",
    summary=(
        "Puts discrete keys with trainable values behind a frozen encoder, so that an update stays near its own inputs, "
        "and compares a class-by-class stream with shuffled training."
    ),
    code=("latewood.images.learners.dkvb:DKVB", "latewood.parts.quantisation:MovingKeys"),
    claims=(
        Claim("figure-2", "In the plane it keeps every task, where a linear layer and a perceptron keep the last.", _figure_2),
        Claim("as-shuffled-digits", "A stream of classes ends where shuffled training ends (digits).", _as_shuffled),
        Claim(
            "as-shuffled-omniglot",
            "A stream of classes ends near shuffled training on frozen features (characters).",
            lambda: _features("omniglot-small"),
            needs="omniglot-small",
        ),
        Claim(
            "as-shuffled-tiny-imagenet",
            "A stream of classes ends near shuffled training on frozen features (objects).",
            lambda: _features("tiny-imagenet-32"),
            needs="tiny-imagenet-32",
        ),
        Claim("parts", "Frozen decoder, frozen keys and the mask of unused keys each keep old classes.", _ablation),
    ),
)
