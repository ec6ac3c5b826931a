"""Do experiments in one run influence one another? The test by short continued training runs (CPDT)."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latewood.core.errors import ConfigurationError, DataError
from latewood.core.seeding import derive_seed

Values = NDArray[np.float64]
#: ``outcomes[trained][tested]``: the outcome of each item of the experiment ``tested``, ``(seeds, items)``, after a short run
#: on ``trained``: an experiment, :data:`NONE` or :data:`ALL`.
Outcomes: TypeAlias = Mapping[str, Mapping[str, ArrayLike]]
#: Runs one short training with some experiments active, under a seed, and gives the outcome of each item of each experiment.
Run: TypeAlias = Callable[[tuple[str, ...], int], Mapping[str, ArrayLike]]

NONE, ALL = "none", "all"
#: What the joint run adds to the experiment's own effect.
EXCESS = "all less own"
ENOUGH_SEEDS = 3
_DRAWS = 10_000
_DRAWN_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Entry:
    """What training on ``trained`` changed in the outcome of ``tested``, against training on none.

    ``low`` to ``high`` is where the effect lies with 95 % confidence; ``p`` is two-sided, and ``significant`` says whether it
    stays below 5 % after Holm's correction for all entries of its kind.
    """

    trained: str
    tested: str
    effect: float
    low: float
    high: float
    p: float
    significant: bool = False


@dataclass(frozen=True)
class Interference:
    """The matrix of a test of independence. Rows are what was trained on, columns what was tested on.

    ``entries`` holds, for each experiment that was tested, those of every experiment, of :data:`ALL` and :data:`EXCESS`;
    what could not be run has none. ``seeds`` is the number of runs behind each.
    """

    names: tuple[str, ...]
    entries: tuple[Entry, ...]
    seeds: int

    def entry(self, trained: str, tested: str) -> Entry | None:
        """One entry; ``None`` if it could not be measured."""
        return next((entry for entry in self.entries if (entry.trained, entry.tested) == (trained, tested)), None)

    @property
    def matrix(self) -> Values:
        """The effects, ``(n + 1, n)``: a row for each experiment, the last for all together; NaN where not measured."""
        rows = [[self.entry(trained, tested) for tested in self.names] for trained in (*self.names, ALL)]
        return np.array([[entry.effect if entry else np.nan for entry in row] for row in rows])

    @property
    def relative(self) -> Values:
        """:attr:`matrix` with each column divided by the size of its diagonal entry, as outcomes have units of their own."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.matrix / np.abs(np.diag(self.matrix))

    @property
    def weak(self) -> tuple[str, ...]:
        """Experiments without a significant effect on their own outcome: that they don't influence others says nothing."""
        own = {name: self.entry(name, name) for name in self.names}
        return tuple(name for name, entry in own.items() if entry is not None and not entry.significant)

    @property
    def untested(self) -> tuple[str, ...]:
        """Experiments that could not be run alone."""
        return tuple(name for name in self.names if self.entry(name, name) is None)

    @property
    def dependent(self) -> tuple[Entry, ...]:
        """Significant influences of one experiment on another, the largest relative one first, then those of the joint run."""
        found = [e for e in self.entries if e.significant and e.trained not in (ALL, e.tested)]
        return tuple(sorted(found, key=lambda e: (e.trained == EXCESS, -abs(e.effect) / self._own_size(e.tested))))

    @property
    def independent(self) -> bool:
        """Whether every experiment has an effect of its own, and none that was found on another or in the joint run."""
        return not self.dependent and not self.weak and not self.untested

    def describe(self) -> str:
        """What was found, in sentences."""
        sentences = []
        for entry in self.dependent:
            who = "Training on all together adds" if entry.trained == EXCESS else f"Training on {entry.trained} adds"
            sentences.append(
                f"{who} {entry.effect:+.3g} ({entry.low:+.3g} to {entry.high:+.3g}) to the outcome of {entry.tested}."
            )
        if not self.dependent:
            sentences.append("No experiment was found to influence another.")
        if self.weak:
            sentences.append(
                f"No effect of its own was found for {', '.join(self.weak)}: train it longer or on more, then ask again."
            )
        if self.untested:
            sentences.append(f"Not run alone: {', '.join(self.untested)}.")
        if self.seeds < ENOUGH_SEEDS:
            sentences.append(
                f"{self.seeds} seed{'s' * (self.seeds > 1)} can't tell chance in training; take {ENOUGH_SEEDS} or more."
            )
        return " ".join(sentences)

    def table(self) -> str:
        """The matrix as a Markdown table: significant effects in bold, ``-`` where not measured."""
        lines = [["trained on", *self.names], ["---", *("---:" for _ in self.names)]]
        lines += [
            [trained, *(_shown(self.entry(trained, name)) for name in self.names)] for trained in (*self.names, ALL, EXCESS)
        ]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def to_json(self) -> str:
        """What :meth:`from_json` reads."""
        return json.dumps({"names": self.names, "seeds": self.seeds, "entries": [asdict(entry) for entry in self.entries]})

    @classmethod
    def from_json(cls, text: str) -> Interference:
        """Errors: :class:`~latewood.core.errors.DataError` if the text is none of :meth:`to_json`."""
        try:
            held = json.loads(text)
            return cls(tuple(held["names"]), tuple(Entry(**entry) for entry in held["entries"]), int(held["seeds"]))
        except (ValueError, KeyError, TypeError):
            raise DataError("This is no result of a test of independence; take what to_json() gave.") from None

    def _own_size(self, name: str) -> float:
        own = self.entry(name, name)
        return abs(own.effect) if own and own.effect else 1.0


