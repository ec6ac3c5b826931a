"""Interventions on a stream of tokens: what replaces which positions; planned, kept on disk, and laid over the stream."""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from latewood.core.checkpoint import write_tensors
from latewood.core.errors import CheckpointError, ConfigurationError, DataError
from latewood.core.files import checksum, remove_files, sweep_temporaries, write_atomically, write_by_checksum
from latewood.core.progress import current_progress
from latewood.core.seeding import derive_seed
from latewood.language.mixture import Mixture

FORMAT = 1
#: A random placement gives up after so many collisions for each sequence that it has to place.
PATIENCE = 10
_MANIFEST = "plan.json"
#: Intervals that lie together in one list: adding one moves at most so many.
_CROWD = 1024

Tokens = NDArray[np.int32]
Places = NDArray[np.int64]


class StreamShape(NamedTuple):
    """A stream of ``steps`` batches of ``rows`` rows of ``length`` tokens: one line of positions, counted from 0.

    >>> shape = StreamShape(steps=100, rows=4, length=8)
    >>> shape.tokens, shape.address(2, 1, 3), shape.place(75)
    (3200, 75, (2, 1, 3))
    """

    steps: int
    rows: int
    length: int

    @property
    def tokens(self) -> int:
        """The number of positions."""
        return self.steps * self.rows * self.length

    def address(self, step: int, row: int = 0, column: int = 0) -> int:
        """The position of a token."""
        return (step * self.rows + row) * self.length + column

    def place(self, position: int) -> tuple[int, int, int]:
        """Step, row and column of a position: the reverse of :meth:`address`."""
        line, column = divmod(position, self.length)
        return *divmod(line, self.rows), column


class TokenStream(Protocol):
    """Anything that gives the rows of a step, at random access.

    One whose attribute ``repeats`` is true says that it serves again what it has served before.
    """

    def rows_at(self, step: int) -> Tensor:
        """The tokens of step ``step``, whole numbers ``(rows, length)``."""
        ...


class MixtureStream:
    """The batches of a :class:`~latewood.language.mixture.Mixture` under its present shares, as a :class:`TokenStream`."""

    def __init__(self, mixture: Mixture) -> None:
        self.mixture = mixture

    def rows_at(self, step: int) -> Tensor:
        """The tokens of batch ``step``, int32 ``(batch_size, length)``; draws nothing."""
        return self.mixture.read(step).tensor("tokens")


class IntervalSet:
    """Closed intervals of whole numbers, no two of which overlap; asking costs O(log n).

    >>> taken = IntervalSet([(5, 9)])
    >>> taken.add(0, 4)
    >>> taken.overlap(9, 20), taken.overlap(10, 20), list(taken)
    ((5, 9), None, [(0, 4), (5, 9)])
    """

    def __init__(self, intervals: Iterable[tuple[int, int]] = ()) -> None:
        ordered = sorted(intervals)
        pieces = [ordered[i : i + _CROWD] for i in range(0, len(ordered), _CROWD)]
        self._starts = [[start for start, _ in piece] for piece in pieces]
        self._ends = [[end for _, end in piece] for piece in pieces]
        self._firsts = [starts[0] for starts in self._starts]
        for (_, end), (start, _) in pairwise(ordered):
            if start <= end:
                raise DataError(f"Two intervals overlap at {start}.")

    def __len__(self) -> int:
        return sum(map(len, self._starts))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for starts, ends in zip(self._starts, self._ends, strict=True):
            yield from zip(starts, ends, strict=True)

    def overlap(self, start: int, end: int) -> tuple[int, int] | None:
        """An interval that has a number in common with ``[start, end]``; ``None`` if there is none."""
        # No two overlap, so the last that starts by ``end`` also ends last of those.
        crowd = bisect_right(self._firsts, end) - 1
        if crowd < 0:
            return None
        place = bisect_right(self._starts[crowd], end) - 1
        found = self._starts[crowd][place], self._ends[crowd][place]
        return found if found[1] >= start else None

    def add(self, start: int, end: int) -> None:
        """Take ``[start, end]``. Errors: :class:`~latewood.core.errors.DataError` if a part of it is taken; nothing changes."""
        if end < start:
            raise DataError(f"An interval must end where it starts or later, but [{start}, {end}] does not.")
        if (other := self.overlap(start, end)) is not None:
            raise DataError(f"The interval [{start}, {end}] would overlap [{other[0]}, {other[1]}].")
        if not self._firsts:
            self._firsts, self._starts, self._ends = [start], [[start]], [[end]]
            return
        crowd = max(0, bisect_right(self._firsts, start) - 1)
        starts, ends = self._starts[crowd], self._ends[crowd]
        place = bisect_left(starts, start)
        starts.insert(place, start)
        ends.insert(place, end)
        self._firsts[crowd] = starts[0]
        if len(starts) > 2 * _CROWD:
            self._starts[crowd : crowd + 1] = [starts[:_CROWD], starts[_CROWD:]]
            self._ends[crowd : crowd + 1] = [ends[:_CROWD], ends[_CROWD:]]
            self._firsts.insert(crowd + 1, starts[_CROWD])


