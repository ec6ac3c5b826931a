"""Model: a directory that holds a model in use, learns what arrives, remembers every version, and forgets on request."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from latewood.core import registry
from latewood.core.errors import CheckpointError, ConfigurationError, DataError
from latewood.core.progress import Progress, default_progress, showing
from latewood.core.seeding import deterministic
from latewood.images.learners.slda import SLDA
from latewood.model.arrivals import Arrival, Kind, open_arrival, open_inputs
from latewood.model.embedder import Embedder
from latewood.model.facts import ClassFacts, Difference, Flip, Guess, Outcome, Settings
from latewood.model.gate import Loss, tallies, too_much
from latewood.model.intake import CHUNK, Taken, take
from latewood.model.samples import Samples, Source
from latewood.model.state import Bench, State
from latewood.model.store import Draft, Store, Version
from latewood.parts.closed_form import ClosedFormClassifier

#: What suits features of length sqrt(width), where a method's own default is made for other inputs.
_DEFAULTS: dict[str, dict[str, Any]] = {"g-acil": {"expansion": 2000, "gamma": 10.0}}


class Model:
    """A directory with a model in use: it learns what arrives and predicts at any time.

    Make one with :meth:`init`, open it with :meth:`open`. Everything that changes it makes a new immutable version; the one
    before stays and can be rolled back to. Whatever crashes, at any moment the directory holds a whole version.

    By default it stands on a frozen network and learns in closed form (G-ACIL): what it knows after any number of arrivals is
    what it would know had everything arrived at once, and what it forgets on request is gone as if it had never come.

    Predicting is safe from any thread while another one learns.

    >>> import tempfile
    >>> from latewood.images.datasets import load_images
    >>> digits = load_images("digits")
    >>> model = Model.init(tempfile.mkdtemp() + "/digits", backbone="pixels", size=8, channels=1)
    >>> for these in ([0, 1, 2], [3, 4]):
    ...     few = digits.subset(these).train
    ...     outcome = model.learn({"image": few["image"], "label": [these[i] for i in few["label"]]}, source="mail")
    >>> model.classes, model.version.number
    (('0', '1', '2', '3', '4'), 3)
    >>> model.predict(digits.subset([3]).test["image"][:1])[0][0].label
    '3'
    """

    def __init__(self, store: Store, tell: Callable[[str], None]) -> None:
        """Use :meth:`open`."""
        self._store = store
        version = store.head()
        store.check_backbone(version.content["backbone"])
        self._bench = Bench(store, Settings(**version.content["settings"]), Embedder.load(store.backbone))
        self._state = store.load(self._bench.read)
        self._tell = tell
        self._turn = threading.Lock()

    @classmethod
    def init(
        cls,
        folder: str | Path,
        *,
        kind: Kind = "images",
        backbone: str | Mapping[str, Any] | None = None,
        method: str = "g-acil",
        settings: Mapping[str, Any] | None = None,
        size: int | None = None,
        channels: int = 3,
        train_backbone: bool = False,
        canaries: float = 0.05,
        most_canaries: int = 50,
        limit: float = 0.2,
        keep: int = 10,
        forgettable: bool = True,
        seed: int = 0,
        tell: Callable[[str], None] | None = None,
    ) -> Self:
        """Make a new model directory, which knows no class yet.

        ``backbone`` is a name on the hub, a folder, or a net of Latewood, alone or with settings; its weights are copied into
        the directory. ``method`` is any learner of classes and ``settings`` are its. ``size`` and ``channels`` are what images
        are brought to (default: the network's size, colour). ``train_backbone`` lets the method train the network too,
        instead of a head on its features. ``canaries`` is the share of what arrives that is kept aside (at most
        ``most_canaries`` of a class), ``limit`` how far the share of those recognised may fall before an update is held
        back. The newest ``keep`` versions can be rolled back to. ``forgettable`` keeps the inputs of every sample (with
        features of width 384, 1.5 kB each), which
        exact forgetting needs; without it, or with a method that can't, nothing but the canaries is kept of a sample.

        Errors: :class:`~latewood.core.errors.ConfigurationError` for names and settings that don't exist or don't fit;
        :class:`~latewood.core.errors.CheckpointError` for a folder that is not empty.
        """
        name = registry.find("learners", method, "images").name
        chosen = Settings(
            kind=kind,
            method=name,
            learner={**_DEFAULTS.get(name, {}), **(settings or {})},
            canaries=canaries,
            most_canaries=most_canaries,
            limit=limit,
            keep=keep,
            forgettable=forgettable,
            seed=seed,
        )
        embedder = Embedder.make(kind, backbone, size, channels, train_backbone, seed)

        def make(store: Store) -> Draft:
            bench = Bench(store, chosen, embedder)
            if train_backbone and bench.in_closed_form:
                raise ConfigurationError(f"{name} stands on a frozen backbone; choose another method, or leave it frozen.")
            bench = dataclasses.replace(
                bench, settings=dataclasses.replace(chosen, forgettable=forgettable and bench.can_forget)
            )
            embedder.save(store.backbone)
            content, blobs = bench.write(bench.empty())
            content |= {"settings": dataclasses.asdict(bench.settings), "backbone": store.backbone_sums()}
            content |= {"arrivals": 0, "next_class": 0, "numeric": None, "added": 0, "lost": []}
            return Draft(event="init", about=f"{name} on {embedder.name}", content=content, blobs=blobs)

        tell = tell or default_progress().tell
        return cls(Store.create(Path(folder), make, tell), tell)

    @classmethod
    def open(cls, folder: str | Path, *, tell: Callable[[str], None] | None = None) -> Self:
        """Open a model directory. ``tell`` receives a sentence if something in it is damaged and what is done about it.

        Errors: :class:`~latewood.core.errors.CheckpointError` if it is none, or no version in it is whole.
        """
        tell = tell or default_progress().tell
        return cls(Store(Path(folder), tell), tell)

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self._store.folder

    @property
    def kind(self) -> Kind:
        """What it classifies: images or text."""
        return self.settings.kind

    @property
    def settings(self) -> Settings:
        """What was decided when the directory was made."""
        return self._bench.settings

    @property
    def embedder(self) -> Embedder:
        """The network that it stands on."""
        return self._bench.embedder

    @property
    def version(self) -> Version:
        """The version that predicts now."""
        return _committed(self._state)

    @property
    def known(self) -> tuple[ClassFacts, ...]:
        """What the version that predicts now knows of each class, in order of arrival."""
        return tuple(known for known in self._state.classes if known.samples)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return tuple(known.name for known in self.known)

    @property
    def candidate(self) -> Version | None:
        """The update that the gate holds back, if there is one."""
        return self._store.candidate()

    def refresh(self) -> bool:
        """Take up a version that another process made; whether there was one."""
        if self._store.head().number == self.version.number:
            return False
        return self._take_up(self._store.load(self._bench.read))

    def log(self) -> list[Version]:
        """All versions, oldest first; those too old to be rolled back to among them."""
        return self._store.versions()

    def available(self, version: Version) -> bool:
        """Whether a version can still be rolled back to."""
        return self._store.available(version)

    def predict(self, inputs: Any, *, top: int = 1) -> list[list[Guess]]:
        """For each input the ``top`` likeliest classes, likeliest first.

        ``inputs`` are texts, or images (file contents as bytes, arrays, tensors), or the path of an image, a folder of images
        or a table. How sure the model is is the softmax of its scores, at the temperature that suits the canaries best.

        Errors: :class:`~latewood.core.errors.DataError` for an input that can't be read, or while no class is known.
        """
        return [guesses for _, guesses in self.predict_named(inputs, top=top)]

    def predict_named(self, inputs: Any, *, top: int = 1) -> Iterator[tuple[str, list[Guess]]]:
        """As :meth:`predict`, one input after the other, each with its name: its file, or where it stood."""
        state = self._state
        if not len(state.learner.classes):
            raise DataError(f"{self.folder} knows no class yet; let it learn some first.")
        if top < 1:
            raise ConfigurationError(f"top must be at least 1, but it is {top}.")
        given = open_inputs(inputs, self.kind, size=self.embedder.size, channels=self.embedder.channels)
        for start in range(0, len(given), CHUNK):
            rows = range(start, min(start + CHUNK, len(given)))
            chunk = given.read(rows)
            if problems := (*given.problems, *chunk.problems):
                raise DataError(f"{problems[0]}, so nothing can be predicted for it.")
            yield from zip((given.names[row] for row in rows), self._guesses(state, chunk.content, top), strict=True)

    def learn(
        self,
        data: Any,
        *,
        source: str | None = None,
        text: str | None = None,
        label: str | None = None,
        skip_bad: bool = False,
        wait: float = 0.0,
        progress: Progress | None = None,
    ) -> Outcome:
        """Learn what arrived, and make the result the version in use unless the gate holds it back.

        ``data`` is a folder of images by class, a table (CSV, JSON lines, parquet; ``text`` and ``label`` name its columns),
        the name of a data set on the hub, or in memory a mapping of columns or pairs of content and label. ``source`` is how
        it is called in the log and to :meth:`forget` (default: the path). Contents that were learned before count once; with
        another label than then, the new label counts. ``skip_bad`` leaves out what can't be used instead of refusing all.
        ``wait`` is how many seconds to wait for another process that is changing the model.

        What was embedded when it is interrupted is used when it is called again.
        Errors: :class:`~latewood.core.errors.DataError` for data that can't be used, and nothing has changed then;
        :class:`~latewood.core.errors.StorageError` if another process is writing, or the disk is full.
        """
        size, channels = self.embedder.size, self.embedder.channels
        arrival = open_arrival(data, self.kind, size=size, channels=channels, source=source, text=text, label=label)
        with self._changing(f"learning {arrival.source}", wait, progress) as (base, display):
            self._check_labels(arrival, base)
            names = base.names
            before = {(key, names[number]) for key, number in base.samples.learned_from(arrival.source)}
            taken = take(arrival, self.embedder, before, self._store.staging, skip_bad, display)
            outcome = self._learned(arrival, taken, base, display) if taken.labels else self._nothing(taken)
            self._store.clear_staging()
        return outcome

    def accept(self, *, wait: float = 0.0) -> Version:
        """Make the update that the gate holds back the version in use."""
        with self._store.writing("accepting an update", wait):
            held = self._held().number
            self._store.accept(held, f"version {held}")
            self._store.prune(self.settings.keep)
            self.refresh()
        return self.version

    def reject(self, *, wait: float = 0.0) -> None:
        """Throw the update that the gate holds back away; the version in use stays."""
        with self._store.writing("rejecting an update", wait):
            self._store.discard(self._held().number)

    def rollback(self, number: int, *, wait: float = 0.0) -> Version:
        """Make a new version that is what version ``number`` was.

        Errors: :class:`~latewood.core.errors.CheckpointError` if there is no such version any more, or it is damaged.
        """
        with self._changing(f"rolling back to version {number}", wait) as (base, _):
            state = self._old(number)
            wanted, now = _committed(state), _committed(base).content
            later = {name: now[name] for name in ("arrivals", "next_class")}  # numbers are never given twice
            content = {**wanted.content, **later, "added": 0, "lost": []}
            self._commit("rollback", f"to version {number}", content, wanted.blobs, state)
        return self.version

    def forget(
        self, *, name: str | None = None, source: str | None = None, wait: float = 0.0, progress: Progress | None = None
    ) -> Version:
        """Forget a class (its ``name``), or everything that came from a ``source``: the model as if it had never seen it.

        Its statistics are subtracted, and its samples, its canaries and every earlier version that contains them are removed;
        the log keeps no name of it. Versions from before it was learned stay.

        Errors: :class:`~latewood.core.errors.DataError` if it isn't known; :class:`~latewood.core.errors.ConfigurationError`
        if the method can't forget exactly, or the directory was made without keeping what forgetting needs.
        """
        if (name is None) == (source is None):
            raise ConfigurationError("Name either a class to forget or a source.")
        if not self.settings.forgettable:
            raise ConfigurationError(
                f"{self.folder} can't forget exactly: its method, {self.settings.method}, can't subtract samples"
                if not self._bench.can_forget
                else f"{self.folder} can't forget exactly: it was made without keeping the samples' features (forgettable)."
            )
        with self._changing("forgetting", wait, progress) as (base, _):
            gone, holding = self._named(base, name, source), self._holding(name, source)
            if not holding:
                known = base.names.values() if name is not None else (one.name for one in base.samples.sources)
                what = f"There is no class {name!r}" if name is not None else f"Nothing was learned from a source {source!r}"
                raise DataError(f"{what}{registry.nearest(str(name or source), known)}.")
            samples = base.samples.without(self._store, gone)
            before, after = base.samples.roles.train, torch.zeros(len(gone), dtype=torch.bool)
            after[~gone] = samples.roles.train
            learn, unlearn = (self._rows(base, mask) for mask in (after & ~before, before & ~after))
            learner = self._bench.change(base, len(base.samples.sources), learn, unlearn, self._unused(base, samples))
            state, fallen = self._bench.judge(base, learner, samples, base.names, learn)
            content, blobs = self._content(base, state, lost=[loss for loss, _ in fallen])
            about = f"a {'class' if name is not None else 'source'} of {int(gone.sum()):,} samples"
            self._store.clear_staging()
            self._commit("forget", about, content, blobs, state, removes=holding)
        return self.version

    def diff(self, first: int, second: int) -> Difference:
        """What changed from version ``first`` to version ``second``."""
        before, after = self._old(first), self._old(second)
        inputs, labels = self._canaries(before, after)
        names = {**before.names, **after.names, -1: "nothing"}
        predicted = [self._bench.predicted(state, inputs) for state in (before, after)]
        told = [tallies(found, labels) for found in predicted]
        both = before.names.keys() & after.names.keys()
        flips = Counter(
            key for key in zip(labels.tolist(), *(found.tolist() for found in predicted), strict=True) if key[1] != key[2]
        )
        return Difference(
            _committed(before),
            _committed(after),
            gained=tuple(known.name for known in after.classes if known.number not in before.names),
            gone=tuple(known.name for known in before.classes if known.number not in after.names),
            scores=tuple(Loss(names[c], told[0][c].share, told[1][c].share) for c in sorted(told[0]) if c in both),
            flips=tuple(Flip(names[true], names[was], names[now], count) for (true, was, now), count in flips.most_common()),
            canaries=len(labels),
        )

    def export_onnx(self, path: str | Path) -> None:
        """Write the version in use as an ONNX file, from network inputs to the probability of each class; beside it a JSON
        file with the labels and what inputs are expected. Needs ``latewood[onnx]``."""
        from latewood.model.export import write_onnx

        state = self._state
        labels = [state.names[number] for number in state.learner.classes.labels.tolist()]
        if self.embedder.trained or not isinstance(state.learner, ClosedFormClassifier):
            raise ConfigurationError(
                f"Only learners in closed form are exported as ONNX, and {self.settings.method} is not one."
            )
        write_onnx(self.embedder.backbone, _Head(state.learner), labels, state.temperature, Path(path))

    def export_folder(self, folder: str | Path) -> None:
        """Write the version in use as a model directory of its own, without any sample: to predict with, and to learn on.

        What it knows can't be forgotten there, since that needs the samples. Errors:
        :class:`~latewood.core.errors.CheckpointError` for a folder that is not empty.
        """
        known = (dataclasses.replace(one, canaries=0, score=None, inherited=one.samples) for one in self.known)
        none = Samples(self.settings.canaries, self.settings.most_canaries)
        state = dataclasses.replace(self._state, classes=tuple(known), samples=none)

        def make(store: Store) -> Draft:
            shutil.copytree(self._store.backbone, store.backbone, dirs_exist_ok=True)
            bench = dataclasses.replace(self._bench, store=store)
            content, blobs = bench.write(state)
            kept = {name: self.version.content[name] for name in ("backbone", "arrivals", "next_class", "numeric")}
            told = {
                "settings": dataclasses.asdict(dataclasses.replace(self.settings, forgettable=False)),
                "added": 0,
                "lost": [],
            }
            about = f"version {self.version.number} of {self.folder.name}"
            return Draft(event="init", about=about, content={**content, **kept, **told}, blobs=blobs)

        Store.create(Path(folder), make, self._tell)

    def push(self, name: str, *, private: bool = True) -> str:
        """Upload what :meth:`export_folder` writes to the Hugging Face hub, with a model card; returns its address."""
        from latewood.model.export import push, write_card

        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "model"
            self.export_folder(folder)
            task = {"images": "image-classification", "text": "text-classification"}[self.kind]
            facts = {"name": name, "pipeline_tag": task, "labels": self.classes, "samples": self.version.content["samples"]}
            write_card(folder, {**facts, "method": self.settings.method, "backbone": self.embedder.name})
            return push(folder, name, private=private)

    # What the verbs above are made of

    @contextmanager
    def _changing(self, doing: str, wait: float, progress: Progress | None = None) -> Iterator[tuple[State, Progress]]:
        """Be the one writer, on the newest version, with no update that the gate holds back in the way."""
        with (
            showing(progress or default_progress()) as display,
            deterministic(),
            self._store.writing(doing, wait),
        ):
            self.refresh()
            if (held := self.candidate) is not None:
                raise ConfigurationError(
                    f"The gate holds back version {held.number} ({held.about}); accept or reject it before {doing}."
                )
            display.start(doing, 1)
            yield self._state, display
            display.experience_done()

    def _take_up(self, state: State) -> bool:
        """Predict with a state from now on, unless another thread was faster with a newer one."""
        with self._turn:
            newer = _committed(state).number > self.version.number
            self._state = state if newer else self._state
        return newer

    def _held(self) -> Version:
        if (held := self.candidate) is None:
            raise ConfigurationError(f"The gate of {self.folder} holds no update back.")
        return held

    def _guesses(self, state: State, contents: Tensor | list[str], top: int) -> list[list[Guess]]:
        confidence = self._bench.confidences(state, self.embedder(contents))
        sure, columns = confidence.topk(min(top, confidence.shape[1]))
        names, labels = state.names, state.learner.classes.labels.tolist()
        rows = zip(sure.tolist(), columns.tolist(), strict=True)
        return [[Guess(names[labels[c]], s) for s, c in zip(*row, strict=True)] for row in rows]

    def _check_labels(self, arrival: Arrival, base: State) -> None:
        if base.classes and _committed(base).content["numeric"] != arrival.numeric:
            here, there = (_some(names) for names in (sorted(set(arrival.labels)), base.names.values()))
            kinds = ("numbers", "words") if arrival.numeric else ("words", "numbers")
            raise DataError(
                f"The labels of {arrival.source} are {kinds[0]} ({here}), but this model's classes are {kinds[1]} ({there}); "
                "name the right column with label, or bring the labels into one form."
            )

    def _nothing(self, taken: Taken) -> Outcome:
        return Outcome(self.version, duplicates=taken.repeated, skipped=taken.skipped)

    def _learned(self, arrival: Arrival, taken: Taken, base: State, display: Progress) -> Outcome:
        """Learn what was taken in, score it on the canaries, and commit."""
        now = _committed(base).content
        numbers = {name: number for number, name in base.names.items()}
        fresh = [name for name in dict.fromkeys(taken.labels) if name not in numbers]
        numbers |= {name: now["next_class"] + i for i, name in enumerate(fresh)}
        labels = torch.tensor([numbers[name] for name in taken.labels])
        source = Source(now["arrivals"], arrival.source, datetime.now(UTC).isoformat(timespec="seconds"))
        samples = base.samples.add(self._store, source, taken.inputs, taken.hashes, labels, self.settings.forgettable)
        same, other = samples.repeated(len(labels))
        before, after = base.samples.roles.train, samples.roles.train
        old, new = after[: len(before)], after[len(before) :]
        # Old samples come back when a canary makes room or a label proves right after all; they leave for a new label.
        back, back_labels = self._rows(base, old & ~before & base.samples.kept)
        leaving = self._rows(base, before & ~old & base.samples.kept)
        learn = taken.inputs[new], labels[new]
        if len(back_labels):
            learn = torch.cat([back, learn[0]]), torch.cat([back_labels, learn[1]])
        learner = self._bench.change(base, now["arrivals"], learn, leaving, self._unused(base, samples))
        display.phase("scoring")
        names = {number: name for name, number in numbers.items()}
        state, fallen = self._bench.judge(base, learner, samples, names, learn)
        held = too_much(fallen, self.settings.limit)
        lost = held or [loss for loss, _ in fallen]
        facts = {"next_class": now["next_class"] + len(fresh), "numeric": arrival.numeric, "arrivals": now["arrivals"] + 1}
        added = len(labels) - same - other
        content, blobs = self._content(base, state, lost=lost, added=added, **facts)
        version = self._commit("learn", arrival.source, content, blobs, state, candidate=bool(held))
        return Outcome(
            version,
            held=bool(held),
            added=added,
            duplicates=taken.repeated + same,
            relabelled=other,
            skipped=taken.skipped,
            new_classes=tuple(fresh),
            lost=tuple(lost),
        )

    def _rows(self, state: State, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and labels of some of a state's samples."""
        return state.samples.inputs(self._store, mask), state.samples.labels[mask]

    def _unused(self, base: State, samples: Samples) -> list[int]:
        """The classes that ``base`` knows and of which no sample is left to train on."""
        left = {*samples.labels[samples.roles.train].tolist(), *(known.number for known in base.classes if known.inherited)}
        return [number for number in base.learner.classes.labels.tolist() if number not in left]

    def _content(self, base: State, state: State, lost: list[Loss], **facts: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
        """What a version made of ``base`` tells of ``state``, and the blobs that it needs."""
        content, blobs = self._bench.write(state)
        told = {"added": 0, "lost": [dataclasses.asdict(loss) for loss in lost]}
        return {**_committed(base).content, **content, **told, **facts}, blobs

    def _commit(
        self,
        event: str,
        about: str,
        content: Mapping[str, Any],
        blobs: tuple[str, ...],
        state: State,
        candidate: bool = False,
        removes: tuple[int, ...] = (),
    ) -> Version:
        draft = Draft(
            event=event,
            about=about,
            content=content,
            blobs=blobs,
            parent=self.version.number,
            candidate=candidate,
            removes=removes,
        )
        version = self._store.commit(draft)
        if not candidate:
            self._take_up(dataclasses.replace(state, version=version))
        self._store.prune(self.settings.keep)
        return version

    def _old(self, number: int) -> State:
        version = self._store.version(number)
        if not self._store.available(version):
            raise CheckpointError(f"Version {number} is too old: only the newest {self.settings.keep} are kept whole.")
        return self._bench.read(version)

    def _named(self, base: State, name: str | None, source: str | None) -> Tensor:
        """A mask of the samples of a class or a source."""
        if name is not None:
            numbers = [number for number, known in base.names.items() if known == name]
            return torch.isin(base.samples.labels, torch.tensor(numbers, dtype=torch.int64))
        arrivals = base.samples.numbers(str(source))
        return torch.isin(base.samples.arrivals, torch.tensor(arrivals, dtype=torch.int64))

    def _holding(self, name: str | None, source: str | None) -> tuple[int, ...]:
        """The versions that know what is to be forgotten; also those that a rollback has left behind."""

        def holds(version: Version) -> bool:
            if name is not None:
                return any(known["name"] == name for known in version.content["classes"])
            if version.event == "learn" and version.about == source:
                return True
            # Of a version that is too old, some segments may be there still, for a younger one that needs them.
            there = [names for names in version.content["segments"] if self._store.holds(names[0])]
            try:
                return any(one.name == source for one in self._bench.samples(there).sources)
            except CheckpointError:
                return True  # damaged: nobody knows what is in it, and what is to be forgotten must go

        return tuple(version.number for version in self._store.versions() if holds(version))

    def _canaries(self, first: State, second: State) -> tuple[Tensor, Tensor]:
        """Inputs and labels of the canaries of both states, each content once."""
        parts = []
        seen: set[bytes] = set()
        for state in (second, first):
            canary = state.samples.roles.canary.clone()
            keys = [bytes(key) for key in state.samples.hashes[canary].numpy()]
            canary[canary.clone()] = torch.tensor([key not in seen for key in keys], dtype=torch.bool)
            seen.update(keys)
            if canary.any():
                parts.append(self._rows(state, canary))
        if not parts:
            raise DataError("Neither version has canaries to compare them on.")
        return torch.cat([inputs for inputs, _ in parts]), torch.cat([labels for _, labels in parts])


def _committed(state: State) -> Version:
    assert state.version is not None
    return state.version


class _Head(nn.Module):
    """A closed-form learner from features to scores, in operations that ONNX has."""

    def __init__(self, learner: ClosedFormClassifier) -> None:
        super().__init__()
        self.learner = learner
        self.linear = learner.linear() if isinstance(learner, SLDA) else None  # it solves a system, which ONNX can't

    def forward(self, features: Tensor) -> Tensor:
        features = self.learner.backbone(features)
        if self.linear is None:
            return self.learner.score(features)
        weight, bias = self.linear
        return features.to(weight) @ weight + bias


def _some(names: Any, most: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
