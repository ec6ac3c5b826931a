"""What a model directory tells: settings, what is known of a class, what learning came to, what changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from latewood.core.errors import ConfigurationError
from latewood.model.arrivals import Kind, Problem
from latewood.model.gate import Loss
from latewood.model.store import Version


class Guess(NamedTuple):
    """A class, and how sure the model is of it, in [0, 1]."""

    label: str
    confidence: float


@dataclass(frozen=True)
class ClassFacts:
    """What a version knows of a class: samples that trained it, canaries, and the share of these that it recognises.

    ``inherited`` of the samples were learned elsewhere, before the model was exported; nothing of them is kept here.
    """

    number: int
    name: str
    samples: int
    canaries: int
    score: float | None
    inherited: int = 0


@dataclass(frozen=True)
class Outcome:
    """What learning came to. ``held``: the gate keeps ``version`` as a candidate, because of what it ``lost``."""

    version: Version
    held: bool = False
    added: int = 0
    duplicates: int = 0
    relabelled: int = 0
    skipped: tuple[Problem, ...] = ()
    new_classes: tuple[str, ...] = ()
    lost: tuple[Loss, ...] = ()


@dataclass(frozen=True)
class Flip:
    """How many canaries of class ``label`` one version calls ``before`` and the other ``after``."""

    label: str
    before: str
    after: str
    count: int


@dataclass(frozen=True)
class Difference:
    """What changed from one version to another: classes, scores of those that both know, predictions on canaries."""

    first: Version
    second: Version
    gained: tuple[str, ...]
    gone: tuple[str, ...]
    scores: tuple[Loss, ...]
    flips: tuple[Flip, ...]
    canaries: int


@dataclass(frozen=True)
class Settings:
    """What was decided when the directory was made, and holds for every version."""

    kind: Kind
    method: str
    learner: Mapping[str, Any] = field(default_factory=dict)
    canaries: float = 0.05
    most_canaries: int = 50
    limit: float = 0.2
    keep: int = 10
    forgettable: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.canaries < 0.5:
            raise ConfigurationError(f"canaries is a share from 0 to 0.5 of what arrives, but it is {self.canaries}.")
        if not 0 < self.limit <= 1:
            raise ConfigurationError(f"limit is a share above 0 and at most 1, but it is {self.limit}.")
        if self.keep < 1 or self.most_canaries < 1:
            raise ConfigurationError("keep and most_canaries must be at least 1.")
