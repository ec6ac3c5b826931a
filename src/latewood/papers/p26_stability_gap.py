"""Efficient Continual Pre-training by Mitigating the Stability Gap"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

from latewood.papers.ledger import Claim, Paper, Verdict

if TYPE_CHECKING:
    from latewood.core.data import Data
    from latewood.core.probe import Probe
    from latewood.core.watch import Watch
    from latewood.parts.gap import Gap

SEEDS = (0, 1, 2)
LENGTH, BATCH = 128, 16
DOMAIN = "python"
#: What the model is pre-trained on.
GENERAL = {"en": 0.6, "math": 0.4}
#: Characters of a document in the noisy pool, and how many tokens of domain text the pool holds.
DOCUMENT, TOPICAL = 1000, 1000 * LENGTH
OFF_TOPIC = ("de", "fr")


@dataclass(frozen=True)
class _Curves:
    """The mean loss on the sources of pre-training, the share of their bytes that are foretold, and the domain's loss."""

    steps: list[int]
    general: list[float]
    foretold: list[float]
    domain: list[float]
    sources: dict[str, float]
    drift: float

    @property
    def gap(self) -> Gap:
        from latewood.parts.gap import gap

        return gap(self.steps, self.general, higher_is_better=False)

    @property
    def dip(self) -> float:
        """How far the share of foretold bytes falls at first."""
        from latewood.parts.gap import gap

        return gap(self.steps, self.foretold).depth

    @property
    def worst(self) -> int:
        """Where the early window is at its worst."""
        early = [place for place, step in enumerate(self.steps) if step <= 0.1 * self.steps[-1]]
        return max(early, key=lambda place: self.general[place])

    @property
    def returned(self) -> float:
        """How much of the rise is undone later, in nats."""
        return self.general[self.worst] - min(self.general[self.worst :])


def _run(seed: int, corpus: Data, settings: Mapping[str, Any], only_at_the_end: bool = False) -> _Curves:
    """Continue a trained model on a corpus, and look how it fares, most often at the start."""
    from latewood.core.experience import Experience
    from latewood.core.watch import Watch, log_spaced, watching
    from latewood.language.learners.stability_gap import StabilityGap
    from latewood.language.recipe import TextRecipe
    from latewood.papers import _language as language
    from latewood.parts.drift import Drift

    general = language.rows(*GENERAL, length=LENGTH)
    model = language.base_model(general, seed=seed, shares=GENERAL)
    recipe = TextRecipe(batch_size=BATCH, lr=1e-3, warmup=0.1, weight_decay=0.01)
    learner = StabilityGap(model, first="keep", recipe=recipe, **settings)
    learner.generator.manual_seed(seed)
    learner.learn(Experience(0, general))
    drift = Drift(model.network)
    due = (lambda _: False) if only_at_the_end else log_spaced
    with watching(Watch(_probes(), due)) as watch:
        learner.learn(Experience(1, corpus))
    return _curves(watch, drift.ratio())


def _probes() -> list[Probe]:
    from latewood.papers import _language as language

    return [*(language.held_out(name, length=LENGTH) for name in (*GENERAL, DOMAIN)), *map(_foretold, GENERAL)]


def _curves(watch: Watch, drift: float) -> _Curves:
    losses = {name: watch.curve(name, "loss")[1] for name in GENERAL}
    foretold = [watch.curve(f"{name}, foretold", "accuracy")[1] for name in GENERAL]
    return _Curves(
        watch.curve(DOMAIN, "loss")[0],
        [_mean(values) for values in zip(*losses.values(), strict=True)],
        [_mean(values) for values in zip(*foretold, strict=True)],
        watch.curve(DOMAIN, "loss")[1],
        {name: values[-1] for name, values in losses.items()},
        drift,
    )


def _foretold(name: str) -> Probe:
    """The share of bytes of held-out text that are those held likeliest."""
    import torch

    from latewood.core.learner import Learner
    from latewood.core.probe import Probe
    from latewood.language.learner import LanguageLearner
    from latewood.papers import _language as language

    class Foretold(Probe):
        metrics: ClassVar[Mapping[str, bool]] = {"accuracy": True}

        def score(self, learner: Learner) -> dict[str, float]:
            assert isinstance(learner, LanguageLearner)
            with torch.no_grad():
                tokens = learner.backbone.prepare(self.data)
                right = learner.backbone(tokens)[:, :-1].argmax(2) == tokens[:, 1:]
            return {"accuracy": float(right.double().mean())}

    return Foretold(f"{name}, foretold", language.held_out(name, length=LENGTH).data, since=0)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# The gap


