"""run(): learn, probe, record, checkpoint, resume."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, BinaryIO

import torch

from latewood.core.checkpoint import Checkpoints, Shelf, shelving, tensors_of
from latewood.core.cost import Cost, PeakMemory, metered, state_bytes
from latewood.core.errors import CheckpointError, ConfigurationError, DataError
from latewood.core.experience import Experience
from latewood.core.files import is_temporary, lock, sweep_temporaries, write_atomically
from latewood.core.learner import Learner
from latewood.core.loop import resolve_device
from latewood.core.probe import Probe
from latewood.core.progress import Progress, default_progress, showing
from latewood.core.record import ProbeInfo, Record, Row
from latewood.core.seeding import derive_seed, deterministic
from latewood.core.stream import Stream


def run(
    learner: Learner,
    stream: Stream,
    *,
    to: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    transfer: bool = False,
    progress: Progress | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Record:
    """Let ``learner`` learn the experiences of ``stream`` one after the other, and score it on the probes after each.

    With ``to`` the record and a checkpoint are saved in that folder after each experience; the same call continues from
    there after a crash, and ends with the same record as if nothing had happened. A folder that holds another run is
    refused. ``seed`` decides all randomness of learning (the learner's initial weights are the caller's affair).
    Where several processes train together (``torchrun``, ``accelerate launch``), the first one alone writes there.
    ``transfer`` also scores probes that are not yet seen, and all of them before any learning: what forward transfer
    needs. ``settings`` are facts to keep in the record beside the configuration.

    The learner ends as it is after the last experience. Errors: :class:`~latewood.core.errors.CheckpointError` for a
    folder of another run; :class:`~latewood.core.errors.StorageError` if another process is working in the folder, or
    saving fails (what was saved stays whole).

    >>> from latewood.images.learners.nmc import NMC
    >>> from latewood.images.nets import pixels
    >>> from latewood.images.streams.split import split
    >>> stream = split("digits", steps=5)
    >>> record = run(NMC(pixels(stream.example)), stream, device="cpu")
    >>> len(record.rows), record.last > 0.8
    (5, True)
    """
    where = resolve_device(device)
    configuration = {
        "learner": {"class": f"{type(learner).__module__}.{type(learner).__qualname__}", **learner.config()},
        "stream": dict(stream.config),
        "seed": seed,
        "device": where.type,
        "transfer": transfer,
        **(settings or {}),
    }
    try:
        # As it will be read back: what JSON makes of tuples and keys must not look like a difference.
        configuration = json.loads(json.dumps(configuration, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"The configuration can't be kept as JSON: {error}.") from error
    learner.to(where)
    with showing(progress or default_progress()) as display, deterministic(), ExitStack() as stack:
        place = stack.enter_context(closing(_Place(Path(to), configuration, display))) if to is not None else None
        record = place.resume(learner) if place else None
        if record is None:
            record = _new_record(configuration, stream)
            record.baseline = _by_metric(stream.probes, _score(learner, stream.probes)) if transfer else None
        display.start(stream.name, len(stream), len(record.rows))
        for index in range(len(record.rows), len(stream)):
            experience = stream[index]
            if experience.index != index:
                raise DataError(f"Stream {stream.name!r} made experience {experience.index} where {index} was asked for.")
            with shelving(place.unfinished(index) if place else None):
                record.add(_live(learner, experience, stream.probes, seed, transfer, display))
            if place:
                place.save(learner, record)
            display.experience_done()
        learner.eval()
    return record


def _live(
    learner: Learner, experience: Experience, probes: Sequence[Probe], seed: int, transfer: bool, display: Progress
) -> Row:
    """Learn one experience and score the probes after it."""
    # The same state whether the learner comes from the experience before or from a checkpoint.
    learner.generator.manual_seed(derive_seed(seed, "learn", experience.index))
    learner.eval()
    memory = PeakMemory(learner.device)
    with metered() as meter, meter.timing():
        display.phase(f"learning {experience.index}")
        if learner.counts_flops:
            learner.learn(experience)
        else:
            with meter.counting():
                learner.learn(experience)
        if learner.device.type == "cuda":
            torch.cuda.synchronize(learner.device)
    peak = memory.read()
    due = [probe for probe in probes if transfer or probe.since <= experience.index]
    display.phase("probing", len(due))
    start = time.perf_counter()
    scores = _score(learner, due, display)
    state = state_bytes(learner)
    cost = Cost(
        seconds=meter.seconds,
        probe_seconds=time.perf_counter() - start,
        flops=meter.flops,
        peak_memory=peak,
        parameters=sum(p.numel() for p in learner.parameters()),
        trained=meter.trained,
        kept_bytes=sum(size for owner, size in state.items() if owner not in learner.deployed),
        state=state,
    )
    return Row(experience.index, len(experience.train), _by_metric(probes, scores), cost, experience.classes)


def _score(learner: Learner, probes: Sequence[Probe], display: Progress | None = None) -> dict[str, dict[str, float | None]]:
    learner.eval()
    result = {}
    for probe in probes:
        with torch.no_grad():
            scores = probe.score(learner)
        if set(scores) != set(probe.metrics):
            given, promised = ", ".join(scores) or "nothing", ", ".join(probe.metrics)
            raise ConfigurationError(f"Probe {probe.name!r} gave the scores {given}, but its metrics are {promised}.")
        result[probe.name] = {name: value if math.isfinite(value) else None for name, value in scores.items()}
        if display:
            display.step()
    return result


def _by_metric(probes: Sequence[Probe], scores: Mapping[str, Mapping[str, float | None]]) -> dict[str, list[float | None]]:
    """From scores by probe to scores by metric, in the order of the probes; ``None`` for those that were not scored."""
    metrics = probes[0].metrics if probes else {}
    return {m: [scores[p.name][m] if p.name in scores else None for p in probes] for m in metrics}


def _new_record(configuration: dict[str, Any], stream: Stream) -> Record:
    probes = stream.probes
    names = [probe.name for probe in probes]
    if len(set(names)) < len(names):
        raise ConfigurationError(f"Two probes of stream {stream.name!r} have one name; each needs its own.")
    metrics = dict(probes[0].metrics) if probes else {}
    if any(dict(probe.metrics) != metrics for probe in probes):
        raise ConfigurationError(f"All probes of stream {stream.name!r} must have the same metrics.")
    from latewood.core.version import __version__

    environment = {"latewood": __version__, "torch": torch.__version__, "python": platform.python_version()}
    environment |= {"machine": f"{platform.system()} {platform.machine()}", "threads": str(torch.get_num_threads())}
    infos = [ProbeInfo(probe.name, probe.since, probe.weight) for probe in probes]
    return Record(configuration, metrics, infos, len(stream), environment=environment)


#: The names of folders in which processes other than the first keep files; one may be there before the first comes.
_OTHERS = "files-"


class _Place:
    """The folder of a run: ``run.json`` names the configuration, ``checkpoints/`` hold learner and record, ``record.json``
    is the record for readers. The record within the newest checkpoint is the one that counts.

    Of several processes that train together the first writes and the others read, which they do only before they train:
    none can be ahead of the first by more than a step.
    """

    def __init__(self, folder: Path, configuration: dict[str, Any], display: Progress) -> None:
        self.folder, self.display = folder, display
        self.rank = int(os.environ.get("RANK", "0"))
        self.checkpoints = Checkpoints(folder / "checkpoints", reads_only=self.rank > 0)
        self._lock: BinaryIO | None = None
        if folder.exists() and not folder.is_dir():
            raise CheckpointError(f"{folder} is a file; a run needs a folder.")
        marker = folder / "run.json"
        if marker.exists():
            try:
                found = json.loads(marker.read_text())
            except ValueError as error:
                raise CheckpointError(f"{marker} is damaged ({error}); remove the folder or choose another.") from error
            difference = describe_difference(found, configuration)
            if difference:
                raise CheckpointError(f"{folder} holds another run: {difference}. Choose another folder or remove it.")
        elif self.rank == 0:
            if folder.exists() and any(p for p in folder.iterdir() if not (is_temporary(p) or p.name.startswith(_OTHERS))):
                raise CheckpointError(f"{folder} holds files that are not a run's; choose an empty or a new folder.")
            write_atomically(marker, json.dumps(configuration, indent=1))
        if self.rank == 0:
            self._lock = lock(marker)
            sweep_temporaries(folder)

    def close(self) -> None:
        """Let other processes in."""
        if self._lock is not None:
            self._lock.close()

    def resume(self, learner: Learner) -> Record | None:
        newest = self.checkpoints.newest(self.display.tell)
        if newest is None:
            return None
        number, state, info = newest
        record = Record.from_json(info["record"])
        try:
            learner.load_state_dict(state)
        except RuntimeError as error:
            raise CheckpointError(f"The checkpoint {number} in {self.folder} does not fit this learner: {error}") from error
        if self.rank == 0 and not self._shows(record):
            record.save(self.folder / "record.json")
        if not record.complete:
            self.display.tell(f"Continuing {self.folder} after {len(record.rows)} of {record.length} experiences.")
        return record

    def _shows(self, record: Record) -> bool:
        """Whether the record for readers is this one already."""
        try:
            return Record.load(self.folder) == record
        except CheckpointError:
            return False

    def unfinished(self, index: int) -> Shelf:
        """Where the learner may keep its work on experience ``index``; that on other experiences is removed."""
        shelves = self.folder / "unfinished"
        wanted = shelves / f"{index:06d}"
        if self.rank > 0:
            return Shelf(wanted, self.folder / f"{_OTHERS}{self.rank}", reads_only=True)
        for other in shelves.glob("*"):
            if other != wanted:
                shutil.rmtree(other)
        return Shelf(wanted, self.folder / "files")

    def save(self, learner: Learner, record: Record) -> None:
        state = tensors_of(learner)
        if self.rank > 0:
            return
        self.checkpoints.add(len(record.rows), state, {"record": record.to_json()})
        shutil.rmtree(self.folder / "unfinished", ignore_errors=True)
        record.save(self.folder / "record.json")


def discard(folder: str | Path) -> None:
    """Remove a run's folder, which must be one. Errors: :class:`CheckpointError` if it is not."""
    folder = Path(folder)
    if not (folder / "run.json").exists():
        raise CheckpointError(f"{folder} is not the folder of a run; nothing was removed.")
    shutil.rmtree(folder)


def describe_difference(found: Any, wanted: Any, name: str = "") -> str:
    """The first difference between two configurations in words, or an empty string.

    >>> describe_difference({"learner": {"lr": 0.1}}, {"learner": {"lr": 0.2}})
    'learner.lr is 0.1 there and 0.2 here'
    """
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in [*found, *(k for k in wanted if k not in found)]:
            inner = f"{name}.{key}" if name else key
            if key not in found or key not in wanted:
                return f"{inner} is set only {'here' if key in wanted else 'there'}"
            difference = describe_difference(found[key], wanted[key], inner)
            if difference:
                return difference
        return ""
    return "" if found == wanted else f"{name} is {found} there and {wanted} here"
