"""Domain-incremental over corpora of text: they arrive one after the other, alone or several together."""

from __future__ import annotations

import torch

from latewood.core.errors import ConfigurationError
from latewood.core.experience import Experience
from latewood.core.seeding import generator
from latewood.core.stream import Stream
from latewood.language.corpora import join, load_blocks, load_tokenizer
from latewood.language.probes import HeldOutLoss


def text(
    dataset: str,
    *,
    tokenizer: str = "bytes",
    length: int = 256,
    blocks: int | None = None,
    held_out: int | None = None,
    shuffle: bool = False,
    seed: int = 0,
) -> Stream:
    """One arrival for each of the corpora that ``dataset`` names, separated by commas: ``text-en,fr,de``.

    Each is what :func:`~latewood.language.corpora.load_corpus` finds under that name, as rows of ``length`` tokens of
    ``tokenizer`` (``bytes``, or a checkpoint). Corpora that are joined by ``+`` arrive together: ``text-en+fr,python``.
    ``blocks`` is the most rows of a corpus, ``held_out`` the most in its probe (default: all); ``en@500`` sets the
    former for one corpus. Arrivals come in the order of ``dataset``, with ``shuffle`` in a random one that ``seed`` decides.
    A corpus that is named twice arrives twice. What arrives has the columns ``tokens``, ``bytes`` and ``source``, the
    name of the corpus of each row.

    One probe for each corpus: its held-out part, of which nothing is ever trained on. Errors:
    :class:`~latewood.core.errors.ConfigurationError` for no name, or numbers that don't fit; and what
    :func:`~latewood.language.corpora.load_blocks` says of a corpus.

    >>> stream = text("python", length=64, blocks=100, held_out=10)
    >>> stream[0].train["tokens"].shape, stream.probes[0].name
    (torch.Size([100, 64]), 'python')
    """
    arrivals = [_arrival(together, blocks) for together in dataset.split(",") if together.strip()]
    if not arrivals:
        raise ConfigurationError("A text stream needs the names of its corpora, separated by commas, such as text-en,fr.")
    if shuffle:
        arrivals = [arrivals[i] for i in torch.randperm(len(arrivals), generator=generator(seed, "text")).tolist()]
    tokens = load_tokenizer(tokenizer)
    parts = [part for arrival in arrivals for part in arrival]
    loaded = {
        (name, most): load_blocks(name, tokenizer=tokens, length=length, blocks=most, held_out=held_out)
        for name, most in dict.fromkeys(parts)
    }

    def build(step: int) -> Experience:
        return Experience(step, join({name: loaded[name, most].train for name, most in arrivals[step]}))

    first: dict[str, int] = {}
    for step, arrival in enumerate(arrivals):
        for name, _ in arrival:
            first.setdefault(name, step)
    held = {name: blocks.held_out for (name, _), blocks in reversed(loaded.items())}
    probes = [HeldOutLoss(name, held[name], since=step) for name, step in first.items()]
    config = {
        "arrivals": [[[name, most] for name, most in arrival] for arrival in arrivals],
        "contents": {_label(*part): [b.train.fingerprint(), b.held_out.fingerprint()] for part, b in loaded.items()},
        "tokenizer": {"name": tokens.name, "size": tokens.size, "end": tokens.end, "fingerprint": tokens.fingerprint},
        **{"length": length, "held_out": held_out, "shuffle": shuffle, "seed": seed},
    }
    return Stream(f"text-{dataset}", len(arrivals), build, probes, config=config, wing="language")


def _label(name: str, most: int | None) -> str:
    return name if most is None else f"{name}@{most}"


def _arrival(together: str, blocks: int | None) -> list[tuple[str, int | None]]:
    """The corpora that arrive together, and the most rows of each: ``en@500+fr``."""
    parts = [_part(part.strip(), blocks) for part in together.split("+")]
    names = [name for name, _ in parts]
    if "" in names or len(set(names)) < len(names):
        raise ConfigurationError(f"Corpora that arrive together need different names, but they are {together.strip()!r}.")
    return parts


def _part(part: str, blocks: int | None) -> tuple[str, int | None]:
    name, mark, most = part.rpartition("@")
    if not mark:
        return part, blocks
    if not name or not most.isdecimal() or int(most) < 1:
        raise ConfigurationError(f"Behind the @ of {part!r} stands the most rows of that corpus, such as en@500.")
    return name, int(most)
