"""SLCA: Slow Learner with Classifier Alignment for Continual Learning on a Pre-trained Model"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=13,
    name="slca",
    title="SLCA: Slow Learner with Classifier Alignment for Continual Learning on a Pre-trained Model",
    kind="learner",
    arxiv="2303.05118",
    summary=(
        "Fine-tunes a pretrained backbone at a small fraction of its head's learning rate, then corrects all heads on "
        "features drawn from a Gaussian for each class, with a frozen backbone as the control."
    ),
)
