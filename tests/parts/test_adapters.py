"""Adapters: identity where they begin, what the papers say where they have learned, and nothing else of the network changes."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError
from latewood.core.seeding import seeded
from latewood.images.nets import resnet32
from latewood.parts.adapters import (
    Adapters,
    Prompts,
    ScaleShift,
    batch_norms,
    film,
    renew_statistics,
    ssf,
    transformer_blocks,
)

PIXELS = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
KINDS = ("ViT", "DeiT", "Dinov2", "CLIPVision", "SiglipVision")
PHOTOS = Data(
    image=torch.randint(256, (12, 3, 16, 16), generator=torch.Generator().manual_seed(1), dtype=torch.uint8),
    label=torch.arange(12) % 3,
)


def network(kind: str = "ViT", depth: int = 2) -> Any:
    """A small transformer of a family that transformers knows."""
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": depth, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
    sizes |= {"mlp_ratio": 2} if kind == "Dinov2" else {"intermediate_size": 32}
    with seeded("network", kind):
        made = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**sizes))
        for value in made.parameters():
            value.data.add_(torch.rand_like(value) * 0.1)
    return made.eval()


@torch.no_grad()
def states(of: Any) -> Tensor:
    hidden: Tensor = of(pixel_values=PIXELS).last_hidden_state
    return hidden


@torch.no_grad()
def shaken(module: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for value in module.parameters():
        value.add_(torch.randn(value.shape, generator=generator))


def bits(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(module: nn.Module, before: dict[str, Tensor]) -> bool:
    now = module.state_dict()
    return all(torch.equal(now[name], value) for name, value in before.items())


# Bottleneck adapters


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_change_nothing_at_first_and_something_once_they_learned(kind: str) -> None:
    body = network(kind)
    before, names = states(body), set(body.state_dict())
    adapters = Adapters(body, width=4)
    assert torch.allclose(states(body), before, atol=1e-5, rtol=0)
    assert names == {name for name in body.state_dict() if not name.startswith("adapters.")}
    shaken(adapters)
    assert not torch.allclose(states(body), before, atol=1e-2, rtol=0)


def test_an_adapter_adds_to_the_mlp_what_it_makes_of_the_stream_before_the_norm() -> None:
    body = network()
    shaken(adapters := Adapters(body, width=4))
    with torch.no_grad():
        hidden = body.embeddings(PIXELS)
        for number, block in enumerate(body.layers):
            stream = hidden + block.attention(block.layernorm_before(hidden))[0]
            narrow = torch.relu(stream @ adapters.down[number].T + adapters.down_bias[number])
            beside = narrow @ adapters.up[number].T + adapters.up_bias[number]
            hidden = stream + block.mlp(block.layernorm_after(stream)) + 0.1 * beside
        expected = body.layernorm(hidden)
    torch.testing.assert_close(states(body), expected, atol=1e-5, rtol=1e-5)


def test_adapters_of_a_vit_base_have_the_published_number_of_parameters() -> None:
    from transformers import ViTConfig, ViTModel

    with torch.device("meta"):
        adapters = Adapters(ViTModel(ViTConfig()), width=16)
    assert sum(value.numel() for value in adapters.parameters()) == 304_320


def test_dropout_acts_in_training_only_and_every_tensor_gets_a_gradient() -> None:
    body = network()
    shaken(adapters := Adapters(body, width=8, dropout=0.5))
    assert torch.equal(states(body), states(body))
    adapters.train()
    assert not torch.equal(states(body), states(body))
    body(pixel_values=PIXELS).last_hidden_state.square().sum().backward()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in adapters.parameters())


# Sets of adapters


def with_sets(count: int) -> tuple[Any, Adapters, list[Tensor]]:
    """A network with stored sets, and what it gives with each."""
    body = network()
    adapters = Adapters(body, width=4)
    given = []
    for seed in range(count):
        shaken(adapters, seed)
        adapters.store()
        given.append(states(body))
    return body, adapters, given


def test_a_stored_set_is_a_copy_that_later_training_leaves_alone() -> None:
    body, adapters, given = with_sets(2)
    kept = [value.clone() for value in adapters.stored]
    shaken(adapters, 9)
    adapters.pull([kept.mean(0) for kept in adapters.stored], 0.5)
    assert adapters.sets == 2
    assert all(torch.equal(a, b) for a, b in zip(adapters.stored, kept, strict=True))
    for number, expected in enumerate(given):
        with adapters.using(number):
            torch.testing.assert_close(states(body), expected)


def test_rows_with_sets_of_their_own_get_what_each_set_gives_alone() -> None:
    body, adapters, given = with_sets(3)
    with adapters.using(torch.tensor([2, 0, 1])):
        mixed = states(body)
    for row, number in enumerate((2, 0, 1)):
        torch.testing.assert_close(mixed[row], given[number][row], atol=1e-5, rtol=1e-5)


def test_the_live_set_is_back_after_an_error_and_was_never_gone_for_another_thread() -> None:
    body, adapters, given = with_sets(2)
    seen: list[Tensor] = []
    with pytest.raises(RuntimeError, match="midway"), adapters.using(0):
        with adapters.using(1):
            assert torch.allclose(states(body), given[1])
        assert torch.allclose(states(body), given[0])
        other = threading.Thread(target=lambda: seen.append(states(body)))
        other.start()
        other.join()
        raise RuntimeError("midway")
    assert torch.equal(seen[0], given[1])  # the last one that was stored is live still
    assert torch.equal(states(body), given[1])


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_a_pull_moves_each_tensor_in_place_by_its_share(share: float) -> None:
    _, adapters, _ = with_sets(3)
    means, before = [kept.mean(0) for kept in adapters.stored], [value.detach().clone() for value in adapters.live]
    places = [value.data_ptr() for value in adapters.live]
    adapters.pull(means, share)
    for value, old, mean in zip(adapters.live, before, means, strict=True):
        torch.testing.assert_close(value.detach(), (1 - share) * old + share * mean, atol=1e-6, rtol=0)
    assert [value.data_ptr() for value in adapters.live] == places


def test_a_saved_network_brings_its_sets_into_a_fresh_one() -> None:
    body, _, given = with_sets(2)
    fresh = network()
    adapters = Adapters(fresh, width=4)
    fresh.load_state_dict(body.state_dict())
    assert adapters.sets == 2
    with adapters.using(0):
        assert torch.allclose(states(fresh), given[0])


def test_the_adapters_of_a_copy_are_its_own() -> None:
    body = network()
    Adapters(body, width=4)
    before = states(body)
    twin = copy.deepcopy(body)
    shaken(twin.adapters)
    assert torch.equal(states(body), before)
    assert not torch.allclose(states(twin), before, atol=1e-2)


# Prompts


@pytest.mark.parametrize("deep", [False, True], ids=["shallow", "deep"])
@pytest.mark.parametrize("kind", KINDS)
def test_prompts_take_part_in_attention_and_leave_the_number_of_tokens(kind: str, deep: bool) -> None:
    body = network(kind)
    before = states(body)
    prompts = Prompts(body, count=3, deep=deep)
    assert prompts.tokens.shape == (2 if deep else 1, 3, 16)
    assert prompts.tokens.abs().sum() == 0
    after = states(body)
    assert after.shape == before.shape
    assert not torch.equal(after, before)
    body(pixel_values=PIXELS).last_hidden_state.square().sum().backward()
    assert (prompts.tokens.grad.abs().sum((1, 2)) > 0).all()  # type: ignore[union-attr]


@pytest.mark.parametrize("deep", [False, True], ids=["shallow", "deep"])
def test_prompts_enter_where_the_paper_puts_them(deep: bool) -> None:
    body = network()
    plain = copy.deepcopy(body)
    shaken(prompts := Prompts(body, count=3, deep=deep))
    with torch.no_grad():
        hidden = plain.embeddings(PIXELS)
        count = hidden.shape[1]
        for number, block in enumerate(plain.layers):
            if deep or number == 0:
                hidden = torch.cat([hidden[:, :count], prompts.tokens[number].expand(3, -1, -1)], 1)
            hidden = block(hidden)
        expected = plain.layernorm(hidden[:, :count])
    torch.testing.assert_close(states(body), expected, atol=1e-5, rtol=1e-5)


# Scale and shift


def test_scale_and_shift_at_one_and_zero_change_nothing() -> None:
    body = network()
    before = states(body)
    given = ssf(body)
    assert not torch.allclose(states(body), before, atol=1e-4)
    for scale, shift in zip(given.scale, given.shift, strict=True):
        scale.data.fill_(1)
        shift.data.zero_()
    assert torch.allclose(states(body), before, atol=1e-5, rtol=0)


def test_ssf_follows_every_norm_linear_layer_and_the_patches() -> None:
    sites = ssf(network(depth=3)).scale
    assert len(sites) == 1 + 3 * (2 + 4 + 2) + 1 + 1  # the patches, the blocks, the last norm and the pooler
    assert all(abs(float(scale.mean()) - 1) < 0.05 for scale in sites)


def test_a_factor_of_a_convolution_is_one_of_its_channels() -> None:
    layer = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.GroupNorm(1, 3)).eval()
    inputs = torch.rand(2, 2, 4, 4)
    plain = copy.deepcopy(layer)
    shaken(given := ScaleShift(nn.Module(), [layer[0], layer[1]]))
    factor, offset = ([value.view(3, 1, 1) for value in values] for values in (given.scale, given.shift))
    expected = plain[2](plain[1](plain[0](inputs) * factor[0] + offset[0]) * factor[1] + offset[1])
    torch.testing.assert_close(layer(inputs), expected)


def test_film_on_efficientnet_b0_has_the_published_number_of_parameters_and_changes_nothing_at_first() -> None:
    from transformers import EfficientNetConfig, EfficientNetModel

    sizes: dict[str, Any] = {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280}
    with seeded(0):
        body = EfficientNetModel(EfficientNetConfig(**sizes)).eval()
    inputs = torch.rand(1, 3, 32, 32)
    before, weights = body(inputs).pooler_output, bits(body)
    given = film(body)
    assert sum(value.numel() for value in given.parameters()) == 20_544
    assert len(given.scale) == 1 + 16 + 1
    torch.testing.assert_close(body(inputs).pooler_output, before, atol=1e-6, rtol=0)
    assert same(body, weights)


# Batch statistics


def test_renewed_statistics_come_from_the_images_alone_and_leave_every_weight() -> None:
    body = resnet32(PHOTOS[:1], width=4)
    norms = batch_norms(body)
    shaken(norms)
    weights = {name: value.clone() for name, value in body.named_parameters()}
    renew_statistics(body, PHOTOS.select("image"), 1, 12, torch.Generator())
    assert all(torch.equal(value, weights[name]) for name, value in body.named_parameters())
    maps = body.stem[0](body.prepare(PHOTOS))
    torch.testing.assert_close(body.stem[1].running_mean, 0.1 * maps.mean((0, 2, 3)))
    torch.testing.assert_close(body.stem[1].running_var, 0.1 * maps.var((0, 2, 3)))
    assert body.frozen and not any(module.training for module in body.modules())


# What does not fit


def test_what_can_not_be_attached_is_told() -> None:
    from transformers import SwinConfig, SwinModel

    convolutional = resnet32(PHOTOS[:1], width=4)
    with pytest.raises(ConfigurationError, match="has no transformer blocks"):
        Adapters(convolutional)
    stages = SwinModel(SwinConfig(image_size=32, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4))
    with pytest.raises(ConfigurationError, match="blocks of several widths"):
        transformer_blocks(stages)
    with pytest.raises(ConfigurationError, match="no batch normalisation"):
        batch_norms(network())
    with pytest.raises(ConfigurationError, match="no layers that could be scaled"):
        ssf(nn.Sequential(nn.ReLU()))
    for make in (lambda: Adapters(network(), width=0), lambda: Prompts(network(), count=0)):
        with pytest.raises(ConfigurationError, match="at least 1"):
            make()


def test_a_network_takes_one_bank_of_adapters() -> None:
    body = network()
    Adapters(body)
    with pytest.raises(ConfigurationError, match="has adapters already"):
        Adapters(body)
