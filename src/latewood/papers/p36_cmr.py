"""CMR Scaling Law: Predicting Critical Mixture Ratios for Continual Pre-training of Language Models"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from latewood.papers.ledger import Claim, Paper, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from latewood.core.data import Data
    from latewood.language.corpora import TokenBlocks
    from latewood.language.nets.causal import CausalLM
    from latewood.studies.cmr import Curve, Plan, Text
    from latewood.studies.cmr.laws import Vector

SEEDS = (0, 1, 2)
RATIOS = (0.0, 1 / 8, 1 / 4, 1 / 3, 1 / 2, 3 / 4, 1.0)
EPS = 0.05
#: A quarter of the rate at which the base model was trained at its peak.
LR = 5e-4
STEPS, EVERY, LENGTH = 500, 10, 128
#: The last tenth of a run: the mean over these looks is where it ended.
_END = 5
_SETTING = (
    "bytes, 2 layers of 64; pre-trained on every other row of Shakespeare, then at a constant rate of "
    f"{LR:g} for {STEPS} steps on the rows between them and Python source, {len(SEEDS)} seeds, ends are means over the last "
    "tenth of a run"
)


@cache
def _setting(seed: int) -> tuple[CausalLM, Text, Text]:
    """A model, general text that it never saw, and domain text."""
    from latewood.language.corpora import load_blocks
    from latewood.papers._language import base_model
    from latewood.studies.cmr import Text

    english, python = load_blocks("en", length=LENGTH), load_blocks("python", length=LENGTH)

    def every(data: Data, first: int, step: int, most: int | None = None) -> Data:
        return data[first::step][:most].to("cpu")  # a table of its own, whose fingerprint is that of these rows

    def text(blocks: TokenBlocks, first: int, step: int) -> Text:
        return Text(blocks.name, every(blocks.train, first, step), every(blocks.held_out, 0, len(blocks.held_out) // 64, 64))

    model = base_model(every(english.train, 0, 2), seed=seed, lr=4 * LR)
    return model, text(english, 1, 2), text(python, 0, 8)


def _measured(seed: int, ratios: Sequence[float]) -> list[Curve]:
    """The curves at these shares, kept in the cache."""
    import hashlib

    import torch

    from latewood.core.files import cache_folder
    from latewood.language.recipe import TextRecipe
    from latewood.studies.cmr import measure
    from latewood.studies.cmr.run import weights_fingerprint

    model, general, domain = _setting(seed)
    texts = [(text.train.fingerprint(), text.held_out.fingerprint()) for text in (general, domain)]
    recipe = TextRecipe(lr=LR, decay="constant")
    facts = (weights_fingerprint(model), texts, recipe, STEPS, EVERY, seed, torch.__version__, torch.get_num_threads())
    name = hashlib.blake2b(repr(facts).encode(), digest_size=12).hexdigest()
    kept = cache_folder("mixture-ratio")
    place = kept / name if kept else None
    how: dict[str, Any] = {"steps": STEPS, "every": EVERY, "recipe": recipe, "seed": seed}
    return measure(model, general, domain, ratios, to=place, device="cpu", **how)


@cache
def _curves(seed: int) -> tuple[Curve, ...]:
    return tuple(_measured(seed, RATIOS))


def _end(values: Vector) -> float:
    return float(values[-_END:].mean())


def _ends(which: str) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Where the losses of all runs ended, as increments: seed by ratio."""
    import numpy as np

    return np.array([[_end(getattr(curve, which)) for curve in _curves(seed)] for seed in SEEDS])


def _plan(curves: Sequence[Curve], budget: float) -> Plan:
    from latewood.studies.cmr import plan

    return plan(curves, budget=budget, eps=EPS, draws=0)


def _percent(shares: Sequence[float | None]) -> float:
    """The mean in %, where no share at all counts as 0."""
    return 100 * sum(share or 0.0 for share in shares) / len(shares)


def _binding(plans: Sequence[Plan]) -> str:
    counts = {plan.binding: sum(other.binding == plan.binding for other in plans) for plan in plans}
    return ", ".join(f"{what} in {count} of {len(plans)}" for what, count in counts.items())


def _trade_off() -> Verdict:
    """All shares, to the end."""
    import numpy as np

    general, domain = _ends("general").mean(0), _ends("domain").mean(0)
    few = np.mean([_curves(seed)[RATIOS.index(1 / 8)].general for seed in SEEDS], axis=0)
    pure = np.mean([_curves(seed)[-1].general for seed in SEEDS], axis=0)
    quarter = len(pure) // 4
    second, last = float(pure[quarter : 2 * quarter].mean()), float(pure[-quarter:].mean())
    numbers = {f"general at {100 * ratio:.3g} %": float(value) for ratio, value in zip(RATIOS, general, strict=True)}
    numbers |= {f"domain at {100 * ratio:.3g} %": float(value) for ratio, value in zip(RATIOS, domain, strict=True)}
    numbers |= {"general peak at 12.5 %": float(few.max())}
    numbers |= {"general at 100 % in the second quarter": second, "general at 100 % in the last quarter": last}
    plans = [_plan(_curves(seed), 100.0) for seed in SEEDS]
    numbers["critical ratio in %"] = _percent([plan.ratio for plan in plans])
    holds = (
        bool((np.diff(general) > 0).all() and (np.diff(domain) < 0).all())
        and float(few.max()) > 0 > float(general[RATIOS.index(1 / 8)])
        and last > max(second, EPS)
    )
    return Verdict(
        holds,
        numbers,
        f"Change of the held-out losses in nats ({_SETTING}); it holds if the end of the general loss rises and that of the "
        "domain loss falls from each share to the next, at 12.5 % the general loss rises and comes back below its start, and "
        f"at 100 % it is higher in the last quarter than in the second and above {EPS}. What binds at the critical ratio: "
        f"{_binding(plans)}.",
    )


