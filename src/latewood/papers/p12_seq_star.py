"""Learn or Recall? Revisiting Incremental Learning with Pre-trained Language Models"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=12,
    name="seq-star",
    title="Learn or Recall? Revisiting Incremental Learning with Pre-trained Language Models",
    kind="learner + protocol",
    arxiv="2312.07887",
    summary=(
        "Freezes a language model after a short warm-up, together with the heads of earlier classes, and probes the "
        "features at every arrival to tell what was lost from what the head merely misses."
    ),
)
