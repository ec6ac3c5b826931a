"""Online Continual Learning on Hierarchical Label Expansion"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=34,
    name="hle",
    title="Online Continual Learning on Hierarchical Label Expansion",
    kind="scenario + learner + protocol",
    arxiv="2308.14374",
    summary=(
        "Builds streams whose labels split from coarse to fine, and learns them online with a head for each level and a "
        "memory that is pruned with pseudo-labels of the other levels."
    ),
)
