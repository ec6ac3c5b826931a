"""Choosing exemplars by herding on the features of the network as it is now."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from latewood.core.data import Data, concat
from latewood.core.errors import ConfigurationError
from latewood.core.experience import Experience
from latewood.parts.heads import Classifier
from latewood.parts.memory import Exemplars, herding


@torch.no_grad()
def normalised_features(net: Classifier, data: Data, batch_size: int = 512) -> Tensor:
    """L2-normalised features of rows in evaluation mode (no augmentation), shape ``(n, width)``."""
    net.eval()
    if not len(data):
        return torch.empty(0, net.backbone.width, device=net.head.weight.device)
    return torch.cat([F.normalize(net.backbone(net.prepare(batch))) for batch in data.batches(batch_size)])


def choose_exemplars(kept: Exemplars, net: Classifier, experience: Experience) -> None:
    """Share the memory equally among all classes seen: cut the old ones to their first, herd those of the arrival.

    A class that returns is herded again from its new samples and its old exemplars together.
    """
    share = kept.capacity // len(net.classes)
    if share == 0:
        raise ConfigurationError(f"A memory of {kept.capacity} has no room for {len(net.classes)} classes; make it larger.")
    kept.reduce(share)
    labels = experience.train.tensor("label")
    for label in labels.unique().tolist():
        pool = experience.train[labels == label].to(net.head.weight.device)
        old = kept.take_class(label)
        pool = concat(old, pool) if len(old) else pool
        kept.add_class(pool[herding(normalised_features(net, pool), share)])
