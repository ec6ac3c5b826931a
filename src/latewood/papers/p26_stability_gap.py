"""Efficient Continual Pre-training by Mitigating the Stability Gap"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=26,
    name="stability-gap",
    title="Efficient Continual Pre-training by Mitigating the Stability Gap",
    kind="learner + protocol",
    arxiv="2406.14833",
    summary=(
        "Tracks general and domain loss closely from the first steps of continued pretraining, and tests whether several "
        "passes over a clean, small, source-balanced subset flatten the early dip."
    ),
)
