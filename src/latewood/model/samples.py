"""What a model has learned, sample by sample: which of them train it, which are canaries, and which came twice."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Blobs(Protocol):
    """Where tensors are kept: the store of the model directory."""

    def put(self, tensors: Mapping[str, Tensor]) -> str: ...

    def get(self, name: str) -> dict[str, Tensor]: ...


class Roles(NamedTuple):
    """Masks over samples, shape ``(n,)``: who trains the model, who is a canary; the others repeat one of these."""

    train: Tensor
    canary: Tensor


@dataclass(frozen=True)
class Source:
    """One arrival: its number, what the user called it, and when it came (UTC, ISO 8601)."""

    number: int
    name: str
    time: str


@dataclass(frozen=True)
class Segment:
    """Neighbouring samples. ``light``, read with every arrival, holds ``hashes`` (n, 16), ``labels`` (n,), ``arrivals`` (n,),
    the arrivals' facts, and ``inputs`` of those that may be canaries; the blob ``others_name`` holds all other inputs."""

    light_name: str
    others_name: str | None
    light: Mapping[str, Tensor]
    maybe: Tensor

    def __len__(self) -> int:
        return len(self.light["labels"])

    @property
    def sources(self) -> tuple[Source, ...]:
        """The arrivals that its samples came with."""
        return _sources(self.light)

    def inputs(self, blobs: Blobs, wanted: Tensor) -> Tensor:
        """The inputs of the samples in the mask ``wanted``, which must be kept."""
        if not (wanted & ~self.maybe).any():
            return self.light["inputs"][wanted[self.maybe]]
        assert self.others_name is not None
        others = blobs.get(self.others_name)["inputs"]
        result = torch.empty(len(self), *others.shape[1:], dtype=others.dtype)
        result[self.maybe], result[~self.maybe] = self.light["inputs"], others
        return result[wanted]


@dataclass(frozen=True)
class Samples:
    """All samples of a version: contents' hashes, labels, the arrival of each, and their inputs where these are kept.

    Inputs are features, or images where the backbone is trained. A sample whose hash, read as a number in [0, 1), lies
    below ``share`` may be a canary, and its inputs are kept in any case; those of the others only if something may have
    to be unlearned. At most ``cap`` canaries of each class are in use.

    On disk it is a list of segments. As soon as the last is as large as the one before, they become one: there are never
    more than about log2(arrivals), and an arrival writes, taken over many, little more than itself.
    """

    share: float
    cap: int
    segments: tuple[Segment, ...] = ()

    @classmethod
    def load(cls, blobs: Blobs, share: float, cap: int, segments: Sequence[Sequence[str | None]]) -> Samples:
        """Read the light parts of what :attr:`names` told."""
        return cls(share, cap, tuple(_segment(str(light), others, blobs.get(str(light)), share) for light, others in segments))

    @property
    def names(self) -> list[tuple[str, str | None]]:
        """The blobs of each segment, in a form that JSON can hold."""
        return [(segment.light_name, segment.others_name) for segment in self.segments]

    @property
    def blobs(self) -> tuple[str, ...]:
        """The names of all blobs."""
        return tuple(name for names in self.names for name in names if name is not None)

    def __len__(self) -> int:
        return sum(map(len, self.segments))

    @cached_property
    def hashes(self) -> Tensor:
        """A hash of each sample's content, uint8 ``(n, 16)``."""
        return self._column("hashes", torch.empty(0, 16, dtype=torch.uint8))

    @cached_property
    def labels(self) -> Tensor:
        """The number of each sample's class, int64 ``(n,)``."""
        return self._column("labels", torch.empty(0, dtype=torch.int64))

    @cached_property
    def arrivals(self) -> Tensor:
        """The number of the arrival that brought each sample, int64 ``(n,)``."""
        return self._column("arrivals", torch.empty(0, dtype=torch.int64))

    @cached_property
    def sources(self) -> tuple[Source, ...]:
        """All arrivals, oldest first."""
        return tuple(source for segment in self.segments for source in segment.sources)

    @cached_property
    def roles(self) -> Roles:
        """Who trains the model and who is a canary: decided by contents alone, whatever the order of arrivals.

        Of samples with one content those count that have the label that came last, and of these the first. Of each class
        the ``cap`` lowest hashes below ``share`` are canaries; where that is the whole class, its highest trains.
        """
        return _roles(self.hashes.numpy(), self.labels.numpy(), self.share, self.cap)

    def add(self, blobs: Blobs, source: Source, inputs: Tensor, hashes: Tensor, labels: Tensor, keep: bool) -> Samples:
        """These samples and those of one more arrival; ``keep`` the inputs of those that can't be canaries."""
        maybe = _below(hashes, self.share)
        light = {"hashes": hashes, "labels": labels, "arrivals": torch.full((len(labels),), source.number)}
        light |= {"inputs": inputs[maybe], "sources": _encoded([source])}
        others = inputs[~maybe] if keep else None
        segments = list(self.segments)
        while segments and len(segments[-1]) <= len(light["labels"]):
            light, others = _joined(blobs, segments.pop(), light, others)
        return Samples(self.share, self.cap, (*segments, _written(blobs, light, others, self.share)))

    def without(self, blobs: Blobs, gone: Tensor) -> Samples:
        """These samples but those of the mask ``gone``; an arrival of which none is left is no longer named."""
        segments = []
        for segment, mask in zip(self.segments, gone.split([len(s) for s in self.segments]), strict=True):
            if not mask.any():
                segments.append(segment)
            elif not mask.all():
                segments.append(self._reduced(blobs, segment, ~mask))
        return Samples(self.share, self.cap, tuple(segments))

    def inputs(self, blobs: Blobs, wanted: Tensor) -> Tensor:
        """The inputs of the samples in the mask ``wanted`` (all of them :attr:`kept`), in order."""
        masks = wanted.split([len(s) for s in self.segments])
        pieces = [s.inputs(blobs, mask) for s, mask in zip(self.segments, masks, strict=True) if mask.any()]
        return torch.cat(pieces) if pieces else torch.empty(0)

    @cached_property
    def kept(self) -> Tensor:
        """A mask of the samples whose inputs are kept."""
        masks = [segment.maybe | (segment.others_name is not None) for segment in self.segments]
        return torch.cat([torch.empty(0, dtype=torch.bool), *masks])

    def learned_from(self, source: str) -> set[tuple[bytes, int]]:
        """The hash and label of each sample that came from sources of this name."""
        mine = torch.isin(self.arrivals, torch.tensor(self.numbers(source), dtype=torch.int64))
        return set(zip(map(bytes, self.hashes[mine].numpy()), self.labels[mine].tolist(), strict=True))

    def numbers(self, source: str) -> list[int]:
        """The numbers of the arrivals from sources of this name."""
        return [one.number for one in self.sources if one.name == source]

    def repeated(self, count: int) -> tuple[int, int]:
        """Of the last ``count`` samples, how many came before with the same label last, and how many with another."""
        keys, labels = _keys(self.hashes.numpy())[:, 0], self.labels.numpy()
        before = len(self) - count
        order = np.argsort(keys[:before], kind="stable")
        last = np.searchsorted(keys[order], keys[before:], side="right") - 1
        found = last >= 0
        found[found] = keys[order[last[found]]] == keys[before:][found]
        same = labels[order[last[found]]] == labels[before:][found]
        return int(same.sum()), int((~same).sum())

    def _column(self, name: str, none: Tensor) -> Tensor:
        return torch.cat([none, *(segment.light[name] for segment in self.segments)])

    def _reduced(self, blobs: Blobs, segment: Segment, kept: Tensor) -> Segment:
        light = {name: segment.light[name][kept] for name in ("hashes", "labels", "arrivals")}
        left = set(light["arrivals"].tolist())
        light["inputs"] = segment.light["inputs"][kept[segment.maybe]]
        light["sources"] = _encoded([source for source in segment.sources if source.number in left])
        others = None if segment.others_name is None else blobs.get(segment.others_name)["inputs"][kept[~segment.maybe]]
        return _written(blobs, light, others, self.share)


