"""The test of independence: what it finds when something is planted, and that it finds nothing when nothing is there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike
from torch import nn
from torch.nn import functional as F

from latewood.core.errors import ConfigurationError, DataError
from latewood.studies.train_once.interference import ALL, EXCESS, NONE, Interference, collect, cpdt, holm

CITIES, KINDS, ITEMS = 60, 20, 20


def facts(first: int, seed: int = 0) -> list[tuple[int, int]]:
    """Made-up knowledge: each of 20 questions from ``first`` on has a random answer."""
    chance = np.random.default_rng((first, seed))
    return [(first + place, int(chance.integers(KINDS))) for place in range(ITEMS)]


SETS = {"one": facts(0), "two": facts(20), "three": facts(40)}


def trained(sets: dict[str, list[tuple[int, int]]]) -> Callable[[tuple[str, ...], int], dict[str, ArrayLike]]:
    """A tiny embedding and linear layer that learns the facts of what is active, on a common background of noise."""

    def run(active: tuple[str, ...], seed: int) -> dict[str, ArrayLike]:
        torch.manual_seed(seed)
        # Questions are embedded apart from one another, so sets of other questions share only the last layer's bias.
        embedding = nn.Embedding(CITIES, CITIES)
        nn.init.eye_(embedding.weight)
        head = nn.Linear(CITIES, KINDS, bias=False)
        optimizer = torch.optim.SGD(head.parameters(), 8.0)
        chance = torch.Generator().manual_seed(seed)
        for _ in range(40):
            asked = torch.randint(0, CITIES, (120,), generator=chance)
            answered = torch.randint(0, KINDS, (120,), generator=chance)
            # Every set has rows of its own, whether it is active or not: the rest of the data stays the same.
            places = torch.randperm(120, generator=chance).split(ITEMS)
            for mine, (name, known) in zip(places, sets.items(), strict=False):
                if name in active:
                    asked[mine], answered[mine] = (torch.tensor(column) for column in zip(*known, strict=True))
            optimizer.zero_grad()
            F.cross_entropy(head(embedding(asked)), answered).backward()
            optimizer.step()
        outcome = {}
        for name, known in sets.items():
            questions, answers = (torch.tensor(column) for column in zip(*known, strict=True))
            with torch.no_grad():
                outcome[name] = head(embedding(questions)).softmax(1)[torch.arange(len(known)), answers].numpy()
        return outcome

    return run


def made(
    effects: dict[tuple[str, str], float], names: tuple[str, ...] = ("a", "b"), seeds: int = 3, seed: int = 0
) -> Interference:
    """A test on outcomes with effects of known size under noise of items and seeds; both together by default add up."""
    chance = np.random.default_rng(seed)
    base = {name: chance.normal(0, 0.1, (seeds, 40)) for name in names}
    outcomes: dict[str, dict[str, ArrayLike]] = {NONE: dict(base)}
    for trained_on in (*names, ALL):
        row = {}
        for name in names:
            sources = names if trained_on == ALL else (trained_on,)
            shift = effects.get((trained_on, name), sum(effects.get((source, name), 0.0) for source in sources))
            row[name] = base[name] + shift + chance.normal(0, 0.05, (seeds, 40)) + chance.normal(0, 0.01, (seeds, 1))
        outcomes[trained_on] = dict(row)
    return cpdt(outcomes)


def test_disjoint_experiments_are_independent_and_each_has_its_own_effect() -> None:
    result = cpdt(collect(trained(SETS), tuple(SETS)))
    matrix = result.matrix
    assert matrix.shape == (4, 3)
    assert (np.diag(matrix) > 0.1).all()
    for trained_on in SETS:
        for tested in SETS:
            entry = result.entry(trained_on, tested)
            assert entry is not None
            if trained_on == tested:
                assert entry.low > 0
                assert entry.significant
            else:
                assert not entry.significant
                assert abs(entry.effect) < 0.25 * matrix[:3].max()
    assert [e for e in result.dependent if e.trained != EXCESS] == []
    assert result.weak == ()


def test_an_experiment_under_another_name_acts_as_the_experiment_itself() -> None:
    sets = {"one": SETS["one"], "again": SETS["one"], "two": SETS["two"]}
    result = cpdt(collect(trained(sets), tuple(sets)))
    matrix = result.matrix
    assert matrix[0, 1] == pytest.approx(matrix[0, 0])
    assert matrix[1, 0] == pytest.approx(matrix[1, 1])
    found = {(entry.trained, entry.tested) for entry in result.dependent if entry.trained != EXCESS}
    assert found == {("one", "again"), ("again", "one")}
    assert not result.independent
    assert "Training on one adds" in result.describe()


def test_two_experiments_that_share_half_of_their_facts_are_found_dependent() -> None:
    sets = {"one": SETS["one"], "half": SETS["one"][10:] + SETS["two"][:10], "three": SETS["three"]}
    result = cpdt(collect(trained(sets), tuple(sets), seeds=4))
    found = {(entry.trained, entry.tested) for entry in result.dependent if entry.trained != EXCESS}
    assert found == {("one", "half"), ("half", "one")}
    assert result.relative[0, 1] > 0.25
    assert result.relative[1, 0] > 0.25


def test_training_on_what_adds_nothing_gives_a_row_of_zeros() -> None:
    run = trained(SETS)

    def with_nothing(active: tuple[str, ...], seed: int) -> dict[str, ArrayLike]:
        return {**run(tuple(name for name in active if name != "nothing"), seed), "nothing": [0.1, 0.2]}

    result = cpdt(collect(with_nothing, ("nothing", "one", "two"), seeds=2))
    assert result.matrix[0].tolist() == [0.0, 0.0, 0.0]
    for tested in ("one", "two"):
        entry = result.entry("nothing", tested)
        assert entry is not None
        assert entry.p > 0.99
        assert entry.low <= 0 <= entry.high
    assert result.weak == ("nothing",)
    assert "No effect of its own was found for nothing" in result.describe()


def test_the_interval_covers_the_effect_as_often_as_it_says_and_nothing_is_found_where_nothing_is() -> None:
    names = ("a", "b", "c", "d")
    own = {(name, name): 0.5 for name in names}
    covered, found, runs = 0, 0, 40
    for seed in range(runs):
        result = made(own, names, seed=seed)
        others = [e for e in result.entries if e.trained in names and e.trained != e.tested]
        covered += sum(e.low <= 0 <= e.high for e in others)
        found += any(e.significant for e in others)
        assert result.weak == ()
    assert covered / (runs * 12) > 0.9
    assert found / runs < 0.15


def test_what_the_joint_run_adds_to_an_own_effect_is_found() -> None:
    result = made({("a", "a"): 0.5, ("b", "b"): 0.5, (ALL, "a"): 0.8, (ALL, "b"): 0.5})
    assert [(entry.trained, entry.tested) for entry in result.dependent] == [(EXCESS, "a")]
    excess = result.entry(EXCESS, "a")
    assert excess is not None
    assert excess.low < 0.3 < excess.high
    assert "Training on all together adds" in result.describe()
    assert made({("a", "a"): 0.5, ("b", "b"): 0.5}).independent


def test_a_weak_own_effect_makes_the_test_say_nothing() -> None:
    result = made({("a", "a"): 0.5})
    assert result.weak == ("b",)
    assert not result.independent


def test_an_experiment_that_can_not_run_alone_is_tested_on_and_marked() -> None:
    run = trained(SETS)
    asked: list[tuple[str, ...]] = []

    def noted(active: tuple[str, ...], seed: int) -> dict[str, ArrayLike]:
        asked.append(active)
        return run(active, seed)

    result = cpdt(collect(noted, tuple(SETS), seeds=1, alone=("one", "two")))
    assert asked == [(), ("one",), ("two",), ("one", "two")]
    assert np.isnan(result.matrix[2]).all()
    assert np.isfinite(result.matrix[:2]).all()
    assert result.untested == ("three",)
    assert "| three | - | - | - |" in result.table()
    assert "1 seed can't tell" in result.describe()


def test_the_same_outcomes_give_the_same_result_and_it_survives_json() -> None:
    result = made({("a", "a"): 0.5, ("a", "b"): 0.2})
    assert result == made({("a", "a"): 0.5, ("a", "b"): 0.2})
    assert Interference.from_json(result.to_json()) == result
    with pytest.raises(DataError, match="no result of a test"):
        Interference.from_json('{"names": 3}')


def test_the_table_shows_what_is_significant_in_bold() -> None:
    lines = made({("a", "a"): 0.5, ("b", "b"): 0.5}).table().splitlines()
    assert lines[0] == "| trained on | a | b |"
    assert lines[2].count("**") == 2
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| a", "| b", "| all", "| all less own"]


@pytest.mark.parametrize("seed", range(20))
def test_holm_agrees_with_its_definition(seed: int) -> None:
    values = np.random.default_rng(seed).uniform(0, 0.1, 7) ** 2
    found = holm(values)
    for k in range(len(values)):
        smaller = sorted(values)
        expected = all(smaller[i] <= 0.05 / (len(values) - i) for i in range(smaller.index(values[k]) + 1))
        assert found[k] == expected
    assert holm([]).tolist() == []


def test_after_the_first_that_fails_holm_finds_nothing_more() -> None:
    assert holm([0.02, 0.03, 0.04]).tolist() == [False, False, False]
    assert holm([0.04, 0.001, 0.03]).tolist() == [False, True, False]


def test_outcomes_that_can_not_be_compared_are_told() -> None:
    good = [[0.0, 1.0]]
    with pytest.raises(DataError, match="run on none"):
        cpdt({"a": {"a": good}})
    for bad in ([[0.0, 1.0, 2.0]], [0.0, 1.0], [[0.0, float("nan")]]):
        with pytest.raises(DataError, match="outcome of 'a' after training on 'a' must be finite"):
            cpdt({NONE: {"a": good}, "a": {"a": bad}})
    for names in (("a",), ("a", "a"), ("a", NONE)):
        with pytest.raises(ConfigurationError, match="at least two experiments of different names"):
            collect(lambda active, seed: {}, names)
