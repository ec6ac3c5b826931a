"""Prototype-Sample Relation Distillation: Towards Replay-Free Continual Learning"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=14,
    name="prd",
    title="Prototype-Sample Relation Distillation: Towards Replay-Free Continual Learning",
    kind="learner",
    arxiv="2303.14771",
    summary=(
        "Trains contrastive features and class prototypes on the current arrival alone, and preserves how earlier "
        "prototypes relate to the new samples in place of storing old ones."
    ),
)