def collect(run: Run, names: Sequence[str], *, seeds: int = ENOUGH_SEEDS, alone: Collection[str] | None = None) -> Outcomes:
    """Do the short runs: one with no experiment, one with each alone, one with all, each under ``seeds`` seeds.

    ``run(active, seed)`` trains from the same checkpoint on the same data in the same order, whatever is active, and gives
    the outcome of each item, for every experiment. ``alone`` are those that can be run (default: all): one that is about
    absent data can't, but is tested on. Errors: :class:`~latewood.core.errors.ConfigurationError`.
    """
    active = tuple(name for name in names if alone is None or name in alone)
    if len(set(names)) < len(names) or {NONE, ALL, EXCESS} & set(names) or len(active) < 2 or seeds < 1:
        raise ConfigurationError(
            f"A test of independence needs at least two experiments of different names, none of them {NONE!r}, {ALL!r} or "
            f"{EXCESS!r}, and a seed, but it has {', '.join(names) or 'none'} and {seeds} seeds."
        )
    bursts = {NONE: (), **{name: (name,) for name in active}, ALL: active}
    outcomes: dict[str, dict[str, ArrayLike]] = {}
    for label, chosen in bursts.items():
        found = [run(chosen, seed) for seed in range(seeds)]
        outcomes[label] = {name: [outcome[name] for outcome in found] for name in names}  # type: ignore[misc]
    return outcomes


def cpdt(outcomes: Outcomes, *, seed: int = 0) -> Interference:
    """The matrix of effects and what is significant in it.

    Every effect is the mean over items and seeds of the paired difference to the run on none. Its interval is a bootstrap
    of items and of seeds: deviations of items are drawn from those of the entry; deviations of seeds from those of all
    entries of the column, diagonal apart from off-diagonal, since a few seeds of one entry don't show how far they
    scatter. With one seed only items are drawn. (The paper does not say how it tests.) Errors:
    :class:`~latewood.core.errors.DataError` if the run on none is missing, or outcomes can't be paired.

    >>> nothing, learnt = [[0.0, 0.1, 0.0, 0.1]] * 3, [[0.9, 1.0, 0.8, 1.0]] * 3
    >>> outcomes = {NONE: {"a": nothing, "b": nothing}, "a": {"a": learnt, "b": nothing}, "b": {"a": nothing, "b": learnt},
    ...             ALL: {"a": learnt, "b": learnt}}
    >>> result = cpdt(outcomes)
    >>> result.independent, result.matrix.round(3).tolist()
    (True, [[0.875, 0.0], [0.0, 0.875], [0.875, 0.875]])
    """
    if NONE not in outcomes:
        raise DataError("A test of independence needs the outcomes of a run on none to compare with.")
    names = tuple(outcomes[NONE])
    measured = {
        tested: {trained: _paired(outcomes, trained, tested) for trained in outcomes if tested in outcomes[trained]}
        for tested in names
    }
    entries = [entry for tested in names for entry in _column(tested, names, measured[tested], seed)]
    # Each kind of entry answers a question of its own.
    kinds = (
        [e for e in entries if e.trained in names and e.trained != e.tested],
        [e for e in entries if e.trained == e.tested],
        [e for e in entries if e.trained == ALL],
        [e for e in entries if e.trained == EXCESS],
    )
    return Interference(
        names, tuple(entry for kind in kinds for entry in _corrected(kind)), len(next(iter(measured[names[0]].values())))
    )


