"""A Closer Look at Rehearsal-Free Continual Learning"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from latewood.papers.ledger import Claim, Paper, Verdict

if TYPE_CHECKING:
    from latewood.core.recipe import Recipe
    from latewood.core.record import Record
    from latewood.images.datasets import ImageData
    from latewood.parts.backbone import Backbone

SEEDS = (0, 1, 2)
#: From scratch the class orders differ by ten points, so more of them are needed.
ORDERS = (0, 1, 2, 3, 4, 5)
#: Training images of each class, epochs over them and Adam's rate, for encoders that are trained on.
SIZES = {"omniglot-small": (15, 20, 1e-3), "tiny-imagenet-32": (10, 8, 1e-4)}
#: So many of the unseen classes, for cost; they come five at a time.
CLASSES = 50
#: The loss weights that are tried on the first arrivals of a stream, as the paper does it.
WEIGHTS = {"l2": (0.005, 0.05, 0.5), "ewc": (10.0, 1000.0)}
PREFIX = 3

Rows = Mapping[str, Mapping[str, Any]]
#: The study from scratch, on digits: what each row sets.
FROM_SCRATCH: Rows = {
    "softmax": {"classification": "softmax"},
    "softmax + EWC": {"classification": "softmax", "ewc": 1000.0},
    "BCE, zeros for old classes": {"classification": "bce-zeros"},
    "BCE": {"classification": "bce"},
    "BCE + FeatKD": {"classification": "bce", "featkd": 5.0, "anchor_initial": False},
    "PredKD": {},
    "PredKD + FeatKD": {"featkd": 5.0, "anchor_initial": False},
    "PredKD + L2": {"l2": 0.05, "anchor_initial": False},
    "PredKD + EWC": {"ewc": 1000.0},
}


def _table(
    make: Callable[[], Backbone], images: ImageData, rows: Rows, recipe: Recipe, seeds: Sequence[int]
) -> dict[str, float]:
    """For each row: final accuracy, global and local forgetting, in %, means over class orders."""
    from latewood.parts.forgetting import global_forgetting, local_forgetting

    numbers: dict[str, float] = {}
    for name, settings in rows.items():
        records = [_run(make, images, settings, recipe, seed) for seed in seeds]
        for score, of in (("A", _last), ("F^G", global_forgetting), ("F^L", local_forgetting)):
            numbers[f"{score} {name}"] = 100 * sum(of(record) for record in records) / len(records)
    return numbers


def _last(record: Record) -> float:
    return record.last


def _run(
    make: Callable[[], Backbone],
    images: ImageData,
    settings: Mapping[str, Any],
    recipe: Recipe,
    seed: int,
    prefix: int | None = None,
) -> Record:
    """One stream in 10 arrivals (5 for few classes), or the first ``prefix`` of them."""
    from latewood.core.run import run
    from latewood.core.seeding import seeded
    from latewood.images.learners.rehearsal_free import RehearsalFree
    from latewood.images.streams.split import split
    from latewood.parts.forgetting import with_candidates

    stream = split(images, steps=10 if len(images.classes) >= 20 else 5, seed=seed)
    if prefix:
        stream = split(images, groups=[stream[index].classes for index in range(prefix)])
    with seeded(seed, "initial weights"):
        learner = RehearsalFree(make(), recipe=recipe, **settings)
    return run(learner, with_candidates(stream), seed=seed, device="cpu")


def _from_scratch() -> Verdict:
    """Each kind of knowledge that can be handed over, on digits."""
    from latewood.core.recipe import Recipe
    from latewood.images.datasets import load_images
    from latewood.images.nets.mlp import mlp

    images = load_images("digits")
    recipe = Recipe(epochs=8, batch_size=32, optimizer="adam", lr=1e-3)
    numbers = _table(lambda: mlp(images.train[:1], width=128), images, FROM_SCRATCH, recipe, ORDERS)
    least = numbers["F^G PredKD + EWC"] < numbers["F^G PredKD"]
    return Verdict(
        numbers["A PredKD"] > 1.3 * numbers["A softmax"] and least,
        numbers,
        f"Digits in 5 arrivals of 2 classes, {len(ORDERS)} class orders: final accuracy, global and local forgetting in %. It "
        "holds if PredKD is 1.3 times as accurate as a plain softmax, and EWC beside it lowers global forgetting.",
    )


def _setting(dataset: str) -> tuple[Callable[[], Backbone], ImageData, Recipe]:
    from latewood.core.recipe import Recipe
    from latewood.papers._unseen import encoder_and_unseen

    most, epochs, rate = SIZES[dataset]
    make, images = encoder_and_unseen(dataset, most)
    images = images.subset(list(range(0, len(images.classes), len(images.classes) // CLASSES)))
    return make, images, Recipe(epochs=epochs, batch_size=32, optimizer="adam", lr=rate, precision="bfloat16")


def _tuned(make: Callable[[], Backbone], images: ImageData, recipe: Recipe, term: str, **fixed: Any) -> dict[str, Any]:
    """The weight of a term that is best on the first arrivals of the first class order."""
    scores = {weight: _run(make, images, {**fixed, term: weight}, recipe, SEEDS[0], PREFIX).last for weight in WEIGHTS[term]}
    return {**fixed, term: max(scores, key=scores.__getitem__)}


def _with_pretraining(dataset: str) -> Verdict:
    """PredKD alone, with L2 and with EWC, both tuned on the first arrivals."""
    make, images, recipe = _setting(dataset)
    l2, ewc = (_tuned(make, images, recipe, term) for term in ("l2", "ewc"))
    rows: Rows = {"softmax": {"classification": "softmax"}, "PredKD": {}, "PredKD + L2": l2, "PredKD + EWC": ewc}
    numbers = _table(make, images, rows, recipe, SEEDS) | {"weight of L2": l2["l2"], "weight of EWC": ewc["ewc"]}
    return Verdict(
        numbers["A PredKD + L2"] > numbers["A PredKD"],
        numbers,
        f"10 arrivals of 5 unseen classes of {dataset} with {SIZES[dataset][0]} images each, {SIZES[dataset][1]} epochs in "
        f"bfloat16, {len(SEEDS)} class orders: final accuracy, global and local forgetting in %, weights chosen on the first "
        f"{PREFIX} arrivals. It holds if L2 beside "
        "PredKD raises the accuracy; EWC is shown and decides nothing.",
    )


def _anchored(dataset: str) -> Verdict:
    """A strong L2 that holds pretrained weights from the start, and one that starts after the first arrival."""
    make, images, recipe = _setting(dataset)
    rows: Rows = {"from the first arrival": {"l2": 1.0}, "from the second": {"l2": 1.0, "anchor_initial": False}}
    numbers = _table(make, images, rows, recipe, SEEDS)
    return Verdict(
        numbers["A from the first arrival"] >= numbers["A from the second"],
        numbers,
        f"L2 of weight 1 beside PredKD on unseen classes of {dataset}, {len(SEEDS)} class orders; it holds if anchoring at the "
        "pretrained weights from the first arrival on is at least as accurate as starting after it.",
    )


def _qkv() -> Verdict:
    """Only the projections of attention trained, with and without L2."""
    make, images, recipe = _setting("tiny-imagenet-32")
    free: dict[str, Any] = {"classification": "softmax-local", "trained": "qkv", "freeze_old_head": True}
    held = _tuned(make, images, recipe, "l2", **free)
    rows: Rows = {"QKV": free, "L2 on QKV": held, "head only": {**free, "trained": "head"}}
    numbers = _table(make, images, rows, recipe, SEEDS) | {"weight of L2": held["l2"]}
    better = numbers["A L2 on QKV"] > numbers["A QKV"] and numbers["F^G L2 on QKV"] < numbers["F^G QKV"]
    return Verdict(
        better,
        numbers,
        f"A small ViT on 10 arrivals of 5 unseen classes of Tiny ImageNet, {len(SEEDS)} class orders: final accuracy, global "
        "and local forgetting in %. It holds if L2 on the projections of attention raises the accuracy and lowers global "
        "forgetting; "
        "training the head alone is shown and decides nothing.",
    )


PAPER = Paper(
    number=10,
    name="rehearsal-free",
    title="A Closer Look at Rehearsal-Free Continual Learning",
    kind="protocol + learner",
    arxiv="2203.17269",
    summary=(
        "Compares penalties on weights, features and predictions under one common loss without stored samples, both from "
        "scratch and from a pretrained model."
    ),
    code=("latewood.images.learners.rehearsal_free:RehearsalFree", "latewood.parts.forgetting:global_forgetting"),
    claims=(
        Claim("from-scratch", "From scratch, the old model's predictions are what is worth handing over.", _from_scratch),
        Claim(
            "l2-omniglot",
            "From a pretrained model, L2 to the weights before adds to predictions (characters).",
            lambda: _with_pretraining("omniglot-small"),
            needs="omniglot-small",
        ),
        Claim(
            "l2-tiny-imagenet",
            "From a pretrained model, L2 to the weights before adds to predictions (objects).",
            lambda: _with_pretraining("tiny-imagenet-32"),
            needs="tiny-imagenet-32",
        ),
        Claim(
            "anchor-initial",
            "Holding the pretrained weights from the first arrival on is no worse than starting later.",
            lambda: _anchored("omniglot-small"),
            needs="omniglot-small",
        ),
        Claim(
            "qkv",
            "L2 on a transformer's attention projections alone beats training them freely.",
            _qkv,
            needs="tiny-imagenet-32",
        ),
    ),
)
