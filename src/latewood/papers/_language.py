"""Language models for claim checks: small ones over bytes, trained from scratch on local text once, and then continued."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch

from latewood.core import checkpoint
from latewood.core.data import Data
from latewood.core.errors import CheckpointError
from latewood.core.experience import Experience
from latewood.core.files import cache_folder
from latewood.core.seeding import seeded
from latewood.language.corpora import join, load_blocks
from latewood.language.learners.continue_ import Continue
from latewood.language.mixture import Mixture, by_source
from latewood.language.nets.causal import CausalLM, causal
from latewood.language.probes import HeldOutLoss
from latewood.language.recipe import TextRecipe


def rows(*corpora: str, length: int = 128, most: int | None = None) -> Data:
    """Training rows of corpora, at ``most`` so many of each, with the column ``source``."""
    return join({name: load_blocks(name, length=length, blocks=most).train for name in corpora})


def held_out(name: str, *, length: int = 128, most: int | None = 64) -> HeldOutLoss:
    """The loss on held-out text of a corpus."""
    return HeldOutLoss(name, load_blocks(name, length=length).held_out[: most or None], since=0)


class _Mixed(Continue):
    """Trains on the sources of an arrival at shares that differ from their sizes."""

    def __init__(self, backbone: CausalLM, shares: Mapping[str, float] | None, recipe: TextRecipe) -> None:
        super().__init__(backbone, recipe)
        self.shares = shares

    def mixture(self, experience: Experience) -> Mixture:
        return Mixture(by_source(experience.train), self.shares, batch_size=self.rows(), seed=self.mixture_seed)


def base_model(
    data: Data,
    *,
    seed: int,
    shares: Mapping[str, float] | None = None,
    steps: int = 1500,
    layers: int = 2,
    width: int = 64,
    heads: int = 4,
    batch_size: int = 16,
    lr: float = 2e-3,
) -> CausalLM:
    """A Llama over bytes, trained from random weights on ``data`` (the rows of several corpora at ``shares``; default: by
    their sizes) with a warm-up and a cosine down to a tenth. A minute the first time; then it is kept in
    ``LATEWOOD_CACHE`` and every call gives a copy of its own.
    """
    with seeded(seed, "initial weights"):
        model = causal(data[:1], layers=layers, width=width, heads=heads)
    sizes = (layers, width, heads, batch_size, steps)
    facts = (data.to("cpu").fingerprint(), shares, seed, sizes, lr, torch.__version__)
    name = hashlib.blake2b(repr(facts).encode(), digest_size=12).hexdigest()
    folder = cache_folder("language-models")
    if folder:
        try:
            model.load_state_dict(checkpoint.load(folder / name)[0])
            return model.eval()
        except CheckpointError:
            pass  # not trained yet
    learner = _Mixed(model, shares, TextRecipe(batch_size=batch_size, steps=steps, lr=lr, warmup=0.02))
    learner.generator.manual_seed(seed)
    learner.learn(Experience(0, data))
    if folder and not (folder / name).exists():
        checkpoint.save(folder / name, checkpoint.tensors_of(model), {"facts": repr(facts)})
    return model.eval()