def holm(p_values: ArrayLike, level: float = 0.05) -> NDArray[np.bool_]:
    """Which of several p-values are significant at ``level`` together (Holm's step-down procedure).

    >>> holm([0.01, 0.04, 0.02, 0.9]).tolist()
    [True, False, False, False]
    """
    values = np.asarray(p_values, np.float64)
    order = np.argsort(values, kind="stable")
    passed = values[order] <= level / np.arange(len(values), 0, -1)
    significant = np.zeros(len(values), bool)
    significant[order] = np.logical_and.accumulate(passed)
    return significant


def _paired(outcomes: Outcomes, trained: str, tested: str) -> Values:
    """The outcomes of one run less those of the run on none, ``(seeds, items)``."""
    reference, values = (np.asarray(outcomes[run][tested], np.float64) for run in (NONE, trained))
    if values.ndim != 2 or values.shape != reference.shape or values.shape[1] < 2 or not np.isfinite(values).all():
        raise DataError(
            f"The outcome of {tested!r} after training on {trained!r} must be finite numbers of the shape (seeds, items), two "
            f"items or more, as after training on none, {reference.shape}, but its shape is {values.shape}."
        )
    return values - reference


def _column(tested: str, names: Sequence[str], measured: Mapping[str, Values], seed: int) -> list[Entry]:
    others = {trained: measured[trained] for trained in names if trained in measured and trained != tested}
    own = {trained: measured[trained] for trained in (tested, ALL) if trained in measured}
    if len(own) == 2:
        own[EXCESS] = own[ALL] - own[tested]
    return [entry for group in (others, own) for entry in _bootstrapped(tested, group, seed)]


def _bootstrapped(tested: str, group: Mapping[str, Values], seed: int) -> list[Entry]:
    """The entries of one column that share how far seeds scatter."""
    if not group:
        return []
    seeds = next(iter(group.values())).shape[0]
    # Of few seeds the deviations from their own mean are too small by this factor.
    factor = np.sqrt(seeds / (seeds - 1)) if seeds > 1 else 0.0
    scatter = factor * np.concatenate([values.mean(1) - values.mean() for values in group.values()])
    entries = []
    for trained, values in group.items():
        chance = np.random.default_rng(derive_seed(seed, trained, tested))
        effect = float(values.mean())
        deviations = _drawn_means(scatter, seeds, chance) + _drawn_means(values.mean(0) - effect, values.shape[1], chance)
        low, high = np.quantile(deviations, [0.025, 0.975])
        # A rounding error away from zero is no effect.
        p = (1 + np.sum(np.abs(deviations) >= abs(effect) - 1e-12)) / (1 + _DRAWS)
        entries.append(Entry(trained, tested, effect, effect - float(high), effect - float(low), float(p)))
    return entries


def _drawn_means(values: Values, count: int, chance: np.random.Generator) -> Values:
    """The means of :data:`_DRAWS` samples of ``count`` values, with replacement."""
    at_once = max(1, _DRAWN_AT_ONCE // count)
    sizes = [min(at_once, _DRAWS - start) for start in range(0, _DRAWS, at_once)]
    return np.concatenate([values[chance.integers(len(values), size=(size, count))].mean(1) for size in sizes])


def _corrected(entries: Sequence[Entry]) -> list[Entry]:
    significant = holm([entry.p for entry in entries])
    return [replace(entry, significant=bool(flag)) for entry, flag in zip(entries, significant, strict=True)]


def _shown(entry: Entry | None) -> str:
    if entry is None:
        return "-"
    return f"**{entry.effect:.3g}**" if entry.significant else f"{entry.effect:.3g}"
