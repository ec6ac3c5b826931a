"""A version in memory, and the bench on which the next one is made of it: learn, unlearn, score, describe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from latewood.core import configure, registry
from latewood.core.checkpoint import tensors_of
from latewood.core.errors import ConfigurationError
from latewood.core.experience import Experience
from latewood.core.seeding import derive_seed, seeded
from latewood.model.embedder import Embedder
from latewood.model.facts import ClassFacts, Settings
from latewood.model.gate import Loss, fitted_temperature, losses, tallies
from latewood.model.samples import Samples
from latewood.model.store import Store, Version
from latewood.parts.closed_form import ClosedFormClassifier
from latewood.parts.heads import ClassifierLearner

#: With fewer canaries, samples that were just learned help to tell how sure the model may be.
_ENOUGH_CANARIES = 50


#: What a model directory can hold: learners of classes, which have ``classes`` and ``scores``.
ClassLearner: TypeAlias = ClosedFormClassifier | ClassifierLearner


@dataclass(frozen=True)
class State:
    """A version as it predicts. It is never changed, so whoever predicts with it is not disturbed by learning."""

    classes: tuple[ClassFacts, ...]
    learner: ClassLearner
    samples: Samples
    temperature: float
    version: Version | None = None

    @property
    def names(self) -> dict[int, str]:
        """The name of each class by its number."""
        return {known.number: known.name for known in self.classes}


@dataclass(frozen=True)
class Bench:
    """Makes states: from the disk, and from one another."""

    store: Store
    settings: Settings
    embedder: Embedder

    def fresh_learner(self) -> ClassLearner:
        """A learner that has learned nothing. Errors: ConfigurationError for settings that the method does not have."""
        method = registry.find("learners", self.settings.method, "images").load()
        with seeded(self.settings.seed, "initial weights"):
            backbone = self.embedder.learner_backbone()
            learner = configure.build(method, dict(self.settings.learner), self.settings.method, backbone=backbone)
        if not isinstance(learner, ClosedFormClassifier | ClassifierLearner):
            raise ConfigurationError(f"{self.settings.method} is no learner of classes, so a model directory can't hold it.")
        return learner.eval()

    @property
    def in_closed_form(self) -> bool:
        """Whether the method learns in closed form, on a frozen backbone."""
        return isinstance(self.fresh_learner(), ClosedFormClassifier)

    @property
    def can_forget(self) -> bool:
        """Whether the method can unlearn samples exactly."""
        learner = self.fresh_learner()
        return isinstance(learner, ClosedFormClassifier) and learner.can_forget

    def empty(self) -> State:
        """Before anything arrived."""
        return State((), self.fresh_learner(), Samples(self.settings.canaries, self.settings.most_canaries), 1.0)

    def read(self, version: Version) -> State:
        """A version from the disk, checked. Errors: :class:`~latewood.core.errors.CheckpointError` if it is not whole."""
        content = version.content
        learner = self.fresh_learner()
        learner.load_state_dict(self.store.get(content["learner"]))
        samples = self.samples(content["segments"])
        classes = tuple(ClassFacts(**told) for told in content["classes"])
        return State(classes, learner.eval(), samples, content["temperature"], version)

    def samples(self, segments: Sequence[Sequence[str | None]]) -> Samples:
        """The samples in segments, named as a version's content names them."""
        return Samples.load(self.store, self.settings.canaries, self.settings.most_canaries, segments)

    def write(self, state: State) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Put a state's tensors into the store: what a version's content must tell of it, and the blobs that it needs."""
        learner = self.store.put(tensors_of(state.learner))
        content = {
            "learner": learner,
            "segments": state.samples.names,
            "classes": [asdict(known) for known in state.classes],
            "samples": sum(known.samples + known.canaries for known in state.classes),
            "temperature": state.temperature,
        }
        return content, (learner, *state.samples.blobs)

    def change(
        self, base: State, index: int, learn: tuple[Tensor, Tensor], forget: tuple[Tensor, Tensor], classes: Sequence[int] = ()
    ) -> ClassLearner:
        """A copy of a state's learner that has learned some inputs with their labels, unlearned others, and dropped classes.

        ``index`` counts arrivals, and with the seed decides all randomness.
        """
        learner = self.fresh_learner()
        learner.load_state_dict(base.learner.state_dict())
        learner.generator.manual_seed(derive_seed(self.settings.seed, "learn", index))
        inputs, labels = learn
        if len(labels):
            data = self.embedder.data(inputs, label=labels)
            learner.learn(Experience(index, data, tuple(labels.unique().tolist())))
        if (len(forget[1]) or len(classes)) and self.settings.forgettable:
            assert isinstance(learner, ClosedFormClassifier)
            learner.forget(self.embedder.data(forget[0], label=forget[1]), classes)
        return learner.eval()

    @torch.no_grad()
    def predicted(self, state: State, inputs: Tensor) -> Tensor:
        """The class of each input; -1 where nothing is known."""
        return state.learner.predict(self.embedder.data(inputs)).cpu()

    @torch.no_grad()
    def confidences(self, state: State, inputs: Tensor) -> Tensor:
        """How sure a state is of each class, ``(n, classes)`` in the order of its learner's classes."""
        return (self._scores(state.learner, inputs) / state.temperature).softmax(1)

    @torch.no_grad()
    def judge(
        self, base: State, learner: ClassLearner, samples: Samples, names: Mapping[int, str], fresh: tuple[Tensor, Tensor]
    ) -> tuple[State, list[tuple[Loss, int]]]:
        """The state that a changed learner makes, with its scores on the canaries, and what fell there since ``base``.

        ``names`` are all classes; those of which no sample is left are dropped. ``fresh`` is what was just learned.
        """
        canary = samples.roles.canary
        inputs, labels = samples.inputs(self.store, canary), samples.labels[canary]
        scores = self._scores(learner, inputs)
        found = learner.classes.best(scores.to(learner.classes.place)).cpu()
        told = tallies(found, labels)
        # Compared on what the base knew already: the canaries of an arrival with wrong labels would vote for it.
        old = canary.nonzero().flatten() < len(base.samples)
        then = tallies(self.predicted(base, inputs[old]), labels[old]) if old.any() else {}
        now = tallies(found[old], labels[old])
        trains = samples.labels[samples.roles.train]
        inherited = {known.number: known.inherited for known in base.classes}
        classes = tuple(
            ClassFacts(
                number,
                name,
                samples=inherited.get(number, 0) + int((trains == number).sum()),
                canaries=told[number].total if number in told else 0,
                score=told[number].share if number in told else None,
                inherited=inherited.get(number, 0),
            )
            for number, name in names.items()
            if inherited.get(number) or (samples.labels == number).any()
        )
        doubt = 1 / (len(labels) + 2)
        if len(labels) < _ENOUGH_CANARIES and len(fresh[1]):
            scores, labels = torch.cat([scores, self._scores(learner, fresh[0])]), torch.cat([labels, fresh[1]])
        known = torch.isin(labels, learner.classes.labels.cpu())
        columns = learner.classes.columns(labels[known]).cpu() if known.any() else labels[known]
        state = State(classes, learner, samples, fitted_temperature(scores[known], columns, doubt))
        return state, losses(then, now, names)

    def _scores(self, learner: ClassLearner, inputs: Tensor) -> Tensor:
        if not len(inputs):
            return torch.empty(0, len(learner.classes), dtype=torch.float64)
        return learner.scores(self.embedder.data(inputs)).double().cpu()
