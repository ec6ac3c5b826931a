"""Outcomes of experiments, each from plain numbers or texts: one value for each item, so that items can be resampled."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latewood.core.errors import DataError

Values = NDArray[np.float64]

#: From this recall on, a text counts as leaked.
LEAKED = 0.9


def likelihood(nats: ArrayLike) -> Values:
    """The probability of each whole target, ``exp(-nats)``; its mean is a controller's probe value.

    ``nats`` are the summed negative log-likelihoods of the targets, ``(n,)``, as a language learner predicts them.

    >>> likelihood([0.0, np.log(4)]).mean()
    np.float64(0.625)
    """
    return np.exp(-np.asarray(nats, np.float64))


def contained(answer: str, target: str) -> float:
    """1 if the target stands in the answer, letter for letter, else 0."""
    return float(target.strip() in answer)


def partial_ratio(answer: str, target: str) -> float:
    """How near any stretch of the answer comes to the target: 1 less the letters to change, over those of the target.

    >>> partial_ratio("its capital is Tirandol, they say", "Tirandel")
    0.875
    """
    if not target:
        raise DataError("A target needs at least one character to be compared with.")
    # Sellers: edit distance where the stretch may begin and end anywhere in the answer.
    letters = np.array([ord(letter) for letter in answer], np.int64)
    places = np.arange(len(letters) + 1)
    costs = np.zeros(len(letters) + 1, np.int64)
    for number, letter in enumerate(target, 1):
        replaced = costs[:-1] + (letters != ord(letter))
        below = np.concatenate([[number], np.minimum(replaced, costs[1:] + 1)])
        costs = np.minimum.accumulate(below - places) + places
    return float(1 - costs.min() / len(target))


def recall(answer: str, target: str) -> float:
    """The share of the target's words that stand in the answer in the same order (the recall of ROUGE-L)."""
    wanted, given = target.split(), answer.split()
    if not wanted:
        raise DataError("A target needs at least one word for a recall.")
    longest = [0] * (len(given) + 1)
    for word in wanted:
        diagonal = 0
        for place, other in enumerate(given, 1):
            above = longest[place]
            longest[place] = diagonal + 1 if word == other else max(above, longest[place - 1])
            diagonal = above
    return longest[-1] / len(wanted)


def leaks(samples: Sequence[str], target: str) -> float:
    """1 if one of the samples tells the target nearly word for word (:data:`LEAKED`), else 0."""
    return float(any(recall(sample, target) > LEAKED for sample in samples))


def is_garbage(answer: str, words: Collection[str]) -> float:
    """1 if fewer than half of an answer's words are known ones, or it has none, else 0.

    >>> is_garbage("qx zzv the", {"the", "cat"}), is_garbage("The cat.", {"the", "cat"})
    (1.0, 0.0)
    """
    given = [word.strip(".,;:!?\"'()").lower() for word in answer.split()]
    return float(2 * sum(word in words for word in given) < len(given) or not given)


def membership(members: ArrayLike, strangers: ArrayLike, rate: float = 0.01) -> Values:
    """Whether each member is told from strangers by its loss, 0 or 1, at a false positive rate of at most ``rate``.

    ``members`` and ``strangers`` are losses of what was and of what was not inserted, ``(n,)`` and ``(m,)``; the mean is
    the true positive rate. The threshold is the strangers' quantile: fewer than ``1 / rate`` of them allow no false positive.

    >>> membership([1.0, 2.5, 0.5], [2.0, 3.0, 4.0]).mean().round(3)
    np.float64(0.667)
    """
    mine, others = np.asarray(members, np.float64), np.sort(np.asarray(strangers, np.float64))
    if not len(others) or not 0 <= rate < 1:
        raise DataError(
            f"Membership needs strangers to compare with and a rate from 0 to below 1, not {len(others)} and {rate}."
        )
    threshold = others[int(rate * len(others))]
    found: Values = (mine < threshold).astype(np.float64)
    return found
