"""Which records can stand in one report, and under which name."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from latewood.core.errors import ConfigurationError
from latewood.core.record import Record


def label_of(record: Record) -> str:
    """The method's name: ``config["method"]``, else the last part of the learner's class, on one printable line."""
    learner = record.config.get("learner")
    path = learner.get("class") if isinstance(learner, Mapping) else learner
    name = record.config.get("method") or str(path or "").rsplit(".", 1)[-1]
    if not name:
        raise ConfigurationError("A record names neither a method nor a learner in its configuration; set 'method' in it.")
    return printable(str(name))


def printable(text: str) -> str:
    """The text without what would act instead of being shown: control characters, changes of direction, lone surrogates."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or unicodedata.category(c) == "Zs" else " " if c.isspace() else "\ufffd" for c in text)


def flatten(value: Any, name: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with the keys joined by dots.

    >>> flatten({"lr": 0.1, "net": {"depth": 18}})
    {'lr': 0.1, 'net.depth': 18}
    """
    if not isinstance(value, Mapping) or not value:
        return {name: value} if name else {}
    return {key: leaf for k, v in value.items() for key, leaf in flatten(v, f"{name}.{k}" if name else str(k)).items()}


def stream_of(record: Record) -> dict[str, Any]:
    """The configuration of the stream, flat and without its seed: what all runs of one report share."""
    stream = record.config.get("stream", {})
    stream = stream if isinstance(stream, Mapping) else {"name": stream}
    return flatten({key: value for key, value in stream.items() if key != "seed"})


def check_comparable(records: Sequence[Record]) -> None:
    """Refuse records that can't stand in one report: without scores, or of different streams, metrics or probes."""
    first = records[0]
    if not first.higher_is_better:
        raise ConfigurationError("These records hold no scores, as their stream had no probes; a report needs at least one.")
    for record in records[1:]:
        here, there = _shared(first), _shared(record)
        for key in [*here, *(key for key in there if key not in here)]:
            a, b = here.get(key, "not set"), there.get(key, "not set")
            if a != b:
                what = f"its {key} is {a} in {_named(first)} and {b} in {_named(record)}"
                raise ConfigurationError(f"A report is about one stream, but {what}; make one report for each.")


def _shared(record: Record) -> dict[str, str]:
    """What must be equal in all records of a report, by name, in words."""
    metrics = ", ".join(f"{name} ({'higher' if up else 'lower'} is better)" for name, up in record.higher_is_better.items())
    return {
        **{key: repr(value) for key, value in stream_of(record).items()},
        "list of metrics": metrics,
    }


def check_seeds(label: str, runs: Sequence[Record]) -> None:
    """Refuse two runs of one method with one seed: counted twice, they would make the interval too small."""
    seen: dict[object, Record] = {}
    for run in runs:
        key = (run.config.get("seed"), str(_stream_seed(run)))
        if key[0] is not None and key in seen:
            before, after = flatten(seen[key].config), flatten(run.config)
            names = [k for k in {**before, **after} if before.get(k) != after.get(k)]
            reason = f"they differ in {names[0]}, so give each its own 'method'" if names else "name only one of them"
            raise ConfigurationError(f"Two runs of {label!r} have seed {key[0]}: {reason}.")
        seen[key] = run


def seed_order(record: Record) -> tuple[bool, float, str]:
    """The key that sorts runs by seed: numbers first, then whatever else stands for one."""
    seed = record.config.get("seed")
    return (not isinstance(seed, int), float(seed) if isinstance(seed, int) else 0.0, f"{seed} {_stream_seed(record)}")


def _stream_seed(record: Record) -> Any:
    stream = record.config.get("stream")
    return stream.get("seed") if isinstance(stream, Mapping) else None


def _named(record: Record) -> str:
    seed = record.config.get("seed")
    return label_of(record) + (f" (seed {seed})" if seed is not None else "")
