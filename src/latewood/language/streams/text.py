"""Domain-incremental over corpora of text: one arrives after the other, and the domain is never revealed."""

from __future__ import annotations

import torch

from latewood.core.errors import ConfigurationError
from latewood.core.experience import Experience
from latewood.core.seeding import generator
from latewood.core.stream import Stream
from latewood.language.corpora import TokenBlocks, load_blocks, load_tokenizer
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
    ``tokenizer`` (``bytes``, or a checkpoint). ``blocks`` is the most rows that an arrival brings, ``held_out`` the most
    in its probe (default: all); ``en@500`` sets the former for one corpus. Corpora arrive in the order of their names
    in ``dataset``, with ``shuffle`` in a random one that ``seed`` decides. One that is named twice arrives twice.

    One probe for each corpus: its held-out part, of which nothing is ever trained on. Errors:
    :class:`~latewood.core.errors.ConfigurationError` for no name, or numbers that don't fit; and what
    :func:`~latewood.language.corpora.load_blocks` says of a corpus.

    >>> stream = text("python", length=64, blocks=100, held_out=10)
    >>> stream[0].train["tokens"].shape, stream.probes[0].name
    (torch.Size([100, 64]), 'python')
    """
    arrivals = [_arrival(part, blocks) for name in dataset.split(",") if (part := name.strip())]
    if not arrivals:
        raise ConfigurationError("A text stream needs the names of its corpora, separated by commas, such as text-en,fr.")
    if shuffle:
        arrivals = [arrivals[i] for i in torch.randperm(len(arrivals), generator=generator(seed, "text")).tolist()]
    tokens = load_tokenizer(tokenizer)
    loaded: list[TokenBlocks] = []
    for name, most in arrivals:
        same = (part for part, known in zip(loaded, arrivals, strict=False) if known == (name, most))
        loaded.append(next(same, None) or load_blocks(name, tokenizer=tokens, length=length, blocks=most, held_out=held_out))

    def build(step: int) -> Experience:
        return Experience(step, loaded[step].train)

    first: dict[str, int] = {}
    for step, (name, _) in enumerate(arrivals):
        first.setdefault(name, step)
    probes = [HeldOutLoss(name, loaded[step].held_out, since=step) for name, step in first.items()]
    config = {
        "corpora": [name for name, _ in arrivals],
        "blocks": [most for _, most in arrivals],
        "contents": [{"train": part.train.fingerprint(), "held_out": part.held_out.fingerprint()} for part in loaded],
        "tokenizer": {"name": tokens.name, "size": tokens.size, "end": tokens.end, "fingerprint": tokens.fingerprint},
        **{"length": length, "held_out": held_out, "shuffle": shuffle, "seed": seed},
    }
    return Stream(f"text-{dataset}", len(arrivals), build, probes, config=config, wing="language")


def _arrival(part: str, blocks: int | None) -> tuple[str, int | None]:
    """The name of a corpus, and the most rows of it: ``en@500``."""
    name, mark, most = part.rpartition("@")
    if not mark:
        return part, blocks
    if not name or not most.isdecimal() or int(most) < 1:
        raise ConfigurationError(f"Behind the @ of {part!r} stands the most rows of that corpus, such as en@500.")
    return name, int(most)