def _left_out() -> Verdict:
    """Each inner share foretold from the four others, by the law and by a straight line."""
    import numpy as np

    from latewood.studies.cmr.laws import fit

    shares = np.array(RATIOS[1:-1])

    def law(x: Vector, y: Vector, at: float) -> float:
        return float(fit(x, y)(at))

    def line(x: Vector, y: Vector, at: float) -> float:
        return float(np.polyval(np.polyfit(x, y, 1), at))

    numbers: dict[str, float] = {}
    for which in ("domain", "general"):
        bases = np.array([[getattr(_curves(seed)[0], f"{which}_base")] for seed in SEEDS])
        losses = (_ends(which) + bases)[:, 1:-1]
        for name, how in (("law", law), ("straight line", line)):
            errors = _errors(shares, losses, how)
            numbers[f"{which}, {name}: mean"], numbers[f"{which}, {name}: largest"] = float(errors.mean()), float(errors.max())
            numbers[f"{which}, {name}: largest within the range of the others"] = float(errors[:, 1:-1].max())
    laws = [value for name, value in numbers.items() if "law: largest" in name]
    line_mean, law_mean = (
        sum(numbers[f"{w}, {name}: mean"] for w in ("domain", "general")) for name in ("straight line", "law")
    )
    return Verdict(
        max(laws) <= 1 and line_mean >= 2 * law_mean,
        numbers,
        f"Relative error in % at each inner share, left out in turn and foretold from the other four ({_SETTING}); it holds if "
        "the law over shares is never off by more than 1 % and a straight line is off twice as far on average.",
    )


def _errors(shares: Vector, losses: Vector, how: Callable[[Vector, Vector, float], float]) -> Vector:
    """Relative errors in %, seed by share."""
    import numpy as np

    others = [np.arange(len(shares)) != out for out in range(len(shares))]
    foretold = [[how(shares[rest], row[rest], shares[~rest][0]) for rest in others] for row in losses]
    return np.asarray(100 * np.abs(np.array(foretold) / losses - 1))


def _forward() -> Verdict:
    """From the first half of the curves to the whole, and a run on either side."""
    plans = [_plan([curve.until(50.0) for curve in _curves(seed)], 100.0) for seed in SEEDS]
    predicted = [plan.ratio for plan in plans]
    below, above = zip(*(_either_side(seed, ratio) for seed, ratio in zip(SEEDS, predicted, strict=True)), strict=True)
    full = {budget: [_plan(_curves(seed), budget) for seed in SEEDS] for budget in (25.0, 50.0, 100.0)}
    growing = {budget: _percent([plan.ratio for plan in found]) for budget, found in full.items()}
    numbers = {f"critical ratio in % at {budget:g} units": share for budget, share in growing.items()}
    numbers |= {
        f"by the tolerance alone at {budget:g} units": _percent([plan.crossing_ratio for plan in found])
        for budget, found in full.items()
    }
    numbers |= {"foretold from the first half in %": _percent(predicted)}
    numbers |= {f"seed {seed}: foretold": 100 * (ratio or 0.0) for seed, ratio in zip(SEEDS, predicted, strict=True)}
    numbers |= {f"seed {seed}: general below": value for seed, value in zip(SEEDS, below, strict=True)}
    numbers |= {f"seed {seed}: general above": value for seed, value in zip(SEEDS, above, strict=True)}
    steps = list(growing.values())
    holds = all(low <= EPS < high for low, high in zip(below, above, strict=True)) and steps == sorted(set(steps))
    return Verdict(
        holds,
        numbers,
        f"Critical domain share at a tolerance of {EPS}, and how far the general loss ends above its start with runs at 10 "
        f"points below and above what the first half of the curves foretells ({_SETTING}); it holds if the critical ratio "
        "grows with the budget and, with every seed, the run below ends within the tolerance and the one above outside. What "
        f"binds in the forecasts: {_binding(plans)}.",
    )


def _either_side(seed: int, ratio: float | None) -> tuple[float, float]:
    """Where the general loss ends 10 points below and above a share, or at 0.7 and 1.4 of one that has no such neighbours."""
    if not ratio:
        return float("nan"), float("nan")
    sides = (ratio - 0.1, ratio + 0.1) if 0.1 < ratio <= 0.9 else (0.7 * ratio, min(1.0, 1.4 * ratio))
    low, high = _measured(seed, sides)
    return _end(low.general), _end(high.general)


PAPER = Paper(
    number=36,
    name="cmr",
    title="CMR Scaling Law: Predicting Critical Mixture Ratios for Continual Pre-training of Language Models",
    kind="protocol",
    arxiv="2407.17467",
    summary=(
        "Fits power laws to a few short runs at several domain shares, forecasts the share at which general text starts "
        "to suffer, and trains on either side of the forecast to check it."
    ),
    code=("latewood.studies.cmr:measure", "latewood.studies.cmr:plan"),
    claims=(
        Claim(
            "trade-off",
            "The more domain text, the lower the domain loss and the higher the general loss, which small shares win back and "
            "pure domain text does not: there is a critical ratio.",
            _trade_off,
            needs="text",
        ),
        Claim(
            "left-out-share",
            "A power law over shares foretells the losses at a share that was not run.",
            _left_out,
            needs="text",
        ),
        Claim(
            "forecast",
            "The critical ratio grows with the budget, and is foretold for a budget from runs of half its length.",
            _forward,
            needs="text",
        ),
    ),
)
