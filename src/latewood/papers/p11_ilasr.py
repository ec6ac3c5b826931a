"""ILASR: Privacy-Preserving Incremental Learning for Automatic Speech Recognition at Production Scale"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=11,
    name="ilasr",
    title="ILASR: Privacy-Preserving Incremental Learning for Automatic Speech Recognition at Production Scale",
    kind="system + scenario + protocol",
    arxiv="2207.09078",
    summary=(
        "Improves a speech recogniser on audio that a stronger model labels and that is deleted after one use, and "
        "measures how teacher and batch size affect the error on old and new words."
    ),
)
