"""MOS: Model Surgery for Pre-Trained Model-Based Class-Incremental Learning"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=44,
    name="mos",
    title="MOS: Model Surgery for Pre-Trained Model-Based Class-Incremental Learning",
    kind="learner",
    arxiv="2412.09441",
    summary=(
        "Trains one adapter for each arrival, kept close to the average of those before it, and at prediction lets the "
        "model's own answers settle which adapter to use."
    ),
)