@cache
def _continued(seed: int, kept: float) -> _Curves:
    """One pass over 500 steps, of which a share of each batch is general text."""
    from latewood.papers import _language as language

    rows = language.rows(DOMAIN, length=LENGTH, most=500 * BATCH)
    rates = {"web": 1 - kept} | {name: kept * share for name, share in GENERAL.items() if kept}
    return _run(seed, rows, {"subset": 1, "epochs": 1, "rates": rates, "web": ("web",)})


def _exists() -> Verdict:
    """General and domain loss from the first step on; beside it, what is seen where general text is kept."""
    arms = {"plain": [_continued(seed, 0.0) for seed in SEEDS], "half kept": [_continued(seed, 0.5) for seed in SEEDS]}
    new = arms["plain"]
    numbers = {
        "general loss before": _mean([run.general[0] for run in new]),
        "domain loss before": _mean([run.domain[0] for run in new]),
    }
    for name, runs in arms.items():
        numbers |= {
            f"{name}: general rise, worst of the first 10 % of steps": _mean([run.gap.depth for run in runs]),
            f"{name}: step of that": _mean([run.steps[run.worst] for run in runs]),
            f"{name}: of that undone later": _mean([run.returned for run in runs]),
            f"{name}: general rise at the end": _mean([run.general[-1] - run.general[0] for run in runs]),
            f"{name}: early fall in foretold bytes, % points": 100 * _mean([run.dip for run in runs]),
            f"{name}: domain loss after": _mean([run.domain[-1] for run in runs]),
        }
    numbers["plain: largest rise of the domain loss between looks"] = max(_largest_rise(run.domain) for run in new)
    holds = all(
        run.gap.depth > 0
        and run.steps[run.worst] <= 0.05 * run.steps[-1]
        and run.returned >= 0.1 * run.gap.depth
        and _largest_rise(run.domain) <= 0.02
        for run in new
    )
    return Verdict(
        holds,
        numbers,
        f"A model of {_told(GENERAL)} goes on with 500 steps of {DOMAIN}, nats per byte, {len(SEEDS)} seeds; it holds if in "
        "every seed of plain training the general loss peaks within the first 5 % of the steps, at least a tenth of that rise "
        "returns later, and the domain loss never rises by more than 0.02 from look to look.",
    )


def _largest_rise(losses: Sequence[float]) -> float:
    return max(after - before for before, after in pairwise(losses))


# Three strategies against one pass


def _three_strategies() -> Verdict:
    """A noisy pool under one budget: one pass, all three strategies, and two controls that leave some out."""
    import tempfile
    from pathlib import Path

    nothing: dict[str, Any] = {"rates": {"en": 1.0}}
    kept: dict[str, Any] = {"rates": GENERAL, "web": ("en",)}
    best: dict[str, Any] = {"subset": 0.25, "epochs": 4, "quality": True}
    everything: dict[str, Any] = {"subset": 1, "epochs": 1}
    arms = {
        "one pass": everything | nothing,
        "three strategies": best | kept,
        "one pass, rates kept": everything | kept,
        "best quarter four times, nothing kept": best | nothing,
    }
    pool, trusted = _noisy_pool()
    with tempfile.TemporaryDirectory() as folder:
        reference = Path(folder, "trusted.txt")
        reference.write_text("\n\n".join(trusted), encoding="utf-8")
        runs = {
            name: [_run(seed, pool, settings | {"reference": str(reference)}) for seed in SEEDS]
            for name, settings in arms.items()
        }
    numbers: dict[str, float] = {"steps": float(runs["one pass"][0].steps[-1])}
    for name, of_arm in runs.items():
        numbers |= {
            f"{name}: domain loss": _mean([run.domain[-1] for run in of_arm]),
            f"{name}: early general rise": _mean([run.gap.depth for run in of_arm]),
            f"{name}: early fall in foretold bytes, % points": 100 * _mean([run.dip for run in of_arm]),
            f"{name}: general loss": _mean([run.general[-1] for run in of_arm]),
            f"{name}: drift of the bottom over the top": _mean([run.drift for run in of_arm]),
        }
    one, three = runs["one pass"], runs["three strategies"]
    by_seed = all(b.domain[-1] < a.domain[-1] and b.gap.depth <= a.gap.depth / 2 for a, b in zip(one, three, strict=True))
    holds = by_seed and _mean([run.dip for run in three]) <= _mean([run.dip for run in one]) / 2
    return Verdict(
        holds,
        numbers,
        f"A model of {_told(GENERAL)} learns a pool of which a quarter is {DOMAIN} and the rest {' and '.join(OFF_TOPIC)}; the "
        f"budget of all arms is one pass; nats per byte, {len(SEEDS)} seeds; it holds if in every seed three strategies reach "
        "a lower domain loss than one pass and the general loss rises at most half as far at first, and if the share of "
        "foretold bytes falls at most half as far in the mean.",
    )


