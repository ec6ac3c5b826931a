"""A mixture: shares exact after every batch, no block twice in a pass, the same after a death, every place addressable."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latewood.core.data import Data
from latewood.core.errors import CheckpointError, ConfigurationError, DataError
from latewood.language.corpora import load_blocks
from latewood.language.mixture import Mixture, Origin, by_source


def domain(number: int, rows: int, length: int = 4) -> Data:
    """Rows that tell where they come from: domain, row, column."""
    row, column = torch.arange(rows)[:, None], torch.arange(length)[None]
    return Data(tokens=(number * 1_000_000 + row * 100 + column).int())


def domains(*rows: int) -> dict[str, Data]:
    return {f"d{number}": domain(number, count) for number, count in enumerate(rows)}


def mixture(rows: tuple[int, ...] = (7, 30, 11), batch_size: int = 5, seed: int = 0, **shares: float) -> Mixture:
    return Mixture(domains(*rows), shares or {"d0": 0.5, "d1": 0.3, "d2": 0.2}, batch_size=batch_size, seed=seed)


def where_from(batch: Data) -> list[tuple[int, int]]:
    """Domain and block of each row, read off the tokens."""
    return [(first // 1_000_000, first % 1_000_000 // 100) for first in batch["tokens"][:, 0].tolist()]


def normal(weights: list[float]) -> list[float]:
    return [weight / sum(weights) for weight in weights]


# Shares


@settings(deadline=None, max_examples=80)
@given(
    weights=st.lists(st.floats(1e-4, 1.0), min_size=1, max_size=10),
    batch_size=st.integers(1, 20),
)
def test_no_domain_is_ever_a_whole_row_away_from_its_share(weights: list[float], batch_size: int) -> None:
    shares = normal(weights)
    names = [f"d{number}" for number in range(len(shares))]
    mix = Mixture({name: domain(0, 3, 2) for name in names}, dict(zip(names, shares, strict=True)), batch_size=batch_size)
    bound = 1 - 1 / max(2, 2 * len(names) - 2) if len(names) > 1 else 0.0
    for step in range(1, 60):
        batch = mix.draw()
        assert len(batch) == batch_size
        for given_rows, share in zip(mix.given.values(), shares, strict=True):
            assert abs(given_rows - share * step * batch_size) <= bound + 1e-6 < 1
        assert sum(mix.given.values()) == step * batch_size


def largest_remainder(shares: list[float], batch_size: int, steps: int) -> float:
    """The farthest that plain rounding by largest remainder, with the rest carried over, gets away from the shares."""
    owed, worst = [0.0] * len(shares), 0.0
    for _ in range(steps):
        owed = [debt + share * batch_size for debt, share in zip(owed, shares, strict=True)]
        counts = [max(0, int(debt // 1)) for debt in owed]
        rest = [debt - count for debt, count in zip(owed, counts, strict=True)]
        for number in sorted(range(len(shares)), key=lambda i: -rest[i])[: batch_size - sum(counts)]:
            counts[number] += 1
        owed = [debt - count for debt, count in zip(owed, counts, strict=True)]
        worst = max(worst, *map(abs, owed))
    return worst


def test_many_small_shares_stay_within_a_row_where_the_largest_remainder_would_not() -> None:
    shares = [0.004] * 5 + [0.49] * 2
    assert largest_remainder(shares, 1, 3000) > 1
    names = [f"d{number}" for number in range(7)]
    mix = Mixture({name: domain(0, 3, 2) for name in names}, dict(zip(names, shares, strict=True)), batch_size=1)
    for step in range(1, 3000):
        mix.draw()
        assert max(abs(rows - share * step) for rows, share in zip(mix.given.values(), shares, strict=True)) < 1


@settings(deadline=None, max_examples=40)
@given(chance=st.randoms(use_true_random=False), count=st.integers(2, 6))
def test_what_is_owed_is_carried_over_when_shares_change(chance: random.Random, count: int) -> None:
    """For two domains whatever the shares; for more as long as each has a share of one row in a batch."""
    names = [f"d{number}" for number in range(count)]
    batch_size = chance.randint(count, 24)
    least = 0.0 if count == 2 else 1 / batch_size
    ideal = [0.0] * count
    mix = Mixture({name: domain(0, 3, 2) for name in names}, batch_size=batch_size)
    for _ in range(40):
        weights = normal([chance.random() ** chance.choice([1, 6]) + 1e-9 for _ in names])
        shares = [least + (1 - count * least) * weight for weight in weights]
        mix.set_shares(dict(zip(names, shares, strict=True)))
        mix.draw()
        ideal = [total + share * batch_size for total, share in zip(ideal, shares, strict=True)]
        assert all(abs(rows - total) < 1 for rows, total in zip(mix.given.values(), ideal, strict=True))


def test_slowly_rising_shares_are_not_rounded_away() -> None:
    """A share of less than a row in a batch, changed before every batch, still adds up."""
    mix, total = mixture((5, 5), 16, d0=1.0, d1=0.0), 0.0
    for step in range(1000):
        share = 0.03 * step / 1000
        mix.set_shares({"d0": 1 - share, "d1": share})
        mix.draw()
        total += 16 * share
    assert abs(mix.given["d1"] - total) <= 0.51


def test_a_domain_of_share_zero_gives_no_row_from_then_on() -> None:
    mix = mixture()
    assert mixture(d0=0.0, d1=1.0, d2=0.0).draw()["domain"].tolist() == [1] * 5
    for _ in range(3):
        mix.draw()
    before = mix.given
    mix.set_shares({"d0": 0.0, "d1": 0.9, "d2": 0.1})
    for _ in range(50):
        assert 0 not in mix.draw()["domain"]
    assert mix.given["d0"] == before["d0"]


def test_shares_follow_the_sizes_of_domains_unless_they_are_given() -> None:
    assert Mixture(domains(10, 30)).shares == {"d0": 0.25, "d1": 0.75}


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"d0": 0.5, "d1": 0.5}, r"must name each domain \(d0, d1, d2\), but they name d0, d1"),
        ({"d0": 0.5, "d1": 0.5, "d2": 0.1}, "must add up to 1, but these add up to 1.1"),
        ({"d0": 1.2, "d1": -0.2, "d2": 0.0}, "share of 'd1' must lie between 0 and 1, but it is -0.2"),
        ({"d0": float("nan"), "d1": 0.5, "d2": 0.5}, "share of 'd0' must lie between 0 and 1, but it is nan"),
    ],
)
def test_shares_that_are_none_are_refused_and_nothing_changes(shares: dict[str, float], message: str) -> None:
    mix = mixture()
    before = mix.state()
    with pytest.raises(ConfigurationError, match=message):
        mix.set_shares(shares)
    assert mix.state() == before
    mix.set_shares({"d0": 0.5 + 5e-7, "d1": 0.3, "d2": 0.2})


# Batches


def test_a_batch_holds_the_tokens_of_its_blocks_and_the_number_of_each_domain() -> None:
    mix = mixture()
    for step in range(20):
        batch = mix.draw()
        assert batch["tokens"].dtype == torch.int32 and batch["domain"].dtype == torch.int64
        assert [number for number, _ in where_from(batch)] == batch["domain"].tolist()
        for row, (number, block) in enumerate(where_from(batch)):
            assert torch.equal(batch["tokens"][row], domain(number, 30)["tokens"][block])
            origin = mix.origin(step, row)
            assert (origin.domain, origin.block) == (f"d{number}", block)


def test_no_block_returns_before_its_domain_was_read_and_every_pass_has_an_order_of_its_own() -> None:
    mix = mixture()
    drawn: list[list[int]] = [[], [], []]
    for _ in range(60):
        for number, block in where_from(mix.draw()):
            drawn[number].append(block)
    for size, blocks in zip((7, 30, 11), drawn, strict=True):
        passes = [blocks[start : start + size] for start in range(0, len(blocks) - size + 1, size)]
        assert len(passes) >= 2
        assert all(sorted(one) == list(range(size)) for one in passes)
        assert len({tuple(one) for one in passes}) == len(passes)


def test_a_batch_may_be_larger_than_a_domain() -> None:
    mix = mixture((2, 3), 16, d0=0.5, d1=0.5)
    blocks = [block for number, block in where_from(mix.draw()) if number == 0]
    assert len(blocks) == 8 and all(sorted(blocks[i : i + 2]) == [0, 1] for i in range(0, 8, 2))


def test_the_seed_and_the_name_decide_the_order_of_a_domain() -> None:
    first, same, other = (mixture(seed=seed).draw()["tokens"] for seed in (0, 0, 1))
    assert torch.equal(first, same) and not torch.equal(first, other)
    alone = Mixture({"d1": domain(1, 30)}, batch_size=3)
    beside = mixture((7, 30), 6, d0=0.5, d1=0.5).draw()
    assert torch.equal(alone.draw()["tokens"], beside["tokens"][3:])


def test_views_and_memory_mapped_blocks_are_drawn_from_like_tables(tmp_path: Path) -> None:
    whole = domain(1, 30)
    np.asarray(whole["tokens"]).tofile(tmp_path / "tokens")
    mapped = Data(tokens=np.memmap(tmp_path / "tokens", np.int32, "c", shape=(30, 4)))
    chosen = [28, 3, 4, 17, 9]
    view = Mixture({"d1": mapped[chosen]}, batch_size=5)
    blocks = [block for _, block in where_from(view.draw())]
    assert sorted(blocks) == sorted(chosen)
    assert [chosen[view.origin(0, row).block] for row in range(5)] == blocks
    first, second = Mixture({"d1": mapped[:20]}).draw(), Mixture({"d1": Data(tokens=whole["tokens"][:20])}).draw()
    assert torch.equal(first["tokens"], second["tokens"])


# Addresses


@settings(deadline=None)
@given(step=st.integers(0, 10**9), row=st.integers(0, 4), column=st.integers(0, 3))
def test_addresses_and_places_are_one_another_reversed(step: int, row: int, column: int) -> None:
    mix = mixture()
    address = mix.address(step, row, column)
    assert address == step * 5 * 4 + row * 4 + column
    assert mix.place(address) == (step, row, column)


@pytest.mark.parametrize("place", [(-1, 0, 0), (0, 5, 0), (0, 0, 4), (0, -1, 0)])
def test_places_that_do_not_exist_are_told(place: tuple[int, int, int]) -> None:
    with pytest.raises(DataError, match="There is no token in step"):
        mixture().address(*place)
    with pytest.raises(DataError, match="There is no"):
        mixture().origin(place[0], place[1] if place[2] == 0 else 9)
    with pytest.raises(DataError, match="There is no token -1"):
        mixture().place(-1)
    with pytest.raises(DataError, match="There is no batch -1"):
        mixture().read(-1)


@pytest.mark.parametrize("exact", [True, False], ids=["shares that come round", "shares that do not"])
def test_any_batch_can_be_told_and_read_before_and_after_it_is_drawn(exact: bool) -> None:
    shares = (0.5, 0.3, 0.2) if exact else (0.5 - 1 / 3e5, 0.3 + 1 / 3e5, 0.2)
    given_shares = dict(zip(("d0", "d1", "d2"), shares, strict=True))
    watched, told = mixture(**given_shares), mixture(**given_shares)
    changes = {37: {"d0": 0.1, "d1": 0.1, "d2": 0.8}, 300: {"d0": 1 / 3, "d1": 1 / 3, "d2": 1 / 3}}
    ahead, batches = {later: watched.read(later) for later in (36, 0, 17)}, []
    for step in range(600):
        if step in changes:
            watched.set_shares(changes[step])
            last = {37: 299, 300: 599}[step]
            ahead |= {later: watched.read(later) for later in (last, step, step + 5)}
        batches.append(watched.draw())
    for step, batch in ahead.items():
        assert torch.equal(batch["tokens"], batches[step]["tokens"])
    for step in (599, 0, 36, 37, 38, 299, 300, 301, 555):
        assert torch.equal(watched.read(step)["tokens"], batches[step]["tokens"])
        for row, (number, block) in enumerate(where_from(batches[step])):
            origin = watched.origin(step, row)
            assert (origin.domain, origin.block) == (f"d{number}", block)
    assert watched.step == 600 and told.step == 0
    assert torch.equal(told.read(36)["tokens"], batches[36]["tokens"])


def test_the_pass_of_a_row_counts_how_often_its_domain_was_read() -> None:
    mix = mixture((7,), 5, d0=1.0)
    assert [mix.origin(1, row).number_of_pass for row in range(5)] == [0, 0, 1, 1, 1]
    far = mix.origin(10**9, 2)
    assert isinstance(far, Origin) and far.number_of_pass == (5 * 10**9 + 2) // 7


# States


@pytest.mark.parametrize("at", [0, 1, 23, 40, 90])
def test_a_killed_run_goes_on_with_exactly_the_same_batches(at: int) -> None:
    def changed(mix: Mixture) -> None:
        if mix.step == 23:
            mix.set_shares({"d0": 0.05, "d1": 0.9, "d2": 0.05})
        if mix.step == 60:
            mix.set_shares({"d0": 1 / 3, "d1": 1 / 3, "d2": 1 / 3})

    whole, state, batches = mixture(), "", []
    for _ in range(100):
        if whole.step == at:
            state = json.dumps(whole.state())
        changed(whole)
        batches.append(whole.draw())
    again = mixture()
    again.draw()
    again.load_state(json.loads(state))
    assert again.step == at
    for step in range(at, 100):
        changed(again)
        batch = again.draw()
        assert torch.equal(batch["tokens"], batches[step]["tokens"])
        assert torch.equal(batch["domain"], batches[step]["domain"])
    assert again.given == whole.given and again.state() == whole.state()
    assert [again.origin(step, 3) for step in range(100)] == [whole.origin(step, 3) for step in range(100)]


def plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and plain(inner) for key, inner in value.items())
    return all(map(plain, value)) if isinstance(value, list) else isinstance(value, int | float | str)


def test_a_state_is_plain_numbers_and_loading_one_does_not_tie_two_mixtures_together() -> None:
    one, two = mixture(), mixture()
    one.draw()
    state = one.state()
    assert plain(state)
    two.load_state(state)
    two.set_shares({"d0": 0.2, "d1": 0.3, "d2": 0.5})
    two.draw()
    assert one.state() == state


@pytest.mark.parametrize(
    ("other", "fact"),
    [
        (mixture(seed=1), "seed"),
        (mixture(batch_size=6), "batch_size"),
        (mixture((7, 31, 11)), "corpora"),
        (Mixture({"d0": domain(0, 7)[[0, 1, 2, 3, 4, 6]], "d1": domain(1, 30), "d2": domain(2, 11)}, batch_size=5), "corpora"),
        (Mixture({"d2": domain(2, 11), "d1": domain(1, 30), "d0": domain(0, 7)}, batch_size=5), "names"),
    ],
)
def test_a_state_of_another_mixture_is_refused(other: Mixture, fact: str) -> None:
    mix = mixture()
    mix.draw()
    before = other.state()
    with pytest.raises(CheckpointError, match=f"belongs to a mixture with other {fact}"):
        other.load_state(mix.state())
    assert other.state() == before


def test_a_damaged_state_is_refused() -> None:
    mix = mixture()
    mix.draw()
    good = mix.state()
    for bad in ({}, {**good, "step": 7}, {**good, "given": [5]}, {**good, "periods": []}, {**good, "owed": "x"}):
        with pytest.raises(CheckpointError, match="state"):
            mixture().load_state(bad)


# What is refused, and what it costs


def test_domains_that_do_not_fit_together_get_a_sentence() -> None:
    with pytest.raises(ConfigurationError, match="at least one domain"):
        Mixture({})
    with pytest.raises(DataError, match="'b' holds no rows"):
        Mixture({"a": domain(0, 3), "b": domain(0, 3)[:0]})
    with pytest.raises(DataError, match="equally long, but their tokens are a 4, b 8"):
        Mixture({"a": domain(0, 3), "b": domain(0, 3, 8)})
    with pytest.raises(DataError, match=r"must be int32 of shape \(n, length\), but they are int64 of shape \(n, 4\)"):
        Mixture({"a": Data(tokens=torch.zeros(3, 4, dtype=torch.int64))})
    with pytest.raises(ConfigurationError, match="batch_size must be at least 1"):
        Mixture(domains(3), batch_size=0)


def test_drawing_costs_less_than_three_tenths_of_a_millisecond_beyond_the_copy(real_data: Path) -> None:
    """The best of many, since other work may slow any one of them."""
    data = {name: load_blocks(name).train for name in ("en", "fr", "de")}
    mix = Mixture(data, {"en": 0.5, "fr": 0.3, "de": 0.2}, batch_size=16)
    columns = [part.tensor("tokens") for part in data.values()]
    rows = [torch.randint(len(column), (6,)) for column in columns]

    def seconds(action: Any) -> float:
        best = float("inf")
        for _ in range(300):
            start = time.perf_counter()
            action()
            best = min(best, time.perf_counter() - start)
        return best

    copy = seconds(lambda: torch.cat([column[chosen] for column, chosen in zip(columns, rows, strict=True)]))
    assert seconds(mix.draw) - copy < 0.0003


def test_a_far_batch_is_told_at_once_where_shares_come_round() -> None:
    start = time.perf_counter()
    mixture(d0=0.7, d1=0.2, d2=0.1).origin(10**12, 0)
    mixture(d0=1 / 3, d1=1 / 3, d2=1 / 3).origin(10**12, 0)
    assert time.perf_counter() - start < 1


def test_rows_are_told_apart_by_their_source_without_a_copy() -> None:
    data = Data(tokens=torch.arange(12, dtype=torch.int32).reshape(4, 3), source=["b", "a", "b", "b"])
    parts = by_source(data)
    assert list(parts) == ["b", "a"]
    assert parts["b"].rows.tolist() == [0, 2, 3] and parts["a"]["tokens"].tolist() == [[3, 4, 5]]
    assert all(part.base.tensor("tokens").data_ptr() == data.tensor("tokens").data_ptr() for part in parts.values())
    assert by_source(data.select("tokens"))["arrival"]["tokens"].shape == (4, 3)
