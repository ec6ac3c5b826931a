"""Revisiting Class-Incremental Learning with Pre-Trained Models: Generalizability and Adaptivity are All You Need"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from latewood.papers.ledger import Claim, Paper, Verdict

if TYPE_CHECKING:
    from torch import Tensor

    from latewood.core.recipe import Precision, Recipe
    from latewood.core.stream import Stream
    from latewood.images.datasets import ImageData
    from latewood.images.learners.adam import ADAM, Module
    from latewood.parts.backbone import Backbone

SEEDS = (0, 1, 2)
#: So many training images of each class of Tiny ImageNet, since some methods train the encoder on; and where for long.
MOST, FEW = 20, 10


class _Case(NamedTuple):
    """An encoder, classes that it never saw, and how they arrive."""

    encoder: Backbone
    unseen: ImageData
    #: Arrivals of equal size; and a larger first one, to adapt on.
    equal: Mapping[str, Any]
    larger: Mapping[str, Any]
    #: The module with few parameters that suits the encoder.
    small: Module
    where: str
    precision: Precision = "float32"


def _case(dataset: str, most: int = MOST) -> _Case:
    from latewood.papers._unseen import ENCODERS, encoder_and_unseen

    ten, twenty = {"steps": 10}, {"base": 20, "increment": 10}
    if dataset == "digits":
        pairs = {"steps": 3}
        return _Case(*_digits(), pairs, pairs, "adapter", "6 digits, on a small transformer trained on the 4 others")
    if dataset == "omniglot-small":
        make, unseen = encoder_and_unseen(dataset)
        return _Case(make(), unseen, ten, twenty, "ssf", f"100 characters, on {ENCODERS[dataset]}")
    make, unseen = encoder_and_unseen(dataset, most)
    where = f"100 classes of Tiny ImageNet with {most} images each, on {ENCODERS[dataset]}, trained in bfloat16"
    return _Case(make(), unseen, ten, twenty, "adapter", where, "bfloat16")


def _digits() -> tuple[Backbone, ImageData]:
    """A small transformer trained on four digits, and the six others."""
    from latewood.core.experience import Experience
    from latewood.core.recipe import Recipe
    from latewood.core.seeding import seeded
    from latewood.images.datasets import load_images
    from latewood.images.learners.finetune import Finetune
    from latewood.images.nets.vit import vit

    images = load_images("digits")
    base = images.subset([0, 2, 5, 7]).train
    with seeded("encoder"):
        encoder = vit(base[:1], width=48, depth=3, patch=2)
    recipe = Recipe(epochs=30, batch_size=32, optimizer="adamw", lr=1e-3, schedule="cosine", warmup=0.05, clip=1.0)
    Finetune(encoder, recipe=recipe).learn(Experience(0, base, (0, 1, 2, 3)))
    return encoder.eval(), images.subset([1, 3, 4, 6, 8, 9])


def _recipe(module: Module, precision: Precision) -> Recipe:
    """The paper's for adapters, with the rate that its authors give them where the images are far from the pretraining's."""
    from latewood.core.recipe import Recipe

    rate = 0.01 if module == "finetune" else 0.05
    return Recipe(epochs=20, batch_size=48, lr=rate, weight_decay=5e-4, schedule="cosine", precision=precision)


def _fresh(encoder: Backbone) -> Backbone:
    import copy

    return copy.deepcopy(encoder).freeze(False)


def _adam(case: _Case, module: Module, seed: int) -> ADAM:
    from latewood.core.seeding import seeded
    from latewood.images.learners.adam import ADAM

    with seeded(seed, "initial weights"):
        return ADAM(case.encoder, module, recipe=_recipe(module, case.precision))


def _prototypes(dataset: str) -> Verdict:
    """SimpleCIL against training the same encoder on, arrival by arrival."""
    from latewood.core.recipe import Recipe
    from latewood.core.run import run
    from latewood.images.learners.finetune import Finetune
    from latewood.images.learners.simplecil import SimpleCIL
    from latewood.images.streams.split import split
    from latewood.papers._encoders import percent

    case = _case(dataset)
    recipe = Recipe(epochs=5, batch_size=32, lr=0.01, precision=case.precision)
    last: dict[str, list[float]] = {}
    for seed in SEEDS:
        stream = split(case.unseen, **case.equal, seed=seed)
        learners = {
            "SimpleCIL": SimpleCIL(case.encoder),
            "fine-tuning": Finetune(_fresh(case.encoder), candidates="seen", recipe=recipe),
            "fine-tuning, new classes only": Finetune(_fresh(case.encoder), recipe=recipe),
        }
        for name, learner in learners.items():
            last.setdefault(name, []).append(run(learner, stream, seed=seed, device="cpu").last)
    numbers = {name: percent(values) for name, values in last.items()}
    simple, all_classes, new_classes = numbers.values()
    times = 3 if len(case.unseen.classes) > 20 else 2
    return Verdict(
        simple > times * all_classes and simple > new_classes,
        numbers,
        f"Final accuracy in % over {len(SEEDS)} class orders: {case.equal['steps']} arrivals of {case.where}, 5 epochs an "
        f"arrival where it is trained on. It holds if SimpleCIL has {times} times the accuracy of fine-tuning over all "
        "classes, and more than fine-tuning over the new classes alone.",
    )


def _adaptivity(dataset: str) -> Verdict:
    """What the adapted branch adds, near to and far from what the encoder was trained on."""
    from latewood.images.learners.simplecil import SimpleCIL
    from latewood.images.streams.split import split
    from latewood.papers._encoders import percent
    from latewood.papers._unseen import shifted

    case = _case(dataset, FEW)
    found: dict[str, list[float]] = {}
    for shift in ("", "inverted", "halves swapped"):
        images = shifted(case.unseen, shift)
        for seed in SEEDS:
            stream = split(images, **case.larger, seed=seed)
            simple = _accuracy(_taught(SimpleCIL(case.encoder), stream, seed), images)
            found.setdefault(f"SimpleCIL {shift}".strip(), []).append(simple)
            for module in ("finetune", case.small):
                learner = _taught(_adam(case, module, seed), stream, seed)
                name = f"{module} {shift}".strip()
                found.setdefault(f"ADAM {name}", []).append(_accuracy(learner, images))
                found.setdefault(f"adapted alone {name}", []).append(_adapted_alone(learner, images))
    numbers = {name: percent(values) for name, values in found.items()}
    return Verdict(
        _adapts(numbers, case.small),
        numbers,
        f"Accuracy in % on all classes at the end, over {len(SEEDS)} class orders of {case.where}: as they are, inverted, and "
        f"with swapped halves; the first arrival has {len(stream[0].classes)} classes. It holds if, for fine-tuning and for "
        f"{case.small} alike, ADAM gains on both shifted streams and gains less on the other, and joined features are "
        "nowhere below the adapted ones alone.",
    )


def _adapts(numbers: Mapping[str, float], small: str) -> bool:
    for module in ("finetune", small):
        gains = [
            numbers[f"ADAM {module} {shift}".strip()] - numbers[f"SimpleCIL {shift}".strip()]
            for shift in ("", "inverted", "halves swapped")
        ]
        alone = {name: value for name, value in numbers.items() if name.startswith(f"adapted alone {module}")}
        joined = [numbers[name.replace("adapted alone", "ADAM")] for name in alone]
        if not (min(gains[1:]) > max(0.0, gains[0]) and all(a >= b for a, b in zip(joined, alone.values(), strict=True))):
            return False
    return True


def _taught(learner: Any, stream: Stream, seed: int) -> Any:
    from latewood.core.run import run

    run(learner, stream, seed=seed, device="cpu")
    return learner


def _accuracy(learner: Any, images: ImageData) -> float:
    return _right(learner.predict(images.test), images)


def _adapted_alone(learner: ADAM, images: ImageData) -> float:
    """The accuracy of prototypes in the adapted branch."""
    from torch.nn import functional as F

    width = learner.backbone.width
    means = learner.prototypes.means()[:, width:]
    features = learner.encoder(images.test)[:, width:].to(means)
    return _right(learner.classes.best(F.normalize(features) @ F.normalize(means).T), images)


def _right(labels: Tensor, images: ImageData) -> float:
    return float((labels == images.test.tensor("label")).double().mean())


def _once(dataset: str) -> Verdict:
    """ADAM against the same adapter, trained on every arrival."""
    from latewood.core.run import run
    from latewood.core.seeding import seeded
    from latewood.images.learners.finetune import Finetune
    from latewood.images.streams.split import split
    from latewood.papers._encoders import percent
    from latewood.parts.adapters import Adapters

    case = _case(dataset, FEW)
    last: dict[str, list[float]] = {}
    for seed in SEEDS:
        stream = split(case.unseen, **case.equal, seed=seed)
        body = _fresh(case.encoder).requires_grad_(False)
        with seeded(seed, "initial weights"):
            Adapters(body).requires_grad_(True)
            every = Finetune(body, candidates="seen", recipe=_recipe("adapter", case.precision))
        for name, learner in (("adapted once", _adam(case, "adapter", seed)), ("on every arrival", every)):
            last.setdefault(name, []).append(run(learner, stream, seed=seed, device="cpu").last)
    numbers = {name: percent(values) for name, values in last.items()}
    return Verdict(
        numbers["adapted once"] > numbers["on every arrival"],
        numbers,
        f"Final accuracy in % over {len(SEEDS)} class orders: {case.equal['steps']} arrivals of {case.where}. It holds if ADAM "
        "with an adapter leads the same adapter and a softmax head trained on every arrival.",
    )


PAPER = Paper(
    number=42,
    name="simplecil-adam",
    title="Revisiting Class-Incremental Learning with Pre-Trained Models: Generalizability and Adaptivity are All You Need",
    kind="learner + protocol",
    arxiv="2303.07338",
    summary=(
        "Classifies by class means of frozen features, on request joined with features adapted on the first arrival, and "
        "reports the gain of adapting both near to and far from the pretraining data."
    ),
    code=(
        "latewood.images.learners.simplecil:SimpleCIL",
        "latewood.images.learners.adam:ADAM",
        "latewood.parts.adapters:Adapters",
    ),
    claims=tuple(
        Claim(
            f"{name}-{dataset}",
            statement,
            lambda check=check, dataset=dataset: check(dataset),  # type: ignore[misc]
            needs="" if dataset == "digits" else dataset,
        )
        for name, statement, check, datasets in (
            (
                "prototypes",
                "Class means of a frozen pretrained model beat training it on, arrival by arrival.",
                _prototypes,
                ("digits", "omniglot-small", "tiny-imagenet-32"),
            ),
            (
                "adaptivity",
                "Adapting once on the first arrival helps where the images are far from the pretraining's.",
                _adaptivity,
                ("digits", "omniglot-small", "tiny-imagenet-32"),
            ),
            (
                "once",
                "One adaptation with prototypes beats adapting on every arrival.",
                _once,
                ("digits", "tiny-imagenet-32"),
            ),
        )
        for dataset in datasets
    ),
)