@dataclass(frozen=True)
class Intervention:
    """Sequences of tokens that replace tokens of a stream.

    Without ``positions`` each goes to a random place in ``span``, a half-open range of positions that begins and ends
    with a row (default: the whole stream), wrapped in end-of-text tokens as :func:`wrapped` says; it never crosses from a
    row into the next. ``repetitions`` of 1 or more insert the whole list as often as its whole part says; those below 1
    insert that share of the sequences, drawn without replacement.

    With ``positions``, one for each sequence, they go exactly there, even across rows; they are wrapped only with
    ``wrap``, and ``repetitions`` do not count. Errors: :class:`~latewood.core.errors.ConfigurationError`.
    """

    name: str
    sequences: Sequence[Sequence[int] | Tokens]
    span: tuple[int, int] | None = None
    positions: Sequence[int] | None = None
    repetitions: float = 1.0
    wrap: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.repetitions < math.inf:
            raise ConfigurationError(
                f"The repetitions of {self.name!r} must be finite and above 0, such as 2 or 0.5, not {self.repetitions}."
            )
        if self.positions is not None and self.span is not None:
            raise ConfigurationError(f"{self.name!r} has positions and a span; positions say all, leave out the span.")
        if self.positions is not None and len(self.positions) != len(self.sequences):
            raise ConfigurationError(
                f"{self.name!r} needs a position for each of {len(self.sequences)} sequences, but it has {len(self.positions)}."
            )


class Insertion(NamedTuple):
    """A piece of one intervention: ``tokens`` stand from ``position`` on, all in one row."""

    name: str
    position: int
    tokens: tuple[int, ...]


class Report(NamedTuple):
    """What became of an experiment: sequences and tokens inserted, their share of all tokens of the stream; and how many
    sequences were dropped, as too long or empty, or found no free place."""

    name: str
    sequences: int
    tokens: int
    share: float
    dropped: int
    unplaced: int


@dataclass(frozen=True)
class _Placement:
    """What one call of :meth:`InsertionPlan.add` did for one intervention."""

    name: str
    span: tuple[int, int] | None
    sequences: int
    tokens: int
    dropped: int
    unplaced: int


class _Segment(NamedTuple):
    """The pieces of some insertions in order of their position, as offset arrays.

    Row ``keys[i]`` of the stream holds the pieces ``piece_offsets[i]`` up to ``piece_offsets[i + 1]``; piece ``j``
    begins in column ``columns[j]``, has the tokens ``token_offsets[j]`` up to ``token_offsets[j + 1]``, and belongs to the
    experiment number ``owners[j]``.
    """

    keys: Places
    piece_offsets: Places
    columns: Tokens
    token_offsets: Places
    tokens: Tokens
    owners: Tokens

    def starts(self, length: int) -> Places:
        return np.repeat(self.keys, np.diff(self.piece_offsets)) * length + self.columns


