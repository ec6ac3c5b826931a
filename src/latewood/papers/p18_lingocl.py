"""Enhancing Visual Continual Learning with Language-Guided Supervision"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from latewood.papers.ledger import Claim, Paper, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from torch import Tensor

    from latewood.core.stream import Stream
    from latewood.images.datasets import ImageData
    from latewood.images.learners.lingocl import LingoCL
    from latewood.parts.backbone import Backbone

SEEDS = (0, 1, 2, 3, 4)
HEADS = ("learned", "random", "semantic")
STEPS = 10
#: Training samples of each class.
MOST = 40
#: Epochs of an arrival, and samples of each class that the buffer has room for.
EPOCHS, KEPT = 10, 2
#: By so many points an accuracy may miss chance and still be at chance.
MARGIN = 3.0
Numbers = dict[str, float]


class _Case(NamedTuple):
    """Samples as vectors, the names of their classes, and what they are in words."""

    samples: ImageData
    #: One direction for each class from the language model.
    directions: Tensor
    where: str


class _Known(NamedTuple):
    """Directions that were computed before, found by the name."""

    names: tuple[str, ...]
    directions: Tensor

    def encode(self, texts: Sequence[str]) -> Tensor:
        return self.directions[[self.names.index(text) for text in texts]]


@cache
def _case(dataset: str) -> _Case:
    from dataclasses import replace

    samples, what = _images() if dataset == "tiny-imagenet-32" else _sentences()
    samples = replace(samples, classes=tuple(_plain(name) for name in samples.classes))
    where = (
        f"{len(samples.classes)} {what} in {STEPS} arrivals, related names in different ones; {MOST} training samples a class, "
        f"{EPOCHS} epochs, replay with a buffer of {KEPT} a class, {len(SEEDS)} seeds, targets from MiniLM, which knows "
        "all of these names"
    )
    return _Case(samples, _encoded(samples.classes), where)


def _plain(name: str) -> str:
    """A name without the WordNet number behind it."""
    return name.split(" (", maxsplit=1)[0].replace("_", " ")


def _encoded(names: Sequence[str]) -> Tensor:
    """What the sentence encoder gives names, each on its own."""
    import torch

    from latewood.core.data import Data
    from latewood.language.nets.sentence import sentence

    encoder = sentence(Data(text=["a name"]))
    with torch.no_grad():
        return torch.cat([encoder(encoder.prepare(Data(text=[name]))) for name in names])


def _images() -> tuple[ImageData, str]:
    """Unseen classes of Tiny ImageNet as features of the frozen transformer that comes with Latewood."""
    from dataclasses import replace

    from latewood.core.data import Data
    from latewood.papers._encoders import embedded
    from latewood.papers._unseen import encoder_and_unseen

    make, images = encoder_and_unseen("tiny-imagenet-32", MOST)
    # Tables of their own: embedding goes by blocks of a table, and most rows of the whole one are not asked for.
    train, test = (Data(part.select("image", "label")) for part in (images.train, images.test))
    what = "unseen classes of Tiny ImageNet, an encoder of two layers on the features of a frozen small transformer"
    return embedded(make(), replace(images, train=train, test=test))[1], what


def _sentences() -> tuple[ImageData, str]:
    """CLINC150 as counts of words and pairs of words, which know of no meaning."""
    from dataclasses import replace

    import torch
    from sklearn.feature_extraction.text import HashingVectorizer

    from latewood.core.data import Data
    from latewood.papers._intents import intents

    # Hashes need no look at texts that have not arrived.
    hashed, sentences = HashingVectorizer(n_features=2048, ngram_range=(1, 2)), intents(MOST)
    train, test = (
        Data(features=torch.from_numpy(hashed.transform(part["text"]).toarray()).float(), label=part["label"])
        for part in (sentences.train, sentences.test)
    )
    what = "intents of CLINC150, an encoder of two layers on hashed words, from random weights"
    return replace(sentences, train=train, test=test), what


def _encoder(inputs: int, width: int = 256) -> Backbone:
    """The encoder that the host trains: two layers, on rows brought to a common length."""
    from torch import nn
    from torch.nn import functional as F

    from latewood.parts.backbone import Backbone

    class Encoder(Backbone):
        def __init__(self) -> None:
            super().__init__("features", (inputs,), {"name": "two layers", "width": width})
            self.width = width
            self.layers = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())

        def forward(self, inputs: Tensor) -> Tensor:
            features: Tensor = self.layers(F.normalize(inputs) * inputs.shape[1] ** 0.5)
            return features

    return Encoder()


def _apart(directions: Tensor, steps: int, seed: int) -> list[list[int]]:
    """Classes in arrivals of equal size such that those with near names come in different ones."""
    import numpy as np
    from sklearn.cluster import KMeans

    chance = np.random.default_rng(seed)
    count = len(directions)
    cluster = KMeans(max(1, count // steps), n_init=4, random_state=0).fit_predict(directions.numpy())
    # Dealt out cluster by cluster; where these stand, and who comes first in them, is by chance.
    order = np.lexsort((chance.random(count), chance.permutation(cluster.max() + 1)[cluster]))
    return [order[step::steps].tolist() for step in range(steps)]


def _stream(case: _Case, seed: int) -> Stream:
    from latewood.images.streams.split import split

    return split(case.samples, groups=_apart(case.directions, STEPS, seed))


@cache
def _measured(dataset: str) -> dict[str, Numbers]:
    """For each head, in %: average accuracy, forgetting, and accuracy on classes to come; and the cosine of drift."""
    case, found = _case(dataset), {}
    for head in HEADS:
        runs = [_run(case, head, seed) for seed in SEEDS]
        found[head] = {name: sum(numbers[name] for numbers in runs) / len(runs) for name in runs[0]}
    return found


def _run(case: _Case, head: str, seed: int) -> Numbers:
    import numpy as np

    from latewood.core.seeding import derive_seed

    stream, learner = _stream(case, seed), _learner(case, head, seed)
    accuracy, drift, ahead = np.full((len(stream), len(stream)), np.nan), list[float](), list[float]()
    for step, experience in enumerate(stream):
        old = [probe.data for probe in stream.probes[:step]]
        if step:
            ahead.append(_zero_shot(learner, stream, step, seed))
            before = [_features(learner, data) for data in old]
        learner.generator.manual_seed(derive_seed(seed, "learn", step))
        learner.learn(experience)
        for number, probe in enumerate(stream.probes[: step + 1]):
            accuracy[step, number] = probe.score(learner)["accuracy"]
        if step:
            drift += [_cosine(one, _features(learner, data)) for one, data in zip(before, old, strict=True)]
    return _summary(accuracy) | {"zero-shot": 100 * float(np.mean(ahead)), "cosine": float(np.mean(drift))}


def _summary(accuracy: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> Numbers:
    """Of the accuracy after each arrival (rows) on the classes of each (columns, of equal size)."""
    import numpy as np

    average = float(np.mean([np.nanmean(row) for row in accuracy]))
    forgetting = np.nanmax(accuracy[:-1, :-1], axis=0) - accuracy[-1, :-1]
    return {"average": 100 * average, "forgetting": 100 * float(forgetting.mean())}


def _learner(case: _Case, head: str, seed: int) -> LingoCL:
    from latewood.core.recipe import Recipe
    from latewood.core.seeding import seeded
    from latewood.images.learners.lingocl import LingoCL

    names = case.samples.classes
    host = {"name": "replay", "memory": KEPT * len(names)}
    with seeded(seed, "initial weights"):
        encoder = _encoder(case.samples.train.tensor("features").shape[1])
        targets = _Known(names, case.directions)
        return LingoCL(encoder, host, targets, head, class_names=names, recipe=Recipe(epochs=EPOCHS))  # type: ignore[arg-type]


def _zero_shot(learner: LingoCL, stream: Stream, step: int, seed: int) -> float:
    """Accuracy among the classes of an arrival before it is learned, by the rows that the head will have for them."""
    import torch
    from torch.nn import functional as F

    from latewood.core.seeding import generator
    from latewood.parts.targets import orthonormal

    classes, data, chance = stream[step].classes, stream.probes[step].data, generator(seed, "rows", step)
    rows = learner.directions(classes)
    if learner.head == "random":
        rows = orthonormal(len(classes), learner.semantic.weight, chance)
    elif learner.head == "learned":
        rows = F.normalize(torch.randn(rows.shape, generator=chance))
    found = torch.tensor(classes)[learner.similarity(data, rows).argmax(1)]
    return float((found == data.tensor("label")).double().mean())


def _features(learner: LingoCL, data: object) -> Tensor:
    """What the encoder, the layer to the head's space included, makes of samples."""
    import torch

    from latewood.core.data import Data

    assert isinstance(data, Data)
    with torch.no_grad():
        return learner.semantic.project(learner.backbone(learner.net.prepare(data)))


