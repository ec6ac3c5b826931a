"""The registry of classes: columns in order of arrival, and tasks as sets of classes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latewood.core.data import Data
from latewood.core.errors import DataError
from latewood.core.experience import Experience
from latewood.parts.classes import ClassRegistry

quick = settings(max_examples=50, deadline=None)
NEVER = -torch.inf


def registry(*arrivals: tuple[list[int], int | None]) -> ClassRegistry:
    classes = ClassRegistry()
    for labels, task in arrivals:
        classes.expose(labels, task)
    return classes


def allowed(classes: ClassRegistry, *tasks: int) -> list[list[int]]:
    """The labels among which rows of these tasks may choose."""
    scores = classes.restrict(torch.zeros(len(tasks), len(classes)), Data(task=torch.tensor(tasks)))
    assert set(scores.flatten().tolist()) <= {0.0, NEVER}
    return [classes.labels[row == 0].tolist() for row in scores]


@quick
@given(st.lists(st.lists(st.integers(-5, 20), max_size=6), min_size=1, max_size=8))
def test_columns_are_in_order_of_first_arrival_and_never_move(arrivals: list[list[int]]) -> None:
    classes, order = ClassRegistry(), list[int]()
    for labels in arrivals:
        new = [label for label in dict.fromkeys(labels) if label not in order]
        assert classes.expose(labels) == len(new)
        order += new
        assert classes.labels.tolist() == order
        assert len(classes) == len(order)
        if order:
            assert classes.columns(torch.tensor(order[::-1])).tolist() == list(range(len(order)))[::-1]


def test_columns_are_found_for_any_shape_and_integer_type_of_labels() -> None:
    classes = registry(([7, 3, 9], None))
    assert classes.columns(torch.tensor([[9, 7], [3, 3]])).tolist() == [[2, 0], [1, 1]]
    assert classes.columns(torch.tensor([3, 9], dtype=torch.uint8)).tolist() == [1, 2]
    assert classes.columns(torch.tensor([], dtype=torch.int64)).tolist() == []


@pytest.mark.parametrize("stranger", [-1, 0, 4, 100])
def test_a_label_that_never_arrived_is_named_in_a_sentence(stranger: int) -> None:
    classes = registry(([3, 1, 5], None))
    with pytest.raises(DataError, match=f"The label {stranger} never arrived; known are 3 classes"):
        classes.columns(torch.tensor([1, stranger, 3]))


def test_before_any_class_arrived_there_are_no_columns() -> None:
    with pytest.raises(DataError, match="No class has arrived yet"):
        ClassRegistry().columns(torch.tensor([0]))


def test_an_experience_exposes_its_classes_in_their_order_or_else_its_labels() -> None:
    data = Data(label=torch.tensor([4, 2, 4]))
    listed, unlisted = ClassRegistry(), ClassRegistry()
    assert listed.expose_all(Experience(0, data, classes=(4, 9, 2))) == 3
    assert listed.labels.tolist() == [4, 9, 2]
    assert unlisted.expose_all(Experience(0, data)) == 2
    assert unlisted.labels.tolist() == [2, 4]
    assert unlisted.expose_all(Experience(1, data)) == 0


def test_a_task_chooses_among_its_own_classes_only() -> None:
    classes = registry(([0, 1], 10), ([2, 3], 20))
    assert allowed(classes, 20, 10, 20) == [[2, 3], [0, 1], [2, 3]]


def test_a_class_may_belong_to_two_tasks_and_a_task_may_get_more_classes_later() -> None:
    classes = registry(([0, 1], 0), ([1, 2], 1), ([3, 0], 1), ([4], 0))
    assert classes.labels.tolist() == [0, 1, 2, 3, 4]
    assert allowed(classes, 0, 1) == [[0, 1, 4], [0, 1, 2, 3]]


def test_classes_that_arrive_without_a_task_belong_to_none() -> None:
    classes = registry(([5], None), ([6, 7], 3), ([8], None), ([5], 4))
    assert allowed(classes, 3, 4) == [[6, 7], [5]]


def test_scores_are_left_alone_where_no_task_is_told_or_known() -> None:
    scores = torch.randn(3, 2)
    told = registry(([0, 1], 0))
    assert told.restrict(scores, Data(x=torch.zeros(3))) is scores
    untold = registry(([0, 1], None))
    assert untold.restrict(scores, Data(task=torch.zeros(3, dtype=torch.int64))) is scores


def test_restricting_changes_no_allowed_score_and_lets_no_other_win() -> None:
    classes = registry(([0, 1], 0), ([2, 3], 1))
    scores = torch.tensor([[1.0, 2.0, 90.0, 99.0], [-5.0, -6.0, -7.0, -8.0]])
    restricted = classes.restrict(scores, Data(task=torch.tensor([0, 1])))
    assert restricted.argmax(1).tolist() == [1, 2]
    assert restricted[0, :2].tolist() == [1.0, 2.0]
    assert scores[0, 2] == 90


def test_a_task_that_never_arrived_is_named_in_a_sentence() -> None:
    classes = registry(([0, 1], 0))
    with pytest.raises(DataError, match="Task 7 never arrived"):
        classes.restrict(torch.zeros(2, 2), Data(task=torch.tensor([0, 7])))


def test_a_task_with_a_name_is_refused_before_anything_changes() -> None:
    classes = ClassRegistry()
    with pytest.raises(DataError, match="must be a number, but it is 'dogs'"):
        classes.expose_all(Experience(0, Data(label=torch.tensor([1])), task="dogs"))
    assert len(classes) == 0


def test_the_best_label_is_that_of_the_largest_score_and_none_while_no_class_arrived() -> None:
    assert registry(([7, 3, 9], None)).best(torch.tensor([[0.0, 5.0, 1.0], [2.0, 1.0, 0.0]])).tolist() == [3, 7]
    assert ClassRegistry().best(torch.zeros(3, 0)).tolist() == [-1, -1, -1]


def test_a_fresh_registry_takes_on_a_filled_one_and_goes_on() -> None:
    filled, fresh = registry(([7, 3], 0), ([9, 3], 1)), ClassRegistry()
    fresh.load_state_dict(filled.state_dict())
    assert fresh.expose([4, 7], 1) == filled.expose([4, 7], 1) == 1
    assert fresh.labels.tolist() == [7, 3, 9, 4]
    assert allowed(fresh, 0, 1) == allowed(filled, 0, 1) == [[7, 3], [7, 3, 9, 4]]
