"""Classifier alignment: heads that were trained apart are balanced on features drawn from one Gaussian for each class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from latewood.core.errors import ConfigurationError
from latewood.parts.gaussians import Gaussians
from latewood.parts.heads import LinearHead


@dataclass(frozen=True)
class Alignment:
    """How a head is aligned after each arrival (Zhang et al., 2023).

    ``passes`` times, ``samples`` features of each class are drawn, shuffled, and seen by SGD in batches of ``samples``, with
    a rate that falls from ``rate`` as a cosine over the passes. ``temperature`` normalises the logits as
    :func:`normalised` does (``None``: they stay as they are). The means of older classes are multiplied by what rises
    from ``shrink`` to 1 for the newest; 1 leaves them.
    """

    passes: int = 5
    samples: int = 256
    rate: float = 0.01
    momentum: float = 0.9
    decay: float = 5e-4
    temperature: float | None = 0.1
    shrink: float = 0.9

    def __post_init__(self) -> None:
        for name in ("passes", "samples"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"alignment.{name} must be at least 1, but it is {getattr(self, name)}.")
        if not 0 < self.shrink <= 1:
            raise ConfigurationError(f"alignment.shrink must lie above 0 and at most at 1, but it is {self.shrink}.")
        if self.temperature is not None and not self.temperature > 0:
            raise ConfigurationError(f"alignment.temperature must be above 0, but it is {self.temperature}.")


def align(head: LinearHead, gaussians: Gaussians, settings: Alignment, generator: torch.Generator) -> None:
    """Train ``head``, and nothing else, to tell the classes of ``gaussians`` apart on features drawn from them.

    >>> gaussians = Gaussians(2)
    >>> gaussians.fit(torch.eye(2).repeat(10, 1), torch.tensor([0, 1] * 10), classes=2)
    >>> head = LinearHead(2)
    >>> head.grow(2, torch.Generator().manual_seed(0))
    >>> align(head, gaussians, Alignment(), torch.Generator().manual_seed(0))
    >>> head(torch.eye(2)).argmax(1).tolist()
    [0, 1]
    """
    # Drawn where the head is, since millions of normal numbers from the CPU's generator would take longer than all else.
    chance = torch.Generator(head.weight.device).manual_seed(int(torch.randint(2**62, (), generator=generator)))
    tasks, shrink = gaussians.arrivals.to(head.weight.device), mean_shrink(gaussians.arrivals, settings.shrink)
    optimizer = torch.optim.SGD(head.parameters(), lr=settings.rate, momentum=settings.momentum, weight_decay=settings.decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.passes)
    with torch.enable_grad():
        for _ in range(settings.passes):
            features, columns = gaussians.draw(settings.samples, chance, shrink)
            order = torch.randperm(len(columns), generator=chance, device=columns.device)
            for rows in order.split(settings.samples):
                logits = head(features[rows])
                if settings.temperature is not None:
                    logits = normalised(logits, tasks, settings.temperature)
                optimizer.zero_grad()
                F.cross_entropy(logits, columns[rows]).backward()
                optimizer.step()
            schedule.step()
    optimizer.zero_grad()


def normalised(logits: Tensor, tasks: Tensor, temperature: float) -> Tensor:
    """Logits (n, classes) divided by ``temperature`` and by the mean norm, over tasks, of each task's logits.

    ``tasks`` is the task of each class. One number for each row: it changes the confidence and never the order, and a
    head gains nothing by making one task's logits large. The norms are part of the graph.

    >>> normalised(torch.tensor([[3.0, 4.0, 1.0]]), torch.tensor([0, 0, 1]), temperature=1.0)
    tensor([[1.0000, 1.3333, 0.3333]])
    """
    members = F.one_hot(tasks).to(logits)
    # A norm of zero has no gradient: below the clamp there is none to pass on.
    norms = (logits.square() @ members).clamp(min=1e-24).sqrt() + 1e-7
    return logits / (temperature * norms.mean(1, keepdim=True))


def mean_shrink(arrivals: Tensor, least: float) -> Tensor:
    """What the mean of each class is multiplied with: ``least + (1 - least) (t + 1) / (T + 1)`` for a class of arrival ``t``
    when the newest arrival is ``T``, both counted from 0.

    >>> mean_shrink(torch.tensor([0, 0, 1]), least=0.9)
    tensor([0.9500, 0.9500, 1.0000])
    """
    share = (arrivals + 1) / (arrivals.max() + 1)
    return least + (1 - least) * share
