"""The policy and its critics: causal networks that read what was mixed so far and what came of it."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from latewood.core import checkpoint
from latewood.core.errors import CheckpointError, ConfigurationError
from latewood.language.mixing_agent.trajectories import FIELDS, Domains, domains_of, normalised

_AGENT = "mixing agent"


@dataclass(frozen=True)
class Shape:
    """How large the networks are: a causal Transformer over steps, or an MLP on a summary of them (``heads`` unused).

    >>> Shape(size="mlp", width=32).layers
    2
    """

    size: Literal["transformer", "mlp"] = "transformer"
    width: int = 128
    layers: int = 2
    heads: int = 4


def history(actions: Tensor, feedback: Tensor, steps: int) -> Tensor:
    """What is known before each action, as tokens: the action before it, the feedback on that, and the progress.

    ``actions`` is ``(..., t, K)``, ``feedback`` is normalised and ``(..., t + 1, fields)``; the result is float32
    ``(..., t + 1, K + fields + 1)``: token number t is all that is new before action number t, both counted from 0.
    """
    first = actions.new_zeros(*actions.shape[:-2], 1, actions.shape[-1])
    count = feedback.shape[-2]
    progress = (torch.arange(count, dtype=torch.float64) / steps)[:, None].expand(*feedback.shape[:-1], 1)
    return torch.cat([torch.cat([first, actions], -2).double(), feedback.double(), progress], -1).float()


def encoder(inputs: int, shape: Shape) -> nn.Module:
    """Tokens ``(n, t, inputs)`` to states ``(n, t, width)``, each from the tokens up to its own."""
    return _Attention(inputs, shape) if shape.size == "transformer" else _Summary(inputs, shape)


class _Attention(nn.Module):
    def __init__(self, inputs: int, shape: Shape) -> None:
        super().__init__()
        self.embed = nn.Linear(inputs, shape.width)
        layer = nn.TransformerEncoderLayer(
            shape.width, shape.heads, 4 * shape.width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, shape.layers, nn.LayerNorm(shape.width), enable_nested_tensor=False)

    def forward(self, tokens: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        states: Tensor = self.blocks(self.embed(tokens), mask=mask, is_causal=True)
        return states


class _Summary(nn.Module):
    """Sees the newest token and the mean of all up to it."""

    def __init__(self, inputs: int, shape: Shape) -> None:
        super().__init__()
        widths = [2 * inputs, *[shape.width] * shape.layers]
        self.layers = nn.Sequential(*(part for pair in pairwise(widths) for part in (nn.Linear(*pair), nn.GELU())))

    def forward(self, tokens: Tensor) -> Tensor:
        means = tokens.cumsum(1) / torch.arange(1, tokens.shape[1] + 1)[:, None]
        states: Tensor = self.layers(torch.cat([tokens, means], -1))
        return states


class Actor(nn.Module):
    """The policy: from a history the next mixture, at every position of it.

    >>> actor = Actor(3, Shape(width=16, layers=1))
    >>> mixtures = actor(torch.zeros(1, 4, 6), mask=torch.tensor([True, False, True]))
    >>> mixtures.shape, bool((mixtures[..., 1] == 0).all())
    (torch.Size([1, 4, 3]), True)
    """

    def __init__(self, domains: int, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = encoder(domains + len(FIELDS) + 1, shape)
        self.head = nn.Linear(shape.width, domains)

    def logits(self, tokens: Tensor) -> Tensor:
        """The shares' logarithms but for a constant, ``(n, t, K)``."""
        logits: Tensor = self.head(self.encoder(tokens))
        return logits

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Shares ``(n, t, K)``; exactly 0 where ``mask`` (bool, ``(K,)``) is false."""
        logits = self.logits(tokens)
        shares: Tensor = (logits if mask is None else logits.masked_fill(~mask, -torch.inf)).softmax(-1)
        return shares


class Critics(nn.Module):
    """Two networks of the same form that say what is still to come if an action is taken now; the lower one counts."""

    def __init__(self, domains: int, shape: Shape) -> None:
        super().__init__()
        self.one, self.other = _Critic(domains, shape), _Critic(domains, shape)

    def states(self, tokens: Tensor) -> list[Tensor]:
        """What each of them makes of a history, ``(n, t, width)``."""
        return [critic.encoder(tokens) for critic in (self.one, self.other)]

    def values(self, states: list[Tensor], actions: Tensor) -> Tensor:
        """Values ``(2, n, t, m)`` of ``m`` actions in each state, ``(n, t, m, K)``."""
        return torch.stack([critic(state, actions) for critic, state in zip((self.one, self.other), states, strict=True)])

    def forward(self, tokens: Tensor, actions: Tensor) -> Tensor:
        """Values ``(2, n, t)`` of one action in each state, ``(n, t, K)``."""
        return self.values(self.states(tokens), actions[..., None, :])[..., 0]


class _Critic(nn.Module):
    def __init__(self, domains: int, shape: Shape) -> None:
        super().__init__()
        self.encoder = encoder(domains + len(FIELDS) + 1, shape)
        # One layer on both joined, in two parts: what the state gives is the same for all actions in it.
        self.of_state = nn.Linear(shape.width, shape.width)
        self.of_action = nn.Linear(domains, shape.width, bias=False)
        self.head = nn.Sequential(nn.GELU(), nn.Linear(shape.width, shape.width), nn.GELU(), nn.Linear(shape.width, 1))

    def forward(self, states: Tensor, actions: Tensor) -> Tensor:
        values: Tensor = self.head(self.of_state(states)[..., None, :] + self.of_action(actions))
        return values[..., 0]


class MixingAgent:
    """A trained policy with what it needs to be used elsewhere: its domains, and the ``scale`` of its feedback.

    It is frozen: nothing that it is asked changes it.

    >>> agent = MixingAgent(Actor(2, Shape(width=16, layers=1)), Domains(("prose", "code"), (0, 1)), torch.ones(2))
    >>> bool(torch.isclose(agent.act(torch.empty(0, 2), torch.tensor([[-3.0, -5.0]]), steps=8).sum(), torch.ones(()).double()))
    True
    """

    def __init__(self, actor: Actor, domains: Domains, scale: Tensor) -> None:
        self.actor, self.domains, self.scale = actor.eval().requires_grad_(False), domains, scale.double()

    @torch.no_grad()
    def act(self, actions: Tensor, feedback: Tensor, steps: int, mask: Tensor | None = None) -> Tensor:
        """The next mixture, float64 ``(K,)``, given ``actions`` so far ``(t, K)`` and raw ``feedback`` ``(t + 1, fields)``.

        ``steps`` is how many steps there will be in all. What ``mask`` (bool, ``(K,)``) excludes gets exactly 0.
        """
        tokens = history(actions, normalised(feedback.double(), self.scale), steps)
        shares: Tensor = self.actor(tokens[None], mask)[0, -1].double()
        return shares / shares.sum()

    def slots(self, theirs: Domains) -> Tensor:
        """The place among the agent's domains that each of ``theirs`` takes, int64 ``(K',)``.

        Known names take their own. Otherwise, within each field, domains take the slots with the nearest centroids: no two
        the same one while there are enough (the sum of distances is least), else each the nearest, so that several
        share it. Errors: :class:`~latewood.core.errors.ConfigurationError` if that needs centroids that are missing, or
        of another vocabulary.
        """
        known = {
            (name, field): slot for slot, (name, field) in enumerate(zip(self.domains.names, self.domains.fields, strict=True))
        }
        wanted = list(zip(theirs.names, theirs.fields, strict=True))
        if all(each in known for each in wanted):
            return torch.tensor([known[each] for each in wanted])
        ours = self.domains.centroids
        if ours is None or theirs.centroids is None or ours.shape[1] != theirs.centroids.shape[1]:
            raise ConfigurationError(
                f"The agent knows the domains {', '.join(self.domains.names)}, and can place {', '.join(theirs.names)} among "
                "them only by the frequencies of their tokens, which must be of one vocabulary."
            )
        slots = torch.zeros(len(theirs), dtype=torch.int64)
        for field in range(len(FIELDS)):
            places, free = theirs.of(field), torch.tensor(self.domains.of(field))
            slots[places] = free[_nearest(torch.cdist(theirs.centroids[places].double(), ours[free].double()))]
        return slots

    def fingerprint(self) -> str:
        """A hash of the weights and the scale."""
        digest = hashlib.blake2b(digest_size=16)
        for name, value in sorted(self.actor.state_dict().items()):
            digest.update(f"{name} {tuple(value.shape)};".encode() + value.contiguous().numpy().tobytes())
        digest.update(self.scale.numpy().tobytes())
        return digest.hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write a new folder: safetensors and JSON, with checksums. :func:`load_agent` reads it."""
        state = {f"actor.{name}": value for name, value in self.actor.state_dict().items()} | {"scale": self.scale}
        if self.domains.centroids is not None:
            state["centroids"] = self.domains.centroids
        info = {"kind": _AGENT, "names": self.domains.names, "fields": self.domains.fields, "shape": asdict(self.actor.shape)}
        checkpoint.save(Path(folder), state, info)


def load_agent(folder: str | Path) -> MixingAgent:
    """The agent that :meth:`MixingAgent.save` wrote.

    Errors: :class:`~latewood.core.errors.CheckpointError` if it is missing, damaged, or something else.
    """
    state, info = checkpoint.load(Path(folder))
    if info.get("kind") != _AGENT:
        raise CheckpointError(f"{folder} holds no mixing agent.")
    domains = domains_of(state, info)
    actor = Actor(len(domains), Shape(**info["shape"]))
    actor.load_state_dict({name.removeprefix("actor."): value for name, value in state.items() if name.startswith("actor.")})
    return MixingAgent(actor, domains, state["scale"])


def _nearest(distances: Tensor) -> Tensor:
    """For each row a column."""
    if distances.shape[0] > distances.shape[1]:
        return distances.argmin(1)
    from scipy.optimize import linear_sum_assignment

    return torch.from_numpy(linear_sum_assignment(distances.numpy())[1])
