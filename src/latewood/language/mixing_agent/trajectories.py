"""What training runs under random mixtures leave behind: the mixture of each step, and what it did to both fields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latewood.core import checkpoint
from latewood.core.errors import CheckpointError, ConfigurationError, DataError
from latewood.core.seeding import seeded

#: The fields in the order of the feedback: what the model knows already, and what it is to acquire.
FIELDS = ("source", "target")

_TRAJECTORIES = "mixture trajectories"


@dataclass(frozen=True)
class Domains:
    """The domains that a mixture has shares of: their ``names``, and the field of each, a place in :data:`FIELDS`.

    ``centroids`` are the frequencies of tokens in each domain, float64 ``(K, vocabulary)``; without them domains are
    recognised by their names alone.

    >>> domains = Domains(("prose", "code"), (0, 1))
    >>> len(domains), domains.of(1)
    (2, [1])
    """

    names: tuple[str, ...]
    fields: tuple[int, ...]
    centroids: Tensor | None = None

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.names) or len(self.names) != len(self.fields):
            raise ConfigurationError("Each domain needs a name of its own and a field.")
        if set(self.fields) != set(range(len(FIELDS))):
            raise ConfigurationError(
                "There must be at least one domain of the source field (0) and one of the target field (1)."
            )
        if self.centroids is not None and (self.centroids.dim() != 2 or len(self.centroids) != len(self.names)):
            raise ConfigurationError(
                f"Centroids are a row for each of {len(self.names)} domains, but have the shape {tuple(self.centroids.shape)}."
            )

    def __len__(self) -> int:
        return len(self.names)

    def of(self, field: int) -> list[int]:
        """The places of the domains of one field."""
        return [place for place, mine in enumerate(self.fields) if mine == field]


@dataclass(frozen=True)
class Trajectory:
    """One run of T steps: ``actions`` (T, K), the shares of the domains in each step, and ``feedback`` (T + 1, fields), the
    raw scores before the first step and after each, higher is better; both float64.

    Errors: :class:`~latewood.core.errors.DataError` if an action is no mixture, or the lengths don't fit.

    >>> run = Trajectory(torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.zeros(3, 2))
    >>> run.steps
    2
    """

    actions: Tensor
    feedback: Tensor

    def __post_init__(self) -> None:
        if self.actions.dim() != 2 or self.feedback.shape != (len(self.actions) + 1, len(FIELDS)):
            raise DataError(
                f"A trajectory of T steps has actions (T, K) and feedback (T + 1, {len(FIELDS)}), but these have the shapes "
                f"{tuple(self.actions.shape)} and {tuple(self.feedback.shape)}."
            )
        if bool((self.actions < 0).any()) or bool(((self.actions.sum(1) - 1).abs() > 1e-5).any()):
            raise DataError("The shares of each step of a trajectory must be at least 0 and add up to 1.")
        if not bool(torch.isfinite(self.feedback).all()):
            raise DataError("The feedback of a trajectory holds NaN or infinity.")

    @property
    def steps(self) -> int:
        """The number of steps, T."""
        return len(self.actions)


@dataclass(frozen=True)
class Trajectories:
    """N runs over the same domains, all from the same weights: ``actions`` (N, T, K), ``feedback`` (N, T + 1, fields).

    >>> runs = [Trajectory(torch.tensor([[0.5, 0.5]]), torch.tensor([[-3.0, -4.0], [-2.0, -4.0 + i]])) for i in range(3)]
    >>> data = Trajectories.of(Domains(("prose", "code"), (0, 1)), runs)
    >>> len(data), data.rewards((0.0, 1.0)).flatten().tolist()
    (3, [0.0, 1.0, 2.0])
    """

    domains: Domains
    actions: Tensor
    feedback: Tensor

    @classmethod
    def of(cls, domains: Domains, runs: Sequence[Trajectory]) -> Trajectories:
        """Several runs as one. Errors: :class:`~latewood.core.errors.DataError` if there is none, or they differ in shape."""
        if not runs or len({run.actions.shape for run in runs}) > 1 or runs[0].actions.shape[1] != len(domains):
            raise DataError(f"Trajectories need at least one run, all of equally many steps and with {len(domains)} domains.")
        actions, feedback = (
            torch.stack(list(part)).double() for part in zip(*((r.actions, r.feedback) for r in runs), strict=True)
        )
        return cls(domains, actions, feedback)

    def __len__(self) -> int:
        return len(self.actions)

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> Trajectories:
        return Trajectories(self.domains, self.actions[rows], self.feedback[rows])

    @property
    def steps(self) -> int:
        """The number of steps of each run, T."""
        return self.actions.shape[1]

    @property
    def scale(self) -> Tensor:
        """For each field the standard deviation of the improvement since the start, float64 ``(fields,)``.

        Errors: :class:`~latewood.core.errors.DataError` if a field is the same everywhere: nothing can be learned from it.
        """
        improvement = self.feedback[:, 1:] - self.feedback[:, :1]
        scale = improvement.flatten(0, 1).std(0)
        if not bool((scale > 0).all()):
            raise DataError("The feedback of a field is the same in all steps of all runs, so that there is nothing to learn.")
        return scale

    def rewards(self, weights: tuple[float, float] = (1.0, 1.0), scale: Tensor | None = None) -> Tensor:
        """The weighted improvement in each step, in units of ``scale`` (default: as it is), float64 ``(N, T)``."""
        feedback = normalised(self.feedback, torch.ones(len(FIELDS)) if scale is None else scale)
        return feedback.diff(dim=1) @ torch.tensor(weights, dtype=torch.float64)

    def save(self, folder: str | Path) -> None:
        """Write them as a new folder: safetensors and JSON, with checksums."""
        centroids = {} if self.domains.centroids is None else {"centroids": self.domains.centroids}
        info = {"kind": _TRAJECTORIES, "names": self.domains.names, "fields": self.domains.fields}
        checkpoint.save(Path(folder), {"actions": self.actions, "feedback": self.feedback, **centroids}, info)

    @classmethod
    def load(cls, folder: str | Path) -> Trajectories:
        """What :meth:`save` wrote. Errors: :class:`~latewood.core.errors.CheckpointError` if it is damaged or another thing."""
        state, info = checkpoint.load(Path(folder))
        if info.get("kind") != _TRAJECTORIES:
            raise CheckpointError(f"{folder} holds no trajectories of mixtures.")
        return cls(domains_of(state, info), state["actions"], state["feedback"])


def domains_of(state: dict[str, Tensor], info: dict[str, Any]) -> Domains:
    """The domains as a checkpoint tells them."""
    return Domains(tuple(info["names"]), tuple(info["fields"]), state.get("centroids"))


def normalised(feedback: Tensor, scale: Tensor) -> Tensor:
    """Feedback ``(..., T + 1, fields)`` as improvement since the start of each run, in units of ``scale``."""
    return (feedback - feedback[..., :1, :]) / scale


def returns(rewards: Tensor, gamma: float) -> Tensor:
    """What is still to come from each step on, discounted: ``(..., T)``, as ``rewards``.

    >>> returns(torch.tensor([1.0, 1.0, 1.0]), 0.5).tolist()
    [1.75, 1.5, 1.0]
    """
    result = rewards.clone()
    for step in range(rewards.shape[-1] - 2, -1, -1):
        result[..., step] += gamma * result[..., step + 1]
    return result


def sample_mixtures(
    domains: Domains, steps: int, count: int, *, natural: Sequence[float] | None = None, seed: int = 0
) -> list[Tensor]:
    """Random sequences of mixtures that cover the space, float64 ``(steps, K)`` each.

    The first is constant at the ``natural`` shares (default: all equal). The others are in turn a constant mixture from the
    uniform distribution; a ramp, and then a step, of the target field's share between two values from 0.05 to 0.9, with
    topics within both fields tilted at random; and a random walk of the logits, by steps of a standard deviation from 0.3
    to 1.

    >>> mixtures = sample_mixtures(Domains(("prose", "code"), (0, 1)), steps=8, count=5, natural=(0.9, 0.1))
    >>> mixtures[0][3].tolist(), bool(torch.equal(mixtures[1][0], mixtures[1][7]))
    ([0.9, 0.1], True)
    """
    shares = torch.tensor(natural or [1 / len(domains)] * len(domains), dtype=torch.float64)
    if len(shares) != len(domains) or bool((shares < 0).any()) or abs(float(shares.sum()) - 1) > 1e-6:
        raise ConfigurationError(f"The natural shares must be one for each of {len(domains)} domains, and add up to 1.")
    kinds = (_constant, _ramp, _jump, _walk)
    with seeded("mixtures", seed):
        random = [kinds[number % len(kinds)](domains, steps, shares) for number in range(count - 1)]
    return [shares.expand(steps, -1).clone(), *random][:count]


def _constant(domains: Domains, steps: int, natural: Tensor) -> Tensor:
    uniform = torch.distributions.Dirichlet(torch.ones(len(domains), dtype=torch.float64))
    return uniform.sample().expand(steps, -1).clone()


def _ramp(domains: Domains, steps: int, natural: Tensor) -> Tensor:
    return _tilted(domains, torch.linspace(0, 1, steps, dtype=torch.float64), natural)


def _jump(domains: Domains, steps: int, natural: Tensor) -> Tensor:
    when = int(torch.randint(1, max(2, steps), ()))
    return _tilted(domains, (torch.arange(steps) >= when).double(), natural)


def _tilted(domains: Domains, progress: Tensor, natural: Tensor) -> Tensor:
    """The target field's share goes from one value to another, as ``progress`` goes from 0 to 1."""
    first, last = 0.05 + 0.85 * torch.rand(2, dtype=torch.float64)
    target = first + (last - first) * progress
    mixture = torch.zeros(len(progress), len(domains), dtype=torch.float64)
    for field, share in enumerate((1 - target, target)):
        places = domains.of(field)
        tilt = natural[places].clamp_min(1e-3).log() + torch.randn(len(places), dtype=torch.float64)
        mixture[:, places] = share[:, None] * tilt.softmax(0)
    return mixture


def _walk(domains: Domains, steps: int, natural: Tensor) -> Tensor:
    size = 0.3 + 0.7 * torch.rand((), dtype=torch.float64)
    moves = size * torch.randn(steps, len(domains), dtype=torch.float64)
    moves[0] = torch.randn(len(domains), dtype=torch.float64)
    return moves.cumsum(0).softmax(1)