def _cosine(before: Tensor, after: Tensor) -> float:
    from torch.nn import functional as F

    return float(F.cosine_similarity(before, after).mean())


def _shown(dataset: str, *names: str) -> Numbers:
    found = _measured(dataset)
    return {f"{head}: {name}": found[head][name] for name in names for head in HEADS}


def _accuracy(dataset: str) -> Verdict:
    """Learned rows, fixed random ones and fixed semantic ones under one host."""
    found = _measured(dataset)
    learned, random, semantic = (found[head] for head in HEADS)
    return Verdict(
        semantic["average"] > learned["average"]
        and semantic["average"] >= random["average"]
        and semantic["forgetting"] < learned["forgetting"],
        _shown(dataset, "average", "forgetting"),
        f"Average incremental accuracy and forgetting in %, {_case(dataset).where}. All heads are cosine heads of one width "
        "with a learned scale. It holds if semantic rows beat learned ones, are not behind fixed random ones, and forget less "
        "than learned ones.",
    )


def _drift(dataset: str) -> Verdict:
    """How near the features of old test samples stay to where they were."""
    numbers = _shown(dataset, "cosine")
    return Verdict(
        numbers["semantic: cosine"] > numbers["learned: cosine"],
        numbers,
        "Mean cosine of an old test sample's features before and after the next arrival, "
        f"{_case(dataset).where}. It holds if it is larger with semantic rows than with learned ones.",
    )


