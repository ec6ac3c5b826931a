"""The gap in a curve of scores: how deep, how long, how much."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError, DataError
from latewood.core.experience import Experience
from latewood.core.learner import Learner
from latewood.core.probe import Probe
from latewood.core.watch import Watch, watching
from latewood.parts.gap import Gap, gap

STEPS = [0, 1, 2, 4, 8, 16, 32]
DIP = [0.75, 0.5, 0.25, 0.5, 0.75, 0.875, 0.5]


def test_a_dip_has_its_depth_its_recovery_and_its_area() -> None:
    found = gap(STEPS, DIP, early=0.25)
    assert found == Gap(0.5, 8.0, 0.125 + 0.375 + 2 * 0.375 + 4 * 0.125)


def test_where_lower_is_better_the_mirrored_curve_has_the_same_gap() -> None:
    assert gap(STEPS, [2 - score for score in DIP], higher_is_better=False, early=0.25) == gap(STEPS, DIP, early=0.25)


@pytest.mark.parametrize("better", [True, False])
def test_no_dip_gives_zero_everywhere(better: bool) -> None:
    rising = [0.5, 0.5, 0.6, 0.7, 0.7, 0.8, 0.9]
    scores = rising if better else [1 - score for score in rising]
    assert gap(STEPS, scores, higher_is_better=better) == Gap(0.0, 0.0, 0.0)
    assert gap(STEPS, [0.5] * 7, higher_is_better=better) == Gap(0.0, 0.0, 0.0)


def test_what_is_lost_late_and_not_early_is_forgetting_and_no_gap() -> None:
    assert gap(STEPS, [0.5, 0.5, 0.6, 0.6, 0.6, 0.1, 0.1], early=0.25) == Gap(0.0, 0.0, 0.0)


def test_only_the_early_window_decides_how_deep_it_is() -> None:
    scores = [0.75, 0.5, 0.5, 0.5, 0.5, 0.125, 0.125]
    assert gap(STEPS, scores, early=0.25).depth == 0.25
    assert gap(STEPS, scores, early=1.0).depth == 0.625


def test_what_never_comes_back_has_an_infinite_recovery_and_an_area_up_to_the_end() -> None:
    found = gap([0, 10, 20], [1.0, 0.5, 0.75], early=0.5)
    assert found == Gap(0.5, math.inf, 2.5 + 3.75)


def test_back_at_exactly_the_start_is_recovered_and_later_losses_are_not_counted() -> None:
    assert gap([0, 1, 2, 3, 10], [0.5, 0.25, 0.5, 0.25, 0.0], early=0.2) == Gap(0.25, 2.0, 0.25)


def test_a_return_before_the_worst_point_is_no_recovery() -> None:
    assert gap([0, 1, 2, 3, 4], [0.5, 0.25, 0.5, 0.0, 0.5], early=1.0) == Gap(0.5, 4.0, 0.25 + 0.5)


def test_the_area_ends_where_the_curve_crosses_the_start() -> None:
    # from 1 below at step 1 to 3 above at step 5: the line crosses after one step
    assert gap([0, 1, 5], [1.0, 0.0, 4.0], early=0.5) == Gap(1.0, 5.0, 0.5 + 0.5)
    # above the start first, below it from the middle of the second stretch on
    assert gap([0, 1, 3, 4], [1.0, 2.0, 0.0, 1.0], early=0.75) == Gap(1.0, 4.0, 0.5 + 0.5)


@pytest.mark.parametrize(
    ("steps", "scores", "said"),
    [
        ([0, 1], [0.5], "2 steps and 1 scores"),
        ([0], [0.5], "begins with step 0"),
        ([1, 2], [0.5, 0.5], "begins with step 0"),
        ([0, 2, 2], [0.5, 0.5, 0.5], "never back"),
        ([0, 1, 2], [0.5, math.nan, 0.5], "holds nan"),
        ([0, 50, 100], [0.5, 0.4, 0.5], "look more often"),
    ],
)
def test_a_curve_that_can_not_show_a_dip_is_refused(steps: list[int], scores: list[float], said: str) -> None:
    with pytest.raises(DataError, match=said):
        gap(steps, scores)


@pytest.mark.parametrize("early", [0.0, 1.5])
def test_an_early_part_that_is_no_share_is_refused(early: float) -> None:
    with pytest.raises(ConfigurationError, match="share of the steps"):
        gap(STEPS, DIP, early=early)


def test_it_is_read_off_a_watch() -> None:
    class Dipping(Learner):
        ability = 0.75

        def learn(self, experience: Experience) -> None:
            from latewood.core.watch import current_watch

            watch = current_watch()
            assert watch is not None
            for step, self.ability in zip(STEPS, DIP, strict=True):
                watch.after(step, self)

        def predict(self, data: Data) -> Tensor:
            return torch.full((len(data),), self.ability)

    class Ability(Probe):
        metrics: ClassVar[Mapping[str, bool]] = {"accuracy": True}

        def score(self, learner: Learner) -> dict[str, float]:
            return {"accuracy": float(learner.predict(self.data).mean())}

    data = Data(x=torch.zeros(2))
    with watching(Watch([Ability("old", data, since=0)])) as watch:
        Dipping().learn(Experience(0, data))
    assert gap(*watch.curve("old", "accuracy"), early=0.25) == gap(STEPS, DIP, early=0.25)
