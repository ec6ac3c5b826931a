"""Deep Lifelong Cross-modal Hashing"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=7,
    name="lifelong-hashing",
    title="Deep Lifelong Cross-modal Hashing",
    kind="learner + system",
    arxiv="2304.13357",
    summary=(
        "Adds categories to a hash index of images and texts without touching a stored code: only new items are coded, "
        "and both networks are fitted to old and new codes together."
    ),
)
