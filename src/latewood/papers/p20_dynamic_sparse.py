"""Continual Learning with Dynamic Sparse Training: Exploring Algorithms for Effective Model Updates"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=20,
    name="dynamic-sparse",
    title="Continual Learning with Dynamic Sparse Training: Exploring Algorithms for Effective Model Updates",
    kind="learner + protocol",
    arxiv="2308.14831",
    summary=(
        "Grows a sparse subnetwork for every task around the fixed weights of earlier tasks, and compares "
        "initialisations, growth rules and densities by accuracy and by capacity used."
    ),
)
