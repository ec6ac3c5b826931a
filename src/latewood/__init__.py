"""Latewood: incremental training for PyTorch models.

Data keeps arriving; a model is updated from what is new, at a cost that follows the new data and not the old, and what
it forgot is measured every time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

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

# Imported on first use: torch takes seconds to import, and `latewood --help` must not wait for it.
_HOMES = {
    "Data": "data",
    "concat": "data",
    "LatewoodError": "errors",
    "GradientLearner": "learner",
    "Learner": "learner",
    "Recipe": "recipe",
    "Probe": "probe",
    "Record": "record",
    "run": "run",
    "Experience": "experience",
    "Stream": "stream",
}

__all__ = [
    "Data",
    "Experience",
    "GradientLearner",
    "LatewoodError",
    "Learner",
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
    return getattr(importlib.import_module(f"latewood.core.{_HOMES[name]}"), name)
