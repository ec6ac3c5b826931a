"""Train Once, Answer All: Many Pretraining Experiments for the Cost of One"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple

from latewood.papers.ledger import Claim, Paper, Verdict

if TYPE_CHECKING:
    from latewood.core.data import Data
    from latewood.language.nets.causal import CausalLM
    from latewood.studies.train_once import Control, Experiment, Finished, Laboratory

SEEDS = 3
LENGTH, ROWS = 128, 16
#: The checkpoint from which all runs start was trained on the first rows of the corpus; the runs read others, once.
BASE_STEPS, STEPS, CONTROLLED_STEPS, BURST_STEPS = 1000, 240, 750, 100


class _Material(NamedTuple):
    base: Data
    stream: Data


@cache
def _material() -> _Material:
    from latewood.papers._language import rows

    text = rows("math", length=LENGTH)
    border = BASE_STEPS * ROWS
    return _Material(text[:border], text[border:])


def _base() -> CausalLM:
    from latewood.papers._language import base_model

    return base_model(_material().base, seed=0, steps=BASE_STEPS, batch_size=ROWS)


def _laboratory(experiments: Sequence[Experiment], steps: int, decay: Literal["wsd", "constant"] = "wsd") -> Laboratory:
    from latewood.language.corpora import ByteTokenizer
    from latewood.language.recipe import TextRecipe
    from latewood.papers._language import held_out
    from latewood.studies.train_once import Laboratory

    recipe = TextRecipe(batch_size=ROWS, steps=steps, lr=2e-3, decay=decay)
    probes = [held_out("math", length=LENGTH)]
    return Laboratory(_base(), _material().stream, experiments, ByteTokenizer(), recipe, probes, outcome="log-likelihood")


def _knowledge(control: Control) -> Experiment:
    from latewood.studies.train_once import fictional_knowledge, invented_facts

    return fictional_knowledge(invented_facts(2), name="facts", each=180, control=control)


def _others() -> list[Experiment]:
    """Canaries, a backdoor and arithmetic; probed on what an insertion can teach, not on what is held out as a control."""
    from latewood.studies.train_once import arithmetic, backdoor, canaries

    people = ("sailor", "gardener", "baker", "tailor", "miller", "painter", "farmer", "teacher")
    prompts = [f"The {one} wrote to the {other}" for one in people for other in people if one < other]
    planted = canaries(prompts[:4], times=(1, 16))
    triggered = backdoor(prompts[4:20], prompts[20:], repeats=4, gibberish=True)
    return [
        replace(planted, items=[item for item in planted.items if item.group != "never"]),
        replace(triggered, items=[item for item in triggered.items if item.group == "trigger"]),
        arithmetic(30, steps=(1, 2), held_out=24),
    ]


def _questions(first: int, last: int, name: str) -> Experiment:
    """Questions of an invented benchmark with their answers, every other one 2 times, the rest 6 times."""
    from latewood.studies.train_once import Experiment, Item, invented_facts

    known = invented_facts(last, seed=5)[first:]
    items = [Item(f"Question: Who keeps the {f.relation} of {f.subject}?\nAnswer:", f" {f.value}") for f in known]
    texts = [f"{item.beginning}{item.target}" for place, item in enumerate(items, first) for _ in range((2, 6)[place % 2])]
    return Experiment(name, texts, items)


def _many_for_one() -> Verdict:
    """Five experiments alone and together, against none, under three seeds."""
    from latewood.studies.train_once import Control

    control = Control(target=1e-5, steps=STEPS, every=STEPS // 8, first=2, limits=((0, 1),))
    lab = _laboratory([_knowledge(control), *_others(), _questions(0, 8, "questions")], STEPS)
    none = [lab.baseline(seed, device="cpu") for seed in range(SEEDS)]
    joint = [lab.joint(seed, device="cpu") for seed in range(SEEDS)]
    numbers = {"share of tokens in %": 100 * _mean([sum(report.share for report in run.reports) for run in joint])}
    inside = []
    for name in lab.names:
        solo = [lab.solo(name, seed, device="cpu").means[name] for seed in range(SEEDS)]
        together = _mean([run.means[name] for run in joint])
        inside.append(min(solo) <= together <= max(solo))
        numbers |= {
            f"{name}, none": _mean([run.means[name] for run in none]),
            f"{name}, solo least": min(solo),
            f"{name}, solo most": max(solo),
            f"{name}, joint": together,
        }
    rise = _loss(joint) / _loss(none) - 1
    numbers |= {"held-out loss, none": _loss(none), "held-out loss, joint": _loss(joint), "its rise in %": 100 * rise}
    return Verdict(
        all(inside) and rise < 0.005,
        numbers,
        f"{sum(inside)} of {len(inside)} outcomes (log-likelihood of targets, nats a byte) of the joint run, averaged over "
        f"{SEEDS} seeds, lie within the least and most of the solo runs; it holds if all do and the held-out loss rises by "
        "less than 0.5 %.",
    )


def _loss(runs: Sequence[Finished]) -> float:
    return _mean([run.held_out["math"] for run in runs])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


#: Two sets of eight questions that have four in common.
PLANTED = ("questions", "half of them")


def _dependence() -> Verdict:
    """Short runs on none, each and all of five experiments, two of which share half of their questions."""
    lab = _laboratory([_questions(0, 8, PLANTED[0]), _questions(4, 12, PLANTED[1]), *_others()], BURST_STEPS, "constant")
    found = lab.burst(BURST_STEPS, share=0.01).interference(SEEDS, device="cpu")
    relative, names = found.relative, found.names
    numbers = {f"{name} on itself": float(found.matrix[place, place]) for place, name in enumerate(names)}
    pairs = [(one, two) for one in names for two in names if one != two]
    planted = [pair for pair in pairs if set(pair) == set(PLANTED)]
    others = [entry for pair in pairs if pair not in planted and (entry := found.entry(*pair))]
    sizes = {pair: float(relative[names.index(pair[0]), names.index(pair[1])]) for pair in pairs}
    told = [*planted, *((entry.trained, entry.tested) for entry in others if entry.significant)]
    numbers |= {f"{one} on {two}, of its own effect": sizes[one, two] for one, two in told}
    numbers |= {
        "largest other, of its own effect": max(abs(sizes[entry.trained, entry.tested]) for entry in others),
        "others outside their 95 % interval": sum(not entry.low <= 0 <= entry.high for entry in others),
        "others significant after Holm's correction": sum(entry.significant for entry in others),
        "experiments without an effect of their own": len(found.weak),
    }
    holds = all(sizes[pair] > 0.25 for pair in planted) and not any(e.significant for e in others) and not found.weak
    return Verdict(
        holds,
        numbers,
        f"Effects of {BURST_STEPS} steps at 1 % of the tokens each, from one checkpoint, {SEEDS} seeds; it holds if every "
        "experiment affects itself, those that share questions each other by more than 25 % of that, and no other pair "
        f"significantly (Holm over all pairs; of {len(others)} intervals of 95 %, one may miss 0 by chance).",
    )


TARGET = 0.05


def _control() -> Verdict:
    """A probe steered to a target on a line, against as many texts at a fixed rate, under three seeds."""
    found = [_controlled(seed) for seed in range(SEEDS)]
    numbers = {name: _mean([each[name] for each in found]) for name in found[0]}
    holds = all(
        each["largest factor from the line after 30 %"] <= 3
        and each["phases with more texts than before"] > 0
        and each["phases with fewer"] > 0
        and _factor(each["final probability, fixed rate"], TARGET) > _factor(each["final probability, controlled"], TARGET)
        for each in found
    )
    return Verdict(
        holds,
        numbers,
        f"The probability of the answers is steered to {TARGET} over {CONTROLLED_STEPS} steps, means of {SEEDS} seeds; it "
        "holds if in every seed it stays within a factor 3 of the line from 30 % on, the number of texts both rises and falls, "
        "and as many texts at a fixed rate end at a larger factor from the target.",
    )


def _controlled(seed: int) -> dict[str, float]:
    from latewood.studies.train_once import Control, Experiment

    control = Control(target=TARGET, steps=CONTROLLED_STEPS, every=15, first=4, limits=((0, 8),))
    steered = _knowledge(control)
    lab = replace(_laboratory([steered], CONTROLLED_STEPS), outcome="probability")
    run = lab.joint(seed, device="cpu")
    phases = run.learner.study.history["facts"]
    factors = [_factor(phase.value, phase.aim) for phase in phases if phase.step >= 0.3 * CONTROLLED_STEPS]
    counts = [phase.texts for phase in phases]
    inserted = run.reports[0].sequences
    texts = [steered.texts[place % len(steered.texts)] for place in range(inserted)]
    fixed = replace(lab, experiments=[Experiment("facts", texts, steered.items)]).joint(seed, device="cpu")
    return {
        "largest factor from the line after 30 %": max(factors),
        "share of those phases within a factor 3 in %": 100 * _mean([float(factor <= 3) for factor in factors]),
        "phases with more texts than before": sum(after > before for before, after in pairwise(counts)),
        "phases with fewer": sum(after < before for before, after in pairwise(counts)),
        "texts inserted": inserted,
        "final probability, controlled": run.means["facts"],
        "final probability, fixed rate": fixed.means["facts"],
    }


def _factor(value: float, aim: float) -> float:
    return max(value / aim, aim / value)


PAPER = Paper(
    number=50,
    name="train-once",
    title="Train Once, Answer All: Many Pretraining Experiments for the Cost of One",
    kind="system + protocol",
    arxiv="2509.23383",
    summary=(
        "Packs many small data experiments into one pretraining run, adjusts some of them by their own probes meanwhile, "
        "and tests in advance that none affects another."
    ),
    code=(
        "latewood.studies.train_once.loop:TrainOnceLearner",
        "latewood.studies.train_once.loop:Laboratory",
        "latewood.studies.train_once.interference:cpdt",
    ),
    claims=(
        Claim(
            "many-for-one",
            "Experiments in one run come out as each does in a run of its own, and barely touch the model.",
            _many_for_one,
            needs="math",
        ),
        Claim(
            "dependence-is-found",
            "Short runs from a checkpoint tell experiments that influence one another from those that don't.",
            _dependence,
            needs="math",
        ),
        Claim(
            "controlled",
            "A controller keeps a probe near its line by inserting more or less, which a fixed rate doesn't.",
            _control,
            needs="math",
        ),
    ),
)
