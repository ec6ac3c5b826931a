"""Choosing some of a data set's classes, by number, by chance, by name, or by what a backbone has not seen."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from latewood.core.errors import ConfigurationError
from latewood.parts.backbone import Seen, read_seen

#: Which backbone is meant by ``unseen`` alone.
EMBEDDED = "vit-tiny-imagenet"
_FORMS = "0-99, 3,5,8, random:100, random:100:SEED, unseen, unseen:BACKBONE, or the name of a JSON file with a list of names"


def choose(wanted: str, names: Sequence[str]) -> list[int]:
    """The numbers of the classes that ``wanted`` stands for, in the order of the data set, whose classes are ``names``.

    ``0-99`` or ``3,5,8-9``: these numbers. ``random:100``: the first 100 of a permutation by torch's generator with seed
    0; ``random:100:7`` with seed 7. ``unseen:NAME``: those that the backbone of that name, or in that folder, was not
    trained on; ``unseen`` alone means the backbone that comes with Latewood. A file that ends with ``.json`` holds a list
    of names.

    Errors: :class:`~latewood.core.errors.ConfigurationError` for another form, a class that does not exist, and for what
    chooses no class at all.

    >>> choose("0-1,3", ["ant", "bee", "cat", "dog"])
    [0, 1, 3]
    >>> choose("random:2:1", ["ant", "bee", "cat", "dog"])
    [1, 3]
    """
    wanted = wanted.strip()
    kind, _, rest = wanted.partition(":")
    if kind == "unseen":
        seen = set(seen_by(rest or EMBEDDED).classes)
        chosen = {number for number, name in enumerate(names) if name not in seen}
    elif kind == "random":
        chosen = _drawn(rest, len(names))
    elif wanted.endswith(".json"):
        chosen = _listed(Path(wanted).expanduser(), names)
    else:
        chosen = _numbered(wanted, len(names))
    if not chosen:
        raise ConfigurationError(f"classes={wanted!r} leaves none of the {len(names)} classes.")
    return sorted(chosen)


def seen_by(backbone: str) -> Seen:
    """What a backbone was trained on: one that comes with Latewood by its name, or one in a folder.

    Errors: :class:`~latewood.core.errors.ConfigurationError` if there is none, or it does not tell.

    >>> seen_by("./nowhere")
    Traceback (most recent call last):
    latewood.core.errors.ConfigurationError: './nowhere' has no classes.json that tells what it was trained on; right would
    be a folder that `latewood pretrain` wrote, or 'vit-tiny-imagenet'.
    """
    folder = Path(backbone).expanduser()
    if not folder.is_dir():
        folder = Path(__file__).parent / "nets" / backbone.lower().replace("-", "_")
    seen = read_seen(folder)
    if seen is None:
        raise ConfigurationError(
            f"{backbone!r} has no classes.json that tells what it was trained on; right would be a folder that "
            f"`latewood pretrain` wrote, or {EMBEDDED!r}."
        )
    return seen


def _numbered(wanted: str, count: int) -> set[int]:
    chosen: set[int] = set()
    for part in wanted.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match is None:
            raise ConfigurationError(f"classes={wanted!r} is not understood; right would be {_FORMS}.")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < count:
            raise ConfigurationError(
                f"classes={wanted!r}: the data set has the classes 0 to {count - 1}, but not {part.strip()}."
            )
        chosen.update(range(first, last + 1))
    return chosen


def _drawn(wanted: str, count: int) -> set[int]:
    match = re.fullmatch(r"(\d+)(?::(\d+))?", wanted)
    if match is None or not 1 <= int(match[1]) <= count:
        raise ConfigurationError(
            f"classes='random:{wanted}' needs a number from 1 to {count}, such as random:{max(1, count // 2)}."
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(int(match[2] or 0)))
    return set(order[: int(match[1])].tolist())


def _listed(file: Path, names: Sequence[str]) -> set[int]:
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"The list of classes {file} can't be read: {error}.") from error
    if not isinstance(told, list):
        raise ConfigurationError(f"{file} must hold a JSON list of names of classes.")
    numbers = {name: number for number, name in enumerate(names)}
    if strangers := [name for name in told if name not in numbers]:
        raise ConfigurationError(f"{file} lists the class {strangers[0]!r}, which the data set does not have.")
    return {numbers[name] for name in told}
