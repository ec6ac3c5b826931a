"""A Simple Baseline that Questions the Use of Pretrained-Models in Continual Learning"""

from __future__ import annotations

from typing import TYPE_CHECKING

from latewood.papers.ledger import Claim, Paper, Verdict

if TYPE_CHECKING:
    from latewood.parts.backbone import Backbone

SEEDS = (0, 1, 2)
#: Training images of each class, since some methods train the encoder on.
MOST = 20


def _floor(dataset: str) -> Verdict:
    """NMC against training the same encoder on, in 10 arrivals of 10 classes that it never saw."""
    from latewood.core.recipe import Recipe
    from latewood.core.run import run
    from latewood.images.learners.finetune import Finetune
    from latewood.images.learners.nmc import NMC
    from latewood.images.learners.replay import Replay
    from latewood.images.streams.split import split
    from latewood.papers._encoders import percent
    from latewood.papers._unseen import ENCODERS, encoder_and_unseen

    epochs = 5 if dataset == "omniglot-small" else 2
    recipe = Recipe(epochs=epochs, batch_size=32, lr=0.01, precision="bfloat16")
    make, unseen = encoder_and_unseen(dataset, MOST)
    last: dict[str, list[float]] = {}

    def fresh() -> Backbone:
        return make().freeze(False)

    for seed in SEEDS:
        stream, everything = split(unseen, steps=10, seed=seed), split(unseen, steps=1, seed=seed)
        runs = {
            "NMC": (NMC(make()), stream),
            "fine-tuning": (Finetune(fresh(), candidates="seen", recipe=recipe), stream),
            "fine-tuning, new classes only": (Finetune(fresh(), recipe=recipe), stream),
            "replay 200": (Replay(fresh(), memory=200, recipe=recipe), stream),
            "joint": (Finetune(fresh(), recipe=recipe), everything),
        }
        for name, (learner, arrivals) in runs.items():
            last.setdefault(name, []).append(run(learner, arrivals, seed=seed, device="cpu").last)
    numbers = {name: percent(values) for name, values in last.items()}
    numbers["NMC / joint"] = numbers["NMC"] / numbers["joint"]
    holds = numbers["NMC"] > 2 * numbers["fine-tuning"] and numbers["NMC"] > numbers["fine-tuning, new classes only"]
    return Verdict(
        holds,
        numbers,
        f"Final accuracy in % over {len(SEEDS)} class orders: 10 arrivals of 10 unseen classes of {dataset} with at most "
        f"{MOST} images each, on {ENCODERS[dataset]} ({epochs} epochs an arrival where it is trained on). "
        "It holds if NMC has twice the accuracy of fine-tuning and more than fine-tuning on the new classes' logits.",
    )


def _domains() -> Verdict:
    """The running mean over turned digits against one pass over all of them."""
    from itertools import pairwise

    from latewood.core.data import concat
    from latewood.core.experience import Experience
    from latewood.core.run import run
    from latewood.images.learners.nmc import NMC
    from latewood.images.nets.pixels import pixels
    from latewood.images.streams.rotated import rotated

    stream = rotated("digits", steps=5, degrees=60)
    learner = NMC(pixels(stream.example))
    record = run(learner, stream, device="cpu", transfer=True)
    joint = NMC(pixels(stream.example))
    joint.learn(Experience(0, concat(*(experience.train for experience in stream))))
    everything = concat(*(probe.data for probe in stream.probes))
    different = (learner.predict(everything) != joint.predict(everything)).sum().item()
    gap = (learner.means.means() - joint.means.means()).abs().max().item()
    on_all = [100 * float(row.mean()) for row in record.matrix(unseen=True)]
    numbers = {"after the first": on_all[0], "after the last": on_all[-1], "different predictions": float(different)}
    numbers["largest difference of means"] = gap
    rising = all(later >= earlier - 1 for earlier, later in pairwise(on_all))
    return Verdict(
        different == 0 and gap < 1e-12 and rising,
        numbers,
        "Digits turned by 0 to 60 degrees in 5 arrivals, scored on all angles after each: it holds if accuracy never falls "
        "by more than a point and the end equals one pass over everything.",
    )


def _backbone_matters() -> Verdict:
    """The trained encoder against the same architecture with random weights."""
    from latewood.core.run import run
    from latewood.images.learners.nmc import NMC
    from latewood.images.streams.split import split
    from latewood.papers import _encoders as encoders

    stream = split(encoders.OMNIGLOT.unseen_images(), steps=10)
    with_training = run(NMC(encoders.trained(encoders.OMNIGLOT)), stream, device="cpu").last
    without = [run(NMC(encoders.untrained(encoders.OMNIGLOT, seed)), stream, device="cpu").last for seed in SEEDS]
    numbers = {"trained": 100 * with_training, "random weights": encoders.percent(without)}
    return Verdict(
        numbers["random weights"] < numbers["trained"] / 2,
        numbers,
        "Final accuracy in % on 100 unseen Omniglot characters; it holds if random weights give less than half.",
    )


PAPER = Paper(
    number=29,
    name="nmc",
    title="A Simple Baseline that Questions the Use of Pretrained-Models in Continual Learning",
    kind="learner + protocol",
    arxiv="2210.04428",
    summary="Averages the normalised features of each class of a frozen encoder: the floor under every method that trains.",
    code=("latewood.images.learners.nmc:NMC",),
    claims=(
        Claim(
            "floor-omniglot",
            "A nearest mean on a frozen encoder beats training that encoder on, arrival by arrival (characters).",
            lambda: _floor("omniglot-small"),
            needs="omniglot-small",
        ),
        Claim(
            "floor-tiny-imagenet",
            "A nearest mean on a frozen encoder beats training that encoder on, arrival by arrival (objects).",
            lambda: _floor("tiny-imagenet-32"),
            needs="tiny-imagenet-32",
        ),
        Claim("domains", "Over domains the running mean is the mean of all data, and accuracy does not fall.", _domains),
        Claim(
            "backbone-matters",
            "The accuracy comes from what the encoder has learned.",
            _backbone_matters,
            needs="omniglot-small",
        ),
    ),
)
