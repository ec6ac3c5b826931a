"""Backbones: the column is checked before a network sees it, and goes where the network is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from latewood.core.data import Data
from latewood.core.errors import DataError
from latewood.parts.backbone import Backbone

MakeBackbone = Callable[..., Backbone]


@pytest.mark.parametrize(("shape", "words"), [((7,), "7"), ((2, 4), "2x4"), ((), "a single number")])
def test_rows_of_another_shape_get_a_sentence(linear: MakeBackbone, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(DataError, match=f"The x column holds rows of {words}, but this model was made for 4"):
        linear().prepare(Data(x=torch.zeros(3, *shape)))


def test_a_backbone_without_a_fixed_shape_takes_rows_of_any(linear: MakeBackbone) -> None:
    backbone = linear(shape=False)
    for rows in (torch.zeros(3, 4), torch.zeros(3, 9, 4)):
        assert backbone(backbone.prepare(Data(x=rows))).shape == (3, 3)


def test_a_column_that_is_missing_or_a_list_gets_a_sentence(linear: MakeBackbone) -> None:
    with pytest.raises(DataError, match="no column 'x'"):
        linear().prepare(Data(y=torch.zeros(3, 4)))
    with pytest.raises(DataError, match="'x' must be a tensor"):
        linear().prepare(Data(x=["a", "b"]))


def test_raw_rows_become_floating_point_on_the_device_of_the_network(linear: MakeBackbone) -> None:
    data = Data(x=torch.tensor([[0, 1, 2, 255]], dtype=torch.uint8))
    inputs = linear().prepare(data)
    assert inputs.dtype == torch.float32
    assert inputs.tolist() == [[0, 1, 2, 255]]
    assert linear().to("meta").prepare(data).device.type == "meta"


def test_a_frozen_backbone_stays_in_evaluation_mode_without_gradients_until_it_is_let_go(moody: MakeBackbone) -> None:
    backbone = moody().train()
    assert backbone.freeze() is backbone
    parent = torch.nn.ModuleDict({"backbone": backbone})
    parent.train()
    assert parent.training
    assert not any(module.training for module in backbone.modules())
    assert not any(p.requires_grad for p in backbone.parameters())
    backbone.freeze(False)
    parent.train()
    assert all(module.training for module in backbone.modules())
    assert all(p.requires_grad for p in backbone.parameters())


def test_a_configuration_says_whether_the_backbone_was_frozen(linear: MakeBackbone) -> None:
    assert linear().freeze().config() == {"scale": 1.0, "frozen": True}
    assert linear().freeze().freeze(False).config() == linear().config() == {"scale": 1.0}


def test_its_settings_are_its_own(linear: MakeBackbone) -> None:
    backbone = linear(scale=2.0)
    backbone.config()["scale"] = 9
    assert backbone.config() == {"scale": 2.0}
