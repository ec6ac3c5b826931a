"""Compare methods on one stream over several seeds: the same arrivals, the same initial weights, a record for each run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latewood.core import configure, registry
from latewood.core.errors import ConfigurationError
from latewood.core.progress import Progress
from latewood.core.record import Record
from latewood.core.run import run
from latewood.studies.assemble import make_learner, make_stream, stream_entry


def compare(
    methods: Sequence[str],
    stream: str,
    *,
    seeds: int | Sequence[int] = 1,
    to: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
    transfer: bool = False,
    progress: Progress | None = None,
) -> list[Record]:
    """Run every method on the stream with every seed; a seed decides the order of classes, the weights, and the batches.

    ``settings``: those under ``"stream"`` are the stream's, those under a method's name are that method's, and the others
    go to every method that has such a parameter (one must). With ``to`` each run is kept in ``<method>/seed-<n>`` there,
    and the same call continues where it was interrupted.

    All settings are checked before the first run starts. Errors: :class:`~latewood.core.errors.ConfigurationError`.
    """
    if not methods:
        raise ConfigurationError("Name at least one method to compare.")
    numbers = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not numbers:
        raise ConfigurationError("A comparison needs at least one seed.")
    everything = dict(settings or {})
    stream_settings = everything.pop("stream", {})
    wing = stream_entry(stream)[0].wing
    entries = {method: registry.find("learners", method, wing) for method in methods}
    _check_once("method", [entries[method].name for method in methods])
    _check_once("seed", [str(number) for number in numbers])
    own = settings_by_method(entries, everything)
    first = make_stream(stream, stream_settings, numbers[0])
    for method in methods:
        make_learner(method, first, own[method], numbers[0])
    records = []
    for seed in numbers:
        arrivals = make_stream(stream, stream_settings, seed)
        for method in methods:
            learner = make_learner(method, arrivals, own[method], seed)
            folder = Path(to) / entries[method].name / f"seed-{seed}" if to is not None else None
            how: dict[str, Any] = {"device": device, "transfer": transfer, "progress": progress}
            records.append(run(learner, arrivals, to=folder, seed=seed, settings={"method": entries[method].name}, **how))
    return records


def _check_once(what: str, names: Sequence[str]) -> None:
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigurationError(f"The {what} {twice[0]} is named twice; each makes one run for each of the others.")


def settings_of(method: str, wing: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of one method alone: the shared ones, then those under its name."""
    return settings_by_method({method: registry.find("learners", method, wing)}, settings)[method]


def relevant(settings: Mapping[str, Any], methods: Sequence[str], wing: str) -> dict[str, Any]:
    """What of a file of settings, written for many methods, concerns these.

    Left out is what another method of the wing is called or has as a parameter; what no method knows stays, to be told.
    """
    chosen = {entry.name: entry for entry in (registry.find("learners", method, wing) for method in methods)}
    mine = {*chosen, *methods}.union(*(configure.settable(entry.load()) for entry in chosen.values()))
    others = [entry for entry in registry.entries("learners", wing) if entry.name not in chosen]
    foreign = {entry.name for entry in others}.union(*(configure.settable(entry.load()) for entry in others))
    return {name: value for name, value in settings.items() if name in mine or name not in foreign}


def settings_by_method(entries: Mapping[str, registry.Entry], settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What of the settings concerns each method: the shared ones that it has a parameter for, then its own.

    Errors: :class:`~latewood.core.errors.ConfigurationError` for a shared setting that no method has.
    """
    settable = {method: configure.settable(entry.load()) for method, entry in entries.items()}
    labels = {*entries, *(entry.name for entry in entries.values())}
    shared = {name: value for name, value in settings.items() if name not in labels}
    for name in shared:
        if not any(name in names for names in settable.values()):
            known = {n for names in settable.values() for n in names} | labels
            who = f"{next(iter(entries))} has no" if len(entries) == 1 else "None of these methods has a"
            raise ConfigurationError(f"{who} parameter {name!r}{registry.nearest(name, known)}.")
    result = {}
    for method, entry in entries.items():
        mine = {name: value for name, value in shared.items() if name in settable[method]}
        for label in dict.fromkeys((entry.name, method)):
            own = settings.get(label, {})
            if not isinstance(own, Mapping):
                raise ConfigurationError(f"{label} is a method; set one of its parameters, such as {label}.<name>.")
            mine = configure.merged(mine, own)
        result[method] = mine
    return result
