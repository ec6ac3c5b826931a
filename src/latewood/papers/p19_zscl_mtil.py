"""Preventing Zero-Shot Transfer Degradation in Continual Learning of Vision-Language Models"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=19,
    name="zscl-mtil",
    title="Preventing Zero-Shot Transfer Degradation in Continual Learning of Vision-Language Models",
    kind="learner + scenario + protocol",
    arxiv="2303.06628",
    summary=(
        "Fine-tunes an image-text model on one dataset after another, held to its initial similarities on reference data "
        "and to averaged weights, and scores the datasets that are still to come."
    ),
)
