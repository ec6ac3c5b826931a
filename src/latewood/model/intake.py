"""Taking in what arrives: read and embed it chunk by chunk, set aside what can't be used, continue where it stopped."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Set
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from latewood.core import checkpoint
from latewood.core.errors import CheckpointError, DataError
from latewood.core.progress import Progress
from latewood.model.arrivals import Arrival, Problem
from latewood.model.embedder import Embedder

#: Rows that are read and embedded at once.
CHUNK = 256
#: So many of the rows that can't be used are named in an error.
_NAMED = 3


@dataclass(frozen=True)
class Taken:
    """What of an arrival is to be learned: inputs, hashes (n, 16) and labels of the rows; and what was set aside."""

    inputs: Tensor
    hashes: Tensor
    labels: list[str]
    skipped: tuple[Problem, ...]
    repeated: int


@dataclass(frozen=True)
class _Piece:
    inputs: Tensor
    hashes: Tensor
    rows: tuple[int, ...]
    problems: tuple[Problem, ...]


def take(
    arrival: Arrival, embedder: Embedder, before: Set[tuple[bytes, str]], staging: Path, skip_bad: bool, display: Progress
) -> Taken:
    """Embed an arrival, and leave out what came ``before`` from the same source: hashes of contents with their labels.

    What was embedded lies in ``staging`` until the caller clears it, so that an interrupted call continues. Errors:
    :class:`~latewood.core.errors.DataError` if a row can't be used and ``skip_bad`` is false, or none can.
    """
    pieces = list(_pieces(arrival, embedder, staging, display))
    rows = [row for piece in pieces for row in piece.rows]
    hashes = torch.cat([piece.hashes for piece in pieces])
    problems = [*arrival.problems, *(problem for piece in pieces for problem in piece.problems)]
    first: dict[bytes, int] = {}
    places, repeated = [], 0
    for place, (row, key) in enumerate(zip(rows, map(bytes, hashes.numpy()), strict=True)):
        earlier = first.setdefault(key, row)
        if arrival.labels[earlier] != arrival.labels[row]:
            twin = arrival.names[earlier]
            problems.append(Problem(arrival.names[row], f"has the same content as {twin}, but another label"))
        elif earlier != row or (key, arrival.labels[row]) in before:
            repeated += 1
        else:
            places.append(place)
    if problems and not skip_bad:
        shown = "; ".join(map(str, problems[:_NAMED])) + ("; …" if len(problems) > _NAMED else "")
        raise DataError(
            f"{len(problems):,} of the samples of {arrival.source} can't be used ({shown}); "
            "repair them, or leave them out with skip_bad (--skip-bad)."
        )
    if not places and not repeated:
        raise DataError(f"No sample of {arrival.source} can be used.")
    inputs = torch.cat([piece.inputs for piece in pieces])[places]
    if not torch.isfinite(inputs).all():
        raise DataError(f"The backbone gives NaN or infinity for {arrival.source}; nothing was learned.")
    return Taken(inputs, hashes[places], [arrival.labels[rows[place]] for place in places], tuple(problems), repeated)


def _pieces(arrival: Arrival, embedder: Embedder, staging: Path, display: Progress) -> Iterator[_Piece]:
    chunks = [range(start, min(start + CHUNK, len(arrival))) for start in range(0, len(arrival), CHUNK)]
    facts = (arrival.identity, torch.__version__)
    shelf = staging / hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()
    display.phase(f"reading {arrival.source}", len(chunks))
    for number, rows in enumerate(chunks):
        folder = shelf / f"{number:06d}" if len(chunks) > 1 else None
        piece = _staged(folder)
        if piece is None:
            chunk = arrival.read(rows)
            piece = _Piece(embedder(chunk.content), chunk.hashes, chunk.rows, chunk.problems)
            if folder is not None:
                told = {"rows": piece.rows, "problems": [asdict(problem) for problem in piece.problems]}
                checkpoint.save(folder, {"inputs": piece.inputs, "hashes": piece.hashes}, told)
        display.step()
        yield piece


def _staged(folder: Path | None) -> _Piece | None:
    """What an interrupted call left of a chunk; a damaged one is embedded again."""
    if folder is None or not folder.exists():
        return None
    try:
        tensors, told = checkpoint.load(folder)
        problems = tuple(Problem(**problem) for problem in told["problems"])
        return _Piece(tensors["inputs"], tensors["hashes"], tuple(told["rows"]), problems)
    except CheckpointError:
        shutil.rmtree(folder)
        return None
