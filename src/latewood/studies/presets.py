"""Presets: a paper's stream and settings for methods, under one name; what the user says goes before them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from latewood.core import registry
from latewood.core.configure import merged
from latewood.core.errors import ConfigurationError
from latewood.core.preset import Preset


def find_preset(name: str, methods: Sequence[str], wing: str | None = None) -> tuple[str, dict[str, Any]]:
    """The stream of the preset ``name``, and its settings: those of each method under the method's name.

    All methods that have it must name one stream, and those that don't have it keep their defaults. ``wing`` decides
    between methods of one name. Errors: :class:`~latewood.core.errors.ConfigurationError` if no method has it, or the streams
    or their settings differ.

    >>> stream, settings = find_preset("paper-99m", ["mer"])
    >>> settings["mer"]["every"]
    500
    """
    found: dict[str, Preset] = {}
    known: set[str] = set()
    for method in methods:
        for entry in registry.entries("learners", wing):
            presets = entry.load().presets if registry.same(entry.name, method) else {}
            known |= set(presets)
            if name in presets:
                found[method] = presets[name]
    if not found:
        raise ConfigurationError(f"{' and '.join(methods)} has no preset {name!r}{registry.nearest(name, known)}.")
    streams = {preset.stream for preset in found.values()}
    asked = [preset.settings.get("stream", {}) for preset in found.values()]
    if len(streams) > 1 or any(settings != asked[0] for settings in asked):
        raise ConfigurationError(
            f"The presets {name!r} of these methods are for different streams ({', '.join(sorted(streams))}); "
            "name one with --stream and set the rest by hand."
        )
    own = {method: _without_stream(preset.settings) for method, preset in found.items()}
    return streams.pop(), merged(own, {"stream": asked[0]} if asked[0] else {})


def under_methods(settings: Mapping[str, Any], methods: Sequence[str], wing: str) -> dict[str, Any]:
    """Shared settings, also put under each method that has such a parameter: so they go before what a preset says there."""
    from latewood.studies.compare import settings_by_method

    shared = {name: value for name, value in settings.items() if name != "stream"}
    own = settings_by_method({method: registry.find("learners", method, wing) for method in methods}, shared)
    return {**own, **({"stream": settings["stream"]} if "stream" in settings else {})}


def _without_stream(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != "stream"}
