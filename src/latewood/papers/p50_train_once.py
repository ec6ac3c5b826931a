"""Train Once, Answer All: Many Pretraining Experiments for the Cost of One"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=50,
    name="train-once",
    title="Train Once, Answer All: Many Pretraining Experiments for the Cost of One",
    kind="system + protocol",
    arxiv="2509.23383",
    summary=(
        "Packs many small data experiments into one pretraining run, adjusts some of them by their own probes meanwhile, "
        "and tests in advance that none affects another."
    ),
)
