"""A Bag of Tricks for Few-Shot Class-Incremental Learning"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=17,
    name="fscil-tricks",
    title="A Bag of Tricks for Few-Shot Class-Incremental Learning",
    kind="learner + protocol",
    arxiv="2403.14392",
    summary=(
        "Adds up to eight separate refinements to a frozen few-shot baseline and tables what each of them brings in base "
        "and novel accuracy."
    ),
)
