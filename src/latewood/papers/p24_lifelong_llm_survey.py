"""Towards Lifelong Learning of Large Language Models: A Survey"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=24,
    name="lifelong-llm-survey",
    title="Towards Lifelong Learning of Large Language Models: A Survey",
    kind="protocol",
    arxiv="2406.06391",
    summary=(
        "Maps the survey's scenarios, techniques and measures for language models to Latewood's own parts and reports "
        "which of them are covered."
    ),
)
