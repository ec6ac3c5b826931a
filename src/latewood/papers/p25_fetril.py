"""FeTrIL: Feature Translation for Exemplar-Free Class-Incremental Learning"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=25,
    name="fetril",
    title="FeTrIL: Feature Translation for Exemplar-Free Class-Incremental Learning",
    kind="learner",
    arxiv="2211.13131",
    summary=(
        "Keeps one mean for each old class, imitates the class by moving features of a similar new class there, and "
        "refits a linear classifier at every arrival."
    ),
)
