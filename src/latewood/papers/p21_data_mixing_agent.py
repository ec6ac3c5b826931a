"""Data Mixing Agent: Learning to Re-weight Domains for Continual Pre-training"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=21,
    name="data-mixing-agent",
    title="Data Mixing Agent: Learning to Re-weight Domains for Continual Pre-training",
    kind="learner + system",
    arxiv="2507.15640",
    summary=(
        "Learns a policy for the share of each text domain offline, from many small training runs, and tries it on a "
        "larger model and on text it has not met."
    ),
)
