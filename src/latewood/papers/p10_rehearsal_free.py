"""A Closer Look at Rehearsal-Free Continual Learning"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=10,
    name="rehearsal-free",
    title="A Closer Look at Rehearsal-Free Continual Learning",
    kind="protocol + learner",
    arxiv="2203.17269",
    summary=(
        "Compares penalties on weights, features and predictions under one common loss without stored samples, both from "
        "scratch and from a pretrained model."
    ),
)
