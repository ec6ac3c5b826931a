"""First Session Adaptation: A Strong Replay-Free Baseline for Class-Incremental Learning"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from latewood.papers.ledger import Claim, Paper, Verdict

if TYPE_CHECKING:
    from latewood.core.experience import Experience
    from latewood.core.recipe import Recipe
    from latewood.core.stream import Stream
    from latewood.images.datasets import ImageData
    from latewood.images.learners.fsa import FSA
    from latewood.parts.backbone import Backbone

SEEDS = (0, 1, 2)
Numbers = dict[str, float]


class _Size(NamedTuple):
    """How much of a data set is used where the body is trained, and under which shifts of its images."""

    train: int
    test: int
    epochs: int
    shifts: tuple[str, ...]


#: Of 60 classes that the encoder never saw.
SIZES = {
    "omniglot-small": _Size(train=15, test=5, epochs=8, shifts=("", "inverted", "halves swapped")),
    "tiny-imagenet-32": _Size(train=10, test=10, epochs=5, shifts=("", "inverted")),
}
CLASSES = 60
#: Classes of each arrival where the first one is small.
FEW = 10
#: Rows of each class where only heads are compared.
MOST = {"clinc150": 100, "omniglot-small": 15, "tiny-imagenet-32": 60}


def _heads(dataset: str) -> Verdict:
    """The same frozen features under several heads, arrival by arrival and all at once."""
    from latewood.core.run import run
    from latewood.images.learners.fsa import FSA
    from latewood.images.learners.simplecil import SimpleCIL
    from latewood.images.streams.split import split

    backbone, rows = _features(dataset)
    makers: dict[str, Callable[[], Any]] = {
        "LDA": lambda: FSA(backbone, "none"),
        "LDA within classes": lambda: FSA(backbone, "none", covariance="within"),
        "nearest mean": lambda: FSA(backbone, "none", "ncm"),
        "cosine prototypes": lambda: SimpleCIL(backbone),
        "QDA": lambda: FSA(backbone, "none", "qda"),
    }
    found: dict[str, list[float]] = {}
    different = 0
    for seed in SEEDS:
        for name, make in makers.items():
            learners = [make(), make()]
            for learner, steps in zip(learners, (10, 1), strict=True):
                run(learner, split(rows, steps=steps, seed=seed), seed=seed, device="cpu")
            found.setdefault(name, []).append(_accuracy(learners[0], rows))
            if name in ("LDA", "nearest mean"):
                predicted = [learner.predict(rows.test) for learner in learners]
                different += int((predicted[0] != predicted[1]).sum())
    numbers = {name: sum(values) / len(values) for name, values in found.items()}
    numbers["predictions that differ from all at once"] = different
    return Verdict(
        numbers["LDA"] > numbers["nearest mean"] and different == 0,
        numbers,
        f"Final accuracy in % over {len(SEEDS)} class orders, 10 arrivals of {len(rows.classes)} classes of {dataset} with at "
        f"most {MOST[dataset]} rows each, on features of a frozen encoder. It holds if LDA with the total covariance beats the "
        "nearest mean, and both predict what they do when everything arrives at once. The other heads decide nothing.",
    )


def _features(dataset: str) -> tuple[Backbone, ImageData]:
    from dataclasses import replace

    from latewood.papers._encoders import embedded
    from latewood.papers._unseen import encoder_and_unseen
    from latewood.parts.features import Embedded, Features

    if dataset != "clinc150":
        make, images = encoder_and_unseen(dataset, MOST[dataset])
        return embedded(make(), images)
    from latewood.language.nets.sentence import sentence
    from latewood.papers._intents import intents

    sentences = intents(MOST[dataset])
    rows: tuple[Embedded, ImageData] = embedded(sentence(sentences.train[:1]), replace(sentences))
    # The encoder's rows have length one, beside which a ridge of one would be all there is.
    return Features(rows[0].width), rows[1]


def _accuracy(learner: Any, rows: ImageData) -> float:
    return 100 * float((learner.predict(rows.test) == rows.test.tensor("label")).double().mean())


def _few(dataset: str) -> tuple[Callable[[], Backbone], ImageData]:
    """A maker of the encoder, and the part of its unseen classes that is used where the body is trained."""
    from dataclasses import replace

    import torch

    from latewood.papers._unseen import encoder_and_unseen

    size = SIZES[dataset]
    make, images = encoder_and_unseen(dataset, size.train)
    images = images.subset(range(CLASSES))
    labels = images.test.tensor("label")
    kept = torch.cat([(labels == label).nonzero().flatten()[: size.test] for label in range(CLASSES)])
    return make, replace(images, test=images.test[kept.sort().values])


def _recipe(adapt: str, epochs: int) -> Recipe:
    """The official schedule in fewer epochs; a rate of 0.001, its usual one for Adam, where the whole body is trained."""
    from latewood.core.recipe import Recipe

    drops = tuple(max(1, epochs * quarter // 4) for quarter in (1, 2, 3))
    common: dict[str, Any] = {"optimizer": "adam", "schedule": "step", "milestones": drops, "lr_decay": 0.7}
    return Recipe(epochs, 32, lr=1e-3 if adapt == "full" else 5e-3, precision="bfloat16", **common)


def _learned(learner: FSA, stream: Stream, seed: int) -> FSA:
    from latewood.core.run import run

    run(learner, stream, seed=seed, device="cpu")
    return learner


@cache
def _adapted(dataset: str) -> Numbers:
    """Final accuracy in % with the body as it came, adapted as a whole, and with factors and offsets alone; the spread."""
    from latewood.images.learners.fsa import FSA, cosine_spread
    from latewood.images.streams.split import split
    from latewood.papers._unseen import shifted
    from latewood.parts.embedding import Encoder

    make, plain = _few(dataset)
    found: dict[str, list[float]] = {}
    spreads: Numbers = {}
    for shift in SIZES[dataset].shifts:
        images = shifted(plain, shift)
        spreads[f"cosine spread {shift}".strip()] = cosine_spread(Encoder(make())(images.train)).mean
        for seed in SEEDS:
            stream = split(images, base=20, increment=20, seed=seed)
            for adapt in ("none", "full", "film"):
                learner = FSA(make(), adapt, recipe=_recipe(adapt, SIZES[dataset].epochs))
                found.setdefault(f"{adapt} {shift}".strip(), []).append(_accuracy(_learned(learner, stream, seed), images))
    return {name: sum(values) / len(values) for name, values in found.items()} | spreads


def _gains(numbers: Mapping[str, float], shifts: tuple[str, ...]) -> dict[str, float]:
    """What training the whole body gains on each stream."""
    return {shift: numbers[f"full {shift}".strip()] - numbers[f"none {shift}".strip()] for shift in shifts}


def _adaptation(dataset: str) -> Verdict:
    size = SIZES[dataset]
    numbers = _adapted(dataset)
    near, *far = _gains(numbers, size.shifts).values()
    return Verdict(
        min(far) >= 0 and near < min(far),
        numbers,
        f"Final accuracy in % over {len(SEEDS)} class orders, LDA head, {CLASSES} unseen classes of {dataset} in 3 arrivals "
        f"with at most {size.train} images each, as they are and {' and '.join(size.shifts[1:])}; {size.epochs} epochs of the "
        "first arrival. It holds if training the whole body there loses on no shifted stream, and gains more on each of them "
        "than on images as they are. Factors and offsets alone (film) decide nothing.",
    )


def _spread() -> Verdict:
    """Whether a measure without labels tells where adapting pays."""
    from scipy.stats import spearmanr

    numbers: Numbers = {}
    spreads, gains = [], []
    for dataset, size in SIZES.items():
        measured = _adapted(dataset)
        for shift, gain in _gains(measured, size.shifts).items():
            spreads.append(measured[f"cosine spread {shift}".strip()])
            gains.append(gain)
            name = f"{dataset} {shift}".strip()
            numbers |= {f"{name}: spread": spreads[-1], f"{name}: gain": gain}
    rank = float(spearmanr(spreads, gains).statistic)
    return Verdict(
        rank < 0,
        {**numbers, "rank correlation": rank},
        f"Mean cosine distance between features of the body as it came, and what training it gains in points, on "
        f"{len(gains)} streams, {len(SEEDS)} class orders each. It holds if their rank correlation is negative.",
    )


def _few_images() -> Verdict:
    """A small first arrival: which adaptation fits it."""
    from latewood.images.learners.fsa import FSA
    from latewood.images.streams.split import split

    dataset = "omniglot-small"
    make, images = _few(dataset)
    found: dict[str, list[float]] = {}
    for seed in SEEDS:
        stream = split(images, increment=FEW, seed=seed)
        for adapt in ("none", "full", "film"):
            learner = FSA(make(), adapt, recipe=_recipe(adapt, SIZES[dataset].epochs))
            found.setdefault(adapt, []).append(_accuracy(_learned(learner, stream, seed), images))
    numbers = {name: sum(values) / len(values) for name, values in found.items()}
    return Verdict(
        numbers["film"] >= numbers["full"],
        numbers,
        f"Final accuracy in % over {len(SEEDS)} class orders, LDA head, {CLASSES} unseen characters in arrivals of {FEW} "
        f"with 15 images each, {SIZES[dataset].epochs} epochs of the first. It holds if factors and offsets alone are at least "
        "as good as training the whole body. The body as it came decides nothing.",
    )


def _further() -> Verdict:
    """Adapting once against adapting at every arrival, where old sums go stale."""
    from latewood.images.learners.fsa import FSA, DroppedHead
    from latewood.images.streams.split import split
    from latewood.parts.adaptation import AdaptedEncoder

    class Ongoing(FSA):
        """The body is trained on at every arrival; what is kept of older ones are sums of what their features were."""

        def learn(self, experience: Experience) -> None:
            if len(self.classes):
                assert isinstance(self.encoder, AdaptedEncoder)
                head = DroppedHead(self.backbone.width, self.dropout)
                self.encoder.adapt(experience, head, self.recipe, self.generator)
            super().learn(experience)

    dataset = "omniglot-small"
    make, images = _few(dataset)
    found: dict[str, list[float]] = {}
    for seed in SEEDS:
        stream = split(images, increment=FEW, seed=seed)
        for name, kind in (("adapted once", FSA), ("adapted at every arrival", Ongoing)):
            for adapt in ("full", "film"):
                learner = kind(make(), adapt, recipe=_recipe(adapt, SIZES[dataset].epochs))
                found.setdefault(f"{name}, {adapt}", []).append(_accuracy(_learned(learner, stream, seed), images))
    numbers = {name: sum(values) / len(values) for name, values in found.items()}
    return Verdict(
        all(numbers[f"adapted once, {adapt}"] > numbers[f"adapted at every arrival, {adapt}"] for adapt in ("full", "film")),
        numbers,
        f"Final accuracy in % over {len(SEEDS)} class orders, LDA head, {CLASSES} unseen characters in arrivals of {FEW} "
        f"with 15 images each, {SIZES[dataset].epochs} epochs. It holds if adapting on the first arrival alone beats adapting "
        "at each one with the sums that older ones left, for the whole body and for factors and offsets alike.",
    )


PAPER = Paper(
    number=45,
    name="fsa",
    title="First Session Adaptation: A Strong Replay-Free Baseline for Class-Incremental Learning",
    kind="learner + protocol + scenario",
    arxiv="2303.13199",
    summary=(
        "Fine-tunes the backbone on the first arrival only, updates an exact linear discriminant from sums at every "
        "arrival, and measures when that one adaptation pays."
    ),
    code=(
        "latewood.images.learners.fsa:FSA",
        "latewood.images.learners.fsa:cosine_spread",
        "latewood.parts.lda:LDA",
        "latewood.parts.adapters:film",
    ),
    claims=(
        *(
            Claim(
                f"head-{dataset}",
                f"On frozen features a linear discriminant beats nearest means, and arrivals cost it nothing ({what}).",
                lambda dataset=dataset: _heads(dataset),  # type: ignore[misc]
                needs=dataset,
            )
            for dataset, what in (("clinc150", "sentences"), ("omniglot-small", "characters"), ("tiny-imagenet-32", "objects"))
        ),
        *(
            Claim(
                f"adapt-once-{dataset}",
                f"Adapting the body on the first arrival helps where images are far from its training ({what}).",
                lambda dataset=dataset: _adaptation(dataset),  # type: ignore[misc]
                needs=dataset,
            )
            for dataset, what in (("omniglot-small", "characters"), ("tiny-imagenet-32", "objects"))
        ),
        Claim(
            "spread",
            "Adapting pays where the features of the body as it came lie close together.",
            _spread,
            needs="tiny-imagenet-32",
        ),
        Claim(
            "few-images-omniglot-small",
            "With few images in the first arrival, factors and offsets are the adaptation to use.",
            _few_images,
            needs="omniglot-small",
        ),
        Claim(
            "further-omniglot-small",
            "Adapting the body further, at every arrival, does not help.",
            _further,
            needs="omniglot-small",
        ),
    ),
)
