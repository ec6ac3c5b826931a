"""Preset: the settings with which a paper got a result, kept beside the method, under a name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """A stream by its name, what is set on stream, backbone and learner, and where the numbers come from.

    ``settings`` are what ``--set`` takes: the learner's parameters, those of the network under ``backbone``, those of the
    stream under ``stream``. ``source`` names the table or file of the paper, and what of it is our choice.

    >>> Preset("split-cifar100", {"lr": 0.01, "stream": {"steps": 10}}, "Table 1").settings["stream"]
    {'steps': 10}
    """

    stream: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
