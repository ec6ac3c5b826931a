"""Revisiting Class-Incremental Learning with Pre-Trained Models: Generalizability and Adaptivity are All You Need"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=42,
    name="simplecil-adam",
    title="Revisiting Class-Incremental Learning with Pre-Trained Models: Generalizability and Adaptivity are All You Need",
    kind="learner + protocol",
    arxiv="2303.07338",
    summary=(
        "Classifies by class means of frozen features, on request joined with features adapted on the first arrival, and "
        "reports the gain of adapting both near to and far from the pretraining data."
    ),
)
