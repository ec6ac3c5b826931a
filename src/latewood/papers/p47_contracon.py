"""Exemplar-Free Continual Transformer with Convolutions"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=47,
    name="contracon",
    title="Exemplar-Free Continual Transformer with Convolutions",
    kind="learner",
    arxiv="2308.11357",
    summary=(
        "Re-weights a frozen transformer's attention matrices by small convolutions for each task, and infers the task at "
        "prediction from how certain the model is on augmented views."
    ),
)
