"""Mobile-R1: Towards Interactive Reinforcement Learning for VLM-Based Mobile Agent via Task-Level Rewards"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=33,
    name="mobile-r1",
    title="Mobile-R1: Towards Interactive Reinforcement Learning for VLM-Based Mobile Agent via Task-Level Rewards",
    kind="learner + scenario",
    arxiv="2506.20332",
    summary=(
        "Trains a phone-screen agent on demonstrations, then on single actions that can be verified, then on whole "
        "episodes in a simulated phone, and measures how it recovers from a wrong page."
    ),
)
