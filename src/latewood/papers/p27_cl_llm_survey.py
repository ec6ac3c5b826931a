"""Continual Learning of Large Language Models: A Comprehensive Survey"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=27,
    name="cl-llm-survey",
    title="Continual Learning of Large Language Models: A Comprehensive Survey",
    kind="protocol",
    arxiv="2404.16789",
    summary=(
        "Measures what a language model loses when it is specialised and when its data changes over time, language or "
        "content, and how much a small share of general text wins back."
    ),
)
