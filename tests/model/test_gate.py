"""The gate: what counts as a loss, when it is too much, and how sure a model may say it is."""

from __future__ import annotations

import pytest
import torch

from latewood.model.gate import Loss, Tally, fitted_temperature, losses, tallies, too_much

NAMES = {0: "rose", 1: "tulip"}


def test_tallies_count_the_right_ones_of_each_class() -> None:
    found = tallies(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 0, 1, 1]))
    assert found == {0: Tally(1, 2), 1: Tally(1, 2)}


def test_only_what_fell_is_a_loss_and_the_worst_comes_first() -> None:
    before = {0: Tally(5, 5), 1: Tally(4, 10)}
    after = {0: Tally(4, 5), 1: Tally(1, 10), 2: Tally(0, 3)}
    assert losses(before, after, NAMES) == [(Loss("tulip", 0.4, 0.1), 3), (Loss("rose", 1.0, 0.8), 1)]
    assert losses(before, before, NAMES) == []


@pytest.mark.parametrize(
    ("then", "now", "total", "held"),
    [(10, 7, 10, True), (10, 9, 10, False), (1, 0, 1, False), (2, 0, 2, True), (10, 8, 10, False)],
)
def test_a_class_that_fell_beyond_the_limit_and_not_by_one_canary_alone_holds_an_update_back(
    then: int, now: int, total: int, held: bool
) -> None:
    fallen = losses({0: Tally(then, total)}, {0: Tally(now, total)}, NAMES)
    assert bool(too_much(fallen, limit=0.2)) == held


def test_the_fitted_temperature_is_the_one_that_made_the_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(20_000, 4, generator=generator, dtype=torch.float64)
    for true in (0.1, 1.0, 10.0):
        columns = torch.multinomial((scores / true).softmax(1), 1, generator=generator).flatten()
        assert fitted_temperature(scores, columns, doubt=0.0) == pytest.approx(true, rel=0.15)


def test_a_few_samples_that_are_all_right_do_not_make_the_model_sure_of_everything() -> None:
    scores = torch.eye(4, dtype=torch.float64) + 0.1 * torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    temperature = fitted_temperature(scores, torch.arange(4), doubt=1 / 6)
    confidence = (scores / temperature).softmax(1).diag()
    assert 0.7 < float(confidence.mean()) < 0.95


def test_the_temperature_is_defined_where_there_is_nothing_to_fit() -> None:
    assert fitted_temperature(torch.empty(0, 3), torch.empty(0, dtype=torch.int64), 0.5) == 1.0
    assert fitted_temperature(torch.ones(4, 1), torch.zeros(4, dtype=torch.int64), 0.5) == 1.0
    never = torch.tensor([[0.0, -torch.inf, 1.0], [1.0, -torch.inf, 0.0]])
    assert 0 < fitted_temperature(never, torch.tensor([2, 0]), 0.1) < 1e3
