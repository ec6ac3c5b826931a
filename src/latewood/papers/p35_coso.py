"""Continuous Subspace Optimization for Continual Learning"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from latewood.papers.ledger import Claim, Paper, Verdict

if TYPE_CHECKING:
    from torch import Tensor

    from latewood.core.data import Data
    from latewood.images.datasets import ImageData
    from latewood.images.learners.coso import CoSO
    from latewood.parts.backbone import Backbone

SEEDS = (0, 1, 2)
#: Into how many arrivals the 100 unseen characters are divided.
ARRIVALS = (10, 20)
#: Training images of each unseen class of Tiny ImageNet.
FEW = 10
#: What is set for each row; the first is the paper's.
ROWS: Mapping[str, Mapping[str, Any]] = {
    "CoSO": {},
    "without orthogonality": {"orthogonal": False},
    "last gradient": {"memory": "last"},
    # One subspace that never moves anything: heads on the features as they came.
    "frozen": {"matrix_lr": 0.0, "gap": 10**9},
}
CHARACTERS = {"matrices": r"blocks\.\d\.3$", "rank": 12, "sketch": 32, "matrix_lr": 3e-3}
OBJECTS = {"rank": 12, "sketch": 48, "matrix_lr": 5e-4}
Numbers = dict[str, float]


def residual_perceptron(example: Data, width: int = 192, hidden: int = 256, depth: int = 4) -> Backbone:
    """Blocks ``x + W2 relu(W1 norm(x))`` on the pixels: small matrices to adapt, beside a path that they can't destroy."""
    from torch import nn

    from latewood.images.nets._image import ImageBackbone

    class ResidualPerceptron(ImageBackbone):
        def __init__(self) -> None:
            super().__init__(example, {"name": "residual-perceptron"}, augment="crop")
            self.width = width
            self.stem = nn.Linear(self.channels * self.shape[1] * self.shape[2], width)
            parts = [(nn.LayerNorm(width), nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width)) for _ in range(depth)]
            self.blocks = nn.ModuleList(nn.Sequential(*part) for part in parts)
            self.norm = nn.LayerNorm(width)

        def forward(self, inputs: Tensor) -> Tensor:
            stream: Tensor = self.stem(inputs.flatten(1))
            for block in self.blocks:
                stream = stream + block(stream)
            features: Tensor = self.norm(stream)
            return features

    return ResidualPerceptron()


@cache
def _characters() -> tuple[Backbone, ImageData, float]:
    """A residual perceptron trained on 142 characters, 100 others with swapped halves, and its accuracy on its own in %.

    Swapped halves make the features that it learned unsuitable, so that there is something to learn.
    """
    from latewood.core.experience import Experience
    from latewood.core.recipe import Recipe
    from latewood.core.seeding import seeded
    from latewood.images.learners.finetune import Finetune
    from latewood.papers._encoders import OMNIGLOT

    base, unseen = _drawn(OMNIGLOT.base_images(), swapped=False), _drawn(OMNIGLOT.unseen_images(), swapped=True)
    with seeded("encoder"):
        encoder = residual_perceptron(base.train[:1])
    recipe = Recipe(epochs=40, batch_size=32, optimizer="adam", lr=1e-3, schedule="cosine")
    learner = Finetune(encoder, recipe=recipe)
    learner.learn(Experience(0, base.train, tuple(range(OMNIGLOT.base))))
    right = (learner.predict(base.test) == base.test.tensor("label")).double().mean()
    return encoder.eval(), unseen, 100 * float(right)


