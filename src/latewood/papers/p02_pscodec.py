"""PSCodec: A Series of High-Fidelity Low-bitrate Neural Speech Codecs Leveraging Prompt Encoders"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=2,
    name="pscodec",
    title="PSCodec: A Series of High-Fidelity Low-bitrate Neural Speech Codecs Leveraging Prompt Encoders",
    kind="system + learner",
    arxiv="2404.02702",
    summary=(
        "Codes speech at a low bitrate with voice and timbre kept outside the frame codes, and trains the codec in "
        "stages, each of which adds parts and losses to what is already trained."
    ),
)
