"""SHARP: Sparsity and Hidden Activation RePlay for Neuro-Inspired Continual Learning"""

from __future__ import annotations

from latewood.papers.ledger import Paper

PAPER = Paper(
    number=39,
    name="sharp",
    title="SHARP: Sparsity and Hidden Activation RePlay for Neuro-Inspired Continual Learning",
    kind="learner + scenario",
    arxiv="2305.18563",
    summary=(
        "Lets the units of a sparse network mature until they freeze, replays activations of the latest episode only, and "
        "reads old classes out by their nearest neighbours on frozen units."
    ),
)
