"""A Practitioner's Guide to Continual Multimodal Pretraining"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=43,
    name="fomo-in-flux",
    title="A Practitioner's Guide to Continual Multimodal Pretraining",
    kind="protocol + scenario + learner",
    arxiv="2408.14471",
    summary=(
        "Streams many small updates to an image-text model under a budget of computation and memory, and shows adaptation "
        "against retention for merging, replay and learning-rate schedules."
    ),
)
