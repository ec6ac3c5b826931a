"""The invariants of the gradient learners: what each adds to fine-tuning, and that it adds nothing else."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from latewood import Data, Experience, Recipe, run
from latewood.core.errors import ConfigurationError
from latewood.core.seeding import seeded
from latewood.core.stream import Stream
from latewood.images.learners.derpp import DERpp
from latewood.images.learners.ewc import EWC
from latewood.images.learners.finetune import Finetune
from latewood.images.learners.icarl import ICaRL
from latewood.images.learners.joint import Joint
from latewood.images.learners.lwf import LwF
from latewood.images.learners.replay import Replay
from latewood.images.nets import mlp, resnet32
from latewood.images.streams.split import split
from latewood.images.streams.tasks import tasks
from latewood.parts.backbone import Backbone
from latewood.parts.heads import ClassifierLearner

STREAM = split("digits", steps=5)
RECIPE = Recipe(epochs=3, lr=0.05)
LEARNERS: dict[str, tuple[type[ClassifierLearner], dict[str, Any]]] = {
    "finetune": (Finetune, {}),
    "joint": (Joint, {}),
    "replay": (Replay, {"memory": 50}),
    "replay-balanced": (Replay, {"memory": 50, "policy": "balanced"}),
    "replay-herding": (Replay, {"memory": 50, "policy": "herding"}),
    "der++": (DERpp, {"memory": 50}),
    "ewc": (EWC, {"samples": 50}),
    "ewc-online": (EWC, {"mode": "online", "samples": 50}),
    "lwf": (LwF, {}),
    "icarl": (ICaRL, {"memory": 50}),
    "icarl-head": (ICaRL, {"memory": 50, "rule": "head"}),
}


def backbone(width: int = 32) -> Backbone:
    with seeded(0):
        return mlp(STREAM.example, width=width)


def made(name: str, recipe: Recipe = RECIPE, **more: object) -> ClassifierLearner:
    kind, settings = LEARNERS[name]
    return kind(backbone(), recipe=recipe, **{**settings, **more})


def weights(learner: ClassifierLearner) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in learner.net.state_dict().items()}


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def learn(learner: ClassifierLearner, stream: Stream = STREAM, count: int = 2) -> ClassifierLearner:
    for index in range(count):
        learner.learn(stream[index])
    return learner


@pytest.mark.parametrize("name", LEARNERS)
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(name: str) -> None:
    results = []
    for seed in (0, 0, 1):
        learner = made(name, Recipe(lr=0.05))
        run(learner, split("digits", groups=[[0, 1], [2, 3]]), seed=seed, device="cpu")
        results.append(weights(learner))
    assert equal(results[0], results[1])
    assert not equal(results[0], results[2])


@pytest.mark.parametrize("name", LEARNERS)
def test_a_saved_learner_goes_on_where_it_was(name: str) -> None:
    first = learn(made(name, Recipe(lr=0.05)))
    second = made(name, Recipe(lr=0.05))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.predict(STREAM.probes[0].data), second.predict(STREAM.probes[0].data))
    for learner in (first, second):
        learner.generator.manual_seed(7)
        learner.learn(STREAM[2])
    assert equal(weights(first), weights(second))


@pytest.mark.parametrize("name", LEARNERS)
def test_it_learns_what_arrives(name: str) -> None:
    learner = learn(made(name), count=1)
    assert STREAM.probes[0].score(learner)["accuracy"] > 0.9


@pytest.mark.parametrize("name", LEARNERS)
def test_no_rows_get_no_predictions_and_no_class_gets_minus_one(name: str) -> None:
    learner = made(name, Recipe(lr=0.05))
    assert learner.predict(STREAM.probes[0].data).unique().tolist() == [-1]
    learner.learn(STREAM[0])
    assert learner.predict(STREAM.probes[0].data[:0]).shape == (0,)


@pytest.mark.parametrize("name", LEARNERS)
def test_told_the_task_it_chooses_among_that_tasks_classes(name: str) -> None:
    stream = tasks("digits", steps=5)
    learner = learn(made(name, Recipe(lr=0.05)), stream)
    for step in range(2):
        assert set(learner.predict(stream.probes[step].data).tolist()) <= set(stream[step].classes)


def test_without_their_penalties_ewc_and_lwf_are_fine_tuning() -> None:
    results = {}
    for name in ("finetune", "lwf", "ewc", "ewc-online"):
        learner = made(name) if name == "finetune" else made(name, strength=0.0)
        for index in range(2):
            # The end of an arrival may draw random numbers; the training of the next must not differ for that.
            learner.generator.manual_seed(index)
            learner.learn(STREAM[index])
        results[name] = weights(learner)
    assert all(equal(results["finetune"], other) for other in results.values())


def test_fine_tuning_on_the_arrivals_classes_leaves_the_old_rows_of_the_head_alone() -> None:
    learner = learn(made("finetune"), count=1)
    before = learner.net.head.weight.detach().clone()
    learner.learn(STREAM[1])
    assert torch.equal(learner.net.head.weight[:2], before)
    seen = learn(made("finetune", candidates="seen"), count=1)
    before = seen.net.head.weight.detach().clone()
    seen.learn(STREAM[1])
    assert not torch.equal(seen.net.head.weight[:2], before)


def test_fine_tuning_over_all_classes_forgets_nearly_everything() -> None:
    learner = made("finetune", Recipe(epochs=10, lr=0.05), candidates="seen")
    record = run(learner, STREAM, device="cpu")
    assert record.last < 0.35  # one arrival of five is 0.2


def test_joint_training_keeps_every_sample_and_forgets_little() -> None:
    learner = made("joint", Recipe(epochs=10, lr=0.05))
    record = run(learner, STREAM, device="cpu")
    assert record.last > 0.95
    assert record.rows[-1].cost.flops > 3 * record.rows[0].cost.flops  # its cost grows with what came before


def test_replay_holds_what_fine_tuning_forgets() -> None:
    recipe = Recipe(epochs=10, lr=0.05)
    last = {name: run(made(name, recipe), STREAM, device="cpu").last for name in ("finetune", "replay", "icarl", "der++")}
    assert last["replay"] > last["finetune"] + 0.2
    assert last["icarl"] > last["finetune"] + 0.2
    assert last["der++"] > last["finetune"] + 0.2


@pytest.mark.parametrize("policy", ["reservoir", "balanced", "herding"])
def test_a_memory_never_holds_more_than_its_size_nor_what_did_not_arrive(policy: str) -> None:
    learner = made("replay", policy=policy)
    arrived = torch.empty(0, 64, dtype=torch.uint8)
    for index in range(3):
        learner.learn(STREAM[index])
        arrived = torch.cat([arrived, STREAM[index].train["image"].flatten(1)])
        kept = learner.kept.data["image"].flatten(1)
        assert len(kept) <= 50
        assert (kept[:, None] == arrived[None]).all(2).any(1).all()


def test_a_sample_passes_the_memory_once_however_many_epochs() -> None:
    learner = made("replay", Recipe(epochs=4, lr=0.05))
    learner.learn(STREAM[0])
    assert int(learner.kept.seen) == len(STREAM[0].train)


def test_memories_keep_images_without_augmentation() -> None:
    data = Data(image=torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8), label=torch.arange(40) % 2)
    with seeded(0):
        net = resnet32(data[:1], width=4, augment="crop-flip")
    learner = Replay(net, memory=40, recipe=Recipe(batch_size=20))
    learner.learn(Experience(0, data))
    kept = learner.kept.data["image"].flatten(1)
    assert (kept[:, None] == data["image"].flatten(1)[None]).all(2).any(1).all()


def test_dark_replay_without_alpha_is_replay_weighed_by_beta() -> None:
    learner = made("der++", Recipe(lr=0.05), alpha=0.0, beta=0.7)
    learner.learn(STREAM[0])
    learner.prepare(STREAM[1])
    learner.train()
    batch = STREAM[1].train[:8]
    state = learner.generator.get_state()
    loss = learner.loss(batch)
    learner.generator.set_state(state)
    learner.kept.sample(8, learner.generator)
    old = learner.kept.sample(8, learner.generator)
    expected = learner.cross_entropy(learner.logits(batch), batch) + 0.7 * learner.cross_entropy(learner.logits(old), old)
    assert torch.allclose(loss, expected)


def test_stored_logits_never_change_and_count_only_for_the_classes_they_knew() -> None:
    learner = made("der++", Recipe(lr=0.05))
    learner.learn(STREAM[0])
    before = {bytes(image.flatten().tolist()): logits for image, logits in zip(*_kept(learner), strict=True)}
    learner.learn(STREAM[1])
    survivors = 0
    for image, logits in zip(*_kept(learner), strict=True):
        stored = before.get(bytes(image.flatten().tolist()))
        if stored is not None:
            survivors += 1
            assert torch.equal(logits[:2], stored[:2])
    assert survivors > 5
    dark = Data(logits=torch.tensor([[1.0, 2.0, 0.0]]), width=torch.tensor([2]))
    assert DERpp.dark_loss(torch.tensor([[1.0, 4.0, 100.0]]), dark) == 2.0  # (0 + 4) / 2, the third class does not count


def _kept(learner: ClassifierLearner) -> tuple[torch.Tensor, torch.Tensor]:
    data = learner.kept.data
    return data["image"], data["logits"]


def test_ewc_holds_important_parameters_more_firmly() -> None:
    free, held = made("finetune"), made("ewc", strength=1e5, clamp=None, recipe=Recipe(epochs=3, lr=1e-4))
    for learner in (free, held):
        learner.recipe = Recipe(epochs=3, lr=0.05)
        learner.learn(STREAM[0])
    before = weights(held)
    moved = {}
    for name, learner in (("free", free), ("held", held)):
        learner.recipe = Recipe(epochs=3, lr=1e-4)
        learner.learn(STREAM[1])
        change = learner.net.backbone.layers[0].weight - before["backbone.layers.0.weight"]
        importance = held.anchors.importance[: change.numel()].view_as(change)
        moved[name] = float((importance * change.detach() ** 2).sum())
    assert moved["held"] < moved["free"]


def test_the_teacher_is_the_model_after_the_last_arrival_and_stays_so() -> None:
    learner = learn(made("lwf"), count=1)
    after_first = weights(learner)
    learner.prepare(STREAM[1])
    snapshot = {name: value.clone() for name, value in learner.teacher.snapshot.state_dict().items()}
    assert equal(snapshot, after_first)
    learner.learn(STREAM[1])
    assert len(learner.teacher.snapshot.classes) == 4


def test_lwf_pulls_the_old_logits_to_the_teachers() -> None:
    drift = {}
    for strength in (0.0, 10.0):
        learner = learn(made("lwf", strength=strength), count=1)
        inputs = learner.net.prepare(STREAM[1].train)
        before = F.softmax(learner.net(inputs)[:, :2] / 2, dim=1).detach()
        learner.learn(STREAM[1])
        drift[strength] = (F.softmax(learner.net(inputs)[:, :2] / 2, dim=1) - before).abs().mean().item()
    assert drift[10.0] < drift[0.0]


def test_icarl_shares_its_memory_equally_and_keeps_the_first_of_each_class() -> None:
    learner = made("icarl", Recipe(lr=0.05))
    learner.learn(STREAM[0])
    first = {int(c): learner.kept.data[learner.kept.data["label"] == c]["image"] for c in STREAM[0].classes}
    learner.learn(STREAM[1])
    kept = learner.kept.data
    assert kept["label"].unique(return_counts=True)[1].tolist() == [12] * 4  # 50 // 4
    for label, images in first.items():
        assert torch.equal(kept[kept["label"] == label]["image"], images[:12])


def test_icarl_predicts_by_the_nearest_mean_of_exemplars() -> None:
    learner = learn(made("icarl"))
    net, kept, test = learner.net.eval(), learner.kept.data, STREAM.probes[0].data
    with torch.no_grad():
        features = F.normalize(net.backbone(net.prepare(kept)))
        means = torch.stack([F.normalize(features[kept["label"] == c].mean(0), dim=0) for c in net.classes.labels])
        distances = torch.cdist(F.normalize(net.backbone(net.prepare(test))), means)
    assert torch.equal(learner.predict(test), net.classes.labels[distances.argmin(1)])


def test_a_memory_with_less_room_than_classes_gets_a_sentence() -> None:
    learner = made("icarl", memory=1)
    with pytest.raises(ConfigurationError, match="A memory of 1 has no room for 2 classes"):
        learner.learn(STREAM[0])


def test_a_frozen_backbone_stays_bit_identical_with_its_running_statistics() -> None:
    data = Data(image=torch.randint(0, 256, (32, 3, 32, 32), dtype=torch.uint8), label=torch.arange(32) % 2)
    with seeded(0):
        net = resnet32(data[:1], width=4).freeze()
    before = copy.deepcopy(net.state_dict())
    learner = Replay(net, memory=10, recipe=Recipe(batch_size=16, lr=0.1))
    learner.learn(Experience(0, data))
    assert equal(before, net.state_dict())
    assert learner.net.head.weight.grad is not None
