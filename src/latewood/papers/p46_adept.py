"""ADEPT: Continual Pretraining via Adaptive Expansion and Dynamic Decoupled Tuning"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=46,
    name="adept",
    title="ADEPT: Continual Pretraining via Adaptive Expansion and Dynamic Decoupled Tuning",
    kind="learner",
    arxiv="2510.10071",
    summary=(
        "Deepens a language model behind the layers that matter least to it, with copies that change nothing at first, "
        "and trains only these on a new domain, more slowly where a weight matters in general."
    ),
)
