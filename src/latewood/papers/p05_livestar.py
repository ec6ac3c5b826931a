"""LiveStar: Live Streaming Assistant for Real-World Online Video Understanding"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=5,
    name="livestar",
    title="LiveStar: Live Streaming Assistant for Real-World Online Video Understanding",
    kind="learner + system + protocol",
    arxiv="2511.05299",
    summary=(
        "Follows a video frame by frame, speaks when the perplexity of its last sentence under the new frame says that "
        "the sentence has gone stale, and scores both the words and their timing."
    ),
)
