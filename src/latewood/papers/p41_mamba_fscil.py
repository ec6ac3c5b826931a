"""Mamba-FSCIL: Dynamic Adaptation with Selective State Space Model for Few-Shot Class-Incremental Learning"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=41,
    name="mamba-fscil",
    title="Mamba-FSCIL: Dynamic Adaptation with Selective State Space Model for Few-Shot Class-Incremental Learning",
    kind="learner",
    arxiv="2407.06136",
    summary=(
        "Maps frozen features to fixed equiangular class targets by a selective state-space branch, learns few-shot "
        "classes in a second one, and reports static branches as controls."
    ),
)
