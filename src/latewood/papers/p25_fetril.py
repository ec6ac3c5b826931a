"""FeTrIL: Feature Translation for Exemplar-Free Class-Incremental Learning"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from latewood.papers.ledger import Claim, Paper, Verdict

if TYPE_CHECKING:
    from torch import Tensor

    from latewood.core.learner import Learner
    from latewood.core.stream import Stream
    from latewood.images.datasets import ImageData
    from latewood.images.learners.fetril import FeTrIL
    from latewood.parts.backbone import Backbone

SEEDS = (0, 1, 2)
#: For digits, where a seed takes seconds.
MORE_SEEDS = tuple(range(8))
#: Training rows of each class.
MOST = {"clinc150": 40, "omniglot-small": 15, "tiny-imagenet-32": 20}
Numbers = dict[str, float]


@cache
def _rivals() -> dict[str, type[FeTrIL]]:
    """Two cheaper ways of keeping old classes in mind, each FeTrIL but for one thing."""
    import torch
    from torch.nn import functional as F

    from latewood.images.learners.fetril import FeTrIL

    class Repeated(FeTrIL):
        """An old class is its bare mean, as often as FeTrIL would give it a feature."""

        def training_rows(self, features: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
            _, targets = super().training_rows(features, columns)
            bare = self.means.means()[targets[len(features) :]]
            return torch.cat([features, bare]), targets

    class Apart(FeTrIL):
        """DeeSIL's way: each arrival's machines are trained on its own features and then stay as they are.

        A class that comes alone gets its mean as weights, since there is nothing to tell it from.
        """

        def training_rows(self, features: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
            return features, columns

        def _fit_machines(self, rows: Tensor, columns: Tensor) -> None:
            super()._fit_machines(rows, columns)
            if len(own := columns.unique()) == 1:
                mean = F.normalize(self.means.means()[own])
                self.head.weight.data[own] = mean.to(self.head.weight)

    return {"repeated mean": Repeated, "apart": Apart}


def _scores(learner: Learner, stream: Stream, seed: int) -> tuple[float, float]:
    """Average accuracy over all arrivals, the first included, and accuracy after the last, in %."""
    from latewood.core.run import run

    record = run(learner, stream, seed=seed, device="cpu")
    return 100 * record.average, 100 * record.last


def _compared(found: dict[str, list[float]], backbone: Backbone, stream: Stream, seed: int) -> None:
    """Add the scores of the rivals on a backbone that stays as it is."""
    from latewood.images.learners.simplecil import SimpleCIL

    learners: dict[str, Learner] = {name: kind(backbone, "keep") for name, kind in _rivals().items()}
    for name, learner in {**learners, "nearest mean": SimpleCIL(backbone)}.items():
        _keep(found, name, _scores(learner, stream, seed))


def _keep(found: dict[str, list[float]], name: str, scores: tuple[float, float]) -> None:
    for kind, score in zip(("average", "last"), scores, strict=True):
        found.setdefault(f"{name}, {kind}", []).append(score)


def _means(found: dict[str, list[float]]) -> Numbers:
    return {name: sum(values) / len(values) for name, values in found.items()}


@cache
def _digits(increment: int) -> Numbers:
    """Five digits train the extractor, the others come ``increment`` at a time."""
    from latewood.core.recipe import Recipe
    from latewood.core.seeding import seeded
    from latewood.images.learners.fetril import FeTrIL
    from latewood.images.nets.mlp import mlp
    from latewood.images.streams.split import split

    found: dict[str, list[float]] = {}
    for seed in MORE_SEEDS:
        stream = split("digits", base=5, increment=increment, seed=seed)
        with seeded(seed, "initial weights"):
            backbone = mlp(stream.example, width=128, depth=1)
        learner = FeTrIL(backbone, recipe=Recipe(epochs=30, batch_size=32, lr=0.1))
        _keep(found, "FeTrIL", _scores(learner, stream, seed))
        _compared(found, backbone, stream, seed)
    return _means(found)


def _translation() -> Verdict:
    numbers = _digits(1)
    average = {name.removesuffix(", average"): value for name, value in numbers.items() if name.endswith("average")}
    best = average["FeTrIL"]
    return Verdict(
        best > max(average["nearest mean"], average["apart"]) + 2 and best > average["repeated mean"],
        numbers,
        f"Accuracy in %, averaged over 6 arrivals and after the last, over {len(MORE_SEEDS)} class orders of digits: an MLP of "
        "128 units trained on 5 of them, then one at a time. It holds if on average FeTrIL leads nearest means and machines "
        "trained apart by more than 2 points, and the repeated mean at all.",
    )


def _step_length() -> Verdict:
    one, five = _digits(1), _digits(5)
    numbers = {
        f"{name}, {size}": value for size, part in (("1 a time", one), ("5 at once", five)) for name, value in part.items()
    }
    gaps = [part["FeTrIL, average"] - part["apart, average"] for part in (one, five)]
    numbers |= {"lead over apart, 1 a time": gaps[0], "lead over apart, 5 at once": gaps[1]}
    return Verdict(
        gaps[0] > gaps[1],
        numbers,
        f"Accuracy in % over {len(MORE_SEEDS)} class orders of digits, 5 to begin with, then one at a time or all 5 at once. "
        "It holds if FeTrIL's average leads machines trained apart by more where arrivals are smaller.",
    )


def _intents() -> Verdict:
    """Sentences in place of images."""
    from latewood.images.learners.fetril import FeTrIL
    from latewood.images.streams.split import split
    from latewood.papers._intents import intents
    from latewood.parts.features import Embedded

    found: dict[str, list[float]] = {}
    sentences = intents(MOST["clinc150"])
    for seed in SEEDS:
        order: dict[str, Any] = {"base": 75, "increment": 15, "seed": seed}
        vectors = _vectors(sentences, split(sentences, **order)[0].train["text"], width=200)
        backbone, stream = Embedded(200), split(vectors, **order)
        _keep(found, "FeTrIL", _scores(FeTrIL(backbone, "keep"), stream, seed))
        _compared(found, backbone, stream, seed)
    numbers = _means(found)
    rivals = ("repeated mean", "apart", "nearest mean")
    return Verdict(
        all(numbers[f"FeTrIL, {kind}"] > numbers[f"{name}, {kind}"] for name in rivals for kind in ("average", "last")),
        numbers,
        f"Accuracy in %, averaged over 6 arrivals and after the last, over {len(SEEDS)} class orders of CLINC150 with "
        f"{MOST['clinc150']} sentences an intent, as 200 components of their words' frequencies, fitted on the first 75 "
        "intents; then 15 at a time. It holds if FeTrIL leads all three others in both.",
    )


def _vectors(sentences: ImageData, known: list[str], width: int) -> ImageData:
    """Sentences as components of the weighted frequencies of words, both fitted on the ``known`` ones."""
    from dataclasses import replace

    import torch
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline

    from latewood.core.data import Data

    model = make_pipeline(TfidfVectorizer(), TruncatedSVD(width, random_state=0)).fit(known)
    train, test = (
        Data(features=torch.from_numpy(model.transform(part["text"])).float(), label=part["label"])
        for part in (sentences.train, sentences.test)
    )
    return replace(sentences, train=train, test=test)


def _pretrained(dataset: str) -> Verdict:
    """On an encoder that never saw any of the classes; both classifiers."""
    from latewood.core.run import run
    from latewood.images.learners.fetril import FeTrIL
    from latewood.images.streams.split import split
    from latewood.papers._encoders import embedded
    from latewood.papers._unseen import encoder_and_unseen

    make, images = encoder_and_unseen(dataset, MOST[dataset])
    backbone, images = embedded(make(), images)
    found: dict[str, list[float]] = {}
    seconds = []
    for seed in SEEDS:
        stream = split(images, base=50, increment=5, seed=seed)
        for name, classifier in (("FeTrIL", "svm"), ("FeTrIL fc", "fc")):
            record = run(FeTrIL(backbone, "keep", classifier=classifier), stream, seed=seed, device="cpu")  # type: ignore[arg-type]
            _keep(found, name, (100 * record.average, 100 * record.last))
            if classifier == "svm":
                seconds.append(record.rows[-1].cost.seconds)
        _compared(found, backbone, stream, seed)
    numbers = {**_means(found), "seconds of the last arrival": sum(seconds) / len(seconds)}
    best = numbers["FeTrIL, average"]
    return Verdict(
        best > numbers["apart, average"] and best >= numbers["FeTrIL fc, average"],
        numbers,
        f"Accuracy in %, averaged over 11 arrivals and after the last, over {len(SEEDS)} class orders: 100 classes of "
        f"{dataset} with at most {MOST[dataset]} images each, 50 first and then 5 at a time, on a frozen encoder that saw none "
        "of them. It holds if on average FeTrIL leads machines trained apart, and its machines are at least as good as its "
        "softmax layer. Repeated and nearest means decide nothing.",
    )


PAPER = Paper(
    number=25,
    name="fetril",
    title="FeTrIL: Feature Translation for Exemplar-Free Class-Incremental Learning",
    kind="learner",
    arxiv="2211.13131",
    summary=(
        "Keeps one mean for each old class, imitates the class by moving features of a similar new class there, and "
        "refits a linear classifier at every arrival."
    ),
    code=("latewood.images.learners.fetril:FeTrIL", "latewood.images.learners.fetril:translated"),
    claims=(
        Claim(
            "translation-digits",
            "Moved features are worth more than repeated means, nearest means, and machines trained apart.",
            _translation,
        ),
        Claim("step-length-digits", "What moving features adds is largest where little arrives at a time.", _step_length),
        Claim("intents", "It is no matter of images: sentences gain as well.", _intents, needs="clinc150"),
        *(
            Claim(
                f"pretrained-{dataset}",
                f"On a pretrained encoder moved features beat machines trained apart, and machines a softmax layer ({what}).",
                lambda dataset=dataset: _pretrained(dataset),  # type: ignore[misc]
                needs=dataset,
            )
            for dataset, what in (("omniglot-small", "characters"), ("tiny-imagenet-32", "objects"))
        ),
    ),
)
