"""The supervised contrastive loss: what carries the same label is pulled together, all else apart."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from latewood.core.errors import DataError

#: The temperature at which the loss is scaled by 1 (Khosla et al., 2020, and all code that follows theirs).
_BASE_TEMPERATURE = 0.07


def supervised_contrastive(projections: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    """SupCon (Khosla et al., 2020, their ``L_out``): the mean over rows ``i`` of

    ``-(temperature / 0.07) mean_{a in A(i)} log( exp(z_i z_a / temperature) / sum_{j != i} exp(z_i z_j / temperature) )``

    where ``z`` are ``projections`` (n, width), brought to length one, and ``A(i)`` the other rows with the label of row ``i``
    (``labels``, shape (n,)). Rows are views of images: with two views of each, no row is alone with its label. One that
    is adds nothing.

    Errors: :class:`~latewood.core.errors.DataError` for fewer than two rows, which leave nothing to compare.

    >>> views = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    >>> apart = supervised_contrastive(views, torch.tensor([0, 0, 1, 1]))
    >>> bool(apart < supervised_contrastive(views, torch.tensor([0, 1, 0, 1])))
    True
    """
    if len(projections) < 2:
        raise DataError("The contrastive loss compares rows, so it needs at least two of them.")
    directions = F.normalize(projections)
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    similarities = (directions @ directions.T / temperature).masked_fill(itself, -torch.inf)
    positive = (labels[:, None] == labels[None, :]) & ~itself
    # Minus infinity times zero would be NaN where a row meets itself.
    log_shares = F.log_softmax(similarities, dim=1).masked_fill(~positive, 0.0)
    means = log_shares.sum(1) / positive.sum(1).clamp(min=1)
    return -(temperature / _BASE_TEMPERATURE) * means.mean()
