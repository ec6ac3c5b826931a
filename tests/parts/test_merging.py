"""The running mean of sets of weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from latewood.core.errors import LatewoodError
from latewood.parts.merging import RunningMean, merge_share


def sets(count: int) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [[torch.randn(2, 3, generator=generator), torch.randn(4, generator=generator)] for _ in range(count)]


def test_the_mean_is_that_of_the_sets_as_they_were_when_they_were_added() -> None:
    live, added = sets(1)[0], []
    mean = RunningMean(live)
    for tensors in sets(5):
        for place, values in zip(live, tensors, strict=True):
            place.copy_(values)
        mean.add(live)
        added.append(tensors)
        torch._foreach_mul_(live, 100.0)  # training goes on with the very tensors that were added
    for number, found in enumerate(mean.means()):
        torch.testing.assert_close(found, torch.stack([tensors[number] for tensors in added]).mean(0), atol=1e-6, rtol=0)


def test_trainable_sets_leave_no_graph_behind() -> None:
    live = [tensor.requires_grad_() for tensor in sets(1)[0]]
    mean = RunningMean(live)
    mean.add(live)
    assert not any(tensor.requires_grad for tensor in (*mean.means(), *mean.buffers()))


def test_a_saved_mean_goes_on_where_it_was() -> None:
    first, second = RunningMean(sets(1)[0]), RunningMean(sets(1)[0])
    for tensors in sets(3):
        first.add(tensors)
    second.load_state_dict(first.state_dict())
    for mean in (first, second):
        mean.add(sets(1)[0])
    assert second.sets == 4
    assert all(torch.equal(a, b) for a, b in zip(first.means(), second.means(), strict=True))


def test_a_mean_of_nothing_is_refused() -> None:
    with pytest.raises(LatewoodError, match="before one was added"):
        RunningMean(sets(1)[0]).means()


@pytest.mark.parametrize("times", [1, 2, 13])
def test_one_merge_by_the_whole_share_is_as_many_merges_one_after_the_other(times: int) -> None:
    start, target = torch.tensor([3.0, -1.0]), torch.tensor([1.0, 1.0])
    moved = start.clone()
    for _ in range(times):
        moved.lerp_(target, 0.1)
    torch.testing.assert_close(start.lerp(target, merge_share(0.1, times)), moved)
