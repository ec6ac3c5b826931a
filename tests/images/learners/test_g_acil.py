"""The invariants of G-ACIL (paper 23) on the learner itself; those of the recursion are beside ``RecursiveRidge``."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from latewood import Data, Experience
from latewood.core.errors import ConfigurationError, DataError
from latewood.images.datasets import load_images
from latewood.images.learners.g_acil import GACIL
from latewood.images.nets import mlp, pixels
from latewood.parts.statistics import ridge_solution

DIGITS = load_images("digits")


def learner(expansion: int = 60, gamma: float = 0.5, passes: int = 1, batch_size: int = 16) -> GACIL:
    made = GACIL(pixels(DIGITS.train[:1]), expansion, gamma, passes, batch_size)
    made.generator.manual_seed(1)
    return made


def joint(of: GACIL, data: Data) -> Tensor:
    """The joint ridge solution on these rows, columns as the learner has them."""
    rows = of.projection(of.encoder(data))
    return ridge_solution(rows, F.one_hot(of.classes.columns(data.tensor("label")), len(of.classes)), of.gamma)


def relative(difference: Tensor, to: Tensor) -> float:
    return float(difference.norm() / to.norm())


@st.composite
def arrivals(draw: st.DrawFn) -> list[list[int]]:
    """A random part of the digits, in random order, cut at random: single samples, mixed, repeated and missing classes,
    or everything at once."""
    rows = draw(st.lists(st.integers(0, len(DIGITS.train) - 1), min_size=1, max_size=120, unique=True))
    cuts = sorted(draw(st.sets(st.integers(1, len(rows)), max_size=12)) | {0, len(rows)})
    parts = [rows[a:b] for a, b in itertools.pairwise(cuts)]
    return [part for part in parts if part]


@settings(max_examples=60, deadline=None)
@given(arrivals(), st.sampled_from([1, 7, 64]), st.sampled_from([1e-2, 1.0, 100.0]))
def test_after_any_arrivals_the_weights_equal_the_joint_solution(parts: list[list[int]], batch: int, gamma: float) -> None:
    made = learner(gamma=gamma, batch_size=batch)
    for index, rows in enumerate(parts):
        made.learn(Experience(index, DIGITS.train[rows]))
    everything = DIGITS.train[[row for rows in parts for row in rows]]
    solution = joint(made, everything)
    assert relative(made.ridge.weight - solution, solution) < 1e-8


def test_class_sorted_and_shuffled_streams_give_identical_predictions() -> None:
    labels = DIGITS.train.tensor("label")
    orders = [labels.argsort(stable=True), torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))]
    predictions = []
    for order in orders:
        made = learner(expansion=200)
        for index, rows in enumerate(order.split(100)):
            made.learn(Experience(index, DIGITS.train[rows]))
        predictions.append(made.predict(DIGITS.test))
    assert torch.equal(*predictions)


def test_single_samples_one_by_one_are_one_arrival_of_all() -> None:
    singles, at_once = learner(), learner()
    few = DIGITS.train[:40]
    for index in range(40):
        singles.learn(Experience(index, few[index : index + 1]))
    at_once.learn(Experience(0, few))
    columns = at_once.classes.columns(singles.classes.labels)
    assert relative(singles.ridge.weight - at_once.ridge.weight[:, columns], at_once.ridge.weight) < 1e-10


def test_several_passes_weigh_every_sample_as_often() -> None:
    made = learner(passes=3)
    made.learn(Experience(0, DIGITS.train[:50]))
    thrice = DIGITS.train[torch.arange(50).repeat(3)]
    solution = joint(made, thrice)
    assert relative(made.ridge.weight - solution, solution) < 1e-10


def test_a_returning_class_gets_no_second_column() -> None:
    made = learner()
    labels = DIGITS.train.tensor("label")
    for index in range(3):
        made.learn(Experience(index, DIGITS.train[(labels == 4).nonzero().flatten()[index * 10 : index * 10 + 10]]))
    assert made.ridge.weight.shape == (60, 1)


def test_the_state_does_not_grow_with_the_samples() -> None:
    made = learner()
    labels = DIGITS.train.tensor("label")
    sizes = []
    for index in range(4):
        made.learn(Experience(index, DIGITS.train[labels < 5][index * 100 : index * 100 + 100]))
        sizes.append(sum(t.numel() for t in made.state_dict().values()))
    assert len(set(sizes)) == 1


def test_backbone_and_expansion_never_change_and_no_graph_is_built() -> None:
    torch.manual_seed(0)
    backbone = mlp(DIGITS.train[:1], width=32)
    made = GACIL(backbone, expansion=50, gamma=1.0)
    made.learn(Experience(0, DIGITS.train[:100]))
    before = [t.clone() for t in (*backbone.state_dict().values(), made.projection.weight)]
    made.learn(Experience(1, DIGITS.train[100:300]))
    assert all(
        torch.equal(a, b) for a, b in zip(before, (*backbone.state_dict().values(), made.projection.weight), strict=True)
    )
    assert not any(p.requires_grad for p in made.parameters())
    assert made.ridge.weight.grad_fn is None
    assert made.projection.weight.dtype == made.ridge.weight.dtype == torch.float64


def test_a_late_class_changes_the_other_columns_only_as_the_joint_solution_does() -> None:
    labels = DIGITS.train.tensor("label")
    made = learner()
    made.learn(Experience(0, DIGITS.train[labels < 3][:60]))
    made.learn(Experience(1, DIGITS.train[labels == 9][:20]))
    both = Data(
        image=torch.cat([DIGITS.train[labels < 3][:60]["image"], DIGITS.train[labels == 9][:20]["image"]]),
        label=torch.cat([DIGITS.train[labels < 3][:60]["label"], DIGITS.train[labels == 9][:20]["label"]]),
    )
    solution = joint(made, both)
    assert relative(made.ridge.weight - solution, solution) < 1e-10


def test_a_saved_learner_goes_on_where_it_was() -> None:
    first = learner()
    first.learn(Experience(0, DIGITS.train[:100]))
    second = learner()
    second.load_state_dict(first.state_dict())
    for made in (first, second):
        made.learn(Experience(1, DIGITS.train[100:200]))
    assert torch.equal(first.ridge.weight, second.ridge.weight)


def test_bad_hyper_parameters_get_a_sentence() -> None:
    with pytest.raises(ConfigurationError, match="gamma must be above 0"):
        learner(gamma=0.0)
    with pytest.raises(ConfigurationError, match="expansion must be at least 1"):
        learner(expansion=0)


def test_images_of_another_size_are_refused_before_anything_changes() -> None:
    made = learner()
    with pytest.raises(DataError, match="rows of 1x16x16, but this model was made for 1x8x8"):
        made.learn(Experience(0, Data(image=torch.zeros(3, 1, 16, 16, dtype=torch.uint8), label=torch.tensor([0, 1, 2]))))
    assert len(made.classes) == 0
    assert made.predict(DIGITS.test).unique().tolist() == [-1]
