"""Quantisation: the nearest key is the nearest, and keys follow the heads as the formula says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latewood.parts import quantisation
from latewood.parts.quantisation import MovingKeys, nearest_keys


def drawn(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), rows=st.integers(0, 20), at_once=st.sampled_from([1, 50, 1 << 25]))
def test_the_nearest_key_of_each_codebook_is_found_however_many_are_compared_at_once(
    seed: int, rows: int, at_once: int
) -> None:
    heads, keys = drawn(rows, 3, 4, seed=seed), drawn(3, 7, 4, seed=seed + 1)
    usable = torch.rand(3, 7, generator=torch.Generator().manual_seed(seed)) < 0.5
    usable[:, 0] = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantisation, "_DISTANCES", at_once)
        found, among_usable = nearest_keys(heads, keys), nearest_keys(heads, keys, usable)
    distances = (heads[:, :, None] - keys[None]).norm(dim=3)
    assert torch.equal(found, distances.argmin(2))
    assert torch.equal(among_usable, distances.masked_fill(~usable, torch.inf).argmin(2))


def test_with_no_memory_and_one_batch_live_keys_are_the_means_of_their_heads() -> None:
    heads, keys = drawn(200, 2, 3), drawn(2, 5, 3, seed=1)
    moving = MovingKeys(keys, decay=0.0, least=0.5)
    before = nearest_keys(heads, keys)
    moving.update(heads, torch.Generator())
    for codebook in range(2):
        for key in before[:, codebook].unique().tolist():
            mean = heads[before[:, codebook] == key, codebook].mean(0)
            torch.testing.assert_close(moving.keys[codebook, key], mean, rtol=1e-4, atol=1e-5)


def test_two_batches_are_averaged_as_the_formula_says() -> None:
    keys = torch.tensor([[[0.0], [10.0]]])
    moving = MovingKeys(keys, decay=0.75, epsilon=0.0)
    for values in ([1.0, 3.0, 9.0], [2.0, 8.0, 12.0]):
        moving.update(torch.tensor(values).view(3, 1, 1), torch.Generator())
    # Sums begin as the keys, counts at zero: after the first batch the keys are 1 / 0.5 = 2 and 9.75 / 0.25 = 39,
    # so that the second falls to the first key.
    first = (0.75 * (0.25 * 4) + 0.25 * 22) / (0.75 * 0.25 * 2 + 0.25 * 3)
    second = 0.75 * (0.75 * 10 + 0.25 * 9) / (0.75 * 0.25 * 1)
    assert moving.keys.flatten().tolist() == pytest.approx([first, second])


def test_keys_that_nothing_comes_near_move_to_heads_of_the_batch_and_the_given_ones_stay_as_they_were() -> None:
    keys = torch.cat([torch.zeros(1, 1, 2), torch.full((1, 3, 2), 1e3)], 1)
    given_keys, heads = keys.clone(), drawn(20, 1, 2)
    moving = MovingKeys(keys, least=0.01)
    moving.update(heads, torch.Generator().manual_seed(0))
    for key in moving.keys[0, 1:]:
        assert bool((heads[:, 0] == key).all(1).any())
    assert torch.equal(keys, given_keys)


def test_keys_end_up_where_the_heads_are() -> None:
    centres = 5 * drawn(1, 8, 2)
    heads = (centres[:, torch.arange(400) % 8] + 0.1 * drawn(1, 400, 2, seed=1)).transpose(0, 1)
    moving, draw = MovingKeys(drawn(1, 32, 2, seed=2), least=0.1 * 100 / 32), torch.Generator().manual_seed(0)
    before = (heads - moving.keys[:, nearest_keys(heads, moving.keys)[:, 0]].transpose(0, 1)).square().mean()
    for _ in range(10):
        for rows in torch.randperm(400, generator=draw).split(100):
            moving.update(heads[rows], draw)
    after = (heads - moving.keys[:, nearest_keys(heads, moving.keys)[:, 0]].transpose(0, 1)).square().mean()
    assert after < 0.02 < before
