"""NeuS2: Fast Learning of Neural Implicit Surfaces for Multi-view Reconstruction"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=1,
    name="neus2",
    title="NeuS2: Fast Learning of Neural Implicit Surfaces for Multi-view Reconstruction",
    kind="learner + system",
    arxiv="2212.05231",
    summary=(
        "Learns a moving object as a signed-distance field one multi-view frame at a time, beginning each frame where the "
        "last one ended after undoing the rigid motion, and measures what that saves over a fresh start."
    ),
)
