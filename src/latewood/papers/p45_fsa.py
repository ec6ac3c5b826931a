"""First Session Adaptation: A Strong Replay-Free Baseline for Class-Incremental Learning"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=45,
    name="fsa",
    title="First Session Adaptation: A Strong Replay-Free Baseline for Class-Incremental Learning",
    kind="learner + protocol + scenario",
    arxiv="2303.13199",
    summary=(
        "Fine-tunes the backbone on the first arrival only, updates an exact linear discriminant from sums at every "
        "arrival, and measures when that one adaptation pays."
    ),
)
