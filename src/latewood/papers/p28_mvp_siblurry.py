"""Online Class Incremental Learning on Stochastic Blurry Task Boundary via Mask and Visual Prompt Tuning"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=28,
    name="mvp-siblurry",
    title="Online Class Incremental Learning on Stochastic Blurry Task Boundary via Mask and Visual Prompt Tuning",
    kind="scenario + learner + protocol",
    arxiv="2308.09303",
    summary=(
        "Builds online streams whose tasks overlap at random, learns them with prompts and masked outputs on a frozen "
        "transformer, and scores accuracy all along the stream."
    ),
)
