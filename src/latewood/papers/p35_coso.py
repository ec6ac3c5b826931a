"""Continuous Subspace Optimization for Continual Learning"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=35,
    name="coso",
    title="Continuous Subspace Optimization for Continual Learning",
    kind="learner",
    arxiv="2505.11816",
    summary=(
        "Fine-tunes weight matrices in low-rank gradient subspaces that leave out the directions of earlier tasks, which "
        "it summarises in a sketch, and counts the optimiser memory saved."
    ),
)