def _drawn(images: ImageData, swapped: bool) -> ImageData:
    """Bright ink on black, as a perceptron needs it to learn at all; left and right halves swapped if that is asked."""
    from dataclasses import replace

    def changed(image: Tensor) -> Tensor:
        return (255 - image).roll(image.shape[3] // 2 if swapped else 0, 3)

    train, test = (part.with_columns(image=changed(part.tensor("image"))) for part in (images.train, images.test))
    return replace(images, train=train, test=test)


@cache
def _on_characters(row: str, arrivals: int) -> Numbers:
    """Means over seeds: final accuracy and that averaged over arrivals, both in %, and directions kept of each matrix."""
    import copy

    from latewood.core.run import run
    from latewood.images.streams.split import split
    from latewood.parts.subspaces import SubspaceRecipe

    encoder, images, _ = _characters()
    recipe = SubspaceRecipe(epochs=20, batch_size=32, lr=3e-3)
    found: dict[str, list[float]] = {"": [], " on average": [], " k": []}
    for seed in SEEDS:
        learner = _made(lambda: copy.deepcopy(encoder), seed, {**CHARACTERS, **ROWS[row]}, recipe)
        record = run(learner, split(images, steps=arrivals, seed=seed), seed=seed, device="cpu")
        found[""].append(100 * record.last)
        found[" on average"].append(100 * record.anytime)
        found[" k"].append(_kept(learner))
    return {f"{row}, {arrivals} arrivals{name}": sum(values) / len(values) for name, values in found.items()}


def _made(make: Callable[[], Backbone], seed: int, settings: Mapping[str, Any], recipe: Any) -> CoSO:
    from latewood.core.seeding import seeded
    from latewood.images.learners.coso import CoSO

    with seeded(seed, "initial weights"):
        return CoSO(make(), **settings, recipe=recipe)


def _kept(learner: CoSO) -> float:
    """How many directions the basis of a matrix holds, on average."""
    counts = [float(count) for subspaces in learner._each() for count in subspaces.kept.tolist()]
    return sum(counts) / len(counts)


def _orthogonal() -> Verdict:
    """CoSO with and without what keeps gradients out of the directions of earlier arrivals."""
    numbers: Numbers = {}
    for row in ("CoSO", "without orthogonality", "frozen"):
        for arrivals in ARRIVALS:
            numbers |= _on_characters(row, arrivals)
    gaps = [numbers[f"CoSO, {n} arrivals"] - numbers[f"without orthogonality, {n} arrivals"] for n in ARRIVALS]
    numbers["the encoder on its own characters"] = _characters()[2]
    numbers |= {f"gap, {n} arrivals": gap for n, gap in zip(ARRIVALS, gaps, strict=True)}
    return Verdict(
        gaps[1] > gaps[0] > 0,
        numbers,
        f"Final accuracy in % over {len(SEEDS)} class orders, that averaged over arrivals, and directions kept of each of 4 "
        "192x256 matrices: 100 unseen characters with swapped halves, on a residual perceptron trained on 142 others, 20 "
        "epochs an arrival. It holds if orthogonality raises the final accuracy in 10 arrivals, and more so in 20; heads on "
        "the frozen features are shown and decide nothing.",
    )


def _sketched() -> Verdict:
    """The sketch of all gradients of an arrival against the last one of them."""
    numbers: Numbers = {}
    for row in ("CoSO", "last gradient", "frozen"):
        for arrivals in ARRIVALS:
            numbers |= _on_characters(row, arrivals)
    return Verdict(
        all(numbers[f"CoSO, {n} arrivals"] > numbers[f"last gradient, {n} arrivals"] for n in ARRIVALS),
        numbers,
        f"Final accuracy in % over {len(SEEDS)} class orders, that averaged over arrivals, and directions kept of each of 4 "
        "192x256 matrices, on the characters of the first claim. It holds if the sketch beats the last gradient in 10 "
        "arrivals and in 20.",
    )


def _on_objects() -> Verdict:
    """The orthogonality on a transformer."""
    from latewood.images.streams.split import split
    from latewood.papers._unseen import TESTED, encoder_and_unseen
    from latewood.parts.subspaces import SubspaceRecipe

    make, images = encoder_and_unseen("tiny-imagenet-32", FEW)
    recipe = SubspaceRecipe(epochs=2, batch_size=32, lr=5e-3)
    found: dict[str, list[float]] = {}
    for seed in SEEDS:
        stream = split(images, steps=10, seed=seed)
        for row in ("CoSO", "without orthogonality", "frozen"):
            # What does not move needs no gradient below it either.
            least = {"matrices": r"layers\.5\.attention\.o_proj"} if row == "frozen" else {}
            learner = _made(make, seed, {**OBJECTS, **ROWS[row], **least}, recipe)
            for index, experience in enumerate(stream):
                learner.generator.manual_seed(1000 * seed + index)
                learner.learn(experience)
            right = (learner.predict(images.test) == images.test.tensor("label")).double().mean()
            found.setdefault(row, []).append(100 * float(right))
            found.setdefault(f"{row} k", []).append(_kept(learner))
    numbers = {name: sum(values) / len(values) for name, values in found.items()}
    return Verdict(
        numbers["CoSO"] > numbers["without orthogonality"],
        numbers,
        f"Final accuracy in % over {len(SEEDS)} class orders, and directions kept of each of six 192x192 projections of "
        f"attention: 10 arrivals of 10 unseen classes of Tiny ImageNet, {FEW} training and {TESTED} test images each, 2 "
        "epochs, on a small ViT. It holds if orthogonality raises the accuracy; heads on the frozen features are shown and "
        "decide nothing.",
    )


def _memory() -> Verdict:
    """What the optimiser keeps of a ViT-B's projections of attention, and how long its steps take."""
    rank, sketch, count, width = 50, 120, 12, 768
    sizes, seconds = {}, {}
    for name, exact, gap in (("exact", True, 1), ("approximate", False, 1), ("exact, K = 20", True, 20)):
        sizes[name], seconds[name] = _optimiser_step(count, width, rank, sketch, exact, gap)
    formula = 4 * count * (2 * rank * width + width * (rank + sketch))
    adam = 4 * count * 2 * width * width
    numbers = {
        "MB of Adam": adam / 1e6,
        "MB of CoSO": sizes["exact"] / 1e6,
        "MB of the formula": formula / 1e6,
        "times less": adam / sizes["exact"],
        **{f"seconds a step, {name}": value for name, value in seconds.items()},
    }
    return Verdict(
        all(size == formula for size in sizes.values()) and adam / formula > 5,
        numbers,
        "State of the optimiser for twelve matrices of 768x768 with rank 50 and a sketch of 120 in the first arrival, "
        "measured, and the mean seconds of its step on one core for random gradients, which decide nothing; it holds if the "
        "size is that of the formula and a fifth of Adam's at most.",
    )


def _optimiser_step(count: int, width: int, rank: int, sketch: int, exact: bool, gap: int) -> tuple[int, float]:
    """Bytes of state, and seconds of a step; with ``gap`` 1 a few steps are enough."""
    import time

    import torch

    from latewood.parts.subspaces import Subspaces, SubspaceSettings

    subspaces = Subspaces(count, width, width, SubspaceSettings(rank, sketch, gap, exact=exact))
    chance = torch.Generator().manual_seed(0)
    weights = [torch.nn.Parameter(torch.zeros(width, width)) for _ in range(count)]
    for weight in weights:
        weight.grad = torch.randn(width, width, generator=chance)
    subspaces.step(weights, lr=1e-3)
    steps = 20 if gap > 1 else 3
    start = time.perf_counter()
    for _ in range(steps):
        subspaces.step(weights, lr=1e-3)
    floats = [value for value in subspaces.buffers() if value.is_floating_point()]
    return sum(value.numel() * value.element_size() for value in floats), (time.perf_counter() - start) / steps


PAPER = Paper(
    number=35,
    name="coso",
    title="Continuous Subspace Optimization for Continual Learning",
    kind="learner",
    arxiv="2505.11816",
    summary=(
        "Fine-tunes weight matrices in low-rank gradient subspaces that leave out the directions of earlier tasks, which "
        "it summarises in a sketch, and counts the optimiser memory saved."
    ),
    code=(
        "latewood.images.learners.coso:CoSO",
        "latewood.parts.subspaces:Subspaces",
        "latewood.parts.subspaces:SubspaceAdam",
    ),
    claims=(
        Claim(
            "orthogonality",
            "Keeping gradients out of what earlier arrivals used is the core, the more so the more arrivals there are.",
            _orthogonal,
            needs="omniglot-small",
        ),
        Claim(
            "sketch",
            "A sketch of all gradients tells what an arrival used better than the last gradient.",
            _sketched,
            needs="omniglot-small",
        ),
        Claim(
            "orthogonality-tiny-imagenet",
            "Keeping gradients out of what earlier arrivals used raises the accuracy of a transformer.",
            _on_objects,
            needs="tiny-imagenet-32",
        ),
        Claim("memory", "The optimiser keeps a fifth of what Adam keeps.", _memory),
    ),
)