class InsertionPlan:
    """Which tokens replace which positions of a stream of shape (steps, rows, length), for all experiments together.

    ``end`` is the token that ends a text, ``vocabulary`` the number of different tokens. :meth:`add` places
    interventions, also later ones for steps that are yet to come; :meth:`overlaid` puts their tokens in place. Length,
    steps and all other tokens of the stream stay as they are. :meth:`save` writes only what is new.

    Each experiment draws from a generator of its own (``seed``, its name, its span), and experiments are placed in the
    order of their names, explicit positions before random ones. So its places depend neither on the order in which
    experiments are listed nor, except where two would collide, on which others there are: a joint run and a run with one of
    them alone insert the same at the same places. (The official code draws all from one generator.)

    >>> plan = InsertionPlan(StreamShape(steps=10, rows=2, length=8), end=256, vocabulary=257)
    >>> plan.add([Intervention("fact", [[1, 2, 3]], repetitions=4), Intervention("swap", [[7] * 8], positions=[16])])
    >>> [(report.name, report.sequences, report.tokens, report.share) for report in plan.reports()]
    [('fact', 4, 20, 0.125), ('swap', 1, 8, 0.05)]
    >>> plan.overlaid(1, torch.zeros(2, 8, dtype=torch.int32))[0]
    tensor([7, 7, 7, 7, 7, 7, 7, 7], dtype=torch.int32)
    """

    def __init__(self, shape: StreamShape | tuple[int, int, int], *, end: int, vocabulary: int, seed: int = 42) -> None:
        self.shape = StreamShape(*shape)
        if min(self.shape) < 1:
            raise ConfigurationError(f"A stream needs at least one step, row and token, but its shape is {tuple(shape)}.")
        if not 0 <= end < vocabulary:
            raise ConfigurationError(f"The token {end} that ends a text is none of the vocabulary of {vocabulary}.")
        self.end, self.vocabulary, self.seed = end, vocabulary, seed
        self.taken = IntervalSet()
        #: Whatever else must be kept with the plan and must change together with it; JSON.
        self.info: dict[str, Any] = {}
        self._closed = 0
        self._names: list[str] = []
        self._placements: list[_Placement] = []
        self._segments: list[_Segment] = []
        self._files: list[str | None] = []
        self._home: Path | None = None

    @property
    def closed(self) -> int:
        """The steps that are trained already: nothing is inserted before this one."""
        return self._closed

    def close(self, step: int) -> None:
        """Say that the steps before ``step`` are trained. Errors: :class:`~latewood.core.errors.ConfigurationError`."""
        if not self._closed <= step <= self.shape.steps:
            raise ConfigurationError(
                f"Step {step} can't be where training has come to: right would be {self._closed} to {self.shape.steps}."
            )
        self._closed = step

    def has(self, name: str, span: tuple[int, int] | None = None) -> bool:
        """Whether an experiment was placed in this span (``None``: the whole stream, or explicit positions)."""
        return any((placement.name, placement.span) == (name, span) for placement in self._placements)

    def add(self, interventions: Sequence[Intervention]) -> None:
        """Place interventions: explicit ones first, then random ones around all that is taken.

        A random sequence that finds no free place is left out, which the progress display tells and :meth:`reports`
        counts: after more than ten collisions for each sequence, an intervention gives up. Errors, before anything changes:
        :class:`~latewood.core.errors.ConfigurationError` for a span or positions outside the stream or in steps that are
        trained, and for a name that is placed in this span already; :class:`~latewood.core.errors.DataError` for explicit
        positions that are taken, and for tokens that are none.
        """
        ordered = sorted(interventions, key=lambda intervention: intervention.name)
        self._check(ordered)
        ready = [self._prepared(intervention) for intervention in ordered]
        explicit = [
            (position, tokens, intervention.name)
            for intervention, sequences in zip(ordered, ready, strict=True)
            if intervention.positions is not None
            for position, tokens in zip(intervention.positions, sequences, strict=True)
            if tokens is not None
        ]
        pieces = self._explicit_pieces(explicit)
        for start, tokens, _ in pieces:
            self.taken.add(start, start + len(tokens) - 1)
        for intervention, sequences in zip(ordered, ready, strict=True):
            kept = [tokens for tokens in sequences if tokens is not None]
            placed = kept
            if intervention.positions is None:
                found = self._scattered(intervention, kept)
                pieces += [(start, tokens, intervention.name) for start, tokens in found]
                placed = [tokens for _, tokens in found]
            counts = (len(placed), sum(map(len, placed)), len(sequences) - len(kept), len(kept) - len(placed))
            self._placements.append(_Placement(intervention.name, intervention.span, *counts))
            if intervention.name not in self._names:
                self._names.append(intervention.name)
        if pieces:
            self._segments.append(self._packed(pieces))
            self._files.append(None)

    def tokens_at(self, step: int) -> tuple[Places, Tokens]:
        """What replaces what in a step: places in its rows, counted row after row, and the tokens there.

        Errors: :class:`~latewood.core.errors.DataError` for a step that the stream does not have.
        """
        self._check_step(step)
        first, last = step * self.shape.rows, (step + 1) * self.shape.rows - 1
        touching = [segment for segment in self._segments if segment.keys[0] <= last and segment.keys[-1] >= first]
        found = [self._slice(segment, step) for segment in touching]
        if not found:
            return np.zeros(0, np.int64), np.zeros(0, np.int32)
        return np.concatenate([places for places, _ in found]), np.concatenate([tokens for _, tokens in found])

    def overlaid(self, step: int, rows: Tensor) -> Tensor:
        """The rows of a step with the insertions in place: a copy, or ``rows`` itself where nothing is inserted.

        ``rows`` are whole numbers ``(rows, length)``, on any device. Errors: :class:`~latewood.core.errors.DataError` for
        another shape, or a step that the stream does not have.
        """
        places, tokens = self.tokens_at(step)
        if tuple(rows.shape) != self.shape[1:] or rows.is_floating_point():
            raise DataError(
                f"Step {step} must be whole numbers of shape {self.shape[1:]} as planned, but it is {rows.dtype} of shape "
                f"{tuple(rows.shape)}."
            )
        if not len(places):
            return rows
        rows = rows.clone(memory_format=torch.contiguous_format)
        values = torch.from_numpy(tokens).to(rows.device, rows.dtype)
        rows.view(-1)[torch.from_numpy(places).to(rows.device)] = values
        return rows

    def insertions(self) -> Iterator[Insertion]:
        """Every inserted piece, in the order of :meth:`add`, and of the positions within each."""
        for segment in self._segments:
            for piece, start in enumerate(segment.starts(self.shape.length).tolist()):
                tokens = segment.tokens[segment.token_offsets[piece] : segment.token_offsets[piece + 1]]
                yield Insertion(self._names[segment.owners[piece]], start, tuple(tokens.tolist()))

    def reports(self) -> list[Report]:
        """What became of each experiment so far, over all its phases, by name."""
        result = []
        for name in sorted(self._names):
            mine = [placement for placement in self._placements if placement.name == name]
            sequences, tokens, dropped, unplaced = (
                sum(getattr(placement, count) for placement in mine) for count in ("sequences", "tokens", "dropped", "unplaced")
            )
            result.append(Report(name, sequences, tokens, tokens / self.shape.tokens, dropped, unplaced))
        return result

    def optimise(self) -> None:
        """Merge what was added one after another, so that reading a step looks in one place. Needs all of it in memory."""
        if len(self._segments) < 2:
            return
        self._segments = [
            _segment(
                np.concatenate([segment.starts(self.shape.length) for segment in self._segments]),
                np.concatenate([np.diff(segment.token_offsets) for segment in self._segments]),
                np.concatenate([segment.tokens for segment in self._segments]),
                np.concatenate([segment.owners for segment in self._segments]),
                self.shape.length,
            )
        ]
        self._files = [None]

    def save(self, folder: Path) -> None:
        """Write the plan to a folder, its own alone: only what was added since it was saved there or loaded from there.

        After a crash, the folder holds the plan and its :attr:`info` as they were saved last, or before that, both whole.
        Errors: :class:`~latewood.core.errors.StorageError`; what was saved before is untouched.
        """
        known = self._files if self._home == folder.absolute() else [None] * len(self._segments)
        files = [
            name if name is not None else write_by_checksum(folder, lambda name: _file(folder, name), _writer(segment))
            for name, segment in zip(known, self._segments, strict=True)
        ]
        manifest = {
            "format": FORMAT,
            "shape": list(self.shape),
            "end": self.end,
            "vocabulary": self.vocabulary,
            "seed": self.seed,
            "closed": self._closed,
            "names": self._names,
            "placements": [asdict(placement) for placement in self._placements],
            "segments": files,
            "info": self.info,
        }
        write_atomically(folder / _MANIFEST, json.dumps({"plan": manifest, "blake2b": _digest(manifest)}))
        self._files, self._home = list(files), folder.absolute()
        wanted = {_file(folder, name) for name in files if name is not None}
        sweep_temporaries(folder)
        remove_files(path for path in folder.glob("*.safetensors") if path not in wanted)

    @classmethod
    def load(cls, folder: Path) -> InsertionPlan:
        """The plan that was saved to a folder; its tokens stay there, memory-mapped, until they are read.

        Errors: :class:`~latewood.core.errors.CheckpointError` if there is none, or a file is not what was written.
        """
        try:
            held = json.loads((folder / _MANIFEST).read_text())
            manifest = held["plan"]
            if held["blake2b"] != _digest(manifest):
                raise CheckpointError(f"{folder / _MANIFEST} is damaged: its checksum is not the one that was written.")
            if manifest["format"] != FORMAT:
                raise CheckpointError(
                    f"{folder} has format {manifest['format']}, and this version of Latewood reads format {FORMAT}; use the "
                    "version that wrote it."
                )
            facts = {name: int(manifest[name]) for name in ("end", "vocabulary", "seed")}
            plan = cls(StreamShape(*map(int, manifest["shape"])), **facts)
            plan._closed, plan.info, plan._names = int(manifest["closed"]), manifest["info"], list(manifest["names"])
            plan._placements = [
                _Placement(**{**counts, "span": None if counts["span"] is None else tuple(counts["span"])})
                for counts in manifest["placements"]
            ]
            plan._files = list(manifest["segments"])
            plan._segments = [_read(_file(folder, name), name) for name in manifest["segments"]]
            plan.taken = IntervalSet(interval for segment in plan._segments for interval in plan._intervals(segment))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise CheckpointError(f"The insertion plan in {folder} is incomplete or damaged ({error}).") from error
        plan._home = folder.absolute()
        return plan

    # Checking

    def _check(self, interventions: Sequence[Intervention]) -> None:
        seen: set[tuple[str, tuple[int, int] | None]] = set()
        for intervention in interventions:
            name, span = intervention.name, intervention.span
            if (name, span) in seen or self.has(name, span):
                where = "this stream" if span is None else f"the positions {span[0]} to {span[1]}"
                raise ConfigurationError(f"{name!r} is placed in {where} already; give another name or another span.")
            seen.add((name, span))
            if intervention.positions is None:
                self._check_span(name, span or (0, self.shape.tokens))

    def _check_span(self, name: str, span: tuple[int, int]) -> None:
        start, end = span
        if start % self.shape.length or end % self.shape.length:
            raise ConfigurationError(
                f"The span of {name!r} must begin and end with a row, at multiples of {self.shape.length}, but it is "
                f"{start} to {end}."
            )
        first = self.shape.address(self._closed)
        if not first <= start < end <= self.shape.tokens:
            why = f", as {self._closed} steps are trained already" if first else ""
            raise ConfigurationError(
                f"The span of {name!r} is {start} to {end}; right would be a part of {first} to {self.shape.tokens}{why}."
            )

    def _check_step(self, step: int) -> None:
        if not 0 <= step < self.shape.steps:
            raise DataError(
                f"There is no step {step} in this plan of {self.shape.steps} steps: it holds for one pass over the stream, and "
                "a second one would put the same insertions elsewhere; make a new plan for it."
            )

    # Placing

    def _prepared(self, intervention: Intervention) -> list[Tokens | None]:
        """The sequences as they are to be inserted; ``None`` for those that are dropped."""
        raw = [self._as_tokens(intervention.name, number, tokens) for number, tokens in enumerate(intervention.sequences)]
        if intervention.positions is None:
            raw = self._repeated(intervention, raw)
        if intervention.positions is None or intervention.wrap:
            return [wrapped(tokens, self.end, self.shape.length) for tokens in raw]
        return [tokens if len(tokens) else None for tokens in raw]

    def _as_tokens(self, name: str, number: int, tokens: Sequence[int] | Tokens) -> Tokens:
        values = np.asarray(tokens, np.int64)
        if values.ndim != 1 or (len(values) and (values.min() < 0 or values.max() >= self.vocabulary)):
            raise DataError(f"Sequence {number} of {name!r} must be a list of tokens from 0 to {self.vocabulary - 1}.")
        return values.astype(np.int32)

    def _repeated(self, intervention: Intervention, sequences: list[Tokens]) -> list[Tokens]:
        if intervention.repetitions >= 1:
            return sequences * int(intervention.repetitions)
        chance = self._generator("repetitions", intervention)
        count = int(len(sequences) * intervention.repetitions)
        return [sequences[place] for place in chance.choice(len(sequences), count, replace=False)] if count else []

    def _generator(self, purpose: str, intervention: Intervention) -> np.random.Generator:
        return np.random.default_rng(derive_seed(self.seed, purpose, intervention.name, intervention.span))

    def _explicit_pieces(self, wanted: Sequence[tuple[int, Tokens, str]]) -> list[tuple[int, Tokens, str]]:
        """Explicit insertions in pieces that lie in one row each, after checking that all their positions are free."""
        ordered = sorted(wanted, key=lambda insertion: insertion[0])
        first = self.shape.address(self._closed)
        before: tuple[int, str] = (-1, "")
        for start, tokens, name in ordered:
            last = start + len(tokens) - 1
            if not first <= start <= last < self.shape.tokens:
                raise ConfigurationError(
                    f"{len(tokens)} tokens of {name!r} at position {start} lie outside what can be replaced, the positions "
                    f"{first} to {self.shape.tokens - 1}."
                )
            other = before[1] if start <= before[0] else None
            if other is None and (found := self.taken.overlap(start, last)) is not None:
                other = self._name_at(found[0])
            if other is not None:
                raise DataError(
                    f"{len(tokens)} tokens of {name!r} at position {start} would overlap an insertion of {other!r}; "
                    "give another position."
                )
            before = last, name
        return [
            (place, piece, name) for start, tokens, name in ordered for place, piece in _split(start, tokens, self.shape.length)
        ]

    def _name_at(self, start: int) -> str:
        return next(insertion.name for insertion in self.insertions() if insertion.position == start)

    def _scattered(self, intervention: Intervention, sequences: Sequence[Tokens]) -> list[tuple[int, Tokens]]:
        """Random free places: a column first, then a row, both uniform; what collides is drawn again."""
        length = self.shape.length
        first, last = (position // length for position in intervention.span or (0, self.shape.tokens))
        chance = self._generator("places", intervention)
        found: list[tuple[int, Tokens]] = []
        collisions = 0
        for tokens in sequences:
            while collisions <= PATIENCE * len(sequences):
                column = int(chance.integers(length - len(tokens) + 1))
                start = int(chance.integers(first, last)) * length + column
                if self.taken.overlap(start, start + len(tokens) - 1) is None:
                    self.taken.add(start, start + len(tokens) - 1)
                    found.append((start, tokens))
                    break
                collisions += 1
        if len(found) < len(sequences):
            current_progress().tell(
                f"{len(sequences) - len(found)} of {len(sequences)} sequences of {intervention.name!r} found no free place "
                f"after {collisions} collisions and are left out."
            )
        return found

    # The map

    def _packed(self, pieces: Sequence[tuple[int, Tokens, str]]) -> _Segment:
        numbers = {name: number for number, name in enumerate(self._names)}
        return _segment(
            np.array([start for start, _, _ in pieces], np.int64),
            np.array([len(tokens) for _, tokens, _ in pieces], np.int64),
            np.concatenate([tokens for _, tokens, _ in pieces]),
            np.array([numbers[name] for _, _, name in pieces], np.int32),
            self.shape.length,
        )

    def _slice(self, segment: _Segment, step: int) -> tuple[Places, Tokens]:
        row = step * self.shape.rows
        low, high = np.searchsorted(segment.keys, [row, row + self.shape.rows])
        pieces = slice(int(segment.piece_offsets[low]), int(segment.piece_offsets[high]))
        offsets = segment.token_offsets[pieces.start : pieces.stop + 1]
        counts = np.diff(segment.piece_offsets[low : high + 1])
        starts = np.repeat((segment.keys[low:high] - row) * self.shape.length, counts) + segment.columns[pieces]
        return _ranges(starts, np.diff(offsets)), segment.tokens[offsets[0] : offsets[-1]]

    def _intervals(self, segment: _Segment) -> Iterable[tuple[int, int]]:
        starts = segment.starts(self.shape.length)
        return zip(starts.tolist(), (starts + np.diff(segment.token_offsets) - 1).tolist(), strict=True)


class Overlay:
    """A stream of tokens with the insertions of a plan in place; itself a :class:`TokenStream`.

    What is added to the plan later is seen as well. Errors: :class:`~latewood.core.errors.DataError` for a stream that says
    that it repeats itself, a step beyond the plan, or rows of another shape than planned.
    """

    def __init__(self, stream: TokenStream, plan: InsertionPlan) -> None:
        self.stream, self.plan = stream, plan
        self._check()

    def rows_at(self, step: int) -> Tensor:
        """The tokens of step ``step``, ``(rows, length)``; those of the stream itself where nothing is inserted."""
        self._check()
        self.plan._check_step(step)
        return self.plan.overlaid(step, self.stream.rows_at(step))

    def _check(self) -> None:
        if getattr(self.stream, "repeats", False):
            raise DataError(
                "This stream repeats itself in another order, so the plan's positions would hold other text; "
                "insertions need a stream of one pass."
            )


def wrapped(tokens: Tokens, end: int, length: int) -> Tokens | None:
    """Tokens between two that end a text, as far as there is room in a row of ``length``; ``None`` for too many, or none.

    A token ``end`` is appended unless there is one, then one put in front unless there is one or no room is left. What
    fills a row stays as it is.

    >>> [wrapped(np.arange(1, n + 1, dtype=np.int32), 0, 4).tolist() for n in (1, 2, 3, 4)]
    [[0, 1, 0], [0, 1, 2, 0], [1, 2, 3, 0], [1, 2, 3, 4]]
    """
    if not 0 < len(tokens) <= length:
        return None
    if len(tokens) < length and tokens[-1] != end:
        tokens = np.append(tokens, np.int32(end))
    if len(tokens) < length and tokens[0] != end:
        tokens = np.insert(tokens, 0, end)
    return tokens


def _split(start: int, tokens: Tokens, length: int) -> Iterator[tuple[int, Tokens]]:
    """The pieces of an insertion that lie in one row each."""
    while len(tokens):
        room = length - start % length
        yield start, tokens[:room]
        start, tokens = start + room, tokens[room:]


def _segment(starts: Places, counts: Places, tokens: Tokens, owners: Tokens, length: int) -> _Segment:
    """Pieces in any order, each within one row, as the arrays of a segment."""
    offsets = np.concatenate([[0], np.cumsum(counts)])
    order = np.argsort(starts)
    rows, columns = np.divmod(starts[order], length)
    keys, firsts = np.unique(rows, return_index=True)
    return _Segment(
        keys.astype(np.int64),
        np.append(firsts, len(starts)).astype(np.int64),
        columns.astype(np.int32),
        np.concatenate([[0], np.cumsum(counts[order])]).astype(np.int64),
        tokens[_ranges(offsets[:-1][order], counts[order])],
        owners[order],
    )


def _ranges(starts: Places, counts: Places) -> Places:
    """The whole numbers from each start on, as many as its count, one after another."""
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(counts.sum())


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"


def _digest(manifest: Any) -> str:
    return hashlib.blake2b(json.dumps(manifest).encode(), digest_size=32).hexdigest()


def _writer(segment: _Segment) -> Callable[[Path], None]:
    tensors = {name: torch.from_numpy(array) for name, array in segment._asdict().items()}
    return lambda path: write_tensors(path, tensors)


def _read(path: Path, name: str) -> _Segment:
    if checksum(path) != name:
        raise CheckpointError(f"{path} is damaged: its checksum is not the one that was written.")
    with safe_open(path, framework="pt") as file:
        return _Segment(*(file.get_tensor(array).numpy() for array in _Segment._fields))