@cache
def _noisy_pool() -> tuple[Data, list[str]]:
    """Documents of which a quarter is domain text, and as much domain text again to trust, of which none is in the pool."""
    import random

    from latewood.language.corpora import load_corpus, pack

    chance = random.Random(0)
    topical = _documents(DOMAIN)
    chance.shuffle(topical)
    held_out = "\n".join(load_corpus(DOMAIN).documents("held_out"))
    # Some passages stand in several files.
    halves = ((text for text in half if text not in held_out) for half in (topical[::2], topical[1::2]))
    inside, trusted = (list(_until(half, TOPICAL)) for half in halves)
    pages = [document for name in OFF_TOPIC for document in _documents(name)]
    chance.shuffle(pages)
    mixed = [*inside, *_until(pages, 3 * TOPICAL)]
    chance.shuffle(mixed)
    return pack(mixed, length=LENGTH), trusted


def _documents(name: str) -> list[str]:
    """The training part of a corpus in pieces of about as many characters, cut at the ends of lines."""
    from latewood.language.corpora import load_corpus

    pieces, held = [], ""
    for line in (line for document in load_corpus(name).documents() for line in document.splitlines()):
        held += f"{line}\n"
        if len(held) >= DOCUMENT:
            pieces.append(held)
            held = ""
    return pieces


def _until(documents: Iterable[str], size: int) -> Iterator[str]:
    """The first documents, until they hold so many bytes."""
    for document in documents:
        if size <= 0:
            return
        yield document
        size -= len(document.encode())


# Rates against one source


def _rates() -> Verdict:
    """Half of every epoch replayed: from all sources at their rates, or all of it from one of them."""
    from latewood.papers import _language as language

    halves = {"at their rates": GENERAL} | {f"{name} alone": {name: 1.0} for name in GENERAL}
    corpus = language.rows(DOMAIN, length=LENGTH, most=200 * BATCH)
    numbers: dict[str, float] = {}
    general: dict[str, float] = {}
    for arm, half in halves.items():
        rates = {"web": 0.5} | {name: share / 2 for name, share in half.items()}
        plan: dict[str, Any] = {"subset": 0.25, "epochs": 4, "rates": rates, "web": ("web",)}
        runs = [_run(seed, corpus, plan, only_at_the_end=True) for seed in SEEDS]
        general[arm] = numbers[f"{arm}: general loss"] = _mean([run.general[-1] for run in runs])
        numbers |= {f"{arm}: {name}": _mean([run.sources[name] for run in runs]) for name in GENERAL}
        numbers[f"{arm}: domain loss"] = _mean([run.domain[-1] for run in runs])
    return Verdict(
        min(general, key=lambda arm: general[arm]) == "at their rates",
        numbers,
        f"A model of {_told(GENERAL)} learns {DOMAIN} for 200 steps of which half is replay, final losses in nats per byte, "
        f"means of {len(SEEDS)} seeds; it holds if the mean loss over the sources is lower with replay at the rates of "
        "pre-training than with as much from either source alone.",
    )


def _told(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {100 * share:g} %" for name, share in shares.items())


PAPER = Paper(
    number=26,
    name="stability-gap",
    title="Efficient Continual Pre-training by Mitigating the Stability Gap",
    kind="learner + protocol",
    arxiv="2406.14833",
    summary=(
        "Tracks general and domain loss closely from the first steps of continued pretraining, and tests whether several "
        "passes over a clean, small, source-balanced subset flatten the early dip."
    ),
    code=(
        "latewood.language.learners.stability_gap:StabilityGap",
        "latewood.language.quality:QualityScorer",
        "latewood.parts.gap:gap",
        "latewood.parts.drift:Drift",
    ),
    claims=(
        Claim(
            "gap-exists",
            "On new text a language model first loses general ability, and regains part of it, while the domain loss falls.",
            _exists,
            needs="text",
        ),
        Claim(
            "three-strategies",
            "Several passes over the best part at the rates of pre-training learn more than one pass, and lose less at first.",
            _three_strategies,
            needs="text",
        ),
        Claim(
            "rates",
            "Replay at the rates of pre-training keeps general ability better than as much replay from one source.",
            _rates,
            needs="text",
        ),
    ),
)
