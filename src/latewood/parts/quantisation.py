"""Vector quantisation in several codebooks: the nearest key of each, and keys that follow the data as moving averages."""

from __future__ import annotations

import torch
from torch import Tensor

#: Distances that are computed at once: 128 MB of them.
_DISTANCES = 1 << 25


def nearest_keys(heads: Tensor, keys: Tensor, usable: Tensor | None = None) -> Tensor:
    """The number of the nearest key, by Euclidean distance, of each head in its own codebook, shape ``(n, codebooks)``.

    ``heads`` has the shape ``(n, codebooks, width)``, ``keys`` ``(codebooks, pairs, width)``. Keys that are not ``usable``
    (``(codebooks, pairs)``, bool) are never the answer, unless a codebook has no other.

    >>> keys = torch.tensor([[[0.0], [1.0], [5.0]]])
    >>> nearest_keys(torch.tensor([[[0.9]], [[4.0]]]), keys).tolist()
    [[1], [2]]
    >>> nearest_keys(torch.tensor([[[0.9]]]), keys, torch.tensor([[True, False, True]])).tolist()
    [[0]]
    """
    # |h - k|^2 is |h|^2 - 2 (h k - |k|^2 / 2), and |h|^2 is the same for every key.
    offsets = -keys.square().sum(2) / 2
    if usable is not None:
        offsets = offsets.masked_fill(~usable, -torch.inf)
    rows = max(1, _DISTANCES // keys[..., 0].numel())
    found = [
        torch.baddbmm(offsets[:, None], part.transpose(0, 1), keys.transpose(1, 2)).argmax(2).T for part in heads.split(rows)
    ]
    return torch.cat(found) if found else torch.empty(heads.shape[:2], dtype=torch.int64, device=heads.device)


class MovingKeys:
    """Keys that are moving averages of the heads nearest to them (the EMA quantiser of van den Oord et al., 2017).

    Begins from ``keys`` ``(codebooks, pairs, width)``. With each batch, ``N <- decay N + (1 - decay) n`` for the number of
    heads at each key and ``M <- decay M + (1 - decay) sum`` for their sum; the key is ``M / N``, where ``epsilon`` is shared
    out over the codebook so that no ``N`` is zero. A key whose ``N`` falls below ``least`` is moved to a random head of the
    batch. It needs no labels.

    >>> moving = MovingKeys(torch.zeros(1, 2, 1), decay=0.0, least=0.0, epsilon=0.0)
    >>> moving.update(torch.tensor([[[1.0]], [[3.0]]]), torch.Generator())
    >>> moving.keys[0, 0]
    tensor([2.])
    """

    def __init__(self, keys: Tensor, decay: float = 0.95, least: float = 0.0, epsilon: float = 1e-5) -> None:
        self.keys = keys
        self.decay, self.least, self.epsilon = decay, least, epsilon
        self._counts, self._sums = torch.zeros_like(keys[..., 0]), keys

    @torch.no_grad()
    def update(self, heads: Tensor, generator: torch.Generator) -> None:
        """Follow a batch of heads, shape ``(n, codebooks, width)``."""
        codebooks, pairs, width = self.keys.shape
        places = (nearest_keys(heads, self.keys) + pairs * torch.arange(codebooks, device=heads.device)).flatten()
        counts = torch.bincount(places, minlength=codebooks * pairs).view(codebooks, pairs).to(heads)
        sums = torch.zeros_like(self.keys).view(-1, width).index_add_(0, places, heads.reshape(-1, width))
        self._counts = self.decay * self._counts + (1 - self.decay) * counts
        self._sums = self.decay * self._sums + (1 - self.decay) * sums.view_as(self.keys)
        total = self._counts.sum(1, keepdim=True)
        smooth = (self._counts + self.epsilon) / (total + pairs * self.epsilon) * total
        keys, dead = self._sums / smooth[..., None], self._counts < self.least
        codebook, _ = dead.nonzero(as_tuple=True)
        chosen = torch.randint(len(heads), (len(codebook),), generator=generator).to(heads.device)
        keys[dead] = heads[chosen, codebook]
        self.keys = keys
