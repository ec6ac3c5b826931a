"""Adapting once: what is to be trained trains, under a head that is temporary, and nothing else changes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latewood.core.data import Data
from latewood.core.experience import Experience
from latewood.core.recipe import Recipe
from latewood.images.nets import resnet32, vit
from latewood.parts.adaptation import Adaptation
from latewood.parts.adapters import Adapters, ssf
from latewood.parts.backbone import Backbone
from latewood.parts.heads import LinearHead

PHOTOS = Data(
    image=torch.randint(256, (12, 3, 16, 16), generator=torch.Generator().manual_seed(1), dtype=torch.uint8),
    label=torch.arange(12) % 3,
)


def bits(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(module: nn.Module, before: dict[str, Tensor]) -> bool:
    now = module.state_dict()
    return all(torch.equal(now[name], value) for name, value in before.items())


def adapted(body: Backbone, trained: nn.Module) -> Adaptation:
    made = Adaptation(body, trained, LinearHead(body.width), Recipe(epochs=2, batch_size=4, lr=0.01))
    made.learn(Experience(0, PHOTOS, (0, 1, 2)))
    return made


def test_only_the_part_that_is_to_be_trained_changes() -> None:
    body = vit(PHOTOS, width=16, depth=2, heads=2)
    trained = Adapters(body, width=4)
    network_before, before = bits(body.network), bits(trained)  # type: ignore[arg-type]
    made = adapted(body, trained)
    assert same(body.network, network_before)  # type: ignore[arg-type]
    assert not same(trained, before)
    assert body.frozen and not any(value.requires_grad for value in body.parameters())
    assert made.predict(PHOTOS).shape == (12,)


def test_running_statistics_stay_where_only_a_part_is_trained_and_move_where_all_is() -> None:
    part, whole = (resnet32(PHOTOS[:1], width=4) for _ in range(2))
    statistics = {name: value.clone() for name, value in part.named_buffers()}
    adapted(part, ssf(part))
    assert all(torch.equal(value, statistics[name]) for name, value in part.named_buffers())
    before = bits(whole)
    adapted(whole, whole)
    assert not torch.equal(whole.stem[1].running_mean, before["stem.1.running_mean"])  # type: ignore[index]


def test_images_are_augmented_while_a_part_is_trained() -> None:
    body = vit(PHOTOS, width=16, depth=1, heads=2, augment="crop-flip")
    made = Adaptation(body, Adapters(body, width=4), LinearHead(16), Recipe())
    made.train()
    assert not torch.equal(body.prepare(PHOTOS), body.prepare(PHOTOS))
    assert body.adapters.training and not body.network.training  # type: ignore[union-attr]
    made.eval()
    assert torch.equal(body.prepare(PHOTOS), body.prepare(PHOTOS))
