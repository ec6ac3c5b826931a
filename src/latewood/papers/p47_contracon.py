"""Exemplar-Free Continual Transformer with Convolutions"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from latewood.papers.ledger import Claim, Paper, Verdict

if TYPE_CHECKING:
    from latewood.core.stream import Stream
    from latewood.images.datasets import ImageData
    from latewood.images.learners.contracon import ConTraCon
    from latewood.parts.backbone import Backbone

SEEDS = (0, 1, 2)
#: Two classes train the root, whose quality differs by many points from order to order.
ORDERS = (0, 1, 2, 3, 4)
#: Epochs over each arrival, and convolutions before the transformer.
SIZES = {"digits": (15, 1), "omniglot-small": (12, 3)}
ROWS: Mapping[str, Mapping[str, Any]] = {
    "convolutions": {},
    "without gates": {"gate": False},
    "norms, pooling and head": {"reweighting": "none"},
    "own copies": {"reweighting": "copy"},
}
Numbers = dict[str, float]


@cache
def _images(dataset: str) -> ImageData:
    """The digits, or 100 characters."""
    from latewood.images.datasets import load_images
    from latewood.papers._encoders import OMNIGLOT

    return OMNIGLOT.unseen_images() if dataset == "omniglot-small" else load_images(dataset)


def _net(dataset: str, stream: Stream, seed: int) -> Backbone:
    from latewood.core.seeding import seeded
    from latewood.images.nets.cct import cct

    with seeded(seed, "initial weights"):
        return cct(stream.example, width=64, depth=2, heads=4, convolutions=SIZES[dataset][1])


def _recipe(dataset: str) -> Any:
    from latewood.images.learners.contracon import RestartRecipe

    return RestartRecipe(epochs=SIZES[dataset][0], batch_size=32, lr=2e-3)


@cache
def _run(dataset: str, row: str, seed: int) -> tuple[ConTraCon, Numbers]:
    """A learner of five tasks, and its accuracy and forgetting in % where it is told the task."""
    from latewood.core.run import run
    from latewood.core.seeding import seeded
    from latewood.images.learners.contracon import ConTraCon
    from latewood.images.streams.tasks import tasks

    stream = tasks(_images(dataset), steps=5, seed=seed)
    with seeded(seed, "task weights"):
        net = _net(dataset, stream, seed)
        learner = ConTraCon(net, kernel=7, head_lr=None, recipe=_recipe(dataset), **ROWS[row])
    record = run(learner, stream, seed=seed, device="cpu")
    share = learner.task_parameters / sum(p.numel() for p in net.parameters())
    return learner, {"accuracy": 100 * record.last, "forgetting": 100 * record.forgetting, "parameters": 100 * share}


@cache
def _finetuned(dataset: str, seed: int) -> Numbers:
    """The same net and recipe, with all weights trained on every arrival."""
    from latewood.core.run import run
    from latewood.images.learners.finetune import Finetune
    from latewood.images.streams.tasks import tasks

    stream = tasks(_images(dataset), steps=5, seed=seed)
    learner = Finetune(_net(dataset, stream, seed), recipe=_recipe(dataset))
    record = run(learner, stream, seed=seed, device="cpu")
    return {"accuracy": 100 * record.last, "forgetting": 100 * record.forgetting}


def _mean(rows: Sequence[Numbers], prefix: str) -> Numbers:
    return {f"{prefix}{name}": sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def _forgets_nothing() -> Verdict:
    """ConTraCon and fine-tuning on digits, both told the task."""
    runs = [_run("digits", "convolutions", seed)[1] for seed in SEEDS]
    numbers = _mean(runs, "") | _mean([_finetuned("digits", seed) for seed in SEEDS], "fine-tuning: ")
    return Verdict(
        all(run["forgetting"] == 0 for run in runs) and numbers["parameters"] < 5 and numbers["fine-tuning: forgetting"] > 20,
        numbers,
        f"Digits in 5 tasks of 2 classes, told the task, {len(SEEDS)} class orders, {SIZES['digits'][0]} epochs a task on a "
        "CCT of 67 thousand weights: final accuracy, forgetting, and what a task adds as a share of the net, in %. It holds if "
        "forgetting is exactly 0 in every run with less than 5 % a task, and fine-tuning forgets more than 20 points.",
    )


def _convolutions_matter() -> Verdict:
    """What a task has of its own, from nearly nothing to whole projections."""
    numbers: Numbers = {}
    for row in ROWS:
        numbers |= _mean([_run("digits", row, seed)[1] for seed in ORDERS], f"{row}: ")
    return Verdict(
        numbers["convolutions: accuracy"] > numbers["norms, pooling and head: accuracy"] + 2,
        numbers,
        f"Digits in 5 tasks of 2 classes, told the task, {len(ORDERS)} class orders, {SIZES['digits'][0]} epochs a task on a "
        "CCT of 67 thousand weights: final accuracy, forgetting, and what a task adds as a share of the net, in %. It holds if "
        "convolutions and gates beside norms, pooling and head add more than 2 points; convolutions without gates, and own "
        "copies of the projections, are shown and decide nothing.",
    )


def _inference(dataset: str) -> Numbers:
    """Means over class orders of accuracy and of the share of inferred tasks that are right, with the bag and without, in %."""
    found = []
    for seed in SEEDS:
        learner, told = _run(dataset, "convolutions", seed)
        found.append(
            {
                "accuracy, told": told["accuracy"],
                "forgetting, told": told["forgetting"],
                **_inferred(learner, _images(dataset), "auto", "16 views"),
                **_inferred(learner, _images(dataset), "none", "the image alone"),
            }
        )
    return _mean(found, "")


def _inferred(learner: ConTraCon, images: ImageData, views: Any, name: str) -> Numbers:
    import torch

    held, learner.views = learner.views, views
    scores, labels = learner.scores(images.test), images.test.tensor("label")
    learner.views = held
    columns, own = scores.argmax(1), learner.classes.columns(labels)
    tasks = learner.bank.tasks
    right = torch.stack([columns == own, tasks[columns] == tasks[own]]).double().mean(1)
    return {f"accuracy, {name}": 100 * float(right[0]), f"task, {name}": 100 * float(right[1])}


def _infers(dataset: str, where: str) -> Verdict:
    """The task inferred from a bag of views, and from the image alone."""
    numbers = _inference(dataset)
    better = numbers["accuracy, 16 views"] > numbers["accuracy, the image alone"]
    return Verdict(
        numbers["task, 16 views"] > 30 and better and numbers["forgetting, told"] == 0,
        numbers,
        f"{where} in 5 tasks, {len(SEEDS)} class orders, {SIZES[dataset][0]} epochs a task on a small CCT: final accuracy and "
        "share of tasks inferred right, in %. It holds if more than 30 % of the tasks are right, where chance is 20, and 16 "
        "views give a higher accuracy than the image alone, with no forgetting where the task is told.",
    )


PAPER = Paper(
    number=47,
    name="contracon",
    title="Exemplar-Free Continual Transformer with Convolutions",
    kind="learner",
    arxiv="2308.11357",
    summary=(
        "Re-weights a frozen transformer's attention matrices by small convolutions for each task, and infers the task at "
        "prediction from how certain the model is on augmented views."
    ),
    code=(
        "latewood.images.learners.contracon:ConTraCon",
        "latewood.parts.weight_convolution:WeightConvolution",
        "latewood.parts.view_entropy:view_entropy",
        "latewood.images.nets.cct:cct",
    ),
    claims=(
        Claim("zero-forgetting", "Nothing is forgotten where the task is told, at a small cost a task.", _forgets_nothing),
        Claim("convolution", "Convolutions over the attention's weights are worth their few parameters.", _convolutions_matter),
        Claim(
            "task-inference",
            "The least entropy over 16 views tells the task better than the image alone (digits).",
            lambda: _infers("digits", "Digits"),
        ),
        Claim(
            "task-inference-omniglot",
            "The least entropy over 16 views tells the task better than the image alone (characters).",
            lambda: _infers("omniglot-small", "100 characters"),
            needs="omniglot-small",
        ),
    ),
)
