"""The data mixing agent: a policy for the shares of domains, learned offline from many small training runs.

``trajectories`` holds what the runs left behind, ``policy`` the networks, ``cql`` how they learn, ``environment`` how a
model is scored, ``simulator`` a model of training in which the best schedule can be computed.
"""

from __future__ import annotations

from latewood.language.mixing_agent.cql import AgentRecipe, conservative_q, warm_start
from latewood.language.mixing_agent.policy import MixingAgent, Shape, load_agent
from latewood.language.mixing_agent.trajectories import Domains, Trajectories, Trajectory, sample_mixtures

__all__ = [
    "AgentRecipe",
    "Domains",
    "MixingAgent",
    "Shape",
    "Trajectories",
    "Trajectory",
    "conservative_q",
    "load_agent",
    "sample_mixtures",
    "warm_start",
]
