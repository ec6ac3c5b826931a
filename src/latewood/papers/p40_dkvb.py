"""Discrete Key-Value Bottleneck"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=40,
    name="dkvb",
    title="Discrete Key-Value Bottleneck",
    kind="learner",
    arxiv="2207.11240",
    summary=(
        "Puts discrete keys with trainable values behind a frozen encoder, so that an update stays near its own inputs, "
        "and compares a class-by-class stream with shuffled training."
    ),
)
