"""The critical mixture ratio (CMR): the largest domain share that continual pre-training bears, from a few short runs."""

from __future__ import annotations

from latewood.studies.cmr.critical import collect, plan
from latewood.studies.cmr.laws import Curve, PowerLaw
from latewood.studies.cmr.report import Plan, plot
from latewood.studies.cmr.run import Text, load_curves, load_text, measure

__all__ = ["Curve", "Plan", "PowerLaw", "Text", "collect", "load_curves", "load_text", "measure", "plan", "plot"]
