"""Continual Learning, Not Training: Online Adaptation For Agents"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=38,
    name="atlas",
    title="Continual Learning, Not Training: Online Adaptation For Agents",
    kind="system + learner + protocol",
    arxiv="2511.01093",
    summary=(
        "Lets an agent with fixed weights improve by lessons that it writes down after each task, and counts successes "
        "and tokens along the stream and with the lessons frozen on other incidents."
    ),
)
