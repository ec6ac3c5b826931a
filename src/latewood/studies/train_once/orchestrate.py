"""Many experiments in one training run: what to insert when, and what came out. The training itself lies in :mod:`~.loop`.

By hand a run goes like this, from any step and after any interruption::

    study = TrainOnce(experiments, shape, tokenizer)      # or study.resume(folder)
    for step in study.stops():
        study.steer(step, {experiment.name: <its probe's value> for experiment in study.due(step)})
        study.save(folder)
        <train to the next stop on Overlay(stream, study.plan)>
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from latewood.core.errors import CheckpointError, ConfigurationError, DataError
from latewood.language.corpora import Tokenizer
from latewood.language.insertions import InsertionPlan, Report, StreamShape
from latewood.studies.train_once.controller import ControlState
from latewood.studies.train_once.experiments import Experiment


def plan(
    experiments: Sequence[Experiment], shape: StreamShape | tuple[int, int, int], tokenizer: Tokenizer, *, seed: int = 42
) -> InsertionPlan:
    """Place everything that is known before training: all experiments without a controller.

    Errors: those of :meth:`~latewood.language.insertions.InsertionPlan.add`.
    """
    made = InsertionPlan(shape, end=tokenizer.end, vocabulary=tokenizer.size, seed=seed)
    made.add([experiment.intervention(tokenizer) for experiment in experiments if experiment.control is None])
    return made


class TrainOnce:
    """The experiments of one run, what they have inserted, and the states of their controllers.

    ``plan`` is what :class:`~latewood.language.insertions.Overlay` lays over the stream. Everything follows from
    the experiments, ``seed`` and the values that controllers were told; :meth:`save` keeps all of it. Errors:
    :class:`~latewood.core.errors.ConfigurationError` for two experiments of one name, or a controller that goes on beyond
    the stream.
    """

    def __init__(
        self,
        experiments: Sequence[Experiment],
        shape: StreamShape | tuple[int, int, int],
        tokenizer: Tokenizer,
        *,
        seed: int = 42,
    ) -> None:
        shape = StreamShape(*shape)
        _check(experiments, shape)
        self.experiments = {experiment.name: experiment for experiment in experiments}
        self.tokenizer = tokenizer
        self.plan = plan(experiments, shape, tokenizer, seed=seed)
        #: The states of each controller, one for each phase that began.
        self.history: dict[str, list[ControlState]] = {e.name: [] for e in experiments if e.control}

    def stops(self, first: int = 0) -> Iterator[int]:
        """The steps from ``first`` on at which some controller decides, and before them ``first`` itself."""
        yield first
        controls = [experiment.control for experiment in self.experiments.values() if experiment.control]
        for step in range(first + 1, self.plan.shape.steps):
            if any(control.due(step) for control in controls):
                yield step

    def due(self, step: int) -> list[Experiment]:
        """The experiments whose controllers must be told the value of their probe at ``step``, the weights being those
        before that step; none of those that decided there already, before an interruption."""
        steered = [experiment for name, experiment in self.experiments.items() if name in self.history]
        return [
            experiment
            for experiment in steered
            if experiment.control and experiment.control.due(step) and not self._decided(experiment.name, step)
        ]

    def steer(self, step: int, values: Mapping[str, float]) -> None:
        """Let every controller that is due at ``step`` decide, and place its texts in the phase that begins there.

        Errors, before anything changes: :class:`~latewood.core.errors.ConfigurationError` if values are missing or not
        asked for; :class:`~latewood.core.errors.DataError` for one that is not finite.
        """
        due = self.due(step)
        if {experiment.name for experiment in due} != set(values):
            names = ", ".join(experiment.name for experiment in due) or "none"
            given = ", ".join(values) or "none"
            raise ConfigurationError(f"At step {step} the values of {names} are due, but those given are {given}.")
        decided: dict[str, ControlState] = {}
        interventions = []
        for experiment in due:
            assert experiment.control is not None
            history = self.history[experiment.name]
            state = experiment.control.decide(history[-1] if history else None, step, values[experiment.name])
            texts, decided[experiment.name] = state.take(experiment.texts)
            span = (self.plan.shape.address(step), self.plan.shape.address(experiment.control.end(step)))
            interventions.append(experiment.phase(texts, span, self.tokenizer))
        self.plan.add(interventions)
        # What is trained may be trained again after an interruption, but nothing new may be put there.
        self.plan.close(max(step, self.plan.closed))
        for name, state in decided.items():
            self.history[name].append(state)

    def save(self, folder: Path) -> None:
        """Keep the plan and the controllers' states, together: after a crash both are as they were saved last."""
        self.plan.info = {
            "experiments": self._fingerprints(),
            "history": {name: [state.to_json() for state in states] for name, states in self.history.items()},
        }
        self.plan.save(folder)

    def resume(self, folder: Path) -> None:
        """Go on from what was saved to ``folder``, with the same experiments.

        Phases that began before the interruption keep the texts that they were given. Errors:
        :class:`~latewood.core.errors.CheckpointError` if what lies there is damaged, or belongs to other experiments,
        another tokenizer, stream or seed; nothing changes then.
        """
        loaded = InsertionPlan.load(folder)
        info = loaded.info
        for fact in ("shape", "end", "vocabulary", "seed"):
            if getattr(loaded, fact) != getattr(self.plan, fact):
                raise CheckpointError(f"The plan in {folder} was made for another {fact}; give the same, or another folder.")
        theirs, mine = info.get("experiments"), self._fingerprints()
        if theirs != mine:
            changed = [name for name in mine if not isinstance(theirs, dict) or theirs.get(name) != mine[name]]
            which = ", ".join(changed) or "those that are missing"
            raise CheckpointError(
                f"The plan in {folder} was made for other experiments (see {which}); give the same, or another folder."
            )
        self.plan = loaded
        self.history = {name: [ControlState.from_json(state) for state in states] for name, states in info["history"].items()}

    def facts(self) -> dict[str, Any]:
        """What the study is: its stream, tokenizer and seed, and a fingerprint of what each experiment inserts; JSON."""
        made = self.plan
        return {
            "shape": list(made.shape),
            "end": made.end,
            "vocabulary": made.vocabulary,
            "seed": made.seed,
            "experiments": self._fingerprints(),
        }

    def state(self) -> dict[str, Any]:
        """What controllers were told and decided, and :meth:`facts`; small, since everything else follows from it; JSON."""
        return {**self.facts(), "history": {name: [s.to_json() for s in states] for name, states in self.history.items()}}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` told, whatever this study did since: every phase that began then is placed again.

        Errors: :class:`~latewood.core.errors.CheckpointError` if it belongs to other experiments, another stream, tokenizer or
        seed, or is damaged; nothing changes then.
        """
        facts = self.facts()
        if different := next((fact for fact in facts if state.get(fact) != facts[fact]), None):
            raise CheckpointError(f"This state belongs to a study of other {different}; give the same as when it was kept.")
        again = TrainOnce(list(self.experiments.values()), self.plan.shape, self.tokenizer, seed=self.plan.seed)
        told: dict[int, dict[str, float]] = {}
        try:
            history = {name: [ControlState.from_json(s) for s in states] for name, states in state["history"].items()}
            for name, states in history.items():
                for decided in states:
                    told.setdefault(decided.step, {})[name] = decided.value
            for step in sorted(told):
                again.steer(step, told[step])
        except (KeyError, AttributeError, TypeError, ConfigurationError, DataError) as error:
            raise CheckpointError(f"The state of the study is damaged ({error}); take an older one.") from error
        if again.history != history:
            raise CheckpointError("The state of the study is damaged: its decisions don't follow from its values.")
        self.plan, self.history = again.plan, again.history

    def reports(self) -> list[Report]:
        """What each experiment has inserted so far: sequences, tokens, share."""
        return self.plan.reports()

    def _decided(self, name: str, step: int) -> bool:
        return any(state.step == step for state in self.history[name])

    def _fingerprints(self) -> dict[str, str]:
        facts = {
            name: (self.tokenizer.fingerprint, e.control, e.span, e.positions and list(e.positions), e.repetitions, e.wrap)
            for name, e in self.experiments.items()
        }
        result = {}
        for name, experiment in self.experiments.items():
            digest = hashlib.blake2b(repr(facts[name]).encode(), digest_size=16)
            for text in experiment.texts:
                digest.update(repr(text if isinstance(text, str) else list(text)).encode())
            result[name] = digest.hexdigest()
        return result


def _check(experiments: Sequence[Experiment], shape: StreamShape) -> None:
    names = [experiment.name for experiment in experiments]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigurationError(f"Two experiments are called {twice!r}; give each a name of its own.")
    for experiment in experiments:
        control = experiment.control
        if control and control.start + control.steps > shape.steps:
            end = control.start + control.steps
            raise ConfigurationError(
                f"The controller of {experiment.name!r} goes on to step {end}, but the stream ends at {shape.steps}."
            )


@dataclass(frozen=True)
class Effect:
    """What an experiment did in the joint run: its outcome in the ``baseline`` run without any experiment, and ``joint``;
    and, if it also ran ``solo`` under several seeds, the least and the greatest outcome there."""

    name: str
    baseline: float
    joint: float
    solo: tuple[float, float] | None = None

    @property
    def effect(self) -> float:
        """Joint less baseline."""
        return self.joint - self.baseline

    @property
    def as_solo(self) -> bool | None:
        """Whether the joint outcome lies within those of the solo runs; ``None`` if there are none."""
        return None if self.solo is None else self.solo[0] <= self.joint <= self.solo[1]


def effects(
    baseline: Mapping[str, float], joint: Mapping[str, float], solo: Mapping[str, ArrayLike] | None = None
) -> list[Effect]:
    """Outcomes side by side. ``solo`` maps an experiment to its outcomes in runs of its own, one for each seed.

    The baseline must have had the same first weights, order of data and schedule. Errors:
    :class:`~latewood.core.errors.DataError` if an outcome of one run is missing in the other.

    >>> found = effects({"facts": 0.0}, {"facts": 0.31}, {"facts": [0.28, 0.33, 0.30]})
    >>> print(table(found))
    | experiment | baseline | joint | effect | solo |
    | --- | ---: | ---: | ---: | ---: |
    | facts | 0 | 0.31 | +0.31 | 0.28 to 0.33 |
    """
    if set(baseline) != set(joint):
        names = ", ".join(sorted(set(baseline) ^ set(joint)))
        raise DataError(
            f"The baseline and the joint run must have outcomes of the same experiments, but {names} is in one only."
        )
    spread = {name: np.asarray(values, np.float64) for name, values in (solo or {}).items()}
    spans = {name: (float(values.min()), float(values.max())) for name, values in spread.items()}
    return [Effect(name, baseline[name], joint[name], spans.get(name)) for name in baseline]


def table(found: Sequence[Effect], reports: Sequence[Report] = ()) -> str:
    """Effects as a Markdown table; with ``reports`` also what each experiment inserted."""
    inserted = {report.name: report for report in reports}
    heads = ["experiment", *(["sequences", "tokens", "share"] if inserted else []), "baseline", "joint", "effect", "solo"]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for effect in found:
        line = [effect.name]
        if inserted:
            report = inserted.get(effect.name)
            line += [f"{report.sequences:,}", f"{report.tokens:,}", f"{report.share:.3%}"] if report else ["-"] * 3
        line += [f"{effect.baseline:.4g}", f"{effect.joint:.4g}", f"{effect.effect:+.4g}"]
        line.append(f"{effect.solo[0]:.4g} to {effect.solo[1]:.4g}" if effect.solo else "-")
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
