"""The compact convolutional transformer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from latewood.core.data import Data
from latewood.core.errors import ConfigurationError
from latewood.core.seeding import seeded
from latewood.images.nets.cct import CompactTransformer, cct, sine_positions
from latewood.parts.adapters import transformer_blocks
from latewood.parts.backbone import build_backbone


def photos(count: int = 4, channels: int = 3, side: int = 32) -> Data:
    chance = torch.Generator().manual_seed(0)
    return Data(image=torch.randint(256, (count, channels, side, side), dtype=torch.uint8, generator=chance))


def small(data: Data, **settings: Any) -> CompactTransformer:
    with seeded(0):
        made = cct(data[:1], **{"width": 16, "depth": 2, "heads": 4, **settings})
    assert isinstance(made, CompactTransformer)
    return made.eval()


def test_its_weights_are_as_many_as_its_layers_say() -> None:
    width, hidden = 16, 32
    block = 4 * width * width + 4 * width + (width * hidden + hidden) + (hidden * width + width)
    count = sum(p.numel() for p in small(photos()).parameters())
    assert count == 27 * width + 2 * block + 2 * width + width + 1


@pytest.mark.parametrize(
    ("channels", "side", "convolutions", "kernel", "tokens"),
    [(1, 8, 1, 3, 16), (3, 32, 1, 3, 256), (3, 64, 2, 5, 256), (1, 28, 2, 3, 49), (3, 33, 1, 3, 289)],
)
def test_features_and_tokens_of_images_of_many_sizes(
    channels: int, side: int, convolutions: int, kernel: int, tokens: int
) -> None:
    data = photos(3, channels, side)
    backbone = small(data, convolutions=convolutions, kernel=kernel)
    features = backbone(backbone.prepare(data))
    assert features.shape == (3, 16) and features.isfinite().all()
    assert len(backbone.positions) == tokens


def test_its_forward_pass_is_what_its_docstring_says() -> None:
    data = photos(2)
    net = small(data, depth=1)
    inputs = net.prepare(data)
    tokens = F.max_pool2d(F.relu(net.tokenizer[0](inputs)), 3, 2, 1).flatten(2).mT + net.positions
    block = net.blocks[0]
    normed = block.pre_norm(tokens)
    heads = [projection(normed).view(2, -1, 4, 4).transpose(1, 2) for projection in
             (block.attention.q_proj, block.attention.k_proj, block.attention.v_proj)]  # fmt: skip
    mixed = F.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(2, -1, 16)
    tokens = block.norm1(tokens + mixed @ block.attention.o_proj.weight.T)
    tokens = net.norm(tokens + block.mlp(tokens))
    shares = (tokens @ net.pool.weight[0] + net.pool.bias).softmax(1)
    assert torch.allclose(net(inputs), (shares[:, :, None] * tokens).sum(1), atol=1e-5)


def test_each_head_has_its_own_rows_of_the_projections() -> None:
    data = photos(1)
    net = small(data, depth=1)
    attention = net.blocks[0].attention
    tokens = torch.randn(1, 6, 16)
    parts = []
    attention.o_proj.register_forward_pre_hook(lambda _, inputs: parts.append(inputs[0]))
    attention(tokens)
    attention.v_proj.weight.data[4:8] += 1
    attention(tokens)
    changed = (parts[0] != parts[1]).flatten(0, 1).any(0)
    assert changed.nonzero()[:, 0].tolist() == [4, 5, 6, 7]


def test_positions_are_sines_and_cosines() -> None:
    positions = sine_positions(10, 6)
    assert torch.equal(positions[0], torch.tensor([0.0, 1, 0, 1, 0, 1]))
    assert torch.allclose(positions[3, :2], torch.tensor([3.0]).sin().repeat(2) * torch.tensor([1.0, 0.0])
                          + torch.tensor([0.0, 1.0]) * torch.tensor(3.0).cos())  # fmt: skip


def test_chance_acts_in_training_alone_and_spares_the_first_block() -> None:
    data = photos(8)
    net = small(data, drop_path=0.5, attention_dropout=0.0)
    assert [block.drop_path for block in net.blocks] == [0.0, 0.5]
    inputs = net.prepare(data)
    assert torch.equal(net(inputs), net(inputs))
    with seeded(1):
        noisy = net.train()(inputs)
    assert not torch.equal(noisy, net.eval()(inputs))
    changes = [torch.equal(noisy[row], net.eval()(inputs)[row]) for row in range(8)]
    assert not all(changes)


def test_where_patches_are_matters() -> None:
    data = photos(1)
    net = small(data)
    moved = Data(image=data.tensor("image").roll(8, 3))
    assert not torch.allclose(net(net.prepare(data)), net(net.prepare(moved)), atol=1e-4)


def test_it_is_a_transformer_to_those_who_adapt_one() -> None:
    assert len(transformer_blocks(small(photos(), depth=3))) == 3


def test_its_configuration_builds_it_again() -> None:
    data = photos()
    net = small(data, convolutions=2, kernel=5, ratio=3, drop_path=0.2)
    again = build_backbone(net.config(), "images", data[:1], lambda: "mlp")
    again.load_state_dict(net.state_dict())
    assert torch.equal(again.eval()(again.prepare(data)), net(net.prepare(data)))
    assert again.config() == net.config()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"heads": 3}, "multiple of its heads"),
        ({"kernel": 4}, "must be odd"),
        ({"convolutions": 0}, "at least 1"),
        ({"drop_path": 1.0}, "drop_path of cct must lie"),
    ],
)
def test_settings_that_do_not_fit_get_a_sentence(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        small(photos(), **settings)
