"""Train once, answer all: many small experiments in one training run, each with its own probe; and whether they interfere."""

from __future__ import annotations

from latewood.studies.train_once.controller import Control, ControlState
from latewood.studies.train_once.experiments import (
    Experiment,
    Fact,
    Item,
    arithmetic,
    backdoor,
    canaries,
    contamination,
    fictional_knowledge,
    invented_facts,
    paraphrases,
)
from latewood.studies.train_once.interference import Interference, collect, cpdt
from latewood.studies.train_once.loop import (
    Finished,
    Laboratory,
    Marked,
    StoppedEarly,
    TrainOnceLearner,
    answers,
    influences,
)
from latewood.studies.train_once.orchestrate import Effect, TrainOnce, effects, plan, table
from latewood.studies.train_once.watermark import Detection, Watermark, detect, influence

__all__ = [
    "Control",
    "ControlState",
    "Detection",
    "Effect",
    "Experiment",
    "Fact",
    "Finished",
    "Interference",
    "Item",
    "Laboratory",
    "Marked",
    "StoppedEarly",
    "TrainOnce",
    "TrainOnceLearner",
    "Watermark",
    "answers",
    "arithmetic",
    "backdoor",
    "canaries",
    "collect",
    "contamination",
    "cpdt",
    "detect",
    "effects",
    "fictional_knowledge",
    "influence",
    "influences",
    "invented_facts",
    "paraphrases",
    "plan",
    "table",
]