def _segment(light_name: str, others_name: str | None, light: Mapping[str, Tensor], share: float) -> Segment:
    return Segment(light_name, others_name, light, _below(light["hashes"], share))


def _written(blobs: Blobs, light: Mapping[str, Tensor], others: Tensor | None, share: float) -> Segment:
    others_name = None if others is None else blobs.put({"inputs": others})
    return _segment(blobs.put(light), others_name, light, share)


def _joined(
    blobs: Blobs, first: Segment, light: Mapping[str, Tensor], others: Tensor | None
) -> tuple[dict[str, Tensor], Tensor | None]:
    """A segment and what comes after it, as one."""
    both = {name: torch.cat([first.light[name], value]) for name, value in light.items() if name != "sources"}
    both["sources"] = _encoded([*first.sources, *_sources(light)])
    if first.others_name is None or others is None:
        return both, None
    return both, torch.cat([blobs.get(first.others_name)["inputs"], others])


def _sources(light: Mapping[str, Tensor]) -> tuple[Source, ...]:
    return tuple(Source(**told) for told in json.loads(bytes(light["sources"].tolist())))


def _encoded(sources: Sequence[Source]) -> Tensor:
    return torch.tensor(list(json.dumps([asdict(source) for source in sources]).encode()), dtype=torch.uint8)


def _below(hashes: Tensor, share: float) -> Tensor:
    return torch.from_numpy(_draws(hashes.numpy()) < share)


def _draws(hashes: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Each hash's first eight bytes as a number in [0, 1)."""
    return _keys(hashes)[:, 0] / 2.0**64


def _keys(hashes: NDArray[np.uint8]) -> NDArray[np.uint64]:
    return np.ascontiguousarray(hashes).view("<u8")


def _roles(hashes: NDArray[np.uint8], labels: NDArray[np.int64], share: float, cap: int) -> Roles:
    count = len(labels)
    chosen = np.zeros(count, bool)
    chosen[_representatives(hashes, labels)] = True
    draws = _draws(hashes)
    canary = np.zeros(count, bool)
    rows = np.flatnonzero(chosen)
    rows = rows[np.lexsort((draws[rows], labels[rows]))]  # by class, and within it from low to high
    starts = np.flatnonzero(np.diff(labels[rows], prepend=labels[rows[:1]] - 1))
    sizes = np.diff(starts, append=len(rows))
    rank = np.arange(len(rows)) - np.repeat(starts, sizes)
    canary[rows] = (draws[rows] < share) & (rank < np.minimum(cap, np.repeat(sizes, sizes) - 1))
    return Roles(torch.from_numpy(chosen & ~canary), torch.from_numpy(canary))


def _representatives(hashes: NDArray[np.uint8], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each content the place that stands for it: the first of those that have the label that came last."""
    count = len(labels)
    if not count:
        return np.empty(0, np.int64)
    keys = _keys(hashes)
    order = np.lexsort((np.arange(count), keys[:, 1], keys[:, 0]))
    new = np.append(True, (np.diff(keys[order], axis=0) != 0).any(1))
    starts, group = np.flatnonzero(new), np.cumsum(new) - 1
    last = labels[order[np.append(starts[1:], count) - 1]]
    places = np.where(labels[order] == last[group], order, count)
    first: NDArray[np.int64] = np.minimum.reduceat(places, starts)
    return first
