"""Multimodal Parameter-Efficient Few-Shot Class Incremental Learning"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=37,
    name="cpe-clip",
    title="Multimodal Parameter-Efficient Few-Shot Class Incremental Learning",
    kind="learner",
    arxiv="2303.04751",
    summary=(
        "Tunes text prompts, and image prompts computed from them, on a frozen image-text model, with smaller steps the "
        "fewer of the known classes are new."
    ),
)
