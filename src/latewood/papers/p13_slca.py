"""SLCA: Slow Learner with Classifier Alignment for Continual Learning on a Pre-trained Model"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from latewood.papers.ledger import Claim, Paper, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from latewood.core.recipe import Precision
    from latewood.images.datasets import ImageData
    from latewood.images.learners.slca import SLCA
    from latewood.parts.backbone import Backbone

SEEDS = (0, 1, 2)
#: What the backbone's learning rate is of the head's.
RATES = {"one rate": 1.0, "10x slower": 0.1, "100x slower": 0.01, "frozen": 0.0}
#: Training images of each class, and epochs over them.
SIZES = {"omniglot-small": (15, 10), "tiny-imagenet-32": (20, 3)}
Numbers = dict[str, float]


@cache
def _measured(dataset: str) -> Numbers:
    """Final accuracy in % for each rate of the backbone with the heads as trained, aligned, and aligned on plain logits."""
    from latewood.papers._unseen import encoder_and_unseen

    most, epochs = SIZES[dataset]
    make, images = encoder_and_unseen(dataset, most)
    return _compared(make, images, epochs, RATES, "bfloat16")


def _compared(
    make: Callable[[], Backbone],
    images: ImageData,
    epochs: int,
    rates: dict[str, float],
    precision: Precision = "float32",
) -> Numbers:
    from latewood.core.recipe import Recipe
    from latewood.core.run import run
    from latewood.images.learners.slca import SLCA
    from latewood.images.streams.split import split

    milestone = max(1, epochs * 9 // 10)
    recipe = Recipe(epochs, lr=0.01, weight_decay=5e-4, schedule="step", milestones=(milestone,), precision=precision)
    found: dict[str, list[float]] = {}
    for seed in SEEDS:
        stream = split(images, steps=10 if len(images.classes) >= 20 else 5, seed=seed)
        for name, slowness in rates.items():
            learner = SLCA(make(), slowness, recipe=recipe)
            found.setdefault(f"{name}, aligned", []).append(run(learner, stream, seed=seed, device="cpu").last)
            for kind, value in _other_heads(learner, images, seed).items():
                found.setdefault(f"{name}, {kind}", []).append(value)
    return {name: 100 * sum(values) / len(values) for name, values in sorted(found.items())}


def _other_heads(learner: SLCA, images: ImageData, seed: int) -> Numbers:
    """Alignment begins from the head as trained and is never trained on, so one run gives the accuracy of all heads."""
    from dataclasses import replace

    import torch

    from latewood.parts.alignment import align

    def accuracy() -> float:
        return float((learner.predict(images.test) == images.test.tensor("label")).double().mean())

    with torch.no_grad():
        learner.net.head.load_state_dict(learner.raw.state_dict())
    as_trained = accuracy()
    settings = replace(learner.alignment, temperature=None)
    align(learner.net.head, learner.gaussians, settings, torch.Generator().manual_seed(seed))
    return {"not aligned": as_trained, "aligned on plain logits": accuracy()}


def _slow(dataset: str) -> Verdict:
    """One learning rate, 10 and 100 times lower for the backbone, and a frozen one; all heads as they were trained."""
    numbers = {name: value for name, value in _measured(dataset).items() if name.endswith("not aligned")}
    return Verdict(
        numbers["100x slower, not aligned"] > numbers["one rate, not aligned"],
        numbers,
        f"Final accuracy in % over {len(SEEDS)} class orders, 10 arrivals of 10 unseen classes of {dataset} with "
        f"{SIZES[dataset][0]} images each and {SIZES[dataset][1]} epochs in bfloat16; it holds if the backbone that learns 100 "
        "times more slowly beats one learning rate.",
    )


def _aligned(dataset: str) -> Verdict:
    """The slow learner with and without alignment, the fast one with it."""
    numbers = _measured(dataset)
    slca = numbers["100x slower, aligned"]
    return Verdict(
        slca > max(numbers["100x slower, not aligned"], numbers["one rate, aligned"]),
        numbers,
        f"Final accuracy in % over {len(SEEDS)} class orders on unseen classes of {dataset}; it holds if SLCA (100 times "
        "slower, aligned) beats the slow learner without alignment and the fast one with it. An aligned frozen backbone, and "
        "alignment on plain logits, are shown and decide nothing.",
    )


def _digits() -> Verdict:
    """Alignment on pixels, which no training changes."""
    from latewood.images.datasets import load_images
    from latewood.images.nets.pixels import pixels

    images = load_images("digits")
    numbers = _compared(lambda: pixels(images.train[:1]), images, epochs=5, rates={"pixels": 0.0})
    return Verdict(
        numbers["pixels, aligned"] > numbers["pixels, not aligned"] + 5,
        numbers,
        f"Final accuracy in % over {len(SEEDS)} class orders, digits in 5 arrivals, heads on the pixels themselves; it holds "
        "if alignment adds more than 5 points. Alignment on plain logits is shown and decides nothing.",
    )


PAPER = Paper(
    number=13,
    name="slca",
    title="SLCA: Slow Learner with Classifier Alignment for Continual Learning on a Pre-trained Model",
    kind="learner",
    arxiv="2303.05118",
    summary=(
        "Fine-tunes a pretrained backbone at a small fraction of its head's learning rate, then corrects all heads on "
        "features drawn from a Gaussian for each class, with a frozen backbone as the control."
    ),
    code=("latewood.images.learners.slca:SLCA", "latewood.parts.alignment:align", "latewood.parts.gaussians:Gaussians"),
    claims=(
        Claim("alignment-digits", "Heads that were trained apart are balanced by features drawn from Gaussians.", _digits),
        Claim(
            "slow-omniglot",
            "A backbone that learns 100 times more slowly than its head forgets less (characters).",
            lambda: _slow("omniglot-small"),
            needs="omniglot-small",
        ),
        Claim(
            "alignment-omniglot",
            "Alignment adds to the slow learner, and does not replace it (characters).",
            lambda: _aligned("omniglot-small"),
            needs="omniglot-small",
        ),
        Claim(
            "slow-tiny-imagenet",
            "A backbone that learns 100 times more slowly than its head forgets less (objects).",
            lambda: _slow("tiny-imagenet-32"),
            needs="tiny-imagenet-32",
        ),
        Claim(
            "alignment-tiny-imagenet",
            "Alignment adds to the slow learner, and does not replace it (objects).",
            lambda: _aligned("tiny-imagenet-32"),
            needs="tiny-imagenet-32",
        ),
    ),
)
