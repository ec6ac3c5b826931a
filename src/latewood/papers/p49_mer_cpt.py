"""Revisiting Replay and Gradient Alignment for Continual Pre-Training of Large Language Models"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=49,
    name="mer-cpt",
    title="Revisiting Replay and Gradient Alignment for Continual Pre-Training of Large Language Models",
    kind="learner + protocol",
    arxiv="2508.01908",
    summary=(
        "Mixes sequences stored on disk into a language model's training, with Reptile steps in between, and weighs the "
        "replay share against a larger model at equal computation."
    ),
)
