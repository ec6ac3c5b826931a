"""Deep Class-Incremental Learning: A Survey"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=31,
    name="cil-survey",
    title="Deep Class-Incremental Learning: A Survey",
    kind="protocol + scenario + learner",
    arxiv="2302.03648",
    summary=(
        "Compares sixteen class-incremental learners from the same start over a range of memory budgets in which samples "
        "and weights are both counted in bytes."
    ),
)