def _ahead(dataset: str) -> Verdict:
    """Classes that have not arrived yet, by their names."""
    numbers = _shown(dataset, "zero-shot")
    chance = 100 * STEPS / len(_case(dataset).samples.classes)
    above = {head: numbers[f"{head}: zero-shot"] - chance for head in HEADS}
    return Verdict(
        above["semantic"] > MARGIN and max(abs(above["learned"]), abs(above["random"])) <= MARGIN,
        {**numbers, "chance": chance},
        "Accuracy in % among the classes of the next arrival right before it is learned, by the rows that the head will have, "
        f"{_case(dataset).where}. It holds if semantic rows are more than {MARGIN:g} points above chance and the others within "
        f"{MARGIN:g} points of it.",
    )


PAPER = Paper(
    number=18,
    name="lingocl",
    title="Enhancing Visual Continual Learning with Language-Guided Supervision",
    kind="learner",
    arxiv="2403.16124",
    summary=(
        "Swaps the head of any image learner for fixed language-model vectors of the class names, and compares it with "
        "the learner's own head and with frozen random vectors."
    ),
    code=(
        "latewood.images.learners.lingocl:LingoCL",
        "latewood.parts.targets:SemanticHead",
        "latewood.parts.targets:TextTargets",
    ),
    claims=tuple(
        Claim(
            f"{name}-{'clinc' if dataset == 'clinc150' else 'tiny-imagenet'}",
            f"{statement} ({'intents' if dataset == 'clinc150' else 'objects'}).",
            lambda check=check, dataset=dataset: check(dataset),  # type: ignore[misc]
            needs=dataset,
        )
        for dataset in ("tiny-imagenet-32", "clinc150")
        for name, statement, check in (
            ("heads", "A head of fixed vectors of the names beats a learned one and fixed random ones", _accuracy),
            ("drift", "Targets that never move let features drift less", _drift),
            ("zero-shot", "Classes are recognised by their names before they arrive", _ahead),
        )
    ),
)
