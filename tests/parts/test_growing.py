"""Growing modules: a fresh one takes on the sizes of the state that it is given."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from latewood.parts.growing import Growing


class Part(Growing):
    def __init__(self, rows: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(rows, 2))
        self.register_buffer("counts", torch.arange(rows))


class Open(Growing):
    """Takes on any buffer, and has a part of its own."""

    open_ended = True

    def __init__(self, part: Part | None = None) -> None:
        super().__init__()
        if part is not None:
            self.inner = part


class Whole(Growing):
    """Growing parts within a growing module that has tensors of its own."""

    def __init__(self, rows: int = 0) -> None:
        super().__init__()
        self.part, self.kept = Part(rows), Open(Part(rows))
        self.register_buffer("counts", torch.zeros(rows))


@pytest.mark.parametrize(("old", "new"), [(0, 4), (4, 0), (2, 5), (5, 2), (3, 3)])
def test_parameters_and_buffers_take_on_the_size_of_a_state(old: int, new: int) -> None:
    part, state = Part(old), Part(new).state_dict()
    state["weight"] = torch.randn(new, 2)
    part.load_state_dict(state)
    assert torch.equal(part.weight, state["weight"])
    assert part.get_buffer("counts").tolist() == list(range(new))
    assert isinstance(part.weight, nn.Parameter)


def test_loading_copies_and_never_shares() -> None:
    one, other = Part(3), Part(5)
    other.load_state_dict(one.state_dict())
    other.get_buffer("counts").add_(7)
    with torch.no_grad():
        other.weight.add_(7)
    assert one.get_buffer("counts").tolist() == [0, 1, 2]
    assert bool((one.weight == 1).all())


def test_a_buffer_takes_on_the_type_of_a_state() -> None:
    part, state = Part(2), Part(2).state_dict()
    state["counts"] = torch.tensor([0.5, 1.5], dtype=torch.float64)
    part.load_state_dict(state)
    assert torch.equal(part.get_buffer("counts"), state["counts"])
    assert part.get_buffer("counts").dtype == torch.float64


def test_a_module_takes_on_only_what_is_its_own() -> None:
    whole = Whole(3)
    whole.kept.register_buffer("image", torch.arange(6, dtype=torch.uint8).view(2, 3))
    fresh = nn.ModuleDict({"inner": Whole(), "other": Part(1)})
    fresh.load_state_dict(nn.ModuleDict({"inner": whole, "other": Part(4)}).state_dict())
    inner = fresh["inner"]
    assert isinstance(inner, Whole)
    assert sorted(inner.state_dict()) == [
        "counts",
        "kept.image",
        "kept.inner.counts",
        "kept.inner.weight",
        "part.counts",
        "part.weight",
    ]
    assert inner.kept.get_buffer("image").dtype == torch.uint8
    assert inner.kept.get_buffer("image").tolist() == [[0, 1, 2], [3, 4, 5]]
    assert len(inner.part.weight) == len(inner.get_buffer("counts")) == 3
    assert fresh.state_dict()["other.weight"].shape == (4, 2)


def test_a_module_that_is_not_open_ended_refuses_what_it_does_not_know() -> None:
    with pytest.raises(RuntimeError, match="stranger"):
        Part().load_state_dict({**Part(2).state_dict(), "stranger": torch.zeros(1)})


def test_it_knows_where_its_tensors_lie() -> None:
    assert Open().place == torch.device("cpu")
    assert Part(2).place == torch.device("cpu")
    assert Part(2).to("meta").place == torch.device("meta")


def test_what_is_resized_stays_where_the_module_lies() -> None:
    part = Part(2).to("meta")
    part.load_state_dict({name: value.to("meta") for name, value in Part(5).state_dict().items()})
    part.resize_parameter("weight", torch.ones(7, 2))
    assert part.weight.device == part.get_buffer("counts").device == torch.device("meta")
    assert part.weight.shape == (7, 2)
