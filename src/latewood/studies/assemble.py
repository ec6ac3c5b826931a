"""From names and settings to a stream and a learner on it: what the command line and the studies are made with."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from typing import Any

from latewood.core import configure, registry
from latewood.core.errors import ConfigurationError
from latewood.core.learner import Learner
from latewood.core.seeding import seeded
from latewood.core.stream import Stream
from latewood.parts.backbone import Backbone, Seen, build_backbone


def make_stream(name: str, settings: Mapping[str, Any] | None = None, seed: int = 0) -> Stream:
    """The stream called ``<scenario>-<data set>``, such as ``split-digits``.

    ``seed`` is used where the builder has one and the settings don't name it. Errors:
    :class:`~latewood.core.errors.ConfigurationError` for an unknown scenario or setting.

    >>> make_stream("split-digits", {"steps": "2"}).name
    'split-digits'
    """
    if not isinstance(settings or {}, Mapping):
        raise ConfigurationError("stream has settings; set one of them, such as stream.steps.")
    entry, dataset = stream_entry(name)
    builder, settings = entry.load(), dict(settings or {})
    if "seed" in configure.parameters_of(builder):
        settings.setdefault("seed", seed)
    stream = configure.build(builder, settings, "stream", dataset=dataset)
    if not isinstance(stream, Stream):
        raise ConfigurationError(f"The stream builder {entry.name!r} made a {type(stream).__name__} and not a Stream.")
    return stream


def stream_entry(name: str) -> tuple[registry.Entry, str]:
    """The builder and the data set that a stream's name stands for."""
    fitting = [e for e in registry.entries("streams") if name.startswith((f"{e.name}-", f"{e.name}:"))]
    if not fitting or name[len(fitting[0].name) + 1 :].strip() == "":
        scenarios = [entry.name for entry in registry.entries("streams")]
        scenario = re.split("[-:]", name, maxsplit=1)[0]
        hint = "" if scenario in scenarios else registry.nearest(scenario, scenarios)
        raise ConfigurationError(f"There is no stream {name!r}; a name is <scenario>-<data set>, such as split-digits{hint}.")
    entry = max(fitting, key=lambda e: len(e.name))
    return entry, name[len(entry.name) + 1 :]


def make_learner(method: str, stream: Stream, settings: Mapping[str, Any] | None = None, seed: int = 0) -> Learner:
    """The learner called ``method`` for the wing of ``stream``, with the initial weights that ``seed`` gives.

    ``settings["backbone"]`` names a net of the wing, or one on a hub or in a folder, alone or with settings of its own
    (``{"name": "mlp", "width": 64}``; ``"frozen": True`` keeps it as it is while a head is trained); without it the wing
    chooses one that suits the method and the data. A backbone that was trained on classes of the stream is refused, unless
    its setting ``allow_seen`` is on. A learner that takes ``class_names`` gets those of the stream's labels.

    >>> type(make_learner("nmc", make_stream("split-digits"))).__name__
    'NMC'
    """
    target = registry.find("learners", method, stream.wing).load()
    settings = dict(settings or {})
    given: dict[str, Any] = {}
    parameters = configure.parameters_of(target)
    if "class_names" in parameters:
        given["class_names"] = getattr(stream, "names", None)
    with seeded(seed, "initial weights"):
        if "backbone" in parameters:
            given["backbone"] = make_backbone(settings.pop("backbone", {}), target, stream)
        learner = configure.build(target, settings, method, **given)
    assert isinstance(learner, Learner)
    return learner


def make_backbone(wanted: str | Mapping[str, Any], learner: type[Learner], stream: Stream) -> Backbone:
    """The backbone that settings ask for, made for the stream's data.

    Errors: :class:`~latewood.core.errors.ConfigurationError` if classes of the stream were part of its training, unless
    its setting ``allow_seen`` is on.
    """
    nets = importlib.import_module(f"latewood.{stream.wing}.nets")
    backbone = build_backbone(wanted, stream.wing, stream.example, lambda: nets.default_backbone(learner, stream.example))
    if backbone.seen and not backbone.allow_seen:
        _refuse_seen(backbone, backbone.seen, stream)
    return backbone


def _refuse_seen(backbone: Backbone, seen: Seen, stream: Stream) -> None:
    """What a backbone was trained on tells nothing about learning something new."""
    arriving: tuple[str, ...] = getattr(stream, "class_names", ())
    if both := [name for name in arriving if name in set(seen.classes)]:
        net = backbone.settings["name"]
        raise ConfigurationError(
            f"The backbone {net!r} was trained on {len(both)} of the {len(arriving)} classes of {stream.name} "
            f"({both[0]!r} is one), so its scores there would be too good; set stream.classes=unseen:{net} to leave them out, "
            "or backbone.allow_seen=true to keep them."
        )
