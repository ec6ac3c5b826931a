"""Stream: what arrives, and in what order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, overload

from latewood.core.data import Data
from latewood.core.errors import DataError
from latewood.core.experience import Experience
from latewood.core.probe import Probe


class Stream(Sequence[Experience]):
    """A sequence of experiences with random access: each is built when asked for, so a run can resume anywhere.

    ``build(i)`` makes experience ``i``; ``probes`` are the held-out sets, each of which says from which experience on
    it counts as seen; ``config`` names everything that decides the contents (data set, seed, sizes) and is compared
    when a run is resumed; ``wing`` is the wing whose learners understand this data.

    >>> data = Data(x=list(range(6)))
    >>> halves = Stream("halves", 2, lambda i: Experience(i, data[3 * i : 3 * i + 3]), probes=())
    >>> len(halves), len(halves[1].train)
    (2, 3)
    """

    def __init__(
        self,
        name: str,
        length: int,
        build: Callable[[int], Experience],
        probes: Sequence[Probe],
        *,
        config: Mapping[str, Any] | None = None,
        wing: str = "",
    ) -> None:
        if length < 1:
            raise DataError(f"Stream {name!r} must hold at least one experience.")
        self.name = name
        self.probes = tuple(probes)
        self.config = {"name": name, **(config or {})}
        self.wing = wing
        self._length = length
        self._build = build

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Experience: ...
    @overload
    def __getitem__(self, index: slice) -> list[Experience]: ...
    def __getitem__(self, index: int | slice) -> Experience | list[Experience]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"Stream {self.name!r} has {len(self)} experiences; there is no number {index}.")
        return self._build(index % len(self))

    def __iter__(self) -> Iterator[Experience]:
        return (self._build(index) for index in range(len(self)))

    @property
    def example(self) -> Data:
        """One row of the first arrival: tells a backbone the columns, shapes and types to expect."""
        return self[0].train[:1]

    def summary(self) -> str:
        """What arrives when, a line for each experience, and the probes."""
        lines = [f"{self.name}: {len(self)} experiences, {len(self.probes)} probes"]
        for experience in self:
            parts = [f"{len(experience.train):>7,} samples"]
            if experience.classes:
                parts.append(f"{len(experience.classes)} classes ({_abbreviate(experience.classes)})")
            if experience.task is not None:
                parts.append(f"task {experience.task}")
            lines.append(f"  {experience.index:>3}  " + "  ".join(parts))
        lines += [f"  probe {p.name}: {len(p.data):,} samples, seen from experience {p.since} on" for p in self.probes]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Stream({self.name!r}, {len(self)} experiences)"


def _abbreviate(values: Sequence[object], most: int = 8) -> str:
    shown = ", ".join(map(str, values[:most]))
    return shown if len(values) <= most else f"{shown}, …"
