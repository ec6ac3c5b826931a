"""Few-Shot Class-Incremental Learning via Training-Free Prototype Calibration"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=6,
    name="teen",
    title="Few-Shot Class-Incremental Learning via Training-Free Prototype Calibration",
    kind="learner",
    arxiv="2312.05229",
    summary=(
        "Moves the mean of each few-shot class towards the base prototypes nearest to it, without training anything, and "
        "counts how many novel samples are still taken for base classes."
    ),
)
