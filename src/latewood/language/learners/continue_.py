"""Continue: plain continual pre-training on whatever arrives; what every other method must beat."""

from __future__ import annotations

from latewood.language.learner import LanguageLearner


class Continue(LanguageLearner):
    """Trains on each arrival alone, one after the other: the floor, and what forgetting is measured against.

    >>> import torch
    >>> from latewood.core.data import Data
    >>> from latewood.core.experience import Experience
    >>> from latewood.language.nets import causal
    >>> from latewood.language.recipe import TextRecipe
    >>> text = torch.tensor(list(b"late wood, early wood, " * 40)).reshape(-1, 23).int()
    >>> arrival = Data(tokens=text)
    >>> learner = Continue(causal(arrival[:1], layers=1, width=16, heads=2), TextRecipe(steps=30, lr=0.01))
    >>> before = learner.predict(arrival).mean()
    >>> learner.learn(Experience(0, arrival))
    >>> bool(learner.predict(arrival).mean() < 0.5 * before)
    True
    """
