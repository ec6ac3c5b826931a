"""Challenging Common Assumptions about Catastrophic Forgetting"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=30,
    name="scole",
    title="Challenging Common Assumptions about Catastrophic Forgetting",
    kind="scenario + protocol + learner",
    arxiv="2207.04543",
    summary=(
        "Draws long streams from one dataset, with classes that come back at a chosen rate, and measures what plain "
        "gradient training retains in the long run, with masked gradients and replay of rare classes beside it."
    ),
)
