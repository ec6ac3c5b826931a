"""Memory: old samples kept for rehearsal, within a fixed number of slots.

Kept as they arrived (raw bytes, without augmentation), so that a slot costs what the sample costs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from latewood.core.data import Column, Data
from latewood.core.errors import ConfigurationError, DataError
from latewood.parts.growing import Growing

#: Before the name of a column in the name of its buffer, lest a column called ``train`` hide a method.
_PREFIX = "column_"


class Memory(Growing):
    """Slots for rows of data, a buffer for each column (tensors only). Base of the policies below, which say what stays."""

    open_ended = True

    def __init__(self, capacity: int) -> None:
        super().__init__()
        if capacity < 1:
            raise ConfigurationError(f"A memory needs room for at least one sample, but its capacity is {capacity}.")
        self.capacity = capacity

    def __len__(self) -> int:
        return len(next(iter(self._columns().values()), ()))

    @property
    def data(self) -> Data:
        """What is in memory now."""
        return Data(self._columns())

    def sample(self, count: int, generator: torch.Generator) -> Data:
        """At most ``count`` different rows, drawn uniformly."""
        return self.data[torch.randperm(len(self), generator=generator)[:count]]

    def replace(self, data: Data) -> None:
        """Hold exactly these rows."""
        rows = _tensors(data)
        self._clear()
        for name, column in rows.items():
            self.register_buffer(_PREFIX + name, column)

    def widen(self, name: str, width: int) -> None:
        """Pad the rows of a column of vectors with zeros to ``width``."""
        if name in self._columns():
            column = self._columns()[name]
            self.register_buffer(_PREFIX + name, F.pad(column, (0, max(0, width - column.shape[1]))))

    def _columns(self) -> dict[str, Tensor]:
        columns = {name: held for name, held in self._buffers.items() if name.startswith(_PREFIX) and held is not None}
        return {name.removeprefix(_PREFIX): held for name, held in columns.items()}

    def _clear(self) -> None:
        for name in self._columns():
            del self._buffers[_PREFIX + name]

    def _append(self, rows: dict[str, Tensor]) -> None:
        held = self._columns()
        for name, column in rows.items():
            both = torch.cat([held[name], column.to(held[name].device)]) if name in held else column.clone()
            self.register_buffer(_PREFIX + name, both)

    def _write(self, slots: Tensor, rows: dict[str, Tensor]) -> None:
        held = self._columns()
        for name, column in rows.items():
            held[name][slots.to(held[name].device)] = column.to(held[name].device)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self._clear()  # a state may hold other columns than we do, or none
        super()._load_from_state_dict(*arguments)


class Reservoir(Memory):
    """A uniform sample of everything that ever passed: row number ``n`` replaces a random slot with probability
    capacity / n (Vitter, 1985, algorithm R).

    >>> memory = Reservoir(2)
    >>> memory.add(Data(x=torch.arange(100)), torch.Generator().manual_seed(0))
    >>> len(memory), int(memory.seen)
    (2, 100)
    """

    seen: Tensor

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def add(self, data: Data, generator: torch.Generator) -> None:
        """Let rows pass, one after the other."""
        _tensors(data[:1])  # what can't be kept is refused before anything changes
        room = max(0, self.capacity - len(self))
        if room:
            self._append(_tensors(data[:room]))
            self.seen += min(room, len(data))
            data = data[room:]
        if not len(data):
            return
        first = int(self.seen) + 1
        ordinals = torch.arange(first, first + len(data), dtype=torch.float64)
        slots = (torch.rand(len(data), generator=generator, dtype=torch.float64) * ordinals).long()
        self.seen += len(data)
        kept = {int(slot): row for row, slot in enumerate(slots.tolist()) if slot < self.capacity}  # the last one wins
        if kept:
            self._write(torch.tensor(list(kept)), _tensors(data[torch.tensor(list(kept.values()))]))


class ClassBalanced(Memory):
    """As many samples of each class as possible: when full, a sample of a class that is not the largest takes the slot of
    a random sample of the largest, and one of the largest competes within its own class (Chrysakis and Moens, 2020).

    The data must have an integer ``label`` column.
    """

    seen_labels: Tensor
    seen_counts: Tensor
    seen_full: Tensor

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.register_buffer("seen_labels", torch.empty(0, dtype=torch.int64))
        self.register_buffer("seen_counts", torch.empty(0, dtype=torch.int64))
        self.register_buffer("seen_full", torch.empty(0, dtype=torch.bool))

    def add(self, data: Data, generator: torch.Generator) -> None:
        """Let rows pass, one after the other."""
        rows, before = _tensors(data), len(self)
        held: list[int] = self._columns()["label"].tolist() if before else []
        book = _ClassBook(self.capacity, held, self.seen_labels, self.seen_counts, self.seen_full)
        taken: dict[int, int] = {}
        for row, label in enumerate(rows["label"].tolist()):
            slot = book.place(label, generator)
            if slot is not None:
                taken[slot] = row
        self.seen_labels, self.seen_counts, self.seen_full = (t.to(self.place) for t in book.state())
        new = [taken[slot] for slot in sorted(taken) if slot >= before]
        if new:
            self._append({name: column[torch.tensor(new)] for name, column in rows.items()})
        old = [slot for slot in taken if slot < before]
        if old:
            chosen = torch.tensor([taken[slot] for slot in old])
            self._write(torch.tensor(old), {name: column[chosen] for name, column in rows.items()})


class _ClassBook:
    """Which label is in which slot, how often each label passed, and which classes were ever the largest ("full")."""

    def __init__(self, capacity: int, held: list[int], labels: Tensor, counts: Tensor, full: Tensor) -> None:
        self.capacity, self.held = capacity, held
        self.counts: dict[int, int] = dict(zip(labels.tolist(), counts.tolist(), strict=True))
        self.full: set[int] = set(labels[full].tolist())
        self.slots: dict[int, list[int]] = {}
        for slot, label in enumerate(held):
            self.slots.setdefault(label, []).append(slot)

    def place(self, label: int, generator: torch.Generator) -> int | None:
        """The slot for a row with this label, or ``None`` if it is not kept."""
        self.counts[label] = self.counts.get(label, 0) + 1
        mine = self.slots.setdefault(label, [])
        if len(self.held) < self.capacity:
            self.held.append(label)
            mine.append(len(self.held) - 1)
            return len(self.held) - 1
        largest = max(len(slots) for slots in self.slots.values())
        self.full |= {c for c, slots in self.slots.items() if len(slots) == largest}
        if label in self.full:
            lucky = float(torch.rand((), generator=generator)) <= len(mine) / self.counts[label]
            return _draw(mine, generator) if lucky and mine else None
        slot = _draw([s for slots in self.slots.values() if len(slots) == largest for s in slots], generator)
        self.slots[self.held[slot]].remove(slot)
        self.held[slot] = label
        mine.append(slot)
        return slot

    def state(self) -> tuple[Tensor, Tensor, Tensor]:
        labels = list(self.counts)
        full = torch.tensor([label in self.full for label in labels], dtype=torch.bool)
        return torch.tensor(labels, dtype=torch.int64), torch.tensor(list(self.counts.values()), dtype=torch.int64), full


def herding(features: Tensor, count: int) -> Tensor:
    """Indices of ``count`` rows whose running mean stays nearest to the mean of all (Welling, 2009; Rebuffi et al., 2017,
    algorithm 4), in the order chosen: the first ``m`` are what herding ``m`` would give.

    ``features`` are the L2-normalised features of one class, shape ``(n, width)``.

    >>> herding(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.7, 0.7]]), 1)
    tensor([2])
    """
    mean, total = features.mean(0), torch.zeros_like(features[0])
    free = torch.ones(len(features), dtype=torch.bool, device=features.device)
    chosen = []
    for k in range(1, min(count, len(features)) + 1):
        distance = (mean - (features + total) / k).norm(dim=1)
        best = int(distance.masked_fill(~free, torch.inf).argmin())
        chosen.append(best)
        free[best] = False
        total = total + features[best]
    return torch.tensor(chosen, dtype=torch.int64)


class Exemplars(Memory):
    """An equal number of exemplars for each class, each class's in the order in which they were chosen, so that a smaller
    share keeps the first ones (Rebuffi et al., 2017, algorithms 4 and 5)."""

    def reduce(self, share: int) -> None:
        """Keep the first ``share`` of each class."""
        if len(self):
            labels = self._columns()["label"]
            rows = [(labels == label).nonzero().flatten()[:share] for label in labels.unique()]
            self.replace(self.data[torch.cat(rows).sort().values])

    def take_class(self, label: int) -> Data:
        """Remove a class's exemplars and return them (no rows if it has none)."""
        if not len(self):
            return self.data
        mine = self._columns()["label"] == label
        taken = self.data[mine].to(self.place)
        self.replace(self.data[~mine])
        return taken

    def add_class(self, rows: Data) -> None:
        """Keep these rows, which are the exemplars of one new class in order."""
        if len(self) + len(rows) > self.capacity:
            raise DataError(f"{len(self) + len(rows)} exemplars do not fit into a memory of {self.capacity}; reduce it first.")
        self._append(_tensors(rows))


def _tensors(data: Data) -> dict[str, Tensor]:
    columns: dict[str, Column] = {name: data[name] for name in data}
    for name, column in columns.items():
        if not isinstance(column, Tensor):
            raise DataError(f"A memory keeps tensors, but the column {name!r} is a list.")
        if "." in name:
            raise DataError(f"A memory can't keep the column {name!r}, because its name has a dot; rename it.")
    return {name: column for name, column in columns.items() if isinstance(column, Tensor)}


def _draw(choices: list[int], generator: torch.Generator) -> int:
    return choices[int(torch.randint(len(choices), (), generator=generator))]
