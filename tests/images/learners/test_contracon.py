"""The invariants of ConTraCon (paper 47)."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latewood import Data, Experience, run
from latewood.core.errors import ConfigurationError, DataError
from latewood.core.seeding import seeded
from latewood.images.learners.contracon import CLEAN, ConTraCon, RestartRecipe
from latewood.images.nets import mlp, vit
from latewood.images.nets.cct import cct
from latewood.images.streams.split import split
from latewood.images.streams.tasks import tasks
from latewood.images.views import AUTOAUGMENT, SHIFTS
from latewood.parts.backbone import Backbone
from latewood.parts.view_entropy import view_entropy

STREAM = split("digits", steps=5)
TOLD = tasks("digits", steps=5)
RECIPE = RestartRecipe(epochs=2, batch_size=64, lr=2e-3)
WIDTH, DEPTH, HEADS, KERNEL = 16, 2, 4, 3


def backbone() -> Backbone:
    with seeded(0):
        return cct(STREAM.example, width=WIDTH, depth=DEPTH, heads=HEADS)


def made(**settings: Any) -> ConTraCon:
    with seeded(1):
        return ConTraCon(**{"backbone": backbone(), "kernel": KERNEL, "recipe": RECIPE, **settings})


def teach(learner: ConTraCon, *arrivals: int, stream: Any = STREAM) -> ConTraCon:
    for index in arrivals:
        learner.generator.manual_seed(index)
        learner.learn(stream[index])
    return learner


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("reweighting", ["convolution", "none", "copy"])
def test_the_logits_of_a_told_task_are_bit_identical_whatever_comes_later(reweighting: Any) -> None:
    learner = made(reweighting=reweighting)
    before = []
    for index in range(4):
        teach(learner, index, stream=TOLD)
        columns = learner._columns(index)
        before.append(learner.scores(TOLD.probes[index].data)[:, columns])
    for index, logits in enumerate(before):
        again = learner.scores(TOLD.probes[index].data)
        assert torch.equal(again[:, learner._columns(index)], logits)
        assert int(again.isfinite().sum()) == logits.numel()


def test_the_transformer_is_frozen_after_the_first_task() -> None:
    learner = teach(made(), 0)
    before = state(learner.backbone)
    teach(learner, 1, 2)
    assert equal(before, state(learner.backbone))
    assert all(not p.requires_grad and p.grad is None for p in learner.backbone.parameters())
    first = state(backbone())
    # The bias of the pooling layer shifts all scores alike.
    assert {name for name, value in first.items() if torch.equal(value, before[name])} <= {"pool.bias"}


def test_a_task_adds_as_many_parameters_as_the_formula_says() -> None:
    learner = teach(made(), 0, 1)
    counts = []
    for index in (2, 3):
        before = sum(v.numel() for v in (*learner.bank.buffers(), *learner.net.head.parameters()))
        teach(learner, index)
        after = sum(v.numel() for v in (*learner.bank.buffers(), *learner.net.head.parameters()))
        counts.append(after - before - 2)  # the numbers of the tasks of two classes
    matrices = 3 * DEPTH * HEADS
    wanted = matrices * (KERNEL**2 + 1) + matrices + 4 * DEPTH * WIDTH + (WIDTH + 1) + (WIDTH + 1) * 2
    assert counts == [wanted, wanted] and learner.task_parameters == wanted


def test_a_task_does_not_depend_on_those_between_the_first_and_it() -> None:
    all_of_them, skipping = teach(made(), 0, 1, 2, 3), teach(made(), 0)
    skipping.generator.manual_seed(3)
    skipping.learn(STREAM[3])
    assert torch.equal(all_of_them.bank.values[-1], skipping.bank.values[-1])
    assert torch.equal(all_of_them.net.head.weight[-2:], skipping.net.head.weight[-2:])


def test_every_task_begins_anew() -> None:
    learner = teach(made(), 0, 1)
    learner.prepare(STREAM[2])
    assert learner.task.convolution is not None and learner.task.convolution.gate is not None
    assert bool((learner.task.convolution.gate == 1).all())
    for name, parameter in zip(learner.task.free, learner.task.own, strict=True):
        if "norm" in name:
            assert bool((parameter == float(name.endswith("weight"))).all())
    assert sorted({name.rpartition(".")[0] for name in learner.task.free}) == [
        *(f"blocks.{block}.{norm}" for block in range(DEPTH) for norm in ("norm1", "pre_norm")),
        "pool",
    ]


def test_weights_of_a_task_are_made_from_the_roots_and_not_from_the_task_before() -> None:
    learner = teach(made(), 0, 1, 2)
    names = learner.task.projections
    base = torch.stack([learner.backbone.get_parameter(name) for name in names])
    convolution = learner.task.convolution
    assert convolution is not None and len(names) == 3 * DEPTH
    wanted = convolution(base)
    found = learner._weights(2)
    for number, name in enumerate(names):
        assert torch.equal(found[name], wanted[number])
    assert learner._weights(0) == {} and not torch.equal(learner._weights(1)[names[0]], found[names[0]])


def test_a_prediction_does_not_depend_on_what_else_is_predicted() -> None:
    learner = teach(made(), 0, 1)
    data = STREAM.probes[0].data
    assert torch.equal(learner.predict(data)[:10], learner.predict(data[:10]))
    assert torch.equal(learner.predict(data), learner.predict(data))
    assert torch.allclose(learner.scores(data, batch_size=3)[:7], learner.scores(data[:7]), atol=1e-5)


def test_a_bag_is_six_times_the_image_and_ten_others() -> None:
    assert len(AUTOAUGMENT) == len(SHIFTS) == 10 and CLEAN == 6
    for views, channels, side in ((AUTOAUGMENT, 3, 32), (SHIFTS, 1, 8), (SHIFTS, 1, 28), (AUTOAUGMENT, 1, 12)):
        smooth = nn.functional.interpolate(torch.rand(4, channels, 4, 4, generator=torch.Generator().manual_seed(0)), side)
        seen = [view(smooth) for view in views]
        for image in seen:
            assert image.shape == smooth.shape and 0 <= image.min() <= image.max() <= 1
            assert not torch.equal(image, smooth)
        for number, view in enumerate(views):
            assert torch.allclose(view(smooth[:1]), seen[number][:1], atol=1e-6), "each image by itself"


def test_shifts_go_where_they_say() -> None:
    image = torch.zeros(1, 1, 8, 8)
    image[0, 0, 3, 4] = 1
    places = [tuple(view(image)[0, 0].nonzero()[0].tolist()) for view in SHIFTS[:4]]
    assert places == [(4, 4), (2, 4), (3, 5), (3, 3)]


def test_the_task_is_inferred_from_the_entropy_of_the_bag() -> None:
    learner = teach(made(), 0, 1, 2)
    data = STREAM.probes[1].data[:20]
    pixels = data.tensor("image").float() / 255
    bag = [pixels] * CLEAN + [view(pixels) for view in SHIFTS]
    entropies = []
    for number in range(3):
        inputs = torch.cat([learner.backbone.prepare(Data(image=view)) for view in bag])
        with torch.no_grad():
            logits = learner._logits(inputs, learner._weights(number), learner._columns(number)).unflatten(0, (16, -1))
        entropies.append(view_entropy(logits))
    assert torch.equal(learner.infer_task(data), torch.stack(entropies).argmin(0))


def test_with_the_image_alone_it_is_the_plain_entropy() -> None:
    learner = teach(made(views="none"), 0, 1)
    data = STREAM.probes[0].data[:20]
    plain = []
    for number in range(2):
        with torch.no_grad():
            logits = learner._logits(learner.backbone.prepare(data), learner._weights(number), learner._columns(number))
        plain.append(view_entropy(logits[None]))
    assert torch.equal(learner.infer_task(data), torch.stack(plain).argmin(0))


def test_told_the_inferred_task_it_predicts_the_same_and_never_less_than_untold() -> None:
    learner = teach(made(recipe=RestartRecipe(epochs=6, batch_size=32, lr=3e-3)), 0, 1, 2, stream=TOLD)
    for index in range(3):
        data = TOLD.probes[index].data
        untold = Data(image=data["image"], label=data["label"])
        inferred = learner.infer_task(data)
        assert torch.equal(learner.predict(untold.with_columns(task=inferred)), learner.predict(untold))
        right = [float((learner.predict(each) == data["label"]).double().mean()) for each in (data, untold)]
        assert right[0] >= right[1]


def test_entropies_of_unequal_tasks_are_shares_of_the_largest() -> None:
    stream = split("digits", groups=[[0, 1], [2, 3, 4, 5, 6]])
    learner = teach(made(), 0, 1, stream=stream)
    with torch.no_grad():
        # Both heads know nothing: the same share, though not the same entropy.
        learner.net.head.weight.zero_()
        learner.net.head.bias.zero_()
        learner.net.head.bias[2] = 1e-3
    assert learner.infer_task(stream.probes[0].data[:5]).tolist() == [1] * 5


def test_a_frozen_backbone_is_the_root_as_it_came() -> None:
    root = backbone().freeze()
    before = state(root)
    learner = teach(made(backbone=root), 0, 1)
    assert equal(before, state(root)) and len(learner.bank.values) == 2
    assert learner._weights(0)


def test_a_vision_transformer_of_transformers_can_be_the_root() -> None:
    with seeded(0):
        root = vit(STREAM.example, width=12, depth=2)
    learner = teach(made(backbone=root), 0, 1)
    names = [f"network.layers.{layer}.attention.{kind}_proj.weight" for layer in range(2) for kind in "qkv"]
    assert learner.task.projections == names and learner.task.convolution is not None
    assert learner.task.convolution.heads == 3
    assert len(learner.task.free) == 8 and learner._weights(1).keys() == {*names, *learner.task.free}
    inputs = root.prepare(STREAM.probes[0].data[:4])
    with torch.no_grad():
        features = [torch.func.functional_call(root, dict(learner._weights(n)), (inputs,)) for n in (0, 1)]
    assert not torch.allclose(*features)


def test_the_ablations_have_the_parts_that_they_are_named_after() -> None:
    names = {kind: {n for n, _ in made(reweighting=kind).task.named_parameters()} for kind in ("none", "copy", "convolution")}
    own = names["none"]
    assert names["copy"] - own == {"copied"}
    assert names["convolution"] - own == {"convolution.weight", "convolution.bias", "convolution.gate"}
    assert "convolution.gate" not in {n for n, _ in made(gate=False).task.named_parameters()}


@pytest.mark.parametrize("head_lr", [5e-3, None])
def test_old_rows_of_the_head_never_move_and_new_ones_do(head_lr: float | None) -> None:
    learner = teach(made(head_lr=head_lr, recipe=RestartRecipe(epochs=1, batch_size=64, weight_decay=0.1)), 0)
    old = learner.net.head.weight.detach().clone()
    teach(learner, 1)
    fresh = learner.net.head.weight[2:].clone()
    assert torch.equal(learner.net.head.weight[:2], old)
    learner.generator.manual_seed(1)
    start = made()
    start.net.head.grow(2, learner.generator)
    assert not torch.equal(fresh, start.net.head.weight)


def test_a_saved_learner_predicts_the_same_and_goes_on_where_it_was() -> None:
    first, second = teach(made(), 0, 1, 2), made()
    second.load_state_dict(first.state_dict())
    for probe in STREAM.probes[:3]:
        assert torch.equal(first.scores(probe.data), second.scores(probe.data))
    for learner in (first, second):
        teach(learner, 3)
    assert equal(state(first), state(second))


def test_a_state_saved_in_the_middle_of_a_task_goes_on_bit_for_bit() -> None:
    def step(learner: ConTraCon, optimizer: torch.optim.Optimizer, batch: Data) -> None:
        optimizer.zero_grad()
        learner.loss(batch).backward()
        optimizer.step()
        learner.after_batch(batch)

    first, second = teach(made(), 0, 1), teach(made(), 0, 1)
    batches = list(STREAM[2].train.batches(64))
    optimizers = []
    for learner in (first, second):
        learner.prepare(STREAM[2])
        optimizers.append(RECIPE.make_optimizer(learner.parameter_groups()))
    for batch in batches[:2]:
        step(first, optimizers[0], batch)
    second.load_state_dict(first.state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for learner, optimizer in zip((first, second), optimizers, strict=True):
        with seeded("the rest"):
            for batch in batches[2:]:
                step(learner, optimizer, batch)
        learner.conclude(STREAM[2])
    assert len(first.bank.values) == 2 and equal(state(first), state(second))


def test_it_can_be_asked_in_the_middle_of_a_task() -> None:
    learner = teach(made(), 0)
    learner.prepare(STREAM[1])
    assert learner.predict(STREAM.probes[0].data).shape == (len(STREAM.probes[0].data),)
    assert made().predict(STREAM.probes[0].data[:3]).tolist() == [-1] * 3


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    states = []
    for seed in (0, 0, 1):
        learner = made()
        run(learner, split("digits", groups=[[0, 1], [2, 3]]), seed=seed, device="cpu")
        states.append(state(learner))
    assert equal(states[0], states[1]) and not equal(states[0], states[2])


def test_the_rate_falls_twice_to_its_floor() -> None:
    recipe = RestartRecipe(epochs=10, lr=1e-3, floor=1e-4)
    rates = [recipe.rate(step, 20) for step in range(20)]
    assert rates[0] == rates[1] == rates[10] == 1 and rates[:10] == rates[10:]
    assert rates[9] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + torch.tensor(0.8 * torch.pi).cos().item()))
    assert RestartRecipe(epochs=10, schedule="constant").rate(15, 20) == 1


def test_arrivals_that_are_no_new_task_are_refused_before_anything_changes() -> None:
    learner = teach(made(), 0, 1, stream=TOLD)
    before = state(learner)
    train = TOLD[0].train
    with pytest.raises(DataError, match="has arrived before"):
        learner.learn(TOLD[0])
    with pytest.raises(DataError, match="takes each task once"):
        learner.learn(Experience(2, Data(image=train["image"], label=train["label"] + 100), task=1))
    with pytest.raises(DataError, match="at least two classes"):
        learner.learn(Experience(2, Data(image=train["image"], label=torch.full((len(train),), 99))))
    assert equal(before, state(learner))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kernel": 4}, "kernel must be odd"),
        ({"smoothing": 1.0}, "smoothing must lie"),
        ({"head_lr": 0.0}, "head_lr must be above 0"),
    ],
)
def test_what_does_not_fit_gets_a_sentence(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        made(**settings)
    with pytest.raises(ConfigurationError):
        made(backbone=mlp(STREAM.example, width=8))
    with pytest.raises(ConfigurationError, match="floor must be at least 0"):
        RestartRecipe(floor=-1.0)
