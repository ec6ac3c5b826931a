"""Continual pre-training in two numbers: a world small enough that its best schedule can be computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from latewood.language.mixing_agent.trajectories import Domains, Trajectory

_GRID = 41


@dataclass(frozen=True)
class Simulator:
    """A model with two skills from 0 to 1: source, which it has, and target, which it is to acquire.

    Text of the source field restores the source skill; text of the target field builds up the target skill, and wears
    down the source skill unless its domain overlaps with it. Both gain less, the more there is; and the more source skill
    there is, the more is lost. So it pays to learn first and to restore afterwards.

    >>> world = Simulator()
    >>> run = world.run(lambda actions, feedback: torch.full((6,), 1 / 6, dtype=torch.float64))
    >>> run.feedback.shape
    torch.Size([9, 2])
    """

    steps: int = 8
    start: tuple[float, float] = (0.7, 0.0)
    restoring: float = 0.4
    wearing: float = 0.5
    acquiring: float = 0.5
    quality: tuple[float, ...] = (1.0, 0.7, 0.4, 1.0, 0.7, 0.4)
    overlap: tuple[float, ...] = (0.0, 0.0, 0.0, 0.1, 0.3, 0.8)

    @property
    def domains(self) -> Domains:
        """Three topics of each field."""
        return Domains(("news", "essays", "forums", "proofs", "lessons", "puzzles"), (0, 0, 0, 1, 1, 1))

    def after(self, skills: Tensor, actions: Tensor) -> Tensor:
        """The skills ``(..., 2)`` after a step under ``actions`` (..., K)."""
        quality, overlap = (torch.tensor(values, dtype=torch.float64) for values in (self.quality, self.overlap))
        is_target = torch.tensor(self.domains.fields) == 1
        source, target = skills.unbind(-1)
        restored = self.restoring * (actions * quality * ~is_target).sum(-1) * (1 - source)
        worn = self.wearing * (actions * (1 - overlap) * is_target).sum(-1) * source
        acquired = self.acquiring * (actions * quality * is_target).sum(-1) * (1 - target)
        return torch.stack([source + restored - worn, target + acquired], -1)

    def run(self, choose: Callable[[Tensor, Tensor], Tensor]) -> Trajectory:
        """One run; ``choose`` gets the actions and the feedback so far, and gives the next action."""
        actions = torch.empty(0, len(self.domains), dtype=torch.float64)
        feedback = torch.tensor([self.start], dtype=torch.float64)
        for _ in range(self.steps):
            action = choose(actions, feedback)
            actions = torch.cat([actions, action[None]])
            feedback = torch.cat([feedback, self.after(feedback[-1], action)[None]])
        return Trajectory(actions, feedback)

    def best_constant(self, weights: Tensor, parts: int = 12) -> Trajectory:
        """The run under the constant mixture with the largest final ``weights`` (2,) times skills."""
        mixtures = simplex_grid(len(self.domains), parts)
        skills = torch.tensor(self.start, dtype=torch.float64).expand(len(mixtures), 2)
        for _ in range(self.steps):
            skills = self.after(skills, mixtures)
        best = mixtures[(skills @ weights).argmax()]
        return self.run(lambda actions, feedback: best)

    def best(self, weights: Tensor, parts: int = 8) -> Trajectory:
        """The run under the schedule with the largest final ``weights`` times skills, by dynamic programming backwards over
        a grid of skills, and forwards from the true ones."""
        mixtures = simplex_grid(len(self.domains), parts)
        axis = torch.linspace(0, 1, _GRID, dtype=torch.float64)
        skills = torch.cartesian_prod(axis, axis)
        values = [(skills @ weights).reshape(_GRID, _GRID)]
        for _ in range(self.steps - 1):
            reached = [_interpolated(values[0], self.after(part[:, None], mixtures)).amax(1) for part in skills.split(_GRID)]
            values.insert(0, torch.cat(reached).reshape(_GRID, _GRID))

        def choose(actions: Tensor, feedback: Tensor) -> Tensor:
            return mixtures[_interpolated(values[len(actions)], self.after(feedback[-1], mixtures)).argmax()]

        return self.run(choose)


def simplex_grid(domains: int, parts: int) -> Tensor:
    """All mixtures whose shares are multiples of 1 / ``parts``, float64 ``(n, domains)``.

    >>> simplex_grid(2, 2).tolist()
    [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]
    """
    bars = torch.tensor(list(combinations(range(parts + domains - 1), domains - 1)), dtype=torch.float64)
    edges = torch.cat([torch.full((len(bars), 1), -1.0), bars, torch.full((len(bars), 1), parts + domains - 1.0)], 1)
    return (edges.diff(dim=1) - 1).double() / parts


def _interpolated(values: Tensor, skills: Tensor) -> Tensor:
    """``values`` on the grid, at any skills ``(..., 2)``."""
    place = skills.clamp(0, 1) * (_GRID - 1)
    low = place.floor().long().clamp_max(_GRID - 2)
    (x, y), (i, j) = (place - low).unbind(-1), low.unbind(-1)
    near = values[i, j] * (1 - y) + values[i, j + 1] * y
    return near * (1 - x) + (values[i + 1, j] * (1 - y) + values[i + 1, j + 1] * y) * x
