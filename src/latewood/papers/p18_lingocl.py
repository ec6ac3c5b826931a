"""Enhancing Visual Continual Learning with Language-Guided Supervision"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=18,
    name="lingocl",
    title="Enhancing Visual Continual Learning with Language-Guided Supervision",
    kind="learner",
    arxiv="2403.16124",
    summary=(
        "Swaps the head of any image learner for fixed language-model vectors of the class names, and compares it with "
        "the learner's own head and with frozen random vectors."
    ),
)
