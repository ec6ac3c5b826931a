"""MOS: Model Surgery for Pre-Trained Model-Based Class-Incremental Learning"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from latewood.papers.ledger import Claim, Paper, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from latewood.core.learner import Learner
    from latewood.core.recipe import Recipe
    from latewood.core.stream import Stream
    from latewood.images.datasets import ImageData
    from latewood.images.learners.mos import MOS
    from latewood.parts.backbone import Backbone

SEEDS = (0, 1, 2)
DATASET = "tiny-imagenet-32"
CLASSES, STEPS = 50, 10
#: Images of each class to train on and to test with: each is seen under several sets of adapters.
TRAIN, TEST = 10, 10
EPOCHS, BOTTLENECK = 8, 16
Numbers = dict[str, float]

_WHERE = (
    f"{len(SEEDS)} class orders, {STEPS} arrivals of {CLASSES // STEPS} of the unseen classes of {DATASET}, {TRAIN} "
    f"training and {TEST} test images a class, {EPOCHS} epochs, on the transformer that comes with Latewood"
)


@cache
def _setting() -> tuple[Callable[[], Backbone], ImageData]:
    from latewood.papers._unseen import encoder_and_unseen

    make, images = encoder_and_unseen(DATASET, TRAIN)
    return make, images.subset(list(range(0, len(images.classes), len(images.classes) // CLASSES))).few(TRAIN, TEST)


def _recipe() -> Recipe:
    """The authors' for ImageNet-R, but for the epochs."""
    from latewood.core.recipe import Recipe

    return Recipe(epochs=EPOCHS, batch_size=16, lr=0.05, weight_decay=5e-3, schedule="cosine")


def _stream(images: ImageData, seed: int) -> Stream:
    from latewood.images.streams.split import split

    return split(images, steps=STEPS, seed=seed)


def _taught(learner: Learner, stream: Stream, seed: int) -> None:
    """As ``run`` teaches, without scoring after every arrival."""
    from latewood.core.seeding import derive_seed

    for experience in stream:
        learner.generator.manual_seed(derive_seed(seed, "learn", experience.index))
        learner.learn(experience)


def _right(labels: Tensor, images: ImageData) -> float:
    return 100 * float((labels == images.test.tensor("label")).double().mean())


@cache
def _merged(alpha: float) -> Numbers:
    """What a MOS that merges with this share knows at the end, in %, and how far its sets are apart."""
    from latewood.core.seeding import seeded
    from latewood.images.learners.mos import MOS

    make, images = _setting()
    found: list[Numbers] = []
    for seed in SEEDS:
        with seeded(seed, "initial weights"):
            learner = MOS(make(), BOTTLENECK, alpha=alpha, recipe=_recipe())
        _taught(learner, _stream(images, seed), seed)
        found.append(_looked_at(learner, images))
    return {name: sum(numbers[name] for numbers in found) / len(found) for name in found[0]}


def _looked_at(learner: MOS, images: ImageData) -> Numbers:
    import torch

    truth = learner.owners[learner.classes.columns(images.test.tensor("label"))]
    first, last = learner.chosen(images.test)
    newest = torch.full_like(truth, learner.adapters.sets - 1)
    choices = {"prototypes": first, "refined": last, "oracle": truth, "newest": newest}
    numbers = {
        f"accuracy, {name}": _right(learner.classes.best(learner.logits_under(images.test, sets)), images)
        for name, sets in choices.items()
    }
    return numbers | {
        "accuracy": _right(learner.predict(images.test), images),
        "right set, prototypes": 100 * float((first == truth).double().mean()),
        "right set, refined": 100 * float((last == truth).double().mean()),
        "distance": _distance(learner),
    }


def _distance(learner: MOS) -> float:
    """The mean distance of a set to those before it."""
    import torch

    flat = torch.cat([tensor.flatten(1) for tensor in learner.adapters.stored], 1)
    rows, columns = torch.tril_indices(len(flat), len(flat), -1)
    return float((flat[rows] - flat[columns]).norm(dim=1).mean())


