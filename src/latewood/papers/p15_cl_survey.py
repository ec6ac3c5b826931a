"""A Comprehensive Survey of Continual Learning: Theory, Method and Application"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=15,
    name="cl-survey",
    title="A Comprehensive Survey of Continual Learning: Theory, Method and Application",
    kind="system + scenario + protocol",
    arxiv="2302.00487",
    summary=(
        "Has at least one tested learner for each branch of the survey's taxonomy, builds its kinds of stream, and reads "
        "its measures off the score matrix."
    ),
)
