"""Reinforcement Fine-Tuning Naturally Mitigates Forgetting in Continual Post-Training"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=22,
    name="rft",
    title="Reinforcement Fine-Tuning Naturally Mitigates Forgetting in Continual Post-Training",
    kind="protocol + learner",
    arxiv="2507.05386",
    summary=(
        "Sets reinforcement against supervised fine-tuning on a sequence of tasks at equal new-task accuracy, with random "
        "valid labels as a control, and skips prompts without any successful attempt."
    ),
)
