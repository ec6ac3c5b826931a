"""Mixture: one endless stream of batches from several domains, with exact shares, addressable at every position."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from latewood.core.data import Data
from latewood.core.errors import CheckpointError, ConfigurationError, DataError
from latewood.core.seeding import generator

#: Shares are whole numbers of this part, so that the account of what each domain is owed stays exact for ever. It has so
#: many divisors that decimals and usual fractions are exact themselves, and their account soon comes back to where it began.
_UNIT = 2**19 * 3**4 * 5**6 * 7 * 11 * 13
#: So many batches lie between the places from which a batch's contents are counted out.
_MARK = 256


class Origin(NamedTuple):
    """Where a row of a batch comes from: row ``block`` of ``domain``, in its ``number_of_pass``-th pass, from 0."""

    domain: str
    number_of_pass: int
    block: int


class _Account(NamedTuple):
    """Before a batch: the rows that each domain gave so far, and what it is owed, in units of 1 / ``_UNIT`` row."""

    given: tuple[int, ...]
    owed: tuple[int, ...]


@dataclass(frozen=True)
class _Period:
    """Batches from number ``step`` on, under the same shares, until the next period begins."""

    step: int
    shares: list[int]
    given: list[int]
    owed: list[int]


class _Counter:
    """Counts out the batches of one period, from any of them."""

    def __init__(self, start: _Account, shares: Sequence[int], rows: int) -> None:
        self._shares, self._rows = shares, rows
        self._marks = [start]
        self._cycle: list[_Account] | None = None

    def account(self, batches: int) -> _Account:
        """The account after this many batches."""
        if self._cycle is None:
            self._cycle = self._first_cycle()
        if self._cycle:
            rounds, batches = divmod(batches, len(self._cycle))
            start, end = self._marks[0].given, self._cycle[-1].given
            account = self._cycle[batches - 1] if batches else self._marks[0]
            more = (rounds * (last - first) for first, last in zip(start, end, strict=True))
            return _Account(tuple(map(sum, zip(account.given, more, strict=True))), account.owed)
        wanted, beyond = divmod(batches, _MARK)
        while len(self._marks) <= wanted:
            self._marks.append(self._counted(self._marks[-1], _MARK))
        return self._counted(self._marks[wanted], beyond)

    def _first_cycle(self) -> list[_Account]:
        """The accounts until what is owed is as it was in the beginning; none if that takes long."""
        accounts = [self._marks[0]]
        while len(accounts) <= _MARK:
            accounts.append(_after(accounts[-1], self._shares, self._rows))
            if accounts[-1].owed == accounts[0].owed:
                return accounts[1:]
        return []

    def _counted(self, account: _Account, batches: int) -> _Account:
        for _ in range(batches):
            account = _after(account, self._shares, self._rows)
        return account


class Mixture:
    """Batches of exactly ``batch_size`` rows, mixed from named ``domains`` in given ``shares``; an endless stream.

    ``domains`` maps names to :class:`~latewood.core.data.Data` with a column ``tokens`` of whole numbers,
    ``(n, length)`` with one length for all. ``shares`` maps the same names to numbers that add up to 1 (default: by the
    size of the domains). :meth:`draw` gives the next batch, a ``Data`` with the columns ``tokens`` (int32,
    ``(batch_size, length)``) and ``domain`` (int64, ``(batch_size,)``: the place in :attr:`names`); its rows lie
    in the order of the domains.

    **Shares are exact.** While they stay the same, the rows that a domain has given differ from its share of all rows by
    less than 1 after every batch, with two domains by at most 1/2. Each batch gives each domain the whole rows that it is
    owed; those left over go to the domains that would fall too far behind the soonest (Tijdeman, "The chairman assignment
    problem", 1980; always the largest remainder would not do, with many small shares). What a domain is owed is carried
    over when shares change: the bound of 1 then still holds with two domains, and with more as long as every domain has a
    share of at least 1 / ``batch_size``. A domain of share 0 gives no row.

    **Order.** A domain is shuffled anew for each pass over it, and no row returns before all rows were drawn.

    **Addresses.** The stream is one line of tokens: token ``column`` of row ``row`` of batch ``step`` has the number
    ``(step * batch_size + row) * length + column``. See :meth:`address`, :meth:`place` and :meth:`origin`.

    Everything follows from ``seed``, the domains and the shares; :meth:`state` holds what else must be kept.

    >>> prose = Data(tokens=torch.zeros(6, 4, dtype=torch.int32))
    >>> code = Data(tokens=torch.ones(3, 4, dtype=torch.int32))
    >>> mixture = Mixture({"prose": prose, "code": code}, {"prose": 0.7, "code": 0.3}, batch_size=4)
    >>> [mixture.draw()["domain"].tolist() for _ in range(3)]
    [[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 1, 1]]
    >>> mixture.origin(0, 3).domain, mixture.address(1, 0, 2), mixture.place(18)
    ('code', 18, (1, 0, 2))
    """

    def __init__(
        self, domains: Mapping[str, Data], shares: Mapping[str, float] | None = None, *, batch_size: int = 16, seed: int = 0
    ) -> None:
        if batch_size < 1:
            raise ConfigurationError(f"batch_size must be at least 1 row, but it is {batch_size}.")
        self.length = _common_length(domains)
        self.names = tuple(domains)
        self.batch_size, self.seed = batch_size, seed
        self.sizes = tuple(len(data) for data in domains.values())
        self._domains = tuple(domains.values())
        # Of a view, the whole column and the rows in it: reading the view's own column would copy it.
        self._tokens = tuple(data.base.tensor("tokens") for data in self._domains)
        self._rows = tuple(None if _is_whole(data) else data.rows for data in self._domains)
        self._orders: list[dict[int, Tensor]] = [{} for _ in self.names]
        self._fingerprints: list[str] = []
        rows = sum(self.sizes)
        by_size = {name: size / rows for name, size in zip(self.names, self.sizes, strict=True)}
        nothing = (0,) * len(self.names)
        self._account = _Account(nothing, nothing)
        self._step = 0
        self._periods: list[_Period] = []
        self._counters: list[_Counter] = []
        self.set_shares(by_size if shares is None else shares)

    @property
    def step(self) -> int:
        """The number of batches drawn so far, which is the number of the next one."""
        return self._step

    @property
    def shares(self) -> dict[str, float]:
        """The share of each domain at present."""
        return {name: share / _UNIT for name, share in zip(self.names, self._periods[-1].shares, strict=True)}

    @property
    def given(self) -> dict[str, int]:
        """The rows that each domain has given so far."""
        return dict(zip(self.names, self._account.given, strict=True))

    def set_shares(self, shares: Mapping[str, float]) -> None:
        """Mix in these shares from the next batch on.

        Errors: :class:`~latewood.core.errors.ConfigurationError` if they don't name each domain, are negative, or don't
        add up to 1 within 0.000001; the shares then stay as they are.
        """
        whole = _whole_shares(shares, self.names)
        if self._periods and self._periods[-1].shares == whole:
            return
        if self._periods and self._periods[-1].step == self._step:
            self._periods.pop()
            self._counters.pop()
        self._periods.append(_Period(self._step, whole, list(self._account.given), list(self._account.owed)))
        self._counters.append(self._counter(self._periods[-1]))

    def draw(self) -> Data:
        """The next batch."""
        before, after = self._around(self._step)
        batch = self._batch(before.given, after.given)
        self._account, self._step = after, self._step + 1
        return batch

    def read(self, step: int) -> Data:
        """Batch number ``step``, whether it is drawn already or yet to come under the present shares; draws nothing."""
        before, after = self._around(step)
        return self._batch(before.given, after.given)

    def address(self, step: int, row: int, column: int) -> int:
        """The number of a token in the stream, from 0.

        Errors: :class:`~latewood.core.errors.DataError` if there is no such place.
        """
        if step < 0 or not 0 <= row < self.batch_size or not 0 <= column < self.length:
            raise DataError(
                f"There is no token in step {step}, row {row}, column {column}: steps count from 0, rows from 0 to "
                f"{self.batch_size - 1} and columns from 0 to {self.length - 1}."
            )
        return (step * self.batch_size + row) * self.length + column

    def place(self, address: int) -> tuple[int, int, int]:
        """Step, row and column of a token: the reverse of :meth:`address`.

        Errors: :class:`~latewood.core.errors.DataError` for a negative number.
        """
        if address < 0:
            raise DataError(f"There is no token {address}: addresses count from 0.")
        line, column = divmod(address, self.length)
        return *divmod(line, self.batch_size), column

    def origin(self, step: int, row: int) -> Origin:
        """Which block of which domain lies in a row of a batch, whether it is drawn already or yet to come under the
        present shares. Draws nothing and reads no tokens. Where batches soon repeat their counts, as with shares like 0.7
        and 0.3 or 1/3, any batch is as near as the next; with others, some 20 microseconds go by, once, for each batch
        since the shares were set.

        Errors: :class:`~latewood.core.errors.DataError` if there is no such row.
        """
        self.address(step, row, 0)
        before, after = self._around(step)
        for domain, (first, last) in enumerate(zip(before.given, after.given, strict=True)):
            if row < last - first:
                number_of_pass, within = divmod(first + row, self.sizes[domain])
                return Origin(self.names[domain], number_of_pass, int(self._order(domain, number_of_pass)[within]))
            row -= last - first
        raise AssertionError("a batch has batch_size rows")

    def state(self) -> dict[str, Any]:
        """All that is needed, beside the domains, to go on with exactly the same batches; JSON can hold it."""
        return {
            "domains": self._identity(),
            "step": self._step,
            "given": list(self._account.given),
            "owed": list(self._account.owed),
            "periods": [asdict(period) for period in self._periods],
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from where :meth:`state` was taken.

        Errors: :class:`~latewood.core.errors.CheckpointError` if it belongs to other domains, another batch size or
        another seed, or is damaged; the mixture then stays as it is.
        """
        try:
            theirs, step = dict(state["domains"]), int(state["step"])
            account = _Account(tuple(map(int, state["given"])), tuple(map(int, state["owed"])))
            periods = [_period(period) for period in state["periods"]]
            widths = {len(values) for p in periods for values in (p.shares, p.given, p.owed)} | set(map(len, account))
        except (KeyError, TypeError, ValueError):
            raise CheckpointError("This is no state of a mixture; take what state() of a mixture gave.") from None
        for fact, value in self._identity().items():
            if theirs.get(fact) != value:
                raise CheckpointError(f"This state belongs to a mixture with other {fact}; give the same as when it was taken.")
        starts = [period.step for period in periods]
        ordered = starts[:1] == [0] and starts == sorted(set(starts)) and starts[-1] <= step
        if widths != {len(self.names)} or not ordered or sum(account.given) != step * self.batch_size:
            raise CheckpointError("The state of the mixture is damaged; take an older one.")
        self._periods, self._counters = periods, list(map(self._counter, periods))
        self._account, self._step = account, step

    def _identity(self) -> dict[str, Any]:
        self._fingerprints = self._fingerprints or [_fingerprint(data) for data in self._domains]
        return {
            "names": list(self.names),
            "corpora": self._fingerprints,
            "batch_size": self.batch_size,
            "seed": self.seed,
        }

    def _counter(self, period: _Period) -> _Counter:
        return _Counter(_Account(tuple(period.given), tuple(period.owed)), period.shares, self.batch_size)

    def _around(self, step: int) -> tuple[_Account, _Account]:
        """The accounts before and after a batch."""
        if step < 0:
            raise DataError(f"There is no batch {step}: steps count from 0.")
        number = bisect_right(self._periods, step, key=lambda period: period.step) - 1
        period = self._periods[number]
        before = self._account if step == self._step else self._counters[number].account(step - period.step)
        return before, _after(before, period.shares, self.batch_size)

    def _batch(self, before: Sequence[int], after: Sequence[int]) -> Data:
        tokens = torch.empty(self.batch_size, self.length, dtype=torch.int32)
        domains = torch.empty(self.batch_size, dtype=torch.int64)
        start = 0
        for domain, (first, last) in enumerate(zip(before, after, strict=True)):
            domains[start : start + last - first] = domain
            for rows in self._drawn(domain, first, last):
                torch.index_select(self._tokens[domain], 0, rows, out=tokens[start : start + len(rows)])
                start += len(rows)
        return Data(tokens=tokens, domain=domains)

    def _drawn(self, domain: int, first: int, last: int) -> Iterator[Tensor]:
        """The rows of the column that the ``first``-th up to the ``last``-th row of a domain are, a piece for each pass."""
        size, rows = self.sizes[domain], self._rows[domain]
        while first < last:
            number_of_pass, within = divmod(first, size)
            taken = min(last - first, size - within)
            chosen = self._order(domain, number_of_pass)[within : within + taken]
            yield chosen if rows is None else rows[chosen]
            first += taken

    def _order(self, domain: int, number_of_pass: int) -> Tensor:
        held = self._orders[domain]
        if number_of_pass not in held:
            # A batch may touch two passes, and looking back at most a few.
            while len(held) > 1:
                del held[next(iter(held))]
            chance = generator(self.seed, self.names[domain], number_of_pass)
            held[number_of_pass] = torch.randperm(self.sizes[domain], generator=chance)
        return held[number_of_pass]


def by_source(data: Data, otherwise: str = "arrival") -> dict[str, Data]:
    """The rows of each source: views, by the names in the column ``source``, in the order in which they first occur.

    Without such a column all rows are of one source, called ``otherwise``.

    >>> parts = by_source(Data(tokens=torch.zeros(3, 4, dtype=torch.int32), source=["en", "fr", "en"]))
    >>> {name: len(part) for name, part in parts.items()}
    {'en': 2, 'fr': 1}
    """
    if "source" not in data:
        return {otherwise: data}
    places: dict[str, list[int]] = {}
    for row, name in enumerate(data["source"]):
        places.setdefault(name, []).append(row)
    return {name: data if len(rows) == len(data) else data[rows] for name, rows in places.items()}


def _period(held: Mapping[str, Any]) -> _Period:
    shares, given, owed = ([int(value) for value in held[name]] for name in ("shares", "given", "owed"))
    return _Period(int(held["step"]), shares, given, owed)


def _after(account: _Account, shares: Sequence[int], rows: int) -> _Account:
    """The account after a batch of ``rows`` rows."""
    owed = [debt + share * rows for debt, share in zip(account.owed, shares, strict=True)]
    # With k domains there is always a way in which none is ever behind or ahead by more than 1 - 1 / (2k - 2).
    slack = _UNIT // max(2, 2 * sum(map(bool, shares)) - 2)
    bound = _UNIT - slack
    counts = [max(0, -((bound - debt) // _UNIT)) if share else 0 for debt, share in zip(owed, shares, strict=True)]
    owed = [debt - count * _UNIT for debt, count in zip(owed, counts, strict=True)]
    left = rows - sum(counts)
    while left:
        step = 1 if left > 0 else -1
        chosen = _next_to_give(owed, shares, slack) if left > 0 else _least_owed(owed, counts)
        counts[chosen] += step
        owed[chosen] -= step * _UNIT
        left -= step
    given = tuple(before + count for before, count in zip(account.given, counts, strict=True))
    return _Account(given, tuple(owed))


def _next_to_give(owed: Sequence[int], shares: Sequence[int], slack: int) -> int:
    """Of the domains that would not get too far ahead, the one that would be too far behind the soonest."""
    active = [domain for domain, share in enumerate(shares) if share]
    ready = [domain for domain in active if owed[domain] >= slack]
    if not ready:  # after a change of shares, or where a domain of share 0 is still owed something
        return max(active, key=lambda domain: owed[domain])
    return min(ready, key=lambda domain: (_UNIT - slack - owed[domain]) / shares[domain])


def _least_owed(owed: Sequence[int], counts: Sequence[int]) -> int:
    """Where more whole rows are owed than a batch has, as may be after a change of shares: who waits."""
    return min((domain for domain, count in enumerate(counts) if count), key=lambda domain: owed[domain])


def _whole_shares(shares: Mapping[str, float], names: Sequence[str]) -> list[int]:
    if set(shares) != set(names):
        raise ConfigurationError(
            f"Shares must name each domain ({', '.join(names)}), but they name {', '.join(map(str, shares)) or 'none'}."
        )
    for name, share in shares.items():
        if not 0 <= share < math.inf:
            raise ConfigurationError(f"The share of {name!r} must lie between 0 and 1, but it is {share}.")
    total = math.fsum(shares.values())
    if abs(total - 1) > 1e-6:
        raise ConfigurationError(f"Shares must add up to 1, but these add up to {total:.7g}.")
    whole = [round(shares[name] / total * _UNIT) for name in names]
    whole[whole.index(max(whole))] += _UNIT - sum(whole)
    return whole


def _common_length(domains: Mapping[str, Data]) -> int:
    if not domains:
        raise ConfigurationError("A mixture needs at least one domain.")
    lengths: dict[str, int] = {}
    for name, data in domains.items():
        if len(data) == 0:
            raise DataError(f"The domain {name!r} holds no rows; a mixture can't draw from it.")
        # Of a view, the first row only: reading its column would copy it.
        row = data[:1].tensor("tokens")
        if row.dtype != torch.int32 or row.dim() != 2:
            raise DataError(
                f"The tokens of the domain {name!r} must be int32 of shape (n, length), but they are "
                f"{str(row.dtype).removeprefix('torch.')} of shape (n{''.join(f', {size}' for size in row.shape[1:])})."
            )
        lengths[name] = row.shape[1]
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise DataError(f"The rows of all domains must be equally long, but their tokens are {listed}.")
    return next(iter(lengths.values()))


def _is_whole(data: Data) -> bool:
    return len(data) == len(data.base) and torch.equal(data.rows, data.base.rows)


def _fingerprint(data: Data) -> str:
    """Of the contents of the table, and of which of its rows these are."""
    contents = data.fingerprint("tokens")
    return contents if _is_whole(data) else Data(table=[contents], rows=[data.rows]).fingerprint()
