"""How uncertain a classifier is about several views of one image."""

from __future__ import annotations

import torch
from torch import Tensor

#: Added inside the logarithm, as ConTraCon's code does.
_OFFSET = 1e-4


def view_entropy(logits: Tensor, weights: Tensor | None = None) -> Tensor:
    """The entropy (n,) of the prediction from logits (views, n, classes) that are first averaged over the views.

    ``weights`` (views,) count some views more than others. The averaged logits make one prediction, whose entropy
    ``-sum p log(p + 1e-4)`` falls where the views agree; an average of entropies would not see whether they do.

    >>> agreeing, opposed = torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    >>> same, mixed = view_entropy(torch.stack([agreeing, agreeing])), view_entropy(torch.stack([agreeing, opposed]))
    >>> round(same.item(), 2), round(mixed.item(), 2)
    (0.09, 0.69)
    """
    shares = logits.new_ones(len(logits)) if weights is None else weights.to(logits)
    averaged = torch.einsum("v,vnc->nc", shares / shares.sum(), logits)
    chances = averaged.softmax(1)
    return -(chances * (chances + _OFFSET).log()).sum(1)
