"""What a model is scored on between steps: rows of each domain that are kept apart, and of which no trace is trained on."""

from __future__ import annotations

import torch
from torch import Tensor

from latewood.core.data import Data
from latewood.core.errors import DataError

#: A training row that shares so many tokens in a row with a row kept apart counts as the same text.
SHARED_TOKENS = 32
_CHUNK = 1024


def split(data: Data, apart: int, generator: torch.Generator) -> tuple[Data, Data]:
    """Rows to train on, and ``apart`` rows, drawn at random, to score on; both with the column ``tokens`` alone."""
    data = data.select("tokens")
    order = torch.randperm(len(data), generator=generator)
    return data[order[apart:].sort().values], data[order[:apart].sort().values]


def without_traces(train: Data, held: Data, name: str) -> Data:
    """The rows of ``train`` in which no text of ``held`` occurs, see :func:`traces`.

    Errors: :class:`~latewood.core.errors.DataError` if none is left.
    """
    found = traces(train, held) if len(train) else torch.ones(0, dtype=torch.bool)
    if bool(found.all()):
        raise DataError(
            f"No row of {name!r} is left to train on that shares no text with the {len(held)} rows that are kept apart to "
            "score on; give more text, or keep fewer apart."
        )
    return train[~found] if bool(found.any()) else train


def traces(train: Data, held: Data, shared: int = SHARED_TOKENS) -> Tensor:
    """Which rows of ``train`` share ``shared`` tokens in a row (or a whole row, if that is shorter) with one of ``held``.

    >>> held = Data(tokens=torch.tensor([[1, 2, 3, 4]], dtype=torch.int32))
    >>> traces(Data(tokens=torch.tensor([[9, 2, 3, 4], [1, 2, 9, 4]], dtype=torch.int32)), held, shared=3).tolist()
    [True, False]
    """
    known = torch.cat([_runs(part.tensor("tokens"), shared).flatten() for part in held.batches(_CHUNK)]).unique()
    found = [torch.isin(_runs(part.tensor("tokens"), shared), known).any(1) for part in train.batches(_CHUNK)]
    return torch.cat(found)


def _runs(tokens: Tensor, length: int) -> Tensor:
    """A number for each run of ``length`` tokens in each row, the same for the same run; int64 ``(n, runs)``."""
    windows = tokens.long().unfold(1, min(length, tokens.shape[1]), 1)
    # Overflow wraps around, which is as good as any other way to mix.
    factors = torch.randint(-(2**62), 2**62, (windows.shape[2],), generator=torch.Generator().manual_seed(0))
    return ((windows + 1) * factors).sum(-1)


def frequencies(data: Data, vocabulary: int) -> Tensor:
    """How often each token occurs, float64 ``(vocabulary,)``, adding up to 1."""
    counts = torch.zeros(vocabulary, dtype=torch.float64)
    for part in data.batches(_CHUNK):
        counts += torch.bincount(part.tensor("tokens").flatten().long(), minlength=vocabulary)
    return counts / counts.sum()


def affordable(shares: Tensor, left: Tensor, rows: int) -> Tensor:
    """The nearest to ``shares`` (K,) that does not ask for more than is ``left`` (K,) of each domain in ``rows`` rows.

    What a domain lacks goes to the others in proportion to their shares. Of each a row is spared, by which the rows that
    a domain gives may exceed its share. There must be enough in all.

    >>> affordable(torch.tensor([0.6, 0.2, 0.2]), torch.tensor([11, 500, 500]), rows=100)
    tensor([0.1000, 0.4500, 0.4500])
    """
    most = (left - 1).clamp_min(0) / rows
    result, free = torch.zeros_like(shares), torch.ones_like(shares, dtype=torch.bool)
    while True:
        wanted = shares * free
        wanted = wanted if wanted.sum() > 0 else most * free
        wanted = wanted * (1 - result.sum()) / wanted.sum()
        short = free & (wanted > most)
        if not short.any():
            return result + wanted
        result[short], free = most.to(result)[short], free & ~short
