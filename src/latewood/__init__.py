"""Latewood: incremental training for PyTorch models.

Data keeps arriving; a model is updated from what is new, at a cost that follows the new data and not the old, and what
it forgot is measured every time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from latewood.core.version import __version__

if TYPE_CHECKING:
    from latewood.core.data import Data, concat
    from latewood.core.errors import LatewoodError
    from latewood.core.experience import Experience
    from latewood.core.learner import GradientLearner, Learner
    from latewood.core.probe import Probe
    from latewood.core.recipe import Recipe
    from latewood.core.record import Record
    from latewood.core.run import run
    from latewood.core.stream import Stream
    from latewood.model.model import Model

# Imported on first use: torch takes seconds to import, and `latewood --help` must not wait for it.
_HOMES = {
    "Data": "core.data",
    "concat": "core.data",
    "LatewoodError": "core.errors",
    "GradientLearner": "core.learner",
    "Learner": "core.learner",
    "Model": "model.model",
    "Recipe": "core.recipe",
    "Probe": "core.probe",
    "Record": "core.record",
    "run": "core.run",
    "Experience": "core.experience",
    "Stream": "core.stream",
}

__all__ = [
    "Data",
    "Experience",
    "GradientLearner",
    "LatewoodError",
    "Learner",
    "Model",
    "Probe",
    "Recipe",
    "Record",
    "Stream",
    "__version__",
    "concat",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'latewood' has no attribute {name!r}")
    return getattr(importlib.import_module(f"latewood.{_HOMES[name]}"), name)
