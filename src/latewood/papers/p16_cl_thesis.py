"""Continual Learning in Neural Networks"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=16,
    name="cl-thesis",
    title="Continual Learning in Neural Networks",
    kind="learner + scenario",
    arxiv="1910.02718",
    summary=(
        "Holds the thesis's six learners, from gated experts and label-free weight importance to replay that picks its "
        "samples, and runs them on streams with and without task boundaries."
    ),
)
