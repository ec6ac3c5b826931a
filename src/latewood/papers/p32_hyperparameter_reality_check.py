"""Hyperparameters in Continual Learning: a Reality Check"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=32,
    name="hyperparameter-reality-check",
    title="Hyperparameters in Continual Learning: a Reality Check",
    kind="protocol",
    arxiv="2403.09066",
    summary=(
        "Tunes hyper-parameters on streams of one dataset, scores them on streams of another with the same layout, and "
        "reports how far tuning on the scored stream itself flatters a method."
    ),
)
