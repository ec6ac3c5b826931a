"""Less is more: Summarizing Patch Tokens for efficient Multi-Label Class-Incremental Learning"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=48,
    name="multi-lane",
    title="Less is more: Summarizing Patch Tokens for efficient Multi-Label Class-Incremental Learning",
    kind="learner + protocol",
    arxiv="2405.15633",
    summary=(
        "Sends an image through a frozen transformer once for each task at the same time, on a few summary tokens with "
        "that task's prompts, and scores multi-label streams by average precision."
    ),
)
