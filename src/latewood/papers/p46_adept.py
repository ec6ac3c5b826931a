"""ADEPT: Continual Pretraining via Adaptive Expansion and Dynamic Decoupled Tuning"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Literal

from latewood.papers.ledger import Claim, Paper, Verdict

if TYPE_CHECKING:
    from latewood.language.nets.causal import CausalLM

SEEDS = (0, 1, 2)
GENERAL, DOMAIN = "en", "python"
LAYERS, COPIES, STEPS, EVERY = 6, 2, 300, 50
#: A checkpoint whose layers are worth looking at, as a folder under LATEWOOD_DATA.
REAL = "models/SmolLM2-135M"


@dataclass(frozen=True)
class _Run:
    """How the general and the domain loss went, every 20 steps, and the multipliers of the units at each recomputation."""

    general: list[float]
    domain: list[float]
    multipliers: list[dict[str, float]] = field(default_factory=list)

    @property
    def rise(self) -> float:
        return self.general[-1] - self.general[0]

    @property
    def drop(self) -> float:
        return self.domain[0] - self.domain[-1]

    def rise_at(self, domain_loss: float) -> float:
        """How much the general loss had risen when the domain loss first came down to this."""
        place = next((i for i, loss in enumerate(self.domain) if loss <= domain_loss), len(self.domain) - 1)
        if place == 0:
            return 0.0
        part = (self.domain[place - 1] - domain_loss) / (self.domain[place - 1] - self.domain[place])
        return self.general[place - 1] + part * (self.general[place] - self.general[place - 1]) - self.general[0]


Choice = Literal["least", "most", "uniform"]


def _base(seed: int) -> CausalLM:
    from latewood.papers import _language as language

    return language.base_model(language.rows(GENERAL), seed=seed, layers=LAYERS)


@cache
def _run(seed: int, how: Choice | Literal["full"], decoupled: bool = True) -> _Run:
    """Continue a trained model on the domain: as a whole, or by copies behind some of its layers."""
    from latewood.core.experience import Experience
    from latewood.core.watch import Watch, watching
    from latewood.language.learner import LanguageLearner
    from latewood.language.learners.adept import ADEPT
    from latewood.language.learners.continue_ import Continue
    from latewood.language.recipe import TextRecipe
    from latewood.papers import _language as language

    recipe = TextRecipe(batch_size=16, steps=STEPS, lr=1e-3, warmup=0.03)
    learner: LanguageLearner
    if how == "full":
        learner = Continue(_base(seed), recipe)
    else:
        learner = ADEPT(_base(seed), COPIES, EVERY, first="keep", choice=how, decoupled=decoupled, recipe=recipe)
        learner.generator.manual_seed(seed)
        learner.learn(Experience(0, language.rows(GENERAL)))
    learner.generator.manual_seed(seed)
    probes = [language.held_out(name) for name in (GENERAL, DOMAIN)]
    with watching(Watch(probes, due=20)) as watch:
        learner.learn(Experience(1, language.rows(DOMAIN, most=16 * STEPS)))
    general, domain = (watch.curve(name, "loss")[1] for name in (GENERAL, DOMAIN))
    return _Run(general, domain, getattr(learner, "multipliers", []))


def _retention() -> Verdict:
    """Copies of two layers of six against the whole model, with the same steps on the same rows."""
    full, adept = ([_run(seed, how) for seed in SEEDS] for how in ("full", "least"))
    numbers = {
        "general loss before": _mean([run.general[0] for run in full]),
        "domain loss before": _mean([run.domain[0] for run in full]),
        "full, general rise": _mean([run.rise for run in full]),
        "full, domain drop": _mean([run.drop for run in full]),
        "ADEPT, general rise": _mean([run.rise for run in adept]),
        "ADEPT, domain drop": _mean([run.drop for run in adept]),
    }
    shares = [(a.rise / f.rise, a.drop / f.drop) for a, f in zip(adept, full, strict=True)]
    numbers["worst share of the rise"] = max(rise for rise, _ in shares)
    numbers["worst share of the drop"] = min(drop for _, drop in shares)
    return Verdict(
        all(rise <= 0.5 and drop >= 0.6 for rise, drop in shares),
        numbers,
        f"Nats per byte, {GENERAL} then {DOMAIN}, means of {len(SEEDS)} seeds; it holds if in every seed the general loss "
        "rises at most half as much as with full continued pre-training, and the domain loss drops by at least 60 % as much.",
    )


def _place() -> Verdict:
    """Copies behind the least important layers, the most important ones, and evenly spread."""
    choices: tuple[Choice, ...] = ("least", "uniform", "most")
    rises = _rises({choice: [_run(seed, choice) for seed in SEEDS] for choice in choices})
    numbers = {f"{choice}, general rise": value for choice, value in rises.items()}
    numbers |= {f"{choice}, domain loss": _mean([_run(seed, choice).domain[-1] for seed in SEEDS]) for choice in choices}
    return Verdict(
        rises["least"] == min(rises.values()),
        numbers,
        f"General rise in nats per byte at equal domain loss (the highest final one of a seed), means of {len(SEEDS)} seeds; "
        "it holds if copies behind the least important layers raise the general loss least.",
    )


def _rates() -> Verdict:
    """Unit-wise rates against one rate for all units of the same copies."""
    runs = {
        "decoupled": [_run(seed, "least") for seed in SEEDS],
        "one rate": [_run(seed, "least", decoupled=False) for seed in SEEDS],
    }
    rises = _rises(runs)
    numbers = {f"{name}, general rise": value for name, value in rises.items()}
    numbers |= {f"{name}, domain loss": _mean([run.domain[-1] for run in found]) for name, found in runs.items()}
    told = [row for run in runs["decoupled"] for row in run.multipliers]
    for kind, words in {"norm": "norm", "attention": "self_attn", "MLP": "mlp"}.items():
        numbers[f"mean multiplier, {kind}"] = _mean([v for row in told for unit, v in row.items() if words in unit])
    return Verdict(
        rises["decoupled"] <= rises["one rate"],
        numbers,
        f"General rise in nats per byte at equal domain loss (the higher final one of a seed), means of {len(SEEDS)} seeds; it "
        "holds if unit-wise rates raise the general loss no more than one rate does.",
    )


def _rises(runs: Mapping[str, Sequence[_Run]]) -> dict[str, float]:
    """The mean general rise of each arm at the domain loss that all arms of a seed reached."""
    levels = [max(run.domain[-1] for run in same_seed) for same_seed in zip(*runs.values(), strict=True)]
    return {name: _mean([run.rise_at(level) for run, level in zip(found, levels, strict=True)]) for name, found in runs.items()}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _depth() -> Verdict:
    """Layer importance of a real model on held-out text."""
    import os
    from pathlib import Path

    import torch

    from latewood.language.corpora import load_blocks
    from latewood.language.expansion import layer_importance
    from latewood.language.nets.causal import causal
    from latewood.papers.ledger import DATA

    folder = str(Path(os.environ[DATA], REAL))
    text = load_blocks(GENERAL, tokenizer=folder, length=512, held_out=32).held_out
    model = causal(text[:1], name=folder)

    @torch.no_grad()
    def loss() -> float:
        parts = [model.losses(model.prepare(batch)).mean() for batch in text.batches(8)]
        return float(torch.stack(parts).mean())

    rises = layer_importance(model.network, loss)
    late = sorted(rises[-(len(rises) // 3) :])
    median = late[len(late) // 2]
    return Verdict(
        min(rises[:2]) > median,
        {f"layer {place}": rise for place, rise in enumerate(rises)},
        "Rise of the loss in nats per token without each layer; it holds if that of each of the first two layers exceeds the "
        "median of the last third.",
    )


PAPER = Paper(
    number=46,
    name="adept",
    title="ADEPT: Continual Pretraining via Adaptive Expansion and Dynamic Decoupled Tuning",
    kind="learner",
    arxiv="2510.10071",
    summary=(
        "Deepens a language model behind the layers that matter least to it, with copies that change nothing at first, "
        "and trains only these on a new domain, more slowly where a weight matters in general."
    ),
    code=(
        "latewood.language.learners.adept:ADEPT",
        "latewood.language.expansion:expand",
        "latewood.parts.unit_rates:adapt_unit_rates",
    ),
    claims=(
        Claim("retention", "Copies learn most of the domain at less than half of the forgetting.", _retention, needs="text"),
        Claim("place", "Copies belong behind the layers that matter least.", _place, needs="text"),
        Claim("rates", "Rates by unit spare general ability.", _rates, needs="text"),
        Claim("depth", "In a real model early layers matter more than late ones.", _depth, needs=REAL),
    ),
)
