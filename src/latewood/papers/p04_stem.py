"""Spatiotemporal Entropy Model is All You Need for Learned Video Compression"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=4,
    name="stem",
    title="Spatiotemporal Entropy Model is All You Need for Learned Video Compression",
    kind="system + learner",
    arxiv="2104.06083",
    summary=(
        "Compresses video into real bytes with a frozen image codec and trains only the probability model of its integer "
        "latents on new footage, so that whatever was stored before still decodes to the same frames."
    ),
)