def _merging() -> Verdict:
    """Merging against none."""
    merged, apart = _merged(0.1), _merged(0.0)
    shown = ("accuracy", "accuracy, newest", "accuracy, oracle", "distance")
    return Verdict(
        merged["accuracy"] >= apart["accuracy"]
        and merged["distance"] < apart["distance"]
        and merged["accuracy, newest"] > apart["accuracy, newest"],
        {f"{kind}: {name}": of[name] for kind, of in (("merged", merged), ("not merged", apart)) for name in shown},
        f"Final accuracy in % over {_WHERE}; with the newest set of adapters for all images and with the true one, and the "
        "mean distance between sets. It holds if merging (0.1 after each step) is not behind, its sets are nearer to one "
        "another, and its newest set is better on all classes.",
    )


def _refinement() -> Verdict:
    """The set that prototypes name, the one that the head's answers lead to, and the true one."""
    numbers = _merged(0.1)
    return Verdict(
        numbers["right set, refined"] >= numbers["right set, prototypes"]
        and numbers["accuracy, refined"] >= numbers["accuracy, prototypes"] - 1,
        {name: value for name, value in numbers.items() if name not in ("accuracy, newest", "distance")},
        f"Share in % of test images that get their own arrival's set, and the head's accuracy with it, over {_WHERE}. It holds "
        "if refinement names the right set as often as prototypes or more, and its accuracy is at most 1 point below theirs; "
        "the true set and the full prediction with prototypes joined in are shown.",
    )


def _family() -> Verdict:
    """MOS, ADAM and sequential fine-tuning with the same adapters, and prototypes of the frozen backbone."""
    from latewood.core.seeding import seeded
    from latewood.images.learners.adam import ADAM
    from latewood.images.learners.finetune import Finetune
    from latewood.images.learners.simplecil import SimpleCIL
    from latewood.parts.adapters import Adapters

    make, images = _setting()

    def sequential() -> Learner:
        body = make().requires_grad_(False)
        Adapters(body, BOTTLENECK).requires_grad_(True)
        return Finetune(body, recipe=_recipe())

    others: dict[str, Callable[[], Learner]] = {
        "ADAM": lambda: ADAM(make(), "adapter", BOTTLENECK, recipe=_recipe()),
        "sequential": sequential,
        "frozen prototypes": lambda: SimpleCIL(make()),
    }
    numbers = {"MOS": _merged(0.1)["accuracy"]}
    for name, build in others.items():
        values = []
        for seed in SEEDS:
            with seeded(seed, "initial weights"):
                learner = build()
            _taught(learner, _stream(images, seed), seed)
            values.append(_right(learner.predict(images.test), images))
        numbers[name] = sum(values) / len(values)
    return Verdict(
        numbers["MOS"] > numbers["ADAM"] > numbers["sequential"],
        numbers,
        f"Final accuracy in % over {_WHERE}, adapters of {BOTTLENECK} units everywhere. It holds if MOS leads ADAM and ADAM "
        "leads the same adapters trained on arrival by arrival; prototypes of the frozen backbone are shown and decide "
        "nothing.",
    )


PAPER = Paper(
    number=44,
    name="mos",
    title="MOS: Model Surgery for Pre-Trained Model-Based Class-Incremental Learning",
    kind="learner",
    arxiv="2412.09441",
    summary=(
        "Trains one adapter for each arrival, kept close to the average of those before it, and at prediction lets the "
        "model's own answers settle which adapter to use."
    ),
    code=(
        "latewood.images.learners.mos:MOS",
        "latewood.parts.adapters:Adapters",
        "latewood.parts.merging:RunningMean",
        "latewood.parts.alignment:align",
    ),
    claims=(
        Claim(
            "merging",
            "Merging adapters with the mean of earlier ones after every step prevents drift.",
            _merging,
            needs=DATASET,
        ),
        Claim(
            "refinement",
            "The model's own answers find the right adapters more often than prototypes alone.",
            _refinement,
            needs=DATASET,
        ),
        Claim("family", "MOS beats adapting once, and that beats adapting arrival by arrival.", _family, needs=DATASET),
    ),
)
