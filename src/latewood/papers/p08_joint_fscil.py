"""Does Prior Data Matter? Exploring Joint Training in the Context of Few-Shot Class-Incremental Learning"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=8,
    name="joint-fscil",
    title="Does Prior Data Matter? Exploring Joint Training in the Context of Few-Shot Class-Incremental Learning",
    kind="protocol + learner",
    arxiv="2503.10003",
    summary=(
        "Retrains on everything seen with corrections for the class imbalance, and sets few-shot learners beside this "
        "reference by base accuracy, novel accuracy and training cost."
    ),
)
