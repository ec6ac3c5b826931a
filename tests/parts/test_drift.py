"""Drift: how far each layer moves, relative to its weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from latewood.core.errors import ConfigurationError, DataError
from latewood.parts.drift import Drift, transformer_layer


def stack(layers: int = 10, bias: bool = True) -> nn.ModuleDict:
    torch.manual_seed(0)
    blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6, bias=bias), nn.Linear(6, 6, bias=bias)) for _ in range(layers))
    return nn.ModuleDict({"embed": nn.Embedding(5, 6), "layers": blocks, "head": nn.Linear(6, 5)})


@torch.no_grad()
def move(net: nn.ModuleDict, factors: list[float]) -> None:
    for layer, factor in zip(net["layers"], factors, strict=True):  # type: ignore[call-overload]
        for parameter in layer.parameters():
            parameter.mul_(1 + factor)


def test_nothing_has_moved_at_the_start() -> None:
    drift = Drift(stack())
    assert set(drift.by_layer().values()) == {0.0}
    assert math.isnan(drift.ratio())


def test_the_ratio_is_one_for_identical_relative_changes() -> None:
    net = stack()
    drift = Drift(net)
    move(net, [0.1] * 10)
    assert list(drift.by_layer().values()) == pytest.approx([0.1] * 10, rel=1e-4)
    assert drift.ratio() == pytest.approx(1, rel=1e-4)


def test_frozen_layers_give_exactly_zero_after_training() -> None:
    net = stack(4)
    for parameter in net["layers"][1].parameters():  # type: ignore[index]
        parameter.requires_grad_(False)
    drift = Drift(net)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        hidden = net["embed"](torch.arange(5))
        for layer in net["layers"]:  # type: ignore[attr-defined]
            hidden = layer(hidden)
        optimizer.zero_grad()
        net["head"](hidden).square().sum().backward()
        optimizer.step()
    moved = drift.by_layer()
    assert moved[1] == 0.0
    assert all(moved[layer] > 0 for layer in (0, 2, 3))


def test_the_drift_is_the_mean_of_the_relative_changes() -> None:
    net = stack(2)
    before = [p.detach().double().clone() for p in net["layers"][0].parameters()]  # type: ignore[index]
    drift = Drift(net)
    with torch.no_grad():
        for parameter in net["layers"][0].parameters():  # type: ignore[index]
            parameter.add_(0.01 * torch.randn_like(parameter))
    pairs = zip(net["layers"][0].parameters(), before, strict=True)  # type: ignore[index]
    changes = torch.cat([((now.detach().double() - old).abs() / (old.abs() + 1e-8)).flatten() for now, old in pairs])
    assert drift.by_layer()[0] == pytest.approx(float(changes.mean()), rel=1e-5)


def test_the_ratio_compares_as_many_layers_of_the_bottom_and_of_the_top_as_asked_for() -> None:
    net = stack()
    drift = Drift(net)
    move(net, [0.4, 0.2, 0, 0, 0, 0, 0, 0, 0.1, 0.1])
    assert drift.ratio(1) == pytest.approx(4, rel=1e-4)
    assert drift.ratio(2) == drift.ratio() == pytest.approx(3, rel=1e-4)  # a fifth of ten
    with pytest.raises(ConfigurationError, match="between 1 and 10 layers at either end, but 11"):
        drift.ratio(11)


def test_a_large_model_compares_five_layers_unless_told_and_a_small_one_at_least_one() -> None:
    for layers, ends in ((32, 5), (4, 1), (1, 1)):
        net = stack(layers)
        drift = Drift(net)
        move(net, [0.1 * (1 + layer) for layer in range(layers)])
        assert drift.ratio() == drift.ratio(ends)


def test_where_only_the_bottom_moves_the_ratio_is_infinite() -> None:
    net = stack(5)
    drift = Drift(net)
    move(net, [0.1, 0, 0, 0, 0])
    assert drift.ratio() == math.inf


def test_a_weight_that_began_at_zero_is_left_out() -> None:
    net = stack(2)
    with torch.no_grad():
        net["layers"][0][0].bias.zero_()  # type: ignore[index,union-attr]
    drift = Drift(net)
    move(net, [0.1, 0.1])
    with torch.no_grad():
        net["layers"][0][0].bias.fill_(1.0)  # type: ignore[index,union-attr]
    assert drift.by_layer()[0] == pytest.approx(0.1, rel=1e-4)


def test_a_layer_of_zeros_alone_has_no_drift() -> None:
    net = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(2, 2, bias=False)])})
    nn.init.zeros_(net["layers"][0].weight)  # type: ignore[index,arg-type]
    drift = Drift(net)
    nn.init.ones_(net["layers"][0].weight)  # type: ignore[index,arg-type]
    assert drift.by_layer() == {0: 0.0}


def test_layers_are_counted_by_number_and_what_lies_outside_is_not_copied() -> None:
    drift = Drift(stack(12))
    assert list(drift.by_layer()) == list(range(12))  # not 0, 1, 10, 11, 2
    assert all(name.startswith("layers.") for name in drift.start)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.3.self_attn.q_proj.weight", 3),
        ("transformer.h.11.attn.c_attn.weight", 11),
        ("encoder.layer.0.output.dense.bias", 0),
        ("blocks.7.norm1.weight", 7),
        ("h.2.mlp.weight", 2),
        ("model.norm.weight", None),
        ("lm_head.weight", None),
        ("width.2.weight", None),
    ],
)
def test_the_layer_of_a_parameter_is_read_off_its_name(name: str, layer: int | None) -> None:
    assert transformer_layer(name) == layer


def test_any_grouping_can_be_given() -> None:
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    drift = Drift(net, lambda name: "first" if name.startswith("0") else "second")
    with torch.no_grad():
        net[0].weight.mul_(2)  # type: ignore[operator]
    assert drift.by_layer() == {"first": pytest.approx(1, rel=1e-5), "second": 0.0}


def test_real_transformers_have_layers_in_their_names() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=3, num_attention_heads=2, max_position_embeddings=8
    )
    assert list(Drift(LlamaForCausalLM(config)).by_layer()) == [0, 1, 2]


def test_the_start_is_kept_once_on_the_cpu_and_does_not_follow_the_module() -> None:
    net = stack(2).to(torch.bfloat16)
    drift = Drift(net)
    assert all(kept.device.type == "cpu" and kept.dtype == torch.bfloat16 for kept in drift.start.values())
    pointers = {parameter.data_ptr() for parameter in net.parameters()}
    assert not pointers & {kept.data_ptr() for kept in drift.start.values()}
    weights = sum(p.numel() for p in net["layers"].parameters())
    assert sum(kept.numel() for kept in drift.start.values()) == weights


def test_measuring_changes_nothing_and_needs_no_gradient() -> None:
    net = stack(2)
    drift = Drift(net)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    drift.ratio()
    assert all(torch.equal(p, before[name]) and p.requires_grad for name, p in net.named_parameters())


def test_what_can_not_be_compared_is_told() -> None:
    net = stack(2)
    drift = Drift(net)
    net["layers"][1][0] = nn.Linear(6, 7)  # type: ignore[index,operator]
    with pytest.raises(DataError, match=r"The drift of layers\.1\.0\.weight can't be measured"):
        drift.by_layer()
    with pytest.raises(ConfigurationError, match="No parameter of this module belongs to a layer"):
        Drift(nn.Linear(2, 2))
    with pytest.raises(ConfigurationError, match="eps must be above 0"):
        Drift(net, eps=0.0)
