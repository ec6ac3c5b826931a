"""InfiMed-ORBIT: Aligning LLMs on Open-Ended Complex Tasks via Rubric-Based Incremental Training"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=3,
    name="orbit",
    title="InfiMed-ORBIT: Aligning LLMs on Open-Ended Complex Tasks via Rubric-Based Incremental Training",
    kind="learner + system",
    arxiv="2510.15859",
    summary=(
        "Trains a language model by reinforcement in restarted stages, rewarded by a judge with a list of criteria "
        "written for each prompt, after prompts and criteria that are too easy for the current model have been dropped."
    ),
)
