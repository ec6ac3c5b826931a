"""Replay: a fixed share of every batch is old text."""

from __future__ import annotations

from latewood.core.data import Data, concat
from latewood.core.errors import ConfigurationError
from latewood.language.learner import LanguageLearner
from latewood.language.nets.causal import CausalLM
from latewood.language.recipe import TextRecipe
from latewood.parts.memory import Reservoir


class Replay(LanguageLearner):
    """Experience replay for language models: ``share`` of each batch comes from a reservoir of ``memory`` old rows.

    Every new row is offered to the reservoir before the draw, as in Abbes et al., 2025 (arXiv 2508.01908), so it holds the
    present arrival too. New rows for each arrival don't depend on ``share``: with more replay there are more steps.

    >>> from latewood.language.nets import causal
    >>> import torch
    >>> net = causal(Data(tokens=torch.zeros(1, 8, dtype=torch.int64)), layers=1, width=16, heads=2)
    >>> Replay(net, share=0.25, recipe=TextRecipe(batch_size=16)).rows()
    12
    """

    def __init__(
        self, backbone: CausalLM, share: float = 0.25, memory: int = 10_000, recipe: TextRecipe = TextRecipe()
    ) -> None:
        super().__init__(backbone, recipe)
        self.share, self.memory = share, memory
        self.old_rows = old_rows(share, recipe.batch_size)
        self.kept = Reservoir(memory)

    def rows(self) -> int:
        return self.recipe.batch_size - self.old_rows

    def batch(self, new: Data) -> Data:
        new = new.select("tokens")
        self.kept.add(new, self.generator)
        return concat(new, self.kept.sample(self.old_rows, self.generator)) if self.old_rows else new


def old_rows(share: float, batch_size: int) -> int:
    """How many rows of a batch are replayed. Errors: ConfigurationError if that is no whole number, or leaves no new row."""
    rows = share * batch_size
    if not (0 <= share < 1 and abs(rows - round(rows)) < 1e-9):
        raise ConfigurationError(
            f"share is the replayed part of a batch, from 0 to below 1, and {share} of {batch_size} rows is no whole number."
        )
    return round(rows)
